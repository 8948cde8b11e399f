"""Dice, IoU and friends from one confusion matrix, counted over a whole split.

Legend for shapes: B images, C classes, K labels that overlap (then C = K), H x W pixels.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.logits import IGNORE, check_mask, misfits
from seg.metrics.significance import Evidence, mean, per_image


def confusion(prediction: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Pixel counts (B, C, C) int64 of each image: rows are the truth, columns the prediction.

    Of overlapping labels, prediction and mask (B, K, H, W): (B, K, 2, 2), a matrix a label.

    Raises:
        ValueError: when a mask value is neither a class nor 255; on a CPU only, a GPU isn't waited for:
            there it is counted nowhere, and ``PixelScores`` raises at the end of the split.
    """
    counted = mask != IGNORE
    if mask.device.type == "cpu":
        check_mask(mask, num_classes)
    else:
        counted &= ~misfits(mask, num_classes)
    states = 2 if mask.ndim == 4 else num_classes
    cells = states**2
    cell = (mask * states + prediction).where(counted, cells).flatten(-2)
    counts = torch.zeros(*cell.shape[:-1], cells + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(-1, cell, torch.ones_like(cell))
    return counts[..., :cells].unflatten(-1, (states, states))


class Tally(NamedTuple):
    """Pixels of each class against all others (..., C) int64: right and wrong, there and not.

    Attributes:
        hit: of the class and called so (TP).
        false: called so but of another (FP).
        missed: of the class but called otherwise (FN).
        rest: neither (TN).
    """

    hit: Tensor
    false: Tensor
    missed: Tensor
    rest: Tensor

    @classmethod
    def of(cls, counts: Tensor, overlapping: bool = False) -> "Tally":
        """From confusion matrices (..., C, C), or (..., K, 2, 2) of overlapping labels."""
        if overlapping:
            (rest, false), (missed, hit) = (row.unbind(-1) for row in counts.unbind(-2))
            return cls(hit, false, missed, rest)
        hit = counts.diagonal(dim1=-2, dim2=-1)
        false, missed = counts.sum(-2) - hit, counts.sum(-1) - hit
        return cls(hit, false, missed, counts.sum((-2, -1)).unsqueeze(-1) - hit - false - missed)


def dice(t: Tally) -> Tensor:
    """2 TP / (2 TP + FP + FN), which is F1 too (..., C) in 0..1; nan where the class occurs nowhere."""
    return 2 * t.hit / (2 * t.hit + t.false + t.missed).double()


def iou(t: Tally) -> Tensor:
    """TP / (TP + FP + FN), the Jaccard index (..., C) in 0..1; nan where the class occurs nowhere."""
    return t.hit / (t.hit + t.false + t.missed).double()


def precision(t: Tally) -> Tensor:
    """TP / (TP + FP): what is right of what was called so (..., C); nan where nothing was."""
    return t.hit / (t.hit + t.false).double()


def recall(t: Tally) -> Tensor:
    """TP / (TP + FN), or sensitivity: what was found (..., C); nan where there is nothing to find."""
    return t.hit / (t.hit + t.missed).double()


def specificity(t: Tally) -> Tensor:
    """TN / (TN + FP): what was left alone of what should be (..., C); nan where the class is everywhere."""
    return t.rest / (t.rest + t.false).double()


def accuracy(t: Tally) -> Tensor:
    """(TP + TN) / all: each class against all others (..., C)."""
    return (t.hit + t.rest) / (t.hit + t.false + t.missed + t.rest).double()


SCORES = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "f1": dice,
    "specificity": specificity,
    "accuracy": accuracy,
}


def pixel_accuracy(t: Tally) -> Tensor:
    """Share of the pixels that are right (...); of overlapping labels that is the mean of ``accuracy``."""
    return t.hit.sum(-1) / (t.hit + t.missed).sum(-1).double()


def over_classes(name: str, t: Tally) -> Tensor:
    """The mean (...) of the score of that name over the classes that occur.

    A class that occurs but was never called, or only called, has a precision or recall of 0 in the mean.
    """
    values = SCORES[name](t)
    return class_mean(values.nan_to_num(0) if name in ("precision", "recall") else values, t)


