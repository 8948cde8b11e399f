"""Confidence intervals of scores and significance tests of differences between runs, over images.

Shape suffixes: N images, R resamples; ``...`` any shape of a row.

All functions use *rows*, one per image, that are summed: a score is ``score(sum of rows)``. Pixel counts
(N, C, 4) give a pooled Dice, border counts (N, C, 4) a boundary F-score, `per_image` values with
`mean` the average of the images' own scores, counts at many thresholds (N, T, 4) the best of them. A score
is a function from sums (R, ...) to (R,); division by zero in it gives nan without a warning.

Assumption: images are independent draws from the population that the claim is about. Neighbouring sections
of an EM volume, crops of one slide and frames of one film are not; as rows they make intervals too narrow
and p too small. Sum their rows first, so that a volume, slide or film is one row. The results are about the
given runs: two runs of one recipe with different seeds may differ significantly. For a claim about recipes
train several seeds.

An image whose row contains nan is left out (of both runs in a paired test); ``images`` is the number that
remains. That is right for images that could not be measured and wrong for failures, which need the worst
value.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

ScoreFunction = Callable[[np.ndarray], np.ndarray]
BootstrapInput = tuple[np.ndarray, ScoreFunction]  # rows, and the score of their sums
MAX_EXACT_IMAGES = 12  # up to this number of images all 2**N swaps are enumerated
CHUNK_FLOATS = 2**21  # floats in a chunk of resamples: 16 MiB


class Interval(NamedTuple):
    """A score with its confidence interval and the number of images."""

    value: float
    low: float
    high: float
    images: int


class ScoreDifference(NamedTuple):
    """Score of run b minus that of run a, its confidence interval, p of no difference, number of images."""

    value: float
    low: float
    high: float
    p: float
    images: int


def bootstrap_interval(
    rows: np.ndarray,
    score: ScoreFunction,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compute a percentile bootstrap interval over images.

    Efron, Bootstrap methods: another look at the jackknife, Ann. Statist. 1979. Too narrow with few images:
    for a mean by about the factor ``sqrt((N - 1) / N)`` and by the normal instead of Student's quantile; of
    5 normal values the nominal 95 % contains the true mean in 84 % of cases. Resamples whose score is nan
    are left out (a class that occurs in few images may be in none of those drawn).

    Args:
        rows: (N, ...) numbers to be summed over images.
        score: function from sums (R, ...) to scores (R,).
        level: confidence level, between 0 and 1.
        resamples: number of resamples R.
        seed: seed of the draws; the same seed and rows give the same interval.

    Returns:
        The interval; low and high are nan with one image, all values with none.

    Raises:
        ValueError: if level or resamples is out of range, or score does not return (R,).
    """
    return bootstrap_intervals({"": (rows, score)}, level, resamples, seed)[""]


