"""Resume a stopped run in its folder, with its config: ``python -m seg.train resume=RUN``."""

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
from seg.cli.compose import compose_checked, one_line, plain_config
from seg.cli.conf_files import CONF
from seg.cli.validation import check_option_group, is_number
from seg.errors import RunError, UserError
from seg.files import read_text
from seg.runs import reader
from seg.runs.checkpoint import (
    CHECKPOINT_FILES,
    DAMAGE_ERRORS,
    check_finite,
    has_training_state,
    read_checkpoint,
    suggest_run,
)
from seg.runs.migrations import upgrade_config
from seg.runs.record import RunRecord, read_record
from seg.runs.run_info import RunInfo
from seg.runs.safe_loading import CONFIG_LIMIT, check_targets, read_yaml

log = logging.getLogger("seg")
RESUME_RESETS = ("status", "error")  # fields of run.json that resuming resets
RERECORDED = (
    "versions",
    "git",
    "source",
    "hardware",
    "environment",
)  # recorded again if they differ
LOGGER_PACKAGES = ("seg.training.loggers",)
# folders of a run that training writes into
WRITTEN_FOLDERS = ("checkpoints", "panels", "predictions", "predictions/val", "predictions/test")
WRITTEN_SUFFIXES = (".yaml", ".json", ".csv", ".txt", ".ckpt", ".png", ".jpg", ".patch")


def load_stopped_run(cfg: DictConfig) -> tuple[DictConfig, RunInfo]:
    """Return the saved config and the facts of the run that ``cfg.resume`` names.

    Raises:
        UserError: if the command line gives another option.
        RunError: if there is no such run, it is finished, or it is damaged.
    """
    # No other option can change a run that is resumed.
    for word in HydraConfig.get().overrides.task if HydraConfig.initialized() else []:
        if not word.startswith("resume="):
            raise UserError(
                f"{word}: resume= continues a run with its saved config and allows no other option; leave it out, or "
                "give init=RUN to begin another run with its weights"
            )
    # The folder must hold an unfinished run.
    if not isinstance(cfg.resume, str) or not cfg.resume:
        raise RunError(f"resume={cfg.resume}: a run folder is needed, resume=outputs/latest")
    folder = Path(cfg.resume)
    if (folder / "sweep.json").is_file():
        raise RunError(f"resume={folder}: a sweep; repeat its own command to continue it")
    files.check_links(folder / "run.json", folder)
    if not (folder / "run.json").is_file():
        raise RunError(f"resume={folder}: no run folder{suggest_run(folder)}")
    record = read_record(folder / "run.json")
    if record.status == "finished":
        saved = [file for file in existing_checkpoints(folder) if has_training_state(file)]
        kept = "" if saved else " and kept its weights only (save_checkpoints=weights)"
        raise RunError(
            f"resume={folder}: the run is finished{kept}; init={folder} begins another with its weights"
        )
    return read_saved_config(folder), stopped_run_info(folder, record)


def stopped_run_info(folder: Path, record: RunRecord) -> RunInfo:
    """Return the facts of a run that is resumed from its newest checkpoint."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise RunError(f"resume={folder}: no checkpoints/last.ckpt yet; start the run again")
    return RunInfo(
        folder.name if record.name is None else record.name,
        record.overrides,
        record.choices,
        record.group,
        record.job,
        folder.resolve(),
        checkpoint,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the intact checkpoint with the most steps, of last.ckpt and best.ckpt; None if there is neither.

    The best one is newer if the process was killed between writing the two.

    Raises:
        RunError: if all of them are damaged, or the newest holds nan or inf.
    """
    # Read both, keep the weights of the one with the most steps, and note the damaged ones.
    latest, steps, weights, damaged = None, -1, {}, None
    for file in (Path(os.path.realpath(path)) for path in existing_checkpoints(folder)):
        try:
            content = read_checkpoint(file)
            if check_training_state(content) > steps:
                latest, steps, weights = file, content["global_step"], content["state_dict"]
        except (*DAMAGE_ERRORS, AttributeError) as error:
            damaged = RunError(
                f"{file}: damaged ({one_line(error).removeprefix(f'{file}: ')[:200]})"
            )
    if damaged is not None:
        if latest is None:
            raise damaged
        log.warning(f"{damaged}; resuming from {latest.name}")
    if latest is not None:
        check_finite(weights, latest)
    return latest


def check_training_state(content: dict[str, Any]) -> int:
    """Return the number of steps in a checkpoint, after checking the types in its training state.

    Lightning and PyTorch load the state unchecked, and would fail at the step that first uses it.

    Raises:
        LookupError: if the number of steps is missing.
        TypeError: if a part has another type.
    """
    steps = content["global_step"]
    if not is_count(steps):
        raise TypeError(f"its global_step is {steps!s:.40}")
    if not is_count(content.get("rows") or 0):
        raise TypeError(f"its rows is {content['rows']!s:.40}")
    check_leaves(content.get("loops", {}), is_count, "loops")
    check_leaves(
        content.get("lr_schedulers", []),
        lambda v: v is None or is_number(v) or isinstance(v, bool),
        "lr_schedulers",
    )
    for state in content.get("callbacks", {}).values():
        for name, value in state.items():
            if name in CALLBACK_STATE_TESTS and not CALLBACK_STATE_TESTS[name](value):
                raise TypeError(f"{name} of a callback is {value!s:.40}")
    return steps


def check_leaves(node: Any, holds: Callable[[Any], bool], what: str) -> None:
    """Raise TypeError unless each leaf of a tree of dicts and lists satisfies ``holds``.

    Args:
        node: the tree.
        holds: test of a leaf.
        what: name of the tree, for the message.
    """
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            check_leaves(child, holds, what)
    elif not holds(node):
        raise TypeError(f"a value of {what} is {node!s:.40}")


