"""Is it real: intervals of scores, and tests of differences between runs, over images.

Legend for shapes: N images, R resamples; ``...`` whatever a row holds.

Everything rests on *rows*, one an image, that are added up: ``score(rows summed over images)``. Confusion
matrices (N, C, C) give a pooled Dice, border counts (N, C, 4) a boundary F-score, `per_image` values with
`mean` the average of the images' own scores; counts at many thresholds (N, T, 4) the best of them. A score
is a function of sums (R, ...) that returns (R,); dividing by zero in it is nan without a warning.

What is assumed: images are independent draws from what the claim is about. Neighbouring sections of an EM
volume, crops of one slide and frames of one film are not: rows of them make every interval too narrow and
every p too small; sum their rows first, so that a volume, slide or film is one row. The runs are taken as
they are: two runs of one recipe with other seeds may differ "significantly", for a claim about recipes
train several seeds.

A row that holds nan leaves its image out (of both runs in a paired test), and ``images`` tells how many
are left. Leaving out is right for what could not be measured, wrong for a failure: give that its worst value.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
Evidence = tuple[np.ndarray, Score]  # rows and the score of their sums: what an interval rests on
EXACT = 12  # up to so many images all 2**N swaps are tried
NUMBERS = 2**21  # held at once by a chunk of resamples: 16 MiB


class Interval(NamedTuple):
    """A score with its confidence interval, from so many images."""

    value: float
    low: float
    high: float
    images: int


class Difference(NamedTuple):
    """Score of run b less that of run a, its confidence interval, and p in 0..1 of "no difference"."""

    value: float
    low: float
    high: float
    p: float
    images: int


def interval(
    rows: np.ndarray,
    score: Score,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over images: draws N of the N images with replacement, again and again.

    Efron, Bootstrap methods: another look at the jackknife, Ann. Statist. 1979. Too narrow with few images:
    for a mean of N by about the factor ``sqrt((N - 1) / N)`` and by the normal instead of Student's
    quantile, so that of 5 normal values a nominal 95 % holds the true mean in 84 %. Resamples whose score
    is nan (a class that occurs in few images may be in none of those drawn) are left out.

    Args:
        rows: (N, ...) numbers that add up over images.
        score: sums (R, ...) -> scores (R,).
        level: share of the resampled scores between low and high, above 0 and below 1.
        resamples: R.
        seed: of the draws; the same seed and rows give the same interval.

    Returns:
        low and high are nan with one image, all three values with none.

    Raises:
        ValueError: when level or resamples is out of range, or score returns no (R,).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be above 0 and below 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be 1 or more")
    rows = measured(np.asarray(rows, dtype=float))
    images = len(rows)
    if images < 2:
        return Interval(total(rows, score), np.nan, np.nan, images)
    draws = bootstrap_draws(images, resamples, rows[0].size, np.random.default_rng(seed))
    scores_R = np.concatenate([scores(draw_RN, rows, score) for draw_RN in draws])
    scores_R = scores_R[~np.isnan(scores_R)]
    low, high = np.nan, np.nan
    if len(scores_R):
        low, high = np.quantile(scores_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(total(rows, score), float(low), float(high), images)


def paired_test(
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    score: Score,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Whether run b scores otherwise than run a on the same images.

    The interval is `interval`'s, of ``score(b) - score(a)`` on the same drawn images for both runs. p is
    two-sided and of the paired randomisation test (Fisher 1935; Pitman 1937): were the runs alike, an
    image's two rows could as well be swapped; p is the share of swaps with a difference at least as large
    as the one seen. All 2^N swaps are tried up to N = 12; above it `resamples` random ones, and
    p = (1 + as large) / (1 + R), which is never 0 (Phipson and Smyth 2010). Swaps whose score is nan are
    left out.

    With few images p can't be small, whatever the difference: 2 / 2^N at the least, 1 for one image, .0625
    for five. Interval and p are two methods, and may disagree near the limit.

    Args:
        rows_a: (N, ...) numbers that add up over images.
        rows_b: of the same images in the same order.
        score: sums (R, ...) -> scores (R,).
        level: of the interval.
        resamples: of the interval and of the test.
        seed: of both.

    Returns:
        identical rows give value 0, low 0, high 0, p 1; p is nan where the difference is.

    Raises:
        ValueError: when the runs' rows differ in shape, or as `interval`.
    """
    rows_a, rows_b = np.asarray(rows_a, dtype=float), np.asarray(rows_b, dtype=float)
    if rows_a.shape != rows_b.shape:
        raise ValueError(
            f"rows are {rows_a.shape} and {rows_b.shape}; a paired test needs the same images of both runs"
        )

    def difference(sums: np.ndarray) -> np.ndarray:  # (R, 2, ...) -> (R,)
        return score(sums[:, 1]) - score(sums[:, 0])

    pairs = measured(np.stack([rows_a, rows_b], axis=1))  # (N, 2, ...)
    value, low, high, images = interval(pairs, difference, level, resamples, seed)
    if np.isnan(value):
        return Difference(value, low, high, np.nan, images)
    sums = pairs.sum(0)  # (2, ...)
    rounding = 1e-10 * np.abs(scores_of(sums, score)).max()  # must not part swaps that tie
    change = pairs[:, ::-1] - pairs  # of the sums, when an image is swapped
    if exact := images <= EXACT:
        draws = iter([np.arange(2**images)[:, None] >> np.arange(images) & 1])
    else:
        draws = random_swaps(images, resamples, change[0].size, np.random.default_rng(seed))
    values_R = np.concatenate([scores(draw_RN, change, difference, sums) for draw_RN in draws])
    values_R = np.abs(values_R[~np.isnan(values_R)])
    as_large = (values_R >= abs(value) - rounding).sum()
    p = as_large / len(values_R) if exact else (1 + as_large) / (1 + len(values_R))
    return Difference(value, low, high, float(p), images)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P values (M,) in 0..1, adjusted for being M tests: those below .05 are together wrong in 5 % at most.

    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979. Holds however the
    tests depend on each other. A nan is no test: it stays nan and isn't counted.
    """
    p_M = np.asarray(p_values, dtype=float)
    order = np.argsort(p_M)[: np.isfinite(p_M).sum()]  # nan sorts last
    stepped = p_M[order] * np.arange(len(order), 0, -1)  # smallest times M, next times M - 1
    adjusted_M = np.full(p_M.shape, np.nan)
    adjusted_M[order] = np.maximum.accumulate(np.minimum(stepped, 1))
    return adjusted_M


def per_image(values_N: np.ndarray) -> np.ndarray:
    """Rows (N, 2) whose `mean` is the average of the images' own values; nan is an image left out."""
    values_N = np.asarray(values_N, dtype=float)
    return np.stack([values_N, np.ones_like(values_N)], axis=-1)


