"""Loggers of a run that can't harm it: started, called by Lightning, and finished here."""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from seg.cli.compose import build, one_line
from seg.runs.records import read_json, write_json
from seg.training.loggers.base import Picture, TrackedRun, Tracker

log = logging.getLogger("seg")
SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")  # ends of the names of such variables
IDS = "loggers.json"  # in the run's folder: name of a logger -> its id of the run
PATIENCE = (
    3  # failures in a row after which a logger is left alone; each may have waited for a server
)


class Guarded(Logger):
    """A tracker that Lightning logs to. What it raises is told once, and the run goes on.

    Curves end when fitting does: the scores of the best checkpoint, measured afterwards, are no point of
    them, and come with ``finish``.

    Args:
        title: its name in conf/logger.
        tracker: open.
    """

    def __init__(self, title: str, tracker: Tracker) -> None:
        super().__init__()
        self.title, self.tracker = title, tracker
        self.fitted, self.failures, self.told, self.step = False, 0, False, 0

    name = property(lambda self: self.title)
    version = property(lambda self: "")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """It knows the config since it was started."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.step = max(self.step, step or 0)
        if not self.fitted:
            self.attempt(self.tracker.log, metrics, step or 0)

    def log_pictures(self, pictures: Sequence[Picture]) -> None:
        """Of a validation whose numbers were logged just before, and at their step."""
        self.attempt(self.tracker.show, pictures, self.step)

    def finalize(self, status: str) -> None:
        """Lightning's word that fitting, or scoring after it, came to its end."""
        self.fitted = True

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.failures = 0  # a last try, whatever was before
        self.attempt(self.tracker.finish, status, summary, self.step)

    def attempt(self, call: Callable, *arguments: Any) -> None:
        if self.failures == PATIENCE:
            return
        try:
            call(*arguments)
            self.failures = 0
        except Exception as error:
            self.failures += 1
            if not self.told:
                self.told = True
                log.warning(
                    f"{self.title}: {reason(error)}; the run goes on, metrics.csv has it all"
                )
            if self.failures == PATIENCE:
                log.warning(f"{self.title}: failed {PATIENCE} times in a row; it gets no more")


def start(nodes: DictConfig, run: TrackedRun) -> list[Guarded]:
    """The loggers of a run, open; one that can't be opened is told, and left out.

    Args:
        nodes: name -> node of a tracker, as ``logger`` is composed.
        run: told to each.

    Raises:
        UserError: when an option of a logger is wrong.
    """
    trackers: dict[str, Tracker] = {
        str(name): build(node, f"logger.{name}", run=run) for name, node in nodes.items()
    }
    file = run.folder / IDS
    ids = read_json(file) if file.exists() else {}
    open_ones = []
    for name, tracker in trackers.items():
        try:
            known = ids.get(name)
            if found := tracker.start(known if isinstance(known, str) else None):
                ids[name] = found
        except Exception as error:
            log.warning(
                f"{name}: can't be started ({reason(error)}); the run goes on without, metrics.csv has it all"
            )
        else:
            open_ones.append(Guarded(name, tracker))
    if ids:
        write_json(file, ids)
    return open_ones


def finish(loggers: Sequence[Logger], status: str, summary: Mapping[str, float]) -> None:
    """Closes those that ``start`` opened.

    Args:
        loggers: of a Trainer.
        status: finished, pruned, failed or interrupted.
        summary: scores of the best checkpoint, minutes and the like; empty when it didn't come to that.
    """
    if status == "interrupted" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
    for logger in loggers:
        if isinstance(logger, Guarded):
            logger.finish(status, summary)


def reason(error: Exception) -> str:
    """What went wrong, without keys: libraries quote what they were given."""
    return f"{type(error).__name__}: {without_keys(one_line(error))[:300]}".rstrip(": ")


def without_keys(text: str) -> str:
    """A text whose passwords in addresses, and values of the environment's secret variables, are stars."""
    text = re.sub(r"://[^/@\s]*@", "://***@", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(SECRET):
            text = text.replace(value, "***")
    return text
