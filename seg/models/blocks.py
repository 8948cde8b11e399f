"""Blocks shared by the networks; x is always (B, C, H, W).

``padding`` is ``same`` (convolutions keep the size, with zeros beyond the border) or ``valid`` (no padding: each 3x3
convolution removes one px on each side).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.models.network import Extent, ReceptiveModule, receptive_field
from seg.ranges import check_ranges

NormName = Literal["batch", "group", "none"]
PaddingName = Literal["same", "valid"]
DownName = Literal["max", "average", "strided"]
UpName = Literal["transposed", "bilinear", "nearest", "pixel_shuffle", "unpool"]
FuseName = Literal["concat", "add"]
BlockName = Literal["double_conv", "residual", "bottleneck"]


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: NormName,
    padding: PaddingName = "same",
    stride: int = 1,
) -> list[nn.Module]:
    """Return a convolution and its normalisation; the convolution has a bias only without normalisation."""
    pad = kernel // 2 if padding == "same" else 0
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, pad, bias=norm == "none")
    if norm == "batch":
        return [conv, nn.BatchNorm2d(out_channels)]
    if norm == "group":
        return [conv, nn.GroupNorm(count_groups(out_channels), out_channels)]
    return [conv]


def count_groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(g for g in range(min(8, channels), 0, -1) if channels % g == 0)


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: NormName,
    padding: PaddingName = "same",
    stride: int = 1,
) -> nn.Sequential:
    """Return convolution, normalisation and ReLU."""
    layers = conv_norm(in_channels, out_channels, kernel, norm, padding, stride)
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with normalisation and ReLU: the blue arrows of the U-Net figure."""

    margin = 2  # px that valid convolutions remove on each side

    def __init__(
        self, in_channels: int, out_channels: int, norm: NormName, padding: PaddingName = "same"
    ) -> None:
        # one flat sequence: a nested one would keep its input in memory
        super().__init__(
            *conv_norm_relu(in_channels, out_channels, 3, norm, padding),
            *conv_norm_relu(out_channels, out_channels, 3, norm, padding),
        )


class ShortcutBlock(ReceptiveModule):
    """Residual connection: ReLU(x + body(x)), with a 1x1 convolution of x if the channels differ.

    He et al., CVPR 2016, arXiv:1512.03385, figures 2 and 5; with valid convolutions x is cropped.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: NormName, body: list[nn.Module], crop: int
    ) -> None:
        super().__init__()
        self.body, self.crop = nn.Sequential(*body), crop
        self.shortcut = nn.Sequential(
            *(conv_norm(in_channels, out_channels, 1, norm) if in_channels != out_channels else [])
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.crop:
            x = x[..., self.crop : -self.crop, self.crop : -self.crop]
        return F.relu(y + self.shortcut(x))

    def receptive_field(self, outputs: Extent) -> Extent:
        return receptive_field(self.body, outputs) | outputs.shifted(self.crop)


class ResidualBlock(ShortcutBlock):
    """Residual block of two 3x3 convolutions (He et al. 2016, figure 2)."""

    margin = 2

    def __init__(
        self, in_channels: int, out_channels: int, norm: NormName, padding: PaddingName = "same"
    ) -> None:
        body = [
            conv_norm_relu(in_channels, out_channels, 3, norm, padding),
            *conv_norm(out_channels, out_channels, 3, norm, padding),
        ]
        super().__init__(in_channels, out_channels, norm, body, 2 if padding == "valid" else 0)


class BottleneckBlock(ShortcutBlock):
    """Bottleneck block: 1x1 to a quarter of the channels, 3x3, 1x1 to all (He et al. 2016, figure 5)."""

    margin = 1

    def __init__(
        self, in_channels: int, out_channels: int, norm: NormName, padding: PaddingName = "same"
    ) -> None:
        narrow = max(1, out_channels // 4)
        body = [
            conv_norm_relu(in_channels, narrow, 1, norm),
            conv_norm_relu(narrow, narrow, 3, norm, padding),
            *conv_norm(narrow, out_channels, 1, norm),
        ]
        super().__init__(in_channels, out_channels, norm, body, 1 if padding == "valid" else 0)


BLOCK_CLASSES = {
    "double_conv": DoubleConv,
    "residual": ResidualBlock,
    "bottleneck": BottleneckBlock,
}


@check_ranges
def build_downsampling(channels: int, down: DownName) -> nn.Module:
    """Return a layer that halves even height and width: the red arrows of the U-Net figure."""
    if down == "strided":
        return nn.Conv2d(channels, channels, kernel_size=2, stride=2)
    return nn.MaxPool2d(2) if down == "max" else nn.AvgPool2d(2)


class Upsampling(ReceptiveModule):
    """Upsampling: doubles height and width and sets the channels, the green arrows of the U-Net figure.

    Args:
        in_channels: channels from the level below.
        out_channels: channels of the level above.
        up: method. transposed: 2x2 transposed convolution of stride 2 (U-Net). bilinear, nearest: 1x1 convolution and
            interpolation. pixel_shuffle: 1x1 convolution to four times the channels, rearranged to 2x2 pixels (Shi et
            al. 2016, arXiv:1609.05158); the four are equal at the start, which avoids a checkerboard (ICNR, Aitken et
            al. 2017, arXiv:1707.02937). unpool: 1x1 convolution, then each value is put where the skip has the maximum
            of its 2x2 pixels, with zeros elsewhere (SegNet).
        padding: with ``valid``, bilinear removes the border pixels that lack a neighbour.

    Shape:
        x (B, in, H, W), skip (B, out, 2 H, 2 W) -> (B, out, 2 H, 2 W); 2 H - 2 and 2 W - 2 for
        bilinear with valid padding.
    """

    @check_ranges
    def __init__(
        self, in_channels: int, out_channels: int, up: UpName, padding: PaddingName = "same"
    ) -> None:
        super().__init__()
        self.up, self.margin = up, int(up == "bilinear" and padding == "valid")
        if up == "transposed":
            self.conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels * (4 if up == "pixel_shuffle" else 1), 1
            )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv(x)  # it commutes with interpolation, and is cheaper before it
        if self.up == "bilinear":
            x = double_bilinear(x)
            return x[..., 1:-1, 1:-1] if self.margin else x
        if self.up == "nearest":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.up == "pixel_shuffle":
            return F.pixel_shuffle(x, 2)
        if self.up == "unpool":
            return unpool_maxima(x, F.max_pool2d(skip, 2, return_indices=True)[1])
        return x

    def receptive_field(self, outputs: Extent) -> Extent:
        """Return the pixels of ``x``; the skip's are fewer."""
        if self.up == "transposed":
            return receptive_field(self.conv, outputs)
        if self.up == "bilinear":
            return outputs.shifted(self.margin).transposed(kernel=4, stride=2, padding=1)
        return outputs.transposed(kernel=2, stride=2)

    def init_icnr(self) -> None:
        """Initialise pixel_shuffle by ICNR: the four pixels from one pixel are equal at the start."""
        if self.up == "pixel_shuffle":
            assert isinstance(self.conv, nn.Conv2d)
            with torch.no_grad():
                weight = self.conv.weight
                weight.copy_(weight[::4].repeat_interleave(4, dim=0))