def bootstrap_intervals(
    inputs: dict[str, BootstrapInput],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute the intervals of several scores; those that share an array of rows share its resamples.

    Args:
        inputs: name -> rows and score, as of ``bootstrap_interval``.
        level: confidence level, between 0 and 1.
        resamples: number of resamples R.
        seed: seed of the draws.

    Returns:
        Name -> the interval that ``bootstrap_interval`` gives.

    Raises:
        ValueError: as in ``bootstrap_interval``.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be 1 or more")
    # Group the scores by the array of rows that they share.
    groups: dict[int, tuple[np.ndarray, dict[str, ScoreFunction]]] = {}
    for name, (rows, score) in inputs.items():
        groups.setdefault(id(rows), (rows, {}))[1][name] = score
    # Draw and sum the rows of a group once for all its scores.
    found: dict[str, Interval] = {}
    for shared, scores in groups.values():
        rows = rows_without_nan(np.asarray(shared, dtype=float))
        images = len(rows)
        values: dict[str, list[np.ndarray]] = {name: [] for name in scores}
        if images > 1:
            rng = np.random.default_rng(seed)
            for draw_RN in bootstrap_draws(images, resamples, rows[0].size, rng):
                sums = sum_draws(draw_RN, rows)
                for name, score in scores.items():
                    values[name].append(score_sums(sums, score))
        # The interval lies between two quantiles of the resampled scores.
        for name, score in scores.items():
            scores_R = np.concatenate(values[name] or [np.empty(0)])
            scores_R = scores_R[~np.isnan(scores_R)]
            low, high = np.nan, np.nan
            if len(scores_R):
                low, high = np.quantile(scores_R, [(1 - level) / 2, (1 + level) / 2])
            found[name] = Interval(score_total(rows, score), float(low), float(high), images)
    return {name: found[name] for name in inputs}


def paired_test(
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    score: ScoreFunction,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> ScoreDifference:
    """Test whether run b scores differently from run a on the same images.

    The interval is the bootstrap interval of ``score(b) - score(a)`` with the same drawn images for both
    runs. p is that of the two-sided paired randomisation test (Fisher 1935; Pitman 1937): without a
    difference the two rows of an image could be swapped, and p is the share of swaps whose difference is at
    least as large as the observed one. Up to N = 12 all 2^N swaps are enumerated; above, R random ones give
    p = (1 + number as large) / (1 + R), which is never 0 (Phipson and Smyth 2010). Swaps whose score is nan
    are left out.

    The smallest possible p is 2 / 2^N: 1 for one image, .0625 for five. Interval and p come from two
    methods and may disagree near the limit.

    Args:
        rows_a: (N, ...) numbers to be summed over images.
        rows_b: rows of the same images in the same order.
        score: function from sums (R, ...) to scores (R,).
        level: confidence level of the interval.
        resamples: number of resamples of the interval and of the test.
        seed: seed of both.

    Returns:
        The difference. Identical rows give value 0, low 0, high 0 and p 1; p is nan if the value is.

    Raises:
        ValueError: if the rows of the runs differ in shape, and as in ``bootstrap_interval``.
    """
    rows_a, rows_b = np.asarray(rows_a, dtype=float), np.asarray(rows_b, dtype=float)
    if rows_a.shape != rows_b.shape:
        raise ValueError(
            f"rows are {rows_a.shape} and {rows_b.shape}; a paired test needs the same images for both runs"
        )

    def difference(sums: np.ndarray) -> np.ndarray:  # (R, 2, ...) -> (R,)
        return score(sums[:, 1]) - score(sums[:, 0])

    # bootstrap interval of the difference
    pairs = rows_without_nan(np.stack([rows_a, rows_b], axis=1))  # (N, 2, ...)
    value, low, high, images = bootstrap_interval(pairs, difference, level, resamples, seed)
    if np.isnan(value):
        return ScoreDifference(value, low, high, np.nan, images)

    # differences after swapping the two rows of some images
    sums = pairs.sum(0)  # (2, ...)
    rounding = 1e-10 * np.abs(score_sums(sums, score)).max()  # tolerance for swaps that tie
    change = pairs[:, ::-1] - pairs  # change of the sums when an image is swapped
    if exact := images <= MAX_EXACT_IMAGES:
        draws = iter([np.arange(2**images)[:, None] >> np.arange(images) & 1])
    else:
        draws = random_swaps(images, resamples, change[0].size, np.random.default_rng(seed))
    values_R = np.concatenate([score_draws(draw_RN, change, difference, sums) for draw_RN in draws])

    # p: the share of swaps with a difference at least as large
    values_R = np.abs(values_R[~np.isnan(values_R)])
    as_large = (values_R >= abs(value) - rounding).sum()
    p = as_large / len(values_R) if exact else (1 + as_large) / (1 + len(values_R))
    return ScoreDifference(value, low, high, float(p), images)


def holm_adjust(p_values: np.ndarray) -> np.ndarray:
    """Adjust the p values (M,) of M tests so that any error among those below .05 has probability <= 5 %.

    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979. Valid for any
    dependence between the tests. A nan is no test: it stays nan and is not counted.
    """
    p_M = np.asarray(p_values, dtype=float)
    # Step-down factors M, M - 1, ..., 1 in the order of p
    order = np.argsort(p_M)[: np.isfinite(p_M).sum()]  # nan sorts last
    stepped = p_M[order] * np.arange(len(order), 0, -1)  # smallest times M, next times M - 1
    # An adjusted p is at least that of every smaller p, and at most 1
    adjusted_M = np.full(p_M.shape, np.nan)
    adjusted_M[order] = np.maximum.accumulate(np.minimum(stepped, 1))
    return adjusted_M


def per_image_rows(values_N: np.ndarray) -> np.ndarray:
    """Return rows (N, 2) whose `mean` is the average of the values (N,); images with nan are left out."""
    values_N = np.asarray(values_N, dtype=float)
    return np.stack([values_N, np.ones_like(values_N)], axis=-1)


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the mean (R,) from sums (R, 2) of `per_image` rows: sum of the values, number of images."""
    return sums[..., 0] / sums[..., 1]


def rows_without_nan(rows: np.ndarray) -> np.ndarray:
    """Return the rows without nan."""
    return rows[~np.isnan(rows).any(axis=tuple(range(1, rows.ndim)))]


def score_total(rows: np.ndarray, score: ScoreFunction) -> float:
    """Return the score of all rows; nan without rows."""
    return float(score_sums(rows.sum(0)[None], score)[0]) if len(rows) else np.nan


def score_draws(
    draw_RN: np.ndarray, rows: np.ndarray, score: ScoreFunction, start: float = 0.0
) -> np.ndarray:
    """Return the scores (R,) of the sums of the rows of each draw (R, N)."""
    return score_sums(start + sum_draws(draw_RN, rows), score)


def sum_draws(draw_RN: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the sums (R, ...) of the rows, each weighted by its number in the draw (R, N)."""
    return np.tensordot(draw_RN.astype(float), rows, 1)


def score_sums(sums: np.ndarray, score: ScoreFunction) -> np.ndarray:
    """Return the scores (R,) of sums (R, ...); raise ValueError if the function returns another shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values_R = np.asarray(score(sums), dtype=float)
    if values_R.shape != (len(sums),):
        raise ValueError(
            f"score returned {values_R.shape} for sums {sums.shape}; "
            f"it must return one number per resample, ({len(sums)},)"
        )
    return values_R


def bootstrap_draws(
    images: int, resamples: int, row_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the number of times each image is drawn, (R, N) int in chunks of R; each row sums to N."""
    for chunk in chunk_sizes(resamples, images + row_size):
        # Offset each resample's draws by its row, so that one bincount counts all resamples
        drawn_RN = rng.integers(images, size=(chunk, images))
        drawn_RN += images * np.arange(chunk)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=chunk * images).reshape(chunk, images)


def random_swaps(
    images: int, resamples: int, row_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield 1 where the two rows of an image are swapped, else 0, (R, N) in chunks of R."""
    for chunk in chunk_sizes(resamples, images + row_size):
        yield rng.integers(2, size=(chunk, images), dtype=np.int8)


def chunk_sizes(resamples: int, numbers: int) -> Iterator[int]:
    """Yield sizes of chunks that sum to resamples, each of at most NUMBERS floats."""
    size = max(1, CHUNK_FLOATS // max(1, numbers))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
