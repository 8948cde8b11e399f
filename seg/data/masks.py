"""From the values of a mask on disk to class indices; a value that nobody declared is an error."""

import numpy as np

from seg.data.sources import DataError
from seg.logits import IGNORE


class MaskValues:
    """Which value on disk is which class.

    Args:
        classes: names, in the order of the class indices.
        values: value on disk -> class index; None: the values are the indices.
        ignore: values on disk that nobody counts.

    Raises:
        DataError: when ``values`` names a class that isn't there, or a value twice.
    """

    def __init__(
        self, classes: list[str], values: dict[int, int] | None, ignore: list[int]
    ) -> None:
        self.classes = classes
        known = dict(enumerate(range(len(classes)))) if values is None else dict(values)
        wrong = sorted(set(known.values()) - set(range(len(classes))))
        if wrong:
            raise DataError(
                f"data.values sends values to {wrong}; the classes are 0..{len(classes) - 1} {classes}"
            )
        both = sorted(set(known) & set(ignore))
        if both and values is not None:
            raise DataError(f"data.ignore and data.values both name {both}")
        self.index = known | dict.fromkeys(ignore, IGNORE)

    def indices(self, mask: np.ndarray, file: object) -> np.ndarray:
        """Class indices (H, W) uint8 of a mask (H, W) as stored; 255 = ignore.

        Raises:
            DataError: naming the file, the values found and the setting that would mend it.
        """
        if mask.ndim == 3 and (mask.shape[2] == 1 or (mask[..., :1] == mask[..., :3]).all()):
            mask = mask[..., 0]  # grey saved as colours
        if mask.ndim != 2:
            raise DataError(
                f"{file}: a colour picture {mask.shape} is no mask; save one class index a pixel"
            )
        found = np.unique(mask).tolist()
        unknown = [v for v in found if v not in self.index]
        if unknown:
            raise DataError(
                f"{file}: mask value {short(unknown)} not declared; {self.remedy(found)}"
            )
        if mask.dtype == np.uint8:
            table = np.full(256, IGNORE, np.uint8)
            for value, index in self.index.items():
                if 0 <= value < 256:
                    table[value] = index
            return table[mask]
        result = np.full(mask.shape, IGNORE, np.uint8)
        for value in found:
            result[mask == value] = self.index[value]
        return result

    def remedy(self, found: list[int]) -> str:
        """The setting that would make the found values legal."""
        declared = f"declared are {short(sorted(self.index))} for {short(self.classes)}"
        if len(found) > 32:
            return f"{declared}; {len(found)} different values look like a photograph or JPEG noise"
        plain = [v for v in found if v != IGNORE]
        if len(found) <= len(self.classes):
            pairs = ", ".join(f"{v}: {i}" for i, v in enumerate(found))
            return f"{declared}; did you mean 'data.values={{{pairs}}}'?"
        if set(plain) <= set(self.index) and IGNORE in found:
            return f"{declared}; is it void? then data.ignore=[{IGNORE}]"
        return (
            f"{declared}; the mask holds {short(found)}: name each in data.classes or data.ignore"
        )


def stacked_planes(pages: list[np.ndarray], classes: list[str], file: object) -> list[np.ndarray]:
    """The plane (H, W) of each class, from pages or from channels.

    Raises:
        DataError: when there aren't as many as classes, or of several sizes.
    """
    if len(pages) == 1 and pages[0].ndim == 3:
        pages = list(np.moveaxis(pages[0], -1, 0))
    if len(pages) != len(classes) or len({page.shape for page in pages}) > 1:
        sizes = ", ".join(sorted({"x".join(map(str, page.shape)) for page in pages}))
        raise DataError(
            f"{file}: {len(pages)} pages of {sizes} px; data.task=overlapping needs one a class, in the "
            f"order of {short(classes)}"
        )
    return pages


def short(items: list) -> str:
    """A list, without its middle if it is long."""
    return (
        str(items) if len(items) <= 12 else f"[{', '.join(map(str, items[:10]))}, ... {items[-1]}]"
    )
