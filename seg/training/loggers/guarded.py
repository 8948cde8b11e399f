"""Fault-tolerant loggers: errors of a tracker are logged, and training continues."""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from seg.cli.compose import instantiate_node, one_line
from seg.runs.records import read_json, write_json
from seg.training.loggers.base import Picture, TrackedRun, Tracker

log = logging.getLogger("seg")
# suffixes of environment variables that hold secrets
SECRET_SUFFIXES = ("KEY", "TOKEN", "PASSWORD", "SECRET")
IDS_FILE = "loggers.json"  # in the run folder: name of a logger -> id of the run there
MAX_FAILURES = 3  # in a row, then a logger is disabled; each may have waited for a server


class FaultTolerantLogger(Logger):
    """Lightning logger around a tracker. Its first error is logged as a warning, and the run continues.

    Curves end with fitting: the scores of the best checkpoint, measured afterwards, are not logged as points of the
    curves but passed to ``finish_loggers``.

    Args:
        title: name in conf/logger.
        tracker: started.
    """

    def __init__(self, title: str, tracker: Tracker) -> None:
        super().__init__()
        self.title, self.tracker = title, tracker
        self.fitted, self.failures, self.told, self.step = False, 0, False, 0

    name = property(lambda self: self.title)
    version = property(lambda self: "")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker received the config when it started."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.step = max(self.step, step or 0)
        if not self.fitted:
            self.attempt(self.tracker.log, metrics, step or 0)

    def log_pictures(self, pictures: Sequence[Picture]) -> None:
        """Log pictures of a validation, at the step at which its numbers were logged just before."""
        self.attempt(self.tracker.show, pictures, self.step)

    def finalize(self, status: str) -> None:
        """Stop logging curves; Lightning calls this when fitting ends."""
        self.fitted = True

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.failures = 0  # a last attempt, even of a disabled logger
        self.attempt(self.tracker.finish, status, summary, self.step)

    def attempt(self, call: Callable, *arguments: Any) -> None:
        if self.failures == MAX_FAILURES:
            return
        try:
            call(*arguments)
            self.failures = 0
        except Exception as error:
            self.failures += 1
            if not self.told:
                self.told = True
                log.warning(
                    f"{self.title}: {describe_error(error)}; the run goes on, metrics.csv has it all"
                )
            if self.failures == MAX_FAILURES:
                log.warning(f"{self.title}: failed {MAX_FAILURES} times in a row; logger disabled")


def start_loggers(nodes: DictConfig, run: TrackedRun) -> list[FaultTolerantLogger]:
    """Start the loggers of a run; one that fails to start is logged as a warning and omitted.

    Args:
        nodes: name -> config of a tracker, the option ``logger``.
        run: facts that each tracker receives.

    Raises:
        UserError: if an option of a logger is wrong.
    """
    # Build all trackers first, so that a wrong option is an error before any of them starts.
    trackers: dict[str, Tracker] = {
        str(name): instantiate_node(node, f"logger.{name}", run=run) for name, node in nodes.items()
    }
    file = run.folder / IDS_FILE
    ids = read_json(file) if file.exists() else {}
    # Start each one, under the id of an earlier start if there is one.
    started = []
    for name, tracker in trackers.items():
        try:
            known = ids.get(name)
            if new_id := tracker.start(known if isinstance(known, str) else None):
                ids[name] = new_id
        except Exception as error:
            log.warning(
                f"{name}: can't be started ({describe_error(error)}); the run goes on without, metrics.csv has it all"
            )
        else:
            started.append(FaultTolerantLogger(name, tracker))
    if ids:
        write_json(file, ids)
    return started


def finish_loggers(loggers: Sequence[Logger], status: str, summary: Mapping[str, float]) -> None:
    """Close the loggers that ``start_loggers`` opened.

    Args:
        loggers: of a Trainer.
        status: finished, pruned, failed or interrupted.
        summary: final numbers, such as scores of the best checkpoint and minutes; empty unless finished.
    """
    # Lightning leaves Ctrl-C ignored; the user must be able to stop a logger that waits for its server.
    if status == "interrupted" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for logger in loggers:
        if isinstance(logger, FaultTolerantLogger):
            logger.finish(status, summary)


def describe_error(error: Exception) -> str:
    """Describe an error on one line of at most about 300 characters, without secrets that libraries may quote."""
    return f"{type(error).__name__}: {hide_secrets(one_line(error))[:300]}".rstrip(": ")


def hide_secrets(text: str) -> str:
    """Return a text with passwords in URLs, and values of secret environment variables, replaced by stars."""
    text = re.sub(r"://[^/@\s]*@", "://***@", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(SECRET_SUFFIXES):
            text = text.replace(value, "***")
    return text
