"""Lists W&B runs that were recorded offline, and sends them: ``python -m seg.sync send=true``.

W&B records such a run in ``wandb/offline-run-*`` of the run's folder, and marks what it has sent; one that
was online till its server was lost lies in ``wandb/run-*``.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import files
from seg.cli.command import command
from seg.cli.command_line import render_command, render_option
from seg.display.console import quiet
from seg.errors import RunError
from seg.runs.folder import relative
from seg.training.loggers.wandb_offline import Recorded, recorded, recordings, send, table

log = logging.getLogger("seg")


def sync(cfg: DictConfig) -> list[Recorded]:
    """Lists the offline runs below ``outputs``, sends those that are due if asked to, and gives the list."""
    quiet()
    outputs = Path(cfg.outputs)
    if not outputs.is_dir():
        raise RunError(f"outputs={cfg.outputs}: no such folder")
    found = recorded(outputs)
    if not found:
        log.info(f"no run below {cfg.outputs} was recorded offline by W&B")
        return found
    log.info("", extra={"table": table(found)})
    due = [one.folder for one in found if not one.sent and (cfg.running or not one.running)]
    log.info(
        f"{len(found)} recorded offline, {sum(one.sent for one in found)} sent, {len(due)} to send"
    )
    if not due:
        return found
    if not cfg.send:
        log.info("next:")
        place = [] if cfg.outputs == "outputs" else [render_option("outputs", cfg.outputs)]
        log.info(f"  {render_command('sync', *place, 'send=true')}")
        return found
    for file in recordings(outputs):
        if relative(file.parent.resolve()) in due:
            files.check_links(file.parent, outputs)
            files.check_tree(file.parent, file.parents[2], inner=True)  # W&B writes beside it
    send(due)
    found = recorded(outputs)
    if left := [one for one in found if one.folder in due and not one.sent]:
        raise RunError(f"{len(left)} of {len(due)} runs were not sent: wandb says why above")
    log.info(f"{len(due)} sent")
    return found


@command("sync")
def main(cfg: DictConfig) -> None:
    sync(cfg)


if __name__ == "__main__":
    main()
