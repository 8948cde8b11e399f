"""File access: atomic writes that follow no link, and reads of regular files of a limited size.

A run folder is untrusted input. A link in it could make a command overwrite any file of the user, and reading a
pipe or a device could block for ever. Every write, new folder and lock of this package uses this module, and so
does every read of a file in a run folder.

``below`` is always the folder that the user named. Links above it are the user's own and are followed; a link
below it is refused.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TextIO

from filelock import FileLock

from seg.errors import RunError

MIB = 2**20
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # opening a pipe returns at once
BINARY_FLAG = getattr(os, "O_BINARY", 0)
WANDB_SERVICE_LOG = "debug-core.log"  # a link, in W&B's folder of a run
LONGEST_NAME = 255  # bytes of a file name, on all usual file systems
UNFINISHED_NAME = re.compile(r"\.[0-9a-f]{16}\.part.*")  # names of unfinished files


class UnsafePath(RunError):
    """A link in the path of a file to write, or a file to read that is not regular or too large."""


def short_name(name: str) -> str:
    """Return a name that the system allows: if it is longer than 255 bytes, its start, a hash and its suffix."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    start = encoded[: LONGEST_NAME - 64].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:32]}{Path(name).suffix[:16]}"


def check_links(path: Path, below: Path) -> None:
    """Raise UnsafePath if ``path``, or a folder between it and ``below``, is a link, or ``path`` is not below it."""
    if not path.is_relative_to(below) or ".." in path.relative_to(below).parts:
        raise UnsafePath(f"{path}: not in {below}, the only folder that may be written")
    place = below
    for part in path.relative_to(below).parts:
        place = place / part
        if place.is_symlink():
            raise UnsafePath(
                f"{place}: a link to {os.readlink(place)}, which is not followed; remove the link, or replace it by "
                "the file or folder itself"
            )


def check_tree(folder: Path, below: Path, inner: bool = False) -> None:
    """Raise UnsafePath if a folder, one between it and ``below``, or anything in it is a link.

    Args:
        folder: may be absent.
        below: folder that the user named.
        inner: allow links in ``folder`` whose target is below ``below``, and W&B's link to the log of its service,
            a file that nothing is written to through the link.
    """
    check_links(folder, below)
    inside = below.resolve()
    for place, folders, names in os.walk(folder):
        for entry in (Path(place) / name for name in (*folders, *names)):
            if entry.is_symlink() and not (
                inner
                and (
                    Path(os.path.realpath(entry)).is_relative_to(inside)
                    or (entry.name == WANDB_SERVICE_LOG and not entry.is_dir())
                )
            ):
                check_links(entry, below)


def make_folder(folder: Path, below: Path) -> Path:
    """Create a folder and its missing parents, and return it.

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


def make_new_folder(folder: Path) -> Path:
    """Create a folder in an existing one, and return it.

    Raises:
        FileExistsError: if the name exists.
        OSError: if it cannot be made.
    """
    folder.mkdir()
    return folder


@contextmanager
def folder_removed_if_empty(folder: Path, below: Path) -> Generator[Path]:
    """Create a folder, and remove it again if an error leaves it empty; see ``make_folder``."""
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield make_folder(folder, below)
    except BaseException:
        remove_empty(absent)
        raise


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of some folders that exist and are empty, in the given order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def atomic_write(file: Path, below: Path, folder: Path | None = None) -> Generator[Path]:
    """Yield the path of a new file, which replaces ``file`` at the end: whole, or not at all.

    The new file exists, is empty, has a random name and keeps the suffix.

    Args:
        file: file to write or replace; its folder exists.
        below: folder that the user named.
        folder: existing folder of the new file, on the disk of ``file``; None: that of ``file``.

    Raises:
        UnsafePath: if ``file``, ``folder``, or a folder between one of them and ``below``, is a link.
        OSError: naming ``file``, for instance if the disk is full.
    """
    # Links could lead out of the folder
    folder = file.parent if folder is None else folder
    check_links(file, below)
    check_links(folder, below)
    # Write beside the file and rename: readers see the old file or the whole new one
    aside = folder / unfinished_name(file.suffix)
    try:
        create_empty(aside)
        yield aside
        os.replace(aside, file)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(file)  # errors of write() have no file name
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, below: Path, place: Path | None = None) -> Generator[Path]:
    """Yield a new folder, which replaces ``folder`` with its content at the end.

    Args:
        folder: folder to make or replace; its parent exists.
        below: folder that the user named.
        place: existing folder of the new folder, on the disk of ``folder``; None: the parent of ``folder``.

    Raises:
        UnsafePath: if ``folder``, or one between it and ``below``, is a link.
        OSError: if it cannot be made.
    """
    place = folder.parent if place is None else place
    check_links(folder, below)
    check_links(place, below)
    aside = make_new_folder(place / unfinished_name())
    try:
        yield aside
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def scratch_folder(below: Path) -> Generator[Path]:
    """Yield a new folder of a random name in ``below``, which is created if missing; removed at the end."""
    aside = make_new_folder(make_folder(below, below) / unfinished_name())
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def unfinished_name(suffix: str = "") -> str:
    """Return a random name for an unfinished file or folder."""
    return f".{secrets.token_hex(8)}.part{suffix}"


def create_empty(file: Path) -> None:
    """Create an empty file; raise OSError if a file or link of the name exists."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))


