"""The receptive field that each network states, against which pixels a NaN in the image reaches."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from seg.models import FCN, NestedUNet, Peer, SegNet, UNet
from seg.models.network import Extent, Network

DOWN, FUSE = ("max", "average", "strided"), ("concat", "add")
UP = ("transposed", "bilinear", "nearest", "pixel_shuffle", "unpool")
BLOCK, LINKS = ("double_conv", "residual", "bottleneck"), ("none", "short", "dense")


def reach(model: Network) -> tuple[int, int]:
    """The px before and after a block of the grid that its logits depend on."""
    field = model.receptive_field(Extent(0, model.stride))
    assert not field.everywhere
    return -field.low, field.high - model.stride


def check_reach(model: Network, before: int, after: int) -> None:
    """Asserts that a block of logits sees so many px and not one more: what is NaN beyond doesn't reach it.

    In float64, whose convolutions on a CPU mix no neighbours (a fast algorithm may). Noise makes max-pooling take
    either pixel, so that each way through unpooling occurs.
    """
    stride, room = model.stride, -(-max(before, after, 1) // model.stride) + 1
    length, first, wide = (2 * room + 1) * stride, room * stride, max(stride, 16)
    pixel = 0  # of the image, at which the network's input begins
    if isinstance(model, UNet) and model.valid:
        length, wide, pixel = model.input_side(length), model.input_side(wide), -model.context
    image = torch.randn(4, 1, length, wide, dtype=torch.float64)
    begin, end = first - before - pixel, first + stride + after - pixel  # rows that count
    for one, unknown in zip(image, (slice(0, begin), slice(0, begin + 1), slice(end, None), slice(end - 1, None)), strict=True):  # fmt: skip
        one[:, unknown] = torch.nan
    with torch.no_grad():
        logits = model.double().eval()(image)[:, :, first : first + stride]
    reached = logits.isnan().flatten(1).any(1).tolist()
    assert reached == [False, True, False, True], f"{before} {after} {model}"


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_unet_sees_what_it_states(padding, depth):
    torch.manual_seed(0)
    for up, block in product(UP, BLOCK):
        model = UNet(1, 2, 2, depth, padding=padding, norm="none", up=up, block=block).eval()
        check_reach(model, *reach(model))


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_each_unet_sees_what_it_states(padding, depth):
    torch.manual_seed(0)
    for up, block, down, fuse in product(UP, BLOCK, DOWN, FUSE):
        model = UNet(1, 2, 2, depth, padding, "batch", 0.1, down, up, fuse, block).eval()
        check_reach(model, *reach(model))


@pytest.mark.parametrize("encoder", ["vgg16", "alexnet"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_an_fcn_sees_what_it_states(encoder, stride):
    torch.manual_seed(0)
    model = FCN(1, 1, encoder, width=1, stride=stride, norm="none").eval()
    check_reach(model, *reach(model))
