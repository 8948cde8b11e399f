"""The run folder: made, written, and read back; a checkpoint is loaded without running its code.

config.yaml     all that was chosen, resolved
run.json        versions, command, commit, hardware, times, data, final metrics
metrics.csv     every measurement
checkpoints/    best.ckpt and last.ckpt, each enough by itself
panels/         pictures: image | truth | prediction | error
images.csv      pixels right, wrong and missed of each image and class (seg.kept)
predictions/    small pictures of some images: image, truth, prediction
log.txt         what the terminal showed, and the libraries' warnings
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from filelock import Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from seg import __version__, files
from seg.archive import Declared, Refused, read_skeleton
from seg.command_line import quote_shell, render_option
from seg.console import first_process
from seg.data.intensity import Intensity
from seg.data.sources import Task
from seg.files import MIB, UnsafePath, read_text
from seg.limits import is_number
from seg.logits import num_logits
from seg.models.imagenet import load_published
from seg.options import check_call
from seg.trust import (
    NETWORKS,
    RECORD_LIMIT,
    RunError,
    check_plain,
    check_targets,
    is_text,
    json_value,
)

FORMAT = 1  # of checkpoints; a later version counts up where an earlier one would read them wrongly
CLASSES = 1000  # of a run; a mask of one class a pixel has at most 255
CROSSVAL = "crossval.json"  # what seg.crossval leaves in the folder of its runs


class DamagedCheckpoint(RunError):
    """A checkpoint that can't be read, or isn't ours."""


DAMAGED = (
    DamagedCheckpoint,
    LookupError,
    TypeError,
)  # raised as a checkpoint is read, and looked into


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


@rank_zero_only
def write_json(file: Path, content: dict, below: Path | None = None) -> None:
    """Write a file of JSON, whole or not at all; nan, which JSON hasn't, becomes null.

    Args:
        file: that is written or replaced.
        content: plain values.
        below: folder that the user named; None: that of ``file``.
    """
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
    files.write_text(file, f"{text}\n", below or file.parent)


def read_json(file: Path, limit: int = RECORD_LIMIT) -> dict[str, Any]:
    """Return what ``write_json`` wrote.

    Args:
        file: run.json, sweep.json and the like.
        limit: largest size in bytes.

    Raises:
        RunError: if it is not there, or was damaged since.
    """
    try:
        content = json_value(read_text(file, limit))
    except UnsafePath:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"{file}: can't be read ({reason})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not written by seg")
    return content


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(below) for below in value]
    return None if value != value else value


def encodable(value: Any) -> Any:
    """Return plain values with escapes in texts that YAML cannot hold, such as bytes of a folder's name."""
    if isinstance(value, dict):
        return {key: encodable(below) for key, below in value.items()}
    if isinstance(value, list):
        return [encodable(below) for below in value]
    return files.encodable(value) if isinstance(value, str) else value


@rank_zero_only
def write_config(file: Path, config: dict) -> None:
    text = yaml.safe_dump(encodable(config), sort_keys=False, allow_unicode=True)
    files.write_text(file, text, file.parent)


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


def load(run: str | Path | None) -> LoadedRun:
    """Return a run, read back from its folder or checkpoint file; neither code nor data set is needed.

    Shapes are compared before the network, or a weight, takes memory.

    Raises:
        RunError: if the file is no checkpoint of ours, is damaged, or would run code.
    """
    file = find_checkpoint(run)
    card, shapes = read_card(file)
    config = card["config"]
    model = build_network(config["model"], shapes, file, written_by(card))
    weights = read_checkpoint(file)["state_dict"]
    check_finite(weights, file)
    model.load_state_dict(model_weights(weights))
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return LoadedRun(
        file, folder, model.eval(), config, list(card["classes"]), [tuple(c) for c in card["colors"]],
        Intensity(**card["intensity"]), card.get("task", "classes"), float(card.get("threshold", 0.5)),
    )  # fmt: skip


