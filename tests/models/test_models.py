"""The networks against their papers' numbers, and the contract image -> logits."""

import itertools
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from cases import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seg.models import FCN, NestedUNet, Peer, SegNet, UNet
from seg.models.blocks import Upsampling, double_bilinear, pad_to_multiple
from seg.models.fcn import bilinear_upsampling

SMALL = {
    "fcn": lambda **k: FCN(1, 2, width=2, **k),
    "fcn alexnet": lambda **k: FCN(1, 2, "alexnet", width=2, **k),
    "segnet": lambda **k: SegNet(1, 2, width=2, **k),
    "unet": lambda **k: UNet(1, 2, width=4, **k),
    "unetpp": lambda **k: NestedUNet(1, 2, width=4, **k),
    "unet_plus": lambda **k: NestedUNet(1, 2, width=4, links="short", **k),
    "unet_e": lambda **k: NestedUNet(1, 2, width=4, links="none", output="average", **k),
}
DOWN, FUSE = ("max", "average", "strided"), ("concat", "add")
UP = ("transposed", "bilinear", "nearest", "pixel_shuffle", "unpool")
BLOCK = ("double_conv", "residual", "bottleneck")


@pytest.fixture(params=list(SMALL))
def small(request):
    torch.manual_seed(0)
    return SMALL[request.param]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def total(out: Tensor | list[Tensor]) -> Tensor:
    return sum(head.square().mean() for head in (out if isinstance(out, list) else [out]))


# ---- the papers' numbers


def test_the_paper_s_unet_has_31_million_parameters_and_makes_388_of_572():
    model = UNet(1, 2, width=64, norm="none", padding="valid")
    assert parameters(model) == parameters(UNet(1, 2, width=64, norm="none")) == 31_030_658
    assert (model.smallest, model.context) == (188, 92)
    with torch.device("meta"):
        assert UNet(1, 2, 64, padding="valid")(torch.empty(1, 1, 572, 572)).shape[2:] == (388, 388)


def test_the_unets_that_unetpp_is_compared_with_have_the_official_code_s_parameters():
    assert parameters(UNet(1, 1, width=32, norm="none")) == 7_759_521
    assert parameters(UNet(1, 1, width=35, norm="none")) == 9_282_246  # wide


@pytest.mark.parametrize(("links", "count"), [("dense", 9_041_601), ("short", 8_728_257), ("none", 8_728_257)])  # fmt: skip
def test_each_nested_grid_has_the_parameters_of_the_papers(links, count):
    assert (
        parameters(NestedUNet(1, 1, 32, links=links, norm="none", deep_supervision=False)) == count
    )
    heads = NestedUNet(1, 1, 32, links=links, norm="none")
    assert parameters(heads) == count + 3 * 33  # three more heads of 32 weights and a bias


@pytest.mark.parametrize(("depth", "count"), [(1, 100_961), (2, 511_105), (3, 2_204_961), (4, 9_041_601)])  # fmt: skip
def test_a_pruned_unetpp_has_the_parameters_of_the_paper(depth, count):
    assert parameters(NestedUNet(1, 1, 32, depth, norm="none", pruned=True)) == count


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_pruned_ensemble_of_unets_is_one_plain_unet(depth):
    one = NestedUNet(1, 1, 8, depth, links="none", pruned=True)
    assert parameters(one) == parameters(UNet(1, 1, 8, depth))


@pytest.mark.parametrize(
    ("encoder", "count"),
    [
        # VGG16: 3x3 layers 14,714,688, fc6 102,764,544, fc7 16,781,312: Table 1 says 134 M
        ("vgg16", 134_260_544),
        # AlexNet of one column: layers 2,469,696, fc6 6*6*256*4096 + 4096, fc7: Table 1 says 57 M
        ("alexnet", 2_469_696 + 37_752_832 + 16_781_312),
    ],
)
def test_fcn_32s_has_the_parameters_of_table_1(encoder, count):
    with torch.device("meta"):
        model = FCN(3, 21, encoder, width=64, stride=32, norm="none")
    assert parameters(model) - parameters(model.last) == count + 21 * 4097  # scores of 21 classes


