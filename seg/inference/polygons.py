"""Outlines of predicted objects, as files of annotation tools: GeoJSON of QuPath, JSON of LabelMe, ROIs of ImageJ and COCO.

An object is a region of a class whose pixels touch by their sides. Its outline follows the borders of its pixels,
in whole numbers of px from the image's upper left corner, so that drawing it gives exactly the same pixels.
"""

import base64
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

from seg.data.datasets.coco_json import count_runs
from seg.version import __version__

NAMESPACE = uuid.UUID("1f0b8e9a-7c0b-4d0e-9a51-6f1d5c9f6a3e")  # of the objects' ids


class TracedObject(NamedTuple):
    """A predicted object.

    Attributes:
        index: of its class.
        rings: (N, 2) int of x and y, px: the outline, then its holes.
        left: first column of its window.
        top: first row of its window.
        inside: (h, w) bool, the pixels of the window that belong to it.
    """

    index: int
    rings: list[np.ndarray]
    left: int
    top: int
    inside: np.ndarray


def trace_labels(labels: np.ndarray) -> Iterator[TracedObject]:
    """Yield the objects of class 1 by their labels (H, W), each the largest region of its pixels."""
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        regions, _ = ndimage.label(labels[rows, columns] == number)
        inside = regions == np.bincount(regions[regions > 0]).argmax()
        offset = (columns.start, rows.start)
        yield TracedObject(1, [ring + offset for ring in trace_rings(inside)], *offset, inside)


def trace_mask(mask: np.ndarray, num_classes: int) -> Iterator[TracedObject]:
    """Yield the objects of a mask (H, W) of class indices, without class 0; of planes (K, H, W) those of each."""
    for index in range(0 if mask.ndim == 3 else 1, num_classes):
        plane = mask[index] == 1 if mask.ndim == 3 else mask == index
        labels, _ = ndimage.label(plane)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[rows, columns] == number
            offset = (columns.start, rows.start)
            rings = [ring + offset for ring in trace_rings(inside)]
            yield TracedObject(index, rings, *offset, inside)


