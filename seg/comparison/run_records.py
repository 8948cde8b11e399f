"""Reads many run folders, as far as they can be read: finished, running, failed, damaged, of older versions.

Nothing in a run folder is trusted: each field of run.json has its type here or is absent, and what can't be
read becomes a line in ``faults``. A folder never makes the reading of the others fail.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seg.comparison.run_files import (
    Counts,
    Curves,
    brief,
    listed,
    mapping,
    number,
    numbers,
    read_config,
    read_counts,
    read_curves,
    text,
)
from seg.errors import UserError
from seg.files import read_text
from seg.runs.safe_loading import RECORD_LIMIT, json_value

STATES = ("finished", "running", "failed", "interrupted", "pruned")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: resolved.
        label: its path below the folder that the compared runs have in common.
        status: one of STATES, or damaged where run.json can't be read.
        error: of a failed run, else empty.
        faults: what is wrong with its files.
        name: as the run was called.
        sweep: name of its sweep, or empty.
        seed: as text, empty where unknown.
        choices: config group -> chosen file; of older runs the word typed, else the class's name.
        typed: keys of the options that were typed.
        options: config.yaml, flattened: ``optim.lr`` -> 0.003; a list of plain values is one value.
        metrics: final ones: ``best/val/dice``, ``test/dice/CLASS``.
        parameters: count; None where unknown.
        minutes: of training; None where unknown.
        steps: of the optimiser; None where unknown.
        splits: split -> names of its images.
        fingerprint: of the data, empty where unknown.
        facts: what the environment was: versions, commit, hardware, command, start, as text.
        curves: rows of metrics.csv.
        counts: split -> pixels of images.csv.
        written: when metrics.csv was last written, seconds since 1970; None without one.
    """

    folder: Path
    label: str
    status: str = "damaged"
    error: str = ""
    faults: list[str] = field(default_factory=list)
    name: str = ""
    sweep: str = ""
    seed: str = ""
    choices: dict[str, str] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: float | None = None
    minutes: float | None = None
    steps: float | None = None
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fingerprint: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    counts: dict[str, Counts] = field(default_factory=dict)
    written: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs; None where it wasn't measured."""
        values = np.array(self.curves.values.get("images_per_second", []), dtype=float)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    @property
    def epochs(self) -> int | None:
        """How many were begun; None where nothing was measured."""
        known = [epoch for epoch in self.curves.epochs if epoch == epoch]
        return int(max(known)) + 1 if known else None


def find_runs(places: Iterable[str]) -> list[Path]:
    """The run folders in each place, however deep: whatever holds run.json. Links below it aren't followed.

    Raises:
        UserError: when a place isn't there, or none has a run.
    """
    found: dict[Path, None] = {}
    places = list(places)
    for place in places:
        root = Path(os.path.realpath(place))
        if not root.is_dir():
            what = "a file; give its folder" if root.exists() else "no such folder"
            raise UserError(f"runs={place}: {what}")
        for folder, below, files in os.walk(root):
            below.sort()
            if "run.json" in files:
                found[Path(folder)] = None
                below.clear()
    if not found:
        raise UserError(f"runs={' '.join(places)}: no run in it; a run's folder has a run.json")
    return list(found)


def common_folder(folders: list[Path]) -> Path:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def read_runs(folders: list[Path]) -> list[Run]:
    """All of them, in the order given."""
    root = common_folder(folders)
    return [read_run(folder, label_of(folder.relative_to(root))) for folder in folders]


def label_of(place: Path) -> str:
    """A folder's path as it may be shown; bytes that are no UTF-8 are spelt out."""
    return os.fsencode(place.as_posix()).decode("utf-8", "backslashreplace")


def read_run(folder: Path, label: str) -> Run:
    """One run; what can't be read is absent, and told in its faults."""
    faults: list[str] = []
    try:
        record = json_value(read_text(folder / "run.json", RECORD_LIMIT))
        if not isinstance(record, dict):
            raise ValueError("it holds no record")
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"run.json can't be read: {brief(error)}")
        return Run(folder, label, faults=faults, options=read_config(folder, faults))
    status, steps = text(record.get("status")), number(record.get("steps"))
    if status not in STATES:
        faults.append(f"run.json has the status {status[:40]!r}")
        status = "damaged"
    options = read_config(folder, faults)
    splits = {
        split: tuple(text(name) for name in listed(names))
        for split, names in mapping(record.get("splits")).items()
    }
    curves, written = read_curves(folder, steps if status == "finished" else None, faults)
    return Run(
        folder,
        label,
        status,
        text(record.get("error")),
        faults,
        name=text(record.get("name")),
        sweep=text(record.get("group")),
        seed=text(record.get("seed")),
        choices=choices(record, options),
        typed=frozenset(typed(record)),
        options=options,
        metrics=numbers(record.get("metrics")),
        parameters=number(record.get("parameters")),
        minutes=number(record.get("minutes")),
        steps=steps,
        splits=splits,
        fingerprint=text(mapping(record.get("data")).get("fingerprint")),
        facts=environment(record),
        curves=curves,
        counts=read_counts(folder, splits, faults) if status == "finished" else {},
        written=written,
    )


def choices(record: dict[str, Any], options: dict[str, Any]) -> dict[str, str]:
    """The chosen file of each group; for an older run what was typed, else the class's name."""
    if known := mapping(record.get("choices")):
        return {k: text(v) for k, v in known.items() if v is not None and "/" not in k}
    words = typed(record)
    named = {
        key.partition(".")[0]: text(value).rpartition(".")[2]
        for key, value in options.items()
        if key.endswith("._target_") and key.count(".") == 1
    }
    return {k: words[k] if words.get(k) and "," not in words[k] else v for k, v in named.items()}


def typed(record: dict[str, Any]) -> dict[str, str]:
    """The options typed for a run, ``optim.lr`` -> its word; of an older one those of the command line."""
    words = record["overrides"] if "overrides" in record else record.get("command")
    pairs = (text(word).lstrip("+~").partition("=") for word in listed(words))
    return {key: value for key, equals, value in pairs if equals}


def environment(record: dict[str, Any]) -> dict[str, str]:
    """Where a run comes from, a fact a name."""
    git, facts = mapping(record.get("git")), {}
    if commit := text(git.get("commit")):
        facts["commit"] = commit[:12] + (" and changes" if git.get("dirty") else "")
    facts |= {key: text(value) for key, value in mapping(record.get("versions")).items()}
    facts |= {key: text(value) for key, value in mapping(record.get("hardware")).items()}
    facts["started"] = text(record.get("started"))
    facts["command"] = " ".join(text(word) for word in listed(record.get("command")))
    return {key: value for key, value in facts.items() if value}
