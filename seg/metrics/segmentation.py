"""All scores of a split: pixel scores always, border and calibration scores on request."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg.logits import predicted_classes, probabilities
from seg.metrics.boundary import BorderMetric
from seg.metrics.calibration import (
    CalibrationError,
    ProbabilityCounts,
    ProbabilityHistogram,
    ThresholdCurve,
)
from seg.metrics.confusion import PixelScores
from seg.metrics.significance import BootstrapInput
from seg.ranges import check_ranges


class SegmentationMetrics(nn.Module):
    """Accumulate batches of logits and masks, and compute the scores of a split by name.

    Args:
        classes: names in the order of the mask's values, or of its planes.
        overlapping: whether the classes are labels that overlap.
        tolerance: px within which boundary F-score and surface Dice accept a border; None: not computed.
        hausdorff: whether the 95 % Hausdorff and the average symmetric surface distance (px) are computed.
        calibration: whether the expected calibration error is computed.
        threshold: probability between 0 and 1 above which a pixel is class 1 of two, or has a label;
            ``best``: 0.5 until ``choose_threshold`` is called.

    Raises:
        ValueError: if a number is out of range, or more than two classes have a threshold.
    """

    @check_ranges
    def __init__(
        self,
        classes: list[str],
        overlapping: bool = False,
        tolerance: Annotated[float, Field(ge=0)] | None = None,
        hausdorff: bool = False,
        calibration: bool = False,
        threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["best"] = 0.5,
    ) -> None:
        super().__init__()
        fixed = 0.5 if threshold == "best" else threshold
        if threshold != 0.5 and len(classes) != 2 and not overlapping:
            raise ValueError(
                f"threshold is {threshold} and there are {len(classes)} classes, of which the most "
                "probable is predicted; only two classes or overlapping labels have a threshold"
            )
        # Scores that are always computed, then the optional ones.
        self.classes, self.overlapping, self.threshold = classes, overlapping, float(fixed)
        self.pixels = PixelScores(classes, overlapping)
        borders = tolerance is not None or hausdorff
        self.surfaces = BorderMetric(classes, tolerance, hausdorff) if borders else None
        self.calibration = CalibrationError() if calibration else None
        labels = len(classes) if overlapping else None
        self.curve = ThresholdCurve(labels) if threshold == "best" else None
        self.histogram: ProbabilityHistogram | None = None  # set by fit_run for its last validation
        self.counts: ProbabilityCounts | None = None  # likewise, and by seg.evaluate
        self.best_threshold = self.threshold
        self.rows_of_borders: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, logits_BKHW: Tensor, mask: Tensor) -> None:
        prediction = predicted_classes(logits_BKHW, self.threshold, self.overlapping)
        self.pixels.update(prediction, mask)
        if self.surfaces is not None:
            self.surfaces.update(prediction, mask)
        self.update_probabilities(logits_BKHW, prediction, mask, continued=False)

    @torch.no_grad()
    def update_band(self, logits_1KHW: Tensor, mask: Tensor, first: bool, last: bool) -> None:
        """Add rows of one image, from top to bottom.

        Borders are scored at the end, from the masks of all rows in 8 bits.

        Args:
            logits_1KHW: of the rows.
            mask: (1, H, W) or (1, K, H, W).
            first: whether these rows are the image's first.
            last: whether these rows are the image's last.
        """
        prediction = predicted_classes(logits_1KHW, self.threshold, self.overlapping)
        self.pixels.update(prediction, mask, continued=not first)
        self.update_probabilities(logits_1KHW, prediction, mask, continued=not first)
        if self.surfaces is not None:
            self.rows_of_borders.append((prediction.byte().cpu(), mask.byte().cpu()))
            if last:
                self.surfaces.update(
                    *(torch.cat(p, -2) for p in zip(*self.rows_of_borders, strict=True))
                )
                self.rows_of_borders = []

    def update_probabilities(
        self, logits_BKHW: Tensor, prediction: Tensor, mask: Tensor, continued: bool
    ) -> None:
        """Add to the metrics of probabilities, if there are any; with ``continued`` further rows of the last image."""
        if not any((self.calibration, self.curve, self.histogram, self.counts)):
            return
        p_BCHW = probabilities(logits_BKHW, self.overlapping)
        for part in (self.calibration, self.curve):
            if part is not None:
                part.update(p_BCHW, mask)
        if self.histogram is not None:
            self.histogram.update(p_BCHW, mask, continued=continued)
        if self.counts is not None:
            self.counts.update(p_BCHW, prediction, mask, continued=continued)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name: those of PixelScores, SurfaceMetric, and ``ece``."""
        scores = self.pixels.compute()
        if self.surfaces is not None:
            scores |= self.surfaces.compute()
        if self.calibration is not None:
            scores["ece"] = self.calibration.compute()
        if self.curve is not None:
            self.best_threshold = self.curve.best()
        return scores

    def bootstrap_inputs(self) -> dict[str, BootstrapInput]:
        """Return for each score its rows by image and its score function: see seg.metrics.significance."""
        return self.pixels.bootstrap_inputs() | (
            self.surfaces.bootstrap_inputs() if self.surfaces else {}
        )

    def choose_threshold(self) -> float:
        """Set the threshold to the best one of the last ``compute`` if it is ``best``; return the one in use."""
        if self.curve is not None:
            self.threshold = self.best_threshold
        return self.threshold

    def set_spacing(self, spacing: tuple[float, float] | None) -> None:
        """Set the height and width of a pixel in um, for distances in um; None: only in px."""
        if self.surfaces is not None:
            self.surfaces.spacing = spacing

    @property
    def needs_spacing(self) -> bool:
        """True if distances between borders are computed."""
        return self.surfaces is not None and self.surfaces.hausdorff

    def reset(self) -> None:
        for part in (
            self.pixels,
            self.surfaces,
            self.calibration,
            self.curve,
            self.histogram,
            self.counts,
        ):
            if part is not None:
                part.reset()
