"""A whole cross-validation and its ensemble, against sums done by hand."""

import gc
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_runs import FOLDED, config, folded_run, make_images
from torch import nn

from seg import files
from seg.commands.crossval import crossval
from seg.commands.evaluate import evaluate
from seg.crossval import main
from seg.data.normalization import Normalization
from seg.errors import DataError, RunError, UserError
from seg.inference import ensemble
from seg.inference.ensemble import Ensemble
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.inference.tiling import Tiling, check_tiles
from seg.logits import probabilities
from seg.metrics.risk_control import THRESHOLDS
from seg.metrics.significance import bootstrap_interval
from seg.models import FCN, SegNet, UNet
from seg.models.contract import needed_context, same_size_logits, tile_stride
from seg.multirun import crossval as training
from seg.multirun import folds
from seg.multirun.crossval import fold_config, mean_and_sd
from seg.runs import load, workers
from seg.runs.load import LoadedRun
from seg.runs.records import write_json
from seg.training import init_weights
from seg.training.run import train
from seg.training.task import SegmentationTask


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def cv(data, tmp_path_factory):
    """Three folds and a test split, with thresholds of their own and objects; read only."""
    output = tmp_path_factory.mktemp("cv") / "cv"
    words = ["data.test=0.25", "data.task=instances", "threshold=best", "loader.batch_size=2"]
    assert crossval(config("crossval", *folded_run(data, output, *words)))["status"] == "finished"
    return output


