"""What ends a run is told in one line with what to do, costs at most an epoch, and leaves nothing half made."""

import atexit
import contextlib
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import TINY, config
from test_resume import Stop, same, state

from seg.cli.compose import one_line
from seg.cli.resource_errors import OutOfMemory, WorkerDied, explain_error
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.datasets.membranes import Membranes
from seg.data.image_cache import ImageCache
from seg.errors import DataError
from seg.runs import checkpoint, records
from seg.runs.metrics_csv import read_metrics
from seg.training.callbacks.checkpointing import AtomicCheckpointIO
from seg.training.loggers.metrics_logger import MetricsCSV
from seg.training.resume import newest_checkpoint
from seg.training.run import train

TESTS = Path(__file__).parent
SMALL = [*TINY, "model.width=2", "model.depth=2", "model.dropout=0.5", "panels=1", "save_predictions=1"]  # fmt: skip
QUICK = [*SMALL, "panels=0", "save_predictions=0", "data.train=2", "schedule=constant", "trainer.max_epochs=100000"]  # fmt: skip
LINE = r"goes on with  python -m seg\.train\s+resume=\S+\s"


class At(L.Callback):
    """Does something before a step of the training, or at another point of it."""

    def __init__(
        self, step: int, deed: Callable[[], object], where: str = "on_train_batch_start"
    ) -> None:
        self.step, self.deed = step, deed
        setattr(self, where, self.act)

    def act(self, trainer: L.Trainer, *args, **kwargs) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            self.deed()