def test_segnet_has_the_parameters_of_its_figure():
    # encoder: VGG16's 13 layers, 14,714,688, of which 4,224 are biases; decoder: the same channels
    # backwards, but the last layer goes to the classes instead of from 3 channels to 64. Each of the
    # 12 + 13 normalised layers has two values a channel instead of a bias.
    encoder = 14_714_688 - 4_224 + 2 * 4_224
    mirrored = [(512, 512)] * 5 + [(512, 256)] + [(256, 256)] * 2 + [(256, 128), (128, 128), (128, 64), (64, 64)]  # fmt: skip
    decoder = sum(9 * a * b + 2 * b for a, b in mirrored)
    assert parameters(SegNet(3, 12)) == encoder + decoder + 9 * 64 * 12 + 12


# ---- sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 33), (32, 32), (50, 97)])
def test_logits_have_the_size_of_any_image(small, size):
    model = small().eval()
    assert model(torch.randn(1, 1, *size)).shape == (1, 2, *size)


@given(st.sampled_from(sorted(SMALL)), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_padding_to_the_stride_is_what_the_network_does_itself(name, height, width):
    torch.manual_seed(0)
    model = SMALL[name]().eval()
    image = torch.randn(1, 1, height, width)
    by = 32 if name.startswith(("fcn", "segnet")) else 16
    with torch.no_grad():
        logits, whole = model(image), model(pad_to_multiple(image, by))
    assert logits.shape[2:] == (height, width)
    torch.testing.assert_close(logits, whole[..., :height, :width], rtol=1e-4, atol=1e-5)


def test_padding_reflects_where_it_can_and_repeats_the_edge_where_not():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_to_multiple(row, 5)[0, 0, 0].tolist() == [1, 2, 3, 2, 1]
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]


def valid_size(side: int, depth: int, block: int, up: int) -> int | None:
    """The figure walked with a pencil: None where a level is odd or nothing is left."""
    across = []
    for _ in range(depth):
        side -= 2 * block
        if side <= 0 or side % 2:
            return None
        across.append(side)
        side //= 2
    side -= 2 * block
    for skip in reversed(across):
        side = 2 * side - 2 * up
        if side <= 0 or (skip - side) % 2:
            return None
        side -= 2 * block
    return side if side > 0 else None


@pytest.mark.parametrize("block", BLOCK)
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_a_valid_unet_takes_exactly_the_sizes_that_halve_evenly(block, up):
    model = UNet(1, 1, 2, depth=2, padding="valid", up=up, block=block, norm="none").eval()
    margin = {"double_conv": 2, "residual": 2, "bottleneck": 1}[block]
    outputs = {}
    for side in range(1, 90):
        wanted = valid_size(side, 2, margin, int(up == "bilinear"))
        if wanted is None:
            with pytest.raises(ValueError, match="needs sides of"):
                model(torch.zeros(1, 1, side, side))
        else:
            assert model(torch.zeros(1, 1, side, side)).shape[2:] == (wanted, wanted)
            outputs[side] = wanted
    for output in range(1, 40):
        assert model.input_side(output) == min(s for s, o in outputs.items() if o >= output)


def test_a_size_that_a_valid_unet_can_not_take_is_answered_with_the_nearest():
    model = UNet(1, 1, 2, padding="valid")
    message = r"512x512 px.* 188, 204, 220, \.\.\. px; the nearest to 512 is 508, which gives 324"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 1, 512, 512))


def combinations(*options: Iterable[str]) -> list:
    """Every combination of options; those with no pair of values that is new are slow."""
    found, seen = [], set()
    for row in itertools.product(*options):
        pairs = set(itertools.combinations(enumerate(row), 2))
        found.append(row if pairs - seen else pytest.param(*row, marks=pytest.mark.slow))
        seen |= pairs
    return found


@pytest.mark.parametrize(
    ("padding", "down", "up", "fuse", "block"),
    combinations(("same", "valid"), DOWN, UP, FUSE, BLOCK),
)
def test_every_unet_trains_a_step_and_keeps_the_size(padding, down, up, fuse, block):
    torch.manual_seed(0)
    model = UNet(1, 2, 4, 2, padding, down=down, up=up, fuse=fuse, block=block)
    side = model.input_side(21)
    trains_a_step(model, (side, side), 2 * model.context)


