"""Label Studio: the JSON of a project's tasks; polygons, brush masks, rectangles and ellipses.

Its PNG export names the task of a mask, not its image, so that the JSON is needed; COCO and YOLO exports are read
by ``data=coco`` and ``data=yolo``.
"""

import math
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from seg.data.datasets.outlines import (
    Outline,
    as_ring,
    ellipse_ring,
    pack_bitmap,
    rectangle_ring,
    rotation_matrix,
)
from seg.data.datasets.tools.parsing import (
    MAX_BITMAP_PIXELS,
    ToolAnnotations,
    as_label,
    as_numbers,
    build_image,
    list_files,
    read_matching_json,
    state_size,
)
from seg.data.image_files import IMAGE_SUFFIXES
from seg.errors import DataError

MARKS = ('"completed_by"', '"from_name"')
SHAPES = {
    "brush",
    "polygon",
    "rectangle",
    "ellipse",
}  # of regions whose label is a result of its own
WITHOUT_AREA = {"keypoint", "keypointlabels", "vector", "vectorlabels"}
PNG_EXPORT = "task-*-annotation-*-by-*.png"


def list_tasks(content: Any) -> list[dict]:
    """Return the tasks of a JSON; [] if it is not Label Studio's."""
    tasks = content if isinstance(content, list) else [content]
    full = [
        one for one in tasks if isinstance(one, dict) and isinstance(one.get("annotations"), list)
    ]
    return full if tasks and len(full) == len(tasks) and all("data" in one for one in full) else []


