"""Differences between a run and its repetition: scores, versions, hardware, code, config and data.

``then`` refers to the earlier run, ``now`` to the later one.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from seg.cli.conf_files import format_option_value
from seg.comparison.grouping import RunGroup
from seg.comparison.ranking import ComparisonSpec, rank_groups
from seg.comparison.run_records import read_compared_run
from seg.data.masks import shorten_list
from seg.display.tables import make_table
from seg.runs import checkpoint, provenance
from seg.runs.reader import FinishedRun, Metrics
from seg.runs.run_info import NEUTRAL_OPTIONS

MAIN_SCORES = (
    "best/val/dice",
    "best/val/iou",
    "test/dice",
    "test/iou",
)  # scores that decide the verdict if some differ
HARDWARE_FIELDS = ("machine", "system", "cpu", "instructions", "threads", "gpus")
RECORDED_FIELDS = {  # sections of run.json that numbers depend on; None: all their fields
    "versions": None, "environment": None, "hardware": HARDWARE_FIELDS, "git": ("commit", "diff"),
    "data": ("fingerprint",),
}  # fmt: skip
UNLISTED_OPTIONS = (*NEUTRAL_OPTIONS, "cache")  # no number depends on them
ScoreChanges = dict[str, dict[str, Any]]


class RunChange(NamedTuple):
    """A fact that differs."""

    what: str
    then: Any
    now: Any


def compare_scores(
    then: Metrics, now: Metrics, intervals: Mapping[str, tuple[float, float]]
) -> ScoreChanges:
    """Compare the scores of two runs to the last bit; an interval tells whether a difference is within noise.

    Args:
        then: metrics by name; None is nan.
        now: metrics by name; None is nan.
        intervals: of the differences that have one, by name.

    Returns:
        For each metric ``then``, ``now``, ``difference``, ``low``, ``high`` and ``verdict``: same, within noise,
        different, only then or only now.
    """
    scores: ScoreChanges = {}
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        low, high = intervals.get(name, (None, None))
        # Equality is exact; only unequal scores need an interval
        if name not in then or name not in now:
            verdict = "only now" if name in now else "only then"
        elif old == new:
            verdict = "same"
        else:
            covers = low is not None and high is not None and low <= 0 <= high
            verdict = "within noise" if covers else "different"
        difference = None if old is None or new is None else new - old
        scores[name] = {
            "then": old, "now": new, "difference": difference, "low": low, "high": high, "verdict": verdict
        }  # fmt: skip
    return scores


def difference_intervals(then: Path, now: Path) -> dict[str, tuple[float, float]]:
    """Return the interval over images of the difference of each main score of two runs that have image counts."""
    runs = [read_compared_run(folder, label) for folder, label in ((then, "then"), (now, "now"))]
    intervals = {}
    for split, score in itertools.product(("val", "test"), ("dice", "iou")):
        asked = ComparisonSpec(score, split)
        if all(asked.key in run.metrics for run in runs):
            groups = [RunGroup({}, [run]) for run in runs]
            for c in rank_groups(groups, groups[0], asked).comparisons:
                if c.low == c.low:
                    intervals[asked.key] = c.low, c.high
    return intervals


def overall_verdict(scores: ScoreChanges) -> str:
    """Return same, within noise or different: of all scores if they are equal, else of Dice and IoU."""
    both = {n: s["verdict"] for n, s in scores.items() if not s["verdict"].startswith("only")}
    if both and set(both.values()) == {"same"}:
        return "same"
    main = [both[name] for name in MAIN_SCORES if name in both]
    return "within noise" if main and "different" not in main else "different"


def config_edits(past: FinishedRun) -> Iterator[RunChange]:
    """Yield differences of config.yaml from the config in the checkpoint, with which the run was trained."""
    try:
        card = checkpoint.read_checkpoint(checkpoint.find_checkpoint(past.folder))["seg"]["config"]
    except (*checkpoint.DAMAGE_ERRORS, ValueError):
        return  # without a checkpoint there is nothing to compare
    yield from changed_leaves(card, past.config, "config.yaml: ")


def changed_leaves(then: Any, now: Any, path: str) -> Iterator[RunChange]:
    """Yield each value of a config that differs."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        if then != now:
            yield RunChange(path.rstrip("."), then, now)
        return
    for name in dict.fromkeys([*then, *now]):
        if name not in UNLISTED_OPTIONS:
            yield from changed_leaves(then.get(name), now.get(name), f"{path}{name}.")


def changed_records(then: dict[str, Any], now: dict[str, Any]) -> Iterator[RunChange]:
    """Yield differences between two run.json in the fields that numbers depend on and the older one has."""
    # Fields of run.json that numbers depend on; those of an older version may be absent
    for group, chosen in RECORDED_FIELDS.items():
        old, new = then.get(group), now.get(group) or {}
        if not isinstance(old, dict):
            continue
        unset = new if group == "environment" else {}
        for name in chosen or dict.fromkeys([*old, *unset]):
            if (name in old or name in unset) and old.get(name) != new.get(name):
                yield RunChange(f"{group}.{name}", old.get(name), new.get(name))
    # Sections that changed when the earlier run was resumed
    for entry in then.get("resumed", []):
        if other := sorted(set(RECORDED_FIELDS).intersection(entry)):
            yield RunChange(
                "resumed", None, f"the earlier run went on with other {', '.join(other)}"
            )
    for name in ("source", "split_hash", "seed", "steps", "parameters"):
        if name in then and then[name] != now.get(name):
            yield RunChange(name, then[name], now.get(name))


def missing_records(then: dict[str, Any]) -> list[str]:
    """Return the sections that an older run.json lacks."""
    return [name for name in (*RECORDED_FIELDS, "source") if name not in then]


def changed_images(then: Path, now: Path) -> Iterator[RunChange]:
    """Yield the differences in images and masks of two run folders with fingerprints.csv."""
    try:
        old, new = (provenance.read_digests(folder / "fingerprints.csv") for folder in (then, now))
    except (OSError, ValueError):
        return  # data.fingerprint shows that something differs
    if not old:
        return
    # Images of both runs with other pixels, then those of one run only
    for place, kind in enumerate(("images", "masks")):
        differ = [name for name in old if name in new and old[name][place] != new[name][place]]
        if differ:
            yield RunChange(
                f"data.{kind}", None, f"{len(differ)} of other pixels: {shorten_list(differ)}"
            )
    for kind, names in (("gone", set(old) - set(new)), ("added", set(new) - set(old))):
        if names:
            yield RunChange(f"data.{kind}", None, f"{len(names)}: {shorten_list(sorted(names))}")


def format_change(value: Any) -> str:
    """Return a value as it is typed; for a group of options its constructor."""
    return format_option_value(value.get("_target_", value) if isinstance(value, dict) else value)


def rerun_score_table(scores: ScoreChanges) -> Table:
    """Return the table of Dice and IoU; rerun.json has all scores."""
    table = make_table("then and now")
    table.add_column("score", no_wrap=True)
    for header in ("then", "now", "change", "95 % interval"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, row in ((name, scores[name]) for name in MAIN_SCORES if name in scores):
        forms = {"then": ".5f", "now": ".5f", "difference": "+.2g"}
        cells = ("-" if row[key] is None else f"{row[key]:{form}}" for key, form in forms.items())
        ends = "-" if row["low"] is None else f"{row['low']:+.2g} {row['high']:+.2g}"
        table.add_row(name.removeprefix("best/"), *cells, ends, row["verdict"])
    return table
