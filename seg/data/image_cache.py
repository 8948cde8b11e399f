"""Cache of decoded images: in memory if all of them fit, or in a folder as arrays mapped from disk."""

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pooch
from torch.utils.data import get_worker_info

from seg import files
from seg.data.datasets.base import DataSource, DecodedRows, RowReader
from seg.data.quality.inspect import hash_pixels
from seg.errors import DataError
from seg.version import __version__

MAX_INSPECTED = 1000  # images of a split that are read before a run starts and may stay in memory
DecodedPair = tuple[np.ndarray, np.ndarray]  # image and mask as a source reads them


class ImageCache:
    """Cache that decodes each image of a source once, where that is allowed.

    DataLoader workers that start later share the images in memory without a copy.

    Args:
        source: reads images and masks.
        memory: bytes that may be kept in memory; nothing is kept if not all images fit or a split has more
            than ``MAX_INSPECTED`` images.
        folder: for decoded images as .npy files, which are mapped; created if missing. None: no folder.

    Raises:
        DataError: if there is a folder, but the source cannot tell whether its files have changed.
    """

    def __init__(self, source: DataSource, memory: int, folder: Path | None = None) -> None:
        self.source, self.memory, self.folder = source, memory, folder
        self.seen: dict[str, tuple[str, tuple[str, str]]] = {}
        self.kept: dict[str, DecodedPair] = {}
        few = all(len(names) <= MAX_INSPECTED for names in source.splits.values())
        self.size, self.open = 0, memory > 0 and few
        if folder is not None and not hasattr(source, "stamp"):
            raise DataError(
                f"loader.cache={folder}: {type(source).__name__} keeps no decoded images on disk; take "
                "loader.cache=null"
            )

    def read(self, name: str) -> DecodedPair:
        """Return image and mask as the source reads them; the arrays are read-only.

        Raises:
            DataError: if they cannot be read, or have changed since ``trust``.
        """
        if name in self.kept:
            return self.kept[name]
        # Decode it, or map it from the folder.
        try:
            decoded = self.source.read(name) if self.folder is None else self.read_mapped(name)
        except DataError as error:
            if name not in self.seen:
                raise
            raise DataError(f"{error}; it was whole when the run began: put it back") from error
        # Compare it with the start of the run, and keep it.
        if name in self.seen:
            self.verify_unchanged(name, decoded)
        if self.open and self.folder is None:  # a mapped file would stay open while it is kept
            self.keep(name, decoded)
        return decoded

    def open_rows(self, name: str) -> RowReader:
        """Return a reader of any rows of an image and its mask; without decoding both as a whole, if the source can.

        Raises:
            DataError: if they cannot be read, or have changed since ``freeze``.
        """
        stamp = self.seen[name][0] if name in self.seen else None
        unchanged = stamp is None or self.file_stamps([name]).get(name, "") == stamp
        opens = hasattr(self.source, "open_rows") and self.folder is None and name not in self.kept
        if opens and unchanged:
            reader = cast(Any, self.source).open_rows(name)
            if reader is not None:
                return reader
        return DecodedRows(*self.read(name))

    def file_stamps(self, names: Iterable[str]) -> dict[str, str]:
        """Return a text for each image that changes when one of its files does; without missing files."""
        stamps: dict[str, str] = {}
        for name in names if hasattr(self.source, "stamp") else ():
            with suppress(OSError):  # a missing file is named when it is read
                stamps[name] = self.source.stamp(name)  # ty: ignore[missing-attribute]
        return stamps

    def freeze(self, stamps: dict[str, str], digests: dict[str, tuple[str, str]]) -> None:
        """Raise from now on when an image is read whose content has changed.

        Args:
            stamps: of the images, from before they were read.
            digests: name -> hash of the image and of the mask as read.
        """
        self.seen = {n: (stamp, digests[n]) for n, stamp in stamps.items() if n in digests}

    def verify_unchanged(self, name: str, decoded: DecodedPair) -> None:
        """Raise DataError if the pixels differ from those at the start; files rewritten alike are accepted."""
        # Unchanged files are recognised by their stamp, without hashing the pixels
        stamp, digests = self.seen[name]
        now = self.file_stamps([name]).get(name, "")
        if now == stamp:
            return
        pairs = zip(("image", "mask"), decoded, digests, strict=True)
        # A new stamp alone is harmless: the pixels decide
        different = [part for part, array, digest in pairs if hash_pixels(array).hex() != digest]
        if different:
            raise DataError(
                f"{first_changed_file(stamp, now) or name}: changed since the run began, the {' and '.join(different)} of "
                f"{name} is another one; put it back"
            )
        self.seen[name] = (now, digests)

    def prefetch(self, names: list[str]) -> None:
        """Read images into memory as long as they may be kept, before DataLoader workers start."""
        for name in names:
            if not self.open:
                return
            self.read(name)

    def keep(self, name: str, decoded: DecodedPair) -> None:
        """Keep an image in memory, or drop all images if they exceed this process's share."""
        worker = get_worker_info()
        self.size += sum(array.nbytes for array in decoded if not isinstance(array, np.memmap))
        self.kept[name] = decoded
        if self.size > self.memory // (worker.num_workers if worker else 1):
            self.close()

    def drop_larger(self, names: Iterable[str], side: int) -> None:
        """Drop those of the named images with a side above ``side`` px from memory, if the source reads rows of them."""
        if not hasattr(self.source, "open_rows"):
            return
        for name in names:
            if name in self.kept and max(self.kept[name][0].shape[:2]) > side:
                dropped = self.kept.pop(name)
                self.size -= sum(a.nbytes for a in dropped if not isinstance(a, np.memmap))

    def close(self) -> None:
        """Drop all images from memory and keep none from now on."""
        self.kept, self.size, self.open = {}, 0, False

    def read_mapped(self, name: str) -> DecodedPair:
        """Return image and mask mapped from the folder, decoded into it unless they are there."""
        assert self.folder is not None
        # Stamp of the files, a part of the key: a changed file has a new entry
        try:
            stamp = self.source.stamp(name)  # ty: ignore[missing-attribute]
        except OSError:  # a missing file is named when it is read
            return self.source.read(name)
        # Map the arrays if they are there.
        text = f"{__version__}\n{stamp}".encode("utf-8", "surrogatepass")
        key = hashlib.sha256(text).hexdigest()[:32]
        arrays = [self.folder / f"{key}.{part}.npy" for part in ("image", "mask")]
        try:
            return map_arrays(arrays)
        except (OSError, ValueError, EOFError):  # missing or cut off: written again
            pass
        # Decode the image, and write each array whole or not at all.
        decoded = self.source.read(name)
        try:
            files.make_folder(self.folder, self.folder)
            for file, array in zip(arrays, decoded, strict=True):
                with files.atomic_write(file, self.folder) as aside:
                    np.save(aside, array)
        except OSError as error:
            raise DataError(
                f"loader.cache={self.folder}: can't keep {name} there ({error.strerror or error.args[0]}); give "
                "another folder or take loader.cache=null"
            ) from error
        return map_arrays(arrays)


def choose_inspected(names: list[str]) -> list[str]:
    """Return the evenly spaced images of a split, up to ``MAX_INSPECTED``, that are read before a run starts."""
    return names[:: -(-len(names) // MAX_INSPECTED)] if names else []


def cache_root() -> Path:
    """Return the folder for files that can be computed or downloaded again: ``SEG_CACHE`` or the system's."""
    return Path(os.environ.get("SEG_CACHE") or pooch.os_cache("seg")).expanduser()


def first_changed_file(before: str, now: str) -> str:
    """Return the first file in which two stamps differ, or an empty text."""
    lines = zip(before.splitlines(), now.splitlines(), strict=False)
    return next((re.split(r" \d+ \d+(?: |$)", b)[0] for a, b in lines if a != b), "")


def map_arrays(arrays: list[Path]) -> DecodedPair:
    """Return image and mask mapped from their files."""
    image, mask = (np.load(file, mmap_mode="r", allow_pickle=False) for file in arrays)
    return image, mask
