"""Expected Dice and IoU of an image without its truth, from calibrated probabilities. Without PyTorch.

Each class is taken against all others. A pixel of probability p has the class with the calibrated probability
q = sigmoid(slope * logit(p) + offset): temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2; the slope is
1 / T), with an offset if images that did not train the network need one. With S and R the sums of q over the pixels that
are predicted as the class and over the others, and n the number of the former, 2 S / (n + S + R) is the expected Dice and
S / (n + R) the expected IoU: ratios of expected pixels. Intervals are split conformal (Vovk, Gammerman and Shafer 2005;
Lei et al. 2018, arXiv:1604.04173).

Shape suffixes: N images, C classes, T = 2 (other classes, the class) of the truth, P = 2 of the prediction, B bins.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

LEVEL = 0.9  # of the intervals
HIGHEST, STEP = 16.0, 0.25  # logits of the last border of bins, and between two
BINS = round(2 * HIGHEST / STEP) + 2  # bins 0 and BINS - 1 hold what lies beyond the borders
CENTRES = (np.arange(BINS) - (BINS - 1) / 2) * STEP  # logits of the bins' centres
SLOPES, OFFSETS = (0.05, 20.0), (-10.0, 10.0)  # range of the fit
NEAREST = 0.25  # distance, in 0..1 of what is known, that is added before residuals are compared
CLEAR_GAIN = 0.02  # share of the negative log likelihood by which an offset must be better
FOLDS = 10  # of the images, whose residuals come from a fit on the others


class ClassCalibration(NamedTuple):
    """Map from the probability of a class to its calibrated probability.

    Attributes:
        slope: of the logit, 1 / temperature.
        offset: of the logit.
    """

    slope: float = 1.0
    offset: float = 0.0

    def calibrated(self) -> NDArray:
        """Return the calibrated probability of each bin, (B,)."""
        return expit(self.slope * CENTRES + self.offset)


class Scores(NamedTuple):
    """Dice and IoU of images, each (N,) in 0..1; nan where the class is neither predicted nor expected."""

    dice: NDArray
    iou: NDArray


def true_scores(counts_NTPB: NDArray) -> Scores:
    """Return the true scores of one class; nan where it is neither labelled nor predicted."""
    (_, false), (missed, hit) = np.moveaxis(counts_NTPB.sum(-1, dtype=np.float64), 0, -1)
    return overlap_scores(hit, hit + false, missed)


def expected_scores(counts_NPB: NDArray, calibration: ClassCalibration) -> Scores:
    """Return the expected scores of one class; nan where no pixel is predicted.

    Args:
        counts_NPB: pixels by prediction and bin of the probability.
        calibration: of the class.
    """
    rest, inside = (counts_NPB @ calibration.calibrated()).T  # expected pixels of the class
    predicted = counts_NPB[:, 1].sum(-1, dtype=np.float64)
    found = overlap_scores(inside, predicted, rest)
    absent = predicted == 0
    return Scores(*(np.where(absent, np.nan, values) for values in found))


def overlap_scores(hit: NDArray, predicted: NDArray, missed: NDArray) -> Scores:
    """Return the scores of pixels that are hit, predicted and missed; nan where none are."""
    union = predicted + missed
    with np.errstate(invalid="ignore"):
        return Scores(2 * hit / (union + hit), hit / union)


def fit_calibration(counts_NTB: NDArray) -> ClassCalibration:
    """Fit the map of a class by the negative log likelihood, each image with equal weight.

    The offset stays 0 unless it lowers the likelihood by a share of ``CLEAR_GAIN``.

    Args:
        counts_NTB: pixels by truth and bin of the probability.

    Returns:
        The map; the identity if the class, or any other, has no pixel.
    """
    totals = counts_NTB.sum((1, 2), dtype=np.float64)
    counts_NTB = counts_NTB[totals > 0]
    if not len(counts_NTB):
        return ClassCalibration()
    weights_TB = (counts_NTB / counts_NTB.sum((1, 2), keepdims=True)).mean(0)
    if not weights_TB.sum(-1).all():
        return ClassCalibration()
    signs_TB = np.array([[-1.0], [1.0]])

    def loss(values: NDArray) -> tuple[float, NDArray]:
        logits_TB = signs_TB * (values[0] * CENTRES + (values[1] if len(values) > 1 else 0.0))
        slope_TB = -weights_TB * signs_TB * expit(-logits_TB)
        gradient = np.array([(slope_TB * CENTRES).sum(), slope_TB.sum()])[: len(values)]
        return float((weights_TB * np.logaddexp(0, -logits_TB)).sum()), gradient

    plain = minimize(loss, [1.0], jac=True, bounds=[SLOPES], method="L-BFGS-B")
    free = minimize(loss, [plain.x[0], 0.0], jac=True, bounds=[SLOPES, OFFSETS], method="L-BFGS-B")
    if free.fun < (1 - CLEAR_GAIN) * plain.fun:
        return ClassCalibration(float(free.x[0]), float(free.x[1]))
    return ClassCalibration(float(plain.x[0]))


def fewest_images(level: float = LEVEL) -> int:
    """Return the number of residuals below which no interval has a level: (n + 1) * level must not exceed n."""
    return math.ceil(level / (1 - level) - 1e-9)


def interval_scale(distance: float | NDArray) -> float | NDArray:
    """Return the width of intervals at a distance from the known images, relative to that at 1 - ``NEAREST``."""
    return NEAREST + distance


def conformal_margin(
    residuals: NDArray, level: float = LEVEL, groups: NDArray | None = None
) -> float | None:
    """Return the half width of a split conformal interval; None if there are too few residuals.

    The chance that one more residual, exchangeable with these, is no larger is at least ``level``, and at most
    ``level`` + 1 / (n + 1) if there are no ties. With groups, n is their number: each weighs the same, and 1 / (n + 1) is
    left for the group of the new image.

    Args:
        residuals: of calibration images, of either sign, each divided by its ``interval_scale``.
        level: of the interval.
        groups: number of the group of each image, if images of a group resemble each other; None: each is its own.
    """
    groups = np.arange(len(residuals)) if groups is None else groups
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    size = np.abs(residuals)
    order = np.argsort(size)
    share = np.cumsum(1 / sizes[group][order])
    enough = np.flatnonzero(share >= (len(sizes) + 1) * level - 1e-9)
    return float(size[order][enough[0]]) if len(enough) else None


def held_out_scores(counts_NTPB: NDArray) -> Scores:
    """Return the expected scores of each image with the calibration that the other folds of the images give."""
    folds = min(FOLDS, len(counts_NTPB))
    found = np.full((2, len(counts_NTPB)), np.nan)
    for fold in range(folds):
        out = np.arange(len(counts_NTPB)) % folds == fold
        calibration = fit_calibration(counts_NTPB[~out].sum(2))
        found[:, out] = expected_scores(counts_NTPB[out].sum(1), calibration)
    return Scores(*found)


def mirror_counts(counts: NDArray) -> NDArray:
    """Return the counts (..., T, P, B) of the other one of two exclusive classes."""
    return counts[..., ::-1, ::-1, ::-1]
