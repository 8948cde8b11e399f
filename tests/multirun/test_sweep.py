"""A sweep: its folder and names, what goes on after a failure or a kill, and where jobs run."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from small_runs import composed

import seg.train
from seg.cli.command import allow_job_options
from seg.cli.conf_files import CONF
from seg.display.console import console
from seg.errors import UserError
from seg.multirun import sweeper
from seg.runs.records import read_json, write_json
from seg.runs.run_info import is_sweep_job

TINY = ["data.size=64", "data.train=2", "data.val=2", "data.test=2", "loader.crop=32", "loader.repeats=2",
        "logger=none", "model.width=2", "trainer=cpu", "trainer.max_epochs=1", "panels=1",
        "save_checkpoints=full"]  # fmt: skip


def plan(outputs: Path, *words: str) -> list[dict]:
    return sweeper.plan_jobs(composed(outputs, *words), {})


def test_jobs_are_named_by_what_differs_between_them(tmp_path):
    jobs = plan(
        tmp_path, "model=fcn,unet", "optim.lr=0.1", "seed=0,1", "loss.terms.dice.weight=1,2"
    )
    assert [job["name"] for job in jobs][:3] == [
        "fcn-seed=0-loss.terms.dice.weight=1",
        "fcn-seed=0-loss.terms.dice.weight=2",
        "fcn-seed=1-loss.terms.dice.weight=1",
    ]
    assert len(jobs) == 8
    assert jobs[0]["overrides"] == [
        *("model=fcn", "optim.lr=0.1", "seed=0", "loss.terms.dice.weight=1")
    ]
    assert jobs[0]["folder"] == "fcn-seed_0-loss.terms.dice.weight_1"


def test_jobs_whose_names_look_alike_have_folders_of_their_own(tmp_path):
    jobs = plan(tmp_path, "init='a b','a_b','a/b'", "head_weights=[1,2],[2,1]")
    assert len({job["folder"] for job in jobs}) == len(jobs) == 6


def test_an_interval_has_no_end_of_jobs(tmp_path):
    with pytest.raises(UserError, match=r"optim.lr=interval.*seg.tune searches an interval"):
        plan(tmp_path, "optim.lr=interval(0.1,1)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0,0"], "seed=0: two jobs of the sweep are the same"),
        (["name=a,b"], "a sweep has a single name; give one value"),
        (["outputs=a,b"], "a sweep has a single outputs"),
    ],
)
def test_what_makes_no_sweep_is_told(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, *words)


def test_options_of_a_swept_group_are_looked_for_in_each_job_alone(tmp_path):
    typed = ["data=isbi2012,folder", "data.root=a/b", "+x.y=1", "seed=0", "model.width=2,3"]
    words = allow_job_options(typed)  # membranes, the default, has no data.root
    assert words == [typed[0], "++data.root=a/b", *typed[2:]]
    assert allow_job_options(typed[1:4]) == typed[1:4]  # where no group is swept
    jobs = plan(tmp_path, words[0], words[1])
    assert [(job["name"], job["overrides"]) for job in jobs] == [
        ("isbi2012", ["data=isbi2012", "++data.root=a/b"]),
        ("folder", ["data=folder", "++data.root=a/b"]),
    ]


def test_whatever_is_swept_names_the_jobs(tmp_path):
    jobs = plan(tmp_path, "trainer.max_epochs=1,2", "logger=csv,none")
    assert [job["name"] for job in jobs][:2] == [
        "trainer.max_epochs=1-csv",
        "trainer.max_epochs=1-none",
    ]


@pytest.mark.slow
def test_a_damaged_sweep_is_left_out_and_a_damaged_job_runs_again(tmp_path, monkeypatch, capsys):
    for name, text in (("a", "{"), ("b", '{"jobs": [{"name": "x"}]}')):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "sweeps" / name / "sweep.json").write_text(text)
    words = [*TINY, f"outputs={tmp_path}", "-m", "seed=0,1"]
    with folder_of(tmp_path, *(w for w in words if w != "-m")) as folder:
        (folder / "seed_0").mkdir()
        write_json(folder / "seed_0/run.json", {"status": "finished", "metrics": {}})
        (folder / "seed_1").mkdir()
        (folder / "seed_1/run.json").write_text('{"status": "fin')
    capsys.readouterr()
    code, said = typed(monkeypatch, capsys, *words)
    assert code is None and said.count("damaged, ignored") == 2
    assert read_json(folder / "seed_1/run.json")["status"] == "finished"


@pytest.mark.slow
def test_a_job_that_could_not_go_on_keeps_what_it_had(tmp_path, monkeypatch, capsys):
    words = [*TINY, "trainer.max_epochs=2", f"outputs={tmp_path}", "-m", "seed=0,1"]
    code, _ = typed(monkeypatch, capsys, *words)
    assert code is None
    folder = (tmp_path / "sweeps/latest").resolve() / "seed_1"
    last = folder / "checkpoints/last.ckpt"
    written, record = last.stat().st_mtime_ns, read_json(folder / "run.json")
    kept = {k: v for k, v in record.items() if k != "metrics"}
    write_json(folder / "run.json", kept | {"status": "interrupted", "split_hash": "another"})
    code, said = typed(monkeypatch, capsys, *words)
    assert code == 1 and "the splits of its data have changed" in said
    assert last.stat().st_mtime_ns == written
    write_json(folder / "run.json", kept | {"status": "failed"})
    code, said = typed(monkeypatch, capsys, *words)  # what was wrong is mended
    assert code is None and read_json(folder / "run.json")["resumed"]


def test_a_sweep_takes_up_no_run(tmp_path):
    with pytest.raises(UserError, match=r"resume: repeat the sweep's own command"):
        plan(tmp_path, "resume=a,b")


def folder_of(outputs: Path, *words: str):
    cfg = composed(outputs, *words)
    return sweeper.claim_sweep_folder(cfg, sweeper.plan_jobs(cfg, {}))


def test_the_same_jobs_find_their_folder_again_and_others_do_not(tmp_path):
    with folder_of(tmp_path, "model=fcn,unet", "seed=0,1") as first:
        assert first.parent == tmp_path / "sweeps"
    with folder_of(tmp_path, "seed=1,0", "model=unet,fcn") as again:
        assert again == first
    with folder_of(tmp_path, "model=fcn,unet", "seed=0,1,2") as more:
        assert more != first
    with folder_of(tmp_path, "model=fcn,unet", "seed=0,1", "restart=true") as fresh:
        assert fresh not in (first, more)
    with folder_of(tmp_path, "model=fcn,unet", "seed=0,1") as newest:
        assert newest == fresh
    assert (tmp_path / "sweeps/latest").resolve() == fresh.resolve()


HELD = "import fcntl, sys; f = [open(n, 'w') for n in sys.argv[1:]]; [fcntl.flock(o, fcntl.LOCK_EX) for o in f]; print(flush=True); input()"  # fmt: skip


@contextmanager
def held_by_another(*locks: Path):
    with subprocess.Popen([sys.executable, "-c", HELD, *locks], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None and other.stdout.readline()
        yield other
        other.kill()


@pytest.mark.parametrize("lock", [".lock", "seed_1/.lock"])
def test_a_sweep_that_others_work_on_is_joined_and_not_begun_again(tmp_path, lock):
    with folder_of(tmp_path, "seed=0,1") as first:
        (first / "seed_1").mkdir()
    with held_by_another(first / lock):
        with folder_of(tmp_path, "seed=1,0") as second:
            assert second == first
        with (
            pytest.raises(UserError, match="restart=true: other workers train these jobs"),
            folder_of(tmp_path, "seed=0,1", "restart=true"),
        ):
            pass
    with folder_of(tmp_path, "seed=0,1", "restart=true") as third:
        assert third != first


@pytest.mark.slow
def test_jobs_of_other_workers_are_waited_for_and_taken_up_if_they_die(
    tmp_path, monkeypatch, capsys
):
    words = [*TINY, f"outputs={tmp_path}", "-m", "seed=0,1,2,3"]
    with folder_of(tmp_path, *words[:-2], words[-1]) as folder:
        pass
    trained = []

    def note(number: int, status: str) -> None:
        facts = {"status": status, "minutes": 1.0, "metrics": {"best/val/dice": 0.5}}
        write_json(folder / f"seed_{number}/run.json", facts)

    def made(cfg, asked):  # a run without a training
        trained.append(asked.job)
        note(asked.job, "finished")

    locks = [folder / f"seed_{number}/.lock" for number in (1, 2, 3)]
    for lock in locks:
        lock.parent.mkdir()
    note(2, "failed")  # before this worker begins
    with held_by_another(*locks) as other:

        def end(seconds: float) -> None:
            assert trained == [0]
            note(2, "finished")
            note(3, "failed")
            other.kill()
            other.wait()

        monkeypatch.setattr("seg.training.run.train", made)
        monkeypatch.setattr(sweeper, "time", SimpleNamespace(sleep=end))
        code, said = typed(monkeypatch, capsys, *words)
    assert trained == [0, 1] and code == 1
    assert said.count("other workers have 3 of the jobs; waiting for them") == 1
    assert "3 of 4 jobs are finished, 1 not; repeat the command" in said
    assert typed(monkeypatch, capsys, *words)[0] is None and trained == [0, 1, 3]


def typed(monkeypatch, capsys, *words: str) -> tuple[int | None, str]:
    """Exit code and output of ``python -m seg.train`` with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["seg.train", *words])
    monkeypatch.setattr(console, "_width", 200, raising=False)
    try:
        seg.train.main()
        code = None
    except SystemExit as error:
        code = error.code
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.mark.slow
def test_a_failed_job_is_told_the_others_go_on_and_the_same_command_tries_it_again(
    tmp_path, monkeypatch, capsys
):
    words = [*TINY, f"outputs={tmp_path}", "-m", "model=fcn,unet", "loader.batch_size=1"]
    code, said = typed(
        monkeypatch, capsys, *words
    )  # FCN's map is a pixel, of which there is no variance
    folder = (tmp_path / "sweeps/latest").resolve()
    assert code == 1
    assert "gets a map of one pixel" in said
    assert "1 of 2 jobs are finished, 1 not; repeat the command to continue with these" in said
    failed, done = (read_json(folder / name / "run.json") for name in ("fcn", "unet"))
    assert failed["status"] == "failed" and "a map of one pixel" in failed["error"]
    assert "Traceback" in (folder / "fcn/log.txt").read_text()
    assert (done["status"], done["job"], done["group"]) == ("finished", 1, folder.name)
    assert "model=unet" in done["overrides"] and done["choices"]["model"] == "unet"
    scores = done["metrics"]
    assert f"{scores['best/val/dice']:.4f}" in said and f"{scores['test/dice']:.4f}" in said
    assert "epoch " not in said  # a job's own lines are in its log.txt
    assert "epoch " in (folder / "unet/log.txt").read_text()
    written = (folder / "unet/run.json").stat().st_mtime_ns

    code, said = typed(monkeypatch, capsys, *words)
    assert code == 1 and "2 jobs, 1 finished before" in said and "finished before" in said
    assert (folder / "unet/run.json").stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "sweeps").glob("[!.]*") if not p.is_symlink()] == [
        folder.name
    ]


