"""The ISBI 2012 challenge: 30 labelled sections of a fruit fly's nerve cord, membranes against cells."""

from pathlib import Path

import numpy as np

from seg.data.images import as_image, read_pages
from seg.data.masks import MaskValues
from seg.data.sources import DataError, Task, check_task
from seg.data.splits import fold_split, in_blocks

VOLUME, LABELS = "train-volume.tif", "train-labels.tif"


class ISBI2012:
    """Labelled sections in the challenge's own layout; one contiguous block of them validates.

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142. Neighbouring sections resemble each
    other, so a block is a harder and more honest validation than a random draw.

    Args:
        root: folder of train-volume.tif and train-labels.tif.
        fold: which block of sections validates, 0 .. folds - 1.
        folds: number of blocks.
        task: ``instances``: the cells are also counted one by one.

    Raises:
        DataError: when a file is missing or isn't what it should be, or the fold isn't there.
    """

    classes: list[str] = ["membrane", "cell"]  # noqa: RUF012  (a constant of the challenge)
    colors: list[tuple[int, int, int]] = [(20, 60, 120), (255, 190, 60)]  # noqa: RUF012

    def __init__(
        self, root: str | None, fold: int = 4, folds: int = 5, task: Task = "instances"
    ) -> None:
        check_task(task, self.classes)
        self.task: Task = task
        if root is None:
            raise DataError(
                f"data.root is not set: give the folder that holds {VOLUME} and {LABELS}"
            )
        folder = Path(root)
        if not folder.is_dir():
            raise DataError(f"data.root={root}: no such folder; it must hold {VOLUME} and {LABELS}")
        values = MaskValues(self.classes, values={0: 0, 255: 1}, ignore=[])
        self.images = [as_image(p, folder / VOLUME) for p in read_pages(folder / VOLUME)]
        self.masks = [values.indices(p, folder / LABELS) for p in read_pages(folder / LABELS)]
        shapes = [[i.shape[:2] for i in self.images], [m.shape for m in self.masks]]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{folder}: {VOLUME} holds {describe(shapes[0])} and {LABELS} {describe(shapes[1])}; "
                "they must match section by section"
            )
        names = [f"section-{i:02d}" for i in range(len(self.images))]
        self.splits = fold_split(names, fold, folds, 0, in_blocks)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Section (H, W, 1) uint8 and its mask (H, W) uint8: 0 membrane, 1 cell."""
        section = int(name.rsplit("-", 1)[1])
        return self.images[section], self.masks[section]


def describe(shapes: list[tuple[int, int]]) -> str:
    sizes = ", ".join(f"{h}x{w}" for h, w in sorted(set(shapes)))
    return f"{len(shapes)} sections of {sizes} px"
