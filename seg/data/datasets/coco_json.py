"""Reader of COCO's JSON: images and annotations, each checked before use, and their run lengths.

pycocotools draws polygons; it checks neither the JSON nor run lengths, whose undrawn pixels it leaves undefined.
"""

import json
import logging
import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from seg.data.datasets.base import Task, check_class_names
from seg.data.masks import shorten_list
from seg.errors import DataError
from seg.labels import IGNORE

log = logging.getLogger("seg")
CocoId = int | str
COCO_LAYOUT = "a COCO file holds the lists images, annotations and categories"


class CocoAnnotation(NamedTuple):
    """One annotation.

    Attributes:
        number: its id.
        index: index of its class.
        shape: polygons, each an array of x, y, x, y, ... in px; a dict of run lengths; or a list of both.
        crowd: True if it outlines many objects as one region.
    """

    number: CocoId
    index: int
    shape: Any
    crowd: bool


class CocoImage(NamedTuple):
    """One image.

    Attributes:
        file: path inside ``root``.
        size: height and width that the JSON states, or None.
        source: the JSON file.
        annotations: in the order of the JSON.
    """

    file: str
    size: tuple[Any, Any] | None
    source: Path
    annotations: list[CocoAnnotation]


def read_coco(file: Path) -> dict[str, Any]:
    """Return the content of a COCO file; of annotations only the keys that are used.

    Raises:
        DataError: if it cannot be read or is not JSON.
    """
    try:
        content = json.loads(file.read_text("utf-8-sig"), object_hook=pack_object)
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); {COCO_LAYOUT}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: JSON, but not an object with keys; {COCO_LAYOUT}")
    return content


def pack_object(node: dict[str, Any]) -> dict[str, Any]:
    """Return an object of the JSON with its outlines as arrays and without the unused keys of an annotation."""
    if "counts" in node:
        node["counts"] = pack_numbers("q", node["counts"])
    if "segmentation" in node:
        keys = ("id", "image_id", "category_id", "iscrowd", "segmentation")
        node = {key: node[key] for key in keys if key in node}
        if isinstance(shape := node["segmentation"], list):
            flat = bool(shape) and all(
                isinstance(n, int | float) for n in shape
            )  # one polygon, not in a list
            node["segmentation"] = [
                pack_numbers("d", part) for part in ([shape] if flat else shape)
            ]
    return node


REQUIRED_KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": CocoId, "file_name": str},
    "annotations": {"id": CocoId, "image_id": CocoId, "category_id": CocoId},
    "categories": {"id": CocoId, "name": str},
}


