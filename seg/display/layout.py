"""Layout of pictures: grids, fitted sizes and text."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seg.display.colors import Color

EM, GAP = 14, 14  # px of text and between cells
SCREEN = 16 / 9  # width to height, about the picture's
SIDES = (200, 384)  # px of a cell: a smaller crop is enlarged, a larger one shrunk


def evenly(size: int, count: int) -> list[int]:
    """``count`` indices spread over 0 .. size - 1."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, count))}) if count else []


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    color: Color,
    width: int,
    em: int = EM,
) -> None:
    """One line, cut to so many px."""
    pen.text(place, cut(text, width, em), color, ImageFont.load_default(em))


def cut(text: str, width: int, em: int = EM) -> str:
    """As much of the end of a text as so many px take, in the font's letters."""
    font, text = ImageFont.load_default(em), text.encode("ascii", "replace").decode()
    whole = text
    while text and font.getlength(text if text == whole else f"...{text}") > width:
        text = text[1:]
    return text if text == whole else f"...{text}"


def wrapped(text: str, width: int, most: int) -> list[str]:
    """Lines of so many px; the last says when there is more."""
    font, lines = ImageFont.load_default(EM), [""]
    for word in text.encode("ascii", "replace").decode().split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} ..."]


def fitted(rgb: np.ndarray) -> np.ndarray:
    """At a size to look at: enlarged by a whole number, or shrunk."""
    low, high = SIDES
    longest = max(rgb.shape[:2])
    if longest > high:
        size = (max(1, round(rgb.shape[1] * high / longest)), max(1, round(rgb.shape[0] * high / longest)))  # fmt: skip
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
    factor = -(-low // longest) if longest < low else 1
    return rgb.repeat(factor, 0).repeat(factor, 1)


def grid(cells: list[Image.Image], gap: int) -> Image.Image:
    """The cells on white in rows, few places empty, and about as wide as a screen."""
    width, height = max(c.width for c in cells) + gap, max(c.height for c in cells) + gap

    def cost(columns: int) -> float:
        rows = -(-len(cells) // columns)
        empty = rows * columns / len(cells) - 1
        return 2 * empty + abs(math.log(columns * width / (rows * height) / SCREEN))

    columns = min(range(1, len(cells) + 1), key=cost)
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, cell in enumerate(cells):
        page.paste(cell, (i % columns * width, i // columns * height))
    return page
