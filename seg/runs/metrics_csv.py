"""metrics.csv: one row for each time that something is measured."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from seg import files
from seg.errors import RunError
from seg.files import UnsafePath
from seg.runs.safe_loading import read_rows


class MetricsCSV(Logger):
    """One row for each time that something is measured; the authority on a run's numbers.

    A row is on disk as soon as it is written, whole or not at all. A new column rewrites the file aside and
    swaps it in, so that a process killed at any moment, and a full disk, leave a whole file.

    Args:
        file: metrics.csv.
        until: steps that are done of a run that goes on, whose rows stay; None: it is new.
        kept: rows of a run that goes on that stay, the first ones, where its checkpoint has their number; it counts
            more than ``until``, since an epoch that time ended inside a step has rows of that step.

    Attributes:
        written: rows in the file.
    """

    def __init__(self, file: Path, until: int | None = None, kept: int | None = None) -> None:
        super().__init__()
        self.file = file
        self.columns: list[str] = []
        self.written = 0
        if until is not None:
            self.take_up(until, kept)

    name = property(lambda self: "csv")
    version = property(lambda self: "")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has its own file."""

    @rank_zero_only
    def take_up(self, until: int, kept: int | None) -> None:
        """Leaves out the rows of steps that are made again."""
        rows = read_metrics(self.file) if self.file.exists() else []
        self.columns = list(rows[0]) if rows else []
        if kept is None:
            try:
                rows = [row for row in rows if int(row["step"]) < until]
            except (KeyError, ValueError) as error:
                raise RunError(
                    f"{self.file}: a row has no step; not written by seg.train"
                ) from error
        else:
            rows = rows[:kept]
        self.rewrite(rows)
        self.written = len(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [c for c in row if c not in self.columns]
        if new:
            self.columns += new
            self.rewrite(read_metrics(self.file) if self.file.exists() else [])
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns, restval="").writerow(row)
        append(self.file, line.getvalue())
        self.written += 1

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        with files.open_text(self.file, self.file.parent) as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def append(file: Path, line: str) -> None:
    """Adds a line to a file, or nothing where the disk is full.

    Raises:
        OSError: naming the file.
    """
    with files.append(file, file.parent) as stream:
        before, left = stream.tell(), line.encode()
        try:
            while left:
                left = left[stream.write(left) :]
        except OSError as error:
            stream.truncate(before)
            error.filename = str(file)
            raise


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv; a metric that wasn't measured then is an empty string.

    A last line without an end, as a machine without power leaves it, is none; so is one of another length than
    the header.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        rows = read_rows(file)
        header = next(rows, [])
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    except UnsafePath:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can't be read ({error})") from error
