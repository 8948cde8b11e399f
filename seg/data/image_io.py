"""Read and write image files: TIFF through tifffile, arrays and medical images, other formats through Pillow."""

import logging
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

from seg.data.image_files import image_suffix
from seg.data.nodata import check_sentinels, declare_nodata, find_values, unify_integers
from seg.data.ome_zarr import is_store
from seg.data.stacks import STACK_SUFFIXES, open_stack, read_stack
from seg.data.tiff import (
    apply_orientation,
    has_colour_map,
    page_orientation,
    read_tiff_pages,
    warn_once,
)
from seg.data.tiff_layout import (
    TIFF_SUFFIXES,
    PagesOption,
    check_all_pages,
    group_pages,
    has_single_directory,
    read_layout,
)
from seg.errors import DataError

log = logging.getLogger("seg")

# Pillow's limits against attacks are lifted: images are the user's own, and may be large.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 2**30  # ty: ignore[invalid-assignment]
PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # ty: ignore[invalid-assignment]

EXIF_ORIENTATION = 274  # tag
SEPARATOR = rb"(?:\s|#[^\r\n]*[\r\n])+"  # white space and comments of a Netpbm header
NETPBM_HEADER = re.compile(rb"P([2356])" + SEPARATOR.join([b"", *[rb"(\d+)"] * 3]) + rb"\s")

CODESTREAM = b"\xff\x4f\xff\x51"  # start of JPEG 2000's image data: the markers SOC and SIZ
SIZ_LENGTH = 42  # bytes from there to the depth of the first component
SYCC = b"colr\x01\x00\x00\x00\x00\x00\x12"  # JP2's box for the colour space sYCC


def read_pages(
    file: Path,
    page: int | None = None,
    colours: bool | None = False,
    alpha: bool = False,
    pages: PagesOption | None = None,
) -> list[np.ndarray]:
    """Return the pages or slices of a file, or its one image, as their tags say.

    Args:
        file: file to read.
        page: index of the only page to read, from 0; None: all pages.
        colours: convert the indices of a palette image to its colours; None: as in an image, where a palette of
            greys gives grey values and ImageJ's only shows the values.
        alpha: keep alpha as a channel.
        pages: ``slices``: each page of a TIFF is an image; ``channels``: they are the channels of one; None: by the
            axes of the file, and without axes each page is an image.

    Returns:
        Arrays (H, W) or (H, W, C).

    Raises:
        DataError: if the file is missing, damaged or truncated, or is no TIFF and holds several images.
    """
    # TIFFs by tifffile, which reads all their types; pictures by Pillow
    if not is_store(file) and not file.is_file():
        raise DataError(file=file, found="no such file", kind="unreadable")
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                return read_tiff_pages(tiff, file, page, colours, alpha, pages)
        if image_suffix(file) in STACK_SUFFIXES:
            return read_stack(file, page, colours, pages)
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
                pixels = drop_alpha(imagecodecs.png_decode(file.read_bytes()), alpha)
            elif image.format == "JPEG2000" and is_deep_jpeg2000(file):
                pixels = drop_alpha(imagecodecs.jpeg2k_decode(file.read_bytes()), alpha)
            elif image.format == "AVIF":
                pixels = drop_alpha(imagecodecs.avif_decode(file.read_bytes()), alpha)
            else:
                pixels = pillow_pixels(image, colours is not False, alpha)
            return [apply_orientation(pixels, turned)]


