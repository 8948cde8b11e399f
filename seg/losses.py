"""Losses: logits (B, K, H, W) and a mask (B, H, W) in, the mean over what is not ignored out, in float32.

Legend for shapes: B images, K logits, C classes, H x W pixels, N pixels that count. One logit is the
two-class problem (seg.logits), so every loss serves binary and many classes alike.
"""

from collections.abc import Mapping
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.logits import IGNORE, probabilities


def log_probabilities(logits_BKHW: Tensor) -> Tensor:
    """Logarithms of the class probabilities (B, C, H, W), exact where the probability rounds to 0."""
    logits_BKHW = logits_BKHW.float()
    if logits_BKHW.shape[1] == 1:
        return F.logsigmoid(torch.cat([-logits_BKHW, logits_BKHW], dim=1))
    return logits_BKHW.log_softmax(dim=1)


def of_truth(values_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """The value of each pixel's true class (B, H, W); 0 where ignored."""
    valid_BHW = mask_BHW != IGNORE
    index_B1HW = mask_BHW.where(valid_BHW, 0).unsqueeze(1)
    return values_BCHW.gather(1, index_B1HW).squeeze(1) * valid_BHW


def mean_over_valid(values_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 when there are none."""
    return values_BHW.sum() / (mask_BHW != IGNORE).sum().clamp(min=1)


def overlaps(logits_BKHW: Tensor, mask_BHW: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Per class over the batch: sum p * g, sum p (or p^2) and sum g, each (C,), without ignored pixels."""
    valid_B1HW = (mask_BHW != IGNORE).unsqueeze(1)
    p_BCHW = probabilities(logits_BKHW) * valid_B1HW
    classes = torch.arange(p_BCHW.shape[1], device=mask_BHW.device).view(1, -1, 1, 1)
    g_BCHW = (mask_BHW.unsqueeze(1) == classes).float()  # an ignored pixel is 0 in each class
    pixels = (0, 2, 3)
    both_C = (p_BCHW * g_BCHW).sum(pixels)
    return both_C, (p_BCHW**2 if squared else p_BCHW).sum(pixels), g_BCHW.sum(pixels)


def weights_buffer(class_weights: list[float] | None) -> Tensor | None:
    if class_weights is not None and (not class_weights or min(class_weights) < 0):
        raise ValueError(
            f"class_weights are {class_weights}; give one number of at least 0 a class"
        )
    return None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)


def weight_of_truth(weights_C: Tensor | None, mask_BHW: Tensor, num_classes: int) -> Tensor | float:
    """The weight of each pixel's true class (B, H, W); 1 without weights."""
    if weights_C is None:
        return 1.0
    if len(weights_C) != num_classes:
        raise ValueError(
            f"class_weights has {len(weights_C)} numbers and the data {num_classes} classes: "
            "give one a class, in the order of data.classes"
        )
    return of_truth(
        weights_C.view(1, -1, 1, 1).expand(len(mask_BHW), -1, *mask_BHW.shape[1:]), mask_BHW
    )


class CrossEntropy(nn.Module):
    """-log p of the true class; with one logit this is binary cross-entropy (BCE).

    Args:
        class_weights: weight of each class's pixels; the mean stays over the number of pixels.
    """

    weights_C: Tensor | None

    def __init__(self, class_weights: list[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("weights_C", weights_buffer(class_weights), persistent=False)

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        log_p_BCHW = log_probabilities(logits_BKHW)
        weight = weight_of_truth(self.weights_C, mask_BHW, log_p_BCHW.shape[1])
        return mean_over_valid(-weight * of_truth(log_p_BCHW, mask_BHW), mask_BHW)


class Focal(nn.Module):
    """-(1 - p)^gamma log p of the true class. Lin et al. 2017, arXiv:1708.02002, eq. 4 and 5.

    Args:
        gamma: 0 gives cross-entropy; 2 in the paper.
        class_weights: the paper's alpha, one a class.
    """

    weights_C: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: list[float] | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma is {gamma}; it must be at least 0")
        self.gamma = gamma
        self.register_buffer("weights_C", weights_buffer(class_weights), persistent=False)

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        log_p_BCHW = log_probabilities(logits_BKHW)
        log_p_BHW = of_truth(log_p_BCHW, mask_BHW)
        # 1 - p from the other side: expm1 keeps its gradient finite where p rounds to 1
        hardness_BHW = (-torch.expm1(log_p_BHW)).clamp(min=1e-12) ** self.gamma
        weight = weight_of_truth(self.weights_C, mask_BHW, log_p_BCHW.shape[1])
        return mean_over_valid(-weight * hardness_BHW * log_p_BHW, mask_BHW)


class Dice(nn.Module):
    """1 - (2 sum p g + smooth) / (sum p + sum g + smooth), a class at a time over the batch, then the mean.

    Args:
        smooth: keeps the fraction defined and gentle where a class is absent.
        squared: sum p^2 + sum g^2 below, as in V-Net (Milletari et al. 2016, arXiv:1606.04797).
    """

    def __init__(self, smooth: float = 1.0, squared: bool = False) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth is {smooth}; it must be above 0")
        self.smooth, self.squared = smooth, squared

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        both_C, p_C, g_C = overlaps(logits_BKHW, mask_BHW, self.squared)
        return 1 - ((2 * both_C + self.smooth) / (p_C + g_C + self.smooth)).mean()


class Jaccard(nn.Module):
    """1 - (sum p g + smooth) / (sum p + sum g - sum p g + smooth): soft IoU, then the mean over classes.

    Args:
        smooth: keeps the fraction defined and gentle where a class is absent.
    """

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth is {smooth}; it must be above 0")
        self.smooth = smooth

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        both_C, p_C, g_C = overlaps(logits_BKHW, mask_BHW, squared=False)
        return 1 - ((both_C + self.smooth) / (p_C + g_C - both_C + self.smooth)).mean()


class Term(TypedDict):
    """One summand: its weight and the loss."""

    weight: float
    loss: nn.Module


class Sum(nn.Module):
    """Weighted sum of losses, each with a name.

    Args:
        terms: name -> weight and loss.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms is empty; a sum needs at least one loss")
        self.losses = nn.ModuleDict({name: term["loss"] for name, term in terms.items()})
        self.weights = {name: term["weight"] for name, term in terms.items()}

    def named(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> dict[str, Tensor]:
        """Each term's own value, not yet weighted."""
        return {name: loss(logits_BKHW, mask_BHW) for name, loss in self.losses.items()}

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        return self.total(self.named(logits_BKHW, mask_BHW))

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the named values."""
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


def judge(
    loss: nn.Module, heads: list[Tensor], mask_BHW: Tensor, weights: list[float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and each term of a sum by name: the weighted mean over a supervised network's heads."""

    def mean(values: list[Tensor]) -> Tensor:
        if weights is None or len(values) == 1:
            return torch.stack(values).mean()
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        return torch.stack(weighted).sum() / sum(weights)

    if not isinstance(loss, Sum):
        return mean([loss(logits, mask_BHW) for logits in heads]), {}
    values = [loss.named(logits, mask_BHW) for logits in heads]
    terms = {name: mean([value[name] for value in values]) for name in values[0]}
    return loss.total(terms), terms
