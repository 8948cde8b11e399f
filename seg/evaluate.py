"""Scores a run on a split or on other data: ``python -m seg.evaluate run=outputs/latest data.split=test``."""

import dataclasses
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torch import nn

from seg import ensemble, files, reports, runs
from seg.cli import UserError, build, command, plain
from seg.command_line import quote_path
from seg.console import console, quiet
from seg.data.module import DataModule, Samples
from seg.hardware import build_trainer, pick_accelerator, settle, torch_device
from seg.logits import IGNORE, probabilities
from seg.metrics import SegmentationMetrics, boundaries, instances
from seg.metrics.reliability import reliability_plot
from seg.metrics.significance import Evidence, Interval, interval
from seg.options import arguments, check_call, located
from seg.past import naming
from seg.runs import RunError
from seg.shortage import explaining
from seg.task import SegmentationTask
from seg.tiles import full_logits
from seg.trust import check_targets
from seg.tta import viewed

log = logging.getLogger("seg")
STANDARD = {"_target_": "seg.metrics.SegmentationMetrics"}  # of a run older than its choice


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Metrics of the run's network on a split, as logged in training; writes them beside panels.

    Where the data counts objects, also those of seg.metrics.boundaries and seg.metrics.instances.
    """
    quiet()
    run = ensemble.load(cfg.run, cfg.model.depth)
    try:
        model = viewed(run.model, cfg.tta, list(cfg.scales), run.overlapping)
    except ValueError as error:
        raise UserError(str(error)) from error
    run = dataclasses.replace(run, model=model)
    metrics = chosen_metrics(cfg, run)
    check_report(cfg)
    folder = Path(cfg.output) if cfg.output else run.folder / f"evaluate-{cfg.data.split}"
    below = folder if cfg.output else run.folder
    files.check_writable(folder, below, names(metrics, cfg.panels))
    files.check_tree(folder / "panels", below)
    split, data = open_data(cfg, run)
    task = SegmentationTask(run.model, trained_loss(run), metrics)
    scores = count(cfg, run, task, data, split)
    evidence = task.test_metrics.evidence()
    if data.source.task == "instances":
        device = torch_device(pick_accelerator(cfg.accelerator))
        settle(run.model, device)
        found, more = count_objects(
            run, data.samples(split), metrics.threshold, plain(cfg.objects), device
        )
        scores |= {f"{split}/{name}": value for name, value in found.items()}
        evidence |= more
    Report(cfg, run, data, split, folder, below, task.test_metrics).write(scores, evidence)
    return scores


def chosen_metrics(cfg: DictConfig, run: runs.LoadedRun) -> SegmentationMetrics:
    """What is computed: as asked, else as in training; at the run's threshold, if no other is given."""
    asked = cfg.get("metrics")
    node = plain(asked) if asked else run.config.get("metrics") or STANDARD
    if not asked:
        check_node(node, "metrics", run, "seg.metrics")
    return build(
        OmegaConf.create(node), "metrics", classes=run.classes, overlapping=run.overlapping,
        threshold=runs.threshold(run, cfg.threshold),
    )  # fmt: skip


def check_node(node: Any, group: str, run: runs.LoadedRun, package: str) -> None:
    """Raise RunError unless a node of the run's config names a class of a package, and arguments that it takes."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise RunError(f"{run.checkpoint}: its config has no {group}")
    check_targets(node, run.checkpoint, packages=(package,))
    try:
        check_call(group, node, {}, {})
    except UserError as error:
        raise RunError(f"{run.checkpoint}: {error}") from error


def check_report(cfg: DictConfig) -> None:
    """Raises UserError for what would be told only after the network ran."""
    check_numbers(cfg)
    if cfg.panels < 0 or cfg.eval_batch_size < 1:
        raise UserError(
            f"panels={cfg.panels} and eval_batch_size={cfg.eval_batch_size}: give 0 and 1 or more"
        )
    if OmegaConf.is_list(cfg.run) and not cfg.output:
        raise UserError("output is not set: several runs have no folder in common; give output=...")


def check_numbers(cfg: DictConfig) -> None:
    """Raises UserError for a confidence, or a way to tell objects apart, that there isn't."""
    if not 0 <= cfg.confidence < 1:
        raise UserError(f"confidence={cfg.confidence}: a number from 0 (no intervals) to below 1")
    check_objects(cfg)


