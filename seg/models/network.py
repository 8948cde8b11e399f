"""Base class of all networks, with its contract, and receptive fields.

A network computes its receptive field from its layers, from the logits back to the image; the result holds for any
weights and any image. One side is enough, because all layers treat height and width alike. Skip connections need not be
followed: the path through the level below depends on the same pixels and more.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from seg.models.checkpointing import run_checkpointed

UNKNOWN_MARGIN = 256  # px on each side, assumed for a receptive field without end
FIRST_PROBE, LONGEST_PROBE = (
    512,
    8192,
)  # px of a probe's image: at first on each side of the middle; at most in all
PROBE_WIDTH = 64  # px of the other side of a probe's image
POINTWISE_LAYERS = (nn.ReLU, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Extent:
    """The pixels ``low`` to ``high - 1`` along one side of an image or a feature map.

    Attributes:
        low: the first pixel; negative if it lies before pixel 0.
        high: the pixel after the last.
        everywhere: whether all pixels of the image count, as for a mean over the image; ``low`` and ``high`` are then
            those of the other layers.
    """

    low: int
    high: int
    everywhere: bool = False

    def __or__(self, other: "Extent") -> "Extent":
        everywhere = self.everywhere or other.everywhere
        return Extent(min(self.low, other.low), max(self.high, other.high), everywhere)

    def shifted(self, offset: int) -> "Extent":
        """Return the pixels ``offset`` px further."""
        return replace(self, low=self.low + offset, high=self.high + offset)

    def mirrored(self) -> "Extent":
        """Return the same pixels after a flip about pixel 0's upper edge."""
        return replace(self, low=-self.high, high=-self.low)

    def convolved(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "Extent":  # fmt: skip
        """Return the input pixels of a convolution or pooling whose output these pixels are."""
        low = self.low * stride - padding
        high = (self.high - 1) * stride - padding + dilation * (kernel - 1) + 1
        return replace(self, low=low, high=high)

    def transposed(self, kernel: int, stride: int, padding: int = 0) -> "Extent":
        """Return the input pixels of a transposed convolution whose output these pixels are."""
        low = -((kernel - 1 - padding - self.low) // stride)
        return replace(self, low=low, high=(self.high - 1 + padding) // stride + 1)

    def resized(self, ratio: Fraction) -> "Extent":
        """Return the input pixels of a bilinear resizing whose output these pixels are.

        Args:
            ratio: input px per output px.
        """
        first, last = ((pixel + Fraction(1, 2)) * ratio - Fraction(1, 2) for pixel in (self.low, self.high - 1))  # fmt: skip
        return replace(self, low=floor(first), high=floor(last) + 2)


class ReceptiveModule(nn.Module, ABC):
    """Part of a network that states its receptive field."""

    @abstractmethod
    def receptive_field(self, outputs: Extent) -> Extent:
        """Return the pixels of the input that the given pixels of the output depend on, in evaluation mode."""


class Network(ReceptiveModule):
    """Base class of all networks: images (B, C, H, W) to logits (B, K, H, W).

    The rest of the package asks a network for what stands here and never for its class. A subclass defines ``forward``,
    ``stride`` and ``receptive_field``; one of valid convolutions also sets ``context`` and ``smallest``. In training mode
    ``forward`` may return a list of logits, shallowest head first (deep supervision).

    Attributes:
        context: px on each side by which the logits are smaller than the image; 0 except for valid convolutions.
        smallest: px, the smallest side that a network of valid convolutions accepts; the others are larger by multiples
            of ``stride``. It gives at most ``stride`` px of logits.
        num_heads: heads that are trained; above 1 with deep supervision.
        averages_heads: whether the logits in evaluation mode are the average of several heads, as a softmax.
        depths: depths of the heads that can be used alone, in ascending order; empty if the network cannot be pruned.
        normalizes: whether ``forward`` expects grey values as stored and normalises them itself, as an ensemble does.
        can_checkpoint: whether ``forward`` calls its parts by ``run_part``.
        checkpoint_activations: compute activations again in the backward pass, which takes less memory and more time.
    """

    context: int = 0
    smallest: int = 1
    normalizes: bool = False
    can_checkpoint: bool = False
    checkpoint_activations: bool = False

    @property
    @abstractmethod
    def stride(self) -> int:
        """The px by which the sides of the input divide; images of other sides are padded.

        An image shifted by a multiple of it gives the same logits, shifted, because the pooling windows are the same.
        """

    @property
    def name(self) -> str:
        """Name of the architecture, for people."""
        return type(self).__name__

    @property
    def num_heads(self) -> int:
        return 1

    @property
    def averages_heads(self) -> bool:
        return False

    @property
    def depths(self) -> list[int]:
        return []

    @property
    def recomputes(self) -> bool:
        """True if the activations of this forward pass are computed again in the backward pass."""
        return self.checkpoint_activations and self.training and torch.is_grad_enabled()

    def run_part(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``part(*inputs)``, of which only the inputs stay in memory if the network ``recomputes``."""
        return run_checkpointed(self, part, *inputs) if self.recomputes else part(*inputs)

    def margin(self) -> int:
        """Return the px around a part of the image on the grid of ``stride`` px that its logits depend on.

        This is the least context that a tile needs around the part that is kept. Where layers read the whole image
        (``receptive_field(...).everywhere``), it is the context of the other layers.
        """
        field = self.receptive_field(Extent(0, self.stride))
        return max(-field.low, field.high - self.stride, 0)

    def input_side(self, output: int) -> int:
        """Return the smallest input side, in px, whose logits have at least ``output`` px a side."""
        if not self.context:
            return output
        missing = max(0, output + 2 * self.context - self.smallest)
        return self.smallest + -(-missing // self.stride) * self.stride

    def head_options(self, head: int | Literal["average"]) -> dict[str, Any]:
        """Return the constructor options by which another head, or the average of all, gives the logits.

        Raises:
            ValueError: if the network has no such head.
        """
        raise ValueError(f"{self.name} has one head; it has no head {head}")

    def pruned_options(self, depth: int) -> dict[str, Any]:
        """Return the constructor options of a network of one head's nodes alone.

        Raises:
            ValueError: if the network has no such head.
        """
        raise ValueError(f"{self.name} has one head; it cannot be pruned to depth {depth}")


def receptive_field(layer: nn.Module, outputs: Extent) -> Extent:
    """Return the pixels of a layer's input that the given pixels of its output depend on, in evaluation mode.

    Raises:
        TypeError: for a layer of another kind.
    """
    # Modules that know their own, and chains of layers from the last to the first.
    if isinstance(layer, ReceptiveModule):
        return layer.receptive_field(outputs)
    if isinstance(layer, nn.Sequential):
        for part in reversed(layer):
            outputs = receptive_field(part, outputs)
        return outputs
    # Layers that move or widen the window.
    if isinstance(layer, nn.ConvTranspose2d):
        return outputs.transposed(
            square_side(layer.kernel_size), square_side(layer.stride), square_side(layer.padding)
        )
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        dilation = 1 if isinstance(layer, nn.AvgPool2d) else square_side(layer.dilation)
        kernel, stride, padding = (square_side(n) for n in (layer.kernel_size, layer.stride, layer.padding))  # fmt: skip
        return outputs.convolved(kernel, stride, padding, dilation)
    if isinstance(layer, nn.ZeroPad2d) and layer.padding[:2] == layer.padding[2:]:
        return outputs.shifted(-layer.padding[0])
    # Layers that may read the whole image, and those that read a pixel alone.
    if isinstance(layer, nn.GroupNorm):
        return replace(outputs, everywhere=True)
    if isinstance(layer, nn.BatchNorm2d):
        statistics = layer.running_mean is not None and not layer.training
        return outputs if statistics else replace(outputs, everywhere=True)
    if isinstance(layer, POINTWISE_LAYERS):
        return outputs
    raise TypeError(f"the receptive field of {layer} is not known")


def square_side(size: object) -> int:
    """Return the side of a square kernel, stride or padding.

    Raises:
        TypeError: if it isn't square.
    """
    first, *others = size if isinstance(size, tuple) else (size,)
    if not isinstance(first, int) or any(other != first for other in others):
        raise TypeError(f"{size} is not square")
    return first


@torch.no_grad()
def measure_receptive_field(network: nn.Module, channels: int, stride: int) -> Extent:
    """Return the pixels that the first ``stride`` px of the logits depend on, measured on a copy of the network.

    The copy, in evaluation mode and float64 on the CPU, gets images in which all rows above, or below, a position are NaN.
    NaN passes convolutions, pooling and activations for any weights, so the rows of the logits that are NaN are those that
    depend on these rows; the same for columns. The result is exact in steps of ``stride`` px. The logits of noise are then
    compared with those of a part of it, because a dependence on the image's size leaves no NaN (``align_corners=True``).

    Args:
        network: maps (B, C, H, W) to (B, K, H, W) for sides that divide by ``stride``.
        channels: C.
        stride: px, the steps of the result.

    Returns:
        The extent; with ``everywhere`` and ``UNKNOWN_MARGIN`` px on each side if it has no end within ``LONGEST_PROBE`` px, or if the
        logits depend on the image's size.
    """
    network = copy.deepcopy(network).to("cpu", torch.float64).eval()
    both = [measure_extent(lambda image: network(image), channels, stride)]
    both.append(measure_extent(lambda image: network(image.mT).mT, channels, stride))
    if any(field is None for field in both):
        return Extent(-UNKNOWN_MARGIN, stride + UNKNOWN_MARGIN, everywhere=True)
    rows, columns = cast(list[Extent], both)
    return rows | columns


def measure_extent(logits: Callable[[Tensor], Tensor], channels: int, stride: int) -> Extent | None:
    """Return the rows that the first ``stride`` rows depend on; None if these are all rows, or depend on their number."""
    generator = torch.Generator().manual_seed(0)
    blocks = -(-FIRST_PROBE // stride)  # on each side of the block in the middle
    across = -(-PROBE_WIDTH // stride) * stride
    while (side := (2 * blocks + 1) * stride) <= LONGEST_PROBE:
        # rows that are NaN in the logits depend on rows that are NaN in the image
        noise = torch.randn(1, channels, side, across, generator=generator, dtype=torch.float64)
        start, end = blocks * stride, (blocks + 1) * stride
        image = torch.cat([noise, noise])
        image[0, :, :end] = torch.nan
        image[1, :, start:] = torch.nan
        down, up = logits(image).isnan().any(3).any(1)
        before = -(
            -last_true_row(down[end:]) // stride
        )  # blocks; the reach up of a block is that down of its input
        after = -(-last_true_row(up[:start].flip(0)) // stride)
        if max(before, after) < blocks:
            # the same logits from this part of the image alone, unless they depend on its size
            part = logits(noise[:, :, start - before * stride : end + after * stride])
            part = part[:, :, before * stride :][:, :, :stride]
            whole = logits(noise)[:, :, start:end]
            equal = torch.allclose(part, whole, rtol=0, atol=1e-9 * float(whole.abs().max()))
            return Extent(-before * stride, (1 + after) * stride) if equal else None
        blocks *= 2
    return None


def last_true_row(reached: Tensor) -> int:
    """Return the number of rows up to the last one that is true."""
    return int(reached.nonzero().max()) + 1 if reached.any() else 0
