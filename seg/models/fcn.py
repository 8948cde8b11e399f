"""FCN: a classification network made convolutional, its coarse scores refined by those of finer layers."""

from typing import Literal

import torch
from torch import Tensor, nn

from seg.models.blocks import (
    Norm,
    check_counts,
    check_fraction,
    conv_norm_relu,
    he_init,
    pad_to_multiple,
)

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # VGG16: (times width, 3x3 convolutions) a stage


class FCN(nn.Module):
    """FCN-32s, -16s or -8s on VGG16. Long, Shelhamer, Darrell, CVPR 2015, arXiv:1411.4038, figure 3.

    Differs: sides are padded to a multiple of 32 instead of by 100 px, so that no crop is needed, and
    convolutions can be normalised, without which no VGG16 learns from scratch.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of the first stage; 64 in VGG16. fc6 and fc7 have 64 times as many.
        stride: px of the finest scores: 32 (pool5), 16 (and pool4) or 8 (and pool3).
        norm: after each convolution: batch, group or none (as in the paper).
        dropout: probability in 0..1 after fc6 and fc7.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        stride: Literal[32, 16, 8] = 8,
        norm: Norm = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, width=width)
        check_fraction("dropout", dropout)
        if stride not in (32, 16, 8):
            raise ValueError(f"stride is {stride}; it must be 32, 16 or 8")
        self.stages = nn.ModuleList()
        channels = in_channels
        for times, convolutions in STAGES:
            layers = []
            for _ in range(convolutions):
                layers.append(conv_norm_relu(channels, times * width, 3, norm))
                channels = times * width
            self.stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(
            conv_norm_relu(channels, 64 * width, 7, norm),  # fc6
            nn.Dropout(dropout),
            conv_norm_relu(64 * width, 64 * width, 1, norm),  # fc7
            nn.Dropout(dropout),
        )
        he_init(self)
        coarse_to_fine = [64 * width, *(8 * width, 4 * width)[: (32 // stride).bit_length() - 1]]
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in coarse_to_fine)
        self.doubles = nn.ModuleList(
            bilinear_upsampling(num_classes, 2) for _ in coarse_to_fine[1:]
        )
        self.last = bilinear_upsampling(num_classes, stride).requires_grad_(
            False
        )  # fixed, section 3.3
        for score in list(self.scores)[1:]:  # a finer stream starts silent, section 4.2
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = pad_to_multiple(image, 32)
        pools = []
        for stage in self.stages:
            x = stage(x)
            pools.append(x)
        logits = self.scores[0](self.classifier(x))
        finer = zip(self.doubles, self.scores[1:], (pools[3], pools[2]), strict=False)
        for double, score, pool in finer:
            logits = double(logits) + score(pool)  # skips are added
        return self.last(logits)[..., :height, :width]


def bilinear_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Transposed convolution that starts as bilinear interpolation by an even factor, class by class."""
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False
    )
    tent = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor  # 0..1, sums to factor
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = torch.outer(tent, tent)
    return layer
