"""Files of a published archive, downloaded once into the user's cache.

What arrives is trusted in nothing: it has a largest size, only the files asked for are unpacked, and they
are put in place, each in one step, after the caller has found them right.
"""

import bz2
import errno
import gzip
import hashlib
import logging
import lzma
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from shutil import copyfileobj
from typing import IO, Any, Literal, NamedTuple

import pooch
import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from seg import files
from seg.data.image_cache import caches
from seg.data.masks import short
from seg.display.console import console, first_process
from seg.errors import DataError

log = logging.getLogger("seg")
MOST = 2**28  # bytes that a download may have, and its members unpacked
CONNECT = 5.0  # seconds for the first answer of a server, at most
PACKED: dict[bytes, Callable[[Path, Any], Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open
}  # fmt: skip  # by how such a tar archive begins


def cache_folder(name: str, url: str) -> Path:
    """Where files from an address are kept."""
    return caches() / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def fetch(
    url: str,
    names: Collection[str],
    folder: Path,
    timeout: float,
    fault: Callable[[Path], str | None],
) -> None:
    """Downloads an archive and puts the named files of it into a folder.

    Args:
        url: http or https; of a zip or tar archive.
        names: of the files, in whatever folder of the archive.
        folder: made if absent; of two processes that do this at once, each leaves the same.
        timeout: seconds that the server may be silent.
        fault: what is wrong with the files in a folder; None: nothing.

    Raises:
        DataError: with nothing put in place, when the files can't be had, kept, or aren't right.
    """
    if timeout <= 0:
        raise DataError(f"data.timeout={timeout}: seconds above 0 are needed")
    log.info(f"downloading {url} to {folder}, once")
    try:
        with files.scratch_folder(folder) as part:
            download(url, part / "archive", timeout)
            unpack(part / "archive", names, part, url)
            if found := fault(part):
                raise DataError(f"{url}: {found}")
            for name in names:
                files.replace(part / name, folder / name, folder)
    except OSError as error:
        raise DataError(
            f"{folder}: can't be written ({error.strerror or error}); SEG_CACHE=FOLDER names another place"
        ) from error


class TooLarge(Exception):
    """An archive that unpacks to more than ``MOST`` bytes."""


class Bar:
    """pooch's protocol of a progress bar, drawn by rich; it also ends what grows too large.

    Args:
        progress: that draws it.
        file: that is being written.
        url: that it comes from.
    """

    def __init__(self, progress: Progress, file: Path, url: str) -> None:
        self.progress, self.file, self.url = progress, file, url
        self.task = progress.add_task("downloading", total=None)

    def expect(self, size: int) -> None:
        self.progress.update(self.task, total=size or None)

    total = property(fset=expect)  # pooch sets it

    def update(self, _: int) -> None:
        size = self.file.stat().st_size  # the amount told counts a short piece as a whole one
        self.progress.update(self.task, completed=size)
        if size > MOST:
            raise DataError(f"{self.url}: larger than {MOST >> 20} MiB, which no such archive is")

    def reset(self) -> None: ...

    def close(self) -> None: ...


def download(url: str, file: Path, timeout: float) -> None:
    """Writes what an address gives into a file."""
    columns = TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    hidden = not (console.is_terminal and first_process())
    answers: list[requests.Response] = []  # pooch closes none that it gives up
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        get = pooch.HTTPDownloader(
            progressbar=Bar(progress, file, url),
            chunk_size=2**16,
            timeout=(min(timeout, CONNECT), timeout),
            hooks={"response": lambda answer, **_: answers.append(answer)},
        )
        try:
            get(url, str(file), None)
        except DataError:
            raise
        except (requests.RequestException, ValueError) as error:  # ValueError: of a bad header
            raise DataError(f"{url}: can't be downloaded ({reason(error)})") from error
        finally:
            for answer in answers:
                answer.close()


def reason(error: BaseException) -> str:
    """What lies at the bottom of an error of the network."""
    while error.__context__:
        error = error.__context__
    said = getattr(error, "strerror", None) or str(error).partition(" for url")[0]
    return " ".join(said.split()) or type(error).__name__


class Member(NamedTuple):
    """An entry of an archive.

    Attributes:
        path: as stored.
        size: bytes, unpacked; no more is read of it.
        kind: ``other``: a link, a device or the like.
        open: gives its content.
    """

    path: str
    size: int
    kind: Literal["file", "folder", "other"]
    open: Callable[[], IO[bytes] | None]


def members(archive: Path) -> Iterator[Member]:
    """The entries of a zip or tar archive, read no further than asked for."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                kind = "folder" if info.is_dir() else "file"
                plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
                yield Member(
                    info.filename,
                    info.file_size,
                    kind if plain else "other",
                    partial(packed.open, info),
                )
        return
    with plain_tar(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as packed:
        for info in packed:
            kind = "file" if info.isreg() else "folder" if info.isdir() else "other"
            yield Member(info.name, info.size, kind, partial(packed.extractfile, info))


@contextmanager
def plain_tar(archive: Path) -> Generator[IO[bytes]]:
    """A tar archive without its compression, open; tarfile keeps names of any length in memory.

    Raises:
        TooLarge: when it would be larger than ``MOST``.
    """
    with archive.open("rb") as stream:
        start = stream.read(6)
    opened = next((how for magic, how in PACKED.items() if start.startswith(magic)), open)
    left = MOST
    with opened(archive, "rb") as source, tempfile.TemporaryFile(dir=archive.parent) as plain:
        while piece := source.read(2**20):
            left -= len(piece)
            if left < 0:
                raise TooLarge
            plain.write(piece)
        plain.seek(0)
        yield plain


def unpack(archive: Path, names: Collection[str], folder: Path, url: str) -> None:
    """Writes the named files of an archive into a folder.

    Raises:
        DataError: when it is no archive, lacks a file, or has an entry that leads out of its folder, isn't
            a plain file, or is too large.
    """
    left, there = MOST, []
    try:
        for member in members(archive):
            path = PureWindowsPath(member.path)  # which knows both kinds of slashes
            if member.kind == "other" or path.anchor or ".." in path.parts:
                raise DataError(
                    f"{url}: {member.path!r} in it is a link or device, or leads out of its folder"
                )
            left -= member.size
            if left < 0:
                raise TooLarge
            there.append(member.path)
            if path.name in names and member.kind == "file":
                if (folder / path.name).exists():
                    raise DataError(f"{url}: holds {path.name} twice")
                write(member, folder / path.name)
    except TooLarge as error:
        raise DataError(f"{url}: unpacks to more than {MOST >> 20} MiB") from error
    except Exception as error:  # decoders raise every kind
        # EINVAL: it names a place before its beginning
        on_disk = getattr(error, "errno", None) not in (None, errno.EINVAL)
        if isinstance(error, DataError) or on_disk:
            raise
        said = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"{url}: not a whole zip or tar archive ({said})") from error
    for name in names:
        if not (folder / name).exists():
            raise DataError(f"{url}: no {name} in it; it holds {short(there)}")


def write(member: Member, file: Path) -> None:
    source = member.open()
    if source is None:
        raise ValueError(f"{member.path} can't be opened")
    with source, file.open("xb") as target:
        copyfileobj(source, target)
