"""Predicts an image of any size: whole where it is small, else in overlapping tiles."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from seg.logits import probabilities
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


def check_tiles(model: nn.Module, tile: int, overlap: int) -> None:
    """Raises ValueError unless tiles start on the network's grid, have a middle and enough context."""
    step, context = coarsest(model), surroundings(model)
    if tile % step or overlap % step or overlap < 0 or tile <= 2 * overlap:
        raise ValueError(
            f"tile={tile} and overlap={overlap}: both must be multiples of {step} px, "
            "and tile more than twice overlap"
        )
    if overlap < context:
        enough = -(-context // step) * step
        raise ValueError(
            f"overlap={overlap}: this network needs {context} px of context; take overlap={enough}"
        )


def windows(
    height: int, width: int, tile: int, overlap: int
) -> Iterator[tuple[tuple, tuple, tuple]]:
    """What to read, which part of the result to keep, and where it goes: pairs of slices (rows, columns).

    Kept parts cover the image once; each has ``overlap`` px of context, less at the image's borders.
    """
    core = tile - 2 * overlap

    def along(size: int) -> Iterator[tuple[slice, slice, slice]]:
        if size <= tile:
            yield slice(0, size), slice(0, size), slice(0, size)
            return
        for start in range(0, size, core):
            stop = min(start + core, size)
            low, high = max(0, start - overlap), min(size, stop + overlap)
            yield slice(low, high), slice(start - low, stop - low), slice(start, stop)

    for rows in along(height):
        for columns in along(width):
            read, keep, put = zip(rows, columns, strict=True)
            yield read, keep, put


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


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module,
    image: np.ndarray,
    prepare: Callable[[np.ndarray], np.ndarray],
    tile: int = 1024,
    overlap: int = 128,
    device: str | torch.device = "cpu",
    overlapping: bool = False,
) -> np.ndarray:
    """Class probabilities (C, H, W) float32 of an image (H, W, C) as stored.

    Args:
        model: in evaluation mode, on ``device``.
        image: as stored.
        prepare: makes network input of it, (h, w, C) -> (h, w, C) float32.
        tile: px, side of what goes through at once.
        overlap: px of context on each side.
        device: where the model is.
        overlapping: whether classes overlap, each with a probability of its own.
    """
    check_tiles(model, tile, overlap)
    height, width = image.shape[:2]
    result: np.ndarray | None = None
    for read, keep, put in windows(height, width, tile, overlap):
        normal = np.ascontiguousarray(prepare(image[read]).transpose(2, 0, 1))
        p_CHW: Tensor = probabilities(
            full_logits(model, torch.from_numpy(normal)[None].to(device)), overlapping
        )[0].cpu()
        if result is None:
            result = np.empty((len(p_CHW), height, width), np.float32)
        result[(slice(None), *put)] = p_CHW[(slice(None), *keep)].numpy()
    assert result is not None  # an image has at least one window
    return result
