"""A run that was stopped goes on as if it never had been."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import TINY, config

from seg.data.sampler import EpochSampler
from seg.errors import RunError, UserError
from seg.runs import checkpoint, records
from seg.runs.folder import CHECKPOINT_FILES, lock_folder
from seg.runs.metrics_csv import read_metrics
from seg.training.callbacks.checkpointing import AtomicCheckpointIO
from seg.training.fit import RunPruned
from seg.training.loggers.metrics_logger import MetricsCSV
from seg.training.resume import load_stopped_run, newest_checkpoint
from seg.training.run import train

DROPOUT = ["model.width=2", "model.depth=2", "model.dropout=0.5", "trainer.max_epochs=3", "panels=0"]  # fmt: skip


class Stop(L.Callback):
    """Ctrl-C after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args, **kwargs) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def state(folder: Path) -> dict:
    return checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")


def rows(folder: Path) -> list[dict[str, str]]:
    found = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in found]


def same(a: Path, b: Path, but: Sequence[dict[str, str]] = ()) -> bool:
    """Weights, optimiser, schedule and all measurements of two runs but for some rows, bit for bit."""
    one, two = state(a), state(b)
    weights = all(
        torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"]
    )
    moments = (s["optimizer_states"][0]["state"] for s in (one, two))
    for first, second in zip(*(m.values() for m in moments), strict=True):
        weights &= all(torch.equal(first[k], second[k]) for k in first)
    measured, again = ([row for row in rows(f) if row not in but] for f in (a, b))
    return weights and one["lr_schedulers"] == two["lr_schedulers"] and measured == again


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that was never stopped: 3 epochs of 2 steps."""
    outputs = tmp_path_factory.mktemp("straight")
    train(config("train", *TINY, *DROPOUT, f"outputs={outputs}"))
    return (outputs / "latest").resolve()


@pytest.mark.parametrize("step", [2, 3])  # an epoch's end, and its middle
def test_a_run_stopped_at_any_step_ends_as_if_it_never_was(tmp_path, straight, step):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *TINY, *DROPOUT, f"outputs={tmp_path}"), [Stop(step)])
    folder = (tmp_path / "latest").resolve()
    assert records.read_json(folder / "run.json")["status"] == "interrupted"
    assert state(folder)["global_step"] == step
    assert signal.getsignal(signal.SIGINT) is handler
    cfg, asked = load_stopped_run(config("train", f"resume={tmp_path / 'latest'}"))
    train(cfg, asked=asked)
    assert same(folder, straight)
    assert [f for f in tmp_path.iterdir() if not f.is_symlink()] == [folder]
    record = records.read_json(folder / "run.json")
    assert record["status"] == "finished" and "error" not in record and len(record["resumed"]) == 1
    assert record["metrics"] == records.read_json(straight / "run.json")["metrics"]
    with pytest.raises(RunError, match=r"the run is finished; init="):
        load_stopped_run(config("train", f"resume={folder}"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_processes_that_load_ahead_go_on_with_the_right_samples_too(tmp_path, straight, step):
    words = [*TINY, *DROPOUT, "loader.workers=2", f"outputs={tmp_path}"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *words), [Stop(step)])
    train(config("train", f"resume={tmp_path / 'latest'}"))
    assert same((tmp_path / "latest").resolve(), straight)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["ema=0.9", "patience=2"])
@pytest.mark.parametrize("step", [2, 3])
def test_averaged_weights_and_patience_go_on_too(tmp_path, word, step):
    words = [*TINY, *DROPOUT, word]
    train(config("train", *words, f"outputs={tmp_path / 'whole'}"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *words, f"outputs={tmp_path / 'cut'}"), [Stop(step)])
    whole, cut = ((tmp_path / name / "latest").resolve() for name in ("whole", "cut"))
    train(config("train", f"resume={cut}"))
    assert same(whole, cut)
    one, two = state(whole), state(cut)
    assert one["callbacks"].keys() == two["callbacks"].keys()
    if word == "ema=0.9":
        raw, averaged = two["current_model_state"], two["state_dict"]
        assert all(torch.equal(one["current_model_state"][k], raw[k]) for k in raw)
        assert any(not torch.equal(raw[k], averaged[k]) for k in raw)


def test_a_damaged_last_checkpoint_is_told_and_the_one_before_it_taken(tmp_path, straight, caplog):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *TINY, *DROPOUT, f"outputs={tmp_path}"), [Stop(5)])
    folder = (tmp_path / "latest").resolve()
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    last.write_bytes(last.read_bytes()[:-1000])
    assert checkpoint.read_checkpoint(best)["global_step"] in (2, 4)
    train(config("train", f"resume={folder}"))
    assert "last.ckpt: damaged" in caplog.text and "resuming from best.ckpt" in caplog.text
    assert same(folder, straight)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PK")])
def test_a_best_checkpoint_that_is_gone_or_damaged_costs_nothing_but_itself(tmp_path, harm):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *TINY, *DROPOUT, f"outputs={tmp_path}"), [Stop(5)])
    folder = (tmp_path / "latest").resolve()
    best = folder / "checkpoints/best.ckpt"
    harm(best)
    train(config("train", f"resume={folder}"))
    assert records.read_json(folder / "run.json")["status"] == "finished"
    assert checkpoint.read_checkpoint(best)["global_step"] > 5  # of a validation that came after


def test_where_all_checkpoints_are_damaged_it_is_said(tmp_path):
    folder = stopped(tmp_path / "x")
    assert newest_checkpoint(folder) is None
    for name in ("last", "best"):
        (folder / f"checkpoints/{name}.ckpt").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"best.ckpt: damaged"):
        newest_checkpoint(folder)


def test_a_checkpoint_that_can_not_be_written_leaves_the_one_before(tmp_path):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO(tmp_path).save_checkpoint({"step": 1}, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # bytes
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/last.ckpt'"):
            AtomicCheckpointIO(tmp_path).save_checkpoint(
                {"step": 2, "weights": torch.zeros(100_000)}, file
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.read_checkpoint(file) == {"step": 1}


def test_an_epoch_taken_up_has_the_samples_that_were_still_to_come():
    whole, rest = EpochSampler(7, 3, True, rank=1, world=2), EpochSampler(7, 3, True, 1, 2)
    for sampler in (whole, rest):
        sampler.set_epoch(5)
    rest.skip = 2
    assert list(rest) == list(whole)[2:]
    assert list(rest) == list(whole)  # once
    assert len(rest) == len(whole) == 4


def test_rows_of_steps_that_are_made_again_go_and_the_others_stay(tmp_path):
    file = tmp_path / "metrics.csv"
    first = MetricsCSV(file)
    for step in range(5):
        first.log_metrics({"loss": step / 2}, step)
    first.log_metrics({"val/dice": 0.5}, 4)
    second = MetricsCSV(file, until=3)
    second.log_metrics({"loss": 9.0}, 3)
    assert [(r["step"], r["loss"]) for r in read_metrics(file)] == [
        ("0", "0.0"), ("1", "0.5"), ("2", "1.0"), ("3", "9.0"),
    ]  # fmt: skip


def test_the_number_of_rows_in_a_checkpoint_counts_more_than_its_steps(tmp_path):
    file = tmp_path / "metrics.csv"
    first = MetricsCSV(file)
    for step in (0, 1, 1, 2):
        first.log_metrics({"loss": step / 2}, step)
    assert first.written == 4
    second = MetricsCSV(file, until=1, kept=3)
    second.log_metrics({"loss": 9.0}, 1)
    assert second.written == 4
    assert [r["loss"] for r in read_metrics(file)] == ["0.0", "0.5", "0.5", "9.0"]


def stopped(folder: Path, **record) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    records.write_json(folder / "run.json", {"name": "x", "status": "running"} | record)
    return folder


def test_what_can_not_be_taken_up_is_told(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        load_stopped_run(config("train", f"resume={tmp_path / 'nowhere'}"))
    folder = stopped(tmp_path / "young")
    cfg = config("train", *TINY)
    records.write_config(folder / "config.yaml", yaml.safe_load("{}") or {"seed": 0})
    with pytest.raises(RunError, match=r"config\.yaml: not a run's config"):
        load_stopped_run(config("train", f"resume={folder}"))
    from seg.cli.compose import plain_config

    records.write_config(folder / "config.yaml", plain_config(cfg))
    with pytest.raises(RunError, match=r"no checkpoints/last.ckpt yet"):
        load_stopped_run(config("train", f"resume={folder}"))


def test_a_run_whose_images_have_changed_is_not_taken_up(tmp_path, folder_root):
    own = ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", f"outputs={tmp_path}"]
    words = [*(w for w in TINY if not w.startswith("data.")), *own, "panels=0"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *words), [Stop(1)])
    folder = (tmp_path / "latest").resolve()
    before = (folder / "run.json").read_text()
    mask = folder_root / "masks/0.png"
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = (pixels[0, 0] + 1) % 3
    Image.fromarray(pixels).save(mask)
    with pytest.raises(RunError, match=r"the images or masks of its data have changed since"):
        train(config("train", f"resume={folder}"))
    assert (folder / "run.json").read_text() == before
    assert (folder / "checkpoints/last.ckpt").is_file()


def test_a_config_that_names_a_foreign_logger_is_not_taken_up(tmp_path):
    from seg.cli.compose import plain_config

    folder = stopped(tmp_path / "hostile")
    hostile = plain_config(config("train", *TINY)) | {"logger": {"a": {"_target_": "os.system"}}}
    records.write_config(folder / "config.yaml", hostile)
    with pytest.raises(RunError, match=r"names 'os.system'; only seg.training.loggers"):
        load_stopped_run(config("train", f"resume={folder}"))


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_left_alone(tmp_path, straight):
    script = (
        f"import time\nfrom pathlib import Path\nfrom seg.runs.folder import CHECKPOINT_FILES, lock_folder\n"
        f"with lock_folder(Path({str(tmp_path)!r}), 'seg.train'):\n  print('held', flush=True)\n  time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=r"another seg.train is at work there"), lock_folder(
        tmp_path, "seg.train"
    ):  # fmt: skip
        pass
    other.kill()
    other.communicate()
    with lock_folder(tmp_path, "seg.train"):  # a killed process holds nothing
        pass


def command(*words: str, cwd: Path, **options: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "seg.train", *words],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as the tests: sums depend on the number of threads
        **options,
    )  # fmt: skip


LONG = [*TINY, *DROPOUT, "loader.repeats=16", "trainer.max_epochs=4"]  # 16 steps an epoch


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Such a run that was never stopped."""
    outputs = tmp_path_factory.mktemp("long")
    train(config("train", *LONG, f"outputs={outputs}"))
    return (outputs / "latest").resolve()


