"""Offsets of masks: by how many pixels a label lies off the probabilities, or off the image's grey values.

Shapes: labels (H, W) uint8 of class indices, 255 where ignored; probabilities (C, H, W). An offset is (rows, columns).
"""

from collections.abc import Callable, Sequence

import numpy as np

from seg.labels import IGNORE

MAX_SHIFT = 6  # px, largest offset of a mask that is looked for


def majority_offset(offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], int]:
    """Return the offset that more than half of the images have, and their number; else no offset and 0."""
    best = max(sorted(set(offsets)), key=offsets.count)
    votes = offsets.count(best)
    return (best, votes) if 2 * votes > len(offsets) and best != (0, 0) else ((0, 0), 0)


def best_offset(label: np.ndarray, score: Callable[[np.ndarray], float]) -> tuple[int, int]:
    """Return the offset of a label with the best score, by climbing from none.

    Args:
        label: (H, W).
        score: of the label moved back by an offset, without MAX_SHIFT px along each side.
    """
    height, width = label.shape
    if min(height, width) <= 2 * MAX_SHIFT:
        return (0, 0)
    scores: dict[tuple[int, int], float] = {}

    def score_at(offset: tuple[int, int]) -> float:
        if offset not in scores:
            (top, bottom), (left, right) = (
                (MAX_SHIFT + move, side - MAX_SHIFT + move)
                for move, side in zip(offset, label.shape, strict=True)
            )
            scores[offset] = score(label[top:bottom, left:right])
        return scores[offset]

    here = (0, 0)
    while True:
        around = [(here[0] + i, here[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        around = [there for there in around if max(map(abs, there)) <= MAX_SHIFT]
        best = max(around, key=lambda there: (score_at(there), there == here))
        if not score_at(best) > score_at(here):
            return here
        here = best


def pick_probabilities(p_CHW: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return each pixel's probability of its class (H, W)."""
    return np.take_along_axis(p_CHW, classes[None].astype(np.intp), 0)[0]


def mean_probability(p_CHW: np.ndarray, label: np.ndarray) -> float:
    """Return the mean probability of the labelled class over the pixels that are not ignored."""
    known = label != IGNORE
    return float(pick_probabilities(p_CHW, np.where(known, label, 0))[known].mean()) if known.any() else 0.0  # fmt: skip


def image_offset(image: np.ndarray, label: np.ndarray) -> tuple[int, int]:
    """Return the offset of a label from the place where it explains the grey values of an image (H, W, C) best."""
    grey = np.nan_to_num(image.astype(np.float32).mean(-1))[inner_window(label)]  # nan: no data
    return best_offset(label, lambda moved: explained_variance(grey, moved))


def inner_window(label: np.ndarray) -> tuple[slice, ...]:
    """Return the rows and columns of an image without MAX_SHIFT px along each side."""
    return tuple(slice(MAX_SHIFT, max(side - MAX_SHIFT, MAX_SHIFT)) for side in label.shape)


def explained_variance(grey: np.ndarray, label: np.ndarray) -> float:
    """Return the variance of the classes' mean grey values, weighted by their pixels."""
    known = label != IGNORE
    counts = np.bincount(label[known])
    sums = np.bincount(label[known], grey[known])
    mean = grey[known].mean() if known.any() else 0.0
    there = counts > 0
    return float(((sums[there] / counts[there] - mean) ** 2 * counts[there]).sum() / max(counts.sum(), 1))  # fmt: skip


def move_label(label: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """Return the label moved back by an offset; ignored where nothing is moved to."""
    if offset == (0, 0):
        return label
    moved = np.full_like(label, IGNORE)
    into, source = [], []
    for move, side in zip(offset, label.shape, strict=True):
        into.append(slice(max(-move, 0), side - max(move, 0)))
        source.append(slice(max(move, 0), side - max(-move, 0)))
    moved[tuple(into)] = label[tuple(source)]
    return moved
