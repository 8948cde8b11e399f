"""SegNet: the decoder unpools with the indices of the encoder's max pooling."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seg.models.blocks import (
    NormName,
    conv_norm_relu,
    init_he,
    pad_to_multiple,
    unpool_maxima,
)
from seg.models.encoders import VGG16_STAGES, EncoderName, build_vgg16
from seg.models.network import Extent, Network, receptive_field
from seg.ranges import check_ranges


class SegNet(Network):
    """SegNet. Badrinarayanan, Kendall, Cipolla, PAMI 2017, arXiv:1511.00561, figure 2.

    The encoder has the 13 convolutions of VGG16. Each decoder stage unpools with the indices of its encoder stage
    (figure 3) and has as many convolutions; the last one of a stage gives the channels of the next, and the last of all
    the classes.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        width: channels of the first stage; 64 in the paper.
        norm: after each convolution except the last: batch (as in the paper), group or none.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside to a multiple of 32.
    """

    encoder: EncoderName = "vgg16"

    can_checkpoint = True

    @check_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        num_classes: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=1)] = 64,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        self.norm = norm
        # Encoder: the 13 convolutions of VGG-16
        self.stages, channels = build_vgg16(in_channels, width, norm)
        self.decoder = nn.ModuleList()
        # Decoder: mirrors the encoder from its deepest stage up
        for level in range(4, -1, -1):
            inner = [
                conv_norm_relu(channels[level], channels[level], 3, norm)
                for _ in range(VGG16_STAGES[level][1] - 1)
            ]
            # The last convolution of a stage changes to the channels of the stage above
            if level:
                inner.append(conv_norm_relu(channels[level], channels[level - 1], 3, norm))
            self.decoder.append(nn.Sequential(*inner))
        # Classifier at full resolution
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        init_he(self)

    @property
    def stride(self) -> int:
        return 2 ** len(self.stages)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = pad_to_multiple(image, self.stride)
        pool_indices = []
        for stage in self.stages:
            x, indices = F.max_pool2d(self.run_part(stage, x), 2, return_indices=True)
            pool_indices.append(indices)
        for stage in self.decoder:
            x = self.run_part(stage, unpool_maxima(x, pool_indices.pop()))
        return self.head(x)[..., :height, :width]

    def receptive_field(self, outputs: Extent) -> Extent:
        needed = receptive_field(self.head, outputs)
        for stage in reversed(self.decoder):
            needed = receptive_field(stage, needed).transposed(kernel=2, stride=2)
        for stage in reversed(self.stages):
            needed = receptive_field(stage, needed.convolved(kernel=2, stride=2))
        return needed
