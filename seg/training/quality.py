"""Calibration of the scores that images without truth get, on validation or out-of-fold images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg.cli.command_line import quote_path
from seg.data.dataset import SegmentationDataset
from seg.data.normalization import Normalization
from seg.inference.predictor import mark_nodata
from seg.inference.quality import (
    QUALITY_FILE,
    ImageMeter,
    ImageQuality,
    QualityScorer,
    class_counts,
    expected_quality,
    look_line,
)
from seg.inference.quality_table import write_quality_rows
from seg.metrics import expected_scores
from seg.metrics.calibration import COUNTED_BYTES
from seg.metrics.image_features import fit_reference
from seg.runs.load import LoadedRun
from seg.runs.record import Calibration, ClassQuality, QualityRecord, RiskPromise

log = logging.getLogger("seg")
MEASURED = 100  # most images of a split whose features are measured, evenly spaced
FEWEST = 3  # images whose features tell others apart
USUAL = 0.05  # share of the calibration images that are below ``usual``


def value_scale(intensity: Normalization) -> tuple[list[float], list[float]]:
    """Return for each channel of an image the stored value that becomes 0, and how many become 1."""
    span, own = intensity.high - intensity.low or 1.0, intensity.own_channels
    mean, std = np.array(intensity.mean)[own], np.array(intensity.std)[own]
    return (intensity.low + span * mean).tolist(), (span * std).tolist()


def measure_values(samples: SegmentationDataset, names: Sequence[str]) -> list[NDArray | None]:
    """Return the features of images, of at most ``MEASURED`` evenly spaced ones; None of the others.

    Args:
        samples: their data set.
        names: of the images.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(len(names), MEASURED))})
    found = measure_images(samples, [names[i] for i in chosen], *value_scale(samples.intensity))
    features: list[NDArray | None] = [None] * len(names)
    for i, one in zip(chosen, found, strict=True):
        features[i] = one
    return features


def measure_images(
    samples: SegmentationDataset, names: list[str], shift: list[float], scale: list[float]
) -> list[NDArray | None]:
    """Return the features of images; None of one without data.

    Args:
        samples: their data set.
        names: of the images.
        shift: of each channel, stored value that becomes 0.
        scale: of each channel, stored values that become 1.
    """
    intensity, found = samples.intensity, []
    for name in names:
        with samples.open_banded(name) as sample:
            height, width = sample.shape
            meter = ImageMeter(height, width, shift, scale, False)
            for top, bottom in meter.features.spans():
                rows = sample.image_rows(top, bottom)[..., intensity.own_channels]
                blank = np.zeros(rows.shape[:2], np.uint8)
                meter.add_values(top, rows, mark_nodata(blank, rows, intensity.nodata))
            found.append(meter.features.compute())
    return found


def fit_quality(
    counts_NCTPB: NDArray,
    features: Sequence[NDArray | None],
    others: Sequence[NDArray | None],
    intensity: Normalization,
    classes: int,
    calibrated_on: Calibration,
    threshold: float | None,
    groups: Sequence[str] | None,
) -> QualityRecord | None:
    """Return what scores without truth need; None if there are too few images to tell others apart.

    Args:
        counts_NCTPB: pixels of calibration images, which trained no network that predicted them.
        features: of the same images; None: not measured.
        others: of further images that the network knows, those that trained it.
        intensity: by which the features were normalised.
        classes: their number.
        calibrated_on: ``validation`` or ``out-of-fold``.
        threshold: of the predictions; None: each network had its own.
        groups: of each calibration image, if images of a group resemble each other.
    """
    measured = np.array([i for i, one in enumerate(features) if one is not None], int)
    known = [one for one in (*features, *others) if one is not None]
    if not len(counts_NCTPB) or len(known) < FEWEST:
        return None
    reference, distances = fit_reference(np.stack(known))
    distance_N = np.full(len(counts_NCTPB), np.nan)
    distance_N[measured] = distances[: len(measured)]
    counts_NCTPB = class_counts(counts_NCTPB, classes)
    group_N = np.arange(len(counts_NCTPB))
    if groups is not None:
        group_N = np.unique(np.asarray(groups), return_inverse=True)[1]
    rows = [fit_class(counts_NCTPB[:, c], distance_N, group_N) for c in range(classes)]
    shift, scale = value_scale(intensity)
    record = QualityRecord(
        calibrated_on=calibrated_on,
        images=len(counts_NCTPB),
        threshold=threshold,
        usual=None,
        classes=rows,
        shift=shift,
        scale=scale,
        measured=len(known),
        center=[float(f"{v:.6g}") for v in reference.center],
        spread=[float(f"{v:.6g}") for v in reference.spread],
        limit=reference.limit,
    )
    means = [expected_quality(record, counts, None).mean_dice for counts in counts_NCTPB]
    means = [mean for mean in means if mean is not None]
    return record.model_copy(update={"usual": float(np.quantile(means, USUAL)) if means else None})


def groups_of(names: Sequence[str], groups: dict[str, str] | None) -> list[str] | None:
    """Return the group of each name; None if images come in no groups."""
    return None if groups is None else [groups[name] for name in names]


