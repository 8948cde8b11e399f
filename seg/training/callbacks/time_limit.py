"""End of a training by the clock, to which the schedule falls."""

from bisect import bisect_right
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Timer

from seg.training.schedules import Course, Segment

REPLANS = 100  # times at least that a training estimates its number of steps anew
MAX_STEPS = 2**40  # bound of an estimate, for steps that take no measurable time


class TimeLimit(Timer):
    """Timer that ends a training at the step in which its time is over, with the schedule at its end.

    After a step it estimates from the mean durations of a step and of a validation how many steps are left, and moves the
    end of the course of the learning rate there: after steps 1, 2, 4, 8, ..., after the first validation, and each time a
    further hundredth of the time is over. Progress of the schedule is the share of the time spent in steps, so that the
    rate does not jump when the speed changes. Time before the checkpoint that a run is resumed from is counted.

    Args:
        duration: days:hours:minutes:seconds, validations included.
        longer: True if the schedule begins again, or is held, at the resumed step.
        repeats: True if the steps of a recorded course are repeated, whatever their time.

    Attributes:
        trained: s spent in steps.
        validated: s spent in validations.
    """

    def __init__(self, duration: str, longer: bool = False, repeats: bool = False) -> None:
        super().__init__(duration, verbose=False)
        self.longer, self.repeats = longer, repeats
        self.steps, self.first, self.trained, self.base = 0, 0.0, 0.0, 0.0
        self.validations, self.validated = 0, 0.0
        self.planned_at: float | None = None
        self.mark = 0.0
        self.segments: list[Segment] = []

    @property
    def state_key(self) -> str:
        return "Timer"  # Lightning's name, as in older checkpoints

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in STATE}
        return super().state_dict() | own | {"segments": [list(one) for one in self.segments]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name in STATE:
            setattr(self, name, state_dict.get(name, getattr(self, name)))
        if self.longer:
            self.base, self.planned_at, self.repeats = self.trained, None, False

    def on_fit_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self.segments = self.course(trainer).segments
        if not self.repeats:
            super().on_fit_start(trainer, *args, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.mark, self.done = self.time_elapsed(), trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self.mark = self.time_elapsed()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.validated += self.time_elapsed() - self.mark
        self.validations += 1
        self.mark = self.time_elapsed()
        if self.validations == 1:
            self.planned_at = None

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        done = trainer.global_step
        if done == self.done:  # the batch is not the last one of its step
            return
        now, self.done = self.time_elapsed(), done
        self.steps, self.trained = self.steps + 1, self.trained + now - self.mark
        self.first, self.mark = self.first or self.trained, now
        course = self.course(trainer)
        if not self.repeats:
            for segment in trainer.strategy.broadcast(self.replan(trainer, course, now)):
                course.replan(segment)
        trainer.should_stop = trainer.should_stop or done >= course.end

    def replan(self, trainer: L.Trainer, course: Course, now: float) -> list[Segment]:
        """Return the new last segment of the course, if the end moves.

        Args:
            trainer: after a step.
            course: of the learning rate.
            now: s since the start.
        """
        done, duration = trainer.global_step, cast(float, self._duration)
        if now >= duration:
            return [Segment(done, done, None)] if done < course.end else []
        early = self.steps & (self.steps - 1) == 0  # a power of two
        due = self.planned_at is None or now - self.planned_at >= duration / REPLANS
        if not (due or early):
            return []
        self.planned_at = now
        step, left = self.step_seconds(), self.steps_left(trainer, duration - now)
        end = min(done + left, course.limit or MAX_STEPS)
        last = course.segments[-1]
        if end == last.end:
            return []
        # The rate of the next step is set already, so that the new segment starts after it.
        if end <= done + 1:
            return [Segment(end, end, None)]
        spent = self.trained - self.base
        progress = (spent + step) / (spent + (end - done) * step)
        return [Segment(done + 1, end, None if last.progress is None else progress)]

    def step_seconds(self) -> float:
        """Return the mean duration of a step, without the first one."""
        if self.steps < 2:
            return max(self.trained, 1e-9)
        return max((self.trained - self.first) / (self.steps - 1), 1e-9)

    def steps_left(self, trainer: L.Trainer, seconds: float) -> int:
        """Return the number of steps that fit into a time together with their validations, one at the end included."""
        step, validation = self.step_seconds(), self.validated / max(1, self.validations)
        epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        period = epoch * (trainer.check_val_every_n_epoch or 1)
        before = trainer.global_step % period

        def cost(steps: int) -> float:
            return steps * step + validation * -(-(before + steps) // period)

        return bisect_right(range(1, MAX_STEPS), seconds, key=cost)

    @staticmethod
    def course(trainer: L.Trainer) -> Course:
        return cast(Any, trainer.lightning_module).course


STATE = ("repeats", "steps", "first", "trained", "base", "validations", "validated", "planned_at")