def is_unfinished(entry: Path) -> bool:
    """Return True for the name of an unfinished file or folder."""
    return UNFINISHED_NAME.fullmatch(entry.name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of killed processes from a folder, in which no other process may be writing."""
    for entry in list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
        if is_unfinished(entry):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def open_text(file: Path, below: Path, folder: Path | None = None) -> Generator[TextIO]:
    """Open a new UTF-8 text file that replaces ``file``, as the csv module needs it; see ``atomic_write``.

    Characters that UTF-8 cannot encode, as in file names of other bytes, are written as escapes.
    """
    with (
        atomic_write(file, below, folder) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        yield stream


@contextmanager
def open_binary(file: Path, below: Path) -> Generator[BinaryIO]:
    """Open a new file of bytes that replaces ``file``; see ``atomic_write``."""
    with atomic_write(file, below) as aside, aside.open("wb") as stream:
        yield stream


def encodable(text: str) -> str:
    """Return a text with escapes for what UTF-8 cannot encode, such as bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(file: Path, text: str, below: Path) -> None:
    """Write UTF-8 text without translating line ends, and escapes as ``open_text``; see ``atomic_write``."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"), below)


def write_bytes(file: Path, content: bytes, below: Path) -> None:
    """Write bytes; see ``atomic_write``."""
    with open_binary(file, below) as stream:
        stream.write(content)


def move_onto(file: Path, target: Path, below: Path) -> None:
    """Move a file onto another on the same disk.

    Raises:
        UnsafePath: if ``target``, or a folder between it and ``below``, is a link.
        OSError: if it cannot be moved.
    """
    check_links(target, below)
    os.replace(file, target)


def point_link(link: Path, target: str) -> None:
    """Create a link, or replace an existing one.

    Raises:
        OSError: if it cannot be made, as on a file system without links.
    """
    aside = link.with_name(unfinished_name())
    try:
        aside.symlink_to(target)
        os.replace(aside, link)
    finally:
        aside.unlink(missing_ok=True)


def open_append(file: Path, below: Path) -> FileIO:
    """Open a file, created if missing, to append bytes without a buffer.

    Raises:
        UnsafePath: if it is a link or no regular file, or a folder between it and ``below`` is a link.
        OSError: if it cannot be opened.
    """
    check_links(file, below)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | NON_BLOCKING | BINARY_FLAG
    return FileIO(require_regular(os.open(file, flags, 0o666), file), "ab")


def file_lock(file: Path, below: Path, reentrant: bool = False) -> FileLock:
    """Return a lock on a file, not yet acquired.

    Args:
        file: created if missing.
        below: folder that the user named.
        reentrant: let this process acquire a lock that it holds.

    Raises:
        UnsafePath: if the file, or a folder between it and ``below``, is a link.
    """
    check_links(file, below)
    return FileLock(file, is_singleton=reentrant, fallback_to_soft=False)


def check_writable(
    folder: Path, below: Path, names: Iterable[str] = (), given: str | None = None
) -> None:
    """Check that files of these names can be written in a folder, before the work; leaves nothing behind.

    Args:
        folder: folder to write to; may be missing.
        below: folder that the user named.
        names: names of the files, relative to ``folder``: ``panels/all.png``.
        given: option and value for messages; None: ``output`` and the folder.

    Raises:
        UnsafePath: if a file, or a folder between it and ``below``, is a link.
        RunError: if the folder cannot be written.
    """
    targets = [folder / name for name in names]
    # Targets: no links that lead out of the folder, and no folders
    try:
        for target in (folder, *targets):
            check_links(target, below)
        for target in targets:
            if target.is_dir():
                raise OSError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}: {target}")
        # Try to create a file in the nearest existing folder of each
        for place in dict.fromkeys([folder, *(target.parent for target in targets)]):
            existing = nearest_existing(place)
            if not existing.is_dir():
                raise OSError(errno.ENOTDIR, f"{os.strerror(errno.ENOTDIR)}: {existing}")
            probe = existing / unfinished_name()
            create_empty(probe)
            probe.unlink()
    except OSError as error:
        raise RunError(
            f"{given or f'output={folder}'}: can't be written ({error.strerror or error}); give another folder"
        ) from error


def nearest_existing(place: Path) -> Path:
    """Return a file or folder, or the nearest of its parents that exists; a dangling link exists."""
    for parent in (place, *place.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            parent.lstat()
            return parent
    return place


def open_regular(file: Path, limit: int | None) -> BinaryIO:
    """Open a regular file to read bytes.

    Args:
        file: may be a link.
        limit: largest size in bytes; None: no limit.

    Raises:
        UnsafePath: if it is a pipe or device, or too large.
        OSError: if it cannot be opened.
    """
    handle = require_regular(os.open(file, os.O_RDONLY | NON_BLOCKING | BINARY_FLAG), file)
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
        raise UnsafePath(f"{file}: more than {limit} bytes; at most that many are read")
    return content


def read_text(file: Path, limit: int) -> str:
    """Return the UTF-8 text of a regular file of at most ``limit`` bytes; see ``open_regular``.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(file, limit).decode()


def require_regular(handle: int, file: Path) -> int:
    """Return a file handle; close it and raise UnsafePath unless the file is regular."""
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise UnsafePath(
        f"{file}: not a regular file; pipes, devices and folders are not read or written"
    )
