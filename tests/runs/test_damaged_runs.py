"""A run folder that is damaged, or a stranger's: each command is done, or names the file or the run in one line.

Runs are trained once, copied, and one file of the copy is damaged. Never does a command hang, end in a fault of
ours, take much memory, or change what lies beside the run.
"""

import csv
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import seg
from seg.cli.compose import compose_checked, one_line
from seg.commands.compare import compare_runs
from seg.commands.crossval import crossval
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.commands.rerun import rerun
from seg.commands.sync import sync
from seg.commands.tune import tune
from seg.errors import USER_ERRORS, RunError
from seg.inference import ensemble
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.multirun.progress import SweepProgress
from seg.multirun.sweeper import find_earlier_sweeps
from seg.runs import records
from seg.training.run import train

TINY = [
    "trainer=cpu", "logger=none", "augment=none", "data.size=32", "data.train=2", "data.val=1", "data.test=1",
    "loader.crop=32", "loader.repeats=1", "loader.batch_size=2", "loader.workers=0", "model=unetpp", "model.width=2",
    "model.depth=2", "panels=1", "save_predictions=1", "trainer.max_epochs=1", "loader.check=false",
    "save_checkpoints=full",
]  # fmt: skip
FOLDS = [
    "data=folder", "data.root=data", "data.classes=[a,b]", "data.folds=2", "output=cv", "trainer=cpu", "logger=none",
    "augment=none", "loader.crop=32", "loader.repeats=1", "loader.batch_size=2", "loader.workers=0", "model.width=2",
    "model.depth=1", "panels=0", "save_predictions=0", "trainer.max_epochs=1", "loader.check=false",
]  # fmt: skip
SEARCH = [word for word in TINY if not word.startswith("model")]
SEARCH += ["model.width=choice(2,3)", "model.depth=1", "trials=1", "name=study", "outputs=searches"]
MEMORY = (
    4 * 2**30
)  # bytes of addresses that a command may take beside what the process has; a thread takes 128 MiB
SECONDS = 60  # that a command may take


