"""Scores of predicted images without their truth: measured band by band, compared with what a run knows."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from seg.errors import RunError
from seg.labels import IGNORE
from seg.metrics import expected_scores
from seg.metrics.image_features import NAMES, ImageFeatures, ReferenceImages
from seg.metrics.probability_counts import count_probabilities
from seg.runs import load
from seg.runs.load import LoadedRun
from seg.runs.record import ClassQuality, QualityRecord

NO_CALIBRATION = (
    "has no calibration for scores without truth; seg.train and seg.crossval of this version store it, in the best "
    "checkpoint and for all folds together"
)
log = logging.getLogger("seg")
COLUMNS = ("image", "page", "class", "pixels", "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high",
           "distance", "known", "farthest", "look")  # fmt: skip
QUALITY_FILE = "quality.csv"


class ScoreRange(NamedTuple):
    """Expected score of a class in an image, in 0..1; None: there is none.

    Attributes:
        value: expected score; None: no pixel is predicted.
        low: lower end of its 90 % interval.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class ImageQuality:
    """Expected scores of one image.

    Attributes:
        pixels: predicted as each class.
        dice: of each class.
        iou: of each class.
        distance: from the images that the run knows; above 1 it can't know how good the prediction is. None: unknown.
        farthest: the feature that is farthest from theirs, with its channel.
        look: whether a person needs to look at the prediction.
    """

    pixels: list[int]
    dice: list[ScoreRange]
    iou: list[ScoreRange]
    distance: float | None
    farthest: str
    look: bool = False

    @property
    def known(self) -> bool:
        """True if the image is like those that the run knows."""
        return self.distance is not None and self.distance <= 1

    @property
    def mean_dice(self) -> float | None:
        """Mean of the expected Dice over the classes that have one; None: none has."""
        found = [score.value for score in self.dice if score.value is not None]
        return float(np.mean(found)) if found else None

    def rows(self, image: str, page: int | None, classes: Sequence[str]) -> list[list[Any]]:
        """Return the rows of quality.csv, a class each."""
        facts = [table_number(self.distance), "yes" if self.known else "no", self.farthest, "yes" if self.look else "no"]  # fmt: skip
        return [
            [
                image,
                "" if page is None else page,
                name,
                pixels,
                *map(table_number, (*dice, *iou)),
                *facts,
            ]
            for name, pixels, dice, iou in zip(
                classes, self.pixels, self.dice, self.iou, strict=True
            )
        ]


def table_number(value: float | None) -> float | str:
    """Return a number as it stands in a table; empty for None."""
    return "" if value is None else float(f"{value:.4g}")


class ImageMeter:
    """Measurements of one image, from top to bottom: pixels by probability, and features of the values.

    Args:
        height: px.
        width: px.
        shift: of each channel, stored value that becomes 0.
        scale: of each channel, stored values that become 1.
        overlapping: whether classes overlap.
    """

    def __init__(
        self, height: int, width: int, shift: Sequence[float], scale: Sequence[float], overlapping: bool
    ) -> None:  # fmt: skip
        self.features, self.overlapping = ImageFeatures(height, width, shift, scale), overlapping
        self.counts_CTPB: NDArray | None = None

    def add(
        self, top: int, image_HWC: NDArray, p_CHW: NDArray, mask: NDArray, truth: NDArray | None = None
    ) -> None:  # fmt: skip
        """Add rows.

        Args:
            top: the first row, px.
            image_HWC: as stored.
            p_CHW: class probabilities.
            mask: (H, W) predicted class indices, or (C, H, W) of overlapping classes; 255 without data.
            truth: likewise; None: unknown.
        """
        labels, known = (
            None if m is None else torch.from_numpy(np.ascontiguousarray(m))[None]
            for m in (mask, truth)
        )
        assert labels is not None
        counts = count_probabilities(torch.from_numpy(p_CHW)[None], labels, known, self.overlapping)
        added = counts[0].numpy()
        self.counts_CTPB = added if self.counts_CTPB is None else self.counts_CTPB + added
        self.add_values(top, image_HWC, mask)

    def add_values(self, top: int, image_HWC: NDArray, mask: NDArray) -> None:
        """Add rows of the image alone; ``mask`` is 255 where there is no data."""
        self.features.add(top, image_HWC, (mask[0] if mask.ndim == 3 else mask) == IGNORE)


def class_counts(counts_CTPB: NDArray, classes: int) -> NDArray:
    """Return the counts (..., C, T, P, B) of all classes; of two exclusive classes only those of class 1 were counted."""
    if counts_CTPB.shape[-4] == classes:
        return counts_CTPB
    return np.concatenate([expected_scores.mirror_counts(counts_CTPB), counts_CTPB], -4)


