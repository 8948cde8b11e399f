"""The ranks of a distributed run share one run folder, however they were started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from script import install_script, run_script

from seg.errors import RunError
from seg.runs import records
from seg.training import distributed
from seg.training.distributed import shared_run_folder

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a/b", "MASTER_PORT": "12"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "2"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*TORCHRUN, *SLURM, distributed.LOCATION_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def other_rank(outputs: Path, monkeypatch) -> distributed.RunLocation:
    """Return the location that a rank other than 0 receives."""
    with monkeypatch.context() as context:
        context.setattr(distributed, "is_rank_zero", lambda: False)
        with shared_run_folder(outputs, "x", None, None) as place:
            return place


def test_a_rank_started_by_lightning_inherits_the_location(tmp_path, monkeypatch):
    with shared_run_folder(tmp_path, "x", None, tmp_path / "last.ckpt") as place:
        assert place.folder.is_dir() and place.folder.parent == tmp_path
        expected = (place.folder.resolve(), tmp_path / "last.ckpt")
        assert other_rank(tmp_path, monkeypatch) == expected
    assert distributed.LOCATION_VARIABLE not in os.environ


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM])
def test_ranks_started_together_share_the_location_by_a_file(tmp_path, monkeypatch, variables):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with shared_run_folder(tmp_path, "x", None, None) as place:
        location = os.environ.pop(
            distributed.LOCATION_VARIABLE
        )  # as in a rank that inherits nothing
        assert other_rank(tmp_path, monkeypatch) == (place.folder.resolve(), None)
        os.environ[distributed.LOCATION_VARIABLE] = location
    assert not list(tmp_path.glob(".together*"))


def test_a_file_left_by_a_killed_run_is_ignored_and_the_wait_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "MAX_WAIT", 0.3)
    for variable, value in TORCHRUN.items():
        monkeypatch.setenv(variable, value)
    with shared_run_folder(tmp_path, "x", None, None):
        (message,) = tmp_path.glob(".together*")
        content = message.read_bytes()
    with pytest.raises(RunError, match=r"wrote no such file within 0.3 s; .*outputs="):
        other_rank(tmp_path, monkeypatch)
    message.write_bytes(content)
    os.utime(message, (distributed.PROCESS_START - 600, distributed.PROCESS_START - 600))
    with pytest.raises(RunError, match="wrote no such file"):
        other_rank(tmp_path, monkeypatch)


def test_a_rank_without_a_run_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="RANK or LOCAL_RANK is set"):
        other_rank(tmp_path, monkeypatch)


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


@pytest.mark.slow
def test_the_script_trains_one_run_with_two_processes(tmp_path):
    """Lightning starts the second process with the words of the first one."""
    (tmp_path / "bin").mkdir()
    script = install_script(tmp_path / "bin")
    done = run_script(script, "train", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_one_run(tmp_path / "outputs")
    (folder,) = (f for f in (tmp_path / "outputs").iterdir() if not f.is_symlink())
    assert records.read_json(folder / "run.json")["command"] == ["seg", "train", *WORDS]
    assert "  seg evaluate run=" in done.stdout
