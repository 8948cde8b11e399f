"""Size of a pixel in um: of the option ``data.spacing``, or of the resolution tags of the images' TIFFs."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tifffile

from seg.data.tiff import TIFF_SUFFIXES
from seg.errors import DataError

log = logging.getLogger("seg")

Spacing = list[float]  # height and width of a pixel, um
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296  # tags
CENTIMETRE = 3  # value of the tag ResolutionUnit
IMAGEJ_UNITS = {
    "nm": 1e-3,
    "um": 1.0,
    "\N{MICRO SIGN}m": 1.0,
    "\N{GREEK SMALL LETTER MU}m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
}  # unit of length in ImageJ's description -> um


def pixel_spacing(option: list[float] | None, files: Iterable[Path]) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um: the option, or that of the tags of all files.

    Args:
        option: the value of ``data.spacing``.
        files: the image files; read only if the option is None.

    Returns:
        None if a file has no usable tags, or, with a warning, if the files differ.

    Raises:
        DataError: if the option is not two finite numbers above 0.
    """
    # An option replaces the tags of the files
    if option is not None:
        if len(option) != 2 or not all(math.isfinite(v) and v > 0 for v in option):
            raise DataError(
                f"data.spacing={list(option)}: give the height and width of a pixel in um, both above 0, [0.5,0.5]"
            )
        return float(option[0]), float(option[1])
    # All files must have the tags, and agree within 0.1 %
    first: tuple[Path, tuple[float, float]] | None = None
    for file in dict.fromkeys(files):
        found = read_spacing(file)
        if found is None:
            return None
        if first is None:
            first = file, found
        elif not all(
            math.isclose(a, b, rel_tol=1e-3) for a, b in zip(found, first[1], strict=True)
        ):
            log.warning(
                f"{file}: a pixel is {found[0]:g} x {found[1]:g} um by its resolution tags, in {first[0]} it is "
                f"{first[1][0]:g} x {first[1][1]:g} um; distances are given in px only, unless data.spacing is set"
            )
            return None
    return None if first is None else first[1]


def read_spacing(file: Path) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um that the resolution tags of a TIFF give; None without them.

    ImageJ's unit of length and a resolution per centimetre are used. A resolution per inch is that of a
    print, which programs write by default (72), and is not.
    """
    # Resolution tags of a TIFF: pixels per unit, as fractions
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return None
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0].aspage()
            unit = unit_in_um(page, tiff.imagej_metadata)
            per_unit = [page.tags.valueof(tag) for tag in (Y_RESOLUTION, X_RESOLUTION)]
    except (OSError, ValueError, tifffile.TiffFileError):  # the reader names what is damaged
        return None
    if unit is None or not all(value and value[0] > 0 and value[1] > 0 for value in per_unit):
        return None
    # Pixel size in um is the inverse of pixels per unit
    height, width = (unit * value[1] / value[0] for value in per_unit)
    return height, width


def unit_in_um(page: Any, imagej: dict[str, Any] | None) -> float | None:
    """Return the length in um that the resolution of a page refers to; None if it is no length or of a print."""
    if imagej is not None:
        name = str(imagej.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}").strip()
        return IMAGEJ_UNITS.get(name)
    return 1e4 if page.tags.valueof(RESOLUTION_UNIT) == CENTIMETRE else None


def source_spacing(source: Any) -> tuple[float, float] | None:
    """Return the height and width of a pixel of a data set in um; None if it is not known."""
    return source.pixel_spacing() if hasattr(source, "pixel_spacing") else None
