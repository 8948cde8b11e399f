"""A run trained once more: the same numbers, or the reason why not."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from seg.cli.compose import compose_checked
from seg.commands.rerun import rerun
from seg.comparison.rerun_report import (
    changed_leaves,
    changed_records,
    compare_scores,
    difference_intervals,
    missing_records,
    overall_verdict,
)
from seg.errors import RunError, UserError
from seg.multirun.rerun import upgrade_config
from seg.runs import checkpoint
from seg.runs.reader import load_finished_run
from seg.runs.records import read_json
from seg.training.run import train

TINY = ["trainer=smoke", "logger=none", "model.width=2", "model.depth=1", "loader.crop=32", "loader.batch_size=2",
        "panels=0", "save_predictions=0", "save_checkpoints=full"]  # fmt: skip


def images(root: Path) -> Path:
    """Eight noisy images of 48x48 with a square each."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((48, 48), np.uint8)
        mask[8 + 2 * i : 30, 10:40] = 1
        noise = rng.integers(0, 60, mask.shape)
        Image.fromarray((60 + 90 * mask + noise).astype(np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run on images in files, with augmentation and weights by the data."""
    place = tmp_path_factory.mktemp("first")
    images(place / "data")
    line = ["data=folder", f"data.root={place / 'data'}", "data.classes=[out,in]", "loss=weighted_bce",
            "augment=elastic", f"outputs={place / 'outputs'}", "name=one", "seed=3"]  # fmt: skip
    train(compose_checked("train", [*TINY, *line]))
    return (place / "outputs/latest").resolve()


@pytest.fixture
def copy(first, tmp_path):
    """The run's folder once more, to be changed."""
    return Path(shutil.copytree(first, tmp_path / "runs" / first.name))


def again(run: Path, tmp_path: Path, *words: str) -> tuple[dict, Path]:
    outputs = tmp_path / "again"
    found = rerun(compose_checked("rerun", [f"run={run}", f"outputs={outputs}", *words]))
    return found, (outputs / "latest").resolve()


def edit(file: Path, **changes) -> None:
    """Changes values of a JSON or YAML file; a dotted name with __, None takes it out."""
    read, write = (
        (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, json.dumps)
    )
    content = read(file.read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        node = content
        for part in path:
            node = node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value
    file.write_text(write(content))


def whats(found: dict) -> dict[str, tuple]:
    return {change["what"]: (change["then"], change["now"]) for change in found["changes"]}


def test_the_same_run_has_the_same_numbers_to_the_last_bit(first, tmp_path, capsys):
    found, folder = again(first, tmp_path)
    then, now = (read_json(run / "run.json") for run in (first, folder))
    assert now["metrics"] == then["metrics"] and len(then["metrics"]) > 10
    assert found["verdict"] == "same" and found["changes"] == [] and found["untold"] == []
    assert json.loads((folder / "rerun.json").read_text()) == found
    weights = [
        checkpoint.read_checkpoint(f / "checkpoints/last.ckpt")["state_dict"]
        for f in (first, folder)
    ]
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])
    configs = [yaml.safe_load((f / "config.yaml").read_text()) for f in (first, folder)]
    assert {k for k in configs[0] if configs[0][k] != configs[1][k]} == {"name", "outputs"}
    assert (now["overrides"], now["choices"]) == (then["overrides"], then["choices"])
    said = capsys.readouterr().out
    assert f"{len(then['metrics'])} of {len(then['metrics'])} numbers are bit for bit" in said
    assert "verdict    same" in (folder / "log.txt").read_text()


def test_what_changed_is_named(copy, first, tmp_path, capsys):
    """Another seed, one pixel of a mask, another library, an option that the run did not have, another place."""
    data = tmp_path / "moved"
    shutil.copytree(first.parent.parent / "data", data)
    file = data / "masks/2.png"
    pixels = np.array(Image.open(file))
    pixels[0, 0] = 1
    Image.fromarray(pixels).save(file)
    edit(
        copy / "config.yaml",
        seed=4,
        loader__rare_class_crops=None,
        data__root=str(tmp_path / "gone"),
    )
    edit(
        copy / "run.json",
        versions__torch="1.0",
        versions__old_library="7",
        environment__OMP_NUM_THREADS="64",
    )
    edit(copy / "run.json", hardware__threads=2)
    found, folder = again(copy, tmp_path, f"data.root={data}")
    assert found["verdict"] == "different"
    row = found["scores"]["best/val/dice"]
    assert row["difference"] == row["now"] - row["then"] != 0
    assert row["low"] is None  # with other masks there is no interval
    assert torch.get_num_threads() == 1  # as before; the run took two, as it had
    changes = whats(found)
    assert changes["seed"] == (3, 4) and changes["config.yaml: seed"] == (3, 4)
    assert changes["versions.torch"][0] == "1.0" and changes["versions.old_library"] == ("7", None)
    assert changes["environment.OMP_NUM_THREADS"][0] == "64"
    assert changes["data.root"] == (str(tmp_path / "gone"), str(data))
    assert (
        changes["data.masks"] == (None, "1 of other pixels: ['2']") and "data.images" not in changes
    )
    old, new = (read_json(f / "run.json")["data"]["fingerprint"] for f in (copy, folder))
    assert changes["data.fingerprint"] == (old, new) and old != new
    assert not {"split_hash", "source", "hardware.threads", "steps"} & set(changes)
    said = capsys.readouterr().out
    assert "changed    seed: 3 -> 4\n" in said and f"verdict    {found['verdict']}: " in said


METRICS = {"best/val/dice": 0.8, "test/dice": 0.7, "best/val/loss": 0.5, "best/val/dice/a": None}


def test_numbers_are_the_same_only_to_the_last_bit():
    assert overall_verdict(compare_scores(METRICS, dict(METRICS), {})) == "same"
    for name, value, verdict in (
        ("test/dice", math.nextafter(0.7, 1), "different"),
        ("best/val/loss", 0.4, "within noise"),  # Dice and IoU are the same
        ("best/val/dice/a", 0.1, "within noise"),
    ):
        scores = compare_scores(METRICS, METRICS | {name: value}, {})
        assert scores[name]["verdict"] == "different" and overall_verdict(scores) == verdict, name
    assert (
        overall_verdict(compare_scores(METRICS, METRICS | {"new": 1.0}, {})) == "same"
    )  # what both have
    gone = {k: v for k, v in METRICS.items() if k != "test/dice"}
    assert compare_scores(METRICS, gone, {})["test/dice"]["verdict"] == "only then"
    assert overall_verdict(compare_scores(METRICS, gone, {})) == "same"
    assert overall_verdict(compare_scores({}, {}, {})) == "different"


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(-0.1, 0.1, "within noise"), (-0.1, 0, "within noise"), (0.01, 0.1, "different"), (-0.2, -0.1, "different")],
)  # fmt: skip
def test_a_difference_is_noise_if_its_interval_includes_0(low, high, wanted):
    now = METRICS | {"test/dice": 0.71, "best/val/loss": 90.0}
    scores = compare_scores(METRICS, now, {"test/dice": (low, high)})
    assert scores["test/dice"]["verdict"] == wanted == overall_verdict(scores)
    assert scores["best/val/loss"]["verdict"] == "different"  # Dice and IoU decide
    unknown = compare_scores(METRICS, now, {})
    assert overall_verdict(unknown) == "different"


