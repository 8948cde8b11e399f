"""Layout of pictures: sizes of cells, rows, grids and sheets, text and legends; drawn with Pillow.

``em`` is the height of the text in px. Legends are *items*: a swatch (a colour, a pattern or None) and its text.
"""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from seg.display.colors import Color

LegendItem = tuple[
    Color | np.ndarray | None, str
]  # swatch and text of a legend; None: a plain word
TEXT_PX, GAP_PX = 14, 14  # px of text and between cells
SCREEN_ASPECT = 16 / 9  # aspect ratio that a grid approaches, width / height
PANEL_CELL_PX = (
    200,
    512,
)  # px of a panel's cell: a narrower image is enlarged, a longer one shrunk
GRID_CELL_PX = (200, 384)  # the same for the cells of a grid
TEXT_COLOR: Color = (40, 40, 40)  # colour of text
ASCII_LETTERS = str.maketrans(
    "\u03bc\u2013\u2014\u2019\u00d7", "u--'x"
)  # the font has ASCII letters only


# ---- sizes


def evenly_spaced(size: int, count: int) -> list[int]:
    """Return ``count`` indices spread evenly over 0 .. size - 1, or all if there are fewer."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, count))}) if count else []


def display_size(height: int, width: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width in px to show an image at: enlarged by a whole number, or shrunk.

    Args:
        height: of the image, px.
        width: of the image, px.
        limits: width below which it is enlarged, and longest side, above which it is shrunk; px.
    """
    low, high = limits
    longest = max(height, width)
    if longest > high:
        return max(1, round(height * high / longest)), max(1, round(width * high / longest))
    factor = min(math.ceil(low / width), high // longest)
    return height * factor, width * factor


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (height, width); each pixel has the value of the nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows][:, columns]


def resize_smooth(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width): Lanczos if it shrinks, nearest if it grows."""
    if size[0] >= rgb.shape[0] and size[1] >= rgb.shape[1]:
        return resize_nearest(rgb, size)
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.LANCZOS))


def fit_grid_cell(rgb: np.ndarray) -> np.ndarray:
    """Resize (H, W, 3) uint8 to the size of a grid's cell."""
    return resize_smooth(rgb, display_size(*rgb.shape[:2], GRID_CELL_PX))


# ---- pages


def draw_row(cells: dict[str, np.ndarray], em: int) -> Image.Image:
    """Draw cells of one size side by side, the name of each centred above it."""
    height, width = next(iter(cells.values())).shape[:2]
    column, top = max(width, PANEL_CELL_PX[0]), round(1.6 * em)
    row = Image.new("RGB", ((column + em) * len(cells) - em, top + height), "white")
    pen = ImageDraw.Draw(row)
    for i, (name, cell) in enumerate(cells.items()):
        left = i * (column + em) + (column - width) // 2
        row.paste(Image.fromarray(cell), (left, top))
        pen.text((left + width / 2, top - em // 2), name, TEXT_COLOR, load_font(em), anchor="ms")
    return row


def stack_pictures(panels: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Draw pictures below one another on white, ``gap`` px apart, aligned at the left."""
    height = sum(panel.height for panel in panels) + gap * (len(panels) - 1)
    page = Image.new("RGB", (max(panel.width for panel in panels), height), "white")
    top = 0
    for panel in panels:
        page.paste(panel, (0, top))
        top += panel.height + gap
    return page


def draw_grid(cells: list[Image.Image], gap: int) -> Image.Image:
    """Draw cells in rows on white; the number of columns leaves few places empty and suits a screen."""
    width, height = max(c.width for c in cells) + gap, max(c.height for c in cells) + gap

    def cost(columns: int) -> float:
        rows = -(-len(cells) // columns)
        empty = rows * columns / len(cells) - 1
        return 2 * empty + abs(math.log(columns * width / (rows * height) / SCREEN_ASPECT))

    columns = min(range(1, len(cells) + 1), key=cost)
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, cell in enumerate(cells):
        page.paste(cell, (i % columns * width, i // columns * height))
    return page


def draw_sheet(
    parts: Sequence[Image.Image | list[LegendItem]], width: int, em: int, gap: int, border: int
) -> Image.Image:
    """Draw pictures and paragraphs below one another on white, with a border.

    Args:
        parts: pictures, and items of paragraphs; empty paragraphs are left out.
        width: px of the paragraphs.
        em: px of text.
        gap: px between the parts.
        border: px.
    """
    strips = [draw_items(p, width, em) if isinstance(p, list) else p for p in parts if p]
    return ImageOps.expand(stack_pictures(strips, gap), border=border, fill="white")


# ---- text


def paragraph_items(text: str) -> list[LegendItem]:
    """Return the items of a paragraph without swatches."""
    return [(None, word) for word in to_font_letters(text, limit=600).split()]


def draw_items(items: Sequence[LegendItem], width: int, em: int) -> Image.Image:
    """Draw items from left to right, in as many lines as the width (px) needs."""
    # places of the items
    x, y, line, placed = 0, 0, round(1.4 * em), []
    for swatch, text in items:
        indent, gap = (0, em // 4) if swatch is None else (round(1.4 * em), em)
        text = shorten_text(text, width - indent, em)
        length = indent + math.ceil(load_font(em).getlength(text))
        if x and x + length > width:
            x, y = 0, y + line
        placed.append((x, y, swatch, indent, text))
        x += length + gap

    # draw them
    strip = Image.new("RGB", (width, y + line), "white")
    pen = ImageDraw.Draw(strip)
    for x, y, swatch, indent, text in placed:
        top = y + em // 5
        if swatch is not None:
            square = np.broadcast_to(np.asarray(swatch, np.uint8), (em, em, 3))
            strip.paste(Image.fromarray(np.ascontiguousarray(square)), (x, top))
            pen.rectangle((x, top, x + em - 1, top + em - 1), outline=TEXT_COLOR)
        pen.text((x + indent, y + em), text, TEXT_COLOR, load_font(em), anchor="ls")
    return strip


def draw_text_line(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    color: Color,
    width: int,
    em: int = TEXT_PX,
) -> None:
    """Draw one line of text; if it is wider than ``width`` px, its beginning is cut off."""
    text = shorten_text(to_font_letters(text, limit=600), width, em, keep_end=True)
    pen.text(place, text, color, load_font(em))


def wrap_text(text: str, width: int, most: int) -> list[str]:
    """Split a text into at most ``most`` lines of ``width`` px; the last ends in "..." if there is more."""
    lines = [""]
    for word in to_font_letters(text, limit=5000).split():
        longer = f"{lines[-1]} {word}".strip()
        if load_font(TEXT_PX).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} ..."]


def to_font_letters(text: str, limit: int) -> str:
    """Return at most ``limit`` characters in the letters of the font: without accents, others as "?"."""
    spaced = " ".join(str(text)[:limit].split())
    letters = unicodedata.normalize("NFKD", spaced).translate(ASCII_LETTERS)
    return "".join(c if " " <= c <= "~" else "?" for c in letters if not unicodedata.combining(c))


def shorten_text(text: str, width: float, em: int, keep_end: bool = False) -> str:
    """Return the text, cut at its end (or at its beginning) and marked by "..." if wider than width px."""
    if load_font(em).getlength(text) <= width:
        return text
    while text and load_font(em).getlength(text + "...") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"...{text}" if keep_end else f"{text}..."


@cache
def load_font(em: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font at a size in px."""
    return ImageFont.load_default(size=em)
