"""Load a trained network and the facts needed to use it."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hydra.utils import instantiate
from torch import nn

from seg.data.datasets.base import Task
from seg.data.normalization import Intensity
from seg.errors import RunError
from seg.runs.checkpoint import DAMAGED, find_checkpoint, read_checkpoint, written_by
from seg.runs.safe_loading import check_plain, check_targets


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and all that is needed to use it.

    Attributes:
        checkpoint: the file it came from.
        folder: the run's folder; the file's own where it stands alone.
        model: in evaluation mode.
        config: the run's, resolved.
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 a class.
        intensity: how grey values become network input.
        task: of the data it was trained on: classes, instances or overlapping.
        threshold: probability in 0..1 above which a pixel is class 1 of two, or has a label.
        seen: of an ensemble: names of the images that trained any of its members.
    """

    checkpoint: Path
    folder: Path
    model: nn.Module
    config: dict[str, Any]
    classes: list[str]
    colors: list[tuple[int, int, int]]
    intensity: Intensity
    task: Task = "classes"
    threshold: float = 0.5
    seen: frozenset[str] = frozenset()

    @property
    def overlapping(self) -> bool:
        """Whether a pixel may have several classes."""
        return self.task == "overlapping"


def threshold(run: LoadedRun, asked: float | None) -> float:
    """The threshold asked for, or the run's own.

    Raises:
        RunError: when the one asked for is none, or the run's classes have no threshold.
    """
    if asked is None:
        return run.threshold
    if not isinstance(asked, int | float) or not 0 < asked < 1:
        raise RunError(f"threshold={asked}: a number between 0 and 1 is needed, or null")
    if len(run.classes) != 2 and not run.overlapping:
        raise RunError(
            f"threshold={asked}: the run has {len(run.classes)} classes, of which the most probable is "
            "taken; two classes or overlapping ones have a threshold"
        )
    return float(asked)


def load(run: str | Path | None) -> LoadedRun:
    """Reads a run back from its folder or checkpoint file; neither code nor data set is needed.

    Raises:
        RunError: when the file isn't a checkpoint of ours, or would run code.
    """
    file = find_checkpoint(run)
    try:
        content = read_checkpoint(file)
        card, weights = content["seg"], content["state_dict"]
        config, intensity = card["config"], Intensity(**card["intensity"])
        classes, colors = list(card["classes"]), [tuple(c) for c in card["colors"]]
        task, threshold = card.get("task", "classes"), float(card.get("threshold", 0.5))
        check_facts(classes, colors, task, threshold)
        target, _ = config["model"]["_target_"], config["loss"]["_target_"]
    except RunError:
        raise
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{file}: holds more than weights and plain values; it is not loaded"
        ) from error
    except (*DAMAGED, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RunError(
            f"{file}: not a checkpoint of seg.train, or cut off ({reason[:200]})"
        ) from error
    check_plain(config, file)
    try:
        check_targets(config["model"], file)
        check_targets(config["loss"], file, ("seg.losses",))
    except RunError as error:
        raise RunError(f"{error}{written_by(card)}") from error
    try:
        model = instantiate(without_weights(config["model"]), _convert_="all")
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        )
    except Exception as error:
        raise RunError(
            f"{file}: its weights don't fit {target} of this version{written_by(card)}: {error}"
        ) from error
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return LoadedRun(
        file, folder, model.eval(), config, classes, colors, intensity, task, threshold
    )


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_facts(
    classes: list[Any], colors: list[tuple[Any, ...]], task: Any, threshold: float
) -> None:
    """Raises ValueError unless a checkpoint's facts are what each command takes them for."""
    if not 0 < threshold < 1:
        raise ValueError(f"its threshold is {threshold}")
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no names")
    levels = range(256)
    if len(colors) != len(classes) or not all(
        len(color) == 3 and all(type(v) is int and v in levels for v in color) for color in colors
    ):
        raise ValueError("its colors aren't three numbers from 0 to 255 a class")
    if task not in get_args(Task):
        raise ValueError(f"its task is {task!r:.40}")


def without_weights(node: dict[str, Any]) -> dict[str, Any]:
    """A network's config without the download of weights that the checkpoint replaces anyway."""
    plain = {k: without_weights(v) if isinstance(v, dict) else v for k, v in node.items()}
    theirs = str(node.get("_target_")).startswith("segmentation_models_pytorch.")
    return plain | ({"encoder_weights": None} if theirs else {})  # imagenet is its default
