"""Dataset of a split: read, crop, augment and normalise one sample."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset

from seg.data.augment import Augment
from seg.data.datasets.base import DataSource, object_border, read_objects
from seg.data.image_cache import ImageCache
from seg.data.normalization import Normalization
from seg.data.value_types import convert_image
from seg.errors import DataError

WEIGHT_MAP_BYTES = 2**29  # bytes of weight maps that a process keeps


class WeightMapCache:
    """Second term of each image's weight map, computed once per process; 512 MiB of them are kept.

    Args:
        gaps: function of a mask (H, W) or (K, H, W), and of the labels (H, W) of its objects or None, that returns the
            term in the mask's shape.
        source: whose files may number the objects.
    """

    def __init__(
        self, gaps: Callable[[np.ndarray, np.ndarray | None], np.ndarray], source: DataSource
    ) -> None:
        self.gaps, self.source, self.kept, self.size = gaps, source, {}, 0

    def __call__(self, name: str, mask: np.ndarray) -> np.ndarray:
        """Return the term of the image ``name`` with its mask (H, W) or (H, W, K), float32 in that shape."""
        if name not in self.kept:
            separate = object_border(self.source).separate
            objects = read_objects(self.source, name) if separate else None
            self.kept[name] = planes_last(self.gaps(planes_first(mask), objects))
            self.size += self.kept[name].nbytes
            while len(self.kept) > 1 and self.size > WEIGHT_MAP_BYTES:
                self.size -= self.kept.pop(next(iter(self.kept))).nbytes  # the oldest
        return self.kept[name]


class SegmentationDataset(Dataset):
    """Dataset of a split; an item is indexed by (epoch, index).

    An item is ``{"image": (C, H, W) float32, "mask": int64, "name": str}``; the mask is (H, W), or (K, H, W)
    where classes overlap. With ``gaps`` there is ``"gaps"``, float32 in the mask's shape.

    Args:
        source: reads images and masks.
        names: images of the split.
        intensity: normalisation of the images.
        augment: crop and transforms; None: whole, unchanged images.
        repeats: samples per image in an epoch.
        gaps: second term of the weight map; None: there is no weight map.
        convert: whether images of another type than the training images are converted where that is certain,
            instead of refused.
    """

    def __init__(
        self,
        source: DataSource | ImageCache,
        names: list[str],
        intensity: Normalization,
        augment: Augment | None = None,
        repeats: int = 1,
        gaps: WeightMapCache | None = None,
        convert: bool = False,
    ) -> None:
        self.read = source.read
        self.source = source.source if isinstance(source, ImageCache) else source
        self.names, self.intensity = names, intensity
        self.array = np.array(names, str)  # workers read it without copying pages, unlike a list
        self.augment, self.repeats = augment, repeats
        self.gaps, self.convert = gaps, convert

    def __len__(self) -> int:
        return len(self.names) * self.repeats

    def __getitem__(self, index: tuple[int, int]) -> dict:
        # Read the image and its mask.
        epoch, number = index
        name = str(self.array[number % len(self.array)])
        image, mask = self.read(name)
        image = self.check_type(image, name)
        if image.shape[2] != self.intensity.channels:
            raise DataError(
                f"{name}: {image.shape[2]} channel(s), and the run's images have {self.intensity.channels}; all "
                "images of a data set must agree"
            )
        layers = [mask] if self.gaps is None else [mask, self.gaps(name, mask)]
        # Crop, augment and normalise them together.
        if self.augment is None:
            scaled = self.intensity.scaled(image)
        else:
            try:
                scaled, layers = self.augment(image, layers, epoch, number, self.intensity.scaled)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        normal = self.intensity.normalised(scaled).transpose(2, 0, 1)
        # Convert them to tensors, channels first.
        mask, *gaps = (planes_first(layer) for layer in layers)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(normal)),
            "mask": torch.from_numpy(mask.astype(np.int64, order="C")),
            "name": name,
        }
        if gaps:
            sample["gaps"] = torch.from_numpy(np.ascontiguousarray(gaps[0]))
        return sample

    def check_type(self, image: np.ndarray, name: str) -> np.ndarray:
        """Return an image in the type of the training images.

        Raises:
            DataError: if it has another type, and ``convert`` is off or its values leave a doubt.
        """
        if self.convert:
            return convert_image(self.intensity, image, name)
        trained = self.intensity.stored_type
        if trained is not None and image.dtype != trained:
            raise DataError(
                f"{name}: {image.dtype} values, but the images that were read before are {trained}; all images "
                "of a data set must agree: convert it, or take it out"
            )
        return image


def planes_first(layer: np.ndarray) -> np.ndarray:
    """Return (H, W, K) as (K, H, W), and (H, W) unchanged."""
    return layer if layer.ndim == 2 else layer.transpose(2, 0, 1)


def planes_last(layer: np.ndarray) -> np.ndarray:
    """Return (K, H, W) as (H, W, K), and (H, W) unchanged."""
    return layer if layer.ndim == 2 else layer.transpose(1, 2, 0)
