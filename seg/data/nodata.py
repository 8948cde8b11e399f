"""Values that mean no data: of the tag GDAL_NODATA, of the option ``data.nodata``, and values that look like one.

In an image of floats such a value becomes NaN when it is read; in one of integers it stays, all under one value.
Its pixels are left out of the statistics, ignored in the mask, and the mean in the input of the network.
"""

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from seg.data.tiff import GDAL_NODATA, interpret_page, warn_once
from seg.data.tiff_layout import TIFF_SUFFIXES
from seg.errors import DataError

NodataOption = float | Literal["nan", "none"]
SENTINELS = (-9999.0, -99999.0, -32768.0)  # values that programs write where there is no data
HUGE = 1e38  # no measurement; programs write the smallest or the largest float
DAMAGED = (OSError, ValueError, TypeError, LookupError, struct.error, tifffile.TiffFileError)
"""Errors of a damaged file, which its reader names."""


def nodata_values(option: NodataOption | None, file: Path | None) -> tuple[float, ...]:
    """Return the values that mean no data in a file as read: the option's first, and those of its tag.

    Args:
        option: a number, ``nan``, ``none`` (no value means no data), or None (that of the tag).
        file: an image file; None: there is none.
    """
    if option == "none":
        return ()
    tag = () if file is None else read_nodata_tag(file)
    return tag if option is None else (float(option), *tag)


def read_nodata_tag(file: Path) -> tuple[float, ...]:
    """Return the values that the tag GDAL_NODATA of a TIFF means, as read; () if there is none."""
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return ()
    try:
        status = file.stat()
        return read_tag(file, status.st_size, status.st_mtime_ns)
    except (*DAMAGED, DataError):
        return ()


@lru_cache(maxsize=2**16)
def read_tag(file: Path, size: int, time: int) -> tuple[float, ...]:
    """Return what ``read_nodata_tag`` does, once for each state of a file: its size in bytes and its time in ns."""
    with tifffile.TiffFile(file) as tiff:
        return interpret_nodata(tiff.pages[0].aspage(), file)


def interpret_nodata(page: Any, file: Path) -> tuple[float, ...]:
    """Return what a pixel with the value of the tag GDAL_NODATA becomes when it is read; () without a usable tag."""
    # The tag is a text; one that is no number declares nothing
    try:
        number = float(str(page.tags.valueof(GDAL_NODATA)).strip("\0 "))
    except ValueError:
        return ()
    # A number that the integer type can't hold marks no pixel
    if page.dtype.kind in "iu" and not integer_nodata((number,), page.dtype):
        return ()
    # Convert the number as the pixels are: stored type, scale and inversion
    samples = () if page.samplesperpixel == 1 else (page.samplesperpixel,)
    with np.errstate(over="ignore"):
        stored = np.full((1, 1, *samples), number).astype(page.dtype)
    pixel = interpret_page(stored, page, file, turn=False)
    if pixel.ndim > stored.ndim:  # a colour of a palette
        return ()
    return tuple(float(value) for value in np.unique(pixel))


def integer_nodata(values: Sequence[float], dtype: np.dtype) -> list[int]:
    """Return the values that an integer type can hold."""
    limits = np.iinfo(dtype)
    whole = [int(v) for v in values if math.isfinite(v) and v == int(v)]
    return [value for value in whole if limits.min <= value <= limits.max]


def find_values(pixels: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Return where an array has one of the values, compared in its own type (floats as float32); bool."""
    if pixels.dtype.kind in "iu":
        return np.isin(pixels, integer_nodata(values, pixels.dtype))
    found = np.zeros(pixels.shape, bool)
    with np.errstate(over="ignore"):
        single = pixels.astype(np.float32)
        for value in values:
            found |= np.isnan(single) if math.isnan(value) else single == np.float32(value)
    return found


def unify_integers(image: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Return an image of integers in which each of several values that mean no data is the first of them."""
    first, *others = integer_nodata(values, image.dtype) or [0]
    return np.where(np.isin(image, others), image.dtype.type(first), image) if others else image


def nodata_pixels(image: np.ndarray, values: Sequence[float] | None) -> np.ndarray | None:
    """Return where all channels of an image (..., C) as read have no data, (...) bool; None: nowhere."""
    if image.dtype.kind == "f":
        lost = np.isnan(image)
    elif known := integer_nodata(values or (), image.dtype):
        lost = image == known[0]
    else:
        return None
    pixels = np.asarray(lost.all(-1))
    return pixels if pixels.any() else None


def check_sentinels(image: np.ndarray, file: Path | str) -> None:
    """Warn of a value of floats (H, W, C) that probably means no data.

    Raises:
        DataError: if it is the smallest or the largest float.
    """
    # Extremes beyond any measurement, such as -3.4e38
    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    for value in (low, high):
        if abs(value) > HUGE:
            count = int((image == np.float32(value)).sum())
            raise DataError(
                file=file,
                found=f"{count} of {image.size} values are {value!r}",
                remedy=f"if it means no data, {declare_nodata(value)}",
                kind="pixels",
            )
    # A usual no-data number such as -9999, far below all other values
    if low in SENTINELS and float(np.min(image, where=image != low, initial=np.inf)) > low / 2:
        warn_once(
            Path(str(file)),
            f"value {low:g}",
            f"values of {low:g} are far below all others; if it means no data, "
            f"{declare_nodata(low)}",
        )


def declare_nodata(value: float) -> str:
    """Return the options that declare a value."""
    short = f"{value:g}"
    text = short if math.isnan(value) or float(short) == value else repr(value)
    return f"data.nodata={text} declares it (in seg.predict nodata={text})"
