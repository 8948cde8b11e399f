"""Losses of how prediction and truth overlap: a class at a time over the whole batch, then their mean.

For p the probability and g the truth of a class (of a label, where they overlap), with sums over the
pixels that count. Each is written as (what is wrong) / (all + smooth), which equals the formula shown:
nothing cancels near 0, and nothing falls below it. Legend for shapes: B images, K logits, C classes, H x W pixels.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from seg.losses.targets import probabilities_and_truth

PIXELS = (0, 2, 3)  # the dims of (B, C, H, W) that are summed


class Dice(nn.Module):
    """1 - (2 sum p g + smooth) / (sum p + sum g + smooth): soft Dice.

    The plain denominator is nnU-Net's and MONAI's; the squared one is V-Net's: Milletari et al. 2016,
    arXiv:1606.04797, section 3.

    Args:
        smooth: above 0; keeps the fraction defined and gentle where a class is absent.
        squared: sum p^2 + sum g^2 below, as in V-Net.
    """

    def __init__(self, smooth: Annotated[float, Field(gt=0)] = 1.0, squared: bool = False) -> None:
        super().__init__()
        check_smooth(smooth)
        self.smooth, self.squared = smooth, squared

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_truth(logits_BKHW, mask)
        gap_BCHW = p_BCHW - g_BCHW  # p + g - 2 p g is its size, p^2 + g^2 - 2 p g its square
        gap_C = (gap_BCHW**2 if self.squared else gap_BCHW.abs()).sum(PIXELS)
        size_C = (p_BCHW**2 if self.squared else p_BCHW).sum(PIXELS) + g_BCHW.sum(PIXELS)
        return (gap_C / (size_C + self.smooth)).mean()


class Jaccard(nn.Module):
    """1 - (sum p g + smooth) / (sum p + sum g - sum p g + smooth): soft IoU.

    Rahman and Wang 2016, "Optimizing intersection-over-union in deep neural networks", eq. 3 to 5; it is
    Tversky with alpha = beta = 1.

    Args:
        smooth: above 0; keeps the fraction defined and gentle where a class is absent.
    """

    def __init__(self, smooth: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.tversky = Tversky(alpha=1.0, beta=1.0, smooth=smooth)

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        return self.tversky(logits_BKHW, mask)


class Tversky(nn.Module):
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth). Salehi et al. 2017, arXiv:1706.05721, eq. 3.

    TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g. With alpha = beta = 0.5 it is Dice of twice the
    ``smooth``, with 1 and 1 it is Jaccard.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives; above alpha: what is missed costs more than what is invented.
        smooth: above 0; keeps the fraction defined and gentle where a class is absent.
    """

    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0)] = 0.3,
        beta: Annotated[float, Field(ge=0)] = 0.7,
        smooth: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
            raise ValueError(f"alpha is {alpha} and beta {beta}; give 0 or more, one above 0")
        check_smooth(smooth)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_truth(logits_BKHW, mask)
        hit_C = (p_BCHW * g_BCHW).sum(PIXELS)
        false_C = (p_BCHW * (1 - g_BCHW)).sum(PIXELS)
        missed_C = ((1 - p_BCHW) * g_BCHW).sum(PIXELS)
        wrong_C = self.alpha * false_C + self.beta * missed_C
        return (wrong_C / (hit_C + wrong_C + self.smooth)).mean()


def check_smooth(smooth: float) -> None:
    if not smooth > 0:
        raise ValueError(f"smooth is {smooth}; it must be above 0")
