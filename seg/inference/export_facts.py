"""Facts that an exported file holds beside its network, and the checkpoints that it was made from."""

import hashlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from seg.data.normalization import Normalization
from seg.files import open_regular
from seg.inference import ensemble
from seg.runs import checkpoint, records
from seg.runs.archive import CHECKPOINT_LIMIT
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT
from seg.version import __version__


def describe_run(run: LoadedRun, given: Any, precision: str = "float32") -> dict[str, Any]:
    """Return the facts that the file holds beside the network."""
    return {
        "seg": __version__,
        "classes": run.classes,
        "colors": [list(color) for color in run.colors],
        "threshold": run.threshold,
        **({"promise": run.promise.describe(run.classes)} if run.promise else {}),
        "task": run.task,
        "channels": run.intensity.channels,
        "neighbours": run.intensity.neighbours,
        "network": run.model.name,
        "precision": precision,
        "checkpoints": checkpoint_hashes(given),
    }


def describe_sections(intensity: Normalization) -> str:
    """Return what the channels of the input are, of a network that sees neighbours; else an empty text."""
    n, each = intensity.neighbours, intensity.image_channels
    return f": the sections z-{n} to z+{n} of a stack, {each} channel(s) each" if n else ""


def member_checkpoints(given: str | Path | Sequence[str]) -> list[Path]:
    """Return the checkpoint files of ``run=``, one for each member of an ensemble."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [checkpoint.find_checkpoint(one) for one in given]
    folder = Path(given)
    if not (folder / CROSSVAL_FILE).is_file():
        return [checkpoint.find_checkpoint(folder)]
    folds = records.read_json(folder / CROSSVAL_FILE, CROSSVAL_LIMIT)["folds"]
    return [checkpoint.find_checkpoint(one) for one in ensemble.fold_folders(folder, folds)]


def checkpoint_hashes(given: str | Path | Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each checkpoint of ``run=``, by its path."""
    return {str(file): hash_checkpoint(file) for file in member_checkpoints(given)}


def hash_checkpoint(file: Path) -> str:
    """Return the SHA-256 of a checkpoint."""
    with open_regular(file, CHECKPOINT_LIMIT) as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()