@pytest.mark.parametrize(
    ("links", "down", "up", "fuse", "block"),
    combinations(("none", "short", "dense"), DOWN, UP, FUSE, BLOCK),
)
def test_every_nested_grid_trains_a_step_and_keeps_the_size(links, down, up, fuse, block):
    torch.manual_seed(0)
    model = NestedUNet(1, 2, 4, 2, links, down=down, up=up, fuse=fuse, block=block)
    trains_a_step(model, (21, 26), 0)


def trains_a_step(model: nn.Module, size: tuple[int, int], lost: int) -> None:
    image = torch.randn(2, 1, *size)
    out = model.train()(image)
    for head in out if isinstance(out, list) else [out]:
        assert head.shape == (2, 2, size[0] - lost, size[1] - lost)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), [total(out)]
    for _ in range(4):
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        losses.append(total(model(image)))
    assert losses[-1] < losses[0]  # and so is finite


# ---- what a network may see, and what it learns


def test_every_parameter_learns(small):
    model = small().train()
    total(model(torch.randn(2, 1, 64, 64))).backward()
    still = {
        n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0
    }
    # FCN's finer scores start at zero, so its finer streams pass no gradient on, but get one
    assert still == set()


def test_without_supervision_an_ensemble_s_inner_decoders_get_no_gradient():
    image = torch.randn(2, 1, 32, 32)
    model = NestedUNet(1, 1, 2, links="none", deep_supervision=False)
    total(model(image)).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None}
    inner = [f"{kind}.{i}_{j}." for i, j in itertools.product(range(4), range(1, 4)) if i + j < 4 for kind in ("nodes", "ups")]  # fmt: skip
    assert still == {n for n, _ in model.named_parameters() if n.startswith(tuple(inner))} != set()
    supervised = NestedUNet(1, 1, 2, links="none")
    total(supervised(image)).backward()
    before = {n: p.detach().clone() for n, p in supervised.named_parameters()}
    torch.optim.SGD(supervised.parameters(), lr=0.1).step()
    assert all(
        not torch.equal(p, before[n]) for n, p in supervised.named_parameters() if n in still
    )
    linked = NestedUNet(1, 1, 2, links="short", deep_supervision=False)
    total(linked(image)).backward()
    assert all(p.grad is not None for p in linked.parameters())


def test_images_of_a_batch_do_not_see_each_other(small):
    model = small().eval()
    images = torch.randn(3, 1, 40, 40)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)


def test_a_shift_by_the_stride_shifts_the_logits(small):
    # receptive fields reach the border, so compare a patch deep inside of a large image
    model = small(norm="none").eval()
    image = torch.randn(1, 1, 768, 768)
    with torch.no_grad():
        a = model(image)[..., 352:384, 352:384]
        b = model(torch.roll(image, (32, 32), dims=(2, 3)))[..., 384:416, 384:416]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("up", UP)
def test_a_tile_of_a_valid_unet_equals_the_whole_image_there(up):
    torch.manual_seed(0)
    model = UNet(1, 2, 4, padding="valid", norm="none", up=up).double().eval()
    side = model.input_side(100)
    image = torch.randn(1, 1, side + 64, side + 32, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image)
        tile = model(image[..., 48 : 48 + side, 16 : 16 + side])  # starts on the grid of 16 px
    height, width = tile.shape[2:]
    torch.testing.assert_close(whole[..., 48 : 48 + height, 16 : 16 + width], tile)


# ---- FCN


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcn_upsamples_bilinearly_at_the_start(stride):
    layer = bilinear_upsampling(2, stride)
    scores = torch.randn(1, 2, 5, 6)
    wanted = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    inner = (slice(None), slice(None), slice(stride, -stride), slice(stride, -stride))
    torch.testing.assert_close(layer(scores)[inner], wanted[inner])


@pytest.mark.parametrize(("fixed", "frozen"), [("last", {"last"}), ("all", {"last", "doubles"}), ("none", set())])  # fmt: skip
def test_fcn_keeps_the_upsamplings_fixed_that_it_is_told_to(fixed, frozen):
    model = FCN(1, 2, width=2, fixed_upsampling=fixed)
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == frozen


