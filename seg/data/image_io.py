"""Read and write image files: TIFF through tifffile, other formats through Pillow."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from seg.data.tiff import TIFF_SUFFIXES, check_all_pages, count_tiff_pages, read_tiff_pages
from seg.errors import DataError

IMAGE_SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden and other files are left out.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(os.listdir(folder))  # strings sort much faster than paths
    files = [file for file in map(folder.joinpath, names) if is_image_file(file)]
    if not files:
        raise DataError(f"{folder}: no images here; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def is_image_file(file: Path) -> bool:
    """Return True if a file's name has the suffix of an image and is not hidden."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def read_pages(file: Path, page: int | None = None, colours: bool = False) -> list[np.ndarray]:
    """Return the pages of a TIFF, or the one image of another file, as stored.

    Args:
        file: file to read.
        page: index of the only page to read, from 0; None: all pages.
        colours: convert the indices of a palette image to its colours.

    Returns:
        Arrays (H, W) or (H, W, C).

    Raises:
        DataError: if the file is missing, damaged or truncated, or is no TIFF and holds several images.
    """
    if not file.is_file():
        raise DataError(file=file, found="no such file", kind="unreadable")
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                return read_tiff_pages(tiff, file, page, colours)
        with Image.open(file) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with its thumbnail
                raise DataError(
                    f"{file}: {frames} frames, but one image is needed; save each frame as a file, or all of "
                    "them as the pages of a TIFF"
                )
            return [pillow_pixels(image, colours)]


@contextmanager
def decoder_errors(file: Path) -> Generator[None]:
    """Turn any error of a decoder into a DataError that names the file; suppress warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason if len(reason) < 200 else f"{reason[:197]}..."  # some quote a whole tag
        found = f"not a readable image ({reason})"
        raise DataError(file=file, found=found, kind="unreadable") from error


def count_pages(file: Path) -> int:
    """Return the number of pages of a TIFF; 1 for any other file.

    Raises:
        DataError: if the file cannot be read.
    """
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return 1
    with decoder_errors(file), tifffile.TiffFile(file) as tiff:
        check_all_pages(tiff)
        return count_tiff_pages(tiff)


def pillow_pixels(image: Image.Image, colours: bool) -> np.ndarray:
    """Return the pixels of a Pillow image, (H, W) or (H, W, 3), without alpha.

    A palette image gives its indices, or its colours if ``colours``; a 1-bit image gives 0 and 255. A GIF
    gives grey values or colours, since encoders renumber its palette.
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
    """Return one image (H, W, C) uint8, uint16 or float32, without alpha and with a palette's colours.

    Args:
        file: file to read.
        page: index of the page of a stack, from 0; None: the file is one image.
        channels: take the pages of a TIFF as the channels of one image.

    Raises:
        DataError: if the file cannot be read, holds several pages but neither ``page`` nor ``channels`` is
            given, or has values that are not finite.
    """
    pages = read_pages(file, page, colours=file.suffix.lower() not in TIFF_SUFFIXES)
    if len(pages) == 1:
        return as_image(pages[0], file if page is None else f"{file}, page {page}")
    if not channels:
        raise DataError(
            f"{file}: {len(pages)} pages, but one image is needed; split the stack, or take each page as an "
            "image (data.pages=slices) or as a channel (data.pages=channels)"
        )
    if len({(array.shape, array.dtype) for array in pages}) > 1 or pages[0].ndim != 2:
        shapes = ", ".join(sorted({f"{array.shape} {array.dtype}" for array in pages}))
        raise DataError(
            f"{file}: pages of {shapes}; data.pages=channels needs grey pages of one size and type"
        )
    return as_image(np.stack(pages, axis=-1), file)


def as_image(page: np.ndarray, file: Path | str) -> np.ndarray:
    """Return a page as an image (H, W, C) uint8, uint16 or float32.

    Args:
        page: (H, W) or (H, W, C) of any type.
        file: name of the page in messages.

    Raises:
        DataError: if the page has no pixels, another shape or type, or values that are not finite.
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
        return np.array(image, np.uint16)  # mode I: 16-bit PNG in older releases of Pillow
    if image.dtype.kind not in "fiu":
        found, remedy = f"values of type {image.dtype}", "integers or floats are needed"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    image = np.array(image, np.float32)  # a copy in memory, also of a mapped file
    bad = int((~np.isfinite(image)).sum())
    if bad:
        found = f"{bad} of {image.size} values are NaN or infinite"
        raise DataError(file=file, found=found, remedy="replace them first", kind="pixels")
    return image


def write_mask(file: Path, mask: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    """Write class indices (H, W) uint8 as a palette PNG: its values are the indices, shown in ``colors``."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)
