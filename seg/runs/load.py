"""Load a trained network and the facts needed to use it."""

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from seg.cli.validation import check_call, is_number
from seg.data.datasets.base import MAX_BORDER_PX, Task
from seg.data.normalization import Normalization
from seg.data.sections import MAX_NEIGHBOURS
from seg.errors import RunError, UserError
from seg.files import MIB
from seg.logits import num_logits
from seg.models.contract import require_network
from seg.models.network import Network
from seg.runs import pretrained
from seg.runs.archive import DeclaredTensor
from seg.runs.checkpoint import (
    DamagedCheckpoint,
    check_finite,
    error_summary,
    find_checkpoint,
    load_skeleton,
    read_checkpoint,
    version_remark,
)
from seg.runs.migrations import upgrade_config
from seg.runs.record import QualityRecord, RiskPromise, read_promise, read_quality
from seg.runs.safe_loading import NETWORK_PACKAGES, check_plain, check_targets, is_unicode

log = logging.getLogger("seg")
MAX_CLASSES = 1000  # most classes of a run; a mask of class indices has at most 255


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and all that is needed to use it.

    Attributes:
        checkpoint: file that it was loaded from.
        folder: run folder; for a checkpoint outside of one, the folder of the file.
        model: network, in evaluation mode.
        config: resolved config of the run.
        classes: class names, in the order of the mask values.
        colors: one (red, green, blue) in 0..255 per class.
        intensity: normalization of image values to network input.
        task: task of the training data: classes, instances or overlapping.
        threshold: probability in 0..1 above which a pixel is class 1 of two, or has a label.
        split_neck_px: px by which objects are split at necks, chosen on validation; None: connected regions.
        border: px that each of two touching objects gave up in the masks that it learned.
        seen: names of the images that any member of an ensemble was trained on; empty for a single run.
        promise: bound that the threshold keeps on average; None: it was not chosen for one.
        quality: what scores of images without truth need; None: unknown.
    """

    checkpoint: Path
    folder: Path
    model: Network
    config: dict[str, Any]
    classes: list[str]
    colors: list[tuple[int, int, int]]
    intensity: Normalization
    task: Task = "classes"
    threshold: float = 0.5
    split_neck_px: float | None = None
    border: int = 0
    seen: frozenset[str] = frozenset()
    promise: RiskPromise | None = None
    quality: QualityRecord | None = None

    @property
    def overlapping(self) -> bool:
        """True if a pixel may have several classes."""
        return self.task == "overlapping"


def default_output(run: LoadedRun, name: str) -> Path:
    """Return the file or folder inside of a run that a command writes where ``output`` is null.

    Raises:
        UserError: if the run is a network of the package, where nothing is written.
    """
    if run.folder == pretrained.FOLDER:
        raise UserError(
            f"output is not set: {run.checkpoint.stem} is a network of the package, and nothing is written there; "
            "give output=..."
        )
    return run.folder / name


def threshold(run: LoadedRun, asked: float | None) -> float:
    """Return the given threshold, or that of the run.

    Args:
        run: run that predicts.
        asked: probability in (0, 1); None: the run's own threshold.

    Raises:
        RunError: if ``asked`` is out of range, or the run has three or more exclusive classes.
    """
    if asked is None:
        return run.threshold
    if not isinstance(asked, int | float) or not 0 < asked < 1:
        raise RunError(f"threshold={asked}: a number between 0 and 1 is needed, or null")
    if len(run.classes) != 2 and not run.overlapping:
        raise RunError(
            f"threshold={asked}: the run has {len(run.classes)} classes, and a pixel gets the most "
            "probable one; only two classes or overlapping ones have a threshold"
        )
    return float(asked)


def log_promise(run: LoadedRun, cfg: DictConfig) -> None:
    """Log the bound that a run's own threshold keeps, if it is used, and where the bound does not hold.

    Args:
        run: that predicts.
        cfg: of seg.predict or seg.evaluate.
    """
    if run.promise is None or cfg.threshold is not None:
        return
    log.info(f"threshold  {run.threshold:g} of the run: {run.promise.describe(run.classes)}")
    if not has_plain_views(cfg) or cfg.precision not in (None, "float32"):
        log.info(
            "holds      not here: tta, scales, precision and model.depth change the probabilities"
        )
        return
    measured = "; measured for the network of each fold, not proven for their ensemble"
    log.info(
        "holds      on average for images drawn like these, not for each image, and not for other data"
        f"{measured if run.promise.calibrated_on == 'out-of-fold' else ''}"
    )


def has_plain_views(cfg: DictConfig) -> bool:
    """Return True if a command predicts each image once, as it is, with the run's own depth.

    Args:
        cfg: of seg.predict or seg.evaluate.
    """
    return cfg.tta == "none" and list(cfg.scales) == [1.0] and cfg.model.depth is None


def load_run(run: str | Path | None) -> LoadedRun:
    """Load a run from its folder or checkpoint file; the data set is not needed.

    Shapes are compared before memory for the network or its weights is allocated.

    Raises:
        RunError: if the file is no checkpoint of seg.train, is damaged, or would run code.
    """
    file = find_checkpoint(run)
    card, shapes = read_card(file)
    config = card["config"]
    model = build_network(config["model"], shapes, file, version_remark(card))
    weights = read_checkpoint(file)["state_dict"]
    check_finite(weights, file)
    model.load_state_dict(model_weights(weights))
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return LoadedRun(
        file, folder, model.eval(), config, list(card["classes"]), [tuple(c) for c in card["colors"]],
        Normalization(**card["intensity"]), card.get("task", "classes"), float(card.get("threshold", 0.5)),
        card.get("split_neck_px"), card.get("border", 0), promise=read_promise(card),
        quality=read_quality(card, len(card["classes"])),
    )  # fmt: skip


def read_card(file: Path) -> tuple[dict[str, Any], dict[str, DeclaredTensor]]:
    """Return the checked metadata of a checkpoint, and the declared tensors of its network by name.

    Raises:
        RunError: if it is no checkpoint of seg.train, is damaged, or its config names a class that is not allowed.
    """
    content = load_skeleton(file)
    try:
        card, weights = content["seg"], content["state_dict"]
        check_card(card)
        check_weights(weights)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DamagedCheckpoint(
            f"{file}: not a checkpoint of seg.train ({error_summary(error)})"
        ) from error
    check_plain(card["config"], file)
    config = card["config"] = upgrade_config(card["config"])
    try:
        for group, packages in (("model", NETWORK_PACKAGES), ("loss", ("seg.losses",))):
            check_targets(config[group], file, packages)
    except RunError as error:
        raise RunError(f"{error}{version_remark(card)}") from error
    try:
        check_network(card)
    except ValueError as error:
        raise RunError(f"{file}: {error}{version_remark(card)}") from error
    return card, model_weights(weights)


def model_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the network's weights from those of the task, without the prefix ``model.``."""
    return {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}


