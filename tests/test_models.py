"""Each network against its paper's figures and the contract image -> logits of the same size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg.models import FCN, NestedUNet, UNet
from seg.models.blocks import pad_to_multiple
from seg.models.fcn import bilinear_upsampling

SMALL = {
    "fcn": lambda **k: FCN(1, 2, width=2, **k),
    "unet": lambda **k: UNet(1, 2, width=4, **k),
    "unetpp": lambda **k: NestedUNet(1, 2, width=4, **k),
}


@pytest.fixture(params=list(SMALL))
def small(request):
    torch.manual_seed(0)
    return SMALL[request.param]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_unet_of_width_64_has_the_parameters_of_the_paper():
    # 31,030,658 for the paper's one channel and two classes; padding changes no weight
    assert parameters(UNet(1, 2, width=64, norm="none")) == 31_030_658


def test_unetpp_of_width_32_has_the_parameters_of_the_official_code():
    assert parameters(NestedUNet(1, 1, width=32, norm="none", deep_supervision=False)) == 9_041_601
    assert parameters(NestedUNet(1, 1, width=32, norm="none")) == 9_041_700  # four heads


@pytest.mark.parametrize(("depth", "count"), [(1, 100_961), (2, 511_105), (3, 2_204_961)])
def test_shallower_unetpp_has_the_parameters_of_the_pruned_one(depth, count):
    assert parameters(NestedUNet(1, 1, 32, depth, norm="none", deep_supervision=False)) == count


def test_unet_of_width_32_has_the_parameters_of_the_official_code():
    assert parameters(UNet(1, 1, width=32, norm="none")) == 7_759_521


def test_fcn_32s_on_vgg16_has_the_parameters_of_the_paper():
    # VGG16 with fc6 and fc7 as convolutions: 134,260,544 (3x3 layers 14,714,688, fc6 102,764,544,
    # fc7 16,781,312), and 21 class scores of 4097 each; Table 1 says 134 M
    model = FCN(3, 21, width=64, stride=32, norm="none")
    assert parameters(model) - parameters(model.last) == 134_260_544 + 21 * 4097


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 33), (32, 32), (50, 97)])
def test_logits_have_the_size_of_any_image(small, size):
    model = small().eval()
    assert model(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_every_parameter_learns(small):
    model = small().train()
    out = model(torch.randn(2, 1, 64, 64))
    sum(head.square().mean() for head in (out if isinstance(out, list) else [out])).backward()
    still = {
        n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0
    }
    # FCN's finer scores start at zero, so its finer streams pass no gradient on, but get one
    assert still == set()


def test_images_of_a_batch_do_not_see_each_other(small):
    model = small().eval()
    images = torch.randn(3, 1, 40, 40)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)


def test_a_shift_by_the_stride_shifts_the_logits(small):
    # receptive fields reach the border, so compare a patch deep inside of a large image
    model = small(norm="none").eval()
    image = torch.randn(1, 1, 768, 768)
    a = model(image)[..., 352:384, 352:384]
    b = model(torch.roll(image, (32, 32), dims=(2, 3)))[..., 384:416, 384:416]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_unetpp_gives_four_heads_in_training_and_the_deepest_one_later():
    model = NestedUNet(1, 2, width=4, norm="none")
    image = torch.randn(1, 1, 32, 32)
    heads = model.train()(image)
    assert [h.shape for h in heads] == [(1, 2, 32, 32)] * 4
    torch.testing.assert_close(model.eval()(image), heads[-1])


def test_unetpp_equals_a_grid_written_from_equation_1():
    torch.manual_seed(1)
    model = NestedUNet(1, 3, width=4, depth=3, norm="none", deep_supervision=False).eval()
    image = torch.randn(1, 1, 24, 32)
    x = {}
    for j in range(4):  # column by column, as the paper writes it
        for i in range(4 - j):
            if j == 0:
                fed = image if i == 0 else F.max_pool2d(x[i - 1, 0], 2)
            else:
                up = model.ups[f"{i}_{j}"]
                raised = F.conv_transpose2d(x[i + 1, j - 1], up.conv.weight, up.conv.bias, stride=2)
                fed = torch.cat([*(x[i, k] for k in range(j)), raised], 1)
            for conv in (m for m in model.nodes[f"{i}_{j}"].modules() if isinstance(m, nn.Conv2d)):
                fed = F.relu(F.conv2d(fed, conv.weight, conv.bias, padding=1))
            x[i, j] = fed
    head = model.heads["3"]
    torch.testing.assert_close(model(image), F.conv2d(x[0, 3], head.weight, head.bias))


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcn_upsamples_bilinearly_at_the_start(stride):
    layer = bilinear_upsampling(2, stride)
    scores = torch.randn(1, 2, 5, 6)
    wanted = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    inner = (slice(None), slice(None), slice(stride, -stride), slice(stride, -stride))
    torch.testing.assert_close(layer(scores)[inner], wanted[inner])


def test_fcn_keeps_its_last_upsampling_fixed():
    assert not any(p.requires_grad for p in FCN(1, 2, width=2).last.parameters())


def test_padding_reflects_where_it_can_and_repeats_the_edge_where_not():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_to_multiple(row, 5)[0, 0, 0].tolist() == [1, 2, 3, 2, 1]
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(1, 2, width=0), "width is 0"),
        (lambda: NestedUNet(1, 2, depth=0), "depth is 0"),
        (lambda: UNet(1, 2, dropout=1.5), "dropout is 1.5"),
        (lambda: FCN(1, 2, stride=4), "stride is 4; it must be 32, 16 or 8"),
    ],
)
def test_a_bad_size_is_an_error_that_names_it(make, message):
    with pytest.raises(ValueError, match=message):
        make()
