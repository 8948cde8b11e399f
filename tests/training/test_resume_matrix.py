"""A run that was killed or signalled at any instant and then resumed ends bit for bit as one that never was.

An instant is a hook of the training, or just before or after a file of the run is replaced or a row is added to
metrics.csv. After a kill the run's folder is all that is left, so the folder is copied at each instant of one run
and each copy is resumed; copies are left out that differ from a later one in rows of metrics.csv alone. A signal
is sent at an instant of a run of its own.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from small_runs import config
from test_resume import rows

from seg.errors import RunError
from seg.runs import records
from seg.runs.checkpoint import read_checkpoint
from seg.training.build import build_data
from seg.training.callbacks.checkpointing import GracefulStop
from seg.training.loggers.metrics_logger import MetricsCSV
from seg.training.resume import newest_checkpoint
from seg.training.run import train

# 3 batches an epoch, the last one smaller
SMALL = ["data.size=64", "data.train=5", "data.val=2", "data.test=1", "loader.crop=32", "loader.repeats=2",
         "logger=none", "trainer=cpu", "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "panels=1", "save_predictions=1",
         "model.width=2", "model.depth=1", "model.dropout=0.5", "name=run", "optim.lr=0.1",
         "save_checkpoints=full"]  # fmt: skip
BATCHES = 3
ENDED_BY = {
    "epochs": [],
    "steps, not reached": ["trainer.max_steps=1000"],
    "steps, in an epoch": ["trainer.max_steps=4"],
    "steps, at an epoch's end": ["trainer.max_steps=6"],
    "time": ["trainer.max_time=00:00:00:05"],  # s; the clock of these tests counts batches
    "patience": ["patience=1", "trainer.max_epochs=9"],
}
HOOKS = [
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_optimizer_step",
    "on_train_batch_end", "on_validation_start", "on_validation_batch_start", "on_validation_end",
    "on_train_epoch_end", "on_train_end", "on_fit_end", "on_test_start", "on_test_batch_start", "on_test_end",
]  # fmt: skip


class Clock:
    """The time module that Lightning's timer sees: a second passes with each batch."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Instants(L.Callback):
    """Counts the instants of a run and does something at each.

    Args:
        deed: number of the instant, its name and the run's folder, once there is one, -> anything.
    """

    def __init__(self, deed: Callable[[int, str], object]) -> None:
        self.deed, self.names = deed, []
        self.clock = Clock()
        for hook in HOOKS:
            setattr(self, hook, lambda *args, hook=hook, **kwargs: self.reach(hook))

    def reach(self, name: str) -> None:
        if name == "on_train_batch_start":
            self.clock.now += 1
        self.names.append(name)
        self.deed(len(self.names) - 1, name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        replace, log = os.replace, MetricsCSV.log_metrics

        def replacing(source: Any, target: Any, **kwargs: Any) -> None:
            self.reach(f"before {Path(target).name}")
            replace(source, target, **kwargs)
            self.reach(f"after {Path(target).name}")

        def logging(*args: Any, **kwargs: Any) -> None:
            self.reach("before a row")
            log(*args, **kwargs)
            self.reach("after a row")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", replacing)
            patch.setattr(MetricsCSV, "log_metrics", logging)
            patch.setattr("lightning.pytorch.callbacks.timer.time", self.clock)
            yield


@pytest.fixture(autouse=True, scope="module")
def statistics() -> None:
    """Keep the statistics of the data, which the first run would write: then all runs have the same instants."""
    build_data(config("train", *SMALL))


def run(*words: str, deed: Callable[[int, str], object] = lambda number, name: None) -> list[str]:
    """Train, and return the names of the instants."""
    instants = Instants(deed)
    with instants.watching():
        train(config("train", *words), [instants])
    return instants.names


def resume(folder: Path, **options: Any) -> None:
    run(f"resume={folder}", **options)


def equal(one: Any, two: Any) -> bool:
    """Return True if two nested values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(equal(*pair) for pair in zip(one, two, strict=True))
    return one == two or (one != one and two != two)


def result(folder: Path) -> dict[str, Any]:
    """All that a run leaves which does not depend on the time that it took."""
    found: dict[str, Any] = {"metrics.csv": rows(folder), "images.csv": (folder / "images.csv").read_bytes()}  # fmt: skip
    record = records.read_json(folder / "run.json")
    found |= {name: record[name] for name in ("status", "metrics", "threshold", "steps")}
    for name in ("last.ckpt", "best.ckpt"):
        content = read_checkpoint(folder / "checkpoints" / name)
        callbacks = content.pop("callbacks")
        del content["seg"]["config"]["outputs"]
        del content["loops"]  # counters; what follows from them is compared
        found[name] = content
        for key, state in callbacks.items():
            if key.startswith("EarlyStopping"):
                found[f"{name} patience"] = state
            if key.startswith("Checkpoints") and "val/dice" in key:
                found[f"{name} best"] = [state[k] for k in ("best_model_score", "best_model_path")]
    for file in sorted((folder / "predictions").rglob("*.png")):
        found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def differences(folder: Path, straight: dict[str, Any]) -> list[str]:
    """The parts of a run's result in which it is not as the one that was never stopped."""
    found = result(folder)
    assert found.keys() == straight.keys()
    return [name for name in found if not equal(found[name], straight[name])]


def the_folder(outputs: Path) -> Path | None:
    return next((f for f in outputs.glob("*") if f.is_dir() and not f.is_symlink()), None)


def checkpoints(folder: Path) -> list[tuple[str, int, int]]:
    found = ((f.name, f.stat()) for f in (folder / "checkpoints").glob("*"))
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def copies(words: list[str], root: Path) -> dict[str, Path]:
    """Copies of a run's folder as a kill would have left it, by what came just before."""
    found: dict[str, Path] = {}
    before: list[Any] = [None]

    def copy(number: int, name: str) -> None:
        folder = the_folder(root / "straight")
        if folder is None or not (folder / "run.json").exists():
            return
        state = (checkpoints(folder), records.read_json(folder / "run.json")["status"])
        if before[0] == state:  # a later copy has these checkpoints and more rows
            shutil.rmtree(found.popitem()[1])
        before[0] = state
        found[f"{number} {name}"] = root / f"killed-{number}"
        shutil.copytree(folder, root / f"killed-{number}", symlinks=True)

    run(*words, f"outputs={root / 'straight'}", deed=copy)
    return found


def signalled(words: list[str], outputs: Path, at: int, number: int) -> tuple[str, int | None]:
    """Run and send a signal at an instant; return the instant's name and the exit code."""
    name = [""]

    def send(count: int, reached: str) -> None:
        if count == at:
            name[0] = reached
            os.kill(os.getpid(), number)

    try:
        run(*words, f"outputs={outputs}", deed=send)
    except KeyboardInterrupt:
        return name[0], 130
    except SystemExit as error:
        return name[0], error.code if isinstance(error.code, int) else None
    return name[0], 0


def check_kills(words: list[str], root: Path, again: int | None) -> list[str]:
    """Return the differences after each kill and resumption; ``again``: instant at which a signal stops the resumed run."""
    killed = copies(words, root)
    folder = the_folder(root / "straight")
    assert folder is not None
    straight, wrong, resumed = result(folder), [], 0
    for name, copy in killed.items():
        if newest_checkpoint(copy) is None:
            with pytest.raises(RunError, match=r"no checkpoints/last.ckpt yet"):
                resume(copy)
            continue
        if records.read_json(copy / "run.json")["status"] == "finished":
            continue
        resumed += 1
        if again is not None:
            with pytest.raises(SystemExit):
                resume(copy, deed=lambda n, _: n == again and os.kill(os.getpid(), signal.SIGTERM))
        resume(copy)
        wrong += [f"killed at {name}: {part}" for part in differences(copy, straight)]
    assert resumed >= 2
    return wrong


def check_signals(words: list[str], root: Path, instants: slice) -> list[str]:
    """Return the differences after a signal at each of some instants, and the resumption."""
    names = run(*words, f"outputs={root / 'straight'}")
    folder = the_folder(root / "straight")
    assert folder is not None
    straight, wrong, seen = result(folder), [], set()
    for at in range(len(names))[instants]:
        number = (signal.SIGTERM, signal.SIGINT)[at // (instants.step or 1) % 2]
        outputs = root / f"signal-{at}"
        name, code = signalled(words, outputs, at, number)
        assert name == names[at]
        case, stopped = f"{number.name} at {at} {name}", the_folder(outputs)
        if stopped is None:  # before it began
            if code != 128 + number or at >= names.index("after run.json"):
                wrong.append(f"{case}: {code}, and no folder")
            continue
        record = records.read_json(stopped / "run.json")
        if record["status"] == "finished":
            if at < len(names) - 1 - names[::-1].index("before run.json"):
                wrong.append(f"{case}: finished")
            continue
        if (code, record["status"], record["error"]) != (128 + number, "interrupted", number.name):
            wrong.append(f"{case}: {code} {record['status']} {record['error']}")
        said = (stopped / "log.txt").read_text()
        if "goes on with  python -m seg.train resume=" not in said:
            if (
                "no checkpoint was written yet" not in said
                or newest_checkpoint(stopped) is not None
            ):
                wrong.append(f"{case}: said {said[-300:]}")
            continue
        checkpoint = newest_checkpoint(stopped)
        assert checkpoint is not None
        state = (read_checkpoint(checkpoint)["global_step"], len(rows(stopped)))
        if state not in seen:
            seen.add(state)
            resume(stopped)
            wrong += [f"{case}: {part}" for part in differences(stopped, straight)]
        shutil.rmtree(outputs)
    return wrong


def test_a_kill_at_an_epoch_s_end_and_a_signal_inside_a_step_lose_nothing(tmp_path):
    words = [*SMALL, "trainer.max_steps=1000", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2", "ema=0.5"]  # fmt: skip
    killed = tmp_path / "killed"

    def copy(number: int, name: str) -> None:
        folder = the_folder(tmp_path / "straight")
        if name == "after last.ckpt" and folder is not None and not killed.exists():
            shutil.copytree(folder, killed)

    names = run(*words, f"outputs={tmp_path / 'straight'}", deed=copy)
    folder = the_folder(tmp_path / "straight")
    assert folder is not None
    straight = result(folder)
    assert straight["steps"] == 4 and straight["last.ckpt"]["global_step"] == 4
    resume(killed)
    assert differences(killed, straight) == []
    first = names.index("on_train_batch_end")  # the first batch of two that make the first step
    assert signalled(words, tmp_path / "cut", first, signal.SIGTERM) == ("on_train_batch_end", 143)
    cut = the_folder(tmp_path / "cut")
    assert cut is not None
    assert read_checkpoint(cut / "checkpoints/last.ckpt")["global_step"] == 1
    assert "goes on with  python -m seg.train resume=" in (cut / "log.txt").read_text()
    resume(cut)
    assert differences(cut, straight) == []


def test_a_signal_before_the_first_step_says_that_nothing_can_be_resumed(tmp_path):
    words = [*SMALL, "trainer.max_epochs=1"]
    seen: list[str] = []

    def send(number: int, name: str) -> None:
        seen.append(name)
        if name == "on_fit_start":
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit) as ended:
        run(*words, f"outputs={tmp_path}", deed=send)
    folder = the_folder(tmp_path)
    assert folder is not None and ended.value.code == 128 + signal.SIGUSR1
    said = (folder / "log.txt").read_text()
    assert "no checkpoint was written yet, so the run cannot be resumed" in said
    assert "goes on with" not in said and newest_checkpoint(folder) is None
    assert "on_train_batch_start" not in seen
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("came", "asked"),
    [
        ([signal.SIGTERM, signal.SIGTERM], signal.SIGTERM),
        ([signal.SIGTERM, signal.SIGUSR2], signal.SIGUSR2),  # submitit submits the job again
        ([signal.SIGUSR1, signal.SIGTERM], signal.SIGUSR1),
        ([signal.SIGINT, signal.SIGTERM], signal.SIGINT),
    ],
)
def test_of_two_signals_in_a_step_one_ends_the_run_and_the_step_is_finished(came, asked, capsys):
    interrupts = GracefulStop()
    interrupts.training = True
    for number in came:
        interrupts.note(number, None)
    assert interrupts.asked == asked
    assert capsys.readouterr().err.count("stopping after this step") == 1
    with pytest.raises(KeyboardInterrupt):
        interrupts.note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt if asked == signal.SIGINT else SystemExit) as ended:
        interrupts.reraise(RuntimeError())
    assert asked == signal.SIGINT or ended.value.code == 128 + asked


