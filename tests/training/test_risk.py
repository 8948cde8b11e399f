"""A threshold that bounds a risk, from training to prediction, against sums done by hand."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from omegaconf import OmegaConf
from PIL import Image
from small_runs import config, tiny

import seg
from seg.cli.compose import instantiate_node
from seg.commands.evaluate import evaluate
from seg.errors import RunError, UserError
from seg.inference import ensemble
from seg.inference.export_facts import describe_run
from seg.inference.file_prediction import predict_files
from seg.metrics.risk_control import THRESHOLDS, RiskBound, image_losses
from seg.runs import checkpoint, load
from seg.training.risk import check_risk_bound, choose_risk_threshold


def test_the_threshold_that_keeps_a_bound_is_kept_with_what_it_promises(tmp_path, capsys):
    words = ["threshold=missed:0.3", "trainer.max_epochs=1", "loss=weighted_bce", "data.val=4"]
    scores, folder = tiny(tmp_path, *words)
    out = capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    run, promise = load.load_run(folder), record["promise"]
    assert run.threshold == record["threshold"] == promise["threshold"] != 0.5
    last = load.load_run(folder / "checkpoints/last.ckpt")
    assert run.threshold == last.threshold
    pair = ensemble.load_members([str(folder), str(folder)])
    assert run.promise is not None and last.promise is None and pair.promise is None
    # The largest threshold at which (missed shares + 1) / (n + 1) is at most .3, and what it costs
    source = instantiate_node(OmegaConf.create(run.config["data"]), "data")
    missed, masks, above = [], [], []
    for name in source.splits["val"]:
        image, mask = source.read(name)
        found = seg.load(str(folder), accelerator="cpu").predict(image).probabilities[1]
        missed.append((found[mask == 1][:, None] <= THRESHOLDS).mean(0))
        masks.append(mask == 1)
        above.append(found > run.threshold)
    held = (np.sum(missed, 0) + 1) / 5 <= 0.3
    place = int(np.flatnonzero(held)[-1])
    assert run.threshold == THRESHOLDS[place] and 0 < place < len(THRESHOLDS) - 1
    assert promise["mean"] == pytest.approx(np.mean(missed, 0)[place])
    assert promise["scores"]["precision"] == pytest.approx(
        np.mean(np.array(masks)[np.array(above)])
    )
    assert scores["best/val/recall/cell"] == pytest.approx(promise["scores"]["recall"])
    # Said in training, evaluation, prediction and export
    sentence = "on average over images, at most 30 % of an image's cell is missed (conformal risk control; "
    assert sentence in out and "these images also selected the checkpoint" in out
    assert f"precision {promise['at_half']['precision']:.3f}" in out
    share = 100 * scores["test/recall/cell"]  # of one image
    assert (
        f"test       on average over 1 images, {100 - share:.3g} % of an image's cell is missed"
        in out
    )
    again = evaluate(config("evaluate", f"run={folder}", "panels=0"))
    assert again["val/dice"] == pytest.approx(scores["best/val/dice"], abs=1e-6)
    assert sentence in capsys.readouterr().out
    assert describe_run(run, str(folder))["promise"].startswith(sentence)
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(image)
    for number, (given, said) in enumerate((("threshold=0.9", ""), ("tta=flips", "not here: tta"), ("tta=none", "not for other data"))):  # fmt: skip
        line = [f"run={folder}", f"input={image}", f"output={tmp_path / str(number)}", given]
        predict_files(config("predict", *line, "save=[masks,probabilities]"))
        out = capsys.readouterr().out
        assert said in out and (sentence in out) == bool(said)
    p = tifffile.imread(tmp_path / "2/probabilities/image.tif")
    with Image.open(tmp_path / "2/masks/image.png") as mask:
        np.testing.assert_array_equal(np.array(mask), p[1] > run.threshold)
    # A damaged promise is refused
    file = folder / "checkpoints/best.ckpt"
    content = checkpoint.read_checkpoint(file)
    content["seg"]["promise"]["alpha"] = 7.0
    torch.save(content, file)
    with pytest.raises(RunError, match=r"its promise is damaged"):
        load.load_run(folder)


@pytest.mark.slow
def test_two_processes_choose_the_threshold_from_the_images_of_both(tmp_path):
    words = ["data.size=64", "data.train=4", "data.val=5", "data.test=3", "model.width=2", "trainer=ddp",
             "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "loader.crop=32", "logger=none"]  # fmt: skip
    line = [sys.executable, "-m", "seg.train", *words, "threshold=missed:0.3", f"outputs={tmp_path}"]  # fmt: skip
    subprocess.run(line, check=True, capture_output=True, timeout=300)
    run = load.load_run(tmp_path / "latest")
    assert run.promise is not None and run.promise.images == 5
    source = instantiate_node(OmegaConf.create(run.config["data"]), "data")
    missed, predictor = [], seg.load(str(tmp_path / "latest"), accelerator="cpu")
    for name in source.splits["val"]:
        image, mask = source.read(name)
        p = predictor.predict(image).probabilities[1]
        missed.append((p[mask == 1][:, None] <= THRESHOLDS).mean(0))
    held = np.flatnonzero((np.sum(missed, 0) + 1) / 6 <= 0.3)
    assert run.threshold == THRESHOLDS[held[-1]] != 0.5


def test_evaluate_chooses_a_threshold_from_images_that_selected_nothing(tmp_path, capsys):
    _, folder = tiny(tmp_path, "data.test=5", "trainer.max_epochs=1", "loss=weighted_bce")
    line = [f"run={folder}", "data.split=test", "panels=0"]
    capsys.readouterr()
    scores = evaluate(config("evaluate", *line, "threshold=missed:0.4", f"output={tmp_path / 'a'}"))
    report, out = json.loads((tmp_path / "a/metrics.json").read_text()), capsys.readouterr().out
    promise, threshold = report["promise"], report["threshold"]
    assert (promise["calibrated_on"], promise["images"]) == ("evaluated", 5)
    assert threshold == promise["threshold"] != 0.5
    assert scores["test/recall/cell"] == pytest.approx(promise["scores"]["recall"])
    assert f"give threshold={threshold:g} to seg.predict" in out and "selected nothing" in out
    again = evaluate(
        config("evaluate", *line, f"threshold={threshold}", f"output={tmp_path / 'b'}")
    )
    assert again["test/dice"] == pytest.approx(scores["test/dice"], abs=1e-6)
    higher = float(THRESHOLDS[np.searchsorted(THRESHOLDS, threshold) + 1])
    matrices = []
    for number in (threshold, higher):  # the bound holds there, and at the next one no more
        output = tmp_path / f"c{number}"
        evaluate(config("evaluate", *line, f"threshold={number}", f"output={output}"))
        matrices.append(np.load(output / "confusion.npz")["confusion"])
    kept, lost = ((m[:, 1, 0] / m[:, 1].sum(-1)).sum() for m in matrices)
    assert (kept + 1) / 6 <= 0.4 < (lost + 1) / 6
    for words, message in (
        (["data.split=train", "threshold=missed:0.4"], "data.split=train has the training images"),
        (["data.split=all", "threshold=missed:0.4"], "data.split=all has the training images"),
        (["data.split=test", "threshold=missed:0.1"], "needs 9 images .* and 5 choose"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(config("evaluate", f"run={folder}", *words))


def test_a_bound_that_no_threshold_keeps_leaves_one_half_and_says_so(tmp_path, capsys):
    words = ["threshold=missed:0.3", "trainer=smoke", "data.val=4"]  # two of them are validated
    _, folder = tiny(tmp_path, *words)
    assert "missed:0.3 is kept by no threshold" in capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    assert record["promise"] is None and load.load_run(folder).threshold == 0.5


def test_images_of_a_group_count_as_one(capsys):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (6, 2, len(THRESHOLDS) + 1))
    source = SimpleNamespace(
        classes=["out", "in"],
        task="classes",
        groups={name: group for name, group in zip("abcdef", "xxyyyz", strict=True)},
    )
    bound = RiskBound("missed", 0.4)
    found = choose_risk_threshold(torch.from_numpy(counts), bound, source, list("abcdef"), "validation")  # fmt: skip
    losses = image_losses(counts, "missed")
    means = np.stack([losses[:2].mean(0), losses[2:5].mean(0), losses[5]])
    held = np.flatnonzero((means.sum(0) + 1) / 4 <= 0.4)
    assert found.threshold == THRESHOLDS[held[-1]] and (found.images, found.groups) == (6, 3)
    assert "on average over groups of images, at most 40 % of an image's in" in found.describe(["out", "in"])  # fmt: skip
    with pytest.raises(UserError, match=r"missed:0.2: needs 4 groups of images .* and 3 choose.*allow 0.25 or more"):  # fmt: skip
        check_risk_bound(RiskBound("missed", 0.2), source, list("abcdef"), "threshold=missed:0.2")
    check_risk_bound(RiskBound("missed", 0.25), source, list("abcdef"), "")


@pytest.mark.parametrize(("classes", "task", "message"), [
    (["a", "b", "c"], "classes", "needs two classes, and the data has 3 classes"),
    (["a", "b"], "overlapping", "needs two classes, and the data has labels that overlap"),
])  # fmt: skip
def test_a_bound_needs_two_classes(classes, task, message):
    source = SimpleNamespace(classes=classes, task=task)
    with pytest.raises(UserError, match=message):
        check_risk_bound(RiskBound("missed", 0.1), source, list("abcdefghij"), "threshold=missed:0.1")  # fmt: skip
