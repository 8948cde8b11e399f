"""Choice of a threshold that bounds a risk on average (``threshold=missed:0.1``), and the lines that say so."""

import logging
import math

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from seg.data.datamodule import DataModule
from seg.data.datasets.base import DataSource, image_groups
from seg.errors import UserError
from seg.metrics.calibration import ProbabilityHistogram
from seg.metrics.risk_control import (
    THRESHOLDS,
    RiskBound,
    control_risk,
    foreground_scores,
    image_risks,
    parse_risk_bound,
    scores_at,
)
from seg.runs.load import LoadedRun
from seg.runs.record import Calibration, ForegroundScores, RiskPromise
from seg.training.evaluation import score_split
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")
SELECTED = {  # what else the calibration images were used for
    "validation": "these images also selected the checkpoint, so the mean over new ones may be slightly higher",
    "evaluated": "these images must have trained and selected nothing",
    "out-of-fold": "each image also selected the checkpoint that predicts it, so the mean over new ones may be slightly "
    "higher; it was measured for the network of each fold, and is not proven for their ensemble",
}


def check_risk_bound(bound: RiskBound, source: DataSource, names: list[str], option: str) -> None:
    """Raise UserError if no threshold can keep a bound: because of the classes, or of too few images.

    Args:
        bound: asked for.
        source: of the data.
        names: of the images that will choose the threshold.
        option: that was typed, for messages.
    """
    if len(source.classes) != 2 or source.task == "overlapping":
        kind = "labels that overlap" if source.task == "overlapping" else f"{len(source.classes)} classes"  # fmt: skip
        raise UserError(f"{option}: needs two classes, and the data has {kind}; take threshold=best or null")  # fmt: skip
    groups = image_groups(source)
    units = len(names) if groups is None else len({groups[name] for name in names})
    if units < bound.fewest:
        kind = "images" if groups is None else "groups of images"
        raise UserError(
            f"{option}: needs {bound.fewest} {kind} (1 / {bound.alpha:g} - 1), and {units} choose the threshold; "
            f"give more (data.val, seg.crossval), or allow {math.ceil(1000 / (units + 1)) / 1000:g} or more"
        )


def choose_risk_threshold(
    counts_N2B: Tensor,
    bound: RiskBound,
    source: DataSource,
    names: list[str],
    calibrated_on: Calibration,
) -> RiskPromise | None:
    """Return the threshold that keeps a bound, and the facts about it; None, with a warning, if no threshold does.

    Args:
        counts_N2B: of the calibration images, by seg.metrics.calibration.ProbabilityHistogram.
        bound: asked for.
        source: of the data, which may put the images into groups.
        names: of the images, in the order of the counts.
        calibrated_on: ``validation`` or ``out-of-fold``.
    """
    groups, counts = image_groups(source), counts_N2B.cpu().numpy()
    units = None if groups is None else [groups[name] for name in names]
    if (found := control_risk(counts, bound, units)) is None:
        log.warning(
            f"threshold  {bound.risk}:{bound.alpha:g} is kept by no threshold from {THRESHOLDS[0]:g} to "
            f"{THRESHOLDS[-1]:g} on {len(counts)} {calibrated_on} images; 0.5 is stored, without a promise"
        )
        return None
    scores = foreground_scores(counts)
    return RiskPromise(
        risk=bound.risk,
        alpha=bound.alpha,
        threshold=found.threshold,
        calibrated_on=calibrated_on,
        images=len(counts),
        groups=None if units is None else found.units,
        mean=found.mean,
        scores=ForegroundScores(**scores_at(scores, found.threshold)),
        at_half=ForegroundScores(**scores_at(scores, 0.5)),
        at_best=ForegroundScores(**scores_at(scores, None)),
    )


def score_at_bound(
    cfg: DictConfig, run: LoadedRun, task: SegmentationTask, data: DataModule, split: str, own: bool
) -> tuple[dict[str, float], RiskPromise | None]:
    """Evaluate the network on a split; with ``threshold=missed:0.1`` at the threshold that the split chooses.

    Args:
        cfg: config of seg.evaluate.
        run: evaluated run.
        task: with network, loss and metrics.
        data: with the split.
        split: train, val, test or all.
        own: whether the data is that of the run.

    Returns:
        ``SPLIT/metric`` -> value, and what the threshold promises.

    Raises:
        UserError: if the images trained the run, or are too few.
    """
    if (bound := parse_risk_bound(cfg.threshold)) is None:
        return score_split(cfg, run, task, data, split), None
    option, names = f"threshold={cfg.threshold}", data.samples(split).names
    if own and split in ("train", "all"):
        raise UserError(
            f"{option}: data.split={split} has the training images; give data.split=test or other data"
        )
    check_risk_bound(bound, data.source, names, option)
    metrics = task.test_metrics
    metrics.histogram = histogram = ProbabilityHistogram()
    scores = score_split(cfg, run, task, data, split)
    metrics.histogram = None
    kind = "validation" if own and split == "val" else "evaluated"
    promise = choose_risk_threshold(histogram.compute(), bound, data.source, names, kind)
    if promise is None:
        return scores, None
    metrics.threshold = promise.threshold
    log_risk_threshold(promise, run.classes, f"give threshold={promise.threshold:g} to seg.predict")
    return score_split(cfg, run, task, data, split), promise


def log_risk_threshold(
    promise: RiskPromise, classes: list[str], use: str = "kept by evaluate, predict and export"
) -> None:
    """Log a threshold, what it promises and costs, and where the promise is void.

    Args:
        promise: that it keeps.
        classes: names.
        use: of the threshold, in words.
    """
    log.info(f"threshold  {promise.threshold:g}: {promise.describe(classes)}; {use}")
    there, half, best = (
        f"precision {p.precision:.3f}, recall {p.recall:.3f}, Dice {p.dice:.3f}"
        for p in (promise.scores, promise.at_half, promise.at_best)
    )
    log.info(
        f"price      {classes[1]}: {there}; at 0.5 {half}; best Dice, at {promise.at_best.threshold:.2g}, {best}"
    )
    log.info(
        f"holds      on average for images drawn like these, not for each image, and not for other data; "
        f"{SELECTED[promise.calibrated_on]}"
    )


def log_measured_risk(
    promise: RiskPromise, counts_NC4: Tensor, classes: list[str], split: str
) -> None:
    """Log the mean of the risk that a promise bounds, over images that did not choose the threshold."""
    risks = image_risks(counts_NC4[:, 1].numpy(), promise.risk)
    log.info(
        f"{split:10} on average over {len(risks)} images, {100 * np.mean(risks):.3g} % {promise.subject(classes)}"
    )
