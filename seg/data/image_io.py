"""Read and write image files: TIFF through tifffile, other formats through Pillow."""

import math
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from seg.data.nodata import check_sentinels, declare_nodata, find_values, unify_integers
from seg.data.tiff import (
    TIFF_SUFFIXES,
    apply_orientation,
    check_all_pages,
    count_tiff_pages,
    has_colour_map,
    has_single_directory,
    image_pages,
    page_orientation,
    read_tiff_pages,
    warn_once,
)
from seg.errors import DataError

# Pillow's limits against attacks are lifted: images are the user's own, and may be large.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 2**30  # ty: ignore[invalid-assignment]
PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # ty: ignore[invalid-assignment]

EXIF_ORIENTATION = 274  # tag
SEPARATOR = rb"(?:\s|#[^\r\n]*[\r\n])+"  # white space and comments of a Netpbm header
NETPBM_HEADER = re.compile(rb"P([2356])" + SEPARATOR.join([b"", *[rb"(\d+)"] * 3]) + rb"\s")

IMAGE_SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}


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
        colours: convert the indices of a palette image to its colours; None: as in an image, where a palette of
            greys gives grey values and ImageJ's only shows the values.
        alpha: keep alpha as a channel.

    Returns:
        Arrays (H, W) or (H, W, C).

    Raises:
        DataError: if the file is missing, damaged or truncated, or is no TIFF and holds several images.
    """
    # TIFFs by tifffile, which reads all their types; everything else by Pillow
    if not file.is_file():
        raise DataError(file=file, found="no such file", kind="unreadable")
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                return read_tiff_pages(tiff, file, page, colours, alpha)
        with Image.open(file) as image:
            # Pillow goes by the content, whatever the suffix
            if image.format == "TIFF":
                raise DataError(
                    file=file,
                    found="a TIFF by its content",
                    remedy="rename it NAME.tif",
                    kind="unreadable",
                )
            # One frame only: Pillow would give the first of an animation
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with its thumbnail
                raise DataError(
                    f"{file}: {frames} frames, but one image is needed; save each frame as a file, or all of "
                    "them as the pages of a TIFF"
                )
            turned = pillow_orientation(image)
            # Formats that Pillow would reduce to 8 bits or rescale have readers of their own
            if image.format == "PPM" and (netpbm := netpbm_pixels(file)) is not None:
                pixels = netpbm
            elif image.format == "PNG" and is_deep_png(file):
                pixels = deep_png_pixels(file, alpha)
            else:
                pixels = pillow_pixels(image, colours is not False, alpha)
            return [apply_orientation(pixels, turned)]


def pillow_orientation(image: Image.Image) -> int:
    """Return the orientation that the EXIF or XMP data of a Pillow image give, 1 (upright) to 8."""
    value = image.getexif().get(EXIF_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def read_orientation(file: Path, page: int | None = None) -> int:
    """Return the orientation that a file, or a page of a TIFF, gives, 1 (upright) to 8.

    Raises:
        DataError: if the file cannot be read.
    """
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                number = 0 if has_single_directory(tiff) else image_pages(tiff)[page or 0]
                return page_orientation(tiff.pages[number].aspage())
        with Image.open(file) as image:
            return pillow_orientation(image)


def has_palette(file: Path) -> bool:
    """Return True if an image is read as the colours of its palette.

    Raises:
        DataError: if the file cannot be read.
    """
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                return has_colour_map(tiff.pages[0].aspage())
        with Image.open(file) as image:
            return image.mode in ("P", "PA") and not is_grey_palette(image)


def is_grey_palette(image: Image.Image) -> bool:
    """Return True if all colours of a Pillow image's palette are grey."""
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


