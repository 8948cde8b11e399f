"""Learning rate schedules: a factor in 0..1 of ``optim.lr`` for each step."""

import math
from typing import Annotated, Protocol

from pydantic import Field

from seg.ranges import check_ranges


class Schedule(Protocol):
    """Schedule: a pure function of the step, so that a resumed run continues with the same rates."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate at ``step``, 0 to ``steps - 1``."""
        ...


class Constant:
    """Constant learning rate."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


class Cosine:
    """Linear warm-up, then half a cosine to zero. Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5.

    Args:
        warmup: fraction of the steps that warm up, at least 0 and below 1.
    """

    @check_ranges
    def __init__(self, warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05) -> None:
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        warmup_steps = math.ceil(self.warmup * steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


class Poly:
    """Polynomial decay, ``(1 - step / steps) ** power``.

    Args:
        power: above 0; 1 is a straight line to zero.
    """

    @check_ranges
    def __init__(self, power: Annotated[float, Field(gt=0)] = 0.9) -> None:
        self.power = power

    def factor(self, step: int, steps: int) -> float:
        return max(0.0, 1 - step / max(1, steps)) ** self.power
