"""Layout of a TIFF: which of its pages are images, and which of these are the channels or slices of one.

The axes of ImageJ, OME, Zeiss LSM and Akoya's QPTIFF are read from the file. Overviews, transparency masks, the levels of a pyramid but the
largest, and the thumbnail, label and macro of a slide are no images.
"""

import logging
import math
import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tifffile

log = logging.getLogger("seg")

PagesOption = Literal["slices", "channels"]
TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".qptiff", ".lsm"}
REDUCED_OR_MASK = 1 | 4  # bits of the tag NewSubfileType: an overview, a transparency mask
TRANSPARENCY_MASK = 4  # value of the tag PhotometricInterpretation
MAX_LEVELS = 64  # pages of a TIFF among which reduced levels are looked for
SLIDE_EXTRAS = ("label", "macro", "thumbnail", "overview", "map")  # names of series


class TiffLayout(NamedTuple):
    """Pages of a TIFF that are images.

    Attributes:
        pages: indices of the pages, or of the slices of an array that one directory stands for.
        images: pages of each image by the file's axes: its channels; None: the file has no axes.
        axes: text of the axes for messages; empty without.
    """

    pages: list[int]
    images: list[list[int]] | None = None
    axes: str = ""


LAYOUTS: dict[tuple, TiffLayout] = {}  # (path, size, time) -> result of ``read_layout``


def read_layout(tiff: tifffile.TiffFile) -> TiffLayout:
    """Return the layout of an open TIFF, kept while the file is unchanged: listing a long stack's pages is slow."""
    status = os.stat(tiff.filehandle.path)
    state = (tiff.filehandle.path, status.st_size, status.st_mtime_ns)
    if state not in LAYOUTS:
        if len(LAYOUTS) > 1024:
            LAYOUTS.clear()
        LAYOUTS[state] = find_layout(tiff)
    return LAYOUTS[state]


