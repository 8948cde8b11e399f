"""TIFF files: pages, channels, colour maps and truncation."""

import logging
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from seg.errors import DataError

log = logging.getLogger("seg")

TIFF_SUFFIXES = {".tif", ".tiff"}
NATIVE_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
REDUCED_OR_MASK = 1 | 4  # bits of the tag NewSubfileType: an overview, a transparency mask
MIN_IS_WHITE, PALETTE, TRANSPARENCY_MASK, CMYK, YCBCR = (
    0,
    3,
    4,
    5,
    6,
)  # values of the tag PhotometricInterpretation
UNCONVERTED = {8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "the mosaic of a colour filter array",
               32844: "CIE Log2", 32845: "CIE LogLuv"}  # further values  # fmt: skip
JPEG_COMPRESSIONS = (
    6,
    7,
    33007,
    34892,
)  # compressions whose tables may be stored apart from the pixels
ALPHA = (1, 2)  # values of the tag ExtraSamples: associated and unassociated alpha
GDAL_METADATA, GDAL_NODATA = 42112, 42113  # tags
STRAIGHT_LINE = 0  # value of ImageJ's calibration function: c0 + c1 * value
MAPPED_BYTES = (
    2**24
)  # bytes of a page; from here on it is mapped instead of read, where its layout allows


def read_tiff_pages(
    tiff: tifffile.TiffFile,
    file: Path,
    page: int | None,
    colours: bool | None,
    alpha: bool = False,
) -> list[np.ndarray]:
    """Return the pages of an open TIFF, as their tags say; overviews and transparency masks are left out.

    Args:
        tiff: the open file.
        file: its path.
        page: index of the only page to read, from 0; None: all pages.
        colours: convert the indices of a colour map to its colours; None: those of ``has_colour_map``.
        alpha: keep alpha as a channel.

    Returns:
        Arrays (H, W) or (H, W, C) in native byte order; pages of 16 MiB or more are memory-mapped where possible.

    Raises:
        ValueError: if the file is truncated.
    """
    # A stack read as a whole must not be cut off
    if page is None:
        check_all_pages(tiff)
    # Pages without a directory of their own are slices of one array.
    if has_single_directory(tiff):
        stack = map_stack(tiff, file)
        chosen = stack if page is None else stack[page : page + 1]
        first, native = tiff.pages[0].aspage(), stack.dtype.newbyteorder("=")
        slices = [move_channels_last(np.array(array, native), first.axes) for array in chosen]
        return [interpret_page(array, first, file, colours, alpha) for array in slices]
    # Pages with a directory are read one by one.
    numbers = image_pages(tiff)
    arrays = []
    for number in numbers if page is None else [numbers[page]]:
        directory = tiff.pages[number].aspage()
        check_page_complete(tiff, number)
        native = directory.parent.byteorder == NATIVE_BYTE_ORDER
        if directory.nbytes >= MAPPED_BYTES and directory.is_memmappable and native:
            array = tifffile.memmap(file, page=number, mode="r")
        else:
            array = directory.asarray()
        array = move_channels_last(array, directory.axes)
        arrays.append(interpret_page(array, directory, file, colours, alpha))
    return arrays


def image_pages(tiff: tifffile.TiffFile) -> list[int]:
    """Return the indices of the pages that are images: neither overviews nor transparency masks."""
    # Listing the pages of a long stack is slow, so keep the result while the file is unchanged
    status = os.stat(tiff.filehandle.path)
    state = (tiff.filehandle.path, status.st_size, status.st_mtime_ns)
    if state not in IMAGE_PAGES:
        # Pyramids and transparency masks are pages as well, but no images
        pages = [page.aspage() for page in tiff.pages]
        images = [
            number
            for number, page in enumerate(pages)
            if not page.subfiletype & REDUCED_OR_MASK and page.photometric != TRANSPARENCY_MASK
        ]
        if len(IMAGE_PAGES) > 1024:
            IMAGE_PAGES.clear()
        IMAGE_PAGES[state] = images or list(range(len(pages)))
    return IMAGE_PAGES[state]


