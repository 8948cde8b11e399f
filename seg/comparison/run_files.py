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
from seg.runs.migrations import upgrade_targets
from seg.runs.safe_loading import CONFIG_LIMIT, TABLE_LIMIT, is_text, read_rows, read_yaml

MOST = 10_000  # maximum number of options of a config
COLUMNS = ("split", "image", "class", "hit", "false", "missed")  # columns of images.csv
PIXELS = 2**48  # upper limit of a pixel count
STEPS = 2**53  # integers up to this are exact as float
LARGEST = 1e100  # upper limit of a number; its square is finite


@dataclass(frozen=True)
class Counts:
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
class Curves:
    """Learning curves of metrics.csv, without the final scores of the best checkpoint.

    Attributes:
        steps: step of each row, from 0.
        epochs: epoch of each row, from 0.
        values: metric -> value of each row, nan where it was not measured.
    """

    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


def read_config(folder: Path, faults: list[str]) -> dict[str, Any]:
    """Read config.yaml as flat options, ``optim.lr`` -> value; empty if it cannot be read."""
    try:
        content = upgrade_targets(read_yaml(read_text(folder / "config.yaml", CONFIG_LIMIT)))
        options = dict(islice(flat(mapping(content)), MOST + 1))
        if len(options) > MOST:
            raise ValueError(f"more than {MOST} options")
        return {text(name): plain(value) for name, value in options.items()}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        faults.append(f"config.yaml can't be read: {brief(error)}")
        return {}


def plain(value: Any) -> Any:
    """Return a value of a config unchanged if seg.train can have written it, else as text."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value if is_text(value) else text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < 2**64 or value != value else text(value)
    return value if value is None or isinstance(value, bool) else text(value)


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``optim.lr``, 1 for ``{"optim": {"lr": 1}}``; a list of plain values is one value."""
    deeper = isinstance(node, list) and any(isinstance(item, dict | list) for item in node)
    if isinstance(node, dict) or deeper:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def read_curves(
    folder: Path, steps: float | None, faults: list[str]
) -> tuple[Curves, float | None]:
    """Read the rows of metrics.csv before ``steps`` and its time; later rows score the best checkpoint."""
    file = folder / "metrics.csv"
    if not present(file):
        return Curves(), None
    curves = Curves()
    try:
        lines = read_rows(file)
        header = [text(name) for name in next(lines, [])]
        if len(set(header)) < len(header):
            raise ValueError("a column stands twice")
        rows = [[number_in(cell) for cell in row] for row in lines if len(row) == len(header)]
        written = file.stat().st_mtime
        if cut_off(file):
            faults.append("metrics.csv ends in mid-row")
    except (OSError, ValueError) as error:
        faults.append(f"metrics.csv can't be read: {brief(error)}")
        return curves, None
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    for name in ("step", "epoch"):
        column = columns.get(name, [])
        if wrong := {value for value in column if value == value and not 0 <= value < STEPS}:
            faults.append(f"metrics.csv has the {name} {min(wrong):g}")
            columns[name] = [value if 0 <= value < STEPS else float("nan") for value in column]
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
) -> dict[str, Counts]:
    """Read images.csv; a split without all its images is a fault and left out."""
    file = folder / "images.csv"
    if not present(file):
        return {}
    cells: dict[str, dict[tuple[str, str], tuple[int, int, int]]] = {}
    try:
        rows = read_rows(file)
        header = next(rows, [])
        if missing := [column for column in COLUMNS if column not in header]:
            raise ValueError(f"no column {missing[0]}")
        places = [header.index(column) for column in COLUMNS]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of {len(row)} cells; {len(header)} are needed")
            split, image, name, *three = (row[place] for place in places)
            hit, false, missed = map(pixels_in, three)
            cells.setdefault(text(split), {})[text(image), text(name)] = hit, false, missed
    except (OSError, ValueError) as error:
        faults.append(f"images.csv can't be read: {brief(error)}")
        return {}
    found = {}
    for split, pixels in cells.items():
        images, classes = (tuple(dict.fromkeys(key[i] for key in pixels)) for i in (0, 1))
        whole = len(pixels) == len(images) * len(classes)
        if not whole or set(splits.get(split, images)) != set(images):
            faults.append(f"images.csv hasn't all images of {split}")
            continue
        table = np.array([[pixels[image, name] for name in classes] for image in images], np.int64)
        found[split] = Counts(images, classes, table)
    return found


def present(file: Path) -> bool:
    """Return whether the name exists, be it a pipe or a broken link."""
    return os.path.lexists(file)


def cut_off(file: Path) -> bool:
    """Return whether the last line of a file has no line end."""
    with open_regular(file, TABLE_LIMIT) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def pixels_in(cell: str) -> int:
    """Return the pixel count in a cell of images.csv.

    Raises:
        ValueError: if the cell holds no pixel count.
    """
    if not (cell.isascii() and cell.isdigit() and len(cell) < 20 and int(cell) < PIXELS):
        raise ValueError(f"{text(cell)[:40]!r} is no count of pixels")
    return int(cell)


def number_in(cell: str) -> float:
    """Return the number in a cell of a CSV file; nan if it holds none."""
    try:
        return float(cell) if cell and len(cell) < 100 else float("nan")
    except ValueError:
        return float("nan")


def text(value: Any) -> str:
    """Return a value as one printable line of at most 500 characters; None is empty."""
    if value is None:
        return ""
    try:
        said = str(value)[:5000]
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too large to be shown"
    printable = (c if c.isprintable() else " " for c in files.encodable(said))
    return " ".join("".join(printable).split())[:500]


def number(value: Any) -> float | None:
    """Return a number of a record; None if it is no number or out of range."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < LARGEST else None


def numbers(value: Any) -> dict[str, float]:
    """Return the entries of a mapping that are numbers."""
    return {k: n for k, v in mapping(value).items() if (n := number(v)) is not None}


def mapping(value: Any) -> dict[str, Any]:
    """Return a dict with its keys as text; empty for any other value."""
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """Return a list unchanged; empty for any other value."""
    return value if isinstance(value, list) else []


def brief(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {text(str(error).partition(chr(10))[0])[:120]}"
