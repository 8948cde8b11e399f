"""The ISBI 2012 challenge: 30 labelled sections of a fruit fly's nerve cord, membranes against cells."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from seg.data.datasets.base import Task, check_task
from seg.data.datasets.download import cache_folder, fetch
from seg.data.image_io import as_image, read_pages
from seg.data.masks import MaskValues
from seg.data.partition import Splits, fold_split, in_blocks
from seg.errors import DataError

VOLUME, LABELS = "train-volume.tif", "train-labels.tif"
FILES = {"volume": VOLUME, "labels": LABELS}
BY_HAND = (
    f"get {VOLUME} and {LABELS} by hand (https://imagej.net/events/isbi-2012-segmentation-challenge) and "
    "give their folder, data.root=FOLDER"
)


class ISBI2012:
    """Labelled sections in the challenge's own layout; one contiguous block of them validates.

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142. Neighbouring sections resemble each
    other, so a block is a harder and more honest validation than a random draw.

    Args:
        root: folder of train-volume.tif and train-labels.tif; None: they are downloaded once.
        url: of a zip or tar archive that holds the two files.
        sha256: of ``volume`` and ``labels``: SHA-256 of the pixels of a download, page after page; None: not
            looked at.
        timeout: seconds that the server may be silent.
        fold: which block of sections validates, 0 .. folds - 1.
        folds: number of blocks.
        val: the sections that validate instead of a block, for a division that was published.
        task: ``instances``: the cells are also counted one by one.

    Raises:
        DataError: when a file is missing or isn't what it should be, or the fold or a section isn't there.
    """

    classes: list[str] = ["membrane", "cell"]  # noqa: RUF012  (a constant of the challenge)
    colors: list[tuple[int, int, int]] = [(20, 60, 120), (255, 190, 60)]  # noqa: RUF012

    def __init__(
        self,
        root: str | None,
        url: str | None = None,
        sha256: dict[str, str] | None = None,
        timeout: Annotated[float, Field(gt=0)] = 10.0,
        fold: Annotated[int, Field(ge=0)] = 4,
        folds: Annotated[int, Field(ge=2)] = 5,
        val: list[Annotated[int, Field(ge=0)]] | None = None,
        task: Task = "instances",
    ) -> None:
        check_task(task, self.classes)
        self.task: Task = task
        folder = downloaded(url, sha256, timeout) if root is None else Path(root)
        if not folder.is_dir():
            raise DataError(f"data.root={root}: no such folder; it must hold {VOLUME} and {LABELS}")
        values = MaskValues(self.classes, values={0: 0, 255: 1}, ignore=[])
        self.images = page_by_page(folder / VOLUME, as_image)
        self.masks = page_by_page(folder / LABELS, values.indices)
        shapes = [[i.shape[:2] for i in self.images], [m.shape for m in self.masks]]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{folder}: {VOLUME} holds {describe(shapes[0])} and {LABELS} {describe(shapes[1])}; "
                "they must match section by section"
            )
        names = [f"section-{i:02d}" for i in range(len(self.images))]
        self.splits = (
            fold_split(names, fold, folds, 0, in_blocks) if val is None else chosen(names, val)
        )

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Section (H, W, 1) uint8 and its mask (H, W) uint8: 0 membrane, 1 cell."""
        section = int(name.rsplit("-", 1)[1])
        return self.images[section], self.masks[section]


def chosen(names: list[str], val: list[int]) -> Splits:
    """These sections validate, the others train."""
    held = {names[section] for section in val if 0 <= section < len(names)}
    if not 0 < len(held) < len(names) or len(held) < len(val):
        raise DataError(
            f"data.val={val}: give some of the sections 0 to {len(names) - 1}, each once, and leave some to train on"
        )
    return {"train": [n for n in names if n not in held], "val": [n for n in names if n in held]}


def page_by_page(file: Path, read: Callable[[np.ndarray, str], np.ndarray]) -> list[np.ndarray]:
    """What is read of each page of a stack; errors name the page, from 0 as the sections are."""
    return [read(page, f"{file}, page {n}") for n, page in enumerate(read_pages(file))]


def downloaded(url: str | None, sha256: dict[str, str] | None, timeout: float) -> Path:
    """The folder of the cache that holds the two files; they are fetched if they aren't there, or spoilt.

    Raises:
        DataError: when they can't be had, or aren't those that ``sha256`` names.
    """
    if url is None:
        raise DataError(f"data.root is not set, nor data.url; {BY_HAND}")
    if sha256 is not None and set(sha256) != set(FILES):
        raise DataError(
            f"data.sha256 names {sorted(sha256)}: volume and labels are needed, or null"
        )
    folder = cache_folder("isbi2012", url)
    if fault(folder, sha256):
        try:
            fetch(url, FILES.values(), folder, timeout, lambda part: fault(part, sha256))
        except DataError as error:
            raise DataError(f"{error}; {BY_HAND}") from error
    return folder


def fault(folder: Path, sha256: dict[str, str] | None) -> str | None:
    """What is wrong with the two files of a folder, or None.

    Copies of the challenge differ in how the TIFFs are written, not in their pixels; so these are hashed.
    """
    for key, name in FILES.items():
        try:
            pages = read_pages(folder / name)
        except DataError as error:
            return str(error).replace(f"{folder}/", "")
        found = hashlib.sha256(b"".join(page.tobytes() for page in pages)).hexdigest()
        if sha256 is not None and found != sha256[key].lower():
            return f"{name}: SHA-256 of its pixels is {found}, and data.sha256.{key} names {sha256[key]}"
    return None


def describe(shapes: list[tuple[int, int]]) -> str:
    sizes = ", ".join(f"{h}x{w}" for h, w in sorted(set(shapes)))
    return f"{len(shapes)} sections of {sizes} px"
