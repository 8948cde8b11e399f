"""Implementation of ``python -m seg.list``."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.text import Text

from seg.comparison.listing import (
    ListedRun,
    check_score,
    format_age,
    keep_reason,
    read_listed_runs,
    removal_reason,
    remove_runs,
    select_runs,
)
from seg.display.console import configure_logging
from seg.display.tables import format_score, make_table

log = logging.getLogger("seg")
COLUMNS = ("run", "status", "size", "age")


def list_runs(cfg: DictConfig) -> list[ListedRun]:
    """Print the runs, or those to remove, and remove these with ``apply=true``.

    Returns:
        The runs that were printed.

    Raises:
        UserError: if a folder has no run, or an option fits none.
    """
    configure_logging()
    runs = read_listed_runs([str(place) for place in cfg.runs])
    check_score(cfg.score, runs)
    runs = select_runs(runs, cfg.where, cfg.status, cfg.older)
    if not cfg.clean:
        print_runs(runs, cfg.score)
        return runs
    chosen = [run for run in runs if removal_reason(run, cfg.clean)]
    reasons = {run.label: keep_reason(run) for run in chosen}
    removed = [run for run in chosen if not reasons[run.label]]
    print_removal(removed, cfg.clean)
    for label, reason in reasons.items():
        if reason:
            log.info(f"kept: {label}, {reason}")
    if cfg.apply:
        freed, failures = remove_runs(removed)
        for failure in failures:
            log.warning(f"warning: {failure}")
        log.info(f"removed {count_runs(len(removed) - len(failures))}, {decimal(freed)} freed")
    else:
        more = "; apply=true removes them" if removed else ""
        log.info(f"{count_runs(len(removed))} to remove, {decimal(total_size(removed))}{more}")
    return removed


def print_runs(runs: Sequence[ListedRun], score: str) -> None:
    """Print a row for each run, and the total."""
    rows = []
    for run in runs:
        steps = "" if run.read.steps is None else f"{run.read.steps:.0f}"
        epochs = "" if run.read.epochs is None else str(run.read.epochs)
        rows.append(
            (*format_cells(run), format_score(run.score(score)), epochs, steps, run.read.sweep)
        )
    names = [*COLUMNS, score, "epochs", "steps", "group"]
    if all(run.read.sweep in run.label for run in runs):  # the folder is named by its sweep
        names, rows = names[:-1], [row[:-1] for row in rows]
    print_table(names, rows)
    log.info(f"{count_runs(len(runs))}, {decimal(total_size(runs))}")


def print_removal(runs: Sequence[ListedRun], clean: Sequence[str]) -> None:
    """Print a row for each run to remove, with the reason."""
    print_table(
        [*COLUMNS, "reason"], [(*format_cells(run), removal_reason(run, clean)) for run in runs]
    )


def format_cells(run: ListedRun) -> tuple[str, ...]:
    """Return the cells of ``COLUMNS``."""
    return run.label, run.status, decimal(run.size), format_age(run.age)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their headers, if there are any."""
    table = make_table("")
    table.title, table.box, table.padding = None, SIMPLE_HEAD, (0, 1, 0, 0)
    for name in names:
        folds = name in ("run", "reason", "group")
        left = folds or name == "status"
        table.add_column(
            Text(name), justify="left" if left else "right", overflow="fold", no_wrap=not folds
        )
    for row in rows:
        table.add_row(*map(Text, row))
    if rows:
        log.info("", extra={"table": table})


def total_size(runs: Sequence[ListedRun]) -> int:
    """Return the bytes of all runs."""
    return sum(run.size for run in runs)


def count_runs(count: int) -> str:
    """Return ``1 run`` or ``3 runs``."""
    return f"{count} run{'s' * (count != 1)}"
