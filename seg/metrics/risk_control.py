"""Conformal risk control: the threshold at which a share of pixels is wrong at most so often, on average over images.

Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal Risk Control, ICLR 2024, arXiv:2208.02814. Without PyTorch.

Shape suffixes: N images, U units (images, or groups of them), B bins, T = B - 1 thresholds, L values of lambda.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from seg.metrics.pixel_scores import ConfusionCounts, dice, precision, recall

Risk = Literal["missed", "false"]
# Candidates, chosen without the data: logits -9 to 9 in steps of 0.02, 0.000123 to 0.999877
THRESHOLDS = np.round(1 / (1 + np.exp(-np.arange(-450, 451) / 50)), 6)
ROUNDING = 1e-12  # relative error of the sums


class RiskBound(NamedTuple):
    """Bound of the mean of a risk.

    Attributes:
        risk: ``missed``: share of an image's foreground that is predicted as background, the false negative rate of
            the paper's section on tumor segmentation, 0 in an image without foreground; ``false``: share of its
            background that is predicted as foreground, the false positive rate, 0 in an image without background.
        alpha: between 0 and 1, which the mean over images must not exceed.
    """

    risk: Risk
    alpha: float

    @property
    def fewest(self) -> int:
        """Number of images, or groups, below which no threshold holds the bound: 1 / alpha - 1, rounded up."""
        return math.ceil(1 / Fraction(str(self.alpha)) - 1)


def parse_risk_bound(value: Any) -> RiskBound | None:
    """Return the bound that a text such as ``missed:0.1`` gives; None if it gives none."""
    parts = re.fullmatch(r"(missed|false):(\d*\.?\d+(?:e-?\d+)?)", str(value))
    if not isinstance(value, str) or parts is None or not 0 < float(parts[2]) < 1:
        return None
    return RiskBound(cast(Risk, parts[1]), float(parts[2]))


def first_controlled(losses_UL: NDArray, alpha: float) -> int | None:
    """Return the position of lambda-hat, the smallest lambda whose risk is controlled.

    Angelopoulos et al. 2022, section 1: lambda-hat = inf {lambda: n / (n + 1) R(lambda) + B / (n + 1) <= alpha}, with
    R the mean of n losses that never exceed B, here 1. Then the expected loss of one more unit, exchangeable with
    these, is at most alpha (theorem 1).

    Args:
        losses_UL: in 0..1, of each unit at each lambda, ascending; no loss rises with lambda.
        alpha: bound of the expected loss.

    Returns:
        The position of lambda-hat on the last axis; None if no lambda is controlled.

    Raises:
        ValueError: if a loss is outside 0..1 or rises.
    """
    if not ((losses_UL >= 0) & (losses_UL <= 1)).all() or (np.diff(losses_UL) > 0).any():
        raise ValueError("losses must be in 0..1 and never rise with lambda")
    bound_L = (losses_UL.sum(0) + 1) / (len(losses_UL) + 1)
    held = np.flatnonzero(bound_L <= alpha * (1 + ROUNDING))
    return int(held[0]) if len(held) else None


def counts_above(counts_N2B: NDArray) -> NDArray:
    """Return the pixels whose probability is above each threshold, (N, 2, T), from those in each bin."""
    return counts_N2B[..., ::-1].cumsum(-1)[..., -2::-1]


def image_losses(counts_N2B: NDArray, risk: Risk) -> NDArray:
    """Return the risk of each image at each threshold, (N, T) in 0..1.

    Args:
        counts_N2B: background and foreground pixels of each image by the bin of their probability: bin b holds those
            above ``THRESHOLDS[b - 1]`` and not above ``THRESHOLDS[b]``.
        risk: ``missed`` or ``false``.
    """
    above, total = counts_above(counts_N2B), counts_N2B.sum(-1, keepdims=True)
    wrong = (total - above)[:, 1] if risk == "missed" else above[:, 0]
    whole = total[:, 1 if risk == "missed" else 0]
    return np.where(whole > 0, wrong / np.maximum(whole, 1), 0.0)


def group_means(losses_NT: NDArray, groups: Sequence[str]) -> NDArray:
    """Return the mean losses (U, T) of the images of each group."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((group.max() + 1, losses_NT.shape[1]))
    np.add.at(sums, group, losses_NT)
    return np.minimum(sums / np.bincount(group)[:, None], 1.0)


class ControlledThreshold(NamedTuple):
    """Threshold that keeps a bound.

    Attributes:
        threshold: probability in 0..1.
        mean: of the risk over the units at this threshold.
        units: number of images, or of groups.
    """

    threshold: float
    mean: float
    units: int


def control_risk(
    counts_N2B: NDArray, bound: RiskBound, groups: Sequence[str] | None = None
) -> ControlledThreshold | None:
    """Return the threshold that keeps a bound with as few errors of the other kind as possible; None if none does.

    Args:
        counts_N2B: as in ``image_losses``, of calibration images.
        bound: risk and bound.
        groups: of each image, if images of a group resemble each other: then groups are exchangeable, images are not.
    """
    losses = image_losses(counts_N2B, bound.risk)
    losses = losses if groups is None else group_means(losses, groups)
    # A higher threshold misses more and invents less: lambda is 1 - threshold for one, threshold for the other
    order = -1 if bound.risk == "missed" else 1
    if (position := first_controlled(losses[:, ::order], bound.alpha)) is None:
        return None
    means = losses.mean(0)[::order]
    return ControlledThreshold(
        float(THRESHOLDS[::order][position]), float(means[position]), len(losses)
    )


def foreground_scores(counts_N2B: NDArray) -> dict[str, NDArray]:
    """Return threshold, precision, recall and Dice of the foreground over all pixels, each (T,)."""
    (fp, tp), (negative, positive) = counts_above(counts_N2B).sum(0), counts_N2B.sum((0, 2))
    counts = ConfusionCounts(tp, fp, positive - tp, negative - fp)
    scores = {"precision": precision(counts), "recall": recall(counts), "dice": dice(counts)}
    return {"threshold": THRESHOLDS} | scores


def scores_at(scores: dict[str, NDArray], threshold: float | None) -> dict[str, float]:
    """Return ``foreground_scores`` at one of ``THRESHOLDS``; None: where Dice is highest."""
    best = int(np.argmax(np.nan_to_num(scores["dice"])))
    position = best if threshold is None else int(np.searchsorted(THRESHOLDS, threshold))
    return {name: float(values[position]) for name, values in scores.items()}


def image_risks(counts_N4: NDArray, risk: Risk) -> NDArray:
    """Return the risk (N,) of images from their TP, FP, FN and TN of the foreground."""
    tp, fp, fn, tn = counts_N4.T
    wrong, whole = (fn, tp + fn) if risk == "missed" else (fp, fp + tn)
    return np.where(whole > 0, wrong / np.maximum(whole, 1), 0.0)
