"""The DataModule: checks and measures a source, then loads it as batches.

A batch is ``{"image": (B, C, H, W) float32, "mask": (B, H, W) int64, "name": list of B}``.
"""

from collections.abc import Iterator

import albumentations as A
import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from seg.data.augment import Augment
from seg.data.intensity import Intensity
from seg.data.sources import DataError, Source

SURVEY = (
    1000  # images of a split that are read before the run starts; the rest is checked when read
)


class Samples(Dataset):
    """One split as the network sees it; an item is asked for by (epoch, index).

    Args:
        source: where images and masks come from.
        names: the images of the split.
        intensity: how grey values become network input.
        augment: None: whole images as they are.
        repeats: samples that each image gives.
    """

    def __init__(
        self,
        source: Source,
        names: list[str],
        intensity: Intensity,
        augment: Augment | None = None,
        repeats: int = 1,
    ) -> None:
        self.source, self.names, self.intensity = source, names, intensity
        self.augment, self.repeats = augment, repeats

    def __len__(self) -> int:
        return len(self.names) * self.repeats

    def __getitem__(self, index: tuple[int, int]) -> dict:
        epoch, number = index
        name = self.names[number % len(self.names)]
        image, mask = self.source.read(name)
        scaled = self.intensity.scaled(image)
        if self.augment is not None:
            scaled, mask = self.augment(scaled, mask, epoch, number)
        normal = self.intensity.normalised(scaled).transpose(2, 0, 1)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(normal)),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "name": name,
        }


class EpochSampler(Sampler):
    """Order of the samples as a pure function of (seed, epoch); each process takes every world-th one.

    Lightning calls ``set_epoch``. Yields (epoch, index), so that a sample knows its epoch in any worker.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
            order = np.resize(order, -(-self.size // self.world) * self.world)  # equal shares
        yield from ((self.epoch, int(i)) for i in order[self.rank :: self.world])

    def __len__(self) -> int:
        own = self.size - self.rank
        return -(-(self.size if self.shuffle else own) // self.world)


class DataModule(L.LightningDataModule):
    """Loaders of a source's splits.

    Args:
        source: the data set.
        augment: transforms of the training samples, after the crop.
        seed: of the run.
        batch_size: samples a step, of all processes together.
        crop: px, side of the training crop; None: whole images.
        repeats: samples that each training image gives in an epoch.
        eval_batch_size: images a step in validation and test.
        workers: loader processes; 0 loads in the process itself.
        intensity: of the run whose network this data is for; None: measured on the training split.

    Raises:
        DataError: from the constructor, naming the first file found wrong.
    """

    def __init__(
        self,
        source: Source,
        augment: A.Compose | None = None,
        seed: int = 0,
        batch_size: int = 4,
        crop: int | None = 256,
        repeats: int = 4,
        eval_batch_size: int = 1,
        workers: int = 0,
        intensity: Intensity | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("repeats", repeats),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if workers < 0 or (crop is not None and crop < 1):
            raise ValueError(
                f"workers is {workers} and crop {crop}; workers must be 0 or more, crop 1 or more"
            )
        self.source, self.seed, self.workers = source, seed, workers
        self.batch_size, self.crop, self.repeats = batch_size, crop, repeats
        self.eval_batch_size = eval_batch_size
        self.transforms = augment or A.Compose([])
        self.augment = Augment(self.transforms, crop, seed)
        measured = survey(source, intensity)
        self.intensity, self.sizes = intensity or measured[0], measured[1]
        self.check_batches()

    def check_batches(self) -> None:
        """Raises DataError when images of several sizes would have to share a batch."""
        whole = {split: self.eval_batch_size for split in self.sizes}
        if "train" in whole:
            whole["train"] = self.batch_size if self.crop is None else 1
        for split, size in whole.items():
            if size > 1 and len(self.sizes[split]) > 1:
                option = "loader.crop=null" if split == "train" else "eval_batch_size"
                raise DataError(
                    f"the {split} images have {len(self.sizes[split])} sizes and can't share a batch of "
                    f"{size} whole; change {option}, or take batches of 1"
                )

    def widen(self, crop: int, context: int) -> None:
        """Training crops of ``crop`` px that may reach ``context`` px, mirrored, beyond the border."""
        self.augment = Augment(self.transforms, crop, self.seed, context)

    def samples(self, split: str) -> Samples:
        """A split's images, whole and as they are."""
        return Samples(self.source, self.source.splits[split], self.intensity)

    def train_dataloader(self) -> DataLoader:
        names = self.source.splits["train"]
        samples = Samples(self.source, names, self.intensity, self.augment, self.repeats)
        return self.loader(samples, self.batch_size // self.world or 1, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.samples("val"), self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self.loader(self.samples("test"), self.eval_batch_size, shuffle=False)

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def loader(self, samples: Samples, batch_size: int, shuffle: bool) -> DataLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        if len(samples) < self.world:
            raise DataError(
                f"{len(samples)} images for {self.world} processes ({samples.names[0]} ...): each needs "
                "one; take fewer devices"
            )
        return DataLoader(
            samples,
            batch_size=batch_size,
            sampler=EpochSampler(len(samples), self.seed, shuffle, rank, self.world),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def survey(source: Source, intensity: Intensity | None) -> tuple[Intensity, dict[str, set]]:
    """Reads up to 1000 images of each split: grey value statistics, and sizes (H, W) by split.

    Raises:
        DataError: for the first file that can't be used, or when channels or types differ.
    """
    for split, names in source.splits.items():
        if not names:
            raise DataError(f"the {split} split has no images: {type(source).__name__} found none")
    sizes, images, first = {}, [], None
    for split, names in source.splits.items():
        sizes[split] = set()
        for name in names[:: -(-len(names) // SURVEY)]:
            image, _ = source.read(name)
            first = first or (name, image.shape[2], image.dtype)
            if (image.shape[2], image.dtype) != first[1:]:
                raise DataError(
                    f"{name}: {image.shape[2]} channels of {image.dtype}, but {first[0]} has {first[1]} "
                    f"of {first[2]}; all images of a data set must agree"
                )
            sizes[split].add(image.shape[:2])
            if split == "train" and intensity is None:
                images.append(image)
    if intensity is not None and first and first[1] != intensity.channels:
        raise DataError(
            f"{first[0]}: {first[1]} channels; the run was trained on {intensity.channels}"
        )
    return intensity or Intensity.measured(images), sizes
