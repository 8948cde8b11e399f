"""Implementation of ``python -m seg.crossval``."""

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seg import files
from seg.cli.command_line import quote_path, render_command, render_option
from seg.display import tables
from seg.display.console import configure_logging, log_to_file
from seg.metrics.risk_control import parse_risk_bound
from seg.multirun.crossval import (
    check_crossval_options,
    check_no_fold,
    fold_table,
    score_folds,
    train_folds,
)
from seg.multirun.folds import (
    OUT_OF_FOLD,
    check_crossval_folder,
    finished_fold,
    open_fold,
    open_record,
    plan_folds,
)
from seg.runs import folder, records
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.record import read_promise
from seg.runs.workers import refuse_ranks
from seg.training.risk import check_risk_bound, log_risk_threshold

log = logging.getLogger("seg")


def crossval(cfg: DictConfig) -> dict[str, Any]:
    """Train, predict and score all folds.

    Args:
        cfg: composed from conf/crossval.yaml.

    Returns:
        The contents of crossval.json.

    Raises:
        UserError: if the options, the data or the output folder do not allow a cross-validation.
    """
    # Check the options, the folds and the output folder.
    configure_logging()
    refuse_ranks("seg.crossval")
    check_no_fold()
    check_crossval_options(cfg)
    plan = plan_folds(cfg)
    if (bound := parse_risk_bound(cfg.threshold)) is not None:
        option = f"threshold={cfg.threshold}"
        check_risk_bound(bound, open_fold(cfg, 0), list(plan.fold_of), option)
    output = Path(cfg.output)
    files.check_writable(output, output, [CROSSVAL_FILE, "log.txt", ".lock"])
    files.check_links(output / OUT_OF_FOLD, output)
    check_crossval_folder(output)
    # Train what is unfinished, with the other workers; one of them scores.
    with lock_crossval(output):
        record = open_record(cfg, plan, output)
    if record["status"] == "finished":
        log.info(f"{quote_path(output)} is finished: nothing is trained")
    else:
        train_folds(cfg, plan, output)
        with lock_crossval(output):
            record = open_record(cfg, plan, output)
            if record["status"] != "finished":
                folders = [finished_fold(output, plan, fold) for fold in range(len(plan.names))]
                record |= score_folds(cfg, plan, folders, output) | {"status": "finished"}
                records.write_json(output / CROSSVAL_FILE, record)
    with log_to_file(output / "log.txt"):
        print_crossval(record, output)
    return record


@contextmanager
def lock_crossval(output: Path) -> Generator[None]:
    """Lock the record of a cross-validation; wait for a worker that scores."""
    with ExitStack() as locks:
        try:
            locks.enter_context(folder.lock_folder(output, "seg.crossval"))
        except folder.FolderLocked:
            log.info("another worker begins or scores this cross-validation; waiting for it")
            locks.enter_context(folder.lock_folder(output, "seg.crossval", wait=True))
        yield


def print_crossval(record: dict[str, Any], output: Path) -> None:
    """Print the final table, its caveats and the next commands."""
    place = folder.relative_to_here(output)
    run = render_option("run", place)
    log.info("", extra={"table": fold_table(record)})
    if level := record["options"]["confidence_level"]:
        log.info(tables.interval_line(len(record["images"]), level))
    # What selected the networks, and so how far the scores can be trusted
    promise = read_promise(record)
    best = record["settings"]["threshold"] == "best" or promise is not None
    log.info(
        "pooled: each image is scored with the network that did not train on it; as these images also selected the "
        f"network's checkpoint{' and threshold' * best}, the scores are slightly optimistic"
        f"{'; the test images selected nothing' * ('test' in record)}"
    )
    if promise is not None:
        log_risk_threshold(promise, record["classes"])
        log.info(
            "pooled, test and out-of-fold masks are at this threshold, the rows of the folds at 0.5"
        )
    log.info(
        f"numbers {quote_path(place / CROSSVAL_FILE)}, masks of all images {quote_path(place / OUT_OF_FOLD)}"
    )
    log.info("next, with the folds as an ensemble:")
    log.info(f"  {render_command('predict', run, 'input=IMAGES', 'output=PREDICTIONS')}")
    if "test" in record:
        log.info(f"  {render_command('evaluate', run, 'data.split=test')}")
