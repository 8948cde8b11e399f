"""Writer of a large image: rows are appended to a file of plain bytes, which is then rewritten as a TIFF."""

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
from seg.data.raster import TILE


@dataclass
class Growing:
    """Array (pages, H, W) or (pages, C, H, W) that grows on disk, band after band.

    Attributes:
        file: the plain bytes.
        width: px.
        height: px.
        dtype: of the values.
        planes: C, or 0 if a page is (H, W).
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
        """Number of bytes of a row of all planes."""
        return self.width * max(1, self.planes) * self.dtype.itemsize

    def done(self) -> int:
        """Return the number of complete rows in the file, of all pages together."""
        return self.file.stat().st_size // self.row if self.file.is_file() else 0

    def cut(self, rows: int) -> None:
        """Cut the file off after ``rows`` rows."""
        with files.append(self.file, self.folder) as out:
            out.truncate(rows * self.row)

    def add(self, band: np.ndarray) -> None:
        """Append rows (h, W) or (C, h, W)."""
        rows = band[None] if band.ndim == 2 else band  # (C, h, W); in the file (h, C, W)
        with files.append(self.file, self.folder) as out:
            np.ascontiguousarray(rows.transpose(1, 0, 2), self.dtype).tofile(out)

    def page(self, number: int) -> np.ndarray:
        """Return a whole page, (H, W) or (C, H, W)."""
        planes = max(1, self.planes)
        shape = (self.height, planes, self.width)
        with self.file.open("rb") as file:
            file.seek(number * self.height * self.row)
            values = np.fromfile(file, self.dtype, int(np.prod(shape))).reshape(shape)
        return np.ascontiguousarray(values.transpose(1, 0, 2)) if self.planes else values[:, 0]

    def tiles(self) -> Iterator[np.ndarray]:
        """Yield all pages and planes in tiles (TILE, TILE), row after row of tiles."""
        planes = max(1, self.planes)
        shape = (self.pages * self.height, planes, self.width)
        for page, plane in np.ndindex(self.pages, planes):
            for top in range(0, self.height, TILE):
                first, size = page * self.height + top, min(TILE, self.height - top)
                # mapped anew for each row of tiles, so that memory of earlier ones is released
                whole = np.memmap(self.file, self.dtype, "r", shape=shape)
                rows = np.array(whole[first : first + size, plane])
                del whole
                for left in range(0, self.width, TILE):
                    tile = np.zeros((TILE, TILE), self.dtype)
                    part = rows[:, left : left + TILE]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    def finish(self, file: Path, tags: dict[str, Any]) -> None:
        """Write the TIFF, completely or not at all; the plain bytes stay until ``remove``.

        Args:
            file: the TIFF.
            tags: keyword arguments of tifffile's ``write``: resolution, GeoTIFF's tags and so on.
        """
        axes = {"Z": self.pages if self.pages > 1 else 0, "C": self.planes, "Y": self.height}
        axes = {name: size for name, size in (axes | {"X": self.width}).items() if size}
        shape, metadata, times = tuple(axes.values()), {"axes": "".join(axes)}, 1
        # tifffile would read a width of 1 as the channels of another shape
        if self.width == 1:
            shape, metadata, times = (self.height, 1), None, self.pages * max(1, self.planes)
        tiles, large = self.tiles(), self.pages * self.height * self.row > 2**31
        number = math.prod(shape[:-2]) * -(-self.height // TILE) * -(-self.width // TILE)
        with self.aside(file) as aside, tifffile.TiffWriter(aside, bigtiff=large) as out:
            for _ in range(times):
                out.write(
                    islice(tiles, number), shape=shape, dtype=self.dtype, tile=(TILE, TILE),
                    compression="zlib", predictor=True if self.dtype.kind == "u" else None,
                    photometric="minisblack", metadata=metadata, **tags,
                )  # fmt: skip

    @contextmanager
    def aside(self, file: Path) -> Generator[Path]:
        """Yield a file beside the plain bytes that becomes ``file`` once it is complete."""
        with files.whole(file, self.folder, self.file.parent) as aside:
            yield aside

    def remove(self) -> None:
        """Remove the plain bytes."""
        self.file.unlink(missing_ok=True)
