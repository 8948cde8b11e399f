"""Zarr store that checks what it reads; it needs the extra ``zarr``."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from seg.data.ome_zarr import MAX_METADATA, METADATA_FILES, Encoding


class CheckedStore(WrapperStore[Any]):
    """Read-only store that refuses metadata and chunks that are too large, and files that are not regular.

    Attributes:
        root: folder of the store; None: it is on a server.
        encoding: of the chunks of the one array that is read; None: chunks are not read yet.
        fetched: bytes of chunks read so far.
    """

    def __init__(self, store: Any, root: Path | None = None) -> None:
        super().__init__(store)
        self.root = root
        self.encoding: Encoding | None = None
        self.fetched = 0

    @classmethod
    def of_folder(cls, folder: Path) -> "CheckedStore":
        """Return the store of a folder."""
        return cls(LocalStore(folder, read_only=True), folder)

    @classmethod
    def of_address(cls, address: str) -> "CheckedStore":
        """Return the store of an address; raise ImportError if the package for its protocol is missing."""
        return cls(FsspecStore.from_url(address, read_only=True))

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, or a part of them; None if there is no such key.

        Raises:
            ValueError: if they are more than they may be.
        """
        self.check_file(key)
        encoding = self.encoding
        part = byte_range if isinstance(byte_range, RangeByteRequest) else None
        of_index = encoding is not None and part is not None and part.start == 0 and part.end == encoding.index_size  # fmt: skip
        if encoding is not None and part is not None and not of_index:
            encoding.check_size(part.end - part.start)
        found = await self._store.get(key, prototype, byte_range)
        if found is None:
            return None
        if key.rpartition("/")[2] in METADATA_FILES:
            if len(found) > MAX_METADATA:
                raise ValueError(f"{key}: {len(found)} bytes; at most {MAX_METADATA} are read")
            return found
        self.fetched += len(found)
        if encoding is None:
            raise ValueError(f"{key}: not a key of the image")
        if byte_range is None and encoding.shard:
            encoding.check_shard(found.to_bytes())
        elif (byte_range is None or part is not None) and not of_index:
            encoding.check_chunk(found.to_bytes())
        return found

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return the bytes of several keys, each checked as by ``get``."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    def check_file(self, key: str) -> None:
        """Raise ValueError if a file of the folder is not regular, or too large."""
        if self.root is None:
            return
        try:
            status = os.stat(self.root / key)
        except OSError:
            return  # a chunk that is absent has the fill value
        if stat.S_ISDIR(status.st_mode):
            return
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{key}: not a regular file")
        if key.rpartition("/")[2] in METADATA_FILES:
            if status.st_size > MAX_METADATA:
                raise ValueError(f"{key}: {status.st_size} bytes; at most {MAX_METADATA} are read")
        elif self.encoding is not None and not self.encoding.shard:
            self.encoding.check_size(status.st_size)