def build_network(
    node: dict[str, Any], shapes: dict[str, DeclaredTensor], file: Path, version: str
) -> Network:
    """Build the network of a config, after comparing the shapes of its tensors with those of a checkpoint.

    Args:
        node: the config's ``model``, with checked constructors.
        shapes: name -> tensor declared in the checkpoint.
        file: checkpoint, for messages.
        version: remark on the version that wrote the checkpoint, see ``written_by``.

    Raises:
        RunError: if a shape differs, or the constructor refuses an option.
    """
    node = without_pretrained_weights(node)
    try:
        # the meta device gives the shapes without memory
        check_call("model", node)
        try:
            with torch.device("meta"):
                planned = instantiate(node, _convert_="all")
        except InstantiationException as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            # some encoders of smp read a tensor's value in the constructor, which meta tensors lack
            check_option_sizes(node)
            planned = instantiate(node, _convert_="all")
        check_tensor_shapes({k: tuple(v.shape) for k, v in planned.state_dict().items()}, shapes)
        check_buffers(planned, shapes)
        return require_network(instantiate(node, _convert_="all"))
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        raise RunError(
            f"{file}: its weights do not fit {node['_target_']} of this version{version}: {error_summary(cause or error)}"
        ) from error


def check_option_sizes(node: Any) -> None:
    """Raise ValueError if an option is so large that building the network could exhaust the memory."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, int) and abs(value) > 1024:
            raise ValueError(f"an option is {value}; a checkpoint may have at most 1024")
        if isinstance(value, dict | list):
            if len(value) > 32:
                raise ValueError(
                    f"an option has {len(value)} parts; a checkpoint may have at most 32"
                )
            check_option_sizes(value)


def check_tensor_shapes(
    planned: dict[str, tuple[int, ...]], shapes: dict[str, DeclaredTensor]
) -> None:
    """Raise ValueError if names or shapes of a network's tensors differ from those of a checkpoint."""
    for name in (*planned, *shapes):
        needed = planned.get(name)
        declared = shapes[name].shape if name in shapes else None
        if needed != declared:
            raise ValueError(
                f"{name[:100]} has the shape {declared} in the file and {needed} in the network; None: it is missing"
            )


