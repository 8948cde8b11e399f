"""A folder of images and one of masks, paired by file name."""

from pathlib import Path

import numpy as np

from seg.data.images import list_images, read_image, read_pages
from seg.data.masks import MaskValues, stacked_planes
from seg.data.sources import DataError, Task, check_task
from seg.panels import default_colors


class Folder:
    """Images and masks paired by name, split as the folders lie or at random by image.

    Args:
        root: holds ``images/`` and ``masks/``, or ``train/`` and ``val/`` (and ``test/``) that do.
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 a class; None: a readable palette.
        images: name of the folder of images.
        masks: name of the folder of masks.
        values: mask value on disk -> class index; None: the values are the indices.
        ignore: mask values on disk that nobody counts.
        val: share of the images in 0..1 that validates, where the folders don't say.
        test: share of the images in 0..1 kept for the test, likewise.
        split_seed: of the random split.
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
        val: float = 0.2,
        test: float = 0.0,
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
        self.splits = {s: list(p) for s, p in pairs.items()}
        if not split_by_folder:
            self.splits = random_split(self.splits["all"], val, test, split_seed, self.root)

    def pair(self, folder: Path) -> dict[str, tuple[Path, Path]]:
        """Image name -> files of image and mask."""
        images, masks = (list_images(folder / part) for part in self.parts)
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
        image = read_image(image_file)
        if self.task == "overlapping":
            planes = stacked_planes(read_pages(mask_file), self.classes, mask_file)
            mask = np.stack([self.values.indices(plane, mask_file) for plane in planes], axis=-1)
        else:
            mask = self.values.indices(read_mask(mask_file), mask_file)
        if mask.shape[:2] != image.shape[:2]:
            raise DataError(
                f"{mask_file}: {mask.shape[0]}x{mask.shape[1]} px, and its image {image_file} "
                f"{image.shape[0]}x{image.shape[1]} (height x width); they must be equal"
            )
        return image, mask


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


def random_split(
    names: list[str], val: float, test: float, seed: int, root: Path
) -> dict[str, list[str]]:
    """Names drawn into train, val and test (if any), each in its own order of names."""
    if not (val > 0 and test >= 0 and val + test < 1):
        raise DataError(
            f"data.val={val} and data.test={test}: shares of 0..1 that leave some to train on"
        )
    counts = {"val": max(1, round(val * len(names))), "test": round(test * len(names))}
    if len(names) <= sum(counts.values()):
        raise DataError(
            f"{root}: {len(names)} images can't be split into train {counts}; add images"
        )
    drawn = np.random.default_rng(seed).permutation(len(names)).tolist()
    splits = {}
    for split, count in counts.items():
        splits[split], drawn = sorted(names[i] for i in drawn[:count]), drawn[count:]
    splits = {"train": sorted(names[i] for i in drawn), **splits}
    return {split: members for split, members in splits.items() if members}