def checked_rows(content: dict[str, Any], key: str, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the items of one of the three lists, checked for the needed keys and a unique id.

    Raises:
        DataError: for the first invalid item.
    """
    # The list itself, then each row: an object with the required keys and an id of its own
    if not isinstance(content.get(key), list):
        raise DataError(f"{file}: no list {key} in it; {COCO_LAYOUT}")
    ids = set()
    for place, row in enumerate(content[key]):
        where = f"{file}: {key}[{place}]"
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object with keys; correct it or remove it")
        for name, kind in REQUIRED_KEYS[key].items():
            if not isinstance(row.get(name), kind):
                value = f"{name}={row[name]!r:.60}" if name in row else f"no {name}"
                raise DataError(f"{where}: {value}; correct it or remove it")
        if row["id"] in ids:
            raise DataError(f"{where}: another of the {key} has the id {row['id']!r}; ids must be unique")  # fmt: skip
        ids.add(row["id"])
        yield row


def choose_classes(
    given: list[str] | None, categories: dict[CocoId, str], task: Task, file: Path
) -> list[str]:
    """Return the names of the classes; the first may stand for pixels without an annotation.

    Args:
        given: the option ``classes``; None: all categories, after background.
        categories: id -> name.
        task: of the data set.
        file: JSON file, for messages.

    Raises:
        DataError: if the names are ambiguous, too few or too many.
    """
    names = list(categories.values())
    overlapping = task == "overlapping"
    # Default: the categories in the order of their ids.
    if given is None:
        order = sorted(categories, key=lambda key: (isinstance(key, str), key))
        ordered = list(dict.fromkeys(categories[key] for key in order))
        if "background" in ordered and not overlapping:
            raise DataError(
                f"{file}: a category is called background; give data.classes: its first class is what no annotation "
                "covers; if it is a category, pixels without an annotation are ignored"
            )
        given = ordered if overlapping else ["background", *ordered]
    # Number and names.
    check_class_names(given)
    if len(given) < (1 if overlapping else 2):
        raise DataError(
            f"data.classes={given}: too few; {file} has the categories {shorten_list(names)}, and the first class is "
            "what no annotation covers, [background,cell]"
        )
    limit = IGNORE - 1 - overlapping
    if len(given) > limit:
        raise DataError(
            f"{file}: {len(given)} classes; {limit} are possible: name fewer in data.classes"
        )
    alike = [name for name in names if name.casefold() == given[0].casefold()]
    if alike and given[0] not in names:
        raise DataError(
            f"data.classes={shorten_list(given)}: {given[0]} is no category, but {alike[0]} is"
        )
    return given


def check_categories(
    annotated: list[str], categories: dict[CocoId, str], all_used: bool, file: Path
) -> None:
    """Raise DataError unless the classes are categories of the file, and with ``all_used`` all of them."""
    names = set(categories.values())
    # Classes without a category, then categories without a class
    lacking = [name for name in annotated if name not in names]
    if lacking:
        raise DataError(
            f"{file}: no category {lacking[0]!r}; it has {shorten_list(sorted(names))}: name the categories to "
            "use in data.classes"
        )
    unused = sorted(names - set(annotated))
    if all_used and unused:
        raise DataError(
            f"{file}: the category {unused[0]!r} is not in the file of the training split; name the categories to use "
            "in data.classes"
        )


def drop_parents(content: dict[str, Any], categories: dict[CocoId, str], file: Path) -> None:
    """Remove categories that only group others: the supercategory of one, and without an annotation.

    Roboflow's exports have one, with the id 0.
    """
    parents = {row.get("supercategory") for row in content["categories"]}
    used = {row["category_id"] for row in checked_rows(content, "annotations", file)}
    for key, name in list(categories.items()):
        if name in parents and key not in used and len(set(categories.values())) > 1:
            log.info(f"data       {file}: the category {name} groups others and has no annotation; it is no class")  # fmt: skip
            del categories[key]


def build_entries(
    content: dict[str, Any],
    file: Path,
    locate: Callable[[str], str | None],
    index: dict[CocoId, int | None],
    skip_boxes: bool,
    crowds_alone: bool = False,
) -> dict[str, CocoImage]:
    """Return name -> entry of a JSON file.

    Args:
        content: of the file.
        file: its path, for messages.
        locate: function of a name in the JSON that returns the image's path inside ``root``; None if it can be none.
        index: id of a category -> index of its class; None: left out.
        skip_boxes: leave out annotations that have no outline, and log their number.
        crowds_alone: take crowds as objects if the file holds no other annotation.

    Raises:
        DataError: if an annotation has no outline, unless they are left out, if an image leads out of ``root`` or occurs twice, or an annotation has an unknown id.
    """
    # Images, by name and by id.
    entries: dict[str, CocoImage] = {}
    by_id: dict[CocoId, CocoImage] = {}
    for row in checked_rows(content, "images", file):
        located = locate(row["file_name"])
        if located is None:
            raise DataError(
                f"{file}: the image {row['file_name']!r} is not inside data.root; paths start there"
            )
        size = row.get("height"), row.get("width")
        entry = CocoImage(located, None if size == (None, None) else size, file, [])
        name = Path(located).with_suffix("").as_posix()
        if name in entries:
            raise DataError(
                f"{file}: {entries[name].file} and {entry.file} are both called {name}; keep one, or rename it"
            )
        entries[name] = by_id[row["id"]] = entry
    if not entries:
        raise DataError(f"{file}: no images in it; {COCO_LAYOUT}")
    # Annotations, added to their images.
    boxes: list[CocoId] = []
    rows = list(checked_rows(content, "annotations", file))
    if crowds_alone := crowds_alone and bool(rows) and all(row.get("iscrowd") == 1 for row in rows):
        log.info(
            f"data       {file}: all {len(rows)} annotations are crowds (iscrowd=1) and taken as objects; "
            "data.crowd=ignore excludes them"
        )
    for row in rows:
        for key, known in (("image_id", by_id), ("category_id", index)):
            if row[key] not in known:
                raise DataError(
                    f"{file}: annotation {row['id']}: no such {key}, {row[key]!r}; correct it or remove it"
                )
        if (crowd := row.get("iscrowd", 0)) not in (0, 1):
            raise DataError(
                f"{file}: annotation {row['id']}: iscrowd={crowd!r:.60}; 0 or 1 is needed"
            )
        if (class_index := index[row["category_id"]]) is None:
            continue
        # An outline is a list of polygons or an object with run lengths; without one it is a box
        shape = row.get("segmentation")
        if shape is not None and not isinstance(shape, list | dict):
            raise DataError(
                f"{file}: annotation {row['id']}: segmentation={shape!r:.60}; correct it or remove it"
            )
        if not shape or (isinstance(shape, list) and not any(map(has_numbers, shape))):
            boxes.append(row["id"])
        else:
            crowd = bool(crowd) and not crowds_alone
            outline = CocoAnnotation(row["id"], class_index, shape, crowd)
            by_id[row["image_id"]].annotations.append(outline)
    if boxes and not skip_boxes:
        raise DataError(
            f"{file}: annotation {boxes[0]}: no outline, at most a box; there are {len(boxes)} such; data.boxes=skip "
            "leaves them out, and their objects are then what no annotation covers"
        )
    if boxes:
        log.info(
            f"data       {file}: {len(boxes)} annotations without an outline are left out (data.boxes=skip)"
        )
    return entries


def has_numbers(polygon: Any) -> bool:
    """Return False for an empty polygon."""
    return not isinstance(polygon, array | list) or len(polygon) > 0


def pack_numbers(kind: Literal["d", "q"], numbers: Any) -> Any:
    """Return a list of numbers as an array; anything else unchanged, refused when it is drawn."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers


def compute_run_lengths(shape: Any, height: int, width: int) -> array:
    """Return run lengths in px, column by column: outside, inside, outside, ...; their sum is the image's size.

    Args:
        shape: polygons or run lengths, as in ``CocoAnnotation``.
        height: H of the image, px.
        width: W of the image, px.

    Raises:
        ValueError: if they are malformed or of another size.
    """
    # Polygons are drawn; run lengths are decoded and checked against the size.
    if isinstance(shape, list):
        runs = [part for part in shape if isinstance(part, dict)]
        if not runs:
            return polygon_run_lengths(shape, height, width)
        polygons = [part for part in shape if not isinstance(part, dict)]
        parts = [*runs, *([polygons] if polygons else [])]
        inside = [fill_runs(compute_run_lengths(part, height, width)) for part in parts]
        return count_runs(np.any(inside, axis=0))
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, array):
        raise ValueError("its counts are neither whole numbers nor a text")
    # They must cover the image exactly.
    if shape.get("size") != [height, width]:
        raise ValueError(
            f"its run lengths have the size {shape.get('size')!r:.40}, but the image has [{height}, {width}]"
        )
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(counts)} px, but the image has {height * width}"
        )
    return counts


