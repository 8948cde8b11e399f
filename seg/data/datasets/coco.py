"""Data set of images annotated in COCO's JSON: polygons and run lengths, drawn when an image is read."""

import os
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from seg.data.datasets.annotated import (
    AnnotatedSource,
    find_image,
    find_image_root,
    index_images,
    list_image_files,
)
from seg.data.datasets.base import (
    BorderOption,
    PackedRecords,
    Task,
    check_choice,
    check_task,
    choose_border,
    class_colors,
    learned_classes,
)
from seg.data.datasets.coco_json import (
    CocoAnnotation,
    CocoImage,
    build_entries,
    check_categories,
    checked_rows,
    choose_classes,
    compute_run_lengths,
    drop_parents,
    fill_runs,
    read_coco,
)
from seg.data.nodata import NodataOption
from seg.data.partition import SPLITS, find_groups
from seg.data.similar_names import find_similar, similar_file
from seg.data.spacing import Spacing
from seg.data.splits import SplitOptions, split_by_lists
from seg.errors import DataError, missing_extra_hint

CrowdOption = Literal["auto", "ignore", "object", "skip"]
BoxesOption = Literal["error", "skip"]
IGNORED_CROWDS = ("auto", "ignore")


class Coco(AnnotatedSource):
    """Images with COCO annotations, as one class a pixel or one plane a class.

    Lin et al. 2014, arXiv:1405.0312. Where objects overlap, the smaller is drawn on top; of two with equal area,
    the later. Categories with the same name are one class. Needs the extra ``coco``.

    Args:
        root: folder of the images. A path in the JSON starts there, or at the JSON's folder; an image that is not
            there is looked for by its name anywhere in ``root``.
        annotations: JSON file, or one for each split of train, val and test.
        folders: split -> folder of its images inside ``root``; None: the JSON's paths start at ``root``.
        classes: names; other categories are left out. The first class is what no annotation covers; if it is a
            category itself, pixels without an annotation are ignored. None: background, and the categories in
            the order of their ids; with overlapping classes the categories alone.
        colors: one (red, green, blue) in 0..255 a class, for pictures; None: readable defaults.
        crowd: use of annotations of many objects (``iscrowd``): ``ignore`` their pixels, take each as an
            ``object``, or ``skip`` them as if not annotated; ``auto``: ``ignore``, or ``object`` of a file that
            holds nothing else.
        nodata: value of the images that means no data, or ``nan``; in addition to that of each file's tag
            GDAL_NODATA. ``none``: the tag is not honoured. None: that of the tag.
        boxes: use of annotations without an outline: an ``error``, or ``skip`` them as if not annotated.
        spacing: height and width of a pixel in um, for distances; None: from the resolution tags of the TIFFs, if
            all agree.
        val: share of the images in 0..1 for validation, of one JSON; None: 0.2, or the fold.
        test: share of the images in 0..1 for the test, of one JSON; the same for each fold.
        fold: index of the fold that validates, 0 .. folds - 1; None: the share ``val``.
        folds: number of folds.
        contiguous: split into contiguous blocks in the order of names instead of at random.
        group_by: regular expression that gives an image's group from its name; a group is in one split.
        stratify: give each split its share of the images in which a class is annotated.
        lists: folder of train.txt, val.txt and optionally test.txt, or a file for each; one name a line.
        split_seed: seed of the random split.
        task: ``classes``; ``instances``: two classes, and each annotation of the second is an object;
            ``overlapping``: one plane a class.
        border: px that each of two touching objects gives up, so that the network learns a gap of twice that; None:
            1 with ``instances``; 0: none.
        border_class: whether that gap is a third class, ``border``, instead of background.

    Raises:
        DataError: if a file is missing or invalid, or an option is wrong.
    """

    def __init__(
        self,
        root: str | None,
        annotations: str | dict[str, str] | None,
        folders: dict[str, str] | None = None,
        classes: list[str] | None = None,
        colors: list[list[int]] | None = None,
        crowd: CrowdOption = "auto",
        boxes: BoxesOption = "error",
        nodata: NodataOption | None = None,
        spacing: Spacing | None = None,
        val: Annotated[float, Field(gt=0, lt=1)] | None = None,
        test: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        fold: Annotated[int, Field(ge=0)] | None = None,
        folds: Annotated[int, Field(ge=2)] = 5,
        contiguous: bool = False,
        group_by: str | None = None,
        stratify: bool = False,
        lists: str | dict[str, str] | None = None,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        task: Task = "classes",
        border: BorderOption | None = None,
        border_class: bool = False,
    ) -> None:
        # Options and files.
        if need := missing_extra_hint("pycocotools"):
            raise DataError(f"data=coco {need}")
        check_choice("crowd", crowd, CrowdOption)
        check_choice("boxes", boxes, BoxesOption)
        self.skip_boxes, self.nodata, self.spacing = boxes == "skip", nodata, spacing
        files = annotation_files(annotations)
        if folders is not None and set(folders) != set(files):
            raise DataError(f"data.folders={folders}: give one for each of {', '.join(files)}")
        self.root, self.crowd, self.task = find_image_root(root), crowd, task
        self.border = choose_border(task, border, border_class)
        # The first split read determines the classes; the others must agree with it
        by_split: dict[str, dict[str, CocoImage]] = {}
        for split, file in files.items():
            by_split[split] = self.load_annotations(
                file, (folders or {}).get(split, ""), classes, bool(by_split)
            )
        # Entries of all splits.
        check_task(task, self.classes, may_overlap=True)
        self.classes = learned_classes(self.classes, self.border)
        entries = merge_entries(by_split)
        check_images_exist(self.root, entries)
        self.entries = PackedRecords(entries)
        self.colors = class_colors(colors, self.classes, None, spare=task == "overlapping")

        # Splits: by the files, or by the options.
        given, by = None, ("data.annotations of each split", "they say which image is where")
        if isinstance(annotations, dict):
            given = {split: list(names) for split, names in by_split.items()}
        division = SplitOptions(
            val, test, fold, folds, contiguous, group_by, stratify, lists, split_seed
        )
        names = {entry.file: name for name, entry in entries.items()} | {n: n for n in entries}
        self.splits = division.splits(
            list(entries),
            self.class_presence,
            lambda lines: split_by_lists(lines, names),
            given,
            by,
        )
        self.groups = find_groups(list(entries), group_by) if group_by is not None else None

    def load_annotations(
        self, file: Path, folder: str, classes: list[str] | None, further: bool
    ) -> dict[str, CocoImage]:
        """Return name -> entry of a JSON file; the first file defines the classes unless ``further``."""
        content = read_coco(file)
        categories = {row["id"]: row["name"] for row in checked_rows(content, "categories", file)}
        if classes is None:
            drop_parents(content, categories, file)
        if not further:
            self.classes = choose_classes(classes, categories, self.task, file)
            self.covered = self.task == "overlapping" or self.classes[0] in categories.values()
            self.annotated = self.classes if self.covered else self.classes[1:]
        check_categories(self.annotated, categories, classes is None, file)
        places = {name: self.classes.index(name) for name in self.annotated}
        index = dict.fromkeys((row["id"] for row in content["categories"]), None) | {
            key: places.get(name) for key, name in categories.items()
        }
        locate = self.image_locator(file, folder)
        return build_entries(content, file, locate, index, self.skip_boxes, self.crowd == "auto")

    def image_locator(self, file: Path, folder: str) -> Callable[[str], str | None]:
        """Return the function that finds an image named in a JSON file, as its path inside ``root``."""
        place = self.root / folder

        @cache
        def index() -> dict[str, list[Path]]:
            return index_images(list_image_files(place))

        def locate(written: str) -> str | None:
            path = PureWindowsPath(written)  # splits at slashes of both kinds
            inside = bool(path.name) and not path.anchor and ".." not in path.parts
            if inside and (place / path.as_posix()).is_file():
                return (PureWindowsPath(folder) / path).as_posix()
            found = find_image(written, file, place, index()) if path.name else None
            if found is None:
                return (PureWindowsPath(folder) / path).as_posix() if inside else None
            return (Path(folder) / found).as_posix()

        return locate

    def draw_mask(self, entry: CocoImage, height: int, width: int) -> np.ndarray:
        """Return the mask of an entry, (H, W) or (H, W, K), as in ``read``; with ``instances`` the labels (H, W)."""
        # Planes are drawn column by column, the order of run lengths.
        overlapping = self.task == "overlapping"
        planes = self.empty_mask(len(self.classes) if overlapping else 1, width * height)
        drawn = self.drawing_order(entry, height, width)
        for number, (outline, counts) in enumerate(drawn, start=1):
            plane = planes[outline.index if overlapping else 0]
            value = 1 if overlapping else self.drawn_value(outline.index, number)
            ignored = outline.crowd and self.crowd in IGNORED_CROWDS
            plane[fill_runs(counts)] = self.void if ignored else value
        mask = np.ascontiguousarray(planes.reshape(-1, width, height).transpose(2, 1, 0))
        return mask if overlapping else mask[..., 0]

    def drawing_order(
        self, entry: CocoImage, height: int, width: int
    ) -> list[tuple[CocoAnnotation, array]]:
        """Return outlines and their run lengths in drawing order: ignored crowds, then large before small."""
        # Run lengths of each outline that is drawn.
        drawn = []
        for outline in entry.annotations:
            if outline.crowd and self.crowd == "skip":
                continue
            try:
                drawn.append((outline, compute_run_lengths(outline.shape, height, width)))
            except ValueError as error:
                raise DataError(
                    f"{entry.source}: annotation {outline.number} of {entry.file}: {error}; correct it or remove it"
                ) from error

        # Ignored crowds first, then by falling area.
        def order(item: tuple[CocoAnnotation, array]) -> tuple[bool, int]:
            outline, counts = item
            ignored = outline.crowd and self.crowd in IGNORED_CROWDS
            return not ignored, -sum(counts[1::2])  # area in px: every second run is inside

        return sorted(drawn, key=order)

    def drawing_options(self) -> tuple[Any, ...]:
        return (self.crowd,)

    def class_presence(self, name: str) -> np.ndarray:
        """Return (K,) bool: True for each class annotated in the image, and for the class of the rest."""
        present = np.zeros(len(self.classes), bool)
        present[0] = not self.covered
        for outline in self.entries[name].annotations:
            present[outline.index] |= not outline.crowd or self.crowd == "object"
        return present