class OutOfFoldMeter:
    """Measurements of the images that the folds of a cross-validation predict.

    Args:
        run: of the first fold, whose normalisation that of the features is.
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run, self.kept = run, 0
        self.scale = value_scale(run.intensity)
        self.counts: list[NDArray] = []
        self.features: list[NDArray | None] = []
        self.names: list[str] = []

    def begin(self, height: int, width: int) -> ImageMeter:
        """Return the meter of an image."""
        return ImageMeter(height, width, *self.scale, self.run.overlapping)

    def finish(self, meter: ImageMeter, name: str) -> None:
        """Keep what the meter of an image has measured; the counts up to ``COUNTED_BYTES``."""
        self.names.append(name)
        assert meter.counts_CTPB is not None
        if self.kept < COUNTED_BYTES:
            self.counts.append(meter.counts_CTPB)
            self.kept += meter.counts_CTPB.nbytes
        self.features.append(meter.features.compute())

    def fit(
        self, promise: RiskPromise | None, groups: dict[str, str] | None
    ) -> dict[str, Any] | None:
        """Return the record of the quality as plain values; None if there are too few images.

        Args:
            promise: of the threshold of all folds; None: each has its own.
            groups: name -> group of the images; None: they come in no groups.
        """
        if not self.counts:
            return None
        threshold = None if promise is None else promise.threshold
        counted = len(self.counts)
        found = fit_quality(
            np.stack(self.counts), self.features[:counted], self.features[counted:], self.run.intensity,
            len(self.run.classes), "out-of-fold", threshold, groups_of(self.names[:counted], groups),
        )  # fmt: skip
        return None if found is None else found.model_dump()


def report_quality(
    scorer: QualityScorer, counts_NCTPB: NDArray, samples: SegmentationDataset, folder: Path, below: Path
) -> None:  # fmt: skip
    """Write quality.csv of images whose truth is known, and log how well the expected scores meet the true ones.

    Args:
        scorer: of the run.
        counts_NCTPB: pixels of each image.
        samples: the images, in the order of the counts.
        folder: receives the file.
        below: folder that the user named.
    """
    quality, classes = scorer.quality, scorer.run.classes
    names = samples.names[: len(counts_NCTPB)]
    features = measure_images(samples, names, quality.shift, quality.scale)
    found = [scorer.expect(*pair) for pair in zip(counts_NCTPB, features, strict=True)]
    rows = [row for name, q in zip(names, found, strict=True) for row in q.rows(name, None, classes)]  # fmt: skip
    write_quality_rows(folder / QUALITY_FILE, rows, below)
    log.info(f"quality    {look_line((n, q.look) for n, q in zip(names, found, strict=True))}")
    # Compare with the truth: the mean over the classes that have both scores, and each class with its interval
    counts_NCTPB = class_counts(counts_NCTPB, len(classes))
    true_NC = np.stack([expected_scores.true_scores(counts_NCTPB[:, c]).dice for c in range(len(classes))], 1)  # fmt: skip
    log.info(
        f"           {compare_with_truth(found, true_NC)}; {quote_path(folder / QUALITY_FILE)}"
    )


def compare_with_truth(found: Sequence[ImageQuality], true_NC: NDArray) -> str:
    """Return how well expected scores meet true ones, in words.

    Args:
        found: expected scores of images.
        true_NC: their true Dice, nan where a class does not occur.
    """
    value_NC = np.array([[np.nan if s.value is None else s.value for s in q.dice] for q in found])
    both = ~np.isnan(value_NC + true_NC)
    pairs = [(v[b].mean(), t[b].mean()) for v, t, b in zip(value_NC, true_NC, both, strict=True) if b.any()]  # fmt: skip
    if not pairs:
        return "no image has an expected and a true Dice"
    expected, true = np.array(pairs).T
    text = f"expected Dice {expected.mean():.3f}, true {true.mean():.3f}"
    if len(pairs) > 2 and expected.std() > 0 and true.std() > 0:
        text += f", correlation over {len(pairs)} images {np.corrcoef(expected, true)[0, 1]:.2f}"
    ends = [(s.low, s.high, t) for q, row in zip(found, true_NC, strict=True) for s, t in zip(q.dice, row, strict=True)
            if s.low is not None and s.high is not None and not np.isnan(t)]  # fmt: skip
    if ends:
        inside = sum(low <= t <= high for low, high, t in ends)
        text += f"; {inside} of {len(ends)} true scores lie in their 90 % intervals"
    return text


def fit_class(counts_NTPB: NDArray, distance_N: NDArray, group_N: NDArray) -> ClassQuality:
    """Return calibration and intervals of one class.

    Args:
        counts_NTPB: pixels of the calibration images.
        distance_N: of each image from the other known ones; nan: not measured.
        group_N: number of the group of each image.
    """
    calibration = expected_scores.fit_calibration(counts_NTPB.sum(2))
    true, expected = expected_scores.true_scores(counts_NTPB), expected_scores.held_out_scores(counts_NTPB)  # fmt: skip
    scale_N = expected_scores.interval_scale(distance_N)
    gaps = [(t - e) / scale_N for t, e in zip(true, expected, strict=True)]
    known = ~np.isnan(gaps[0])  # both scores are nan in the same images
    dice_margin, iou_margin = (
        expected_scores.conformal_margin(gap[known], groups=group_N[known]) for gap in gaps
    )
    labelled = counts_NTPB[:, 1].sum((1, 2)) > 0
    return ClassQuality(
        slope=calibration.slope,
        offset=calibration.offset,
        always=bool(labelled.all()),
        images=int(known.sum()),
        dice_margin=dice_margin,
        iou_margin=iou_margin,
    )
