"""Normalisation of grey values with the training split's statistics.

Legend: V = values of an integer type; C = channels; N = pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import ConfigDict

from seg.data.nodata import nodata_pixels

FULL_RANGE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
PERCENTILE_PIXELS = 2**16  # pixels of an image of floats from which percentiles are computed
VALUES_PER_BLOCK = 2**22  # values that are processed together


@dataclass(frozen=True)
class Normalization:
    """Normalisation of an image; stored in the checkpoint.

    Attributes:
        low: stored value that becomes 0.
        high: stored value that becomes 1; the type's full range, or the training split's for floats.
        mean: mean of each channel over the training split, after scaling.
        std: standard deviation of each channel over the training split, after scaling.
        clip: whether values below ``low`` become 0 and values above ``high`` become 1.
        dtype: type of the training images, uint8, uint16 or float32; None: unknown, as in older checkpoints.
        value_range: smallest and largest stored value of the training split; None: unknown.
        nodata: stored values that mean no data, which become the mean; the first is the one that images of
            integers have. None: there is none.
        keeps_nodata: whether values without data become NaN instead, for a network that normalises its input.
        neighbours: sections on each side of the image whose channels come before and after its own; each section has
            the same mean and standard deviation.
    """

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")  # nodata may be NaN

    low: float
    high: float
    mean: list[float]
    std: list[float]
    clip: bool = False
    dtype: str | None = None
    value_range: list[float] | None = None
    nodata: list[float] | None = None
    keeps_nodata: bool = False
    neighbours: int = 0

    @property
    def channels(self) -> int:
        """Number of channels of the network's input."""
        return len(self.mean)

    @property
    def image_channels(self) -> int:
        """Number of channels of one image, without its neighbours."""
        return self.channels // (2 * self.neighbours + 1)

    @property
    def own_channels(self) -> slice:
        """Channels of the image itself, in the middle of its neighbours'."""
        first = self.neighbours * self.image_channels
        return slice(first, first + self.image_channels)

    def with_neighbours(self, neighbours: int) -> "Normalization":
        """Return the normalisation of images with the channels of their neighbours, which have the same statistics."""
        sections = 2 * neighbours + 1
        return replace(
            self, mean=self.mean * sections, std=self.std * sections, neighbours=neighbours
        )

    @property
    def stored_type(self) -> np.dtype | None:
        """Type of the training images; in older checkpoints that of the range, if it is the whole range of a type."""
        if self.dtype is not None:
            return np.dtype(self.dtype)
        whole = None if self.clip or self.low != 0 else self.high
        return next((dtype for dtype, high in FULL_RANGE.items() if high == whole), None)

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """Scale stored values (H, W, C) to float32 in 0..1; without ``clip`` floats may lie outside."""
        lost = self.find_nodata(image)
        result = image.astype(np.float32)
        result -= np.float32(self.low)
        result /= np.float32(self.high - self.low or 1.0)
        result = result.clip(0, 1, out=result) if self.clip else result
        if lost is None:
            return result
        return np.where(
            lost, np.array([np.nan] if self.keeps_nodata else self.mean, np.float32), result
        )

    def find_nodata(self, image: np.ndarray) -> np.ndarray | None:
        """Return where values (..., C) have no data, broadcastable bool; None: nowhere."""
        if image.dtype.kind == "f":
            lost = np.isnan(image)
            return lost if lost.any() else None
        if not self.nodata:
            return None
        # Integers: a section has no data where all of its channels have the value
        channels = self.image_channels
        sections = image.reshape(*image.shape[:-1], -1, channels)
        lost = nodata_pixels(sections, self.nodata)
        return None if lost is None else np.repeat(lost, channels, axis=-1)

    def normalised(self, scaled: np.ndarray) -> np.ndarray:
        """Normalise (H, W, C) in 0..1 to float32 of mean 0 and standard deviation 1 over the training split."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return ((scaled - mean) / std).astype(np.float32)

    def to_dict(self) -> dict:
        """Return plain values for the checkpoint."""
        plain = asdict(self)
        del plain["keeps_nodata"]
        return plain


class IntensityStatistics:
    """Statistics over images that are added one by one; no image is kept.

    Integers are counted value by value, so their statistics are exact. With percentiles the statistics of
    floats come from evenly spaced pixels of each image.

    Args:
        percentiles: two in 0..100 that become 0 and 1, values beyond being clipped; None: the type's range,
            or the smallest and the largest float.
    """

    def __init__(self, percentiles: tuple[float, float] | None) -> None:
        self.percentiles = percentiles
        self.counts_VC: np.ndarray | None = None  # integers: how often each value occurs
        self.pixels_C = np.zeros(1)  # floats: number, mean and sum of squares about the mean
        self.mean_C, self.squares_C = np.zeros(1), np.zeros(1)
        self.low, self.high = np.inf, -np.inf
        self.samples: list[np.ndarray] = []
        self.nodata: list[float] = []

    def add(self, image: np.ndarray, nodata: Sequence[float] = ()) -> None:
        """Add an image (H, W, C), without its values that mean no data."""
        # Collect the no-data values; NaN differs from itself, so it is compared apart
        self.nodata += [
            v for v in nodata if not any(v == w or (v != v and w != w) for w in self.nodata)
        ]
        # Go through blocks of rows, to bound the memory of the float64 copies
        rows = max(1, VALUES_PER_BLOCK // max(1, image.shape[1] * image.shape[2]))
        for start in range(0, len(image), rows):
            block = image[start : start + rows].reshape(-1, image.shape[2])
            if block.dtype not in FULL_RANGE:
                self.sum(block)
            elif (lost := nodata_pixels(block, nodata)) is None:
                self.count(block)
            else:
                self.count(block[~lost])
        # For the percentiles of floats, sample pixels at a fixed interval
        if image.dtype not in FULL_RANGE and self.percentiles is not None:
            flat = image.reshape(-1, image.shape[2])
            self.samples.append(flat[:: -(-len(flat) // PERCENTILE_PIXELS)].copy())

    def count(self, block: np.ndarray) -> None:
        """Add integers (N, C)."""
        values = int(FULL_RANGE[block.dtype]) + 1
        counts = np.stack([np.bincount(channel, minlength=values) for channel in block.T], axis=1)
        self.counts_VC = counts if self.counts_VC is None else self.counts_VC + counts

    def sum(self, block: np.ndarray) -> None:
        """Add floats (N, C) by the pairwise update of Chan, Golub and LeVeque 1983."""
        # Count, mean and sum of squared deviations of this block, per channel, without NaN
        lost = np.isnan(block)
        if lost.all():
            return
        if lost.any():
            added = (~lost).sum(0)  # of each channel
            filled = np.where(lost, 0, block)
            mean = filled.sum(0, dtype=np.float64) / added.clip(1)
            squares = (np.where(lost, 0, block - mean) ** 2).sum(0, dtype=np.float64)
        else:
            added = np.full(block.shape[1], len(block))
            mean = block.mean(0, dtype=np.float64)
            squares = ((block - mean) ** 2).sum(0, dtype=np.float64)
        self.low, self.high = min(self.low, np.nanmin(block)), max(self.high, np.nanmax(block))
        # Combine with the earlier blocks (Chan et al. 1979), stable unlike sums of squares
        pixels = self.pixels_C + added
        shift = mean - self.mean_C
        self.squares_C = (
            self.squares_C + squares + shift**2 * self.pixels_C * added / pixels.clip(1)
        )
        self.mean_C = self.mean_C + shift * added / pixels.clip(1)
        self.pixels_C = pixels

    @property
    def is_empty(self) -> bool:
        """True if no value with data was added."""
        return self.low > self.high if self.counts_VC is None else not self.counts_VC.any()

    def intensity(self) -> Normalization:
        """Return the normalisation by the images added so far."""
        dtype, extremes = np.dtype(np.float32), [float(self.low), float(self.high)]
        # Integers: from the counts of their values.
        if self.counts_VC is not None:
            values_V, weights_VC = np.arange(len(self.counts_VC), dtype=np.float64), self.counts_VC
            found = values_V[weights_VC.any(1)]
            dtype = next(d for d, top in FULL_RANGE.items() if top == values_V[-1])
            extremes = [float(found[0]), float(found[-1])]
            low, high = 0.0, float(len(values_V) - 1)
            if self.percentiles is not None:
                low, high = counted_percentiles(weights_VC.sum(1), self.percentiles)
            scaled_VC = self.rescale(values_V, low, high)[:, None]
            mean = (weights_VC * scaled_VC).sum(0) / weights_VC.sum(0)
            variance = (weights_VC * (scaled_VC - mean) ** 2).sum(0) / weights_VC.sum(0)
        # Floats with percentiles: from the sampled pixels.
        elif self.percentiles is not None:
            values_NC = np.concatenate(self.samples).astype(np.float64)
            low, high = np.nanpercentile(values_NC, self.percentiles).tolist()
            scaled_NC = self.rescale(values_NC, low, high)
            mean, variance = np.nanmean(scaled_NC, 0), np.nanvar(scaled_NC, 0)
        # Floats: from the running mean and sum of squares.
        else:
            low, high = float(self.low), float(self.high)
            scale = high - low or 1.0
            mean = (self.mean_C - low) / scale
            variance = self.squares_C / self.pixels_C.clip(1) / scale**2
        # A constant channel has no deviation: divide by 1
        std = np.sqrt(variance)
        std = np.where(std > 1e-6, std, 1.0)
        clip = self.percentiles is not None
        return Normalization(
            low, high, mean.tolist(), std.tolist(), clip, dtype.name, extremes, self.nodata or None
        )

    def rescale(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """Scale stored values so that ``low`` becomes 0 and ``high`` 1; clip them if there are percentiles."""
        shares = (values - low) / (high - low or 1.0)
        return shares if self.percentiles is None else shares.clip(0, 1)


def counted_percentiles(counts: np.ndarray, percentiles: tuple[float, float]) -> list[float]:
    """Return, for each percentile, the smallest value with at least that share of all counts at or below it.

    Args:
        counts: how often each value occurs, (V,).
        percentiles: in 0..100; 0 gives the smallest value that occurs.
    """
    cumulative = np.cumsum(counts) / counts.sum()
    shares = [max(p / 100 - 1e-12, np.finfo(float).tiny) for p in percentiles]
    return [float(value) for value in np.searchsorted(cumulative, shares)]
