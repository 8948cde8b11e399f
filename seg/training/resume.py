"""Resume a stopped run in its folder, with its config, or make it longer.

``python -m seg.train resume=RUN`` resumes; ``resume=RUN trainer.max_epochs=40`` also makes a finished run longer.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from seg import files
from seg.cli.command_line import typed_command, typed_overrides
from seg.cli.compose import compose_checked, one_line, parse_overrides, plain_config
from seg.cli.conf_files import format_option_value
from seg.cli.validation import OptionChecker, is_number
from seg.display.console import rank_zero_only
from seg.errors import RunError, UserError
from seg.files import read_text
from seg.runs import reader
from seg.runs.checkpoint import (
    DAMAGE_ERRORS,
    check_finite,
    has_training_state,
    load_skeleton,
    read_checkpoint,
    suggest_run,
)
from seg.runs.folder import CHECKPOINT_FILES
from seg.runs.migrations import upgrade_config
from seg.runs.record import RunRecord, read_record
from seg.runs.run_info import RunInfo
from seg.runs.safe_loading import CONFIG_LIMIT, check_targets, read_yaml
from seg.training.schedules import Course, Schedule, Segment

log = logging.getLogger("seg")
RESULTS = ("steps", "minutes", "metrics")  # of the earlier end of a run that is made longer
# fields of run.json that resuming resets
RESUME_RESETS = ("status", "error", "threshold", "split_neck_px", "promise", "quality", *RESULTS)
END_OPTIONS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "patience")
UNLIMITED = (None, -1)  # values of these options that set no end
UNTIMED_STEPS = 1000  # planned for max_time until its first step is timed
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


def load_stopped_run(
    cfg: DictConfig, words: Sequence[str] | None = None
) -> tuple[DictConfig, RunInfo]:
    """Return the config and the facts of the run that ``cfg.resume`` names; options of its end may be changed.

    Args:
        cfg: composed from conf/train.yaml.
        words: command line; None: the one that Hydra parsed.

    Raises:
        UserError: if the command line gives another option, or an end that is not later.
        RunError: if there is no such run, it is finished and not made longer, or it is damaged.
    """
    # Only the end of a run that is resumed can be changed.
    if words is None:
        words = typed_overrides()
    given = {one.key_or_group: one.value() for one in parse_overrides(list(words))}
    given.pop("resume", None)
    for name, value in given.items():
        if name not in (*END_OPTIONS, "extend"):
            raise UserError(
                f"{name}={format_option_value(value)}: resume= continues a run with its saved config and allows no "
                f"other option than {', '.join(END_OPTIONS)} (each larger than it was) and extend; leave it out, or give "
                "init=RUN to begin another run with its weights"
            )
    if list(given) == ["extend"]:
        raise UserError(f"extend={given['extend']}: give a larger {', '.join(END_OPTIONS)} as well")
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
        saved = any(has_training_state(file) for file in existing_checkpoints(folder))
        kept = "" if saved else " and kept its weights only (save_checkpoints=weights)"
        longer = f", and a larger {', '.join(END_OPTIONS)} makes this one longer" if saved else ""
        if not given or not saved:
            raise RunError(
                f"resume={folder}: the run is finished{kept}; init={folder} begins another with its weights{longer}"
            )
    config, info = read_saved_config(folder), stopped_run_info(folder, record)
    return move_end(config, info, given) if given else (config, info)


def move_end(
    config: DictConfig, info: RunInfo, given: Mapping[str, Any]
) -> tuple[DictConfig, RunInfo]:
    """Return the config and the facts of a run that is made longer.

    Args:
        config: saved by the run; changed in place.
        info: facts of the run.
        given: some of ``END_OPTIONS`` with their new values, and optionally ``extend``.

    Raises:
        UserError: if the new end is not later.
    """
    changed = {}
    for name in (name for name in END_OPTIONS if name in given):
        before, now = OmegaConf.select(config, name), given[name]
        if before in UNLIMITED or not (
            now in UNLIMITED or option_amount(now) > option_amount(before)
        ):
            raise UserError(
                f"{name}={format_option_value(now)}: the run has {format_option_value(before)}; a run can only be made "
                f"longer{'' if before in UNLIMITED else ', give more'}"
            )
        changed[name] = [before, now]
        OmegaConf.update(config, name, now)
    config.extend = given.get("extend")
    check_used_up(config, info)
    words = [w for w in info.overrides if w.lstrip("+").partition("=")[0] not in given]
    words += [f"{name}={format_option_value(value)}" for name, value in given.items()]
    return config, replace(info, overrides=words, changed=changed)


def option_amount(value: int | str) -> int:
    """Return a number of epochs, steps or validations; of ``days:hours:minutes:seconds`` the seconds."""
    if isinstance(value, int):
        return value
    days, hours, minutes, seconds = map(int, value.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_used_up(config: DictConfig, info: RunInfo) -> None:
    """Raise UserError if patience or the time limit would end a longer run before its next step."""
    for state in load_skeleton(str(info.checkpoint))["callbacks"].values():
        waited, patience = state.get("wait_count", 0), config.patience
        if patience is not None and waited >= patience:
            raise UserError(
                f"patience={patience}: {waited} validations without a better val/dice ended the run; give a larger "
                "patience as well"
            )
        spent = state.get("time_elapsed", {}).get("train", 0)
        limit = config.trainer.max_time
        if limit is not None and spent >= option_amount(limit):
            raise UserError(
                f"trainer.max_time={limit}: the run has trained for {spent:.0f} s; give a larger trainer.max_time as well"
            )


def plan_course(config: DictConfig, info: RunInfo, schedule: Schedule, epoch_steps: int) -> Course:
    """Return the course of a run's learning rate: planned anew, continued, or of a run that is made longer.

    Args:
        config: of the run.
        info: facts of the run.
        schedule: of the learning rate.
        epoch_steps: optimiser steps of an epoch.

    Raises:
        RunError: if a longer run has no further step, or its schedule falls and ``extend`` is not given.
    """
    # The course so far: recorded in the checkpoint of a run with max_time, in run.json of others.
    recorded, timed = info.segments, config.trainer.get("max_time") is not None
    done, spent = 0, 0.0
    if info.checkpoint is not None and info.folder is not None:
        content = load_skeleton(info.checkpoint)
        timer = content.get("callbacks", {}).get("Timer", {})
        recorded = timer.get("segments") or read_record(info.folder / "run.json").lr_segments
        done, spent = content["global_step"], timer.get("time_elapsed", {}).get("train", 0.0)
    before = {name.removeprefix("trainer."): old for name, (old, _) in info.changed.items()}
    limit = planned_steps(config.trainer, epoch_steps)
    earlier = planned_steps({**config.trainer, **before}, epoch_steps)
    segments = [Segment(*cast(Any, segment)) for segment in recorded or []]
    if not segments or not (timed or segments[-1].end == earlier):
        segments = [Segment(0, UNTIMED_STEPS if earlier is None else earlier, 0.0)]
    course = Course(schedule, segments, limit)
    if not info.changed:
        return course
    # The run is made longer; time is converted to steps at its mean speed, until the speed is measured again.
    if limit is not None and limit <= done:
        raise RunError(
            f"{', '.join(info.changed)}: the run has done all {done} steps that trainer.max_epochs="
            f"{config.trainer.max_epochs} and trainer.max_steps={config.trainer.max_steps} allow; give more of these"
        )
    if list(info.changed) == ["patience"] or (not timed and limit == course.end):
        if config.extend is not None:
            raise RunError(
                f"extend={config.extend}: the planned number of steps stays {course.end}; leave it out"
            )
    elif timed:
        left = option_amount(config.trainer.max_time) - spent
        end = done + max(1, int(done * left / spent)) if spent else UNTIMED_STEPS
        course.lengthen(end if limit is None else min(end, limit), config.extend, done)
    else:
        assert limit is not None  # max_time alone can replace the other ends
        course.lengthen(limit, config.extend)
    return course


def planned_steps(trainer: Mapping[Any, Any], epoch_steps: int) -> int | None:
    """Return the number of steps at which ``max_epochs`` or ``max_steps`` ends a run, whichever comes first; None: neither."""
    epochs, steps = trainer["max_epochs"], trainer.get("max_steps", -1)
    ends = [] if epochs in UNLIMITED else [epoch_steps * max(epochs, 1)]
    return min(ends + ([] if steps in UNLIMITED else [steps]), default=None)


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


def is_course(value: Any) -> bool:
    """Return True for the segments of a course, as run.json holds them."""
    try:
        return RunRecord.check_segments(value) is not None
    except (ValueError, TypeError):
        return False


# tests of the values in callbacks' states, by the keys of ModelCheckpoint, EarlyStopping, Lines and Timer
CALLBACK_STATE_TESTS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("best_model_score", "current_score", "kth_value", "best_score"), is_scalar_tensor),
    **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path", "dirpath"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("wait_count", "stopped_epoch", "patience"), is_count),
    "monitor": is_optional_text,
    **dict.fromkeys(("seconds", "first", "trained", "base", "validated"), lambda v: is_number(v) and v >= 0),
    **dict.fromkeys(("steps", "validations"), is_count),
    "planned_at": lambda v: v is None or is_number(v),
    "time_elapsed": lambda v: isinstance(v, dict) and all(map(is_number, v.values())),
    "segments": is_course,
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
    groups = {name: config[name] for name in (*reader.ALLOWED_TARGETS, "trainer", "logger")}
    try:
        OptionChecker("train").check({name: config[name] for name in known}, known | groups)
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


def resumed_record(info: RunInfo, now: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of run.json of a resumed run: as it began, with an entry for this resumption.

    Args:
        info: facts of the run.
        now: contents that a new run would have.

    Raises:
        RunError: if images, masks or splits have changed since the run began.
    """
    # The data must be the same, or validation images could have been trained on.
    folder = info.folder
    assert folder is not None
    old = read_record(folder / "run.json").content()
    for name, what in (("split_hash", "splits"), ("data", "images or masks")):
        if name in old and old[name] != now[name]:
            raise RunError(
                f"{folder}: the {what} of its data have changed since the run began, so that validation images may "
                f"have become training images; give init={folder} to begin another run with its weights"
            )
    # Record the command and what differs from the first start: code, versions, machine.
    changes = {name: now[name] for name in RERECORDED if now.get(name) != old.get(name)}
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry = {"command": typed_command(), "started": started} | changes
    kept = {name: value for name, value in old.items() if name not in RESUME_RESETS}
    if info.changed:
        entry |= {"changed": info.changed} | {name: old[name] for name in RESULTS if name in old}
        kept["overrides"] = info.overrides
    return kept | {"resumed": [*old.get("resumed", []), entry]}
