"""What a data set is: classes, named splits, and how one image and its mask are read."""

from typing import Protocol

import numpy as np


class DataError(ValueError):
    """The data is not what the config says; the message names file, finding and remedy."""


class Source(Protocol):
    """What every data set offers, whatever lies on disk.

    Attributes:
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 per class, for pictures.
        splits: image names of ``train``, ``val`` and, where there is one, ``test``.
    """

    classes: list[str]
    colors: list[tuple[int, int, int]]
    splits: dict[str, list[str]]

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) uint8, uint16 or float32, and mask (H, W) uint8 of class indices, 255 = ignore.

        Raises:
            DataError: naming the file, what was found and what would mend it.
        """
        ...