def is_count(value: Any) -> bool:
    """Return True for a count of steps, epochs or the like; True and False count as 1 and 0."""
    return isinstance(value, int) and 0 <= value < 2**53


def is_scalar_tensor(value: Any) -> bool:
    """Return True for None or a tensor of one number."""
    return value is None or (isinstance(value, Tensor) and value.shape == ())


def is_optional_text(value: Any) -> bool:
    """Return True for None or a string."""
    return value is None or isinstance(value, str)


# tests of the values in callbacks' states, by the keys of ModelCheckpoint, EarlyStopping and Lines
CALLBACK_STATE_TESTS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("best_model_score", "current_score", "kth_value", "best_score"), is_scalar_tensor),
    **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("wait_count", "stopped_epoch", "patience"), is_count),
    "monitor": is_optional_text,
    "seconds": lambda v: is_number(v) and v >= 0,
    "best_k_models": lambda v: isinstance(v, dict) and all(isinstance(k, str) and is_scalar_tensor(s) for k, s in v.items()),
}  # fmt: skip


def existing_checkpoints(folder: Path) -> list[Path]:
    """Return the existing checkpoints of a run that it can be resumed from."""
    return [file for name in CHECKPOINT_FILES if (file := folder / "checkpoints" / name).is_file()]


@rank_zero_only
def copy_to_last(folder: Path, checkpoint: Path | None) -> None:
    """Copy the checkpoint that a run is resumed from to last.ckpt, unless it is that one."""
    last = folder / "checkpoints/last.ckpt"
    if checkpoint is not None and checkpoint.name != last.name:
        with files.atomic_write(last, folder) as aside:
            shutil.copyfile(checkpoint, aside)


@rank_zero_only
def remove_unfinished_files(folder: Path) -> None:
    """Remove the partly written files that a killed process left in a run's folder."""
    for directory in (folder, *(folder / name for name in WRITTEN_FOLDERS)):
        files.remove_unfinished(directory)


def read_saved_config(folder: Path) -> DictConfig:
    """Read a run's config, loggers included; options newer than the run get today's defaults.

    Raises:
        RunError: if it names a constructor outside the allow-list, or an option out of its range.
    """
    # Read the config and, apart from it, the loggers, whose targets have an allow-list of their own.
    file = folder / "config.yaml"
    check_run_links(folder)
    check_files(folder)
    config = reader.read_untrusted_config(file)
    loggers = upgrade_config(read_yaml(read_text(file, CONFIG_LIMIT))).get("logger", {})
    if not isinstance(loggers, dict) or not all(
        isinstance(node, dict) for node in loggers.values()
    ):
        raise RunError(f"{file}: logger must be a mapping from names to loggers")
    check_targets(loggers, file, LOGGER_PACKAGES)
    # Add the options that an older run did not have yet.
    defaults = plain_config(compose_checked("train", []))
    whole = defaults | config | {"logger": loggers, "resume": None}
    for group in ("loader", "trainer"):
        whole[group] = defaults[group] | whole[group]
    check_saved_options(whole, defaults, file)
    return OmegaConf.create(whole)


def check_saved_options(config: dict[str, Any], known: dict[str, Any], file: Path) -> None:
    """Raise RunError for an option of a saved config that is unknown to this version, or out of its range.

    Args:
        config: saved, completed with defaults.
        known: composed by this version.
        file: the config came from, for the message.
    """
    own = read_yaml(read_text(CONF / "train.yaml", CONFIG_LIMIT))
    groups = {name: config[name] for name in (*reader.ALLOWED_TARGETS, "trainer", "logger")}
    try:
        check_option_group({name: config[name] for name in known}, known | groups, own, ())
    except UserError as error:
        raise RunError(f"{file}: {error}") from error


def check_run_links(folder: Path) -> None:
    """Raise UnsafePath if training could write through a link out of a run's folder."""
    for entry in folder.iterdir():
        files.check_links(entry, folder)
    for name in WRITTEN_FOLDERS:
        files.check_tree(folder / name, folder)
    files.check_tree(folder, folder, inner=True)  # loggers create links that stay inside


def check_files(folder: Path) -> None:
    """Raise RunError if a folder or the like stands where the run would write a file."""
    inner = [place for place in folder.glob("*/") if not place.is_symlink()]
    for place in (folder, *inner, *folder.glob("predictions/*/")):
        for file in place.iterdir():
            if file.suffix in WRITTEN_SUFFIXES and file.exists() and not file.is_file():
                raise RunError(f"{file}: not a regular file, where the run writes one; remove it")


def resumed_record(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of run.json of a resumed run: as it began, with an entry for this resumption.

    Args:
        folder: run folder.
        now: contents that a new run would have.

    Raises:
        RunError: if images, masks or splits have changed since the run began.
    """
    # The data must be the same, or validation images could have been trained on.
    old = read_record(folder / "run.json").content()
    for name, what in (("split_hash", "splits"), ("data", "images or masks")):
        if name in old and old[name] != now[name]:
            raise RunError(
                f"{folder}: the {what} of its data have changed since the run began, so that validation images may "
                f"have become training images; give init={folder} to begin another run with its weights"
            )
    # Record the command and what differs from the first start: code, versions, machine.
    changes = {name: now[name] for name in RERECORDED if now.get(name) != old.get(name)}
    command = [Path(sys.executable).name, *sys.orig_argv[1:]]
    entry = {"command": command, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | changes
    kept = {name: value for name, value in old.items() if name not in RESUME_RESETS}
    return kept | {"resumed": [*old.get("resumed", []), entry]}
