"""The run folder: made, written, and read back; a checkpoint is loaded without running its code.

config.yaml     all that was chosen, resolved
run.json        versions, command, commit, hardware, times, data, final metrics
metrics.csv     every measurement
checkpoints/    best.ckpt and last.ckpt, each enough by itself
panels/         pictures: image | truth | prediction | error
images.csv      pixels right, wrong and missed of each image and class (seg.training.artifacts)
predictions/    small pictures of some images: image, truth, prediction
log.txt         what the terminal showed, and the libraries' warnings
"""

import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from seg import files
from seg.display.console import first_process
from seg.errors import RunError

CROSSVAL = "crossval.json"  # what seg.crossval leaves in the folder of its runs


class Busy(RunError):
    """Another process is at work in a folder."""


def as_folder(name: str) -> str:
    """A name of a folder that needs no quotes on a command line."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def create_folder(outputs: Path, name: str) -> Path:
    """A new folder ``outputs/TIME-name`` that no other process got."""
    try:
        files.make_folder(outputs, outputs)
        return numbered_folder(outputs, name)
    except OSError as error:
        raise RunError(f"outputs={outputs}: can't be written ({error.strerror})") from error


def numbered_folder(outputs: Path, name: str) -> Path:
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{as_folder(name)}"
    for attempt in range(1000):
        folder = outputs / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
        try:
            files.make_new_folder(folder)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{outputs}: a thousand runs of this second are there already")


def relative(path: Path) -> Path:
    """As seen from here, if it lies below."""
    here = Path.cwd()
    place = Path(os.path.realpath(path))  # also where links go round in a circle
    return place.relative_to(here) if place.is_relative_to(here) else path


@rank_zero_only
def lay_out(folder: Path, anew: bool) -> None:
    """Makes the folders in a run's; anew: what is there goes, but for the lock that this process holds."""
    for entry in folder.iterdir() if anew else ():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for part in ("checkpoints", "panels"):
        files.make_folder(folder / part, folder)


@rank_zero_only
def point_latest(folder: Path) -> None:
    """Makes ``latest`` beside a run's folder point to it."""
    link = folder.parent / "latest"
    if link.exists() and not link.is_symlink():
        return  # a user's own folder of that name
    with suppress(OSError):  # a file system without links: a convenience less
        files.point_link(link, folder.name)


@contextmanager
def alone(folder: Path, who: str, inside: str = "") -> Generator[Path]:
    """A folder, made if absent, for this process only; the lock falls when the process ends.

    Those that train one run together have it by the first of them.

    Args:
        folder: that is worked on.
        who: the command that does.
        inside: folder in it that holds the lock, made too, which is given.

    Raises:
        Busy: when another process is at work there.
        RunError: when the folder can't be written, or holds a link there.
    """
    place = folder / inside
    if not first_process():
        yield place
        return
    try:
        files.make_folder(place, folder)
        lock = files.lock(place / ".lock", folder)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy(
            f"{folder}: another {who} is at work there; wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise RunError(f"{folder}: can't be written ({error.strerror})") from error
    try:
        yield place
    finally:
        lock.release()
