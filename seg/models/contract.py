"""Functions of any network: tile grid, context, logits of the size of the image."""

import torch
from torch import Tensor, nn

from seg.models.network import Network

TILE_GRID = 32  # px; tiles start on multiples of it, or of a larger stride


def tile_stride(model: nn.Module, least: int = TILE_GRID) -> int:
    """Return the px of the grid on which tiles start: the smallest multiple of the stride that is at least ``least``."""
    stride = model.stride if isinstance(model, Network) else 1
    return -(-least // stride) * stride


def needed_context(model: nn.Module) -> int:
    """Return the context in px that valid convolutions need on each side; for an ensemble, the largest of its members."""
    return max((n.context for n in model.modules() if isinstance(n, Network)), default=0)


def require_network(model: object) -> Network:
    """Return the network, or raise ValueError if it does not follow the contract."""
    if not isinstance(model, Network):
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ValueError(
            f"{name} is no subclass of seg.models.Network; derive it from that class (docs/extending.md), or wrap it: "
            f"model=smp model.network._target_={name}"
        )
    return model


def same_size_logits(model: nn.Module, image: Tensor) -> Tensor:
    """Return logits of the size of the image, also for networks of valid convolutions.

    The context that these need is mirrored at the borders: the overlap-tile strategy of Ronneberger et al. 2015,
    figure 2.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W).
    """
    if not (isinstance(model, Network) and model.context):
        return model(image)
    size = image.shape[-2:]
    for dim, side in zip((-2, -1), size, strict=True):
        rows = reflect_indices(side, model.context, model.input_side(side) - side - model.context)
        image = image.index_select(dim, rows.to(image.device))
    return model(image)[..., : size[0], : size[1]]


def reflect_indices(side: int, before: int, after: int) -> Tensor:
    """Return the indices -before .. side + after - 1, reflected into 0 .. side - 1 without repeating the border."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-before, side + after) % period
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)
