"""The contact sheet of ``seg.check``: images with their masks laid over, what is wrong framed and told.

A picture to look at before any training; the faulty ones come first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from seg.data.dataset import planes_first
from seg.data.datasets.base import Source
from seg.data.image_io import read_image, read_pages
from seg.data.quality.inspect import Look, Looks, files_of
from seg.data.quality.issues import UNPAIRED, Fault, count, percent
from seg.display.colors import Color, default_colors
from seg.display.layout import EM, GAP, evenly, wrapped, write
from seg.display.panels import INK, colorize, overlay, picture, sheet, shown, to_rgb
from seg.errors import DataError
from seg.logits import IGNORE

WIDE, TALL = 280, 280  # px that a picture may take on the sheet
BAD, DOUBTFUL, PALE = (200, 16, 46), (214, 120, 0), (120, 120, 120)


class Cell(NamedTuple):
    """A picture with its caption; framed in a colour where something is wrong."""

    picture: Image.Image
    title: str
    caption: str
    color: Color | None


def draw(
    source: Source, seen: Looks, faults: list[Fault], panels: int, report: dict[str, Any]
) -> Image.Image:
    """The sheet: a bar a class, then images with their masks laid over, the faulty ones first."""
    first = {f.name or f.file: f for f in reversed(faults) if f.name or f.kind in UNPAIRED}
    names = [f.name or f.file for f in faults if first.get(f.name or f.file) is f][:panels]
    good = [one for one in seen.looks if one.name not in first]
    named = {one.name: one for one in seen.looks}
    chosen = [good[i].name for i in evenly(len(good), panels - len(names))]
    root = Path(report["data"].get("root") or ".")
    cells = [
        cell(source, name, named.get(name), first.get(name), root) for name in (*names, *chosen)
    ]
    columns = min(4, max(len(cells), 3))
    width = columns * (WIDE + GAP) - GAP
    strips = [header(source, report, width)]
    strips += [row(cells[i : i + columns], width) for i in range(0, len(cells), columns)]
    return ImageOps.expand(sheet(strips, gap=GAP), border=2 * GAP, fill="white")


def cell(source: Source, name: str, one: Look | None, fault: Fault | None, root: Path) -> Cell:
    """An image of the source, or a file without a partner."""
    title, caption, color = name, "", None
    if one is not None:
        shares = one.pixels / one.valid.clip(1)
        order = [i for i in np.argsort(-shares)[:3] if one.pixels[i]]
        title = one.file
        caption = ", ".join(f"{source.classes[i]} {percent(shares[i])}" for i in order)
    elif fault is not None:
        title = fault.file
    if fault is not None:
        caption, color = fault.found, BAD if fault.error else DOUBTFUL
    if one is not None:
        image, mask = source.read(name)
        overlapping = source.task == "overlapping"
        _, colors = shown(source.classes, source.colors, overlapping)
        seen = laid_over(image, picture(planes_first(mask)), colors)
    elif fault is not None and fault.name and (files := files_of(source, name)):
        seen = bare(*files)
    else:
        seen = bare(root / name)
    return Cell(placed(seen), title, caption, color)


def laid_over(image: np.ndarray, mask: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Image and mask at the sheet's size."""
    rgb = to_rgb(image)
    size = fitting(*rgb.shape[:2])
    how = cv2.INTER_AREA if size[0] < rgb.shape[0] else cv2.INTER_NEAREST
    rgb = cv2.resize(rgb, size[::-1], interpolation=how)
    mask = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    return overlay(rgb, mask, colors, alpha=0.35)


def fitting(height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture on the sheet."""
    scale = min(TALL / height, WIDE / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def bare(file: Path, mask_file: Path | None = None) -> np.ndarray | None:
    """A file as it is, with the values of its mask as they are if they are few; None if it can't be read."""
    try:
        rgb = to_rgb(read_image(file))
    except DataError:
        return None
    index = np.full(rgb.shape[:2], IGNORE)
    try:
        if mask_file is not None:
            values, places = np.unique(read_pages(mask_file)[0], return_inverse=True)
            if places.shape == index.shape and len(values) <= 8:
                index = places
    except DataError:
        pass  # the caption tells it
    return laid_over(rgb, index, default_colors(8))


def placed(seen: np.ndarray | None) -> Image.Image:
    """The picture in the middle of its place; hatched where there is none."""
    if seen is None:
        seen = colorize(np.full((TALL // 2, WIDE), IGNORE, np.uint8), [])
    return Image.fromarray(seen)


def header(source: Source, report: dict[str, Any], width: int) -> Image.Image:
    """What data this is, and how much of it each class is, split by split."""
    splits, line = report["splits"], EM + 8
    rows = len(source.classes)
    strip = Image.new("RGB", (width, 2 * line + 8 + rows * line), "white")
    pen = ImageDraw.Draw(strip)
    numbers = ", ".join(f"{split} {facts['images']}" for split, facts in splits.items())
    found = f"{count(report['errors'], 'error')}, {count(report['warnings'], 'warning')}"
    root = report["data"].get("root") or report["data"]["_target_"].rpartition(".")[2]
    write(pen, (0, 0), f"{root}   {numbers}   {found}", INK, width, EM + 4)
    left = 170
    column = (width - left) // max(len(splits), 1)
    for k, split in enumerate(splits):
        write(pen, (left + k * column, line + 6), f"{split}: share of pixels", PALE, column)
    for i, (name, color) in enumerate(zip(source.classes, source.colors, strict=True)):
        top = (i + 2) * line + 8
        pen.rectangle((0, top, EM, top + EM), fill=tuple(color), outline=INK)
        write(pen, (EM + 8, top), name, INK, left - EM - 16)
        for k, facts in enumerate(splits.values()):
            share, x = facts["shares"][name], left + k * column
            full = column - 90
            pen.rectangle((x, top, x + full, top + EM), fill=(240, 240, 240))
            if share:
                pen.rectangle(
                    (x, top, x + max(1, round(full * share)), top + EM), fill=tuple(color)
                )
            write(pen, (x + full + 8, top), percent(share), INK if share else BAD, 80)
    return strip


def row(cells: Sequence[Cell], width: int) -> Image.Image:
    """Cells side by side, their names and captions below."""
    tall = max(c.picture.height for c in cells)
    texts = [wrapped(c.caption, WIDE, 4 if c.color else 2) for c in cells]
    strip = Image.new("RGB", (width, tall + (EM + 4) * (1 + max(map(len, texts))) + 6), "white")
    pen = ImageDraw.Draw(strip)
    for k, (one, lines) in enumerate(zip(cells, texts, strict=True)):
        x = k * (WIDE + GAP)
        place = (x + (WIDE - one.picture.width) // 2, (tall - one.picture.height) // 2)
        strip.paste(one.picture, place)
        if one.color:
            box = (
                place[0],
                place[1],
                place[0] + one.picture.width - 1,
                place[1] + one.picture.height - 1,
            )
            pen.rectangle(box, outline=one.color, width=4)
        write(pen, (x, tall + 4), one.title, INK, WIDE)
        for n, text in enumerate(lines):
            write(pen, (x, tall + 4 + (n + 1) * (EM + 4)), text, one.color or PALE, WIDE)
    return strip
