"""U-Net: a contracting path, an expanding path, and a copy across at each level."""

import itertools

import torch
from torch import Tensor, nn

from seg.models.blocks import (
    DoubleConv,
    Norm,
    Up,
    check_counts,
    check_fraction,
    he_init,
    pad_to_multiple,
    upsampling,
)


class UNet(nn.Module):
    """U-Net of Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597, figure 1.

    Differs: convolutions keep the size (the paper's are valid), and are normalised by default.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of the first level, doubled at each level below; 64 in the paper.
        depth: times that the image is halved; 4 in the paper.
        norm: after each 3x3 convolution: batch, group or none (as in the paper).
        dropout: probability in 0..1 at the end of the contracting path.
        up: how the expanding path doubles the size: transposed (as in the paper) or bilinear.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside to 2 ** depth.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        depth: int = 4,
        norm: Norm = "batch",
        dropout: float = 0.0,
        up: Up = "transposed",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, width=width, depth=depth)
        check_fraction("dropout", dropout)
        widths = [width * 2**i for i in range(depth + 1)]
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList([DoubleConv(in_channels, width, norm)])
        self.down.extend(DoubleConv(above, below, norm) for above, below in steps)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(upsampling(below, above, up) for above, below in reversed(steps))
        self.fuse = nn.ModuleList(
            DoubleConv(2 * above, above, norm) for above, _ in reversed(steps)
        )
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)
        self.stride = 2**depth
        he_init(self)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self.down[0](pad_to_multiple(image, self.stride))
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(self.pool(x))
        x = self.dropout(x)
        for up, fuse, skip in zip(self.up, self.fuse, reversed(skips), strict=True):
            x = fuse(torch.cat([skip, up(x)], dim=1))
        return self.head(x)[..., :height, :width]
