"""Base of data sets whose masks are drawn from annotations when an image is read."""

import hashlib
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from seg.data.datasets.base import ObjectBorder, PackedRecords, Task, ignore_nodata
from seg.data.datasets.tools.parsing import list_files
from seg.data.image_files import IMAGE_SUFFIXES
from seg.data.image_io import read_image, read_orientation
from seg.data.masks import shorten_list, size_mismatch_error
from seg.data.nodata import NodataOption, nodata_values
from seg.data.spacing import Spacing, pixel_spacing
from seg.data.tiff import apply_orientation
from seg.errors import DataError
from seg.labels import IGNORE
from seg.objects import IGNORED_OBJECT


class AnnotatedSource:
    """Images and annotations; a subclass draws the mask.

    Attributes:
        root: folder of the images.
        classes: names in the order of the mask's values.
        annotated: classes that annotations have: all, or all but the first, which is the rest.
        covered: True if annotations have the first class, too.
        task: ``classes``, ``instances`` or ``overlapping``.
        border: between objects; with ``instances`` each annotation is one.
        nodata: option ``data.nodata``.
        spacing: option ``data.spacing``.
        entries: name of an image -> its entry, with at least ``file``: path inside ``root``; ``size``: height and
            width that the annotations state, or None; ``source``: the annotation file, or None.
    """

    root: Path
    classes: list[str]
    annotated: list[str]
    covered: bool = False
    task: Task
    border: ObjectBorder = ObjectBorder()
    nodata: NodataOption | None
    spacing: Spacing | None
    entries: PackedRecords

    def draw_mask(self, entry: Any, height: int, width: int) -> np.ndarray:
        """Return the mask of an entry, (H, W) or (H, W, K), as in ``read``; with ``instances`` the labels (H, W)."""
        raise NotImplementedError

    def drawing_options(self) -> tuple[Any, ...]:
        """Return the options on which the drawn mask depends."""
        raise NotImplementedError

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return image (H, W, C), and mask (H, W) uint8 of class indices or (H, W, K) of 0 and 1; 255 = ignore."""
        image, drawn = self.read_drawn(name)
        return image, self.border.learned_mask(drawn) if self.border.separate else drawn

    def read_objects(self, name: str) -> np.ndarray:
        """Return the labels (H, W) int32 of the annotated objects; 0 outside, -1 where ignored."""
        return self.read_drawn(name)[1]

    def read_drawn(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return image (H, W, C), and what ``draw_mask`` draws."""
        entry, file, nodata = self.entries[name], self.image_file(name), self.nodata_values(name)
        image = read_image(file, nodata=nodata)
        height, width = image.shape[:2]
        # Of an image that its tag turns by a quarter, the stated size says whether the stored pixels were annotated.
        if entry.size == (width, height) != (height, width):
            orientation = read_orientation(file)
            if orientation >= 5:
                mask = apply_orientation(self.draw_mask(entry, width, height), orientation)
                return ignore_nodata(image, mask, nodata, self.void)
        if entry.size not in (None, (height, width)):
            remedy = "take the image that was annotated"
            raise size_mismatch_error(entry.source, entry.size, file, image.shape, remedy)
        return ignore_nodata(image, self.draw_mask(entry, height, width), nodata, self.void)

    def image_file(self, name: str) -> Path:
        """Return the path of an image."""
        return self.root / self.entries[name].file

    def nodata_values(self, name: str) -> tuple[float, ...]:
        """Return the values that mean no data in an image: the option's first, and its tag's."""
        return nodata_values(self.nodata, self.image_file(name))

    def pixel_spacing(self) -> tuple[float, float] | None:
        """Return the height and width of a pixel in um; None if it is not known."""
        return pixel_spacing(self.spacing, map(self.image_file, self.entries))

    @property
    def void(self) -> int:
        """Value of an ignored pixel in what ``draw_mask`` draws."""
        return IGNORED_OBJECT if self.border.separate else IGNORE

    def empty_mask(self, *shape: int) -> np.ndarray:
        """Return a mask without objects: the rest, or ignored if the first class is annotated itself."""
        dtype = np.int32 if self.border.separate else np.uint8
        rest = self.void if self.covered and self.task != "overlapping" else 0
        return np.full(shape, rest, dtype)

    def drawn_value(self, index: int, number: int) -> int:
        """Return the value of an annotation in the mask: that of its class, or its number among the objects."""
        return number if self.border.separate and index == 1 else index

    def stamp(self, name: str) -> str:
        """Return a text that changes when the result of ``read`` may have changed."""
        file = self.image_file(name)
        status, content = file.stat(), hashlib.sha256(self.entries.packed_bytes(name)).hexdigest()
        options = (
            self.classes,
            self.annotated,
            self.task,
            self.nodata,
            self.border,
            *self.drawing_options(),
        )
        return f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {content} {options}"


UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # of names in Label Studio


def list_image_files(root: Path) -> list[Path]:
    """Return the paths of the images in a folder and its subfolders, relative to it."""
    return [file.relative_to(root) for file in list_files(root, tuple(IMAGE_SUFFIXES))]


def index_images(images: list[Path]) -> dict[str, list[Path]]:
    """Return the images of each path and name, with and without suffix."""
    index: dict[str, list[Path]] = {}
    for image in images:
        for key in {image.as_posix(), image.name, image.with_suffix("").as_posix(), image.stem}:
            index.setdefault(key, []).append(image)
    return index


def find_image(written: str, file: Path, root: Path, index: dict[str, list[Path]]) -> Path | None:
    """Return the image that an annotation file names, relative to ``root``; None if it is not there.

    It is looked for by its path from the annotation file, by its path from ``root``, by its name anywhere in
    ``root``, and by its name without the prefix of an upload.

    Args:
        written: path or name in the file, with slashes of either kind.
        file: annotation file.
        root: folder of the images.
        index: of ``index_images``.

    Raises:
        DataError: if several images have the name.
    """
    path = PureWindowsPath(written)  # splits at slashes of both kinds
    keys = [path.as_posix(), path.name, UPLOAD_PREFIX.sub("", path.name, count=1)]
    if file.parent.is_relative_to(root):
        folder = file.parent.relative_to(root)
        keys = [(folder / path.as_posix()).as_posix(), (folder / path.name).as_posix(), *keys]
    for key in keys:
        several = index.get(key, [])
        if len(several) > 1:
            raise DataError(
                f"{file}: {shorten_list([str(one) for one in several])} are both called {key}; rename them, or "
                "give data.root of one folder"
            )
        if several:
            return several[0]
    return None


def find_image_root(root: str | None) -> Path:
    """Return the folder of the images.

    Raises:
        DataError: if it is not given or does not exist.
    """
    if root is None:
        raise DataError("data.root is not set: give the folder of the images")
    if not Path(root).is_dir():
        raise DataError(f"data.root={root}: no such folder; give the folder of the images")
    return Path(root)