def test_the_interval_is_that_of_the_comparison_of_the_two_runs(first, copy):
    assert difference_intervals(first, first) == {
        f"best/val/{score}": (0, 0) for score in ("dice", "iou")
    }
    rows = (copy / "images.csv").read_text().splitlines()
    header = rows[0].split(",")
    hit = header.index("tp")
    for number, line in enumerate(rows[1:], 1):
        cells = line.split(",")
        cells[hit], cells[hit + 2] = "0", str(int(cells[hit]) + int(cells[hit + 2]))
        rows[number] = ",".join(cells)
    (copy / "images.csv").write_text("\n".join(rows) + "\n")  # nothing is found any more
    low, high = difference_intervals(first, copy)["best/val/dice"]
    assert low <= high < 0
    (copy / "images.csv").unlink()
    assert difference_intervals(first, copy) == {}


def test_new_and_removed_options_of_older_runs(copy):
    """A new option of a group is left to its constructor: loader.check is true in the file, false there."""
    file = copy / "config.yaml"
    edit(file, loader__check=None, model__fuse=None, metrics=None, two_class_logits=None)
    edit(file, future={"x": 1})
    past = load_finished_run(str(copy))
    config = upgrade_config(compose_checked("rerun", []), past)
    assert "check" not in config["loader"] and "fuse" not in config["model"]
    assert config["metrics"]["_target_"] == "seg.metrics.SegmentationMetrics"
    listed = {c.what: (c.then, c.now) for c in changed_leaves(past.config, config, "")}
    assert listed.pop("metrics")[0] is None
    assert listed == {"future": ({"x": 1}, None), "two_class_logits": (None, 1)}