def test_where_all_is_finished_nothing_is_trained(tmp_path, monkeypatch, capsys):
    words = [*TINY, f"outputs={tmp_path}", "-m", "seed=0,1"]
    with folder_of(tmp_path, *words[:-2], words[-1]) as folder:
        for seed in (0, 1):
            (folder / f"seed_{seed}").mkdir()
            record = {"status": "finished", "minutes": 2.5, "metrics": {"best/val/dice": 0.5}}
            write_json(folder / f"seed_{seed}/run.json", record)
    code, said = typed(monkeypatch, capsys, *words)
    assert code is None and "restart=true trains them again" in said
    assert said.count("0.5000         -     2.5  finished before") == 2
    assert not list(folder.glob("*/checkpoints"))


def test_a_sweep_needs_no_values_that_no_option_takes(tmp_path, monkeypatch, capsys):
    code, said = typed(monkeypatch, capsys, f"outputs={tmp_path}", "-m", "model=unet,unett")
    assert code == 2 and "did you mean unet" in said
    assert not list(tmp_path.iterdir())


def test_a_launcher_whose_package_is_absent_names_the_extra(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "hydra_plugins.hydra_submitit_launcher.submitit_launcher", None
    )
    with pytest.raises(
        UserError, match=r"needs the extra slurm: pip install 'seg-experiments\[slurm\]'"
    ):
        sweeper.check_launcher(
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
        )


