"""Where a run's numbers and pictures go: metrics.csv, always, and Weights & Biases."""

import contextlib
import csv
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import requests
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger("seg")


class MetricsCSV(Logger):
    """One row for each time that something is measured; the authority on a run's numbers.

    A row is on disk as soon as it is written. A new column rewrites the file aside and swaps it in, so
    that a process killed at any moment leaves a whole file.

    Args:
        file: metrics.csv.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.columns: list[str] = []

    name = property(lambda self: "csv")
    version = property(lambda self: "")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [c for c in row if c not in self.columns]
        if new:
            self.columns += new
            self.rewrite()
        with self.file.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="").writerow(row)

    def rewrite(self) -> None:
        old = read_metrics(self.file) if self.file.exists() else []
        aside = self.file.with_suffix(".new")
        with aside.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(old)
        os.replace(aside, self.file)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv; a metric that wasn't measured then is an empty string."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def no_logger(name: str, folder: Path, sweep: str | None, options: dict) -> None:
    """Nothing besides metrics.csv."""


def wandb_logger(
    name: str,
    folder: Path,
    sweep: str | None,
    options: dict,
    project: str = "seg",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    offline: bool = False,
    timeout: float = 3.0,
) -> Logger:
    """A W&B run: online if a key and the server are there within ``timeout`` seconds, else offline.

    Never asks at the terminal and never waits longer; what it decided is said in one line.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # wandb's own lines; what matters is said here
    import wandb

    reason = "as asked" if offline else offline_reason(timeout)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=timeout,
        x_disable_stats=True,
        x_disable_meta=True,
        disable_git=True,
    )
    arguments: dict[str, Any] = {
        "project": project, "entity": entity, "name": name, "group": group or sweep, "tags": tags or [],
        "config": options, "dir": str(folder), "settings": settings, "reinit": "finish_previous",
    }  # fmt: skip
    if reason is None:
        try:
            run = wandb.init(mode="online", **arguments)
            log.info(f"wandb: {run.url}")
            return experiment(run)
        except (wandb.errors.Error, OSError) as error:
            reason = str(error).splitlines()[0]
    if reason == "disabled":
        log.info("wandb: disabled by WANDB_MODE")
        return experiment(wandb.init(mode="disabled", **arguments))
    run = wandb.init(mode="offline", **arguments)
    sync = Path(run.settings.sync_dir)
    log.info(f"wandb: offline ({reason}); send it later: wandb sync {os.path.relpath(sync)}")
    return experiment(run)


def experiment(run: Any) -> WandbLogger:
    for pattern, summary in (("val/dice*", "max"), ("val/iou*", "max"), ("val/loss*", "min")):
        run.define_metric(pattern, step_metric="trainer/global_step", summary=summary)
    return WandbLogger(experiment=run, save_dir=run.dir)


def offline_reason(timeout: float) -> str | None:
    """Why W&B can't be online now, or None; ``disabled`` when the environment says so."""
    import wandb

    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return "disabled"
    if mode in ("offline", "dryrun"):
        return f"WANDB_MODE={mode}"
    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    if not (os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server)):
        return "no API key; wandb login makes one known"
    if not answers(server, timeout):
        return f"{urlparse(server).hostname} doesn't answer within {timeout:g} s"
    return None


def answers(server: str, timeout: float) -> bool:
    """Whether a server says anything to an HTTP request in time, its name looked up included."""
    heard = threading.Event()

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            requests.head(server, timeout=timeout)
            heard.set()

    threading.Thread(target=ask, daemon=True).start()  # a name server may hang past any timeout
    return heard.wait(timeout)