def in_a_process(code: str, cwd: Path = TESTS, timeout: float = 300) -> subprocess.CompletedProcess:
    """Python that runs some code beside these tests."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]\nfrom test_faults import *\n{code}"],
        cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def typed(cwd: Path, *words: str, callback: str = "") -> subprocess.CompletedProcess:
    """``python -m seg.train`` with these words, and with a callback that does harm."""
    return in_a_process(
        f"import seg.train as command, seg.training.run as training_run\n"
        f"training_run.train = lambda cfg: train(cfg, [{callback}])\n"
        f"sys.argv[1:] = {list(words)!r}\n"
        f"command.main()",
        cwd,
    )


def until(condition: Callable[[], object], wait: float = 0.0, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(wait)


# ---- killed


def forked(*words: str, callbacks=()) -> int:
    """A process that trains, begun by a fork of this one, which has all modules loaded."""
    cfg = config("train", *words)
    if (pid := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            train(cfg, callbacks)
        finally:
            os._exit(1)
    return pid


def half_written(folder: Path) -> list[Path]:
    return [f for f in folder.rglob(".*") if f.is_file() and f.name != ".lock"]


def kill_child(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)


def kill_again_and_again(root: Path, kills: int) -> None:
    """Kills a training so often, at random instants, half of them while a checkpoint is written.

    The other instants lie between its start and its first checkpoint or shortly after it, as long as these take on
    this machine.
    """
    draw, steps, writing, began = random.Random(0), [0], 0, time.perf_counter()
    pid = forked(*QUICK, f"outputs={root}")
    until((root / "latest/checkpoints/last.ckpt").exists, 0.01)
    lap = time.perf_counter() - began  # s to the first checkpoint
    folder = (root / "latest").resolve()

    def at_work() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            aside = (folder / "checkpoints").glob(".*.part.ckpt")
            return any(f.stat().st_ctime > started for f in aside)
        return False

    # A child that outlives a failed assertion would hold the pipes of this process, and its caller would wait for it.
    atexit.register(lambda: kill_child(pid))
    for kill in range(kills):
        started, start = time.time() if kill else 0, time.perf_counter()
        if kill % 2:
            until(lambda: state(folder)["global_step"] > steps[-1], 0.005)
            lap = time.perf_counter() - start
            until(at_work)
            time.sleep(draw.uniform(0, 0.004))
        else:
            time.sleep(draw.uniform(0, 1.5 * lap))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        writing += at_work()
        assert len(half_written(folder)) <= 3, half_written(folder)
        last = newest_checkpoint(folder)
        assert last is not None
        steps.append(checkpoint.read_checkpoint(last)["global_step"])
        assert steps[-1] >= steps[-2], steps
        pid = forked(f"resume={folder}")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(f"{kills} kills, {writing} of them with a checkpoint half written, {steps[-1]} steps in the end, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    goal = checkpoint.read_checkpoint(newest_checkpoint(folder))["global_step"] + 3
    for words in ([f"resume={folder}"], [*QUICK, f"outputs={root / 'straight'}"]):
        pid = forked(*words, callbacks=[Stop(goal)])
        assert os.waitpid(pid, 0)[1] == 256
    assert same(folder, (root / "straight/latest").resolve())
    assert not half_written(folder) and writing >= kills // 10


@pytest.mark.slow
def test_a_run_that_is_killed_a_hundred_times_ends_as_if_it_never_was(tmp_path):
    done = in_a_process(f"kill_again_and_again(Path({str(tmp_path)!r}), 100)", timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_of_two_whole_checkpoints_the_one_of_more_steps_is_taken(tmp_path, caplog):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    last, best = (folder / f"checkpoints/{name}.ckpt" for name in ("last", "best"))
    state = {"state_dict": {}, "loops": {}, "lr_schedulers": [], "callbacks": {}}
    for file, step in ((last, 4), (best, 6)):  # killed between the two
        AtomicCheckpointIO(tmp_path).save_checkpoint(state | {"global_step": step}, file)
    assert newest_checkpoint(folder) == best and not caplog.text
    AtomicCheckpointIO(tmp_path).save_checkpoint(state | {"global_step": 6}, last)
    assert newest_checkpoint(folder) == last
    best.write_bytes(best.read_bytes()[:100])
    assert newest_checkpoint(folder) == last and "best.ckpt: damaged" in caplog.text


@pytest.mark.slow
def test_each_epoch_has_its_checkpoint_also_where_few_are_validated(tmp_path):
    words = [
        *SMALL,
        "trainer.check_val_every_n_epoch=3",
        "trainer.max_epochs=3",
        f"outputs={tmp_path}",
    ]
    seen = []
    train(config("train", *words), [At(4, lambda: seen.append(state(tmp_path / "latest")))])
    assert seen[0]["global_step"] == 4


# ---- a full disk


@pytest.fixture
def disk(tmp_path) -> Path:
    """A disk of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(
            f"needs a disk of its own ({done.stderr.strip()}); `unshare -rm` gives the right"
        )
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, room: int = 0) -> None:
    """Fills a disk but for so many bytes."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            filler.truncate(filler.tell() - room)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "room", "names"),
    [("on_train_epoch_start", 30_000, "checkpoints"),
     ("on_train_epoch_start", 0, ""),
     ("on_test_end", 0, ""),
     ("on_test_end", 8_192, "")],
)  # fmt: skip
def test_a_full_disk_costs_nothing_that_was_there_and_the_run_goes_on(
    disk, tmp_path, capfd, where, room, names
):
    words = [*SMALL, "trainer.max_epochs=4"]
    train(config("train", *words, f"outputs={tmp_path / 'whole'}"))
    capfd.readouterr()
    step = 8 if where == "on_test_end" else 4
    with pytest.raises(OSError, match=r"No space left on device: '\S+'") as raised:
        train(
            config("train", *words, f"outputs={disk}"), [At(step, lambda: fill(disk, room), where)]
        )
    folder = (disk / "latest").resolve()
    assert str(raised.value.filename).startswith(str(folder / names)), raised.value
    said = capfd.readouterr()
    assert said.err == "" and "goes on with  python -m seg.train resume=" in said.out
    record = records.read_json(folder / "run.json")
    if room > 8_192:
        assert record["status"] == "failed"
    assert (
        "run.json: No space left on device; its status" in said.out or record["status"] == "failed"
    )
    assert state(folder)["global_step"] == step and not half_written(folder)
    table = (folder / "metrics.csv").read_text()
    assert table.endswith("\n") and len({line.count(",") for line in table.splitlines()}) == 1
    (disk / "filler").unlink()
    train(config("train", f"resume={folder}"))
    assert same(folder, (tmp_path / "whole/latest").resolve())
    assert records.read_json(folder / "run.json")["status"] == "finished"
    assert (folder / "panels/all.png").is_file() and (folder / "images.csv").is_file()


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_file(disk, tmp_path):
    done = typed(disk, *SMALL, "model.width=8", callback="At(2, lambda: fill(Path('.'), 50_000))")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("fault: OSError: [Errno 28] No space left on device: '")
    assert (
        re.search(r"/checkpoints/(best|last)\.ckpt'", done.stderr) and done.stderr.count("\n") == 1
    )


def test_a_row_is_written_whole_or_not_at_all(disk):
    file = disk / "metrics.csv"
    table = MetricsCSV(file)
    table.log_metrics({f"metric/{i}": 1 / 3 for i in range(40)}, 0)
    fill(disk)
    with pytest.raises(OSError, match=r"No space left on device: '\S+/metrics.csv'"):
        for step in range(1, 100):
            table.log_metrics({f"metric/{i}": 1 / 3 for i in range(40)}, step)
    assert file.read_bytes().endswith(b"\n")
    rows = read_metrics(file)
    assert [int(row["step"]) for row in rows] == list(range(step)) and step > 1
    assert all(value for row in rows for value in row.values())
    with pytest.raises(OSError, match=r"No space left on device: '\S+/metrics.csv'"):
        table.log_metrics({"another": 1.0}, step)
    assert read_metrics(file) == rows and [
        f.name for f in disk.iterdir() if f.name != "filler"
    ] == ["metrics.csv"]
    (disk / "filler").unlink()
    file.write_text(file.read_text() + "12,0.3")  # as a machine without power leaves it
    assert read_metrics(file) == rows


# ---- out of memory


def limited(more: int) -> None:
    """Lets this process have so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "told"),
    [("on_train_batch_start", r"out of memory in training, a batch of 4 of 512x512 px and 1 channel\(s\) \(asked for "
      r"[\d.]+ MiB at once\); lower loader\.batch_size \(trainer\.accumulate_grad_batches=2 keeps the effective batch\), "
      r"loader\.crop or model\.width"),
     ("on_validation_start", r"out of memory in validation, a batch of 1 of 1024x1024 px and 1 channel\(s\).* lower tile, "
      r"loader\.eval_batch_size or model\.width")],
)  # fmt: skip
def test_out_of_memory_says_what_was_asked_for_and_what_to_lower(tmp_path, where, told):
    step = 0 if where == "on_train_batch_start" else 1
    size = ["loader.crop=512", "loader.batch_size=4"] if step == 0 else ["loader.batch_size=1"]
    words = [
        *SMALL,
        "data.size=1024",
        "data.train=2",
        "data.val=1",
        "data.test=0",
        "model.width=32",
        *size,
    ]
    done = typed(
        tmp_path, *words, "trainer.limit_train_batches=1", "loader.check=false",
        callback=f"At({step}, lambda: limited(30_000_000), {where!r})",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("fault: OutOfMemory: ") and done.stderr.count("\n") == 1
    assert re.search(told, done.stderr), done.stderr
    record = records.read_json(tmp_path / "outputs/latest/run.json")
    assert record["status"] == "failed" and record["error"].startswith("OutOfMemory: out of memory")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"),
     RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
     MemoryError(),
     MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most"),
     RuntimeError("could not create a primitive"),  # oneDNN
     RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GiB, other allocations: 2")],
)  # fmt: skip
def test_each_library_s_word_for_it_is_known(error):
    found = explain_error(error, "training, a batch", "lower it")
    assert type(found) is OutOfMemory and str(found).startswith(
        "out of memory in training, a batch"
    )
    assert ("(asked for 2.50 GiB at once)" in str(found)) == ("2.50" in str(error))
    for other in (ValueError("x out of memory.png"), RuntimeError("shape"), KeyboardInterrupt()):
        assert explain_error(other, "", "") is other