@pytest.mark.parametrize("name", ["parallel", "slurm"])
def test_our_launchers_are_the_plugins_with_every_option_of_theirs_right(tmp_path, name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", [f"hydra/launcher={name}", "hydra.mode=MULTIRUN"], return_hydra_config=True
        )
    node = OmegaConf.to_container(cfg.hydra.launcher)
    if name == "parallel":
        from joblib import Parallel

        Parallel(n_jobs=node["n_jobs"])
        return
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    known = {field for field in SlurmQueueConf.__dataclass_fields__}
    assert set(node) <= known and node["_target_"] == SlurmQueueConf._target_


def test_jobs_side_by_side_take_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = composed(tmp_path)
    cfg.hydra.launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.Any"}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": cfg.hydra}))
    job = OmegaConf.create({"trainer": {"devices": "auto"}})
    with sweeper.claim_gpu(tmp_path, job) as one, sweeper.claim_gpu(tmp_path, job) as two:
        assert (one, two) == ([0], [1])
    with sweeper.claim_gpu(tmp_path, job) as three:
        assert three == [0]
    both = OmegaConf.create({"trainer": {"devices": 2}})
    with sweeper.claim_gpu(tmp_path, both) as own:
        assert own is None


def start(tmp_path: Path, *words: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "seg.train", "-m", *TINY, *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment,
    )  # fmt: skip


