"""UNet++, UNet+ and UNet^e: a nested grid of nodes X(i, j), at level i and j steps along the skip."""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from seg.logits import average_logits
from seg.models.blocks import (
    BLOCK_CLASSES,
    BlockName,
    DownName,
    FuseName,
    NormName,
    UpName,
    Upsampling,
    build_downsampling,
    fuse_maps,
    fused_channels,
    init_he,
    pad_to_multiple,
)
from seg.models.network import Extent, Network, receptive_field
from seg.ranges import check_ranges

LinksName = Literal["none", "short", "dense"]
GridNode = tuple[int, int]  # (i, j) of the paper's X^{i,j}


class NestedUNet(Network):
    """UNet++, UNet+ and UNet^e. Zhou et al. 2018, arXiv:1807.10165, figure 1; 2020, arXiv:1912.05074.

    X(i, 0) is the encoder. X(i, j) for j > 0 joins X(i+1, j-1), upsampled, with nodes of its own level:

    ======== ================== ====================================================================
    links    same-level inputs  network
    ======== ================== ====================================================================
    dense    X(i, 0..j-1)       UNet++
    short    X(i, j-1)          UNet+: only neighbours are joined
    none     X(i, 0)            UNet^e: U-Nets of depth 1 to ``depth`` that share one encoder
    ======== ================== ====================================================================

    The heads are at X(0, 1) ... X(0, depth). With ``links="none"`` the U-Net of depth d consists of the encoder down to
    X(d, 0) and the nodes with i + j = d, and none of these feeds another depth. Without deep supervision, then, the loss
    depends on X(0, depth) only, and the decoders with i + j < depth get no gradient and keep their initial weights. With
    dense or short links they feed X(0, depth) and are trained.

    The head at depth d needs X(i, j) with i + j <= d (links none: i + j = d, and the encoder down to X(d, 0)). Only these
    are computed, and ``pruned`` builds only these.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of level 0, doubled at each level below; 32 in the paper.
        depth: levels below the first; 4 in the paper (L4).
        links: which nodes of its level feed a node: dense, short or none.
        norm: in each block: batch, group or none (as in the paper's code).
        dropout: probability in 0..1 at the end of each node.
        deep_supervision: whether all heads are trained, or only the deepest.
        output: logits in evaluation mode: those of the deepest head, of the head at a depth, or average: of the
            probabilities of all heads (the paper's accurate mode).
        pruned: build only the deepest head and the nodes that it needs, for use after training.
        down: downsampling: max (as in the paper) or average pooling, or strided 2x2 convolution.
        up: upsampling of X(i+1, j-1), see ``Upsampling``; transposed in the paper's code.
        fuse: inputs of a node are concatenated (as in the paper) or added.
        block: of each node: double_conv (as in the paper), residual or bottleneck.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside to a multiple of 2 ** d for
        the deepest head d in use. In training mode with deep supervision a list, shallowest first.
    """

    can_checkpoint = True

    @check_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        num_classes: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=1)] = 32,
        depth: Annotated[int, Field(ge=1, le=12)] = 4,
        links: LinksName = "dense",
        norm: NormName = "batch",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        deep_supervision: bool = True,
        output: Annotated[int, Field(ge=1)] | Literal["deepest", "average"] = "deepest",
        pruned: bool = False,
        down: DownName = "max",
        up: UpName = "transposed",
        fuse: FuseName = "concat",
        block: BlockName = "double_conv",
    ) -> None:
        super().__init__()
        self.depth, self.links, self.fuse = depth, links, fuse
        self.deep_supervision = deep_supervision and not pruned
        # Heads that exist, and the one that is the output.
        built = [depth] if pruned or not deep_supervision else list(range(1, depth + 1))
        self.output = output
        if output not in ("deepest", "average", *built):
            raise ValueError(f"output is {output}; this network has deepest, average or {built}")
        # Fig. 1a: the nodes X(i, j); column j = 0 is the encoder.
        widths = [width * 2**i for i in range(depth + 1)]
        self.pools = nn.ModuleList(build_downsampling(c, down) for c in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        make = BLOCK_CLASSES[block]
        for i, j in self.needed([depth]) if pruned else grid_nodes(depth):
            above = in_channels if i == 0 else widths[i - 1]
            if j:
                self.ups[f"{i}_{j}"] = Upsampling(widths[i + 1], widths[i], up)
                above = fused_channels(widths[i], len(self.same_level(i, j)), fuse)
            self.nodes[f"{i}_{j}"] = make(above, widths[i], norm)
        # A classifier on each X(0, j) that is supervised.
        self.heads = nn.ModuleDict({str(j): nn.Conv2d(width, num_classes, 1) for j in built})
        init_he(self)

    def same_level(self, i: int, j: int) -> list[GridNode]:
        """Return the nodes of level i that are an input of X(i, j), j > 0."""
        if self.links == "dense":
            return [(i, k) for k in range(j)]
        return [(i, j - 1 if self.links == "short" else 0)]

    def needed(self, depths: list[int]) -> list[GridNode]:
        """Return the nodes that the heads of these depths need, column by column, from the top level down."""
        return [
            (i, j)
            for i, j in grid_nodes(max(depths))
            if j == 0 or self.links != "none" or i + j in depths
        ]

    def active_heads(self) -> list[int]:
        """Return the depths of the heads whose logits ``forward`` returns or averages in the current mode."""
        every = [int(name) for name in self.heads]
        if self.training and self.deep_supervision:
            return every
        if self.training or self.output == "deepest":
            return [self.depth]
        return every if self.output == "average" else [int(self.output)]

    @property
    def stride(self) -> int:
        return 2 ** max(self.active_heads())

    @property
    def num_heads(self) -> int:
        return len(self.heads) if self.deep_supervision else 1

    @property
    def averages_heads(self) -> bool:
        return self.output == "average"

    @property
    def depths(self) -> list[int]:
        return [int(name) for name in self.heads] if len(self.heads) > 1 else []

    def head_options(self, head: int | Literal["average"]) -> dict[str, Any]:
        return {"output": head}

    def pruned_options(self, depth: int) -> dict[str, Any]:
        return {"depth": depth, "pruned": True, "deep_supervision": False, "output": "deepest"}

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        height, width = image.shape[-2:]
        # Only the nodes that the active heads need are computed.
        depths = self.active_heads()
        padded = pad_to_multiple(image, self.stride)
        logits = []
        x: dict[GridNode, Tensor] = {}
        for i, j in self.needed(depths):
            # Eq. 1: pooling in the encoder column, else the skips and the upsampled node below.
            if j == 0:
                below = self.pools[i - 1](x[i - 1, 0]) if i else padded
                x[i, j] = self.dropout(self.run_part(self.nodes[f"{i}_{j}"], below))
                del below  # free its memory before the next node's input is computed
            else:
                skips = [x[node] for node in self.same_level(i, j)]
                merged = self.run_part(self.merge, i, j, x[i + 1, j - 1], x[i, 0], *skips)
                x[i, j] = self.dropout(merged)
                del skips, merged
            # after a column's lowest node, no other node needs the levels below
            if j and i + j == max(depths):
                x = {node: value for node, value in x.items() if node[0] <= i}
            if i == 0 and j in depths:
                logits.append(self.heads[str(j)](x[0, j])[..., :height, :width])
        # Every head in training with deep supervision, else one head or their mean.
        if self.training and self.deep_supervision:
            return logits
        return average_logits(logits) if len(logits) > 1 else logits[0]

    def merge(self, i: int, j: int, below: Tensor, first: Tensor, *skips: Tensor) -> Tensor:
        """Return X(i, j), j > 0, before dropout, from X(i+1, j-1), X(i, 0) and the nodes of level i that it fuses."""
        raised = self.ups[f"{i}_{j}"](below, first)
        return self.nodes[f"{i}_{j}"](fuse_maps(list(skips), raised, self.fuse))

    def receptive_field(self, outputs: Extent) -> Extent:
        depths = self.active_heads()
        needed: dict[GridNode, Extent] = {}  # px of each node's output

        def need(node: GridNode, extent: Extent) -> None:
            needed[node] = needed.get(node, extent) | extent

        # Start at the heads and go back through the grid, in the reverse of the forward order.
        for depth in depths:
            need((0, depth), receptive_field(self.heads[str(depth)], outputs))
        for i, j in reversed(self.needed(depths)):
            below = receptive_field(self.nodes[f"{i}_{j}"], needed[i, j])
            if j:
                need((i + 1, j - 1), receptive_field(self.ups[f"{i}_{j}"], below))
                for node in self.same_level(i, j):
                    need(node, below)
            elif i:
                need((i - 1, 0), receptive_field(self.pools[i - 1], below))
        return receptive_field(self.nodes["0_0"], needed[0, 0])


def grid_nodes(depth: int) -> list[GridNode]:
    """Return all (i, j) with i + j <= depth, column by column, from the top level down."""
    return [(i, j) for j in range(depth + 1) for i in range(depth + 1 - j)]