def test_a_finer_fcn_starts_with_the_scores_of_the_coarser_one():
    torch.manual_seed(0)
    coarse = FCN(1, 2, width=2, stride=32, norm="none").eval()
    fine = FCN(1, 2, width=2, stride=16, norm="none").eval()
    same = {k: v for k, v in coarse.state_dict().items() if not k.startswith("last")}
    fine.load_state_dict(same, strict=False)
    with torch.no_grad():
        scores = coarse.scores[0](coarse.classifier(torch.randn(1, 16, 6, 6)))
        a, b = coarse.last(scores), fine.last(fine.doubles[0](scores))
    centre = (slice(None), slice(None), slice(64, -64), slice(64, -64))
    twice = F.interpolate(F.interpolate(scores, scale_factor=2, mode="bilinear"), scale_factor=16, mode="bilinear")  # fmt: skip
    torch.testing.assert_close(b[centre], twice[centre])
    assert (a - b)[centre].abs().max() < 0.3 * scores.abs().max()


# ---- the nested grid


@pytest.mark.parametrize("links", ["none", "short", "dense"])
def test_each_head_alone_says_what_it_said_in_training(links):
    model = NestedUNet(1, 2, width=4, norm="none", links=links)
    image = torch.randn(1, 1, 32, 32)
    heads = model.train()(image)
    assert [h.shape for h in heads] == [(1, 2, 32, 32)] * 4
    model.eval()
    for depth, head in enumerate(heads, 1):
        model.output = depth
        assert torch.equal(model(image), head)
    model.output = "deepest"
    assert torch.equal(model(image), heads[-1])


@pytest.mark.parametrize("links", ["none", "short", "dense"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(32, 32), (21, 50)])
def test_a_pruned_grid_equals_the_full_one_bit_for_bit_and_costs_less(links, depth, size):
    torch.manual_seed(0)
    full = NestedUNet(1, 2, width=4, links=links, output=depth).eval()
    small = NestedUNet(1, 2, width=4, depth=depth, links=links, pruned=True).eval()
    small.load_state_dict({k: full.state_dict()[k] for k in small.state_dict()})
    image, ran = torch.randn(1, 1, *size), set()
    for name, node in full.nodes.items():
        node.register_forward_hook(lambda *_, name=name: ran.add(name))
    assert torch.equal(full(image), small(image))
    assert ran == set(small.nodes)
    flops = []
    for model in (full, small, NestedUNet(1, 2, width=4, links=links).eval()):
        with FlopCounterMode(display=False) as counter:
            model(image)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] and (depth == 4 or flops[1] < flops[2])


# ---- upsampling


@pytest.mark.parametrize(("up", "even"), [("pixel_shuffle", True), ("transposed", False)])
def test_pixel_shuffle_starts_without_a_checkerboard(up, even):
    torch.manual_seed(0)
    layer = UNet(1, 1, 4, 1, up=up).up[0]
    with torch.no_grad():
        out = layer(torch.randn(1, 8, 5, 6), torch.empty(1, 4, 10, 12))
    blocks = F.pixel_unshuffle(out, 2).unflatten(1, (4, 4))  # four pixels of each block
    assert (blocks.std(2).max() < 1e-6) == even


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_interpolation_and_a_1x1_convolution_commute(mode):
    layer, x = Upsampling(8, 4, mode), torch.randn(1, 8, 5, 6)
    wanted = layer.conv(F.interpolate(x, scale_factor=2, mode=mode))
    torch.testing.assert_close(layer(x, torch.empty(1, 4, 10, 12)), wanted)


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 2), (7, 9)])
def test_deterministic_doubling_is_bilinear_interpolation_and_so_is_its_gradient(
    size, deterministic
):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    up = torch.randn_like(wanted)
    torch.testing.assert_close(double_bilinear(x), wanted)
    gradients = [torch.autograd.grad(y, x, up)[0] for y in (double_bilinear(x), wanted)]
    torch.testing.assert_close(*gradients)
    assert "Convolution" in double_bilinear(x).grad_fn.name()  # not interpolation's own backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("up", UP)
def test_a_gpu_gives_the_same_gradients_twice_where_that_is_asked_for(up, deterministic):
    torch.manual_seed(0)
    model = NestedUNet(1, 2, width=8, up=up, deep_supervision=True).cuda()
    image = torch.randn(4, 1, 128, 128, device="cuda")

    def gradients() -> list[Tensor]:
        model.zero_grad()
        total(model(image)).backward()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


