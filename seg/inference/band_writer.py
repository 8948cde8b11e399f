"""Writer of large images: rows are appended to a file of plain bytes, which becomes a compressed, tiled TIFF.

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

    def iterate_tiles(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield all pages and planes as tiles (TILE, TILE) of a type, a row of tiles after another."""
        planes = max(1, self.planes)
        shape = (self.pages * self.height, planes, self.width)
        for page, plane in np.ndindex(self.pages, planes):
            for top in range(0, self.height, TILE_PX):
                first, size = page * self.height + top, min(TILE_PX, self.height - top)
                # A new mapping for each row of tiles lets the system release the pages read before.
                mapped = np.memmap(self.file, self.dtype, "r", shape=shape)
                rows = np.array(mapped[first : first + size, plane])
                del mapped
                # Pad the tiles at the right and lower border with zeros: TIFF needs whole tiles
                for left in range(0, self.width, TILE_PX):
                    tile = np.zeros((TILE_PX, TILE_PX), dtype)
                    part = rows[:, left : left + TILE_PX]
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
        axes = {"Z": self.pages if self.pages > 1 else 0, "C": self.planes, "Y": self.height}
        axes = {name: size for name, size in (axes | {"X": self.width}).items() if size}
        shape, metadata, writes = tuple(axes.values()), {"axes": "".join(axes)}, 1
        if self.width == 1:
            shape, metadata, writes = (self.height, 1), None, self.pages * max(1, self.planes)
        # BigTIFF from 2 GiB on.
        tiles, large = self.iterate_tiles(dtype), self.pages * self.height * self.row > 2**31
        number = math.prod(shape[:-2]) * -(-self.height // TILE_PX) * -(-self.width // TILE_PX)
        with self.replacing(file) as new, tifffile.TiffWriter(new, bigtiff=large) as out:
            for _ in range(writes):
                out.write(
                    islice(tiles, number), shape=shape, dtype=dtype, tile=(TILE_PX, TILE_PX),
                    compression="zlib", predictor=True if dtype.kind == "u" else None,
                    photometric="minisblack", metadata=metadata, **tags,
                )  # fmt: skip

    @contextmanager
    def replacing(self, file: Path) -> Generator[Path]:
        """Yield a temporary path that replaces ``file`` at the end, unless an error occurs."""
        with files.atomic_write(file, self.folder, self.file.parent) as part:
            yield part

    def remove(self) -> None:
        """Remove the plain bytes."""
        self.file.unlink(missing_ok=True)