def test_an_older_run_tells_less_and_that_is_said(copy, first):
    then = read_json(first / "run.json")
    older = {k: v for k, v in then.items() if k not in ("data", "source", "environment")}
    older["hardware"] = {"threads": 99}
    assert [c.what for c in changed_records(older, then)] == ["hardware.threads"]
    older["resumed"] = [{"command": []}, {"command": [], "versions": {}}]
    assert "the earlier run went on with other versions" in [
        c.now for c in changed_records(older, then)
    ]
    assert missing_records(older) == ["environment", "data", "source"]
    for name in ("overrides", "choices", "data", "source", "environment"):
        edit(copy / "run.json", **{name: None})
    assert load_finished_run(str(copy)).record.choices == {}


EVIL = {"_target_": "os.system", "command": "touch exploded"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": EVIL}, "os.system"),
        ({"trainer": EVIL}, "os.system"),
        ({"trainer__callbacks": [EVIL]}, "os.system"),
        ({"augment__transforms": [EVIL]}, "os.system"),
        ({"optim___target_": "seg.runs.reader.Path"}, "seg.runs.reader.Path"),
        ({"optim__lr": {"_target_": "builtins.eval", "_args_": ["1"]}}, "builtins.eval"),
        ({"data___target_": "evil_module.Data"}, "evil_module"),
        ({"loader___target_": "albumentations.Compose"}, "albumentations.Compose"),
        (
            {"schedule___target_": "seg.training.schedules.math.sin"},
            "seg.training.schedules.math.sin",
        ),
        ({"metrics___target_": "torchmetrics.Metric"}, "torchmetrics"),
        ({"surprise": EVIL}, "os.system"),
        ({"data__root": "${oc.env:HOME}"}, "interpolation"),
        ({"name": "${oc.env:HOME}"}, "interpolation"),
        ({"model": [1]}, "a group of options"),
        ({"seed": None}, "not a run's config"),
    ],
)
def test_a_strangers_config_is_refused_in_one_line_and_nothing_of_it_runs(
    copy, tmp_path, monkeypatch, changes, word
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('exploded', 'w')\nclass Data: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(copy / "config.yaml", **changes)
    with pytest.raises(RunError) as caught:
        rerun(compose_checked("rerun", [f"run={copy}"]))
    said = str(caught.value)
    assert word in said and "config.yaml" in said and "\n" not in said
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("!!python/object/apply:os.system ['touch exploded']", "ConstructorError"),
        ("[", "ParserError"),
        ("[" * 2000, "RecursionError"),
        ("- 1", "not a run's config"),
        ("\udcff", "UnicodeDecodeError"),
    ],
)
def test_a_config_that_is_no_plain_yaml_is_refused(copy, text, word):
    (copy / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=word) as caught:
        load_finished_run(str(copy))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "pruned"])
def test_a_run_that_did_not_finish_has_nothing_to_compare_with(copy, status):
    edit(copy / "run.json", status=status)
    with pytest.raises(RunError, match=f"status is {status}, so there are no numbers"):
        load_finished_run(str(copy))


def test_what_is_no_run_folder_is_told_so(copy, tmp_path):
    for run, word in ((None, "run is not set"), (str(tmp_path / "no"), "no such folder"),
                      (str(copy / "checkpoints"), "a run folder is needed")):  # fmt: skip
        with pytest.raises(RunError, match=word):
            load_finished_run(run)
    for damage in (
        {"metrics": {"best/val/dice": "high"}},
        {"metrics": [1]},
        {"seed": "0"},
        {"choices": [1]},
        {"hardware": {"threads": 10**9}},
        {"hardware": 1},
    ):
        other = Path(shutil.copytree(copy, tmp_path / "damaged", dirs_exist_ok=True))
        edit(other / "run.json", **damage)
        with pytest.raises(RunError, match=r"damaged.*not written by"):
            load_finished_run(str(other))
        shutil.copy(copy / "run.json", other)


