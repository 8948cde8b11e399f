"""Read the files of a run folder as far as possible; every problem becomes a line in ``faults``."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seg import files
from seg.files import open_regular, read_text
from seg.runs.migrations import upgrade_config
from seg.runs.safe_loading import CONFIG_LIMIT, TABLE_LIMIT, is_unicode, read_rows, read_yaml

MAX_OPTIONS = 10_000  # maximum number of options of a config
COUNT_COLUMNS = ("split", "image", "class", "tp", "fp", "fn")  # columns of images.csv
OLD_COUNT_COLUMNS = {"hit": "tp", "false": "fp", "missed": "fn"}  # name before 0.2 -> present name
MAX_PIXELS = 2**48  # upper limit of a pixel count
MAX_STEPS = 2**53  # integers up to this are exact as float
MAX_NUMBER = 1e100  # upper limit of a number; its square is finite


@dataclass(frozen=True)
class ImageCounts:
    """Pixel counts of the images of a split, predicted by one network.

    Attributes:
        images: N names.
        classes: C names.
        pixels: (N, C, 3) int64: TP, FP, FN.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray


@dataclass(frozen=True)
class LearningCurves:
    """Learning curves of metrics.csv, without the final scores of the best checkpoint.

    Attributes:
        steps: step of each row, from 0.
        epochs: epoch of each row, from 0.
        values: metric -> value of each row, nan where it was not measured.
    """

    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


def read_options(folder: Path, faults: list[str]) -> dict[str, Any]:
    """Read config.yaml as flat options, ``optim.lr`` -> value; empty if it cannot be read."""
    try:
        content = upgrade_config(read_yaml(read_text(folder / "config.yaml", CONFIG_LIMIT)))
        options = dict(islice(flatten_config(dict_or_empty(content)), MAX_OPTIONS + 1))
        if len(options) > MAX_OPTIONS:
            raise ValueError(f"more than {MAX_OPTIONS} options")
        return {printable_line(name): option_or_text(value) for name, value in options.items()}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        faults.append(f"config.yaml can't be read: {brief_error(error)}")
        return {}


