"""VGG Image Annotator (VIA 2): a JSON for all images, saved as a project or exported."""

from pathlib import Path
from typing import Any

from seg.data.datasets.outlines import UNNAMED, Outline, as_ring, ellipse_ring, rectangle_ring
from seg.data.datasets.tools.parsing import (
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    read_matching_json,
)
from seg.errors import DataError

MARKS = ('"_via_', '"shape_attributes"')
CLASS_ATTRIBUTES = ("class", "label", "name", "type", "category")


def find_images(content: Any) -> list[dict] | None:
    """Return the images of a JSON; None if it isn't VIA's."""
    if not isinstance(content, dict):
        return None
    images = list(content.get("_via_img_metadata", content).values())
    if not images or not all(
        isinstance(image, dict) and {"filename", "regions"} <= set(image) for image in images
    ):
        return None
    return images


def matches_format(content: Any) -> bool:
    """Return True if a JSON is VIA's."""
    return find_images(content) is not None


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://www.robots.ox.ac.uk/~vgg/software/via) of a JSON, or of those of a folder.

    Images without a region count as not annotated, since a project lists every image. The class is the region
    attribute called class, label, name, type or category, or the only one.
    """
    annotated = []
    for file, content in read_matching_json(place, (".json",), matches_format, MARKS):
        rows = [(image, list_regions(image)) for image in find_images(content) or ()]
        attribute = find_attribute(file, [region for _, regions in rows for region in regions])

        def build_outline(number: int, region: dict, attribute: str | None = attribute) -> Outline | str:  # fmt: skip
            return region_outline(number, region, attribute)

        annotated += [
            build_image(file, str(image["filename"]), None, regions, build_outline)
            for image, regions in rows
            if regions
        ]
    return ToolAnnotations(annotated)


def list_regions(image: dict) -> list:
    """Return the regions of an image, which older versions keep in a dictionary."""
    regions = image["regions"]
    return list(regions.values()) if isinstance(regions, dict) else list(regions or [])


def find_attribute(file: Path, regions: list) -> str | None:
    """Return the region attribute that names the class; None if regions have no attributes.

    Raises:
        DataError: if there are several.
    """
    names: dict[str, None] = {}
    for region in regions:
        if isinstance(region, dict) and isinstance(region.get("region_attributes"), dict):
            names |= dict.fromkeys(region["region_attributes"])
    known = [name for name in CLASS_ATTRIBUTES if name in names]
    if len(names) > 1 and not known:
        raise DataError(
            f"{file}: regions have the attributes {', '.join(names)}; call the one that names the class 'class'"
        )
    return known[0] if known else next(iter(names), None)


def region_outline(number: int, region: dict, attribute: str | None) -> Outline | str:
    """Return the outline of a region; its kind if it has no area."""
    shape = region["shape_attributes"]
    kind = shape["name"]
    if kind in ("point", "polyline"):
        return kind
    label = UNNAMED if attribute is None else region_label(region["region_attributes"][attribute])
    if kind == "polygon":
        points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
        return Outline(number, label, [[as_ring(points)]])
    if kind == "rect":
        x, y, width, height = as_numbers(shape[key] for key in ("x", "y", "width", "height"))
        return Outline(number, label, [[rectangle_ring(x, y, x + width, y + height)]])
    if kind == "circle":
        x, y, r = as_numbers(shape[key] for key in ("cx", "cy", "r"))
        return Outline(number, label, [[ellipse_ring(x, y, r, r)]])
    if kind == "ellipse":
        x, y, rx, ry = as_numbers(shape[key] for key in ("cx", "cy", "rx", "ry"))
        (angle,) = as_numbers([shape.get("theta", 0)])  # radians
        return Outline(number, label, [[ellipse_ring(x, y, rx, ry, angle)]])
    raise ValueError(f"shape {kind!r:.40} is not read; polygon, rect, circle and ellipse are")


def region_label(value: Any) -> str:
    """Return the label of an attribute's value, a text or the one ticked option."""
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        if len(ticked) != 1:
            raise ValueError(f"{len(ticked)} classes are ticked; one is needed")
        value = ticked[0]
    return as_label(value)
