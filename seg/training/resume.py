"""A run that was stopped goes on: ``python -m seg.train resume=RUN``, in its folder and by its config."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from seg import files
from seg.cli.compose import checked, one_line, plain
from seg.cli.conf_files import CONF
from seg.cli.validation import check_level, is_number
from seg.errors import RunError, UserError
from seg.files import read_text
from seg.runs import reader
from seg.runs.checkpoint import DAMAGED, check_finite, nearby, read_checkpoint
from seg.runs.migrations import upgrade_targets
from seg.runs.record import RunRecord, read_record
from seg.runs.run_info import Asked
from seg.runs.safe_loading import CONFIG_LIMIT, check_targets, read_yaml

log = logging.getLogger("seg")
TOLD_ANEW = ("status", "error")  # of a run's record, when it goes on
ANEW = ("versions", "git", "source", "hardware", "environment")  # noted again, where they differ
LOGGERS = ("seg.training.loggers",)
# folders of a run in which training writes
WRITTEN = ("checkpoints", "panels", "predictions", "predictions/val", "predictions/test")
CHECKPOINTS = ("last.ckpt", "best.ckpt")


def resumed(cfg: DictConfig) -> tuple[DictConfig, Asked]:
    """The config of the run that is taken up, and what was asked of it.

    Raises:
        UserError: when another option is given.
        RunError: when there is no such run, it is finished, or can't be taken up.
    """
    for word in HydraConfig.get().overrides.task if HydraConfig.initialized() else []:
        if not word.startswith("resume="):
            raise UserError(
                f"{word}: resume goes on with the run as it was begun; leave the word out, or give init=RUN to "
                "begin another run with its weights"
            )
    if not isinstance(cfg.resume, str) or not cfg.resume:
        raise RunError(f"resume={cfg.resume}: a run folder is needed, resume=outputs/latest")
    folder = Path(cfg.resume)
    if (folder / "sweep.json").is_file():
        raise RunError(
            f"resume={folder}: a sweep, which goes on by its own command; type that again"
        )
    files.check_links(folder / "run.json", folder)
    if not (folder / "run.json").is_file():
        raise RunError(f"resume={folder}: no run folder{nearby(folder)}")
    record = read_record(folder / "run.json")
    if record.status == "finished":
        raise RunError(
            f"resume={folder}: the run is finished; init={folder} begins another with its weights"
        )
    return saved_config(folder), as_asked(folder, record)


def as_asked(folder: Path, record: RunRecord) -> Asked:
    """What was asked of a run that goes on from its last checkpoint."""
    checkpoint = newest(folder)
    if checkpoint is None:
        raise RunError(f"resume={folder}: no checkpoints/last.ckpt yet; begin the run anew")
    return Asked(
        folder.name if record.name is None else record.name,
        record.overrides,
        record.choices,
        record.group,
        record.job,
        folder.resolve(),
        checkpoint,
    )


def newest(folder: Path) -> Path | None:
    """The checkpoint from which a run goes on: of its last and its best that of most steps, if whole.

    The best is the later one where a process died between the two.

    Raises:
        RunError: when there are some, and all are damaged, or the one taken holds nan or inf.
    """
    whole, damaged = {}, None
    for file in (Path(os.path.realpath(found)) for found in checkpoints_there(folder)):
        try:
            whole[file] = check_state(read_checkpoint(file))
        except (*DAMAGED, AttributeError) as error:
            damaged = RunError(
                f"{file}: damaged ({one_line(error).removeprefix(f'{file}: ')[:200]})"
            )
    taken = max(whole, key=lambda file: whole[file], default=None)
    if damaged is not None:
        if taken is None:
            raise damaged
        log.warning(f"{damaged}; {taken.name} is taken")
    if taken is not None:
        check_finite(read_checkpoint(taken)["state_dict"], taken)
    return taken


def check_state(content: dict[str, Any]) -> int:
    """Return the steps that a checkpoint says are done, once its state of the training is of the right kinds.

    Lightning and PyTorch take it as it is, and would fail at whatever step comes to use it.

    Raises:
        LookupError: if it does not say.
        TypeError: if a part is of another kind.
    """
    steps = content["global_step"]
    if not is_count(steps):
        raise TypeError(f"its global_step is {steps!s:.40}")
    check_leaves(content.get("loops", {}), is_count, "loops")
    check_leaves(
        content.get("lr_schedulers", []),
        lambda v: v is None or is_number(v) or isinstance(v, bool),
        "lr_schedulers",
    )
    for state in content.get("callbacks", {}).values():
        for name, value in state.items():
            if name in CALLBACKS and not CALLBACKS[name](value):
                raise TypeError(f"{name} of a callback is {value!s:.40}")
    return steps


def check_leaves(node: Any, holds: Callable[[Any], bool], what: str) -> None:
    """Raise TypeError unless each value of a tree of dicts and lists is of a kind."""
    if isinstance(node, dict | list):
        for below in node.values() if isinstance(node, dict) else node:
            check_leaves(below, holds, what)
    elif not holds(node):
        raise TypeError(f"a value of {what} is {node!s:.40}")


def is_count(value: Any) -> bool:
    """Return whether a value is a number of steps, epochs or the like; True and False are 1 and 0."""
    return isinstance(value, int) and 0 <= value < 2**53


def is_scalar(value: Any) -> bool:
    """Return whether a value is None, or a tensor of one number."""
    return value is None or (isinstance(value, Tensor) and value.shape == ())


def is_name(value: Any) -> bool:
    """Return whether a value is None, or text."""
    return value is None or isinstance(value, str)


# what the states of callbacks hold, by the names that ModelCheckpoint, EarlyStopping and Lines give them
CALLBACKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("best_model_score", "current_score", "kth_value", "best_score"), is_scalar),
    **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("wait_count", "stopped_epoch", "patience"), is_count),
    "monitor": is_name,
    "seconds": lambda v: is_number(v) and v >= 0,
    "best_k_models": lambda v: isinstance(v, dict) and all(isinstance(k, str) and is_scalar(s) for k, s in v.items()),
}  # fmt: skip


def checkpoints_there(folder: Path) -> list[Path]:
    """Return the checkpoints of a run's folder from which it can be resumed."""
    return [file for name in CHECKPOINTS if (file := folder / "checkpoints" / name).is_file()]


