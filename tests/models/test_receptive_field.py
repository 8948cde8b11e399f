"""The receptive field that each network states, against which pixels a NaN in the image reaches."""

import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from seg.cli.compose import compose_checked, instantiate_node
from seg.cli.conf_files import CONF
from seg.data.normalization import Normalization
from seg.inference.ensemble import Ensemble
from seg.inference.tiling import needed_overlap
from seg.inference.tta import TTANetwork
from seg.models import FCN, NestedUNet, Peer, SegNet, UNet
from seg.models.network import Extent, Network, receptive_field

ROOT = Path(__file__).parents[2]

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


@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("output", ["deepest", "average", 1, 2])
def test_a_nested_grid_sees_what_it_states(links, output):
    torch.manual_seed(0)
    for depth, up in ((2, "transposed"), (3, "bilinear"), (3, "unpool")):
        model = NestedUNet(1, 2, 2, depth, links=links, norm="none", output=output, up=up).eval()
        check_reach(model, *reach(model))


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("links", LINKS)
def test_each_nested_grid_sees_what_it_states(links, depth):
    torch.manual_seed(0)
    for up, block, down, fuse in product(UP, BLOCK, DOWN, FUSE):
        words = {"links": links, "down": down, "up": up, "fuse": fuse, "block": block}
        for output in ("deepest", "average", max(1, depth - 1)):
            model = NestedUNet(1, 2, 2, depth, dropout=0.1, output=output, **words).eval()
            check_reach(model, *reach(model))
        model = NestedUNet(1, 2, 2, depth, pruned=True, **words).eval()
        check_reach(model, *reach(model))


def test_a_segnet_sees_what_it_states():
    torch.manual_seed(0)
    model = SegNet(1, 1, width=2, norm="none").eval()
    check_reach(model, *reach(model))


def test_the_receptive_fields_are_those_counted_by_hand():
    # U-Net of depth 1: the two convolutions at the top, 2 px of 1; those at the bottom, 2 px of 2; those at the top
    # again, 2 px; the grid's windows take nothing: 2 + 4 + 2
    assert reach(UNet(1, 1, 1, 1).eval()) == (8, 8)
    # each level doubles: 2 + 4 + 8 + 16 + 32 + 16 + 8 + 4 + 2 = 92, and 2 px more by windows that are read whole
    assert reach(UNet(1, 1, 1, 4).eval()) == (94, 94)
    assert reach(NestedUNet(1, 1, 1, 4).eval()) == (94, 94)  # its longest way is the U-Net's
    assert reach(NestedUNet(1, 1, 1, 4, output=2).eval()) == (22, 22)
    # valid: 92 px, as the paper's 572 -> 388. The logits' windows end at 4, 20, 36 ... px, so a part that ends at
    # 16 px needs what the one to 20 px does: 20 + 92 = 16 + 96
    assert reach(UNet(1, 1, 1, 4, padding="valid").eval()) == (92, 96)


def test_a_normalisation_over_the_image_is_stated():
    for model in (UNet(1, 1, 2, 4, norm="group"), FCN(1, 1, width=2, norm="group"), SegNet(1, 1, 2, norm="group"),
                  NestedUNet(1, 1, 2, 4, norm="group"), UNet(1, 1, 2, 4, norm="batch").train()):  # fmt: skip
        assert model.receptive_field(Extent(0, model.stride)).everywhere
    grouped, plain = UNet(1, 1, 2, 4, norm="group").eval(), UNet(1, 1, 2, 4, norm="batch").eval()
    assert grouped.margin() == plain.margin() == 94  # what the convolutions see
    assert not plain.receptive_field(Extent(0, 16)).everywhere


def test_a_layer_that_is_not_known_has_no_receptive_field():
    for layer in (nn.Softmax2d(), nn.Conv2d(1, 1, (3, 5)), nn.ZeroPad2d((1, 0, 0, 0))):
        with pytest.raises(TypeError, match=r"not known|not square"):
            receptive_field(layer, Extent(0, 1))


# -- views of an image, and ensembles


@pytest.mark.parametrize("model", [UNet(1, 1, 2, 2, norm="none", up="unpool"), UNet(1, 1, 2, 2, "valid", "none"), FCN(1, 1, "alexnet", width=1, norm="none")], ids=["unet", "valid", "alexnet"])  # fmt: skip
def test_flips_see_on_each_side_what_is_seen_on_either(model):
    before, after = reach(model.eval())
    flips = TTANetwork(model, "flips")
    assert reach(flips) == (max(before, after),) * 2
    check_reach(flips, *reach(flips))


