"""Sections of stacks: the neighbours of each image, which a network sees as further channels (2.5-D).

With n neighbours on each side the channels of section z are those of the sections z - n, ..., z, ..., z + n, one
section after the other. The first and the last section of a stack are repeated beyond its ends.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from seg.data.image_files import image_stem, image_suffix, is_image_file
from seg.errors import DataError

MAX_NEIGHBOURS = 32
NeighboursOption = Annotated[int, Field(ge=0, le=MAX_NEIGHBOURS)]
SECTION_NUMBER = re.compile(r"(\d+)([^\d/]*)$")  # the last number of a file's name
NAMES_HINT = "the last number in a name is the section, vol1_z012"
SEVERAL_AXES = re.compile(r"\(\w x \w|along axis \d+ x ")  # in the text of a file's axes
OTHER_IMAGES_HINT = "; images that are no sections need a training with data.neighbours=0"


class Place(NamedTuple):
    """Place of an image in its stack.

    Attributes:
        stack: name of the stack.
        section: number of the section, from any number on.
    """

    stack: str
    section: int


def place_by_name(name: str) -> Place | None:
    """Return the place that a name without suffix gives: ``vol1_z012`` is section 12 of ``vol1_z*``; None: none."""
    found = SECTION_NUMBER.search(name)
    return found and Place(f"{name[: found.start()]}*{found[2]}", int(found[1]))


class Sections:
    """Images that are the sections of stacks.

    Args:
        places: name of each image -> its place; None: its name gives none.
        neighbours: sections on each side, 1 or more.

    Raises:
        DataError: if an image has no place or no neighbour, or the numbers of a stack have gaps or occur twice.
    """

    def __init__(self, places: Mapping[str, Place | None], neighbours: int) -> None:
        stacks: dict[str, list[tuple[int, str]]] = {}
        for name, place in places.items():
            if place is None:
                raise no_neighbour_error(name, neighbours)
            stacks.setdefault(place.stack, []).append((place.section, name))
        self.neighbours, self.stacks = neighbours, len(stacks)
        order: list[str] = []
        first_and_last: list[tuple[int, int]] = []
        for sections in stacks.values():
            sections.sort()
            check_consecutive(sections, neighbours)
            first_and_last += [(len(order), len(order) + len(sections) - 1)] * len(sections)
            order += [name for _, name in sections]
        self.rows = {name: row for row, name in enumerate(order)}
        self.order = np.array(order, str)  # workers read arrays without copying pages
        self.first_and_last = np.array(first_and_last).reshape(-1, 2)

    def around(self, name: str) -> list[str]:
        """Return the names of the sections z - n, ..., z, ..., z + n of an image."""
        row = self.rows[name]
        near = rows_around(row, self.neighbours, *self.first_and_last[row])
        return [str(self.order[one]) for one in near]

    def describe(self) -> str:
        """Return number and size of the stacks, and what the network sees, in one line."""
        sizes = sorted({int(last - first + 1) for first, last in self.first_and_last})
        span = f"{sizes[0]} to {sizes[-1]}" if sizes[1:] else sizes[0]
        stacks = "1 stack" if self.stacks == 1 else f"{self.stacks} stacks"
        n = self.neighbours
        return (
            f"{stacks} of {span} sections ({self.order[0]}, {self.order[1]} ...); the network sees z-{n} to z+{n}, of "
            "whichever split, and their labels only of its own"
        )


def rows_around(row: int, neighbours: int, first: int, last: int) -> list[int]:
    """Return the rows row - n, ..., row, ..., row + n, with those of the ends repeated."""
    near = range(row - neighbours, row + neighbours + 1)
    return [min(max(one, first), last) for one in near]


def check_consecutive(sections: Sequence[tuple[int, Any]], neighbours: int) -> None:
    """Raise DataError unless the sections of a stack, numbers and names in their order, follow one another."""
    if len(sections) == 1:
        raise no_neighbour_error(sections[0][1], neighbours)
    for (low, before), (high, after) in pairwise(sections):
        if high - low != 1:
            found = "are both" if high == low else "follow each other as"
            numbers = f"section {low}" if high == low else f"sections {low} and {high}"
            raise DataError(
                f"data.neighbours={neighbours}: {before} and {after} {found} {numbers} ({NAMES_HINT}); number the sections "
                f"of a stack one by one{OTHER_IMAGES_HINT}"
            )


def check_single_axis(file: Path, axes: str, neighbours: int) -> None:
    """Raise DataError if the text of a file's axes names several axes of slices, which are several stacks."""
    if SEVERAL_AXES.search(axes):
        raise DataError(
            f"data.neighbours={neighbours}: {file} has {axes}, so that a slice's neighbours may be of another stack; save "
            "each stack as a file"
        )


