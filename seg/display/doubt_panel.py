"""Picture of a region whose label is in doubt: image | label | network | place."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from seg.display.colors import Color
from seg.display.layout import (
    draw_row,
    draw_sheet,
    paragraph_items,
    resize_nearest,
    resize_smooth,
)
from seg.display.panels import colorize, legend_paragraphs, to_rgb
from seg.labels import IGNORE

CELL_PX, LEAST_PX, TEXT_PX = 256, 48, 16  # of a cell; of the part of the image in it; of text
BOX_COLOR: Color = (230, 60, 20)


def draw_doubt(
    image: np.ndarray,
    label: np.ndarray,
    predicted: np.ndarray,
    box: tuple[int, int, int, int],
    classes: Sequence[str],
    colors: Sequence[Color],
    title: str,
) -> Image.Image:
    """Draw the surroundings of a box in the image, its label and the prediction, and the place of the box.

    Args:
        image: any image that ``to_rgb`` converts.
        label: class indices (H, W).
        predicted: class indices (H, W).
        box: first column, first row, width and height, px.
        classes: names for the legend.
        colors: one for each class.
        title: line above.
    """
    left, top, width, height = box
    rgb = to_rgb(image)
    # A square of twice the box, within the image
    side = max(LEAST_PX, 2 * max(width, height))
    spans = [
        cut_span(start + length / 2, side, whole)
        for start, length, whole in zip((top, left), (height, width), rgb.shape[:2], strict=True)
    ]
    rows, columns = spans
    size = fit_size(rows.stop - rows.start, columns.stop - columns.start)
    close = (rgb[rows, columns], colorize(label[rows, columns], colors), colorize(predicted[rows, columns], colors))  # fmt: skip
    scale = size[0] / (rows.stop - rows.start)
    frame = tuple((v * scale) for v in (left - columns.start, top - rows.start, width, height))
    cells = {"image": draw_box(resize_smooth(close[0], size), frame)}
    cells |= {
        name: draw_box(resize_nearest(cell, size), frame)
        for name, cell in zip(("label", "network"), close[1:], strict=True)
    }
    # The whole image with the box, in a cell of the same size
    place_size = fit_size(*rgb.shape[:2])
    place = draw_box(
        resize_smooth(rgb, place_size), tuple(v * place_size[0] / rgb.shape[0] for v in box)
    )
    cells["place"] = place
    cells = {name: pad_cell(cell) for name, cell in cells.items()}
    row = draw_row(cells, TEXT_PX)
    legend = legend_paragraphs(classes, colors, TEXT_PX, judged=False, ignored=bool((label == IGNORE).any()))  # fmt: skip
    return draw_sheet(
        [paragraph_items(title), row, *legend], row.width, TEXT_PX, gap=TEXT_PX // 3, border=TEXT_PX
    )


def cut_span(middle: float, side: int, whole: int) -> slice:
    """Return ``side`` px around a middle, moved into 0 .. whole, or all of it."""
    side = min(side, whole)
    start = min(max(round(middle - side / 2), 0), whole - side)
    return slice(start, start + side)


def fit_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a picture enlarged or shrunk to the cell."""
    scale = CELL_PX / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_box(rgb: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Return a copy of a picture with the outline of a box, 2 px wide."""
    picture = Image.fromarray(rgb)
    left, top, width, height = box
    corners = (left - 2, top - 2, left + width + 1, top + height + 1)
    ImageDraw.Draw(picture).rectangle(corners, outline=BOX_COLOR, width=2)
    return np.asarray(picture)


def pad_cell(rgb: np.ndarray) -> np.ndarray:
    """Return a picture in the middle of a white cell."""
    cell = np.full((CELL_PX, CELL_PX, 3), 255, np.uint8)
    top, left = ((CELL_PX - side) // 2 for side in rgb.shape[:2])
    cell[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
    return cell
