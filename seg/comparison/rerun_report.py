"""Differences between a run and its repetition: scores, versions, hardware, code, config and data.

``then`` refers to the earlier run, ``now`` to the later one.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from scipy import stats

from seg.cli.conf_files import format_option_value
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
NOISE_LEVEL = 0.95  # of the interval of the difference of two seeds
MIN_DEGREES_OF_FREEDOM = (
    2  # degrees of freedom that a standard deviation needs: three seeds of one era
)
ScoreChanges = dict[str, dict[str, Any]]


class RunChange(NamedTuple):
    """A fact that differs."""

    what: str
    then: Any
    now: Any


def compare_scores(then: Metrics, now: Metrics, eras: Sequence[Sequence[Metrics]]) -> ScoreChanges:
    """Compare the scores of two runs, and decide whether each difference is within the noise of the seed.

    A difference is within noise if it lies in the ``NOISE_LEVEL`` interval of the difference of two runs with
    different seeds: Student's t times sd times sqrt(2), with sd pooled over the eras.

    Args:
        then: metrics by name; None is nan.
        now: metrics by name; None is nan.
        eras: metrics of runs that differ only in the seed: those of then and those of now.

    Returns:
        For each metric ``then``, ``now``, ``difference``, ``sd`` and ``overall_verdict``: same, within noise,
        different, only then or only now.
    """
    scores: ScoreChanges = {}
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        sd, free = pooled_sd([[metrics.get(name) for metrics in era] for era in eras])
        difference = None if old is None or new is None else new - old
        if name not in then or name not in now:
            result = "only now" if name in now else "only then"
        elif old == new:
            result = "same"
        elif sd is None or difference is None:
            result = "different"
        else:
            limit = stats.t.ppf((1 + NOISE_LEVEL) / 2, free) * sd * math.sqrt(2)
            result = "within noise" if abs(difference) <= limit else "different"
        scores[name] = {
            "then": old, "now": new, "difference": difference, "sd": sd, "verdict": result
        }  # fmt: skip
    return scores


def pooled_sd(eras: Sequence[Sequence[float | None]]) -> tuple[float | None, int]:
    """Return the standard deviation within the eras (None below ``MIN_DEGREES_OF_FREEDOM``), and its degrees of freedom."""
    squares, free = 0.0, 0
    for era in eras:
        values = np.array([value for value in era if value is not None], dtype=float)
        if len(values) > 1:
            squares += float(((values - values.mean()) ** 2).sum())
            free += len(values) - 1
    return (math.sqrt(squares / free), free) if free >= MIN_DEGREES_OF_FREEDOM else (None, free)


def overall_verdict(scores: ScoreChanges) -> str:
    """Return same, within noise or different: of all scores if they are equal, else of Dice and IoU."""
    both = {n: s["verdict"] for n, s in scores.items() if not s["verdict"].startswith("only")}
    if both and set(both.values()) == {"same"}:
        return "same"
    main = {name: scores[name] for name in MAIN_SCORES if name in both}
    known = any(row["sd"] is not None for row in main.values())
    different = any(row["verdict"] == "different" for row in main.values())
    return "within noise" if known and not different else "different"


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
        if name not in NEUTRAL_OPTIONS:
            yield from changed_leaves(then.get(name), now.get(name), f"{path}{name}.")


def changed_records(then: dict[str, Any], now: dict[str, Any]) -> Iterator[RunChange]:
    """Yield differences between two run.json in the fields that numbers depend on and the older one has."""
    for group, chosen in RECORDED_FIELDS.items():
        old, new = then.get(group), now.get(group) or {}
        if not isinstance(old, dict):
            continue
        unset = new if group == "environment" else {}
        for name in chosen or dict.fromkeys([*old, *unset]):
            if (name in old or name in unset) and old.get(name) != new.get(name):
                yield RunChange(f"{group}.{name}", old.get(name), new.get(name))
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
    for header in ("then", "now", "difference", "sd of seeds"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    forms = {"then": ".6f", "now": ".6f", "difference": "+.2g", "sd": ".2g"}
    for name, row in ((name, scores[name]) for name in MAIN_SCORES if name in scores):
        cells = ("-" if row[key] is None else f"{row[key]:{form}}" for key, form in forms.items())
        table.add_row(name.removeprefix("best/"), *cells, row["verdict"])
    return table
