"""What a data set is: classes, named splits, and how one image and its mask are read."""

from typing import Literal, Protocol, get_args

import numpy as np

from seg.errors import DataError

Task = Literal["classes", "instances", "overlapping"]


class Source(Protocol):
    """What every data set offers, whatever lies on disk.

    Attributes:
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 per class, for pictures.
        splits: image names of ``train``, ``val`` and, where there is one, ``test``.
        task: ``classes``: one class a pixel; ``instances``: two classes, and each separate region of class
            1 is an object that ``seg.evaluate`` counts; ``overlapping``: each pixel has any of the classes.
    """

    classes: list[str]
    colors: list[tuple[int, int, int]]
    splits: dict[str, list[str]]
    task: Task

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32, and mask (H, W) uint8 of class indices, 255 = ignore.

        Where classes overlap: mask (H, W, K), a plane of 0, 1 and 255 for each.

        Raises:
            DataError: naming the file, what was found and what would mend it.
        """
        ...


def check_choice(option: str, given: str | None, choices: object) -> None:
    """Raises DataError unless an option of the data is None or one of the choices of a Literal."""
    if given is not None and given not in get_args(choices):
        raise DataError(
            f"data.{option}={given}: null or one of {', '.join(get_args(choices))} is needed"
        )


def check_task(task: Task, classes: list[str], may_overlap: bool = False) -> None:
    """Raises DataError when such classes, or such data, can't be used so."""
    if task not in get_args(Task):
        raise DataError(f"data.task={task}: one of {', '.join(get_args(Task))} is needed")
    if task == "instances" and len(classes) != 2:
        raise DataError(
            f"data.task=instances needs two classes, what lies between objects and the objects; these are "
            f"{len(classes)}: {', '.join(classes)}; map the others with data.values"
        )
    if task == "overlapping" and not may_overlap:
        raise DataError("data.task=overlapping: this data has one class a pixel; take data=folder")