def test_unpooling_puts_values_where_the_skip_is_largest():
    layer = Upsampling(1, 1, "unpool")
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    skip = torch.tensor([[[[1.0, 2, 0, 0], [3, 0, 0, 9]]]])
    assert layer(torch.tensor([[[[5.0, 7.0]]]]), skip).tolist() == [[[[0, 0, 0, 0], [5, 0, 0, 7]]]]


# ---- compilers and layouts


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore:.torch.jit.trace:FutureWarning",  # with Python 3.14
)
@pytest.mark.parametrize("name", slow_but(SMALL, "unetpp", "segnet"))
def test_export_trace_and_channels_last_give_the_same_logits(name):
    torch.manual_seed(0)
    model = SMALL[name]().eval()
    image = torch.randn(2, 1, 33, 50)
    with torch.no_grad():
        wanted = model(image)
        same = dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.jit.trace(model, image)(image), wanted, **same)
        torch.testing.assert_close(
            torch.export.export(model, (image,)).module()(image), wanted, **same
        )
        last = SMALL[name]().eval()
        last.load_state_dict(model.state_dict())
        last = last.to(memory_format=torch.channels_last)
        logits = last(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, wanted, **same)


@pytest.mark.parametrize("name", slow_but(SMALL, "unetpp"))
def test_compiling_changes_neither_logits_nor_checkpoint_keys(name):
    torch.manual_seed(0)
    model = SMALL[name]().eval()
    image, keys = torch.randn(1, 1, 33, 50), list(model.state_dict())
    with torch.no_grad():
        wanted = model(image)
        model.compile(backend="aot_eager")
        torch.testing.assert_close(model(image), wanted, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == keys


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_gives_the_same_logits(small):
    model = small().eval()
    image = torch.randn(1, 1, 33, 50)
    with torch.no_grad():
        wanted = model(image)
        model.compile()
        torch.testing.assert_close(model(image), wanted, rtol=1e-4, atol=1e-4)


# ---- others


def test_another_project_s_network_takes_any_size_and_must_give_one_logit_a_class():
    class Halves(nn.Module):
        def forward(self, x):
            return F.interpolate(F.avg_pool2d(x, 32), scale_factor=32).repeat(1, 3, 1, 1)

    assert Peer(1, 3, Halves())(torch.zeros(2, 1, 33, 70)).shape == (2, 3, 33, 70)
    with pytest.raises(ValueError, match=r"Halves gives \(1, 3, 32, 32\), not \(1, 2, 32, 32\)"):
        Peer(1, 2, Halves())(torch.zeros(1, 1, 32, 32))


def test_a_network_of_segmentation_models_pytorch_keeps_the_contract():
    smp = pytest.importorskip("segmentation_models_pytorch", exc_type=Exception)
    model = Peer(1, 2, smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)).eval()
    assert model(torch.zeros(1, 1, 33, 50)).shape == (1, 2, 33, 50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(1, 2, width=0), "width is 0"),
        (lambda: NestedUNet(1, 2, depth=0), "depth is 0"),
        (lambda: UNet(1, 2, dropout=1.5), "dropout is 1.5"),
        (lambda: FCN(1, 2, stride=4), "stride is 4; one of 32, 16, 8"),
        (lambda: FCN(1, 2, encoder="x"), "encoder is x; one of alexnet, vgg16"),
        (
            lambda: NestedUNet(1, 2, 2, 3, output=4),
            "output is 4; this network has deepest, average",
        ),
        (lambda: NestedUNet(1, 2, 2, links="all"), "links is all; one of none, short"),
        (lambda: UNet(1, 2, block="x"), "block is x; one of double_conv"),
        (lambda: UNet(1, 2, up="x"), "up is x; one of transposed"),
        (lambda: UNet(1, 2, down="x"), "down is x; one of max"),
        (lambda: UNet(1, 2, fuse="x"), "fuse is x; one of concat"),
    ],
)
def test_a_bad_value_is_an_error_that_names_it(make, message):
    with pytest.raises(ValueError, match=message):
        make()
