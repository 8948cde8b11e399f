"""LabelMe: a JSON beside each image, ``a.json`` for ``a.png``."""

from pathlib import Path
from typing import Any

import numpy as np

from seg.data.datasets.outlines import Outline, as_ring, ellipse_ring, pack_bitmap, rectangle_ring
from seg.data.datasets.tools.parsing import (
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    decode_png,
    read_matching_json,
    state_size,
)

MARKS = ('"imagePath"', '"shapes"')


def matches_format(content: Any) -> bool:
    """Return True if a JSON is LabelMe's."""
    return isinstance(content, dict) and {"shapes", "imagePath"} <= set(content)


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://github.com/wkentaro/labelme) of a JSON, or of those of a folder; other JSON files are left out."""
    images = []
    for file, content in read_matching_json(place, (".json",), matches_format, MARKS):
        size = state_size(content.get("imageHeight"), content.get("imageWidth"))
        name = content["imagePath"] if isinstance(content["imagePath"], str) else file.stem
        images.append(build_image(file, name, size, content["shapes"], build_outline))
    return ToolAnnotations(images)


def build_outline(number: int, shape: dict) -> Outline | str:
    """Return the outline of a shape; its kind if it has no area."""
    kind = shape.get("shape_type") or "polygon"
    if kind in ("point", "points", "line", "linestrip"):
        return str(kind)
    label, points = as_label(shape["label"]), shape["points"]
    if kind in ("polygon", "oriented_rectangle"):
        return Outline(number, label, [[as_ring(points)]])
    (x0, y0), (x1, y1) = (as_numbers(point) for point in points[:2])
    if kind == "rectangle":
        return Outline(number, label, [[rectangle_ring(x0, y0, x1, y1)]])
    if kind == "circle":
        radius = float(np.hypot(x1 - x0, y1 - y0))
        return Outline(number, label, [[ellipse_ring(x0, y0, radius, radius)]])
    if kind == "mask":
        pixels = decode_png(shape["mask"])
        return Outline(number, label, [], pack_bitmap(pixels, round(y0), round(x0)))
    raise ValueError(
        f"shape_type {kind!r:.40} is not read; polygon, rectangle, circle and mask are"
    )
