"""Learning curve: error against the number of training images as a power law, with an interval by bootstrap.

error(n) = a n^-b + c, as in Hestness et al. 2017, arXiv:1712.00409, where c is the error that no number of
images removes. ``a`` may be negative, so that a score that more images do not improve gives a gain below 0.

Shape suffixes: M sizes of the training set, S seeds, N scored images (or groups of them), C classes, R resamples; the
last axis of 3 is TP, FP, FN.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seg.metrics.pixel_scores import ConfusionCounts, mean_score

EXPONENTS = np.geomspace(0.1, 1, 30)  # b among which the least squares choose
LEAST_SIZES = 3  # below, no exponent follows from the errors
RESAMPLES = 2000


class PowerLaws(NamedTuple):
    """Fitted curves a n^-b + c; each array (R,)."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: NDArray[np.float64]

    def errors(self, sizes: NDArray) -> NDArray[np.float64]:
        """Return the error (R, M) of each curve at sizes (M,)."""
        n = np.asarray(sizes, dtype=float)
        return self.a[:, None] * n ** -self.b[:, None] + self.c[:, None]


class LearningCurve(NamedTuple):
    """Score against the number of training images n.

    Attributes:
        sizes: (M,) numbers of training images that were measured.
        scores: (M, S) Dice of each training, 0..1.
        grid: (G,) numbers of images from the smallest size to twice the largest.
        fitted: (G,) Dice of the fitted curve.
        low: (G,) lower end of its interval.
        high: (G,) upper end.
        gain: Dice of the curve at twice the largest size, less the measured mean of the largest size.
        gain_low: lower end of its interval.
        gain_high: upper end.
        seed_sd: standard deviation of the Dice over seeds at the largest size.
        law: a, b and c of the fit.
        level: confidence level of the intervals.
    """

    sizes: NDArray
    scores: NDArray
    grid: NDArray
    fitted: NDArray
    low: NDArray
    high: NDArray
    gain: float
    gain_low: float
    gain_high: float
    seed_sd: float
    law: tuple[float, float, float]
    level: float


def fit_power_laws(sizes_M: NDArray, errors_RM: NDArray) -> PowerLaws:
    """Fit a power law to each row of errors by least squares, exact but for the grid of exponents.

    For each exponent the best a and c follow from linear regression (variable projection, Golub and Pereyra 1973),
    with c at least 0; the exponent of the smallest sum of squares is taken.

    Args:
        sizes_M: numbers of images, all different.
        errors_RM: error at each size, 0..1.

    Raises:
        ValueError: with fewer than three sizes.
    """
    sizes_M, errors_RM = np.asarray(sizes_M, dtype=float), np.asarray(errors_RM, dtype=float)
    if len(set(sizes_M.tolist())) < LEAST_SIZES:
        raise ValueError(f"{len(sizes_M)} sizes; {LEAST_SIZES} or more different ones are needed")
    best_R, (a, b, c) = np.full(len(errors_RM), np.inf), np.zeros((3, len(errors_RM)))
    for exponent in EXPONENTS:
        x_M = sizes_M**-exponent
        slope, offset = linear_fits(x_M, errors_RM)
        squares = ((slope[:, None] * x_M + offset[:, None] - errors_RM) ** 2).sum(1)
        better = squares < best_R
        best_R = np.where(better, squares, best_R)
        a, b, c = (np.where(better, new, old) for new, old in zip((slope, exponent, offset), (a, b, c), strict=True))  # fmt: skip
    return PowerLaws(a, b, c)


def linear_fits(x_M: NDArray, y_RM: NDArray) -> tuple[NDArray, NDArray]:
    """Return slope (R,) and offset (R,), at least 0, of the least squares of each row y against x."""
    centred = x_M - x_M.mean()
    slope = (y_RM * centred).sum(1) / (centred**2).sum()
    offset = y_RM.mean(1) - slope * x_M.mean()
    through_zero = (y_RM * x_M).sum(1) / (x_M**2).sum()
    below = offset < 0
    return np.where(below, through_zero, slope), np.where(below, 0, offset)


