"""Contact sheet of seg.check: images with their masks laid over, those with issues framed and first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from seg.data.datasets.base import DataSource
from seg.data.image_io import read_image, read_pages
from seg.data.masks import planes_first
from seg.data.quality.inspect import ImageStats, Inspection, image_and_mask_files
from seg.data.quality.issues import UNPAIRED_KINDS, Issue, count_noun, format_percent
from seg.display import panels
from seg.display.colors import Color, default_colors
from seg.display.layout import (
    GAP_PX,
    TEXT_COLOR,
    TEXT_PX,
    LegendItem,
    draw_grid,
    draw_sheet,
    draw_text_line,
    evenly_spaced,
    paragraph_items,
    wrap_text,
)
from seg.errors import DataError
from seg.labels import IGNORE

MAX_VALUES = 16  # values on disk that have a colour
CELL_PX = 280  # px of a picture's longer side
ERROR_COLOR, WARNING_COLOR, CAPTION_COLOR = (200, 16, 46), (214, 120, 0), (120, 120, 120)


def draw_check_sheet(
    source: DataSource,
    inspection: Inspection,
    issues: list[Issue],
    number: int,
    report: dict[str, Any],
) -> Image.Image:
    """Draw the sheet: the shares of the classes, then images with their masks laid over.

    Args:
        source: of the data.
        inspection: statistics of its images.
        issues: the most important first.
        number: images on the sheet: those with an issue first, the others evenly spaced.
        report: content of check.json.
    """
    # Choose the images: those of the most important issues, then others.
    first = {f.name or f.file: f for f in reversed(issues) if f.name or f.kind in UNPAIRED_KINDS}
    names = [f.name or f.file for f in issues if first.get(f.name or f.file) is f][:number]
    stats = {image.name: image for image in inspection.stats}
    good = [name for name in stats if name not in first]
    names += [good[i] for i in evenly_spaced(len(good), number - len(names))]
    # Draw them below the data's name and the legend.
    root = Path(report["data"].get("root") or ".")
    values: dict[int, Color] = {}
    cells = [
        draw_cell(source, name, stats.get(name), first.get(name), root, values) for name in names
    ]
    pages = [draw_grid(cells, GAP_PX)] if cells else []
    width = max([3 * CELL_PX, *(page.width for page in pages)])
    parts = [*sheet_header(source, report), *stored_legend(values), *pages]
    return draw_sheet(parts, width, TEXT_PX, gap=GAP_PX, border=2 * GAP_PX)


def sheet_header(source: DataSource, report: dict[str, Any]) -> list[list[LegendItem]]:
    """Return paragraphs: the data, its images and issues, and each class's share of each split."""
    splits = report["splits"]
    root = report["data"].get("root") or report["data"]["_target_"].rpartition(".")[2]
    images = ", ".join(f"{split} {facts['images']}" for split, facts in splits.items())
    issues = f"{count_noun(report['errors'], 'error')}, {count_noun(report['warnings'], 'warning')}"
    legend: list[LegendItem] = []
    for name, color in zip(source.classes, source.colors, strict=True):
        shares = ", ".join(
            f"{split} {format_percent(f['shares'][name])}" for split, f in splits.items()
        )
        legend.append((color, f"{name}: {shares}"))
    return [paragraph_items(f"{root}: {images}; {issues}. Share of the pixels:"), legend]


def stored_legend(values: dict[int, Color]) -> list[list[LegendItem]]:
    """Return paragraphs: the colours of masks that could not be used, by their values on disk."""
    if not values:
        return []
    legend: list[LegendItem] = [(values[value], str(value)) for value in sorted(values)]
    return [paragraph_items("Values on disk, in masks that could not be used:"), legend]


