"""Which group of runs is better, and how sure that is.

A group is a recipe, its runs are repetitions with other seeds (and folds). Two questions, two tests:

**images**: would these trained networks differ on other images of the same kind? Paired randomisation over
the images, and a bootstrap interval of the difference (`seg.metrics.significance`). A group's seeds are held
together: a row is an image with the pixel counts of every seed, swapped or drawn as one, and the score of
summed rows is the mean over seeds of each seed's own score. So its value is the difference of the table's
means. Folds of one seed are joined, each image from the network that did not train on it; where several
networks of one seed scored the same image, their counts are averaged. Groups of unlike numbers of seeds
have theirs repeated to the least common multiple, which leaves the means as they are; where that is more than
24, the counts of an image are averaged over its group's seeds instead.

**seeds**: would recipes differ with other seeds, on these images? Welch's t-test of the seeds' scores (a
fold's seed counts once, by its mean over folds). It does not assume equal spread. Networks of one seed share
the order of crops, which makes it careful rather than bold.

Neither speaks of both kinds of chance at once, so a difference counts as real only where both agree. Of
a test that could not have said yes, whatever the difference (too few images for so many comparisons, or
fewer than 3 seeds), nothing is asked, and the mark says which was.

P values are Holm's over the comparisons, each kind by itself. Where the baseline is the best group, chosen by
the same numbers, any two groups might have been compared: then they count as all pairs.
"""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ttest_ind

from seg.comparison.grouping import Group
from seg.comparison.pixel_counts import Pooled, by_seed, evidence, pooled
from seg.comparison.run_records import Run
from seg.metrics.direction import smaller_is_better
from seg.metrics.significance import EXACT, Score, holm, interval, paired_test

ENOUGH = 3  # seeds of both groups, below which they aren't asked
MOST = 24  # seeds to which groups of unlike numbers of seeds are repeated
FEW = 20  # images, below which intervals are too narrow


@dataclass(frozen=True)
class Asked:
    """What is compared, and how.

    Attributes:
        score: name of a metric, ``dice`` or ``dice/CLASS``.
        split: val or test.
        level: of the intervals; 1 - level is the error rate of each family of tests.
        resamples: of each bootstrap and randomisation.
    """

    score: str
    split: str
    level: float = 0.95
    resamples: int = 10_000

    @property
    def key(self) -> str:
        """The score's name in a run's metrics."""
        return f"{'test' if self.split == 'test' else 'best/' + self.split}/{self.score}"

    @property
    def smaller(self) -> bool:
        """Whether less is better."""
        return smaller_is_better(self.score)


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline; nan where something could not be had.

    Attributes:
        value: the group's mean score less the baseline's.
        low: of its interval over images.
        high: of it.
        seeds_low: of its interval over seeds.
        seeds_high: of it.
        p_images: Holm's, of the randomisation over images.
        p_seeds: Holm's, of Welch's test over seeds.
        asked: the tests that could have said yes.
        survived: those of them that did.
        images: that both groups were scored on.
        apart: why the groups can't be compared, or empty.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds_low: float = math.nan
    seeds_high: float = math.nan
    p_images: float = math.nan
    p_seeds: float = math.nan
    asked: tuple[str, ...] = ()
    survived: tuple[str, ...] = ()
    images: int = 0
    apart: str = ""

    @property
    def real(self) -> bool:
        return bool(self.asked) and self.asked == self.survived

    @property
    def mark(self) -> str:
        """``*`` images and seeds, ``(*)`` the one that could be asked, one only of both, ``no``, ``?`` none asked."""
        if self.apart:
            return self.apart
        if self.real:
            return "*" if len(self.asked) == 2 else f"(*) {self.asked[0]}"
        if self.survived:
            return f"{self.survived[0]} only"
        return "no" if self.asked else "?"


@dataclass(frozen=True)
class Ranked:
    """A group and how it did.

    Attributes:
        group: its runs.
        scores: of each run.
        seeds: number of different ones.
        comparison: with the baseline; None of the baseline itself.
    """

    group: Group
    scores: np.ndarray
    seeds: int
    comparison: Comparison | None = None

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def sd(self) -> float:
        """Over the runs (ddof 1); nan of one."""
        return float(self.scores.std(ddof=1)) if len(self.scores) > 1 else math.nan


@dataclass(frozen=True)
class Ranking:
    """Groups from best to worst, and with what they were compared.

    Attributes:
        asked: what was compared.
        groups: from best to worst.
        chosen: whether the baseline is the best group because nobody named another.
        pairs: comparisons that Holm's correction counts.
    """

    asked: Asked
    groups: list[Ranked]
    chosen: bool
    pairs: int

    @property
    def baseline(self) -> int:
        """Its place in groups."""
        return next(i for i, r in enumerate(self.groups) if r.comparison is None)

    @property
    def comparisons(self) -> list[Comparison]:
        """Those that could be made."""
        return [r.comparison for r in self.groups if r.comparison and not r.comparison.apart]

    @property
    def runs(self) -> list[Run]:
        """All that are ranked."""
        return [run for r in self.groups for run in r.group.runs]


def rank(groups: list[Group], baseline: Group | None, asked: Asked) -> Ranking:
    """Groups from best to worst, each against the baseline, or against the best where that is None."""
    ranked = [
        Ranked(g, np.array([run.metrics[asked.key] for run in g.runs]), len(by_seed(g.runs)))
        for g in groups
    ]
    ranked.sort(key=lambda r: r.mean if asked.smaller else -r.mean)
    first = next((i for i, r in enumerate(ranked) if r.group is baseline), 0)
    found = [compared(r, ranked[first], asked) for i, r in enumerate(ranked) if i != first]
    tested = sum(not c.apart for c in found)
    pairs = math.comb(tested + 1, 2) if baseline is None else tested
    answers: list[Comparison | None] = [*corrected(found, pairs, asked)]
    answers[first:first] = [None] * bool(ranked)
    done = [replace(r, comparison=answer) for r, answer in zip(ranked, answers, strict=True)]
    return Ranking(asked, done, baseline is None, pairs)