def in_its_second_epoch(process: subprocess.Popen, outputs: Path, run: str = "latest") -> None:
    metrics = outputs / run / "metrics.csv"
    while not (metrics.exists() and any(r.get("epoch") == "1" for r in read_metrics(metrics))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
)  # fmt: skip
def test_a_run_ended_by_a_signal_goes_on(tmp_path, long, number, code):
    process = command(*LONG, cwd=tmp_path)
    in_its_second_epoch(process, tmp_path / "outputs")
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    folder = (tmp_path / "outputs/latest").resolve()
    if number != signal.SIGKILL:
        assert "goes on with  python -m seg.train resume=outputs/2" in said
        record = json.loads((folder / "run.json").read_text())
        assert (record["status"], record["error"]) == ("interrupted", number.name)
        assert state(folder)["global_step"] % 16  # inside an epoch
    train(config("train", f"resume={folder}"))
    assert same(folder, long)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_a_signal_to_all_processes_ends_the_run_not_its_loader(tmp_path, long, number, code):
    process = command(*LONG, "loader.workers=2", cwd=tmp_path, start_new_session=True)
    in_its_second_epoch(process, tmp_path / "outputs")
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    folder = (tmp_path / "outputs/latest").resolve()
    assert records.read_json(folder / "run.json")["error"] == number.name
    assert state(folder)["global_step"] % 16  # inside an epoch
    train(config("train", f"resume={folder}"))
    assert same(folder, long)


