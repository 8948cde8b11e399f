"""Outlines of objects as COCO stores them, polygons and run lengths, and the pixels inside.

Nothing here trusts its input: run lengths fill the image exactly, and polygons stay near it, or are refused.
"""

import math
from array import array
from typing import Any, Literal

import numpy as np


def packed(kind: Literal["d", "q"], numbers: Any) -> Any:
    """A list of numbers as an array; anything else as it is, to be told when it is drawn."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers


def run_lengths(shape: Any, height: int, width: int) -> array:
    """Lengths in px, column by column: outside, inside, outside and so on; their sum is the image's size.

    Raises:
        ValueError: when polygons or run lengths are malformed, or of another size.
    """
    if isinstance(shape, list):
        return outlined(shape, height, width)
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = uncompressed(counts)
    if not isinstance(counts, array):
        raise ValueError("its run lengths have no counts that are whole numbers or a text")
    if shape.get("size") != [height, width]:
        raise ValueError(
            f"its run lengths are of size {shape.get('size')!r:.40}, and the image of [{height}, {width}]"
        )
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(counts)} px, and the image has {height * width}"
        )
    return counts


def outlined(polygons: list, height: int, width: int) -> array:
    """The run lengths of polygons together, as pycocotools draws them.

    Raises:
        ValueError: when one is malformed.
    """
    from pycocotools.mask import frPyObjects, merge

    if not polygons:
        raise ValueError("its segmentation is empty; a box is no outline")
    for polygon in polygons:
        check_polygon(polygon, height, width)
    runs = merge(frPyObjects([list(polygon) for polygon in polygons], height, width))
    return uncompressed(runs["counts"].decode())


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raises ValueError unless it is three points or more, no farther outside than the image is large."""
    if not isinstance(polygon, array):
        raise ValueError("its polygon isn't a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"its polygon has {len(polygon)} numbers; x and y of three points or more are needed"
        )
    far = max(height, width)
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        if not all(map(math.isfinite, numbers)) or min(numbers) < -far or max(numbers) > side + far:
            raise ValueError(f"its polygon lies far outside of the image of {height}x{width} px")


def uncompressed(text: str) -> array:
    """The counts of COCO's compressed form; pycocotools would read past the end of what is cut off.

    Five bits a character, the lowest first; from the fourth on a count is the difference to the last but one.

    Raises:
        ValueError: when it isn't such a text.
    """
    counts, value, shift = array("q"), 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError("its run lengths are no compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return counts


def filled(counts: array) -> np.ndarray:
    """Whether each pixel is inside, column by column: (W * H,) bool."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)
