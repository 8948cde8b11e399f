"""Rank groups of runs and test their differences from a baseline.

A group is a recipe; its runs repeat it with other seeds (and folds). A difference has two sources of chance,
and each has its test:

**images**: would these trained networks differ on other images of the same kind? Paired randomisation test
and bootstrap interval over images (`seg.metrics.significance`). A row is an image with the pixel counts of
every seed of its group, swapped or drawn together; the score of the summed rows is the mean over seeds of
each seed's own score, so the difference is that of the means in the table. Folds of one seed are joined:
each image is scored by the network that was not trained on it; counts of an image scored by several networks
of one seed are averaged. If the groups have different numbers of seeds, the seeds are repeated to the least
common multiple, which leaves the means as they are; if that exceeds ``MAX_SEED_REPEATS``, the counts are averaged over seeds.

**seeds**: would the recipes differ with other seeds on these images? Welch's t-test of the scores of the
seeds (a seed with several folds counts once, by its mean); it needs 3 seeds of both groups. Networks of one
seed share the order of their crops, which makes the test conservative.

Neither test covers both sources of chance; a difference between recipes needs both. p values are adjusted by
Holm over the comparisons, each test by itself. If the baseline is the best group, it was chosen by the same
numbers, and all pairs of groups count as comparisons.
"""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ttest_ind

from seg.comparison.grouping import RunGroup
from seg.comparison.pixel_counts import (
    GroupCounts,
    group_bootstrap_input,
    pool_counts,
    runs_by_seed,
)
from seg.comparison.run_records import ComparedRun
from seg.metrics.direction import smaller_is_better
from seg.metrics.significance import ScoreFunction, bootstrap_interval, holm_adjust, paired_test

MIN_SEEDS = 3  # seeds that the test over seeds needs in both groups
MAX_SEED_REPEATS = 24  # seeds up to which groups with different numbers of seeds are repeated


@dataclass(frozen=True)
class ComparisonSpec:
    """Score to compare, and settings of the tests.

    Attributes:
        score: name of a metric, ``dice`` or ``dice/CLASS``.
        split: val or test.
        level: confidence level of the intervals; 1 - level is the error rate of each family of tests.
        resamples: number of resamples of each bootstrap and randomisation.
    """

    score: str
    split: str
    level: float = 0.95
    resamples: int = 10_000

    @property
    def key(self) -> str:
        """Key of the score in the metrics of a run."""
        return f"{'test' if self.split == 'test' else 'best/' + self.split}/{self.score}"

    @property
    def smaller_is_better(self) -> bool:
        """True if a smaller score is better."""
        return smaller_is_better(self.score)


