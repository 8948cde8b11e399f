"""The ISBI 2012 challenge: 30 labelled sections of a fruit fly's nerve cord, membranes against cells."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from seg.data.datasets.base import Task, check_task
from seg.data.datasets.download import cache_folder, fetch_files
from seg.data.image_io import as_image, read_pages
from seg.data.masks import MaskValues
from seg.data.partition import Splits, block_parts, split_by_fold
from seg.data.sections import NeighboursOption, Place, Sections
from seg.data.spacing import Spacing, pixel_spacing
from seg.errors import DataError

VOLUME_FILE, LABELS_FILE = "train-volume.tif", "train-labels.tif"
ISBI_FILES = {"volume": VOLUME_FILE, "labels": LABELS_FILE}
MANUAL_DOWNLOAD = (
    f"download {VOLUME_FILE} and {LABELS_FILE} by hand (https://imagej.net/events/isbi-2012-segmentation-challenge) and "
    "give their folder, data.root=FOLDER"
)


class ISBI2012:
    """The labelled sections of the challenge, in its own layout; a contiguous block of sections validates.

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142. Neighbouring sections are similar, so that a
    block is a harder and more honest validation than a random split.

    Args:
        root: folder of train-volume.tif and train-labels.tif; None: they are downloaded once.
        url: address of a zip or tar archive that holds the two files.
        sha256: SHA-256 of the pixels of ``volume`` and ``labels``, page after page, for a download; None: not
            checked.
        timeout: seconds that the server may be silent.
        fold: index of the block of sections that validates, 0 .. folds - 1.
        folds: number of blocks.
        val: sections that validate instead of a block, for a published split.
        spacing: height and width of a pixel in um, for distances; None: from the resolution tags of the TIFFs, if
            all agree.
        task: ``instances``: the cells are also scored as objects; or ``classes``.
        neighbours: sections on each side that the network sees as further channels; see ``seg.data.sections``.

    Raises:
        DataError: if a file is missing or invalid, or the fold or a section does not exist.
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
        spacing: Spacing | None = None,
        task: Task = "instances",
        neighbours: NeighboursOption = 0,
    ) -> None:
        # Files.
        check_task(task, self.classes)
        self.task: Task = task
        # Folder of the volume: the user's or the download cache
        folder = cached_challenge(url, sha256, timeout) if root is None else Path(root)
        if not folder.is_dir():
            raise DataError(
                f"data.root={root}: no such folder; it must hold {VOLUME_FILE} and {LABELS_FILE}"
            )
        # Sections and their labels, which must match.
        values = MaskValues(self.classes, values={0: 0, 255: 1}, ignore=[])
        self.spacing, self.volume = spacing, folder / VOLUME_FILE
        self.images = convert_pages(folder / VOLUME_FILE, as_image)
        self.masks = convert_pages(folder / LABELS_FILE, values.indices)
        shapes = [[i.shape[:2] for i in self.images], [m.shape for m in self.masks]]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{folder}: {VOLUME_FILE} holds {format_sections(shapes[0])} and {LABELS_FILE} {format_sections(shapes[1])}; "
                "they must match section by section"
            )
        # Splits; the neighbours of a section may be in another one.
        names = [f"section-{i:02d}" for i in range(len(self.images))]
        places = {name: Place(VOLUME_FILE, section) for section, name in enumerate(names)}
        self.sections = Sections(places, neighbours) if neighbours else None
        self.splits = (
            split_by_fold(names, fold, folds, 0, block_parts)
            if val is None
            else split_by_sections(names, val)
        )

    def pixel_spacing(self) -> tuple[float, float] | None:
        """Return the height and width of a pixel in um; None if it is not known."""
        return pixel_spacing(self.spacing, [self.volume])

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a section (H, W, 1) uint8 and its mask (H, W) uint8: 0 membrane, 1 cell."""
        section = int(name.rsplit("-", 1)[1])
        return self.images[section], self.masks[section]


def split_by_sections(names: list[str], val: list[int]) -> Splits:
    """Return the split in which these sections validate and the others train.

    Raises:
        DataError: if a section does not exist or is given twice, or none is left to train on.
    """
    validation = {names[section] for section in val if 0 <= section < len(names)}
    if not 0 < len(validation) < len(names) or len(validation) < len(val):
        raise DataError(
            f"data.val={val}: give some of the sections 0 to {len(names) - 1}, each once, and leave some to train on"
        )
    training = [name for name in names if name not in validation]
    return {"train": training, "val": [name for name in names if name in validation]}


def convert_pages(file: Path, read: Callable[[np.ndarray, str], np.ndarray]) -> list[np.ndarray]:
    """Return the result of ``read`` for each page of a stack; its errors name the page, from 0."""
    return [
        read(page, f"{file}, page {n}") for n, page in enumerate(read_pages(file, pages="slices"))
    ]


def cached_challenge(url: str | None, sha256: dict[str, str] | None, timeout: float) -> Path:
    """Return the cache folder of the two files; they are downloaded if missing or damaged.

    Raises:
        DataError: if they cannot be downloaded, or do not have the pixels of ``sha256``.
    """
    if url is None:
        raise DataError(f"data.root is not set, and data.url neither; {MANUAL_DOWNLOAD}")
    if sha256 is not None and set(sha256) != set(ISBI_FILES):
        raise DataError(
            f"data.sha256 names {sorted(sha256)}: volume and labels are needed, or null"
        )
    # Download unless the cache holds the right pixels.
    folder = cache_folder("isbi2012", url)
    if find_fault(folder, sha256):
        try:
            fetch_files(
                url, ISBI_FILES.values(), folder, timeout, lambda part: find_fault(part, sha256)
            )
        except DataError as error:
            raise DataError(f"{error}; {MANUAL_DOWNLOAD}") from error
    return folder


def find_fault(folder: Path, sha256: dict[str, str] | None) -> str | None:
    """Return what is wrong with the two files of a folder; None: nothing.

    Copies of the challenge differ in the encoding of the TIFF, not in its pixels; so the pixels are hashed.
    """
    for key, name in ISBI_FILES.items():
        try:
            pages = read_pages(folder / name, pages="slices")
        except DataError as error:
            return str(error).replace(f"{folder}/", "")
        digest = hashlib.sha256(b"".join(page.tobytes() for page in pages)).hexdigest()
        if sha256 is not None and digest != sha256[key].lower():
            return (
                f"{name}: SHA-256 of its pixels is {digest}, but data.sha256.{key} is {sha256[key]}"
            )
    return None


def format_sections(shapes: list[tuple[int, int]]) -> str:
    """Return number and sizes of sections, for a message."""
    sizes = ", ".join(f"{h}x{w}" for h, w in sorted(set(shapes)))
    return f"{len(shapes)} sections of {sizes} px"
