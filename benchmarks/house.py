"""Measure the layout, the size and the wording of the code: ``python benchmarks/house.py``.

Limits (printed beside each measure): 17 entries at the top of seg/ beside the commands; 18,900 lines of seg/ and
17,000 of tests/; 20 % of the top-level names one bare word; 10 % of them in two or more files; 10 docstrings that
begin with What, Whether, How, Which, Where or Of; full-line comments at least 4 % of the code lines; 100 lines in a
command; no command that imports another; no path named in docs, conf or a docstring that does not exist. The
names ``main`` and ``log``, which every command or module has, are left out.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUESTION = re.compile(r"(What|Whether|How|Which|Where|Of)\b")
NAMED_PATH = re.compile(
    r"(?<![\w./~:<$-])(?:seg|conf|docs|tests|benchmarks|examples)/[\w./*-]*[\w/]"
)
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the docstring of the module and of each class and function in it."""
    for node in ast.walk(tree):
        if isinstance(node, Documented) and node.body and isinstance(node.body[0], ast.Expr):
            value = node.body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def count_lines(text: str, tree: ast.Module) -> tuple[int, int, int]:
    """Count the lines of code, of docstrings and of full-line comments."""
    documentation = {
        line
        for node in docstrings(tree)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            comments.add(token.start[0])
        elif token.type not in LAYOUT_TOKENS:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documentation), len(documentation), len(comments - code)


def top_level_names(tree: ast.Module) -> set[str]:
    """Return the names of the classes, functions and constants that a module defines."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("__")}


def is_bare_word(name: str) -> bool:
    """Return True for a name of one word: no underscore inside, no second capitalised part."""
    name = name.strip("_")
    return "_" not in name and not re.search(r"[a-z0-9][A-Z]", name)


def imported_commands(tree: ast.Module, commands: set[str]) -> set[str]:
    """Return the commands whose modules a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("seg.") for name in found if name.startswith("seg.")} & commands


def missing_paths(text: str) -> set[str]:
    """Return the repository paths that a text names and that do not exist; ``*`` and ``NAME`` stand for any name."""
    named = {match.rstrip("/.") for match in NAMED_PATH.findall(text)}
    patterns = {path: path.replace("NAME", "*") for path in named}
    return {
        path
        for path, pattern in patterns.items()
        if not any(ROOT.glob(pattern)) and not any(ROOT.glob(f"{pattern}.*"))
    }


def main() -> None:
    """Print one row per measure, then the lines of each command and the paths that do not exist."""
    texts = {
        file: file.read_text("utf-8")
        for room in ("seg", "tests")
        for file in sorted((ROOT / room).rglob("*.py"))
    }
    trees = {file: ast.parse(text) for file, text in texts.items()}
    package = [file for file in texts if file.is_relative_to(ROOT / "seg")]
    commands = {
        file.stem
        for file in package
        if file.parent == ROOT / "seg" and 'if __name__ == "__main__"' in texts[file]
    }
    entries = {
        p.stem
        for p in (ROOT / "seg").iterdir()
        if not p.name.startswith("__") or p.name == "__init__.py"
    }

    sizes = {file: count_lines(text, trees[file]) for file, text in texts.items()}
    seg_code, seg_doc, comments = (sum(sizes[file][i] for file in package) for i in range(3))
    tests_code, tests_doc = (
        sum(sizes[file][i] for file in texts if file not in package) for i in range(2)
    )
    seg_lines = sum(len(texts[file].splitlines()) for file in package)
    tests_lines = sum(len(texts[file].splitlines()) for file in texts if file not in package)

    files_of: dict[str, set[Path]] = defaultdict(set)
    for file in package:
        for name in top_level_names(trees[file]) - {"main", "log"}:
            files_of[name].add(file)
    bare = sum(is_bare_word(name) for name in files_of) / len(files_of)
    shared = sum(len(files) > 1 for files in files_of.values()) / len(files_of)
    questions = sum(
        bool(QUESTION.match(doc.value.strip()))
        for file in package
        for doc in docstrings(trees[file])
    )
    crossing = {
        name: found
        for name in sorted(commands)
        if (found := imported_commands(trees[ROOT / f"seg/{name}.py"], commands))
    }
    lengths = {name: len(texts[ROOT / f"seg/{name}.py"].splitlines()) for name in sorted(commands)}

    prose = {
        file: file.read_text("utf-8")
        for file in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    }
    prose |= {file: file.read_text("utf-8") for file in sorted(ROOT.glob("conf/**/*.yaml"))}
    prose |= {file: "\n".join(doc.value for doc in docstrings(trees[file])) for file in package}
    absent = {file: paths for file, text in prose.items() if (paths := missing_paths(text))}

    rows = [
        ("entries at the top of seg/ beside the commands", f"{len(entries - commands)}", "<= 17"),
        ("lines of seg/", f"{seg_lines}", "<= 18900"),
        ("  of code / of docstrings", f"{seg_code} / {seg_doc}", ""),
        ("lines of tests/", f"{tests_lines}", "<= 17000"),
        ("  of code / of docstrings", f"{tests_code} / {tests_doc}", ""),
        ("top-level names of one bare word", f"{bare:.1%}", "<= 20 %"),
        ("top-level names in two or more files", f"{shared:.1%}", "<= 10 %"),
        ("docstrings that begin with a question word or Of", f"{questions}", "<= 10"),
        ("full-line comments per code line", f"{comments / seg_code:.1%}", ">= 4 %"),
        ("lines of the longest command", f"{max(lengths.values())}", "<= 100"),
        ("commands that import another", f"{len(crossing)}", "0"),
        ("named paths that do not exist", f"{sum(map(len, absent.values()))}", "0"),
    ]
    for label, value, limit in rows:
        print(f"{label:<52}{value:>16}  {limit}")
    print(
        "\nlines of each command: "
        + ", ".join(f"{name} {length}" for name, length in lengths.items())
    )
    for name, found in crossing.items():
        print(f"seg/{name}.py imports {', '.join(sorted(found))}")
    for file, paths in absent.items():
        print(f"{file.relative_to(ROOT)} names {', '.join(sorted(paths))}")


if __name__ == "__main__":
    main()
