"""TensorBoard tracker: event files in the run folder, shown by ``tensorboard --logdir outputs``."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import Field

from seg.cli.command_line import quote_path
from seg.ranges import check_ranges
from seg.runs.folder import relative_to_here
from seg.training.loggers.base import Picture, TrackedRun, Tracker, draw_page

log = logging.getLogger("seg")


class TensorBoard(Tracker):
    """TensorBoard, through Lightning's TensorBoardLogger; the final numbers appear under HPARAMS.

    Args:
        run: tracked run.
        seconds: between two writes to disk, at least 1.
    """

    @check_ranges
    def __init__(self, run: TrackedRun, seconds: Annotated[int, Field(ge=1)] = 30) -> None:
        self.run, self.seconds = run, seconds

    def start(self, known: str | None) -> str | None:
        self.logger = TensorBoardLogger(
            self.run.folder, "tensorboard", "", default_hp_metric=False, flush_secs=self.seconds
        )
        self.writer = self.logger.experiment
        runs = quote_path(relative_to_here(self.run.folder.parent))
        log.info(f"tensorboard: tensorboard --logdir {runs}")
        return None

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        page = np.asarray(draw_page(pictures))
        self.writer.add_image("val/images", page, step, dataformats="HWC")

    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        settings = {**self.run.settings, "group": self.run.group, "status": status}
        self.logger.log_hyperparams(settings, dict(summary), step)
        self.writer.close()
