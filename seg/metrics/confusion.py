"""Pixel scores (Dice, IoU, precision, recall ...) from one confusion matrix of a whole split.

Shape suffixes: B images, C classes, K overlapping labels (then C = K), H x W pixels, R resamples.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.labels import IGNORE
from seg.logits import check_mask_values, invalid_labels
from seg.metrics.pixel_scores import (
    PIXEL_SCORES,
    ConfusionCounts,
    mean_over_present,
    mean_score,
    pixel_accuracy,
)
from seg.metrics.significance import BootstrapInput, mean_of_sums, per_image_rows


def count_confusion(prediction: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count the confusion matrix of each image: rows are the truth, columns the prediction.

    Shape:
        prediction and mask (B, H, W) -> (B, C, C) int64; of overlapping labels (B, K, H, W) -> (B, K, 2, 2).

    Raises:
        ValueError: if a mask value is neither a class nor 255. Only on the CPU; on a GPU, where raising would
            synchronise, such pixels are not counted and ``PixelScores`` raises at the end of the split.
    """
    # Ignored and, on a GPU, invalid pixels are not counted
    counted = mask != IGNORE
    if mask.device.type == "cpu":
        check_mask_values(mask, num_classes)
    else:
        counted &= ~invalid_labels(mask, num_classes)
    # Flat index of the matrix's cell; pixels that are not counted go to an extra cell
    states = 2 if mask.ndim == 4 else num_classes
    cells = states**2
    cell = (mask * states + prediction).where(counted, cells).flatten(-2)
    counts = torch.zeros(*cell.shape[:-1], cells + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(-1, cell, torch.ones_like(cell))
    return counts[..., :cells].unflatten(-1, (states, states))


class PixelScores(Metric):
    """Pixel scores of a split from its confusion matrix, and the mean and spread over its images.

    ``dice`` and the other scores are means over the classes that occur, computed from counts over the whole
    split, so neither the batch size nor the number of processes changes them. ``dice_per_image`` is the mean
    of each image's own score, ``dice_per_image_sd`` its standard deviation. ``pixel_accuracy`` is the share
    of correct pixels, ``accuracy`` the mean over classes, each against all others.

    Args:
        classes: names in the order of the mask's values, or of its planes.
        overlapping: whether the classes are labels that overlap.
        keep_matrices: whether ``matrices`` returns the confusion matrix of each image: C * C numbers instead of 4 * C.
    """

    full_state_update = False
    counts: Tensor
    image_counts: list[Tensor]
    invalid_pixels: Tensor

    def __init__(
        self, classes: list[str], overlapping: bool = False, keep_matrices: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.overlapping = classes, overlapping
        self.keep_matrices = keep_matrices
        self.kept_matrices: list[np.ndarray] = []
        # States of torchmetrics: sums are added over processes, lists are concatenated
        c = len(classes)
        zeros = torch.zeros((c, 2, 2) if overlapping else (c, c), dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")
        self.add_state("image_counts", [], dist_reduce_fx="cat")
        self.add_state("invalid_pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor, continued: bool = False) -> None:
        """Count the pixels of a batch; with ``continued`` they are further rows of the last image."""
        counts = count_confusion(prediction, mask, len(self.classes))
        self.counts += counts.sum(0)
        each = ConfusionCounts.from_confusion(counts, self.overlapping)
        of_images = torch.stack(each, -1)
        if continued:
            self.image_counts[-1] = self.image_counts[-1] + of_images
        else:
            self.image_counts.append(of_images)
        if self.keep_matrices and continued:
            self.kept_matrices[-1] = self.kept_matrices[-1] + counts[0].cpu().numpy()
        elif self.keep_matrices:
            self.kept_matrices.extend(counts.cpu().numpy())
        if mask.device.type != "cpu":  # on the CPU confusion() has raised
            self.invalid_pixels += invalid_labels(mask, len(self.classes)).sum()

    def reset(self) -> None:
        super().reset()
        self.kept_matrices = []

    def images(self) -> Tensor:
        """Return TP, FP, FN and TN of each image and class, in the order of the images: (B, C, 4) int64."""
        return dim_zero_cat(self.image_counts).cpu()

    @property
    def scored_pixels(self) -> int:
        """Number of pixels that are not ignored; where classes overlap, in the mean over their planes."""
        return int(self.counts.sum()) // (len(self.classes) if self.overlapping else 1)

    def matrices(self) -> np.ndarray:
        """Return the confusion matrix of each image that this process counted: (B, C, C) or (B, K, 2, 2) int64.

        Raises:
            RuntimeError: if ``keep_matrices`` is off.
        """
        if not self.keep_matrices:
            raise RuntimeError(
                "the matrices were not kept; set keep_matrices before the first update"
            )
        return np.stack(self.kept_matrices)

    def bootstrap_inputs(self) -> dict[str, BootstrapInput]:
        """Return for each score its rows by image and its score function: see seg.metrics.significance."""
        # Pooled scores share one array of rows (B, C, 4), and so their resamples
        rows = self.images().numpy()
        names = [
            key for name in PIXEL_SCORES for key in (name, *(f"{name}/{c}" for c in self.classes))
        ]
        evidence: dict[str, BootstrapInput] = {
            n: (rows, partial(self.score_resamples, n)) for n in names
        }
        # Averages over images have rows of their own
        counts_B = ConfusionCounts.from_last_axis(self.images())
        for name in ("dice", "iou"):
            values_B = mean_over_present(PIXEL_SCORES[name](counts_B), counts_B).numpy()
            evidence[f"{name}_per_image"] = per_image_rows(values_B), mean_of_sums
        return evidence

    def score_resamples(self, name: str, sums: np.ndarray) -> np.ndarray:
        """Return a score (R,) by name from summed counts (R, C, 4)."""
        score, _, label = name.partition("/")
        counts = torch.from_numpy(sums)
        if not label:
            return mean_score(score, ConfusionCounts.from_last_axis(counts)).numpy()
        one_class = ConfusionCounts.from_last_axis(counts[:, self.classes.index(label)])
        return PIXEL_SCORES[score](one_class).numpy()

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name: ``dice``, ``dice/CLASS``, ``dice_per_image``, ``pixel_accuracy`` ...

        Raises:
            ValueError: if a mask held a value that is no class.
        """
        if self.invalid_pixels:
            raise ValueError(
                f"{int(self.invalid_pixels)} mask pixels are neither a class (0..{len(self.classes) - 1}) nor "
                f"{IGNORE} (ignore)"
            )
        # scores of the whole split
        scores: dict[str, Tensor] = {}
        split = ConfusionCounts.from_confusion(
            self.counts.cpu(), self.overlapping
        )  # some devices lack the float64 used below
        for name, score in PIXEL_SCORES.items():
            values_C = score(split)
            scores[name] = mean_score(name, split)
            scores |= {f"{name}/{c}": v for c, v in zip(self.classes, values_C, strict=True)}
        scores["pixel_accuracy"] = scores["accuracy"] if self.overlapping else pixel_accuracy(split)
        # mean and spread over images
        counts_B = ConfusionCounts.from_last_axis(self.images())
        for name in ("dice", "iou"):
            values_B = mean_over_present(PIXEL_SCORES[name](counts_B), counts_B)
            values_B = values_B[~values_B.isnan()]  # nan: every pixel of the image is ignored
            scores[f"{name}_per_image"] = values_B.mean()
            if len(values_B) > 1:
                scores[f"{name}_per_image_sd"] = values_B.std()
        return scores
