"""Sums of losses by name, and the loss of a network with several heads."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from seg.losses.weight_map import WeightMap


class Term(TypedDict):
    """One summand: its weight and the loss."""

    weight: Annotated[float, Field(ge=0)]
    loss: nn.Module


class Sum(nn.Module):
    """Weighted sum of losses, each with a name.

    Args:
        terms: name -> weight and loss; a term of weight 0 is left out.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        used = weighed(terms)
        self.losses = nn.ModuleDict({name: term["loss"] for name, term in used.items()})
        self.weights = {name: term["weight"] for name, term in used.items()}

    def named(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None) -> dict[str, Tensor]:
        """Each term's own value, not yet weighted."""
        return {name: one(loss, logits_BKHW, mask, gaps) for name, loss in self.losses.items()}

    def forward(self, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None = None) -> Tensor:
        return self.total(self.named(logits_BKHW, mask, gaps))

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the named values."""
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


def weighed(terms: Mapping[str, Any]) -> dict[str, Any]:
    """The terms of a sum whose weight isn't 0, built or as configs.

    Raises:
        ValueError: when there is none, or a weight is below 0.
    """
    wrong = [name for name, term in terms.items() if not 0 <= term["weight"] < math.inf]
    if wrong:
        raise ValueError(f"terms.{wrong[0]}.weight is {terms[wrong[0]]['weight']}; give 0 or more")
    used = {name: term for name, term in terms.items() if term["weight"]}
    if not used:
        raise ValueError(
            "no term has a weight; give one, as in loss=sum loss.terms.dice.weight=1 "
            f"(terms: {', '.join(terms) or 'none'})"
        )
    return used


def one(loss: nn.Module, logits_BKHW: Tensor, mask: Tensor, gaps: Tensor | None) -> Tensor:
    """A loss's value; only the weight map, and a sum that may hold one, take the gaps of whole images."""
    if isinstance(loss, WeightMap | Sum):
        return loss(logits_BKHW, mask, gaps)
    return loss(logits_BKHW, mask)


def weight_map(loss: nn.Module) -> WeightMap | None:
    """The weight map that a loss is or holds."""
    return next((part for part in loss.modules() if isinstance(part, WeightMap)), None)


def judge(
    loss: nn.Module,
    heads: list[Tensor],
    mask: Tensor,
    weights: list[float] | None = None,
    gaps: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and each term of a sum by name: the weighted mean over a supervised network's heads.

    Args:
        loss: any of seg.losses.
        heads: logits (B, K, H, W) each.
        mask: the truth.
        weights: of the heads; None: equal.
        gaps: of the weight map, from whole images; None: it computes them from the mask.
    """

    def mean(values: list[Tensor]) -> Tensor:
        if weights is None or len(values) == 1:
            return torch.stack(values).mean()
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        return torch.stack(weighted).sum() / sum(weights)

    if not isinstance(loss, Sum):
        return mean([one(loss, logits, mask, gaps) for logits in heads]), {}
    values = [loss.named(logits, mask, gaps) for logits in heads]
    terms = {name: mean([value[name] for value in values]) for name in values[0]}
    return loss.total(terms), terms
