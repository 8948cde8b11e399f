"""Train a finished run's config again, and collect what differs from the first time."""

import copy
import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import compose_checked, plain_config
from seg.cli.conf_files import CONF, HYDRA_KEYS, format_option_value
from seg.cli.validation import check_option_group, import_target
from seg.comparison.rerun_report import RunChange
from seg.errors import RunError, UserError
from seg.hardware import uses_one_device
from seg.runs import records
from seg.runs.reader import ALLOWED_TARGETS, FinishedRun, Metrics, name_config_file
from seg.runs.run_info import NEUTRAL_OPTIONS, RunInfo
from seg.training.run import train


def upgrade_config(cfg: DictConfig, past: FinishedRun) -> tuple[dict[str, Any], list[RunChange]]:
    """Upgrade the config of a finished run to this version, and apply the command line's overrides.

    Args:
        cfg: config of seg.rerun.
        past: finished run.

    Returns:
        The config to train, and the options that differ from the run's own.

    Raises:
        UserError: if this version has no such options.
        RunError: if the data isn't where it was.
    """
    # Drop options that no longer exist, and add those that are new.
    config, base = copy.deepcopy(past.config), plain_config(compose_checked("train", []))
    own = yaml.safe_load((CONF / "train.yaml").read_text("utf-8"))
    gone = [name for name in config if name not in base]
    changes = [RunChange(name, config.pop(name), "no such option") for name in gone]
    for name in base:
        if name not in config:
            config[name] = base[name]
            changes += [] if name in NEUTRAL_OPTIONS else [RunChange(name, "not there", base[name])]
        elif name in ALLOWED_TARGETS or name == "trainer":
            known = [own["loader"]] if name == "loader" else group_files(name)
            changes += add_new_options(config[name], name, known)
    # Apply the command line, and check the result like any config.
    changes += apply_overrides(config, plain_config(cfg))
    config |= {"logger": plain_config(cfg.logger), "outputs": cfg.outputs}
    groups = {name: config[name] for name in (*ALLOWED_TARGETS, "trainer", "logger")}
    try:
        check_option_group(config, base | groups, own, ())
    except UserError as error:
        raise UserError(
            f"run={cfg.run}: made by another version, whose options this version doesn't accept ({error}); use the "
            "version in the run's run.json"
        ) from error
    check_data_paths(config["data"], cfg.run)
    return config, changes


def group_files(group: str) -> list[dict[str, Any]]:
    """Read the config files of a group, without composing them."""
    return [yaml.safe_load(file.read_text("utf-8")) for file in sorted((CONF / group).glob("*.y*"))]


def add_new_options(node: Any, path: str, known: list[dict[str, Any]]) -> Iterator[RunChange]:
    """Add to each constructor below a node the options that are newer than the run, and yield them.

    Their value is the constructor's default, which keeps the behaviour of older runs.

    Args:
        node: changed in place.
        path: dotted name of the node.
        known: config files of its group, which name the options.
    """
    if isinstance(node, dict) and (target := node.get("_target_")):
        matching = [file for file in known if file.get("_target_") == target]
        options = {name: value for file in reversed(matching) for name, value in file.items()}
        parameters = inspect.signature(import_target(path, target)).parameters if options else {}
        for name, value in options.items():
            if name in node or name in HYDRA_KEYS or name == "defaults":
                continue
            default = parameters[name].default if name in parameters else inspect.Parameter.empty
            node[name] = value if default is inspect.Parameter.empty else default
            yield RunChange(f"{path}.{name}", "not there", node[name])
    # Descend into the node's own children.
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for name, value in inner:
        yield from add_new_options(value, f"{path}.{name}", known)


def apply_overrides(config: dict[str, Any], given: dict[str, Any]) -> Iterator[RunChange]:
    """Apply the command line's overrides to a run's config, and yield each change.

    Args:
        config: of the run; changed in place.
        given: config of seg.rerun, in which null means unchanged.

    Raises:
        UserError: for an option that the run's data does not have.
    """
    config["loader"]["cache"] = given["loader"].pop("cache")
    for group in ("data", "trainer", "loader"):
        for name, value in given[group].items():
            if value is not None and group == "data" and name not in config[group]:
                raise UserError(
                    f"data.{name}={format_option_value(value)}: the run's data has no such option"
                )
            if value is not None and value != config[group].get(name):
                yield RunChange(f"{group}.{name}", config[group].get(name), value)
                config[group][name] = value
    if given["init"] is not None and given["init"] != config["init"]:
        yield RunChange("init", config["init"], given["init"])
        config["init"] = given["init"]


def check_data_paths(data: dict[str, Any], run: str) -> None:
    """Raise RunError if the run's data isn't where it was."""
    for name in ("root", "table", "annotations"):
        path = data.get(name)
        if isinstance(path, str) and not Path(path).exists():
            raise RunError(
                f"run={run}: its data.{name}={path} does not exist; give the present path, data.{name}=..."
            )


def check_single_device(config: dict[str, Any], seeds: int) -> None:
    """Raise UserError if several trainings are asked for that would each start further processes."""
    devices, nodes = config["trainer"]["devices"], config["trainer"]["num_nodes"]
    several = devices == "auto" and torch.cuda.device_count() > 1
    if seeds and (several or not uses_one_device(devices, nodes)):
        raise UserError(
            f"seeds={seeds} with trainer.devices={devices}: the seeds train one after another, each on one "
            "device; give trainer.devices=1"
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


def train_again(config: dict[str, Any], past: FinishedRun, name: str) -> Path:
    """Train a config of a finished run, and return the new run folder.

    Args:
        config: upgraded, with the seed to use.
        past: finished run, whose overrides and choices the new one keeps.
        name: of the new run.
    """
    words, seed = past.record.overrides, config["seed"]
    if seed != past.record.seed:
        words = [*(word for word in words if not str(word).startswith("seed=")), f"seed={seed}"]
    noted = RunFolderCapture()
    asked = RunInfo(name, words, past.record.choices)
    with name_config_file(past.folder / "config.yaml"):
        train(OmegaConf.create(config | {"name": name}), [noted], asked)
    return noted.folder


def train_more_seeds(config: dict[str, Any], past: FinishedRun, count: int) -> dict[int, Metrics]:
    """Train ``count`` runs with the seeds after the run's own, and return seed -> metrics."""
    results: dict[int, Metrics] = {}
    for seed in range(config["seed"] + 1, config["seed"] + 1 + count):
        name = f"rerun-{past.record.name}-seed-{seed}"
        folder = train_again(config | {"seed": seed}, past, name)
        results[seed] = records.read_json(folder / "run.json")["metrics"]
    return results