def option_or_text(value: Any) -> Any:
    """Return a value of a config unchanged if seg.train can have written it, else as text."""
    if isinstance(value, list):
        return [option_or_text(item) for item in value]
    if isinstance(value, str):
        return value if is_unicode(value) else printable_line(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < 2**64 or value != value else printable_line(value)
    return value if value is None or isinstance(value, bool) else printable_line(value)


def flatten_config(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``optim.lr``, 1 for ``{"optim": {"lr": 1}}``; a list of plain values is one value."""
    deeper = isinstance(node, list) and any(isinstance(item, dict | list) for item in node)
    if isinstance(node, dict) or deeper:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from flatten_config(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def read_curves(
    folder: Path, steps: float | None, faults: list[str]
) -> tuple[LearningCurves, float | None]:
    """Read the rows of metrics.csv before ``steps`` and its time; later rows score the best checkpoint."""
    file = folder / "metrics.csv"
    if not os.path.lexists(file):  # a pipe or a broken link exists, and is a fault
        return LearningCurves(), None
    # Read the cells as numbers; rows of another length are left out
    curves = LearningCurves()
    try:
        lines = read_rows(file)
        header = [printable_line(name) for name in next(lines, [])]
        if len(set(header)) < len(header):
            raise ValueError("a column stands twice")
        rows = [[parse_number(cell) for cell in row] for row in lines if len(row) == len(header)]
        written = file.stat().st_mtime
        if ends_in_mid_line(file):
            faults.append("metrics.csv ends in mid-row")
    except (OSError, ValueError) as error:
        faults.append(f"metrics.csv can't be read: {brief_error(error)}")
        return curves, None
    # Steps and epochs out of range become nan
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    for name in ("step", "epoch"):
        column = columns.get(name, [])
        if wrong := {value for value in column if value == value and not 0 <= value < MAX_STEPS}:
            faults.append(f"metrics.csv has the {name} {min(wrong):g}")
            columns[name] = [value if 0 <= value < MAX_STEPS else float("nan") for value in column]
    # Rows from the last step on score the best checkpoint, and are no part of the curves
    at = columns.get("step", [float("nan")] * len(rows))
    kept = [i for i, step in enumerate(at) if steps is None or not step >= steps]
    for name, values in columns.items():
        taken = [values[i] for i in kept]
        if not name.startswith("test/") and any(value == value for value in taken):
            curves.values[name] = taken
    nothing = [float("nan")] * len(kept)
    curves.steps.extend(curves.values.pop("step", nothing))
    curves.epochs.extend(curves.values.pop("epoch", nothing))
    return curves, written


def read_counts(
    folder: Path, splits: dict[str, tuple[str, ...]], faults: list[str]
) -> dict[str, ImageCounts]:
    """Read images.csv; a split without all its images is a fault and left out."""
    file = folder / "images.csv"
    if not os.path.lexists(file):  # a pipe or a broken link exists, and is a fault
        return {}
    # Read TP, FP and FN by split, image and class
    cells: dict[str, dict[tuple[str, str], tuple[int, int, int]]] = {}
    try:
        rows = read_rows(file)
        header = [OLD_COUNT_COLUMNS.get(column, column) for column in next(rows, [])]
        if missing := [column for column in COUNT_COLUMNS if column not in header]:
            raise ValueError(f"no column {missing[0]}")
        places = [header.index(column) for column in COUNT_COLUMNS]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells; {len(header)} are needed")
            split, image, name, *three = (row[place] for place in places)
            tp, fp, fn = map(parse_pixels, three)
            cells.setdefault(printable_line(split), {})[
                printable_line(image), printable_line(name)
            ] = tp, fp, fn
    except (OSError, ValueError) as error:
        faults.append(f"images.csv can't be read: {brief_error(error)}")
        return {}
    # Each split needs all its images with all classes
    found = {}
    for split, pixels in cells.items():
        images, classes = (tuple(dict.fromkeys(key[i] for key in pixels)) for i in (0, 1))
        whole = len(pixels) == len(images) * len(classes)
        if not whole or set(splits.get(split, images)) != set(images):
            faults.append(f"images.csv hasn't all images of {split}")
            continue
        table = np.array([[pixels[image, name] for name in classes] for image in images], np.int64)
        found[split] = ImageCounts(images, classes, table)
    return found


def ends_in_mid_line(file: Path) -> bool:
    """Return whether the last line of a file has no line end."""
    with open_regular(file, TABLE_LIMIT) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def parse_pixels(cell: str) -> int:
    """Return the pixel count in a cell of images.csv.

    Raises:
        ValueError: if the cell holds no pixel count.
    """
    if not (cell.isascii() and cell.isdigit() and len(cell) < 20 and int(cell) < MAX_PIXELS):
        raise ValueError(f"{printable_line(cell)[:40]!r} is no count of pixels")
    return int(cell)


def parse_number(cell: str) -> float:
    """Return the number in a cell of a CSV file; nan if it holds none."""
    try:
        return float(cell) if cell and len(cell) < 100 else float("nan")
    except ValueError:
        return float("nan")


def printable_line(value: Any) -> str:
    """Return a value as one printable line of at most 500 characters; None is empty."""
    if value is None:
        return ""
    try:
        said = str(value)[:5000]
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too large to be shown"
    printable = (c if c.isprintable() else " " for c in files.encodable(said))
    return " ".join("".join(printable).split())[:500]


def number_or_none(value: Any) -> float | None:
    """Return a number of a record; None if it is no number or out of range."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < MAX_NUMBER else None


def numbers_only(value: Any) -> dict[str, float]:
    """Return the entries of a mapping that are numbers."""
    return {k: n for k, v in dict_or_empty(value).items() if (n := number_or_none(v)) is not None}


def dict_or_empty(value: Any) -> dict[str, Any]:
    """Return a dict with its keys as text; empty for any other value."""
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def list_or_empty(value: Any) -> list[Any]:
    """Return a list unchanged; empty for any other value."""
    return value if isinstance(value, list) else []


def brief_error(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {printable_line(str(error).partition(chr(10))[0])[:120]}"
