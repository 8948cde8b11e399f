"""Files of seg.doubt: the ranked table, outlines for annotation tools, pictures, and corrected copies of the masks."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from seg import files
from seg.data.image_io import write_mask
from seg.display.colors import Color
from seg.errors import RunError, UserError
from seg.inference.outputs import quote_name
from seg.inference.polygons import TracedObject, as_geojson, trace_rings
from seg.labels import IGNORE
from seg.metrics.label_errors import SHIFTED, WHOLE, Doubt
from seg.metrics.label_offsets import move_label
from seg.runs.safe_loading import read_rows

ACCEPTED = ("", "ignore", "class")  # values of the column accept
KEY_COLUMNS = (
    "image", "kind", "left", "top", "width", "height", "said", "meant", "pixels"
)  # fmt: skip
COLUMNS = (*KEY_COLUMNS, "confidence", "evidence", "expected", "chance", "stands_out", "accept")


class RankedDoubt(NamedTuple):
    """A doubt with its image and its rank.

    Attributes:
        image: name.
        doubt: the region.
        expected: number of regions of its kind with its evidence where no label is wrong.
        chance: probability that any region is as unusual where no label is wrong.
        stands_out: whether the chance is small enough.
    """

    image: str
    doubt: Doubt
    expected: float
    chance: float
    stands_out: bool

    def key(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the texts of KEY_COLUMNS, by which a reviewed row is found again."""
        one = self.doubt
        height, width = one.inside.shape
        numbers = (one.left, one.top, width, height)
        return (
            files.encodable(self.image), one.kind, *map(str, numbers), classes[one.said], classes[one.meant],
            str(int(one.inside.sum())),
        )  # fmt: skip


def table_rows(ranked: Sequence[RankedDoubt], classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of doubt.csv, its header first, then most unusual first, with an empty column accept."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in ranked:
        doubt = one.doubt
        rows.append((
            *one.key(classes), f"{doubt.confidence:.4f}", f"{doubt.evidence:.1f}", f"{one.expected:.4g}",
            f"{one.chance:.4g}", "yes" if one.stands_out else "no", "",
        ))  # fmt: skip
    return rows


def write_table(rows: Sequence[Sequence[str]], file: Path, below: Path) -> None:
    """Write the rows of ``table_rows`` as CSV."""
    with files.open_text(file, below) as stream:
        csv.writer(stream).writerows(rows)


def write_outlines(
    ranked: Sequence[RankedDoubt], classes: list[str], colors: list[Color], folder: Path, below: Path
) -> None:  # fmt: skip
    """Write a GeoJSON for each image that has doubts, with a class for each pair of classes."""
    pairs = [f"{said} -> {meant}" for said in classes for meant in classes]
    by_image: dict[str, list[Doubt]] = {}
    for one in ranked:
        by_image.setdefault(one.image, []).append(one.doubt)
    for image, doubts in by_image.items():
        objects = (part for doubt in doubts for part in trace_doubt(doubt, len(classes)))
        text = as_geojson(objects, pairs, colors * len(classes), image)
        name = files.short_name(f"{quote_name(image)}.geojson")
        files.write_text(folder / name, text, below)


def trace_doubt(doubt: Doubt, classes: int) -> Iterator[TracedObject]:
    """Yield the connected parts of a doubt; their index is that of the pair of classes."""
    labels, _ = ndimage.label(doubt.inside)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        left, top = doubt.left + columns.start, doubt.top + rows.start
        rings = [ring + np.array((left, top)) for ring in trace_rings(inside)]
        yield TracedObject(doubt.said * classes + doubt.meant, rings, left, top, inside)


# ---- what a person has reviewed


def read_reviewed(file: Path) -> dict[tuple[str, ...], str]:
    """Return the accepted rows of a reviewed doubt.csv: their key -> ignore or class.

    Raises:
        UserError: if it is no such table, or a row has another word.
        RunError: if it cannot be read.
    """
    if not file.is_file():
        raise UserError(f"reviewed={file}: no such file; give doubt.csv of seg.doubt")
    try:
        rows = list(read_rows(file))
    except (OSError, ValueError) as error:
        raise RunError(f"reviewed={file}: can't be read ({error})") from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    if lost := [name for name in (*KEY_COLUMNS, "accept") if name not in header]:
        raise UserError(f"reviewed={file}: no column {lost[0]}; give doubt.csv of seg.doubt")
    accepted: dict[tuple[str, ...], str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        cells = dict(zip(header, row, strict=False))
        word = cells.get("accept", "").strip()
        if word not in ACCEPTED:
            raise UserError(
                f"reviewed={file}: line {line} has accept={word!r}; ignore, class or nothing is needed"
            )
        if word == "class" and cells["kind"] == WHOLE:
            raise UserError(
                f"reviewed={file}: line {line} accepts the class of a whole mask; take ignore, or annotate the image "
                "anew"
            )
        if word:
            accepted[tuple(cells.get(name, "") for name in KEY_COLUMNS)] = word
    if not accepted:
        raise UserError(
            f"reviewed={file}: no row is accepted; write ignore or class into the column accept"
        )
    return accepted


def correct_mask(mask: np.ndarray, doubt: Doubt, word: str) -> np.ndarray:
    """Return a copy of a mask (H, W) in which an accepted doubt is ignored, or has the class meant.

    A shifted mask is moved back, if its class is accepted. An ignored whole mask is ignored everywhere.
    """
    if doubt.kind == WHOLE:
        return np.full_like(mask, IGNORE)
    if doubt.kind == SHIFTED and word == "class":
        return move_label(mask, doubt.shift)
    corrected = mask.copy()
    corrected[doubt.window][doubt.inside] = IGNORE if word == "ignore" else doubt.meant
    return corrected


def write_corrected(
    mask: np.ndarray, name: str, colors: list[Color], folder: Path, below: Path
) -> None:
    """Write a mask of class indices as ``NAME.png``, in the subfolders of its name."""
    file = folder / f"{name}.png"
    files.make_folder(file.parent, below)
    with files.atomic_write(file, below) as aside:
        write_mask(aside, mask, colors)
