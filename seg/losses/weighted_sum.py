"""Weighted sum of named losses, and the loss of a network with several supervised heads."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from seg.losses.additive import AdditiveLoss
from seg.losses.weight_map import WeightMap

KEPT_PIXELS = 2**24  # of the largest image whose logits are kept for a loss that needs all of them


class SumTerm(TypedDict):
    """A term of a sum: its weight and its loss."""

    weight: Annotated[float, Field(ge=0)]
    loss: nn.Module


class Sum(nn.Module):
    """Weighted sum of named losses.

    Args:
        terms: name -> weight and loss; a term of weight 0 is left out.

    Raises:
        ValueError: if no term has a weight, or a weight is below 0.
    """

    def __init__(self, terms: Mapping[str, SumTerm]) -> None:
        super().__init__()
        used = active_terms(terms)
        self.losses = nn.ModuleDict({name: term["loss"] for name, term in used.items()})
        self.weights = {name: term["weight"] for name, term in used.items()}

    def term_values(
        self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the value of each term by name, not weighted."""
        return {
            name: call_loss(loss, logits_BKHW, mask, gaps) for name, loss in self.losses.items()
        }

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        return self.total(self.term_values(logits_BKHW, mask, gaps))

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the values of the terms."""
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


def active_terms(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Return the terms of a sum whose weight is not 0; a term is a Term or its config.

    Raises:
        ValueError: if there is none, or a weight is below 0 or not finite.
    """
    # NaN fails the comparison as well, so it is refused here
    wrong = [name for name, term in terms.items() if not 0 <= term["weight"] < math.inf]
    if wrong:
        raise ValueError(
            f"terms.{wrong[0]}.weight is {terms[wrong[0]]['weight']}; it must be 0 or more"
        )
    # Terms with weight 0 are left out and not computed
    used = {name: term for name, term in terms.items() if term["weight"]}
    if not used:
        raise ValueError(
            "every term of the sum has weight 0; set one, as in loss=sum loss.terms.dice.weight=1 "
            f"(terms: {', '.join(terms) or 'none'})"
        )
    return used


def call_loss(loss: nn.Module, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None) -> Tensor:
    """Return the value of a loss; the weight map is passed where the batch has one."""
    return loss(logits_BKHW, mask) if gaps is None else loss(logits_BKHW, mask, gaps)


def term_names(loss: nn.Module) -> list[str]:
    """Return the names of the terms that ``compute_loss`` returns; none unless the loss is a Sum."""
    return list(loss.losses) if isinstance(loss, Sum) else []


def find_weight_map(loss: nn.Module) -> WeightMap | None:
    """Return the WeightMap that a loss is or contains, or None."""
    return next((part for part in loss.modules() if isinstance(part, WeightMap)), None)


class LossOfBands:
    """Loss of an image whose logits come band by band, equal to that of the whole image.

    The sums are kept in float64. A loss that is no function of sums over pixels (Lovasz, clDice, a weight map that the
    loader did not compute) needs all logits: it is computed at the end from those that are kept, and is nan if the
    image has more than ``kept_pixels``.

    Args:
        loss: a loss of seg.losses.
        pixels: of the image.
        kept_pixels: largest image whose logits are kept.
    """

    def __init__(self, loss: nn.Module, pixels: int, kept_pixels: int = KEPT_PIXELS) -> None:
        self.loss, self.fits = loss, pixels <= kept_pixels
        self.terms: dict[str, nn.Module] = (
            dict(loss.losses.items()) if isinstance(loss, Sum) else {"": loss}
        )
        self.sums: dict[str, Tensor] = {}
        self.kept: list[tuple[Tensor, Tensor]] = []

    @property
    def needs_all(self) -> list[nn.Module]:
        """The terms that need the whole image."""
        return [term for term in self.terms.values() if not adds_up(term)]

    def add(self, logits_BKHW: Tensor, mask: Tensor) -> None:
        """Add the next rows of the image, from top to bottom."""
        for name, term in self.terms.items():
            if isinstance(term, AdditiveLoss) and adds_up(term):
                sums = term.pixel_sums(logits_BKHW.double(), mask)
                self.sums[name] = self.sums.get(name, 0) + sums
        if self.needs_all and self.fits:
            self.kept.append((logits_BKHW.cpu(), mask.cpu()))

    def compute(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the value of each term, as ``compute_loss``."""
        values = {}
        whole = [torch.cat(parts, dim=-2) for parts in zip(*self.kept, strict=True)]
        for name, term in self.terms.items():
            if isinstance(term, AdditiveLoss) and adds_up(term):
                values[name] = term.from_sums(self.sums[name]).float()
            else:
                values[name] = term(*whole) if whole else torch.tensor(torch.nan)
        if not isinstance(self.loss, Sum):
            return values[""], {}
        return self.loss.total(values), values


def adds_up(loss: nn.Module) -> bool:
    """Return True if a loss is computed from sums over the pixels of parts of an image."""
    return isinstance(loss, AdditiveLoss) and not isinstance(loss, WeightMap)


def compute_loss(
    loss: nn.Module,
    heads: list[Tensor],
    mask: Tensor,
    weights: list[float] | None = None,
    gaps: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a network: the weighted mean over its supervised heads.

    Args:
        loss: a loss of seg.losses.
        heads: logits (B, K, H, W) of each head.
        mask: class indices (B, H, W), or 0 and 1 for each label (B, K, H, W).
        weights: weight of each head; None: equal. Unused with a single head.
        gaps: weight map computed from whole images; None: WeightMap computes it from the mask.

    Returns:
        The loss, and the value of each term by name if the loss is a Sum (not weighted).
    """

    def mean(values: list[Tensor]) -> Tensor:
        if weights is None or len(values) == 1:
            return torch.stack(values).mean()
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        return torch.stack(weighted).sum() / sum(weights)

    if not isinstance(loss, Sum):
        return mean([call_loss(loss, logits, mask, gaps) for logits in heads]), {}
    values = [loss.term_values(logits, mask, gaps) for logits in heads]
    terms = {name: mean([value[name] for value in values]) for name in values[0]}
    return loss.total(terms), terms