def compared(one: Ranked, baseline: Ranked, asked: Asked) -> Comparison:
    """A group against the baseline, p not yet corrected."""
    runs, others, split = one.group.runs, baseline.group.runs, asked.split
    counts = pooled(runs, split), pooled(others, split)
    if apart := on_other_images(runs, others, split, *counts):
        return Comparison(apart=apart)
    low, high, p = welch(seed_means(runs, asked.key), seed_means(others, asked.key), asked.level)
    seeds = ("seeds",) if min(one.seeds, baseline.seeds) >= ENOUGH and p == p else ()
    found = Comparison(
        one.mean - baseline.mean, seeds_low=low, seeds_high=high, p_seeds=p, asked=seeds
    )
    if (pair := paired_rows(*counts, asked.score)) is None:
        return found
    rows, other_rows, score = pair
    d = paired_test(other_rows, rows, score, asked.level, asked.resamples)
    images = ("images",) if d.p == d.p else ()
    return replace(
        found, value=d.value, low=d.low, high=d.high, p_images=d.p, asked=images + seeds, images=d.images
    )  # fmt: skip


def corrected(found: list[Comparison], pairs: int, asked: Asked) -> list[Comparison]:
    """With Holm's p over so many pairs, and what survived them."""
    tested = sum(not c.apart for c in found)
    padding = np.ones(pairs - tested)  # pairs that nobody looks at, as if alike: that is careful
    p_images = holm(np.append([c.p_images for c in found], padding))
    p_seeds = holm(np.append([c.p_seeds for c in found], padding))
    alpha = 1 - asked.level
    answers = []
    for c, images, seeds in zip(found, p_images, p_seeds, strict=False):
        p = {"images": float(images), "seeds": float(seeds)}
        kinds = tuple(
            kind
            for kind in c.asked
            if kind == "seeds" or floor(c.images, asked.resamples) * pairs <= alpha
        )
        survived = tuple(kind for kind in kinds if p[kind] <= alpha)
        answers.append(
            replace(c, p_images=p["images"], p_seeds=p["seeds"], asked=kinds, survived=survived)
        )
    return answers


def floor(images: int, resamples: int) -> float:
    """The smallest p that a randomisation over so many images can give."""
    return min(1.0, 2 / 2**images) if images <= EXACT else 1 / (1 + resamples)


def seed_means(runs: list[Run], key: str) -> np.ndarray:
    """The score of each seed, its mean over folds or repetitions."""
    return np.array(
        [np.mean([run.metrics[key] for run in same]) for same in by_seed(runs).values()]
    )


def welch(a: np.ndarray, b: np.ndarray, level: float) -> tuple[float, float, float]:
    """Interval of mean(a) - mean(b), and p of Welch's t-test; nan with one of either, or no spread."""
    if min(len(a), len(b)) < 2 or np.ptp(a) + np.ptp(b) == 0:
        return math.nan, math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scores that differ in their last digits
        found = ttest_ind(a, b, equal_var=False)
        ends = found.confidence_interval(level)
    return float(ends.low), float(ends.high), float(found.pvalue)


def on_other_images(
    a: list[Run], b: list[Run], split: str, counts_a: Pooled | None, counts_b: Pooled | None
) -> str:
    """Why scores of these runs can't be set against each other, or nothing.

    Images are the same when they have the same names and as many pixels of each class; where that isn't
    counted, when the data's fingerprint is the same, as far as it is known.
    """
    names = [frozenset(n for run in runs for n in run.splits.get(split, ())) for runs in (a, b)]
    if not all(names):
        return "images unknown"
    if names[0] != names[1]:
        return "other images"
    if counts_a and counts_b:
        alike = counts_a.classes == counts_b.classes and counts_a.images == counts_b.images
        alike = alike and np.array_equal(counts_a.truth, counts_b.truth)
        return "" if alike else "other masks"
    return "other data" if len({run.fingerprint for run in (*a, *b)} - {""}) > 1 else ""


def paired_rows(
    a: Pooled | None, b: Pooled | None, score: str
) -> tuple[np.ndarray, np.ndarray, Score] | None:
    """Rows of both groups, seeds repeated to the same number, and the score of their sums.

    None where images aren't counted, or their counts don't give the score.
    """
    if a is None or b is None:
        return None
    found, others = evidence(a, score), evidence(b, score)
    if found is None or others is None:
        return None
    (rows_a, of_sums), (rows_b, _) = found, others
    if rows_a.ndim == 4:  # (N, S, C, 3)
        seeds = math.lcm(rows_a.shape[1], rows_b.shape[1])
        if seeds > MOST:
            rows_a, rows_b, seeds = rows_a.mean(1, keepdims=True), rows_b.mean(1, keepdims=True), 1
        rows_a, rows_b = (np.repeat(r, seeds // r.shape[1], axis=1) for r in (rows_a, rows_b))
    return rows_a, rows_b, of_sums


def intervals(ranked: Ranked, asked: Asked) -> dict[str, tuple[float, float, float]]:
    """Score, low and high of the mean ("") and of each class, by bootstrap over images; as far as known."""
    group = pooled(ranked.group.runs, asked.split)
    if group is None:
        return {}
    name, found = asked.score.partition("/")[0], {}
    for of in ("", *group.classes):
        if (rows := evidence(group, f"{name}/{of}" if of else name)) is not None:
            one = interval(*rows, asked.level, min(asked.resamples, 2000))
            found[of] = one.value, one.low, one.high
    return found
