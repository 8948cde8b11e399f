"""A comparison in words: the headline, what the marks claim, and what to beware of."""

import time
from collections.abc import Callable, Iterable

from seg.comparison.grouping import Group, differing, shown, value_of
from seg.comparison.ranking import ENOUGH, FEW, Asked, Ranked, Ranking, floor
from seg.comparison.run_records import Run
from seg.metrics.significance import EXACT

NAMES = {"dice": "Dice", "iou": "IoU", "f1": "F1"}


def score_name(asked: Asked) -> str:
    """``Dice``, ``Dice of membrane``, ``dice per image``."""
    name, _, of = asked.score.partition("/")
    return NAMES.get(name, name.replace("_", " ")) + (f" of {of}" if of else "")


def headline(ranking: Ranking, others: int) -> str:
    """What came out, in a few sentences."""
    asked = ranking.asked
    if not ranking.groups:
        return f"None of {others} runs can be ranked yet."
    best = ranking.groups[0]
    images = image_count(best.group.runs, asked.split)
    on = f"{images} {asked.split} image{'s' * (images != 1)}" if images else asked.split
    score = f"{score_name(asked)} {best.mean:.4f} on {on}, {runs_of(best)}"
    if len(ranking.groups) == 1:
        return f"{best.group.label}: {score}. There is nothing to compare it with."
    start = f"{best.group.label} is best: {score}."
    if ranking.baseline:
        start += f" Against {ranking.groups[ranking.baseline].group.label}:"
    return " ".join([start, *verdicts(ranking)])


def verdicts(ranking: Ranking) -> list[str]:
    """Sentences on the groups against the baseline, those that are really better first."""
    better = "Really better:"
    worse = "Really worse:" if ranking.baseline else "It is really better than"
    half = {kind: f"Told apart by {kind} only:" for kind in ("images", "seeds")}
    asked = {kind: f"Told apart by {kind}, all that could be asked:" for kind in half}
    alike, unknown, apart = (
        "No real difference to",
        "Too little to tell of",
        "Not on the same images:",
    )
    kinds: dict[str, list[str]] = {
        kind: [] for kind in (better, worse, *asked.values(), *half.values(), alike, unknown, apart)
    }
    for place, r in enumerate(ranking.groups):
        if (c := r.comparison) is None:
            continue
        if c.apart:
            kind = apart
        elif c.real and len(c.asked) == 1:  # of networks or of recipes, not of both
            kind = asked[c.asked[0]]
        elif c.real:
            kind = better if place < ranking.baseline else worse
        elif c.survived:
            kind = half[c.survived[0]]
        else:
            kind = alike if c.asked else unknown
        kinds[kind].append(r.group.label)
    return [f"{kind} {counted(names)}." for kind, names in kinds.items() if names]


def runs_of(r: Ranked) -> str:
    """``mean of 3 seeds``, ``one run``, ``mean of 5 runs of 1 seed``."""
    runs = len(r.scores)
    if runs == 1:
        return "one run"
    if r.seeds == runs:
        return f"mean of {runs} seeds"
    return f"mean of {runs} runs of {r.seeds} seed{'s' * (r.seeds > 1)}"


def image_count(runs: list[Run], split: str) -> int:
    return len({name for run in runs for name in run.splits.get(split, ())})


def counted(names: Iterable[str], most: int = 4) -> str:
    """The first few, and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def claims(ranking: Ranking) -> list[tuple[str, str]]:
    """The marks that occur, and what each claims."""
    marks = {c.mark.removesuffix(" images").removesuffix(" seeds") for c in ranking.comparisons}
    what = f"{'pair' if ranking.chosen else 'comparison'}{'s' * (ranking.pairs != 1)}"
    over = f"{ranking.asked.level:.0%}, Holm over {ranking.pairs} {what}"
    lines = {
        "*": f"real over images and over seeds ({over})",
        "(*)": f"real over what is named; the other could not be asked ({over})",
        "images only": "these networks differ on such images; with other seeds it could be otherwise",
        "seeds only": "the recipes differ on these images; on others it could be otherwise",
        "no": "chance could do as much",
        "?": "neither images nor seeds are enough to ask",
    }
    return [(mark, line) for mark, line in lines.items() if mark in marks]


def cautions(ranking: Ranking) -> list[str]:
    """What to beware of, a line each."""
    runs = ranking.runs
    lines = [
        *too_few(ranking),
        "validation chose each run's checkpoint, which flatters all scores"
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
    """Too few images or seeds."""
    if not ranking.comparisons:
        return []
    counts = [c.images for c in ranking.comparisons if c.images]
    score, resamples = ranking.asked.score, ranking.asked.resamples
    if counts:
        lines = few_images(min(counts), floor(min(counts), resamples), ranking)
    else:
        lines = [f"the runs hold no counts that give {score} image by image: images aren't asked"]
    short = [r.group.label for r in ranking.groups if r.seeds < ENOUGH]
    if short:
        who = "all groups" if len(short) == len(ranking.groups) else counted(short)
        lines.append(
            f"fewer than {ENOUGH} seeds ({who}): what is told there is of these trained networks, "
            "not of the recipe"
        )
    return lines


def few_images(images: int, p: float, ranking: Ranking) -> list[str]:
    """Where images are too few to ask, or for good intervals."""
    if p * ranking.pairs > 1 - ranking.asked.level:
        cure = "take more images" if images <= EXACT else "raise resamples"
        return [
            f"{images} images give p {p:.2g} at the least, too much for {ranking.pairs} comparisons: "
            f"images aren't asked; {cure}, name a baseline or group by fewer options"
        ]
    return [f"{images} images: so few make intervals too narrow"] if images < FEW else []


def unlike(runs: list[Run], fact: Callable[[Run], str], what: str) -> str:
    """A line where the ranked runs differ in a fact that should be the same."""
    values = {fact(run) for run in runs} - {""}
    return f"{what}: {counted(sorted(values), 3)}" if len(values) > 1 else ""


def budgets(runs: list[Run]) -> str:
    """A line where some were trained longer than others."""
    steps = {int(run.steps) for run in runs if run.steps is not None}
    limits = {shown(run.options.get("trainer.max_epochs")) for run in runs if run.options}
    parts = [f"{min(steps)} to {max(steps)} steps"] if len(steps) > 1 else []
    parts += [f"trainer.max_epochs {counted(sorted(limits))}"] if len(limits) > 1 else []
    return f"budgets differ: {', '.join(parts)}" if parts else ""


def mixed(groups: list[Ranked]) -> str:
    """A line where runs of a group aren't of one recipe."""
    names: dict[str, None] = {}
    for r in groups:
        names |= dict.fromkeys(n for n in differing(r.group.runs) if n not in r.group.options)
    return f"within groups these differ too: {counted(names)}" if names else ""


def repeated(groups: list[Ranked]) -> str:
    """A line where a group has a seed twice with one fold."""
    for r in groups:
        pairs = [(run.seed, shown(value_of(run, "data.fold"))) for run in r.group.runs]
        twice = {seed for (seed, fold) in pairs if seed and pairs.count((seed, fold)) > 1}
        if twice:
            return f"{r.group.label} has seed {counted(sorted(twice))} more than once: a seed counts once"
    return ""


def fate(run: Run, asked: Asked) -> str:
    """Why a run isn't ranked."""
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
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def mean_of(group: Group, fact: Callable[[Run], float | None]) -> float | None:
    """Mean of what is known of the runs; None where nothing is."""
    values = [value for run in group.runs if (value := fact(run)) is not None]
    return sum(values) / len(values) if values else None
