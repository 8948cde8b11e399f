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
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from seg import __version__
from seg.command_line import quote_shell, render_option
from seg.console import first_process
from seg.data.intensity import Intensity
from seg.data.sources import Task
from seg.models.imagenet import load_published
from seg.trust import RunError, check_plain, check_targets

FORMAT = 1  # of checkpoints; a later version counts up where an earlier one would read them wrongly
DAMAGED = (  # what a checkpoint that is cut or isn't ours raises as it is read, and looked into
    RuntimeError, EOFError, OSError, LookupError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile
)  # fmt: skip
CROSSVAL = "crossval.json"  # what seg.crossval leaves in the folder of its runs


class Busy(RunError):
    """Another process is at work in a folder."""


def as_folder(name: str) -> str:
    """A name of a folder that needs no quotes on a command line."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def create_folder(outputs: Path, name: str) -> Path:
    """A new folder ``outputs/TIME-name`` that no other process got."""
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        return numbered_folder(outputs, name)
    except OSError as error:
        raise RunError(f"outputs={outputs}: can't be written ({error.strerror})") from error


def numbered_folder(outputs: Path, name: str) -> Path:
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{as_folder(name)}"
    for attempt in range(1000):
        folder = outputs / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{outputs}: a thousand runs of this second are there already")


def relative(path: Path) -> Path:
    """As seen from here, if it lies below."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


@rank_zero_only
def lay_out(folder: Path, anew: bool) -> None:
    """Makes the folders in a run's; anew: what is there goes, but for the lock that this process holds."""
    for entry in folder.iterdir() if anew else ():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for part in ("checkpoints", "panels"):
        (folder / part).mkdir(exist_ok=True)


@rank_zero_only
def point_latest(folder: Path) -> None:
    """Makes ``latest`` beside a run's folder point to it."""
    link, aside = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return  # a user's own folder of that name
    try:
        aside.symlink_to(folder.name)
        os.replace(aside, link)
    except OSError:  # a file system without links: a convenience less
        aside.unlink(missing_ok=True)


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
        RunError: when the folder can't be written.
    """
    place = folder / inside
    lock = FileLock(place / ".lock")
    if not first_process():
        yield place
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def whole(file: Path) -> Generator[Path]:
    """A path to write what becomes ``file`` at the end: whole, or not at all.

    Raises:
        OSError: naming ``file``, as when its disk is full.
    """
    aside = file.with_name(f".{file.name}")
    try:
        yield aside
        os.replace(aside, file)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(file)  # a write that fails doesn't say where
        raise
    finally:
        aside.unlink(missing_ok=True)


@rank_zero_only
def write_json(file: Path, content: dict) -> None:
    """Whole or not at all; nan, which JSON hasn't, becomes null."""
    with whole(file) as aside:
        text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
        aside.write_text(f"{text}\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """What ``write_json`` wrote.

    Raises:
        RunError: when it isn't there, or was damaged since.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can't be read ({error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not written by seg")
    return content


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(below) for below in value]
    return None if value != value else value


@rank_zero_only
def write_config(file: Path, config: dict) -> None:
    with whole(file) as aside:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        aside.write_text(text, encoding="utf-8")


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
    check_finite(weights, file)
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return LoadedRun(
        file, folder, model.eval(), config, classes, colors, intensity, task, threshold
    )


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


def write_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, also when the machine loses its power."""
    with whole(file) as aside, aside.open("wb") as stream:
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
