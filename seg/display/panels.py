"""Pictures to look at: image | truth | prediction | error in one row, with a legend below.

Masks are (H, W) class indices, ``IGNORE`` where nobody knows; colours are (R, G, B) in 0..255.
Masks are drawn by nearest neighbour, so every pixel on show has exactly its class's colour.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from seg.display.colors import OKABE_ITO, Color
from seg.logits import IGNORE

Item = tuple[Color | np.ndarray | None, str]  # a legend's swatch and text; None: a plain word
FALSE_ONE: Color = (213, 94, 0)  # class 1 predicted where truth is 0: vermilion
MISSED_ONE: Color = (0, 114, 178)  # class 0 predicted where truth is 1: blue
WRONG: Color = (200, 16, 46)  # wrong among more than two classes: red
CELL = (200, 512)  # px: a narrower image is enlarged, a longer one shrunk
ALIKE = str.maketrans("\u03bc\u2013\u2014\u2019\u00d7", "u--'x")  # the font is ASCII; um for micron
INK = (40, 40, 40)  # of all text


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Any image as (H, W, 3) uint8 for the eye; all but 8-bit RGB is stretched from 1 % to 99 %.

    One channel is grey; two are green and magenta; of more than three the first are red, green and
    blue. RGB is stretched as a whole, so hues stay; other channels each on their own.

    Shape:
        image (H, W) or (H, W, C), any numeric type -> (H, W, 3) uint8.

    Raises:
        ValueError: when the array is no such image.
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}; a picture needs (H, W) or (H, W, C)")
    if image.shape[2] == 3:
        return image.copy() if image.dtype == np.uint8 else _stretch(image)
    channels = [_stretch(image[..., c]) for c in range(min(image.shape[2], 3))]
    order = {1: (0, 0, 0), 2: (1, 0, 1)}.get(len(channels), (0, 1, 2))
    return np.stack([channels[c] for c in order], axis=-1)


def colorize(mask: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """The mask (H, W) in its classes' colours, (H, W, 3) uint8; ignored pixels are hatched grey.

    Raises:
        ValueError: when the mask holds a class without a colour.
    """
    mask = np.asarray(mask)
    unknown = (mask != IGNORE) & ((mask < 0) | (mask >= len(colors)))
    if unknown.any():
        value = mask[unknown].flat[0]
        raise ValueError(f"mask holds {value}, but there are colours for 0..{len(colors) - 1} only")
    table = np.array([*colors, (0, 0, 0)], np.uint8)  # the last row is hatched over
    picture = table[np.where(mask == IGNORE, len(colors), mask)]
    return np.where((mask == IGNORE)[..., None], _hatch(*mask.shape), picture)


def picture(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) as it is; of classes that overlap (K, H, W): 0 where none is, else k + 1 of the first.

    So the first class lies on top, and hides the others. Ignored where each of the classes is; `shown` has
    the names and colours of these values.
    """
    if mask.ndim == 2:
        return mask
    first = np.where((mask == 1).any(0), (mask == 1).argmax(0) + 1, 0).astype(np.uint8)
    return np.where((mask == IGNORE).all(0), np.uint8(IGNORE), first)


def shown(
    classes: list[str], colors: list[Color], overlapping: bool
) -> tuple[list[str], list[Color]]:
    """Names and colours of a picture's values; classes that overlap have one more: none of them."""
    return (["none", *classes], [OKABE_ITO[0], *colors]) if overlapping else (classes, colors)


def overlay(
    image: np.ndarray, mask: np.ndarray, colors: Sequence[Color], alpha: float = 0.45
) -> np.ndarray:
    """The image tinted by class, (H, W, 3) uint8, with white 1-px contours; ignored pixels bare.

    ``alpha`` is the weight of the class's colour, 0..1.
    """
    rgb, mask = to_rgb(image), np.asarray(mask)
    tinted = np.rint((1 - alpha) * rgb + alpha * colorize(mask, colors)).astype(np.uint8)
    tinted[mask == IGNORE] = rgb[mask == IGNORE]
    edge = np.zeros(mask.shape, bool)  # the upper or left one of two neighbours that differ
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    tinted[edge] = 255
    return tinted


