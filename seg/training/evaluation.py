"""Evaluation of a run on a split: metrics, intervals, panels and tables."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seg import files
from seg.cli.command_line import quote_path
from seg.cli.compose import instantiate_node, plain_config
from seg.cli.validation import check_call
from seg.data.datamodule import DataModule
from seg.data.dataset import BandedSample, SegmentationDataset
from seg.data.datasets.base import object_border, read_objects
from seg.display import tables
from seg.display.console import track_progress
from seg.errors import DataError, RunError, UserError
from seg.inference.outputs import check_object_options
from seg.inference.quality import QUALITY_FILE
from seg.inference.run_data import check_run_node
from seg.labels import IGNORE
from seg.logits import probabilities
from seg.metrics import SegmentationMetrics, instances, isbi2012
from seg.metrics.calibration import draw_reliability
from seg.metrics.risk_control import parse_risk_bound
from seg.metrics.significance import BootstrapInput, Interval, bootstrap_intervals
from seg.models.contract import same_size_logits
from seg.objects import IGNORED_OBJECT, label_components
from seg.runs import load, records
from seg.runs.load import LoadedRun
from seg.runs.record import RiskPromise
from seg.training.callbacks import progress
from seg.training.callbacks.pictures import PanelCallback, logits_of_bands
from seg.training.task import SegmentationTask
from seg.training.trainer import build_trainer

log = logging.getLogger("seg")
CONFUSION_FILE = (
    "confusion.npz"  # matrices (B, C, C) or (B, K, 2, 2), of an evaluation under "confusion"
)
OBJECT_PIXELS = (
    2**26
)  # of the largest image whose objects are scored, which needs it whole in memory
SPLIT_NECKS_PX = (
    None,
    1.0,
    2.0,
    3.0,
    4.0,
    6.0,
)  # px of objects.split_neck_px among which validation chooses
STANDARD_METRICS = {
    "_target_": "seg.metrics.SegmentationMetrics"
}  # of runs older than the metrics option


def build_metrics(cfg: DictConfig, run: LoadedRun) -> SegmentationMetrics:
    """Build the metrics: those of the command line, or else of the run's training, at the chosen threshold.

    Args:
        cfg: config of seg.evaluate; with a bound of a risk the threshold is 0.5, until the images choose it.
        run: evaluated run, whose threshold is used if ``cfg.threshold`` is null.
    """
    asked = cfg.get("metrics")
    node = plain_config(asked) if asked else run.config.get("metrics") or STANDARD_METRICS
    if not asked:
        check_run_node(node, "metrics", run, "seg.metrics")
    return instantiate_node(
        OmegaConf.create(node), "metrics", classes=run.classes, overlapping=run.overlapping,
        threshold=0.5 if parse_risk_bound(cfg.threshold) else load.threshold(run, cfg.threshold),
    )  # fmt: skip


def check_evaluation_options(cfg: DictConfig) -> None:
    """Raise UserError for options that would otherwise fail only after the network has run."""
    check_object_options(cfg)
    if OmegaConf.is_list(cfg.run) and not cfg.output:
        raise UserError("output is not set: several runs share no folder; give output=...")


def output_names(metrics: SegmentationMetrics, panels: int) -> list[str]:
    """Return the names of the files to be written that are known in advance."""
    plots = ["reliability.png"] if metrics.calibration is not None else []
    return [
        "metrics.json",
        CONFUSION_FILE,
        QUALITY_FILE,
        *plots,
        *(["panels/all.png"] if panels else []),
    ]


def build_trained_loss(run: LoadedRun) -> nn.Module:
    """Build the loss that the run was trained with.

    Raises:
        UserError: if this version has no such loss any more.
    """
    node = run.config["loss"]
    try:
        check_call("loss", node)
        return instantiate_node(OmegaConf.create(node), "loss")
    except UserError as error:
        raise UserError(
            f"{run.checkpoint}: made by an older version, whose loss this version doesn't know ({error}); seg.predict "
            "works; to evaluate, train again or use the version in the run's run.json"
        ) from error


def score_split(
    cfg: DictConfig, run: LoadedRun, task: SegmentationTask, data: DataModule, split: str
) -> dict[str, float]:
    """Evaluate the network on a split.

    Args:
        cfg: config of seg.evaluate.
        run: evaluated run, whose precision and memory layout are used.
        task: with network, loss and metrics.
        data: with the split.
        split: train, val or test.

    Returns:
        ``SPLIT/metric`` -> value.
    """
    bar: list[L.Callback] = [progress.progress_bar()] if progress.shows_progress_bar() else []
    trained = run.config.get("trainer", {})
    try:
        options = {name: trained[name] for name in ("precision", "channels_last")}
        if cfg.get("precision"):  # else as in training
            options["precision"] = "32-true"
        check_call("trainer", {"_target_": "seg.training.trainer.build_trainer"} | options)
    except (KeyError, TypeError, UserError) as error:
        raise RunError(f"{run.checkpoint}: its config's trainer is damaged ({error})") from error
    trainer = build_trainer(cfg.accelerator, devices=1, callbacks=bar, **options)
    loader = data.loader(data.samples(split), cfg.eval_batch_size, shuffle=False)
    scores = trainer.test(task, loader, verbose=False)[0]
    return {f"{split}/{key.removeprefix('test/')}": value for key, value in scores.items()}


class PredictedObjects(NamedTuple):
    """One image with its objects.

    Attributes:
        interior: probability (H, W) of being inside an object.
        mask: (H, W) that the network learns: 0 outside and between objects, 1 inside, 255 ignored.
        labels: of the true objects (H, W); 0 outside, -1 where ignored.
    """

    interior: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


def predict_objects(
    model: nn.Module, samples: SegmentationDataset, device: str | torch.device
) -> Iterator[PredictedObjects]:
    """Yield the images of a split with their true and predicted objects."""
    for index in track_progress(range(len(samples)), "objects"):
        name = samples.names[index]
        with torch.inference_mode():
            if samples.is_large(name):
                with samples.open_banded(name) as banded:
                    interior, mask = predict_banded_interior(model, samples, banded)
            else:
                sample = samples[0, index]
                logits = same_size_logits(model, sample["image"][None].to(device))
                interior = instances.object_probability(probabilities(logits)[0].cpu().numpy())
                mask = sample["mask"].numpy().astype(np.uint8)
        if object_border(samples.source).separate:
            labels = read_objects(samples.source, name)
            mask = np.where(mask == 2, 0, mask)  # a border of its own class
        else:
            labels = label_components(mask == 1)
            labels[mask == IGNORE] = IGNORED_OBJECT
        yield PredictedObjects(interior, mask, labels)


def predict_banded_interior(
    model: nn.Module, samples: SegmentationDataset, sample: BandedSample
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of being inside an object, and the mask, of an image larger than a tile; both (H, W).

    Raises:
        DataError: if the image has more than ``OBJECT_PIXELS``.
    """
    height, width = sample.shape
    if height * width > OBJECT_PIXELS:
        raise DataError(
            f"{sample.name}: {height}x{width} px; objects are scored in images of up to {OBJECT_PIXELS / 1e6:.0f} megapixels: "
            "cut it, or take data.task=classes"
        )
    bands = [
        instances.object_probability(probabilities(torch.from_numpy(logits)[None])[0].numpy())
        for _, _, logits in logits_of_bands(model, samples, sample)
    ]
    return np.concatenate(bands), sample.mask_rows(0, height)


