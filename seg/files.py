"""File access: atomic writes that follow no link, and reads of regular files of a limited size.

A run folder may come from somebody else. A link in it could make a command overwrite any file of the user, and
a pipe or a device could make a read never end. Every file that this package writes, every folder that it makes
and every lock that it takes goes through this module; so does every read of a file in a run folder.

``below`` is always the folder that the user named. Links above it are the user's own and are followed; a link
below it is refused.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TextIO

from filelock import FileLock

from seg.errors import RunError

MIB = 2**20
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe returns at once
BINARY = getattr(os, "O_BINARY", 0)
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part.*")  # names of what is being written


class UnsafePath(RunError):
    """A file that is a link where one is written, or no regular file, or too large, where one is read."""


def check_links(path: Path, below: Path) -> None:
    """Raise UnsafePath if ``path``, or a folder between it and ``below``, is a link, or ``path`` is elsewhere."""
    if not path.is_relative_to(below) or ".." in path.relative_to(below).parts:
        raise UnsafePath(f"{path}: not in {below}, where alone files are written")
    place = below
    for part in path.relative_to(below).parts:
        place = place / part
        if place.is_symlink():
            raise UnsafePath(
                f"{place}: a link to {os.readlink(place)}, which would be written through; remove the link or put "
                "the file or folder itself there"
            )


def check_tree(folder: Path, below: Path, inner: bool = False) -> None:
    """Raise UnsafePath if a folder, one between it and ``below``, or anything in it is a link.

    Args:
        folder: may be absent.
        below: folder that the user named.
        inner: allow links in ``folder`` that lead to a place below ``below``.
    """
    check_links(folder, below)
    inside = below.resolve()
    for place, folders, names in os.walk(folder):
        for entry in (Path(place) / name for name in (*folders, *names)):
            if entry.is_symlink() and not (
                inner and Path(os.path.realpath(entry)).is_relative_to(inside)
            ):
                check_links(entry, below)


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


def make_new_folder(folder: Path) -> Path:
    """Make a folder that does not exist, in one that does, and return it.

    Raises:
        FileExistsError: if anything has its name.
        OSError: if it cannot be made.
    """
    folder.mkdir()
    return folder


@contextmanager
def made_folder(folder: Path, below: Path) -> Generator[Path]:
    """Make a folder, and remove it again if an error leaves it empty; see ``make_folder``."""
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
def whole(file: Path, below: Path, folder: Path | None = None) -> Generator[Path]:
    """Give the path of a new file, which replaces ``file`` at the end: whole, or not at all.

    The new file exists, is empty, has a random name and keeps the suffix.

    Args:
        file: what is written or replaced; its folder exists.
        below: folder that the user named.
        folder: existing folder of the new file, on the disk of ``file``; None: that of ``file``.

    Raises:
        UnsafePath: if ``file``, ``folder``, or a folder between one of them and ``below``, is a link.
        OSError: naming ``file``, for instance if the disk is full.
    """
    folder = file.parent if folder is None else folder
    check_links(file, below)
    check_links(folder, below)
    aside = folder / unfinished_name(file.suffix)
    try:
        create(aside)
        yield aside
        os.replace(aside, file)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(file)  # a failed write does not name its file
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, below: Path) -> Generator[Path]:
    """Give a new folder beside ``folder``, which replaces it and all in it at the end.

    Raises:
        UnsafePath: if ``folder``, or one between it and ``below``, is a link.
        OSError: if it cannot be made.
    """
    check_links(folder, below)
    aside = make_new_folder(folder.with_name(unfinished_name()))
    try:
        yield aside
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def scratch_folder(below: Path) -> Generator[Path]:
    """Give a new folder of a random name in ``below``, made if absent; it is removed at the end."""
    aside = make_new_folder(make_folder(below, below) / unfinished_name())
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def unfinished_name(suffix: str = "") -> str:
    """Return a random name for what is being written."""
    return f".{secrets.token_hex(8)}.part{suffix}"


def create(file: Path) -> None:
    """Make an empty file where there is none, not even a link."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed left unfinished in a folder; nobody else may be writing there."""
    for entry in list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
        if UNFINISHED.fullmatch(entry.name):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def open_text(file: Path, below: Path, folder: Path | None = None) -> Generator[TextIO]:
    """Open a new UTF-8 text file that replaces ``file``, as the csv module needs it; see ``whole``.

    What UTF-8 cannot encode, as in a file's name of other bytes, is written as an escape.
    """
    with (
        whole(file, below, folder) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        yield stream


@contextmanager
def open_binary(file: Path, below: Path) -> Generator[BinaryIO]:
    """Open a new file of bytes that replaces ``file``; see ``whole``."""
    with whole(file, below) as aside, aside.open("wb") as stream:
        yield stream


def encodable(text: str) -> str:
    """Return a text with escapes for what UTF-8 cannot encode, such as bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(file: Path, text: str, below: Path) -> None:
    """Write UTF-8 text without translating line ends, and escapes as ``open_text``; see ``whole``."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"), below)


def write_bytes(file: Path, content: bytes, below: Path) -> None:
    """Write bytes; see ``whole``."""
    with open_binary(file, below) as stream:
        stream.write(content)


def replace(file: Path, target: Path, below: Path) -> None:
    """Move a file onto another on the same disk.

    Raises:
        UnsafePath: if ``target``, or a folder between it and ``below``, is a link.
        OSError: if it cannot be moved.
    """
    check_links(target, below)
    os.replace(file, target)


def point_link(link: Path, target: str) -> None:
    """Make a link, or have the one that is there lead elsewhere.

    Raises:
        OSError: if it cannot be made, as on a file system without links.
    """
    aside = link.with_name(unfinished_name())
    try:
        aside.symlink_to(target)
        os.replace(aside, link)
    finally:
        aside.unlink(missing_ok=True)


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


def check_writable(
    folder: Path, below: Path, names: Iterable[str] = (), given: str | None = None
) -> None:
    """Prove that files of these names can be written in a folder, before the work; nothing is left there.

    Args:
        folder: may be absent.
        below: folder that the user named.
        names: of the files, with their folders, ``panels/all.png``.
        given: option and value that messages name; None: ``output`` and the folder.

    Raises:
        UnsafePath: if a file, or a folder between it and ``below``, is a link.
        RunError: if nothing can be written there.
    """
    targets = [folder / name for name in names]
    try:
        for target in (folder, *targets):
            check_links(target, below)
        for target in targets:
            if target.is_dir():
                raise OSError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}: {target}")
        with ExitStack() as made:
            for place in dict.fromkeys([folder, *(target.parent for target in targets)]):
                above = (place, *place.parents)
                there = next(one for one in above if one.exists())
                if not there.is_dir():
                    raise OSError(errno.ENOTDIR, f"{os.strerror(errno.ENOTDIR)}: {there}")
                made.callback(remove_empty, above[: above.index(there)])
                make_folder(place, below)
                probe = place / unfinished_name()
                create(probe)
                probe.unlink()
    except OSError as error:
        raise RunError(
            f"{given or f'output={folder}'}: can't be written ({error.strerror or error}); give another folder"
        ) from error


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
