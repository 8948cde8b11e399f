"""Scores of images without truth, from training to prediction, against sums done by hand."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_runs import config, folded_run, make_images, tiny

import seg
from seg.commands.crossval import crossval
from seg.commands.evaluate import evaluate
from seg.errors import RunError
from seg.inference import ensemble
from seg.inference.file_prediction import predict_files
from seg.inference.quality import ImageMeter, build_scorer, expected_quality, score_prediction
from seg.runs import checkpoint, load

RUN = ["data.val=12", "data.test=10", "data.train=6", "trainer.max_epochs=2", "loss=weighted_bce", "model.depth=4"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("quality"), *RUN)[1]


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "quality.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def predicted(run: Path, inputs: Path, output: Path, *words: str) -> list[dict[str, str]]:
    line = [f"run={run}", f"input={inputs}", f"output={output}", "save=[masks,probabilities]"]
    predict_files(config("predict", *line, *words))
    return read_rows(output)


def write_images(folder: Path, run: Path, number: int = 4) -> Path:
    """Images of the run's test split as files."""
    from seg.data.datasets.membranes import Membranes

    source = Membranes(size=64, train=6, val=12, test=10)
    folder.mkdir(parents=True)
    for name in source.splits["test"][:number]:
        Image.fromarray(source.read(name)[0].squeeze()).save(folder / f"{name}.png")
    return folder


def test_the_table_has_the_expected_scores_of_the_probabilities(run, tmp_path, capsys):
    rows = predicted(run, write_images(tmp_path / "in", run), tmp_path / "out")
    quality = load.load_run(run).quality
    assert quality is not None and quality.images == 12 and quality.measured == 18
    assert json.loads((run / "run.json").read_text())["quality"] == quality.model_dump()
    assert load.load_run(run / "checkpoints/last.ckpt").quality is None
    assert [(row["image"], row["class"]) for row in rows] == [(f"test-00{i}.png", c) for i in range(4) for c in ("membrane", "cell")]  # fmt: skip
    for row in rows:
        k = ("membrane", "cell").index(row["class"])
        p = tifffile.imread(tmp_path / f"out/probabilities/{row['image'][:-4]}.tif")[k]
        inside = p > 0.5 if k else p >= 0.5
        one = quality.classes[k]
        # Bins are 0.25 wide, which moves a sum by 1 % at most
        q = 1 / (1 + np.exp(-(one.slope * np.log(p / (1 - p)) + one.offset)))
        dice = 2 * q[inside].sum() / (inside.sum() + q.sum())
        assert int(row["pixels"]) == inside.sum()
        assert float(row["dice"]) == pytest.approx(dice, rel=0.02)
        assert float(row["dice_low"]) < float(row["dice"]) < float(row["dice_high"])
        half = one.dice_margin * (0.25 + float(row["distance"]))
        assert float(row["dice_high"]) == pytest.approx(min(1, float(row["dice"]) + half), rel=1e-3)
        assert row["known"] == "yes" and 0 < float(row["distance"]) <= 1
    assert "of 4 images need" in capsys.readouterr().out


def test_images_unlike_those_of_the_training_are_not_known(run, tmp_path, capsys):
    folder = write_images(tmp_path / "in", run, 2)
    grey = np.asarray(Image.open(folder / "test-000.png")).astype(float)
    noise = np.random.default_rng(0).normal(0, 60, grey.shape)
    for name, image in (("noise", grey + noise), ("dark", grey / 4), ("flat", grey * 0 + 128)):
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    rows = predicted(run, folder, tmp_path / "out")
    found = {row["image"]: row for row in rows}
    assert {name: row["known"] for name, row in found.items()} == {
        "dark.png": "no", "flat.png": "no", "noise.png": "no", "test-000.png": "yes", "test-001.png": "yes",
    }  # fmt: skip
    for row in rows:
        assert (row["dice_low"] == "") == (row["known"] == "no" or row["dice"] == "")
        assert row["look"] == "yes" or row["known"] == "yes"
    assert "dark.png, flat.png, noise.png" in capsys.readouterr().out


