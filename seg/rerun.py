"""Train a finished run again, and compare its numbers: ``python -m seg.rerun run=RUN``.

rerun.json in the new run folder has each score then and now, the spread over seeds if it is known, and what has
changed in between: options, code, versions, data, machine.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seg.cli.command import command
from seg.cli.command_line import quote_path
from seg.comparison.rerun_report import (
    MIN_DEGREES_OF_FREEDOM,
    changed_images,
    changed_records,
    compare_scores,
    config_edits,
    format_change,
    missing_records,
    overall_verdict,
    rerun_score_table,
)
from seg.display.console import configure_logging, is_rank_zero, log_to_file
from seg.multirun.rerun import (
    check_single_device,
    torch_threads,
    train_again,
    train_more_seeds,
    upgrade_config,
)
from seg.runs import records
from seg.runs.folder import relative_to_here
from seg.runs.reader import load_finished_run, metrics_by_seed

log = logging.getLogger("seg")


def rerun(cfg: DictConfig) -> dict[str, Any]:
    """Train a run again and compare it.

    Args:
        cfg: composed from conf/rerun.yaml.

    Returns:
        The contents of rerun.json, with verdict ``same``, ``within noise`` or ``different``; empty on other ranks.

    Raises:
        UserError: if an option is wrong, or this version has no such options as the run.
        RunError: if there is no such finished run, or its data is missing.
    """
    # Check the options, and bring the run's config up to date.
    configure_logging()
    past = load_finished_run(cfg.run)
    config, changes = upgrade_config(cfg, past)
    check_single_device(config, cfg.seeds)
    before = metrics_by_seed(past)  # before the new run, which would count as one
    # Train again, with more seeds if the numbers differ.
    with torch_threads(cfg.threads or past.record.hardware.threads):
        folder = train_again(config, past, f"rerun-{past.record.name}")
        if not is_rank_zero():
            return {}
        then, record = past.record.content(), records.read_json(folder / "run.json")
        before[then["seed"]], after = then["metrics"], {record["seed"]: record["metrics"]}
        if (
            cfg.seeds
            and overall_verdict(compare_scores(then["metrics"], record["metrics"], [])) != "same"
        ):
            after |= train_more_seeds(config, past, cfg.seeds)
    # Judge the differences, and record what has changed.
    eras = [list(before.values()), list(after.values())]
    scores = compare_scores(then["metrics"], record["metrics"], eras)
    changes += [
        *config_edits(past),
        *changed_records(then, record),
        *changed_images(past.folder, folder),
    ]
    result = {
        "run": past.folder.name,
        "verdict": overall_verdict(scores),
        "scores": scores,
        "seeds": {"then": sorted(before), "now": sorted(after)},
        "changes": [change._asdict() for change in changes],
        "untold": missing_records(then),
    }
    records.write_json(folder / "rerun.json", result)
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
    if result["verdict"] != "same":
        then, now = (len(seeds) for seeds in result["seeds"].values())
        known = f"noise by seeds, {then} then and {now} now"
        reason += f"; {known if then + now - 2 >= MIN_DEGREES_OF_FREEDOM else 'noise unknown, seeds=3 measures it'}"
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


@command("rerun")
def main(cfg: DictConfig) -> None:
    if rerun(cfg).get("verdict") == "different":
        sys.exit(3)


if __name__ == "__main__":
    main()
