"""Test-time augmentation: average the probabilities over flips, quarter turns and scales of the image."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.logits import average_logits
from seg.models.contract import reflect_indices, same_size_logits, tile_stride
from seg.models.network import Extent, Network, receptive_field

ViewsName = Literal["none", "mirror", "flips", "d4"]
FLIP_VIEWS = [(down, right, False) for down in (False, True) for right in (False, True)]
VIEWS = {
    "none": FLIP_VIEWS[:1],
    "mirror": FLIP_VIEWS[:2],
    "flips": FLIP_VIEWS,
    "d4": FLIP_VIEWS + [(down, right, True) for down, right, _ in FLIP_VIEWS],
}


class TTANetwork(Network):
    """Network that averages the probabilities of another over flips, quarter turns and scales of its input.

    Each image is first padded by reflection to a multiple of ``stride``, so that a flip moves no pooling window, resizing
    is exact, and a tile that starts on this grid gives the same as the whole image.

    Args:
        model: the network, or an ensemble.
        moves: none, mirror (2: left and right), flips (4) or d4 (8: flips and quarter turns).
        scales: factors of height and width, above 0 and up to 8, rounded to fractions with denominators up to 20;
            bilinear resizing.
        overlapping: whether classes overlap, each with its own sigmoid.

    Shape:
        image (B, C, H, W) -> logits (B, K, H, W), any H and W.

    Raises:
        ValueError: for other moves, or a scale out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        moves: ViewsName = "none",
        scales: list[float] | None = None,
        overlapping: bool = False,
    ) -> None:
        super().__init__()
        if moves not in VIEWS:
            raise ValueError(f"tta={moves}: one of {', '.join(get_args(ViewsName))} is needed")
        scales = [1.0] if scales is None else list(scales)
        if not scales or not all(isinstance(s, int | float) and 0 < s <= 8 for s in scales):
            raise ValueError(
                f"scales={scales}: factors above 0 and up to 8 are needed, [0.75, 1, 1.25]"
            )
        self.model, self.moves, self.overlapping = model, VIEWS[moves], overlapping
        self.scales = [Fraction(scale).limit_denominator(20) or Fraction(1, 20) for scale in scales]

    @property
    def stride(self) -> int:
        """The smallest multiple of the network's grid that is a multiple of the grid at each scale, too."""
        return tile_stride(self.model) * math.lcm(*(scale.denominator for scale in self.scales))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        whole = self.pad_to_stride(image)
        heads = [self.seen(whole, scale, move) for scale in self.scales for move in self.moves]
        return average_logits(heads, self.overlapping)[..., :height, :width]

    def seen(self, image: Tensor, scale: Fraction, move: tuple[bool, bool, bool]) -> Tensor:
        """Return the logits of the image at one scale, transformed and transformed back."""
        # The stride makes both sides whole numbers at each scale, so resizing is exact
        size = image.shape[-2:]
        if scale != 1:
            image = resize_bilinear(image, [int(side * scale) for side in size])
        logits = invert_view(same_size_logits(self.model, transform_view(image, move)), move)
        return logits if scale == 1 else resize_bilinear(logits.float(), list(size))

    def receptive_field(self, outputs: Extent) -> Extent:
        """Return the union over all views; a flip swaps the two sides."""
        field = outputs
        for scale in self.scales:
            scaled = outputs if scale == 1 else outputs.resized(scale)  # px of the resized logits
            view = receptive_field(self.model, scaled)
            if len(self.moves) > 1:
                view |= receptive_field(self.model, scaled.mirrored()).mirrored()
            field |= view if scale == 1 else view.resized(1 / scale)
        return field

    def pad_to_stride(self, image: Tensor) -> Tensor:
        """Return the image padded at the bottom and right, by reflection, to a multiple of ``stride``."""
        for dim in (-2, -1):
            side = image.shape[dim]
            if rest := -side % self.stride:
                image = image.index_select(dim, reflect_indices(side, 0, rest).to(image.device))
        return image


def resize_bilinear(image: Tensor, size: list[int]) -> Tensor:
    """Return an image or logits (B, C, H, W) at another height and width."""
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def with_tta(
    model: nn.Module, moves: ViewsName, scales: Sequence[float], overlapping: bool
) -> nn.Module:
    """Return the network with test-time augmentation, or the network itself if there is one view only.

    Raises:
        ValueError: for other moves, or a scale out of range.
    """
    if moves == "none" and list(scales) == [1.0]:
        return model
    return TTANetwork(model, moves, list(scales), overlapping).eval()


def transform_view(image: Tensor, move: tuple[bool, bool, bool]) -> Tensor:
    """Flip an image vertically and horizontally, then transpose it."""
    down, right, transpose = move
    image = image.flip([dim for dim, flip in ((-2, down), (-1, right)) if flip])
    return image.transpose(-2, -1).contiguous() if transpose else image


def invert_view(image: Tensor, move: tuple[bool, bool, bool]) -> Tensor:
    """Invert ``transform_view``."""
    down, right, transpose = move
    image = image.transpose(-2, -1) if transpose else image
    return image.flip([dim for dim, flip in ((-2, down), (-1, right)) if flip])


def normalized_entropy(p_CHW: Tensor, overlapping: bool = False) -> Tensor:
    """Return the entropy of the probabilities over its maximum, (H, W) in 0..1; the mean over overlapping classes.

    Args:
        p_CHW: class probabilities.
        overlapping: whether classes overlap.
    """
    # Divide by the entropy of equal probabilities: 1 bit of a binary event, log K of K classes
    if overlapping:
        return binary_entropy(p_CHW).mean(0)
    if len(p_CHW) == 2:
        return binary_entropy(p_CHW[1])
    return torch.special.entr(p_CHW).sum(0) / torch.tensor(float(len(p_CHW))).log()


def binary_entropy(p: Tensor) -> Tensor:
    """Return the entropy in bits of events of probability ``p``."""
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / torch.tensor(2.0).log()
