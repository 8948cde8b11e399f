"""The run folder: create, lock and lay out.

config.yaml     all options, resolved
run.json        versions, command, commit, hardware, times, data, final metrics (seg.runs.record.RunRecord)
metrics.csv     every measurement
checkpoints/    best.ckpt and last.ckpt, each enough by itself; weights alone once finished, last.ckpt if it differs
panels/         pictures: image | truth | prediction | error
images.csv      true positive, false positive and false negative pixels per image and class (seg.training.artifacts)
predictions/    small pictures of some images: image, truth, prediction
log.txt         terminal output, and warnings of the libraries
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, Timeout

from seg import files
from seg.display.console import is_rank_zero, rank_zero_only
from seg.errors import RunError
from seg.runs.record import RECORD_FILE

CHECKPOINT_FILES = ("last.ckpt", "best.ckpt")
CROSSVAL_FILE = "crossval.json"  # record of a cross-validation, in the folder of its runs
MAX_ATTEMPTS = 100  # to lock a file whose folder other processes remove


class FolderLocked(RunError):
    """Another process holds the lock of a folder."""


def folder_name(name: str) -> str:
    """Return a folder name, of at most 100 characters, that needs no quotes on a command line."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def create_folder(outputs: Path, name: str) -> Path:
    """Create the folder ``outputs/TIME-name``, unique even if several runs start in the same second.

    Raises:
        RunError: if it cannot be created.
    """
    try:
        files.make_folder(outputs, outputs)
        return create_numbered_folder(outputs, name)
    except OSError as error:
        raise RunError(f"outputs={outputs}: can't be written ({error.strerror})") from error


def create_numbered_folder(outputs: Path, name: str) -> Path:
    """Create ``TIME-name``, or ``TIME-name-2`` and so on if that exists."""
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{folder_name(name)}"
    for attempt in range(1000):
        folder = outputs / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
        try:
            files.make_new_folder(folder)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{outputs}: 1000 runs already started in this second; start the run again")


def relative_to_here(path: Path) -> Path:
    """Return a path relative to the working folder if it is below that, else unchanged."""
    here = Path.cwd()
    resolved = Path(os.path.realpath(path))  # unlike Path.resolve, accepts links in a circle
    return resolved.relative_to(here) if resolved.is_relative_to(here) else path


@rank_zero_only
def prepare_run_folder(folder: Path, anew: bool) -> None:
    """Create the folders inside a run folder.

    Args:
        folder: the run folder, locked by this process.
        anew: delete its content first, except the lock.
    """
    if anew:
        clear_run_folder(folder)
    for part in ("checkpoints", "panels"):
        files.make_folder(folder / part, folder)


def clear_run_folder(folder: Path) -> None:
    """Delete the content of a run folder, locked by this process, except the lock; run.json last, links unfollowed."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == RECORD_FILE):
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def remove_run_folder(folder: Path) -> None:
    """Remove a run folder, and the link ``latest`` next to it if it pointed there.

    run.json goes last: a removal that was interrupted can be repeated.

    Raises:
        FolderLocked: if a process is at work in it.
        UnsafePath: if the folder is a link.
        OSError: if something in it cannot be removed.
    """
    files.check_links(folder, folder.parent)
    with lock_folder(folder, "command"):
        clear_run_folder(folder)
        (folder / ".lock").unlink()  # while the lock is held, so that no other process gets it
        folder.rmdir()
    link = folder.parent / "latest"
    if link.is_symlink() and not link.exists():
        link.unlink()


def is_locked(lock: Path) -> bool:
    """Return True if a process holds a lock file, or if that cannot be found out."""
    if not lock.exists():
        return False
    try:
        files.file_lock(lock, lock.parent).acquire(timeout=0).lock.release()
    except (Timeout, OSError, files.UnsafePath):
        return True
    return False


@rank_zero_only
def update_latest_link(folder: Path) -> None:
    """Point the link ``latest``, next to a run folder, to that folder."""
    link = folder.parent / "latest"
    if link.exists() and not link.is_symlink():
        return  # a folder or file of the user
    with suppress(OSError):  # not all file systems have links
        files.point_link(link, folder.name)


@contextmanager
def lock_folder(folder: Path, who: str, inside: str = "", wait: bool = False) -> Generator[Path]:
    """Create a folder and lock it for this process; in distributed training rank 0 holds the lock for all ranks.

    The operating system releases the lock when the process ends. A process may lock a folder that it holds already.

    Args:
        folder: folder to lock.
        who: name of the command, for the message.
        inside: subfolder that holds the lock.
        wait: wait for another process that holds the lock.

    Yields:
        ``folder / inside``.

    Raises:
        FolderLocked: if another process holds the lock, and ``wait`` is False.
        RunError: if the folder cannot be written, or the path to the lock contains a link.
    """
    place = folder / inside
    if not is_rank_zero():
        yield place
        return
    with hold_lock(place / ".lock", folder, wait) as held:
        if not held:
            raise FolderLocked(
                f"{folder}: another {who} is at work there; wait for it, or give another folder"
            )
        yield place


def is_at_work(folder: Path) -> bool:
    """Return True if another process holds the lock of a folder."""
    if not (folder / ".lock").exists():
        return False
    with hold_lock(folder / ".lock", folder) as held:
        return not held


@contextmanager
def hold_lock(file: Path, below: Path, wait: bool = False) -> Generator[bool]:
    """Lock a file, and yield True; yield False if another process holds its lock, and ``wait`` is False.

    Raises:
        RunError: if the file cannot be written or locked, or a link is in its path.
    """
    try:
        lock = acquire_lock(file, below, wait)
    except OSError as error:
        raise RunError(f"{below}: {describe_lock_error(error)}") from error
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def acquire_lock(file: Path, below: Path, wait: bool) -> BaseFileLock | None:
    """Create the folder of a lock and acquire it; None if another process holds it, and ``wait`` is False."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            files.make_folder(file.parent, below)
            lock = files.file_lock(file, below, reentrant=True)
            lock.acquire(timeout=-1 if wait else 0)
            return lock
        except Timeout:
            return None
        except OSError as error:
            # Another process that ended has removed the lock, or its empty folder
            if error.errno not in (errno.ENOENT, errno.ESTALE) or attempt + 1 == MAX_ATTEMPTS:
                raise
    raise AssertionError


def describe_lock_error(error: OSError) -> str:
    """Return the reason why a lock could not be acquired."""
    if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return f"its file system has no locks ({error.strerror}); give a folder on another one"
    return f"can't be written ({error.strerror})"
