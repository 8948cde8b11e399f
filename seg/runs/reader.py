"""Load the record and config of a finished run; the folder is untrusted input.

config.yaml may name only classes of this package, albumentations, torch.optim and segmentation_models_pytorch;
nothing else is imported. Checkpoints are read as plain values.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from seg.errors import DataError, RunError, UserError
from seg.files import read_text
from seg.runs import checkpoint, pretrained, safe_loading
from seg.runs.migrations import upgrade_config
from seg.runs.record import RunRecord, read_record

ALLOWED_TARGETS = {  # config group -> packages whose classes it may name
    "data": ("seg.data",), "loader": ("seg.data",), "model": safe_loading.NETWORK_PACKAGES, "loss": ("seg.losses",),
    "metrics": ("seg.metrics",), "augment": ("albumentations", "seg.data"), "optim": ("torch.optim",),
    "schedule": ("seg.training.schedules",),
}  # fmt: skip
TRAINER_TARGET = "seg.training.trainer.build_trainer"
REQUIRED_OPTIONS = (
    "data",
    "model",
    "loss",
    "optim",
    "seed",
)  # groups and options of every run's config
Metrics = dict[str, float | None]


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
        folder: the run folder.
        record: content of run.json.
        config: content of config.yaml, without the logger.
    """

    folder: Path
    record: RunRecord
    config: dict[str, Any]


def load_finished_run(run: str | None) -> FinishedRun:
    """Load a finished run from its folder.

    Raises:
        RunError: if ``run`` is no run folder, is not finished, or its config names a class that is not allowed.
    """
    if run is None:
        raise RunError("run is not set: give a run folder, run=outputs/latest")
    if not isinstance(run, str) or not run:
        raise RunError(f"run={run}: a run folder is needed, run=outputs/latest")
    folder = Path(os.path.realpath(run))
    if not (folder / "run.json").is_file():
        problem = "a run folder is needed, which holds run.json and config.yaml"
        if run.startswith(pretrained.PREFIX):
            problem += "; networks of the package have no record"
        elif not folder.exists():
            problem = "no such folder"
        raise RunError(f"run={run}: {problem}{checkpoint.suggest_run(Path(run))}")
    record = read_finished_record(folder / "run.json")
    return FinishedRun(folder, record, read_untrusted_config(folder / "config.yaml"))


@contextmanager
def name_config_file(file: Path) -> Generator[None]:
    """Add the config file's name to errors about an option that came from it."""
    try:
        yield
    except (UserError, DataError) as error:
        concerns_option = isinstance(error, UserError) or str(error).startswith("data.")
        if not concerns_option or str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def read_finished_record(file: Path) -> RunRecord:
    """Return the record of a finished run.

    Raises:
        RunError: if the file is damaged, or the run is not finished.
    """
    record = read_record(file)
    if record.status != "finished":
        raise RunError(
            f"{file}: the run's status is {record.status}, so there are no numbers to compare with; give a "
            "finished run"
        )
    if missing := record.missing_field():
        raise RunError(
            f"{file}: the record is damaged ({missing} is missing); not written by seg.train"
        )
    return record


def read_untrusted_config(file: Path) -> dict[str, Any]:
    """Return a run's config, checked to name only allowed constructors.

    Raises:
        RunError: if the file cannot be read, or names other constructors.
    """
    try:
        # plain values, and at least the groups that every run has
        config = safe_loading.read_yaml(read_text(file, safe_loading.CONFIG_LIMIT))
        if not isinstance(config, dict) or not set(REQUIRED_OPTIONS) <= set(config):
            raise RunError(
                f"{file}: not a run's config, which has {', '.join(REQUIRED_OPTIONS)} and more"
            )
        safe_loading.check_plain(config, file)
        config = upgrade_config(config)
        config.pop("logger", None)
        for name in (*ALLOWED_TARGETS, "trainer"):
            if not isinstance(config.get(name, {}), dict):
                raise RunError(f"{file}: {name}={config[name]}; a group of options is needed")
        # the trainer is built by a function, everything else by allowed classes
        trainer = dict(config.get("trainer", {}))
        target = trainer.pop("_target_", TRAINER_TARGET)
        if target != TRAINER_TARGET:
            raise RunError(f"{file}: its config names {target!r}; only {TRAINER_TARGET} is allowed")
        for name, node in (config | {"trainer": trainer}).items():
            safe_loading.check_targets(node, file, ALLOWED_TARGETS.get(name, ("seg",)))
    except RunError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(
            f"{file}: can't be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return config
