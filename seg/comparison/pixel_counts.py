"""Pixel counts of a group of runs, image by image, and the scores that follow from them.

Shape suffixes: N images, S seeds, C classes, R resamples; the last axis of 3 is TP, FP, FN.
"""

from dataclasses import dataclass

import numpy as np

from seg.comparison.run_files import ImageCounts
from seg.comparison.run_records import ComparedRun
from seg.metrics.pixel_scores import PIXEL_SCORES, ConfusionCounts, mean_over_present, mean_score
from seg.metrics.significance import BootstrapInput, mean_of_sums, per_image_rows

COUNTED_SCORES = (
    "dice",
    "iou",
    "f1",
    "precision",
    "recall",
)  # scores that follow from TP, FP and FN


def runs_by_seed(runs: list[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Return the runs of each seed; a run of unknown seed has its own."""
    seeds: dict[str, list[ComparedRun]] = {}
    for run in runs:
        seeds.setdefault(run.seed or run.label, []).append(run)
    return dict(sorted(seeds.items()))


@dataclass(frozen=True)
class GroupCounts:
    """Pixel counts of a group.

    Attributes:
        images: N names, sorted.
        classes: C names.
        pixels: (N, S, C, 3) float: TP, FP, FN of each seed.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Pixels of each class in the truth (N, C)."""
        return self.pixels[:, 0, :, 0] + self.pixels[:, 0, :, 2]


def pool_counts(runs: list[ComparedRun], split: str) -> GroupCounts | None:
    """Collect the counts of a group; None if a run has none, or seeds differ in images, classes or masks."""
    # All runs must have counts of the same classes
    if not all(split in run.counts for run in runs):
        return None
    if len({run.counts[split].classes for run in runs}) > 1:
        return None
    # Join the folds of each seed; all seeds must have scored the same images
    seeds = [
        average_counts([run.counts[split] for run in same]) for same in runs_by_seed(runs).values()
    ]
    images = tuple(sorted(seeds[0]))
    if any(seed.keys() != seeds[0].keys() for seed in seeds):
        return None
    # TP + FN are the true pixels, which no network changes
    pixels = np.array([[seed[image] for seed in seeds] for image in images])
    truth = pixels[..., 0] + pixels[..., 2]  # (N, S, C)
    if not np.allclose(truth, truth[:, :1]):
        return None  # images of the same names with other masks
    return GroupCounts(images, runs[0].counts[split].classes, pixels)


def average_counts(counts: list[ImageCounts]) -> dict[str, np.ndarray]:
    """Return the counts (C, 3) of each image, the mean over the runs that scored it."""
    rows: dict[str, list[np.ndarray]] = {}
    for run_counts in counts:
        for image, pixels in zip(run_counts.images, run_counts.pixels, strict=True):
            rows.setdefault(image, []).append(pixels)
    return {image: np.mean(pixels, axis=0) for image, pixels in rows.items()}


def group_bootstrap_input(group: GroupCounts, score: str) -> BootstrapInput | None:
    """Return the rows by image and the score of their sums; None if the score does not follow from counts."""
    # Averages over images: one value for each image, the mean over seeds
    name, _, label = score.partition("/")
    if name in ("dice_per_image", "iou_per_image") and not label:
        return per_image_rows(
            image_scores(group.pixels, name.removesuffix("_per_image")).mean(1)
        ), mean_of_sums
    if name not in COUNTED_SCORES or (label and label not in group.classes):
        return None
    # Pooled scores: one row of counts for each image, summed before the score
    place = group.classes.index(label) if label else None

    def scored(sums: np.ndarray) -> np.ndarray:  # (R, S, C, 3) -> (R,)
        tally = to_confusion_counts(sums)
        values = mean_score(name, tally) if place is None else PIXEL_SCORES[name](tally)[..., place]
        return values.mean(-1)

    return group.pixels, scored


def image_scores(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return the score of each image, the mean over the classes that occur in it: (..., C, 3) -> (...)."""
    tally = to_confusion_counts(pixels)
    return mean_over_present(PIXEL_SCORES[name](tally), tally)


def to_confusion_counts(pixels: np.ndarray) -> ConfusionCounts:
    """Return counts (..., C, 3) as ConfusionCounts; their true negatives are unknown (nan)."""
    tp, fp, fn = np.moveaxis(np.asarray(pixels, dtype=float), -1, 0)
    return ConfusionCounts(tp, fp, fn, np.full_like(tp, np.nan))