SLURM = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "77"}  # fmt: skip


@pytest.mark.slow
def test_on_slurm_a_warned_run_saves_in_its_own_folder_and_hands_no_job_in(
    tmp_path, long, monkeypatch
):
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\ntouch {tmp_path}/handed-in\n")
    scontrol.chmod(0o755)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"another program's")
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    process = command(*LONG, cwd=tmp_path)
    in_its_second_epoch(process, tmp_path / "outputs")
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 138, said
    assert sorted(f.name for f in tmp_path.iterdir()) == ["bin", "hpc_ckpt_1.ckpt", "outputs"]
    for name in SLURM:
        monkeypatch.delenv(name)
    folder = (tmp_path / "outputs/latest").resolve()
    train(config("train", f"resume={folder}"))
    assert same(folder, long)


@pytest.mark.slow
def test_a_run_whose_weight_decay_leaves_out_norms_ends_as_if_it_never_was_stopped(tmp_path):
    words = [*TINY, "model.depth=2", "weight_decay_of_all=false"]
    train(config("train", *words, f"outputs={tmp_path / 'whole'}"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *words, f"outputs={tmp_path / 'cut'}"), [Stop(3)])
    whole, cut = ((tmp_path / name / "latest").resolve() for name in ("whole", "cut"))
    train(config("train", f"resume={cut}"))
    assert same(whole, cut)
    groups = state(cut)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 3])  # of a step
