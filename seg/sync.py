"""Lists W&B runs that were recorded offline, and sends them: ``python -m seg.sync send=true``.

W&B records such a run in ``wandb/offline-run-*`` of the run's folder, and marks what it has sent; one that
was online till its server was lost lies in ``wandb/run-*``.
"""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from seg import files
from seg.cli import UserError, command
from seg.command_line import render_command, render_option
from seg.comparison.results import label_of
from seg.comparison.runfiles import text
from seg.console import quiet
from seg.runs import RunError, read_json, relative
from seg.tracking.wandb import UNSENT, answers, has_key, server

log = logging.getLogger("seg")
TIMEOUT = 10.0  # s for the server to answer


@dataclass(frozen=True)
class Recorded:
    """What W&B recorded offline of a run, once; a resumed run has several.

    Attributes:
        folder: wandb/offline-run-TIME-ID, or wandb/run-TIME-ID of one not all of which was sent.
        name: of the run.
        group: of its sweep, or None.
        sent: whether W&B marked it so.
        running: whether run.json says that it still runs.
    """

    folder: Path
    name: str
    group: str | None
    sent: bool
    running: bool

    @property
    def started(self) -> str:
        """Date and time."""
        name = self.folder.name.removeprefix("offline-").removeprefix("run-")
        try:
            stamp = time.strptime(name[:15], "%Y%m%d_%H%M%S")
        except ValueError:  # renamed since
            return ""
        return time.strftime("%Y-%m-%d %H:%M:%S", stamp)

    @property
    def state(self) -> str:
        return "sent" if self.sent else "running" if self.running else "not sent"


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


def recorded(outputs: Path) -> list[Recorded]:
    """All offline runs below a folder, and those not all of which was sent, oldest first."""
    folders = {file.parent.resolve() for file in recordings(outputs)}
    found = [look(relative(folder)) for folder in folders]
    return sorted(found, key=lambda one: (one.started, str(one.folder)))


def recordings(outputs: Path) -> list[Path]:
    """A file of each recording below a folder."""
    return [*outputs.rglob("wandb/offline-run-*/*.wandb"), *outputs.rglob(f"wandb/run-*/{UNSENT}")]


def look(folder: Path) -> Recorded:
    run = folder.parent.parent
    try:
        record = read_json(run / "run.json")
    except (
        RunError
    ):  # W&B's folder lies elsewhere, the run died as it started, or was damaged since
        record = {}
    return Recorded(
        folder,
        text(record.get("name")) or label_of(Path(run.name)),
        text(record.get("group")) or None,
        any(folder.glob("*.wandb.synced")),
        record.get("status") == "running",
    )


def table(found: list[Recorded]) -> Table:
    page = Table(title="W&B runs recorded offline", title_justify="left", header_style="bold")
    for column in ("started", "run", "group", "state"):
        page.add_column(column, overflow="fold")
    for one in found:
        page.add_row(one.started, one.name, one.group or "", one.state)
    return page


def send(folders: list[Path]) -> None:
    """Runs ``wandb sync``.

    Raises:
        UserError: when there is no key, or no server.
    """
    url = server()
    if not has_key(url):
        raise UserError("send=true: no API key; wandb login makes one known, or WANDB_API_KEY")
    if not answers(url, TIMEOUT):
        raise UserError(f"send=true: {url} doesn't answer within {TIMEOUT:g} s")
    subprocess.run(line(folders), env=environment(), check=False)


def line(folders: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)]


def environment() -> dict[str, Any]:
    """Without what keeps training offline, and lets wandb speak."""
    return {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}


@command("sync")
def main(cfg: DictConfig) -> None:
    sync(cfg)


if __name__ == "__main__":
    main()
