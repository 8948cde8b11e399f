"""The pixel counts of a group of runs, image by image, and the scores that they give.

Legend for shapes: N images, S seeds, C classes, R resamples; the last 3 are hit, false and missed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from seg.comparison.run_files import Counts
from seg.comparison.run_records import Run
from seg.metrics.confusion import SCORES, Tally, class_mean, over_classes
from seg.metrics.significance import Evidence, mean, per_image

COUNTED = ("dice", "iou", "f1", "precision", "recall")  # follow from hit, false and missed


def by_seed(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of each seed; a run of unknown seed stands for itself."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.seed or run.label, []).append(run)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Pooled:
    """A group's pixel counts.

    Attributes:
        images: N names, sorted.
        classes: C names.
        pixels: (N, S, C, 3) float: hit, false, missed of each seed.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """Pixels of each class (N, C): those found and those missed."""
        return self.pixels[:, 0, :, 0] + self.pixels[:, 0, :, 2]


def pooled(runs: list[Run], split: str) -> Pooled | None:
    """Counts of a group; None where a run has none, or the seeds were scored on unlike images or classes."""
    counts = [run.counts.get(split) for run in runs]
    if any(one is None for one in counts) or len({one.classes for one in counts if one}) > 1:
        return None
    of = {id(run): one for run, one in zip(runs, counts, strict=True)}
    seeds = [
        averaged([one for run in same if (one := of[id(run)])]) for same in by_seed(runs).values()
    ]
    images = tuple(sorted(seeds[0]))
    if any(seed.keys() != seeds[0].keys() for seed in seeds):
        return None
    pixels = np.array([[seed[image] for seed in seeds] for image in images])
    truth = pixels[..., 0] + pixels[..., 2]  # (N, S, C)
    if not np.allclose(truth, truth[:, :1]):
        return None  # same names, other masks
    return Pooled(images, runs[0].counts[split].classes, pixels)


def averaged(counts: list[Counts]) -> dict[str, np.ndarray]:
    """Image -> its counts (C, 3), the mean over the runs that scored it."""
    rows: dict[str, list[np.ndarray]] = {}
    for one in counts:
        for image, pixels in zip(one.images, one.pixels, strict=True):
            rows.setdefault(image, []).append(pixels)
    return {image: np.mean(found, axis=0) for image, found in rows.items()}


def evidence(group: Pooled, score: str) -> Evidence | None:
    """Rows of the images and the score of their sums; None for a score that counts don't give."""
    name, _, of = score.partition("/")
    if name in ("dice_per_image", "iou_per_image") and not of:
        return per_image(image_scores(group.pixels, name.removesuffix("_per_image")).mean(1)), mean
    if name not in COUNTED or (of and of not in group.classes):
        return None
    place = group.classes.index(of) if of else None

    def scored(sums: np.ndarray) -> np.ndarray:  # (R, S, C, 3) -> (R,)
        tally = tallied(sums)
        values = over_classes(name, tally) if place is None else SCORES[name](tally)[..., place]
        return values.numpy().mean(-1)

    return group.pixels, scored


def image_scores(pixels: np.ndarray, name: str) -> np.ndarray:
    """Each image's own mean over the classes that occur in it: (..., C, 3) -> (...)."""
    tally = tallied(pixels)
    return class_mean(SCORES[name](tally), tally).numpy()


def tallied(pixels: np.ndarray) -> Tally:
    """Counts (..., C, 3) as a Tally, whose rest isn't known and isn't used."""
    hit, false, missed = torch.from_numpy(np.asarray(pixels, dtype=float)).unbind(-1)
    return Tally(hit, false, missed, torch.full_like(hit, torch.nan))