def records(sweep_folder: Path) -> dict[str, dict]:
    return {f.parent.name: json.loads(f.read_text()) for f in sweep_folder.glob("*/run.json")}


@pytest.mark.slow
def test_after_a_kill_the_same_command_runs_only_what_is_unfinished(tmp_path):
    words = ["seed=0,1,2", "trainer.max_epochs=12", "data.train=4"]
    process = start(tmp_path, *words)
    latest = tmp_path / "outputs/sweeps/latest"
    deadline = time.time() + 300
    while time.time() < deadline:
        found = records(latest) if latest.exists() else {}
        if found.get("seed_0", {}).get("status") == "finished" and "seed_1" in found:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = records(latest)
    assert before["seed_0"]["status"] == "finished" and before["seed_1"]["status"] == "running"
    kept = (latest / "seed_0/run.json").stat().st_mtime_ns

    said, _ = start(tmp_path, *words).communicate(timeout=300)
    assert "3 jobs, 1 finished before" in said and "3 of 3 jobs are finished" in said
    assert (latest / "seed_0/run.json").stat().st_mtime_ns == kept
    assert {r["status"] for r in records(latest).values()} == {"finished"}
    assert len(list((tmp_path / "outputs/sweeps").glob("[!.]*"))) == 2  # the folder, and latest


