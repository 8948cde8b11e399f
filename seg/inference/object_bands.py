"""Objects of an image of any size: labelled in bands of rows, and merged over their borders.

The labels equal those of ``seg.metrics.instances.segment_objects`` for the whole image. Memory depends on the image's
width and the number of regions, not on its height.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from seg.errors import DataError
from seg.inference.band_writer import BandWriter
from seg.metrics.instances import split_necks
from seg.objects import first_pixels, grow_objects, label_components, rank_by_position

BAND_PIXELS = 2**20  # pixels of a band
SPLIT_PIXELS = 2**21  # pixels of a band of objects that are split together
MAX_WINDOW_PIXELS = 2**26  # pixels of the largest window in memory

ReadRows = Callable[[int, int], NDArray]
Box = tuple[int, int, int, int]  # first row, row after the last, and the same columns


class LabelledRegions(NamedTuple):
    """4-connected regions of a mask, in pieces: those of each band.

    Attributes:
        regions: number of the region of each piece; the first is 0 for the background.
        groups: number of its 8-connected region.
        boxes: first row, row after the last, first column, column after the last of each piece (N, 4).
    """

    regions: NDArray[np.int32]
    groups: NDArray[np.int32]
    boxes: NDArray[np.int32]


def iterate_bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each band, and the row after its last one."""
    step = max(1, BAND_PIXELS // width)
    for top in range(0, height, step):
        yield top, min(height, top + step)


def read_context(read: ReadRows, height: int, top: int, bottom: int, px: int) -> NDArray:
    """Return rows with ``px`` rows above and below; those outside the image are 0."""
    first, last = max(0, top - px), min(height, bottom + px)
    return np.pad(read(first, last), ((first - top + px, bottom + px - last), (0, 0)))


def segment_bands(
    read: ReadRows,
    scratch: list[BandWriter],
    threshold: float = 0.5,
    split_neck_px: float | None = None,
    min_size: int = 16,
    border: int = 0,
) -> Iterator[NDArray[np.int32]]:
    """Yield the labels of a page band by band: those of ``segment_objects``.

    Args:
        read: returns rows of the probability of being inside an object.
        scratch: three empty writers of int32, of one page; their rows are of no further use.
        threshold: as the other arguments, of ``segment_objects``.
        split_neck_px: px by which objects are split at their necks; None: no splitting.
        min_size: px of the smallest object.
        border: px that two touching objects lack.

    Raises:
        DataError: if ``split_neck_px`` is given and an object is too large.
    """
    height, width = scratch[0].height, scratch[0].width
    found = label_bands(read, threshold, scratch[0], corners=split_neck_px is not None)
    numbers = found.regions

    def labels(top: int, bottom: int) -> NDArray[np.int32]:
        return numbers[pieces.rows(0, top, bottom)]

    pieces = scratch[0]
    if split_neck_px is not None:
        numbers, pieces = split_bands(pieces, found, split_neck_px, scratch[1]), scratch[1]
    if border > 0:
        grow_bands(labels, border, scratch[2])
        numbers, pieces = np.arange(len(numbers), dtype=np.int32), scratch[2]
    # Small objects become background, the others are numbered in their order.
    area = np.zeros(len(numbers), np.int64)
    for top, bottom in iterate_bands(height, width):
        area += np.bincount(labels(top, bottom).ravel(), minlength=len(area))
    area[0] = 0
    kept = area >= min_size
    final = (np.cumsum(kept, dtype=np.int32) * kept)[numbers]
    for top, bottom in iterate_bands(height, width):
        yield final[pieces.rows(0, top, bottom)]


def label_bands(
    read: ReadRows, threshold: float, pieces: BandWriter, corners: bool
) -> LabelledRegions:
    """Label the regions of each band, write them, and return those that are one region of the image.

    Args:
        read: returns rows of the probability of being inside an object.
        threshold: probability above which a pixel is inside.
        pieces: receives the number of the piece of each pixel.
        corners: find the 8-connected regions, too.
    """
    number, above = 0, np.zeros((1, pieces.width), np.int32)
    sides, diagonals, boxes = [], [], [np.zeros((1, 4), np.int32)]
    for top, bottom in iterate_bands(pieces.height, pieces.width):
        labels = label_components(read(top, bottom) > threshold)
        count = int(labels.max(initial=0))
        if number + count > np.iinfo(np.int32).max:
            raise DataError(f"more than {np.iinfo(np.int32).max} regions")
        if corners:
            found = [
                (top + y.start, top + y.stop, x.start, x.stop) for y, x in find_objects(labels)
            ]
            boxes.append(np.array(found, np.int32).reshape(-1, 4))
        labels[labels > 0] += number
        number += count
        pieces.add(labels)
        sides.append(touching_pairs(above, labels[:1]))
        if corners:
            rows = np.concatenate([above, labels])
            diagonals.append(touching_pairs(rows[:-1, 1:], rows[1:, :-1]))
            diagonals.append(touching_pairs(rows[:-1, :-1], rows[1:, 1:]))
        above = labels[-1:].copy()
    regions = merge_pieces(sides, number)
    groups = merge_pieces([*sides, *diagonals], number) if corners else regions
    return LabelledRegions(regions, groups, np.concatenate(boxes))


def touching_pairs(first: NDArray, second: NDArray) -> NDArray[np.int32]:
    """Return the pairs (N, 2) of different labels, each once, of the pixels of two arrays of one shape."""
    both = (first > 0) & (second > 0) & (first != second)
    pairs = np.unique(first[both].astype(np.int64) << 32 | second[both])
    return np.stack([pairs >> 32, pairs & (2**32 - 1)], 1).astype(np.int32)


def merge_pieces(pairs: list[NDArray[np.int32]], number: int) -> NDArray[np.int32]:
    """Return the smallest number of the pieces that are connected with each of 0, 1 ... ``number``."""
    numbers = np.arange(number + 1, dtype=np.int32)
    pieces, index = np.unique(np.concatenate(pairs), return_inverse=True)
    first, second = index.reshape(-1, 2).T
    if not len(pieces):
        return numbers
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(pieces),) * 2)
    count, whole = connected_components(graph, directed=False)
    smallest = np.full(count, number, np.int32)
    np.minimum.at(smallest, whole, pieces)
    numbers[pieces] = smallest[whole]
    return numbers