@pytest.mark.parametrize("scales", [[0.5], [2.0], [0.75, 1, 1.25], [1.5], [1 / 3]], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_scales_see_what_they_state(scales, padding):
    torch.manual_seed(0)
    views = TTANetwork(UNet(1, 1, 2, 1, padding, "none").eval(), "none", scales)
    check_reach(views, *reach(views))


def test_an_ensemble_sees_what_the_member_does_that_sees_most():
    torch.manual_seed(0)
    members = [UNet(1, 1, 2, 2, norm="none").eval(), FCN(1, 1, "alexnet", 1, norm="none").eval()]
    stored = Normalization(0.0, 1.0, [0.0], [1.0], dtype="uint8")  # of floats NaN would be no data
    both = Ensemble([*members], [stored] * 2)
    assert both.stride == 32 and reach(both) == reach(members[1])
    check_reach(both, *reach(both))


# -- networks of others, which state nothing


class Layers(nn.Sequential):
    """Layers one after the other, and the output at the input's size."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)[..., : image.shape[-2], : image.shape[-1]]


class Gate(nn.Module):
    """Channels weighed by their means, as in squeeze-and-excitation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize("up", UP)
@pytest.mark.parametrize("block", BLOCK)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_probe_finds_what_a_network_states(up, block, depth):
    torch.manual_seed(0)
    inner = UNet(2, 3, 2, depth, up=up, block=block).eval()
    stated, stride = inner.receptive_field(Extent(0, inner.stride)), inner.stride
    found = Peer(2, 3, inner, multiple=stride).receptive_field(Extent(0, stride))
    assert found == Extent(stated.low // stride * stride, -(-stated.high // stride) * stride)


@pytest.mark.parametrize(
    ("layers", "before", "after"),
    [
        ([nn.Conv2d(1, 2, 1)], 0, 0),
        ([nn.Conv2d(1, 2, 3, padding=1)], 4, 4),
        ([nn.Conv2d(1, 2, (9, 1), padding=(4, 0))], 4, 4),  # along one side only, either
        ([nn.Conv2d(1, 2, (1, 11), padding=(0, 5))], 8, 8),
        ([nn.ZeroPad2d((6, 0, 6, 0)), nn.Conv2d(1, 2, 1)], 8, 0),
        ([nn.Conv2d(1, 2, 3, padding=200, dilation=200)], 200, 200),
        ([nn.Conv2d(1, 2, 3, padding=500, dilation=500)], 500, 500),  # longer than the first image
        ([nn.AvgPool2d(4), nn.Conv2d(1, 2, 3, padding=1), nn.UpsamplingNearest2d(scale_factor=4)], 4, 4),
        ([nn.Conv2d(1, 2, 3, padding=1), nn.Threshold(9.0, 0.0), nn.BatchNorm2d(2)], 4, 4),
    ],
)  # fmt: skip
def test_the_probe_finds_what_layers_see(layers, before, after):
    model = Peer(1, 2, Layers(*layers), multiple=4).eval()
    assert reach(model) == (before, after)
    # elsewhere than on the grid what the blocks of the grid see around it
    assert model.receptive_field(Extent(3, 9)) == Extent(0 - before, 12 + after)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, 1), Gate()],
        [nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2)],
        [nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2)],
        [nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)],
        # coordinates that depend on the size of the image: each pixel sees few others, but others in a tile
        [nn.AvgPool2d(4), nn.Conv2d(1, 2, 1), nn.UpsamplingBilinear2d(scale_factor=4)],
    ],
)
def test_the_probe_finds_layers_that_see_the_whole_image(layers):
    field = Peer(1, 2, Layers(*layers), multiple=4).receptive_field(Extent(0, 4))
    assert field == Extent(-256, 260, everywhere=True)


def test_the_probe_leaves_the_network_as_it_is():
    model = Peer(1, 1, Layers(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)), multiple=1).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert reach(model) == (1, 1)
    assert model.training and model.network.training
    for name, value in model.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus", "PSPNet"])
def test_networks_of_smp_have_seams_only_where_the_probe_says_so(name):
    smp = pytest.importorskip("segmentation_models_pytorch", exc_type=Exception)
    torch.manual_seed(0)
    network = getattr(smp, name)("resnet18", encoder_weights=None, in_channels=1, classes=1)
    model = Peer(1, 1, network).double().eval()
    field, image = model.receptive_field(Extent(0, 32)), torch.randn(1, 1, 1536, 32).double()
    with torch.no_grad():
        part = model(image[:, :, 736 + field.low : 736 + field.high])[
            :, :, -field.low : 32 - field.low
        ]
        gap = (model(image)[:, :, 736:768] - part).abs().max()
    assert (gap < 1e-9) != field.everywhere


# -- the page


ROWS = re.findall(
    r"^\| `(model=[^`]+)` \| (\d+) \| (\d+) \| (\d+) \|$",
    (ROOT / "docs/models.md").read_text(),
    re.M,
)


def test_the_page_has_each_network():
    shown = {words.split()[0].removeprefix("model=") for words, *_ in ROWS}
    assert shown | {"smp", "unet_wide"} == {file.stem for file in (CONF / "model").glob("*.yaml")}


@cache
def config_of(choice: str) -> DictConfig:
    small = {"in_channels": 1, "num_classes": 1, "width": 1}
    return OmegaConf.merge(compose_checked("models", [choice]).model, small)


@pytest.mark.parametrize(("words", "stride", "margin", "overlap"), ROWS, ids=lambda text: text)
def test_the_numbers_of_the_page_are_those_that_networks_state(words, stride, margin, overlap):
    choice, *options = words.split()
    node = OmegaConf.merge(config_of(choice), OmegaConf.from_dotlist(options).get("model", {}))
    model = instantiate_node(node, "model").eval()
    assert (model.stride, model.margin()) == (int(stride), int(margin))
    assert needed_overlap(model) == (int(margin), int(overlap), False)
