"""Checkpoint files: find, read and write them; reading runs no code."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from seg.errors import RunError
from seg.runs.folder import CROSSVAL
from seg.runs.records import whole
from seg.version import __version__

FORMAT = 1  # of checkpoints; a later version counts up where an earlier one would read them wrongly
DAMAGED = (  # what a checkpoint that is cut or isn't ours raises as it is read, and looked into
    RuntimeError, EOFError, OSError, LookupError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile
)  # fmt: skip


def find_checkpoint(run: str | Path | None) -> Path:
    """The checkpoint file of a run folder (the best, else the last), or the file itself.

    Raises:
        RunError: when there is none.
    """
    if run is None:
        raise RunError("run is not set: give a run folder or a checkpoint file, run=outputs/latest")
    path = Path(run)
    if path.is_file():
        return path
    if not path.exists():
        raise RunError(f"run={run}: no such folder or file{nearby(path)}")
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    if (path / CROSSVAL).is_file():
        folds = sorted(p.parent for p in path.glob("*/checkpoints") if not p.parent.is_symlink())
        raise RunError(
            f"run={run}: a cross-validation, which is several networks; only seg.predict and seg.evaluate take "
            f"them together{f', here give one of them, run={folds[0]}' if folds else ''}"
        )
    raise RunError(f"run={run}: no checkpoints/best.ckpt or last.ckpt in it; a run folder has one")


def nearby(path: Path) -> str:
    runs = sorted(p.name for p in path.parent.glob("*/") if (p / "checkpoints").is_dir())
    return f"; the newest run in {path.parent} is {runs[-1]}" if runs else ""


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """The content of a checkpoint; a pickle that holds more than tensors and plain values is refused.

    Raises:
        RunError: when a later version wrote it, in a format that isn't known here.
    """
    content = torch.load(file, map_location="cpu", weights_only=True)
    card = content.get("seg") if isinstance(content, dict) else None
    if isinstance(card, dict) and card.get("format", FORMAT) not in range(1, FORMAT + 1):
        raise RunError(
            f"{file}: written by seg {card.get('version')!s:.40} in format {card['format']!s:.40}, and this is seg "
            f"{__version__}, which reads format {FORMAT}; it needs the version that wrote it, or a later one"
        )
    return content


def is_whole(file: Path) -> bool:
    """Whether a checkpoint is there and can be read to its end."""
    try:
        read_checkpoint(file)
    except DAMAGED:
        return False
    return True


def written_by(card: dict[str, Any]) -> str:
    """Which other version wrote a checkpoint, in words; nothing if it was this one, or it doesn't tell."""
    version = card.get("version", __version__)
    return (
        ""
        if version == __version__
        else f" (this is {__version__}, and seg {version!s:.40} wrote it)"
    )


def write_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, also when the machine loses its power."""
    with whole(file) as aside, aside.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # of its own writer, which hides what the disk said
            raise error.__context__ or error from None
        stream.flush()
        os.fsync(stream.fileno())
