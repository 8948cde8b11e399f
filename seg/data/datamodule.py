"""The DataModule: checks and measures a source, then loads it as batches.

A batch is ``{"image": (B, C, H, W) float32, "mask": (B, H, W) int64, "name": list of B}``; where classes
overlap the mask is (B, K, H, W). With a weight map there is ``"gaps"``, float32 of the mask's shape.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import albumentations as A
import lightning as L
import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from seg.data.augment import Augment, Focus, check_transforms, turns
from seg.data.dataset import GapCache, Samples
from seg.data.datasets.base import Source
from seg.data.image_cache import Store, spread
from seg.data.normalization import Intensity
from seg.data.sampler import EpochSampler, apart
from seg.data.statistics import survey
from seg.errors import DataError


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
        percentiles: of the training split's grey values, 0..100, that become 0 and 1; what lies beyond is clipped.
            None: the type's range, or the floats' smallest and largest.
        check: whether the data is judged as seg.check does, errors being raised.
        memory: GiB of decoded images that are kept in memory, if all fit.
        cache: folder where decoded images are kept, to be mapped from disk; None: files are read each time.
        foreground: share of the crops, 0..1, that are centred on a pixel of a rare class: of any but the
            training split's most frequent one, or, where classes overlap, of any. Each of them is chosen as
            often as the others in the images that have it; where an image has none, the crop lies anywhere.
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
        foreground: Annotated[float, Field(ge=0, le=1)] = 0.0,
        percentiles: tuple[float, float] | list[float] | None = None,
        check: bool = False,
        memory: float = 2.0,
        cache: str | None = None,
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
        if not 0 <= foreground <= 1 or (foreground and crop is None):
            raise ValueError(
                f"foreground is {foreground} and crop {crop}; foreground is a share of the crops, 0 to 1, and "
                "needs crops"
            )
        self.source, self.seed, self.workers = source, seed, workers
        self.batch_size, self.crop, self.repeats = batch_size, crop, repeats
        self.eval_batch_size = eval_batch_size
        self.transforms = augment or A.Compose([])
        check_transforms(self.transforms)
        if percentiles is not None and not (
            len(percentiles) == 2 and 0 <= percentiles[0] < percentiles[1] <= 100
        ):
            raise ValueError(
                f"percentiles is {list(percentiles)}; two of 0 to 100 are needed, [1, 99]"
            )
        if not memory >= 0:
            raise ValueError(f"memory is {memory}; GiB, 0 or more")
        self.store = Store(source, int(memory * 2**30), None if cache is None else Path(cache))
        wanted = None if percentiles is None else (float(percentiles[0]), float(percentiles[1]))
        before = self.store.stamps(
            name for names in source.splits.values() for name in spread(names)
        )
        found = survey(self.store, intensity, wanted, check)
        self.intensity, self.sizes, self.shares, self.holds, self.warnings, self.digests = found
        self.store.trust(before, self.digests)
        self.focus = Focus(foreground, self.rare) if foreground else None
        self.augment = Augment(self.transforms, crop, seed, focus=self.focus)
        self.gaps: GapCache | None = None
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
        if self.crop is None and self.batch_size > 1 and turns(self.transforms):
            oblong = [size for size in self.sizes.get("train", ()) if size[0] != size[1]]
            if oblong:
                raise DataError(
                    f"the training images are {oblong[0][0]}x{oblong[0][1]} px, and augment={turns(self.transforms)} "
                    f"turns some: whole they can't share a batch of {self.batch_size}; take augment=flips, crops "
                    "(loader.crop=256), or batches of 1"
                )

    def check_shares(self, processes: int) -> None:
        """Raises DataError when one of the processes that train together would have no image of a split."""
        for split, names in self.source.splits.items():
            samples = len(names) * (self.repeats if split == "train" else 1)
            if samples < processes:
                raise DataError(
                    f"{samples} {split} images for {processes} processes ({names[0]} ...): each needs one; take fewer "
                    "devices"
                )

    def widen(self, crop: int, context: int) -> None:
        """Training crops of ``crop`` px that may reach ``context`` px, mirrored, beyond the border."""
        self.augment = Augment(self.transforms, crop, self.seed, context, self.focus)

    @property
    def rare(self) -> list[int]:
        """The classes that ``foreground`` looks for."""
        classes = range(len(self.source.classes))
        if self.source.task == "overlapping":
            return list(classes)
        return [k for k in classes if k != self.shares.argmax()]

    @property
    def sampling(self) -> str:
        """In one line: what a training sample is cut from."""
        if self.crop is None:
            return "whole images"
        text = f"{self.repeats} of {self.crop}x{self.crop} px from each image, "
        if self.focus is None:
            return f"{text}anywhere (loader.foreground=0)"
        names = [self.source.classes[k] for k in self.focus.classes]
        named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        without = int((~self.holds[:, self.focus.classes].any(1)).sum())
        lacking = f"; {without} of {len(self.holds)} images have none" if without else ""
        return f"{text}{self.focus.share:.0%} of them centred on {named or 'nothing'}, the others anywhere{lacking}"

    def weigh(self, gaps: Callable[[np.ndarray], np.ndarray]) -> None:
        """Samples bring their weight map along, from the whole image: mask (H, W) or (K, H, W) -> map."""
        self.gaps = GapCache(gaps)

    def samples(self, split: str) -> Samples:
        """A split's images, whole and as they are."""
        return Samples(self.store, self.source.splits[split], self.intensity)

    def judged(self, split: str) -> Samples:
        """The same with their weight maps, where there are any."""
        return Samples(self.store, self.source.splits[split], self.intensity, gaps=self.gaps)

    def training(self) -> Samples:
        """The training split as the network sees it."""
        names = self.source.splits["train"]
        return Samples(self.store, names, self.intensity, self.augment, self.repeats, self.gaps)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.training(), self.batch_size // self.world or 1, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.judged("val"), self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self.loader(self.judged("test"), self.eval_batch_size, shuffle=False)

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def loader(self, samples: Samples, batch_size: int, shuffle: bool) -> DataLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        if self.workers:
            self.store.fill(samples.names)
        return DataLoader(
            samples,
            batch_size=batch_size,
            sampler=EpochSampler(len(samples), self.seed, shuffle, rank, self.world),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=apart,
            pin_memory=torch.cuda.is_available(),
        )
