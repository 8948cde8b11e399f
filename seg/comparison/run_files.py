"""The files of a run folder, read as far as they can be: what is wrong with them becomes a line in ``faults``."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seg.runs.safe_loading import read_yaml

MOST = 10_000  # options of a config
NEEDED = ("image", "class", "hit", "false", "missed")  # columns of images.csv beside split


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
        content = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        options = dict(islice(flat(mapping(content)), MOST + 1))
        if len(options) > MOST:
            raise ValueError(f"more than {MOST} options")
        return options
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        faults.append(f"config.yaml can't be read: {brief(error)}")
        return {}


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
    if not file.is_file():
        return Curves(), None
    curves = Curves()
    try:
        lines, cut = whole_lines(file)
        reader = csv.reader(lines)
        header = next(reader, [])
        rows = [row for row in reader if len(row) == len(header)]
    except (OSError, ValueError, csv.Error) as error:
        faults.append(f"metrics.csv can't be read: {brief(error)}")
        return curves, None
    if cut:
        faults.append("metrics.csv ends in mid-row")
    columns = {name: [number_in(row[i]) for row in rows] for i, name in enumerate(header)}
    at = columns.get("step", [float("nan")] * len(rows))
    kept = [i for i, step in enumerate(at) if steps is None or not step >= steps]
    for name, values in columns.items():
        taken = [values[i] for i in kept]
        if not name.startswith("test/") and any(value == value for value in taken):
            curves.values[name] = taken
    nothing = [float("nan")] * len(kept)
    curves.steps.extend(curves.values.pop("step", nothing))
    curves.epochs.extend(curves.values.pop("epoch", nothing))
    return curves, file.stat().st_mtime


def read_counts(
    folder: Path, splits: dict[str, tuple[str, ...]], faults: list[str]
) -> dict[str, Counts]:
    """images.csv; a split that it doesn't hold whole is a fault, and left out."""
    file = folder / "images.csv"
    if not file.is_file():
        return {}
    cells: dict[str, dict[tuple[str, str], tuple[int, int, int]]] = {}
    try:
        for row in csv.DictReader(whole_lines(file)[0]):
            image, name, *three = (row[column] for column in NEEDED)
            hit, false, missed = (int(value) for value in three)
            cells.setdefault(row["split"], {})[image, name] = hit, false, missed
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
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


def whole_lines(file: Path) -> tuple[list[str], bool]:
    """Its lines, without a last one that was cut off, and whether one was."""
    with file.open(newline="", encoding="utf-8") as stream:
        lines = list(stream)
    cut = bool(lines) and not lines[-1].endswith("\n")
    return lines[: len(lines) - cut], cut


def number_in(cell: str) -> float:
    """The number in a cell of a CSV file; nan where it holds none."""
    try:
        return float(cell) if cell else float("nan")
    except ValueError:
        return float("nan")


def text(value: Any) -> str:
    """A value as one printable line of at most 500 characters; None is empty."""
    if value is None:
        return ""
    printable = (c if c.isprintable() else " " for c in str(value)[:5000])
    return " ".join("".join(printable).split())[:500]


def number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < 1e300 else None


def numbers(value: Any) -> dict[str, float]:
    return {k: n for k, v in mapping(value).items() if (n := number(v)) is not None}


def mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def brief(error: BaseException) -> str:
    """Its first line."""
    return f"{type(error).__name__}: {text(str(error).partition(chr(10))[0])[:120]}"
