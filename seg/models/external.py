"""Networks of other projects, wrapped to follow the contract of ``Network``."""

from functools import cached_property
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from seg.models.blocks import pad_to_multiple
from seg.models.network import Extent, Network, measure_receptive_field
from seg.ranges import check_ranges


class Peer(Network):
    """Wrapper of a network that maps (B, C, H, W) to (B, K, H, W) for sides that are multiples of a number.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        network: the wrapped network; conf/model/smp.yaml names one of segmentation-models-pytorch.
        multiple: px; the sides of its input must be multiples of it.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside.

    Raises:
        ValueError: from ``forward``, if the network's logits have another shape.
    """

    @check_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        num_classes: Annotated[int, Field(ge=1)],
        network: nn.Module,
        multiple: Annotated[int, Field(ge=1)] = 32,
    ) -> None:
        super().__init__()
        self.network, self.in_channels, self.num_classes = network, in_channels, num_classes
        self.multiple = multiple

    @property
    def name(self) -> str:
        return type(self.network).__name__

    @property
    def stride(self) -> int:
        return self.multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, self.stride)
        logits = self.network(padded)
        expected = (image.shape[0], self.num_classes, *padded.shape[-2:])
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"{type(self.network).__name__} gives {tuple(logits.shape)}, not {expected}: "
                "it must return one logit per class at the size of the image"
            )
        return logits[..., :height, :width]

    def receptive_field(self, outputs: Extent) -> Extent:
        """Return the pixels that the given logits depend on, in steps of ``stride`` px, as measured by ``probe``."""
        blocks = outputs.transposed(self.stride, self.stride).convolved(self.stride, self.stride)
        field = self.block_field
        everywhere = outputs.everywhere or field.everywhere
        return Extent(blocks.low + field.low, blocks.high + field.high - self.stride, everywhere)

    @cached_property
    def block_field(self) -> Extent:
        """Pixels that the first ``stride`` px of the logits depend on."""
        return measure_receptive_field(self.network, self.in_channels, self.stride)
