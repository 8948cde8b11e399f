"""A run that was stopped goes on: ``python -m seg.train resume=RUN``, in its folder and by its config."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import checked, one_line, plain
from seg.errors import RunError, UserError
from seg.runs import reader, records
from seg.runs.checkpoint import DAMAGED, nearby, read_checkpoint
from seg.runs.run_info import Asked
from seg.runs.safe_loading import check_targets, read_yaml

log = logging.getLogger("seg")
TOLD_ANEW = ("status", "error")  # of a run's record, when it goes on
ANEW = ("versions", "git", "source", "hardware", "environment")  # noted again, where they differ
LOGGERS = ("seg.training.loggers",)


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
    if not (folder / "run.json").is_file():
        raise RunError(f"resume={folder}: no run folder{nearby(folder)}")
    record = records.read_json(folder / "run.json")
    if record.get("status") == "finished":
        raise RunError(
            f"resume={folder}: the run is finished; init={folder} begins another with its weights"
        )
    return saved_config(folder), as_asked(folder, record)


def as_asked(folder: Path, record: dict[str, Any]) -> Asked:
    """What was asked of a run that goes on from its last checkpoint."""
    checkpoint = newest(folder)
    if checkpoint is None:
        raise RunError(f"resume={folder}: no checkpoints/last.ckpt yet; begin the run anew")
    return Asked(
        record.get("name", folder.name), record.get("overrides", []), record.get("choices", {}), record.get("group"),
        record.get("job"), folder.resolve(), checkpoint,
    )  # fmt: skip


def newest(folder: Path) -> Path | None:
    """The checkpoint from which a run goes on: of its last and its best that of most steps, if whole.

    The best is the later one where a process died between the two.

    Raises:
        RunError: when there are some, and all are damaged.
    """
    whole, damaged = {}, None
    for name in ("last.ckpt", "best.ckpt"):
        file = (folder / "checkpoints" / name).resolve()
        if not file.is_file():
            continue
        try:
            whole[file] = read_checkpoint(file)["global_step"]
        except DAMAGED as error:
            damaged = RunError(f"{file}: damaged ({one_line(error)[:200]})")
    taken = max(whole, key=lambda file: whole[file], default=None)
    if damaged is not None:
        if taken is None:
            raise damaged
        log.warning(f"{damaged}; {taken.name} is taken")
    return taken


@rank_zero_only
def clear(folder: Path) -> None:
    """Removes what a process that was killed left half written in a run's folder."""
    for place in (folder, folder / "checkpoints"):
        for file in place.glob(".*.*"):
            if file.is_file():
                file.unlink()


def saved_config(folder: Path) -> DictConfig:
    """A run's config, its loggers included.

    Raises:
        RunError: when it names a constructor that isn't honoured.
    """
    file = folder / "config.yaml"
    check_links(folder)
    config = reader.read_config(file)
    loggers = read_yaml(file.read_text("utf-8")).get("logger", {})
    check_targets(loggers, file, LOGGERS)
    later = plain(checked("train", []))  # of an older run's options those that it hadn't
    return OmegaConf.create(later | config | {"logger": loggers, "resume": None})


def check_links(folder: Path) -> None:
    """Raises RunError when a file that the run would write is a link that leads out of its folder."""
    written = [folder / part for part in ("checkpoints", "panels", "predictions")]
    for place in (folder, *written, folder / "predictions/val", folder / "predictions/test"):
        for file in place.iterdir() if place.is_dir() else ():
            leads = file.is_symlink() and (not file.is_dir() or file in written or place in written)
            if leads and not file.resolve().is_relative_to(folder.resolve()):
                raise RunError(
                    f"{file}: a link to {file.resolve()}, outside the run's folder, which would be written to; put the "
                    "file itself there"
                )


def continued(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that goes on: as it began, and where it was taken up.

    Raises:
        RunError: when its images, or their division, aren't those that it began with.
    """
    old = records.read_json(folder / "run.json")
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
