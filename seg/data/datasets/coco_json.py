"""COCO's JSON: its images and their annotations, each checked before it is used."""

import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple

import numpy as np

from seg.data.datasets.base import Task
from seg.data.masks import short
from seg.errors import DataError
from seg.logits import IGNORE

Key = int | str
LAYOUT = "a COCO file holds the lists images, annotations and categories"


class Outline(NamedTuple):
    """An annotation.

    Attributes:
        number: its id.
        index: of its class.
        shape: polygons, each an array of x, y, x, y, ... in px; or a dict of run lengths.
        crowd: whether it outlines many objects as one region.
    """

    number: Key
    index: int
    shape: Any
    crowd: bool


class Entry(NamedTuple):
    """An image.

    Attributes:
        file: from ``root`` on.
        told: height and width that the JSON gives it, or None for both.
        told_by: the JSON file.
        outlines: in the order of the JSON.
    """

    file: str
    told: tuple[Any, Any]
    told_by: Path
    outlines: list[Outline]


def read_json(file: Path) -> dict[str, Any]:
    """The content of a COCO file, of annotations only what is needed.

    Raises:
        DataError: when it can't be read or isn't one.
    """
    try:
        content = json.loads(file.read_text("utf-8-sig"), object_hook=compact)
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); {LAYOUT}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: JSON, but no object with keys; {LAYOUT}")
    return content


def compact(node: dict[str, Any]) -> dict[str, Any]:
    """An object of the JSON as it is parsed: numbers of outlines packed, an annotation's other keys left out."""
    if "counts" in node:
        node["counts"] = packed("q", node["counts"])
    if "segmentation" in node:
        keys = ("id", "image_id", "category_id", "iscrowd", "segmentation")
        node = {key: node[key] for key in keys if key in node}
        if isinstance(node["segmentation"], list):
            node["segmentation"] = [packed("d", polygon) for polygon in node["segmentation"]]
    return node


NEEDED: dict[str, dict[str, Any]] = {
    "images": {"id": Key, "file_name": str},
    "annotations": {"id": Key, "image_id": Key, "category_id": Key, "segmentation": list | dict},
    "categories": {"id": Key, "name": str},
}


def rows(content: dict[str, Any], key: str, file: Path) -> Iterator[dict[str, Any]]:
    """The entries of one of the three lists, each with what is needed and an id of its own.

    Raises:
        DataError: naming the first that isn't so.
    """
    if not isinstance(content.get(key), list):
        raise DataError(f"{file}: no list {key} in it; {LAYOUT}")
    seen = set()
    for place, row in enumerate(content[key]):
        where = f"{file}: {key}[{place}]"
        if not isinstance(row, dict):
            raise DataError(f"{where} is no object with keys; mend it or take it out")
        for name, kind in NEEDED[key].items():
            if not isinstance(row.get(name), kind):
                found = f"{name}={row[name]!r:.60}" if name in row else f"no {name}"
                raise DataError(f"{where}: {found}; mend it or take it out")
        if row["id"] in seen:
            raise DataError(
                f"{where}: another of the {key} has the id {row['id']!r}; give it its own"
            )
        seen.add(row["id"])
        yield row


def named_classes(
    given: list[str] | None, categories: dict[Key, str], task: Task, file: Path
) -> list[str]:
    """The names of the classes, of which the first may be what no annotation covers.

    Raises:
        DataError: when they can't be.
    """
    names = list(categories.values())
    overlapping = task == "overlapping"
    if given is None:
        order = sorted(categories, key=lambda key: (isinstance(key, str), key))
        found = list(dict.fromkeys(categories[key] for key in order))
        if "background" in found and not overlapping:
            raise DataError(
                f"{file}: a category is called background; give data.classes: what comes first there is what "
                "no annotation covers, or, if it is a category, ignored outside of its annotations"
            )
        given = found if overlapping else ["background", *found]
    if len(set(given)) < len(given):
        raise DataError(f"data.classes={short(given)}: a name is there twice")
    if len(given) < (1 if overlapping else 2):
        raise DataError(
            f"data.classes={given}: too few; {file} has the categories {short(names)}, and the first class is "
            "what no annotation covers, [background,cell]"
        )
    if len(given) > IGNORE - 1 - overlapping:
        raise DataError(
            f"{file}: {len(given)} classes; {IGNORE - 1 - overlapping} are possible: name fewer in data.classes"
        )
    alike = [name for name in names if name.casefold() == given[0].casefold()]
    if alike and given[0] not in names:
        raise DataError(
            f"data.classes={short(given)}: {given[0]} is no category, but {alike[0]} is"
        )
    return given