def test_of_two_processes_one_that_is_warned_ends_both_after_the_same_step(tmp_path, batches):
    process = command(
        *LONG,
        f"trainer.accumulate_grad_batches={batches}",
        "data.test=2",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        cwd=tmp_path,
    )
    in_its_second_epoch(process, tmp_path / "outputs")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    other = next(pid for pid, line in lines.items() if b"seg" in line and b"trainer=ddp" in line)
    os.kill(other, signal.SIGUSR1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 138, said
    folder = (tmp_path / "outputs/latest").resolve()
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "SIGUSR1")
    steps = -(-16 // batches)  # an epoch's
    stopped = state(folder)
    assert stopped["global_step"] % steps  # inside an epoch
    progress = stopped["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert progress["completed"] == batches * (stopped["global_step"] % steps)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < deadline, "the other process is still there"
        time.sleep(0.02)
    again = command(f"resume={folder}", cwd=tmp_path)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert state(folder)["global_step"] == 4 * steps


@pytest.mark.slow
def test_a_job_that_submitit_warns_saves_is_handed_in_again_and_goes_on(tmp_path, long):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = command(*LONG, "-m", "hydra/launcher=submitit_local", "seed=0", cwd=tmp_path)
    job = tmp_path / "outputs/sweeps/latest/job"
    in_its_second_epoch(process, job.parent, "job")
    lines = {f.parent.name: f.read_bytes() for f in Path("/proc").glob("[0-9]*/cmdline")}
    (pid,) = (
        p for p, line in lines.items() if b"core._submit" in line and str(tmp_path).encode() in line
    )
    os.kill(int(pid), signal.SIGUSR2)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    record = json.loads((job / "run.json").read_text())
    assert record["status"] == "finished" and len(record["resumed"]) == 1
    assert same(job, long)
    log = (job / "log.txt").read_text()
    assert "goes on with" in log and "epoch   2  step    32" in log.partition("goes on with")[2]


@pytest.mark.slow
def test_resume_takes_no_other_option(tmp_path):
    process = command("resume=outputs/x", "optim.lr=1", cwd=tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and said.startswith("error: optim.lr=1: resume= continues a run")


def longer(folder: Path, *words: str, callbacks: Sequence[L.Callback] = ()) -> Path:
    """Resume a run with a later end."""
    cfg, asked = load_stopped_run(config("train", f"resume={folder}"), words)
    train(cfg, callbacks, asked)
    return folder


FLAT = [*TINY, *DROPOUT, "schedule=constant"]


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (["trainer.max_epochs=1"], ["trainer.max_epochs=3"]),
        (["trainer.max_epochs=9", "trainer.max_steps=3"], ["trainer.max_steps=6"]),  # in an epoch
    ],
)
def test_a_finished_run_made_longer_equals_one_trained_straight(tmp_path, first, more):
    train(config("train", *FLAT, *first, *more, f"outputs={tmp_path / 'whole'}"))
    train(config("train", *FLAT, *first, f"outputs={tmp_path / 'parts'}"))
    whole, parts = ((tmp_path / name / "latest").resolve() for name in ("whole", "parts"))
    before = records.read_json(parts / "run.json")
    ended = rows(parts)
    longer(parts, *more)
    assert same(whole, parts, [row for row in ended if row["step"] == "2" and row["lr"]])
    one, two = (records.read_json(folder / "run.json") for folder in (whole, parts))
    assert one["metrics"] == two["metrics"] and one["lr_segments"] == two["lr_segments"]
    assert (one["steps"], two["steps"], two["status"]) == (6, 6, "finished")
    (entry,) = two["resumed"]
    assert entry["metrics"] == before["metrics"] and entry["steps"] == before["steps"]
    assert list(entry["changed"]) == [more[0].partition("=")[0]]


@pytest.mark.slow
def test_a_falling_rate_needs_a_word_and_falls_again_where_it_was_planned_to_end(tmp_path):
    words = [*TINY, *DROPOUT, "trainer.max_epochs=2", "schedule=poly"]
    train(config("train", *words, f"outputs={tmp_path / 'ended'}"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config("train", *words, f"outputs={tmp_path / 'stopped'}"), [Stop(3)])
    ended, stopped = ((tmp_path / name / "latest").resolve() for name in ("ended", "stopped"))
    before = {file: file.read_bytes() for file in ended.rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=r"Poly falls .* extend=hold .* extend=restart"):
        longer(ended, "trainer.max_epochs=3")
    after = {file: file.read_bytes() for file in ended.rglob("*") if file.is_file()}
    assert {f.name for f in after if after[f] != before.get(f)} <= {"log.txt"}
    for folder in (ended, stopped):
        longer(folder, "trainer.max_epochs=3", "extend=restart")
    # the row of an epoch has the rate of the next step, which was not yet planned
    ends = [row for f in (ended, stopped) for row in rows(f) if row["step"] == "3" and row["lr"]]
    lr = yaml.safe_load((ended / "config.yaml").read_text())["optim"]["lr"]
    assert [float(row["lr"]) for row in ends] == [0, lr]
    assert same(ended, stopped, ends)
    assert records.read_json(ended / "run.json")["lr_segments"] == [[0, 4, 0.0], [4, 6, 0.0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=1"], r"optim.lr=1: resume= continues .* trainer.max_epochs, .* extend"),
        (["trainer.max_epochs=3"], r"trainer.max_epochs=3: the run has 3; .* give more"),
        (["trainer.max_steps=9"], r"trainer.max_steps=9: the run has -1"),
        (["extend=hold"], r"extend=hold: give a larger"),
    ],
)
def test_only_a_later_end_can_be_given(straight, words, message):
    with pytest.raises(UserError, match=message):
        load_stopped_run(config("train", f"resume={straight}"), words)


def test_a_run_that_patience_ended_needs_more_of_it(tmp_path):
    flat = [*FLAT, "model.depth=4", "optim.lr=0", "trainer.max_epochs=4"]
    train(config("train", *flat, "patience=2", f"outputs={tmp_path / 'whole'}"))
    train(config("train", *flat, "patience=1", f"outputs={tmp_path / 'parts'}"))
    whole, parts = ((tmp_path / name / "latest").resolve() for name in ("whole", "parts"))
    with pytest.raises(UserError, match=r"patience=1: 1 validations .* larger patience as well"):
        load_stopped_run(config("train", f"resume={parts}"), ["trainer.max_epochs=9"])
    longer(parts, "patience=2")
    assert same(whole, parts)
    assert [records.read_json(f / "run.json")["steps"] for f in (whole, parts)] == [6, 6]


# --- the disk space of a finished run


@pytest.fixture(scope="module")
def slim(tmp_path_factory) -> Path:
    """The run of ``straight``, which keeps its weights only, as by default."""
    outputs = tmp_path_factory.mktemp("slim")
    train(config("train", *TINY, *DROPOUT, f"outputs={outputs}", "save_checkpoints=weights"))
    return (outputs / "latest").resolve()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "checkpoints").iterdir())