def holder_of(lock: Path) -> int | None:
    """The process that holds a lock, as the kernel lists it."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and int(words[5].split(":")[2]) == lock.stat().st_ino:
            return int(words[4])
    return None


@pytest.mark.slow
def test_three_workers_train_each_job_once_though_one_is_killed(tmp_path):
    words = ["seed=0,1,2,3,4,5", "trainer.max_epochs=8"]
    processes = [start(tmp_path, *words) for _ in range(3)]
    sweeps = tmp_path / "outputs/sweeps"
    deadline = time.time() + 300
    while time.time() < deadline:
        found = records(sweeps / "latest") if (sweeps / "latest").exists() else {}
        pids = {name: holder_of(sweeps / f"latest/{name}/.lock") for name in found}
        own = [name for name, pid in pids.items() if pid == processes[0].pid]
        if own and found[own[0]]["status"] == "running":
            break
        time.sleep(0.05)
    processes[0].kill()
    processes[0].communicate()
    said = [process.communicate(timeout=300)[0] for process in processes[1:]]
    assert all("6 of 6 jobs are finished" in text for text in said), said
    assert [f.name for f in sweeps.iterdir() if f.is_dir() and not f.is_symlink()] == [(sweeps / "latest").resolve().name]  # fmt: skip
    found = records(sweeps / "latest")
    assert {record["status"] for record in found.values()} == {"finished"} and len(found) == 6
    for name in found:  # nothing was trained twice
        epochs = [line for line in (sweeps / f"latest/{name}/log.txt").read_text().splitlines() if "epoch " in line]  # fmt: skip
        assert len(epochs) == len(set(epochs)), name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "submitit_local"])
def test_jobs_run_side_by_side_and_a_failed_one_stops_no_other(tmp_path, launcher):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = start(
        tmp_path, f"hydra/launcher={launcher}", "model=fcn,unet,segnet", "loader.batch_size=1"
    )
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    found = records(tmp_path / "outputs/sweeps/latest")
    assert {name: r["status"] for name, r in found.items()} == {
        "fcn": "failed",
        "unet": "finished",
        "segnet": "finished",
    }
    assert "2 of 3 jobs are finished, 1 not" in said


@pytest.mark.slow
def test_jobs_that_train_with_two_processes_each_follow_one_another(tmp_path):
    process = start(
        tmp_path, "model=fcn,unet,unetpp", "loader.batch_size=2", "trainer=ddp", "trainer.accelerator=cpu",
        "trainer.devices=2",
    )  # fmt: skip
    said, _ = process.communicate(timeout=300)
    found = records(tmp_path / "outputs/sweeps/latest")
    assert {name: r["status"] for name, r in found.items()} == {
        "fcn": "failed",  # one image a process, and FCN's map is a pixel
        "unet": "finished",
        "unetpp": "finished",
    }, said
    names = (tmp_path / "outputs/sweeps/latest/unet/images.csv").read_text()
    assert names.count("val,val-00") == 4  # two images, two classes: each once


@pytest.mark.slow
def test_fifty_jobs_in_one_process_take_no_more_memory_than_ten(tmp_path):
    process = start(tmp_path, "seed=range(0,50)", "trainer=smoke")
    latest, sizes = tmp_path / "outputs/sweeps/latest", {}
    while process.poll() is None:
        time.sleep(0.25)
        status = Path(f"/proc/{process.pid}/status")
        ended = len(list(latest.glob("*/predictions"))) if latest.exists() else 0
        if status.exists() and "VmRSS" in (text := status.read_text()):
            sizes[ended] = int(text.partition("VmRSS:")[2].split()[0])  # kB
    process.communicate()
    assert process.returncode == 0 and max(sizes) >= 45
    early = max(size for jobs, size in sizes.items() if jobs <= 10)
    assert all(size < 1.03 * early for size in sizes.values()), sizes


@pytest.mark.slow
def test_runs_of_one_process_are_apart_in_w_and_b(tmp_path):
    environment = {"WANDB_MODE": "offline"}
    process = start(tmp_path, "seed=0,1", "logger=wandb", **environment)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    kept = sorted((tmp_path / "outputs").rglob("offline-run-*/*.wandb"))
    assert len(kept) == 2 and kept[0].stem != kept[1].stem
    seen = []
    for file in kept:
        told = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file.parent)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        run = next(r["run"] for r in map(json.loads, told.splitlines()) if "run" in r)
        seen.append((run["display_name"], run["run_group"]))
    group = (tmp_path / "outputs/sweeps/latest").resolve().name
    assert sorted(seen) == [("seed=0", group), ("seed=1", group)]
    assert all(a != b for a, b in pairwise(seen))


def test_a_job_is_told_from_a_run_by_hydra_s_mode(tmp_path, monkeypatch):
    cfg = composed(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": cfg.hydra}))
    assert cfg.hydra.mode == RunMode.MULTIRUN and is_sweep_job()
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert not is_sweep_job()


def test_a_folder_of_its_own_is_not_for_a_sweep(tmp_path, monkeypatch, capsys):
    words = [f"outputs={tmp_path}", "-m", "seed=0,1", "hydra.sweep.dir=foo"]
    code, said = typed(monkeypatch, capsys, *words)
    assert code == 2 and "hydra.sweep.dir=foo: a sweep must be below outputs/sweeps" in said
    assert not list(tmp_path.iterdir())


def test_a_process_that_reads_a_job_finds_the_sweeper():
    """Hydra hands its plugins to jobs of a cluster, which import their classes by name, again after a requeue."""
    name = f"{sweeper.ResumableSweeper.__module__}.{sweeper.ResumableSweeper.__qualname__}"
    code = f"import pydoc; assert pydoc.locate({name!r}, forceload=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