@dataclass(frozen=True)
class Comparison:
    """Difference of a group from the baseline; nan where it could not be computed.

    Attributes:
        value: mean score of the group minus that of the baseline.
        low: lower end of its interval over images.
        high: upper end of it.
        seeds_low: lower end of its interval over seeds.
        seeds_high: upper end of it.
        p_images: p over images, adjusted by Holm.
        p_seeds: p over seeds, adjusted by Holm.
        images: number of images that both groups were scored on.
        apart: reason why the groups cannot be compared, or empty.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds_low: float = math.nan
    seeds_high: float = math.nan
    p_images: float = math.nan
    p_seeds: float = math.nan
    images: int = 0
    apart: str = ""

    @property
    def tested(self) -> bool:
        """True if there is a p value over images or over seeds."""
        return not (math.isnan(self.p_images) and math.isnan(self.p_seeds))

    def significant(self, alpha: float) -> tuple[str, ...]:
        """Return the tests, of "images" and "seeds", whose p is at most alpha."""
        p = {"images": self.p_images, "seeds": self.p_seeds}
        return tuple(name for name, value in p.items() if value <= alpha)


@dataclass(frozen=True)
class RankedGroup:
    """A group with its scores.

    Attributes:
        group: the group.
        scores: score of each run.
        seeds: number of different seeds.
        comparison: difference from the baseline; None for the baseline itself.
    """

    group: RunGroup
    scores: np.ndarray
    seeds: int
    comparison: Comparison | None = None

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def sd(self) -> float:
        """Standard deviation over the runs (ddof 1); nan with one run."""
        return float(self.scores.std(ddof=1)) if len(self.scores) > 1 else math.nan


@dataclass(frozen=True)
class Ranking:
    """Groups from best to worst, with their differences from the baseline.

    Attributes:
        asked: score that was compared.
        groups: groups from best to worst.
        baseline_is_best: True if the best group is the baseline because none was named.
        num_comparisons: number of comparisons in Holm's correction.
    """

    asked: ComparisonSpec
    groups: list[RankedGroup]
    baseline_is_best: bool
    num_comparisons: int

    @property
    def alpha(self) -> float:
        """Significance level of the tests."""
        return 1 - self.asked.level

    @property
    def baseline(self) -> int:
        """Index of the baseline in groups."""
        return next(i for i, r in enumerate(self.groups) if r.comparison is None)

    @property
    def comparisons(self) -> list[Comparison]:
        """Comparisons of the groups that can be compared with the baseline."""
        return [r.comparison for r in self.groups if r.comparison and not r.comparison.apart]

    @property
    def runs(self) -> list[ComparedRun]:
        """Runs of all groups, those of the best group first."""
        return [run for r in self.groups for run in r.group.runs]


def rank_groups(
    groups: list[RunGroup], baseline: RunGroup | None, asked: ComparisonSpec
) -> Ranking:
    """Rank the groups and compare each with the baseline.

    Args:
        groups: groups of finished runs that have the score.
        baseline: one of them; None: the best.
        asked: score to compare, and settings of the tests.
    """
    # order by mean score
    ranked = [
        RankedGroup(
            g, np.array([run.metrics[asked.key] for run in g.runs]), len(runs_by_seed(g.runs))
        )
        for g in groups
    ]
    ranked.sort(key=lambda r: r.mean if asked.smaller_is_better else -r.mean)

    # compare with the baseline; the best group as baseline makes all pairs count
    base = next((i for i, r in enumerate(ranked) if r.group is baseline), 0)
    raw = [compare_groups(r, ranked[base], asked) for i, r in enumerate(ranked) if i != base]
    tested = sum(not c.apart for c in raw)
    pairs = math.comb(tested + 1, 2) if baseline is None else tested
    comparisons: list[Comparison | None] = [*adjust_p_values(raw, pairs)]
    comparisons[base:base] = [None] * bool(ranked)
    groups_done = [replace(r, comparison=c) for r, c in zip(ranked, comparisons, strict=True)]
    return Ranking(asked, groups_done, baseline is None, pairs)


def compare_groups(group: RankedGroup, baseline: RankedGroup, asked: ComparisonSpec) -> Comparison:
    """Compare a group with the baseline, without Holm's correction."""
    runs, others, split = group.group.runs, baseline.group.runs, asked.split
    counts = pool_counts(runs, split), pool_counts(others, split)
    if apart := incomparable_reason(runs, others, split, *counts):
        return Comparison(apart=apart)

    # over seeds
    low, high, p = welch_test(
        seed_means(runs, asked.key), seed_means(others, asked.key), asked.level
    )
    if min(group.seeds, baseline.seeds) < MIN_SEEDS:
        p = math.nan
    value = group.mean - baseline.mean
    comparison = Comparison(value, seeds_low=low, seeds_high=high, p_seeds=p)

    # over images
    if (pair := paired_rows(*counts, asked.score)) is None:
        return comparison
    rows, other_rows, score = pair
    d = paired_test(other_rows, rows, score, asked.level, asked.resamples)
    return replace(comparison, value=d.value, low=d.low, high=d.high, p_images=d.p, images=d.images)


