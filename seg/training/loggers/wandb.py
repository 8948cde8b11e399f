"""Weights & Biases: online where a key and the server are there, else recorded in the run's folder."""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlparse

import requests
from pydantic import Field

from seg import files
from seg.cli.command_line import quote_path
from seg.logits import IGNORE
from seg.runs.folder import relative
from seg.runs.metrics_csv import read_metrics
from seg.training.loggers.base import Picture, TrackedRun, Tracker, best

log = logging.getLogger("seg")
STEP = "trainer/global_step"  # the x axis; the name that Lightning gives it
SENDER = "python -m seg.sync send=true"
UNSENT = "unsent"  # marks, in W&B's folder of a run that was online, that not all of it was sent


class Wandb(Tracker):
    """A W&B run: online if a key and the server are there in time, else offline.

    Never asks at the terminal; what it decided is said in one line. W&B keeps the best of each validation
    metric as its summary, ``val/dice.max`` or ``val/loss.min``.

    Args:
        run: to follow.
        project: W&B project.
        entity: user or team; None: the key's default.
        group: runs shown together; None: the sweep's.
        tags: words to filter by, beside data, model and loss.
        offline: never try the network.
        timeout: s to wait for the server, and as much for the run to be opened there.
        finish_timeout: s to wait at the end until all is sent.
    """

    def __init__(
        self,
        run: TrackedRun,
        project: str = "seg",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
        timeout: Annotated[float, Field(gt=0)] = 3.0,
        finish_timeout: Annotated[float, Field(gt=0)] = 300.0,
    ) -> None:
        if min(timeout, finish_timeout) <= 0:
            raise ValueError(f"timeouts are {timeout} and {finish_timeout} s; they must be above 0")
        self.run, self.offline, self.timeout = run, offline, timeout
        self.finish_timeout = finish_timeout
        self.place: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group or run.group,
        }
        self.tags = [tag[:64] for tag in run.tags(tags)]  # what W&B takes
        self.defined: set[str] = set()

    def start(self, known: str | None) -> str | None:
        os.environ.setdefault(
            "WANDB_SILENT", "true"
        )  # wandb's own lines; what matters is said here
        import wandb

        self.session = self.opened(
            known, "as asked" if self.offline else offline_reason(self.timeout)
        )
        self.session.define_metric("*", step_metric=STEP)
        self.resumed = known is not None
        self.image = wandb.Image
        return self.session.id

    def opened(self, known: str | None, why_offline: str | None) -> Any:
        """The W&B run, and a line that tells where."""
        import wandb

        settings = wandb.Settings(
            base_url=server(),
            silent=True,
            console="off",
            init_timeout=self.timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
        )
        arguments: dict[str, Any] = self.place | {
            "name": self.run.name, "tags": self.tags, "job_type": "train", "config": self.run.settings,
            "id": known, "resume": "allow" if known else None, "dir": str(self.run.folder), "settings": settings,
            "reinit": "finish_previous",
        }  # fmt: skip
        if why_offline is None:
            try:
                session = wandb.init(mode="online", **arguments)
                log.info(f"wandb: {session.url}")
                return session
            except (wandb.errors.Error, OSError) as error:
                why_offline = str(error).splitlines()[0]
                wandb.teardown()  # else the run's id stays in use
        if why_offline == "disabled":
            log.info("wandb: disabled by WANDB_MODE")
            return wandb.init(mode="disabled", **arguments)
        session = wandb.init(mode="offline", **arguments)
        log.info(f"wandb: offline ({why_offline}); send it later: {SENDER}")
        return session

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name in values:
            if name not in self.defined and "*" not in name and (summary := best(name)):
                self.session.define_metric(name, step_metric=STEP, summary=summary)
            self.defined.add(name)
        self.session.log({**values, STEP: step})

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        shown = []
        for one in pictures:
            names = dict(enumerate(one.classes)) | {IGNORE: "ignore"}
            masks = {"prediction": one.prediction, "truth": one.truth}
            layers = {k: {"mask_data": m, "class_labels": names} for k, m in masks.items()}
            shown.append(self.image(one.image, caption=one.name, masks=layers))
        self.session.log({"val/images": shown, STEP: step})

    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        if self.resumed:  # W&B counts from the resumption on
            self.session.summary.update(bests(read_metrics(self.run.folder / "metrics.csv")))
        self.session.summary.update({**summary, "status": status})
        place = Path(self.session.settings.sync_dir)
        try:
            self.session.finish(exit_code=0 if status in ("finished", "pruned") else 1)
        except TimeoutError as error:
            files.write_bytes(place / UNSENT, b"", place)
            rest = quote_path(relative(place))
            raise TimeoutError(
                f"not all was sent; send the rest: {SENDER}, or wandb sync --include-online {rest}"
            ) from error


def bests(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """The summary that W&B would have of all rows: name -> ``{"max": value}``, or min."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [float(row[name]) for row in rows if row.get(name)]
        values = [value for value in values if value == value]
        if values and (which := best(name)):
            found[name] = {which: max(values) if which == "max" else min(values)}
    return found


def offline_reason(timeout: float) -> str | None:
    """Why W&B can't be online now, or None; ``disabled`` when the environment says so."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return "disabled"
    if mode in ("offline", "dryrun"):
        return f"WANDB_MODE={mode}"
    url = server()
    if not has_key(url):
        return "no API key; wandb login makes one known"
    if not answers(url, timeout):
        return f"{urlparse(url).hostname} doesn't answer within {timeout:g} s"
    return None


def server() -> str:
    """The address of W&B: WANDB_BASE_URL, or what wandb's own settings say."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url


def has_key(url: str) -> bool:
    """Whether a key for the server is in the environment or in .netrc, where ``wandb login`` writes it."""
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(url))


def answers(url: str, timeout: float) -> bool:
    """Whether a server says anything to an HTTP request in time, its name looked up included."""
    heard = threading.Event()

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            requests.head(url, timeout=timeout)
            heard.set()

    asking = threading.Thread(target=ask, daemon=True)  # a name server may hang past any timeout
    asking.start()
    asking.join(timeout)
    return heard.is_set()
