"""Download of named files from a published archive into the user's cache, once.

The archive is untrusted: its size is limited, packed and unpacked, and its members are read by name, so that
nothing is written elsewhere.
"""

import bz2
import errno
import gzip
import hashlib
import io
import logging
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from shutil import copyfileobj
from typing import IO, Any, NamedTuple

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from seg import files
from seg.data.image_cache import cache_root
from seg.data.masks import shorten_list
from seg.display.console import console, is_rank_zero
from seg.errors import DataError

log = logging.getLogger("seg")
MAX_ARCHIVE_BYTES = 2**28  # bytes, the largest size of an archive and of its unpacked content
MAX_CONNECT_SECONDS = 5.0  # seconds, the longest wait for a connection
TAR_COMPRESSIONS: dict[bytes, Callable[[Path, Any], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open
}  # fmt: skip  # first bytes of a compressed tar archive


class ArchiveMember(NamedTuple):
    """A regular file in an archive.

    Attributes:
        path: path in the archive.
        size: bytes, unpacked; ``open`` gives no more.
        open: opens its content; None if it has none.
    """

    path: str
    size: int
    open: Callable[[], IO[bytes] | None]


def cache_folder(name: str, url: str) -> Path:
    """Return the folder of the user's cache for the files of an address."""
    return cache_root() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def fetch_files(
    url: str,
    names: Collection[str],
    folder: Path,
    timeout: float,
    fault: Callable[[Path], str | None],
) -> None:
    """Download an archive and put its named files into a folder, all of them or none.

    Args:
        url: address of a zip or tar archive, http or https.
        names: names of the files, in any folder of the archive.
        folder: created if missing; two processes may do this at once.
        timeout: seconds that the server may be silent.
        fault: returns what is wrong with the files in a folder; None: nothing.

    Raises:
        DataError: if the files cannot be downloaded, unpacked or written, or have a fault.
    """
    if timeout <= 0:
        raise DataError(f"data.timeout={timeout}: seconds above 0 are needed")
    log.info(f"downloading {url} to {folder}, once")
    # Download and unpack beside the cache, and move in only files that were found complete
    try:
        with files.scratch_folder(folder) as part:
            download_file(url, part / "archive", timeout)
            unpack_files(part / "archive", names, part, url)
            if problem := fault(part):
                raise DataError(f"{url}: {problem}")
            for name in names:
                files.move_onto(part / name, folder / name, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: can't be written ({error.strerror or error}); SEG_CACHE=FOLDER names another place"
        ) from error


def download_file(url: str, file: Path, timeout: float) -> None:
    """Write the content of an address to a file, with a progress bar.

    Raises:
        DataError: if it cannot be downloaded or is larger than ``MAX_ARCHIVE_BYTES``.
    """
    # Progress bar, on a terminal and on rank 0 only
    columns = TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    hidden = not (console.is_terminal and is_rank_zero())
    # Seconds to connect, and between two pieces of the answer
    waits = (min(timeout, MAX_CONNECT_SECONDS), timeout)
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        try:
            with requests.get(url, stream=True, timeout=waits) as answer, file.open("wb") as out:
                answer.raise_for_status()
                size = int(answer.headers.get("content-length", 0))
                task = progress.add_task("downloading", total=size or None)
                # The stated size may be wrong or absent, so count the bytes that arrive
                for piece in answer.iter_content(2**16):
                    out.write(piece)
                    progress.update(task, completed=out.tell())
                    if out.tell() > MAX_ARCHIVE_BYTES:
                        raise DataError(
                            f"{url}: larger than {MAX_ARCHIVE_BYTES >> 20} MiB, the limit"
                        )
        except DataError:
            raise
        except (requests.RequestException, ValueError) as error:  # ValueError: of a bad header
            raise DataError(f"{url}: can't be downloaded ({network_reason(error)})") from error


def network_reason(error: BaseException) -> str:
    """Return the root cause of a network error in one line."""
    while error.__context__:
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error).partition(" for url")[0]
    return " ".join(text.split()) or type(error).__name__


def unpack_files(archive: Path, names: Collection[str], folder: Path, url: str) -> None:
    """Write the named files of an archive into a folder, whatever folder of the archive they are in.

    Raises:
        DataError: if it is not a zip or tar archive, is larger than ``MAX_ARCHIVE_BYTES`` unpacked, or does not hold each
            of the names once.
    """
    try:
        paths = []
        for member in archive_members(archive):
            paths.append(member.path)
            name = PureWindowsPath(member.path).name  # splits at slashes of both kinds
            if name not in names:
                continue
            if (folder / name).exists():
                raise DataError(f"{url}: holds {name} twice")
            source = member.open()
            assert source is not None
            with source, (folder / name).open("xb") as target:
                copyfileobj(source, target)
    except Exception as error:
        # An error of the file system is the caller's; EINVAL: a zip that points before its beginning.
        on_disk = getattr(error, "errno", None) not in (None, errno.EINVAL)
        if on_disk or isinstance(error, DataError):
            raise
        if isinstance(error, ArchiveTooLargeError):
            raise DataError(f"{url}: unpacks to more than {MAX_ARCHIVE_BYTES >> 20} MiB") from error
        text = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"{url}: not a complete zip or tar archive ({text})") from error
    for name in names:
        if not (folder / name).exists():
            raise DataError(f"{url}: no {name} in it; it holds {shorten_list(paths)}")


class ArchiveTooLargeError(Exception):
    """An archive unpacks to more than ``MAX_ARCHIVE_BYTES`` bytes."""


def check_archive_size(size: int) -> None:
    """Raise TooLarge if unpacked content is larger than ``MAX_ARCHIVE_BYTES``."""
    if size > MAX_ARCHIVE_BYTES:
        raise ArchiveTooLargeError


def archive_members(archive: Path) -> Iterator[ArchiveMember]:
    """Yield the regular files of a zip or tar archive.

    Raises:
        TooLarge: if they would unpack to more than ``MAX_ARCHIVE_BYTES``.
    """
    # A zip states the unpacked sizes in its directory
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            files = [info for info in opened.infolist() if not info.is_dir()]
            check_archive_size(sum(info.file_size for info in files))
            for info in files:
                yield ArchiveMember(info.filename, info.file_size, partial(opened.open, info))
        return
    # A tar archive is decompressed in memory up to the limit first: a few bytes may unpack to a name of gigabytes.
    with archive.open("rb") as stream:
        start = stream.read(6)
    opener = next((how for magic, how in TAR_COMPRESSIONS.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        content = stream.read(MAX_ARCHIVE_BYTES + 1)
    check_archive_size(len(content))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as opened:
        files = [info for info in opened if info.isreg()]
        check_archive_size(
            sum(info.size for info in files)
        )  # a sparse file may be larger than the archive
        for info in files:
            yield ArchiveMember(info.name, info.size, partial(opened.extractfile, info))