@pytest.mark.slow
def test_an_option_that_is_gone_and_data_that_is_gone_are_told_before_anything_is_made(
    copy, tmp_path
):
    words = [f"run={copy}", f"outputs={tmp_path / 'o'}"]
    edit(copy / "config.yaml", data__root=str(tmp_path / "gone"))
    with pytest.raises(RunError, match=r"gone does not exist; .*data\.root="):
        rerun(compose_checked("rerun", words))
    edit(copy / "config.yaml", model__colour=3)
    with pytest.raises(UserError, match=r"made by another version.*model\.colour: no such option"):
        rerun(compose_checked("rerun", words))
    for word in ("threads=0", "threads=x"):
        with pytest.raises(UserError, match=word):
            rerun(compose_checked("rerun", [*words, word]))
    edit(copy / "config.yaml", model__colour=None, data__root=str(copy))
    assert not (tmp_path / "o").exists()


def seg(*words: str, place: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_the_command_exits_with_0_for_the_same_3_for_different_2_for_a_mistake(
    first, copy, tmp_path
):
    done = seg("seg.rerun", f"run={first}", place=tmp_path)
    assert done.returncode == 0 and "verdict    same" in done.stdout and done.stderr == ""
    edit(copy / "config.yaml", optim__lr=0.5)
    edit(copy / "run.json", **{"metrics__best/val/dice": 0.9})
    (copy / "images.csv").unlink()  # without it there is no interval
    done = seg("seg.rerun", f"run={copy}", place=tmp_path)
    assert (
        done.returncode == 3 and "changed    config.yaml: optim.lr: 0.003 -> 0.5\n" in done.stdout
    )
    done = seg("seg.rerun", "run=nothing", place=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = seg("seg.rerun", "-m", "run=a,b", place=tmp_path)
    assert done.returncode == 2 and "only seg.train sweeps" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["experiment=demo", "loader.crop=32", "threshold=best", "data.task=instances"],
        ["model=unetpp", "model.depth=2", "head_weights=[1,2]", "loss=sum", "loss.terms.cldice.weight=1",
         "loss.terms.bce.weight=1", "optim=sgd", "augment=strong", "schedule=poly"],
        ["model=unet_paper", "model.depth=2", "model.padding=valid", "loss=weight_map", "two_class_logits=2"],
        ["model=segnet", "metrics=full", "loader.rare_class_crops=0.5", "loader.percentiles=[1,99]", "optim=adam"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_whatever_was_composed_comes_out_again(tmp_path, words):
    made = [
        "data.size=64",
        "data.train=3",
        "data.val=2",
        "data.test=1",
        f"outputs={tmp_path}",
        "name=x",
    ]
    line = [w for w in TINY if "depth" not in w or not any("depth" in x for x in words)]
    line = [w for w in line if "model.depth" not in w or "segnet" not in words[0]]
    train(compose_checked("train", [*line, *made, *words]))
    found, _ = again((tmp_path / "latest").resolve(), tmp_path)
    assert found["verdict"] == "same" and found["changes"] == []


@pytest.mark.slow
def test_the_jobs_of_a_sweep_come_out_again(tmp_path):
    made = ["data.size=64", "data.train=3", "data.val=2", "data.test=0"]
    done = seg("seg.train", "-m", *TINY, *made, "seed=0,1", "loss=dice,bce", place=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = [
        f.parent
        for f in tmp_path.glob("outputs/sweeps/*/*/run.json")
        if not f.parent.parent.is_symlink()
    ]
    assert len(jobs) == 4
    job = next(j for j in jobs if read_json(j / "run.json")["seed"] == 1)
    found, _ = again(job, tmp_path)
    assert found["verdict"] == "same"


@pytest.mark.slow
def test_numbers_do_not_depend_on_hash_seed_folder_or_workers(tmp_path):
    made = [
        *TINY,
        "data.size=64",
        "data.train=4",
        "data.val=2",
        "data.test=1",
        "augment=strong",
        "name=x",
    ]
    metrics = []
    for place, hashes, workers in (("a", "0", 0), ("b/c", "1", 2), ("d", "random", 1)):
        (tmp_path / place).mkdir(parents=True)
        line = [*made, f"loader.workers={workers}"]
        done = seg(
            "seg.train", *line, place=tmp_path / place, PYTHONHASHSEED=hashes, OMP_NUM_THREADS="1"
        )
        assert done.returncode == 0, done.stderr
        metrics.append(read_json(tmp_path / place / "outputs/latest/run.json")["metrics"])
    assert metrics[0] == metrics[1] == metrics[2] and len(metrics[0]) > 20
