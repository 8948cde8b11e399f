"""Measurements of objects, summed over bands of rows; their names and definitions are those of scikit-image's ``regionprops``.

Shape suffixes: H x W pixels of a band, C channels, N objects.
"""

import numpy as np
from numpy.typing import NDArray

CONTEXT_PX = 2  # rows above and below a band that the perimeter needs
# Benkrid and Crookes: length of the outline at a border pixel, by 1 + 2 * border pixels at its sides + 10 * at its corners
PERIMETER_WEIGHTS = np.zeros(50)
PERIMETER_WEIGHTS[[5, 7, 15, 17, 25, 27]] = 1
PERIMETER_WEIGHTS[[21, 33]] = 2**0.5
PERIMETER_WEIGHTS[[13, 23]] = (1 + 2**0.5) / 2


class ObjectMeasurements:
    """Measurements of the objects of one image, whose bands are added from top to bottom.

    Args:
        number: N; the objects are 1 to N.
        channels: C of the image.
    """

    def __init__(self, number: int, channels: int) -> None:
        size = number + 1
        self.area = np.zeros(size, np.int64)
        self.anchor = np.zeros((2, size), np.int64)  # pixel that the moments refer to
        self.moments = np.zeros((5, size))  # sums of r, c, r^2, c^2, r c
        self.low = np.full((2, size), np.iinfo(np.int64).max)
        self.high = np.zeros((2, size), np.int64)
        self.perimeter = np.zeros(size)
        self.probability = np.zeros(size)
        self.total = np.zeros((channels, size))
        self.minimum = np.full((channels, size), np.inf)
        self.maximum = np.full((channels, size), -np.inf)

    def add(self, top: int, labels: NDArray, image_HWC: NDArray, probability_HW: NDArray) -> None:
        """Add a band.

        Args:
            top: its first row in the image.
            labels: (H + 4, W), with two rows above and below, 0 outside of the image.
            image_HWC: values of the image.
            probability_HW: probability of being inside an object.
        """
        inner = labels[CONTEXT_PX:-CONTEXT_PX]
        inside = np.nonzero(inner)
        if not len(inside[0]):
            return
        objects, own = compact_labels(inner[inside], len(self.area))
        size, place = len(objects), np.stack(inside) + np.array([[top], [0]])
        for axis in range(2):
            np.minimum.at(self.low[axis], objects[own], place[axis])
            np.maximum.at(self.high[axis], objects[own], place[axis])
        # Moments refer to a pixel nearby, so that the sums stay small.
        new = objects[self.area[objects] == 0]
        self.anchor[:, new] = self.low[:, new]
        self.area[objects] += np.bincount(own, minlength=size)
        r, c = (place - self.anchor[:, objects][:, own]).astype(np.float64)
        for sums, values in zip(self.moments, (r, c, r * r, c * c, r * c), strict=True):
            sums[objects] += np.bincount(own, values, size)
        self.probability[objects] += np.bincount(own, probability_HW[inside], size)
        for channel in range(image_HWC.shape[2]):
            values = image_HWC[:, :, channel][inside].astype(np.float64)
            self.total[channel, objects] += np.bincount(own, values, size)
            np.minimum.at(self.minimum[channel], objects[own], values)
            np.maximum.at(self.maximum[channel], objects[own], values)
        edge, length = outline_lengths(labels)
        objects, own = compact_labels(edge, len(self.area))
        self.perimeter[objects] += np.bincount(own, length, len(objects))

    def table(self) -> dict[str, NDArray]:
        """Return the columns, each (N,): the measurements in px, radians and the image's values."""
        # Central moments, from whole numbers as long as possible.
        n = self.area[1:].astype(np.float64)
        r, c, rr, cc, rc = self.moments[:, 1:]
        row_variance, column_variance = (n * rr - r * r) / n**2, (n * cc - c * c) / n**2
        covariance = (n * rc - r * c) / n**2
        # Axes of the ellipse of the same moments.
        half = np.hypot((row_variance - column_variance) / 2, covariance)
        middle = (row_variance + column_variance) / 2
        long, short = middle + half, np.maximum(middle - half, 0)
        orientation = np.arctan2(2 * covariance, row_variance - column_variance) / 2
        orientation[(row_variance == column_variance) & (covariance <= 0)] = -np.pi / 4
        columns = {
            "label": np.arange(1, len(self.area)),
            "area": self.area[1:],
            "centroid-0": self.anchor[0, 1:] + r / n,
            "centroid-1": self.anchor[1, 1:] + c / n,
            "bbox-0": self.low[0, 1:],
            "bbox-1": self.low[1, 1:],
            "bbox-2": self.high[0, 1:] + 1,
            "bbox-3": self.high[1, 1:] + 1,
            "perimeter": self.perimeter[1:],
            "eccentricity": np.sqrt(1 - short / np.where(long > 0, long, 1)) * (long > 0),
            "orientation": orientation,
        }
        for name, values in (
            ("mean", self.total / np.maximum(self.area, 1)),
            ("min", self.minimum),
            ("max", self.maximum),
        ):
            columns |= {f"intensity_{name}-{k}": row[1:] for k, row in enumerate(values)}
        return columns | {"probability_mean": self.probability[1:] / n}


def convert_to_um(columns: dict[str, NDArray], spacing: tuple[float, float]) -> dict[str, NDArray]:
    """Return columns in um of those in px.

    Args:
        columns: of ``ObjectMeasurements.table``.
        spacing: height and width of a pixel, um. The perimeter is known only if they agree within 0.1 %.
    """
    square = abs(spacing[0] - spacing[1]) <= 1e-3 * max(spacing)
    found = {"area_um2": columns["area"] * (spacing[0] * spacing[1])}
    for name in ("centroid-0", "centroid-1", "bbox-0", "bbox-1", "bbox-2", "bbox-3"):
        found[f"{name}_um"] = columns[name] * spacing[int(name[-1]) % 2]
    found["perimeter_um"] = columns["perimeter"] * (spacing[0] if square else np.nan)
    return found


def compact_labels(labels: NDArray, size: int) -> tuple[NDArray, NDArray]:
    """Return the different labels (M,), which are below ``size``, and the index of each label in them."""
    present = np.zeros(size, bool)
    present[labels] = True
    objects = np.flatnonzero(present)
    index = np.zeros(size, np.int64)
    index[objects] = np.arange(len(objects))
    return objects, index[labels]


def outline_lengths(labels: NDArray) -> tuple[NDArray, NDArray]:
    """Return the label and the length of the outline (K,) of each border pixel, px.

    Args:
        labels: (H + 4, W), with two rows above and below, whose own pixels are left out.
    """
    wide = np.pad(labels, ((0, 0), (2, 2)))
    centre = wide[1:-1, 1:-1]
    border = centre > 0
    border &= (
        (centre != wide[:-2, 1:-1])
        | (centre != wide[2:, 1:-1])
        | (centre != wide[1:-1, :-2])
        | (centre != wide[1:-1, 2:])
    )
    rows, columns = np.nonzero(border[1:-1, 1:-1])
    rows, columns = rows + 1, columns + 1
    own, code = centre[rows, columns], np.ones(len(rows), np.int64)
    for down, right in np.ndindex(3, 3):
        if (down, right) != (1, 1):
            at = rows + down - 1, columns + right - 1
            code += (10 if (down - right) % 2 == 0 else 2) * (border[at] & (centre[at] == own))
    return own, PERIMETER_WEIGHTS[code]
