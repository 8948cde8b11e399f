"""Features of an image's values, and the distance of an image from others by them. Without PyTorch.

Shape suffixes: N images, F features, H x W pixels, C channels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STRIP = 32  # rows that are measured together
PIXELS = 2**18  # of an image that are measured, in strips evenly spaced from top to bottom
MAX_CHANNELS = 4  # that are measured, evenly spaced
LAGS = (1, 2, 4)  # px between compared pixels
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THIN = 3  # every third pixel counts for quantiles
SPAN, LEVELS = 8.0, 2048  # quantiles are read from a histogram of -SPAN to SPAN
FLAT = 0.01  # step below which neighbours are equal; also added to their share before its logarithm
TINY = 1e-3  # of values of standard deviation 1, added before a logarithm
LEAST_SPREAD = 0.05  # added to the standard deviation of a feature, in standard deviations of values or e-folds
MARGIN = 1.2  # by which the limit exceeds the deviation of 95 % of the images
NAMES = ["mean", "log_sd", *(f"quantile_{q:g}" for q in QUANTILES), *(f"log_step_{lag}" for lag in LAGS), "log_noise", "log_flat", "log_block_sd"]  # fmt: skip


class ImageFeatures:
    """Features of one image, whose rows are added from top to bottom, in bands of any height.

    Of each of at most ``MAX_CHANNELS`` channels: mean, log of the standard deviation, quantiles, the log of the mean
    absolute difference of pixels that are 1, 2 and 4 px apart, that of a Laplacian which only noise and the finest
    structures pass (Immerkaer, Fast noise variance estimation, CVIU 1996), the share of equal neighbours, and the standard
    deviation of the means of blocks. They do not depend on the bands.

    Args:
        height: px.
        width: px.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.period = height, STRIP * max(1, -(-height * width // PIXELS))
        self.strips: dict[int, list[NDArray]] = {}
        self.sums: dict[str, NDArray] = {}

    def spans(self) -> list[tuple[int, int]]:
        """Return the strips that are measured: first row, and the row after the last."""
        return [(top, min(top + STRIP, self.height)) for top in range(0, self.height, self.period)]

    def add(self, top: int, rows_HWC: NDArray) -> None:
        """Add rows, the first of which is row ``top`` of the image; nan is no data."""
        bottom = top + len(rows_HWC)
        chosen = choose_channels(rows_HWC.shape[2])
        first = top // self.period * self.period
        for start in range(first, bottom, self.period):
            stop = min(start + STRIP, self.height)
            part = rows_HWC[max(start - top, 0) : max(stop - top, 0)]
            if not len(part):
                continue
            parts = self.strips.setdefault(start, [])
            parts.append(np.ascontiguousarray(part[..., chosen], np.float32))
            if bottom >= stop:
                self.measure(np.concatenate(self.strips.pop(start)))

    def measure(self, strip_HWC: NDArray) -> None:
        """Add the sums of a strip."""
        flat = strip_HWC.reshape(-1, strip_HWC.shape[2])
        known = ~np.isnan(flat)
        values = np.where(known, flat, 0)
        self.sum("pixels", known.sum(0))
        self.sum("values", values.sum(0, dtype=np.float64))
        self.sum("squares", np.square(values, dtype=np.float64).sum(0))
        thin, thin_known = values[::THIN], known[::THIN]
        level = ((thin + SPAN) * (LEVELS / (2 * SPAN))).clip(0, LEVELS - 1).astype(np.intp)
        level[~thin_known] = LEVELS
        counts = [np.bincount(one, minlength=LEVELS + 1)[:-1] for one in level.T]
        self.sum("levels", np.stack(counts))
        self.sum_blocks(strip_HWC)
        flat_steps = np.abs(strip_HWC[:, 1:] - strip_HWC[:, :-1]) < FLAT
        self.sum("flat", flat_steps.sum((0, 1)))
        for lag in LAGS:
            down, right = strip_HWC[lag:] - strip_HWC[:-lag], strip_HWC[:, lag:] - strip_HWC[:, :-lag]  # fmt: skip
            self.sum_size(f"step {lag}", down)
            self.sum_size(f"step {lag}", right)
        if min(strip_HWC.shape[:2]) > 2:
            rows = strip_HWC[2:] - 2 * strip_HWC[1:-1] + strip_HWC[:-2]
            self.sum_size("noise", rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2])

    def sum_blocks(self, strip_HWC: NDArray) -> None:
        """Add the means of square blocks, without those that lack data."""
        height, width, channels = strip_HWC.shape
        side = min(STRIP, height, width)
        blocks = strip_HWC[:side, : width // side * side].reshape(side, -1, side, channels)
        means = blocks.mean(0).mean(1).astype(np.float64)
        means = means[~np.isnan(means).any(1)]
        self.sum("blocks", len(means) * np.ones(channels))
        self.sum("block means", means.sum(0))
        self.sum("block squares", np.square(means).sum(0))

    def sum(self, name: str, values: NDArray) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0) + values

    def sum_size(self, name: str, values_HWC: NDArray) -> None:
        """Add the absolute values and their number, without nan."""
        size = np.abs(values_HWC).reshape(-1, values_HWC.shape[2])
        total, pixels = size.sum(0), np.full(size.shape[1], len(size))
        if np.isnan(total).any():
            total, pixels = np.nansum(size, 0), (~np.isnan(size)).sum(0)
        self.sum(f"{name} size", total.astype(np.float64))
        self.sum(f"{name} pixels", pixels)

    def compute(self) -> NDArray | None:
        """Return the features, (F,) with those of each channel in the order of ``NAMES``; None without any data."""
        pixels = self.sums.get("pixels")
        if pixels is None or not pixels.all():
            return None
        mean = self.sums["values"] / pixels
        variance = (self.sums["squares"] / pixels - mean**2).clip(0)
        rows = [mean, np.log(np.sqrt(variance) + TINY)]
        levels = self.sums["levels"]
        shares = levels.cumsum(1) / levels.sum(1, keepdims=True).clip(1)
        rows += [((shares < q).sum(1) + 0.5) * (2 * SPAN / LEVELS) - SPAN for q in QUANTILES]
        for name in (*(f"step {lag}" for lag in LAGS), "noise"):
            size = self.sums.get(f"{name} size", np.zeros_like(mean))
            number = self.sums.get(f"{name} pixels", np.zeros_like(mean))
            rows.append(np.log(size / np.maximum(number, 1) + TINY))
        rows.append(np.log(self.sums["flat"] / pixels + FLAT))
        number = np.maximum(self.sums["blocks"], 1)
        variance = self.sums["block squares"] / number - (self.sums["block means"] / number) ** 2
        rows.append(np.log(np.sqrt(variance.clip(0)) + TINY))
        return np.stack(rows, 1).ravel()


def choose_channels(channels: int) -> list[int]:
    """Return the channels that are measured."""
    wanted = min(channels, MAX_CHANNELS)
    return [round(i) for i in np.linspace(0, channels - 1, wanted)]


class ReferenceImages(NamedTuple):
    """Features of the images that a network knows.

    Attributes:
        center: mean of each feature, (F,).
        spread: standard deviation of each, plus ``LEAST_SPREAD``, (F,).
        limit: largest deviation, in spreads, of an image that is like these.
    """

    center: NDArray
    spread: NDArray
    limit: float

    def deviations(self, features_NF: NDArray) -> NDArray:
        """Return the deviation of each feature from the known images, (N, F); above 1 is far."""
        return np.abs(features_NF - self.center) / self.spread / self.limit


def fit_reference(features_NF: NDArray) -> tuple[ReferenceImages, NDArray]:
    """Return the reference that images give, and the distance of each of them from the others, (N,).

    The limit is the largest deviation of any image from the others, or that of 95 % of them with a margin.

    Args:
        features_NF: of three images or more.
    """
    number, center = len(features_NF), features_NF.mean(0)
    offset_NF = features_NF - center
    squares = np.square(offset_NF).sum(0)
    # Mean and variance without each image in turn
    mean_NF = -offset_NF / (number - 1)
    variance_NF = ((squares - offset_NF**2) / (number - 1) - mean_NF**2).clip(0)
    deviation_NF = np.abs(offset_NF - mean_NF) / (np.sqrt(variance_NF) + LEAST_SPREAD)
    largest_N = deviation_NF.max(1)
    limit = max(MARGIN * float(np.quantile(largest_N, 0.95)), float(largest_N.max()), 1.0)
    spread = np.sqrt(squares / number) + LEAST_SPREAD
    return ReferenceImages(center, spread, limit), largest_N / limit
