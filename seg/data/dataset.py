"""Dataset of a split: read, crop, augment and normalise one sample."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from seg.data.augment import Augment
from seg.data.datasets.base import DataSource, RowReader, object_border, read_objects
from seg.data.image_cache import ImageCache
from seg.data.masks import planes_first, planes_last
from seg.data.normalization import Normalization
from seg.data.sections import JoinedSections, check_same_size, find_sections
from seg.data.value_types import SCAN_ROWS, convert_image, find_conversion
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


class BandedSample:
    """Image of a split that is too large for the network at once, read band by band.

    Args:
        name: of the image.
        reader: of its rows.
        intensity: normalisation of the images.
        row_readers: functions that return rows, from ``start`` to before ``stop``, in the type of the training images:
            of the image, or of each section that the network sees.
    """

    def __init__(
        self,
        name: str,
        reader: RowReader,
        intensity: Normalization,
        row_readers: list[Callable[[int, int], np.ndarray]],
    ) -> None:
        self.name, self.shape, self.dtype = name, reader.shape, reader.dtype
        self.reader, self.intensity, self.row_readers = reader, intensity, row_readers

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows (h, W, C) of the image and its neighbours in the type of the training images."""
        rows = [read(start, stop) for read in self.row_readers]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-1)

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the mask, (h, W) or planes first (K, h, W), uint8."""
        return planes_first(self.reader.mask_rows(start, stop))

    def prepare(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (h, W, C) normalised, float32."""
        return self.intensity.normalised(self.intensity.scaled(rows))


class SegmentationDataset(Dataset):
    """Dataset of a split; an item is indexed by (epoch, index).

    An image larger than ``tile`` is not read: its item has only the name, and ``open_banded`` reads its rows. Of others an item is ``{"image": (C, H, W) float32, "mask": int64, "name": str}``; the mask is (H, W), or (K, H, W)
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
        tile: px, longest side of an image that is read as a whole; None: all are.
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
        tile: int | None = None,
    ) -> None:
        self.read, self.tile = source.read, tile
        self.cache = source if isinstance(source, ImageCache) else ImageCache(source, 0)
        self.large: dict[str, bool] = {}
        self.source = source.source if isinstance(source, ImageCache) else source
        self.sections = find_sections(self.source)
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
        if self.is_large(name):
            return {"name": name}
        image, mask = self.read(name)
        image = self.check_type(image, name)
        if image.shape[2] != self.intensity.image_channels:
            raise DataError(
                f"{name}: {image.shape[2]} channel(s), and the run's images have {self.intensity.image_channels}; all "
                "images of a data set must agree"
            )
        if self.sections:
            image = self.join_sections(name, image)
        layers = [mask] if self.gaps is None else [mask, self.gaps(name, mask)]
        # Crop, augment and normalise them together.
        if self.augment is None:
            scaled = self.intensity.scaled(image[:])
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

    def join_sections(self, name: str, image: np.ndarray) -> JoinedSections:
        """Return an image with the sections around it, of whichever split, as its channels."""
        around = self.section_names(name)
        read = {name: image} | {
            other: self.check_type(self.read(other)[0], other) for other in {*around} - {name}
        }
        check_same_size({one: pixels.shape for one, pixels in read.items()})
        return JoinedSections([read[one] for one in around])

    def section_names(self, name: str) -> list[str]:
        """Return the names of the images whose channels the network sees: the image and those around it."""
        return self.sections.around(name) if self.sections else [name]

    def is_large(self, name: str) -> bool:
        """Return True for an image that is larger than ``tile``."""
        if self.tile is None:
            return False
        if name not in self.large:
            with closing(self.cache.open_rows(name)) as reader:
                self.large[name] = max(reader.shape) > self.tile
        return self.large[name]

    @contextmanager
    def open_banded(self, name: str) -> Generator[BandedSample]:
        """Open a large image, and close it after the block."""
        around = self.section_names(name)
        with ExitStack() as opened:
            readers = {
                one: opened.enter_context(closing(self.cache.open_rows(one)))
                for one in dict.fromkeys([name, *around])
            }
            check_same_size({one: reader.shape for one, reader in readers.items()})
            rows = {one: self.converted_rows(one, reader) for one, reader in readers.items()}
            yield BandedSample(name, readers[name], self.intensity, [rows[one] for one in around])

    def converted_rows(self, name: str, reader: RowReader) -> Callable[[int, int], np.ndarray]:
        """Return the function that reads rows of an image in the type of the training images."""
        height = reader.shape[0]
        starts = range(0, height, SCAN_ROWS)
        bands = (reader.image_rows(start, min(start + SCAN_ROWS, height)) for start in starts)
        if self.convert:
            convert = find_conversion(self.intensity, reader.dtype, bands, name)
        else:
            convert = partial(self.check_type, name=name)
        return lambda start, stop: convert(reader.image_rows(start, stop))

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
