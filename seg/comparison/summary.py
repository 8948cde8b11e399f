"""Text of a comparison: its result in a few sentences, the meaning of p, and warnings."""

import time
from collections.abc import Callable, Iterable

from seg.comparison.grouping import RunGroup, differing_options, format_option, option_value
from seg.comparison.ranking import MIN_SEEDS, ComparisonSpec, RankedGroup, Ranking
from seg.comparison.run_records import ComparedRun
from seg.metrics.significance import MAX_EXACT_IMAGES

SCORE_NAMES = {"dice": "Dice", "iou": "IoU", "f1": "F1"}
MIN_INTERVAL_IMAGES = 20  # images below which intervals are too narrow
SIGNIFICANCE_WORDS = {  # by the tests with a significant difference
    ("images", "seeds"): "Significant over images and seeds",
    ("images",): "Significant over images only",
    ("seeds",): "Significant over seeds only",
    (): "Not significant",
}


def score_name(asked: ComparisonSpec) -> str:
    """Return the score as text: ``Dice``, ``Dice of membrane``, ``dice per image``."""
    name, _, label = asked.score.partition("/")
    return SCORE_NAMES.get(name, name.replace("_", " ")) + (f" of {label}" if label else "")


def write_headline(ranking: Ranking, others: int) -> str:
    """Return the result of the comparison: the best group, and which groups differ from the baseline.

    Args:
        ranking: of the groups.
        others: number of runs that are not ranked.
    """
    asked = ranking.asked
    if not ranking.groups:
        return f"None of {others} runs can be ranked yet."
    # Score of the best group, with the number of images and runs behind it
    best = ranking.groups[0]
    images = count_images(best.group.runs, asked.split)
    split = f"{images} {asked.split} image{'s' * (images != 1)}" if images else asked.split
    score = f"{score_name(asked)} {best.mean:.4f} on {split}, {describe_runs(best)}"
    if len(ranking.groups) == 1:
        return f"{best.group.label}: {score}. There is no other group to compare with."
    return f"{best.group.label} is best: {score}. {describe_differences(ranking)}"


def describe_differences(ranking: Ranking) -> str:
    """Return a sentence on the differences of the groups from the baseline, grouped by their significance."""
    # Groups of each verdict, in the order of the ranking
    verdicts: dict[str, list[str]] = {}
    for r in ranking.groups:
        if (c := r.comparison) is None:
            continue
        if c.apart:
            verdict = "Not comparable"
        else:
            verdict = SIGNIFICANCE_WORDS[c.significant(ranking.alpha)] if c.tested else "Not tested"
        verdicts.setdefault(verdict, []).append(r.group.label)
    # The sentence before has named the best group, so it is "it" here
    baseline = ranking.groups[ranking.baseline].group.label if ranking.baseline else "it"
    parts = " ".join(f"{verdict}: {list_names(labels)}." for verdict, labels in verdicts.items())
    return f"Differences from {baseline}: {parts[0].lower()}{parts[1:]}"


def describe_runs(r: RankedGroup) -> str:
    """Return ``mean of 3 seeds``, ``one run`` or ``mean of 5 runs of 1 seed``."""
    runs = len(r.scores)
    if runs == 1:
        return "one run"
    if r.seeds == runs:
        return f"mean of {runs} seeds"
    return f"mean of {runs} runs of {r.seeds} seed{'s' * (r.seeds > 1)}"


def count_images(runs: list[ComparedRun], split: str) -> int:
    """Return the number of different images that the runs have in a split."""
    return len({name for run in runs for name in run.splits.get(split, ())})


