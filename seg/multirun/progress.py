"""What a sweep shows of its jobs, wherever they run: a row for each as it ends, read from its run folder."""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seg.cli.command_line import quote_path, render_command
from seg.comparison.run_files import numbers, read_curves, text
from seg.display.console import console
from seg.errors import RunError
from seg.runs import records
from seg.runs.folder import relative

log = logging.getLogger("seg")
ENDED = {"finished": "green", "failed": "red", "interrupted": "yellow"}


class Watch:
    """Looks at the jobs' folders every second until it is left, and prints the rows of those that ended.

    Args:
        folder: of the sweep.
        jobs: name and folder of each.

    Attributes:
        finished: numbers of the jobs that are finished.
        failed: numbers of those that failed.
    """

    def __init__(self, folder: Path, jobs: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.names = [job["name"] for job in jobs]
        self.files = [folder / job["folder"] / "run.json" for job in jobs]
        self.finished: list[int] = []
        self.failed: list[int] = []
        self.before = 0
        self.told: dict[int, int] = {}  # number -> when its run.json was written
        self.width = max(map(len, self.names))
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.look_on, daemon=True)
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

    def __enter__(self) -> "Watch":
        for number, file in enumerate(self.files):
            if self.record(number).get("status") == "finished":
                self.finished.append(number)
            elif file.is_file():  # it will be run anew
                self.told[number] = file.stat().st_mtime_ns
        self.before = len(self.finished)
        total = f"{len(self.names)} job{'s' * (len(self.names) > 1)}"
        before = f", {self.before} finished before" if self.before else ""
        console.print(f"sweep      {relative(self.folder)}: {total}{before}")
        console.print(
            f"{'job':<{self.width + 7}} {'val/dice':>8} {'test/dice':>9} {'minutes':>7}",
            style="bold",
        )
        for number in self.finished:
            self.row(number, self.record(number), " before")
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
        self.look()
        self.bar.stop()

    def record(self, number: int) -> dict[str, Any]:
        try:
            return records.read_json(self.files[number])
        except RunError:  # not there yet, or damaged
            return {}

    def look_on(self) -> None:
        while not self.stop.wait(1):
            self.look()

    def look(self) -> None:
        """Prints the rows of the jobs that ended since."""
        running = []
        for number, file in enumerate(self.files):
            if number in self.finished or not changed(file, self.told.get(number)):
                continue
            written = file.stat().st_mtime_ns
            record = self.record(number)
            status = text(record.get("status"))
            if status in ENDED:
                self.told[number] = written  # submitit may hand it in again, and it ends otherwise
                self.failed = [other for other in self.failed if other != number]
                (self.finished if status == "finished" else self.failed).append(number)
                self.row(number, record)
            elif status == "running":
                running.append(f"{self.names[number]} {progress(file.parent)}")
        self.bar.update(
            self.task,
            completed=len(self.finished) + len(self.failed),
            description=", ".join(running[:2]),
        )

    def row(self, number: int, record: dict[str, Any], when: str = "") -> None:
        scores = numbers(record.get("metrics"))
        status = text(record.get("status"))
        cells = [
            f"{scores[key]:>{width}.4f}" if key in scores else f"{'-':>{width}}"
            for key, width in (("best/val/dice", 8), ("test/dice", 9))
        ]
        minutes = numbers(record).get("minutes")
        spent = f"{minutes:>7.1f}" if minutes is not None else f"{'-':>7}"
        place = f"{number + 1:>3}/{len(self.names):<3}"
        line = (
            f"{place}{self.names[number]:<{self.width}} {' '.join(cells)} {spent}  {status}{when}"
        )
        if status != "finished":
            line += f": {text(record.get('error'))}"
        console.print(line, style=ENDED.get(status))

    def conclude(self) -> None:
        """How many ended how, and what a user wants next."""
        place = relative(self.folder)
        ended = {*self.finished, *self.failed}
        for number in set(range(len(self.names))) - ended:
            console.print(
                f"{self.names[number]} isn't finished: another process trains it, or it was stopped"
            )
        done = f"{len(self.finished)} of {len(self.names)} jobs are finished"
        left = len(self.names) - len(self.finished)
        failed = f", {left} not; the same command goes on with what is left" if left else ""
        anew = "; fresh=true trains them anew" if self.before == len(self.names) else ""
        console.print(f"{done}{failed}{anew}")
        for number in self.failed:
            log = relative(self.files[number].with_name("log.txt"))
            console.print(f"  {quote_path(log)} tells more")
        console.print("next:")
        console.print(f"  {render_command('compare')} {quote_path(place)}")


def progress(folder: Path) -> str:
    """The latest validation of a run, as far as there is one."""
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


def changed(file: Path, told: int | None) -> bool:
    """Whether a file is there, and another than the one that was told of."""
    try:
        return file.stat().st_mtime_ns != told
    except FileNotFoundError:
        return False
