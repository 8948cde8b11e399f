"""Each network against a second one, written plainly from its paper's text, with the same weights.

The references below use torch.nn.functional on the given weights and nothing of seg but the padding.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seg.models import FCN, NestedUNet, SegNet, UNet


def layers(module: nn.Module) -> list[nn.Module]:
    """What has weights, in order."""
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)
    ]


def conv_relu(x, module, padding):
    """3x3 convolutions with ReLU, and batch norm by its definition where there is one."""
    found = layers(module)
    for n, layer in enumerate(found):
        if isinstance(layer, nn.BatchNorm2d):
            continue
        x = F.conv2d(x, layer.weight, layer.bias, padding=padding)
        if n + 1 < len(found) and isinstance(found[n + 1], nn.BatchNorm2d):
            bn = found[n + 1]
            by_channel = (slice(None), None, None)
            scale = bn.weight / (bn.running_var + bn.eps).sqrt()
            x = (x - bn.running_mean[by_channel]) * scale[by_channel] + bn.bias[by_channel]
        x = x.clamp(min=0)
    return x


def pool(x):
    """2x2 max pooling by indexing."""
    corners = (x[..., a::2, b::2] for a in (0, 1) for b in (0, 1))
    return torch.stack(list(corners)).amax(0)


def up2x2(x, weight, bias):
    """Each pixel gives a 2x2 block: a transposed convolution of stride 2, written as a sum."""
    b, _, h, w = x.shape
    blocks = torch.einsum("bchw,cdkl->bdhkwl", x, weight)
    return blocks.reshape(b, -1, 2 * h, 2 * w) + bias[:, None, None]


def settle(model: nn.Module) -> nn.Module:
    """Evaluation mode, with running statistics as after training."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    for layer in layers(model):
        if getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias, std=0.1)
    return model.double().eval()


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("padding", "size"), [("valid", (188, 204)), ("same", (48, 64))])
def test_unet_is_the_figure_of_the_paper(padding, size, norm):
    torch.manual_seed(0)
    model = settle(UNet(2, 3, width=3, padding=padding, norm=norm))
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    pad = int(padding == "same")
    x, across = image, []
    for level in range(5):  # "two 3x3 convolutions, each followed by a ReLU and a 2x2 max pooling"
        x = conv_relu(x, model.down[level], pad)
        if level < 4:
            across.append(x)
            x = pool(x)
    for level in range(4):  # "a 2x2 up-convolution, a concatenation with the cropped feature map"
        (up,) = layers(model.up[level])
        x = up2x2(x, up.weight, up.bias)
        skip = across.pop()
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
        skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = conv_relu(torch.cat([skip, x], 1), model.fuse[level], pad)
    wanted = F.conv2d(x, model.head.weight, model.head.bias)
    torch.testing.assert_close(model(image), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("links", ["none", "short", "dense"])
def test_the_nested_grid_is_the_papers_equations(links, norm):
    torch.manual_seed(0)
    model = settle(NestedUNet(1, 3, width=3, links=links, norm=norm))
    image = torch.randn(1, 1, 32, 48, dtype=torch.float64)
    x = {}
    for j in range(5):
        for i in range(5 - j):
            if j == 0:
                fed = image if i == 0 else pool(x[i - 1, 0])
            else:
                (up,) = layers(model.ups[f"{i}_{j}"])
                raised = up2x2(x[i + 1, j - 1], up.weight, up.bias)
                same_level = {
                    "dense": [x[i, k] for k in range(j)],  # UNet++: eq. 1, all that came before
                    "short": [x[i, j - 1]],  # UNet+: the neighbour
                    "none": [x[i, 0]],  # UNet^e: the encoder, as in a U-Net
                }[links]
                fed = torch.cat([*same_level, raised], 1)
            x[i, j] = conv_relu(fed, model.nodes[f"{i}_{j}"], 1)
    heads = [
        F.conv2d(x[0, j], model.heads[str(j)].weight, model.heads[str(j)].bias) for j in range(1, 5)
    ]
    for depth, wanted in enumerate(heads, 1):
        model.output = depth
        torch.testing.assert_close(model(image), wanted, rtol=1e-5, atol=1e-5)
    model.output = "average"
    mean = torch.stack([head.softmax(1) for head in heads]).mean(0)  # the paper's accurate mode
    torch.testing.assert_close(model(image).double().softmax(1), mean, rtol=1e-5, atol=1e-5)


def test_the_average_of_one_logit_is_that_of_the_sigmoids():
    torch.manual_seed(0)
    model = settle(NestedUNet(1, 1, width=2, norm="none", output="average"))
    image = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    averaged = model(image).double().sigmoid()
    single = []
    for depth in range(1, 5):
        model.output = depth
        single.append(model(image).sigmoid())
    torch.testing.assert_close(averaged, torch.stack(single).mean(0), rtol=1e-5, atol=1e-5)


def bilinear(scores, factor):
    """Interpolation with zeros beyond the border, as a transposed convolution has it."""
    padded = F.pad(scores, (1, 1, 1, 1))
    large = F.interpolate(padded, scale_factor=factor, mode="bilinear", align_corners=False)
    return large[..., factor:-factor, factor:-factor]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("encoder", ["vgg16", "alexnet"])
def test_fcn_is_the_figure_of_the_paper(encoder, stride, norm):
    torch.manual_seed(0)
    model = settle(FCN(3, 4, encoder, 2, stride, norm))
    for score in model.scores:
        nn.init.normal_(score.weight)
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    pools, x = [], image
    if encoder == "vgg16":
        for stage in model.stages:
            x = pool(conv_relu(x, stage, 1))
            pools.append(x)
        x = conv_relu(x, model.classifier[0], 3)
    else:  # windows of 3x3 every 2 px; zeros beyond the border do not win after a ReLU

        def conv(x, module, kernel, step, before, after):
            x = F.pad(x, (before, after, before, after))
            found = layers(module)
            rows = x.unfold(2, kernel, step).unfold(3, kernel, step)  # b c h w k l
            y = torch.einsum("bchwkl,dckl->bdhw", rows, found[0].weight)
            if found[0].bias is not None:
                return (y + found[0].bias[:, None, None]).clamp(min=0)
            bn = found[1]
            return F.batch_norm(
                y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
            ).clamp(min=0)

        def pool3(x, before, after):
            return (
                F.pad(x, (before, after, before, after))
                .unfold(2, 3, 2)
                .unfold(3, 3, 2)
                .amax((4, 5))
            )

        one, two, three = model.stages
        pools.append(pool3(conv(x, one, 11, 4, 3, 4), 1, 0))
        pools.append(pool3(conv(pools[-1], two, 5, 1, 2, 2), 0, 1))
        x = pools[-1]
        for layer in three:
            x = conv(x, layer, 3, 1, 1, 1)
        pools.append(pool3(x, 0, 1))
        x = conv(pools[-1], model.classifier[0], 6, 1, 3, 2)
    x = conv_relu(x, model.classifier[2], 0)

    def score(x, n):
        return F.conv2d(x, model.scores[n].weight, model.scores[n].bias)

    logits = score(x, 0)
    for n, finer in enumerate(pools[-2::-1][: {32: 0, 16: 1, 8: 2}[stride]], 1):
        logits = bilinear(logits, 2) + score(finer, n)  # "summing"
    torch.testing.assert_close(model(image), bilinear(logits, stride), rtol=1e-5, atol=1e-5)


def test_segnet_puts_values_back_where_they_came_from():
    torch.manual_seed(0)
    model = settle(SegNet(3, 4, width=2))
    image = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    x, where = image, []
    for stage in model.stages:
        x = conv_relu(x, stage, 1)
        small = pool(x)
        where.append(x == small.repeat_interleave(2, 2).repeat_interleave(2, 3))
        # zeros after a ReLU tie; the first of a window's four is the maximum then
        first = torch.zeros_like(where[-1])
        seen = torch.zeros_like(small, dtype=torch.bool)
        for a in (0, 1):
            for b in (0, 1):
                hit = where[-1][..., a::2, b::2] & ~seen
                first[..., a::2, b::2] = hit
                seen |= hit
        where[-1] = first
        x = small
    for stage in model.decoder:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) * where.pop()
        x = conv_relu(x, stage, 1)
    wanted = F.conv2d(x, model.head.weight, model.head.bias, padding=1)
    torch.testing.assert_close(model(image), wanted, rtol=1e-5, atol=1e-5)