def test_a_finished_run_keeps_the_weights_that_a_full_one_has(slim, straight):
    assert size(straight) > 2 * size(slim)
    for name in {file.name for file in (slim / "checkpoints").iterdir()}:
        full, kept = (
            checkpoint.read_checkpoint(run / "checkpoints" / name) for run in (straight, slim)
        )
        assert set(kept) < set(full) and not {"optimizer_states", "callbacks", "loops"} & set(kept)
        assert checkpoint.same_weights({**full, "seg": 0}, {**kept, "seg": 0})
        assert checkpoint.has_training_state(straight / "checkpoints" / name)
        assert not checkpoint.has_training_state(slim / "checkpoints" / name)
    assert rows(slim) == rows(straight)


def test_a_run_without_its_training_state_cannot_be_resumed_and_says_why(slim, straight, tmp_path):
    with pytest.raises(RunError, match=r"is finished and kept its weights only \(save_checkpoints=weights\); init="):  # fmt: skip
        load_stopped_run(config("train", f"resume={slim}"))
    with pytest.raises(RunError, match="the run is finished; init="):
        load_stopped_run(config("train", f"resume={straight}"))
    copy = tmp_path / "copy"
    shutil.copytree(slim, copy)
    record = records.read_json(copy / "run.json")
    records.write_json(copy / "run.json", record | {"status": "interrupted"})
    with pytest.raises(RunError, match="so the run cannot be resumed from it"):
        train(config("train", f"resume={copy}"))


