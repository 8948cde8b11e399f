"""CVAT: an XML for all images, ``CVAT for images 1.1``, or coloured masks, ``Segmentation mask 1.1``."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from scipy import ndimage

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
    AnnotatedImage,
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    list_files,
    pass_over,
    read_annotation_text,
    read_xml,
)
from seg.data.image_io import read_pages
from seg.data.masks import decode_colour, encode_colours
from seg.errors import DataError

NOT_SHAPES = {"tag", "attribute"}
XML_NAME, LABEL_MAP, BACKGROUND = "annotations.xml", "labelmap.txt", "background"
MARKS = ("<annotations",)


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://docs.cvat.ai/docs/dataset_management/formats) of a file, or of those of a folder.

    Other XML files are left out.

    Raises:
        DataError: if a file is malformed, or is CVAT's of a video.
    """
    images, labels, masks = read_masks(place)
    for file in list_files(place, (".xml",)):
        if file.suffix.lower() != ".xml":
            continue  # labelmap.txt, named in the options
        try:
            root = read_xml(file)
        except DataError as error:
            pass_over(file, file if file.name == XML_NAME else place, MARKS, error)
            continue
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
    return ToolAnnotations(images, list(dict.fromkeys(labels)) or None, frozenset(masks))


def read_masks(place: Path) -> tuple[list[AnnotatedImage], list[str], list[Path]]:
    """Return the images and labels of ``Segmentation mask 1.1``, and its mask files.

    ``labelmap.txt`` names the colour of each label, and SegmentationClass/ holds a mask for each image. The masks
    of SegmentationObject/ colour objects, not labels, and are left out.

    Raises:
        DataError: if a file is malformed.
    """
    images, labels, masks = [], [], []
    for labelmap in list_files(place, (LABEL_MAP,)):
        if labelmap.name != LABEL_MAP:
            continue
        colours = read_label_map(labelmap)
        labels += [name for name in colours if name != BACKGROUND]
        objects = list_files(labelmap.parent / "SegmentationObject", (".png",))
        classes = list_files(labelmap.parent / "SegmentationClass", (".png",))
        masks += [*objects, *classes]
        for file in classes:
            index = read_label_indices(file, list(colours.values()), labelmap)
            outlines = [
                Outline(k, name, [], pack_bitmap(index[window] == k, window[0].start, window[1].start))
                for k, (name, window) in enumerate(
                    zip(colours, ndimage.find_objects(index, len(colours)), strict=True), start=1
                )
                if window is not None and name != BACKGROUND
            ]  # fmt: skip
            name = file.relative_to(labelmap.parent / "SegmentationClass").with_suffix("")
            images.append(AnnotatedImage(name.as_posix(), index.shape[:2], file, outlines))
    return images, labels, masks


def read_label_map(file: Path) -> dict[str, list[int]]:
    """Return label -> [red, green, blue] of the lines ``label:r,g,b:parts:actions``.

    Raises:
        DataError: if a line is malformed.
    """
    colours: dict[str, list[int]] = {}
    for number, line in enumerate(read_annotation_text(file).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        words = rest.partition(":")[0].split(",")
        colour = [int(word) for word in words if word.strip().isdecimal()]
        if not name or len(words) != 3 or len(colour) != 3 or max(colour) > 255:
            raise DataError(f"{file}: line {number}: {line:.60}; label:red,green,blue:: is needed")
        if name in colours or colour in colours.values():
            raise DataError(f"{file}: line {number}: {line:.60}; its label or colour occurs twice")
        colours[name] = colour
    return colours


def read_label_indices(file: Path, colours: list[list[int]], labelmap: Path) -> np.ndarray:
    """Return the place of each pixel's label in ``labelmap.txt``, from 1; 0 of black where it is no label's colour.

    A mask of one channel holds the places, from 0.

    Raises:
        DataError: if the mask cannot be read or holds another colour.
    """
    mask = read_pages(file, colours=True)[0]
    if mask.ndim == 2:
        mask, known = mask.astype(np.int64), list(range(len(colours)))
    else:
        mask = encode_colours(mask)
        known = encode_colours(np.array([colours], np.uint8))[0].tolist()
    index = np.zeros(mask.shape, np.int32)
    for place, code in enumerate(known, start=1):
        index[mask == code] = place
    if (others := mask[(index == 0) & (mask != 0)]).size:
        code = int(others[0])
        found = decode_colour(code) if known and mask.dtype == np.uint32 else code
        raise DataError(
            f"{file}: {others.size} pixels of {found}, which {labelmap.name} does not name; export both again"
        )
    return index


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