def check_buffers(planned: nn.Module, shapes: dict[str, DeclaredTensor]) -> None:
    """Raise ValueError if the buffers that a checkpoint does not hold are larger than its weights + 64 MiB."""
    unsaved = sum(t.nbytes for name, t in planned.named_buffers() if name not in shapes)
    if unsaved > sum(tensor.size for tensor in shapes.values()) + 64 * MIB:
        raise ValueError(f"the network has {unsaved} bytes of buffers that are not in the file")


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_card(card: dict[str, Any]) -> None:
    """Raise LookupError, TypeError or ValueError if a checkpoint's metadata is incomplete or of wrong types."""
    classes, colors, threshold = card["classes"], card["colors"], card.get("threshold", 0.5)
    task, config, intensity = card.get("task", "classes"), card["config"], card["intensity"]
    if not is_number(threshold) or not 0 < threshold < 1:
        raise ValueError(f"its threshold is {threshold!s:.40}")
    if (promise := read_promise(card)) is not None and len(classes) != 2:
        raise ValueError(f"its promise about {promise.risk} pixels is of two classes")
    read_quality(card, len(classes))
    neck, border = card.get("split_neck_px"), card.get("border", 0)
    if neck is not None and (not is_number(neck) or not 0 < neck < math.inf):
        raise ValueError(f"its split_neck_px is {neck!s:.40}")
    if type(border) is not int or not 0 <= border <= MAX_BORDER_PX:
        raise ValueError(f"its border is {border!s:.40}")
    check_class_names(classes)
    levels = range(256)
    if len(colors) != len(classes) or not all(
        len(color) == 3 and all(type(v) is int and v in levels for v in color) for color in colors
    ):
        raise ValueError("its colors are not three numbers from 0 to 255 per class")
    if task not in get_args(Task):
        raise ValueError(f"its task is {task!r:.40}")
    if not isinstance(config, dict) or type(intensity) is not dict:
        raise ValueError("its config or its intensity is not a group of options")
    if not all(isinstance(config[group], dict) for group in ("model", "loss")):
        raise ValueError("its model or its loss is not a group of options")
    if not all(isinstance(config.get(group, {}), dict) for group in ("data", "trainer", "loader")):
        raise ValueError("its data, trainer or loader is not a group of options")
    check_intensity(**intensity)


def check_network(card: dict[str, Any]) -> None:
    """Raise ValueError unless a checkpoint's network fits its number of channels and classes."""
    classes, channels = card["classes"], len(card["intensity"]["mean"])
    overlapping = card.get("task") == "overlapping"
    channels_in, logits = (
        card["config"]["model"].get(name) for name in ("in_channels", "num_classes")
    )
    if type(logits) is not int or logits not in {
        num_logits(len(classes), count, overlapping) for count in (1, 2)
    }:
        raise ValueError(
            f"its network gives {logits!s:.40} logits, and it has {len(classes)} classes"
        )
    if type(channels_in) is not int or channels_in != channels:
        raise ValueError(
            f"its network takes {channels_in!s:.40} channels, and its intensity has {channels}"
        )


def check_class_names(classes: list[Any]) -> None:
    """Raise ValueError unless these are 1 to 1000 distinct names."""
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    if not 1 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise ValueError(
            f"its classes are {len(classes)} names; 1 to {MAX_CLASSES} distinct names are needed"
        )
    if not all(map(is_unicode, classes)):
        raise ValueError("a class name is not valid Unicode")


def check_intensity(
    low: Any,
    high: Any,
    mean: Any,
    std: Any,
    clip: Any = False,
    dtype: Any = None,
    value_range: Any = None,
    nodata: Any = None,
    neighbours: Any = 0,
) -> None:
    """Raise ValueError unless these are the fields of an Intensity."""
    lists = (mean, std)
    if not all(type(part) is list and all(is_number(v) for v in part) for part in lists):
        raise ValueError("its intensity needs mean and std as lists of numbers")
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError("its intensity needs a mean and a std above 0 per channel")
    if not is_number(low) or not is_number(high) or type(clip) is not bool:
        raise ValueError("its intensity needs numbers low and high, and clip true or false")
    if dtype not in (None, "uint8", "uint16", "float32"):
        raise ValueError("its intensity needs a dtype of uint8, uint16 or float32")
    if value_range is not None and not (
        type(value_range) is list and len(value_range) == 2 and all(map(is_number, value_range))
    ):
        raise ValueError("its intensity needs a value_range of two numbers")
    if nodata is not None and not (type(nodata) is list and all(type(v) is float for v in nodata)):
        raise ValueError("its intensity needs nodata as a list of floats")
    if type(neighbours) is not int or not 0 <= neighbours <= MAX_NEIGHBOURS:
        raise ValueError(f"its intensity has {neighbours!s:.40} neighbours")
    if len(mean) % (2 * neighbours + 1):
        raise ValueError(f"its intensity has {len(mean)} channels for {neighbours} neighbours")


def check_weights(weights: Any) -> None:
    """Raise ValueError unless these are named tensors."""
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and type(tensor) is DeclaredTensor for name, tensor in weights.items()
    ):
        raise ValueError("its weights are not named tensors")


def without_pretrained_weights(node: dict[str, Any]) -> dict[str, Any]:
    """Return a network's config without pretrained encoder weights, which the checkpoint replaces."""
    plain = {
        k: without_pretrained_weights(v) if isinstance(v, dict) else v for k, v in node.items()
    }
    theirs = str(node.get("_target_")).startswith("segmentation_models_pytorch.")
    return plain | ({"encoder_weights": None} if theirs else {})  # imagenet is its default