def words(*more: str) -> list[str]:
    return ["accelerator=cpu", *more]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Runs as the commands leave them, with an image beside them."""
    place = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(place)
    try:
        train(compose_checked("train", [*TINY, "model.deep_supervision=true"]))
        Path("outputs/latest").resolve().rename("outputs/whole")
        train(compose_checked("train", [*TINY, "seed=1"]))
        Path("outputs/latest").resolve().rename("outputs/other")
        Path("outputs/latest").unlink()
        shutil.copytree("outputs/whole", "stopped")
        record = json.loads(Path("stopped/run.json").read_text())
        gone = ("metrics", "minutes", "steps", "threshold")
        left = {name: value for name, value in record.items() if name not in gone}
        Path("stopped/run.json").write_text(json.dumps(left | {"status": "interrupted"}))
        text = Path("stopped/config.yaml").read_text().replace("max_epochs: 1", "max_epochs: 2")
        Path("stopped/config.yaml").write_text(text)
        recorded = Path("outputs/whole/wandb/offline-run-20261127_082448-abcdefgh")
        recorded.mkdir(parents=True)
        (recorded / "run-abcdefgh.wandb").write_bytes(b"")
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40)).astype(np.uint8)
        Image.fromarray(pixels).save("image.png")
        Path("beside").mkdir()
        Path("beside/precious").write_text("precious")
    finally:
        os.chdir(before)
    return place


@pytest.fixture(scope="session")
def several(made, tmp_path_factory) -> Path:
    """And folders of several runs."""
    place = tmp_path_factory.mktemp("several") / "p"
    shutil.copytree(made, place, symlinks=True)
    before = Path.cwd()
    os.chdir(place)
    try:
        make_several()
    finally:
        os.chdir(before)
    return place


def make_several() -> None:
    """Make a cross-validation, a sweep, a search and a prediction of the existing runs."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        Path("data", part).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256 if part == "images" else 2, (32, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(f"data/{part}/{i}.png")
    crossval(compose_checked("crossval", FOLDS))
    Path("sweep").mkdir()
    jobs = [
        {"name": name, "folder": name, "overrides": [f"seed={i}"]}
        for i, name in enumerate(("whole", "other"))
    ]
    Path("sweep/sweep.json").write_text(json.dumps({"command": [], "source": "", "jobs": jobs}))
    for job in jobs:
        shutil.copytree(f"outputs/{job['name']}", f"sweep/{job['folder']}")
    tune(SEARCH)
    predict_files(
        compose_checked(
            "predict", words("run=outputs/whole", "input=image.png", "output=predicted")
        )
    )


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of them, which is the working folder."""
    shutil.copytree(made, tmp_path / "p", symlinks=True)
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def resume(run: str) -> None:
    train(compose_checked("train", [f"resume={run}"]))


def look_at_sweep(folder: str) -> None:
    """Read an existing sweep as its repeated command does."""
    jobs = [
        {"name": name, "folder": name, "overrides": [f"seed={i}"]}
        for i, name in enumerate(("whole", "other"))
    ]
    list(find_earlier_sweeps(Path(), jobs))
    with SweepProgress(Path(folder), jobs) as watch:
        watch.poll()
    watch.print_summary()


def predict_on(folder: str) -> None:
    """The same line again, with another image."""
    shutil.copy("image.png", "image2.png")
    predict_files(
        compose_checked(
            "predict", words("run=outputs/whole", "input=image2.png", f"output={folder}")
        )
    )


SEVERAL: dict[
    str, tuple[str, Callable[[str], Any]]
] = {  # the folder that is damaged, and the command
    "crossval": ("cv", lambda folder: crossval(compose_checked("crossval", FOLDS))),
    "ensemble": ("cv", lambda folder: ensemble.load_members(folder)),
    "predict on": ("predicted", predict_on),
    "sweep": ("sweep", look_at_sweep),
    "tune": (
        "searches/study",
        lambda folder: tune([word if word != "trials=1" else "trials=2" for word in SEARCH]),
    ),
}
COMMANDS: dict[str, Callable[[str], Any]] = {  # each with the folder of a run
    "compare": lambda run: compare_runs(compose_checked("compare", [f"runs=[{Path(run).parent}]", "resamples=20"])),
    "evaluate": lambda run: evaluate(compose_checked("evaluate", words(f"run={run}", "panels=0", "confidence_level=0", "workers=0"))),
    "export": lambda run: export_run(compose_checked("export", [f"run={run}", "format=torch", "output=exported.pt2"])),
    "init": lambda run: train(compose_checked("train", [*TINY, f"init={run}", "trainer.limit_train_batches=1"])),
    "list": lambda run: ensemble.load_members([run, "outputs/other"]),
    "load": lambda run: seg.load(run, accelerator="cpu").predict("image.png"),
    "predict": lambda run: predict_files(compose_checked("predict", words(f"run={run}", "input=image.png", "output=out"))),
    "prune": lambda run: compare_depths(compose_checked("prune", words(f"run={run}", "rounds=1", "workers=0"))),
    "rerun": lambda run: rerun(compose_checked("rerun", [f"run={run}", "loader.workers=0"])),
    "resume": resume,
    "sync": lambda run: sync(compose_checked("sync", [])),
}  # fmt: skip


@contextmanager
def bounded() -> Generator[None]:
    """Ends what takes too much memory or time."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def outcome(command: Callable[[str], Any], run: str, known: tuple[str, ...]) -> str | None:
    """Return the one-line error, which must contain one of the names; None if the command succeeded."""
    try:
        with bounded():
            command(run)
    except USER_ERRORS as error:
        said = one_line(error)
        assert str(error).strip() and len(said) < 3000
        assert any(name in said for name in known), said
        return said
    finally:
        for file in Path("beside").iterdir():
            assert file.read_text() == "precious"
        assert len(list(Path("beside").iterdir())) == 1
    return None


