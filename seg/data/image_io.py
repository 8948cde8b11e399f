"""Reads and writes image files: PNG, JPEG and the like through Pillow, TIFF through tifffile."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from seg.data.tiff import TIFF, check_last, count, stored
from seg.errors import DataError

SUFFIXES = TIFF | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder by name; other files and hidden ones are left out.

    Raises:
        DataError: when the folder isn't there or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(os.listdir(folder))  # names, for they sort much faster than paths
    files = [file for file in map(folder.joinpath, names) if is_image(file)]
    if not files:
        raise DataError(f"{folder}: no images here; looked for {', '.join(sorted(SUFFIXES))}")
    return files


def is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def read_pages(file: Path, page: int | None = None, colours: bool = False) -> list[np.ndarray]:
    """The pages of a TIFF, or the one image of another file, each (H, W) or (H, W, C) as stored.

    Args:
        file: to read.
        page: which one alone, from 0; None: all.
        colours: a palette image gives its colours, not its indices.

    Raises:
        DataError: when the file can't be read whole, or isn't a TIFF and has several images.
    """
    if not file.is_file():
        raise DataError(file=file, found="no such file", kind="unreadable")
    with decoding(file):
        if file.suffix.lower() in TIFF:
            with tifffile.TiffFile(file) as tiff:
                return stored(tiff, file, page, colours)
        with Image.open(file) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with its own thumbnail
                raise DataError(
                    f"{file}: {frames} frames where one image is expected; save each as a file of its own, or all as "
                    "the pages of a TIFF"
                )
            return [pixels(image, colours)]


@contextmanager
def decoding(file: Path) -> Generator[None]:
    """Errors of decoders, which raise every kind, become one that names the file; warnings go untold."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason if len(reason) < 200 else f"{reason[:197]}..."  # some list a whole tag
        found = f"not a readable image ({reason})"
        raise DataError(file=file, found=found, kind="unreadable") from error


def count_pages(file: Path) -> int:
    """Pages of a TIFF; 1 of another file.

    Raises:
        DataError: when it can't be read.
    """
    if file.suffix.lower() not in TIFF:
        return 1
    with decoding(file), tifffile.TiffFile(file) as tiff:
        check_last(tiff)
        return count(tiff)


def pixels(image: Image.Image, colours: bool) -> np.ndarray:
    """Pixels as stored, without alpha: a palette's indices or its colours, of a 1-bit image 0 and 255.

    A GIF has greys or colours: what it is written by numbers them anew in each file.
    """
    if image.format == "GIF":
        rgb = np.array(image.convert("RGB"))
        return rgb[..., 0] if (rgb == rgb[..., :1]).all() else rgb
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La") or (
        colours and image.mode in ("P", "PA")
    ):
        image = image.convert("RGB")
    array = np.array(image)
    if image.mode in ("LA", "PA"):
        return array[..., 0]
    return array[..., :3] if image.mode == "RGBA" else array


def read_image(file: Path, page: int | None = None, channels: bool = False) -> np.ndarray:
    """One image (H, W, C) uint8, uint16 or float32; alpha is dropped, a palette becomes colours.

    Args:
        file: to read.
        page: of a stack, from 0; None: the file is one image.
        channels: whether a TIFF's pages are the channels of one image.

    Raises:
        DataError: when unreadable, of several pages without leave, or not finite.
    """
    pages = read_pages(file, page, colours=file.suffix.lower() not in TIFF)
    if len(pages) != 1:
        if not channels:
            raise DataError(
                f"{file}: {len(pages)} pages where one image is expected; split the stack, or take each page as an "
                "image (data.pages=slices) or as a channel (data.pages=channels)"
            )
        if len({(one.shape, one.dtype) for one in pages}) > 1 or pages[0].ndim != 2:
            shapes = ", ".join(sorted({f"{one.shape} {one.dtype}" for one in pages}))
            raise DataError(f"{file}: pages of {shapes}; data.pages=channels needs equal ones")
        return as_image(np.stack(pages, axis=-1), file)
    return as_image(pages[0], file if page is None else f"{file}, page {page}")


def as_image(page: np.ndarray, file: Path | str) -> np.ndarray:
    """A page as (H, W, C) uint8, uint16 or float32.

    Raises:
        DataError: when it has no pixels, another shape or type, or values that aren't finite.
    """
    image = page[..., None] if page.ndim == 2 else page
    if image.ndim != 3 or not image.size:
        raise DataError(
            f"{file}: shape {page.shape}; an image of (height, width[, channels]) is needed"
        )
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype == np.int32 and image.min() >= 0 and image.max() <= 65535:
        return np.array(image, np.uint16)  # Pillow's mode I: 16-bit PNG in its older releases
    if image.dtype.kind not in "fiu":
        found, remedy = f"values of type {image.dtype}", "integers or floats are needed"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    image = np.array(image, np.float32)  # in memory, also where the file is mapped
    bad = int((~np.isfinite(image)).sum())
    if bad:
        found = f"{bad} of {image.size} values are NaN or infinite"
        raise DataError(file=file, found=found, remedy="replace them first", kind="pixels")
    return image


def write_mask(file: Path, mask: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    """Class indices (H, W) uint8 as a PNG whose values are the indices and that shows the colours."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)


def write_png(file: Path, image: np.ndarray) -> None:
    """(H, W) or (H, W, 3) uint8 as PNG."""
    Image.fromarray(image).save(file)
