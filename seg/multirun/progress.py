"""Print one row per finished sweep job, polled from the run folders."""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seg.cli.command_line import quote_path, render_command
from seg.comparison.run_files import numbers_only, printable_line, read_curves
from seg.display.console import console
from seg.errors import RunError
from seg.runs.folder import relative_to_here
from seg.runs.record import RECORD_FILE, RunRecord, read_record

log = logging.getLogger("seg")
STATUS_STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow"}


class SweepProgress:
    """Context manager that polls the jobs' folders every second and prints a row as each job ends.

    Args:
        folder: of the sweep.
        jobs: name and folder of each job.

    Attributes:
        finished: numbers of the finished jobs.
        failed: numbers of the failed or interrupted jobs.
    """

    def __init__(self, folder: Path, jobs: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.names = [job["name"] for job in jobs]
        self.files = [folder / job["folder"] / RECORD_FILE for job in jobs]
        # Numbers of the jobs that ended, and of those that were finished before this sweep
        self.finished: list[int] = []
        self.failed: list[int] = []
        self.before = 0
        self.told: dict[
            int, int
        ] = {}  # number -> modification time of its last printed run.json, ns
        self.width = max(map(len, self.names))
        self.began: dict[int, int] = {}  # the same at the start of this worker
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.poll_until_stopped, daemon=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=len(jobs))

    def __enter__(self) -> "SweepProgress":
        # Find the jobs that finished earlier; of the others only a later state is printed
        earlier = []
        for number, file in enumerate(self.files):
            if (record := self.record(number)) and record.status == "finished":
                self.finished.append(number)
                earlier.append(record)
            elif file.is_file():  # the job will run again
                self.told[number] = file.stat().st_mtime_ns
        self.before = len(self.finished)
        self.began = dict(self.told)
        # Print the header and the rows of the earlier jobs, before the bar starts
        total = f"{len(self.names)} job{'s' * (len(self.names) > 1)}"
        before = f", {self.before} finished before" if self.before else ""
        console.print(f"sweep      {relative_to_here(self.folder)}: {total}{before}")
        console.print(
            f"{'job':<{self.width + 7}} {'val/dice':>8} {'test/dice':>9} {'minutes':>7}",
            style="bold",
        )
        for number, record in zip(self.finished, earlier, strict=True):
            self.row(number, record, " before")
        self.bar.start()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join()
        self.poll()
        self.bar.stop()

    def record(self, number: int) -> RunRecord | None:
        try:
            return read_record(self.files[number])
        except RunError:  # absent or damaged
            return None

    def is_over(self, number: int) -> bool:
        """Return True for a job that finished, or that failed since this worker began."""
        if (record := self.record(number)) is None:
            return False
        changed = file_changed(self.files[number], self.began.get(number))
        return record.status == "finished" or (record.status == "failed" and changed)

    def poll_until_stopped(self) -> None:
        while not self.stop.wait(1):
            self.poll()

    def poll(self) -> None:
        """Print the rows of the jobs that ended since the last call, and update the progress bar."""
        running = []
        for number, file in enumerate(self.files):
            if number in self.finished or not file_changed(file, self.told.get(number)):
                continue
            # Read the time before the record, so that a later write is noticed in the next poll
            written = file.stat().st_mtime_ns
            if (record := self.record(number)) is None:
                continue
            if record.status in STATUS_STYLES:
                self.told[number] = written  # submitit may requeue it, and it may end differently
                self.failed = [other for other in self.failed if other != number]
                (self.finished if record.status == "finished" else self.failed).append(number)
                self.row(number, record)
            elif record.status == "running":
                running.append(f"{self.names[number]} {latest_validation(file.parent)}")
        self.bar.update(
            self.task,
            completed=len(self.finished) + len(self.failed),
            description=", ".join(running[:2]),
        )

    def row(self, number: int, record: RunRecord, when: str = "") -> None:
        """Print the row of a job: number, name, scores, minutes, status, and the error of a failed one."""
        scores, status, minutes = numbers_only(record.metrics), record.status, record.minutes
        # Cells of fixed width, below the header that was printed at the start
        cells = [
            f"{scores[key]:>{width}.4f}" if key in scores else f"{'-':>{width}}"
            for key, width in (("best/val/dice", 8), ("test/dice", 9))
        ]
        spent = f"{minutes:>7.1f}" if minutes is not None else f"{'-':>7}"
        place = f"{number + 1:>3}/{len(self.names):<3}"
        line = (
            f"{place}{self.names[number]:<{self.width}} {' '.join(cells)} {spent}  {status}{when}"
        )
        if status != "finished":
            line += f": {printable_line(record.error)}"
        console.print(line, style=STATUS_STYLES.get(status))

    def print_summary(self) -> None:
        """Print how many jobs finished, where to read about failures, and the next command."""
        # Jobs that neither finished nor failed
        place = relative_to_here(self.folder)
        ended = {*self.finished, *self.failed}
        for number in set(range(len(self.names))) - ended:
            console.print(
                f"{self.names[number]} isn't finished: it was stopped, or another process is training it"
            )
        # Number of finished jobs, and how to continue
        done = f"{len(self.finished)} of {len(self.names)} jobs are finished"
        left = len(self.names) - len(self.finished)
        failed = f", {left} not; repeat the command to continue with these" if left else ""
        restart = "; restart=true trains them again" if self.before == len(self.names) else ""
        console.print(f"{done}{failed}{restart}")
        # Logs of the failures, and the next command
        for number in self.failed:
            log = relative_to_here(self.files[number].with_name("log.txt"))
            console.print(f"  see {quote_path(log)}")
        console.print("next:")
        console.print(f"  {render_command('compare')} {quote_path(place)}")


def latest_validation(folder: Path) -> str:
    """Describe the latest validation of a run; empty before the first."""
    curves, _ = read_curves(folder, None, [])
    validated = [
        (epoch, value)
        for epoch, value in zip(curves.epochs, curves.values.get("val/dice", []), strict=False)
        if epoch == epoch and value == value
    ]
    if not validated:
        return ""
    epoch, value = validated[-1]
    return f"epoch {epoch + 1:.0f} val/dice {value:.3f}"


def file_changed(file: Path, told: int | None) -> bool:
    """Return True if a file exists and its modification time differs from ``told``, ns."""
    try:
        return file.stat().st_mtime_ns != told
    except FileNotFoundError:
        return False
