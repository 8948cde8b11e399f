"""Image reader for files larger than memory: any band of rows is read on its own.

A page of a TIFF that is stored without compression is memory-mapped; of any other, only the strips or tiles that
hold the rows are decoded, and of an OME-Zarr the chunks. Other formats are read whole.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from seg.data.image_io import as_image, decoder_errors, log_axes, read_axes, read_image
from seg.data.ome_zarr import ZarrImages, is_store
from seg.data.tiff import (
    JPEG_COMPRESSIONS,
    check_channels,
    check_page_complete,
    interpret_page,
    map_stack,
    move_channels_last,
    page_orientation,
    stack_channels,
)
from seg.data.tiff_layout import (
    TIFF_SUFFIXES,
    PagesOption,
    check_all_pages,
    group_pages,
    has_single_directory,
    read_layout,
)
from seg.data.value_types import SCAN_ROWS

RESOLUTION_UNITS = (1, 2, 3)  # none, inch, centimetre: values of the tag ResolutionUnit
GEOTIFF_TAGS = (
    33550,
    33922,
    34264,
    34735,
    34736,
    34737,
)  # tags of GeoTIFF: scale, tie points, projection


class ImageReader:
    """One image whose rows are read on demand.

    Args:
        file: an image file, perhaps of several images.
        page: index of the image, from 0.
        pages: use of several pages; see ``seg.data.image_io.read_pages``.
        tiff: the file, if it is already open, so that many pages share one file handle.
        stack: the open OME-Zarr, likewise.
        nodata: values that mean no data; see ``seg.data.image_io.as_image``.

    Attributes:
        shape: (H, W, C).

    Raises:
        DataError: if the file cannot be read.
    """

    colours: bool | None = None  # as in an image: see ``seg.data.image_io.read_pages``

    def __init__(
        self,
        file: Path,
        page: int = 0,
        pages: PagesOption | None = None,
        tiff: tifffile.TiffFile | None = None,
        nodata: Sequence[float] = (),
        stack: ZarrImages | None = None,
    ) -> None:
        self.file, self.page, self.nodata = file, page, nodata
        self.whole: np.ndarray | None = None
        self.tiff, self.stack, self.axes = tiff, stack, ""
        if is_store(file):
            with decoder_errors(file):
                self.stack = self.stack or ZarrImages(file, pages)
                self.length, self.axes = self.stack.length, self.stack.axes
                empty = self.finish_rows(self.stack.empty_row(), file)
                self.shape, self.stored = (self.stack.height, *empty.shape[1:]), empty.dtype
            return
        if file.suffix.lower() not in TIFF_SUFFIXES:
            self.length, self.axes = read_axes(file, pages)
            self.whole = read_image(file, page if self.length > 1 else None, pages, nodata)
            self.shape = self.whole.shape
            return
        try:
            with decoder_errors(file):
                if self.tiff is None:
                    self.tiff = tifffile.TiffFile(file)
                    check_all_pages(self.tiff)
                self.has_hidden_pages = has_single_directory(self.tiff)
                groups = group_pages(self.tiff, pages)
                self.length, self.numbers = len(groups), groups[page]
                self.axes = read_layout(self.tiff).axes
                directories = [0] if self.has_hidden_pages else self.numbers
                if not self.has_hidden_pages:
                    for number in directories:
                        check_page_complete(self.tiff, number)
                self.directories = [self.tiff.pages[number].aspage() for number in directories]
                self.directory = self.directories[0]
                self.stored = self.check_stored_pages()
                self.upright = all(page_orientation(one) == 1 for one in self.directories)
                if self.directory.imagedepth > 1 or not self.upright:
                    self.whole = self.read_band(0, None)
                    self.shape, self.stored = self.whole.shape, self.whole.dtype
        except BaseException:
            self.close()
            raise

    def check_stored_pages(self) -> np.dtype:
        """Set the shape from an empty row of each page, which must agree, and return the type of the image."""
        rows = []
        for stored in self.directories:
            samples = () if stored.samplesperpixel == 1 else (stored.samplesperpixel,)
            row = np.zeros((1, stored.imagewidth, *samples), stored.dtype)
            rows.append(interpret_page(row, stored, self.file, self.colours, turn=False))
        if len(rows) > 1:
            sizes = [one.imagelength for one in self.directories]
            shapes = [
                ((size, *row.shape[1:]), row.dtype) for size, row in zip(sizes, rows, strict=True)
            ]
            check_channels(shapes, self.file)
        rows *= len(self.numbers) // len(rows)  # slices of one array
        first = self.finish_rows(stack_channels(rows, self.file), self.file)
        self.shape = (self.directory.imagelength, *first.shape[1:])
        return first.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows (stop - start, W, C) uint8, uint16 or float32.

        Raises:
            DataError: if they cannot be read or are not finite.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        return self.read_band(start, stop)

    def bands(self) -> Iterator[np.ndarray]:
        """Yield the image from top to bottom, ``SCAN_ROWS`` rows at a time."""
        for start in range(0, self.shape[0], SCAN_ROWS):
            yield self.rows(start, min(start + SCAN_ROWS, self.shape[0]))

    def read_band(self, start: int, stop: int | None) -> np.ndarray:
        """Return rows of the page as an image; with ``stop`` None the whole page, decoded at once."""
        name = f"{self.file}, page {self.page}" if self.pages > 1 else self.file
        with decoder_errors(self.file):
            if self.stack is not None:
                bottom = self.stack.height if stop is None else stop
                return self.finish_rows(self.stack.rows(self.page, start, bottom), name)
            channels = [self.read_page_rows(n, start, stop) for n in range(len(self.numbers))]
            pixels = stack_channels(channels, self.file)
        return self.finish_rows(pixels, name)

    def finish_rows(self, pixels: np.ndarray, name: Path | str) -> np.ndarray:
        """Return rows that were read as rows of an image, (h, W, C)."""
        return as_image(pixels, name, self.nodata)

    def read_page_rows(self, channel: int, start: int, stop: int | None) -> np.ndarray:
        """Return rows of one of the pages that are the image's channels, as its tags say."""
        assert self.tiff is not None
        number = self.numbers[channel]
        directory = self.directories[0 if self.has_hidden_pages else channel]
        axes = directory.axes
        if self.has_hidden_pages:
            pixels = move_channels_last(map_stack(self.tiff, self.file)[number], axes)
            pixels = pixels[start:stop]
        elif stop is None:
            pixels = move_channels_last(directory.asarray(), axes)
        elif directory.is_memmappable:
            mapped = tifffile.memmap(self.file, page=number, mode="r")
            pixels = move_channels_last(mapped, axes)[start:stop]
        else:
            pixels = decode_rows(directory, start, stop)
        pixels = np.asarray(pixels, pixels.dtype.newbyteorder("="))
        pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        return interpret_page(pixels, directory, self.file, self.colours, turn=stop is None)

    @property
    def pages(self) -> int:
        """Number of images of the file."""
        return self.length

    @property
    def tags(self) -> dict[str, Any]:
        """Resolution and GeoTIFF tags of the page, as arguments of tifffile's writer; {} for other formats.

        A page that is turned as it is seen has no GeoTIFF tags: these refer to the stored rows.
        """
        if self.tiff is None:
            return {}
        page = self.directory
        tags, orientation = page.tags, page_orientation(page)
        extra = [(t.code, t.dtype, t.count, t.value, True) for t in tags if t.code in GEOTIFF_TAGS]
        kept: dict[str, Any] = {"extratags": extra if orientation == 1 else []}
        # A resolution counts only if both sides are fractions and the unit is defined.
        sides = [tags[name].value for name in ("XResolution", "YResolution") if name in tags]
        unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 2
        fractions = [s for s in sides if isinstance(s, tuple) and len(s) == 2 and s[1]]
        if len(fractions) == 2 and unit in RESOLUTION_UNITS:
            sides = fractions[:: -1 if orientation >= 5 else 1]  # x and y are swapped from 5 on
            kept |= {"resolution": tuple(sides), "resolutionunit": unit}
        return kept

    @property
    def dtype(self) -> np.dtype:
        """Type that holds any of the rows: uint8, uint16 or float32."""
        return self.stored if self.whole is None else self.whole.dtype

    def close(self) -> None:
        """Close the file, which other pages may share."""
        if self.tiff is not None:
            self.tiff.close()