def test_the_option_look_says_which_images_need_a_look(run, tmp_path, capsys):
    folder = write_images(tmp_path / "in", run, 3)
    for number, (look, said) in enumerate((("1", "3 of 3 images need a look: test-000.png"), ("0", "0 of 3 images need a look;"))):  # fmt: skip
        predicted(run, folder, tmp_path / str(number), f"look={look}")
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("words", [["tta=flips"], ["threshold=0.3"]])
def test_other_predictions_than_those_of_the_calibration_have_no_interval(run, tmp_path, capsys, words):  # fmt: skip
    rows = predicted(run, write_images(tmp_path / "in", run, 1), tmp_path / "out", *words)
    assert {row["dice_low"] for row in rows} == {""} and rows[0]["dice"]
    assert "quality    without intervals" in capsys.readouterr().out


def test_too_few_calibration_images_for_intervals_are_told(run, capsys):
    loaded = load.load_run(run)
    none = {"dice_margin": None, "iou_margin": None}
    classes = [one.model_copy(update=none) for one in loaded.quality.classes]
    few = loaded.quality.model_copy(update={"images": 4, "classes": classes})
    cfg = config("predict", f"run={run}", "input=a.png", "output=b")
    assert build_scorer(dataclasses.replace(loaded, quality=few), cfg, 0.5).intervals
    said = "without intervals, which need 9 calibration images or groups; there were 4 images"
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_run_without_calibration_writes_no_table_and_says_why(run, tmp_path, capsys):
    old = run / "checkpoints/last.ckpt"
    folder = write_images(tmp_path / "in", run, 1)
    predict_files(config("predict", f"run={old}", f"input={folder}", f"output={tmp_path / 'out'}"))
    assert "no quality.csv" in capsys.readouterr().out
    assert not (tmp_path / "out/quality.csv").exists()


def test_pages_have_rows_and_tiles_give_the_same(run, tmp_path):
    folder = write_images(tmp_path / "in", run, 3)
    stack = np.stack([np.tile(np.asarray(Image.open(f)), (2, 2)) for f in sorted(folder.iterdir())])
    (tmp_path / "stack").mkdir()
    tifffile.imwrite(tmp_path / "stack/a.tif", stack, photometric="minisblack")
    whole = predicted(run, tmp_path / "stack", tmp_path / "out")
    assert [row["page"] for row in whole] == ["0", "0", "1", "1", "2", "2"]
    tiled = predicted(run, tmp_path / "stack", tmp_path / "tiled", "tile=96", "overlap=32")
    for one, other in zip(whole, tiled, strict=True):
        assert one["distance"] == other["distance"]
        assert float(one["dice"]) == pytest.approx(float(other["dice"]), abs=0.02)


def test_a_repeated_command_keeps_the_rows_of_before(run, tmp_path):
    folder = write_images(tmp_path / "in", run, 2)
    first = predicted(run, folder, tmp_path / "out")
    more = write_images(tmp_path / "more", run, 4)
    for file in list(more.iterdir())[:]:
        if not (folder / file.name).exists():
            file.rename(folder / file.name)
    again = predicted(run, folder, tmp_path / "out")
    assert again[:4] == first and len(again) == 8
    assert not [f for f in (tmp_path / "out").iterdir() if f.name.startswith(".q")]
    assert again == predicted(run, folder, tmp_path / "once")


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"\xff\xfe", "can't decode"), (b"image,page\na.png,\n", "other columns"), (b"", "other columns")],
)  # fmt: skip
def test_a_damaged_table_is_named_and_the_command_writes_a_new_one(run, tmp_path, content, found):
    output = tmp_path / "out"
    folder = write_images(tmp_path / "in", run, 1)
    predicted(run, folder, output)
    (output / "quality.csv").write_bytes(content)
    (write_images(tmp_path / "more", run, 2) / "test-001.png").rename(folder / "test-001.png")
    with pytest.raises(RunError, match=rf"quality\.csv: damaged: .*{found}.*; remove it"):
        predicted(run, folder, output)
    (output / "quality.csv").unlink()
    assert {row["image"] for row in predicted(run, folder, output)} == {"test-001.png"}


