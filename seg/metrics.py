"""Dice, IoU and friends from one confusion matrix, counted over a whole split.

Legend for shapes: B images, C classes, H x W pixels.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.logits import IGNORE


def confusion(prediction_BHW: Tensor, mask_BHW: Tensor, num_classes: int) -> Tensor:
    """Pixel counts (B, C, C) int64 of each image: rows are the truth, columns the prediction.

    Raises:
        ValueError: when a mask value is neither a class nor 255; on a CPU only, a GPU isn't waited for.
    """
    if mask_BHW.device.type == "cpu":
        check_values(mask_BHW, num_classes)
    images, cells = len(mask_BHW), num_classes**2
    cell_BHW = (mask_BHW * num_classes + prediction_BHW).where(mask_BHW != IGNORE, cells)
    counts = torch.zeros(images, cells + 1, dtype=torch.int64, device=mask_BHW.device)
    counts.scatter_add_(1, cell_BHW.flatten(1), torch.ones_like(cell_BHW).flatten(1))
    return counts[:, :cells].view(images, num_classes, num_classes)


def check_values(mask_BHW: Tensor, num_classes: int) -> None:
    wrong = (mask_BHW != IGNORE) & ((mask_BHW < 0) | (mask_BHW >= num_classes))
    if wrong.any():
        values = mask_BHW[wrong].unique().tolist()[:8]
        raise ValueError(
            f"mask holds {values}; allowed are 0..{num_classes - 1} and {IGNORE} (ignore)"
        )


def dice(counts: Tensor) -> Tensor:
    """Dice (= F1) of each class (..., C) in 0..1; nan where it occurs in neither truth nor prediction."""
    return 2 * hits(counts) / (counts.sum(-1) + counts.sum(-2)).double()


def iou(counts: Tensor) -> Tensor:
    """IoU (= Jaccard) of each class (..., C) in 0..1; nan where it occurs nowhere."""
    return hits(counts) / (counts.sum(-1) + counts.sum(-2) - hits(counts)).double()


def precision(counts: Tensor) -> Tensor:
    """Share of a class's predicted pixels that are right (..., C); nan where none is predicted."""
    return hits(counts) / counts.sum(-2).double()


def recall(counts: Tensor) -> Tensor:
    """Share of a class's true pixels that are found (..., C); nan where there are none."""
    return hits(counts) / counts.sum(-1).double()


def accuracy(counts: Tensor) -> Tensor:
    """Share of the pixels that are right (...)."""
    return hits(counts).sum(-1) / counts.sum((-2, -1)).double()


def hits(counts: Tensor) -> Tensor:
    return counts.diagonal(dim1=-2, dim2=-1)


class SegmentationMetrics(Metric):
    """Scores of a split from its confusion matrix, and the spread of the images' own mean Dice.

    ``dice`` and ``iou`` are means over the classes that occur, of counts over the whole split: never an
    average of batches. ``dice_per_image`` averages each image's own mean Dice instead.

    Args:
        classes: names in the order of the mask's values.
    """

    full_state_update = False
    counts_CC: Tensor
    counts_BCC: list[Tensor]

    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.classes = classes
        zeros = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.add_state("counts_CC", zeros, dist_reduce_fx="sum")
        self.add_state("counts_BCC", [], dist_reduce_fx="cat")

    def update(self, prediction_BHW: Tensor, mask_BHW: Tensor) -> None:
        counts_BCC = confusion(prediction_BHW, mask_BHW, len(self.classes))
        self.counts_CC += counts_BCC.sum(0)
        self.counts_BCC.append(counts_BCC)

    def compute(self) -> dict[str, Tensor]:
        """Scores by name: ``dice``, ``iou``, ``accuracy``, ``dice/CLASS``, ``dice_per_image`` and so on."""
        scores: dict[str, Tensor] = {}
        counts_CC = self.counts_CC.cpu()  # float64 below, which not every device has
        by_class = {"dice": dice, "iou": iou, "precision": precision, "recall": recall}
        for name, score in by_class.items():
            values_C = score(counts_CC)
            if name in ("dice", "iou"):
                scores[name] = values_C.nanmean()
            scores |= {f"{name}/{c}": v for c, v in zip(self.classes, values_C, strict=True)}
        scores["accuracy"] = accuracy(counts_CC)
        per_image_B = dice(dim_zero_cat(self.counts_BCC).cpu()).nanmean(-1)
        per_image_B = per_image_B[
            ~per_image_B.isnan()
        ]  # an image that is ignored throughout has none
        scores["dice_per_image"] = per_image_B.mean()
        if len(per_image_B) > 1:
            scores["dice_per_image_sd"] = per_image_B.std()
        return scores
