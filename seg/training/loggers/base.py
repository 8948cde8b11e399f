"""What a place that runs are followed at is told, and what it must be able to do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from seg.display import panels
from seg.metrics.direction import SPREAD, smaller_is_better

WIDTH = 1200  # px: dashboards keep a page of each validation


@dataclass(frozen=True)
class TrackedRun:
    """A run as it starts.

    Attributes:
        name: of the run.
        folder: the run's.
        config: all options, resolved.
        parameters: of the network.
        group: of the sweep or search that it belongs to.
        job: its number there.
        choices: the file chosen in each group of options, ``model: unetpp``.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    parameters: int
    group: str | None = None
    job: int | None = None
    choices: Mapping[str, str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that a run can be filtered and grouped by: its options, and what they make of it."""
        added = {"choices": dict(self.choices or {}), "job": self.job}
        return dict(self.config) | added | {"parameters": self.parameters}

    def tags(self, words: Sequence[str] | None) -> list[str]:
        """The words given, and what was chosen for data, model and loss."""
        chosen = [(self.choices or {}).get(group) for group in ("data", "model", "loss")]
        return list(dict.fromkeys([*(words or []), *(word for word in chosen if word)]))


class Picture(NamedTuple):
    """A validation image (H, W, 3) uint8 with truth and prediction, (H, W) class indices, 255 = ignored."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    classes: list[str]
    colors: list[tuple[int, int, int]]


def sheet(pictures: Sequence[Picture]) -> Image.Image:
    """One page of them, at most ``WIDTH`` px wide: image | truth | prediction | error, a row each."""
    rows = [
        panels.panel(one.image, one.truth, one.prediction, one.classes, one.colors, one.name)
        for one in pictures
    ]
    page = panels.sheet(rows)
    page.thumbnail((WIDTH, page.height))
    return page


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their path, ``optim/lr``; a dot would mean something else to dashboards."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}/") if isinstance(value, Mapping) and value else {path: value}
    return found


def best(name: str) -> Literal["max", "min"] | None:
    """Which value of a validation metric is its best, by the metric's key; None for all else."""
    stage, _, rest = name.partition("/")
    score = rest.split("/")[0]
    if stage != "val" or score.endswith(SPREAD):
        return None
    return "min" if smaller_is_better(score) else "max"


class Tracker(ABC):
    """A place that a run's numbers and pictures go to.

    Its constructor takes ``run: TrackedRun`` and its options, and only checks these. The rest may raise
    whatever it likes: the run goes on.
    """

    @abstractmethod
    def start(self, known: str | None) -> str | None:
        """Opens it, and gives the id by which a resumed run is found again, if there is one.

        Args:
            known: the id of this run, when it was started before.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers measured at an optimiser step."""

    @abstractmethod
    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """Pictures of some validation images as they are segmented at that step."""

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        """Closes it.

        Args:
            status: finished, pruned, failed or interrupted.
            summary: the numbers that stand for the run: scores of the best checkpoint, minutes and so on.
            step: the last one.
        """
