"""TIFF files: pages, channels, colour maps and truncation."""

import logging
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

log = logging.getLogger("seg")

TIFF_SUFFIXES = {".tif", ".tiff"}
NATIVE_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
REDUCED_OR_MASK = 1 | 4  # bits of the tag NewSubfileType: an overview, a transparency mask
MIN_IS_WHITE, PALETTE, CMYK, YCBCR = 0, 3, 5, 6  # values of the tag PhotometricInterpretation
LAB = (8, 9, 10)  # further values: CIE Lab, ICC Lab, ITU Lab
JPEG_COMPRESSIONS = (
    6,
    7,
    33007,
    34892,
)  # compressions whose tables may be stored apart from the pixels
ALPHA = (1, 2)  # values of the tag ExtraSamples: associated and unassociated alpha
GDAL_METADATA, GDAL_NODATA = 42112, 42113  # tags
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
    if page is None:
        check_all_pages(tiff)
    # Pages without a directory of their own are slices of one array.
    if has_single_directory(tiff):
        stack = map_stack(tiff, file)
        chosen = stack if page is None else stack[page : page + 1]
        first = tiff.pages[0].aspage()
        return [
            interpret_page(
                np.array(array, stack.dtype.newbyteorder("=")), first, file, colours, alpha
            )
            for array in chosen
        ]
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
    status = os.stat(tiff.filehandle.path)
    state = (tiff.filehandle.path, status.st_size, status.st_mtime_ns)
    if state not in IMAGE_PAGES:
        kinds = [page.aspage().subfiletype for page in tiff.pages]
        images = [number for number, kind in enumerate(kinds) if not kind & REDUCED_OR_MASK]
        if len(IMAGE_PAGES) > 64:
            IMAGE_PAGES.clear()
        IMAGE_PAGES[state] = images or list(range(len(kinds)))
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
        ValueError: for colours that are not converted, naming the tag.
    """
    kind = int(page.photometric) if page.photometric is not None else 1
    if kind in LAB or (kind == YCBCR and int(page.compression) not in JPEG_COMPRESSIONS):
        raise ValueError(f"PhotometricInterpretation {kind} is not converted; save it as RGB")
    # Alpha is left out; it is last.
    extra = [int(value) for value in page.extrasamples]
    kept = [not alpha and value in ALPHA for value in extra]
    if any(kept) and pixels.ndim == 3:
        first = pixels.shape[-1] - len(extra)
        channels = [*range(first), *(first + i for i, drop in enumerate(kept) if not drop)]
        pixels = pixels[..., channels]
        pixels = pixels[..., 0] if len(channels) == 1 else pixels
    # Grey values and colours.
    if kind == PALETTE and page.colormap is not None:
        if has_colour_map(page) if colours is None else colours:
            pixels = (page.colormap >> 8).astype(np.uint8).T[pixels]
    elif kind == MIN_IS_WHITE:
        pixels = invert(pixels, page, file)
    elif kind == CMYK and (page.tags.valueof("InkSet") or 1) == 1 and pixels.shape[-1] == 4:
        if pixels.dtype != np.uint8:
            raise ValueError(f"CMYK of type {pixels.dtype} is not converted; save it as RGB")
        rows = np.ascontiguousarray(pixels)
        inks = Image.frombytes("CMYK", rows.shape[1::-1], rows.tobytes())
        pixels = np.array(inks.convert("RGB"))
    warn_of_scale(page, file)
    return orient(pixels, page_orientation(page)) if turn else pixels


def has_colour_map(page: Any) -> bool:
    """Return True if a page's values are indices of colours; ImageJ's colour maps and greys only show them."""
    return (
        int(page.photometric or 0) == PALETTE
        and page.colormap is not None
        and not page.parent.is_imagej
        and bool((page.colormap[:1] != page.colormap).any())
    )


def invert(pixels: np.ndarray, page: Any, file: Path) -> np.ndarray:
    """Return grey values of a page whose smallest is white, so that the largest is."""
    name = "PhotometricInterpretation 0 (the smallest value is white)"
    if page.parent.is_imagej:
        warn_once(file.parent, f"{file}: {name} is ImageJ's inverting table; the values are read as stored")  # fmt: skip
        return pixels
    if pixels.dtype == np.bool_:
        return ~pixels
    if pixels.dtype.kind == "u":
        return (2 ** int(page.bitspersample) - 1 - pixels.astype(np.uint64)).astype(pixels.dtype)
    warn_once(file.parent, f"{file}: {name} has no meaning for {pixels.dtype}; the values are read as stored")  # fmt: skip
    return pixels


def warn_of_scale(page: Any, file: Path) -> None:
    """Warn of tags that give the stored values another scale."""
    metadata = str(page.tags.valueof(GDAL_METADATA) or "")
    calibrated = (page.parent.imagej_metadata or {}) if page.parent.is_imagej else {}
    if 'role="scale"' in metadata or 'role="offset"' in metadata or "c1" in calibrated:
        tag = "ImageJ's calibration (c0, c1)" if "c1" in calibrated else "GDAL_METADATA"
        warn_once(
            file.parent,
            f"{file}: {tag} gives the values a scale and an offset; they are read as stored: apply them first if "
            "they differ between images",
        )


def page_orientation(page: Any) -> int:
    """Return the value of the tag Orientation, 1 (upright) to 8."""
    value = page.tags.valueof("Orientation")
    return int(value) if value in range(1, 9) else 1


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) as it is seen, by the value of the tag Orientation, 1 to 8."""
    if orientation >= 5:  # rows and columns are swapped
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def warn_once(folder: Path, text: str) -> None:
    """Log a warning, once for each folder and wording after the file's name."""
    key = (folder, text.split(": ", 1)[-1])
    if key not in WARNED:
        WARNED.add(key)
        log.warning(text)


WARNED: set[tuple[Path, str]] = set()  # what ``warn_once`` has logged


def check_page_complete(tiff: tifffile.TiffFile, number: int) -> None:
    """Raise ValueError if a page lacks pixels; tifffile would fill them with zeros."""
    page, size = tiff.pages[number], tiff.filehandle.size
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = max((start + length for start, length in parts), default=0)
    if page.dtype is None or not page.size or len(parts) < math.prod(page.chunked) or end > size:
        raise ValueError(f"truncated: page {number} lacks pixels")


def check_all_pages(tiff: tifffile.TiffFile) -> None:
    """Raise ValueError if the file announces more pages than it holds."""
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