def choose_split_neck(
    model: nn.Module, samples: SegmentationDataset, threshold: float, device: torch.device
) -> float | None:
    """Return the one of ``SPLIT_NECKS_PX`` with the highest F1 of the objects of a split, the first of equal ones."""
    border = object_border(samples.source).width
    training = model.training
    model.to(device).eval()
    counts: dict[float | None, Any] = dict.fromkeys(SPLIT_NECKS_PX, 0)
    for image in predict_objects(model, samples, device):
        for neck in counts:
            found = instances.segment_objects(image.interior, threshold, neck, border=border)
            counts[neck] += instances.match_objects(image.labels, found, image.labels >= 0)
    model.train(training)
    scores = {n: float(instances.object_scores(c)["object_f1"]) for n, c in counts.items()}
    return max(scores, key=lambda neck: np.nan_to_num(scores[neck]))


def score_objects(
    run: LoadedRun,
    samples: SegmentationDataset,
    threshold: float,
    options: dict[str, Any],
    device: str,
) -> tuple[dict[str, float], dict[str, BootstrapInput]]:
    """Score the borders and objects of a split.

    Args:
        run: evaluated run, on ``device``.
        samples: images of the split.
        threshold: probability above which a pixel is inside an object.
        options: of ``instances.segment_objects``: how predicted objects are separated.
        device: to predict on.

    Returns:
        Name -> score, and name -> data for its bootstrap interval.
    """
    # Predict image by image: curves for the border scores, counts for the object scores.
    sections, counts = [], []
    for image in predict_objects(run.model, samples, device):
        sections.append(isbi2012.section_scores(image.interior, image.mask))
        found = instances.segment_objects(image.interior, threshold, **options)
        counts.append(instances.match_objects(image.labels, found, image.labels >= 0))
    # Pool over the images: border scores at their best threshold, object scores from summed counts.
    scores = isbi2012.best_scores(sections)
    pooled = instances.object_scores(np.sum(counts, axis=0))
    scores |= {name: float(value) for name, value in pooled.items()}
    return scores, isbi2012.section_bootstrap_inputs(sections) | instances.object_bootstrap_inputs(
        np.stack(counts)
    )


