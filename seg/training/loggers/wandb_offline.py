"""Offline runs of Weights & Biases, found and uploaded."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from seg.comparison.run_files import printable_line
from seg.comparison.run_records import run_label
from seg.display.tables import make_table
from seg.errors import RunError, UserError
from seg.runs.folder import relative_to_here
from seg.runs.record import RECORD_FILE, RunRecord, read_record
from seg.training.loggers.wandb import UNSENT_FILE, has_key, server_answers, server_url

SERVER_TIMEOUT = 10.0  # s for the server to answer


@dataclass(frozen=True)
class OfflineRun:
    """W&B recording of a run, offline or not completely sent; a resumed run has several.

    Attributes:
        folder: wandb/offline-run-TIME-ID, or wandb/run-TIME-ID of an online run not completely sent.
        name: of the run.
        group: name of its sweep, or None.
        sent: True if W&B marked it as sent.
        running: True if run.json has the status running.
    """

    folder: Path
    name: str
    group: str | None
    sent: bool
    running: bool

    @property
    def started(self) -> str:
        """Return date and time of the start; empty if the folder was renamed."""
        name = self.folder.name.removeprefix("offline-").removeprefix("run-")
        try:
            stamp = time.strptime(name[:15], "%Y%m%d_%H%M%S")
        except ValueError:
            return ""
        return time.strftime("%Y-%m-%d %H:%M:%S", stamp)

    @property
    def state(self) -> str:
        return "sent" if self.sent else "running" if self.running else "not sent"


def find_offline_runs(outputs: Path) -> list[OfflineRun]:
    """Return all recordings below a folder, oldest first."""
    folders = {file.parent.resolve() for file in recording_files(outputs)}
    runs = [read_recording(relative_to_here(folder)) for folder in folders]
    return sorted(runs, key=lambda run: (run.started, str(run.folder)))


def recording_files(outputs: Path) -> list[Path]:
    """Return one file of each recording below a folder."""
    return [
        *outputs.rglob("wandb/offline-run-*/*.wandb"),
        *outputs.rglob(f"wandb/run-*/{UNSENT_FILE}"),
    ]


def read_recording(folder: Path) -> OfflineRun:
    """Read a recording's folder, and the run.json of its run."""
    run = folder.parent.parent
    try:
        record = read_record(run / RECORD_FILE)
    except RunError:  # the recording lies elsewhere, or the run died as it started, or is damaged
        record = RunRecord(status="failed")
    return OfflineRun(
        folder,
        printable_line(record.name) or run_label(Path(run.name)),
        printable_line(record.group) or None,
        any(folder.glob("*.wandb.synced")),
        record.status == "running",
    )


def offline_table(runs: list[OfflineRun]) -> Table:
    """Build the table of recordings for the terminal."""
    page = make_table("W&B runs recorded offline")
    for column in ("started", "run", "group", "state"):
        page.add_column(column, overflow="fold")
    for run in runs:
        page.add_row(run.started, run.name, run.group or "", run.state)
    return page


def upload_recordings(folders: list[Path]) -> None:
    """Upload recordings with ``wandb sync``.

    Raises:
        UserError: if there is no API key, or the server doesn't answer.
    """
    url = server_url()
    if not has_key(url):
        raise UserError("send=true: no API key; run wandb login, or set WANDB_API_KEY")
    if not server_answers(url, SERVER_TIMEOUT):
        raise UserError(f"send=true: {url} doesn't answer within {SERVER_TIMEOUT:g} s")
    subprocess.run(sync_command(folders), env=sync_environment(), check=False)


def sync_command(folders: list[Path]) -> list[str]:
    return [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, folders)]


def sync_environment() -> dict[str, Any]:
    """Return the environment without the variables that keep wandb offline or silent."""
    return {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
