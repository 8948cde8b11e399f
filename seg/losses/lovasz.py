"""Lovasz loss: the continuous extension of the Jaccard loss, without a smoothing constant."""

import torch
from torch import Tensor, nn

from seg.losses.targets import probabilities_and_one_hot


class Lovasz(nn.Module):
    """Lovasz-Softmax loss: sum_i e_i (J_i - J_(i-1)) over the sorted errors of a class, the mean over classes.

    e_i are the errors |g - p| of the batch's valid pixels in descending order, J_i is the Jaccard loss if
    the i pixels with the largest errors are wrong. Berman et al. 2018, arXiv:1705.08790, eq. 8 to 10 and
    algorithm 1. If every p is 0 or 1, it equals 1 - IoU. Differs: with one logit or overlapping labels p
    comes from the sigmoid.

    Args:
        present_only: whether classes absent from the batch's truth are left out; otherwise such a class
            costs its largest error.
    """

    def __init__(self, present_only: bool = False) -> None:
        super().__init__()
        self.present_only = present_only

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_one_hot(logits_BKHW, mask)
        # Errors of each class in descending order, with the truth in the same order.
        error_CN = (
            (g_BCHW - p_BCHW).abs().transpose(0, 1).flatten(1)
        )  # 0 where ignored, so sorted last
        error_CN, order_CN = error_CN.sort(dim=1, descending=True)
        g_CN = g_BCHW.transpose(0, 1).flatten(1).gather(1, order_CN).long()
        # The Lovasz extension: the sorted errors weighted by the steps of the Jaccard loss.
        cost_C = (error_CN * jaccard_steps(g_CN, error_CN.dtype)).sum(1)
        if self.present_only:
            present_C = g_CN.any(1)
            return (cost_C * present_C).sum() / present_C.sum().clamp(min=1)
        return cost_C.mean()


def jaccard_steps(g_CN: Tensor, dtype: torch.dtype) -> Tensor:
    """Return J_i - J_(i-1) for the truth of the pixels in descending order of their error.

    With I the true pixels that are not yet wrong and U the union it is 1 / U at a true pixel and
    I / (U (U - 1)) at any other. Subtracting neighbouring J instead loses all digits in float32 from a few
    10^5 pixels on.

    Shape:
        g (C, N) of 0 and 1 -> (C, N) of the given dtype.
    """
    # Algorithm 1: intersection and union after the i largest errors.
    true_C1 = g_CN.sum(1, keepdim=True)
    left_CN = (true_C1 - g_CN.cumsum(1)).to(dtype)
    union_CN = (true_C1 + (1 - g_CN).cumsum(1)).to(dtype)
    # Step of the loss at a true pixel, and at any other.
    others_CN = left_CN / (union_CN * (union_CN - 1).clamp(min=1))
    steps_CN = torch.where(g_CN == 1, 1 / union_CN.clamp(min=1), others_CN)
    first_CN = torch.zeros_like(steps_CN)
    first_CN[:, :1] = (true_C1 == 0).to(dtype)  # absent class: only the largest error counts
    return steps_CN + first_CN