def class_mean(score: Tensor, t: Tally) -> Tensor:
    """Mean (...) of a score (..., C) over the classes that occur, in truth or prediction, where it isn't nan."""
    occurs = t.hit + t.false + t.missed > 0
    return score.where(occurs, torch.nan).nanmean(-1)


class PixelScores(Metric):
    """Scores of a split from its confusion matrix, and the spread of the images' own means.

    ``dice`` and the like are means over the classes that occur, of counts over the whole split: never an
    average of batches, so neither batch size nor number of processes matters. ``dice_per_image`` averages
    each image's own mean instead, ``dice_per_image_sd`` is its standard deviation. ``pixel_accuracy`` is
    the share of all pixels; ``accuracy`` the mean over classes, each against all others.

    Args:
        classes: names in the order of the mask's values, or of its planes.
        overlapping: whether they are labels that overlap.
    """

    full_state_update = False
    counts: Tensor
    image_counts: list[Tensor]
    misfits: Tensor

    def __init__(self, classes: list[str], overlapping: bool = False) -> None:
        super().__init__()
        self.classes, self.overlapping = classes, overlapping
        c = len(classes)
        zeros = torch.zeros((c, 2, 2) if overlapping else (c, c), dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")
        self.add_state("image_counts", [], dist_reduce_fx="cat")
        self.add_state("misfits", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        counts = confusion(prediction, mask, len(self.classes))
        self.counts += counts.sum(0)
        self.image_counts.append(counts)
        if mask.device.type != "cpu":  # there it is an error at once
            self.misfits += misfits(mask, len(self.classes)).sum()

    def images(self) -> Tensor:
        """The confusion matrix of each image, in the order seen: (B, C, C) or (B, K, 2, 2)."""
        return dim_zero_cat(self.image_counts).cpu()

    def evidence(self) -> dict[str, Evidence]:
        """Score's name -> rows of the images, and the score of their sums: see seg.metrics.significance."""
        rows = self.images().numpy()
        names = [key for name in SCORES for key in (name, *(f"{name}/{c}" for c in self.classes))]
        found: dict[str, Evidence] = {name: (rows, partial(self.resampled, name)) for name in names}
        each = Tally.of(self.images(), self.overlapping)
        for name in ("dice", "iou"):
            values_B = class_mean(SCORES[name](each), each).numpy()
            found[f"{name}_per_image"] = per_image(values_B), mean
        return found

    def resampled(self, name: str, sums: np.ndarray) -> np.ndarray:
        """The score of that name (R,) of summed confusion matrices (R, C, C) or (R, K, 2, 2)."""
        score, _, of = name.partition("/")
        tally = Tally.of(torch.from_numpy(sums), self.overlapping)
        return (
            SCORES[score](tally)[:, self.classes.index(of)] if of else over_classes(score, tally)
        ).numpy()

    def compute(self) -> dict[str, Tensor]:
        """Scores by name: ``dice``, ``dice/CLASS``, ``dice_per_image``, ``pixel_accuracy`` and so on.

        Raises:
            ValueError: when a mask held a value that is no class.
        """
        if self.misfits:
            raise ValueError(
                f"{int(self.misfits)} mask pixels are neither a class (0..{len(self.classes) - 1}) nor "
                f"{IGNORE} (ignore)"
            )
        scores: dict[str, Tensor] = {}
        split = Tally.of(self.counts.cpu(), self.overlapping)  # float64 below: not on every device
        for name, score in SCORES.items():
            values_C = score(split)
            scores[name] = over_classes(name, split)
            scores |= {f"{name}/{c}": v for c, v in zip(self.classes, values_C, strict=True)}
        scores["pixel_accuracy"] = scores["accuracy"] if self.overlapping else pixel_accuracy(split)
        each = Tally.of(self.images(), self.overlapping)
        for name in ("dice", "iou"):
            values_B = class_mean(SCORES[name](each), each)
            values_B = values_B[~values_B.isnan()]  # an image that is ignored throughout has none
            scores[f"{name}_per_image"] = values_B.mean()
            if len(values_B) > 1:
                scores[f"{name}_per_image_sd"] = values_B.std()
        return scores
