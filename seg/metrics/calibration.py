"""Calibration of probabilities: expected calibration error, reliability plot, best threshold, histogram of images."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.labels import IGNORE
from seg.metrics.pixel_scores import ConfusionCounts, dice, mean_over_present
from seg.metrics.probability_counts import count_probabilities
from seg.metrics.risk_control import THRESHOLDS

CONFIDENCE_UNITS = 2**20  # confidences are summed as integers, in units of 1 / UNIT


class CalibrationError(Metric):
    """Expected calibration error in 0..1: |confidence - accuracy| of each bin, averaged over pixels.

    Guo et al. 2017, arXiv:1706.04599, eq. 3, with bins of equal width. Confidence is the probability of the
    predicted class, so at least 1 / C; for overlapping labels the probability of the predicted state.

    Args:
        bins: number of bins of the confidence 0..1.
    """

    full_state_update = False
    pixels: Tensor
    hits: Tensor
    confidence: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for state in ("pixels", "hits", "confidence"):
            zeros = torch.zeros(bins, dtype=torch.int64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    def update(self, p_BCHW: Tensor, mask: Tensor) -> None:
        # Confidence of the predicted class, and whether it is the true one.
        if mask.ndim == 4:
            confidence, hit = p_BCHW.maximum(1 - p_BCHW), (p_BCHW > 0.5).long() == mask
        else:
            confidence, prediction = p_BCHW.max(dim=1)
            hit = prediction == mask
        # Bin of each pixel by its confidence.
        index = (confidence * self.bins).long().clamp(0, self.bins - 1)
        index = index.where(
            mask != IGNORE, self.bins
        ).flatten()  # ignored pixels have a bin of their own
        units = (
            (confidence * CONFIDENCE_UNITS).round().long()
        )  # integers: the sum does not depend on the order
        # Add the batch to the sums of each bin.
        for state, values in (
            (self.pixels, torch.ones_like(index)),
            (self.hits, hit.long().flatten()),
            (self.confidence, units.flatten()),
        ):
            total = torch.zeros(self.bins + 1, dtype=torch.int64, device=state.device)
            state += total.scatter_add_(0, index, values)[:-1]

    def compute(self) -> Tensor:
        pixels, hits, units = (x.cpu().double() for x in (self.pixels, self.hits, self.confidence))
        return (units / CONFIDENCE_UNITS - hits).abs().sum() / pixels.sum()


class ThresholdCurve(Metric):
    """Dice at each threshold on the probability of class 1 of two, or of each overlapping label.

    Args:
        labels: K if labels overlap; None: two classes.
        steps: thresholds are 1 / steps, 2 / steps, ... below 1.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, labels: int | None = None, steps: int = 100) -> None:
        super().__init__()
        self.labels, self.steps = labels, steps
        zeros = torch.zeros(labels or 1, 2, steps + 1, dtype=torch.int64)  # truth, bin of p
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, p_BCHW: Tensor, mask: Tensor) -> None:
        p, truth = (p_BCHW, mask) if self.labels else (p_BCHW[:, 1:2], mask.unsqueeze(1))
        # Bin of each pixel; ignored pixels go to an extra bin at the end
        label = torch.arange(p.shape[1], device=p.device).view(1, -1, 1, 1)
        bins = (p * self.steps).ceil().long() - 1  # i for p in (i, i + 1] / steps
        bins = bins.clamp(0, self.steps - 1).where(truth != IGNORE, self.steps)
        # Flat index into (labels, truth, bin), so that one scatter counts all
        cell = ((label * 2 + (truth == 1)) * (self.steps + 1) + bins).flatten()
        counts = torch.zeros(self.counts.numel(), dtype=torch.int64, device=p.device)
        self.counts += counts.scatter_add_(0, cell, torch.ones_like(cell)).view_as(self.counts)

    def compute(self) -> Tensor:
        """Return the Dice (steps - 1,) at each threshold, the mean over classes or labels that occur."""
        # pixels above each threshold; column 0 counts all
        above_K2T = self.counts[..., :-1].flip(-1).cumsum(-1).flip(-1)
        # Above a threshold are false and true positives, below it negatives, each (K, T)
        false, hit = above_K2T[..., 1:].unbind(1)
        rest, missed = (above_K2T[..., :1] - above_K2T[..., 1:]).unbind(1)
        tally = ConfusionCounts(hit.T, false.T, missed.T, rest.T)
        if not self.labels:  # class 0 of two: the same with exchanged roles
            tally = ConfusionCounts(
                torch.cat([tally.tn, tally.tp], -1),
                torch.cat([tally.fn, tally.fp], -1),
                torch.cat([tally.fp, tally.fn], -1),
                torch.cat([tally.tp, tally.tn], -1),
            )
        return mean_over_present(dice(tally), tally)

    def best(self) -> float:
        """Return the threshold of the highest Dice, the middle one of ties; 0.5 if no pixel was counted."""
        curve = self.compute()
        if curve.isnan().all():
            return 0.5
        # A threshold in the middle of a plateau is the least sensitive to new images
        highest = (curve == curve[~curve.isnan()].max()).nonzero().flatten()
        return (int(highest[len(highest) // 2]) + 1) / self.steps


class ProbabilityHistogram(Metric):
    """Pixels of each image by their truth and by the bin of their probability of class 1 of two.

    Bin b holds probabilities above ``THRESHOLDS[b - 1]`` and not above ``THRESHOLDS[b]``.
    """

    full_state_update = False
    image_counts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("image_counts", [], dist_reduce_fx="cat")

    def update(self, p_BCHW: Tensor, mask: Tensor, continued: bool = False) -> None:
        """Count the pixels of a batch; with ``continued`` they are further rows of the last image."""
        p, bins = p_BCHW[:, 1].contiguous(), len(THRESHOLDS) + 1
        bounds = torch.tensor(THRESHOLDS, dtype=p.dtype, device=p.device)
        cell = (torch.bucketize(p, bounds) + bins * (mask == 1)).where(mask != IGNORE, 2 * bins)
        counts = torch.zeros(len(p), 2 * bins + 1, dtype=torch.int64, device=p.device)
        cell = cell.flatten(1)
        counts.scatter_add_(1, cell, torch.ones_like(cell))
        counts_B2T = counts[:, :-1].unflatten(1, (2, bins))
        if continued:
            self.image_counts[-1] = self.image_counts[-1] + counts_B2T
        else:
            self.image_counts.append(counts_B2T)

    def compute(self) -> Tensor:
        """Return the counts of all images, rank by rank, in their order, (N, 2, bins) int64."""
        return dim_zero_cat(self.image_counts)


COUNTED_BYTES = 2**28  # of the counts of all images


class ProbabilityCounts(Metric):
    """Pixels of each image by class, truth, prediction and probability, for ``seg.metrics.expected_scores``.

    At most ``COUNTED_BYTES`` are kept; further images are not counted.

    Args:
        overlapping: whether classes overlap.
        limited: whether there is this limit.
    """

    full_state_update = False
    image_counts: list[Tensor]

    def __init__(self, overlapping: bool = False, limited: bool = True) -> None:
        super().__init__()
        self.overlapping, self.limited = overlapping, limited
        self.last_counted = True  # whether the last image is
        self.add_state("image_counts", [], dist_reduce_fx="cat")

    def update(
        self, p_BCHW: Tensor, prediction: Tensor, mask: Tensor, continued: bool = False
    ) -> None:
        """Count the pixels of a batch; with ``continued`` they are further rows of the last image."""
        kept = self.image_counts
        full = self.limited and bool(kept) and len(kept) * kept[0].nbytes >= COUNTED_BYTES
        if full and not (continued and self.last_counted):
            self.last_counted = False
            return
        self.last_counted = True
        counts = count_probabilities(p_BCHW, prediction, mask, self.overlapping).to(p_BCHW.device)
        if continued:
            self.image_counts[-1] = self.image_counts[-1] + counts
        else:
            self.image_counts.append(counts)

    def compute(self) -> Tensor:
        """Return the counts of all images, rank by rank, in their order, (N, C, 2, 2, bins) int64."""
        return dim_zero_cat(self.image_counts)


def draw_reliability(calibration: CalibrationError, title: str, file: Path) -> None:
    """Draw accuracy against confidence, one bar per bin, and below it the share of pixels of each bin."""
    # Mean confidence and accuracy of the bins that have pixels
    left = np.arange(calibration.bins) / calibration.bins
    pixels, hits, confidence = (
        state.cpu().numpy()
        for state in (calibration.pixels, calibration.hits, calibration.confidence)
    )
    confidence = confidence / CONFIDENCE_UNITS
    used = pixels > 0
    mean_confidence, accuracy = confidence[used] / pixels[used], hits[used] / pixels[used]
    # Accuracy above, share of pixels below, on one axis of confidence
    figure = Figure(figsize=(4.5, 5.5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    width = 1 / calibration.bins
    above.plot([0, 1], [0, 1], color="#666666", linewidth=1, label="perfect calibration")
    above.bar(left[used], accuracy, width, align="edge", color="#56b4e9", edgecolor="white")
    above.plot(
        mean_confidence,
        accuracy,
        "o",
        color="#d55e00",
        markersize=4,
        label="mean confidence of a bin",
    )
    above.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    above.set_title(
        f"{title}\nexpected calibration error {float(calibration.compute()):.4f}", parse_math=False
    )  # a path may have dollars
    above.title.set_fontsize(9)
    above.legend(fontsize=8, loc="upper left")
    below.bar(left, pixels / pixels.sum(), width, align="edge", color="#999999", edgecolor="white")
    below.set(xlabel="confidence", ylabel="share of pixels")
    figure.savefig(file)
