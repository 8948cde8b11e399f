"""Many starts at once, many epochs, many runs in one process: none is lost, and nothing piles up."""

import gc
import itertools
import json
import os
import resource
import threading
import time
import tracemalloc
from pathlib import Path

import lightning as L
import pytest
import torch
from forked import ended, forked

from seg.cli.compose import compose_checked
from seg.runs.metrics_csv import read_metrics
from seg.runs.run_info import RunInfo
from seg.train import main
from seg.training.loggers.metrics_logger import MetricsCSV
from seg.training.run import train

TINY = ["data.size=32", "data.train=2", "data.val=1", "data.test=0", "loader.crop=32", "loader.repeats=1",
        "loader.batch_size=2", "augment=none", "logger=none", "model.width=2", "model.depth=1", "trainer=smoke",
        "trainer.accelerator=cpu", "panels=1", "save_predictions=1"]  # fmt: skip
CLASSES = ("dice", "iou", "precision", "recall", "specificity", "accuracy")
VALIDATED = [
    "val/loss",
    "val/loss/bce",
    "val/loss/dice",
    "val/pixel_accuracy",
    "val/dice_per_image",
]
VALIDATED += [f"val/{score}{part}" for score in CLASSES for part in ("", "/membrane", "/cell")]


@pytest.mark.slow
def test_twenty_runs_started_at_one_instant_have_a_folder_each(tmp_path, monkeypatch):
    ready, release = os.pipe()

    def start() -> None:
        os.close(release)
        os.read(ready, 1)  # until the parent lets go: all at once
        monkeypatch.setattr(
            "sys.argv", ["seg.train", *TINY, "name=same", f"outputs={tmp_path}/outputs"]
        )
        main()

    places = [tmp_path / f"from-{i}" for i in range(20)]
    for place in places:
        place.mkdir()
    processes = [forked(start, place, gib=3, seconds=120) for place in places]
    os.close(release)
    done = [ended(process, place, 500) for process, place in zip(processes, places, strict=True)]
    os.close(ready)
    assert [(one.code, one.err) for one in done] == [(0, "")] * 20
    folders = [path for path in (tmp_path / "outputs").iterdir() if not path.is_symlink()]
    assert len(folders) == 20 and (tmp_path / "outputs/latest").resolve() in folders
    told = {line for one in done for line in one.out.splitlines() if "run folder" in line}
    assert all(sum(f"{folder.name}," in line for line in told) == 1 for folder in folders)
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "finished" and (folder / "checkpoints/best.ckpt").is_file()
        steps = [row["step"] for row in read_metrics(folder / "metrics.csv") if row["train/loss"]]
        assert steps == ["0"]  # its own alone


def log_epochs(table: MetricsCSV, first: int, last: int) -> float:
    """Logs what a run logs in these epochs; seconds of the processor."""
    begun = time.process_time()
    for epoch in range(first, last):
        table.log_metrics({"lr": 1e-3 / (epoch + 1), "epoch": epoch}, step=2 * epoch)
        table.log_metrics({"train/loss": 1 / (epoch + 1), "train/loss/bce": 0.1}, step=2 * epoch)
        values = {name: (epoch * 0.618) % 1 for name in VALIDATED}
        table.log_metrics({**values, "epoch": epoch, "seconds": 1.5}, step=2 * epoch + 1)
        table.save()
    return time.process_time() - begun


@pytest.mark.slow
def test_ten_thousand_epochs_are_logged_in_equal_time_and_memory_each(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    log_epochs(table, 0, 100)  # all columns are there
    tracemalloc.start()
    seconds, sizes, held = [], [], []
    for quarter in range(4):
        first = 100 + 2475 * quarter
        seconds.append(log_epochs(table, first, first + 2475))
        sizes.append(table.file.stat().st_size)
        held.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(grown) < 1.1 * min(grown) and sizes[-1] < 10_000 * 1000  # bytes
    assert seconds[2] + seconds[3] < 2 * (seconds[0] + seconds[1])
    assert held[-1] - held[0] < 20_000 and peak < 500_000  # bytes
    rows = read_metrics(table.file)
    assert len(rows) == 30_000 and rows[-1]["val/dice"] == str((9999 * 0.618) % 1)


@pytest.mark.slow
def test_a_column_that_comes_late_rewrites_the_file_once(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    log_epochs(table, 0, 1000)
    table.log_metrics({"late": 1.0}, step=2000)
    inode = table.file.stat().st_ino
    log_epochs(table, 1000, 1100)
    table.log_metrics({"late": 2.0}, step=2200)
    assert table.file.stat().st_ino == inode
    late = [row["late"] for row in read_metrics(table.file)]
    assert [value for value in late if value] == ["1.0", "2.0"] and len(late) == 3302


class Scales(L.Callback):
    """What the process holds after each fiftieth epoch, and when."""

    def __init__(self) -> None:
        self.rss: list[int] = []  # bytes
        self.tensors: list[int] = []
        self.times: list[float] = []  # s of the processor

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % 50 == 0:
            self.times.append(time.process_time())
            gc.collect()  # takes as long as several epochs
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.rss.append(pages * resource.getpagesize())
            self.tensors.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="Linux tells what a process holds"
)
def test_five_hundred_steps_of_an_epoch_each_hold_no_more_than_a_hundred_do(tmp_path):
    words = [*TINY, "trainer.max_steps=500", "trainer.max_epochs=500", f"outputs={tmp_path}"]
    scales = Scales()
    train(compose_checked("train", words), [scales], RunInfo("leak"))
    assert len(scales.rss) == 10
    assert max(scales.rss[2:]) - scales.rss[1] < 4 * 2**20
    assert scales.tensors[1:] == [scales.tensors[1]] * 9
    assert scales.times[9] - scales.times[5] < 1.5 * (scales.times[4] - scales.times[0])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells what a process holds")
def test_thirty_runs_in_one_process_leave_no_file_open_no_thread_and_no_process(tmp_path):
    def held() -> tuple[int, int, int]:
        gc.collect()
        children = [p.read_text() for p in Path("/proc/self/task").glob("*/children")]
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(" ".join(children).split()),
        )

    seen = []
    for i in range(31):
        words = [f"outputs={tmp_path}", f"loader.workers={int(i % 5 == 0)}"]
        words += ["logger=tensorboard"] * (i % 3 == 0)
        train(compose_checked("train", [*TINY, *words]), asked=RunInfo("again"))
        seen.append(held())
    assert seen[30] == seen[0]  # the same words
    assert len([p for p in tmp_path.iterdir() if not p.is_symlink()]) == 31