def try_several(made: Path, name: str, rng: random.Random, root: Path) -> None:
    """One command that goes on in the folder of several runs, one file of which is damaged."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(made, root, symlinks=True)
    os.chdir(root)
    folder, command = SEVERAL[name]
    files = [
        file
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and file.suffix in (".json", ".csv", ".ckpt", ".db")
    ]
    top = [file for file in files if file.parent == Path(folder)]
    file = rng.choice(top if top and rng.random() < 0.5 else files)
    how = damage(file, rng)
    try:
        outcome(command, folder, (file.name, Path(folder).name, file.parent.name))
    except BaseException as error:
        error.add_note(f"{name}: {file}: {how}")
        raise


def try_damage(made: Path, name: str, rng: random.Random, root: Path) -> None:
    """One command on one damaged file."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(made, root, symlinks=True)
    os.chdir(root)
    run = Path("stopped" if name == "resume" else "outputs/whole")
    files = sorted(
        file for file in run.rglob("*") if file.is_file() and file.suffix not in (".wandb", ".txt")
    )
    if name == "compare":
        files = [file for file in files if file.suffix != ".ckpt"]
    elif name != "rerun":
        files = [
            f
            for f in files
            if f.suffix == ".ckpt" or (name == "resume" and f.suffix in (".json", ".yaml", ".csv"))
        ] + [run / "run.json"] * (name == "list")
    file = rng.choice(files)
    how = damage(file, rng)
    try:
        outcome(COMMANDS[name], str(run), (run.name, file.name, "config.yaml"))
    except BaseException as error:
        error.add_note(f"{name}: {file}: {how}")
        raise


LONG = ("export", "init", "prune", "rerun", "resume")  # a second or more each
MARKED = [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in COMMANDS]


@pytest.mark.parametrize("name", MARKED)
def test_commands_do_whole_runs(place, name):
    """So that a refusal is that of the damage."""
    assert outcome(COMMANDS[name], "stopped" if name == "resume" else "outputs/whole", ()) is None


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in LONG])
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6))
def test_a_damaged_file_is_named_or_does_no_harm(made, tmp_path_factory, monkeypatch, name, seed):
    monkeypatch.chdir(made)  # where it ends
    try_damage(made, name, random.Random(seed), tmp_path_factory.getbasetemp() / f"damaged-{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9))
def test_folders_of_several_runs_go_on_or_name_what_is_damaged(
    several, tmp_path_factory, monkeypatch, name, seed
):
    monkeypatch.chdir(several)
    try_several(several, name, random.Random(seed), tmp_path_factory.getbasetemp() / "several")


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL)
def test_folders_of_several_runs_go_on_where_they_are_whole(several, tmp_path, monkeypatch, name):
    shutil.copytree(several, tmp_path / "p", symlinks=True)
    monkeypatch.chdir(tmp_path / "p")
    folder, command = SEVERAL[name]
    assert outcome(command, folder, ()) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9))
def test_many_damaged_files_are_named_or_do_no_harm(
    made, tmp_path_factory, monkeypatch, name, seed
):
    monkeypatch.chdir(made)
    try_damage(made, name, random.Random(seed), tmp_path_factory.getbasetemp() / f"damaged-{name}")


def test_pipes_and_devices_in_a_run_end_no_comparison(place):
    """The others are compared; the run is named, and why."""
    for name in ("fifo", "zero", "config"):
        shutil.copytree("outputs/whole", f"outputs/{name}")
    Path("outputs/fifo/run.json").unlink()
    os.mkfifo("outputs/fifo/run.json")
    Path("outputs/zero/run.json").unlink()
    Path("outputs/zero/run.json").symlink_to("/dev/zero")
    Path("outputs/config/config.yaml").unlink()
    os.mkfifo("outputs/config/config.yaml")
    with bounded():
        ranking = compare_runs(compose_checked("compare", ["runs=[outputs]", "resamples=20"]))
    assert {run.label for run in ranking.runs} == {"whole", "other", "config"}
    rows = table()
    for name in ("fifo", "zero"):
        assert rows[name]["status"] == "damaged" and "not a regular file" in rows[name]["note"]
    assert "config.yaml can't be read" in rows["config"]["note"]


