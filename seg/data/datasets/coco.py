"""Images with annotations in COCO's JSON: polygons and run-length masks, drawn when an image is read.

seg.data.datasets.coco_json reads the JSON, seg.data.datasets.coco_json the shapes; neither trusts what it reads.
"""

import hashlib
import os
import pickle
from array import array
from pathlib import Path
from typing import Literal

import numpy as np

from seg.data.datasets.base import Task, check_choice, check_task
from seg.data.datasets.coco_json import (
    Entry,
    Outline,
    check_categories,
    entries_of,
    filled,
    named_classes,
    read_json,
    rows,
    run_lengths,
)
from seg.data.datasets.folder import given_colors
from seg.data.image_io import read_image
from seg.data.masks import size_mismatch
from seg.data.partition import SPLITS
from seg.data.splits import Division, listed_split
from seg.errors import DataError, missing_extra
from seg.logits import IGNORE

Crowd = Literal["ignore", "object", "skip"]


class Coco:
    """Images and their objects as COCO annotates them, one class a pixel or a plane for each class.

    Lin et al. 2014, arXiv:1405.0312. Where objects overlap, the smaller lies on top; where they are equal,
    the later. The file's categories of one name are one class. Needs the extra ``coco``.

    Args:
        root: folder of the images; no path in the JSON leads out of it.
        annotations: JSON file, or one for each of train, val and perhaps test.
        folders: split -> its images' folder inside ``root``; None: the JSON's paths start at ``root``.
        classes: names; the first, unless a category is called so, is what no annotation covers. If it is a
            category, that is ignored. Categories without a place here are left out. None: background, and
            the categories in the order of their ids; overlapping, the categories alone.
        colors: one (red, green, blue) in 0..255 a class, for pictures; None: a readable palette.
        crowd: regions of many objects (``iscrowd``): ``ignore`` them, take each as an ``object``, or
            ``skip`` them as if not annotated.
        val: share of the images in 0..1 that validates, of one JSON; None: 0.2, or the fold.
        test: share of the images in 0..1 kept for the test, of one JSON; the same for each fold.
        fold: which of ``folds`` validates, 0 .. folds - 1; None: the share ``val``.
        folds: number of folds.
        blocks: contiguous in the order of names instead of random.
        group_by: regular expression that finds an image's group in its name; groups stay on one side.
        stratify: each part gets its share of the images in which a class is annotated.
        lists: folder of train.txt, val.txt and perhaps test.txt, or a file for each; a name a line.
        split_seed: of what is random in the split.
        task: ``instances``: two classes, and objects that touch count as one; ``overlapping``: a plane for
            each class.

    Raises:
        DataError: when a file or a setting is missing or wrong.
    """

    def __init__(
        self,
        root: str | None,
        annotations: str | dict[str, str] | None,
        folders: dict[str, str] | None = None,
        classes: list[str] | None = None,
        colors: list[list[int]] | None = None,
        crowd: Crowd = "ignore",
        val: float | None = None,
        test: float = 0.0,
        fold: int | None = None,
        folds: int = 5,
        blocks: bool = False,
        group_by: str | None = None,
        stratify: bool = False,
        lists: str | dict[str, str] | None = None,
        split_seed: int = 0,
        task: Task = "classes",
    ) -> None:
        if need := missing_extra("pycocotools"):
            raise DataError(f"data=coco {need}")
        check_choice("crowd", crowd, Crowd)
        files = annotation_files(annotations)
        if folders is not None and set(folders) != set(files):
            raise DataError(f"data.folders={folders}: give one for each of {', '.join(files)}")
        self.root, self.crowd, self.task = existing_root(root), crowd, task
        by_split: dict[str, dict[str, Entry]] = {}
        for split, file in files.items():
            by_split[split] = self.load(
                file, (folders or {}).get(split, ""), classes, bool(by_split)
            )
        check_task(task, self.classes, may_overlap=True)
        entries = all_apart(by_split)
        check_there(self.root, entries)
        self.entries = Packed(entries)
        self.colors = given_colors(colors, self.classes, None, spare=task == "overlapping")

        said, by = None, ("data.annotations of each split", "they say which image is where")
        if isinstance(annotations, dict):
            said = {split: list(found) for split, found in by_split.items()}
        division = Division(val, test, fold, folds, blocks, group_by, stratify, lists, split_seed)
        named = {entry.file: name for name, entry in entries.items()} | {n: n for n in entries}
        self.splits = division.splits(
            list(entries), self.presence, lambda lines: listed_split(lines, named), said, by
        )

    def load(
        self, file: Path, folder: str, classes: list[str] | None, further: bool
    ) -> dict[str, Entry]:
        """Name -> entry of a JSON file; the first one decides which classes there are."""
        content = read_json(file)
        categories = {row["id"]: row["name"] for row in rows(content, "categories", file)}
        if not further:
            self.classes = named_classes(classes, categories, self.task, file)
            covered = self.task == "overlapping" or self.classes[0] in categories.values()
            self.annotated = self.classes if covered else self.classes[1:]
        check_categories(self.annotated, categories, classes is None, file)
        places = {name: self.classes.index(name) for name in self.annotated}
        index = {key: places.get(name) for key, name in categories.items()}
        return entries_of(content, file, folder, index)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask (H, W) uint8 of class indices, or (H, W, K) of 0 and 1; 255 = ignore."""
        entry = self.entries[name]
        image = read_image(self.root / entry.file)
        height, width = image.shape[:2]
        if entry.told not in ((None, None), (height, width)):
            remedy = "take the image that was annotated"
            raise size_mismatch(
                entry.told_by, entry.told, self.root / entry.file, image.shape, remedy
            )
        return image, self.mask(entry, height, width)

    def mask(self, entry: Entry, height: int, width: int) -> np.ndarray:
        """(H, W) or (H, W, K), as ``read`` gives it."""
        overlapping = self.task == "overlapping"
        rest = IGNORE if self.annotated == self.classes and not overlapping else 0
        planes = np.full(
            (len(self.classes) if overlapping else 1, width * height), rest, np.uint8
        )  # column by column, as the run lengths go
        for outline, counts in self.from_below(entry, height, width):
            plane = planes[outline.index if overlapping else 0]
            value = 1 if overlapping else outline.index
            ignored = outline.crowd and self.crowd == "ignore"
            plane[filled(counts)] = IGNORE if ignored else value
        mask = np.ascontiguousarray(planes.reshape(-1, width, height).transpose(2, 1, 0))
        return mask if overlapping else mask[..., 0]

    def from_below(self, entry: Entry, height: int, width: int) -> list[tuple[Outline, array]]:
        """The outlines and their run lengths in the order of drawing: what is ignored, large, small."""
        drawn = []
        for outline in entry.outlines:
            if outline.crowd and self.crowd == "skip":
                continue
            try:
                drawn.append((outline, run_lengths(outline.shape, height, width)))
            except ValueError as error:
                raise DataError(
                    f"{entry.told_by}: annotation {outline.number} of {entry.file}: {error}; mend it or take it out"
                ) from error
        below = self.crowd == "ignore"
        return sorted(drawn, key=lambda one: (not (one[0].crowd and below), -sum(one[1][1::2])))

    def stamp(self, name: str) -> str:
        """Changes when what ``read`` gives of that name may have changed."""
        file = self.root / self.entries[name].file
        found, drawn = file.stat(), hashlib.sha256(self.entries.packed(name)).hexdigest()
        how = (self.classes, self.annotated, self.crowd, self.task)
        return f"{file.resolve()} {found.st_size} {found.st_mtime_ns} {drawn} {how}"

    def presence(self, name: str) -> np.ndarray:
        """Whether each class is annotated in the image of that name, (C,) bool; what no annotation covers is."""
        present = np.zeros(len(self.classes), bool)
        present[0] = self.annotated != self.classes
        for outline in self.entries[name].outlines:
            present[outline.index] |= not outline.crowd or self.crowd == "object"
        return present


class Packed:
    """Entries by name, as bytes: Python objects would be copied into each loader process as they are read.

    Args:
        entries: name -> entry.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.place = {name: row for row, name in enumerate(entries)}
        pieces = [pickle.dumps(tuple(entry), pickle.HIGHEST_PROTOCOL) for entry in entries.values()]
        self.ends = np.cumsum([0, *map(len, pieces)])
        self.bytes = np.frombuffer(b"".join(pieces), np.uint8)

    def packed(self, name: str) -> bytes:
        row = self.place[name]
        return self.bytes[self.ends[row] : self.ends[row + 1]].tobytes()

    def __getitem__(self, name: str) -> Entry:
        return Entry(*pickle.loads(self.packed(name)))


