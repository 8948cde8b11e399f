"""Read and write image files: TIFF through tifffile, other formats through Pillow."""

import math
import os
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from seg.data.nodata import check_sentinels, find_values, unify_integers
from seg.data.tiff import (
    TIFF_SUFFIXES,
    check_all_pages,
    count_tiff_pages,
    orient,
    read_tiff_pages,
)
from seg.errors import DataError

# Pillow's limits against attacks are lifted: images are the user's own, and may be large.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 2**30  # ty: ignore[invalid-assignment]
PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # ty: ignore[invalid-assignment]

EXIF_ORIENTATION = 274  # tag
SEPARATOR = rb"(?:\s|#[^\r\n]*[\r\n])+"  # white space and comments of a Netpbm header
NETPBM_HEADER = re.compile(rb"P([2356])" + SEPARATOR.join([b"", *[rb"(\d+)"] * 3]) + rb"\s")
PNG_GREY = 0  # colour type of PNG

IMAGE_SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden and other files are left out.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(os.listdir(folder))  # strings sort much faster than paths
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    files = [folder / n for n in names if n not in folders and is_image_file(folder / n)]
    if not files:
        raise DataError(f"{folder}: no images here; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def is_image_file(file: Path) -> bool:
    """Return True if a file's name has the suffix of an image and is not hidden."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def read_pages(
    file: Path, page: int | None = None, colours: bool | None = False, alpha: bool = False
) -> list[np.ndarray]:
    """Return the pages of a TIFF, or the one image of another file, as their tags say.

    Args:
        file: file to read.
        page: index of the only page to read, from 0; None: all pages.
        colours: convert the indices of a palette image to its colours; None: unless the palette of a TIFF only
            shows the values, as grey and ImageJ's palettes do.
        alpha: keep alpha as a channel.

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
                return read_tiff_pages(tiff, file, page, colours, alpha)
        with Image.open(file) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with its thumbnail
                raise DataError(
                    f"{file}: {frames} frames, but one image is needed; save each frame as a file, or all of "
                    "them as the pages of a TIFF"
                )
            turned = image.getexif().get(EXIF_ORIENTATION, 1)
            if image.format == "PPM" and (netpbm := netpbm_pixels(file)) is not None:
                pixels = netpbm
            elif image.format == "PNG":
                pixels = png_pixels(image, file, colours is not False, alpha)
            else:
                pixels = pillow_pixels(image, colours is not False, alpha)
            return [orient(pixels, turned if turned in range(1, 9) else 1)]


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


def pillow_pixels(image: Image.Image, colours: bool, alpha: bool = False) -> np.ndarray:
    """Return the pixels of a Pillow image, (H, W) or (H, W, 3), without alpha unless ``alpha``.

    A palette image gives its indices, or its colours if ``colours``; a 1-bit image gives booleans. A GIF
    gives grey values or colours, since encoders renumber its palette.
    """
    if image.format == "GIF":
        rgb = np.array(image.convert("RGB"))
        return rgb[..., 0] if (rgb == rgb[..., :1]).all() else rgb
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La") or (
        colours and image.mode in ("P", "PA")
    ):
        image = image.convert("RGB")
    array = np.array(image)
    if image.mode == "PA" or (image.mode == "LA" and not alpha):
        return array[..., 0]
    return array[..., :3] if image.mode == "RGBA" and not alpha else array


def png_pixels(image: Image.Image, file: Path, colours: bool, alpha: bool) -> np.ndarray:
    """Return the pixels of a PNG as stored: Pillow reduces 16-bit colours to 8 bits, and scales 2 and 4 bits."""
    with file.open("rb") as stream:
        depth, kind = stream.read(26)[24:26]
    if depth == 16:
        array = imagecodecs.png_decode(file.read_bytes())
        stored = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
        kept = stored if alpha or kind not in (4, 6) else stored - 1
        return array if array.ndim == 2 else array[..., 0] if kept == 1 else array[..., :kept]
    array = pillow_pixels(image, colours, alpha)
    scaled = kind == PNG_GREY and depth in (2, 4)
    return array // (255 // (2**depth - 1)) if scaled else array


def netpbm_pixels(file: Path) -> np.ndarray | None:
    """Return the values of a PGM or PPM as stored, uint8 or uint16; None for other Netpbm files.

    Pillow scales values to the full range of 8 or 16 bits, and colours to 8 bits.

    Raises:
        ValueError: if the file is truncated, or a value is larger than the header says.
    """
    # Header: kind, size and largest value.
    data = file.read_bytes()
    header = NETPBM_HEADER.match(data)
    if header is None:
        return None
    kind, width, height, largest = map(int, header.groups())
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
    # Values as text (P2, P3) or as bytes (P5, P6).
    if kind in (2, 3):
        words = re.sub(rb"#[^\r\n]*", b"", data[header.end() :]).split()
        pixels = np.array(words[: math.prod(shape)], np.int64)
    else:
        stored = (len(data) - header.end()) // dtype.itemsize
        pixels = np.frombuffer(data, dtype, min(math.prod(shape), stored), header.end())
    # Check them against the header.
    if pixels.size < math.prod(shape):
        raise ValueError(f"truncated: {pixels.size} of {math.prod(shape)} values")
    if pixels.size and pixels.max() > largest:
        raise ValueError(f"value {pixels.max()}, but the header says {largest} at most")
    return pixels.reshape(shape).astype(dtype.newbyteorder("="))


def read_image(
    file: Path,
    page: int | None = None,
    channels: bool = False,
    nodata: Sequence[float] = (),
) -> np.ndarray:
    """Return one image (H, W, C) uint8, uint16 or float32, without alpha and with a palette's colours.

    Args:
        file: file to read.
        page: index of the page of a stack, from 0; None: the file is one image.
        channels: take the pages of a TIFF as the channels of one image.
        nodata: values that mean no data; see ``as_image``.

    Raises:
        DataError: if the file cannot be read, holds several pages but neither ``page`` nor ``channels`` is
            given, or has values that are not finite.
    """
    pages = read_pages(file, page, colours=None)
    if len(pages) == 1:
        return as_image(pages[0], file if page is None else f"{file}, page {page}", nodata)
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
    return as_image(np.stack(pages, axis=-1), file, nodata)


def as_image(page: np.ndarray, file: Path | str, nodata: Sequence[float] = ()) -> np.ndarray:
    """Return a page as an image (H, W, C) uint8, uint16 or float32.

    Args:
        page: (H, W) or (H, W, C) of any type.
        file: name of the page in messages.
        nodata: values that mean no data: NaN in an image of floats; in one of integers the first of them.

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
        return unify_integers(image, nodata) if nodata else image
    if image.dtype.kind not in "fiu":
        found, remedy = f"values of type {image.dtype}", "integers or floats are needed"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    lost = find_values(image, nodata) if nodata else None
    with np.errstate(over="ignore"):
        image = np.array(image, np.float32)  # a copy in memory, also of a mapped file
    if lost is not None:
        image[lost] = np.nan
    unknown = ~np.isfinite(image) if lost is None else ~np.isfinite(image) & ~lost
    if bad := int(unknown.sum()):
        found = f"{bad} of {image.size} values are NaN or infinite"
        remedy = "replace them first, or if NaN means no data, data.nodata=nan declares it (in seg.predict nodata=nan)"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    if lost is None or not lost.all():
        check_sentinels(image, file)
    return image


def write_mask(file: Path, mask: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    """Write class indices (H, W) uint8 as a palette PNG: its values are the indices, shown in ``colors``."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)