@pytest.mark.parametrize(
    "text", ["1", "true", "null", '"x"', "[]", "", "[" * 10**5, "1" * 5000, '{"a": 1e999}']
)
def test_json_that_is_no_record_is_told(tmp_path, text):
    """But a number too large for a float, which json writes for infinity, is one."""
    (tmp_path / "run.json").write_text(text)
    if text.startswith("{"):
        assert records.read_json(tmp_path / "run.json") == {"a": float("inf")}
    else:
        with pytest.raises(RunError, match=r"run\.json: "):
            records.read_json(tmp_path / "run.json")


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a counter that is text": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="x"),
    "a counter below 0": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready=-1),
    "an optimizer that lacks a part": lambda c: c["optimizer_states"][0]["state"][0].pop("exp_avg"),
    "an optimizer of other shapes": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(7)),
    "a rate that is text": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"),
    "no optimizer": lambda c: c.update(optimizer_states=[]),
    "no loops": lambda c: c.pop("loops"),
    "a schedule of text": lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
    "steps that are text": lambda c: c.update(global_step="x"),
    "weights of other shapes": lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(7)}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", STATES)
def test_a_checkpoint_whose_state_is_none_of_the_run_is_named(place, what):
    Path("stopped/checkpoints/best.ckpt").unlink()
    last = Path("stopped/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    STATES[what](content)
    torch.save(content, last)
    said = outcome(resume, "stopped", ("last.ckpt",))
    assert said is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["checkpoints/last.ckpt", "images.csv", "log.txt", "panels/all.png"]
)
def test_a_run_where_a_folder_stands_in_a_files_place_is_not_taken_up(place, name):
    (Path("stopped") / name).unlink()
    (Path("stopped") / name).mkdir()
    said = outcome(resume, "stopped", (Path(name).name,))
    assert said is not None and "not a regular file" in said


def table() -> dict[str, dict[str, str]]:
    """The rows of compare.csv by their runs."""
    lines = Path("outputs/compare.csv").read_text().splitlines()
    return {row["run"]: row for row in csv.DictReader(lines)}


DAMAGED = {
    "pixels of 30 digits": ("images.csv", lambda text: text.replace("test,", "test,", 1).rstrip().rpartition(",")[0] + f",{10**30}\n"),
    "an endless epoch": ("metrics.csv", lambda text: text.replace("\n", "\n" + ",".join(["inf"] * len(text.partition("\n")[0].split(","))) + "\n", 1)),
    "half a character": ("run.json", lambda text: text.replace('"name": "', '"name": "\\ud800', 1)),
    "a number of 30 digits": ("run.json", lambda text: text.replace('"seed": 0', f'"seed": {10**30}', 1)),
    "a deep record": ("run.json", lambda text: text.replace("{", '{"deep": ' + "[" * 5000 + "]" * 5000 + ",", 1)),
    "a wrong character": ("config.yaml", lambda text: text + 'x: "\\ud800"\n'),
}  # fmt: skip


@pytest.mark.parametrize("what", [*DAMAGED, "a folder whose name is no UTF-8"])
def test_one_damaged_run_is_named_and_the_others_are_compared(place, what):
    """And the page of the comparison before, if this one came to nothing, would be whole."""
    words = ["runs=[outputs]", "resamples=20"]
    compare_runs(compose_checked("compare", words))
    before = Path("outputs/compare.html").read_text()
    if what in DAMAGED:
        shutil.copytree("outputs/whole", "outputs/bad")
        file, change = DAMAGED[what]
        text = (Path("outputs/bad") / file).read_text()
        changed = change(text)
        assert changed != text
        (Path("outputs/bad") / file).write_text(changed)
        label = "bad"
    else:
        shutil.copytree("outputs/whole", os.fsdecode(b"outputs/b\xffd"))
        label = "b\\xffd"
    found = compare_runs(compose_checked("compare", words))
    assert {"whole", "other"} <= {run.label for run in found.runs}
    rows = table()
    assert set(rows) == {"whole", "other", label}
    if what in DAMAGED:
        assert DAMAGED[what][0] in rows[label]["note"], rows[label]
    after = Path("outputs/compare.html").read_text()
    assert after.count("</html>") == before.count("</html>") == 1 and after != before
