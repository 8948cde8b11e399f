"""Implementation of ``python -m seg.rerun``."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seg.cli.command_line import quote_path
from seg.comparison.rerun_report import format_change, rerun_score_table
from seg.display.console import configure_logging, log_to_file
from seg.multirun.rerun import train_and_compare
from seg.runs.folder import relative_to_here

log = logging.getLogger("seg")


def rerun(cfg: DictConfig) -> dict[str, Any]:
    """Train a run again and compare it.

    Args:
        cfg: composed from conf/rerun.yaml.

    Returns:
        The contents of rerun.json, with verdict ``same``, ``within noise`` or ``different``; empty on other ranks.
    """
    configure_logging()
    if (compared := train_and_compare(cfg)) is None:
        return {}
    result, folder = compared
    with log_to_file(folder / "log.txt"):
        print_rerun(result, folder)
    return result


def print_rerun(result: dict[str, Any], folder: Path) -> None:
    """Print the table of scores, the verdict, and what has changed."""
    # Print the scores and the verdict.
    log.info("", extra={"table": rerun_score_table(result["scores"])})
    both = [row["verdict"] for row in result["scores"].values()]
    both = [verdict for verdict in both if not verdict.startswith("only")]
    reason = f"{both.count('same')} of {len(both)} numbers are bit for bit those of {result['run']}"
    if result["verdict"] == "within noise":
        reason += "; the intervals of the differences over images include 0"
    log.info(f"verdict    {result['verdict']}: {reason}")
    # Print the changes and the gaps in the records.
    for change in result["changes"]:
        then = f"{format_change(change['then'])} -> " if change["then"] is not None else ""
        log.info(f"changed    {change['what']}: {then}{format_change(change['now'])}")
    if not result["changes"]:
        log.info("changed    nothing that the runs record")
    if result["untold"]:
        log.info(f"unknown    {', '.join(result['untold'])}: not recorded by the earlier run")
    log.info(f"numbers    {quote_path(relative_to_here(folder) / 'rerun.json')}")