@rank_zero_only
def make_last(folder: Path, checkpoint: Path | None) -> None:
    """Put the checkpoint from which a run is resumed in the place of its last one, if that is another."""
    last = folder / "checkpoints/last.ckpt"
    if checkpoint is not None and checkpoint.name != last.name:
        with files.whole(last, folder) as aside:
            shutil.copyfile(checkpoint, aside)


@rank_zero_only
def clear(folder: Path) -> None:
    """Removes what a process that was killed left half written in a run's folder."""
    for place in (folder, *(folder / part for part in WRITTEN)):
        files.remove_unfinished(place)


def saved_config(folder: Path) -> DictConfig:
    """A run's config, its loggers included.

    Raises:
        RunError: when it names a constructor that isn't honoured.
    """
    file = folder / "config.yaml"
    check_links(folder)
    config = reader.read_config(file)
    loggers = upgrade_targets(read_yaml(read_text(file, CONFIG_LIMIT))).get("logger", {})
    if not isinstance(loggers, dict) or not all(
        isinstance(node, dict) for node in loggers.values()
    ):
        raise RunError(f"{file}: logger is no group of loggers")
    check_targets(loggers, file, LOGGERS)
    later = plain(checked("train", []))  # of an older run's options those that it hadn't
    whole = later | config | {"logger": loggers, "resume": None}
    for group in ("loader", "trainer"):
        whole[group] = later[group] | whole[group]
    check_options(whole, later, file)
    return OmegaConf.create(whole)


def check_options(config: dict[str, Any], known: dict[str, Any], file: Path) -> None:
    """Raise RunError for an option of a saved config that this version does not take, or that is out of its range.

    Args:
        config: whole.
        known: as composed by this version.
        file: that it came from.
    """
    own = read_yaml(read_text(CONF / "train.yaml", CONFIG_LIMIT))
    groups = {name: config[name] for name in (*reader.HONOURED, "trainer", "logger")}
    try:
        check_level({name: config[name] for name in known}, known | groups, own, ())
    except UserError as error:
        raise RunError(f"{file}: {error}") from error


def check_links(folder: Path) -> None:
    """Raise UnsafePath if training might write through a link in a run's folder."""
    for entry in folder.iterdir():
        files.check_links(entry, folder)
    for part in WRITTEN:
        files.check_tree(folder / part, folder)
    files.check_tree(folder, folder, inner=True)  # loggers make links of their own, inside


def continued(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that goes on: as it began, and where it was taken up.

    Raises:
        RunError: when its images, or their division, aren't those that it began with.
    """
    old = read_record(folder / "run.json").content()
    for name, what in (("split_hash", "splits"), ("data", "images or masks")):
        if name in old and old[name] != now[name]:
            raise RunError(
                f"{folder}: the {what} of its data have changed since it was begun, and validation images might "
                f"have become training ones; give init={folder} to begin another run with its weights"
            )
    fresh = {name: now[name] for name in ANEW if now.get(name) != old.get(name)}
    command = [Path(sys.executable).name, *sys.orig_argv[1:]]
    entry = {"command": command, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | fresh
    kept = {name: value for name, value in old.items() if name not in TOLD_ANEW}
    return kept | {"resumed": [*old.get("resumed", []), entry]}
