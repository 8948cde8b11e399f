"""A folder of images and one of masks, paired by file name."""

from pathlib import Path

import numpy as np

from seg.data.images import list_images, read_image, read_pages
from seg.data.masks import MaskValues, stacked_planes
from seg.data.sources import DataError, Task, check_task
from seg.data.splits import (
    Splits,
    check_apart,
    divide,
    groups_of,
    listed_split,
    read_lists,
    refuse,
)
from seg.logits import IGNORE
from seg.panels import default_colors


class Folder:
    """Images and masks paired by name, split as the folders lie, as lists say, or by seg.data.splits.

    Args:
        root: holds ``images/`` and ``masks/``, or ``train/`` and ``val/`` (and ``test/``) that do.
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 a class; None: a readable palette.
        images: name of the folder of images.
        masks: name of the folder of masks.
        values: mask value on disk -> class index; None: the values are the indices.
        ignore: mask values on disk that nobody counts.
        val: share of the images in 0..1 that validates, where no folders say; None: 0.2, or the fold.
        test: share of the images in 0..1 kept for the test, where no folders say; the same for each fold.
        fold: which of ``folds`` validates, 0 .. folds - 1; None: the share ``val``.
        folds: number of folds.
        blocks: contiguous in the order of names instead of random.
        group_by: regular expression that finds an image's group in its name; groups stay on one side.
        stratify: each part gets its share of the images in which a class occurs.
        lists: folder of train.txt, val.txt and perhaps test.txt, or a file for each; a name a line.
        split_seed: of what is random in the split.
        task: ``overlapping``: a mask has a page for each class, 0 where it isn't, 1 or 255 where it is
            (or as ``values`` says).

    Raises:
        DataError: when a folder, a mask or a setting is missing or wrong.
    """

    def __init__(
        self,
        root: str | None,
        classes: list[str] | None,
        colors: list[list[int]] | None = None,
        images: str = "images",
        masks: str = "masks",
        values: dict[int, int] | None = None,
        ignore: list[int] | None = None,
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
        self.root = existing_root(root, images, masks)
        self.parts = (images, masks)
        split_by_folder = not (self.root / images).is_dir()
        if split_by_folder:
            present = [s for s in ("train", "val", "test") if (self.root / s).is_dir()]
            pairs = {s: self.pair(self.root / s) for s in present}
            for split in {"train", "val"} - set(present):
                raise DataError(
                    f"{self.root}: {split}/ is missing beside {present}; make it, or {images}/"
                )
        else:
            pairs = {"all": self.pair(self.root)}
        self.files = {name: files for split in pairs.values() for name, files in split.items()}
        if classes is None:
            raise DataError(self.name_the_classes())
        check_task(task, classes, may_overlap=True)
        self.classes, self.task = classes, task
        if task == "overlapping":
            present = {0: 0, 1: 1, 255: 1} if values is None else values
            self.values = MaskValues(["absent", "present"], present, ignore or [])
        else:
            self.values = MaskValues(classes, values, ignore or [])
        self.colors = given_colors(colors, len(classes), spare=task == "overlapping")
        choice = {"fold": fold, "blocks": blocks, "stratify": stratify}
        groups = None if group_by is None else groups_of(list(self.files), group_by)
        if split_by_folder:
            where = "train/ and val/ in data.root"
            refuse(choice | {"lists": lists}, where, "the folders say which image is on which side")
            self.splits = {s: list(p) for s, p in pairs.items()}
        elif lists is not None:
            shares = {"val": val, "test": test or None}
            refuse(choice | shares, "data.lists", "the lists say which image is on which side")
            self.splits = self.listed(lists)
        else:
            names, presence = list(self.files), self.presence if stratify else None
            self.splits = divide(
                names, val, test, fold, folds, blocks, split_seed, groups, presence
            )
        if groups is not None:
            check_apart(self.splits, groups)

    def pair(self, folder: Path) -> dict[str, tuple[Path, Path]]:
        """Image name -> files of image and mask."""
        images, masks = (list_images(folder / part) for part in self.parts)
        for files in (images, masks):
            check_names(files)
        masks_by_stem = {m.stem: m for m in masks}
        lonely = [i for i in images if i.stem not in masks_by_stem]
        if lonely:
            raise DataError(
                f"{lonely[0]}: no mask of that name in {folder / self.parts[1]}"
                f"{f' ({len(lonely)} such images)' if len(lonely) > 1 else ''}; add it or take the image out"
            )
        unused = sorted(set(masks_by_stem) - {i.stem for i in images})
        if unused:
            raise DataError(
                f"{masks_by_stem[unused[0]]}: no image of that name in {folder / self.parts[0]}; "
                "add it or take the mask out"
            )
        prefix = "" if folder == self.root else f"{folder.name}/"
        return {f"{prefix}{i.stem}": (i, masks_by_stem[i.stem]) for i in images}

    def name_the_classes(self) -> str:
        found = sorted(
            {
                value
                for _, mask in list(self.files.values())[:20]
                for page in read_pages(mask)
                for value in np.unique(page).tolist()
            }
        )
        return (
            "data.classes is not set: name the classes in the order of the mask's values, "
            f"data.classes=[background,cell]; the first masks of {self.root} hold {found[:20]}"
        )

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask (H, W) uint8 of class indices, or (H, W, K) of 0 and 1; 255 = ignore."""
        image_file, mask_file = self.files[name]
        image, mask = read_image(image_file), self.mask(mask_file)
        if mask.shape[:2] != image.shape[:2]:
            raise DataError(
                f"{mask_file}: {mask.shape[0]}x{mask.shape[1]} px, and its image {image_file} "
                f"{image.shape[0]}x{image.shape[1]} (height x width); they must be equal"
            )
        return image, mask

    def mask(self, file: Path) -> np.ndarray:
        """(H, W) or (H, W, K), as ``read`` gives it."""
        if self.task != "overlapping":
            return self.values.indices(read_mask(file), file)
        planes = stacked_planes(read_pages(file), self.classes, file)
        return np.stack([self.values.indices(plane, file) for plane in planes], axis=-1)

    def presence(self, name: str) -> np.ndarray:
        """Whether each class occurs in the image of that name, (C,) bool."""
        mask = self.mask(self.files[name][1])
        if mask.ndim == 3:
            return (mask == 1).any((0, 1))
        return np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(self.classes)] > 0

    def listed(self, lists: str | dict[str, str]) -> Splits:
        """The splits that lists give, of names with or without the file's suffix."""
        with_suffix = {image.name: name for name, (image, _) in self.files.items()}
        return listed_split(read_lists(lists), with_suffix | {name: name for name in self.files})


def check_names(files: list[Path]) -> None:
    """Raises DataError when two files have one name but for the suffix."""
    named: dict[str, Path] = {}
    for file in files:
        if (other := named.setdefault(file.stem, file)) is not file:
            raise DataError(f"{other}: {file.name} beside it has the same name; keep one of them")


def existing_root(root: str | None, images: str, masks: str) -> Path:
    layout = f"it must hold {images}/ and {masks}/, or train/ and val/ that hold them"
    if root is None:
        raise DataError(f"data.root is not set: give the folder of the data; {layout}")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; {layout}")
    if not (folder / images).is_dir() and not (folder / "train").is_dir():
        raise DataError(f"data.root={root}: neither {images}/ nor train/ in it; {layout}")
    return folder


def read_mask(file: Path) -> np.ndarray:
    pages = read_pages(file)
    if len(pages) != 1:
        raise DataError(f"{file}: {len(pages)} pages where one mask is expected; split the stack")
    return pages[0]


def given_colors(
    colors: list[list[int]] | None, classes: int, spare: bool
) -> list[tuple[int, int, int]]:
    """One colour a class; the readable palette's first one can be spared for none of them."""
    if colors is None:
        return default_colors(classes + spare)[spare:]
    good = all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in colors)
    if len(colors) != classes or not good:
        raise DataError(
            f"data.colors={colors}: give one [red,green,blue] in 0..255 for each of {classes} classes"
        )
    return [(c[0], c[1], c[2]) for c in colors]
