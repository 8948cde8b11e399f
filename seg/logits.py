"""From logits to probabilities and classes, and which pixels count: decided here and nowhere else.

Legend for shapes: B images, K logits, C classes, H x W pixels. K = 1 is the two-class problem with one
logit (sigmoid, C = 2, the logit speaks for class 1); K >= 2 is softmax (C = K).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255  # mask value of pixels that no loss and no metric sees


def num_logits(num_classes: int, two_class_logits: int = 1) -> int:
    """K, the channels that a model must put out for so many classes; two classes may take 1 or 2."""
    return two_class_logits if num_classes == 2 else num_classes


def probabilities(logits_BKHW: Tensor) -> Tensor:
    """Class probabilities (B, C, H, W) float32 in 0..1, summing to 1 over C."""
    logits_BKHW = logits_BKHW.float()
    if logits_BKHW.shape[1] == 1:
        p_B1HW = logits_BKHW.sigmoid()
        return torch.cat([1 - p_B1HW, p_B1HW], dim=1)
    return logits_BKHW.softmax(dim=1)


def predicted_classes(logits_BKHW: Tensor) -> Tensor:
    """Class index (B, H, W) int64 of the most probable class; a tie goes to the lower index."""
    if logits_BKHW.shape[1] == 1:
        return (logits_BKHW[:, 0] > 0).long()
    return logits_BKHW.argmax(dim=1)


def average(heads: list[Tensor]) -> Tensor:
    """Logits (B, K, H, W) whose probabilities are the mean of those of several logits of that shape."""
    stacked = torch.stack(heads).float()
    if stacked.shape[2] == 1:  # the logit of a mean is the log of its odds
        return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return stacked.log_softmax(dim=2).logsumexp(0) - math.log(len(heads))
