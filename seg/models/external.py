"""Networks of other projects under this one's contract."""

from torch import Tensor, nn

from seg.models.blocks import check_counts, pad_to_multiple


class Peer(nn.Module):
    """Any network that maps (B, C, H, W) to (B, K, H, W) for sides that divide by a number.

    Args:
        in_channels: C of the image.
        num_classes: K of the logits.
        network: it; conf/model/smp.yaml names one of segmentation-models-pytorch.
        multiple: px by which the sides that it takes must divide.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W: padded inside.

    Raises:
        ValueError: from ``forward``, when the network's logits have another shape.
    """

    def __init__(
        self, in_channels: int, num_classes: int, network: nn.Module, multiple: int = 32
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes, multiple=multiple)
        self.network, self.num_classes, self.multiple = network, num_classes, multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = pad_to_multiple(image, self.multiple)
        logits = self.network(padded)
        wanted = (image.shape[0], self.num_classes, *padded.shape[-2:])
        if tuple(logits.shape) != wanted:
            raise ValueError(
                f"{type(self.network).__name__} gives {tuple(logits.shape)}, not {wanted}: "
                "it must put out one logit a class at the size of the image"
            )
        return logits[..., :height, :width]
