"""The notebooks of examples/: what their sources say, alike in both languages, with outputs that name no machine."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPT = runpy.run_path(str(FOLDER / "notebooks.py"))
SOURCES = {name: SCRIPT["read_source"](name) for name in SCRIPT["SOURCES"]}
BUILT = [
    (name, language) for name, source in SOURCES.items() for language in SCRIPT["languages"](source)
]
PLACE = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|Users|work|var|opt|usr|private)\b|[A-Z]:\\\\")
LARGEST = 1_500_000  # bytes


def built_file(name: str, language: str) -> Path:
    return FOLDER / f"{name}{SCRIPT['SUFFIXES'][language]}"


@pytest.mark.parametrize(("name", "language"), BUILT)
def test_a_notebook_is_its_source_executed(name, language):
    file = built_file(name, language)
    built = nbformat.read(file, as_version=4)
    nbformat.validate(built)
    expected = SCRIPT["select_language"](SOURCES[name], language)
    assert [(c.cell_type, c.source) for c in built.cells] == [
        (c.cell_type, c.source) for c in expected.cells
    ], f"{file.name} differs from {name}.py: make notebooks"
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert file.stat().st_size < LARGEST
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    texts = [text for o in outputs for text in (o.get("text", ""), *o.get("data", {}).values())]
    assert not [match for text in texts if (match := PLACE.search(str(text)))]


def test_a_course_has_the_same_code_and_outputs_in_both_languages():
    english, chinese = (
        nbformat.read(built_file("course", language), as_version=4).cells
        for language in ("en", "zh")
    )
    assert [c.cell_type for c in english] == [c.cell_type for c in chinese]
    for one, other in zip(english, chinese, strict=True):
        if one.cell_type == "code":
            assert (one.source, one.outputs) == (other.source, other.outputs)
        else:
            assert re.search("[\u4e00-\u9fff]", other.source), other.source
            headings = [re.match(r"#*", text)[0] for text in (one.source, other.source)]
            assert headings[0] == headings[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_notebook_runs_at_a_small_size(name, tmp_path):
    SCRIPT["build"](name, tmp_path, smoke=True)
    assert {file.name for file in tmp_path.iterdir()} == {
        built_file(name, language).name for one, language in BUILT if one == name
    }
    for cell in nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells:
        if re.search(r"^(show\w*\(|plt\.show\(\))", cell.source, re.M):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), (
                cell.source
            )


def test_no_module_chooses_the_backend_of_matplotlib():
    """A notebook would show no figure after it."""
    modules = (FOLDER.parent / "seg").rglob("*.py")
    assert not [m for m in modules if re.search(r"pyplot|matplotlib\.use\(", m.read_text())]