def expected_quality(
    quality: QualityRecord,
    counts_CTPB: NDArray,
    features: NDArray | None,
    intervals: bool = True,
    look: float | None = None,
) -> ImageQuality:
    """Return the expected scores of one image.

    Args:
        quality: what the run knows.
        counts_CTPB: pixels by class, truth (which may be unknown), prediction and probability.
        features: of the image's values; None: it has no data.
        intervals: whether the prediction was made as those that gave the intervals.
        look: mean expected Dice below which a person needs to look at the image; None: what 5 % of the calibration
            images have less than.
    """
    counts_CPB = class_counts(counts_CTPB, len(quality.classes)).sum(1)
    # How far the image is from those that the run knows
    distance, farthest = None, ""
    if features is not None and len(features) == len(quality.center):
        reference = ReferenceImages(np.array(quality.center), np.array(quality.spread), quality.limit)  # fmt: skip
        deviations = reference.deviations(features)
        worst = int(deviations.argmax())
        distance, farthest = float(deviations[worst]), NAMES[worst % len(NAMES)]
        if len(features) > len(NAMES):
            farthest += f" of channel {worst // len(NAMES)}"
    width = None
    if distance is not None and distance <= 1 and intervals:
        width = float(expected_scores.interval_scale(distance))
    # Scores of each class
    dice, iou = [], []
    for one, counts_PB in zip(quality.classes, counts_CPB, strict=True):
        calibration = expected_scores.ClassCalibration(one.slope, one.offset)
        found = expected_scores.expected_scores(counts_PB[None], calibration)
        dice.append(score_range(float(found.dice[0]), one, one.dice_margin, width))
        iou.append(score_range(float(found.iou[0]), one, one.iou_margin, width))
    pixels = [int(n) for n in counts_CPB[:, 1].sum(-1)]
    result = ImageQuality(pixels, dice, iou, distance, farthest)
    least = quality.usual if look is None else look
    poor = least is not None and (result.mean_dice is None or result.mean_dice < least)
    return dataclasses.replace(result, look=poor or not result.known)


def score_prediction(
    run: LoadedRun, image_HWC: NDArray, p_CHW: NDArray, mask: NDArray, look: float | None = None
) -> ImageQuality:
    """Return the expected scores of an image in memory, predicted with the run's own options.

    Args:
        run: that predicted it.
        image_HWC: as stored, in the type of the training images.
        p_CHW: class probabilities.
        mask: (H, W) predicted class indices, or (C, H, W) of overlapping classes; 255 without data.
        look: see ``expected_quality``.

    Raises:
        RunError: if the run has no calibration.
    """
    if run.quality is None:
        raise RunError(f"{run.checkpoint}: {NO_CALIBRATION}")
    scorer = make_scorer(run, run.quality, True, look)
    meter = scorer.begin(*image_HWC.shape[:2])
    meter.add(0, image_HWC, p_CHW, mask)
    return scorer.score(meter)


def score_range(
    value: float, one: ClassQuality, margin: float | None, width: float | None
) -> ScoreRange:
    """Return a score with its interval, which has ``margin * width`` on both sides; None: it has none.

    A class of which nothing is predicted has no score (nan), but 0 if every calibration image has it.
    """
    if np.isnan(value):
        return ScoreRange(0.0 if one.always else None)
    if margin is None or width is None:
        return ScoreRange(value)
    return ScoreRange(value, max(value - margin * width, 0.0), min(value + margin * width, 1.0))


class QualityScorer(NamedTuple):
    """Scores of the images that a run predicts.

    Attributes:
        run: that predicts.
        quality: what it knows.
        intervals: whether predictions are made as those that gave the intervals.
        look: see ``expected_quality``.
    """

    run: LoadedRun
    quality: QualityRecord
    intervals: bool
    look: float | None

    def begin(self, height: int, width: int) -> ImageMeter:
        """Return the meter of an image of that size, px."""
        return ImageMeter(height, width, self.quality.shift, self.quality.scale, self.run.overlapping)  # fmt: skip

    def score(self, meter: ImageMeter) -> ImageQuality:
        """Return the expected scores of an image whose rows a meter has."""
        assert meter.counts_CTPB is not None
        return self.expect(meter.counts_CTPB, meter.features.compute())

    def expect(self, counts_CTPB: NDArray, features: NDArray | None) -> ImageQuality:
        """Return the expected scores of an image; see ``expected_quality``."""
        return expected_quality(self.quality, counts_CTPB, features, self.intervals, self.look)


def build_scorer(run: LoadedRun, cfg: DictConfig, threshold: float) -> QualityScorer | None:
    """Return the scorer of a run; None, which is said, if the run does not know how good its predictions are.

    Args:
        run: that predicts.
        cfg: of seg.predict or seg.evaluate.
        threshold: of the predictions.
    """
    if run.quality is None:
        log.info(f"quality    no {QUALITY_FILE}: {run.checkpoint}: {NO_CALIBRATION}")
        return None
    intervals = has_intervals(run.quality, cfg, threshold)
    if not intervals:
        log.info("quality    without intervals: threshold, tta, scales or model.depth differ from those of the calibration")  # fmt: skip
    elif all(one.dice_margin is None and one.iou_margin is None for one in run.quality.classes):
        log.info(
            f"quality    without intervals, which need {expected_scores.fewest_images()} calibration images or "
            f"groups; there were {run.quality.images} images"
        )
    return make_scorer(run, run.quality, intervals, None if cfg.look == "auto" else cfg.look)


def make_scorer(
    run: LoadedRun, quality: QualityRecord, intervals: bool, look: float | None = None
) -> QualityScorer:
    """Return the scorer of a run.

    Raises:
        RunError: if its record is of images with other channels.
    """
    if len(quality.shift) != run.intensity.image_channels:
        raise RunError(f"{run.checkpoint}: its quality is of {len(quality.shift)} channels")
    return QualityScorer(run, quality, intervals, look)


def has_intervals(quality: QualityRecord, cfg: DictConfig, threshold: float) -> bool:
    """Return True if predictions with the options of a command are made as those that gave the intervals."""
    return load.has_plain_views(cfg) and quality.threshold in (None, threshold)


def look_line(looks: Iterable[tuple[str, bool]], shown: int = 5) -> str:
    """Return the line that says which images need a look."""
    found = list(looks)
    names = [name for name, look in found if look]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    listed = f": {', '.join(names[:shown])}{more}" if names else ""
    needs = "images needs" if len(names) == 1 else "images need"
    return f"{len(names)} of {len(found)} {needs} a look{listed}"
