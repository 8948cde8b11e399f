"""Losses that are functions of sums over pixels, which can be computed band by band."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from seg.labels import IGNORE


class AdditiveLoss(nn.Module, ABC):
    """Base class of losses ``from_sums(pixel_sums(logits, mask, gaps))``, whose sums add up over parts of an image.

    The loss of an image that is too large for the network at once is ``from_sums`` of the sums of its bands.
    """

    @abstractmethod
    def pixel_sums(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return sums over the valid pixels, of any shape."""

    @abstractmethod
    def from_sums(self, sums: Tensor) -> Tensor:
        """Return the loss, a scalar, from its sums."""

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        return self.from_sums(self.pixel_sums(logits_BKHW, mask, gaps))


class PixelLoss(AdditiveLoss):
    """Base class of losses that are the mean of a value of each pixel over the valid pixels."""

    @abstractmethod
    def pixel_values(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return the loss of each pixel, of the mask's shape; 0 where it is ignored."""

    def pixel_sums(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return the sum of the values and the number of valid pixels, (2,)."""
        values = self.pixel_values(logits_BKHW, mask, gaps)
        return torch.stack([values.sum(), (mask != IGNORE).sum().to(values.dtype)])

    def from_sums(self, sums: Tensor) -> Tensor:
        """Return the mean over the valid pixels; 0 without any."""
        return sums[0] / sums[1].clamp(min=1)
