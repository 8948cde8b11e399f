"""Scores of pixel counts: Dice, IoU, precision, recall and others; of tensors, or of arrays without PyTorch.

Shape suffix: C classes.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Counts = (
    Any  # tensor or array; PyTorch, which takes seconds to import, isn't needed to compare runs
)


class ConfusionCounts(NamedTuple):
    """Pixel counts of each class against all others, each (..., C): int64 tensors, or arrays.

    Attributes:
        tp: true positives.
        fp: false positives.
        fn: false negatives.
        tn: true negatives.
    """

    tp: Counts
    fp: Counts
    fn: Counts
    tn: Counts

    @classmethod
    def from_confusion(cls, counts: "Tensor", overlapping: bool = False) -> "ConfusionCounts":
        """Build from confusion matrices (..., C, C), or (..., K, 2, 2) for overlapping labels."""
        if overlapping:
            # Rows are the truth: TN and FP in the first, FN and TP in the second
            (rest, false), (missed, hit) = (row.unbind(-1) for row in counts.unbind(-2))
            return cls(hit, false, missed, rest)
        # Column sums are the predicted pixels, row sums the true ones
        hit = counts.diagonal(dim1=-2, dim2=-1)
        false, missed = counts.sum(-2) - hit, counts.sum(-1) - hit
        return cls(hit, false, missed, counts.sum((-2, -1)).unsqueeze(-1) - hit - false - missed)

    @classmethod
    def from_last_axis(cls, counts: "Tensor") -> "ConfusionCounts":
        """Build from counts (..., 4) in the order of the attributes."""
        return cls(*counts.unbind(-1))


def count_ratio(part: Counts, whole: Counts) -> Counts:
    """Return part / whole in float64; nan where whole is 0."""
    if isinstance(part, np.ndarray):
        with np.errstate(invalid="ignore"):
            return part / whole
    return part / whole.double()


def dice(t: ConfusionCounts) -> Counts:
    """Return Dice = F1 = 2 TP / (2 TP + FP + FN), (..., C) in 0..1; nan where the class does not occur."""
    return count_ratio(2 * t.tp, 2 * t.tp + t.fp + t.fn)


def iou(t: ConfusionCounts) -> Counts:
    """Return the Jaccard index TP / (TP + FP + FN), (..., C) in 0..1; nan where the class does not occur."""
    return count_ratio(t.tp, t.tp + t.fp + t.fn)


def precision(t: ConfusionCounts) -> Counts:
    """Return TP / (TP + FP), (..., C) in 0..1; nan where the class is never predicted."""
    return count_ratio(t.tp, t.tp + t.fp)


def recall(t: ConfusionCounts) -> Counts:
    """Return the sensitivity TP / (TP + FN), (..., C) in 0..1; nan where the class is not in the truth."""
    return count_ratio(t.tp, t.tp + t.fn)


def specificity(t: ConfusionCounts) -> Counts:
    """Return TN / (TN + FP), (..., C) in 0..1; nan where every pixel is of the class."""
    return count_ratio(t.tn, t.tn + t.fp)


def accuracy(t: ConfusionCounts) -> Counts:
    """Return (TP + TN) / all pixels, each class against all others, (..., C) in 0..1."""
    return count_ratio(t.tp + t.tn, t.tp + t.fp + t.fn + t.tn)


PIXEL_SCORES = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "f1": dice,
    "specificity": specificity,
    "accuracy": accuracy,
}


def pixel_accuracy(t: ConfusionCounts) -> Counts:
    """Return the share of correct pixels (...) in 0..1, for exclusive classes."""
    return count_ratio(t.tp.sum(-1), (t.tp + t.fn).sum(-1))


def mean_score(name: str, t: ConfusionCounts) -> Counts:
    """Return the mean (...) of a score over the classes that occur in truth or prediction.

    A class that is never predicted has precision 0 in the mean, one that is only predicted has recall 0.
    """
    values = PIXEL_SCORES[name](t)
    if name in ("precision", "recall"):
        values = np.nan_to_num(values) if isinstance(values, np.ndarray) else values.nan_to_num(0)
    return mean_over_present(values, t)


def mean_over_present(score: Counts, t: ConfusionCounts) -> Counts:
    """Return the mean (...) of a score (..., C) over the classes that occur in truth or prediction."""
    occurs = t.tp + t.fp + t.fn > 0
    if isinstance(score, np.ndarray):
        return count_ratio(np.where(occurs, score, 0).sum(-1), occurs.sum(-1))
    return score.where(occurs, float("nan")).nanmean(-1)
