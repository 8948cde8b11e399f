"""Processes that train one run together agree on its place, however they were started."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from seg.errors import RunError
from seg.runs import records
from seg.training import distributed
from seg.training.distributed import heard, one_place, ticket

NONE = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_NTASKS", distributed.VARIABLE)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NONE:
        monkeypatch.delenv(name, raising=False)


def test_the_others_hear_by_a_variable_what_the_first_decided(tmp_path):
    with one_place(tmp_path, "x", None, tmp_path / "last.ckpt") as place:
        assert place.folder.is_dir() and place.folder.parent == tmp_path
        assert heard(None) == (place.folder.resolve(), tmp_path / "last.ckpt")
    assert distributed.VARIABLE not in os.environ
    assert not list(tmp_path.glob(".together*"))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"TORCHELASTIC_RUN_ID": "a/b", "MASTER_PORT": "12"}, ".together-a_b-12-0"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "2"},
         ".together-9-2-0"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "9"}, None),
    ],
)  # fmt: skip
def test_processes_that_were_started_together_meet_at_a_file_of_their_own(
    tmp_path, monkeypatch, variables, name
):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert ticket(tmp_path) == (name and tmp_path / name)
    if name is None:
        return
    with one_place(tmp_path / "outputs", "x", tmp_path / "job", None) as place:
        monkeypatch.delenv(distributed.VARIABLE)
        assert heard(ticket(tmp_path / "outputs")) == (place.folder.resolve(), None)
        monkeypatch.setenv(distributed.VARIABLE, "{}")
    assert not (tmp_path / "outputs" / name).exists()


def test_a_first_process_that_says_nothing_is_waited_for_no_longer_than_said(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    with pytest.raises(RunError, match=r"wrote no such file within 0.3 s; it failed, or outputs="):
        heard(tmp_path / ".together-1")


def test_a_message_that_a_killed_run_left_is_not_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    message = tmp_path / ".together-1"
    message.write_text('{"folder": "old", "checkpoint": null}')
    os.utime(message, (distributed.STARTED - 600, distributed.STARTED - 600))
    with pytest.raises(RunError, match="wrote no such file"):
        heard(message)
    os.utime(message)
    assert heard(message) == (Path("old"), None)


WORDS = ["data.size=64", "data.train=2", "data.val=3", "data.test=2", "model.width=2", "trainer=ddp",
         "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=2", "loader.crop=32", "logger=none"]  # fmt: skip


def check_one_run(outputs: Path) -> None:
    folders = [f for f in outputs.iterdir() if f.is_dir() and not f.is_symlink()]
    assert len(folders) == 1 and not list(outputs.glob(".together*"))
    assert records.read_json(folders[0] / "run.json")["status"] == "finished"
    counts = (folders[0] / "images.csv").read_text().splitlines()[1:]
    assert len(counts) == len({line.rsplit(",", 3)[0] for line in counts}) == (3 + 2) * 2


@pytest.mark.slow
def test_torchrun_trains_one_run(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, "-m", "seg.train", *WORDS], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_one_run(tmp_path / "outputs")


@pytest.mark.slow
def test_processes_as_slurm_starts_them_train_one_run(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "seg", "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "seg.train", *WORDS], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (1, 0)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    check_one_run(tmp_path / "outputs")


def test_a_message_is_plain_json(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with one_place(tmp_path, "x", None, None):
        content = json.loads(next(tmp_path.glob(".together*")).read_text())
        assert set(content) == {"folder", "checkpoint"}