def draw_cell(
    source: DataSource,
    name: str,
    stats: ImageStats | None,
    issue: Issue | None,
    root: Path,
    values: dict[int, Color],
) -> Image.Image:
    """Draw an image of the source, or a file without a partner, with its title and caption.

    ``values`` receives a colour for each value on disk of a mask that could not be used.
    """
    # The title names the file; the caption is the issue, or the most frequent classes.
    title, caption, color = name, "", None
    if stats is not None:
        shares = stats.pixels / stats.valid.clip(1)
        frequent = [i for i in np.argsort(-shares)[:3] if stats.pixels[i]]
        title = stats.file
        caption = ", ".join(f"{source.classes[i]} {format_percent(shares[i])}" for i in frequent)
    elif issue is not None:
        title = issue.file
    if issue is not None:
        caption, color = issue.found, ERROR_COLOR if issue.error else WARNING_COLOR
    # The picture; hatched if the file cannot be read.
    if stats is not None:
        image, mask = source.read(name)
        _, colors = panels.legend_entries(
            source.classes, source.colors, source.task == "overlapping"
        )
        rgb = overlay_thumbnail(image, panels.flatten_labels(planes_first(mask)), colors)
    elif issue is not None and issue.name and (files := image_and_mask_files(source, name)):
        rgb = file_thumbnail(files[0], values, files[1])
    else:
        rgb = file_thumbnail(root / name, values)
    if rgb is None:
        rgb = panels.colorize(np.full((CELL_PX // 2, CELL_PX), IGNORE, np.uint8), [])
    return add_caption(Image.fromarray(rgb), title, caption, color)


def add_caption(picture: Image.Image, title: str, caption: str, color: Color | None) -> Image.Image:
    """Draw a picture, framed if there is a colour, above its title and caption."""
    lines = [title, *wrap_text(caption, CELL_PX, 4 if color else 2)]
    strip = Image.new("RGB", (CELL_PX, picture.height + (TEXT_PX + 4) * len(lines) + 6), "white")
    left, pen = (CELL_PX - picture.width) // 2, ImageDraw.Draw(strip)
    strip.paste(picture, (left, 0))
    if color:
        pen.rectangle((left, 0, left + picture.width - 1, picture.height - 1), None, color, 4)
    for n, line in enumerate(lines):
        ink = (color or CAPTION_COLOR) if n else TEXT_COLOR
        draw_text_line(pen, (0, picture.height + 4 + n * (TEXT_PX + 4)), line, ink, CELL_PX)
    return strip


def overlay_thumbnail(image: np.ndarray, mask: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Return the image tinted by its mask, (H, W, 3) uint8, its longer side ``CELL_PX`` px."""
    rgb = panels.to_rgb(image)
    scale = CELL_PX / max(rgb.shape[:2])
    size = [max(1, round(side * scale)) for side in rgb.shape[1::-1]]  # width, height
    rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return panels.draw_overlay(rgb, mask, colors, alpha=0.35)


def file_thumbnail(
    file: Path, values: dict[int, Color], mask_file: Path | None = None
) -> np.ndarray | None:
    """Return a file's picture with its mask as stored, by value or in its colours; None if it can't be read.

    ``values`` receives a colour for each value that is drawn.
    """
    # The image, unless it can't be read
    try:
        rgb = panels.to_rgb(read_image(file))
    except DataError:
        return None
    # The mask if it has the image's size: its colours, or a colour for each of its most frequent values
    hidden = np.full(rgb.shape[:2], IGNORE)
    try:
        mask = None if mask_file is None else read_pages(mask_file)[0]
    except DataError:
        mask = None  # the caption has the issue
    if mask is None or mask.shape[:2] != hidden.shape:
        return overlay_thumbnail(rgb, hidden, [])
    if mask.ndim == 3 and mask.dtype == np.uint8 and mask.shape[2] >= 3:
        blended = (rgb * 0.5 + mask[..., :3] * 0.5).astype(np.uint8)
        return overlay_thumbnail(blended, hidden, [])
    stored = mask.reshape(*hidden.shape, -1)[..., 0] * 1
    distinct, counts = np.unique(stored, return_counts=True)
    shown = distinct[counts.argsort()[::-1][:MAX_VALUES]].tolist()
    spare = iter(default_colors(MAX_VALUES)[len(values) :])
    for value in shown:
        if value not in values and (color := next(spare, None)):
            values[value] = color
    drawn = [value for value in shown if value in values]
    index = hidden
    for i, value in enumerate(drawn):
        index[stored == value] = i
    return overlay_thumbnail(rgb, index, [values[value] for value in drawn])
