"""Learning rate schedules: a factor in 0..1 of ``optim.lr`` for each step, and the course of a run's factors."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from seg.errors import RunError
from seg.ranges import check_ranges

Extend = Literal["hold", "restart"]


class Schedule(Protocol):
    """Schedule: a pure function of the step, so that a resumed run continues with the same rates."""

    def factor(self, step: float, steps: float) -> float:
        """Return the factor of the learning rate at ``step``, 0 to ``steps - 1``."""
        ...


class Constant:
    """Constant learning rate."""

    def factor(self, step: float, steps: float) -> float:
        return 1.0


class Cosine:
    """Linear warm-up, then half a cosine to zero. Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5.

    Args:
        warmup: fraction of the steps that warm up, at least 0 and below 1.
    """

    @check_ranges
    def __init__(self, warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05) -> None:
        self.warmup = warmup

    def factor(self, step: float, steps: float) -> float:
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

    def factor(self, step: float, steps: float) -> float:
        return max(0.0, 1 - step / max(1, steps)) ** self.power


class Segment(NamedTuple):
    """Part of the course of a run's learning rate.

    Attributes:
        start: first step.
        end: number of steps of the run, as planned at ``start``, at which the schedule ends.
        progress: fraction of the schedule that is done at ``start``, at least 0 and below 1; None: the factor of the
            step before ``start`` is held.
    """

    start: int
    end: int
    progress: float | None


class Course:
    """Factors of the learning rate over a run, whose end may be moved while it trains or after it.

    Args:
        schedule: from the first step to the end, if nothing moves the end.
        segments: parts of the course; each one holds up to the start of the next, the first starts at step 0.
        limit: largest number of steps; None: no limit but time.
    """

    def __init__(
        self, schedule: Schedule, segments: Iterable[Segment], limit: int | None = None
    ) -> None:
        self.schedule, self.segments, self.limit = schedule, list(segments), limit

    @property
    def end(self) -> int:
        """Return the planned number of steps."""
        return self.segments[-1].end

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        segment = next(s for s in reversed(self.segments) if s.start <= step)
        if segment.progress is None:
            return self.factor(segment.start - 1)
        length = (segment.end - segment.start) / (1 - segment.progress)
        position = segment.progress * length + step - segment.start
        return self.schedule.factor(min(position, length), length)

    def replan(self, segment: Segment) -> None:
        """Let a segment replace the course from its start on."""
        self.segments[:] = [*(s for s in self.segments if s.start < segment.start), segment]

    def lengthen(self, end: int, extend: Extend | None, start: int | None = None) -> None:
        """Move the end of the run; the course up to ``start`` stays.

        Args:
            end: new number of steps, above the previous one.
            extend: hold the factor of the step before ``start``, or restart the schedule with its warm-up over the
                added steps; None: for a schedule that does not depend on the number of steps.
            start: first step that is added; None: the previous end.

        Raises:
            RunError: if the schedule depends on the number of steps, and ``extend`` is None.
        """
        last, factor = self.segments[-1], self.schedule.factor
        start = last.end if start is None else start
        if extend is not None:
            self.replan(Segment(start, end, 0.0 if extend == "restart" else None))
        elif all(factor(step, last.end) == factor(step, end) for step in range(last.end)):
            self.segments[-1] = last._replace(end=end)
        else:
            raise RunError(
                f"{type(self.schedule).__name__} falls to its end at step {start}, and {end} steps are asked for; give "
                "extend=hold (keep the learning rate of the last step) or extend=restart (the schedule again, with "
                "its warm-up, over the added steps)"
            )