def dice_of_counts(counts: NDArray) -> NDArray[np.float64]:
    """Return the mean Dice (...) over the classes that occur, from summed counts (..., C, 3), with one axis before C or more."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    return np.asarray(mean_score("dice", ConfusionCounts(tp, fp, fn, np.full_like(tp, np.nan))))


def resample_scores(
    counts_MSNC3: NDArray, resamples: int, rng: np.random.Generator, factor: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean Dice of each size over images and seeds drawn with replacement, and over the images alone (R, M).

    All sizes have the same images in a resample, as their errors are shared, and seeds of their own. The deviations of
    the drawn seeds are enlarged by sqrt(S / (S - 1)), without which S draws out of S seeds vary too little.

    Args:
        counts_MSNC3: counts of each training, of two seeds or more.
        resamples: number of resamples R.
        rng: of the draws.
        factor: by which the deviations of the seeds are enlarged further.
    """
    _, seeds, images = counts_MSNC3.shape[:3]
    factor *= np.sqrt(seeds / (seeds - 1))
    drawn, of_images = [], []
    for _ in range(resamples):
        times_N = np.bincount(rng.integers(images, size=images), minlength=images).astype(float)
        dice_MS = dice_of_counts(np.tensordot(counts_MSNC3, times_N, (2, 0)))
        picked = rng.integers(seeds, size=dice_MS.shape)
        mean_M = dice_MS.mean(1)
        drawn.append(mean_M + factor * (np.take_along_axis(dice_MS, picked, 1).mean(1) - mean_M))
        of_images.append(mean_M)
    return np.array(drawn), np.array(of_images)


def fit_learning_curve(
    sizes_M: NDArray, counts_MSNC3: NDArray, level: float, resamples: int = RESAMPLES, seed: int = 0
) -> LearningCurve:
    """Fit the Dice of trainings on subsets, with an interval by bootstrap over images and seeds.

    As few seeds say little of their own spread, it is enlarged by Student's quantile over the normal one, with
    M (S - 1) degrees of freedom. The gain is measured from the mean of the largest size, on the same drawn images.

    Args:
        sizes_M: numbers of training images, increasing, three or more.
        counts_MSNC3: counts of each training on the same N images, or groups of them; two seeds or more.
        level: confidence level, between 0 and 1.
        resamples: number of resamples R.
        seed: of the draws.
    """
    from scipy import stats  # here: commands start without it

    sizes_M, rng = np.asarray(sizes_M), np.random.default_rng(seed)
    dice_MS = dice_of_counts(np.asarray(counts_MSNC3).sum(2))
    tails = [(1 - level) / 2, (1 + level) / 2]
    freedom = dice_MS.size - len(sizes_M)
    factor = stats.t.ppf(tails[1], freedom) / stats.norm.ppf(tails[1])
    # The curve of all, and those of the resamples
    grid, twice = np.geomspace(sizes_M[0], 2 * sizes_M[-1], 61), 2 * sizes_M[-1:]
    law = fit_power_laws(sizes_M, 1 - dice_MS.mean(1)[None])
    drawn_RM, images_RM = resample_scores(counts_MSNC3, resamples, rng, factor)
    laws = fit_power_laws(sizes_M, 1 - drawn_RM)
    low, high = np.quantile(1 - laws.errors(grid), tails, axis=0)
    gain_low, gain_high = np.quantile(1 - laws.errors(twice)[:, 0] - images_RM[:, -1], tails)
    gain = 1 - law.errors(twice)[0, 0] - dice_MS[-1].mean()
    sd = float(dice_MS[-1].std(ddof=1))
    return LearningCurve(
        sizes_M, dice_MS, grid, 1 - law.errors(grid)[0], low, high, float(gain), float(gain_low), float(gain_high),
        sd, (float(law.a[0]), float(law.b[0]), float(law.c[0])), level,
    )  # fmt: skip