def annotation_files(annotations: str | dict[str, str] | None) -> dict[str, Path]:
    """Return split -> JSON file, or ``all`` -> the only file.

    Raises:
        DataError: if train or val has none.
    """
    if annotations is None:
        raise DataError(
            "data.annotations is not set: give the JSON file, or 'data.annotations={train: FILE, val: FILE}'"
        )
    if isinstance(annotations, str):
        return {"all": Path(annotations)}
    if not annotations or not set(annotations) <= set(SPLITS):
        raise DataError(
            f"data.annotations names {sorted(annotations)}: give train, val, test or some of them"
        )
    return {split: Path(annotations[split]) for split in SPLITS if split in annotations}


def merge_entries(by_split: dict[str, dict[str, CocoImage]]) -> dict[str, CocoImage]:
    """Return the entries of all splits together.

    Raises:
        DataError: if an image is in two splits.
    """
    entries: dict[str, CocoImage] = {}
    for part in by_split.values():
        for name, entry in part.items():
            if name in entries:
                raise DataError(
                    f"{entry.source}: {entry.file} is in {entries[name].source} too; keep it in one split (or give "
                    "data.folders, if the splits have folders of their own)"
                )
        entries |= part
    return entries


def check_images_exist(root: Path, entries: dict[str, CocoImage]) -> None:
    """Raise DataError if images are missing."""
    missing = [entry for entry in entries.values() if not os.path.isfile(root / entry.file)]
    # Report the first missing file, with a file of a similar name if there is one
    if missing:
        more = f" ({len(missing)} such images)" if len(missing) > 1 else ""
        file = root / missing[0].file
        other = similar_file(file)
        remedy = "its paths start at data.root"
        if other is not None:
            remedy = (
                f"{find_similar(file.name, [other.name])}: rename the file, or correct the JSON"
            )
        raise DataError(f"{file}: no such file, but {missing[0].source} names it{more}; {remedy}")
