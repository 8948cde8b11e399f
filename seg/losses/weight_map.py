"""The U-Net paper's weighted cross-entropy: the gaps between neighbouring cells weigh most."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.ndimage import distance_transform_edt, find_objects, label
from torch import Tensor, nn

from seg.losses.cross_entropy import count_classes
from seg.losses.targets import likelihood, mean_over_valid, weight_of_truth, weights_buffer


class WeightMap(nn.Module):
    """mean(-w(x) log p) of the true class, w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)).

    Ronneberger et al. 2015, arXiv:1505.04597, eq. 1 and 2. d1 and d2 are the distances to the nearest and
    to the second nearest cell; cells are the 4-connected regions of a class, or of a label. Reads the
    paper so: within a cell the second term is 0. Differs: a mean over the pixels, where the paper sums.

    Args:
        w0: 10 in the paper.
        sigma: px; about 5 in the paper.
        class_weights: w_c of each class; None: 1; ``auto``: seg.train takes them from the training split.
        cells: indices of the classes whose regions are cells (of masks with one class a pixel).
    """

    weights_C: Tensor | None

    def __init__(
        self,
        w0: Annotated[float, Field(ge=0)] = 10.0,
        sigma: Annotated[float, Field(gt=0)] = 5.0,
        class_weights: list[Annotated[float, Field(ge=0)]] | Literal["auto"] | None = None,
        cells: list[Annotated[int, Field(ge=0)]] | None = None,
    ) -> None:
        super().__init__()
        if not (w0 >= 0 and sigma > 0):
            raise ValueError(f"w0 is {w0} and sigma {sigma}; w0 must be 0 or more, sigma above 0")
        self.w0, self.sigma, self.cells = w0, sigma, [1] if cells is None else cells
        weights = weights_buffer("class_weights", class_weights)
        self.register_buffer("weights_C", weights, persistent=False)

    def gaps(self, mask: np.ndarray) -> np.ndarray:
        """The second term of w for a mask (H, W), or a plane a label (K, H, W): float32 of that shape."""
        if mask.ndim == 3:
            return np.stack([gap_weights(plane, [1], self.w0, self.sigma) for plane in mask])
        return gap_weights(mask, self.cells, self.w0, self.sigma)

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            logits_BKHW: of the network.
            mask: the truth.
            gaps: second term of w, of the mask's shape, from the whole images, as the loader gives it;
                None: computed from this mask.
        """
        log_p = likelihood(logits_BKHW, mask)
        classes = count_classes(logits_BKHW, mask)
        if mask.ndim == 3 and not (self.cells and set(self.cells) <= set(range(classes))):
            raise ValueError(f"cells is {self.cells}; give class indices, 0..{classes - 1}")
        if gaps is None:
            computed = np.stack([self.gaps(one) for one in mask.cpu().numpy()])
            gaps = torch.from_numpy(computed).to(mask.device)
        weight: Tensor | float = 1.0
        if self.weights_C is not None:
            weight = weight_of_truth(self.weights_C, mask, classes, "class_weights")
        return mean_over_valid(-(weight + gaps) * log_p, mask)


def gap_weights(mask_HW: np.ndarray, cells: list[int], w0: float, sigma: float) -> np.ndarray:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) outside of cells, 0 within them; (H, W) float32.

    Distances are looked for 6 sigma around each cell: beyond, the term is below 2e-8 w0.
    """
    reach = int(np.ceil(6 * sigma))
    nearest = np.full(mask_HW.shape, np.inf)
    second = np.full(mask_HW.shape, np.inf)
    for value in cells:
        regions, _ = label(mask_HW == value)
        for number, box in enumerate(find_objects(regions), start=1):
            around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
            distance = distance_transform_edt(regions[around] != number)
            farther = np.maximum(nearest[around], distance)
            second[around] = np.minimum(second[around], farther)
            nearest[around] = np.minimum(nearest[around], distance)
    outside = ~np.isin(mask_HW, cells)
    return np.where(outside, w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)), 0).astype(
        np.float32
    )