def test_evaluate_compares_with_the_truth(run, tmp_path, capsys):
    scores = evaluate(config("evaluate", f"run={run}", "data.split=test", "panels=0", f"output={tmp_path}"))  # fmt: skip
    rows, out = read_rows(tmp_path), capsys.readouterr().out
    assert len(rows) == 20 and "correlation over 10 images" in out
    assert f"true {scores['test/dice_per_image']:.3f}" in out
    # The same rows as seg.predict writes
    folder = write_images(tmp_path / "in", run, 2)
    for one, other in zip(rows, predicted(run, folder, tmp_path / "out"), strict=False):
        for name in ("pixels", "distance", "known"):
            assert one[name] == other[name]
        assert float(one["dice"]) == pytest.approx(float(other["dice"]), abs=1e-3)


def test_quality_of_arrays_is_a_public_function(run):
    predictor = seg.load(str(run), accelerator="cpu")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 1), np.uint8)
    found = predictor.predict(image)
    result = score_prediction(predictor.run, image, found.probabilities, found.mask)
    assert not result.known and result.look and result.distance > 1
    # The same from measurements
    quality = predictor.run.quality
    meter = ImageMeter(64, 64, quality.shift, quality.scale, False)
    meter.add(0, image, found.probabilities, found.mask)
    assert expected_quality(quality, meter.counts_CTPB, meter.features.compute()) == result
    last = seg.load(str(run / "checkpoints/last.ckpt"), accelerator="cpu").run
    with pytest.raises(RunError, match=r"last\.ckpt: has no calibration"):
        score_prediction(last, image, found.probabilities, found.mask)


def test_out_of_fold_images_calibrate_the_ensemble(tmp_path):
    data, output = make_images(tmp_path / "data", 12), tmp_path / "cv"
    crossval(config("crossval", *folded_run(data, output)))
    quality = ensemble.load_members(str(output)).quality
    assert quality.calibrated_on == "out-of-fold" and quality.images == quality.measured == 12
    assert quality.classes[1].dice_margin is not None and quality.classes[1].images == 12
    rows = predicted(output, data / "images", tmp_path / "out")
    assert {row["known"] for row in rows} == {"yes"} and len(rows) == 24
    record = json.loads((output / "crossval.json").read_text())
    record["quality"]["limit"] = -1.0
    (output / "crossval.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="its quality is damaged"):
        ensemble.load_members(str(output))


def test_a_damaged_record_is_refused(run, tmp_path):
    content = checkpoint.read_checkpoint(run / "checkpoints/best.ckpt")
    content["seg"]["quality"]["classes"].pop()
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(RunError, match="its quality is of 1 classes, not 2"):
        load.load_run(tmp_path / "best.ckpt")


@pytest.mark.slow
def test_two_workers_write_one_table(run, tmp_path):
    folder = write_images(tmp_path / "in", run, 8)
    line = [sys.executable, "-m", "seg.predict", f"run={run}", f"input={folder}", f"output={tmp_path / 'out'}", "save=[masks,probabilities]"]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    workers = [subprocess.Popen(line, **quiet) for _ in range(2)]
    assert [worker.wait(600) for worker in workers] == [0, 0]
    assert read_rows(tmp_path / "out") == predicted(run, folder, tmp_path / "one")


@pytest.mark.slow
def test_two_processes_calibrate_on_the_images_of_both(tmp_path):
    words = ["data.size=64", "data.train=4", "data.val=5", "data.test=3", "model.width=2", "trainer=ddp",
             "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "loader.crop=32", "logger=none"]  # fmt: skip
    line = [sys.executable, "-m", "seg.train", *words, f"outputs={tmp_path}"]
    subprocess.run(line, check=True, capture_output=True, timeout=300)
    quality = load.load_run(tmp_path / "latest").quality
    assert quality is not None and (quality.images, quality.measured) == (5, 9)
