"""Convert logits to probabilities and to classes; define ignored pixels. No other module decides this.

Shape suffixes: B images, K logits, C classes, H x W pixels. Three kinds of problem:

=================  =====================================================================
logits             meaning
=================  =====================================================================
K = 1              two classes, C = 2: sigmoid; the logit is that of class 1
K >= 2             K exclusive classes, C = K: softmax
K, overlapping     K independent labels, C = K: one sigmoid each; masks are (B, K, H, W)
=================  =====================================================================
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seg.labels import IGNORE


def num_logits(num_classes: int, two_class_logits: int = 1, overlapping: bool = False) -> int:
    """Return K, the number of output channels that a model needs; two classes need 1 or 2."""
    return two_class_logits if num_classes == 2 and not overlapping else num_classes


def log_probabilities(logits_BKHW: Tensor, overlapping: bool = False) -> Tensor:
    """Return the log probability of each class, accurate where the probability rounds to 0.

    Shape:
        logits (B, K, H, W) -> (B, C, H, W). float16 and bfloat16 become float32; float32 and float64 stay.
    """
    if logits_BKHW.dtype in (torch.float16, torch.bfloat16):
        logits_BKHW = logits_BKHW.float()
    if overlapping:
        return F.logsigmoid(logits_BKHW)
    if logits_BKHW.shape[1] == 1:
        return F.logsigmoid(torch.cat([-logits_BKHW, logits_BKHW], dim=1))
    return logits_BKHW.log_softmax(dim=1)


def probabilities(logits_BKHW: Tensor, overlapping: bool = False) -> Tensor:
    """Return class probabilities (B, C, H, W) in 0..1; they sum to 1 over C unless labels overlap."""
    return log_probabilities(logits_BKHW, overlapping).exp()


def predicted_classes(
    logits_BKHW: Tensor, threshold: float = 0.5, overlapping: bool = False
) -> Tensor:
    """Return the predicted class of each pixel.

    Args:
        logits_BKHW: logits of the network.
        threshold: probability, between 0 and 1, above which a pixel is class 1 of two, or has a label; a
            probability equal to it is below. With more than two classes the most probable one is predicted.
        overlapping: whether the classes are labels that overlap.

    Returns:
        Class indices (B, H, W) int64; for overlapping labels 0 and 1, (B, K, H, W) int64.
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


def classes_from_probabilities(
    p_CHW: np.ndarray, threshold: float = 0.5, overlapping: bool = False
) -> np.ndarray:
    """Return the predicted class of each pixel from the probabilities of one image.

    Shape:
        probabilities (C, H, W) -> class indices (H, W) uint8; for overlapping labels (K, H, W) of 0 and 1.
    """
    if overlapping:
        return (p_CHW > threshold).astype(np.uint8)
    if len(p_CHW) == 2:
        return (p_CHW[1] > threshold).astype(np.uint8)
    return p_CHW.argmax(0).astype(np.uint8)


def average_logits(heads: list[Tensor], overlapping: bool = False) -> Tensor:
    """Return logits (B, K, H, W) whose probabilities are the mean over several logits of that shape."""
    stacked = torch.stack(heads).float()
    if overlapping or stacked.shape[2] == 1:  # the logit of a mean is the log of its odds
        return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return stacked.log_softmax(dim=2).logsumexp(0) - math.log(len(heads))


def invalid_labels(mask: Tensor, num_classes: int) -> Tensor:
    """Return a bool tensor of the mask's shape: True where a value is neither a class nor 255.

    Args:
        mask: class indices (B, H, W), or 0 and 1 for each label (B, K, H, W).
        num_classes: C.
    """
    highest = num_classes - 1 if mask.ndim == 3 else 1
    return (mask != IGNORE) & ((mask < 0) | (mask > highest))


def check_mask_values(mask: Tensor, num_classes: int) -> None:
    """Raise ValueError if a mask value is neither a class nor 255; synchronises with the device."""
    highest = num_classes - 1 if mask.ndim == 3 else 1
    counted = mask.where(mask != IGNORE, 0)
    if counted.numel() == 0:
        return
    low, high = counted.aminmax()
    if low < 0 or high > highest:
        wrong = mask[invalid_labels(mask, num_classes)].unique().tolist()[:8]
        raise ValueError(f"mask holds {wrong}; allowed are 0..{highest} and {IGNORE} (ignore)")
