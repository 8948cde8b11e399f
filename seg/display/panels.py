"""Panels: image | truth | prediction | error in one row, with a legend below.

Masks are (H, W) class indices, ``IGNORE`` where ignored; colours are (R, G, B) in 0..255. Masks are resized
by nearest neighbour, so that every pixel has exactly the colour of its class.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from seg.display.colors import OKABE_ITO, Color
from seg.display.layout import (
    PANEL_CELL_PX,
    LegendItem,
    display_size,
    draw_row,
    draw_sheet,
    paragraph_items,
    resize_nearest,
    resize_smooth,
    to_font_letters,
)
from seg.labels import IGNORE

FALSE_POSITIVE_COLOR: Color = (213, 94, 0)  # vermilion: class 1 predicted where the truth is 0
FALSE_NEGATIVE_COLOR: Color = (0, 114, 178)  # blue: class 0 predicted where the truth is 1
WRONG_COLOR: Color = (200, 16, 46)  # red: wrong among more than two classes


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert any image to RGB for display; all but 8-bit RGB is stretched from the 1st to 99th percentile.

    One channel is grey, two are green and magenta; of more than three the first three are red, green and
    blue. RGB is stretched as a whole, which keeps the hues; other channels are stretched one by one.

    Shape:
        image (H, W) or (H, W, C), any numeric type -> (H, W, 3) uint8.

    Raises:
        ValueError: if the array has another shape or is empty.
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
    """Return a mask (H, W) in the colours of its classes, (H, W, 3) uint8; ignored pixels are hatched grey.

    Raises:
        ValueError: if the mask holds a class without a colour.
    """
    mask = np.asarray(mask)
    unknown = (mask != IGNORE) & ((mask < 0) | (mask >= len(colors)))
    if unknown.any():
        value = mask[unknown].flat[0]
        raise ValueError(f"mask holds {value}; there are colours for 0..{len(colors) - 1}")
    table = np.array([*colors, (0, 0, 0)], np.uint8)  # last row: ignored, replaced by the hatching
    rgb = table[np.where(mask == IGNORE, len(colors), mask)]
    return np.where((mask == IGNORE)[..., None], _hatch(*mask.shape), rgb)


def flatten_labels(mask: np.ndarray) -> np.ndarray:
    """Flatten a mask to one value per pixel: overlapping labels (K, H, W) become 0, or k + 1 of the first.

    The first label lies on top and hides the others. A pixel is ignored if all labels are ignored. The names
    and colours of these values are those of ``legend_entries``. A mask (H, W) is returned unchanged.
    """
    if mask.ndim == 2:
        return mask
    first = np.where((mask == 1).any(0), (mask == 1).argmax(0) + 1, 0).astype(np.uint8)
    return np.where((mask == IGNORE).all(0), np.uint8(IGNORE), first)


def legend_entries(
    classes: list[str], colors: list[Color], overlapping: bool
) -> tuple[list[str], list[Color]]:
    """Return the names and colours of a flattened mask; overlapping labels have one more: none."""
    return (["none", *classes], [OKABE_ITO[0], *colors]) if overlapping else (classes, colors)


def draw_overlay(
    image: np.ndarray, mask: np.ndarray, colors: Sequence[Color], alpha: float = 0.45
) -> np.ndarray:
    """Return the image tinted by class, (H, W, 3) uint8, with white 1-px contours; ignored pixels untinted.

    Args:
        image: any image that ``to_rgb`` converts.
        mask: class indices (H, W).
        colors: one for each class.
        alpha: weight of the colour of the class, 0..1.
    """
    rgb, mask = to_rgb(image), np.asarray(mask)
    tinted = np.rint((1 - alpha) * rgb + alpha * colorize(mask, colors)).astype(np.uint8)
    tinted[mask == IGNORE] = rgb[mask == IGNORE]
    edge = np.zeros(mask.shape, bool)  # the upper or left pixel of two that differ
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    tinted[edge] = 255
    return tinted


def draw_contours(image: np.ndarray, mask: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Return the image, (H, W, 3) uint8, with 2-px borders in the colour of the higher of two classes."""
    drawn, mask = to_rgb(image), np.asarray(mask)
    known = np.where(mask == IGNORE, 0, mask)
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        higher = np.maximum(known[before], known[after])
        edge = known[before] != known[after]
        for side in (before, after):
            drawn[side][edge] = np.array(colors, np.uint8)[higher[edge]]
    return drawn


