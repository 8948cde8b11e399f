"""Sheet of the images to annotate next: each image beside the outlines of its predicted mask."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from seg.display.colors import Color
from seg.display.layout import draw_grid, draw_row, draw_sheet, paragraph_items, resize_smooth
from seg.display.panels import draw_contours, legend_entries, legend_paragraphs, to_rgb

CELL_PX, TEXT_PX, GAP_PX = 256, 16, 24  # longer side of a cell; text; between images


def draw_pair(image: np.ndarray, mask: np.ndarray, colors: Sequence[Color], title: str, overlapping: bool) -> Image.Image:  # fmt: skip
    """Draw an image beside its outlines, below a title.

    Args:
        image: (h, w, C), any that ``to_rgb`` converts.
        mask: (h, w) class indices; of overlapping classes as ``flatten_labels`` returns them.
        colors: one for each class.
        title: one line.
        overlapping: whether classes overlap.
    """
    _, drawn = legend_entries([""] * len(colors), list(colors), overlapping)
    height, width = mask.shape
    scale = CELL_PX / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    cells = {"image": to_rgb(image), "prediction": draw_contours(image, mask, drawn)}
    row = draw_row({name: resize_smooth(rgb, size) for name, rgb in cells.items()}, TEXT_PX)
    return draw_sheet([paragraph_items(title), row], row.width, TEXT_PX, gap=4, border=0)


def draw_queue(
    pairs: list[Image.Image], classes: Sequence[str], colors: Sequence[Color], overlapping: bool
) -> Image.Image:
    """Draw the sheet of pairs, most promising first, above the legend."""
    names, drawn = legend_entries(list(classes), list(colors), overlapping)
    grid = draw_grid(pairs, GAP_PX)
    legend = legend_paragraphs(names, drawn, TEXT_PX, judged=False, ignored=False)
    return draw_sheet([grid, *legend], grid.width, TEXT_PX, gap=GAP_PX // 2, border=GAP_PX)