# ---- a loader process that ends


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_loader_process_that_is_killed_is_named_and_the_run_goes_on(tmp_path, capfd):
    words = [*SMALL, "loader.workers=2", "trainer.max_epochs=4", "loader.repeats=8"]
    train(config("train", *words, f"outputs={tmp_path / 'whole'}"))
    capfd.readouterr()
    with pytest.raises(
        WorkerDied,
        match=r"^a loader process (\(pid \d+\) (was killed by signal 9 \(SIGKILL\)|ended unexpectedly)|died while sending a batch), "
        r"perhaps because memory ran out; (its own message, if any, is above; )?fewer loader\.workers, a smaller loader\.memory",
    ):
        train(config("train", *words, f"outputs={tmp_path}"), [At(19, kill_a_worker)])
    assert re.search(LINE, capfd.readouterr().out)
    folder = (tmp_path / "latest").resolve()
    assert records.read_json(folder / "run.json")["error"].startswith(
        "WorkerDied: a loader process"
    )
    train(config("train", f"resume={folder}"))
    assert same(folder, (tmp_path / "whole/latest").resolve())


@pytest.mark.parametrize("error", ["ConnectionResetError(104)", "EOFError()"])
def test_a_loader_process_that_ends_as_it_hands_a_batch_over_is_one_too(error):
    def found(file: str) -> BaseException:
        try:
            exec(compile(f"raise {error}", file, "exec"))
        except (ConnectionError, EOFError) as raised:
            return explain_error(raised, "", "")
        raise AssertionError

    assert type(found("/x/torch/utils/data/dataloader.py")) is WorkerDied
    assert type(found("/x/wandb/sync.py")) is not WorkerDied


def test_other_ends_of_a_loader_process_are_told_apart():
    bus = explain_error(
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is"), "", ""
    )
    assert type(
        bus
    ) is WorkerDied and "(pid 12) was killed by signal 7 (SIGBUS), perhaps because /dev/shm" in str(
        bus
    )
    left = explain_error(
        RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "", ""
    )
    assert type(left) is WorkerDied and "(pid 12, 13) ended unexpectedly" in str(left)


# ---- data that goes bad


def gone(root: Path) -> None:
    (root / "images/0.png").unlink()


