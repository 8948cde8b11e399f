"""Find and read run folders: finished, running, failed, damaged, or of older versions.

A run folder is untrusted input: a field of run.json that has another type is treated as absent, every problem
becomes a line in ``faults``, and a damaged folder does not affect the others.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seg.cli.renamed_options import RENAMED_OPTIONS
from seg.comparison.run_files import (
    ImageCounts,
    LearningCurves,
    number_or_none,
    numbers_only,
    printable_line,
    read_counts,
    read_curves,
    read_options,
)
from seg.errors import RunError, UserError
from seg.runs.record import RECORD_FILE, RunRecord, read_damaged_record


@dataclass(frozen=True)
class ComparedRun:
    """One run folder.

    Attributes:
        folder: resolved path.
        label: path relative to the common folder of the compared runs.
        status: finished, running, failed, interrupted or pruned; damaged if run.json cannot be read.
        error: error of a failed run, else empty.
        faults: problems of its files.
        name: name of the run.
        sweep: name of its sweep, or empty.
        seed: as text, empty if unknown.
        choices: config group -> chosen file; for older runs the typed word, else the name of the class.
        typed: keys of the options that were typed.
        options: flattened config.yaml: ``optim.lr`` -> 0.003; a list of plain values is one value.
        metrics: final metrics: ``best/val/dice``, ``test/dice/CLASS``.
        parameters: number of parameters; None if unknown.
        minutes: duration of training; None if unknown.
        steps: optimiser steps; None if unknown.
        splits: split -> names of its images.
        fingerprint: fingerprint of the data, empty if unknown.
        facts: environment as text: versions, commit, hardware, command, start.
        curves: learning curves of metrics.csv.
        counts: split -> pixel counts of images.csv.
        written: time of the last write to metrics.csv, seconds since 1970; None without the file.
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
    curves: LearningCurves = field(default_factory=LearningCurves)
    counts: dict[str, ImageCounts] = field(default_factory=dict)
    written: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs; None if it was not measured."""
        values = np.array(self.curves.values.get("images_per_second", []), dtype=float)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None

    @property
    def epochs(self) -> int | None:
        """Number of epochs begun; None if nothing was measured."""
        known = [epoch for epoch in self.curves.epochs if epoch == epoch]
        return int(max(known)) + 1 if known else None


def find_runs(places: Iterable[str]) -> list[Path]:
    """Find the folders with a run.json at any depth below the given folders; links in them are not followed.

    Raises:
        UserError: if a folder does not exist, or none contains a run.
    """
    found: dict[Path, None] = {}
    places = list(places)
    for place in places:
        root = Path(os.path.realpath(place))
        if not root.is_dir():
            what = "a file; give its folder" if root.exists() else "no such folder"
            raise UserError(f"runs={place}: {what}")
        # Do not search below a run folder; sorting fixes the order on every system
        for folder, below, files in os.walk(root):
            below.sort()
            if RECORD_FILE in files:
                found[Path(folder)] = None
                below.clear()
    if not found:
        raise UserError(f"runs={' '.join(places)}: no run in it; a run's folder has a run.json")
    return list(found)


def common_folder(folders: list[Path]) -> Path:
    """Return the deepest folder that contains all folders."""
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def read_compared_runs(folders: list[Path]) -> list[ComparedRun]:
    """Read the runs in the given order."""
    root = common_folder(folders)
    return [read_compared_run(folder, run_label(folder.relative_to(root))) for folder in folders]


def run_label(place: Path) -> str:
    """Return a path as text; bytes that are not UTF-8 become escape sequences."""
    return os.fsencode(place.as_posix()).decode("utf-8", "backslashreplace")


def read_compared_run(folder: Path, label: str) -> ComparedRun:
    """Read one run; every problem of its files becomes a line in its faults."""
    # Without a readable run.json only the options are known
    faults: list[str] = []
    try:
        record = read_damaged_record(folder / RECORD_FILE)
    except (OSError, RunError) as error:
        faults.append(printable_line(str(error).removeprefix(f"{folder}{os.sep}")))
        return ComparedRun(folder, label, faults=faults, options=read_options(folder, faults))
    # Read the other files; each adds its problems to the faults
    status, steps = record.status, number_or_none(record.steps)
    options = read_options(folder, faults)
    splits = {
        split: tuple(map(printable_line, names)) for split, names in (record.splits or {}).items()
    }
    curves, written = read_curves(folder, steps if status == "finished" else None, faults)
    return ComparedRun(
        folder,
        label,
        status,
        printable_line(record.error),
        faults,
        name=printable_line(record.name),
        sweep=printable_line(record.group),
        seed=printable_line(record.seed),
        choices=group_choices(record, options),
        typed=frozenset(typed_options(record)),
        options=options,
        metrics=numbers_only(record.metrics),
        parameters=number_or_none(record.parameters),
        minutes=number_or_none(record.minutes),
        steps=steps,
        splits=splits,
        fingerprint=printable_line(record.data.fingerprint),
        facts=run_environment(record),
        curves=curves,
        counts=read_counts(folder, splits, faults) if status == "finished" else {},
        written=written,
    )


def group_choices(record: RunRecord, options: dict[str, Any]) -> dict[str, str]:
    """Return the chosen file of each config group; for an older run the typed word, else the class name."""
    if record.choices:
        return {k: printable_line(v) for k, v in record.choices.items() if "/" not in k}
    words = typed_options(record)
    named = {
        key.partition(".")[0]: printable_line(value).rpartition(".")[2]
        for key, value in options.items()
        if key.endswith("._target_") and key.count(".") == 1
    }
    return {k: words[k] if words.get(k) and "," not in words[k] else v for k, v in named.items()}


def typed_options(record: RunRecord) -> dict[str, str]:
    """Return the typed options, ``optim.lr`` -> its text; for an older run those of its command line."""
    words = record.overrides if "overrides" in record.model_fields_set else record.command
    pairs = (printable_line(word).lstrip("+~").partition("=") for word in words)
    return {RENAMED_OPTIONS.get(key, key): value for key, equals, value in pairs if equals}


def run_environment(record: RunRecord) -> dict[str, str]:
    """Return the environment of a run as name -> text: commit, versions, hardware, start, command."""
    # Code, then versions and hardware, then start and command
    facts: dict[str, Any] = {}
    if record.git and record.git.commit:
        facts["commit"] = record.git.commit[:12] + " and changes" * record.git.dirty
    facts |= record.versions | record.hardware.model_dump(exclude_unset=True)
    facts |= {"started": record.started, "command": " ".join(map(printable_line, record.command))}
    return {key: text for key, value in facts.items() if (text := printable_line(value))}