def split_bands(
    pieces: BandWriter, found: LabelledRegions, split_neck_px: float, out: BandWriter
) -> NDArray[np.int32]:
    """Split the objects at their necks, write their labels, and return the number of each in reading order.

    The 8-connected regions that begin in a band are split together, in a window that has all of their rows; those that
    are taller than a band one by one, so that the time is linear in the area.

    Raises:
        DataError: if an object does not fit into memory.
    """
    width, step = pieces.width, max(1, SPLIT_PIXELS // pieces.width)
    boxes = group_boxes(found)
    tall = boxes[:, 1] - boxes[:, 0] > step
    first, number, pending = [np.full(1, -1)], 0, []
    for top in range(0, pieces.height, step):
        bottom = min(pieces.height, top + step)
        begins = (boxes[:, 0] >= top) & (boxes[:, 0] < bottom)
        short = begins & ~tall
        end = int(boxes[short, 1].max(initial=bottom))
        labels = split_necks(short[found.groups[pieces.rows(0, top, end)]], split_neck_px)
        windows = [((top, 0), labels)]
        for group in np.flatnonzero(begins & tall):
            windows.append(split_group(pieces, found.groups, group, boxes[group], split_neck_px))
        for (row, column), labels in windows:
            rows, columns = np.divmod(first_pixels(labels)[1:], labels.shape[1])
            first.append((rows + row) * width + columns + column)
            rows, columns = np.nonzero(labels)
            pixels = (rows + row) * width + columns + column
            pending.append((pixels, labels[rows, columns] + np.int32(number)))
            number += len(first[-1])
        rows, pending = split_off_rows(pending, top, bottom, width)
        out.add(rows)
    return rank_by_position(np.concatenate(first))


def group_boxes(found: LabelledRegions) -> NDArray[np.int32]:
    """Return the boxes of the 8-connected regions (N, 4), as of the pieces, at the number of their first piece.

    Those of the background and of other numbers are -1.
    """
    groups, boxes = found.groups, found.boxes.copy()
    for side, join in enumerate((np.minimum, np.maximum, np.minimum, np.maximum)):
        join.at(boxes[:, side], groups, found.boxes[:, side])
    boxes[groups != np.arange(len(groups))] = -1
    boxes[0] = -1
    return boxes


def split_group(
    pieces: BandWriter, groups: NDArray, group: int, box: NDArray, split_neck_px: float
) -> tuple[tuple[int, int], NDArray[np.int32]]:
    """Return the row and column of the box of an 8-connected region, and the labels of its objects in it."""
    top, bottom, left, right = box.tolist()
    if (bottom - top) * (right - left) > MAX_WINDOW_PIXELS:
        raise DataError(
            f"an object of {bottom - top}x{right - left} px; objects.split_neck_px={split_neck_px:g} needs it in memory, "
            f"of at most {MAX_WINDOW_PIXELS / 1e6:.0f} megapixels: give objects.split_neck_px=0, or cut the image"
        )
    mask = groups[pieces.window(top, bottom, left, right)] == group
    return (top, left), split_necks(mask, split_neck_px)


# pixels in reading order, and their labels
LabelledPixels = tuple[NDArray[np.int64], NDArray[np.int32]]


def split_off_rows(
    parts: list[LabelledPixels], top: int, bottom: int, width: int
) -> tuple[NDArray[np.int32], list[LabelledPixels]]:
    """Return the labels of rows ``top`` to ``bottom`` of objects that share no pixel, and what is below these rows."""
    rows, below = np.zeros((bottom - top) * width, np.int32), []
    for pixels, labels in parts:
        end = np.searchsorted(pixels, bottom * width)
        rows[pixels[:end] - top * width] = labels[:end]
        if end < len(pixels):
            below.append((pixels[end:].copy(), labels[end:].copy()))
    return rows.reshape(-1, width), below


def grow_bands(read: ReadRows, border: int, out: BandWriter) -> None:
    """Grow objects by the border between them, as ``grow_objects``, and write their labels."""
    reach = 2 * border + 1
    for top, bottom in iterate_bands(out.height, out.width):
        labels = read_context(read, out.height, top, bottom, reach)
        present = np.unique(np.append(labels, 0))
        grown = present[grow_objects(np.searchsorted(present, labels).astype(np.int32), border)]
        out.add(grown[reach : len(grown) - reach])
