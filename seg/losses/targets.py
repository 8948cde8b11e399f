"""Inputs of the losses: probabilities and one-hot truth without ignored pixels, checked masks and weights.

Shape suffixes: B images, K logits, C classes, H x W pixels. If labels overlap, C = K, a mask is
(B, K, H, W), and so is every tensor given as (B, H, W) below.
"""

import torch
from torch import Tensor

from seg.labels import IGNORE
from seg.logits import check_mask_values, invalid_labels, log_probabilities, probabilities


def has_label_planes(mask: Tensor) -> bool:
    """Return whether a mask has one plane for each label, (B, K, H, W)."""
    return mask.ndim == 4


def log_likelihood(logits_BKHW: Tensor, mask: Tensor) -> Tensor:
    """Return the log probability of the truth: of the pixel's class, or of each label's presence or absence.

    Shape:
        logits (B, K, H, W), mask (B, H, W) -> (B, H, W), 0 where ignored.

    Raises:
        ValueError: if the shapes do not match or a mask value is no class.
    """
    check_mask_shape(logits_BKHW, mask)
    valid = mask != IGNORE
    if has_label_planes(mask):
        sign = torch.where(mask == 1, 1, -1).to(logits_BKHW.dtype)
        log_p = log_probabilities(logits_BKHW * sign, overlapping=True)
        return log_p.where(valid, 0) + check_or_nan(mask, log_p.shape[1])
    log_p_BCHW = log_probabilities(logits_BKHW)
    index_B1HW = mask.where(valid, 0).clamp(0, log_p_BCHW.shape[1] - 1).unsqueeze(1).long()
    log_p = log_p_BCHW.gather(1, index_B1HW).squeeze(1)
    return log_p.where(valid, 0) + check_or_nan(mask, log_p_BCHW.shape[1])


def probabilities_and_one_hot(logits_BKHW: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities p, one-hot truth g, and the valid pixels; p and g are 0 where ignored.

    Returns:
        p and g (B, C, H, W) of p's dtype, valid (B, 1 or C, H, W) bool.

    Raises:
        ValueError: if the shapes do not match or a mask value is no class.
    """
    check_mask_shape(logits_BKHW, mask)
    p_BCHW = probabilities(logits_BKHW, has_label_planes(mask))
    if has_label_planes(mask):
        valid, g_BCHW = mask != IGNORE, mask == 1
    else:
        valid = (mask != IGNORE).unsqueeze(1)
        classes = torch.arange(p_BCHW.shape[1], device=mask.device).view(1, -1, 1, 1)
        g_BCHW = mask.unsqueeze(1) == classes
    p_BCHW = p_BCHW.where(valid, 0) + check_or_nan(mask, p_BCHW.shape[1])
    return p_BCHW, g_BCHW.to(p_BCHW.dtype), valid


def check_mask_shape(logits_BKHW: Tensor, mask: Tensor) -> None:
    """Raise ValueError if a mask does not belong to logits of this shape, or holds floats."""
    if mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype}; class indices must be integers (int64)")
    wanted = logits_BKHW.shape if has_label_planes(mask) else logits_BKHW[:, 0].shape
    if mask.shape != wanted:
        raise ValueError(
            f"logits are {tuple(logits_BKHW.shape)} and the mask {tuple(mask.shape)}; a mask must be "
            "(B, H, W) class indices, or (B, K, H, W) if labels overlap"
        )


def check_or_nan(mask: Tensor, num_classes: int) -> Tensor | float:
    """Return 0 to add to a loss; if a mask value is no class, raise on the CPU and return nan on a GPU.

    Raising on a GPU would need a synchronisation at every step. There the loss becomes nan, and the metrics
    of the next validation raise.

    Args:
        mask: mask that the loss received.
        num_classes: C.

    Raises:
        ValueError: on the CPU, with the values that are no class.
    """
    if mask.device.type == "cpu":
        check_mask_values(mask, num_classes)
        return 0.0
    return nan_if(invalid_labels(mask, num_classes))


def nan_if(wrong: Tensor) -> Tensor:
    """Return nan if any element is True, else 0, without synchronising with the device."""
    return torch.where(wrong.any(), torch.nan, 0.0)


def make_weights_buffer(name: str, weights: list[float] | str | None) -> Tensor | None:
    """Return class weights as a float32 tensor (C,), or None.

    Args:
        name: name of the argument, for error messages.
        weights: one number for each class; None: no weights.

    Raises:
        ValueError: if a weight is below 0, or the argument is still ``auto``.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        raise ValueError(
            f"{name} is {weights!r}, which only seg.train replaces by numbers; in Python use "
            "seg.losses.class_weights.fill_auto_weights, or give numbers"
        )
    if not weights or not all(weight >= 0 for weight in weights):
        raise ValueError(f"{name} is {weights}; give one number of 0 or more for each class")
    return torch.tensor(weights, dtype=torch.float32)


def weight_true_class(weights_C: Tensor, mask: Tensor, num_classes: int, name: str) -> Tensor:
    """Return the weight of each pixel's true class (B, H, W), or of each label (1, K, 1, 1).

    Raises:
        ValueError: if the number of weights is not the number of classes.
    """
    if len(weights_C) != num_classes:
        raise ValueError(
            f"{name} has {len(weights_C)} numbers and the data {num_classes} classes: "
            "give one for each class, in the order of data.classes"
        )
    if has_label_planes(mask):
        return weights_C.view(1, -1, 1, 1)
    return weights_C[mask.where(mask != IGNORE, 0).clamp(0, num_classes - 1).long()]
