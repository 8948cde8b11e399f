"""Features of an image's values, and the distance of an image from others by them. Without PyTorch.

Shape suffixes: N images, F features, S strips, H x W pixels, C channels.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        shift: of each channel, stored value that becomes 0.
        scale: of each channel, stored values that become 1.
    """

    def __init__(
        self, height: int, width: int, shift: ArrayLike = 0.0, scale: ArrayLike = 1.0
    ) -> None:
        self.height, self.period = height, STRIP * max(1, -(-height * width // PIXELS))
        self.shift, self.scale = np.asarray(shift, np.float32), np.asarray(scale, np.float32)
        self.strips: dict[int, list[NDArray]] = {}
        self.sums: dict[str, list[NDArray]] = {}  # parts (C, S)
        self.levels: NDArray | int = 0

    def spans(self) -> list[tuple[int, int]]:
        """Return the strips that are measured: first row, and the row after the last."""
        return [(top, min(top + STRIP, self.height)) for top in range(0, self.height, self.period)]

    def add(self, top: int, rows_HWC: NDArray, lost_HW: NDArray | None = None) -> None:
        """Add rows.

        Args:
            top: the first row.
            rows_HWC: as stored; nan is no data.
            lost_HW: whether a pixel has no data; None: all have.
        """
        bottom = top + len(rows_HWC)
        first = top // self.period * self.period
        finished: list[NDArray] = []
        for start in range(first, bottom, self.period):
            stop = min(start + STRIP, self.height)
            rows = slice(max(start - top, 0), max(stop - top, 0))
            if rows.start >= min(rows.stop, len(rows_HWC)):
                continue
            parts = self.strips.setdefault(start, [])
            parts.append(self.values(rows_HWC[rows], None if lost_HW is None else lost_HW[rows]))
            if bottom >= stop:
                parts = self.strips.pop(start)
                finished.append(parts[0] if len(parts) == 1 else np.concatenate(parts, 1))
        # Strips of one height are measured together; the last one may be lower
        for height in sorted({strip.shape[1] for strip in finished}, reverse=True):
            self.measure(np.stack([strip for strip in finished if strip.shape[1] == height], 1))

    def values(self, rows_HWC: NDArray, lost_HW: NDArray | None) -> NDArray[np.float32]:
        """Return the normalised values of the measured channels, (C, h, W); nan is no data."""
        chosen = choose_channels(rows_HWC.shape[2])
        shift, scale = (np.broadcast_to(v, rows_HWC.shape[2:])[chosen, None, None] for v in (self.shift, self.scale))  # fmt: skip
        values_CHW = np.ascontiguousarray(rows_HWC.transpose(2, 0, 1)[chosen], np.float32)
        values_CHW -= shift
        values_CHW /= scale
        if lost_HW is not None and lost_HW.any():
            values_CHW[:, lost_HW] = np.nan
        return values_CHW

    def measure(self, strips_CSHW: NDArray[np.float32]) -> None:
        """Add the sums of strips; each is summed on its own, so that the bands make no difference."""
        flat_CSN = strips_CSHW.reshape(*strips_CSHW.shape[:2], -1)
        wide_CSN = flat_CSN.astype(np.float64)
        level_CSN = ((flat_CSN[..., ::THIN] + SPAN) * (LEVELS / (2 * SPAN))).clip(0, LEVELS - 1)
        total_CS, pixels_CS = wide_CSN.sum(2), np.full(wide_CSN.shape[:2], wide_CSN.shape[2])
        if np.isnan(total_CS).any():
            known_CSN = ~np.isnan(wide_CSN)
            wide_CSN = np.where(known_CSN, wide_CSN, 0)
            level_CSN = np.where(known_CSN[..., ::THIN], level_CSN, LEVELS)
            total_CS, pixels_CS = wide_CSN.sum(2), count_each(known_CSN)
        self.add_sums("pixels", pixels_CS)
        self.add_sums("values", total_CS)
        self.add_sums("squares", np.einsum("csn,csn->cs", wide_CSN, wide_CSN))
        levels = [
            np.bincount(one.ravel(), minlength=LEVELS + 1)[:-1] for one in level_CSN.astype(np.intp)
        ]
        self.levels = self.levels + np.stack(levels)
        self.add_blocks(strips_CSHW)
        for lag in LAGS:
            down = strips_CSHW[:, :, lag:] - strips_CSHW[:, :, :-lag]
            right = strips_CSHW[..., lag:] - strips_CSHW[..., :-lag]
            if lag == 1:
                self.add_sizes("noise", np.diff(down[:, :, 1:] - down[:, :, :-1], 2))
            self.add_sizes(f"step {lag}", down)
            self.add_sizes(f"step {lag}", right)
            if lag == 1:
                self.add_sums("flat", count_each(right < FLAT))  # right is absolute by now

    def add_blocks(self, strips_CSHW: NDArray) -> None:
        """Add the means of square blocks, without those that lack data."""
        height, width = strips_CSHW.shape[2:]
        side = min(STRIP, height, width)
        columns = strips_CSHW[:, :, :side, : width // side * side].sum(2)
        means_CSB = (
            columns.reshape(*columns.shape[:2], -1, side).sum(3).astype(np.float64) / side**2
        )
        known_SB = ~np.isnan(means_CSB).any(0)
        means_CSB = np.where(known_SB, means_CSB, 0)
        self.add_sums("blocks", np.broadcast_to(known_SB.sum(1), means_CSB.shape[:2]))
        self.add_sums("block means", means_CSB.sum(2))
        self.add_sums("block squares", np.square(means_CSB).sum(2))

    def add_sums(self, name: str, sums_CS: NDArray) -> None:
        """Keep the sums of strips, which ``total`` adds in the order of the strips."""
        self.sums.setdefault(name, []).append(sums_CS)

    def add_sizes(self, name: str, values_CSHW: NDArray) -> None:
        """Make values absolute, and add them and their number, without nan."""
        sizes_CSN = np.abs(values_CSHW, out=values_CSHW).reshape(
            *values_CSHW.shape[:2], math.prod(values_CSHW.shape[2:])
        )
        total_CS = sizes_CSN.sum(2)
        pixels_CS = np.full(total_CS.shape, sizes_CSN.shape[2])
        if np.isnan(total_CS).any():
            total_CS, pixels_CS = np.nansum(sizes_CSN, 2), count_each(~np.isnan(sizes_CSN))
        self.add_sums(f"{name} size", total_CS)
        self.add_sums(f"{name} pixels", pixels_CS)

    def total(self, name: str) -> NDArray[np.float64]:
        """Return a sum over all strips, (C,), which does not depend on the bands."""
        return np.concatenate(self.sums[name], 1).sum(1, dtype=np.float64)

    def compute(self) -> NDArray | None:
        """Return the features, (F,) with those of each channel in the order of ``NAMES``; None without any data."""
        if not self.sums or not (pixels := self.total("pixels")).all():
            return None
        mean = self.total("values") / pixels
        variance = (self.total("squares") / pixels - mean**2).clip(0)
        rows = [mean, np.log(np.sqrt(variance) + TINY)]
        levels = np.asarray(self.levels)
        shares = levels.cumsum(1) / levels.sum(1, keepdims=True).clip(1)
        rows += [((shares < q).sum(1) + 0.5) * (2 * SPAN / LEVELS) - SPAN for q in QUANTILES]
        for name in (*(f"step {lag}" for lag in LAGS), "noise"):
            number = np.maximum(self.total(f"{name} pixels"), 1)
            rows.append(np.log(self.total(f"{name} size") / number + TINY))
        rows.append(np.log(self.total("flat") / pixels + FLAT))
        number = np.maximum(self.total("blocks"), 1)
        variance = self.total("block squares") / number - (self.total("block means") / number) ** 2
        rows.append(np.log(np.sqrt(variance.clip(0)) + TINY))
        return np.stack(rows, 1).ravel()


def count_each(found_CS: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the number of true values of each strip, (C, S)."""
    return np.array([[np.count_nonzero(strip) for strip in channel] for channel in found_CS])


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
