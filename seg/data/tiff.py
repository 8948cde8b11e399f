"""TIFF files: pages, channels, colour maps and truncation."""

import math
import struct
import sys
from pathlib import Path

import numpy as np
import tifffile

TIFF_SUFFIXES = {".tif", ".tiff"}
NATIVE_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
MAPPED_BYTES = (
    2**24
)  # bytes of a page; from here on it is mapped instead of read, where its layout allows


def read_tiff_pages(
    tiff: tifffile.TiffFile, file: Path, page: int | None, colours: bool
) -> list[np.ndarray]:
    """Return the pages of an open TIFF as stored.

    Args:
        tiff: the open file.
        file: its path.
        page: index of the only page to read, from 0; None: all pages.
        colours: convert the indices of a colour map to its colours.

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
        return [np.array(array, stack.dtype.newbyteorder("=")) for array in chosen]
    # Pages with a directory are read one by one.
    numbered = list(enumerate(tiff.pages)) if page is None else [(page, tiff.pages[page])]
    arrays = []
    for number, directory in numbered:
        check_page_complete(tiff, number)
        native = directory.parent.byteorder == NATIVE_BYTE_ORDER
        if directory.nbytes >= MAPPED_BYTES and directory.is_memmappable and native:
            array = tifffile.memmap(file, page=number, mode="r")
        else:
            array = directory.asarray()
        if colours and (colormap := getattr(directory.keyframe, "colormap", None)) is not None:
            array = (colormap >> 8).astype(np.uint8).T[array]
        arrays.append(move_channels_last(array, directory.axes))
    return arrays


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
        tiff.series[0].size // tiff.pages[0].size if has_single_directory(tiff) else len(tiff.pages)
    )


def move_channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    """Return a page with its channels last; ``axes`` begins with S where planes are stored in turn."""
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page
