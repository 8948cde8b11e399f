"""Interface of experiment trackers, and the facts and pictures of a run that they receive."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from seg.display import panels
from seg.display.layout import stack_pictures
from seg.metrics.direction import SPREAD_SUFFIX, smaller_is_better

MAX_PAGE_WIDTH = 1200  # px: maximal width of a page; dashboards keep one page per validation


@dataclass(frozen=True)
class TrackedRun:
    """Facts about a run that trackers receive when it starts.

    Attributes:
        name: of the run.
        folder: run folder.
        config: all options, resolved.
        parameters: number of parameters of the network.
        group: name of the sweep or search that the run belongs to; None: a single run.
        job: number of the run in the group.
        choices: file chosen in each config group, such as ``model: unetpp``.
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
        """Return everything that runs can be filtered and grouped by: options, choices, job and size."""
        added = {"choices": dict(self.choices or {}), "job": self.job}
        return dict(self.config) | added | {"parameters": self.parameters}

    def tags(self, words: Sequence[str] | None) -> list[str]:
        """Return the given tags and the names of the data, model and loss configs, without repetition."""
        chosen = [(self.choices or {}).get(group) for group in ("data", "model", "loss")]
        return list(dict.fromkeys([*(words or []), *(word for word in chosen if word)]))


class Picture(NamedTuple):
    """Validation image (H, W, 3) uint8 with truth and prediction, class indices (H, W), 255 = ignored."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    classes: list[str]
    colors: list[tuple[int, int, int]]


def draw_page(pictures: Sequence[Picture]) -> Image.Image:
    """Draw pictures on one page, at most ``MAX_PAGE_WIDTH`` px wide: a row of image | truth | prediction | error each."""
    rows = [
        panels.draw_panel(p.image, p.truth, p.prediction, p.classes, p.colors, p.name)
        for p in pictures
    ]
    page = stack_pictures(rows)
    page.thumbnail((MAX_PAGE_WIDTH, page.height))
    return page


def flatten_options(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to paths such as ``optim/lr``; dots have another meaning in dashboards."""
    leaves: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        leaves |= (
            flatten_options(value, f"{path}/")
            if isinstance(value, Mapping) and value
            else {path: value}
        )
    return leaves


def best_direction(name: str) -> Literal["max", "min"] | None:
    """Return whether a validation metric is maximised or minimised; None for any other key."""
    stage, _, rest = name.partition("/")
    score = rest.split("/")[0]
    if stage != "val" or score.endswith(SPREAD_SUFFIX):
        return None
    return "min" if smaller_is_better(score) else "max"


class Tracker(ABC):
    """Abstract experiment tracker, which receives a run's numbers and pictures.

    The constructor takes ``run: TrackedRun`` and the tracker's options, and only checks them. Exceptions of all
    other methods are logged, and the run continues.
    """

    @abstractmethod
    def start(self, known: str | None) -> str | None:
        """Open the tracker.

        Args:
            known: id of this run from an earlier start; None for a new run.

        Returns:
            The id under which a resumed run continues; None if the tracker has no ids.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers measured at an optimiser step."""

    @abstractmethod
    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """Log pictures of validation images as segmented at an optimiser step."""

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, float], step: int) -> None:
        """Close the tracker.

        Args:
            status: finished, pruned, failed or interrupted.
            summary: final numbers of the run, such as the scores of the best checkpoint and the minutes.
            step: last optimiser step.
        """