def existing_root(root: str | None) -> Path:
    if root is None:
        raise DataError("data.root is not set: give the folder of the images")
    if not Path(root).is_dir():
        raise DataError(f"data.root={root}: no such folder; give that of the images")
    return Path(root)


def annotation_files(annotations: str | dict[str, str] | None) -> dict[str, Path]:
    """Split -> JSON file, or ``all`` -> the one."""
    if annotations is None:
        raise DataError(
            "data.annotations is not set: give the JSON file, or 'data.annotations={train: FILE, val: FILE}'"
        )
    if isinstance(annotations, str):
        return {"all": Path(annotations)}
    if not {"train", "val"} <= set(annotations) <= set(SPLITS):
        raise DataError(
            f"data.annotations names {sorted(annotations)}: train, val and perhaps test are needed"
        )
    return {split: Path(annotations[split]) for split in SPLITS if split in annotations}


def all_apart(by_split: dict[str, dict[str, Entry]]) -> dict[str, Entry]:
    """The entries of all splits.

    Raises:
        DataError: when an image is in two.
    """
    entries: dict[str, Entry] = {}
    for found in by_split.values():
        for name, entry in found.items():
            if name in entries:
                raise DataError(
                    f"{entry.told_by}: {entry.file} is in {entries[name].told_by} too; an image is on one side "
                    "(or give data.folders, if the splits have their own)"
                )
        entries |= found
    return entries


def check_there(root: Path, entries: dict[str, Entry]) -> None:
    """Raises DataError when images are missing."""
    missing = [entry for entry in entries.values() if not os.path.isfile(root / entry.file)]
    if missing:
        more = f" ({len(missing)} such images)" if len(missing) > 1 else ""
        raise DataError(
            f"{root / missing[0].file}: no such file, but {missing[0].told_by} names it{more}; its paths start at "
            "data.root"
        )