def adjust_p_values(comparisons: list[Comparison], pairs: int) -> list[Comparison]:
    """Return the comparisons with p values adjusted by Holm over ``pairs`` tests.

    Pairs that are not among the comparisons count with p = 1, which is conservative.
    """
    # Groups that cannot be compared have p = nan, which Holm's method does not count
    padding = np.ones(pairs - sum(not c.apart for c in comparisons))
    p_images = holm_adjust(np.append([c.p_images for c in comparisons], padding))
    p_seeds = holm_adjust(np.append([c.p_seeds for c in comparisons], padding))
    return [
        replace(c, p_images=float(images), p_seeds=float(seeds))
        for c, images, seeds in zip(comparisons, p_images, p_seeds, strict=False)
    ]


def seed_means(runs: list[ComparedRun], key: str) -> np.ndarray:
    """Return the score of each seed, the mean over its folds or repetitions."""
    return np.array(
        [np.mean([run.metrics[key] for run in same]) for same in runs_by_seed(runs).values()]
    )


def welch_test(a: np.ndarray, b: np.ndarray, level: float) -> tuple[float, float, float]:
    """Return the interval of mean(a) - mean(b) and p of Welch's t-test; nan with one value or no spread."""
    if min(len(a), len(b)) < 2 or np.ptp(a) + np.ptp(b) == 0:
        return math.nan, math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scores equal up to their last digits
        test = ttest_ind(a, b, equal_var=False)
        ends = test.confidence_interval(level)
    return float(ends.low), float(ends.high), float(test.pvalue)


def incomparable_reason(
    a: list[ComparedRun],
    b: list[ComparedRun],
    split: str,
    counts_a: GroupCounts | None,
    counts_b: GroupCounts | None,
) -> str:
    """Return the reason why two groups cannot be compared, or an empty string.

    Images are the same if their names and the number of pixels of each class agree; without counts, if the
    fingerprints of the data agree, as far as they are known.
    """
    # The images must be the same by name
    names = [frozenset(n for run in runs for n in run.splits.get(split, ())) for runs in (a, b)]
    if not all(names):
        return "images unknown"
    if names[0] != names[1]:
        return "other images"
    # By content: true pixels of each class, otherwise the fingerprints of the data
    if counts_a and counts_b:
        alike = counts_a.classes == counts_b.classes and counts_a.images == counts_b.images
        alike = alike and np.array_equal(counts_a.truth, counts_b.truth)
        return "" if alike else "other masks"
    return "other data" if len({run.fingerprint for run in (*a, *b)} - {""}) > 1 else ""


def paired_rows(
    a: GroupCounts | None, b: GroupCounts | None, score: str
) -> tuple[np.ndarray, np.ndarray, ScoreFunction] | None:
    """Return the rows of two groups with the same number of seeds, and the score of their sums.

    None if a group has no counts, or the score does not follow from counts.
    """
    if a is None or b is None:
        return None
    evidence_a, evidence_b = group_bootstrap_input(a, score), group_bootstrap_input(b, score)
    if evidence_a is None or evidence_b is None:
        return None
    (rows_a, score_of), (rows_b, _) = evidence_a, evidence_b
    if rows_a.ndim == 4:  # (N, S, C, 3)
        seeds = math.lcm(rows_a.shape[1], rows_b.shape[1])
        if seeds > MAX_SEED_REPEATS:
            rows_a, rows_b, seeds = rows_a.mean(1, keepdims=True), rows_b.mean(1, keepdims=True), 1
        rows_a, rows_b = (np.repeat(r, seeds // r.shape[1], axis=1) for r in (rows_a, rows_b))
    return rows_a, rows_b, score_of


def class_intervals(
    ranked: RankedGroup, asked: ComparisonSpec
) -> dict[str, tuple[float, float, float]]:
    """Return value, low and high of the mean ("") and of each class by bootstrap; empty without counts."""
    group = pool_counts(ranked.group.runs, asked.split)
    if group is None:
        return {}
    # At most 2000 resamples, as these intervals are only drawn
    name, ends = asked.score.partition("/")[0], {}
    for label in ("", *group.classes):
        if (rows := group_bootstrap_input(group, f"{name}/{label}" if label else name)) is not None:
            bootstrap = bootstrap_interval(*rows, asked.level, min(asked.resamples, 2000))
            ends[label] = bootstrap.value, bootstrap.low, bootstrap.high
    return ends
