"""A finished run, read back to be trained again; its folder may be a stranger's.

Of config.yaml nothing is imported that isn't a class of ours, of albumentations, of torch.optim or of
segmentation_models_pytorch; checkpoints are read as plain values.
"""

import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from seg.errors import DataError, RunError, UserError
from seg.files import read_text
from seg.runs import checkpoint, records, safe_loading
from seg.runs.migrations import upgrade_targets
from seg.runs.run_info import FREE

HONOURED = {  # packages whose classes a config may name, by group
    "data": ("seg.data",), "loader": ("seg.data",), "model": safe_loading.NETWORKS, "loss": ("seg.losses",),
    "metrics": ("seg.metrics",), "augment": ("albumentations", "seg.data"), "optim": ("torch.optim",),
    "schedule": ("seg.training.schedules",),
}  # fmt: skip
TRAINER = "seg.hardware.build_trainer"
NEEDED = ("data", "model", "loss", "optim", "seed")  # a run's config has at least these
# nothing learnt follows from these
KINDS = {
    "name": str, "seed": int, "splits": dict, "split_hash": str, "overrides": list, "choices": dict, "resumed": list,
}  # fmt: skip
PARTS = {"overrides": str, "resumed": dict, "splits": list}  # what those hold
LATER = {"overrides": [], "choices": {}, "resumed": []}  # what runs of older versions don't tell
ALIKE = ("split_hash", "data", "source", "versions")  # of runs that differ in the seed alone
MOST_THREADS = 4096  # more is no machine's
Metrics = dict[str, float | None]


class Past(NamedTuple):
    """A finished run, as its folder tells.

    Attributes:
        folder: the run's.
        record: of its run.json.
        config: of its config.yaml, without the logger.
    """

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]


def finished_run(run: str | None) -> Past:
    """What a run folder says of itself.

    Raises:
        RunError: when it isn't one, isn't finished, or its config names what isn't honoured.
    """
    if run is None:
        raise RunError("run is not set: give a run folder, run=outputs/latest")
    if not isinstance(run, str) or not run:
        raise RunError(f"run={run}: a run folder is needed, run=outputs/latest")
    folder = Path(os.path.realpath(run))
    if not (folder / "run.json").is_file():
        wanted = "a run folder is needed, which holds run.json and config.yaml"
        what = wanted if folder.exists() else "no such folder"
        raise RunError(f"run={run}: {what}{checkpoint.nearby(Path(run))}")
    return Past(folder, read_record(folder / "run.json"), read_config(folder / "config.yaml"))


@contextmanager
def naming(file: Path) -> Generator[None]:
    """Has a mistake that is told name the file which its option came from."""
    try:
        yield
    except (UserError, DataError) as error:
        option = isinstance(error, UserError) or str(error).startswith("data.")
        if not option or str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def read_record(file: Path) -> dict[str, Any]:
    """A finished run's run.json.

    Raises:
        RunError: when it is damaged, or the run isn't finished.
    """
    record = records.read_json(file)
    if record.get("status") != "finished":
        raise RunError(
            f"{file}: the run's status is {record.get('status')}, so there are no numbers to compare with; give a "
            "finished run"
        )
    record = LATER | record
    for name, kind in KINDS.items():
        if not isinstance(record.get(name), kind):
            raise RunError(f"{file}: {name} is missing or damaged; not written by seg.train")
    metrics = record.get("metrics")
    if not isinstance(metrics, dict) or not all(
        value is None or type(value) in (int, float) for value in metrics.values()
    ):
        raise RunError(f"{file}: metrics is missing or damaged; not written by seg.train")
    for name in ("overrides", "resumed", "splits"):
        check_parts(record[name], PARTS[name], f"{file}: {name}")
    record["metrics"] = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in metrics.items()
    }
    if threads_of(record) not in range(1, MOST_THREADS + 1):
        raise RunError(f"{file}: hardware is damaged; not written by seg.train")
    return record


def check_parts(parts: dict[str, Any] | list[Any], kind: type, what: str) -> None:
    """Raise RunError unless each part of a record is of a kind."""
    values = parts.values() if isinstance(parts, dict) else parts
    if not all(isinstance(value, kind) for value in values):
        raise RunError(f"{what} is damaged; not written by seg.train")


def threads_of(record: dict[str, Any]) -> Any:
    """PyTorch's threads in a run; 1 where its version didn't tell."""
    hardware = record.get("hardware", {})
    return hardware.get("threads", 1) if isinstance(hardware, dict) else None


def read_config(file: Path) -> dict[str, Any]:
    """A run's config, whose constructors are honoured ones.

    Raises:
        RunError: when it can't be read, or names others.
    """
    try:
        config = safe_loading.read_yaml(read_text(file, safe_loading.CONFIG_LIMIT))
        if not isinstance(config, dict) or not set(NEEDED) <= set(config):
            raise RunError(f"{file}: not a run's config, which has {', '.join(NEEDED)} and more")
        safe_loading.check_plain(config, file)
        config = upgrade_targets(config)
        config.pop("logger", None)
        for name in (*HONOURED, "trainer"):
            if not isinstance(config.get(name, {}), dict):
                raise RunError(f"{file}: {name}={config[name]}; a group of options is needed")
        trainer = dict(config.get("trainer", {}))
        target = trainer.pop("_target_", TRAINER)
        if target != TRAINER:
            raise RunError(f"{file}: its config names {target!r}; only {TRAINER} is honoured")
        for name, node in (config | {"trainer": trainer}).items():
            safe_loading.check_targets(node, file, HONOURED.get(name, ("seg",)))
    except RunError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise RunError(
            f"{file}: can't be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    return config


def siblings(past: Past) -> dict[int, Metrics]:
    """Seed -> metrics of the finished runs beside a run, by the same code, that differ in the seed alone."""
    found: dict[int, Metrics] = {}
    for file in sorted(past.folder.parent.glob("*/run.json")):
        if file.parent.is_symlink() or file.parent == past.folder:
            continue
        try:
            record = read_record(file)
            same = all(record.get(k) == past.record.get(k) for k in ALIKE)
            if not same or record["seed"] == past.record["seed"]:
                continue
            if learnt_from(read_config(file.with_name("config.yaml"))) == learnt_from(past.config):
                found[record["seed"]] = record["metrics"]
        except RunError:  # unfinished, or not ours: it tells nothing of the noise
            continue
    return found


def learnt_from(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the seed, and without what no number depends on; of devices it has the number."""
    kept = {name: value for name, value in config.items() if name not in (*FREE, "seed")}
    loader, trainer = dict(config.get("loader", {})), dict(config.get("trainer", {}))
    for name in ("workers", "cache"):
        loader.pop(name, None)
    if isinstance(trainer.get("devices"), list):  # of a sweep's jobs each has its own GPU
        trainer["devices"] = len(trainer["devices"])
    return kept | {"loader": loader, "trainer": trainer}
