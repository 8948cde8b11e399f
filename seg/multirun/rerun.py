"""Training of a finished run's config again."""

import copy
import gc
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

from seg.cli.compose import checked, plain
from seg.cli.conf_files import CONF, HYDRA_KEYS, shown
from seg.cli.validation import check_level, located
from seg.comparison.rerun_report import Change
from seg.errors import RunError, UserError
from seg.hardware import one_device
from seg.runs import records
from seg.runs.reader import HONOURED, Metrics, Past, naming
from seg.runs.run_info import FREE, Asked
from seg.training.run import train


def settled(cfg: DictConfig, past: Past) -> tuple[dict[str, Any], list[Change]]:
    """The run's config as this version takes it, with what the command line says, and what that changes.

    Raises:
        UserError: when this version has no such options, or the data isn't there.
    """
    config, base = copy.deepcopy(past.config), plain(checked("train", []))
    own = yaml.safe_load((CONF / "train.yaml").read_text("utf-8"))
    gone = [name for name in config if name not in base]
    changes = [Change(name, config.pop(name), "no such option") for name in gone]
    for name in base:
        if name not in config:
            config[name] = base[name]
            changes += [] if name in FREE else [Change(name, "not there", base[name])]
        elif name in HONOURED or name == "trainer":
            known = [own["loader"]] if name == "loader" else files(name)
            changes += filled(config[name], name, known)
    changes += overridden(config, plain(cfg))
    config |= {"logger": plain(cfg.logger), "outputs": cfg.outputs}
    groups = {name: config[name] for name in (*HONOURED, "trainer", "logger")}
    try:
        check_level(config, base | groups, own, ())
    except UserError as error:
        raise UserError(
            f"run={cfg.run}: made by another version, whose options this one doesn't take ({error}); take the "
            "version in its run.json"
        ) from error
    check_places(config["data"], cfg.run)
    return config, changes


def files(group: str) -> list[dict[str, Any]]:
    """The config files of a group, as they stand."""
    return [yaml.safe_load(file.read_text("utf-8")) for file in sorted((CONF / group).glob("*.y*"))]


def filled(node: Any, path: str, known: list[dict[str, Any]]) -> Iterator[Change]:
    """Gives each constructor below a node the options that it got since, and tells them.

    The value is the constructor's own default, by which older runs go on as they were.

    Args:
        node: changed in place.
        path: of the node.
        known: files of its group, which name the options.
    """
    if isinstance(node, dict) and (target := node.get("_target_")):
        alike = [file for file in known if file.get("_target_") == target]
        options = {name: value for file in reversed(alike) for name, value in file.items()}
        parameters = inspect.signature(located(path, target)).parameters if options else {}
        for name, value in options.items():
            if name in node or name in HYDRA_KEYS or name == "defaults":
                continue
            default = parameters[name].default if name in parameters else inspect.Parameter.empty
            node[name] = value if default is inspect.Parameter.empty else default
            yield Change(f"{path}.{name}", "not there", node[name])
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for name, value in inner:
        yield from filled(value, f"{path}.{name}", known)


def overridden(config: dict[str, Any], given: dict[str, Any]) -> Iterator[Change]:
    """Put what the command line gives into the config, and tell it.

    Raises:
        UserError: for an option that the run's data hasn't.
    """
    config["loader"]["cache"] = given["loader"].pop("cache")
    for group in ("data", "trainer", "loader"):
        for name, value in given[group].items():
            if value is not None and group == "data" and name not in config[group]:
                raise UserError(f"data.{name}={shown(value)}: the run's data has no such option")
            if value is not None and value != config[group].get(name):
                yield Change(f"{group}.{name}", config[group].get(name), value)
                config[group][name] = value
    if given["init"] is not None and given["init"] != config["init"]:
        yield Change("init", config["init"], given["init"])
        config["init"] = given["init"]


def check_places(data: dict[str, Any], run: str) -> None:
    """Raises RunError when the run's data isn't where it was."""
    for name in ("root", "table", "annotations"):
        place = data.get(name)
        if isinstance(place, str) and not Path(place).exists():
            raise RunError(
                f"run={run}: its data.{name}={place} isn't there; say where the data lies now, data.{name}=..."
            )


def check_devices(config: dict[str, Any], seeds: int) -> None:
    """Raises UserError when several trainings would each start further processes."""
    devices, nodes = config["trainer"]["devices"], config["trainer"]["num_nodes"]
    several = devices == "auto" and torch.cuda.device_count() > 1
    if seeds and (several or not one_device(devices, nodes)):
        raise UserError(
            f"seeds={seeds} with trainer.devices={devices}: the seeds train one after the other, each on one "
            "device; give trainer.devices=1"
        )


@contextmanager
def threads(count: int) -> Generator[None]:
    """PyTorch with so many threads."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


class Noted(L.Callback):
    """Remembers the folder of the run that it is part of."""

    folder: Path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        checkpoints = cast(ModelCheckpoint, trainer.checkpoint_callback)
        self.folder = Path(str(checkpoints.dirpath)).parent


def trained(config: dict[str, Any], past: Past, name: str) -> Path:
    """The folder of a new run."""
    words, seed = past.record.overrides, config["seed"]
    if seed != past.record.seed:
        words = [*(word for word in words if not str(word).startswith("seed=")), f"seed={seed}"]
    noted = Noted()
    try:
        asked = Asked(name, words, past.record.choices)
        with naming(past.folder / "config.yaml"):
            train(OmegaConf.create(config | {"name": name}), [noted], asked)
    finally:
        gc.collect()  # trainer and task hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return noted.folder


def more_seeds(config: dict[str, Any], past: Past, count: int) -> dict[int, Metrics]:
    """Seed -> metrics of ``count`` new runs, with the seeds after the run's own."""
    found: dict[int, Metrics] = {}
    for seed in range(config["seed"] + 1, config["seed"] + 1 + count):
        name = f"rerun-{past.record.name}-seed-{seed}"
        folder = trained(config | {"seed": seed}, past, name)
        found[seed] = records.read_json(folder / "run.json")["metrics"]
    return found