def is_short_export(content: Any) -> bool:
    """Return True if a JSON is the export JSON-MIN, which lacks the types of the regions."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and {"annotation_id", "annotator"} <= set(first)


def matches_format(content: Any) -> bool:
    """Return True if a JSON is Label Studio's."""
    return bool(list_tasks(content)) or is_short_export(content)


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://labelstud.io/guide/task_format) of a JSON, or of those of a folder; others are left out.

    Tasks without an annotation count as not annotated.

    Raises:
        DataError: if a file is malformed or of another export, or a task has several annotations.
    """
    images, masks = [], list_brush_images(place)
    for file, content in read_matching_json(place, (".json",), matches_format, MARKS):
        if is_short_export(content):
            raise DataError(f"{file}: Label Studio's export JSON-MIN; export JSON")
        for task in list_tasks(content):
            results = choose_results(file, task)
            if results is None:
                continue
            size = next((size for row in results if (size := stated_size(row))), None)
            name = find_image_name(file, task)
            images.append(build_image(file, name, size, results, build_outline))
    if masks and not images:
        raise DataError(
            f"{masks[0]}: Label Studio's export PNG, which does not say of which images; export JSON too"
        )
    return ToolAnnotations(images, None, frozenset(masks))


def list_brush_images(place: Path) -> list[Path]:
    """Return the files of the export PNG in a folder."""
    return [file for file in list_files(place, (".png",)) if file.match(PNG_EXPORT)]


def choose_results(file: Path, task: dict) -> list[dict] | None:
    """Return the regions of a task's annotation: the only one, or the only ground truth; None without any.

    Raises:
        DataError: if there are several.
    """
    made = [one for one in task["annotations"] if not one.get("was_cancelled")]
    truth = [one for one in made if one.get("ground_truth")]
    if len(chosen := made if len(made) < 2 else truth) != 1:
        if not made:
            return None
        raise DataError(
            f"{file}: task {task.get('id')} has {len(made)} annotations; mark one as ground truth, or delete the others"
        )
    rows = chosen[0].get("result") or []
    labelled = {row.get("id") for row in rows if str(row.get("type")).endswith("labels")}
    return [
        row
        for row in rows
        if str(row.get("type")).endswith("labels")
        or row.get("type") in WITHOUT_AREA
        or (row.get("type") in SHAPES and row.get("id") not in labelled)
    ]


def stated_size(row: dict) -> tuple[int, int] | None:
    """Return the height and width of the image that a region states."""
    return state_size(row.get("original_height"), row.get("original_width"))


def find_image_name(file: Path, task: dict) -> str:
    """Return the image of a task, the first of its data that is called like one.

    Raises:
        DataError: if there is none.
    """
    values = task["data"].values() if isinstance(task["data"], dict) else []
    for value in [*values, task.get("file_upload")]:
        if not isinstance(value, str):
            continue
        parts = urlsplit(value)
        name = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]  # ?d= of local files
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return name
    raise DataError(f"{file}: task {task.get('id')} names no image; export the project again")


def build_outline(number: int, row: dict) -> Outline | str:
    """Return the outline of a region; its kind if it has no area."""
    kind, value = row["type"], row["value"]
    if kind in WITHOUT_AREA:
        return kind
    names = value.get(kind) if kind.endswith("labels") else []
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(f"it has the labels {names!r:.60}; one is needed")
    label, size = as_label(names[0]), stated_size(row)
    if size is None:
        raise ValueError("no original_width and original_height")
    if row.get("image_rotation"):
        raise ValueError(f"its image was turned by {row['image_rotation']} degrees; turn it back")
    height, width = size
    if "rle" in value:
        return Outline(number, label, [], pack_bitmap(decode_brush(value["rle"], height, width)))
    share = np.array([width, height]) / 100  # coordinates are in percent
    turn = math.radians(as_numbers([value.get("rotation") or 0])[0])
    if "points" in value:
        return Outline(number, label, [[as_ring(as_ring(value["points"]) * share)]])
    x, y = as_numbers([value["x"], value["y"]]) * share
    if "radiusX" in value:
        rx, ry = as_numbers([value["radiusX"], value["radiusY"]]) * share
        return Outline(number, label, [[ellipse_ring(x, y, rx, ry, turn)]])
    w, h = as_numbers([value["width"], value["height"]]) * share
    corners = rectangle_ring(0, 0, w, h) @ rotation_matrix(turn)  # about the upper left corner
    return Outline(number, label, [[as_ring(corners + np.array([x, y]))]])


def decode_brush(values: Any, height: int, width: int) -> np.ndarray:
    """Return the pixels (H, W) bool of a brush mask: where the alpha of its RGBA image is not 0.

    Raises:
        ValueError: if it is malformed or of another size.
    """
    pixels = decode_rle(values)
    if len(pixels) != height * width * 4:
        raise ValueError(f"its rle has {len(pixels)} values; {height}x{width}x4 are needed")
    return pixels.reshape(height, width, 4)[..., 3] > 0


def decode_rle(values: Any) -> np.ndarray:
    """Return the values of Label Studio's run lengths, (N,) uint32.

    The bits hold N (32 bits), the values' size - 1 (5), four sizes - 1 of run lengths (4 each), and then runs: 1
    for one repeated value or 0 for single values, the index of the size (2), the length - 1, and the values
    (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack).

    Raises:
        ValueError: if they are malformed.
    """
    try:
        content = bytes(values)
    except (TypeError, ValueError):
        raise ValueError("its rle is not a list of bytes") from None
    bits, place = "".join(f"{byte:08b}" for byte in content), 0

    def read_number(size: int) -> int:
        nonlocal place
        if place + size > len(bits):
            raise ValueError("its rle is truncated")
        place += size
        return int(bits[place - size : place], 2)

    total, word = read_number(32), read_number(5) + 1
    sizes = [read_number(4) + 1 for _ in range(4)]
    if total > 4 * MAX_BITMAP_PIXELS:
        raise ValueError(f"its rle has {total} values; too many")
    out, done = np.zeros(total, np.uint32), 0
    while done < total:
        repeated = read_number(1)
        count = read_number(sizes[read_number(2)]) + 1
        if done + count > total:
            raise ValueError(f"its rle has more than {total} values")
        run = read_number(word) if repeated else [read_number(word) for _ in range(count)]
        out[done : done + count] = run
        done += count
    return out
