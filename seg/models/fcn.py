"""FCN: a convolutional classification network whose coarse scores are refined by those of finer layers."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg.models.blocks import (
    NormName,
    conv_norm_relu,
    init_he,
    pad_to_multiple,
)
from seg.models.encoders import EncoderName, build_alexnet, build_pooling, build_vgg16
from seg.models.network import Extent, Network, receptive_field
from seg.ranges import check_ranges

FixedUpsampling = Literal["last", "all", "none"]


class FCN(Network):
    """FCN-32s, -16s or -8s. Long, Shelhamer, Darrell, CVPR 2015, arXiv:1411.4038, figure 3.

    Differs: sides are padded to a multiple of 32 instead of by 100 px, so that no crop is needed; convolutions can be
    normalised, without which a VGG16 doesn't train from scratch; the coarsest scores start at random weights, not at
    zero. AlexNet is torchvision's, of one column; its finer scores come from pool2 (16 px) and pool1 (8 px).

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        encoder: alexnet or vgg16.
        width: channels of the first stage; 64 in both papers. fc6 and fc7 have 64 times as many.
        stride: px between the finest scores: 32 (from the last pooling layer), 16 (and the one before) or 8 (and the
            one before that).
        norm: after each convolution: batch, group or none (as in the paper).
        dropout: probability in 0..1 after fc6 and fc7.
        fixed_upsampling: transposed convolutions that stay at their initial weights, bilinear interpolation: last
            (section 4.3 of the paper), all, or none.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W.
    """

    can_checkpoint = True

    @check_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Field(ge=1)],
        num_classes: Annotated[int, Field(ge=1)],
        encoder: EncoderName = "vgg16",
        width: Annotated[int, Field(ge=1)] = 64,
        stride: Literal[32, 16, 8] = 8,
        norm: NormName = "batch",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        fixed_upsampling: FixedUpsampling = "last",
    ) -> None:
        super().__init__()
        # Backbone: the stages of a classification network without its linear layers
        self.encoder, self.norm = encoder, norm
        make = build_vgg16 if encoder == "vgg16" else build_alexnet
        self.stages, channels = make(in_channels, width, norm)
        self.pools = build_pooling(encoder)
        # The linear layers fc6 and fc7, as convolutions
        fc6 = conv_norm_relu(channels[-1], 64 * width, 7, norm)
        # AlexNet's fc6 is 6x6: padded by one px more at the left and top, against pool3's offset
        if encoder == "alexnet":
            valid = conv_norm_relu(channels[-1], 64 * width, 6, norm, "valid")
            fc6 = nn.Sequential(nn.ZeroPad2d((3, 2, 3, 2)), valid)
        self.classifier = nn.Sequential(
            fc6,
            nn.Dropout(dropout),
            conv_norm_relu(64 * width, 64 * width, 1, norm),  # fc7
            nn.Dropout(dropout),
        )
        init_he(self)
        # A score layer for the coarsest features and for each skip, from coarse to fine
        self.finer = (32 // stride).bit_length() - 1  # skips: 0, 1 or 2
        coarse_to_fine = [64 * width, *channels[-2::-1][: self.finer]]
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in coarse_to_fine)
        # Upsampling by 2 between the skips, and by the remaining stride at the end
        self.doubles = nn.ModuleList(bilinear_upsampling(num_classes, 2) for _ in range(self.finer))
        self.last = bilinear_upsampling(num_classes, stride)
        self.last.requires_grad_(fixed_upsampling == "none")
        self.doubles.requires_grad_(fixed_upsampling != "all")
        # finer scores start at zero: at first the network gives the coarser one's logits
        for score in list(self.scores)[1:]:
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    @property
    def stride(self) -> int:
        """The encoder's; the argument ``stride`` is that of the finest scores."""
        return 32

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = pad_to_multiple(image, self.stride)
        pooled = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(self.run_part(stage, x))
            pooled.append(x)
        logits = self.scores[0](self.run_part(self.classifier, pooled.pop()))
        for double, score in zip(self.doubles, self.scores[1:], strict=True):
            logits = double(logits) + score(pooled.pop())  # skips are added
        return self.last(logits)[..., :height, :width]

    def receptive_field(self, outputs: Extent) -> Extent:
        needed = receptive_field(self.last, outputs)
        for double in reversed(self.doubles):
            needed = receptive_field(double, needed)  # includes the finer scores'
        needed = receptive_field(self.classifier, receptive_field(self.scores[0], needed))
        for stage, pool in reversed(list(zip(self.stages, self.pools, strict=True))):
            needed = receptive_field(stage, receptive_field(pool, needed))
        return needed


def bilinear_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution initialised as bilinear interpolation by an even factor, class by class."""
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False
    )
    tent = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor  # 0..1, sums to factor
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = torch.outer(tent, tent)
    return layer