def mean(sums: np.ndarray) -> np.ndarray:
    """The score (R,) of `per_image` rows: their sums (R, 2) are of the values and of the images."""
    return sums[..., 0] / sums[..., 1]


def measured(rows: np.ndarray) -> np.ndarray:
    return rows[~np.isnan(rows).any(axis=tuple(range(1, rows.ndim)))]


def total(rows: np.ndarray, score: Score) -> float:
    return float(scores_of(rows.sum(0)[None], score)[0]) if len(rows) else np.nan


def scores(draw_RN: np.ndarray, rows: np.ndarray, score: Score, start: float = 0.0) -> np.ndarray:
    """Scores (R,) of sums that take each row as often as the draw says."""
    return scores_of(start + np.tensordot(draw_RN.astype(float), rows, 1), score)


def scores_of(sums: np.ndarray, score: Score) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        values_R = np.asarray(score(sums), dtype=float)
    if values_R.shape != (len(sums),):
        raise ValueError(
            f"score made {values_R.shape} of sums {sums.shape}; "
            f"it must be one number a resample, ({len(sums)},)"
        )
    return values_R


def bootstrap_draws(
    images: int, resamples: int, row_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """How often each image is drawn, (R, N) int in chunks of R; each line sums to N."""
    for chunk in chunks(resamples, images + row_size):
        drawn_RN = rng.integers(images, size=(chunk, images))
        drawn_RN += images * np.arange(chunk)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=chunk * images).reshape(chunk, images)


def random_swaps(
    images: int, resamples: int, row_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Whether each image's two rows are swapped, (R, N) of 0 and 1 in chunks of R."""
    for chunk in chunks(resamples, images + row_size):
        yield rng.integers(2, size=(chunk, images), dtype=np.int8)


def chunks(resamples: int, numbers: int) -> Iterator[int]:
    size = max(1, NUMBERS // max(1, numbers))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