def double_bilinear(x: Tensor) -> Tensor:
    """Double height and width by bilinear interpolation, with the border's values repeated beyond it.

    With ``trainer.deterministic`` it is a transposed convolution with fixed weights, because the gradient of
    ``interpolate`` is summed in no fixed order on a GPU.

    Shape:
        (B, C, H, W) -> (B, C, 2 H, 2 W).
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=2)
    x = torch.cat([x[..., :1], x, x[..., -1:]], dim=3)
    line = x.new_tensor([0.25, 0.75, 0.75, 0.25])
    weight = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, weight, stride=2, padding=3, groups=x.shape[1])


def unpool_maxima(x: Tensor, indices: Tensor) -> Tensor:
    """Put each value where 2x2 max pooling found its maximum, with zeros elsewhere (SegNet, figure 3).

    The same as ``torch.nn.functional.max_unpool2d``, which can't be traced.

    Shape:
        x and indices (B, C, H, W) -> (B, C, 2 H, 2 W).
    """
    batch, channels, height, width = x.shape
    empty = x.new_zeros(batch, channels, 4 * height * width)
    put = empty.scatter(2, indices.flatten(2), x.flatten(2))
    return put.view(batch, channels, 2 * height, 2 * width)


@check_ranges
def fused_channels(channels: int, skips: int, fuse: FuseName) -> int:
    """Return the input channels of a node that fuses ``skips`` skips and one upsampled map."""
    return channels * (skips + 1 if fuse == "concat" else 1)


def fuse_maps(skips: list[Tensor], raised: Tensor, fuse: FuseName) -> Tensor:
    """Concatenate (U-Net) or add (FCN) the skips and the upsampled map."""
    return torch.cat([*skips, raised], dim=1) if fuse == "concat" else sum(skips, raised)


def crop_centre(x: Tensor, height: int, width: int) -> Tensor:
    """Return the centre of x: the crop in the U-Net figure (grey arrows)."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def init_he(model: nn.Module) -> None:
    """Initialise the weights as Gaussian with variance 2 / fan-in (He et al. 2015) and the biases as zero.

    A network on the meta device has no weights to initialise; PyTorch would import its compiler for it.
    """
    if next(model.parameters()).is_meta:
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Upsampling):
            module.init_icnr()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom until both sides divide: by reflection, or by the edge if the image is too small.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / multiple) * multiple, ceil(W / multiple) * multiple).
    """
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    for pad, side in (((0, right, 0, 0), x.shape[-1]), ((0, 0, 0, bottom), x.shape[-2])):
        if any(pad):
            x = F.pad(x, pad, mode="reflect" if max(pad) < side else "replicate")
    return x
