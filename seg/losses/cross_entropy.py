"""Losses of single pixels: cross-entropy, weighted binary cross-entropy and focal loss."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from seg.losses.additive import PixelLoss
from seg.losses.targets import (
    has_label_planes,
    log_likelihood,
    make_weights_buffer,
    weight_true_class,
)
from seg.ranges import check_ranges


def count_classes(logits_BKHW: Tensor, mask: Tensor) -> int:
    """Return C: 2 for one logit, K otherwise and for overlapping labels."""
    k = logits_BKHW.shape[1]
    return 2 if k == 1 and not has_label_planes(mask) else k


class CrossEntropy(PixelLoss):
    """Cross-entropy mean(-w log p) of the true class; binary (BCE) for one logit or overlapping labels.

    Ronneberger et al. 2015, arXiv:1505.04597, eq. 1, where w depends on the class only.

    Args:
        class_weights: w of each class, or of each label if labels overlap; None: 1. The divisor stays the
            number of pixels. ``auto``: seg.train replaces it by 1 / (C share) of the training split, so that
            every class contributes the same and the mean weight is 1.

    Raises:
        ValueError: if a weight is below 0; from ``forward``, if their number is not that of the classes.
    """

    weights_C: Tensor | None

    @check_ranges
    def __init__(
        self, class_weights: list[Annotated[float, Field(ge=0)]] | Literal["auto"] | None = None
    ) -> None:
        super().__init__()
        weights = make_weights_buffer("class_weights", class_weights)
        self.register_buffer("weights_C", weights, persistent=False)

    def pixel_values(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        loss = -log_likelihood(logits_BKHW, mask)
        if self.weights_C is not None:
            classes = count_classes(logits_BKHW, mask)
            loss = loss * weight_true_class(self.weights_C, mask, classes, "class_weights")
        return loss


class WeightedBCE(PixelLoss):
    """Binary cross-entropy mean(-(w g log p + (1 - g) log(1 - p))): pixels of class 1, or of a label, weigh w.

    Equal to torch.nn.BCEWithLogitsLoss(pos_weight=w). With w = negatives / positives it is the balanced
    loss of Xie and Tu 2015 (HED, arXiv:1504.06375, eq. 2) up to a factor.

    Args:
        pos_weight: w, 0 or more; for overlapping labels one number, or one for each label. ``auto``:
            seg.train replaces it by negatives / positives of the training split.

    Raises:
        ValueError: if a weight is below 0; from ``forward``, if there are more than two classes or the
            number of weights is not that of the labels.
    """

    weights: Tensor

    @check_ranges
    def __init__(
        self,
        pos_weight: Annotated[float, Field(ge=0)]
        | list[Annotated[float, Field(ge=0)]]
        | Literal["auto"],
    ) -> None:
        super().__init__()
        single = isinstance(pos_weight, int | float)
        weights = make_weights_buffer("pos_weight", [float(pos_weight)] if single else pos_weight)
        if weights is None:
            raise ValueError("pos_weight is null; give a number, or use loss=bce")
        self.register_buffer("weights", weights, persistent=False)

    def pixel_values(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        # Check the number of weights against that of logits or labels
        k = logits_BKHW.shape[1]
        if not has_label_planes(mask) and k > 2:
            raise ValueError(
                f"pos_weight is for two classes and there are {k}; use loss=cross_entropy "
                "loss.class_weights=auto"
            )
        if len(self.weights) not in (1, k if has_label_planes(mask) else 1):
            raise ValueError(
                f"pos_weight has {len(self.weights)} numbers; give one"
                f"{f', or {k}: one for each label' if has_label_planes(mask) else ''}"
            )
        # Weight the positive pixels, one factor for all or one for each label
        weight = self.weights.view(1, -1, 1, 1) if has_label_planes(mask) else self.weights
        loss = -log_likelihood(logits_BKHW, mask) * torch.where(mask == 1, weight, 1.0)
        return loss


class Focal(PixelLoss):
    """Focal loss mean(-alpha (1 - p)^gamma log p) of the true class.

    Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5.

    Args:
        gamma: focusing parameter, 0 or more; 0 gives cross-entropy; 2 in the paper.
        alpha: weight of class 1 of two, or of the pixels that have a label; the other pixels weigh
            1 - alpha; 0.25 in the paper. For more classes a list with one weight each. None: 1.

    Raises:
        ValueError: if an argument is out of range; from ``forward``, if the number of weights is not that
            of the classes.
    """

    alpha_C: Tensor | None

    @check_ranges
    def __init__(
        self,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        alpha: Annotated[float, Field(ge=0, le=1)]
        | list[Annotated[float, Field(ge=0)]]
        | None = None,
    ) -> None:
        super().__init__()
        if isinstance(alpha, int | float):
            alpha = [1 - alpha, alpha]
            self.single = True
        else:
            self.single = False
        self.gamma = gamma
        self.register_buffer("alpha_C", make_weights_buffer("alpha", alpha), persistent=False)

    def pixel_values(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        log_p = log_likelihood(logits_BKHW, mask)
        # 1 - p as -expm1(log p): its gradient stays finite where p rounds to 1
        hardness = (-torch.expm1(log_p)).clamp(min=1e-12) ** self.gamma
        loss = -hardness * log_p
        # Eq. 5: weight alpha by the true class.
        if self.alpha_C is not None and self.single and has_label_planes(mask):
            loss = loss * torch.where(mask == 1, self.alpha_C[1], self.alpha_C[0])
        elif self.alpha_C is not None:
            classes = count_classes(logits_BKHW, mask)
            if self.single and classes > 2:
                raise ValueError(
                    f"alpha is one number and there are {classes} classes; give a list with one weight each"
                )
            loss = loss * weight_true_class(self.alpha_C, mask, classes, "alpha")
        return loss
