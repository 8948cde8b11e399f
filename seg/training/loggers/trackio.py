"""trackio tracker: a live local dashboard without account or network, served by ``trackio show``."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from seg import files
from seg.cli.command_line import quote_path, quote_shell
from seg.runs.folder import relative_to_here
from seg.training.loggers.base import Picture, TrackedRun, Tracker, draw_page, flatten_options

log = logging.getLogger("seg")


class Trackio(Tracker):
    """trackio, whose own thread writes to its database twice a second.

    Args:
        run: tracked run.
        project: of the dashboard.
        group: runs shown together; None: the sweep's name.
        tags: words in the run's config, in addition to data, model and loss.
        folder: of the database, one per process; None: trackio's own, TRACKIO_DIR or in the user's cache.
    """

    def __init__(
        self,
        run: TrackedRun,
        project: str = "seg",
        group: str | None = None,
        tags: list[str] | None = None,
        folder: str | None = None,
    ) -> None:
        self.run, self.project, self.folder = run, project, folder
        self.group, self.tags = group or run.group, run.tags(tags)

    def start(self, known: str | None) -> str | None:
        if self.folder is not None:
            os.environ["TRACKIO_DIR"] = str(Path(self.folder).resolve())  # read on import
        import trackio

        place = trackio.utils.TRACKIO_DIR
        if self.folder is not None and place != Path(self.folder).resolve():
            raise RuntimeError(f"this process already writes to {place}")
        files.make_folder(place, place)
        with silence_trackio(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # trackio only warns about its failures
            self.session = trackio.init(
                self.project, self.run.name, self.group, config=flatten_options(self.run.settings) | {"tags": self.tags},
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        self.session.id = known or self.session.id
        self.image = trackio.Image
        where = (
            f"TRACKIO_DIR={quote_path(relative_to_here(place))} " if self.folder is not None else ""
        )
        log.info(f"trackio: {where}trackio show --project={quote_shell(self.project)}")
        return self.session.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.session.log(dict(values), step=step)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        self.session.log({"val/images": self.image(draw_page(pictures))}, step=step)

    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        import trackio

        if summary:
            self.session.log(dict(summary), step=step)
        with silence_trackio():
            trackio.finish()


def silence_trackio() -> contextlib.AbstractContextManager:
    """Suppress what trackio prints."""
    return contextlib.redirect_stdout(io.StringIO())
