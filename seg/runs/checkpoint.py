"""Checkpoint files: find, read and write them; reading runs no code."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seg import files
from seg.cli.command_line import quote_shell, render_option
from seg.errors import RunError
from seg.runs.archive import Refused, read_skeleton
from seg.runs.folder import CROSSVAL
from seg.version import __version__

FORMAT = 1  # of checkpoints; a later version counts up where an earlier one would read them wrongly


class DamagedCheckpoint(RunError):
    """A checkpoint that can't be read, or isn't ours."""


DAMAGED = (
    DamagedCheckpoint,
    LookupError,
    TypeError,
)  # raised as a checkpoint is read, and looked into


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
        one = quote_shell(render_option("run", folds[0])) if folds else ""
        raise RunError(
            f"run={run}: a cross-validation, which is several networks; only seg.predict and seg.evaluate take "
            f"them together{f', here give one of them, {one}' if folds else ''}"
        )
    raise RunError(f"run={run}: no checkpoints/best.ckpt or last.ckpt in it; a run folder has one")


def nearby(path: Path) -> str:
    runs = sorted(p.name for p in path.parent.glob("*/") if (p / "checkpoints").is_dir())
    return f"; the newest run in {path.parent} is {runs[-1]}" if runs else ""


def check_finite(weights: Mapping[str, Any], file: Path) -> None:
    """Raise RunError where a checkpoint's parameters or buffers hold nan or inf.

    Args:
        weights: name -> tensor, the checkpoint's ``state_dict``.
        file: the checkpoint.
    """
    found = {}
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            found |= {name: f"{count} of {tensor.numel()} values"} if count else {}
    if found:
        name, count = next(iter(found.items()))
        others = len(found) - 1
        more = f", likewise {others} more tensor{'s' * (others > 1)}" if others else ""
        raise RunError(
            f"{file}: {count} of {name} are nan or inf{more}; finite weights are needed: take another checkpoint "
            "of the run, or train it again"
        )


def skeleton_of(file: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint with a ``Declared`` in the place of each tensor.

    Raises:
        RunError: if it is damaged, or a later version wrote it, in a format that is not known here.
    """
    try:
        content = read_skeleton(Path(file))
    except (Refused, OSError) as error:
        raise DamagedCheckpoint(
            f"{file}: {explain(error)}; not a checkpoint of seg.train, or damaged"
        ) from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{file}: not a checkpoint of seg.train")
    card = content.get("seg")
    if isinstance(card, dict) and (
        type(card.get("format", FORMAT)) is not int or not 1 <= card.get("format", FORMAT) <= FORMAT
    ):
        raise RunError(
            f"{file}: written by seg {card.get('version')!s:.40} in format {card['format']!s:.40}, and this is seg "
            f"{__version__}, which reads format {FORMAT}; it needs the version that wrote it, or a later one"
        )
    return content


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, which takes about as much memory as the file has bytes.

    Raises:
        RunError: if it is damaged, holds more than tensors and plain values, or a later version wrote it.
    """
    skeleton_of(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can make it raise anything
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({explain(error)})"
        raise DamagedCheckpoint(
            f"{file}: holds more than weights and plain values, or is damaged; it is not loaded{reason}"
        ) from error


def explain(error: BaseException) -> str:
    """Return the first line of an error, with its type where it says little without."""
    said = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
    return (
        str(said)[:200]
        if isinstance(error, ValueError | OSError)
        else f"{type(error).__name__}: {said}"[:200]
    )


def is_whole(file: Path) -> bool:
    """Return whether a checkpoint is there and can be read to its end."""
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


def write_checkpoint(file: Path, content: dict[str, Any], below: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all, also when the machine loses its power; see ``write_json``."""
    with files.open_binary(file, below or file.parent) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # of its own writer, which hides what the disk said
            raise error.__context__ or error from None
        stream.flush()
        os.fsync(stream.fileno())
