"""What every loss starts from: probabilities beside the truth, ignored pixels taken out, masks checked.

Legend for shapes: B images, K logits, C classes, H x W pixels. With overlapping labels a mask is
(B, K, H, W), C = K, and what is (B, H, W) below is (B, K, H, W).
"""

import torch
from torch import Tensor

from seg.logits import IGNORE, check_mask, log_probabilities, misfits, probabilities


def overlaps(mask: Tensor) -> bool:
    """Whether a mask has a plane for each label."""
    return mask.ndim == 4


def likelihood(logits_BKHW: Tensor, mask: Tensor) -> Tensor:
    """Log p of what is true (B, H, W): of a pixel's class, or of a label's being there or not; 0 if ignored.

    Raises:
        ValueError: when shapes don't fit or a mask value is no class.
    """
    check_shapes(logits_BKHW, mask)
    valid = mask != IGNORE
    if overlaps(mask):
        sign = torch.where(mask == 1, 1, -1).to(logits_BKHW.dtype)
        log_p = log_probabilities(logits_BKHW * sign, overlapping=True)
        return log_p.where(valid, 0) + verdict(mask, log_p)
    log_p_BCHW = log_probabilities(logits_BKHW)
    index_B1HW = mask.where(valid, 0).clamp(0, log_p_BCHW.shape[1] - 1).unsqueeze(1).long()
    log_p = log_p_BCHW.gather(1, index_B1HW).squeeze(1)
    return log_p.where(valid, 0) + verdict(mask, log_p_BCHW)


def probabilities_and_truth(logits_BKHW: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P and one-hot truth g (B, C, H, W), and which pixels count (B, 1 or C, H, W) bool.

    An ignored pixel is 0 in each class of both.

    Raises:
        ValueError: when shapes don't fit or a mask value is no class.
    """
    check_shapes(logits_BKHW, mask)
    p_BCHW = probabilities(logits_BKHW, overlaps(mask))
    if overlaps(mask):
        valid, g_BCHW = mask != IGNORE, mask == 1
    else:
        valid = (mask != IGNORE).unsqueeze(1)
        classes = torch.arange(p_BCHW.shape[1], device=mask.device).view(1, -1, 1, 1)
        g_BCHW = mask.unsqueeze(1) == classes
    p_BCHW = p_BCHW.where(valid, 0) + verdict(mask, p_BCHW)
    return p_BCHW, g_BCHW.to(p_BCHW.dtype), valid


def check_shapes(logits_BKHW: Tensor, mask: Tensor) -> None:
    if mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype}; class indices are whole numbers, int64")
    wanted = logits_BKHW.shape if overlaps(mask) else logits_BKHW[:, 0].shape
    if mask.shape != wanted:
        raise ValueError(
            f"logits are {tuple(logits_BKHW.shape)} and the mask {tuple(mask.shape)}; a mask has "
            "(B, H, W) class indices, or (B, K, H, W) where labels overlap"
        )


def verdict(mask: Tensor, of: Tensor) -> Tensor | float:
    """0, or what a mask value outside the classes makes of a loss: an error, on a device nan.

    A CPU raises at once; a GPU would have to be waited for at each step, so there the loss turns nan (and
    the metrics of the next validation raise).

    Args:
        mask: as a loss gets it.
        of: (B, C, H, W), or the labels' own values: what the loss computes with.

    Raises:
        ValueError: naming the values.
    """
    if mask.device.type == "cpu":
        check_mask(mask, of.shape[1])
        return 0.0
    return spoilt(misfits(mask, of.shape[1]))


def spoilt(wrong: Tensor) -> Tensor:
    """Nan if any is wrong, else 0; on the device, not waited for."""
    return torch.where(wrong.any(), torch.nan, 0.0)


def mean_over_valid(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels that count, of values (B, H, W) that are 0 elsewhere; 0 when there are none."""
    return values.sum() / (mask != IGNORE).sum().clamp(min=1)


def weights_buffer(name: str, weights: list[float] | str | None) -> Tensor | None:
    """Weights of classes as a tensor (C,).

    Raises:
        ValueError: when one is below 0, or they still are to be found from the data.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        raise ValueError(
            f"{name} is {weights!r}: seg.train puts numbers there from the training split; "
            "from Python give the result of seg.losses.class_weights"
        )
    if not weights or not all(weight >= 0 for weight in weights):
        raise ValueError(f"{name} is {weights}; give one number of at least 0 a class")
    return torch.tensor(weights, dtype=torch.float32)


def weight_of_truth(weights_C: Tensor, mask: Tensor, num_classes: int, name: str) -> Tensor:
    """The weight of each pixel's true class (B, H, W), or of each label (1, K, 1, 1).

    Raises:
        ValueError: when there aren't as many weights as classes.
    """
    if len(weights_C) != num_classes:
        raise ValueError(
            f"{name} has {len(weights_C)} numbers and the data {num_classes} classes: "
            "give one a class, in the order of data.classes"
        )
    if overlaps(mask):
        return weights_C.view(1, -1, 1, 1)
    return weights_C[mask.where(mask != IGNORE, 0).clamp(0, num_classes - 1).long()]
