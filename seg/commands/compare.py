"""Implementation of ``python -m seg.compare``."""

import logging

from omegaconf import DictConfig
from rich.text import Text

from seg.cli.command_line import quote_path
from seg.comparison.compare import ComparedRuns, compare_folders, write_comparison
from seg.comparison.ranking import Ranking
from seg.comparison.run_records import ComparedRun
from seg.comparison.summary import list_warnings, p_value_line, unranked_reason, write_headline
from seg.comparison.table import fit_group_table
from seg.display.console import configure_logging, console
from seg.display.tables import make_table
from seg.runs.folder import relative_to_here

log = logging.getLogger("seg")


def compare_runs(cfg: DictConfig) -> Ranking:
    """Read, rank and test the runs; print the table and write compare.csv and compare.html.

    Raises:
        UserError: if an option fits no run, or a file of another program is in the way.
    """
    return compare_and_write(cfg).ranking


def compare_and_write(cfg: DictConfig) -> ComparedRuns:
    """Compare the runs as ``compare_runs``; return also the runs that are not ranked, and the files."""
    configure_logging()
    result = compare_folders(cfg)
    print_comparison(result.ranking, result.others)
    write_comparison(result, cfg.num_examples, cfg.max_picture_mb)
    for file in result.files:
        log.info(f"wrote {quote_path(relative_to_here(file))}")
    return result


def print_comparison(ranking: Ranking, others: list[ComparedRun]) -> None:
    """Print the ranking, the meaning of p, warnings, the runs that are not ranked, and the result."""
    if ranking.groups:
        log.info("", extra={"table": fit_group_table(ranking, console.width)})
        if line := p_value_line(ranking):
            log.info(line)
        for line in list_warnings(ranking):
            log.info(f"warning: {line}")
    if others:
        table = make_table("not ranked")
        for header in ("run", "status", "reason"):
            table.add_column(header, overflow="fold")
        for run in others:
            table.add_row(Text(run.label), run.status, Text(unranked_reason(run, ranking.asked)))
        log.info("", extra={"table": table})
    log.info(write_headline(ranking, len(others)))