@pytest.mark.parametrize("fails", ["read", "disk full at the 1st", "disk full at the 2nd"])
def test_a_crash_while_the_state_is_removed_leaves_whole_checkpoints(
    straight, tmp_path, monkeypatch, fails
):
    copy = shutil.copytree(straight, tmp_path / "copy")
    before = {f.name: f.read_bytes() for f in (copy / "checkpoints").iterdir()}
    assert len(before) == 2
    left = {"read": 0, "disk full at the 1st": 0, "disk full at the 2nd": 1}[fails]
    save = torch.save

    def failing(*args: Any) -> None:
        nonlocal left
        if left == 0:
            args[1].write(b"half")
            raise OSError(28, "No space left on device")
        left -= 1
        save(*args)

    if fails == "read":
        (copy / "checkpoints/best.ckpt").write_bytes(before["best.ckpt"][:5000])
    else:
        monkeypatch.setattr(torch, "save", failing)
    # different weights, so that both files are needed
    monkeypatch.setattr(checkpoint, "same_weights", lambda one, other: False)
    with pytest.raises((OSError, RunError)):
        checkpoint.keep_weights_only(copy)
    after = {f.name: f for f in (copy / "checkpoints").iterdir()}
    assert set(after) == set(before)  # no file is lost, and no unfinished one is left
    for name, file in after.items():
        if fails != "read" or name != "best.ckpt":
            assert set(checkpoint.read_checkpoint(file)) > {"seg", "state_dict"}


def test_last_goes_only_if_best_has_the_same_weights(straight, tmp_path):
    copy = shutil.copytree(straight, tmp_path / "copy")
    last, best = (copy / "checkpoints" / name for name in CHECKPOINT_FILES)
    shutil.copyfile(best, last)
    content = checkpoint.read_checkpoint(last)
    first = next(iter(content["state_dict"]))
    content["state_dict"][first] = content["state_dict"][first] + 1
    checkpoint.write_checkpoint(last, content)
    checkpoint.keep_weights_only(copy)
    assert last.is_file() and best.is_file()
    shutil.copyfile(best, last)
    checkpoint.keep_weights_only(copy)
    assert best.is_file() and not last.exists()
    checkpoint.keep_weights_only(copy)  # nothing is left to remove
    assert best.is_file()


class Prune(L.Callback):
    """End the run as an unpromising one, after its first epoch was saved."""

    def on_train_epoch_start(self, trainer: L.Trainer, *args, **kwargs) -> None:
        if trainer.current_epoch == 1:
            raise RunPruned("unpromising")


@pytest.mark.parametrize("saved", ["weights", "full"])
def test_a_pruned_run_keeps_what_save_checkpoints_says(tmp_path, saved):
    words = [f"outputs={tmp_path}", f"save_checkpoints={saved}"]
    with pytest.raises(RunPruned):
        train(config("train", *TINY, *DROPOUT, *words), [Prune()])
    files = [*(tmp_path / "latest/checkpoints").iterdir()]
    assert files and {checkpoint.has_training_state(file) for file in files} == {saved == "full"}
