"""Losses that are a mean over pixels, each weighed by how it stands with its own truth."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg.losses.targets import (
    likelihood,
    mean_over_valid,
    overlaps,
    weight_of_truth,
    weights_buffer,
)


def count_classes(logits_BKHW: Tensor, mask: Tensor) -> int:
    """C: one logit speaks for two classes, unless labels overlap."""
    k = logits_BKHW.shape[1]
    return 2 if k == 1 and not overlaps(mask) else k


class CrossEntropy(nn.Module):
    """mean(-w log p) of the true class; one logit or overlapping labels: binary cross-entropy (BCE).

    Ronneberger et al. 2015, arXiv:1505.04597, eq. 1 with w = 1 or of the class alone.

    Args:
        class_weights: w of each class's pixels (of each label, where they overlap); None: 1. The mean
            stays over the number of pixels. ``auto``: seg.train takes 1 / (C share) of the training
            split, so that each class weighs the same and the mean weight is 1.
    """

    weights_C: Tensor | None

    def __init__(
        self, class_weights: list[Annotated[float, Field(ge=0)]] | Literal["auto"] | None = None
    ) -> None:
        super().__init__()
        weights = weights_buffer("class_weights", class_weights)
        self.register_buffer("weights_C", weights, persistent=False)

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        loss = -likelihood(logits_BKHW, mask)
        if self.weights_C is not None:
            classes = count_classes(logits_BKHW, mask)
            loss = loss * weight_of_truth(self.weights_C, mask, classes, "class_weights")
        return mean_over_valid(loss, mask)


class WeightedBCE(nn.Module):
    """mean(-w log p), w = pos_weight where class 1 of two (or a label) is true, else 1.

    -(w g log p + (1 - g) log(1 - p)), as torch.nn.BCEWithLogitsLoss(pos_weight=w); the balance of Xie and
    Tu 2015 (HED, arXiv:1504.06375, eq. 2) up to a factor when w is negatives over positives.

    Args:
        pos_weight: w, 0 or more; one a label where they overlap, or one for all. ``auto``: seg.train
            takes the training split's negatives over positives.

    Raises:
        ValueError: from ``forward``, with more than two classes.
    """

    weights: Tensor

    def __init__(
        self,
        pos_weight: Annotated[float, Field(ge=0)]
        | list[Annotated[float, Field(ge=0)]]
        | Literal["auto"],
    ) -> None:
        super().__init__()
        single = isinstance(pos_weight, int | float)
        weights = weights_buffer("pos_weight", [float(pos_weight)] if single else pos_weight)
        if weights is None:
            raise ValueError("pos_weight is null; give a number, or take loss=bce")
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        k = logits_BKHW.shape[1]
        if not overlaps(mask) and k > 2:
            raise ValueError(
                f"pos_weight is for two classes and these are {k}; take loss=cross_entropy "
                "loss.class_weights=auto"
            )
        if len(self.weights) not in (1, k if overlaps(mask) else 1):
            raise ValueError(
                f"pos_weight has {len(self.weights)} numbers; give one"
                f"{f', or {k}: one a label' if overlaps(mask) else ''}"
            )
        weight = self.weights.view(1, -1, 1, 1) if overlaps(mask) else self.weights
        loss = -likelihood(logits_BKHW, mask) * torch.where(mask == 1, weight, 1.0)
        return mean_over_valid(loss, mask)


class Focal(nn.Module):
    """mean(-alpha (1 - p)^gamma log p) of the true class. Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5.

    Args:
        gamma: 0 gives cross-entropy; 2 in the paper.
        alpha: weight of class 1 of two (of a label's being there), 1 - alpha weighs the other: 0.25 in
            the paper; more classes: a list of one each; None: 1.
    """

    alpha_C: Tensor | None

    def __init__(
        self,
        gamma: Annotated[float, Field(ge=0)] = 2.0,
        alpha: Annotated[float, Field(ge=0, le=1)]
        | list[Annotated[float, Field(ge=0)]]
        | None = None,
    ) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}; it must be at least 0")
        if isinstance(alpha, int | float):
            if not 0 <= alpha <= 1:
                raise ValueError(f"alpha is {alpha}; one number must lie in 0..1")
            alpha = [1 - alpha, alpha]
            self.single = True
        else:
            self.single = False
        self.gamma = gamma
        self.register_buffer("alpha_C", weights_buffer("alpha", alpha), persistent=False)

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        log_p = likelihood(logits_BKHW, mask)
        # 1 - p from the other side: expm1 keeps its gradient finite where p rounds to 1
        hardness = (-torch.expm1(log_p)).clamp(min=1e-12) ** self.gamma
        loss = -hardness * log_p
        if self.alpha_C is not None and self.single and overlaps(mask):
            loss = loss * torch.where(mask == 1, self.alpha_C[1], self.alpha_C[0])
        elif self.alpha_C is not None:
            classes = count_classes(logits_BKHW, mask)
            if self.single and classes > 2:
                raise ValueError(
                    f"alpha is one number and these are {classes} classes; give a list of one each"
                )
            loss = loss * weight_of_truth(self.alpha_C, mask, classes, "alpha")
        return mean_over_valid(loss, mask)
