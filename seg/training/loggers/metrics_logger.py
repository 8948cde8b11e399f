"""Logger of metrics.csv."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from seg import files
from seg.display.console import rank_zero_only
from seg.errors import RunError
from seg.runs.metrics_csv import append_line, read_metrics


class MetricsCSV(Logger):
    """Logger that writes metrics.csv, the authority on a run's numbers.

    A row is appended as soon as it is logged. A new column rewrites the file under another name and replaces it,
    so that the file is complete even if the process is killed or the disk is full.

    Args:
        file: metrics.csv.
        until: for a resumed run, the number of steps already done, whose rows are kept; None: a new run.
        kept: for a resumed run, the number of first rows that are kept, if its checkpoint has it. It takes precedence
            over ``until``: an epoch that the time limit ended in the middle of a step has rows of that step.

    Attributes:
        written: number of rows in the file.
    """

    def __init__(self, file: Path, until: int | None = None, kept: int | None = None) -> None:
        super().__init__()
        self.file = file
        self.columns: list[str] = []
        self.written = 0
        if until is not None:
            self.drop_repeated_rows(until, kept)

    name = property(lambda self: "csv")
    version = property(lambda self: "")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the config."""

    @rank_zero_only
    def drop_repeated_rows(self, until: int, kept: int | None) -> None:
        """Drop the rows of steps that will be repeated."""
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
        append_line(self.file, line.getvalue())
        self.written += 1

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file by one with the current columns and these rows."""
        with files.open_text(self.file, self.file.parent) as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