def trace_rings(inside: np.ndarray) -> list[np.ndarray]:
    """Return the borders of a region (h, w) bool whose pixels touch by their sides: outline, then holes.

    OpenCV's contours pass the centres of border pixels. In an image of twice the size these lie half a small pixel
    from the border, and rounding moves them onto it; those of holes too, which OpenCV draws around the hole.
    """
    doubled = inside.repeat(2, 0).repeat(2, 1).astype(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [corners_of((contour[:, 0].astype(np.int64) + 1) // 2) for contour in contours]
    areas = [np.ptp(ring, axis=0).prod() for ring in rings]
    rings.insert(0, rings.pop(int(np.argmax(areas))))  # the outline is the largest
    return rings


def corners_of(ring: np.ndarray) -> np.ndarray:
    """Return a ring without repeated points and points on a straight line."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def as_geojson(
    objects: Iterator[TracedObject], classes: list[str], colors: list[tuple[int, int, int]], name: str
) -> str:  # fmt: skip
    """Return the text of a GeoJSON that QuPath opens: annotations with class, colour and measurements.

    Args:
        objects: those of the mask.
        classes: names.
        colors: (red, green, blue) of each class.
        name: of the image; ids follow from it.
    """
    features = []
    for number, one in enumerate(objects, start=1):
        rows, columns = np.nonzero(one.inside)
        measured = {
            "Area px^2": len(rows),
            "Centroid X px": round(float(columns.mean()) + one.left + 0.5, 2),
            "Centroid Y px": round(float(rows.mean()) + one.top + 0.5, 2),
        }
        closed = [[*ring.tolist(), ring[0].tolist()] for ring in one.rings]
        properties = {
            "objectType": "annotation",
            "classification": {"name": classes[one.index], "color": list(colors[one.index])},
            "measurements": measured,
        }
        features.append({
            "type": "Feature",
            "id": str(uuid.uuid5(NAMESPACE, f"{name} {number}")),
            "geometry": {"type": "Polygon", "coordinates": closed},
            "properties": properties,
        })  # fmt: skip
    return json.dumps({"type": "FeatureCollection", "features": features})


def as_labelme(
    objects: Iterator[TracedObject], classes: list[str], image: Path, folder: Path, size: tuple[int, int]
) -> str:  # fmt: skip
    """Return the text of a JSON that LabelMe opens: polygons, and bitmaps for objects with holes.

    Args:
        objects: those of the mask.
        classes: names.
        image: the image's file.
        folder: of the JSON.
        size: height and width of the image, px.
    """
    shapes = []
    for one in objects:
        shape: dict[str, Any] = {"label": classes[one.index], "group_id": None, "flags": {}}
        if len(one.rings) == 1:
            shape |= {"shape_type": "polygon", "points": one.rings[0].astype(float).tolist()}
        else:
            height, width = one.inside.shape
            far = [one.left + width - 1, one.top + height - 1]
            stream = io.BytesIO()
            Image.fromarray(one.inside.astype(np.uint8) * 255).save(stream, "PNG")
            shape |= {
                "shape_type": "mask",
                "points": [[one.left, one.top], far],
                "mask": base64.b64encode(stream.getvalue()).decode(),
            }
        shapes.append(shape)
    content = {
        "version": f"seg {__version__}",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.path.relpath(image, folder),
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    return json.dumps(content, indent=1)


def as_coco(
    objects: Iterator[TracedObject],
    classes: list[str],
    first: int,
    image: str,
    probabilities: np.ndarray,
) -> dict[str, Any]:
    """Return the content of a COCO file of one image: polygons, and run lengths for objects with holes.

    Args:
        objects: those of the mask.
        classes: names.
        first: index of the first class that objects have; its category has the id 1.
        image: name of the image's file.
        probabilities: of the class of each pixel (H, W), or of each class (K, H, W); their mean over an object
            is its score.
    """
    height, width = probabilities.shape[-2:]
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(objects, start=1):
        h, w = one.inside.shape
        window = (slice(one.top, one.top + h), slice(one.left, one.left + w))
        plane = probabilities if probabilities.ndim == 2 else probabilities[one.index]
        outlined: Any = [one.rings[0].ravel().tolist()]
        if len(one.rings) > 1:
            outlined = {"size": [height, width], "counts": count_window(one, height, width)}
        rows.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": one.index - first + 1,
                "segmentation": outlined,
                "bbox": [one.left, one.top, w, h],
                "area": int(one.inside.sum()),
                "iscrowd": 0,
                "score": round(float(plane[window][one.inside].mean()), 4),
            }
        )
    return {
        "info": {"description": f"seg {__version__}"},
        "images": [{"id": 1, "file_name": image, "height": height, "width": width}],
        "annotations": rows,
        "categories": [{"id": i, "name": n} for i, n in enumerate(classes[first:], start=1)],
    }


def count_window(one: TracedObject, height: int, width: int) -> list[int]:
    """Return COCO's run lengths of an object, column by column of the image: outside, inside, outside, ..."""
    h, w = one.inside.shape
    columns = np.zeros((w, height), bool)
    columns[:, one.top : one.top + h] = one.inside.T
    counts = count_runs(columns.ravel()).tolist()
    counts[0] += one.left * height
    counts += [0] * (len(counts) % 2 == 0)  # the last run is outside
    counts[-1] += (width - one.left - w) * height
    return counts if counts[-1] else counts[:-1]


def merge_coco(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return COCO files of the same categories as one; of an image that several name, the last counts."""
    by_image: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for content in contents:
        rows: dict[Any, list[dict[str, Any]]] = {row["id"]: [] for row in content["images"]}
        for row in content["annotations"]:
            rows[row["image_id"]].append(row)
        by_image |= {row["file_name"]: (row, rows[row["id"]]) for row in content["images"]}
    merged = contents[-1] | {"images": [], "annotations": []}
    for key, (image, own) in enumerate(by_image.values(), start=1):
        merged["images"].append(image | {"id": key})
        start = len(merged["annotations"]) + 1
        merged["annotations"] += [
            row | {"id": number, "image_id": key} for number, row in enumerate(own, start)
        ]
    return merged


def as_rois(
    objects: Iterator[TracedObject], classes: list[str], colors: list[tuple[int, int, int]]
) -> bytes:
    """Return the bytes of a zip that ImageJ's ROI manager opens; a ROI's name is its class and a number."""
    roifile: Any = import_module("roifile")  # an extra
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, one in enumerate(objects, start=1):
            name = f"{classes[one.index]}-{number:04d}"
            if len(one.rings) == 1:
                roi = roifile.ImagejRoi.frompoints(one.rings[0], name=name)
            else:
                roi = roifile.ImagejRoi()
                roi.roitype, roi.name = roifile.ROI_TYPE.RECT, name
                roi.left, roi.top = one.left, one.top
                roi.right, roi.bottom = (
                    one.left + one.inside.shape[1],
                    one.top + one.inside.shape[0],
                )
                path: list[float] = []
                for ring in one.rings:
                    for place, (x, y) in enumerate(ring.tolist()):
                        path += [min(place, 1), x, y]  # 0: move to, 1: line to
                    path.append(4)  # close
                roi.multi_coordinates = np.array(path, np.float32)
                roi.shape_roi_size = len(path)
            roi.stroke_color = bytes([255, *colors[one.index]])
            entry = zipfile.ZipInfo(f"{name.replace('/', '_')}.roi")  # a fixed date
            archive.writestr(entry, roi.tobytes())
    return stream.getvalue()
