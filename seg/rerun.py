"""Trains a finished run once more and says whether its numbers come out again: ``python -m seg.rerun run=RUN``.

The new run folder holds rerun.json: each score then and now, the noise of the seeds as far as it is known,
and what has changed in between: options, code, versions, data, machine.
"""

import copy
import gc
import inspect
import logging
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from seg import runs
from seg.asked import Asked
from seg.changes import (
    FEWEST,
    JUDGED,
    Change,
    Scores,
    edited,
    images_changed,
    judged,
    recorded,
    untold,
    verdict,
)
from seg.cli import UserError, checked, command, plain
from seg.command_line import quote_path
from seg.console import first_process, logging_to, quiet
from seg.hardware import one_device
from seg.options import CONF, HYDRA_KEYS, check_level, located, shown
from seg.past import (
    FREE,
    HONOURED,
    Metrics,
    Past,
    finished_run,
    naming,
    siblings,
    threads_of,
)
from seg.runs import RunError
from seg.train import train

log = logging.getLogger("seg")


def rerun(cfg: DictConfig) -> dict[str, Any]:
    """Trains the run again; returns what rerun.json holds, whose verdict is same, within noise or different."""
    quiet()
    if cfg.seeds < 0:
        raise UserError(f"seeds={cfg.seeds}: give 0 or more")
    if cfg.threads is not None and not (isinstance(cfg.threads, int) and cfg.threads > 0):
        raise UserError(f"threads={cfg.threads}: give 1 or more, or null")
    past = finished_run(cfg.run)
    config, changes = settled(cfg, past)
    check_devices(config, cfg.seeds)
    before = siblings(past)  # first: the new run isn't one
    with threads(cfg.threads or threads_of(past.record)):
        folder = trained(config, past, f"rerun-{past.record['name']}")
        if not first_process():
            return {}
        then, record = past.record, runs.read_json(folder / "run.json")
        before[then["seed"]], after = then["metrics"], {record["seed"]: record["metrics"]}
        if cfg.seeds and verdict(judged(then["metrics"], record["metrics"], [])) != "same":
            after |= more_seeds(config, past, cfg.seeds)
    eras = [list(before.values()), list(after.values())]
    scores = judged(then["metrics"], record["metrics"], eras)
    changes += [*edited(past), *recorded(then, record), *images_changed(past.folder, folder)]
    found = {
        "run": past.folder.name,
        "verdict": verdict(scores),
        "scores": scores,
        "seeds": {"then": sorted(before), "now": sorted(after)},
        "changes": [change._asdict() for change in changes],
        "untold": untold(then),
    }
    runs.write_json(folder / "rerun.json", found)
    with logging_to(folder / "log.txt"):
        tell(found, folder)
    return found


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
    words, seed = past.record["overrides"], config["seed"]
    if seed != past.record["seed"]:
        words = [*(word for word in words if not str(word).startswith("seed=")), f"seed={seed}"]
    noted = Noted()
    try:
        asked = Asked(name, words, past.record["choices"])
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
        name = f"rerun-{past.record['name']}-seed-{seed}"
        folder = trained(config | {"seed": seed}, past, name)
        found[seed] = runs.read_json(folder / "run.json")["metrics"]
    return found


def tell(found: dict[str, Any], folder: Path) -> None:
    """The table, the verdict, and what has changed."""
    log.info("", extra={"table": score_table(found["scores"])})
    both = [row["verdict"] for row in found["scores"].values()]
    both = [word for word in both if not word.startswith("only")]
    said = f"{both.count('same')} of {len(both)} numbers are bit for bit those of {found['run']}"
    if found["verdict"] != "same":
        then, now = (len(seeds) for seeds in found["seeds"].values())
        known = f"noise by seeds, {then} then and {now} now"
        said += f"; {known if then + now - 2 >= FEWEST else 'noise unknown, seeds=3 measures it'}"
    log.info(f"verdict    {found['verdict']}: {said}")
    for change in found["changes"]:
        then = f"{text(change['then'])} -> " if change["then"] is not None else ""
        log.info(f"changed    {change['what']}: {then}{text(change['now'])}")
    if not found["changes"]:
        log.info("changed    nothing that the runs tell")
    if found["untold"]:
        log.info(f"unknown    {', '.join(found['untold'])}: the earlier run doesn't tell")
    log.info(f"numbers    {quote_path(runs.relative(folder) / 'rerun.json')}")


def text(value: Any) -> str:
    """A value as one types it; a group of options by its constructor."""
    return shown(value.get("_target_", value) if isinstance(value, dict) else value)


def score_table(scores: Scores) -> Table:
    """Dice and IoU; rerun.json has every score."""
    table = Table(title="then and now", title_justify="left", header_style="bold")
    table.add_column("score", no_wrap=True)
    for header in ("then", "now", "difference", "sd of seeds"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    forms = {"then": ".6f", "now": ".6f", "difference": "+.2g", "sd": ".2g"}
    for name, row in ((name, scores[name]) for name in JUDGED if name in scores):
        cells = ("-" if row[key] is None else f"{row[key]:{form}}" for key, form in forms.items())
        table.add_row(name.removeprefix("best/"), *cells, row["verdict"])
    return table


@command("rerun")
def main(cfg: DictConfig) -> None:
    if rerun(cfg).get("verdict") == "different":
        sys.exit(3)


if __name__ == "__main__":
    main()
