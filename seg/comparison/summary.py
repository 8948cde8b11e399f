"""Text of a comparison: its result in a few sentences, the meaning of p, and warnings."""

import time
from collections.abc import Callable, Iterable

from seg.comparison.grouping import Group, differing, shown, value_of
from seg.comparison.ranking import ENOUGH, Asked, Ranked, Ranking
from seg.comparison.run_records import Run
from seg.metrics.significance import EXACT

NAMES = {"dice": "Dice", "iou": "IoU", "f1": "F1"}
FEW = 20  # images below which intervals are too narrow
VERDICTS = {  # by the tests with a significant difference
    ("images", "seeds"): "Significant over images and seeds",
    ("images",): "Significant over images only",
    ("seeds",): "Significant over seeds only",
    (): "Not significant",
}


def score_name(asked: Asked) -> str:
    """Return the score as text: ``Dice``, ``Dice of membrane``, ``dice per image``."""
    name, _, label = asked.score.partition("/")
    return NAMES.get(name, name.replace("_", " ")) + (f" of {label}" if label else "")


def headline(ranking: Ranking, others: int) -> str:
    """Return the result of the comparison: the best group, and which groups differ from the baseline.

    Args:
        ranking: of the groups.
        others: number of runs that are not ranked.
    """
    asked = ranking.asked
    if not ranking.groups:
        return f"None of {others} runs can be ranked yet."
    best = ranking.groups[0]
    images = image_count(best.group.runs, asked.split)
    split = f"{images} {asked.split} image{'s' * (images != 1)}" if images else asked.split
    score = f"{score_name(asked)} {best.mean:.4f} on {split}, {runs_of(best)}"
    if len(ranking.groups) == 1:
        return f"{best.group.label}: {score}. There is no other group to compare with."
    return f"{best.group.label} is best: {score}. {differences(ranking)}"


def differences(ranking: Ranking) -> str:
    """Return a sentence on the differences of the groups from the baseline, grouped by their significance."""
    verdicts: dict[str, list[str]] = {}
    for r in ranking.groups:
        if (c := r.comparison) is None:
            continue
        if c.apart:
            verdict = "Not comparable"
        else:
            verdict = VERDICTS[c.significant(ranking.alpha)] if c.tested else "Not tested"
        verdicts.setdefault(verdict, []).append(r.group.label)
    baseline = ranking.groups[ranking.baseline].group.label if ranking.baseline else "it"
    parts = " ".join(f"{verdict}: {counted(labels)}." for verdict, labels in verdicts.items())
    return f"Differences from {baseline}: {parts[0].lower()}{parts[1:]}"


def runs_of(r: Ranked) -> str:
    """Return ``mean of 3 seeds``, ``one run`` or ``mean of 5 runs of 1 seed``."""
    runs = len(r.scores)
    if runs == 1:
        return "one run"
    if r.seeds == runs:
        return f"mean of {runs} seeds"
    return f"mean of {runs} runs of {r.seeds} seed{'s' * (r.seeds > 1)}"


def image_count(runs: list[Run], split: str) -> int:
    """Return the number of different images that the runs have in a split."""
    return len({name for run in runs for name in run.splits.get(split, ())})