def draw_errors(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """Return the image in pale grey, (H, W, 3) uint8, with wrong pixels coloured and ignored ones hatched.

    Two classes: vermilion for false positives of class 1, blue for false negatives. More classes: red.

    Args:
        image: any image that ``to_rgb`` converts.
        truth: class indices (H, W).
        prediction: class indices (H, W).
        num_classes: number of classes; None: two unless a higher class occurs.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    # Wrong pixels: those that differ, except ignored ones
    wrong = (truth != prediction) & (truth != IGNORE)
    if num_classes is None:
        num_classes = 2 if np.isin([truth, prediction], [0, 1, IGNORE]).all() else 3
    # Pale grey image (luma of ITU-R BT.601) as background
    grey = to_rgb(image) @ np.array([0.299, 0.587, 0.114])
    rgb = np.repeat((255 - 0.45 * (255 - grey)).astype(np.uint8)[..., None], 3, axis=-1)
    rgb[truth == IGNORE] = _hatch(*truth.shape)[truth == IGNORE]
    rgb[wrong] = WRONG_COLOR
    # Two classes: false positives and false negatives have colours of their own
    if num_classes == 2:
        rgb[wrong & (truth == 0)] = FALSE_POSITIVE_COLOR
        rgb[wrong & (truth == 1)] = FALSE_NEGATIVE_COLOR
    return rgb


def draw_panel(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    title: str = "",
    caption: str = "",
) -> Image.Image:
    """Draw one row: image | truth | prediction | error, or without truth image | prediction | overlay.

    Args:
        image: any image that ``to_rgb`` converts; enlarged if narrower than 200 px, shrunk if longer than 512.
        truth: class indices (H, W), or None.
        prediction: class indices (H, W).
        classes: names for the legend; characters that the font lacks become "?".
        colors: one for each class.
        title: line above, such as the file name and its Dice.
        caption: line below.

    Raises:
        ValueError: if the sizes differ, or the numbers of classes and colours.
    """
    rgb = to_rgb(image)
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None and mask.shape != rgb.shape[:2]:
            raise ValueError(
                f"{name} is {mask.shape} px and image {rgb.shape[:2]} px; sizes must agree"
            )
    if len(classes) != len(colors):
        raise ValueError(
            f"{len(classes)} classes but {len(colors)} colours; give one colour for each class"
        )

    # cells at the size of the display
    size = display_size(*rgb.shape[:2], PANEL_CELL_PX)
    rgb, prediction = resize_smooth(rgb, size), resize_nearest(prediction, size)
    truth = None if truth is None else resize_nearest(truth, size)
    em = max(14, size[1] // 20)  # px of text: grows with the cells, so that it is readable in print
    row = draw_row(_cells(rgb, truth, prediction, colors), em)

    # the row with its title, legend and caption
    ignored = any(mask is not None and (mask == IGNORE).any() for mask in (truth, prediction))
    legend = legend_paragraphs(classes, colors, em, judged=truth is not None, ignored=ignored)
    parts = [paragraph_items(title), row, *legend, paragraph_items(caption)]
    return draw_sheet(parts, row.width, em, gap=em // 3, border=em)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Scale to uint8: 1st percentile black, 99th white; constants, NaN and infinity are black."""
    values = values.astype(np.float64)
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if known.size else (0.0, 0.0)
    if low == high and known.size:  # nearly all pixels are equal: show the others
        low, high = known.min(), known.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.where(np.isfinite(values), values, low) - low) / (high - low)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def _hatch(height: int, width: int) -> np.ndarray:
    """Return diagonal stripes of two greys, (H, W, 3) uint8: the look of ignored pixels."""
    stripe = (np.arange(height)[:, None] + np.arange(width)) % 8 < 2
    return np.where(stripe[..., None], np.uint8(176), np.uint8(128)).repeat(3, axis=-1)


def _cells(
    rgb: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, colors: Sequence[Color]
) -> dict[str, np.ndarray]:
    """Return the cells of a row by name, all of one size."""
    predicted = colorize(prediction, colors)
    if truth is None:
        return {
            "image": rgb,
            "prediction": predicted,
            "overlay": draw_overlay(rgb, prediction, colors),
        }
    error = draw_errors(rgb, truth, prediction, len(colors))
    return {"image": rgb, "truth": colorize(truth, colors), "prediction": predicted, "error": error}


def legend_paragraphs(
    classes: Sequence[str], colors: Sequence[Color], em: int, *, judged: bool, ignored: bool
) -> Iterator[list[LegendItem]]:
    """Yield the paragraphs of the legend: the classes, then the colours of the error cell."""
    names = [to_font_letters(name, limit=60) for name in classes]
    yield [*zip(colors, names, strict=True), *[(_hatch(em, em), "ignored")] * ignored]
    if judged and len(classes) == 2:
        swapped = zip((FALSE_POSITIVE_COLOR, FALSE_NEGATIVE_COLOR), names[::-1], names, strict=True)
        yield [(c, f"{false} predicted, truly {true}") for c, false, true in swapped]
    elif judged:
        yield [(WRONG_COLOR, "wrong class")]
