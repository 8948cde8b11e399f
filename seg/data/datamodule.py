"""DataModule: checks a source, computes its statistics and loads it as batches.

A batch is ``{"image": (B, C, H, W) float32, "mask": (B, H, W) int64, "name": list of B}``; where classes
overlap the mask is (B, K, H, W). With a weight map there is ``"gaps"``, float32 in the mask's shape.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import albumentations as A
import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from seg.data.augment import Augment, RareClassCrop, check_transforms, turning_transform
from seg.data.dataset import SegmentationDataset, WeightMapCache
from seg.data.datasets.base import DataSource
from seg.data.image_cache import MAX_INSPECTED, ImageCache
from seg.data.normalization import Normalization
from seg.data.quality.issues import check_kinds
from seg.data.sampler import EpochSampler, ignore_signals
from seg.data.sections import find_sections
from seg.data.statistics import measure_dataset
from seg.data.subset import restrict_training
from seg.errors import DataError
from seg.ranges import check_ranges

# Python 3.14 starts processes by forkserver, where each worker imports PyTorch and copies the images in memory
WORKER_START = "fork" if sys.platform == "linux" else None


class DataModule:
    """DataLoaders of a source's splits.

    Args:
        source: the data set.
        augment: transforms of the training samples, after the crop.
        seed: of the run.
        batch_size: samples per step, over all processes.
        crop: px, side of the training crop; None: whole images.
        repeats: samples per training image in an epoch.
        eval_batch_size: images per step in validation and test.
        workers: DataLoader workers; 0 loads in the main process.
        intensity: normalisation of a trained network; None: computed from the training split.
        rare_class_crops: share of the crops, 0..1, that are centred on a pixel of a rare class: any but the
            training split's most frequent one or, where classes overlap, any. The classes are drawn equally
            often in the images that have them; where an image has none, the crop lies anywhere.
        percentiles: of the training split's grey values, 0..100, that become 0 and 1, values beyond being
            clipped. None: the type's range, or the smallest and the largest float.
        check: whether to check the data as seg.check does, except for its heuristics, and raise on errors.
        skip_checks: kinds of issues, as seg.check names them, that are left out.
        memory: GiB of decoded images that are kept in memory, if all fit.
        cache: folder for decoded images, which are mapped from disk; None: files are read each time.
        subset: number of training images, of groups where the source has them, that are used: drawn by the seed, so
            that a larger subset contains a smaller one. None: all.

    Raises:
        DataError: for data that cannot be used, naming the first such file.
        ValueError: for an argument out of its range.
    """

    @check_ranges
    def __init__(
        self,
        source: DataSource,
        augment: A.Compose | None = None,
        seed: int = 0,
        batch_size: Annotated[int, Field(ge=1)] = 4,
        crop: Annotated[int, Field(ge=1, le=2**15)] | None = 256,
        repeats: Annotated[int, Field(ge=1, le=10**6)] = 4,
        eval_batch_size: Annotated[int, Field(ge=1)] = 1,
        workers: Annotated[int, Field(ge=0, le=1024)] = 0,
        intensity: Normalization | None = None,
        rare_class_crops: Annotated[float, Field(ge=0, le=1)] = 0.0,
        percentiles: tuple[float, float] | list[float] | None = None,
        check: bool = False,
        skip_checks: list[str] | None = None,
        memory: Annotated[float, Field(ge=0, le=2**20)] = 2.0,
        cache: str | None = None,
        subset: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        # Check the arguments.
        if rare_class_crops and crop is None:
            raise ValueError(
                f"rare_class_crops is {rare_class_crops} and crop None; rare_class_crops needs crops"
            )
        if percentiles is not None and not (
            len(percentiles) == 2 and 0 <= percentiles[0] < percentiles[1] <= 100
        ):
            raise ValueError(
                f"percentiles is {list(percentiles)}; two of 0 to 100 are needed, [1, 99]"
            )
        check_kinds(skip_checks)
        if subset is not None:
            source = restrict_training(source, subset, seed)
        self.source, self.seed, self.workers = source, seed, workers
        self.batch_size, self.crop, self.repeats = batch_size, crop, repeats
        self.eval_batch_size = eval_batch_size
        self.trained = intensity is not None
        self.transforms = augment or A.Compose([])
        check_transforms(self.transforms)
        # Read the data once: its statistics, and what is wrong with it.
        self.image_cache = ImageCache(
            source, int(memory * 2**30), None if cache is None else Path(cache)
        )
        pair = None if percentiles is None else (float(percentiles[0]), float(percentiles[1]))
        statistics = measure_dataset(self.image_cache, intensity, pair, check, skip_checks or [])
        # Sections of a stack: the network sees their neighbours, too.
        self.intensity, self.sizes = statistics.intensity, statistics.sizes
        sections = find_sections(source)
        neighbours = sections.neighbours if sections else 0
        if not self.trained:
            self.intensity = self.intensity.with_neighbours(neighbours)
        self.class_shares = np.array(statistics.class_shares)  # (C,)
        self.class_presence = np.array(statistics.class_presence, bool).reshape(
            -1, len(source.classes)
        )  # (N, C)
        self.warnings, self.digests = statistics.warnings, statistics.digests
        self.labelled = statistics.labelled
        # Crops of the training samples.
        self.focus = (
            RareClassCrop(rare_class_crops, self.rare_classes) if rare_class_crops else None
        )
        self.augment = Augment(self.transforms, crop, seed, focus=self.focus, neighbours=neighbours)
        self.gaps: WeightMapCache | None = None
        self.tile: int | None = None
        self.rank, self.world = 0, 1  # of distributed training: this process, and their number
        self.check_batch_sizes()

    def check_batch_sizes(self) -> None:
        """Raise DataError if images of several sizes would have to share a batch."""
        # Batches of whole images need one size.
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
        # Turned images of one size have two, unless they are square.
        if self.crop is None and self.batch_size > 1 and turning_transform(self.transforms):
            oblong = [size for size in self.sizes.get("train", ()) if size[0] != size[1]]
            if oblong:
                raise DataError(
                    f"the training images are {oblong[0][0]}x{oblong[0][1]} px, and augment={turning_transform(self.transforms)} "
                    f"turns some: whole they can't share a batch of {self.batch_size}; take augment=flips, crops "
                    "(loader.crop=256), or batches of 1"
                )

    def check_ranks(self, processes: int) -> None:
        """Raise DataError if one of the processes of a distributed run would have no image of a split."""
        for split, names in self.source.splits.items():
            samples = len(names) * (self.repeats if split == "train" else 1)
            if samples < processes:
                raise DataError(
                    f"{samples} {split} images for {processes} processes ({names[0]} ...): each needs one; take fewer "
                    "devices"
                )

    def set_context(self, crop: int, context: int) -> None:
        """Set the training crops to ``crop`` px, with ``context`` px of mirrored pixels around the image."""
        neighbours = self.augment.neighbours
        self.augment = Augment(self.transforms, crop, self.seed, context, self.focus, neighbours)

    @property
    def rare_classes(self) -> list[int]:
        """Indices of the classes that ``rare_class_crops`` centres crops on."""
        classes = range(len(self.source.classes))
        if self.source.task == "overlapping":
            return list(classes)
        return [k for k in classes if k != self.class_shares.argmax()]

    @property
    def describe_crops(self) -> str:
        """Description of the training crops in one line."""
        if self.crop is None:
            return "whole images"
        text = f"{self.repeats} of {self.crop}x{self.crop} px from each image, "
        if self.focus is None:
            return f"{text}anywhere (loader.rare_class_crops=0)"
        # With crops on rare classes: their names, and the images without them.
        names = [self.source.classes[k] for k in self.focus.classes]
        named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        without = int((~self.class_presence[:, self.focus.classes].any(1)).sum())
        none = f"; {without} of {len(self.class_presence)} images have none" if without else ""
        return f"{text}{self.focus.share:.0%} of them centred on {named or 'nothing'}, the others anywhere{none}"

    def set_weight_map(self, gaps: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> None:
        """Add a weight map to the samples.

        Args:
            gaps: function of the whole image's mask (H, W) or (K, H, W), and of the labels (H, W) of its objects or
                None, that returns the map in the mask's shape.
        """
        self.gaps = WeightMapCache(gaps, self.source)

    def set_tile(self, tile: int | None) -> None:
        """Set the longest side, px, of images that are evaluated as a whole; larger ones are read band by band.

        Where all sizes are known and none is larger, no image is opened for its size.
        """
        known = all(len(names) <= MAX_INSPECTED for names in self.source.splits.values())
        longest = max(
            (side for sizes in self.sizes.values() for size in sizes for side in size), default=0
        )
        self.tile = None if known and tile is not None and longest <= tile else tile
        if self.tile is not None:
            for split, names in self.source.splits.items():
                if split != "train":
                    self.image_cache.drop_larger(names, self.tile)

    def samples(self, split: str) -> SegmentationDataset:
        """Return the dataset of a split's unchanged images."""
        return SegmentationDataset(
            self.image_cache,
            self.source.splits[split],
            self.intensity,
            convert=self.trained,
            tile=self.tile,
        )

    def eval_dataset(self, split: str) -> SegmentationDataset:
        """Return the same dataset with weight maps, if there are any."""
        return SegmentationDataset(
            self.image_cache,
            self.source.splits[split],
            self.intensity,
            gaps=self.gaps,
            convert=self.trained,
            tile=self.tile,
        )

    def train_dataset(self) -> SegmentationDataset:
        """Return the dataset of the training split, cropped and augmented."""
        names = self.source.splits["train"]
        return SegmentationDataset(
            self.image_cache, names, self.intensity, self.augment, self.repeats, self.gaps
        )

    def train_dataloader(self) -> DataLoader:
        """Return the batches of the training split, of this process alone in distributed training."""
        return self.loader(self.train_dataset(), self.batch_size // self.world or 1, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.eval_dataset("val"), self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self.loader(self.eval_dataset("test"), self.eval_batch_size, shuffle=False)

    def loader(self, samples: SegmentationDataset, batch_size: int, shuffle: bool) -> DataLoader:
        if self.workers:
            self.image_cache.prefetch(samples.names)
        return DataLoader(
            samples,
            batch_size=batch_size,
            sampler=EpochSampler(len(samples), self.seed, shuffle, self.rank, self.world),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=ignore_signals,
            multiprocessing_context=WORKER_START if self.workers else None,
            pin_memory=torch.cuda.is_available(),
        )