@contextmanager
def decoder_errors(file: Path) -> Generator[None]:
    """Turn any error of a decoder into a DataError that names the file; suppress warnings.

    ``NotImplementedError`` stands for a file that is whole, but of a kind that is not read.
    """
    # Pass errors of our own on, and describe those of the decoders
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except MemoryError as error:
        found, remedy = "needs more memory than there is", "cut it into smaller images"
        raise DataError(file=file, found=found, remedy=remedy, kind="unreadable") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason if len(reason) < 200 else f"{reason[:197]}..."  # some quote a whole tag
        whole = isinstance(error, NotImplementedError)
        found = (
            f"this kind of image is not read ({reason})"
            if whole
            else f"not a readable image ({reason})"
        )
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

    A palette image gives its indices, or its colours if ``colours``: grey values if all are grey. A 1-bit image
    gives booleans. A GIF gives grey values or colours, since encoders renumber its palette.

    Raises:
        NotImplementedError: for colours that are not converted.
    """
    # A GIF is decoded to its colours, and to one channel if all are grey
    if image.format == "GIF":
        rgb = np.array(image.convert("RGB"))
        return rgb[..., 0] if (rgb == rgb[..., :1]).all() else rgb
    # Colour spaces that have no direct meaning as channels
    if image.mode in ("LAB", "HSV"):
        raise NotImplementedError(f"mode {image.mode}; save it as RGB")
    # Palettes: colours for an image, indices for a mask
    if colours and image.mode in ("P", "PA"):
        rgb = np.array(image.convert("RGB"))
        return rgb[..., 0] if is_grey_palette(image) else rgb
    # Other colour spaces have an exact or usual conversion to RGB
    if image.mode in ("CMYK", "YCbCr", "RGBa", "La"):
        image = image.convert("RGB")
    # Drop the alpha channel unless it is wanted
    array = np.array(image)
    if image.mode == "PA" or (image.mode == "LA" and not alpha):
        return array[..., 0]
    return array[..., :3] if image.mode == "RGBA" and not alpha else array


def deep_png_pixels(file: Path, alpha: bool) -> np.ndarray:
    """Return the pixels of a 16-bit PNG, (H, W) or (H, W, C) uint16, without alpha unless ``alpha``."""
    array = imagecodecs.png_decode(file.read_bytes())
    channels = np.atleast_3d(array)
    if not alpha and channels.shape[2] in (2, 4):
        channels = channels[..., :-1]
    return channels[..., 0] if channels.shape[2] == 1 else channels


def is_deep_png(file: Path) -> bool:
    """Return True if the header of a PNG says 16 bits, of which Pillow keeps 8 unless the image is grey."""
    with file.open("rb") as stream:
        return stream.read(25)[24:] == b"\x10"


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
    if largest not in (255, 65535):
        text = f"its header gives {largest} as the brightest value; the values are read as stored, not scaled"
        warn_once(file, "brightest value", text)
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
    # A single page is the image; several need data.pages
    if len(pages) == 1:
        return as_image(pages[0], file if page is None else f"{file}, page {page}", nodata)
    if not channels:
        raise DataError(
            f"{file}: {len(pages)} pages, but one image is needed; split the stack, or take each page as an "
            "image (data.pages=slices) or as a channel (data.pages=channels)"
        )
    # Pages as channels (H, W, C): grey, of one size and one type
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
    # Image as (H, W, C)
    image = page[..., None] if page.ndim == 2 else page
    if image.ndim != 3 or not image.size:
        raise DataError(
            f"{file}: shape {page.shape}; an image of (height, width[, channels]) is needed"
        )
    # Types that the network takes as they are: bool as 0 and 255, uint8, uint16
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    if image.dtype in (np.uint8, np.uint16):
        return unify_integers(image, nodata) if nodata else image
    if image.dtype.kind not in "fiu":
        found, remedy = f"values of type {image.dtype}", "integers or floats are needed"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    # Find no-data values before the conversion to float32, which could round them
    lost = find_values(image, nodata) if nodata else None
    with np.errstate(over="ignore"):
        image = np.array(image, np.float32)  # a copy in memory, also of a mapped file
    if lost is not None:
        image[lost] = np.nan
    # NaN and infinity that are not declared as no data
    unknown = ~np.isfinite(image) if lost is None else ~np.isfinite(image) & ~lost
    if bad := int(unknown.sum()):
        stored = np.asarray(page).reshape(image.shape)[unknown]
        finite = bool(np.isfinite(stored).all())
        wrong = "beyond the range of float32" if finite else "NaN or infinite"
        found = f"{bad} of {image.size} values are {wrong}"
        value = float(stored[0]) if finite else math.nan
        name = repr(value) if finite else "NaN"
        remedy = f"replace them first, or if {name} means no data, {declare_nodata(value)}"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    # Undeclared values that look like no data
    if lost is None or not lost.all():
        check_sentinels(image, file)
    return image


def write_mask(file: Path, mask: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    """Write class indices (H, W) uint8 as a palette PNG: its values are the indices, shown in ``colors``."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)
