"""From stored grey values to what a network sees, with the training split's statistics."""

from dataclasses import asdict, dataclass

import numpy as np

FULL_RANGE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


@dataclass(frozen=True)
class Intensity:
    """How grey values become network input; kept in the checkpoint.

    Attributes:
        low: stored value that becomes 0.
        high: stored value that becomes 1; the type's full range, or the training split's for floats.
        mean: of each channel over the training split, after that.
        std: of each channel likewise.
    """

    low: float
    high: float
    mean: list[float]
    std: list[float]

    @classmethod
    def measured(cls, images: list[np.ndarray]) -> "Intensity":
        """From training images (H, W, C) of one type; each pixel counts the same."""
        if images[0].dtype in FULL_RANGE:
            low, high = 0.0, FULL_RANGE[images[0].dtype]
        else:
            low, high = float(min(i.min() for i in images)), float(max(i.max() for i in images))
        scale = high - low or 1.0
        pixels = sum(i.shape[0] * i.shape[1] for i in images)
        scaled = [((i - low) / scale).reshape(-1, i.shape[2]) for i in images]
        mean = sum(s.sum(0, dtype=np.float64) for s in scaled) / pixels
        variance = sum(((s - mean) ** 2).sum(0, dtype=np.float64) for s in scaled) / pixels
        std = np.sqrt(variance)
        return cls(low, high, mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist())

    @property
    def channels(self) -> int:
        """C of the images."""
        return len(self.mean)

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) as stored -> float32 in 0..1 (floats may lie outside)."""
        return ((image.astype(np.float32) - self.low) / (self.high - self.low or 1.0)).astype(
            np.float32
        )

    def normalised(self, scaled: np.ndarray) -> np.ndarray:
        """(H, W, C) in 0..1 -> float32 of mean 0 and standard deviation 1 over the training split."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return ((scaled - mean) / std).astype(np.float32)

    def to_dict(self) -> dict:
        """Plain values, for the checkpoint."""
        return asdict(self)
