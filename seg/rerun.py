"""Trains a finished run once more and says whether its numbers come out again: ``python -m seg.rerun run=RUN``.

The new run folder holds rerun.json: each score then and now, the noise of the seeds as far as it is known,
and what has changed in between: options, code, versions, data, machine.
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
    """Trains the run again; returns what rerun.json holds, whose verdict is same, within noise or different."""
    quiet()
    if cfg.seeds < 0:
        raise UserError(f"seeds={cfg.seeds}: give 0 or more")
    if cfg.threads is not None and not (isinstance(cfg.threads, int) and cfg.threads > 0):
        raise UserError(f"threads={cfg.threads}: give 1 or more, or null")
    past = finished_run(cfg.run)
    config, changes = settled(cfg, past)
    check_devices(config, cfg.seeds)
    before = siblings(past)  # first: the new run isn't one
    with threads(cfg.threads or past.record.hardware.threads):
        folder = trained(config, past, f"rerun-{past.record.name}")
        if not first_process():
            return {}
        then, record = past.record.content(), records.read_json(folder / "run.json")
        before[then["seed"]], after = then["metrics"], {record["seed"]: record["metrics"]}
        if cfg.seeds and verdict(judged(then["metrics"], record["metrics"], [])) != "same":
            after |= more_seeds(config, past, cfg.seeds)
    eras = [list(before.values()), list(after.values())]
    scores = judged(then["metrics"], record["metrics"], eras)
    changes += [*edited(past), *recorded(then, record), *images_changed(past.folder, folder)]
    found = {
        "run": past.folder.name,
        "verdict": verdict(scores),
        "scores": scores,
        "seeds": {"then": sorted(before), "now": sorted(after)},
        "changes": [change._asdict() for change in changes],
        "untold": untold(then),
    }
    records.write_json(folder / "rerun.json", found)
    with logging_to(folder / "log.txt"):
        tell(found, folder)
    return found


def tell(found: dict[str, Any], folder: Path) -> None:
    """The table, the verdict, and what has changed."""
    log.info("", extra={"table": score_table(found["scores"])})
    both = [row["verdict"] for row in found["scores"].values()]
    both = [word for word in both if not word.startswith("only")]
    said = f"{both.count('same')} of {len(both)} numbers are bit for bit those of {found['run']}"
    if found["verdict"] != "same":
        then, now = (len(seeds) for seeds in found["seeds"].values())
        known = f"noise by seeds, {then} then and {now} now"
        said += f"; {known if then + now - 2 >= FEWEST else 'noise unknown, seeds=3 measures it'}"
    log.info(f"verdict    {found['verdict']}: {said}")
    for change in found["changes"]:
        then = f"{text(change['then'])} -> " if change["then"] is not None else ""
        log.info(f"changed    {change['what']}: {then}{text(change['now'])}")
    if not found["changes"]:
        log.info("changed    nothing that the runs tell")
    if found["untold"]:
        log.info(f"unknown    {', '.join(found['untold'])}: the earlier run doesn't tell")
    log.info(f"numbers    {quote_path(relative(folder) / 'rerun.json')}")


@command("rerun")
def main(cfg: DictConfig) -> None:
    if rerun(cfg).get("verdict") == "different":
        sys.exit(3)


if __name__ == "__main__":
    main()
