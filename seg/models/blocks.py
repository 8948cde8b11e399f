"""Parts that the networks share; x is always (B, C, H, W)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]
Up = Literal["transposed", "bilinear"]


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> nn.Sequential:
    """Convolution that keeps the size, normalisation, ReLU; the weights after He et al. 2015."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
    ]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(out_channels))
    elif norm == "group":
        layers.append(nn.GroupNorm(min(8, out_channels), out_channels))
    layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with normalisation and ReLU: the blue arrows of the U-Net figure."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(
            conv_norm_relu(in_channels, out_channels, 3, norm),
            conv_norm_relu(out_channels, out_channels, 3, norm),
        )


def upsampling(in_channels: int, out_channels: int, up: Up) -> nn.Module:
    """Doubles height and width and sets the channels: the green arrows of the U-Net figure."""
    if up == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=1),
    )


def he_init(model: nn.Module) -> None:
    """Gaussian weights of variance 2 / fan-in before a ReLU (He et al. 2015); biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pads right and bottom until both sides divide: by reflection, or by the edge where too small.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / multiple) * multiple, ceil(W / multiple) * multiple).
    """
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    for pad, side in (((0, right, 0, 0), x.shape[-1]), ((0, 0, 0, bottom), x.shape[-2])):
        if any(pad):
            x = F.pad(x, pad, mode="reflect" if max(pad) < side else "replicate")
    return x


def check_counts(**counts: int | None) -> None:
    """Raises ValueError for a count that isn't a whole number above zero."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} is {count}; it must be a whole number of at least 1")


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError for a probability outside 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
