"""Outlines of annotated objects, and how they are drawn.

A coordinate is measured in px from the upper left corner of the image: pixel (row, column) covers row..row + 1 and
column..column + 1. A pixel belongs to an outline if its centre lies inside; of two outlines that share an edge
through a centre, the pixel belongs to the one on the right or below.
"""

from typing import NamedTuple

import numpy as np

from seg.data.masks import shorten_list

UNNAMED = "object"  # label of objects to which the tool gives none
MAX_COORDINATE = 1e7  # px; larger ones are errors
CROSSINGS = 2**21  # of edges with rows, at a time: limits the memory
CIRCLE_POINTS = 256  # of a circle or ellipse as a polygon


class Bitmap(NamedTuple):
    """Pixels of an object.

    Attributes:
        top: first row in the image.
        left: first column.
        shape: height and width, px.
        bits: of ``np.packbits``.
    """

    top: int
    left: int
    shape: tuple[int, int]
    bits: np.ndarray


class Outline(NamedTuple):
    """One annotated object.

    Attributes:
        number: its place in the file, from 1, for messages.
        label: name of its class in the tool.
        polygons: each a list of rings (N, 2) of x and y; inside is what an odd number of rings encloses, so that
            holes and islands in holes need no mark. The object is the union of the polygons and of ``bitmap``.
        bitmap: its pixels, or None.
    """

    number: int
    label: str
    polygons: list[list[np.ndarray]]
    bitmap: Bitmap | None = None


class DrawnOutline(NamedTuple):
    """Pixels of an outline in the smallest window of the image that holds it.

    Attributes:
        rows: of the window.
        columns: of the window.
        inside: (h, w) bool.
    """

    rows: slice
    columns: slice
    inside: np.ndarray


def pack_bitmap(inside: np.ndarray, top: int = 0, left: int = 0) -> Bitmap:
    """Return the bitmap of a mask (h, w) bool whose upper left pixel is (top, left) in the image."""
    return Bitmap(top, left, (inside.shape[0], inside.shape[1]), np.packbits(inside))


def as_ring(points: object) -> np.ndarray:
    """Return a ring (N, 2) float64 of x and y.

    Raises:
        ValueError: if the points are malformed.
    """
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its points are not pairs of numbers") from None
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError("its points are not pairs of numbers")
    if len(ring) < 3:
        raise ValueError(f"an outline of {len(ring)} points; three or more are needed")
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        raise ValueError("a coordinate is not a finite number of pixels")
    return ring


def rectangle_ring(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Return the ring of a rectangle between two corners."""
    return as_ring([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse_ring(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Return a polygon of an ellipse's area.

    Args:
        x: of the centre.
        y: of the centre.
        rx: half axis along x.
        ry: half axis along y.
        angle: rotation in radians, from x to y.
    """
    t = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    step = 2 * np.pi / CIRCLE_POINTS
    scale = np.sqrt(step / np.sin(step))  # the polygon has the ellipse's area
    ring = scale * np.stack([rx * np.cos(t), ry * np.sin(t)], 1)
    return as_ring(ring @ rotation_matrix(angle) + (x, y))


def rotate_ring(ring: np.ndarray, angle: float) -> np.ndarray:
    """Return a ring turned about the mean of its points by an angle in radians, from x to y."""
    centre = ring.mean(0)
    return as_ring((ring - centre) @ rotation_matrix(angle) + centre)


def rotation_matrix(angle: float) -> np.ndarray:
    """Return the matrix that turns rows of x and y by an angle in radians, from x to y."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def draw_outline(outline: Outline, height: int, width: int, normalized: bool) -> DrawnOutline:
    """Return the pixels of an outline; what lies outside the image is cut off.

    Args:
        outline: the object.
        height: H of the image, px.
        width: W of the image, px.
        normalized: True if coordinates are shares of the image's width and height.
    """
    scale = (width, height) if normalized else (1, 1)
    polygons = [[ring * scale for ring in rings] for rings in outline.polygons]
    rows, columns = bounding_window(polygons, outline.bitmap, height, width)
    inside = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    if inside.size == 0:
        return DrawnOutline(rows, columns, inside)
    for rings in polygons:
        inside |= fill_rings(rings, rows, columns)
    if (bitmap := outline.bitmap) is not None:
        area = bitmap.shape[0] * bitmap.shape[1]
        pixels = np.unpackbits(bitmap.bits, count=area).reshape(bitmap.shape).astype(bool)
        top, left = max(rows.start, bitmap.top), max(columns.start, bitmap.left)
        part = pixels[top - bitmap.top : rows.stop - bitmap.top]
        part = part[:, left - bitmap.left : columns.stop - bitmap.left]
        inside[top - rows.start :, left - columns.start :][: part.shape[0], : part.shape[1]] |= part
    return DrawnOutline(rows, columns, inside)


def bounding_window(
    polygons: list[list[np.ndarray]], bitmap: Bitmap | None, height: int, width: int
) -> tuple[slice, slice]:
    """Return the rows and columns of the image that polygons and a bitmap reach."""
    corners = [ring for rings in polygons for ring in rings]
    if bitmap is not None:
        far = (bitmap.left + bitmap.shape[1], bitmap.top + bitmap.shape[0])
        corners.append(np.array([(bitmap.left, bitmap.top), far], np.float64))
    if not corners:
        return slice(0, 0), slice(0, 0)
    points = np.concatenate(corners)
    low = np.floor(points.min(0)).clip(0, (width, height)).astype(int)
    high = np.ceil(points.max(0)).clip(0, (width, height)).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def fill_rings(rings: list[np.ndarray], rows: slice, columns: slice) -> np.ndarray:
    """Return the pixels of a window whose centres an odd number of rings encloses, (h, w) bool.

    For each row of centres, the columns are found where an edge crosses it; between an odd and an even crossing
    pixels are inside. Time grows with the rows that edges cross, not with points times pixels as in
    ``skimage.draw.polygon``, which takes 8 s for a traced cell of 800 px.
    """
    height, width = rows.stop - rows.start, columns.stop - columns.start
    start = np.concatenate(rings) - (columns.start, rows.start)
    stop = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) - (
        columns.start,
        rows.start,
    )
    # Rows whose centre lies between the ends of an edge: from first to before last.
    first = np.ceil(np.minimum(start[:, 1], stop[:, 1]) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(start[:, 1], stop[:, 1]) - 0.5).clip(0, height).astype(np.int64)
    crossed = np.flatnonzero(last > first)
    changes = np.zeros(
        height * (width + 1), np.uint8
    )  # number of crossings left of a centre, mod 2
    counts = (last - first)[crossed]
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // CROSSINGS)) + 1
    for edges in np.split(crossed, cuts):
        count = (last - first)[edges]
        edge = np.repeat(edges, count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        slope = (stop[edge, 0] - start[edge, 0]) / (stop[edge, 1] - start[edge, 1])
        x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope
        column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
        np.bitwise_xor.at(changes, row * (width + 1) + column, 1)
    parity = np.bitwise_xor.accumulate(changes.reshape(height, width + 1), axis=1)
    return parity[:, :width].astype(bool)


def describe_labels(labels: set[str]) -> str:
    """Return labels as text, for messages."""
    return shorten_list(sorted(labels))
