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
    FEWEST,
    edited,
    images_changed,
    judged,
    recorded,
    score_table,
    text,
    untold,
    verdict,
)
from seg.display.console import first_process, logging_to, quiet
from seg.errors import UserError
from seg.multirun.rerun import check_devices, more_seeds, settled, threads, trained
from seg.runs import records
from seg.runs.folder import relative
from seg.runs.reader import finished_run, siblings

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
    quiet()
    if cfg.seeds < 0:
        raise UserError(f"seeds={cfg.seeds}: must be 0 or more")
    if cfg.threads is not None and not (isinstance(cfg.threads, int) and cfg.threads > 0):
        raise UserError(f"threads={cfg.threads}: must be 1 or more, or null")
    past = finished_run(cfg.run)
    config, changes = settled(cfg, past)
    check_devices(config, cfg.seeds)
    before = siblings(past)  # before the new run, which would count as one
    # Train again, with more seeds if the numbers differ.
    with threads(cfg.threads or past.record.hardware.threads):
        folder = trained(config, past, f"rerun-{past.record.name}")
        if not first_process():
            return {}
        then, record = past.record.content(), records.read_json(folder / "run.json")
        before[then["seed"]], after = then["metrics"], {record["seed"]: record["metrics"]}
        if cfg.seeds and verdict(judged(then["metrics"], record["metrics"], [])) != "same":
            after |= more_seeds(config, past, cfg.seeds)
    # Judge the differences, and record what has changed.
    eras = [list(before.values()), list(after.values())]
    scores = judged(then["metrics"], record["metrics"], eras)
    changes += [*edited(past), *recorded(then, record), *images_changed(past.folder, folder)]
    result = {
        "run": past.folder.name,
        "verdict": verdict(scores),
        "scores": scores,
        "seeds": {"then": sorted(before), "now": sorted(after)},
        "changes": [change._asdict() for change in changes],
        "untold": untold(then),
    }
    records.write_json(folder / "rerun.json", result)
    with logging_to(folder / "log.txt"):
        tell(result, folder)
    return result


def tell(result: dict[str, Any], folder: Path) -> None:
    """Print the table of scores, the verdict, and what has changed."""
    # Print the scores and the verdict.
    log.info("", extra={"table": score_table(result["scores"])})
    both = [row["verdict"] for row in result["scores"].values()]
    both = [verdict for verdict in both if not verdict.startswith("only")]
    reason = f"{both.count('same')} of {len(both)} numbers are bit for bit those of {result['run']}"
    if result["verdict"] != "same":
        then, now = (len(seeds) for seeds in result["seeds"].values())
        known = f"noise by seeds, {then} then and {now} now"
        reason += f"; {known if then + now - 2 >= FEWEST else 'noise unknown, seeds=3 measures it'}"
    log.info(f"verdict    {result['verdict']}: {reason}")
    # Print the changes and the gaps in the records.
    for change in result["changes"]:
        then = f"{text(change['then'])} -> " if change["then"] is not None else ""
        log.info(f"changed    {change['what']}: {then}{text(change['now'])}")
    if not result["changes"]:
        log.info("changed    nothing that the runs record")
    if result["untold"]:
        log.info(f"unknown    {', '.join(result['untold'])}: not recorded by the earlier run")
    log.info(f"numbers    {quote_path(relative(folder) / 'rerun.json')}")


@command("rerun")
def main(cfg: DictConfig) -> None:
    if rerun(cfg).get("verdict") == "different":
        sys.exit(3)


if __name__ == "__main__":
    main()
