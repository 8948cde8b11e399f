"""A training that ends by the clock falls to its end there, and its steps can be repeated."""

import lightning as L
import pytest
from small_runs import TINY, config
from test_resume import DROPOUT, Stop, longer, rows, same

from seg.runs import records
from seg.runs.run_info import RunInfo
from seg.training.run import train

TIMED = [*TINY, *DROPOUT, "trainer.max_epochs=-1", "schedule.power=1.0", "schedule=poly"]


class Clock(L.Callback):
    """The time module that Lightning's timer sees: each batch and each validation takes some seconds.

    Args:
        batch: s of a training batch, from the number of steps done.
        validation: s of a validation.
    """

    def __init__(self, batch=lambda done: 1.0, validation: float = 0.0) -> None:
        self.batch, self.validation, self.now = batch, validation, 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_start(self, trainer: L.Trainer, *args, **kwargs) -> None:
        self.now += self.batch(trainer.global_step)

    def on_validation_batch_start(self, trainer: L.Trainer, *args, **kwargs) -> None:
        self.now += self.validation / trainer.num_val_batches[0]


@pytest.fixture
def timed(monkeypatch, tmp_path):
    def run(limit: int, *words: str, clock: Clock | None = None, name: str = "run", stop=()):
        clock = clock or Clock()
        monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", clock)
        outputs = tmp_path / name
        word = f"trainer.max_time=00:00:{limit // 60:02}:{limit % 60:02}"
        train(config("train", *TIMED, word, *words, f"outputs={outputs}"), [clock, *stop])
        folder = (outputs / "latest").resolve()
        return folder, records.read_json(folder / "run.json"), clock

    return run


def test_a_straight_line_falls_to_the_step_that_the_time_allows(timed):
    folder, record, clock = timed(7)
    # after the first step of 1 s, 6 more fit; of the rate's fall from 1, 2 of 7 parts are then made at step 2
    assert record["lr_segments"] == [[0, 1000, 0.0], [2, 7, pytest.approx(2 / 7)]]
    assert record["steps"] == 7 and clock.now == 7
    rates = [float(row["lr"]) for row in rows(folder) if row["lr"]]  # of the steps after 2, 4, 6, 7
    assert rates == pytest.approx([3e-3 * (1 - s / 7) for s in (2, 4, 6, 7)], abs=1e-9)
    assert any(
        row["step"] == "6" and row["val/dice"] for row in rows(folder)
    )  # the last step is validated, in the middle of an epoch


def test_a_speed_that_changes_and_validations_still_end_in_time(timed):
    _, record, clock = timed(60, clock=Clock(lambda done: 3.0 if done in (0, 8) else 0.5, 1.0))
    assert 58 <= clock.now <= 61
    segments = record["lr_segments"]
    start, end, progress = segments[-1]
    assert end == record["steps"] and [s[0] for s in segments] == sorted(s[0] for s in segments)
    assert progress + (1 - progress) * (end - 1 - start) / (end - start) > 0.97  # the last rate


def test_its_steps_are_repeated_bit_for_bit_whatever_they_take(timed, monkeypatch, tmp_path):
    clock = Clock(lambda done: 2.0 if done < 3 else 0.5, 0.7)
    first, record, _ = timed(12, clock=clock)
    monkeypatch.undo()
    words = ["trainer.max_time=00:00:00:12", f"outputs={tmp_path / 'again'}"]
    asked = RunInfo("again", segments=record["lr_segments"])
    train(config("train", *TIMED, *words), asked=asked)
    again = (tmp_path / "again/latest").resolve()
    assert same(first, again)
    assert records.read_json(again / "run.json")["steps"] == record["steps"] == 8


def test_epochs_that_end_first_leave_the_schedule_as_it_is_without_a_limit(timed, tmp_path):
    folder, record, _ = timed(50, "trainer.max_epochs=2")
    plain = [*TIMED, "trainer.max_epochs=2", f"outputs={tmp_path / 'plain'}"]
    train(config("train", *plain))
    assert same((tmp_path / "plain/latest").resolve(), folder)
    assert record["lr_segments"] == [[0, 4, 0.0]]


def test_a_stopped_one_continues_with_the_time_that_is_left(timed, monkeypatch, tmp_path):
    straight, record, _ = timed(9)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        timed(9, name="cut", stop=[Stop(3)])
    clock = Clock()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", clock)
    cut = (tmp_path / "cut/latest").resolve()
    train(config("train", f"resume={cut}"), [clock])
    assert clock.now == 6 and same(straight, cut)
    assert records.read_json(cut / "run.json")["lr_segments"] == record["lr_segments"]


def test_more_time_restarts_the_schedule_at_the_step_reached(timed, monkeypatch):
    folder, _, clock = timed(5)
    clock.now = 0.0
    cfg_words = ["trainer.max_time=00:00:00:11", "extend=restart"]
    longer(folder, *cfg_words, callbacks=[clock])
    record = records.read_json(folder / "run.json")
    assert record["steps"] == 11 and clock.now == 6
    # 6 steps of a new fall: 2 of 6 parts are made at step 7
    assert record["lr_segments"] == [
        [0, 1000, 0.0], [2, 5, pytest.approx(0.4)], [5, 11, 0.0],
    ]  # fmt: skip
