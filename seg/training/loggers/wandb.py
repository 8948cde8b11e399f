"""Weights & Biases tracker: online with a key and a reachable server, otherwise recorded in the run folder."""

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
from seg.labels import IGNORE
from seg.ranges import check_ranges
from seg.runs.folder import relative_to_here
from seg.runs.metrics_csv import read_metrics
from seg.training.loggers.base import Picture, TrackedRun, Tracker, best_direction

log = logging.getLogger("seg")
STEP_KEY = "trainer/global_step"  # x axis, under Lightning's name
SYNC_COMMAND = "python -m seg.sync send=true"
UNSENT_FILE = "unsent"  # marker file in W&B's folder of an online run that was not sent completely


class Wandb(Tracker):
    """W&B run: online if there is a key and the server answers in time, otherwise offline.

    It never prompts at the terminal, and logs one line on where the run is recorded. W&B's summary holds the best
    value of each validation metric, ``val/dice.max`` or ``val/loss.min``.

    Args:
        run: tracked run.
        project: W&B project.
        entity: user or team; None: the key's default.
        group: runs shown together; None: the sweep's name.
        tags: words to filter by, in addition to data, model and loss.
        offline: never use the network.
        timeout: s to wait for the server, and again for it to open the run; above 0.
        finish_timeout: s to wait at the end until everything is sent; above 0.

    Raises:
        ValueError: if a timeout is not above 0.
    """

    @check_ranges
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
        self.run, self.offline, self.timeout = run, offline, timeout
        self.finish_timeout = finish_timeout
        self.place: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group or run.group,
        }
        self.tags = [tag[:64] for tag in run.tags(tags)]  # W&B's limit
        self.defined: set[str] = set()

    def start(self, known: str | None) -> str | None:
        os.environ.setdefault("WANDB_SILENT", "true")  # this module logs what matters
        import wandb

        self.session = self.opened(
            known, "as asked" if self.offline else offline_reason(self.timeout)
        )
        self.session.define_metric("*", step_metric=STEP_KEY)
        self.resumed = known is not None
        self.image = wandb.Image
        return self.session.id

    def opened(self, known: str | None, why_offline: str | None) -> Any:
        """Open the W&B run, and log where it is recorded.

        Args:
            known: id of the run from an earlier start; None for a new run.
            why_offline: reason not to use the network; None: try it.
        """
        import wandb

        settings = wandb.Settings(
            base_url=server_url(),
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
        # Online: a failure of the server is a reason to record offline.
        if why_offline is None:
            try:
                session = wandb.init(mode="online", **arguments)
                log.info(f"wandb: {session.url}")
                return session
            except (wandb.errors.Error, OSError) as error:
                why_offline = str(error).splitlines()[0]
                wandb.teardown()  # else the run's id stays in use
        # Disabled or offline.
        if why_offline == "disabled":
            log.info("wandb: disabled by WANDB_MODE")
            return wandb.init(mode="disabled", **arguments)
        session = wandb.init(mode="offline", **arguments)
        log.info(f"wandb: offline ({why_offline}); send it later: {SYNC_COMMAND}")
        return session

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name in values:
            if name not in self.defined and "*" not in name and (summary := best_direction(name)):
                self.session.define_metric(name, step_metric=STEP_KEY, summary=summary)
            self.defined.add(name)
        self.session.log({**values, STEP_KEY: step})

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        images = []
        for picture in pictures:
            names = dict(enumerate(picture.classes)) | {IGNORE: "ignore"}
            masks = {"prediction": picture.prediction, "truth": picture.truth}
            layers = {k: {"mask_data": m, "class_labels": names} for k, m in masks.items()}
            images.append(self.image(picture.image, caption=picture.name, masks=layers))
        self.session.log({"val/images": images, STEP_KEY: step})

    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        if self.resumed:  # W&B's own summary starts at the resumption
            self.session.summary.update(best_values(read_metrics(self.run.folder / "metrics.csv")))
        self.session.summary.update({**summary, "status": status})
        place = Path(self.session.settings.sync_dir)
        try:
            self.session.finish(exit_code=0 if status in ("finished", "pruned") else 1)
        except TimeoutError as error:
            files.write_bytes(place / UNSENT_FILE, b"", place)
            rest = quote_path(relative_to_here(place))
            raise TimeoutError(
                f"not everything was sent; send the rest: {SYNC_COMMAND}, or wandb sync --include-online {rest}"
            ) from error


def best_values(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Compute W&B's summary of all rows of metrics.csv: name -> ``{"max": value}`` or ``{"min": value}``."""
    summary: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [float(row[name]) for row in rows if row.get(name)]
        values = [value for value in values if value == value]
        if values and (which := best_direction(name)):
            summary[name] = {which: max(values) if which == "max" else min(values)}
    return summary


def offline_reason(timeout: float) -> str | None:
    """Return why W&B can't be online, ``disabled`` if WANDB_MODE says so; None if it can."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return "disabled"
    if mode in ("offline", "dryrun"):
        return f"WANDB_MODE={mode}"
    url = server_url()
    if not has_key(url):
        return "no API key; run wandb login, or set WANDB_API_KEY"
    if not server_answers(url, timeout):
        return f"{urlparse(url).hostname} doesn't answer within {timeout:g} s"
    return None


def server_url() -> str:
    """Return the URL of W&B's server: WANDB_BASE_URL, or that of wandb's settings."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url


def has_key(url: str) -> bool:
    """Return True if a key for the server is in the environment or in .netrc, where ``wandb login`` writes it."""
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(url))


def server_answers(url: str, timeout: float) -> bool:
    """Return True if a server answers an HTTP request within ``timeout`` s, DNS lookup included."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            requests.head(url, timeout=timeout)
            answered.set()

    # In a thread, as DNS may hang longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()
