"""Counts of an image's pixels by truth, prediction and probability, from which scores without truth come."""

import torch
from torch import Tensor

from seg.labels import IGNORE
from seg.metrics import expected_scores

COUNTED_PIXELS = 2**20  # whose probabilities are counted together


def count_probabilities(
    p_BCHW: Tensor, prediction: Tensor, mask: Tensor | None, overlapping: bool = False
) -> Tensor:
    """Count the pixels of each image and class by truth, prediction and bin of the probability.

    Bins are those of seg.metrics.expected_scores.

    Args:
        p_BCHW: class probabilities.
        prediction: (B, H, W) class indices, or (B, C, H, W) of 0 and 1 for overlapping labels; 255 is not counted.
        mask: likewise; None: unknown, all pixels are counted as other classes.
        overlapping: whether classes overlap.

    Returns:
        (B, C, 2, 2, bins) int64. Of two exclusive classes only class 1 is counted, and C is 1: see
        ``expected_scores.mirror_counts``.
    """
    classes, bins = p_BCHW.shape[1], expected_scores.BINS
    counted = [1] if classes == 2 and not overlapping else list(range(classes))
    counts = torch.zeros(len(p_BCHW), len(counted), 4 * bins, dtype=torch.int64)
    rows = max(1, COUNTED_PIXELS // p_BCHW.shape[-1])
    for b in range(len(p_BCHW)):
        for top in range(0, p_BCHW.shape[2], rows):
            part = slice(top, top + rows)
            for i, c in enumerate(counted):
                plane, value = (c, 1) if overlapping else (..., c)
                cell = probability_bins(p_BCHW[b, c, part])
                found = prediction[b][plane][part]
                lost = found == IGNORE
                cell += (found == value).int() * bins
                if mask is not None:
                    truth = mask[b][plane][part]
                    lost |= truth == IGNORE
                    cell += (truth == value).int() * (2 * bins)
                if lost.any():
                    cell[lost] = 4 * bins
                counts[b, i] += torch.bincount(cell.flatten(), minlength=4 * bins + 1)[:-1].cpu()
    return counts.unflatten(-1, (2, 2, bins))


def probability_bins(p: Tensor) -> Tensor:
    """Return the bin of each probability by its logit, int32."""
    bins, last = expected_scores.BINS, (expected_scores.BINS - 1) / 2
    place = torch.logit(p.float()).mul_(1 / expected_scores.STEP).add_(last + 0.5)
    return place.nan_to_num_(0.0).clamp_(0, bins - 1).int()
