"""Find, read and write checkpoint files; reading runs no code."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seg import files
from seg.cli.command_line import quote_shell, render_option
from seg.errors import RunError
from seg.runs import pretrained
from seg.runs.archive import ArchiveError, read_skeleton
from seg.runs.folder import CHECKPOINT_FILES, CROSSVAL_FILE
from seg.version import __version__

CHECKPOINT_FORMAT = (
    1  # of checkpoints; increased when earlier versions would read new files wrongly
)
# Parts of a checkpoint without which Lightning would start that part again without a warning.
TRAINING_STATE = ("loops", "optimizer_states", "lr_schedulers")
WEIGHTS_ONLY = (
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "state_dict",
    "seg",
)  # parts that are kept without it


class DamagedCheckpoint(RunError):
    """A checkpoint that is damaged, or was not written by seg.train."""


DAMAGE_ERRORS = (
    DamagedCheckpoint,
    LookupError,
    TypeError,
)  # errors of reading a damaged checkpoint


def find_checkpoint(run: str | Path | None, option: str = "run") -> Path:
    """Return the checkpoint of a run: the best one, or else the last.

    Args:
        run: run folder, or a checkpoint file, which is returned as it is, or ``pretrained:NAME``.
        option: that was given, for the messages.

    Raises:
        RunError: if there is none.
    """
    if run is None:
        raise RunError("run is not set: give a run folder or a checkpoint file, run=outputs/latest")
    if str(run).startswith(pretrained.PREFIX):
        return pretrained.find_network(str(run), option)
    path = Path(run)
    if path.is_file():
        return path
    if not path.exists():
        raise RunError(f"{option}={run}: no such folder or file{suggest_run(path)}")
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    if (path / CROSSVAL_FILE).is_file():
        folds = sorted(p.parent for p in path.glob("*/checkpoints") if not p.parent.is_symlink())
        one = quote_shell(render_option("run", folds[0])) if folds else ""
        raise RunError(
            f"{option}={run}: a cross-validation, which is several networks; only seg.predict and seg.evaluate use "
            f"them together{f'; give one of them, {one}' if folds else ''}"
        )
    raise RunError(
        f"{option}={run}: no checkpoints/best.ckpt or last.ckpt in it; give a run folder or a checkpoint file"
    )


def suggest_run(path: Path) -> str:
    """Return a hint that names the newest run next to a path, or an empty text."""
    runs = sorted(p.name for p in path.parent.glob("*/") if (p / "checkpoints").is_dir())
    return f"; the newest run in {path.parent} is {runs[-1]}" if runs else ""


def check_finite(weights: Mapping[str, Any], file: Path) -> None:
    """Raise RunError if a parameter or buffer of a checkpoint contains nan or inf.

    Args:
        weights: name -> tensor, the checkpoint's ``state_dict``.
        file: checkpoint, for the message.
    """
    broken = {}
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            broken |= {name: f"{count} of {tensor.numel()} values"} if count else {}
    if broken:
        name, count = next(iter(broken.items()))
        others = len(broken) - 1
        more = f" (and of {others} more tensor{'s' * (others > 1)})" if others else ""
        raise RunError(
            f"{file}: {count} of {name} are nan or inf{more}; finite weights are needed: use another checkpoint "
            "of the run, or train it again"
        )


def load_skeleton(file: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint with a ``DeclaredTensor`` in the place of each tensor.

    Raises:
        RunError: if it is damaged, or a later version wrote it in a newer format.
    """
    try:
        content = read_skeleton(Path(file))
    except (ArchiveError, OSError) as error:
        raise DamagedCheckpoint(
            f"{file}: {error_summary(error)}; not a checkpoint of seg.train, or damaged"
        ) from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{file}: not a checkpoint of seg.train")
    card = content.get("seg")
    if isinstance(card, dict) and (
        type(card.get("format", CHECKPOINT_FORMAT)) is not int
        or not 1 <= card.get("format", CHECKPOINT_FORMAT) <= CHECKPOINT_FORMAT
    ):
        raise RunError(
            f"{file}: written by seg {card.get('version')!s:.40} in format {card['format']!s:.40}, but seg "
            f"{__version__} reads format {CHECKPOINT_FORMAT}; install the version that wrote it, or a later one"
        )
    return content


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint on the CPU; needs about as much memory as the file is large.

    Raises:
        RunError: if it is damaged, holds more than tensors and plain values, or a later version wrote it.
    """
    load_skeleton(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can make it raise anything
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({error_summary(error)})"
        raise DamagedCheckpoint(
            f"{file}: holds more than weights and plain values, or is damaged; it is not loaded{reason}"
        ) from error


def error_summary(error: BaseException) -> str:
    """Return the first line of an error, of at most 200 characters, with the type of unusual errors."""
    text = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
    return (
        str(text)[:200]
        if isinstance(error, ValueError | OSError)
        else f"{type(error).__name__}: {text}"[:200]
    )


def is_whole(file: Path) -> bool:
    """Return True if a checkpoint exists and can be read completely."""
    try:
        read_checkpoint(file)
    except DAMAGE_ERRORS:
        return False
    return True


def version_remark(card: dict[str, Any]) -> str:
    """Return a remark on the version that wrote a checkpoint; empty if that is this version or unknown."""
    version = card.get("version", __version__)
    return (
        ""
        if version == __version__
        else f" (this is seg {__version__}; seg {version!s:.40} wrote it)"
    )


def write_checkpoint(file: Path, content: dict[str, Any], below: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all, even on a power failure.

    Args:
        file: file to write or replace.
        content: tensors and plain values.
        below: folder that the user named; None: the folder of ``file``.
    """
    with files.open_binary(file, below or file.parent) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # torch's writer hides the OSError
            raise error.__context__ or error from None
        stream.flush()
        os.fsync(stream.fileno())


def has_training_state(file: str | Path) -> bool:
    """Return True if a training can continue from a checkpoint: it holds more than weights.

    Raises:
        RunError: if it is damaged, or a later version wrote it in a newer format.
    """
    content = load_skeleton(file)
    return all(content.get(name) for name in TRAINING_STATE)


def keep_weights_only(folder: Path) -> None:
    """Remove the training state from the checkpoints of a run, and last.ckpt if best.ckpt has the same weights.

    Each file is replaced atomically, so that an interruption leaves whole checkpoints, with or without the state.

    Args:
        folder: run folder, locked by this process.

    Raises:
        RunError: if a checkpoint is damaged, or reached through a link.
        OSError: if it cannot be written.
    """
    last, best = (folder / "checkpoints" / name for name in CHECKPOINT_FILES)
    content = {file: read_checkpoint(file) for file in (last, best) if file.is_file()}
    if len(content) == 2 and same_weights(content[last], content[best]):
        del content[last]
    for file, parts in content.items():
        write_checkpoint(
            file, {name: parts[name] for name in WEIGHTS_ONLY if name in parts}, folder
        )
    if last not in content:
        files.check_links(last, folder)
        last.unlink(missing_ok=True)


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True if two checkpoints predict the same: equal weights, and equal facts about the network."""
    first, second = one["state_dict"], other["state_dict"]
    return (
        one.get("seg") == other.get("seg")
        and set(first) == set(second)
        and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    )
