"""The Lovasz extension of the Jaccard loss: IoU itself, made continuous, with no smoothing constant."""

import torch
from torch import Tensor, nn

from seg.losses.targets import probabilities_and_truth


class Lovasz(nn.Module):
    """sum_i e_i (J_i - J_(i-1)) over the errors e = |g - p| of a class in falling order, then the mean.

    J_i is the Jaccard loss when the i largest errors are the mistakes. Lovasz-Softmax: Berman et al. 2018,
    arXiv:1705.08790, eq. 8 to 10 and algorithm 1; with one logit or overlapping labels p comes from the
    sigmoid. At p in {0, 1} it is 1 - IoU exactly. Classes are taken over the whole batch.

    Args:
        present_only: leave out classes that aren't in the batch's truth; else such a class costs its
            largest error.
    """

    def __init__(self, present_only: bool = False) -> None:
        super().__init__()
        self.present_only = present_only

    def forward(self, logits_BKHW: Tensor, mask: Tensor) -> Tensor:
        p_BCHW, g_BCHW, _ = probabilities_and_truth(logits_BKHW, mask)
        error_CN = (g_BCHW - p_BCHW).abs().transpose(0, 1).flatten(1)  # 0 where ignored: last
        error_CN, order_CN = error_CN.sort(dim=1, descending=True)
        g_CN = g_BCHW.transpose(0, 1).flatten(1).gather(1, order_CN).long()
        cost_C = (error_CN * jaccard_steps(g_CN, error_CN.dtype)).sum(1)
        if self.present_only:
            present_C = g_CN.any(1)
            return (cost_C * present_C).sum() / present_C.sum().clamp(min=1)
        return cost_C.mean()


def jaccard_steps(g_CN: Tensor, dtype: torch.dtype) -> Tensor:
    """J_i - J_(i-1) (C, N) for truths 0 and 1 (C, N) sorted by falling error.

    With I true pixels not yet mistaken and U the union: 1 / U at a true pixel, I / (U (U - 1)) at another.
    The textbook's difference of neighbouring J loses its digits in float32 from a few 10^5 pixels on.
    """
    true_C1 = g_CN.sum(1, keepdim=True)
    left_CN = (true_C1 - g_CN.cumsum(1)).to(dtype)
    union_CN = (true_C1 + (1 - g_CN).cumsum(1)).to(dtype)
    others_CN = left_CN / (union_CN * (union_CN - 1).clamp(min=1))
    steps_CN = torch.where(g_CN == 1, 1 / union_CN.clamp(min=1), others_CN)
    first_CN = torch.zeros_like(steps_CN)
    first_CN[:, :1] = (true_C1 == 0).to(dtype)  # absent: the largest error counts, no other
    return steps_CN + first_CN
