"""Encoders from classification networks: convolutions in stages, and the pooling between them."""

import itertools
from typing import Literal

from torch import nn

from seg.models.blocks import NormName, conv_norm_relu

EncoderName = Literal["alexnet", "vgg16"]
VGG16_STAGES = (
    (1, 2),
    (2, 2),
    (4, 3),
    (8, 3),
    (8, 3),
)  # by stage: (multiple of width, 3x3 convolutions)


def build_vgg16(in_channels: int, width: int, norm: NormName) -> tuple[nn.ModuleList, list[int]]:
    """Return the 13 convolutions of VGG16 in five stages, without pooling, and the channels of each stage.

    Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, column D; their width is 64.
    """
    stages, channels = nn.ModuleList(), [in_channels, *(times * width for times, _ in VGG16_STAGES)]
    for (above, below), (_, convolutions) in zip(
        itertools.pairwise(channels), VGG16_STAGES, strict=True
    ):
        widths = [above] + [below] * convolutions
        stages.append(
            nn.Sequential(*(conv_norm_relu(a, b, 3, norm) for a, b in itertools.pairwise(widths)))
        )
    return stages, channels[1:]


def build_alexnet(in_channels: int, width: int, norm: NormName) -> tuple[nn.ModuleList, list[int]]:
    """Return the five convolutions of AlexNet in three stages, without pooling, and the channels of each stage.

    Krizhevsky 2014, arXiv:1404.5997 (one column, as in torchvision); its width is 64.
    """
    # Channels of the convolutions: 64, 192, 384 and 256 with the published width
    a, b, c, d = width, 3 * width, 6 * width, 4 * width
    first = conv_norm_relu(in_channels, a, 11, norm, "valid", stride=4)
    stages = [
        nn.Sequential(nn.ZeroPad2d((3, 4, 3, 4)), first),  # 4 n px -> n px
        nn.Sequential(conv_norm_relu(a, b, 5, norm)),
        nn.Sequential(
            conv_norm_relu(b, c, 3, norm),
            conv_norm_relu(c, d, 3, norm),
            conv_norm_relu(d, d, 3, norm),
        ),
    ]
    return nn.ModuleList(stages), [a, b, d]


def build_pooling(encoder: EncoderName) -> nn.ModuleList:
    """Return the max pooling after each stage, which halves even sides exactly.

    AlexNet's 3x3 windows reach one px beyond the border, on the side that keeps the stages aligned: the receptive fields
    of the stages are centred within 1.5, 2.5 and 10.5 px of their positions.
    """
    if encoder == "vgg16":
        return nn.ModuleList(nn.MaxPool2d(2) for _ in VGG16_STAGES)
    sides = (
        (1, 0, 1, 0),
        (0, 1, 0, 1),
        (0, 1, 0, 1),
    )  # left, right, top, bottom; zeros don't change a maximum after a ReLU
    return nn.ModuleList(
        nn.Sequential(nn.ZeroPad2d(side), nn.MaxPool2d(3, stride=2)) for side in sides
    )