def pillow_orientation(image: Image.Image) -> int:
    """Return the orientation that the EXIF or XMP data of a Pillow image give, 1 (upright) to 8."""
    value = image.getexif().get(EXIF_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def read_orientation(file: Path, page: int | None = None, pages: PagesOption | None = None) -> int:
    """Return the orientation that a file, or a page of a TIFF, gives, 1 (upright) to 8.

    Raises:
        DataError: if the file cannot be read.
    """
    with decoder_errors(file):
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                number = 0 if has_single_directory(tiff) else group_pages(tiff, pages)[page or 0][0]
                return page_orientation(tiff.pages[number].aspage())
        if image_suffix(file) in STACK_SUFFIXES:
            return 1
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
        if image_suffix(file) in STACK_SUFFIXES:
            return False
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


def count_pages(file: Path, pages: PagesOption | None = None, mask: bool = False) -> int:
    """Return the number of pages or slices of a file that are images; 1 for a picture.

    Args:
        file: file to read.
        pages: see ``read_pages``.
        mask: whether it is a mask; an NPZ may hold an image and a mask.

    Raises:
        DataError: if the file cannot be read.
    """
    return read_axes(file, pages, mask)[0]


def read_axes(file: Path, pages: PagesOption | None = None, mask: bool = False) -> tuple[int, str]:
    """Return the number of images of a file, and the text of the axes that it gives; empty if it gives none.

    See ``count_pages``.
    """
    suffix = image_suffix(file)
    if suffix not in TIFF_SUFFIXES | STACK_SUFFIXES:
        return 1, ""
    with decoder_errors(file):
        if suffix in STACK_SUFFIXES:
            stack = open_stack(file, False if mask else None, pages)
            return stack.length, stack.axes
        with tifffile.TiffFile(file) as tiff:
            check_all_pages(tiff)
            return len(group_pages(tiff, pages)), read_layout(tiff).axes


def log_axes(file: Path, axes: str) -> None:
    """Log the axes that a file of several pages gives, if any, once for each folder."""
    if axes and (file.parent, axes) not in LOGGED_AXES:
        LOGGED_AXES.add((file.parent, axes))
        log.info(f"{file}: {axes}")


LOGGED_AXES: set[tuple[Path, str]] = set()  # folders and axes that ``log_axes`` has logged


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


def drop_alpha(array: np.ndarray, alpha: bool) -> np.ndarray:
    """Return decoded pixels (H, W) or (H, W, C), without the last of 2 or 4 channels unless ``alpha``."""
    channels = np.atleast_3d(array)
    if not alpha and channels.shape[2] in (2, 4):
        channels = channels[..., :-1]
    return channels[..., 0] if channels.shape[2] == 1 else channels


def is_deep_png(file: Path) -> bool:
    """Return True if the header of a PNG says 16 bits, of which Pillow keeps 8 unless the image is grey."""
    with file.open("rb") as stream:
        return stream.read(25)[24:] == b"\x10"


def is_deep_jpeg2000(file: Path) -> bool:
    """Return True if a JPEG 2000 has other samples than 8 unsigned bits, which Pillow scales or rounds.

    Raises:
        NotImplementedError: for colours of such samples that are not converted.
    """
    data = file.read_bytes()
    start = data.find(CODESTREAM)
    deep = start >= 0 and data[start + SIZ_LENGTH : start + SIZ_LENGTH + 1] != b"\x07"  # bits - 1
    if deep and SYCC in data[:start]:
        raise NotImplementedError("sYCC of more than 8 bits; save it as RGB")
    return deep


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
    pages: PagesOption | None = None,
    nodata: Sequence[float] = (),
) -> np.ndarray:
    """Return one image (H, W, C) uint8, uint16 or float32, without alpha and with a palette's colours.

    Args:
        file: file to read.
        page: index of the page of a stack, from 0; None: the file is one image.
        pages: use of several pages; see ``read_pages``.
        nodata: values that mean no data; see ``as_image``.

    Raises:
        DataError: if the file cannot be read, holds several images but no ``page`` is given, or has values that
            are not finite.
    """
    images = read_pages(file, page, colours=None, pages=pages)
    if len(images) > 1:
        raise DataError(
            f"{file}: {len(images)} pages, but one image is needed; split the stack, or take each page as an "
            "image (data.pages=slices) or as a channel (data.pages=channels)"
        )
    return as_image(images[0], file if page is None else f"{file}, page {page}", nodata)


def channels_hint(channels: int, wanted: int) -> str:
    """Return how a picture gets the channels that a run was trained on; an empty text for other numbers than 1 and 3."""
    mode = {(3, 1): "L", (1, 3): "RGB"}.get((channels, wanted))
    title = "RGB becomes grey" if mode == "L" else "grey becomes RGB"
    return f"; {title} with Pillow: Image.open(FILE).convert('{mode}').save(NEW)" if mode else ""


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
    """Write class indices (H, W) uint8 as a palette PNG: its values are the indices, shown in ``colors``.

    Values without a colour, such as 255, are grey.
    """
    # Pillow stores as few bits as the palette needs, and cuts off larger values
    spare = int(mask.max(initial=0)) + 1 - len(colors)
    colors = [*colors, *[(128, 128, 128)] * max(spare, 0)]
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)
