"""Tile grid, context and same-size logits of a network."""

import math

import torch
from torch import Tensor, nn

from seg.models import FCN, NestedUNet, Peer, SegNet, UNet

NETWORKS = (FCN, SegNet, UNet, NestedUNet, Peer)
GRID = 32  # px: where tiles start, or pooling shifts; a network with a coarser stride has its own


def coarsest(model: nn.Module) -> int:
    """The grid in px on which a network's tiles start: its coarsest stride, or a multiple of it.

    Of an ensemble: a grid that each of its members has.
    """
    grids = [grid(network) for network in model.modules() if isinstance(network, NETWORKS)]
    return math.lcm(*grids) if grids else GRID


def grid(network: nn.Module) -> int:
    """The grid of one network by itself."""
    if isinstance(network, UNet):
        return max(GRID, network.stride)
    if isinstance(network, NestedUNet):
        return max(GRID, 2**network.depth)
    return max(GRID, network.multiple) if isinstance(network, Peer) else GRID


def surroundings(model: nn.Module) -> int:
    """The px of context that valid convolutions need on each side; of an ensemble, the most of its members."""
    return max((n.context for n in model.modules() if isinstance(n, UNet)), default=0)


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
