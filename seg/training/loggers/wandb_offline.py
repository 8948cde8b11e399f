"""Offline runs of Weights & Biases, found and uploaded."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from seg.comparison.run_files import text
from seg.comparison.run_records import label_of
from seg.errors import RunError, UserError
from seg.runs.folder import relative
from seg.runs.records import read_json
from seg.training.loggers.wandb import UNSENT, answers, has_key, server

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
