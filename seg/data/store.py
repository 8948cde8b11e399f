"""Decoded images, kept: in memory where all of them fit, or in a folder as arrays that are mapped from disk."""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pooch
from torch.utils.data import get_worker_info

from seg.data.sources import DataError, Source

MOST = 1000  # images of a split that are read before a run starts, and that may stay in memory
Decoded = tuple[np.ndarray, np.ndarray]  # an image and its mask, as a source reads them


class Store:
    """Reads a source's images, each decoded once where that is allowed.

    A loader process that starts later shares what is kept in memory till then, without a copy.

    Args:
        source: of the images.
        memory: bytes that may be kept in memory; where not all fit, or a split has more than a thousand
            images, none are.
        folder: for decoded images as .npy files, read by mapping; made if absent. None: there are none.

    Raises:
        DataError: when the source can't tell whether its files have changed, but there is a folder.
    """

    def __init__(self, source: Source, memory: int, folder: Path | None = None) -> None:
        self.source, self.memory, self.folder = source, memory, folder
        self.kept: dict[str, Decoded] = {}
        few = all(len(names) <= MOST for names in source.splits.values())
        self.size, self.open = 0, memory > 0 and few
        if folder is not None and not hasattr(source, "stamp"):
            raise DataError(
                f"loader.cache={folder}: {type(source).__name__} keeps no decoded images on disk; take "
                "loader.cache=null"
            )

    def read(self, name: str) -> Decoded:
        """As the source reads it; arrays are not to be written to."""
        if name in self.kept:
            return self.kept[name]
        decoded = self.source.read(name) if self.folder is None else self.mapped(name)
        if self.open and self.folder is None:  # each mapped file stays open while it is kept
            self.keep(name, decoded)
        return decoded

    def fill(self, names: list[str]) -> None:
        """Reads these now, as far as they may be kept: loader processes that start later share them."""
        for name in names:
            if not self.open:
                return
            self.read(name)

    def keep(self, name: str, decoded: Decoded) -> None:
        worker = get_worker_info()
        self.size += sum(array.nbytes for array in decoded if not isinstance(array, np.memmap))
        self.kept[name] = decoded
        if self.size > self.memory // (worker.num_workers if worker else 1):
            self.close()

    def close(self) -> None:
        """Keeps nothing in memory from now on."""
        self.kept, self.size, self.open = {}, 0, False

    def mapped(self, name: str) -> Decoded:
        """From the folder; decoded and put there, if it isn't there as its files are now."""
        assert self.folder is not None
        try:
            stamp = self.source.stamp(name)  # ty: ignore[missing-attribute]
        except OSError:  # a file went away; reading says which
            return self.source.read(name)
        key = hashlib.sha256(f"{version('seg')}\n{stamp}".encode()).hexdigest()[:32]
        files = [self.folder / f"{key}.{part}.npy" for part in ("image", "mask")]
        try:
            return opened(files)
        except (OSError, ValueError, EOFError):  # absent, or cut off: made anew
            pass
        decoded = self.source.read(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, array in zip(files, decoded, strict=True):
                aside = file.with_name(f".{os.getpid()}-{file.name}")
                np.save(aside, array)
                os.replace(aside, file)
        except OSError as error:
            raise DataError(
                f"loader.cache={self.folder}: can't keep {name} there ({error.strerror or error}); give another folder or "
                "take loader.cache=null"
            ) from error
        return opened(files)


def caches() -> Path:
    """What can be made or fetched anew: ``SEG_CACHE``, or the system's folder for such."""
    return Path(os.environ.get("SEG_CACHE") or pooch.os_cache("seg")).expanduser()


def opened(files: list[Path]) -> Decoded:
    """Image and mask, mapped from disk."""
    image, mask = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
    return image, mask
