"""Decoded images, kept: in memory where all of them fit, or in a folder as arrays that are mapped from disk."""

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pooch
from torch.utils.data import get_worker_info

from seg import files
from seg.data.datasets.base import Source
from seg.data.quality.inspect import fingerprint
from seg.errors import DataError

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
        self.seen: dict[str, tuple[str, tuple[str, str]]] = {}
        self.kept: dict[str, Decoded] = {}
        few = all(len(names) <= MOST for names in source.splits.values())
        self.size, self.open = 0, memory > 0 and few
        if folder is not None and not hasattr(source, "stamp"):
            raise DataError(
                f"loader.cache={folder}: {type(source).__name__} keeps no decoded images on disk; take "
                "loader.cache=null"
            )

    def read(self, name: str) -> Decoded:
        """As the source reads it; arrays are not to be written to.

        Raises:
            DataError: when it can't be read, or isn't what ``trust`` was told.
        """
        if name in self.kept:
            return self.kept[name]
        try:
            decoded = self.source.read(name) if self.folder is None else self.mapped(name)
        except DataError as error:
            if name not in self.seen:
                raise
            raise DataError(f"{error}; it was whole when the run began: put it back") from error
        if name in self.seen:
            self.compare(name, decoded)
        if self.open and self.folder is None:  # each mapped file stays open while it is kept
            self.keep(name, decoded)
        return decoded

    def stamps(self, names: Iterable[str]) -> dict[str, str]:
        """What changes when an image's files do, of those that still have them all."""
        found: dict[str, str] = {}
        for name in names if hasattr(self.source, "stamp") else ():
            with suppress(OSError):  # a file went away; reading says which
                found[name] = self.source.stamp(name)  # ty: ignore[missing-attribute]
        return found

    def trust(self, stamps: dict[str, str], digests: dict[str, tuple[str, str]]) -> None:
        """From now on images whose files have changed must be as they were.

        Args:
            stamps: of the images' files, from before they were looked at.
            digests: name -> hash of the image and of the mask, as read.
        """
        self.seen = {n: (stamp, digests[n]) for n, stamp in stamps.items() if n in digests}

    def compare(self, name: str, decoded: Decoded) -> None:
        """Raises DataError where files have other content than the run began with; another time is none."""
        stamp, digests = self.seen[name]
        now = self.stamps([name]).get(name, "")
        if now == stamp:
            return
        other = [fingerprint(a).hex() != d for a, d in zip(decoded, digests, strict=True)]
        if any(other):
            what = " and ".join(n for n, o in zip(("image", "mask"), other, strict=True) if o)
            raise DataError(
                f"{changed(stamp, now) or name}: changed since the run began, the {what} of {name} is another one; put it back"
            )
        self.seen[name] = (now, digests)

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
        told = f"{version('seg')}\n{stamp}".encode("utf-8", "surrogatepass")
        key = hashlib.sha256(told).hexdigest()[:32]
        arrays = [self.folder / f"{key}.{part}.npy" for part in ("image", "mask")]
        try:
            return opened(arrays)
        except (OSError, ValueError, EOFError):  # absent, or cut off: made anew
            pass
        decoded = self.source.read(name)
        try:
            files.make_folder(self.folder, self.folder)
            for file, array in zip(arrays, decoded, strict=True):
                with files.whole(file, self.folder) as aside:
                    np.save(aside, array)
        except OSError as error:
            raise DataError(
                f"loader.cache={self.folder}: can't keep {name} there ({error.strerror or error}); give another folder or "
                "take loader.cache=null"
            ) from error
        return opened(arrays)


def spread(names: list[str]) -> list[str]:
    """Those of a split that are looked at before a run starts, up to ``MOST``, evenly spread."""
    return names[:: -(-len(names) // MOST)] if names else []


def caches() -> Path:
    """What can be made or fetched anew: ``SEG_CACHE``, or the system's folder for such."""
    return Path(os.environ.get("SEG_CACHE") or pooch.os_cache("seg")).expanduser()


def changed(before: str, now: str) -> str:
    """The first file of which two stamps differ; nothing where they have no such lines."""
    lines = zip(before.splitlines(), now.splitlines(), strict=False)
    return next((re.split(r" \d+ \d+(?: |$)", b)[0] for a, b in lines if a != b), "")


def opened(arrays: list[Path]) -> Decoded:
    """Image and mask, mapped from disk."""
    image, mask = (np.load(file, mmap_mode="r", allow_pickle=False) for file in arrays)
    return image, mask
