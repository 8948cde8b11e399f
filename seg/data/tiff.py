"""TIFF files: pages and channels as their tags say, colour maps and truncation."""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from seg.data.tiff_layout import (
    PagesOption,
    check_all_pages,
    group_pages,
    has_single_directory,
    read_layout,
)
from seg.errors import DataError

log = logging.getLogger("seg")

NATIVE_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
MIN_IS_WHITE, PALETTE, CMYK, YCBCR = 0, 3, 5, 6  # values of the tag PhotometricInterpretation
UNCONVERTED = {8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "the mosaic of a colour filter array",
               32844: "CIE Log2", 32845: "CIE LogLuv"}  # further values  # fmt: skip
JPEG_COMPRESSIONS = (
    6,
    7,
    33007,
    34892,
)  # compressions whose tables may be stored apart from the pixels
APERIO_YCBCR = 33003  # compression of Aperio: JPEG 2000 of YCbCr, whatever the photometric tag
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
    pages: PagesOption | None = None,
) -> list[np.ndarray]:
    """Return the images of an open TIFF, as their tags and axes say; see ``group_pages``.

    Args:
        tiff: the open file.
        file: its path.
        page: index of the only image to read, from 0; None: all images.
        colours: convert the indices of a colour map to its colours; None: those of ``has_colour_map``.
        alpha: keep alpha as a channel.
        pages: use of several pages; None: by the axes of the file.

    Returns:
        Arrays (H, W) or (H, W, C) in native byte order; pages of 16 MiB or more are memory-mapped where possible.

    Raises:
        ValueError: if the file is truncated.
        DataError: if pages that are channels differ.
    """
    # A stack read as a whole must not be cut off
    if page is None:
        check_all_pages(tiff)
    # Pages without a directory of their own are slices of one array
    stack = map_stack(tiff, file) if has_single_directory(tiff) else None
    groups = group_pages(tiff, pages)
    images = []
    for numbers in groups if page is None else [groups[page]]:
        channels = [read_page(tiff, n, file, stack, colours, alpha) for n in numbers]
        images.append(stack_channels(channels, file))
    return images


def read_page(
    tiff: tifffile.TiffFile,
    number: int,
    file: Path,
    stack: np.ndarray | None,
    colours: bool | None,
    alpha: bool,
) -> np.ndarray:
    """Return one page of an open TIFF, or one slice of ``stack``; see ``read_tiff_pages``."""
    if stack is not None:
        directory = tiff.pages[0].aspage()
        array = np.array(stack[number], stack.dtype.newbyteorder("="))
    else:
        directory = tiff.pages[number].aspage()
        check_page_complete(tiff, number)
        native = directory.parent.byteorder == NATIVE_BYTE_ORDER
        if directory.nbytes >= MAPPED_BYTES and directory.is_memmappable and native:
            array = tifffile.memmap(file, page=number, mode="r")
        else:
            array = directory.asarray()
    return interpret_page(
        move_channels_last(array, directory.axes), directory, file, colours, alpha
    )


def stack_channels(pages: list[np.ndarray], file: Path) -> np.ndarray:
    """Return pages (H, W) as the channels of one image (H, W, C); one page as it is.

    Raises:
        DataError: if they differ in size or type, or are not grey.
    """
    if len(pages) == 1:
        return pages[0]
    check_channels([(page.shape, page.dtype) for page in pages], file)
    return np.stack(pages, axis=-1)


def check_channels(pages: Sequence[tuple[tuple[int, ...], np.dtype]], file: Path) -> None:
    """Raise DataError unless pages of these shapes and types can be the channels of one image."""
    if len(set(pages)) > 1 or len(pages[0][0]) != 2:
        shapes = ", ".join(sorted({f"{shape} {dtype}" for shape, dtype in pages}))
        raise DataError(
            f"{file}: pages of {shapes}; pages as channels (data.pages=channels, or the axes of the file) must be "
            "grey, of one size and type"
        )


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
    elif int(page.compression) == APERIO_YCBCR or (
        kind == YCBCR and int(page.compression) not in JPEG_COMPRESSIONS
    ):
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


def map_stack(tiff: tifffile.TiffFile, file: Path) -> np.ndarray:
    """Return the pages without a directory, (pages, ...), memory-mapped, in the file's byte order."""
    series, page = tiff.series[0], tiff.pages[0]
    if series.dataoffset is None:
        return series.asarray().reshape(-1, *page.shape)
    dtype, shape = (
        series.dtype.newbyteorder(tiff.byteorder),
        (len(read_layout(tiff).pages), *page.shape),
    )
    return np.memmap(file, dtype=dtype, mode="r", offset=series.dataoffset, shape=shape)


def move_channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    """Return a page with its channels last; ``axes`` begins with S where planes are stored in turn."""
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page