def find_layout(tiff: tifffile.TiffFile) -> TiffLayout:
    """Return the layout of an open TIFF."""
    # One directory that stands for many pages, or the pages of a slide
    first = tiff.pages[0].aspage()
    if has_single_directory(tiff):
        pages = list(range(tiff.series[0].size // first.size))
    elif tiff.is_svs or tiff.is_ndpi:
        return TiffLayout(slide_pages(tiff))
    elif tiff.is_qpi:
        pages = slide_pages(tiff)  # one for each channel
        axes = f"axes CYX: one image of {len(pages)} channels"
        return TiffLayout(pages, [pages], axes) if len(pages) > 1 else TiffLayout(pages)
    else:
        pages = image_pages(tiff)
    if len(pages) == 1 or not (first.is_imagej or first.is_ome or first.is_lsm):
        return TiffLayout(pages)
    # Axes of ImageJ, OME or LSM; pages of other files that an OME set names are not looked for
    try:
        with tifffile.TiffFile(tiff.filehandle.path, _multifile=False) as own:
            named = [s for s in own.series if s.kind in ("imagej", "ome", "lsm")]
            kept = [s for s in named if not is_slide_extra(s)] or named
            groups = [group_by_axes(series, pages) for series in kept]
            left_out = {index for s in named if s not in kept for index in page_indices(s)}
            axes = [describe_axes(series) for series in kept]
    except (ValueError, LookupError) as error:
        log.warning(
            f"{tiff.filehandle.path}: its axes can't be read ({error}); each page is an image"
        )
        return TiffLayout(pages)
    images = [image for group in groups for image in group or ()]
    pages = [page for page in pages if page not in left_out]
    covered = sorted(page for image in images for page in image) == pages
    if None in groups or not covered:
        return TiffLayout(pages)
    return TiffLayout(pages, images, " and ".join(dict.fromkeys(axes)))


def page_indices(series: tifffile.TiffPageSeries) -> list[int]:
    """Return the indices of a series' pages that are in the file."""
    return [page.index for page in series.pages if page is not None]


def series_axes(series: tifffile.TiffPageSeries) -> dict[str, int]:
    """Return letter -> length of a series' axes but the rows, columns and samples of a page."""
    lengths = zip(series.get_axes(False), series.get_shape(False), strict=True)
    axes = {axis: length for axis, length in lengths if axis not in "YXS"}
    if series.keyframe.samplesperpixel > 1 and "C" in axes:  # colours are channels already
        if series.kind == "lsm":  # its channels are the samples of a page
            return {axis: length for axis, length in axes.items() if axis != "C"}
        axes = {("c" if axis == "C" else axis): length for axis, length in axes.items()}
    return axes


def group_by_axes(series: tifffile.TiffPageSeries, pages: list[int]) -> list[list[int]] | None:
    """Return the pages of each image of a series, its channels; None if the axes do not fit the pages."""
    found = page_indices(series)
    if len(found) == 1 < len(pages):  # one directory that stands for all
        found = pages
    axes = series_axes(series)
    if math.prod(axes.values()) != len(found):
        axes = {axis: length for axis, length in axes.items() if axis not in "cC"}  # of a page
    if math.prod(axes.values()) != len(found):
        return None
    numbers = np.array(found).reshape(tuple(axes.values()))
    if "C" in axes:
        numbers = np.moveaxis(numbers, list(axes).index("C"), -1)
    return numbers.reshape(-1, axes.get("C", 1)).tolist()


def describe_axes(series: tifffile.TiffPageSeries) -> str:
    """Return the axes of a series, ``axes TZCYX: 2 x 5 slices (T x Z) of 3 channels``."""
    axes = {axis: length for axis, length in series_axes(series).items() if length > 1}
    slices = {axis: str(length) for axis, length in axes.items() if axis != "C"}
    text = f"{' x '.join(slices.values())} slices ({' x '.join(slices)})" if slices else "one image"
    channels = f" of {axes['C']} channels" if "C" in axes else ""
    return f"axes {series.get_axes(True).removesuffix('S')}: {text}{channels}"


def slide_pages(tiff: tifffile.TiffFile) -> list[int]:
    """Return the pages of the largest level of a slide: one, or one for each focal plane or channel."""
    levels = [series for series in tiff.series if not is_slide_extra(series)] or tiff.series
    return page_indices(max(levels, key=lambda series: math.prod(series.shape)))


def has_pyramid(file: Path) -> bool:
    """Return True if a file is a TIFF that holds its image in several sizes."""
    if file.suffix.lower() not in TIFF_SUFFIXES or not file.is_file():
        return False
    with tifffile.TiffFile(file, _multifile=False) as tiff:
        pages = [page.aspage() for page in tiff.pages[:MAX_LEVELS]]
        first, *others = pages
        return tiff.is_ndpi or bool(first.subifds) or any(is_level(page, first) for page in others)


def is_slide_extra(series: tifffile.TiffPageSeries) -> bool:
    """Return True if a series is a slide's thumbnail, label or macro, by its name, or the thumbnails of an LSM."""
    if series.kind == "lsm" and series.keyframe.is_reduced:
        return True
    return (series.name or "").lower().removesuffix(" image") in SLIDE_EXTRAS


def image_pages(tiff: tifffile.TiffFile) -> list[int]:
    """Return the indices of the pages that are neither overviews, transparency masks nor levels of a pyramid."""
    pages = [page.aspage() for page in tiff.pages]
    images = [
        number
        for number, page in enumerate(pages)
        if not page.subfiletype & REDUCED_OR_MASK and page.photometric != TRANSPARENCY_MASK
    ] or list(range(len(pages)))
    # Tiled pages of one type and falling size, each the first one reduced, are the levels of a pyramid
    first, *rest = (pages[number] for number in images)
    widths = [pages[number].imagewidth for number in images]
    falling = all(wide > narrow for wide, narrow in pairwise(widths))
    return images[:1] if falling and all(is_level(page, first) for page in rest) else images


def is_level(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Return True if a tiled page has the type of the first one, and its size over one factor, up to 1 px."""
    factor = round(first.imagewidth / page.imagewidth)
    sides = ((first.imagewidth, page.imagewidth), (first.imagelength, page.imagelength))
    return (
        page.is_tiled
        and first.is_tiled
        and factor > 1
        and all(abs(whole / factor - part) <= 1 for whole, part in sides)
        and (page.dtype, page.samplesperpixel) == (first.dtype, first.samplesperpixel)
        and page.photometric == first.photometric
    )


def group_pages(tiff: tifffile.TiffFile, option: PagesOption | None) -> list[list[int]]:
    """Return the pages of each image of an open TIFF: its channels.

    Args:
        tiff: the open file.
        option: ``slices``: each page is an image; ``channels``: all pages are one; None: by the axes of the
            file, and without axes each page is an image.
    """
    layout = read_layout(tiff)
    if option == "channels":
        return [layout.pages]
    if option is None and layout.images is not None:
        return layout.images
    return [[page] for page in layout.pages]


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
