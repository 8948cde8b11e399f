"""TIFF files: pages, channels, colour maps and truncation."""

import math
import struct
import sys
from pathlib import Path

import numpy as np
import tifffile

TIFF = {".tif", ".tiff"}
NATIVE = "<" if sys.byteorder == "little" else ">"
LARGE = (
    2**24
)  # bytes of a TIFF's page from which on it is mapped, not read, where its layout allows


def stored(
    tiff: tifffile.TiffFile, file: Path, page: int | None, colours: bool
) -> list[np.ndarray]:
    """All pages of an open TIFF, or one; a large one is mapped."""
    if page is None:
        check_last(tiff)
    if hidden_pages(tiff):
        whole = hidden_stack(tiff, file)
        chosen = whole if page is None else whole[page : page + 1]
        return [np.array(one, whole.dtype.newbyteorder("=")) for one in chosen]
    chosen = list(enumerate(tiff.pages)) if page is None else [(page, tiff.pages[page])]
    arrays = []
    for number, one in chosen:
        check_whole(tiff, number)
        mapped = one.nbytes >= LARGE and one.is_memmappable and one.parent.byteorder == NATIVE
        pixels = tifffile.memmap(file, page=number, mode="r") if mapped else one.asarray()
        if colours and (colormap := getattr(one.keyframe, "colormap", None)) is not None:
            pixels = (colormap >> 8).astype(np.uint8).T[pixels]
        arrays.append(channels_last(pixels, one.axes))
    return arrays


def check_whole(tiff: tifffile.TiffFile, number: int) -> None:
    """Raises ValueError for a page that lacks pixels, in whose place tifffile would put zeros."""
    page, size = tiff.pages[number], tiff.filehandle.size
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = max((start + length for start, length in parts), default=0)
    if page.dtype is None or not page.size or len(parts) < math.prod(page.chunked) or end > size:
        raise ValueError(f"cut off: page {number} lacks pixels")


def check_last(tiff: tifffile.TiffFile) -> None:
    """Raises ValueError when more pages should follow those that are there."""
    layout, reader, last = tiff.tiff, tiff.filehandle, tiff.pages[-1]
    if last.offset:  # else a page that others' directories imply
        reader.seek(last.offset)
        (tags,) = struct.unpack(layout.tagnoformat, reader.read(layout.tagnosize))
        reader.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
        (follows,) = struct.unpack(layout.offsetformat, reader.read(layout.offsetsize))
        if follows:
            raise ValueError(f"cut off: after {len(tiff.pages)} pages more should follow")
    told = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    end = sum((last.dataoffsets[0], last.nbytes)) if last.dataoffsets else 0
    if told > 1 == len(tiff.pages) and not hidden_pages(tiff) and tiff.filehandle.size > end:
        raise ValueError(f"cut off: {told} pages should be there")


def hidden_pages(tiff: tifffile.TiffFile) -> bool:
    """Whether one page's directory stands for many, as ImageJ writes stacks above 4 GB."""
    if len(tiff.pages) != 1 or not (tiff.is_imagej or tiff.is_shaped):
        return False
    return len(tiff.series) == 1 and tiff.series[0].size > tiff.pages[0].size


def hidden_stack(tiff: tifffile.TiffFile, file: Path) -> np.ndarray:
    """Hidden pages, mapped; in the file's byte order."""
    series, page = tiff.series[0], tiff.pages[0]
    if series.dataoffset is None:
        return series.asarray().reshape(-1, *page.shape)
    kind, shape = series.dtype.newbyteorder(tiff.byteorder), (count(tiff), *page.shape)
    return np.memmap(file, dtype=kind, mode="r", offset=series.dataoffset, shape=shape)


def count(tiff: tifffile.TiffFile) -> int:
    """Pages of an open TIFF."""
    return tiff.series[0].size // tiff.pages[0].size if hidden_pages(tiff) else len(tiff.pages)


def channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page  # planes stored one after another
