"""Train a finished run's config again, and collect what differs from the first time."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import compose_checked, plain_config
from seg.cli.conf_files import format_option_value
from seg.cli.validation import OptionChecker
from seg.comparison import rerun_report as report
from seg.display.console import is_rank_zero
from seg.errors import RunError, UserError
from seg.runs import records
from seg.runs.reader import ALLOWED_TARGETS, FinishedRun, load_finished_run, name_config_file
from seg.runs.record import RECORD_FILE, read_record
from seg.runs.run_info import RunInfo
from seg.training.run import train


def train_and_compare(cfg: DictConfig) -> tuple[dict[str, Any], Path] | None:
    """Train a finished run again, compare the two, and write rerun.json.

    Args:
        cfg: composed from conf/rerun.yaml.

    Returns:
        The contents of rerun.json and the new run folder; None on ranks other than the first.

    Raises:
        UserError: if an option is wrong, or this version has no such options as the run.
        RunError: if there is no such finished run, or its data is missing.
    """
    # Train the run again, with as many threads as it had.
    past = load_finished_run(cfg.run)
    config = upgrade_config(cfg, past)
    with torch_threads(cfg.threads or past.record.hardware.threads):
        folder = train_again(config, past)
    if not is_rank_zero():
        return None
    # Compare the scores.
    then, now = past.record, read_record(folder / RECORD_FILE)
    assert then.metrics is not None and now.metrics is not None  # of finished runs
    intervals = report.difference_intervals(past.folder, folder)
    scores = report.compare_scores(then.metrics, now.metrics, intervals)
    # List what differs in the options, the records and the images.
    changes = [
        *report.changed_leaves(past.config, config, ""),
        *report.config_edits(past),
        *report.changed_records(then.content(), now.content()),
        *report.changed_images(past.folder, folder),
    ]
    result = {
        "run": past.folder.name,
        "verdict": report.overall_verdict(scores),
        "scores": scores,
        "changes": [change._asdict() for change in changes],
        "untold": report.missing_records(then.content()),
    }
    records.write_json(folder / "rerun.json", result)
    return result, folder


def upgrade_config(cfg: DictConfig, past: FinishedRun) -> dict[str, Any]:
    """Return the config of a finished run for this version, with the command line's overrides.

    A new top-level option has the value of conf/train.yaml; a new option of a group is absent, so that its
    constructor's default applies, which keeps the behaviour of older runs.

    Args:
        cfg: config of seg.rerun.
        past: finished run.

    Raises:
        UserError: if this version has no such options.
        RunError: if the data isn't where it was.
    """
    # Top-level options that this version lacks are dropped, new ones have their defaults
    base = plain_config(compose_checked("train", []))
    config = base | {k: v for k, v in copy.deepcopy(past.config).items() if k in base}
    apply_overrides(config, plain_config(cfg))
    # Check the result like any config.
    config |= {"logger": plain_config(cfg.logger), "outputs": cfg.outputs}
    groups = {name: config[name] for name in (*ALLOWED_TARGETS, "trainer", "logger")}
    try:
        OptionChecker("train").check(config, base | groups)
    except UserError as error:
        raise UserError(
            f"run={cfg.run}: made by another version, whose options this version doesn't accept ({error}); use the "
            "version in the run's run.json"
        ) from error
    check_data_paths(config["data"], cfg.run)
    return config


def apply_overrides(config: dict[str, Any], given: dict[str, Any]) -> None:
    """Apply the command line's overrides to a run's config.

    Args:
        config: of the run; changed in place.
        given: config of seg.rerun, in which null means unchanged.

    Raises:
        UserError: for an option that the run's data does not have.
    """
    # The cache belongs to this machine, so it is never that of the earlier run
    config["loader"]["cache"] = given["loader"].pop("cache")
    for group in ("data", "trainer", "loader"):
        for name, value in given[group].items():
            if value is not None and group == "data" and name not in config[group]:
                raise UserError(
                    f"data.{name}={format_option_value(value)}: the run's data has no such option"
                )
            if value is not None:
                config[group][name] = value
    if given["init"] is not None:
        config["init"] = given["init"]


def check_data_paths(data: dict[str, Any], run: str) -> None:
    """Raise RunError if the run's data isn't where it was."""
    for name in ("root", "table", "annotations"):
        path = data.get(name)
        if isinstance(path, str) and not Path(path).exists():
            raise RunError(
                f"run={run}: its data.{name}={path} does not exist; give the present path, data.{name}=..."
            )


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Run PyTorch with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class RunFolderCapture(L.Callback):
    """Callback that records the run folder."""

    folder: Path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        checkpoints = cast(ModelCheckpoint, trainer.checkpoint_callback)
        self.folder = Path(str(checkpoints.dirpath)).parent


def train_again(config: dict[str, Any], past: FinishedRun) -> Path:
    """Train the upgraded config of a finished run, and return the new run folder."""
    # The recorded command line must agree with the seed that is used
    words, seed = past.record.overrides, config["seed"]
    if seed != past.record.seed:  # config.yaml was edited
        words = [*(word for word in words if not str(word).startswith("seed=")), f"seed={seed}"]
    # Only a callback learns the folder that the training creates
    capture, name = RunFolderCapture(), f"rerun-{past.record.name}"
    with name_config_file(past.folder / "config.yaml"):
        info = RunInfo(name, words, past.record.choices, segments=past.record.lr_segments)
        train(OmegaConf.create(config | {"name": name}), [capture], info)
    return capture.folder