class MaskReader(ImageReader):
    """Mask of class values or colours, of which rows are read on demand.

    Args:
        file: a TIFF or an OME-Zarr.
        page: index of the page, from 0.
        colours: convert the indices of a colour map to its colours.
    """

    def __init__(self, file: Path, page: int = 0, colours: bool = False) -> None:
        self.colours = colours
        super().__init__(file, page)

    def finish_rows(self, pixels: np.ndarray, name: Path | str) -> np.ndarray:
        """Return rows as stored, (h, W) or (h, W, C)."""
        return pixels


def open_pages(
    file: Path, pages: PagesOption | None = None, nodata: Sequence[float] = ()
) -> list[ImageReader]:
    """Return a reader for each image of a file.

    Args:
        file: file to read.
        pages: use of several pages; see ``seg.data.image_io.read_pages``.
        nodata: values that mean no data.

    Raises:
        DataError: if the file cannot be read.
    """
    first = ImageReader(file, pages=pages, nodata=nodata)
    if pages is None:
        log_axes(file, first.axes)
    others = range(1, first.pages)
    return [first, *(ImageReader(file, n, pages, first.tiff, nodata, first.stack) for n in others)]


def decode_rows(page: Any, start: int, stop: int) -> np.ndarray:
    """Return rows (stop - start, W, C) of a page, from only the strips or tiles that hold them.

    tifffile's zarr store would return zeros for a missing tile, and decode an uncompressed page whole.

    Raises:
        ValueError: if a tile is missing.
    """
    # Geometry: a row of tiles, or a strip, is ``depth`` pixel rows high.
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    depth = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    across = -(-width // page.tilewidth) if page.is_tiled else 1
    first, last = start // depth, -(-min(stop, height) // depth)
    rows = np.zeros(((last - first) * depth, width, samples), page.dtype)
    # Indices of the segments that hold the rows; separate planes are stored one after another.
    planes = 1 if page.planarconfig == 1 else samples
    per_plane = -(-height // depth) * across
    band = range(first * across, last * across)
    indices = [i + per_plane * plane for plane in range(planes) for i in band]
    offsets = [page.dataoffsets[i] for i in indices]
    counts = [page.databytecounts[i] for i in indices]
    # Decode each segment and put it in its place, clipped at the border of the image.
    jpeg = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    extra = jpeg if page.compression in JPEG_COMPRESSIONS else {}
    for data, index in page.parent.filehandle.read_segments(offsets, counts, indices=indices):
        segment, (plane, _, row, column, _), (_, h, w, c) = page.decode(data, index, **extra)
        if segment is None:
            raise ValueError(f"a tile is missing at row {row}, column {column}")
        h, w = min(h, height - row), min(w, width - column)
        top = row - first * depth
        rows[top : top + h, column : column + w, plane : plane + c] = segment[0, :h, :w]
    return rows[start - first * depth : stop - first * depth]
