"""Scores a run on a split or on other data: ``python -m seg.evaluate run=outputs/latest data.split=test``."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from seg import reports, runs
from seg.cli import UserError, build, command, plain
from seg.console import quiet
from seg.data.module import DataModule
from seg.hardware import build_trainer
from seg.task import SegmentationTask

log = logging.getLogger("seg")


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Metrics of the run's network on a split, as logged in training; writes them beside panels."""
    quiet()
    run = runs.load(cfg.run)
    split, data = open_data(cfg, run)
    folder = Path(cfg.output) if cfg.output else run.folder / f"evaluate-{split}"
    loss = build(OmegaConf.create(run.config["loss"]), "loss")
    task = SegmentationTask(run.model, loss, run.classes)
    bar: list[L.Callback] = [reports.progress_bar()] if reports.on_terminal() else []
    trained = run.config["trainer"]
    trainer = build_trainer(
        cfg.accelerator,
        devices=1,
        precision=trained["precision"],
        channels_last=trained["channels_last"],
        callbacks=bar,
    )
    loader = data.loader(data.samples(split), cfg.eval_batch_size, shuffle=False)
    found = trainer.test(task, loader, verbose=False)[0]
    scores = {f"{split}/{key.removeprefix('test/')}": value for key, value in found.items()}
    write(folder, scores, run, cfg, data, split)
    return scores


def open_data(cfg: DictConfig, run: runs.LoadedRun) -> tuple[str, DataModule]:
    """The split that the config asks for, and its data, checked against the run."""
    split, chosen = chosen_data(cfg.data, run)
    source = build(OmegaConf.create(chosen), "data")
    if list(source.classes) != run.classes:
        raise UserError(f"the data's classes {source.classes} aren't the run's {run.classes}")
    if split not in source.splits:
        raise UserError(f"data.split={split}: this data has {', '.join(source.splits)}")
    source.splits = {split: source.splits[split]}
    data = DataModule(
        source,
        eval_batch_size=cfg.eval_batch_size,
        workers=cfg.workers,
        intensity=run.intensity,
    )
    return split, data


def chosen_data(given: DictConfig, run: runs.LoadedRun) -> tuple[str, dict[str, Any]]:
    """The split, and the config of the data: the run's own with what was given, or another altogether."""
    data = plain(given)
    split = data.pop("split")
    data = {key: value for key, value in data.items() if value is not None}
    if "_target_" in data:
        return split, data
    own = run.config["data"]
    unknown = sorted(set(data) - set(own))
    if unknown:
        raise UserError(
            f"data.{unknown[0]}: the run's data has no such option; it has {', '.join(own)}"
        )
    runs.check_targets(own, run.checkpoint, packages=("seg.data",))
    return split, own | data


def write(
    folder: Path,
    scores: dict[str, float],
    run: runs.LoadedRun,
    cfg: DictConfig,
    data: DataModule,
    split: str,
) -> None:
    """metrics.json, panels and the table."""
    panels = folder / "panels"
    panels.mkdir(parents=True, exist_ok=True)
    pictures = reports.Pictures(data.samples(split), cfg.panels, run.classes, run.colors, panels)
    pictures.write(run.model)
    facts = {"checkpoint": str(run.checkpoint), "split": split, "images": data.source.splits[split]}
    runs.write_json(folder / "metrics.json", facts | {"metrics": scores})
    table = reports.score_table(f"{split}, {run.checkpoint}", scores, run.classes, f"{split}/")
    log.info("", extra={"table": table})
    log.info(reports.score_line(scores, f"{split}/"))
    log.info(f"numbers {folder}/metrics.json, pictures {panels}/all.png")


@command("evaluate")
def main(cfg: DictConfig) -> None:
    evaluate(cfg)


if __name__ == "__main__":
    main()
