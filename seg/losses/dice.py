"""Overlap losses: soft Dice, soft Jaccard (IoU) and Tversky, the mean over classes of the whole batch.

p is the probability and g the truth (0 or 1) of a class, or of a label if labels overlap; sums run over
the valid pixels of the batch, and the mean over all classes: both of a binary problem. Papers differ in both:
``per_image`` sums over each image alone, ``foreground_only`` leaves out class 0. The code computes (errors) / (total + smooth), which equals the formulas
below, avoids cancellation near 0 and is never negative.

Shape suffixes: B images, K logits, C classes, H x W pixels.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from seg.losses.additive import AdditiveLoss
from seg.losses.targets import has_label_planes, probabilities_and_one_hot
from seg.ranges import check_ranges


def summed_dims(per_image: bool) -> tuple[int, ...]:
    """Return the dimensions of (B, C, H, W) that sums run over: with ``per_image`` all but B and C."""
    return (2, 3) if per_image else (0, 2, 3)


class OverlapLoss(AdditiveLoss):
    """Base class of losses (errors) / (total) of each class, from two sums over pixels.

    Args:
        per_image: whether sums run over each image alone, and the loss is the mean over images; False: over the batch.
        foreground_only: whether class 0 is left out of the mean over classes.
        smooth: added to the totals.
    """

    def __init__(self, per_image: bool, foreground_only: bool, smooth: float) -> None:
        super().__init__()
        self.dims, self.foreground_only, self.smooth = (
            summed_dims(per_image),
            foreground_only,
            smooth,
        )

    def errors_and_totals(self, p_BCHW: Tensor, g_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sums over pixels of probabilities and truth, each (C,) or (B, C)."""
        raise NotImplementedError

    def pixel_sums(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return errors and totals, (2, C) or (2, B, C).

        Raises:
            ValueError: if ``foreground_only`` is on and labels overlap.
        """
        if self.foreground_only and has_label_planes(mask):
            raise ValueError(
                "foreground_only is on, but labels overlap: none of them is the background"
            )
        p_BCHW, g_BCHW, _ = probabilities_and_one_hot(logits_BKHW, mask)
        return torch.stack(self.errors_and_totals(p_BCHW, g_BCHW))

    def from_sums(self, sums: Tensor) -> Tensor:
        """Return the mean over classes, with ``foreground_only`` without class 0."""
        errors, totals = sums
        loss = errors / (totals + self.smooth)
        return loss[..., 1:].mean() if self.foreground_only else loss.mean()


class Dice(OverlapLoss):
    """Soft Dice loss 1 - (2 sum p g + smooth) / (sum p + sum g + smooth).

    The denominator without squares is that of nnU-Net and MONAI, the one with squares that of V-Net:
    Milletari et al. 2016, arXiv:1606.04797, section 3.

    Args:
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.
        squared: whether the denominator is sum p^2 + sum g^2.
        per_image: whether sums run over each image alone, and the loss is the mean over images; False: over the batch.
        foreground_only: whether class 0 is left out of the mean over classes.

    Raises:
        ValueError: if smooth is not above 0, or labels overlap with ``foreground_only``.
    """

    @check_ranges
    def __init__(
        self,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        squared: bool = False,
        per_image: bool = False,
        foreground_only: bool = False,
    ) -> None:
        super().__init__(per_image, foreground_only, smooth)
        self.squared = squared

    def errors_and_totals(self, p_BCHW: Tensor, g_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        error_BCHW = p_BCHW - g_BCHW  # |p - g| = p + g - 2 p g and (p - g)^2 = p^2 + g^2 - 2 p g
        error = (error_BCHW**2 if self.squared else error_BCHW.abs()).sum(self.dims)
        size = (p_BCHW**2 if self.squared else p_BCHW).sum(self.dims) + g_BCHW.sum(self.dims)
        return error, size


class Tversky(OverlapLoss):
    """Tversky loss 1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth).

    TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g. Salehi et al. 2017, arXiv:1706.05721, eq. 3. With
    alpha = beta = 0.5 it equals Dice with twice the ``smooth``, with alpha = beta = 1 Jaccard.

    Args:
        alpha: weight of false positives, 0 or more.
        beta: weight of false negatives, 0 or more; above alpha it favours recall over precision.
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.
        per_image: whether sums run over each image alone, as in ``Dice``.
        foreground_only: whether class 0 is left out of the mean over classes.

    Raises:
        ValueError: if an argument is out of range, both weights are 0, or labels overlap with ``foreground_only``.
    """

    @check_ranges
    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0)] = 0.3,
        beta: Annotated[float, Field(ge=0)] = 0.7,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        per_image: bool = False,
        foreground_only: bool = False,
    ) -> None:
        super().__init__(per_image, foreground_only, smooth)
        if alpha + beta == 0:
            raise ValueError("alpha and beta are 0; one of them must be above 0")
        self.alpha, self.beta = alpha, beta

    def errors_and_totals(self, p_BCHW: Tensor, g_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        # Soft counts over the valid pixels, and eq. 3 of the Tversky loss on them.
        tp = (p_BCHW * g_BCHW).sum(self.dims)
        fp = (p_BCHW * (1 - g_BCHW)).sum(self.dims)
        fn = ((1 - p_BCHW) * g_BCHW).sum(self.dims)
        error = self.alpha * fp + self.beta * fn
        return error, tp + error


class Jaccard(Tversky):
    """Soft Jaccard (IoU) loss 1 - (sum p g + smooth) / (sum p + sum g - sum p g + smooth).

    Rahman and Wang 2016, "Optimizing intersection-over-union in deep neural networks", eq. 3 to 5. Equal to
    Tversky with alpha = beta = 1.

    Args:
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.
        per_image: whether sums run over each image alone, as in ``Dice``.
        foreground_only: whether class 0 is left out of the mean over classes.

    Raises:
        ValueError: if smooth is not above 0, or labels overlap with ``foreground_only``.
    """

    @check_ranges
    def __init__(
        self,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
        per_image: bool = False,
        foreground_only: bool = False,
    ) -> None:
        super().__init__(1.0, 1.0, smooth, per_image, foreground_only)
