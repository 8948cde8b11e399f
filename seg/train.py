"""Trains a network: ``python -m seg.train model=unetpp loss=bce_dice``.

Composes the run from conf/, trains, scores the best checkpoint, and leaves a run folder that every
other command reads. ``-m`` with comma-separated values sweeps.
"""

import logging
import shlex
import time
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from seg import hardware, reports, runs
from seg.cli import build, command
from seg.console import logging_to, quiet
from seg.data.module import DataModule
from seg.logits import num_logits
from seg.task import SegmentationTask
from seg.tracking import MetricsCSV

log = logging.getLogger("seg")


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains what the config says and returns the final metrics; all it wrote lies in the run folder."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
    source = build(cfg.data, "data")
    data: DataModule = build(
        cfg.loader, "loader", source=source, augment=build(cfg.augment, "augment"), seed=cfg.seed
    )
    cfg.model.in_channels = data.intensity.channels
    cfg.model.num_classes = num_logits(len(source.classes), cfg.two_class_logits)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    card = {
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
    }
    task = SegmentationTask(
        build(cfg.model, "model"),
        build(cfg.loss, "loss"),
        source.classes,
        build(cfg.optim, "optim"),
        build(cfg.schedule, "schedule"),
        cfg.seed,
        card,
    )
    name, group = names(cfg)
    folder = runs.create_folder(parent(cfg), name)
    with logging_to(folder / "log.txt"):
        return run(cfg, config, folder, name, group, task, data, accelerator)


def run(
    cfg: DictConfig,
    config: dict,
    folder: Path,
    name: str,
    group: str | None,
    task: SegmentationTask,
    data: DataModule,
    accelerator: str,
) -> dict[str, float]:
    """Fits and scores; the folder exists and everything is built."""
    record = runs.origin() | {"name": name, "group": group, "seed": cfg.seed, "splits": data.source.splits}
    runs.write_config(folder / "config.yaml", config)
    runs.write_json(folder / "run.json", record | {"status": "running"})
    announce(cfg, name, task, data, accelerator)
    logger = build(cfg.logger, "logger", name=name, folder=folder, group=group, options=config)
    pictures = reports.Pictures(
        data.samples("val"), cfg.panels, data.source.classes, data.source.colors, folder / "panels"
    )
    best = ModelCheckpoint(
        folder / "checkpoints", "best", monitor="val/dice", mode="max", enable_version_counter=False
    )
    last = ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False)
    bar = [reports.progress_bar()] if reports.on_terminal() else []
    trainer = build(
        cfg.trainer,
        "trainer",
        callbacks=[best, last, reports.Lines(), pictures, *bar],
        logger=[MetricsCSV(folder / "metrics.csv"), *([logger] if logger else [])],
    )
    started = time.perf_counter()
    trainer.fit(task, datamodule=data)
    minutes = (time.perf_counter() - started) / 60
    scores = score(trainer, task, data, best.best_model_path)
    if trainer.is_global_zero:
        pictures.write(task.model)
        done = {"status": "finished", "minutes": minutes, "steps": trainer.global_step}
        runs.write_json(folder / "run.json", record | done | {"metrics": scores})
        conclude(folder, scores, data, minutes)
    if logger:
        logger.experiment.finish()
    return scores


def score(trainer: L.Trainer, task: SegmentationTask, data: DataModule, checkpoint: str) -> dict[str, float]:
    """Metrics of the best checkpoint on the validation split, and on the test split where there is one."""
    task.load_state_dict(runs.read_checkpoint(checkpoint)["state_dict"])
    scores = {f"best/{k}": v for k, v in trainer.validate(task, datamodule=data, verbose=False)[0].items()}
    if "test" in data.source.splits:
        scores |= trainer.test(task, datamodule=data, verbose=False)[0]
    return scores


def announce(
    cfg: DictConfig, name: str, task: SegmentationTask, data: DataModule, accelerator: str
) -> None:
    """What trains on what: the first lines of a run."""
    splits = ", ".join(f"{len(n)} {s}" for s, n in data.source.splits.items())
    sizes = sorted({size for split in data.sizes.values() for size in split})
    span = f"{sizes[0][0]}x{sizes[0][1]}" + (f" to {sizes[-1][0]}x{sizes[-1][1]}" if len(sizes) > 1 else "")
    parameters = sum(p.numel() for p in task.model.parameters())
    precision, why = hardware.pick_precision(cfg.trainer.precision, accelerator)
    log.info(f"run        {name}, seed {cfg.seed}")
    log.info(f"model      {type(task.model).__name__}, {parameters / 1e6:.2f} M parameters")
    log.info(
        f"data       {type(data.source).__name__}: {splits}; {span} px, {data.intensity.channels} channel(s); "
        f"classes {', '.join(data.source.classes)}"
    )
    log.info(f"hardware   {accelerator}, precision {precision} ({why})")


def conclude(folder: Path, scores: dict[str, float], data: DataModule, minutes: float) -> None:
    """The closing table and what a user wants next."""
    shown = shlex.quote(str(relative(folder)))
    for prefix, title in (("best/val/", "validation, best checkpoint"), ("test/", "test")):
        if f"{prefix}dice" in scores:
            log.info("", extra={"table": reports.score_table(title, scores, data.source.classes, prefix)})
            log.info(reports.score_line(scores, prefix))
    log.info(f"trained in {minutes:.1f} minutes; run folder {shown}, pictures {shown}/panels/all.png")
    log.info("next:")
    log.info(f"  python -m seg.evaluate run={shown}")
    log.info(f"  python -m seg.predict run={shown} input=IMAGES output=PREDICTIONS")


def relative(path: Path) -> Path:
    """As seen from here, if it lies below."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


def names(cfg: DictConfig) -> tuple[str, str | None]:
    """The run's name, made of what differs from the defaults, and its group in a sweep."""
    if not HydraConfig.initialized():
        return cfg.name or "run", None
    hydra = HydraConfig.get()
    skip = ("outputs", "data.root", "logger", "name", "panels", "hydra", "trainer.max_", "loader.workers")
    changed = [o.lstrip("+~") for o in hydra.overrides.task if not o.lstrip("+~").startswith(skip)]
    words = [o.split("=", 1)[1] if o.split("=", 1)[0] in hydra.runtime.choices else o for o in changed]
    sweep = hydra.mode == RunMode.MULTIRUN
    return cfg.name or "-".join(words) or "default", Path(hydra.sweep.dir).name if sweep else None


def parent(cfg: DictConfig) -> Path:
    """The folder that receives the run's: outputs, or the sweep's own folder in it."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir)
    return Path(cfg.outputs)


@command("train")
def main(cfg: DictConfig) -> None:
    train(cfg)


if __name__ == "__main__":
    main()