def list_names(names: Iterable[str], most: int = 4) -> str:
    """Return the first names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def p_value_line(ranking: Ranking) -> str:
    """Return the line that explains the two p values; empty without comparisons."""
    if not ranking.comparisons:
        return ""
    unit = f"{'pair' if ranking.baseline_is_best else 'comparison'}{'s' * (ranking.num_comparisons != 1)}"
    return (
        "p images: these networks on other images; p seeds: these recipes with other seeds; "
        f"adjusted by Holm over {ranking.num_comparisons} {unit}, significant up to {ranking.alpha:.2g}"
    )


def list_warnings(ranking: Ranking) -> list[str]:
    """Return the warnings, one line each."""
    runs = ranking.runs
    lines = [
        *sample_size_warnings(ranking),
        "validation chose each run's checkpoint, so all scores on it are too good"
        if ranking.asked.split == "val" and runs
        else "",
        difference_warning(runs, lambda run: run.fingerprint, "the data's fingerprints differ"),
        difference_warning(
            runs, lambda run: run.facts.get("commit", ""), "trained by different code"
        ),
        budget_warning(runs),
        mixed_group_warning(ranking.groups) or repeated_seed_warning(ranking.groups),
        *(f"{run.label}: {fault}" for run in runs for fault in run.faults),
    ]
    return [line for line in lines if line]


def sample_size_warnings(ranking: Ranking) -> list[str]:
    """Return warnings of too few images or seeds."""
    if not ranking.comparisons:
        return []
    # Images: the comparison with the fewest decides
    counts = [c.images for c in ranking.comparisons if c.images]
    score = ranking.asked.score
    if counts:
        lines = image_number_warnings(min(counts), ranking)
    else:
        lines = [f"the runs hold no counts that give {score} image by image: no test over images"]
    # Seeds: the groups that have too few
    short = [r.group.label for r in ranking.groups if r.seeds < MIN_SEEDS]
    if short:
        groups = "all groups" if len(short) == len(ranking.groups) else list_names(short)
        lines.append(
            f"fewer than {MIN_SEEDS} seeds ({groups}): no test over seeds, the result is about these "
            "networks, not about recipes"
        )
    return lines


def image_number_warnings(images: int, ranking: Ranking) -> list[str]:
    """Return a warning if the number of images is too small for any significance, or for good intervals."""
    # The smallest p that the test can give, before Holm's correction
    smallest_p = 2 / 2**images if images <= MAX_EXACT_IMAGES else 1 / (1 + ranking.asked.resamples)
    if smallest_p * ranking.num_comparisons > ranking.alpha:
        remedy = "use more images" if images <= MAX_EXACT_IMAGES else "raise resamples"
        return [
            f"{images} images give p {min(1.0, smallest_p):.2g} or more, which is never significant in "
            f"{ranking.num_comparisons} comparisons; {remedy}, name a baseline or group by fewer options"
        ]
    return (
        [f"{images} images: so few make intervals too narrow"]
        if images < MIN_INTERVAL_IMAGES
        else []
    )


def difference_warning(
    runs: list[ComparedRun], fact: Callable[[ComparedRun], str], text: str
) -> str:
    """Return a warning if the runs differ in a fact that should be the same."""
    values = {fact(run) for run in runs} - {""}
    return f"{text}: {list_names(sorted(values), 3)}" if len(values) > 1 else ""


def budget_warning(runs: list[ComparedRun]) -> str:
    """Return a warning if some runs were trained longer than others."""
    steps = {int(run.steps) for run in runs if run.steps is not None}
    limits = {format_option(run.options.get("trainer.max_epochs")) for run in runs if run.options}
    parts = [f"{min(steps)} to {max(steps)} steps"] if len(steps) > 1 else []
    parts += [f"trainer.max_epochs {list_names(sorted(limits))}"] if len(limits) > 1 else []
    return f"budgets differ: {', '.join(parts)}" if parts else ""


def mixed_group_warning(groups: list[RankedGroup]) -> str:
    """Return a warning if the runs of a group are not of one recipe."""
    names: dict[str, None] = {}
    for r in groups:
        names |= dict.fromkeys(
            n for n in differing_options(r.group.runs) if n not in r.group.options
        )
    return f"within groups these differ too: {list_names(names)}" if names else ""


def repeated_seed_warning(groups: list[RankedGroup]) -> str:
    """Return a warning if a group has a seed more than once with one fold."""
    for r in groups:
        pairs = [(run.seed, format_option(option_value(run, "data.fold"))) for run in r.group.runs]
        twice = {seed for (seed, fold) in pairs if seed and pairs.count((seed, fold)) > 1}
        if twice:
            return f"{r.group.label} has seed {list_names(sorted(twice))} more than once: a seed counts once"
    return ""


def unranked_reason(run: ComparedRun, asked: ComparisonSpec) -> str:
    """Return the reason why a run is not ranked."""
    if run.status == "damaged":
        return "; ".join(run.faults)
    if run.status == "finished":
        return f"it has no {asked.key}"
    parts = [run.error] if run.error else []
    if run.epochs is not None:
        parts.append(f"in epoch {run.epochs}")
    if run.status == "running" and run.written is not None:
        parts.append(f"last measured {format_age(time.time() - run.written)} ago")
    return ", ".join([*parts, *run.faults]) or "nothing was measured"


def format_age(seconds: float) -> str:
    """Return a duration in its largest suitable unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def mean_fact(group: RunGroup, fact: Callable[[ComparedRun], float | None]) -> float | None:
    """Return the mean of a fact over the runs that have it; None if none has."""
    values = [value for run in group.runs if (value := fact(run)) is not None]
    return sum(values) / len(values) if values else None
