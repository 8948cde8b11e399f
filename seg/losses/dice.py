"""Overlap losses: soft Dice, soft Jaccard (IoU) and Tversky, the mean over classes of the whole batch.

p is the probability and g the truth (0 or 1) of a class, or of a label if labels overlap; sums run over
the valid pixels of the batch. The code computes (errors) / (total + smooth), which equals the formulas
below, avoids cancellation near 0 and is never negative.

Shape suffixes: B images, K logits, C classes, H x W pixels.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from seg.losses.targets import probabilities_and_one_hot
from seg.ranges import check_ranges

SUMMED_DIMS = (0, 2, 3)  # dimensions of (B, C, H, W) that sums run over


class Dice(nn.Module):
    """Soft Dice loss 1 - (2 sum p g + smooth) / (sum p + sum g + smooth).

    The denominator without squares is that of nnU-Net and MONAI, the one with squares that of V-Net:
    Milletari et al. 2016, arXiv:1606.04797, section 3.

    Args:
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.
        squared: whether the denominator is sum p^2 + sum g^2.

    Raises:
        ValueError: if smooth is not above 0.
    """

    @check_ranges
    def __init__(self, smooth: Annotated[float, Field(gt=0)] = 1.0, squared: bool = False) -> None:
        super().__init__()
        self.smooth, self.squared = smooth, squared

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_one_hot(logits_BKHW, mask)
        error_BCHW = p_BCHW - g_BCHW  # |p - g| = p + g - 2 p g and (p - g)^2 = p^2 + g^2 - 2 p g
        error_C = (error_BCHW**2 if self.squared else error_BCHW.abs()).sum(SUMMED_DIMS)
        size_C = (p_BCHW**2 if self.squared else p_BCHW).sum(SUMMED_DIMS) + g_BCHW.sum(SUMMED_DIMS)
        return (error_C / (size_C + self.smooth)).mean()


class Jaccard(nn.Module):
    """Soft Jaccard (IoU) loss 1 - (sum p g + smooth) / (sum p + sum g - sum p g + smooth).

    Rahman and Wang 2016, "Optimizing intersection-over-union in deep neural networks", eq. 3 to 5. Equal to
    Tversky with alpha = beta = 1.

    Args:
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.

    Raises:
        ValueError: if smooth is not above 0.
    """

    @check_ranges
    def __init__(self, smooth: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.tversky = Tversky(alpha=1.0, beta=1.0, smooth=smooth)

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        return self.tversky(logits_BKHW, mask)


class Tversky(nn.Module):
    """Tversky loss 1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth).

    TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g. Salehi et al. 2017, arXiv:1706.05721, eq. 3. With
    alpha = beta = 0.5 it equals Dice with twice the ``smooth``, with alpha = beta = 1 Jaccard.

    Args:
        alpha: weight of false positives, 0 or more.
        beta: weight of false negatives, 0 or more; above alpha it favours recall over precision.
        smooth: above 0; keeps the fraction defined and its gradient small where a class is absent.

    Raises:
        ValueError: if an argument is out of range, or both weights are 0.
    """

    @check_ranges
    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0)] = 0.3,
        beta: Annotated[float, Field(ge=0)] = 0.7,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        if alpha + beta == 0:
            raise ValueError("alpha and beta are 0; one of them must be above 0")
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_one_hot(logits_BKHW, mask)
        # Soft counts over the batch's valid pixels, and eq. 3 of the Tversky loss on them.
        tp_C = (p_BCHW * g_BCHW).sum(SUMMED_DIMS)
        fp_C = (p_BCHW * (1 - g_BCHW)).sum(SUMMED_DIMS)
        fn_C = ((1 - p_BCHW) * g_BCHW).sum(SUMMED_DIMS)
        error_C = self.alpha * fp_C + self.beta * fn_C
        return (error_C / (tp_C + error_C + self.smooth)).mean()
