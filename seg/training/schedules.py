"""Learning rate over a run, as a factor in 0..1 of ``optim.lr``."""

import math
from typing import Annotated, Protocol

from pydantic import Field


class Schedule(Protocol):
    """A pure function of the step, so that a resumed run goes on as it was."""

    def factor(self, step: int, steps: int) -> float:
        """Factor of the learning rate at ``step`` of ``steps`` in all, counted from 0."""
        ...


class Constant:
    """The same throughout."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


class Cosine:
    """A linear climb, then half a cosine to zero. Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5.

    Args:
        warmup: share of the steps in 0..1 that climb.
    """

    def __init__(self, warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; it must be at least 0 and below 1")
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        climb = math.ceil(self.warmup * steps)
        if step < climb:
            return (step + 1) / climb
        return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))


class Poly:
    """(1 - step / steps) ** power.

    Args:
        power: 1 is a straight line to zero.
    """

    def __init__(self, power: Annotated[float, Field(gt=0)] = 0.9) -> None:
        if power <= 0:
            raise ValueError(f"power is {power}; it must be above 0")
        self.power = power

    def factor(self, step: int, steps: int) -> float:
        return max(0.0, 1 - step / max(1, steps)) ** self.power
