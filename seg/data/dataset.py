"""Dataset of a split: read, crop, augment and normalise one sample."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset

from seg.data.augment import Augment
from seg.data.datasets.base import Source
from seg.data.image_cache import Store
from seg.data.normalization import Intensity
from seg.errors import DataError

KEPT = 2**29  # bytes of weight maps that a process keeps


class GapCache:
    """The weight map's second term of each image, computed once a process; 512 MiB of them are kept.

    Args:
        gaps: mask (H, W) or (K, H, W) -> the term, of that shape.
    """

    def __init__(self, gaps: Callable[[np.ndarray], np.ndarray]) -> None:
        self.gaps, self.kept = gaps, OrderedDict()

    def __call__(self, name: str, mask: np.ndarray) -> np.ndarray:
        """Of the image of that name, whose mask is (H, W) or (H, W, K): float32 of the mask's shape."""
        if name not in self.kept:
            self.kept[name] = planes_last(self.gaps(planes_first(mask)))
            while len(self.kept) > 1 and sum(m.nbytes for m in self.kept.values()) > KEPT:
                self.kept.popitem(last=False)
        return self.kept[name]


class Samples(Dataset):
    """One split as the network sees it; an item is asked for by (epoch, index).

    Args:
        source: where images and masks come from.
        names: the images of the split.
        intensity: how grey values become network input.
        augment: None: whole images as they are.
        repeats: samples that each image gives.
        gaps: the weight map's second term of an image; None: no such map.
    """

    def __init__(
        self,
        source: Source | Store,
        names: list[str],
        intensity: Intensity,
        augment: Augment | None = None,
        repeats: int = 1,
        gaps: GapCache | None = None,
    ) -> None:
        self.read = source.read
        self.source = source.source if isinstance(source, Store) else source
        self.names, self.intensity = names, intensity
        self.array = np.array(names, str)  # workers read it without copying pages, unlike a list
        self.augment, self.repeats = augment, repeats
        self.gaps = gaps

    def __len__(self) -> int:
        return len(self.names) * self.repeats

    def __getitem__(self, index: tuple[int, int]) -> dict:
        epoch, number = index
        name = str(self.array[number % len(self.array)])
        image, mask = self.read(name)
        if image.shape[2] != self.intensity.channels:
            raise DataError(
                f"{name}: {image.shape[2]} channel(s), and the run's images have {self.intensity.channels}; all "
                "images of a data set must agree"
            )
        layers = [mask] if self.gaps is None else [mask, self.gaps(name, mask)]
        if self.augment is None:
            scaled = self.intensity.scaled(image)
        else:
            try:
                scaled, layers = self.augment(image, layers, epoch, number, self.intensity.scaled)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        normal = self.intensity.normalised(scaled).transpose(2, 0, 1)
        mask, *gaps = (planes_first(layer) for layer in layers)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(normal)),
            "mask": torch.from_numpy(mask.astype(np.int64, order="C")),
            "name": name,
        }
        if gaps:
            sample["gaps"] = torch.from_numpy(np.ascontiguousarray(gaps[0]))
        return sample


def planes_first(layer: np.ndarray) -> np.ndarray:
    """(H, W, K) as (K, H, W); (H, W) as it is."""
    return layer if layer.ndim == 2 else layer.transpose(2, 0, 1)


def planes_last(layer: np.ndarray) -> np.ndarray:
    """(K, H, W) as (H, W, K); (H, W) as it is."""
    return layer if layer.ndim == 2 else layer.transpose(1, 2, 0)
