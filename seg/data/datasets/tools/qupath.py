"""QuPath: GeoJSON of an image's objects, ``a.geojson`` for ``a.tif``."""

from pathlib import Path
from typing import Any

from seg.data.datasets.outlines import UNNAMED, Outline, as_ring
from seg.data.datasets.tools.parsing import (
    ToolAnnotations,
    as_label,
    build_image,
    read_matching_json,
)

MARKS = ('"FeatureCollection"', '"Feature"')


def matches_format(content: Any) -> bool:
    """Return True if a JSON is GeoJSON of objects."""
    if isinstance(content, list):
        return (
            bool(content) and isinstance(content[0], dict) and content[0].get("type") == "Feature"
        )
    return isinstance(content, dict) and content.get("type") in ("FeatureCollection", "Feature")


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://qupath.github.io) of a GeoJSON, or of those of a folder; other JSON files are left out."""
    images = []
    for file, content in read_matching_json(place, (".geojson", ".json"), matches_format, MARKS):
        if isinstance(content, dict):
            content = content.get("features") if "features" in content else [content]
        images.append(build_image(file, file.stem, None, content, build_outline))
    return ToolAnnotations(images)


def build_outline(number: int, feature: dict) -> Outline | str:
    """Return the outline of a feature; its kind if it has no area."""
    properties, geometry = feature.get("properties") or {}, feature["geometry"]
    named = properties.get("classification") or {}
    names = named.get("names") or [named.get("name")]  # several of a derived class
    label = UNNAMED if names == [None] else ": ".join(map(as_label, names))
    plane = geometry.get("plane") or {}
    if plane.get("z", 0) or plane.get("t", 0):
        raise ValueError(f"it lies in the plane {plane}; export one plane for each image")
    kind, coordinates = geometry["type"], geometry["coordinates"]
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return str(kind)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"geometry {kind!r:.40} is not read; Polygon and MultiPolygon are")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    return Outline(number, label, [[as_ring(ring) for ring in rings] for rings in polygons])
