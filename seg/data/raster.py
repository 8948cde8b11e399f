"""Images larger than memory: read by bands of rows, written as tiled TIFF.

A page of a TIFF gives the rows asked for, whatever its layout: mapped where it is stored plainly, else decoded
tile by tile or strip by strip. Results lie as plain bytes beside the output while they grow, so that an
interrupted run goes on where it stopped, and become a compressed TIFF at the end.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from seg.data.image_io import as_image, read_image
from seg.data.tiff import (
    TIFF,
    channels_last,
    check_last,
    check_whole,
    count,
    hidden_pages,
    hidden_stack,
)
from seg.errors import DataError

TILE = 256  # px, side of the tiles of what is written
JPEG = (6, 7, 33007, 34892)  # compressions whose tables may lie apart from the pixels
UNITS = (1, 2, 3)  # none, inch, centimetre: of a TIFF's resolution
KEPT = (33550, 33922, 34264, 34735, 34736, 34737)  # tags of GeoTIFF: where on Earth the pixels are


class Raster:
    """One image whose rows are read as they are needed.

    Args:
        file: an image, or a TIFF of several pages.
        page: which of them.
        channels: whether all pages are the channels of one image.
        tiff: the file, if it is open already: a file of many pages is opened once.

    Attributes:
        shape: (H, W, C).

    Raises:
        DataError: when it can't be read.
    """

    def __init__(
        self,
        file: Path,
        page: int = 0,
        channels: bool = False,
        tiff: tifffile.TiffFile | None = None,
    ) -> None:
        self.file, self.page = file, page
        self.whole: np.ndarray | None = None
        self.tiff = tiff
        if channels or file.suffix.lower() not in TIFF:
            self.whole = read_image(file, channels=channels)
            self.shape = self.whole.shape
            return
        try:
            if self.tiff is None:
                self.tiff = tifffile.TiffFile(file)
                check_last(self.tiff)
            self.hidden = hidden_pages(self.tiff)
            if not self.hidden:
                check_whole(self.tiff, page)
            self.one = self.tiff.pages[0 if self.hidden else page].aspage()
            if self.one.imagedepth > 1:
                self.whole = self.band(0, None)
        except Exception as error:  # decoders raise every kind
            self.close()
            raise unreadable(file, error) from error
        height, width = self.one.imagelength, self.one.imagewidth
        self.shape = (height, width, self.one.samplesperpixel)
        if self.whole is not None:
            self.shape = self.whole.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows (stop - start, W, C) uint8, uint16 or float32.

        Raises:
            DataError: when they can't be read, or aren't finite.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        return self.band(start, stop)

    def band(self, start: int, stop: int | None) -> np.ndarray:
        named = f"{self.file}, page {self.page}" if self.pages > 1 else self.file
        try:
            assert self.tiff is not None
            if self.hidden:
                stack = hidden_stack(self.tiff, self.file)
                found = channels_last(stack[self.page], self.one.axes)[start:stop]
            elif stop is None:
                found = channels_last(self.one.asarray(), self.one.axes)
            elif self.one.is_memmappable:
                mapped = tifffile.memmap(self.file, page=self.page, mode="r")
                found = channels_last(mapped, self.one.axes)[start:stop]
            else:
                found = decoded(self.one, start, stop)
        except Exception as error:
            raise unreadable(self.file, error) from error
        return as_image(np.asarray(found, found.dtype.newbyteorder("=")), named)

    @property
    def pages(self) -> int:
        """Pages of the file."""
        if self.tiff is None:
            return 1
        return count(self.tiff)

    @property
    def tags(self) -> dict[str, Any]:
        """What a TIFF made of this one keeps, as arguments of tifffile: resolution, and place on Earth."""
        if self.tiff is not None:
            tags = self.one.tags
        elif self.file.suffix.lower() in TIFF:  # whose pages are channels
            with tifffile.TiffFile(self.file) as tiff:
                tags = tiff.pages[0].aspage().tags
        else:
            return {}
        kept: dict[str, Any] = {
            "extratags": [
                (tag.code, tag.dtype, tag.count, tag.value, True)
                for tag in tags
                if tag.code in KEPT
            ]
        }
        sides = [tags[name].value for name in ("XResolution", "YResolution") if name in tags]
        unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 2
        whole = [s for s in sides if isinstance(s, tuple) and len(s) == 2 and s[1]]
        if len(whole) == 2 and unit in UNITS:  # else what the file says has no meaning
            kept |= {"resolution": tuple(whole), "resolutionunit": unit}
        return kept

    @property
    def dtype(self) -> np.dtype:
        """uint8, uint16 or float32: what holds all that ``rows`` gives."""
        if self.whole is not None:
            return self.whole.dtype
        if self.one.dtype == np.bool_:
            return np.dtype(np.uint8)
        kept = self.one.dtype in (np.uint8, np.uint16)
        return np.dtype(self.one.dtype if kept else np.float32)

    def close(self) -> None:
        """Closes the file, also for its other pages."""
        if self.tiff is not None:
            self.tiff.close()


def images_of(file: Path, channels: bool) -> list[Raster]:
    """The images of a file: its pages, unless they are the channels of one image.

    Raises:
        DataError: when it can't be read.
    """
    if channels:
        return [Raster(file, channels=True)]
    first = Raster(file)
    return [first, *(Raster(file, page, tiff=first.tiff) for page in range(1, first.pages))]


def unreadable(file: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(file=file, found=f"not a readable image ({reason})", kind="unreadable")


def decoded(page: Any, start: int, stop: int) -> np.ndarray:
    """Rows of a page, from just the strips or tiles that hold them; (stop - start, W, C)."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    deep = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    across = -(-width // page.tilewidth) if page.is_tiled else 1
    first, last = start // deep, -(-min(stop, height) // deep)
    out = np.zeros(((last - first) * deep, width, samples), page.dtype)
    planes = 1 if page.planarconfig == 1 else samples  # stored one after another
    each = -(-height // deep) * across
    indices = [i + each * p for p in range(planes) for i in range(first * across, last * across)]
    offsets = [page.dataoffsets[i] for i in indices]
    counts = [page.databytecounts[i] for i in indices]
    jpeg = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    extra = jpeg if page.compression in JPEG else {}
    for data, index in page.parent.filehandle.read_segments(offsets, counts, indices=indices):
        segment, (plane, _, row, column, _), (_, h, w, c) = page.decode(data, index, **extra)
        if segment is None:
            raise ValueError(f"a tile is missing at row {row}, column {column}")
        h, w = min(h, height - row), min(w, width - column)
        at = row - first * deep
        out[at : at + h, column : column + w, plane : plane + c] = segment[0, :h, :w]
    return out[start - first * deep : stop - first * deep]
