"""The files of a run folder, read as far as they can be: what is wrong with them becomes a line in ``faults``."""

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

MOST = 10_000  # options of a config
COLUMNS = ("split", "image", "class", "hit", "false", "missed")  # of images.csv
PIXELS = 2**48  # more than any image has
STEPS = 2**53  # up to which a float counts
LARGEST = 1e100  # of a number; squares of it are numbers too


@dataclass(frozen=True)
class Counts:
    """Pixel counts of a split's images by one network.

    Attributes:
        images: N names.
        classes: C names.
        pixels: (N, C, 3) int64: hit, false, missed.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray


@dataclass(frozen=True)
class Curves:
    """What was measured in training, without the scoring of the best checkpoint after it.

    Attributes:
        steps: of each row, from 0.
        epochs: of each row, from 0.
        values: metric -> value of each row, nan where it wasn't measured.
    """

    steps: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


def read_config(folder: Path, faults: list[str]) -> dict[str, Any]:
    """config.yaml, flattened."""
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
    """A value of a config, or text of it where no config that was written has such."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value if is_text(value) else text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < 2**64 or value != value else text(value)
    return value if value is None or isinstance(value, bool) else text(value)


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``{"optim": {"lr": 1}}`` as ``optim.lr``, 1; a list of plain values stays whole."""
    deeper = isinstance(node, list) and any(isinstance(item, dict | list) for item in node)
    if isinstance(node, dict) or deeper:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def read_curves(
    folder: Path, steps: float | None, faults: list[str]
) -> tuple[Curves, float | None]:
    """Rows of metrics.csv before ``steps``: the later ones score the best checkpoint."""
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
    """images.csv; a split that it doesn't hold whole is a fault, and left out."""
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
    """Whether there is something of that name, be it a pipe or a broken link."""
    return os.path.lexists(file)


def cut_off(file: Path) -> bool:
    """Whether the last line of a file has no end."""
    with open_regular(file, TABLE_LIMIT) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def pixels_in(cell: str) -> int:
    """The count of pixels in a cell of images.csv.

    Raises:
        ValueError: if it is none.
    """
    if not (cell.isascii() and cell.isdigit() and len(cell) < 20 and int(cell) < PIXELS):
        raise ValueError(f"{text(cell)[:40]!r} is no count of pixels")
    return int(cell)


def number_in(cell: str) -> float:
    """The number in a cell of a CSV file; nan where it holds none."""
    try:
        return float(cell) if cell and len(cell) < 100 else float("nan")
    except ValueError:
        return float("nan")


def text(value: Any) -> str:
    """A value as one printable line of at most 500 characters; None is empty."""
    if value is None:
        return ""
    try:
        said = str(value)[:5000]
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too large to be shown"
    printable = (c if c.isprintable() else " " for c in files.encodable(said))
    return " ".join("".join(printable).split())[:500]


def number(value: Any) -> float | None:
    """A number of a record; None where it is none, or no run could have measured it."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < LARGEST else None


def numbers(value: Any) -> dict[str, float]:
    return {k: n for k, v in mapping(value).items() if (n := number(v)) is not None}


def mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def brief(error: BaseException) -> str:
    """Its first line."""
    return f"{type(error).__name__}: {text(str(error).partition(chr(10))[0])[:120]}"