@dataclass(frozen=True)
class EvaluationReport:
    """Results of an evaluation: metrics.json, panels, plots, and tables on the terminal.

    Attributes:
        cfg: config of seg.evaluate.
        run: evaluated run.
        data: evaluated data.
        split: of the data.
        folder: receives the files.
        below: folder named by the user; nothing is written through a link below it.
        metrics: after the evaluation.
        objects: options by which predicted objects were separated; None: the data has none.
        promise: bound for which these images chose the threshold; None: they did not choose it.
    """

    cfg: DictConfig
    run: LoadedRun
    data: DataModule
    split: str
    folder: Path
    below: Path
    metrics: SegmentationMetrics
    objects: dict[str, Any] | None = None
    promise: RiskPromise | None = None

    def write(self, scores: dict[str, float], evidence: dict[str, BootstrapInput]) -> None:
        """Write metrics.json, panels and the reliability plot, and print the tables.

        Args:
            scores: ``SPLIT/metric`` -> value.
            evidence: metric -> data for its bootstrap interval.
        """
        # Write the numbers, with the confusion matrix of each image for paired tests, and the panels.
        run, split, panels = self.run, self.split, self.folder / "panels"
        files.make_folder(self.folder, self.below)
        samples, threshold = self.data.samples(split), self.metrics.threshold
        intervals = self.intervals(evidence)
        facts = {
            "checkpoint": str(run.checkpoint),
            "split": split,
            "images": samples.names,
            "pixels": self.metrics.pixels.scored_pixels,
            "threshold": threshold,
            "engine": self.cfg.get("engine", "torch"),
            "precision": self.cfg.get("precision"),
            **({"objects": self.objects} if self.objects else {}),
            **({"promise": self.promise.model_dump()} if self.promise else {}),
            "confidence_level": self.cfg.confidence_level,
            "intervals": {key: [i.low, i.high] for key, i in intervals.items() if i.low == i.low},
            "confusion": CONFUSION_FILE,
        }
        matrices = self.metrics.pixels.matrices()
        records.write_arrays(self.folder / CONFUSION_FILE, {"confusion": matrices}, self.below)
        records.write_json(self.folder / "metrics.json", facts | {"metrics": scores}, self.below)
        PanelCallback(samples, self.cfg.panels, run.colors, panels, self.below, threshold).write(
            run.model
        )
        # Print the tables that the data and the metrics call for.
        title = files.encodable(f"{split}, {run.checkpoint}")
        table = tables.pixel_score_table(title, scores, run.classes, f"{split}/", intervals)
        log.info("", extra={"table": table})
        pixels = self.metrics.pixels.scored_pixels
        log.info(tables.score_line(scores, run.classes, f"{split}/", pixels))
        if self.metrics.surfaces is not None:
            for table in tables.border_tables(scores, run.classes, f"{split}/", intervals):
                log.info("", extra={"table": table})
        if intervals:
            log.info(tables.interval_line(len(samples), self.cfg.confidence_level))
        if self.data.source.task == "instances":
            log.info("", extra={"table": tables.object_table(scores, f"{split}/", intervals)})
            log.info(f"true objects: {object_border(self.data.source).describe()}")
        if self.metrics.calibration is not None:
            with files.atomic_write(self.folder / "reliability.png", self.below) as aside:
                draw_reliability(self.metrics.calibration, title, aside)
            log.info(f"reliability {quote_path(self.folder / 'reliability.png')}")
        shown = f", pictures {quote_path(Path(panels, 'all.png'))}" if self.cfg.panels else ""
        log.info(f"numbers {quote_path(self.folder / 'metrics.json')}{shown}")

    def intervals(self, evidence: dict[str, BootstrapInput]) -> dict[str, Interval]:
        """Return the bootstrap intervals over images of the scores in the tables; none with ``confidence_level=0``."""
        if not self.cfg.confidence_level:
            return {}
        displayed = ("dice", "iou", *tables.BORDER_COLUMNS, *tables.OBJECT_ROWS)
        inputs = {
            f"{self.split}/{name}": given
            for name, given in evidence.items()
            if name.split("/")[0].removesuffix("_per_image") in displayed
        }
        return bootstrap_intervals(inputs, self.cfg.confidence_level)
