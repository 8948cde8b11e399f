"""Writer of a large image: rows are appended on disk until it is complete."""

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
    """An array (pages, H, W) or (pages, C, H, W) that is written row by row, band after band, to a file.

    Attributes:
        file: of the plain bytes.
        width: px.
        height: px.
        dtype: of the values.
        planes: C; 0: a page is (H, W).
        pages: number of pages.
        below: folder that the user named; None: that of ``file``, and of what is finished.
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
        """The folder below which all is written."""
        return self.below or self.file.parent

    @property
    def row(self) -> int:
        """Bytes of a row of all planes."""
        return self.width * max(1, self.planes) * self.dtype.itemsize

    def done(self) -> int:
        """Whole rows that are in the file, of all pages together."""
        return self.file.stat().st_size // self.row if self.file.is_file() else 0

    def cut(self, rows: int) -> None:
        """Forgets what comes after so many rows."""
        with files.append(self.file, self.folder) as out:
            out.truncate(rows * self.row)

    def add(self, band: np.ndarray) -> None:
        """Appends rows (h, W), or (C, h, W)."""
        rows = band[None] if band.ndim == 2 else band  # (C, h, W); in the file (h, C, W)
        with files.append(self.file, self.folder) as out:
            np.ascontiguousarray(rows.transpose(1, 0, 2), self.dtype).tofile(out)

    def page(self, number: int) -> np.ndarray:
        """A page, whole: (H, W), or (C, H, W)."""
        planes = max(1, self.planes)
        shape = (self.height, planes, self.width)
        with self.file.open("rb") as file:
            file.seek(number * self.height * self.row)
            values = np.fromfile(file, self.dtype, int(np.prod(shape))).reshape(shape)
        return np.ascontiguousarray(values.transpose(1, 0, 2)) if self.planes else values[:, 0]

    def tiles(self) -> Iterator[np.ndarray]:
        """All pages and planes in tiles (TILE, TILE), row after row of tiles."""
        planes = max(1, self.planes)
        shape = (self.pages * self.height, planes, self.width)
        for page, plane in np.ndindex(self.pages, planes):
            for top in range(0, self.height, TILE):
                first, size = page * self.height + top, min(TILE, self.height - top)
                whole = np.memmap(self.file, self.dtype, "r", shape=shape)  # anew: pages are let go
                rows = np.array(whole[first : first + size, plane])
                del whole
                for left in range(0, self.width, TILE):
                    tile = np.zeros((TILE, TILE), self.dtype)
                    part = rows[:, left : left + TILE]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    def finish(self, file: Path, tags: dict[str, Any]) -> None:
        """Writes the TIFF, whole or not at all; the plain bytes stay until ``remove``."""
        axes = {"Z": self.pages if self.pages > 1 else 0, "C": self.planes, "Y": self.height}
        axes = {name: size for name, size in (axes | {"X": self.width}).items() if size}
        shape, metadata, times = tuple(axes.values()), {"axes": "".join(axes)}, 1
        if self.width == 1:  # which tifffile would take for the channel of an image of other sides
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
        """Give a file beside the plain bytes that becomes ``file`` when it is whole."""
        with files.whole(file, self.folder, self.file.parent) as aside:
            yield aside

    def remove(self) -> None:
        """Removes the plain bytes."""
        self.file.unlink(missing_ok=True)