def no_neighbour_error(name: str, neighbours: int) -> DataError:
    """Return the error for an image without a neighbour."""
    return DataError(
        f"data.neighbours={neighbours}: {name} is no section of a stack, as no other image has its name with another "
        f"number ({NAMES_HINT}); name the sections so, or give a stack in one file{OTHER_IMAGES_HINT}"
    )


def find_section_files(file: Path, neighbours: int) -> list[Path]:
    """Return the files of the sections z - n, ..., z, ..., z + n of a file, by their names in its folder.

    Raises:
        DataError: if the file has no neighbour in its folder, or the numbers of its stack have gaps or occur twice.
    """
    sections = list_stack(file, file.parent.stat().st_mtime_ns)
    if not sections:
        raise no_neighbour_error(str(file), neighbours)
    check_consecutive(sections, neighbours)
    row = next(row for row, (_, other) in enumerate(sections) if other.name == file.name)
    return [sections[one][1] for one in rows_around(row, neighbours, 0, len(sections) - 1)]


def list_stack(file: Path, folder_time: int) -> list[tuple[int, Path]]:
    """Return numbers and files of the stack of a file, in their order; none if its name has no number."""
    place = place_by_name(image_stem(file))
    stacks = list_stacks(file.parent, folder_time)
    return stacks[place.stack, image_suffix(file)] if place else []


@lru_cache(maxsize=4)
def list_stacks(folder: Path, folder_time: int) -> dict[tuple[str, str], list[tuple[int, Path]]]:
    """Return the stacks of a folder: name of the stack and suffix -> numbers and files, in their order."""
    stacks: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for file in folder.iterdir():
        place = place_by_name(image_stem(file)) if is_image_file(file) else None
        if place:
            stacks.setdefault((place.stack, image_suffix(file)), []).append((place.section, file))
    return {key: sorted(files) for key, files in stacks.items()}


class JoinedSections:
    """Sections (H, W, C) as the channels of one array (H, W, S * C), of which only the parts that are cut are joined.

    Args:
        sections: of one size.
    """

    def __init__(self, sections: list[np.ndarray]) -> None:
        self.sections, self.dtype = sections, np.result_type(*sections)
        height, width, channels = sections[0].shape
        self.shape = (height, width, channels * len(sections))

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.concatenate([section[index] for section in self.sections], axis=-1)


def check_same_size(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise DataError unless sections, name -> (H, W) or (H, W, C), have one shape."""
    (name, shape), *others = shapes.items()
    for other, another in others:
        if another != shape:
            sizes = [f"{'x'.join(map(str, one[:2]))} px" for one in (shape, another)]
            if sizes[0] == sizes[1]:
                sizes = [f"of {one[2]} channels" for one in (shape, another)]
            raise DataError(
                f"{name} is {sizes[0]} and its neighbour {other} {sizes[1]}; sections of a stack must have one size and the "
                f"same channels: crop or pad them{OTHER_IMAGES_HINT}"
            )


def find_sections(source: Any) -> Sections | None:
    """Return the sections of a source, whose neighbours the network sees; None: it sees each image alone."""
    return getattr(source, "sections", None)
