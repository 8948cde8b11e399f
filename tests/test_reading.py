"""Files are read by seg.files alone, which takes regular ones of a limited size; each other way has its reason."""

import ast
from pathlib import Path

import pytest

import seg

PACKAGE = Path(seg.__file__).parent
READERS = {  # names by which a file can be read
    "read_text", "read_bytes", "open", "load", "safe_load", "full_load", "fromfile", "memmap", "imread", "TiffFile",
    "ZipFile", "read_csv", "genfromtxt", "loadtxt", "load_file", "load_state_dict_from_url", "FileIO", "fdopen", "scan",
}  # fmt: skip
OWN = "a file of this package, or of the system"
DATA = "images, masks and tables, which the user names; their readers have limits of their own"
ALLOWED = {  # module -> function -> what it may call, and why
    "files.py": {"open_regular": (("open", "fdopen"), "the one reader"), "create_empty": (("open",), "writes"),
                 "open_append": (("open", "FileIO"), "writes")},
    "runs/archive.py": {"read_records": (("ZipFile",), "of a stream that open_regular gave"),
                        "read_skeleton": (("load",), "its own reader, which calls nothing")},
    "runs/checkpoint.py": {"read_checkpoint": (("load",), "once seg.runs.archive has checked the file")},
    "runs/safe_loading.py": {"read_yaml": (("scan", "load"), "of a text that was read")},
    "runs/machine.py": {"cpu_name": (("read_text",), OWN)},
    "runs/provenance.py": {"source_hash": (("read_bytes",), OWN), "new_file_patch": (("read_bytes",), OWN)},
    "cli/command.py": {"__call__": (("open",), "the system's null device"), "unknown_flag": (("read_text",), OWN)},
    "cli/dispatch.py": {"main": (("open",), "the system's null device")},
    "cli/conf_files.py": {"own_options": (("safe_load", "read_text"), OWN)},
    "cli/signatures.py": {"__init__": (("read_bytes",), OWN)},
    "api.py": {"predict": (("load",), "a run, by seg.load"), "read_pictures": (("open",), "bytes that seg.files read"),
               "read_table": (("read_csv",), "likewise")},
    "cli/help.py": {"*": (("read_text",), OWN)},
    "cli/validation.py": {"allows_several": (("read_text",), OWN)},
    "comparison/page.py": {"render_comparison_page": (("read_text",), OWN)},
    "models/pretrained.py": {"download_weights": (("read_bytes", "load_state_dict_from_url"), "PyTorch's cache, its hash compared")},
    "data/*": {"*": (tuple(READERS), DATA)},
    "inference/quantization.py": {"quantize_onnx": (("load",), "onnx's, of the file that was just written")},
    "inference/doubt_page.py": {"render_doubt_page": (("read_text",), OWN)},
    "inference/band_writer.py": {"*": (("open", "fromfile", "memmap"), "its own bytes")},
    "inference/unlabelled.py": {"read_preview": (("load",), "its own file, in files.scratch_folder")},
    "inference/exported_network.py": {"*": (("load", "open"), "onnx's and torch's, of the file that was just written")},
}  # fmt: skip


def calls(module: Path) -> list[tuple[str, str, int]]:
    """Function, name of the reader and line of each call that may read a file."""
    found = []

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and function == "":
                inner = child.name
            elif isinstance(child, ast.Call) and not writes(child):
                name = called(child.func)
                if name in READERS:
                    found.append((function, name, child.lineno))
            visit(child, inner)

    visit(ast.parse(module.read_text()), "")
    return found


def called(node: ast.expr) -> str:
    """The last word of what is called; none for seg.files' own read_text and read_bytes."""
    if isinstance(node, ast.Attribute):
        return node.attr
    name = node.id if isinstance(node, ast.Name) else ""
    return "" if name in ("read_text", "read_bytes") else name


def writes(call: ast.Call) -> bool:
    """Return True if a call opens a file for writing or appending."""
    words = [
        a.value
        for a in (*call.args, *(k.value for k in call.keywords))
        if isinstance(a, ast.Constant)
    ]
    return any(word in ("w", "wb", "ab", "a", "x", "xb") for word in words)


MODULES = sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_files_are_read_by_seg_files_alone(module):
    own = ALLOWED.get(module) or ALLOWED.get(f"{module.partition('/')[0]}/*") or {}
    for function, name, line in calls(PACKAGE / module):
        allowed, _ = own.get(function) or own.get("*") or ((), "")
        assert name in allowed, f"seg/{module}:{line}: {name} in {function or 'the module'}"


def test_each_exception_is_needed():
    for module, functions in ALLOWED.items():
        files = sorted(file for file in PACKAGE.glob(module) if file.is_file())
        assert files, module
        there = {(function, name) for file in files for function, name, _ in calls(file)}
        for function, (names, _) in functions.items():
            used = {name for one, name in there if function in ("*", one)}
            assert used & set(names), (module, function)


def test_another_way_of_reading_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f(p):\n    return p.read_text()\n\ndef g(p):\n    open(p, 'w'); return open(p)\n"
    )
    assert calls(tmp_path / "a.py") == [("f", "read_text", 2), ("g", "open", 5)]