def check_objects(cfg: DictConfig) -> None:
    """Raises UserError for a way to tell objects apart that there isn't."""
    try:
        instances.objects(np.zeros((1, 1)), **plain(cfg.objects))
    except (ValueError, TypeError) as error:
        raise UserError(f"objects: {error}") from error


def names(metrics: SegmentationMetrics, panels: int) -> list[str]:
    """Return the names of the files that are written, as far as they are known before the work."""
    plots = ["reliability.png"] if metrics.calibration is not None else []
    return ["metrics.json", *plots, *(["panels/all.png"] if panels else [])]


def trained_loss(run: runs.LoadedRun) -> nn.Module:
    """The loss that the run was trained with.

    Raises:
        UserError: when this version has no such loss any more.
    """
    node = run.config["loss"]
    try:
        check_call("loss", node, {}, {})
        return build(OmegaConf.create(node), "loss")
    except UserError as error:
        raise UserError(
            f"{run.checkpoint}: made by an older version, whose loss this one doesn't know ({error}); predict "
            "works, to evaluate train anew or take the version in its run.json"
        ) from error


def count(
    cfg: DictConfig, run: runs.LoadedRun, task: SegmentationTask, data: DataModule, split: str
) -> dict[str, float]:
    """Runs the network over the split and returns the metrics by their logged names."""
    bar: list[L.Callback] = [reports.progress_bar()] if reports.on_terminal() else []
    trained = run.config.get("trainer", {})
    try:
        options = {name: trained[name] for name in ("precision", "channels_last")}
        check_call("trainer", {"_target_": "seg.hardware.build_trainer"} | options, {}, {})
    except (KeyError, TypeError, UserError) as error:
        raise RunError(f"{run.checkpoint}: its config's trainer is damaged ({error})") from error
    trainer = build_trainer(cfg.accelerator, devices=1, callbacks=bar, **options)
    loader = data.loader(data.samples(split), cfg.eval_batch_size, shuffle=False)
    found = trainer.test(task, loader, verbose=False)[0]
    return {f"{split}/{key.removeprefix('test/')}": value for key, value in found.items()}


def open_data(cfg: DictConfig, run: runs.LoadedRun) -> tuple[str, DataModule]:
    """The split that the config asks for, and its data, checked against the run."""
    split, chosen = chosen_data(cfg.data, run)
    own = chosen == run.config.get("data")
    with naming(run.checkpoint) if own else nullcontext():
        source = build(OmegaConf.create(chosen), "data")
    if list(source.classes) != run.classes:
        raise UserError(f"the data's classes {source.classes} aren't the run's {run.classes}")
    if (source.task == "overlapping") != run.overlapping:
        raise UserError(
            f"data.task={source.task}: the run was trained on data.task={run.task}; classes overlap in both "
            "or in neither"
        )
    if split not in source.splits:
        raise UserError(f"data.split={split}: this data has {', '.join(source.splits)}")
    check_unseen(run, split, chosen, source.splits[split])
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
    own = run.config.get("data", {})
    check_node(own, "data", run, "seg.data")
    takes = arguments(located("data", own["_target_"])) or []  # also what is newer than the run
    unknown = sorted(set(data) - set(own) - set(takes))
    if unknown:
        raise UserError(
            f"data.{unknown[0]}: the run's data has no such option; it has {', '.join(own)}"
        )
    return split, own | data


def check_unseen(run: runs.LoadedRun, split: str, data: dict[str, Any], names: list[str]) -> None:
    """Raises UserError when images of the run's own data trained a member of an ensemble."""
    own = run.config["data"]
    places = [[Path(str(one.get(k))).resolve() for k in ("root", "table")] for one in (data, own)]
    if data["_target_"] != own["_target_"] or places[0] != places[1]:
        return  # other data, whose names mean nothing here
    if count := len(run.seen.intersection(names)):
        folds = run.checkpoint.name == runs.CROSSVAL
        raise UserError(
            f"data.split={split}: {count} of its {len(names)} images trained a member of this ensemble"
            f"{f'; its out-of-fold scores are in {run.checkpoint}' * folds}; here take data.split=test or other data"
        )