def cut(root: Path) -> None:
    file = root / "images/0.png"
    file.write_bytes(file.read_bytes()[:-200])


def other_image(root: Path) -> None:
    Image.open(root / "images/1.png").save(root / "images/0.png")


def other_mask(root: Path) -> None:
    pixels = np.array(Image.open(root / "masks/0.png"))
    pixels[3, 4] = (pixels[3, 4] + 1) % 3
    Image.fromarray(pixels).save(root / "masks/0.png")


def foreign_value(root: Path) -> None:
    pixels = np.array(Image.open(root / "masks/0.png"))
    pixels[3, 4] = 77
    Image.fromarray(pixels).save(root / "masks/0.png")


def other_size(root: Path) -> None:
    for part in ("images", "masks"):
        with Image.open(root / part / "0.png") as picture:
            small = picture.crop((0, 0, 40, 32))
        small.save(root / part / "0.png")


BAD = {
    gone: r"images/0\.png: no such file; it was whole when the run began: put it back",
    cut: r"images/0\.png: not a readable image \(.*\); it was whole when the run began: put it back",
    other_image: r"images/0\.png: changed since the run began, the image of 0 is another one; put it back",
    other_mask: r"masks/0\.png: changed since the run began, the mask of 0 is another one; put it back",
    foreign_value: r"masks/0\.png: mask value \[77\] .*; it was whole when the run began",
    other_size: r"images/0\.png: changed since the run began, the image and mask of 0 is another one; put it back",
}


def watched(root: Path, cache: Path | None) -> ImageCache:
    """The store of a run's data, after the data has been read before the training."""
    source = Folder(str(root), ["a", "b", "c"])
    return DataModule(source, memory=0, cache=None if cache is None else str(cache)).image_cache


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fault", BAD, ids=lambda fault: fault.__name__)
def test_a_file_that_is_missing_or_damaged_or_changed_is_named(
    folder_root, tmp_path, fault, cached
):
    store = watched(folder_root, tmp_path / "cache" if cached else None)
    fault(folder_root)
    with pytest.raises(DataError, match=BAD[fault]):
        store.read("0")
    store.read("1")


def test_a_file_of_another_time_and_the_same_pixels_is_no_fault(folder_root):
    store = watched(folder_root, None)
    image, _ = store.read("0")
    Image.fromarray(image).save(folder_root / "images/0.png", compress_level=0)
    os.utime(folder_root / "masks/0.png", (1, 1))
    np.testing.assert_array_equal(store.read("0")[0], image)
    other_image(folder_root)
    with pytest.raises(DataError, match=r"images/0\.png: changed since"):
        store.read("0")


def test_more_processes_than_images_are_told_before_the_training():
    data = DataModule(Membranes(size=64, train=1, val=2, test=1), crop=32)
    data.check_ranks(1)
    with pytest.raises(
        DataError, match=r"1 test images for 2 processes \(test-000 \.\.\.\): each needs one"
    ):
        data.check_ranks(2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_file_goes_bad_names_it_and_goes_on_once_it_is_back(
    tmp_path, folder_root, workers
):
    own = [w for w in SMALL if not w.startswith("data.")]
    own += ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", "loader.memory=0"]
    words = [*own, f"loader.workers={workers}", "trainer.max_epochs=5"]
    train(config("train", *words, f"outputs={tmp_path / 'whole'}"))
    kept = {file: file.read_bytes() for file in folder_root.rglob("0.png")}
    latest, words = tmp_path / "latest", [*words, f"outputs={tmp_path}"]
    for number, fault in enumerate((gone, cut, other_mask)):
        with pytest.raises(DataError) as raised:
            train(
                config("train", *words),
                [At(5 + 2 * number, lambda fault=fault: fault(folder_root))],
            )
        assert re.match(rf"\S+{BAD[fault]}", one_line(raised.value)), raised.value
        record = records.read_json(latest / "run.json")
        assert record["status"] == "failed" and re.match(
            rf"DataError: \S+{BAD[fault]}", record["error"]
        )
        for file, content in kept.items():
            file.write_bytes(content)
        words = [f"resume={latest}"]
    train(config("train", *words))
    assert same(latest.resolve(), (tmp_path / "whole/latest").resolve())


@pytest.mark.slow
def test_a_file_that_a_loader_process_misses_is_one_line(tmp_path, folder_root):
    own = [w for w in SMALL if not w.startswith("data.")]
    own += ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", "loader.memory=0"]
    done = typed(
        tmp_path,
        *own,
        "loader.workers=1",
        "loader.repeats=16",  # longer than what the process fetches ahead
        callback=f"At(25, lambda: gone(Path({str(folder_root)!r})))",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert re.match(rf"error: \S+{BAD[gone]}", done.stderr), done.stderr
    assert re.search(LINE, done.stdout)
