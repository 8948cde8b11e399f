"""File access: atomic writes that follow no link, and reads of regular files of a limited size.

A run folder may come from somebody else. A link in it could make a command overwrite any file of the user, and
a pipe or a device could make a read never end. Every file that this package writes, every folder that it makes
and every lock that it takes goes through this module; so does every read of a file in a run folder.

``below`` is always the folder that the user named. Links above it are the user's own and are followed; a link
below it is refused.
"""

import os
import secrets
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from seg.errors import RunError

MIB = 2**20
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe returns at once
BINARY = getattr(os, "O_BINARY", 0)


class UnsafePath(RunError):
    """A file that is a link where one is written, or no regular file, or too large, where one is read."""


def check_links(path: Path, below: Path) -> None:
    """Raise UnsafePath if ``path``, or a folder between it and ``below``, is a link."""
    place = below
    for part in path.relative_to(below).parts:
        place = place / part
        if place.is_symlink():
            raise UnsafePath(
                f"{place}: a link to {os.readlink(place)}, which would be written through; remove the link or put "
                "the file or folder itself there"
            )


def make_folder(folder: Path, below: Path) -> Path:
    """Make a folder and its missing parents, and return it.

    Args:
        folder: ``below`` or a folder in it; it may exist.
        below: folder that the user named.

    Raises:
        UnsafePath: if ``folder``, or one between it and ``below``, is a link.
        OSError: if it cannot be made.
    """
    check_links(folder, below)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def whole(file: Path, below: Path) -> Generator[Path]:
    """Give the path of a new file beside ``file``, which replaces ``file`` at the end: whole, or not at all.

    The new file exists, is empty, has a random name and keeps the suffix.

    Args:
        file: what is written or replaced; its folder exists.
        below: folder that the user named.

    Raises:
        UnsafePath: if ``file``, or a folder between it and ``below``, is a link.
        OSError: naming ``file``, for instance if the disk is full.
    """
    check_links(file, below)
    aside = file.with_name(f".{secrets.token_hex(8)}.part{file.suffix}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
        os.close(os.open(aside, flags, 0o666))
        yield aside
        os.replace(aside, file)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(file)  # a failed write does not name its file
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_text(file: Path, text: str, below: Path) -> None:
    """Write UTF-8 text as it is, without translating line ends; see ``whole``."""
    write_bytes(file, text.encode(), below)


def write_bytes(file: Path, content: bytes, below: Path) -> None:
    """Write bytes; see ``whole``."""
    with whole(file, below) as aside, aside.open("wb") as stream:
        stream.write(content)


def append(file: Path, below: Path) -> FileIO:
    """Open a file, made if absent, to add bytes to its end without a buffer.

    Raises:
        UnsafePath: if it is a link or no regular file, or a folder between it and ``below`` is a link.
        OSError: if it cannot be opened.
    """
    check_links(file, below)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | NO_WAIT | BINARY
    return FileIO(regular(os.open(file, flags, 0o666), file), "ab")


def lock(file: Path, below: Path) -> FileLock:
    """Return a lock on a file, not yet acquired.

    Raises:
        UnsafePath: if the file, or a folder between it and ``below``, is a link.
    """
    check_links(file, below)
    return FileLock(file)


def check_writable(folder: Path, below: Path, names: Iterable[str] = ()) -> None:
    """Make a folder and prove that files of these names can be written in it.

    Raises:
        UnsafePath: if a name, or a folder between it and ``below``, is a link.
        OSError: if nothing can be written there.
    """
    make_folder(folder, below)
    for name in names:
        check_links(folder / name, below)
    probe = folder / f".{secrets.token_hex(8)}.part"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))
    probe.unlink()


def open_regular(file: Path, limit: int | None) -> BinaryIO:
    """Open a regular file to read bytes.

    Args:
        file: may be a link.
        limit: largest size in bytes; None: any.

    Raises:
        UnsafePath: if it is a pipe, a device or the like, or too large.
        OSError: if it cannot be opened.
    """
    handle = regular(os.open(file, os.O_RDONLY | NO_WAIT | BINARY), file)
    size = os.fstat(handle).st_size
    if limit is not None and size > limit:
        os.close(handle)
        raise UnsafePath(f"{file}: {size} bytes; at most {limit} are read")
    return os.fdopen(handle, "rb")


def read_bytes(file: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; see ``open_regular``."""
    with open_regular(file, limit) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:  # it grew
        raise UnsafePath(f"{file}: more than {limit} bytes, the most that are read")
    return content


def read_text(file: Path, limit: int) -> str:
    """Return the UTF-8 text of a regular file of at most ``limit`` bytes; see ``open_regular``.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(file, limit).decode()


def regular(handle: int, file: Path) -> int:
    """Return the handle; close it and raise UnsafePath unless it is that of a regular file."""
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise UnsafePath(f"{file}: not a regular file; a pipe, device or folder is not read or written")