IMAGE_PAGES: dict[tuple, list[int]] = {}  # (path, size, time) -> result of ``image_pages``


def interpret_page(
    pixels: np.ndarray,
    page: Any,
    file: Path,
    colours: bool | None = None,
    alpha: bool = False,
    turn: bool = True,
) -> np.ndarray:
    """Return rows of a page as its tags say: colours, grey values that grow with brightness, no alpha, upright.

    Args:
        pixels: (H, W) or (H, W, C) as stored, channels last.
        page: directory of the page.
        file: for messages.
        colours: convert the indices of a colour map to its colours; None: those of ``has_colour_map``.
        alpha: keep alpha as a channel.
        turn: apply the tag Orientation; False for rows that are not the whole page.

    Raises:
        NotImplementedError: for colours that are not converted, naming the tag.
    """
    # Colour spaces without a conversion
    kind = int(page.photometric) if page.photometric is not None else 1
    if kind in UNCONVERTED:
        raise NotImplementedError(
            f"PhotometricInterpretation {kind}, {UNCONVERTED[kind]}; save it as grey values or RGB"
        )
    # Alpha is left out.
    extra = [int(value) for value in page.extrasamples]
    dropped = [not alpha and value in ALPHA for value in extra]
    if any(dropped) and pixels.ndim == 3:
        first = pixels.shape[-1] - len(extra)
        channels = [*range(first), *(first + i for i, drop in enumerate(dropped) if not drop)]
        leading = channels == list(range(len(channels)))  # a slice of a mapped page is not read
        pixels = pixels[..., : len(channels)] if leading else pixels[..., channels]
        pixels = pixels[..., 0] if len(channels) == 1 else pixels
    # Grey values and colours.
    if kind == PALETTE and page.colormap is not None:
        if colours or (colours is None and not page.parent.is_imagej):
            pixels = palette_colours(page, grey=colours is None)[pixels]
    elif kind == MIN_IS_WHITE:
        pixels = invert_white_is_zero(pixels, page, file)
    elif kind == CMYK and (page.tags.valueof("InkSet") or 1) == 1:
        pixels = convert_cmyk(pixels)
    elif kind == YCBCR and int(page.compression) not in JPEG_COMPRESSIONS:
        pixels = convert_ycbcr(pixels)
    # Values of 2 and 4 bits fill 8 bits, as in PNG.
    if kind != PALETTE and page.bitspersample in (2, 4) and pixels.dtype == np.uint8:
        pixels = pixels * np.uint8(255 // (2**page.bitspersample - 1))
    # Apply scale and offset, then turn the pixels upright
    pixels = apply_scale_offset(pixels, page, file)
    return apply_orientation(pixels, page_orientation(page)) if turn else pixels


def palette_colours(page: Any, grey: bool) -> np.ndarray:
    """Return the colour of each index of a page's colour map, (N, 3) uint8; (N,) if ``grey`` and all are grey."""
    table = (
        page.colormap if page.colormap.max() < 256 else page.colormap >> 8
    )  # some writers use 8 of the 16 bits
    colours = table.astype(np.uint8).T
    return colours[:, 0] if grey and (colours == colours[:, :1]).all() else colours


def has_colour_map(page: Any) -> bool:
    """Return True if an image's values are indices of colours; ImageJ's colour maps only show its values."""
    return (
        int(page.photometric or 0) == PALETTE
        and page.colormap is not None
        and not page.parent.is_imagej
        and palette_colours(page, grey=True).ndim == 2
    )


def convert_cmyk(pixels: np.ndarray) -> np.ndarray:
    """Return amounts of ink (H, W, 4), uint8 or uint16, as RGB, as Pillow does.

    Raises:
        NotImplementedError: for another number or type of inks.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise NotImplementedError(f"CMYK {pixels.shape} of {pixels.dtype}; save it as RGB")
    largest = int(np.iinfo(pixels.dtype).max)
    light = largest - pixels.astype(np.uint64)
    return ((light[..., :3] * light[..., 3:] + largest // 2) // largest).astype(pixels.dtype)


def convert_ycbcr(pixels: np.ndarray) -> np.ndarray:
    """Return brightness and colour differences (H, W, 3) uint8 as RGB.

    Raises:
        NotImplementedError: for another type.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise NotImplementedError(f"YCbCr {pixels.shape} of {pixels.dtype}; save it as RGB")
    image = Image.frombytes("YCbCr", pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
    return np.array(image.convert("RGB"))


def invert_white_is_zero(pixels: np.ndarray, page: Any, file: Path) -> np.ndarray:
    """Return grey values of a page whose smallest is white, so that the largest is."""
    # ImageJ inverts only the display, so its stored values are the measured ones
    name = "PhotometricInterpretation 0 (the smallest value is white)"
    if page.parent.is_imagej:
        text = (
            f"{name} is ImageJ's inverting table; the values are read as stored, larger ones being darker: save it "
            "without the table (Image > Lookup Tables > Invert LUT)"
        )
        warn_once(file, name, text)
        return pixels
    # Invert bits and unsigned integers, within the bits that are used
    if pixels.dtype == np.bool_:
        return ~pixels
    if pixels.dtype.kind == "u":
        largest = pixels.dtype.type(2 ** int(page.bitspersample) - 1)
        return largest - pixels
    # Signed integers and floats have no largest value to invert against
    text = (
        f"{name} has no meaning for {pixels.dtype}; the values are read as stored: save them with "
        "PhotometricInterpretation 1"
    )
    warn_once(file, name, text)
    return pixels


def apply_scale_offset(pixels: np.ndarray, page: Any, file: Path) -> np.ndarray:
    """Return ``offset + scale * pixels`` as floats, if GDAL's or ImageJ's metadata give a scale and an offset."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    scales, offsets = read_scales(page, file, channels)
    if (scales == 1).all() and (offsets == 0).all():
        return pixels
    dtype = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
    if channels == 1:
        scales, offsets = scales[:1], offsets[:1]
    return pixels * scales.astype(dtype) + offsets.astype(dtype)


def read_scales(page: Any, file: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of each channel, from the metadata of GDAL or of ImageJ; 1 and 0 if there are none.

    Raises:
        DataError: if one is no number.
    """
    # ImageJ calibrates all channels with one straight line, c0 + c1 x
    scales, offsets = np.ones(channels), np.zeros(channels)
    if page.parent.is_imagej:
        metadata = page.parent.imagej_metadata or {}
        function = metadata.get("cf")
        if function == STRAIGHT_LINE:
            scales[:], offsets[:] = float(metadata.get("c1", 1)), float(metadata.get("c0", 0))
        elif function is not None:
            warn_once(
                file,
                "cf",
                f"ImageJ's calibration function cf={function} is not applied; the values are read as stored: "
                "apply it first, or remove it (Analyze > Calibrate)",
            )
        return scales, offsets
    # GDAL has an item for each channel.
    text = str(page.tags.valueof(GDAL_METADATA) or "").strip("\0 \n")
    try:
        for item in ElementTree.fromstring(text) if "role=" in text else ():
            target = {"scale": scales, "offset": offsets}.get(item.get("role", ""))
            channel = int(item.get("sample", 0))
            if target is not None and channel < channels:
                target[channel] = float(item.text or "")
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            file=file, found=f"the tag GDAL_METADATA gives a scale or offset that is no number ({error})",
            remedy="correct or remove it", kind="unreadable",
        ) from error  # fmt: skip
    return scales, offsets


def page_orientation(page: Any) -> int:
    """Return the value of the tag Orientation, 1 (upright) to 8."""
    value = page.tags.valueof("Orientation")
    return int(value) if value in range(1, 9) else 1


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) as it is seen, by the value of the tag Orientation, 1 to 8."""
    if orientation >= 5:  # rows and columns are swapped
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def warn_once(file: Path, tag: str, text: str) -> None:
    """Log a warning about a tag of a file, once for each folder."""
    if (file.parent, tag) not in WARNED:
        WARNED.add((file.parent, tag))
        log.warning(f"{file}: {text}")


WARNED: set[tuple[Path, str]] = set()  # folders and tags that ``warn_once`` has warned of


def check_page_complete(tiff: tifffile.TiffFile, number: int) -> None:
    """Raise ValueError if a page lacks pixels, which tifffile would fill with zeros, and NotImplementedError for a type."""
    # Offset and length of each strip or tile
    page, size = tiff.pages[number].aspage(), tiff.filehandle.size
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = max((start + length for start, length in parts), default=0)
    # Sample formats that no type of NumPy holds
    if page.dtype is None:
        raise NotImplementedError(
            f"samples of {page.bitspersample} bits, format {page.sampleformat}; save 8 or 16 bits, or floats"
        )
    # Compare the strips or tiles with the page's size, and their ends with the file's
    if not page.size or len(parts) < math.prod(page.chunked) or end > size:
        raise ValueError(f"truncated: page {number} lacks pixels")
    if not all(page.databytecounts):
        part = "tile" if page.is_tiled else "strip"
        raise ValueError(
            f"page {number}: a {part} is missing; write a sparse file in full (SPARSE_OK=FALSE in GDAL)"
        )


def check_all_pages(tiff: tifffile.TiffFile) -> None:
    """Raise ValueError if the file announces more pages than it holds."""
    # Position of the last directory that tifffile found
    layout, reader, last = tiff.tiff, tiff.filehandle, tiff.pages[-1]
    # The last directory must not point to another one; a page without a directory has offset 0.
    if last.offset:
        reader.seek(last.offset)
        (tags,) = struct.unpack(layout.tagnoformat, reader.read(layout.tagnosize))
        reader.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
        (next_offset,) = struct.unpack(layout.offsetformat, reader.read(layout.offsetsize))
        if next_offset:
            raise ValueError(f"truncated: more pages should follow the first {len(tiff.pages)}")
    # ImageJ states the number of pages in its metadata.
    announced = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    end = sum((last.dataoffsets[0], last.nbytes)) if last.dataoffsets else 0
    if (
        announced > 1 == len(tiff.pages)
        and not has_single_directory(tiff)
        and tiff.filehandle.size > end
    ):
        raise ValueError(f"truncated: {announced} pages are announced")


def has_single_directory(tiff: tifffile.TiffFile) -> bool:
    """Return True if one directory stands for many pages, as ImageJ writes stacks above 4 GB."""
    if len(tiff.pages) != 1 or not (tiff.is_imagej or tiff.is_shaped):
        return False
    return len(tiff.series) == 1 and tiff.series[0].size > tiff.pages[0].size


def map_stack(tiff: tifffile.TiffFile, file: Path) -> np.ndarray:
    """Return the pages without a directory, (pages, ...), memory-mapped, in the file's byte order."""
    series, page = tiff.series[0], tiff.pages[0]
    if series.dataoffset is None:
        return series.asarray().reshape(-1, *page.shape)
    dtype, shape = series.dtype.newbyteorder(tiff.byteorder), (count_tiff_pages(tiff), *page.shape)
    return np.memmap(file, dtype=dtype, mode="r", offset=series.dataoffset, shape=shape)


def count_tiff_pages(tiff: tifffile.TiffFile) -> int:
    """Return the number of pages of an open TIFF."""
    return (
        tiff.series[0].size // tiff.pages[0].size
        if has_single_directory(tiff)
        else len(image_pages(tiff))
    )


def move_channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    """Return a page with its channels last; ``axes`` begins with S where planes are stored in turn."""
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page
