"""metrics.csv: one row for each time that something is measured."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class MetricsCSV(Logger):
    """One row for each time that something is measured; the authority on a run's numbers.

    A row is on disk as soon as it is written. A new column rewrites the file aside and swaps it in, so
    that a process killed at any moment leaves a whole file.

    Args:
        file: metrics.csv.
        until: steps that are done of a run that goes on, whose rows stay; None: it is new.
    """

    def __init__(self, file: Path, until: int | None = None) -> None:
        super().__init__()
        self.file = file
        self.columns: list[str] = []
        if until is not None:
            self.take_up(until)

    name = property(lambda self: "csv")
    version = property(lambda self: "")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has its own file."""

    @rank_zero_only
    def take_up(self, until: int) -> None:
        """Leaves out the rows of steps that are made again."""
        rows = read_metrics(self.file) if self.file.exists() else []
        self.columns = list(rows[0]) if rows else []
        self.rewrite([row for row in rows if int(row["step"]) < until])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [c for c in row if c not in self.columns]
        if new:
            self.columns += new
            self.rewrite(read_metrics(self.file) if self.file.exists() else [])
        with self.file.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="").writerow(row)

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        aside = self.file.with_suffix(".new")
        with aside.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(aside, self.file)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv; a metric that wasn't measured then is an empty string."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))