def check_categories(
    annotated: list[str], categories: dict[Key, str], all_used: bool, file: Path
) -> None:
    """Raises DataError unless the classes are categories of the file, and all of them where that is needed."""
    names = set(categories.values())
    lacking = [name for name in annotated if name not in names]
    if lacking:
        raise DataError(
            f"{file}: no category {lacking[0]!r}; it has {short(sorted(names))}: name those to be used in "
            "data.classes"
        )
    more = sorted(names - set(annotated))
    if all_used and more:
        raise DataError(
            f"{file}: the category {more[0]!r} isn't in the file of the training split; name those to be used in "
            "data.classes"
        )


def entries_of(
    content: dict[str, Any], file: Path, folder: str, index: dict[Key, int | None]
) -> dict[str, Entry]:
    """Name -> entry of a JSON file.

    Raises:
        DataError: when what is named isn't there, or twice.
    """
    entries: dict[str, Entry] = {}
    by_id: dict[Key, Entry] = {}
    for row in rows(content, "images", file):
        path = PureWindowsPath(row["file_name"])  # which knows both kinds of slashes
        if path.anchor or ".." in path.parts or not path.name:
            raise DataError(
                f"{file}: the image {row['file_name']!r} isn't inside data.root; paths start there"
            )
        inside = PureWindowsPath(folder) / path
        entry = Entry(inside.as_posix(), (row.get("height"), row.get("width")), file, [])
        name = inside.with_suffix("").as_posix()
        if name in entries:
            raise DataError(
                f"{file}: {entries[name].file} and {entry.file} are both called {name}; keep one, or rename it"
            )
        entries[name] = by_id[row["id"]] = entry
    if not entries:
        raise DataError(f"{file}: no images in it; {LAYOUT}")
    for row in rows(content, "annotations", file):
        for key, known in (("image_id", by_id), ("category_id", index)):
            if row[key] not in known:
                raise DataError(
                    f"{file}: annotation {row['id']}: no such {key}, {row[key]!r}; mend it or take it out"
                )
        if (crowd := row.get("iscrowd", 0)) not in (0, 1):
            raise DataError(
                f"{file}: annotation {row['id']}: iscrowd={crowd!r:.60}; 0 or 1 is needed"
            )
        if (place := index[row["category_id"]]) is not None:
            outline = Outline(row["id"], place, row["segmentation"], bool(crowd))
            by_id[row["image_id"]].outlines.append(outline)
    return entries


def packed(kind: Literal["d", "q"], numbers: Any) -> Any:
    """A list of numbers as an array; anything else as it is, to be told when it is drawn."""
    try:
        return array(kind, numbers) if isinstance(numbers, list) else numbers
    except (TypeError, OverflowError):
        return numbers


def run_lengths(shape: Any, height: int, width: int) -> array:
    """Lengths in px, column by column: outside, inside, outside and so on; their sum is the image's size.

    Raises:
        ValueError: when polygons or run lengths are malformed, or of another size.
    """
    if isinstance(shape, list):
        return outlined(shape, height, width)
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = uncompressed(counts)
    if not isinstance(counts, array):
        raise ValueError("its run lengths have no counts that are whole numbers or a text")
    if shape.get("size") != [height, width]:
        raise ValueError(
            f"its run lengths are of size {shape.get('size')!r:.40}, and the image of [{height}, {width}]"
        )
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(counts)} px, and the image has {height * width}"
        )
    return counts


def outlined(polygons: list, height: int, width: int) -> array:
    """The run lengths of polygons together, as pycocotools draws them.

    Raises:
        ValueError: when one is malformed.
    """
    from pycocotools.mask import frPyObjects, merge

    if not polygons:
        raise ValueError("its segmentation is empty; a box is no outline")
    for polygon in polygons:
        check_polygon(polygon, height, width)
    runs = merge(frPyObjects([list(polygon) for polygon in polygons], height, width))
    return uncompressed(runs["counts"].decode())


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Raises ValueError unless it is three points or more, no farther outside than the image is large."""
    if not isinstance(polygon, array):
        raise ValueError("its polygon isn't a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"its polygon has {len(polygon)} numbers; x and y of three points or more are needed"
        )
    far = max(height, width)
    for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
        if not all(map(math.isfinite, numbers)) or min(numbers) < -far or max(numbers) > side + far:
            raise ValueError(f"its polygon lies far outside of the image of {height}x{width} px")


def uncompressed(text: str) -> array:
    """The counts of COCO's compressed form; pycocotools would read past the end of what is cut off.

    Five bits a character, the lowest first; from the fourth on a count is the difference to the last but one.

    Raises:
        ValueError: when it isn't such a text.
    """
    counts, value, shift = array("q"), 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError("its run lengths are no compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return counts


def filled(counts: array) -> np.ndarray:
    """Whether each pixel is inside, column by column: (W * H,) bool."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)
