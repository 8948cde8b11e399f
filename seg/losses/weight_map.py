"""Weighted cross-entropy of the U-Net paper: gaps between neighbouring cells weigh most."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from seg.losses.additive import PixelLoss
from seg.losses.cross_entropy import count_classes
from seg.losses.targets import (
    log_likelihood,
    make_weights_buffer,
    weight_true_class,
)
from seg.objects import label_components, nearest_two
from seg.ranges import check_ranges


class WeightMap(PixelLoss):
    """Weighted cross-entropy mean(-w log p), w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)).

    d1 and d2 are the distances to the nearest and to the second nearest cell; cells are the 4-connected
    regions of a class, or of a label. Ronneberger et al. 2015, arXiv:1505.04597, eq. 1 and 2. Differs: the
    mean over pixels instead of the sum. The second term is taken as 0 inside cells, which the paper leaves
    open.

    Args:
        w0: weight of a gap of no width, 0 or more; 10 in the paper.
        sigma: decay of the weight with the width of the gap, px; about 5 in the paper.
        class_weights: w_c of each class; None: 1; ``auto``: seg.train computes them from the training split.
        cells: indices of the classes whose regions are cells; None: class 1. Unused if labels overlap.

    Raises:
        ValueError: if an argument is out of range; from ``forward``, if cells holds an index that is no class.
    """

    weights_C: Tensor | None

    @check_ranges
    def __init__(
        self,
        w0: Annotated[float, Field(ge=0)] = 10.0,
        sigma: Annotated[float, Field(gt=0)] = 5.0,
        class_weights: list[Annotated[float, Field(ge=0)]] | Literal["auto"] | None = None,
        cells: list[Annotated[int, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__()
        self.w0, self.sigma, self.cells = w0, sigma, [1] if cells is None else cells
        weights = make_weights_buffer("class_weights", class_weights)
        self.register_buffer("weights_C", weights, persistent=False)

    def gaps(self, mask: np.ndarray, objects: np.ndarray | None = None) -> np.ndarray:
        """Return the second term of w, float32.

        Args:
            mask: class indices (H, W), or one plane per label (K, H, W).
            objects: number of each pixel's object (H, W), by which cells that touch are told apart; None: the
                regions of the mask are the cells.
        """
        if mask.ndim == 3:
            planes = [label_cells(plane, [1]) for plane in mask]
            return np.stack([gap_weights(labels, self.w0, self.sigma) for labels in planes])
        if objects is not None:
            labels = np.where(np.isin(mask, self.cells), np.maximum(objects, 0), 0)
        else:
            labels = label_cells(mask, self.cells)
        return gap_weights(labels, self.w0, self.sigma)

    def pixel_values(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return the loss of each pixel.

        Args:
            logits_BKHW: logits of the network.
            mask: class indices, or 0 and 1 for each label.
            gaps: second term of w, of the mask's shape. The loader computes it from whole images and crops
                it with the mask; None: computed from this mask.
        """
        log_p = log_likelihood(logits_BKHW, mask)
        classes = count_classes(logits_BKHW, mask)
        # A mask of class indices (B, H, W) needs the classes that are cells
        if mask.ndim == 3 and not (self.cells and set(self.cells) <= set(range(classes))):
            raise ValueError(f"cells is {self.cells}; give class indices, 0..{classes - 1}")
        # Without the loader's map, compute it from the mask, on the CPU
        if gaps is None:
            computed = np.stack([self.gaps(image) for image in mask.cpu().numpy()])
            gaps = torch.from_numpy(computed).to(mask.device)
        weight: Tensor | float = 1.0
        if self.weights_C is not None:
            weight = weight_true_class(self.weights_C, mask, classes, "class_weights")
        return -(weight + gaps) * log_p


def label_cells(mask: np.ndarray, cells: list[int]) -> np.ndarray:
    """Return the number of each pixel's region of one of the classes ``cells``, 0 elsewhere."""
    labels = np.zeros(mask.shape, np.int32)
    for value in cells:
        regions = label_components(mask == value)
        labels[regions > 0] = regions[regions > 0] + labels.max()
    return labels


def gap_weights(labels_HW: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    """Return w0 exp(-(d1 + d2)^2 / (2 sigma^2)) outside cells and 0 inside them, (H, W) float32.

    Distances are computed up to 6 sigma from each cell; farther away the term is below 2e-8 w0.

    Args:
        labels_HW: number of each cell, 0 outside.
        w0: weight of a gap of no width.
        sigma: decay, px.
    """
    # d1 and d2 of Eq. 2 of the U-Net paper, for pixels between cells
    nearest, second, _ = nearest_two(labels_HW, int(np.ceil(6 * sigma)))
    weight = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(labels_HW == 0, weight, 0).astype(np.float32)
