"""Build the notebooks of this folder from their sources: ``python examples/notebooks.py [NAME ...]``.

A source, ``NAME.py``, is in jupytext's percent format. Code is written once; a text cell has a language, ``lang="en"`` or
``lang="zh"``. Each language gives a notebook with the same code and the same outputs: ``NAME.ipynb`` and
``NAME.zh-CN.ipynb``. The code runs once, in a temporary folder. The outputs of cells with the tag ``quiet`` are left out.
"""

import argparse
import base64
import io
import os
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
SOURCES = ("course", "lab", "compare")
SUFFIXES = {"en": ".ipynb", "zh": ".zh-CN.ipynb"}
CELL_SECONDS = 1800  # longest time of a cell


def read_source(name: str) -> NotebookNode:
    """Return the cells of a source in all languages, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    notebook.cells = notebook.cells[1:] if notebook.cells[0].cell_type == "raw" else notebook.cells
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}  # fmt: skip
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{number:03}"  # jupytext's are random
        cell.source = cell.source.replace("  # fmt: skip", "")
    return notebook


def languages(notebook: NotebookNode) -> list[str]:
    """Return the languages of the text cells, English first."""
    return sorted({cell.metadata["lang"] for cell in notebook.cells if "lang" in cell.metadata})


def select_language(notebook: NotebookNode, language: str) -> NotebookNode:
    """Return the notebook with the text of one language."""
    chosen = nbformat.from_dict({**notebook, "cells": []})
    for cell in notebook.cells:
        if cell.metadata.get("lang", language) == language:
            metadata = {key: value for key, value in cell.metadata.items() if key != "lang"}
            chosen.cells.append(nbformat.from_dict({**cell, "metadata": metadata}))
    return chosen


def execute(notebook: NotebookNode, smoke: bool) -> None:
    """Run the code cells in a temporary folder and keep their outputs.

    Raises:
        CellExecutionError: if a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        surroundings = {**os.environ, "SEG_CACHE": f"{folder}/.cache", "SEG_SMOKE": "1" * smoke}
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            startup_timeout=300,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}),
        )
        client.execute(env=surroundings)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            quiet = "quiet" in cell.metadata.get("tags", [])
            cell.outputs = [] if quiet else [shrink_picture(output) for output in cell.outputs]


def keep_outputs(notebook: NotebookNode, file: Path) -> None:
    """Take the outputs of a built notebook with the same code.

    Raises:
        ValueError: if the code differs.
    """
    built = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in built]:
        raise ValueError(f"{file}: its code is not that of the source; run it, without --text")
    for cell, before in zip(code, built, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count


def shrink_picture(output: NotebookNode) -> NotebookNode:
    """Return an output with its PNG, if it has one, in 256 colours, a third of the size."""
    code = output.get("data", {}).get("image/png")
    if code:
        with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        stream = io.BytesIO()
        few.save(stream, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(stream.getvalue()).decode()
    return output


def write_pages(folder: Path) -> None:
    """Write README.md, as index.md, and the built notebooks as pages of the site's folder ``examples``, pictures beside them."""
    pages = {"index.md": (FOLDER / "README.md").read_text("utf-8")}
    for file in sorted(FOLDER.glob("*.ipynb")):
        pages[file.with_suffix(".md").name] = to_markdown(file, folder)
    for name, text in pages.items():
        # notebooks are pages there, and docs/ is the folder above
        text = re.sub(r"\]\(([\w.-]+)\.ipynb\)", r"](\1.md)", text).replace("](../docs/", "](../")
        (folder / name).write_text(text, encoding="utf-8")


def to_markdown(file: Path, pictures: Path) -> str:
    """Return a built notebook as Markdown, and write its pictures into a folder."""
    parts: list[str] = []
    for number, cell in enumerate(nbformat.read(file, as_version=4).cells):
        parts.append(
            cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        )
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{file.stem}-{number:03}-{place}.png"
                (pictures / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![]({name})")
            elif "text/html" in data:
                parts.append(re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.S))
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def build(name: str, folder: Path, smoke: bool, text_only: bool = False) -> None:
    """Execute a source, or keep the outputs of its notebook, and write the notebooks of all languages."""
    notebook = read_source(name)
    if text_only:
        keep_outputs(notebook, folder / f"{name}.ipynb")
    else:
        execute(notebook, smoke)
    for language in languages(notebook):
        nbformat.write(select_language(notebook, language), folder / f"{name}{SUFFIXES[language]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SOURCES)}; all without any")
    parser.add_argument("--smoke", action="store_true", help="small sizes, in a minute")
    parser.add_argument(
        "--text", action="store_true", help="keep the outputs, if only text changed"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the notebooks")
    parser.add_argument("--pages", type=Path, help="write the built ones as Markdown there instead")
    options = parser.parse_args()
    if options.pages:
        write_pages(options.pages)
        return
    for name in options.names or SOURCES:
        build(name, options.output, options.smoke, options.text)


if __name__ == "__main__":
    main()