def counted(names: Iterable[str], most: int = 4) -> str:
    """Return the first names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def p_line(ranking: Ranking) -> str:
    """Return the line that explains the two p values; empty without comparisons."""
    if not ranking.comparisons:
        return ""
    unit = f"{'pair' if ranking.chosen else 'comparison'}{'s' * (ranking.pairs != 1)}"
    return (
        "p images: these networks on other images; p seeds: these recipes with other seeds; "
        f"adjusted by Holm over {ranking.pairs} {unit}, significant up to {ranking.alpha:.2g}"
    )


def cautions(ranking: Ranking) -> list[str]:
    """Return the warnings, one line each."""
    runs = ranking.runs
    lines = [
        *too_few(ranking),
        "validation chose each run's checkpoint, so all scores on it are too good"
        if ranking.asked.split == "val" and runs
        else "",
        unlike(runs, lambda run: run.fingerprint, "the data's fingerprints differ"),
        unlike(runs, lambda run: run.facts.get("commit", ""), "trained by different code"),
        budgets(runs),
        mixed(ranking.groups) or repeated(ranking.groups),
        *(f"{run.label}: {fault}" for run in runs for fault in run.faults),
    ]
    return [line for line in lines if line]


def too_few(ranking: Ranking) -> list[str]:
    """Return warnings of too few images or seeds."""
    if not ranking.comparisons:
        return []
    counts = [c.images for c in ranking.comparisons if c.images]
    score = ranking.asked.score
    if counts:
        lines = few_images(min(counts), ranking)
    else:
        lines = [f"the runs hold no counts that give {score} image by image: no test over images"]
    short = [r.group.label for r in ranking.groups if r.seeds < ENOUGH]
    if short:
        groups = "all groups" if len(short) == len(ranking.groups) else counted(short)
        lines.append(
            f"fewer than {ENOUGH} seeds ({groups}): no test over seeds, the result is about these "
            "networks, not about recipes"
        )
    return lines


def few_images(images: int, ranking: Ranking) -> list[str]:
    """Return a warning if the number of images is too small for any significance, or for good intervals."""
    smallest_p = 2 / 2**images if images <= EXACT else 1 / (1 + ranking.asked.resamples)
    if smallest_p * ranking.pairs > ranking.alpha:
        remedy = "use more images" if images <= EXACT else "raise resamples"
        return [
            f"{images} images give p {min(1.0, smallest_p):.2g} or more, which is never significant in "
            f"{ranking.pairs} comparisons; {remedy}, name a baseline or group by fewer options"
        ]
    return [f"{images} images: so few make intervals too narrow"] if images < FEW else []


def unlike(runs: list[Run], fact: Callable[[Run], str], text: str) -> str:
    """Return a warning if the runs differ in a fact that should be the same."""
    values = {fact(run) for run in runs} - {""}
    return f"{text}: {counted(sorted(values), 3)}" if len(values) > 1 else ""


def budgets(runs: list[Run]) -> str:
    """Return a warning if some runs were trained longer than others."""
    steps = {int(run.steps) for run in runs if run.steps is not None}
    limits = {shown(run.options.get("trainer.max_epochs")) for run in runs if run.options}
    parts = [f"{min(steps)} to {max(steps)} steps"] if len(steps) > 1 else []
    parts += [f"trainer.max_epochs {counted(sorted(limits))}"] if len(limits) > 1 else []
    return f"budgets differ: {', '.join(parts)}" if parts else ""


def mixed(groups: list[Ranked]) -> str:
    """Return a warning if the runs of a group are not of one recipe."""
    names: dict[str, None] = {}
    for r in groups:
        names |= dict.fromkeys(n for n in differing(r.group.runs) if n not in r.group.options)
    return f"within groups these differ too: {counted(names)}" if names else ""


def repeated(groups: list[Ranked]) -> str:
    """Return a warning if a group has a seed more than once with one fold."""
    for r in groups:
        pairs = [(run.seed, shown(value_of(run, "data.fold"))) for run in r.group.runs]
        twice = {seed for (seed, fold) in pairs if seed and pairs.count((seed, fold)) > 1}
        if twice:
            return f"{r.group.label} has seed {counted(sorted(twice))} more than once: a seed counts once"
    return ""


def fate(run: Run, asked: Asked) -> str:
    """Return the reason why a run is not ranked."""
    if run.status == "damaged":
        return "; ".join(run.faults)
    if run.status == "finished":
        return f"it has no {asked.key}"
    parts = [run.error] if run.error else []
    if run.epochs is not None:
        parts.append(f"in epoch {run.epochs}")
    if run.status == "running" and run.written is not None:
        parts.append(f"last measured {age(time.time() - run.written)} ago")
    return ", ".join([*parts, *run.faults]) or "nothing was measured"


def age(seconds: float) -> str:
    """Return a duration in its largest suitable unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def mean_of(group: Group, fact: Callable[[Run], float | None]) -> float | None:
    """Return the mean of a fact over the runs that have it; None if none has."""
    values = [value for run in group.runs if (value := fact(run)) is not None]
    return sum(values) / len(values) if values else None