def read_card(file: Path) -> tuple[dict[str, Any], dict[str, Declared]]:
    """Return what a checkpoint says of its run, checked, and the declared tensors of its network by their names.

    Raises:
        RunError: if it is no checkpoint of ours, is damaged, or its config names what isn't honoured.
    """
    content = skeleton_of(file)
    try:
        card, weights = content["seg"], content["state_dict"]
        check_card(card)
        check_weights(weights)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DamagedCheckpoint(
            f"{file}: not a checkpoint of seg.train ({explain(error)})"
        ) from error
    config = card["config"]
    check_plain(config, file)
    try:
        for group, packages in (("model", NETWORKS), ("loss", ("seg.losses",))):
            check_targets(config[group], file, packages)
    except RunError as error:
        raise RunError(f"{error}{written_by(card)}") from error
    try:
        check_network(card)
    except ValueError as error:
        raise RunError(f"{file}: {error}{written_by(card)}") from error
    return card, model_weights(weights)


def model_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the network's part of a task's weights, by the names that it gives them."""
    return {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}


def build_network(
    node: dict[str, Any], shapes: dict[str, Declared], file: Path, version: str
) -> nn.Module:
    """Return the network of a config, whose tensors have these shapes; it is not built if they differ.

    Args:
        node: of the config, its constructors checked.
        shapes: of a checkpoint's tensors by their names.
        file: the checkpoint.
        version: which version wrote it, in words, if it was another one.

    Raises:
        RunError: if they differ, or the constructor refuses an option.
    """
    node = without_weights(node)
    try:
        check_call("model", node, {}, {})
        try:
            with torch.device("meta"):
                planned = instantiate(node, _convert_="all")
        except InstantiationException as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            # some of smp's encoders read a number as they are built, which the meta device has not
            check_small(node)
            planned = instantiate(node, _convert_="all")
        check_shapes({k: tuple(v.shape) for k, v in planned.state_dict().items()}, shapes)
        check_buffers(planned, shapes)
        return instantiate(node, _convert_="all")
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        raise RunError(
            f"{file}: its weights don't fit {node['_target_']} of this version{version}: {explain(cause or error)}"
        ) from error


def check_small(node: Any) -> None:
    """Raise ValueError if an option is a number by which a network could be too large to be built unseen."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, int) and abs(value) > 1024:
            raise ValueError(f"an option of {value}; at most 1024 is taken from a checkpoint")
        if isinstance(value, dict | list):
            if len(value) > 32:
                raise ValueError(
                    f"an option of {len(value)} parts; at most 32 are taken from a checkpoint"
                )
            check_small(value)


def check_shapes(planned: dict[str, tuple[int, ...]], shapes: dict[str, Declared]) -> None:
    """Raise ValueError unless a network's tensors are those of a checkpoint."""
    for name in (*planned, *shapes):
        wanted = planned.get(name)
        found = shapes[name].shape if name in shapes else None
        if wanted != found:
            raise ValueError(
                f"{name[:100]} has the shape {found} in the file and {wanted} in the network; None: it isn't there"
            )


def check_buffers(planned: nn.Module, shapes: dict[str, Declared]) -> None:
    """Raise ValueError if what a network has beside its weights is larger than they are."""
    beside = sum(t.nbytes for name, t in planned.named_buffers() if name not in shapes)
    if beside > sum(tensor.size for tensor in shapes.values()) + 64 * MIB:
        raise ValueError(f"the network has {beside} bytes beside its weights")


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


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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


def check_card(card: dict[str, Any]) -> None:
    """Raise LookupError, TypeError or ValueError unless a checkpoint's facts are what each command takes them for."""
    classes, colors, threshold = card["classes"], card["colors"], card.get("threshold", 0.5)
    task, config, intensity = card.get("task", "classes"), card["config"], card["intensity"]
    if not is_number(threshold) or not 0 < threshold < 1:
        raise ValueError(f"its threshold is {threshold!s:.40}")
    check_names(classes)
    levels = range(256)
    if len(colors) != len(classes) or not all(
        len(color) == 3 and all(type(v) is int and v in levels for v in color) for color in colors
    ):
        raise ValueError("its colors aren't three numbers from 0 to 255 a class")
    if task not in get_args(Task):
        raise ValueError(f"its task is {task!r:.40}")
    if not isinstance(config, dict) or type(intensity) is not dict:
        raise ValueError("its config or its intensity is no group")
    if not all(isinstance(config[group], dict) for group in ("model", "loss")):
        raise ValueError("its model or its loss is no group")
    if not all(isinstance(config.get(group, {}), dict) for group in ("data", "trainer", "loader")):
        raise ValueError("its data, trainer or loader is no group")
    check_intensity(**intensity)


