"""Runs made longer from the command line: resume=RUN with a later end, and what the folder then says."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import forked
import pytest
import yaml
from small_runs import TINY
from test_resume import DROPOUT, rows

from seg.runs import records
from seg.runs.metrics_csv import read_metrics

LR = 3e-3
ENDS = {
    "epochs": ["trainer.max_epochs=2"],
    "steps": ["trainer.max_epochs=9", "trainer.max_steps=3"],
    "time": ["trainer.max_epochs=-1", "trainer.max_time=00:00:00:02"],
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Callable[[str], Path]:
    """Finished runs of each kind of end, whose rate falls on a straight line."""

    @cache
    def folder(name: str) -> Path:
        cwd = tmp_path_factory.mktemp(name)
        words = [w for w in (*TINY, *DROPOUT) if not w.startswith("trainer.max_epochs")]
        falling = ["schedule=poly", "schedule.power=1.0", f"optim.lr={LR}"]
        made = forked.seg("train", *words, *ENDS[name], *falling, cwd=cwd)
        assert made.code == 0, made.err
        return (cwd / "outputs/latest").resolve()

    return folder


def copied(ended: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An empty folder to call commands in, and a copy of a run."""
    shutil.copytree(ended, tmp_path / "runs/run", symlinks=True)
    (tmp_path / "cwd").mkdir()
    return tmp_path / "cwd", tmp_path / "runs/run"


def rows_of_steps(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv but those of the final scores, which name the number of steps."""
    steps = records.read_json(folder / "run.json")["steps"]
    return [row for row in rows(folder) if int(row["step"]) < steps]


def rates(folder: Path) -> list[float]:
    """The learning rates in metrics.csv, of the ends of epochs."""
    return [float(row["lr"]) for row in read_metrics(folder / "metrics.csv") if row["lr"]]


@pytest.mark.parametrize(
    ("end", "given", "steps", "factors"),
    [
        # The row of an epoch names the rate of the next step. 4 steps fall by quarters, and the last one had 1/4.
        ("epochs", ["trainer.max_epochs=4", "extend=hold"], 8, [1 / 2, 0, 1 / 4, 1 / 4]),
        ("epochs", ["trainer.max_epochs=4", "extend=restart"], 8, [1 / 2, 0, 1 / 2, 0]),
        # 3 steps end inside the second epoch, and the last one had 1/3.
        pytest.param("steps", ["trainer.max_steps=5", "extend=hold"], 5, [1 / 3, 0, 1 / 3, 1 / 3], marks=pytest.mark.slow),
        pytest.param("steps", ["trainer.max_steps=5", "extend=restart"], 5, [1 / 3, 0, 1 / 2, 0], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_finished_run_goes_on_to_a_later_end(ended, tmp_path, end, given, steps, factors):
    cwd, folder = copied(ended(end), tmp_path)
    before, earlier = records.read_json(folder / "run.json"), rows_of_steps(folder)
    made = forked.seg("train", f"resume={folder}", *given, cwd=cwd)
    assert made.code == 0, made.err
    assert "longer     " in made.out and given[1] in made.out and f"; {steps} steps" in made.out
    # metrics.csv continues below its earlier rows; only the final scores are those of the new end.
    later = rows_of_steps(folder)
    assert later[: len(earlier)] == earlier
    assert [int(row["step"]) for row in later if row["train/loss"]] == list(range(steps))
    assert [row["step"] for row in rows(folder) if row["test/dice"]] == [str(steps)]
    assert rates(folder) == pytest.approx([LR * f for f in factors], abs=1e-9)
    # run.json has the new end, and the earlier one under "resumed"; config.yaml the new options.
    record = records.read_json(folder / "run.json")
    option, value = given[0].split("=")
    (entry,) = record["resumed"]
    assert (record["status"], record["steps"]) == ("finished", steps)
    assert entry["steps"] == before["steps"] and entry["metrics"] == before["metrics"]
    assert entry["changed"] == {option: [int(ENDS[end][-1].split("=")[1]), int(value)]}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"][option.removeprefix("trainer.")] == int(value)
    assert config["extend"] == given[1].removeprefix("extend=")
    assert not any(cwd.iterdir())  # all of it lies in the run's folder


@pytest.mark.slow
@pytest.mark.parametrize("extend", ["hold", "restart"])
def test_a_run_gets_more_time(ended, tmp_path, extend):
    cwd, folder = copied(ended("time"), tmp_path)
    before, earlier = records.read_json(folder / "run.json"), rows_of_steps(folder)
    made = forked.seg(
        "train", f"resume={folder}", "trainer.max_time=00:00:00:04", f"extend={extend}", cwd=cwd
    )
    assert made.code == 0, made.err
    record = records.read_json(folder / "run.json")
    assert record["steps"] > before["steps"] and rows_of_steps(folder)[: len(earlier)] == earlier
    assert record["resumed"][0]["changed"] == {"trainer.max_time": ["00:00:00:02", "00:00:00:04"]}
    progress = {start: progress for start, _, progress in record["lr_segments"]}
    assert progress[before["steps"]] == (None if extend == "hold" else 0)
    assert record["lr_segments"][-1][1] == record["steps"]
    added = rates(folder)[len(rates(ended("time"))) :]
    if extend == "hold":
        assert len(set(added)) == 1
    else:
        assert added == sorted(added, reverse=True) and added[0] > max(added[-1], LR / 2)


@pytest.mark.parametrize(
    "end",
    [
        "epochs",
        pytest.param("steps", marks=pytest.mark.slow),
        pytest.param("time", marks=pytest.mark.slow),
    ],
)
def test_a_falling_schedule_without_extend_is_refused_and_changes_nothing(ended, tmp_path, end):
    cwd, folder = copied(ended(end), tmp_path)
    later = {"epochs": "trainer.max_epochs=3", "steps": "trainer.max_steps=5", "time": "trainer.max_time=00:00:01:00"}  # fmt: skip
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    made = forked.seg("train", f"resume={folder}", later[end], cwd=cwd)
    assert made.code == 2 and "extend=hold" in made.err and "extend=restart" in made.err
    assert len(made.err.strip().splitlines()) == 1, made.err
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert {file.name for file in after if after[file] != before.get(file)} <= {"log.txt"}
