"""List runs with status, size and age, and remove those that failed or are superseded.

*Killed*: run.json says running, but no process holds the lock of the folder. *Superseded*: a newer finished run, which
has a checkpoint, was made by the same config from the same images and splits, the seed and the fold included; options
that change nothing of what a network learns, such as ``outputs`` and ``logger``, may differ.

Never removed: a run that a process is working in, or whose sweep, search or cross-validation is at work; a fold of a
cross-validation; the best of a sweep or search by any final metric; a folder that contains another run.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from seg.cli.conf_files import did_you_mean, join_some
from seg.comparison.grouping import filter_runs, format_option
from seg.comparison.run_records import ComparedRun, find_runs, read_compared_runs
from seg.errors import RunError, UserError
from seg.files import check_links
from seg.metrics.direction import smaller_is_better
from seg.runs.folder import CHECKPOINT_FILES, CROSSVAL_FILE, is_locked, remove_run_folder
from seg.runs.record import RECORD_FILE
from seg.runs.run_info import NEUTRAL_OPTIONS

AGE_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}  # s
LOCK_FILES = (".lock", ".worker-*", ".gpu-*")  # of sweeps, searches and cross-validations
RERUN_FILE = "rerun.json"  # in a run that repeats another to compare it


@dataclass
class ListedRun:
    """A run with its place on the disk.

    Attributes:
        read: content of its files.
        status: that of run.json, but killed for running if no process holds the lock.
        size: bytes of all files in the folder.
        age: seconds since run.json was written, at the start and at the end of a run.
        newer: label of the run that supersedes it; empty: none.
        kept: reason never to remove it, other than a lock; empty: none.
    """

    read: ComparedRun
    status: str
    size: int
    age: float
    newer: str = ""
    kept: str = ""

    @property
    def label(self) -> str:
        """Path relative to the common folder of all runs."""
        return self.read.label

    def score(self, name: str) -> float | None:
        """Return a final metric, ``val/dice``; None if the run has none of that name."""
        return self.read.metrics.get(f"best/{name}" if name.startswith("val/") else name)


def read_listed_runs(places: Iterable[str]) -> list[ListedRun]:
    """Return the runs below the given folders, newest first.

    Raises:
        UserError: if a folder does not exist, or none contains a run.
    """
    runs = [list_run(run) for run in read_compared_runs(find_runs(places))]
    mark_superseded(runs)
    mark_best(runs)
    return sorted(runs, key=lambda run: run.age)


def list_run(read: ComparedRun) -> ListedRun:
    """Return a run with status, size and age, and the reasons to keep it that its own folder gives."""
    # Size, without links, and whether another run lies in the folder
    folder, size, inner = read.folder, 0, False
    for place, _, names in os.walk(folder):
        for file in (os.path.join(place, name) for name in names):
            with suppress(FileNotFoundError):  # a file of a training that was just replaced
                size += 0 if os.path.islink(file) else os.lstat(file).st_size
        inner |= RECORD_FILE in names and place != str(folder)
    # A killed process leaves the status running, but no lock
    killed = read.status == "running" and not is_locked(folder / ".lock")
    age = time.time() - os.lstat(folder / RECORD_FILE).st_mtime
    run = ListedRun(read, "killed" if killed else read.status, size, age)
    if (folder.parent / CROSSVAL_FILE).is_file():
        run.kept = "a fold of a cross-validation"
    elif inner:
        run.kept = "another run lies in its folder"
    return run


def keep_reason(run: ListedRun) -> str:
    """Return why a run must not be removed, after trying its locks; empty if it can be."""
    above = run.read.folder.parent
    if is_locked(run.read.folder / ".lock"):
        return "a process is at work in it"
    if any(is_locked(file) for pattern in LOCK_FILES for file in above.glob(pattern)):
        return f"a process is at work in {above.name}"
    return run.kept


def mark_superseded(runs: Sequence[ListedRun]) -> None:
    """Set ``newer`` of each run that a newer finished run of the same config and data supersedes."""
    newest: dict[tuple, tuple[datetime, ListedRun]] = {}
    keyed = [(config_key(run.read), start_time(run.read), run) for run in runs]
    for key, started, run in keyed:
        replaces = run.status == "finished" and not (run.read.folder / RERUN_FILE).exists()
        replaces &= any((run.read.folder / "checkpoints" / n).is_file() for n in CHECKPOINT_FILES)
        if key and started and replaces and (key not in newest or started > newest[key][0]):
            newest[key] = started, run
    for key, started, run in keyed:
        if key in newest and started and started < newest[key][0]:
            run.newer = newest[key][1].label


def config_key(run: ComparedRun) -> tuple:
    """Return what two runs of the same config and data have in common; empty if that is unknown."""
    if not run.options or not run.fingerprint or not run.splits:
        return ()
    options = {
        name: format_option(value)
        for name, value in run.options.items()
        if name.partition(".")[0] not in NEUTRAL_OPTIONS
    }
    return run.fingerprint, tuple(sorted(run.splits.items())), tuple(sorted(options.items()))


def start_time(run: ComparedRun) -> datetime | None:
    """Return the time at which a run was started; None if it is unknown."""
    try:
        return datetime.strptime(run.facts.get("started", ""), "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


def mark_best(runs: Sequence[ListedRun]) -> None:
    """Set ``kept`` of the best runs of each sweep and search, by any final metric."""
    sweeps: dict[tuple[Path, str], list[ListedRun]] = {}
    for run in runs:
        if run.read.sweep and run.status == "finished":
            sweeps.setdefault((run.read.folder.parent, run.read.sweep), []).append(run)
    for (_, name), members in sweeps.items():
        for metric in dict.fromkeys(metric for run in members for metric in run.read.metrics):
            having = [run for run in members if metric in run.read.metrics]
            smaller = smaller_is_better(metric.removeprefix("best/").partition("/")[2])
            values = [run.read.metrics[metric] for run in having]
            best = min(values) if smaller else max(values)
            for run in having:
                if run.read.metrics[metric] == best:
                    run.kept = run.kept or f"the best of {name} by {metric.removeprefix('best/')}"


def check_score(score: str, runs: Sequence[ListedRun]) -> None:
    """Raise UserError if there are final metrics, but no run has this one."""
    known = dict.fromkeys(k.removeprefix("best/") for run in runs for k in run.read.metrics)
    if known and score not in known:
        hint = did_you_mean(score, known)
        raise UserError(f"score={score}: no finished run has it{hint} (there are: {join_some(list(known))})")  # fmt: skip


def select_runs(
    runs: list[ListedRun], where: Iterable[str], status: Sequence[str], older: str | None
) -> list[ListedRun]:
    """Return the runs that have the given values, one of the statuses, and the age.

    Raises:
        UserError: if no run has such an option or value.
    """
    kept = {run.folder for run in filter_runs([run.read for run in runs], where)}
    least = 0.0 if older is None else float(older[:-1]) * AGE_UNITS[older[-1]]
    return [
        run
        for run in runs
        if run.read.folder in kept and (not status or run.status in status) and run.age >= least
    ]


def removal_reason(run: ListedRun, clean: Sequence[str]) -> str:
    """Return why ``clean`` removes a run; empty if it does not."""
    if run.status in clean:
        return run.read.error or run.status
    if "superseded" in clean and run.newer and run.status not in ("running", "damaged"):
        return f"superseded by {run.newer}"
    return ""


def remove_runs(runs: Sequence[ListedRun]) -> tuple[int, list[str]]:
    """Remove the folders of runs; return the bytes freed, and an error for each run that is still there."""
    freed, failures = 0, []
    for run in runs:
        folder = run.read.folder
        try:
            if kept := keep_reason(run):
                raise UserError(f"{folder}: {kept}")
            # A folder above may have become a link since the runs were listed
            if os.path.realpath(folder) != str(folder):
                check_links(folder, Path(folder.anchor))
            remove_run_folder(folder)
            freed += run.size
        except OSError as error:
            failures.append(f"{error.filename or folder}: {error.strerror}")
        except (RunError, UserError) as error:
            failures.append(str(error))
    return freed, failures


def format_age(seconds: float) -> str:
    """Return a time span with its largest unit: 12 min, 5 h, 30 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
