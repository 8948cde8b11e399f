"""From logits to probabilities and classes, and which pixels count: decided here and nowhere else.

Legend for shapes: B images, K logits, C classes, H x W pixels. Three kinds of problem:

K = 1               two classes by a sigmoid, C = 2; the logit speaks for class 1
K >= 2              as many classes by a softmax, C = K, one a pixel
K, overlapping      as many labels, C = K, each there or not by a sigmoid of its own; masks (B, K, H, W)
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255  # mask value of pixels that no loss and no metric sees


def num_logits(num_classes: int, two_class_logits: int = 1, overlapping: bool = False) -> int:
    """K, the channels that a model must put out for so many classes; two classes may take 1 or 2."""
    return two_class_logits if num_classes == 2 and not overlapping else num_classes


def log_probabilities(logits_BKHW: Tensor, overlapping: bool = False) -> Tensor:
    """Logarithms of the class probabilities (B, C, H, W), exact where the probability rounds to 0.

    Half precision is widened to float32; float32 and float64 stay.
    """
    if logits_BKHW.dtype in (torch.float16, torch.bfloat16):
        logits_BKHW = logits_BKHW.float()
    if overlapping:
        return F.logsigmoid(logits_BKHW)
    if logits_BKHW.shape[1] == 1:
        return F.logsigmoid(torch.cat([-logits_BKHW, logits_BKHW], dim=1))
    return logits_BKHW.log_softmax(dim=1)


def probabilities(logits_BKHW: Tensor, overlapping: bool = False) -> Tensor:
    """Class probabilities (B, C, H, W) in 0..1, summing to 1 over C unless labels overlap."""
    return log_probabilities(logits_BKHW, overlapping).exp()


def predicted_classes(
    logits_BKHW: Tensor, threshold: float = 0.5, overlapping: bool = False
) -> Tensor:
    """Class index (B, H, W) int64 of each pixel, or 0 and 1 of each label (B, K, H, W) if they overlap.

    Args:
        logits_BKHW: of the network.
        threshold: probability above 0 and below 1, above which a pixel is class 1 of two, or has a label; a tie stays
            below. More classes go by the most probable one.
        overlapping: whether labels overlap.
    """
    odds = math.log(threshold / (1 - threshold))
    logits_BKHW = logits_BKHW.float()  # half precision would move the threshold
    if overlapping:
        return (logits_BKHW > odds).long()
    if logits_BKHW.shape[1] == 1:
        return (logits_BKHW[:, 0] > odds).long()
    if logits_BKHW.shape[1] == 2:
        return (logits_BKHW[:, 1] - logits_BKHW[:, 0] > odds).long()
    return logits_BKHW.argmax(dim=1)


def decided(p_CHW: np.ndarray, threshold: float = 0.5, overlapping: bool = False) -> np.ndarray:
    """The same of probabilities (C, H, W): class indices (H, W) uint8, or (K, H, W) of 0 and 1."""
    if overlapping:
        return (p_CHW > threshold).astype(np.uint8)
    if len(p_CHW) == 2:
        return (p_CHW[1] > threshold).astype(np.uint8)
    return p_CHW.argmax(0).astype(np.uint8)


def average(heads: list[Tensor], overlapping: bool = False) -> Tensor:
    """Logits (B, K, H, W) whose probabilities are the mean of those of several logits of that shape."""
    stacked = torch.stack(heads).float()
    if overlapping or stacked.shape[2] == 1:  # the logit of a mean is the log of its odds
        return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return stacked.log_softmax(dim=2).logsumexp(0) - math.log(len(heads))


def misfits(mask: Tensor, num_classes: int) -> Tensor:
    """Which mask values are neither a class nor 255: of the mask's shape, bool.

    Args:
        mask: class indices (B, H, W), or 0 and 1 for each label (B, K, H, W).
        num_classes: C.
    """
    highest = num_classes - 1 if mask.ndim == 3 else 1
    return (mask != IGNORE) & ((mask < 0) | (mask > highest))


def check_mask(mask: Tensor, num_classes: int) -> None:
    """Raises ValueError when a mask value is neither a class nor 255; waits for the device."""
    highest = num_classes - 1 if mask.ndim == 3 else 1
    counted = mask.where(mask != IGNORE, 0)
    if counted.numel() == 0:
        return
    low, high = counted.aminmax()
    if low < 0 or high > highest:
        wrong = mask[misfits(mask, num_classes)].unique().tolist()[:8]
        raise ValueError(f"mask holds {wrong}; allowed are 0..{highest} and {IGNORE} (ignore)")
