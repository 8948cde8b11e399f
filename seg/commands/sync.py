"""Implementation of ``python -m seg.sync``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import files
from seg.cli.command_line import render_command, render_option
from seg.display.console import configure_logging
from seg.errors import RunError
from seg.runs.folder import relative_to_here
from seg.training.loggers.wandb_offline import (
    OfflineRun,
    find_offline_runs,
    offline_table,
    recording_files,
    upload_recordings,
)

log = logging.getLogger("seg")


def sync(cfg: DictConfig) -> list[OfflineRun]:
    """List the offline runs below ``outputs``, and with ``send=true`` upload those that were not sent.

    Args:
        cfg: composed from conf/sync.yaml.

    Returns:
        All recordings, in their state afterwards.

    Raises:
        RunError: if there is no such folder, or a run could not be sent.
        UserError: if there is no API key, or the server doesn't answer.
    """
    # List the recordings.
    configure_logging()
    outputs = Path(cfg.outputs)
    if not outputs.is_dir():
        raise RunError(f"outputs={cfg.outputs}: no such folder")
    runs = find_offline_runs(outputs)
    if not runs:
        log.info(f"no run below {cfg.outputs} was recorded offline by W&B")
        return runs
    log.info("", extra={"table": offline_table(runs)})
    due = [run.folder for run in runs if not run.sent and (cfg.running or not run.running)]
    log.info(
        f"{len(runs)} recorded offline, {sum(run.sent for run in runs)} sent, {len(due)} to send"
    )
    if not due:
        return runs
    if not cfg.send:
        log.info("next:")
        place = [] if cfg.outputs == "outputs" else [render_option("outputs", cfg.outputs)]
        log.info(f"  {render_command('sync', *place, 'send=true')}")
        return runs
    # Upload those that are due, after checking that wandb can't write through a link.
    for file in recording_files(outputs):
        if relative_to_here(file.parent.resolve()) in due:
            files.check_links(file.parent, outputs)
            files.check_tree(file.parent, file.parents[2], inner=True)  # W&B writes next to it
    upload_recordings(due)
    runs = find_offline_runs(outputs)
    if left := [run for run in runs if run.folder in due and not run.sent]:
        raise RunError(f"{len(left)} of {len(due)} runs were not sent; see wandb's output above")
    log.info(f"{len(due)} sent")
    return runs