def outlined(image: np.ndarray, mask: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """The image bare, (H, W, 3) uint8, with 2-px borders in the colour of the higher of the two classes."""
    drawn, mask = to_rgb(image), np.asarray(mask)
    known = np.where(mask == IGNORE, 0, mask)
    for one, other in (
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        higher = np.maximum(known[one], known[other])
        edge = known[one] != known[other]
        for side in (one, other):
            drawn[side][edge] = np.array(colors, np.uint8)[higher[edge]]
    return drawn


def errors(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """The image in pale grey, (H, W, 3) uint8, wrong pixels coloured, ignored pixels hatched.

    Two classes: vermilion where 1 was predicted for 0, blue where 1 was missed. More: red.

    Args:
        image: as ``to_rgb`` takes it.
        truth: (H, W) class indices; where it is ignored, nothing is wrong.
        prediction: (H, W) class indices.
        num_classes: of the problem; None means two unless a higher class occurs.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    wrong = (truth != prediction) & (truth != IGNORE)
    if num_classes is None:
        num_classes = 2 if np.isin([truth, prediction], [0, 1, IGNORE]).all() else 3
    grey = to_rgb(image) @ np.array([0.299, 0.587, 0.114])
    picture = np.repeat((255 - 0.45 * (255 - grey)).astype(np.uint8)[..., None], 3, axis=-1)
    picture[truth == IGNORE] = _hatch(*truth.shape)[truth == IGNORE]
    picture[wrong] = WRONG
    if num_classes == 2:
        picture[wrong & (truth == 0)] = FALSE_ONE
        picture[wrong & (truth == 1)] = MISSED_ONE
    return picture


def panel(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    title: str = "",
    caption: str = "",
) -> Image.Image:
    """One row, image | truth | prediction | error, or image | prediction | overlay without truth.

    Args:
        image: as ``to_rgb`` takes it; under 200 px wide it is enlarged, over 512 px shrunk.
        truth: (H, W) class indices, or None.
        prediction: (H, W) class indices.
        classes: names for the legend; characters that the font lacks become "?".
        colors: one per class.
        title: a line above, such as file name and Dice.
        caption: a line below.

    Raises:
        ValueError: when sizes differ, or classes and colours in number.
    """
    rgb = to_rgb(image)
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None and mask.shape != rgb.shape[:2]:
            raise ValueError(f"{name} is {mask.shape}, image {rgb.shape[:2]}; sizes must agree")
    if len(classes) != len(colors):
        raise ValueError(f"{len(classes)} classes but {len(colors)} colours; give one per class")
    size = _display_size(*rgb.shape[:2])
    rgb, prediction = _smooth(rgb, size), _nearest(prediction, size)
    truth = None if truth is None else _nearest(truth, size)
    em = max(14, size[1] // 20)  # px of text: it grows with the cells, to be read in a page
    row = row_of(_cells(rgb, truth, prediction, colors), em)
    ignored = any(mask is not None and (mask == IGNORE).any() for mask in (truth, prediction))
    legend = legend_of(classes, colors, em, judged=truth is not None, ignored=ignored)
    parts = [words(title), row, *legend, words(caption)]
    strips = [flow(p, row.width, em) if isinstance(p, list) else p for p in parts if p]
    return ImageOps.expand(sheet(strips, gap=em // 3), border=em, fill="white")


def sheet(panels: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """The panels below one another on white, so many px apart, left edges aligned."""
    height = sum(panel.height for panel in panels) + gap * (len(panels) - 1)
    page = Image.new("RGB", (max(panel.width for panel in panels), height), "white")
    top = 0
    for panel in panels:
        page.paste(panel, (0, top))
        top += panel.height + gap
    return page


def _stretch(values: np.ndarray) -> np.ndarray:
    """Values to uint8, 1 % to black and 99 % to white; constants, NaN and infinity are black."""
    values = values.astype(np.float64)
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 0.0)
    if low == high and known.size:  # nearly all pixels agree: show the few that differ
        low, high = known.min(), known.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.where(np.isfinite(values), values, low) - low) / (high - low)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def _hatch(height: int, width: int) -> np.ndarray:
    """Diagonal stripes of two greys, (H, W, 3) uint8: what an ignored pixel looks like."""
    stripe = (np.arange(height)[:, None] + np.arange(width)) % 8 < 2
    return np.where(stripe[..., None], np.uint8(176), np.uint8(128)).repeat(3, axis=-1)


def _display_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in px of a cell: enlarged by a whole number, or shrunk to fit."""
    low, high = CELL
    longest = max(height, width)
    if longest > high:
        return max(1, round(height * high / longest)), max(1, round(width * high / longest))
    factor = min(math.ceil(low / width), high // longest)
    return height * factor, width * factor


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The array at another (height, width), each pixel the nearest one's value."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows][:, columns]


def _smooth(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RGB at another (height, width): Lanczos where it shrinks, whole pixels where it grows."""
    if size[0] >= rgb.shape[0] and size[1] >= rgb.shape[1]:
        return _nearest(rgb, size)
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.LANCZOS))


def _cells(
    rgb: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, colors: Sequence[Color]
) -> dict[str, np.ndarray]:
    """The pictures of one row by name, all of one size."""
    guess = colorize(prediction, colors)
    if truth is None:
        return {"image": rgb, "prediction": guess, "overlay": overlay(rgb, prediction, colors)}
    error = errors(rgb, truth, prediction, len(colors))
    return {"image": rgb, "truth": colorize(truth, colors), "prediction": guess, "error": error}


def row_of(cells: dict[str, np.ndarray], em: int) -> Image.Image:
    """The cells side by side, the name of each centred above."""
    height, width = next(iter(cells.values())).shape[:2]
    column, top = max(width, CELL[0]), round(1.6 * em)
    row = Image.new("RGB", ((column + em) * len(cells) - em, top + height), "white")
    draw = ImageDraw.Draw(row)
    for i, (name, cell) in enumerate(cells.items()):
        left = i * (column + em) + (column - width) // 2
        row.paste(Image.fromarray(cell), (left, top))
        draw.text((left + width / 2, top - em // 2), name, INK, _font(em), anchor="ms")
    return row


def legend_of(
    classes: Sequence[str], colors: Sequence[Color], em: int, *, judged: bool, ignored: bool
) -> Iterator[list[Item]]:
    """Paragraphs of swatch and name: the classes, then what the colours of the error cell mean."""
    names = [_drawable(name, limit=60) for name in classes]
    yield [*zip(colors, names, strict=True), *[(_hatch(em, em), "ignored")] * ignored]
    if judged and len(classes) == 2:
        swapped = zip((FALSE_ONE, MISSED_ONE), names[::-1], names, strict=True)
        yield [(c, f"{seen} predicted, truly {real}") for c, seen, real in swapped]
    elif judged:
        yield [(WRONG, "wrong class")]


def words(text: str) -> list[Item]:
    """A paragraph without swatches."""
    return [(None, word) for word in _drawable(text, limit=600).split()]


def flow(items: Sequence[Item], width: int, em: int) -> Image.Image:
    """Items from left to right, on as many lines as the width (px) asks for."""
    x, y, line, placed = 0, 0, round(1.4 * em), []
    for swatch, text in items:
        indent, gap = (0, em // 4) if swatch is None else (round(1.4 * em), em)
        text = _shortened(text, width - indent, em)
        length = indent + math.ceil(_font(em).getlength(text))
        if x and x + length > width:
            x, y = 0, y + line
        placed.append((x, y, swatch, indent, text))
        x += length + gap
    strip = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, swatch, indent, text in placed:
        top = y + em // 5
        if swatch is not None:
            square = np.broadcast_to(np.asarray(swatch, np.uint8), (em, em, 3))
            strip.paste(Image.fromarray(np.ascontiguousarray(square)), (x, top))
            draw.rectangle((x, top, x + em - 1, top + em - 1), outline=INK)
        draw.text((x + indent, y + em), text, INK, _font(em), anchor="ls")
    return strip


def _drawable(text: str, limit: int) -> str:
    """At most so many characters, those of the font: accents dropped, what remains foreign "?"."""
    spaced = " ".join(str(text)[:limit].split())
    letters = unicodedata.normalize("NFKD", spaced).translate(ALIKE)
    return "".join(c if " " <= c <= "~" else "?" for c in letters if not unicodedata.combining(c))


def _shortened(text: str, width: float, em: int) -> str:
    """The text, its end cut for "..." when it is wider than so many px."""
    if _font(em).getlength(text) <= width:
        return text
    while text and _font(em).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


@cache
def _font(em: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=em)
