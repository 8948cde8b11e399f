"""Seconds until a command answers: python benchmarks/start.py [rounds=7].

Each line runs in a process of its own, all lines in turn for several rounds; printed are medians, and ratios to
``import torch`` and ``import lightning`` of the same run, so that the machine cancels out. "first step" ends where the
first training step begins, on the data of the demo. "job" is what each further job of a sweep adds, one step of
training included. With a folder as the option ``versus=FOLDER``, another checkout of the project, the same is measured
of that in the same rounds.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from made_runs import make_run, spread

HERE = Path(__file__).resolve().parent.parent

OPTIONS = {"rounds": "7", "versus": ""}
SMALL = ["logger=none", "panels=0", "trainer=smoke", "trainer.max_steps=1", "save_predictions=0"]
FIRST_STEP = """
import os, sys
from seg.training.task import SegmentationTask
SegmentationTask.training_step = lambda *_: os._exit(0)
sys.argv = ["seg.train", *sys.argv[1:]]
from seg.train import main
main()
"""
JOBS = (2, 6)  # jobs of the two sweeps whose difference is measured


def python_lines(folder: Path) -> dict[str, list[str]]:
    """Return the measured lines: name -> arguments of Python."""
    module = ["-m", "seg.train"]
    return {
        "import torch": ["-c", "import torch"],
        "import lightning": ["-c", "import lightning"],
        "--help": [*module, "--help"],
        "--version": [*module, "--version"],
        "mistyped option": [*module, "optm.lr=1"],
        "mistyped option of a group": [*module, "model.widht=8"],
        "mistyped choice": [*module, "model=unett"],
        "wrong value": [*module, "model.width=-1"],
        "missing data": [*module, "data=folder", "data.root=nowhere"],
        "64 values of a sweep, the last wrong": [*module, "-m", sweep_of_64()],
        "compare 12 runs": ["-m", "seg.compare", str(folder / "runs-12")],
        "compare 200 runs": ["-m", "seg.compare", str(folder / "runs-200")],
        "list 200 runs": ["-m", "seg.list", str(folder / "runs-200")],
        "sync": ["-m", "seg.sync", f"outputs={folder}"],
        "check": ["-m", "seg.check"],
        "show": ["-m", "seg.show"],
        "first step": ["-c", FIRST_STEP, "experiment=demo", "logger=none"],
        f"sweep of {JOBS[0]} jobs": [*module, "-m", *SMALL, f"seed=range({JOBS[0]})"],
        f"sweep of {JOBS[1]} jobs": [*module, "-m", *SMALL, f"seed=range({JOBS[1]})"],
    }


def sweep_of_64() -> str:
    """Return a sweep over 64 learning rates of which the last is a word."""
    return "optim.lr=" + ",".join([*(f"{i + 1}e-4" for i in range(63)), "fast"])


def make_runs(folder: Path) -> None:
    """Make folders of 12 and of 200 runs."""
    images = {split: spread(list(range(20, 50))) for split in ("val", "test")}
    for count in (12, 200):
        for i in range(count):
            make_run(
                folder / f"runs-{count}/run-{i:03d}", images, choices={"model": ("unet", "unetpp", "fcn")[i % 3]},
                seed=i // 3, epochs=50, pictures=4,
            )  # fmt: skip


def seconds(arguments: list[str], checkout: Path) -> float:
    """Return the duration of a process in a new folder."""
    with tempfile.TemporaryDirectory() as place:
        run = functools.partial(
            subprocess.run, [sys.executable, *arguments], cwd=place, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True
        )  # fmt: skip
        return timing.time_call(run)


def take_medians(rounds: int, checkouts: list[Path], lines: list[str] | None = None) -> dict[Path, dict[str, float]]:  # fmt: skip
    """Return the medians of some lines, or of all, by checkout."""
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder))
        every = python_lines(Path(folder))
        calls = {
            (checkout, name): functools.partial(seconds, every[name], checkout)
            for name in lines or every
            for checkout in checkouts
        }
        taken = timing.call_in_turn(calls, rounds)
    return {
        one: {name: statistics.median(times) for (checkout, name), times in taken.items() if checkout == one}
        for one in checkouts
    }  # fmt: skip


def measure(rounds: int, lines: list[str]) -> list[timing.Row]:
    """Return the time of some lines beside the first of them."""
    found = take_medians(rounds, [HERE], lines)[HERE]
    return timing.compare({name: [value] for name, value in found.items()}, lines[0], "s")


def main() -> None:
    options = OPTIONS | dict(word.split("=", 1) for word in sys.argv[1:])
    checkouts = [HERE, *([Path(options["versus"]).resolve()] if options["versus"] else [])]
    print(f"{timing.describe_machine()}\n")
    for medians in take_medians(int(options["rounds"]), checkouts).values():
        print_table(medians)


def print_table(medians: dict[str, float]) -> None:
    """Print a row for each line: seconds and both ratios."""
    few, many = (medians.pop(f"sweep of {count} jobs") for count in JOBS)
    medians["a further job of a sweep"] = (many - few) / (JOBS[1] - JOBS[0])
    peers = [medians["import torch"], medians["import lightning"]]
    rows = [[name, *(f"{value / peer:.2f}" for peer in (1, *peers))] for name, value in medians.items()]  # fmt: skip
    print(timing.markdown(["line", "s", "/ import torch", "/ import lightning"], rows))


if __name__ == "__main__":
    main()
