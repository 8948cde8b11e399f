"""Supervisely: ``ann/a.png.json`` for ``img/a.png`` in each folder of a project.

Points are indices of pixels, whose centres the outline passes; half a pixel is added to both coordinates.
"""

from pathlib import Path
from typing import Any

import numpy as np

from seg.data.datasets.outlines import Outline, as_ring, pack_bitmap, rectangle_ring
from seg.data.datasets.tools.parsing import (
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    decode_png,
    read_matching_json,
    state_size,
)

MARKS = ('"geometryType"', '"classTitle"')


def matches_format(content: Any) -> bool:
    """Return True if a JSON is Supervisely's of an image."""
    return (
        isinstance(content, dict) and "objects" in content and isinstance(content.get("size"), dict)
    )


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://docs.supervisely.com) of a JSON, or of those of a folder; others are left out."""
    images = []
    for file, content in read_matching_json(place, (".json",), matches_format, MARKS):
        size = state_size(content["size"].get("height"), content["size"].get("width"))
        image = file.parent.parent / "img" / file.stem
        images.append(build_image(file, image.as_posix(), size, content["objects"], build_outline))
    return ToolAnnotations(images)


def build_outline(number: int, row: dict) -> Outline | str:
    """Return the outline of an object; its kind if it has no area."""
    kind, label = row["geometryType"], as_label(row["classTitle"])
    if kind in ("point", "line", "graph"):
        return kind
    if kind == "bitmap":
        left, top = (int(value) for value in as_numbers(row["bitmap"]["origin"]))
        pixels = decode_png(row["bitmap"]["data"], compressed=True)
        return Outline(number, label, [], pack_bitmap(pixels, top, left))
    exterior = row["points"]["exterior"]
    if kind == "polygon":
        holes = row["points"].get("interior") or []
        return Outline(number, label, [[as_ring(ring) + 0.5 for ring in [exterior, *holes]]])
    if kind == "rectangle":
        corners = np.array([as_numbers(point) for point in exterior])
        low, high = corners.min(0), corners.max(0) + 1  # both corners belong to it
        return Outline(number, label, [[rectangle_ring(*low.tolist(), *high.tolist())]])
    raise ValueError(f"geometryType {kind!r:.40} is not read; polygon, rectangle and bitmap are")