def test_a_signal_while_the_end_is_written_down_does_not_break_that():
    interrupts = GracefulStop()
    interrupts.recording = True
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
        interrupts.note(number, None)


def test_averaged_weights_are_scored_as_they_were_when_they_were_best(tmp_path):
    run(*SMALL, *ENDED_BY["patience"], "ema=0.5", "trainer.accumulate_grad_batches=2", f"outputs={tmp_path}")  # fmt: skip
    folder = the_folder(tmp_path)
    assert folder is not None
    record = records.read_json(folder / "run.json")
    found = [float(row["val/dice"]) for row in rows(folder) if row["val/dice"]]
    *validated, scored = found  # the last row is the scoring of the best checkpoint
    assert max(validated) != validated[-1]  # else the test could not fail
    assert scored == max(validated) == record["metrics"]["best/val/dice"]


# what ends the run, loader processes, and options: each pair of values stands in a line
MATRIX = [
    ("epochs", 0, []),
    ("epochs", 2, ["trainer.accumulate_grad_batches=2", "ema=0.5", "threshold=best", "schedule=constant", "trainer.check_val_every_n_epoch=2"]),
    ("steps, not reached", 0, ["trainer.accumulate_grad_batches=2", "threshold=best", "schedule=poly"]),
    ("steps, not reached", 2, ["ema=0.5", "trainer.limit_train_batches=2"]),
    ("steps, in an epoch", 0, ["ema=0.5", "threshold=best", "schedule=constant", "trainer.check_val_every_n_epoch=2"]),
    ("steps, in an epoch", 2, ["trainer.accumulate_grad_batches=2"]),
    ("steps, at an epoch's end", 0, ["ema=0.5", "schedule=poly"]),
    ("time", 0, ["trainer.accumulate_grad_batches=3", "ema=0.5", "schedule=poly"]),
    ("time", 2, ["threshold=best", "schedule=constant"]),
    ("patience", 0, ["ema=0.5", "trainer.accumulate_grad_batches=2", "threshold=best"]),
    ("patience", 2, ["schedule=constant", "optim.lr=0.05", "trainer.check_val_every_n_epoch=2"]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("line", range(len(MATRIX)))
def test_a_run_that_is_killed_at_any_instant_ends_as_if_it_never_was(tmp_path, line):
    ended_by, workers, options = MATRIX[line]
    words = [*SMALL, *ENDED_BY[ended_by], f"loader.workers={workers}", *options]
    assert check_kills(words, tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("line", range(len(MATRIX)))
def test_a_run_that_is_signalled_at_any_instant_ends_as_if_it_never_was(tmp_path, line):
    ended_by, workers, options = MATRIX[line]
    words = [*SMALL, *ENDED_BY[ended_by], f"loader.workers={workers}", *options]
    every = slice(line % 5, None, 5)  # all instants of the hooks are reached, over the lines
    assert check_signals(words, tmp_path, every) == []


@pytest.mark.slow
@pytest.mark.parametrize("line", [2, 3, 8])
def test_a_run_that_is_stopped_again_after_it_was_resumed_ends_as_if_it_never_was(tmp_path, line):
    ended_by, workers, options = MATRIX[line]
    words = [*SMALL, *ENDED_BY[ended_by], f"loader.workers={workers}", *options]
    assert check_kills(words, tmp_path, again=14) == []
