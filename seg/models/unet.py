"""U-Net: a contracting path, an expanding path, and a skip connection at each level."""

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from seg.models.blocks import (
    BLOCK_CLASSES,
    BlockName,
    DownName,
    FuseName,
    NormName,
    PaddingName,
    UpName,
    Upsampling,
    build_downsampling,
    crop_centre,
    fuse_maps,
    fused_channels,
    init_he,
    pad_to_multiple,
)
from seg.models.network import Extent, Network, receptive_field
from seg.ranges import check_ranges

# With checkpoint_activations the levels from an eighth of the side down keep their activations; docs/speed.md has
# the memory and time that were measured.
KEPT_LEVEL = 3


class UNet(Network):
    """U-Net of Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597, figure 1.

    The paper's network is ``width=64, norm="none", padding="valid", dropout=0.5`` and two logits.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of the first level, doubled at each level below; 64 in the paper.
        depth: number of times that the image is halved; 4 in the paper.
        padding: same, or valid as in the paper; the logits are then smaller by ``context`` px on each side.
        norm: in each block: batch, group or none (as in the paper).
        dropout: probability in 0..1 at the end of the contracting path.
        down: downsampling: max (as in the paper) or average pooling, or strided 2x2 convolution.
        up: upsampling, see ``Upsampling``; transposed in the paper.
        fuse: skips are concatenated (as in the paper) or added.
        block: of each level: double_conv (as in the paper), residual or bottleneck.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside to 2 ** depth.
        With valid padding -> (B, K, H - 2 context, W - 2 context), for sides that halve evenly at
        each level: 572 -> 388 for the paper's.

    Raises:
        ValueError: from ``forward``, for a side that valid padding doesn't allow; names the nearest one.
    """

    can_checkpoint = True

    @check_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        num_classes: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=1, le=12)] = 4,
        padding: PaddingName = "same",
        norm: NormName = "batch",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        down: DownName = "max",
        up: UpName = "transposed",
        fuse: FuseName = "concat",
        block: BlockName = "double_conv",
    ) -> None:
        super().__init__()
        # Fig. 1: the channels double at each level.
        make = BLOCK_CLASSES[block]
        widths = [width * 2**i for i in range(depth + 1)]
        steps = list(itertools.pairwise(widths))
        # Contracting path: a block for each level, with downsampling between them.
        self.down = nn.ModuleList([make(in_channels, width, norm, padding)])
        self.down.extend(make(above, below, norm, padding) for above, below in steps)
        self.pools = nn.ModuleList(build_downsampling(above, down) for above in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        # Expanding path, from the deepest level up: upsampling, and a block after the fusion with the skip.
        self.up = nn.ModuleList(Upsampling(c, a, up, padding) for a, c in reversed(steps))
        self.fuse = nn.ModuleList(
            make(fused_channels(above, 1, fuse), above, norm, padding)
            for above, _ in reversed(steps)
        )
        # Classifier; with valid convolutions the logits are smaller than the image.
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)
        self.joined, self.valid = fuse, padding == "valid"
        self.upsampling_margin = int(up == "bilinear")  # px that valid padding removes there
        self.smallest, self.context = (
            valid_geometry(depth, make.margin, self.upsampling_margin) if self.valid else (1, 0)
        )
        init_he(self)

    @property
    def stride(self) -> int:
        return 2 ** len(self.pools)

    def forward(self, image: Tensor) -> Tensor:
        # Size the image: checked for valid convolutions, padded to the stride for same ones.
        height, width = image.shape[-2:]
        if self.valid:
            self.check_size(height, width)
            x = self.run_part(self.down[0], image)
        else:
            x = self.run_part(self.down[0], pad_to_multiple(image, self.stride))
        # Contracting path; keep each level's features as a skip.
        skips = []
        for level, (pool, block) in enumerate(zip(self.pools, self.down[1:], strict=True), 1):
            skips.append(x)
            x = self.run_part(block, pool(x)) if level < KEPT_LEVEL else block(pool(x))
        x = self.dropout(x)
        # Expanding path: fuse each level with its skip.
        levels = reversed(range(len(self.pools)))
        for level, up, block in zip(levels, self.up, self.fuse, strict=True):
            if self.recomputes and level < KEPT_LEVEL:
                x = self.run_part(self.expand, up, block, x, skips.pop())
            else:
                x = block(self.merge_skips(up, x, skips.pop()))  # pop frees the skip's memory
        return self.head(x) if self.valid else self.head(x)[..., :height, :width]

    def expand(self, up: nn.Module, block: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        """Return the features of a level of the expanding path, from those of the level below and the skip."""
        return block(self.merge_skips(up, x, skip))

    def merge_skips(self, up: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        """Fuse the upsampled map with its skip, which is cropped for valid convolutions."""
        if self.valid:
            height, width = (2 * (side - self.upsampling_margin) for side in x.shape[-2:])
            skip = crop_centre(skip, height, width)
        return fuse_maps([skip], up(x, skip), self.joined)

    def receptive_field(self, outputs: Extent) -> Extent:
        # From the logits up the expanding path, then back through the contracting path.
        needed = receptive_field(self.head, outputs)
        for up, block in reversed(list(zip(self.up, self.fuse, strict=True))):
            needed = receptive_field(up, receptive_field(block, needed))  # more than the skip's
        for pool, block in reversed(list(zip(self.pools, self.down[1:], strict=True))):
            needed = receptive_field(pool, receptive_field(block, needed))
        return receptive_field(self.down[0], needed).shifted(-self.context)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for a side that doesn't halve evenly at each level."""
        for side in (height, width):
            if side < self.smallest or (side - self.smallest) % self.stride:
                steps = max(0, round((side - self.smallest) / self.stride))
                nearest = self.smallest + steps * self.stride
                raise ValueError(
                    f"the image is {height}x{width} px; with padding=valid this U-Net needs sides of "
                    f"{self.smallest}, {self.smallest + self.stride}, {self.smallest + 2 * self.stride}, "
                    f"... px; the nearest to {side} is {nearest}, which gives {nearest - 2 * self.context}"
                )


def valid_geometry(depth: int, block: int, up: int) -> tuple[int, int]:
    """Return the smallest input side and the context of a valid U-Net, both in px.

    A level of n px before its block comes from 2 n + 2 block px of the level above; in the expanding path a level of n px
    gives 2 n - 2 up - 2 block px.

    Args:
        depth: number of times that the image is halved.
        block: px that a block removes on each side.
        up: px that an upsampling removes on each side.
    """
    for bottom in itertools.count(1):  # px before the lowest block
        side, inner = bottom, bottom - 2 * block
        for _ in range(depth):
            side = 2 * side + 2 * block
            inner = 2 * inner - 2 * up - 2 * block
            if inner <= 0:
                break
        else:
            return side, (side - inner) // 2
    raise AssertionError
