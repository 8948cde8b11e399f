"""Data set of images and the files of an annotation tool, drawn when an image is read."""

import logging
from collections import Counter
from importlib import import_module
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from seg.data.datasets.annotated import (
    AnnotatedSource,
    find_image,
    find_image_root,
    index_images,
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
from seg.data.datasets.coco_json import CocoId, check_categories, choose_classes
from seg.data.datasets.outlines import DrawnOutline, Outline, describe_labels, draw_outline
from seg.data.datasets.pairing import report_passed_over
from seg.data.datasets.tools.parsing import AnnotatedImage, ToolAnnotations, list_files
from seg.data.image_files import CONVERSIONS, IMAGE_SUFFIXES, check_images_found, is_image_file
from seg.data.masks import ColourList, shorten_list
from seg.data.nodata import NodataOption
from seg.data.partition import find_groups, splits_by_folder
from seg.data.spacing import Spacing
from seg.data.splits import SplitOptions, split_by_lists
from seg.errors import DataError

log = logging.getLogger("seg")
Tool = Literal["labelme", "qupath", "yolo", "cvat", "via", "supervisely", "labelstudio", "cellpose", "imagej"]  # fmt: skip
TOOL_TITLES = {
    "labelme": "LabelMe JSON",
    "qupath": "QuPath GeoJSON",
    "cvat": "CVAT XML for images or Segmentation mask",
    "via": "VGG VIA JSON",
    "supervisely": "Supervisely JSON",
    "labelstudio": "Label Studio JSON",
    "yolo": "YOLO segmentation txt",
    "imagej": "ImageJ ROIs (zip, roi)",
    "cellpose": "Cellpose _seg.npy",
}
Unannotated = Literal["skip", "background"]


class Entry(NamedTuple):
    """An image and its annotations.

    Attributes:
        file: path of the image inside ``root``.
        size: height and width that the annotations state, or None.
        source: annotation file, or None.
        outlines: of labels that are a class or ignored.
        normalized: True if coordinates are shares of the image's width and height.
    """

    file: str
    size: tuple[int, int] | None
    source: Path | None
    outlines: list[Outline]
    normalized: bool


class Annotations(AnnotatedSource):
    """Images annotated in a tool by polygons or bitmaps, as one class a pixel or one plane a class.

    A pixel belongs to a polygon if its centre lies inside. Where objects overlap, the smaller is drawn on top; of
    two with equal area, the later.

    Args:
        root: folder of the images, with its subfolders, and of the annotations.
        tool: tool that made the annotations; None: found from the files.
        annotations: annotation file, or folder of them; None: ``root``.
        classes: labels; others are left out. The first class is what no annotation covers; if it is a label
            itself, pixels without an annotation are ignored. None: background, and all labels; with overlapping
            classes the labels alone.
        colors: one (red, green, blue) in 0..255 a class, for pictures; None: readable defaults.
        ignore: labels whose pixels are excluded from training and scores.
        unannotated: images without annotations: ``skip`` them, or take them as ``background``.
        nodata: value of the images that means no data, or ``nan``; in addition to that of each file's tag
            GDAL_NODATA. ``none``: the tag is not honoured. None: that of the tag.
        spacing: height and width of a pixel in um, for distances; None: from the resolution tags of the TIFFs, if
            all agree.
        val: share of the images in 0..1 for validation, unless folders give it; None: 0.2, or the fold.
        test: share of the images in 0..1 for the test, unless folders give it; the same for each fold.
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
        tool: Tool | None = None,
        annotations: str | None = None,
        classes: list[str] | None = None,
        colors: list[ColourList] | None = None,
        ignore: list[str] | None = None,
        unannotated: Unannotated = "skip",
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
        # Images and annotation files.
        check_choice("tool", tool, Tool)
        check_choice("unannotated", unannotated, Unannotated)
        self.root, self.task = find_image_root(root), task
        self.nodata, self.spacing = nodata, spacing
        self.border = choose_border(task, border, border_class)
        place = find_place(self.root, annotations)
        content = read_tool(tool, place)
        listed = list_files(self.root, tuple(IMAGE_SUFFIXES))
        masks = {file.resolve() for file in content.masks}
        images = [
            file.relative_to(self.root)
            for file in listed
            if is_image_file(file) and not (masks and file.resolve() in masks)
        ]
        others = list_files(self.root, tuple(suffix for suffix in CONVERSIONS if suffix))
        check_images_found(self.root, images, others)
        report_passed_over(self.root, others)
        annotated = match_images(content.images, images, self.root)
        warn_without_area(content.images, place)
        # Classes.
        present = {outline.label for one in content.images for outline in one.outlines}
        self.ignored = check_ignored(ignore, present | set(content.labels or ()), place)
        labels = [name for name in content.labels or sorted(present) if name not in self.ignored]
        categories: dict[CocoId, str] = dict(enumerate(labels))
        self.classes = choose_classes(classes, categories, task, place)
        self.covered = task == "overlapping" or self.classes[0] in labels
        self.annotated = self.classes if self.covered else self.classes[1:]
        check_categories(self.annotated, categories, False, place)
        check_task(task, self.classes, may_overlap=True)
        self.classes = learned_classes(self.classes, self.border)
        self.colors = class_colors(colors, self.classes, None, spare=task == "overlapping")
        # Entries, in the order of the images' names.
        kept = {*self.annotated, *self.ignored}
        entries = build_entries(images, annotated, self.root, kept, unannotated)
        self.entries = PackedRecords(entries)

        # Splits: by folders, or by the options.
        given = splits_by_folder(list(entries))
        given = given if {"train", "val"} <= set(given or ()) else None
        by = ("folders called train and val", "they say which image is where")
        division = SplitOptions(
            val, test, fold, folds, contiguous, group_by, stratify, lists, split_seed
        )
        names = {Path(entry.file).name: name for name, entry in entries.items()} | {
            n: n for n in entries
        }
        self.splits = division.splits(
            list(entries), self.class_presence, lambda lines: split_by_lists(lines, names), given, by
        )  # fmt: skip
        self.groups = find_groups(list(entries), group_by) if group_by is not None else None

    def draw_mask(self, entry: Entry, height: int, width: int) -> np.ndarray:
        """Return the mask of an entry, (H, W) or (H, W, K), as in ``read``; with ``instances`` the labels (H, W)."""
        overlapping = self.task == "overlapping"
        mask = self.empty_mask(height, width, *([len(self.classes)] if overlapping else []))
        # Ignored objects first, then large before small.
        drawn = [(o, draw_outline(o, height, width, entry.normalized)) for o in entry.outlines]

        def order(item: tuple[Outline, DrawnOutline]) -> tuple[bool, int]:
            return item[0].label not in self.ignored, -int(item[1].inside.sum())

        ordered = sorted(drawn, key=order)
        for number, (outline, (rows, columns, inside)) in enumerate(ordered, start=1):
            window = mask[rows, columns]
            if outline.label in self.ignored:
                window[inside] = self.void
            elif overlapping:
                window[inside, self.classes.index(outline.label)] = 1
            else:
                window[inside] = self.drawn_value(self.classes.index(outline.label), number)
        return mask

    def drawing_options(self) -> tuple[Any, ...]:
        return (sorted(self.ignored),)

    def class_presence(self, name: str) -> np.ndarray:
        """Return (K,) bool: True for each class annotated in the image, and for the class of the rest."""
        present = np.zeros(len(self.classes), bool)
        present[0] = not self.covered
        for outline in self.entries[name].outlines:
            if outline.label not in self.ignored:
                present[self.classes.index(outline.label)] = True
        return present


def find_place(root: Path, annotations: str | None) -> Path:
    """Return the file or folder of the annotations.

    Raises:
        DataError: if it does not exist.
    """
    if annotations is None:
        return root
    if not Path(annotations).exists():
        raise DataError(f"data.annotations={annotations}: no such file or folder; give either")
    return Path(annotations)


def read_tool(tool: Tool | None, place: Path) -> ToolAnnotations:
    """Return the content of a tool's files; the first tool that has any if None is named.

    Raises:
        DataError: if there is no file of the tool.
    """
    content = ToolAnnotations([])
    for name in [tool] if tool else TOOL_TITLES:
        content = import_module(f"seg.data.datasets.tools.{name}").read_annotations(place)
        if content.images:
            return content
    wanted = TOOL_TITLES[tool] if tool else f"any of {', '.join(TOOL_TITLES.values())}"
    raise DataError(
        f"{place}: no {wanted} found here; give data.annotations, the file or the folder"
    )


def match_images(
    annotated: list[AnnotatedImage], images: list[Path], root: Path
) -> dict[Path, AnnotatedImage]:
    """Return image -> its annotations; an image is looked for as in ``find_image``, and by the name of its file.

    Args:
        annotated: what the tool's files hold.
        images: paths of the image files, relative to ``root``.
        root: folder of the images.

    Raises:
        DataError: if an image is missing or ambiguous, or has annotations twice.
    """
    index = index_images(images)
    found: dict[Path, AnnotatedImage] = {}
    for one in annotated:
        image = find_image(one.image, one.file, root, index)
        image = image or find_image(one.file.stem, one.file, root, index)
        if image is None:
            name = PureWindowsPath(one.image).name
            raise DataError(f"{one.file}: its image {name} is not in {root}; add it, or remove the annotations")  # fmt: skip
        if image in found:
            raise DataError(
                f"{one.file}: {image} is annotated in {found[image].file} too; keep one of the two"
            )
        found[image] = one
    return found


def warn_without_area(images: list[AnnotatedImage], place: Path) -> None:
    """Warn of objects that are left out since they have no area."""
    if counts := Counter(kind for one in images for kind in one.without_area):
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
        log.warning(f"{place}: left out, since they have no area: {kinds}")


def check_ignored(ignore: list[str] | None, labels: set[str], place: Path) -> set[str]:
    """Return the labels to ignore.

    Raises:
        DataError: if one does not occur.
    """
    missing = sorted(set(ignore or ()) - labels)
    if missing:
        raise DataError(
            f"data.ignore={ignore}: no label {missing[0]!r} in {place}; it has {describe_labels(labels)}"
        )
    return set(ignore or ())


def build_entries(
    images: list[Path], annotated: dict[Path, AnnotatedImage], root: Path, kept: set[str], unannotated: Unannotated
) -> dict[str, Entry]:  # fmt: skip
    """Return name -> entry of each image that is used.

    Raises:
        DataError: if two images have the same name.
    """
    entries: dict[str, Entry] = {}
    left_out = []
    for image in images:
        one = annotated.get(image)
        if one is None and unannotated == "skip":
            left_out.append(image.as_posix())
            continue
        outlines = [o for o in one.outlines if o.label in kept] if one else []
        name = image.with_suffix("").as_posix()
        if name in entries:
            raise DataError(
                f"{root}: {Path(entries[name].file).name} and {image.name} are both called {name}; keep one, or rename it"
            )
        size, source = (one.size, one.file) if one else (None, None)
        entries[name] = Entry(
            image.as_posix(), size, source, outlines, bool(one and one.normalized)
        )
    if left_out:
        log.warning(
            f"{root}: {len(left_out)} of {len(images)} images have no annotations and are left out, "
            f"{shorten_list(left_out)}; data.unannotated=background takes them as background"
        )
    return entries
