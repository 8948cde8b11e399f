"""Tile grid, context and same-size logits of a network."""

import torch
from torch import Tensor, nn

from seg.models import UNet
from seg.models.network import Network

GRID = 32  # px: tiles start on multiples of at least so many


def coarsest(model: nn.Module, least: int = GRID) -> int:
    """Return the px of the grid on which a network's tiles start: its stride, or the first multiple from ``least`` on."""
    stride = model.stride if isinstance(model, Network) else 1
    return -(-least // stride) * stride


def surroundings(model: nn.Module) -> int:
    """The px of context that valid convolutions need on each side; of an ensemble, the most of its members."""
    return max((n.context for n in model.modules() if isinstance(n, Network)), default=0)


def full_logits(model: nn.Module, image: Tensor) -> Tensor:
    """Logits (B, K, H, W) of images (B, C, H, W), also of a U-Net whose logits are smaller.

    Its context is mirrored at the borders: the overlap-tile of Ronneberger et al. 2015, figure 2.
    """
    if not (isinstance(model, UNet) and model.context):
        return model(image)
    size = image.shape[-2:]
    for dim, side in zip((-2, -1), size, strict=True):
        rows = mirrored(side, model.context, model.input_side(side) - side - model.context)
        image = image.index_select(dim, rows.to(image.device))
    return model(image)[..., : size[0], : size[1]]


def mirrored(side: int, before: int, after: int) -> Tensor:
    """Indices 0 .. side - 1 continued by reflection about the first and the last, which aren't repeated."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-before, side + after) % period
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)
