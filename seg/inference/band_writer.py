"""Writer of large images: rows are appended to a file of plain bytes, which becomes a compressed, tiled TIFF.

With levels it is a pyramid, an OME-TIFF whose reduced images are SubIFDs: every second, fourth, ... pixel of each side.
The plain bytes are stored next to the output until it is complete, so that images larger than memory can be written.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from seg import files

TILE_PX = 256  # px, side of the tiles of the TIFF


@dataclass
class BandWriter:
    """An array (pages, H, W) or (pages, C, H, W) that is written to a file band by band.

    Attributes:
        file: path of the plain bytes.
        width: W, px.
        height: H, px.
        dtype: type of the values.
        planes: C; 0: a page is (H, W).
        pages: number of pages.
        below: folder below which all files are written; None: the folder of ``file``.
    """

    file: Path
    width: int
    height: int
    dtype: np.dtype
    planes: int = 0
    pages: int = 1
    below: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder below which all files are written."""
        return self.below or self.file.parent

    @property
    def row(self) -> int:
        """Size of a row of all planes in bytes."""
        return self.width * max(1, self.planes) * self.dtype.itemsize

    def add(self, band: np.ndarray) -> None:
        """Append rows (h, W), or (C, h, W)."""
        rows = band[None] if band.ndim == 2 else band  # (C, h, W); stored as (h, C, W)
        with files.open_append(self.file, self.folder) as out:
            np.ascontiguousarray(rows.transpose(1, 0, 2), self.dtype).tofile(out)

    def page(self, number: int) -> np.ndarray:
        """Return a complete page, (H, W) or (C, H, W)."""
        return self.rows(number, 0, self.height)

    def rows(self, number: int, top: int, bottom: int) -> np.ndarray:
        """Return rows ``top`` to ``bottom`` of a page, (h, W) or (C, h, W)."""
        shape = (bottom - top, max(1, self.planes), self.width)
        with self.file.open("rb") as file:
            file.seek((number * self.height + top) * self.row)
            values = np.fromfile(file, self.dtype, math.prod(shape)).reshape(shape)
        return np.ascontiguousarray(values.transpose(1, 0, 2)) if self.planes else values[:, 0]

    def window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return part of the rows of the first page without planes, (h, w); only that part is read."""
        mapped = np.memmap(self.file, self.dtype, "r", shape=(self.height, self.width))
        return np.array(mapped[top:bottom, left:right])

    def iterate_rows(self, step: int, rows: int) -> Iterator[np.ndarray]:
        """Yield every ``step``-th pixel of each side of all pages and planes, that many rows at a time."""
        for page, plane in np.ndindex(self.pages, max(1, self.planes)):
            for top in range(0, self.height, step * rows):
                first, size = page * self.height + top, min(step * rows, self.height - top)
                chosen = range(first, first + size, step)
                yield self.map_rows(first, size, plane) if step == 1 else self.read_rows(chosen, plane, step)  # fmt: skip

    def map_rows(self, first: int, size: int, plane: int) -> np.ndarray:
        """Return rows of a plane, counted over all pages; a new mapping lets the system release those read before."""
        shape = (self.pages * self.height, max(1, self.planes), self.width)
        return np.array(np.memmap(self.file, self.dtype, "r", shape=shape)[first : first + size, plane])  # fmt: skip

    def read_rows(self, rows: range, plane: int, step: int) -> np.ndarray:
        """Return every ``step``-th pixel of some rows of a plane; a mapping would take the memory of all rows between."""
        band = np.empty((len(rows), -(-self.width // step)), self.dtype)
        with self.file.open("rb") as file:
            for place, row in enumerate(rows):
                file.seek((row * max(1, self.planes) + plane) * self.width * self.dtype.itemsize)
                band[place] = np.fromfile(file, self.dtype, self.width)[::step]
        return band

    def iterate_tiles(self, dtype: np.dtype, step: int = 1) -> Iterator[np.ndarray]:
        """Yield the pixels of ``iterate_rows`` as tiles (TILE, TILE) of a type, a row of tiles after another."""
        for band in self.iterate_rows(step, TILE_PX):
            # Pad the tiles at the right and lower border with zeros: TIFF needs whole tiles
            for left in range(0, band.shape[1], TILE_PX):
                tile = np.zeros((TILE_PX, TILE_PX), dtype)
                part = band[:, left : left + TILE_PX]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    def finish(self, file: Path, tags: dict[str, Any], dtype: Any = None) -> None:
        """Write the TIFF, completely or not at all; the plain bytes stay until ``remove``.

        Args:
            file: path of the TIFF.
            tags: further arguments of tifffile's writer.
            dtype: type of its values, which holds those of the rows; None: that of the rows.
        """
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        # Axes of length 1 are left out of the shape, except of an image 1 px wide: tifffile would take
        # its W for channels, so each plane is written on its own.
        axes = self.axes
        shape, metadata, writes = tuple(axes.values()), {"axes": "".join(axes)}, 1
        if self.width == 1:
            shape, metadata, writes = (self.height, 1), None, self.pages * max(1, self.planes)
        tiles = self.iterate_tiles(dtype)
        number = math.prod(shape[:-2]) * -(-self.height // TILE_PX) * -(-self.width // TILE_PX)
        with self.replacing(file) as new, tifffile.TiffWriter(new, bigtiff=self.is_large) as out:
            for _ in range(writes):
                part = islice(tiles, number)
                out.write(part, shape=shape, metadata=metadata, **tile_options(dtype), **tags)

    def finish_pyramid(
        self,
        file: Path,
        tags: dict[str, Any],
        dtype: Any = None,
        spacing: tuple[float, float] | None = None,
    ) -> None:
        """Write the TIFF as a pyramid, as ``finish``.

        Args:
            file: path of the TIFF.
            tags: further arguments of tifffile's writer.
            dtype: type of its values; None: that of the rows.
            spacing: height and width of a pixel, um, for the OME metadata; None: not known.
        """
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        metadata: dict[str, Any] = {"axes": "".join(self.axes)}
        for side, um in zip("YX", spacing or (), strict=False):
            metadata |= {f"PhysicalSize{side}": um, f"PhysicalSize{side}Unit": "\N{MICRO SIGN}m"}
        levels = max(1, self.levels_above(TILE_PX))
        with (
            self.replacing(file) as new,
            tifffile.TiffWriter(new, bigtiff=self.is_large, ome=True) as out,
        ):
            for level in range(levels + 1):
                step = 2**level
                sides = {name: -(-self.axes[name] // step) for name in "YX"}
                shape = tuple((self.axes | sides).values())
                own = {"subifds": levels, "metadata": metadata} | tags
                words = own if level == 0 else {"subfiletype": 1, "metadata": None}
                tiles = self.iterate_tiles(dtype, step)
                out.write(tiles, shape=shape, **tile_options(dtype), **words)

    @property
    def axes(self) -> dict[str, int]:
        """Letter -> length of the axes of the TIFF; a page axis of length 1, and planes that are none, are left out."""
        axes = {"Z": self.pages if self.pages > 1 else 0, "C": self.planes, "Y": self.height}
        return {name: size for name, size in (axes | {"X": self.width}).items() if size}

    def levels_above(self, side: int) -> int:
        """Return the number of halvings after which no side is longer than that."""
        return max(0, math.ceil(math.log2(max(self.height, self.width) / side)))

    @property
    def is_large(self) -> bool:
        """True from 2 GiB of rows on: the TIFF may exceed the limit of the classic format."""
        return self.pages * self.height * self.row > 2**31

    @contextmanager
    def replacing(self, file: Path) -> Generator[Path]:
        """Yield a temporary path that replaces ``file`` at the end, unless an error occurs."""
        with files.atomic_write(file, self.folder, self.file.parent) as part:
            yield part

    def remove(self) -> None:
        """Remove the plain bytes."""
        self.file.unlink(missing_ok=True)


def tile_options(dtype: np.dtype) -> dict[str, Any]:
    """Return the arguments of tifffile's writer for compressed tiles of a type."""
    return {
        "dtype": dtype, "tile": (TILE_PX, TILE_PX), "compression": "zlib", "photometric": "minisblack",
        "predictor": True if dtype.kind == "u" else None,
    }  # fmt: skip
