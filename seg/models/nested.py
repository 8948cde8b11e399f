"""The nested grid of UNet++: node X(i, j) stands at level i, j steps along the skip."""

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


class UNetPP(nn.Module):
    """UNet++ of Zhou et al., DLMIA 2018, arXiv:1807.10165, figure 1a.

    X(i, 0) is the encoder. X(i, j) for j > 0 joins all X(i, 0..j-1) of its own level with X(i+1, j-1)
    upsampled. X(0, 1..depth) each carry a head under deep supervision.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of level 0, doubled at each level below; 32 in the paper.
        depth: levels below the first; 4 in the paper (L4).
        norm: after each 3x3 convolution: batch, group or none (as in the paper's code).
        dropout: probability in 0..1 at the end of each node.
        deep_supervision: a head on each X(0, j), instead of only on the last.
        up: how X(i+1, j-1) doubles its size: transposed (as in the paper's code) or bilinear.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside to 2 ** depth. In training
        mode with deep supervision a list of them, shallowest first.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int = 32,
        depth: int = 4,
        norm: Norm = "batch",
        dropout: float = 0.0,
        deep_supervision: bool = True,
        up: Up = "transposed",
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, width=width, depth=depth)
        check_fraction("dropout", dropout)
        self.depth, self.stride = depth, 2**depth
        widths = [width * 2**i for i in range(depth + 1)]
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.nodes = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        for i in range(depth + 1):
            above = in_channels if i == 0 else widths[i - 1]
            self.nodes[f"{i}_0"] = DoubleConv(above, widths[i], norm)
            for j in range(1, depth + 1 - i):
                self.ups[f"{i}_{j}"] = upsampling(widths[i + 1], widths[i], up)
                self.nodes[f"{i}_{j}"] = DoubleConv((j + 1) * widths[i], widths[i], norm)
        heads = range(1, depth + 1) if deep_supervision else [depth]
        self.heads = nn.ModuleDict({str(j): nn.Conv2d(width, num_classes, 1) for j in heads})
        he_init(self)

    def node(self, i: int, inputs: list[Tensor]) -> Tensor:
        """X(i, j) from its inputs joined, with j = number of inputs - 1."""
        j = len(inputs) - 1
        return self.dropout(self.nodes[f"{i}_{j}"](torch.cat(inputs, dim=1)))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        height, width = image.shape[-2:]
        x = pad_to_multiple(image, self.stride)
        grid: list[list[Tensor]] = []  # grid[i][j] is X(i, j); filled along anti-diagonals
        for i in range(self.depth + 1):
            grid.append([self.node(i, [x if i == 0 else self.pool(grid[i - 1][0])])])
            for j in range(1, i + 1):  # X(i-j, j): what the new encoder level makes possible
                level = i - j
                raised = self.ups[f"{level}_{j}"](grid[level + 1][j - 1])
                grid[level].append(self.node(level, [*grid[level], raised]))
        outputs = (
            self.heads.items()
            if self.training
            else [(str(self.depth), self.heads[str(self.depth)])]
        )
        logits = [head(grid[0][int(j)])[..., :height, :width] for j, head in outputs]
        return logits if len(logits) > 1 else logits[0]
