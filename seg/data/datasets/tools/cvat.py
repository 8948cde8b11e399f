"""CVAT: an XML for all images, ``CVAT for images 1.1``."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from seg.data.datasets.outlines import (
    Outline,
    as_ring,
    ellipse_ring,
    pack_bitmap,
    rectangle_ring,
    rotate_ring,
)
from seg.data.datasets.tools.parsing import (
    MAX_BITMAP_PIXELS,
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    list_files,
    read_xml,
)
from seg.errors import DataError

NOT_SHAPES = {"tag", "attribute"}


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://docs.cvat.ai/docs/dataset_management/formats) of an XML, or of those of a folder.

    Other XML files are left out.

    Raises:
        DataError: if a file is malformed, or is CVAT's of a video.
    """
    images, labels = [], []
    for file in list_files(place, (".xml",)):
        root = read_xml(file)
        if root.tag != "annotations" or root.find("version") is None:
            continue
        if root.find("track") is not None:
            raise DataError(f"{file}: tracks of a video; export it as 'CVAT for images 1.1'")
        labels += [text for node in root.iter("label") if (text := node.findtext("name"))]
        for image in root.iter("image"):
            words = [image.get("height", ""), image.get("width", "")]
            size = (int(words[0]), int(words[1])) if all(w.isdecimal() for w in words) else None
            shapes = [node for node in image if node.tag not in NOT_SHAPES]
            images.append(build_image(file, image.get("name", ""), size, shapes, build_outline))
    return ToolAnnotations(images, list(dict.fromkeys(labels)) or None)


def build_outline(number: int, shape: Element) -> Outline | str:
    """Return the outline of a shape; its kind if it has no area."""
    if shape.tag in ("polyline", "points", "skeleton", "cuboid"):
        return shape.tag
    label, values = as_label(shape.get("label")), shape.attrib
    turn = np.deg2rad(as_numbers([values.get("rotation", 0)])[0])
    if shape.tag == "polygon":
        points = [as_numbers(pair.split(",")) for pair in values["points"].split(";")]
        return Outline(number, label, [[as_ring(points)]])
    if shape.tag == "box":
        corners = as_numbers(values[key] for key in ("xtl", "ytl", "xbr", "ybr"))
        return Outline(number, label, [[rotate_ring(rectangle_ring(*corners), turn)]])
    if shape.tag == "ellipse":
        x, y, rx, ry = as_numbers(values[key] for key in ("cx", "cy", "rx", "ry"))
        return Outline(number, label, [[ellipse_ring(x, y, rx, ry, turn)]])
    if shape.tag == "mask":
        return Outline(number, label, [], pack_bitmap(*decode_mask(values)))
    raise ValueError(f"a {shape.tag:.20} is not read; polygon, box, ellipse and mask are")


def decode_mask(values: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """Return the pixels (h, w) bool of a mask, its first row and its first column.

    Run lengths go row by row: outside, inside, outside, ...
    """
    top, left, height, width = (int(values[key]) for key in ("top", "left", "height", "width"))
    counts = np.array([int(word) for word in values["rle"].split(",")], np.int64)
    if min(height, width) < 1 or height * width > MAX_BITMAP_PIXELS:
        raise ValueError(f"its mask has {height}x{width} px")
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise ValueError(f"its run lengths do not cover its {height}x{width} px")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(height, width), top, left