def polygon_run_lengths(polygons: list, height: int, width: int) -> array:
    """Return the run lengths of the union of polygons, as pycocotools draws them.

    Raises:
        ValueError: if a polygon is malformed.
    """
    from pycocotools.mask import frPyObjects, merge

    if not polygons:
        raise ValueError("its segmentation is empty; a box is not an outline")
    for polygon in polygons:
        check_polygon(polygon, height, width)
    runs = merge(frPyObjects([list(polygon) for polygon in polygons], height, width))
    return decode_counts(runs["counts"].decode())


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raise ValueError unless a polygon has three points or more, none farther outside than the image is large.

    pycocotools would draw far points at the cost of all memory.
    """
    if not isinstance(polygon, array):
        raise ValueError("its polygon is not a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"its polygon has {len(polygon)} numbers; x and y of three points or more are needed"
        )
    margin = max(height, width)
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        finite = all(map(math.isfinite, numbers))
        if not finite or min(numbers) < -margin or max(numbers) > side + margin:
            raise ValueError(f"its polygon lies far outside the image of {height}x{width} px")


def decode_counts(text: str) -> array:
    """Return the counts of COCO's compressed text; pycocotools would read past the end of a truncated one.

    Each character holds five bits of a count, the lowest first. From the fourth on, a count is the difference to
    the one before the previous.

    Raises:
        ValueError: if the text is malformed or truncated.
    """
    counts, value, shift = array("q"), 0, 0
    for character in text:
        # Five bits of the count; bit 6 marks that more follow, bit 5 of the last is the sign.
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError("its run lengths are not compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        # The count is complete: add the one before the previous.
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are truncated")
    return counts


def count_runs(inside: np.ndarray) -> array:
    """Return the run lengths of (W * H,) bool, the inverse of ``fill_runs``."""
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0))
    return array("q", np.diff([0, *edges, inside.size]).tolist())


def fill_runs(counts: array) -> np.ndarray:
    """Return (W * H,) bool, column by column: True for the pixels inside."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)
