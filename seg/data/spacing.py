"""Size of a pixel in um: of the option ``data.spacing``, or of the metadata of the images."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from seg.data.image_files import image_suffix
from seg.data.image_io import decoder_errors
from seg.data.stacks import STACK_SUFFIXES, open_stack
from seg.data.tiff_layout import TIFF_SUFFIXES
from seg.errors import DataError

log = logging.getLogger("seg")

Spacing = list[float]  # height and width of a pixel, um
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296  # tags
CENTIMETRE = 3  # value of the tag ResolutionUnit
LENGTH_UNITS = {
    "nm": 1e-3,
    "um": 1.0,
    "\N{MICRO SIGN}m": 1.0,
    "\N{GREEK SMALL LETTER MU}m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}  # unit of length in the metadata of ImageJ and OME -> um


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
                f"{file}: a pixel is {found[0]:g} x {found[1]:g} um by its metadata, in {first[0]} it is "
                f"{first[1][0]:g} x {first[1][1]:g} um; distances are given in px only, unless data.spacing is set"
            )
            return None
    return None if first is None else first[1]


def read_spacing(file: Path) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um that the metadata of a file give; None without them.

    PixelSpacing of DICOM, the zooms of NIfTI, and of a TIFF OME's PhysicalSize, Aperio's MPP, LSM's VoxelSize, ImageJ's unit
    of length or a resolution per centimetre are used. A resolution per inch is that of a print, which programs write
    by default (72), and is not.
    """
    suffix = image_suffix(file)
    if suffix not in TIFF_SUFFIXES | STACK_SUFFIXES:
        return None
    try:
        if suffix in STACK_SUFFIXES:
            with decoder_errors(file):
                return open_stack(file).spacing
        with tifffile.TiffFile(file) as tiff:
            return tiff_spacing(tiff)
    except (
        DataError,
        OSError,
        ValueError,
        tifffile.TiffFileError,
    ):  # the reader names what is damaged
        return None


def tiff_spacing(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um that the metadata of an open TIFF give; None without them."""
    page = tiff.pages[0].aspage()
    # OME's and Aperio's descriptions state the size itself
    if page.is_ome and (found := ome_spacing(page.description)) is not None:
        return found
    if page.is_svs:
        for word in page.description.split("|"):
            name, _, value = word.partition("=")
            if name.strip() == "MPP" and float(value) > 0:
                return float(value), float(value)
    if page.is_lsm and (info := tiff.lsm_metadata) is not None:
        sides = 1e6 * float(info["VoxelSizeY"]), 1e6 * float(info["VoxelSizeX"])  # of metres
        return sides if min(sides) > 0 and math.isfinite(sum(sides)) else None
    # Resolution tags: pixels per unit, as fractions
    unit = unit_in_um(page, tiff.imagej_metadata)
    per_unit = [page.tags.valueof(tag) for tag in (Y_RESOLUTION, X_RESOLUTION)]
    if unit is None or not all(value and value[0] > 0 and value[1] > 0 for value in per_unit):
        return None
    # Pixel size in um is the inverse of pixels per unit
    height, width = (unit * value[1] / value[0] for value in per_unit)
    return height, width


def ome_spacing(text: str) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um of the first image of OME-XML; None if it does not state them."""
    try:
        pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
        stated = {} if pixels is None else pixels.attrib
        sides = [
            float(stated[f"PhysicalSize{side}"])
            * LENGTH_UNITS[stated.get(f"PhysicalSize{side}Unit", "\N{MICRO SIGN}m")]
            for side in "YX"
        ]
    except (ElementTree.ParseError, LookupError):
        return None
    return (sides[0], sides[1]) if min(sides) > 0 and math.isfinite(sum(sides)) else None


def unit_in_um(page: Any, imagej: dict[str, Any] | None) -> float | None:
    """Return the length in um that the resolution of a page refers to; None if it is no length or of a print."""
    if imagej is not None:
        name = str(imagej.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}").strip()
        return LENGTH_UNITS.get(name)
    return 1e4 if page.tags.valueof(RESOLUTION_UNIT) == CENTIMETRE else None


def source_spacing(source: Any) -> tuple[float, float] | None:
    """Return the height and width of a pixel of a data set in um; None if it is not known."""
    return source.pixel_spacing() if hasattr(source, "pixel_spacing") else None