def check_network(card: dict[str, Any]) -> None:
    """Raise ValueError unless a checkpoint's network takes its channels, and gives the logits of its classes."""
    classes, channels = card["classes"], len(card["intensity"]["mean"])
    overlapping = card.get("task") == "overlapping"
    takes, logits = (card["config"]["model"].get(name) for name in ("in_channels", "num_classes"))
    if type(logits) is not int or logits not in {
        num_logits(len(classes), count, overlapping) for count in (1, 2)
    }:
        raise ValueError(
            f"its network gives {logits!s:.40} logits, and it has {len(classes)} classes"
        )
    if type(takes) is not int or takes != channels:
        raise ValueError(
            f"its network takes {takes!s:.40} channels, and its intensity has {channels}"
        )


def check_names(classes: list[Any]) -> None:
    """Raise ValueError unless these are names of classes."""
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no names")
    if not 1 <= len(classes) <= CLASSES or len(set(classes)) < len(classes):
        raise ValueError(
            f"its classes are {len(classes)} names; 1 to {CLASSES} are needed, none twice"
        )
    if not all(map(is_text, classes)):
        raise ValueError("a class's name is no text")


def check_intensity(low: Any, high: Any, mean: Any, std: Any, clip: Any = False) -> None:
    """Raise ValueError unless these are the fields of an Intensity."""
    lists = (mean, std)
    if not all(type(part) is list and all(is_number(v) for v in part) for part in lists):
        raise ValueError("its intensity's mean and std aren't lists of numbers")
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(
            "its intensity's mean and std aren't a number a channel, the latter above 0"
        )
    if not is_number(low) or not is_number(high) or type(clip) is not bool:
        raise ValueError("its intensity's low, high or clip is none")


def check_weights(weights: Any) -> None:
    """Raise ValueError unless these are named tensors."""
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and type(tensor) is Declared for name, tensor in weights.items()
    ):
        raise ValueError("its weights aren't named tensors")


def write_checkpoint(file: Path, content: dict[str, Any], below: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all, also when the machine loses its power; see ``write_json``."""
    with files.open_binary(file, below or file.parent) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # of its own writer, which hides what the disk said
            raise error.__context__ or error from None
        stream.flush()
        os.fsync(stream.fileno())


def without_weights(node: dict[str, Any]) -> dict[str, Any]:
    """A network's config without the download of weights that the checkpoint replaces anyway."""
    plain = {k: without_weights(v) if isinstance(v, dict) else v for k, v in node.items()}
    theirs = str(node.get("_target_")).startswith("segmentation_models_pytorch.")
    return plain | ({"encoder_weights": None} if theirs else {})  # imagenet is its default


def start_from(model: nn.Module, init: str) -> str:
    """Gives a network its first weights, and says which.

    Args:
        model: changed in place.
        init: imagenet, or a run folder or checkpoint: what has the same name and shape is taken.

    Raises:
        RunError: when there are no such weights, or most of the network would get none.
    """
    if init == "imagenet":
        try:
            return f"the encoder's weights from {load_published(model)}"
        except ValueError as error:
            raise RunError(f"init=imagenet: {error}") from error
    if not isinstance(init, str):
        raise RunError(f"init={init}: imagenet, a run folder or a checkpoint file is needed")
    try:
        file = find_checkpoint(init)
    except RunError as error:
        raise RunError(str(error).replace("run=", "init=", 1)) from error
    weights = load(file).model.state_dict()
    own = model.state_dict()
    same = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if 2 * len(same) < len(own):
        raise RunError(
            f"init={init}: only {len(same)} of this network's {len(own)} tensors are in {file} with "
            "the same name and shape; take a run of the same model and width"
        )
    model.load_state_dict(same, strict=False)
    fresh = sorted({".".join(name.split(".")[:2]) for name in own if name not in same})
    rest = f"; not in it, or of another shape: {', '.join(fresh)}" if fresh else ""
    return f"{len(same)} of {len(own)} tensors from {file}{rest}"