def by_hand(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Probabilities (2, H, W) of a network of one logit, by its formula."""
    scaled = image.astype(np.float32)[..., None] / np.float32(255)
    x = (scaled - np.float32(run.intensity.mean)) / np.float32(run.intensity.std)
    with torch.no_grad():
        logit = run.model(torch.from_numpy(x.transpose(2, 0, 1))[None])[0, 0].double().numpy()
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p])


def grey(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


def test_each_image_is_predicted_by_the_one_network_that_did_not_train_on_it(cv, data):
    record = read(cv / "crossval.json")
    assert len(record["images"]) == 6 and sorted(record["images"].values()) == [0, 0, 1, 1, 2, 2]
    for name, fold in record["images"].items():
        folder = cv / record["folds"][fold]["run"]
        splits = read(folder / "run.json")["splits"]
        assert name in splits["val"] and name not in splits["train"] + splits["test"]
        run = load.load_run(folder)
        wanted = by_hand(run, grey(data / f"images/{name}.png"))
        p = tifffile.imread(cv / f"out-of-fold/probabilities/{name}.tif")
        assert p.dtype == np.float32
        np.testing.assert_allclose(p, wanted, atol=1e-5)
        mask = grey(cv / f"out-of-fold/masks/{name}.png")
        np.testing.assert_array_equal(mask, p[1] > run.threshold)
    assert len(list((cv / "out-of-fold/masks").iterdir())) == 6


def test_pooled_scores_are_those_of_the_saved_masks(cv, data):
    record = read(cv / "crossval.json")
    rows = []
    for name in record["images"]:
        truth = grey(data / f"masks/{name}.png")
        found = grey(cv / f"out-of-fold/masks/{name}.png")
        rows.append([[((truth == t) & (found == f)).sum() for f in (0, 1)] for t in (0, 1)])
    counts, pooled = np.array(rows), record["pooled"]
    np.testing.assert_array_equal(np.load(cv / "confusion.npz")["pooled"], counts)
    assert pooled["images"] == 6
    (rest, false), (missed, hit) = counts.sum(0)
    inner, outer = 2 * hit / (2 * hit + false + missed), 2 * rest / (2 * rest + false + missed)
    assert pooled["metrics"]["dice/in"] == pytest.approx(inner)
    assert pooled["metrics"]["dice"] == pytest.approx((inner + outer) / 2)
    assert pooled["metrics"]["iou/in"] == pytest.approx(hit / (hit + false + missed))
    hits = np.stack([counts[:, 1, 1], counts[:, 0, 1] + counts[:, 1, 0]], axis=1)
    low, high = bootstrap_interval(hits, lambda s: 2 * s[:, 0] / (2 * s[:, 0] + s[:, 1]))[1:3]
    assert pooled["intervals"]["dice/in"] == pytest.approx([low, high])


def test_folds_are_told_as_their_runs_and_evaluate_tell_them_with_mean_and_sd(cv, tmp_path):
    record = read(cv / "crossval.json")
    for fold, told in enumerate(record["folds"]):
        assert told["fold"] == fold and told["images"] == 2
        run = read(cv / told["run"] / "run.json")
        assert told["split_hash"] == run["split_hash"] == record["split_hashes"][fold]
        assert told["threshold"] == run["threshold"]
        again = evaluate(
            config("evaluate", f"run={cv / told['run']}", f"output={tmp_path / str(fold)}", "panels=0")
        )  # fmt: skip
        for key in ("val/dice/in", "val/iou", "val/v_rand", "val/object_f1", "val/pq"):
            if not math.isnan(again[key]):
                assert told["metrics"][key] == pytest.approx(again[key], abs=1e-6), key
        assert told["metrics"]["test/dice"] == run["metrics"]["test/dice"]
    for key in ("val/dice", "val/v_rand", "test/dice/in"):
        values = [told["metrics"][key] for told in record["folds"]]
        assert record["mean"][key] == pytest.approx(statistics.mean(values))
        assert (
            record["sd"][key] == pytest.approx(statistics.stdev(values)) and record["sd"][key] > 0
        )


def test_what_a_fold_lacks_is_left_out_of_mean_and_sd():
    mean, sd = mean_and_sd([{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0}, {"a": 8.0}])
    assert mean == {"a": 4.0, "b": 5.0} and sd["a"] == pytest.approx(math.sqrt(13))
    assert math.isnan(sd["b"])


def test_predict_gives_the_mean_of_the_folds_probabilities_above_the_mean_threshold(
    cv, data, tmp_path
):
    words = [f"run={cv}", f"input={data / 'images'}", f"output={tmp_path}"]
    predict_files(config("predict", *words, "save=[masks,probabilities]"))
    record = read(cv / "crossval.json")
    members = [load.load_run(cv / fold["run"]) for fold in record["folds"]]
    assert len({member.threshold for member in members}) > 1  # or the mean would show nothing
    threshold = statistics.mean(member.threshold for member in members)
    assert record["test"]["threshold"] == pytest.approx(threshold)
    for file in (data / "images").iterdir():
        wanted = np.mean([by_hand(member, grey(file)) for member in members], axis=0)
        p = tifffile.imread(tmp_path / f"probabilities/{file.stem}.tif")
        np.testing.assert_allclose(p, wanted, atol=1e-5)
        np.testing.assert_array_equal(grey(tmp_path / f"masks/{file.name}"), p[1] > threshold)


def test_evaluate_scores_the_ensemble_on_the_test_split_and_refuses_what_trained_it(
    cv, data, tmp_path
):
    record = read(cv / "crossval.json")
    words = [f"run={cv}", "panels=0", f"output={tmp_path / 'e'}"]
    scores = evaluate(config("evaluate", *words, "data.split=test"))
    for key, value in record["test"]["metrics"].items():
        assert scores[f"test/{key}"] == pytest.approx(value, abs=1e-6), key
    test = read(cv / record["folds"][0]["run"] / "run.json")["splits"]["test"]
    assert read(tmp_path / "e/metrics.json")["images"] == test and record["test"]["images"] == 2
    assert not set(test) & set(record["images"])
    shutil.rmtree(tmp_path / "e")
    for split, count in (("val", 2), ("train", 4)):
        with pytest.raises(UserError, match=rf"data.split={split}: {count} of its {count} images trained.*crossval.json"):  # fmt: skip
            evaluate(config("evaluate", *words, f"data.split={split}"))
    with pytest.raises(
        UserError, match=r"images trained a member"
    ):  # the same images by another draw
        evaluate(config("evaluate", *words, "data.split=test", "+data.split_seed=5"))
    assert not (tmp_path / "e").exists()
    other = make_images(tmp_path / "other")  # other files of the names that trained
    for name in test:
        (other / f"images/{name}.png").unlink()
        (other / f"masks/{name}.png").unlink()
    found = ["data=folder", f"data.root={other}", "data.classes=[out,in]"]
    assert 0 <= evaluate(config("evaluate", *words, *found))["all/dice"] <= 1
    assert len(read(tmp_path / "e/metrics.json")["images"]) == 6


def test_the_table_shows_folds_spread_pooled_scores_and_what_to_do_next(cv, data, capsys):
    words = ["data.test=0.25", "data.task=instances", "threshold=best", "loader.batch_size=2"]
    before = (cv / "crossval.json").stat()
    crossval(config("crossval", *folded_run(data, cv, *words, "loader.workers=1")))  # all is there
    after, out = (cv / "crossval.json").stat(), capsys.readouterr().out
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    record = read(cv / "crossval.json")
    assert "is finished: nothing is trained" in out and "6 images" in out
    for value in (*(f["metrics"]["val/dice"] for f in record["folds"]), record["mean"]["val/dice"],
                  record["sd"]["val/v_rand"], record["pooled"]["metrics"]["dice/in"],
                  record["test"]["metrics"]["dice"]):  # fmt: skip
        assert f"{value:.4f}" in out
    assert f"predict run={cv} input=" in out and f"evaluate run={cv} data.split=test" in out
    assert "checkpoint and threshold, the scores are slightly optimistic" in out
    assert max(map(len, out.split("next")[0].split("intervals:")[0].splitlines())) <= 100
    assert "pooled" in (cv / "log.txt").read_text()


def test_a_bound_is_kept_over_the_out_of_fold_images_and_by_the_ensemble(data, tmp_path, capsys):
    output = tmp_path / "cv"
    words = ["data.test=0.25", "loader.batch_size=2", "threshold=missed:0.3"]
    crossval(config("crossval", *folded_run(data, output, *words)))
    record, out = read(output / "crossval.json"), capsys.readouterr().out
    promise, missed = record["promise"], []
    for name in record["images"]:
        p = tifffile.imread(output / f"out-of-fold/probabilities/{name}.tif")[1]
        truth = grey(data / f"masks/{name}.png")
        missed.append((p[truth == 1][:, None] <= THRESHOLDS).mean(0))
        found = grey(output / f"out-of-fold/masks/{name}.png")
        np.testing.assert_array_equal(found, p > promise["threshold"])
    held = np.flatnonzero((np.sum(missed, 0) + 1) / 7 <= 0.3)
    assert promise["threshold"] == THRESHOLDS[held[-1]] != 0.5
    assert promise["calibrated_on"] == "out-of-fold" and promise["images"] == 6
    assert [fold["threshold"] for fold in record["folds"]] == [0.5] * 3
    assert record["pooled"]["metrics"]["recall/in"] == pytest.approx(promise["scores"]["recall"])
    assert record["test"]["threshold"] == promise["threshold"]
    assert (
        "at most 30 % of an image's in is missed" in out and "not proven for their ensemble" in out
    )
    run = ensemble.load_members(str(output))
    assert run.threshold == promise["threshold"] and run.promise.alpha == 0.3
    predict_files(config("predict", f"run={output}", f"input={data / 'images'}", f"output={tmp_path / 'p'}", "save=[masks]"))  # fmt: skip
    assert "not proven for their ensemble" in capsys.readouterr().out
    write_json(output / "crossval.json", record | {"promise": promise | {"threshold": 2}})
    with pytest.raises(RunError, match="its promise is damaged"):
        ensemble.load_members(str(output))
    with pytest.raises(
        UserError, match=r"missed:0.1: needs 9 images \(1 / 0.1 - 1\), and 6 choose"
    ):
        words[-1] = "threshold=missed:0.1"
        crossval(config("crossval", *folded_run(data, tmp_path / "x", *words)))
    assert not list((tmp_path / "x").glob("*fold*"))


@pytest.mark.slow
def test_a_repeated_command_keeps_what_is_finished(data, tmp_path, monkeypatch, capsys):
    output, alive = tmp_path / "cv", []
    cfg = config("crossval", *folded_run(data, output, "save=[masks]", "data.folds=2"))

    def failing(own):
        alive.append(sum(type(o) is SegmentationTask for o in gc.get_objects()))
        if own.data.fold == 1:
            monkeypatch.setattr("seg.training.fit.score_best_checkpoint", broken)
        return train(own)

    def broken(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "train", failing)
    gc.collect()  # other tests' tasks
    with pytest.raises(RuntimeError, match="out of memory"):
        crossval(cfg)
    assert "the same command continues from here" in capsys.readouterr().out
    assert alive == [alive[0]] * 2  # nothing of fold 0 is held while fold 1 trains
    assert read(output / "crossval.json")["status"] == "running"
    assert not (output / "out-of-fold").exists()
    with pytest.raises(RunError, match=r"crossval.json: not finished; the command that began it"):
        ensemble.load_members(str(output))
    (first,), (second,) = (list(output.glob(f"*-fold-{i}")) for i in (0, 1))
    assert read(second / "run.json")["status"] == "failed"
    files = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.rglob("*")}
    monkeypatch.undo()
    record = crossval(cfg)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.rglob("*")} == files
    out = capsys.readouterr().out
    assert "fold 0     is finished and kept" in out and "fold 1     was not finished" in out
    (second,) = output.glob("*-fold-1")
    assert [fold["run"] for fold in record["folds"]] == [first.name, second.name]
    assert read(second / "run.json")["status"] == "finished"
    assert len(list((output / "out-of-fold/masks").iterdir())) == 8
    assert [p.name for p in (output / "out-of-fold").iterdir()] == ["masks"]
    assert {p.name for p in output.glob(".*")} == {".lock"}  # nothing half written
    for words, message in (
        (
            ["model.width=3"],
            "begun with model.width=2, and this is model.width=3; repeat the command",
        ),
        (["seed=5"], "begun with seed=0, and this is seed=5"),
        (["name=x"], "begun with name=null, and this is name=x"),
        (
            ["model=unetpp"],
            r"begun with model._target_=seg.models.UNet, .*and this is .*\([0-9]+ more differ",
        ),
        (["data.split_seed=1"], "begun with data.split_seed=0"),
    ):
        with pytest.raises(UserError, match=message):
            crossval(config("crossval", *folded_run(data, output, "data.folds=2", *words)))
    # what only judges is made anew, from the same networks
    monkeypatch.setattr(training, "train", broken)
    overlays = crossval(
        config(
            "crossval",
            *folded_run(data, output, "save=[overlays]", "data.folds=2", "confidence_level=0"),
        )
    )
    assert overlays["folds"] == record["folds"] and overlays["pooled"]["intervals"] == {}
    assert overlays["pooled"]["metrics"] == record["pooled"]["metrics"]
    assert [p.name for p in (output / "out-of-fold").iterdir()] == ["overlays"]


def test_images_that_changed_since_are_refused(tmp_path):
    root, output = make_images(tmp_path / "d", 4), tmp_path / "cv"
    cfg = config("crossval", *folded_run(root, output))
    output.mkdir()
    folds.open_record(cfg, folds.plan_folds(cfg), output)
    assert (
        folds.open_record(cfg, folds.plan_folds(cfg), output)["status"] == "running"
    )  # the same: no refusal
    shutil.copy(root / "images/0.png", root / "images/new.png")
    shutil.copy(root / "masks/0.png", root / "masks/new.png")
    with pytest.raises(UserError, match="begun with other images"):
        folds.open_record(cfg, folds.plan_folds(cfg), output)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"train": ["c"], "val": ["a/b"]}, {"train": ["a/b"], "val": ["c"]}, None),
        ({"train": ["d"], "val": ["a"]}, {"train": ["a"], "val": ["c"]}, r"data.fold=0: its training"),
        ({"train": ["c"], "val": ["a"]}, {"train": ["c"], "val": ["c"]}, r"data.fold=1: its training"),
        (
            {"train": ["c"], "val": ["a"], "test": ["d"]},
            {"train": ["a"], "val": ["c"], "test": ["e"]},
            r"data.fold=1: its training",
        ),
        ({"train": ["a__b"], "val": ["a/b"]}, {"train": ["a/b"], "val": ["a__b"]}, "would share a file"),
    ],
)  # fmt: skip
def test_folds_must_part_the_images_into_files_of_their_own(
    data, monkeypatch, first, second, message
):
    splits = [first, second]
    monkeypatch.setattr(folds, "open_fold", lambda cfg, fold: SimpleNamespace(splits=splits[fold]))
    cfg = config("crossval", *folded_run(data, Path("o"), "data.folds=2"))
    if message is None:
        assert folds.plan_folds(cfg).fold_of == {"a/b": 0, "c": 1}
    else:
        with pytest.raises(UserError, match=message):
            folds.plan_folds(cfg)


HELD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    "print('held', flush=True); sys.stdin.read()"
)


def test_folds_of_another_worker_are_left_to_it_until_it_dies(data, tmp_path, monkeypatch, capsys):
    output, trained = tmp_path / "cv", []
    cfg = config("crossval", *folded_run(data, output))
    plan = folds.plan_folds(cfg)
    folds.open_record(cfg, plan, files.make_folder(output, output))

    def made(own):  # a run without a training
        trained.append(own.data.fold)
        (output / own.name).mkdir()
        facts = {"status": "finished", "name": own.name, "split_hash": plan.hashes[own.data.fold]}
        write_json(output / own.name / "run.json", facts)

    monkeypatch.setattr(training, "train", made)
    monkeypatch.setattr(
        "seg.commands.crossval.score_folds",
        lambda cfg, plan, runs, output: {"folds": [*map(str, runs)]},
    )
    monkeypatch.setattr("seg.commands.crossval.print_crossval", lambda *args: None)
    with subprocess.Popen(
        [sys.executable, "-c", HELD, output / ".fold-0.lock"], stdin=-1, stdout=-1, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"

        def end(seconds: float) -> None:
            assert trained == [1, 2]
            other.kill()
            other.wait()

        monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=end))
        record = crossval(cfg)
    assert trained == [1, 2, 0] and record["status"] == "finished"
    assert "other workers have 1 of the folds; waiting for them" in capsys.readouterr().out
    assert record["folds"] == [str(output / f"fold-{i}") for i in range(3)]
    assert {p.name for p in output.glob(".*")} == {".lock"}
    # What failed is still held, and its locks are released
    shutil.rmtree(output / "fold-1")
    monkeypatch.setattr(training, "train", lambda own: None)
    with pytest.raises(RunError, match="its run fold-1 is gone") as failed:
        crossval(cfg)
    held = [sys.executable, "-c", HELD, output / ".fold-1.lock"]
    assert subprocess.run(held, input="", text=True, capture_output=True, timeout=20).stdout and failed.tb  # fmt: skip


@pytest.mark.slow
def test_three_workers_train_each_fold_once_though_one_is_killed(data, tmp_path):
    words = ["data.folds=4", "save=[masks]"]
    crossval(config("crossval", *folded_run(data, tmp_path / "one", *words)))
    output, places = tmp_path / "cv", [tmp_path / str(i) for i in range(3)]

    def work(place: Path) -> int:
        place.mkdir()

        def call() -> None:
            monkey = pytest.MonkeyPatch()
            if place.name == "0":  # stands still in its first fold
                monkey.setattr(training, "train", lambda own: (train(own), time.sleep(300)))
            crossval(config("crossval", *folded_run(data, output, *words)))

        return forked.forked(call, place, gib=6, seconds=200)

    def runs() -> dict[str, str]:
        found = output.glob("*-fold-*/run.json")
        return {f.parent.name[20:]: read(f)["status"] for f in found}

    first = work(places[0])
    wait_until(lambda: runs() == {"fold-0": "finished"})
    (file,) = output.glob("*-fold-0/run.json")
    file.write_text(file.read_text().replace('"finished"', '"running"'))  # as if it still trained
    others = [work(place) for place in places[1:]]
    wait_until(lambda: list(runs().values()).count("finished") == 3)
    wait_until(lambda: all("waiting for" in Path(f"{p}.out").read_text() for p in places[1:]))
    os.kill(first, signal.SIGKILL)
    forked.ended(first, places[0], 60)
    ends = [
        forked.ended(process, place, 300) for process, place in zip(others, places[1:], strict=True)
    ]
    assert [end.code for end in ends] == [0, 0], ends
    said = "".join(end.out for end in ends)
    assert sorted(re.findall(r"fold (\d)     of 0 to 3", said)) == ["0", "1", "2", "3"]
    assert runs() == {f"fold-{i}": "finished" for i in range(4)}
    one, many = (read(folder / "crossval.json") for folder in (tmp_path / "one", output))
    for part in ("mean", "sd", "pooled"):
        if part == "pooled":
            assert many[part] == one[part]
        else:
            assert many[part] == pytest.approx(one[part], nan_ok=True)
    for mask in (tmp_path / "one/out-of-fold/masks").iterdir():
        assert (output / "out-of-fold/masks" / mask.name).read_bytes() == mask.read_bytes()


def wait_until(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fold_is_trained_as_seg_train_would_in_a_group_of_its_own(data, tmp_path):
    words = ["logger=wandb", "trainer.devices=auto", "save=[overlays]"]
    cfg = config("crossval", *folded_run(data, tmp_path / "cv", *words))
    own = fold_config(cfg, folds.plan_folds(cfg), 2)
    alone = config("train", *FOLDED, "logger=wandb")
    assert set(own) == set(alone)
    assert (own.data.fold, own.name, own.outputs) == (2, "fold-2", str(tmp_path / "cv"))
    assert own.logger.wandb.group == "cv" and own.trainer.devices == 1
    named = config("crossval", *folded_run(data, tmp_path / "cv", *words, "name=mine"))
    own = fold_config(named, folds.plan_folds(named), 1)
    assert own.name == "mine-fold-1" and own.logger.wandb.group == "mine"
    given = config("crossval", *folded_run(data, tmp_path / "cv", *words, "logger.wandb.group=g"))
    assert fold_config(given, folds.plan_folds(given), 0).logger.wandb.group == "g"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["outputs=elsewhere"], "outputs=elsewhere: the folds' runs are written below output"),
        (["data.folds=1"], r"data.folds=1: 2 or more are needed"),
        (["data.folds=20"], r"data.folds=20 needs more"),
        (
            ["trainer.devices=2"],
            r"trainer.devices=2 trainer.num_nodes=1: the folds train one after",
        ),
        (["trainer.num_nodes=2"], r"num_nodes=2: the folds train one after"),
        (["save=[pictures]"], r"save=\['pictures'\]: choose from masks"),
        (["objects.min_size=0"], r"objects: .*min_size=0"),
    ],
)
def test_what_can_not_be_is_told_before_anything_is_made(data, tmp_path, words, message):
    with pytest.raises((UserError, DataError), match=message):
        crossval(config("crossval", *folded_run(data, tmp_path / "cv", *words)))
    assert not (tmp_path / "cv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.fold=1"], r"data.fold=1: every fold is trained"),
        (["data=membranes"], r"data.folds: Membranes has no such option; .* as data=folder"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    source = [] if words == ["data=membranes"] else ["data=isbi2012", f"data.root={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["crossval", *words, *source])
    with pytest.raises(SystemExit) as left:
        main()
    err = capsys.readouterr().err
    assert left.value.code == 2 and re.fullmatch(f"error: {message}.*\n", err), err
    assert not (tmp_path / "outputs/crossval").exists()


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else; give a new folder"):
        crossval(config("crossval", *folded_run(data, tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        crossval(config("crossval", *folded_run(data, tmp_path / "file")))
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../other", "/absolute", "link", "x/../../other"])
def test_a_crossval_json_that_names_a_run_elsewhere_is_refused(cv, tmp_path, name, monkeypatch):
    record = read(cv / "crossval.json")
    shutil.copytree(cv / record["folds"][0]["run"], tmp_path / "other")
    folder = tmp_path / "cv"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "other")
    given = str(tmp_path / "other") if name == "/absolute" else name
    (folder / "crossval.json").write_text(
        json.dumps(record | {"folds": [record["folds"][0] | {"run": given}]})
    )
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("was read"))
    with pytest.raises(RunError, match="which lies outside its folder"):
        ensemble.load_members(str(folder))


def test_an_unfinished_crossval_json_is_no_ensemble(cv, tmp_path):
    record = read(cv / "crossval.json") | {"status": "running"}
    (tmp_path / "crossval.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"crossval.json: not finished"):
        ensemble.load_members(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"status": "finished", "images": {}, "folds": 3}']
)
def test_a_damaged_crossval_json_is_told(tmp_path, text):
    (tmp_path / "crossval.json").write_text(text)
    with pytest.raises(RunError, match=r"crossval.json"):
        ensemble.load_members(str(tmp_path))


def test_commands_for_one_network_say_that_this_is_several(cv):
    message = r"a cross-validation, which is several networks; only seg.predict and seg.evaluate"
    with pytest.raises(RunError, match=f"run=.*{message}.*give one of them, run=.*-fold-0"):
        compare_depths(config("prune", f"run={cv}"))
    with pytest.raises(RunError, match=f"init=.*{message}"):
        init_weights.load_initial_weights(UNet(1, 1, 2), str(cv))


def test_a_list_of_runs_is_an_ensemble_in_predict_and_evaluate(cv, data, tmp_path):
    record = read(cv / "crossval.json")
    pair = [cv / fold["run"] for fold in record["folds"][:2]]
    words = f"run=[{pair[0]},{pair[1]}]"
    image = data / "images/3.png"
    predict_files(
        config("predict", words, f"input={image}", f"output={tmp_path}", "save=[probabilities]")
    )
    wanted = np.mean([by_hand(load.load_run(run), grey(image)) for run in pair], axis=0)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "probabilities/3.tif"), wanted, atol=1e-6)
    with pytest.raises(UserError, match="output is not set: several runs"):
        evaluate(config("evaluate", words, "data.split=test"))
    with pytest.raises(
        UserError, match=r"2 of its 2 images trained a member of this ensemble; give"
    ):
        evaluate(config("evaluate", words, f"output={tmp_path / 'e'}"))
    with pytest.raises(RunError, match=r"run=\[\]: give at least one run"):
        ensemble.load_members([])


def run_of(name: str, **changes) -> LoadedRun:
    facts = {
        "checkpoint": Path(name), "folder": Path("."), "model": UNet(1, 1, 2, 1), "classes": ["a", "b"],
        "config": {"model": {"num_classes": 1}}, "colors": [], "intensity": Normalization(0, 255, [0.5], [0.2]),
    }  # fmt: skip
    return LoadedRun(**facts | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "c"]}, r"classes \['a', 'b'\] and \['a', 'c'\]"),
        ({"intensity": Normalization(0, 1, [0] * 3, [1] * 3)}, "channels 1 and 3"),
        ({"task": "instances"}, "task classes and instances"),
        ({"config": {"model": {"num_classes": 2}}}, "logits 1 and 2"),
    ],
)
def test_runs_that_do_not_fit_together_are_both_named(changes, message):
    with pytest.raises(RunError, match=f"one.ckpt and two.ckpt make no ensemble: {message}"):
        ensemble.join_members(
            [run_of("one.ckpt"), run_of("one.ckpt"), run_of("two.ckpt", **changes)],
            Path("x"), Path("."), set(),
        )  # fmt: skip


class Fixed(nn.Module):
    """Logits that are its input times a number for each channel."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = torch.tensor(factors).reshape(1, -1, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.factors


SIGMOID = (lambda x: np.stack([1 - 1 / (1 + np.exp(-x[0])), 1 / (1 + np.exp(-x[0]))]), 1, False)
SOFTMAX = (lambda x: np.exp(x) / np.exp(x).sum(0), 3, False)
SIGMOIDS = (lambda x: 1 / (1 + np.exp(-x)), 2, True)


@pytest.mark.parametrize(("formula", "channels", "overlapping"), [SIGMOID, SOFTMAX, SIGMOIDS])
def test_the_logits_of_an_ensemble_are_those_of_the_mean_of_probabilities(
    formula, channels, overlapping
):
    rng = np.random.default_rng(0)
    factors = rng.normal(0, 3, (3, channels))
    one = Normalization(0.0, 1.0, [0.0] * channels, [1.0] * channels)
    image = rng.normal(0, 2, (channels, 5, 7))
    wanted = np.mean([formula(f[:, None, None] * image) for f in factors], axis=0)
    model = Ensemble([Fixed(f.tolist()) for f in factors], [one] * 3, overlapping)
    logits = model(torch.from_numpy(image).float()[None])
    assert logits.shape == (1, channels, 5, 7)
    np.testing.assert_allclose(probabilities(logits, overlapping)[0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("clip", [False, True])
def test_each_member_gets_bit_for_bit_what_it_gets_alone(kind, clip):
    rng = np.random.default_rng(1)
    image = rng.normal(120, 40, (9, 8, 3)).clip(0, 250).astype(kind)
    members = [
        Normalization(0.0, 255.0, [0.1, 0.4, 0.7], [0.2, 0.3, 0.15], clip),
        Normalization(31.7, 188.2, [0.3, 0.6, 0.2], [0.5, 0.01, 0.7], clip),
        Normalization(3.0, 3.0, [0.0, 0.1, 0.2], [1.0, 1.0, 1.0], clip),
    ]
    model = Ensemble([Fixed([1.0])] * 3, members)
    reference = model.intensity
    given = torch.from_numpy(reference.normalised(reference.scaled(image)).transpose(2, 0, 1))[None]
    for number, own in enumerate(members):
        alone = own.normalised(own.scaled(image)).transpose(2, 0, 1)
        np.testing.assert_array_equal(model.normalised(given, number)[0].numpy(), alone)


def test_members_of_other_geometry_share_the_coarsest_grid_and_the_largest_context():
    torch.manual_seed(0)
    own = [Normalization(0, 255, [0.2], [0.1]), Normalization(0, 255, [0.6], [0.3]), Normalization(9, 99, [0.5], [0.2])]  # fmt: skip
    valid = UNet(1, 1, 2, 2, padding="valid", norm="none")
    model = Ensemble([valid, UNet(1, 1, 2, 6, norm="none"), UNet(1, 1, 2, 1, norm="none")], own)
    assert tile_stride(model) == 64 and needed_context(model) == valid.context == 20
    assert (
        tile_stride(Ensemble([FCN(1, 1, width=2, stride=8), SegNet(1, 1, width=2)], own[:2])) == 32
    )
    with pytest.raises(ValueError, match="multiples of 64 px"):
        check_tiles(model, 96, 32)
    deep = Ensemble([UNet(1, 1, 2, 4, padding="valid"), valid], own[:2])
    with pytest.raises(ValueError, match=r"needs 92 px of context; take overlap=96"):
        check_tiles(deep, 256, 64)
    image = np.random.default_rng(0).integers(0, 255, (70, 53, 1), np.uint8)
    reference = model.intensity
    together = Tiling(model.eval(), lambda i: reference.normalised(reference.scaled(i)), 192, 64).whole(image)  # fmt: skip
    alone = [
        Tiling(member, lambda i, own=own: own.normalised(own.scaled(i))).whole(image)
        for member, own in zip(model.members, own, strict=True)
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)
    small = Ensemble([valid, UNet(1, 1, 2, 1, norm="none")], own[:2]).eval()
    raw = np.random.default_rng(0).integers(0, 255, (200, 150, 1), np.uint8)
    tiled = Tiling(small, lambda i: i.astype(np.float32), 96, 32).whole(raw)
    with torch.no_grad():
        whole = same_size_logits(small, torch.from_numpy(raw).float().permute(2, 0, 1)[None])
    np.testing.assert_allclose(tiled, probabilities(whole)[0].numpy(), atol=1e-5)


def test_classes_that_overlap_are_cross_validated_too(planes_root, tmp_path):
    words = [w for w in FOLDED if not w.startswith("data.")]
    own = ["data.task=overlapping", "data.classes=[first,second]", "data.ignore=[7]", "data.folds=2"]  # fmt: skip
    record = crossval(
        config("crossval", *words, *own, f"data.root={planes_root}", f"output={tmp_path / 'cv'}")
    )
    masks = {n: tifffile.imread(tmp_path / f"cv/out-of-fold/masks/{n}.tif") for n in record["images"]}  # fmt: skip
    hit = false = missed = 0
    for name, mask in masks.items():
        truth = tifffile.imread(planes_root / f"masks/{name}.tif")[1]
        hit += ((truth == 1) & (mask[1] == 1)).sum()
        false += ((truth == 0) & (mask[1] == 1)).sum()
        missed += ((truth == 1) & (mask[1] == 0)).sum()
    assert record["pooled"]["metrics"]["dice/second"] == pytest.approx(2 * hit / (2 * hit + false + missed))  # fmt: skip
    assert len(masks) == 6 and ensemble.load_members(str(tmp_path / "cv")).overlapping


def test_names_with_folders_get_files_of_their_own():
    assert str(folds.prediction_file("a/b.c")) == "a__b.c.png" and os.sep not in str(
        folds.prediction_file("../../x")
    )


@pytest.mark.parametrize(
    "damage", [{"fold": "0"}, {"fold": None}, {"metrics": {"val/dice": "0.5"}}]
)
def test_a_damaged_fold_in_a_finished_record_is_named(damage):
    fold = {"fold": 0, "metrics": {"val/dice": 0.5}}
    record = {"mean": {"val/dice": 0.5}, "sd": {"val/dice": None}, "classes": ["a", "b"], "folds": [fold],
              "pooled": {"metrics": {"dice": 0.5}, "intervals": {}, "images": 4}}  # fmt: skip
    folds.check_scores(record, Path("crossval.json"))
    with pytest.raises(RunError, match=r"crossval\.json: its scores are damaged"):
        folds.check_scores(record | {"folds": [fold | damage]}, Path("crossval.json"))
    with pytest.raises(RunError, match=r"crossval\.json: damaged \(KeyError"):
        folds.check_scores(record | {"folds": [{"metrics": {}}]}, Path("crossval.json"))
