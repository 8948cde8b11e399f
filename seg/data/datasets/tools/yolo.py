"""YOLO segmentation: ``labels/train/a.txt`` for ``images/train/a.jpg``, or both in one folder.

A line is an object: the index of its class, then x and y of each point as shares of the image's width and height.
"""

from pathlib import Path

import numpy as np
import yaml

from seg.data.datasets.outlines import Outline, as_ring
from seg.data.datasets.tools.parsing import (
    ToolAnnotations,
    as_numbers,
    build_image,
    list_files,
    pass_over,
    read_annotation_text,
)
from seg.errors import DataError

LIST_FILES = {"classes.txt", "train.txt", "val.txt", "test.txt", "obj.names"}  # no annotations


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://docs.ultralytics.com/datasets/segment) of a folder's text files.

    Names of the classes are those of data.yaml (``names``) or classes.txt; without such a file ``class 0`` and so on.
    """
    names = read_names(place if place.is_dir() else place.parent)
    images, highest = [], -1

    def build_outline(number: int, line: str) -> Outline:
        nonlocal highest
        words = line.split()
        index = int(words[0]) if words[0].isdecimal() and len(words[0]) < 6 else -1
        if index < 0 or (names and index not in names):
            known = f" of {len(names)}" if names else ""
            raise ValueError(f"the line begins with {words[0]:.20}; the index of a class{known} is needed")  # fmt: skip
        if len(words) == 5:
            raise ValueError("a box of YOLO detection; outlines of YOLO segmentation are needed")
        highest = max(highest, index)
        numbers = as_numbers(words[1:])
        if len(numbers) % 2:
            raise ValueError(f"{len(numbers)} coordinates; pairs of x and y are needed")
        if max(map(abs, numbers), default=0) > 2:
            raise ValueError("coordinates beyond the image; shares of its width and height are needed")  # fmt: skip
        ring = as_ring(np.reshape(numbers, (-1, 2)))
        return Outline(number, names.get(index, f"class {index}"), [[ring]])

    for file in list_files(place, (".txt",)):
        if file.name in LIST_FILES:
            continue
        try:
            if "labels" not in file.parent.parts and not looks_like(file):
                continue
            lines = [line for line in read_annotation_text(file).splitlines() if line.strip()]
        except DataError as error:
            pass_over(file, place if "labels" not in file.parent.parts else file, (), error)
            continue
        images.append(build_image(file, image_name(file), None, lines, build_outline, True))
    labels = [names[key] for key in sorted(names)] if names else None
    if labels is None:
        labels = [f"class {index}" for index in range(highest + 1)]
    return ToolAnnotations(images, labels)


def looks_like(file: Path) -> bool:
    """Return True if the first line of a text file is an object of YOLO segmentation."""
    words = read_annotation_text(file).partition("\n")[0].split()
    try:
        numbers = as_numbers(words)
    except ValueError:
        return False
    return len(words) >= 7 and words[0].isdecimal() and min(numbers) >= 0


def image_name(file: Path) -> str:
    """Return the image's path without suffix: of ``labels/train/a.txt`` images/train/a."""
    parts = list(file.with_suffix("").parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "labels"]
    if places:
        parts[places[-1]] = "images"
    return Path(*parts).as_posix()


def read_names(folder: Path) -> dict[int, str]:
    """Return index -> name of the classes, of a YAML with ``names`` or of classes.txt; {} without either.

    Raises:
        DataError: if the file is malformed.
    """
    for file in list_files(folder, (".yaml", ".yml")):
        try:
            content = yaml.safe_load(read_annotation_text(file))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            wrong = DataError(f"{file}: not YAML ({' '.join(str(error).split())}); correct it")
            pass_over(file, folder, ("names:",), wrong)
            continue
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            names = dict(enumerate(names))
        if isinstance(names, dict):
            if not all(isinstance(k, int) and isinstance(v, str) for k, v in names.items()):
                raise DataError(f"{file}: names={names!r:.60}; a text for each index is needed")
            return names
    for file in list_files(folder, ("classes.txt", "obj.names")):
        return dict(enumerate(line.strip() for line in read_annotation_text(file).splitlines()))
    return {}