@torch.inference_mode()
def count_objects(
    run: runs.LoadedRun, samples: Samples, threshold: float, options: dict[str, Any], device: str
) -> tuple[dict[str, float], dict[str, Evidence]]:
    """Scores of borders and objects by name, and what their intervals rest on."""
    sections, counts = [], []
    for index in track(
        range(len(samples)), "objects", console=console, transient=True, disable=not console.is_terminal
    ):  # fmt: skip
        sample = samples[0, index]
        logits = full_logits(run.model, sample["image"][None].to(device))
        interior = probabilities(logits)[0, 1].cpu().numpy()
        truth = sample["mask"].numpy().astype(np.uint8)
        sections.append(boundaries.section_scores(interior, truth))
        found = instances.objects(interior, threshold, **options)
        true = instances.components(truth == 1)
        counts.append(instances.match(true, found, truth != IGNORE))
    scores = boundaries.best(sections)
    pooled = instances.object_scores(np.sum(counts, axis=0))
    scores |= {name: float(value) for name, value in pooled.items()}
    return scores, boundaries.evidence(sections) | instances.evidence(np.stack(counts))


@dataclass(frozen=True)
class Report:
    """What evaluate leaves: numbers, intervals, pictures, plots, and the tables on the terminal."""

    cfg: DictConfig
    run: runs.LoadedRun
    data: DataModule
    split: str
    folder: Path
    below: Path  # folder that the user named
    metrics: SegmentationMetrics

    def write(self, scores: dict[str, float], evidence: dict[str, Evidence]) -> None:
        """metrics.json, panels, the reliability plot and the tables."""
        run, split, panels = self.run, self.split, self.folder / "panels"
        files.make_folder(self.folder, self.below)
        samples, threshold = self.data.samples(split), self.metrics.threshold
        intervals = self.intervals(evidence)
        facts = {
            "checkpoint": str(run.checkpoint),
            "split": split,
            "images": samples.names,
            "threshold": threshold,
            "confidence": self.cfg.confidence,
            "intervals": {key: [i.low, i.high] for key, i in intervals.items() if i.low == i.low},
            "confusion": self.metrics.pixels.images().tolist(),  # of each image, for paired tests
        }
        runs.write_json(self.folder / "metrics.json", facts | {"metrics": scores}, self.below)
        reports.Pictures(samples, self.cfg.panels, run.colors, panels, self.below, threshold).write(
            run.model
        )
        title = files.encodable(f"{split}, {run.checkpoint}")
        table = reports.score_table(title, scores, run.classes, f"{split}/", intervals)
        log.info("", extra={"table": table})
        log.info(reports.score_line(scores, run.classes, f"{split}/"))
        if self.metrics.surfaces is not None:
            table = reports.border_table(scores, run.classes, f"{split}/", intervals)
            log.info("", extra={"table": table})
        if intervals:
            log.info(reports.interval_line(len(samples), self.cfg.confidence))
        if self.data.source.task == "instances":
            log.info("", extra={"table": reports.object_table(scores, f"{split}/", intervals)})
        if self.metrics.calibration is not None:
            with files.whole(self.folder / "reliability.png", self.below) as aside:
                reliability_plot(self.metrics.calibration, title, aside)
            log.info(f"reliability {quote_path(self.folder / 'reliability.png')}")
        numbers, pictures = self.folder / "metrics.json", Path(panels, "all.png")
        log.info(f"numbers {quote_path(numbers)}, pictures {quote_path(pictures)}")

    def intervals(self, evidence: dict[str, Evidence]) -> dict[str, Interval]:
        """Of what the tables show, by bootstrap over images; none if not asked for."""
        if not self.cfg.confidence:
            return {}
        shown = ("dice", "iou", *reports.BORDERS, *reports.OBJECTS)
        return {
            f"{self.split}/{name}": interval(rows, score, self.cfg.confidence)
            for name, (rows, score) in evidence.items()
            if name.split("/")[0].removesuffix("_per_image") in shown
        }


@command("evaluate")
def main(cfg: DictConfig) -> None:
    asked = f"evaluating, eval_batch_size={cfg.eval_batch_size}"
    with explaining(
        asked, "whole images go in there: lower eval_batch_size or workers, or cut the images"
    ):
        evaluate(cfg)


if __name__ == "__main__":
    main()
