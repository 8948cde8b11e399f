"""The commands as Python functions: the same numbers and files as of the command line, errors raised, results as objects."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import seg
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from seg import api
from seg.errors import UserError
from seg.runs import records

TINY = (
    "logger=none", "trainer=smoke", "data.size=32", "data.train=2", "data.val=2", "data.test=1", "loader.crop=32",
    "model.width=2", "model.depth=2", "panels=1", "save_predictions=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("api")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(place):
    return api.train(*TINY, **{"optim.lr": 0.01, "outputs": Path("outputs")})


@pytest.fixture
def data(place):
    """Four grey images and their masks, of classes a and b, in the folder data."""
    for name in ("images", "masks"):
        Path("data", name).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 2, (32, 32), np.uint8)
            Image.fromarray(pixels * (255 if name == "images" else 1)).save(f"data/{name}/{i}.png")


def test_a_training_returns_its_run(run, place):
    record = records.read_json(run.folder / "run.json")
    assert run.status == "finished" and run.metrics == record["metrics"]
    assert record["overrides"] == [*TINY, "optim.lr=0.01", "outputs=outputs"]
    with open(run.folder / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(run.history) == len(rows) and list(run.history.columns) == list(rows[0])
    last = [row["val/dice"] for row in rows if row["val/dice"]][-1]
    assert run.history["val/dice"].dropna().iloc[-1] == float(last)
    assert not HydraConfig.initialized()


def test_a_run_predicts_shows_and_names_itself(run):
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    mask = run.predict(image).mask
    assert mask.shape == (32, 32) and set(np.unique(mask)) <= {0, 1}
    assert f"best/val/dice={run.metrics['best/val/dice']:.4f}" in repr(run)
    assert run.panels and "<img" in run._repr_html_() and "best/val/dice" in run._repr_html_()


def test_an_evaluation_has_the_numbers_of_the_command(run, place):
    found = api.evaluate(run, "data.split=test", workers=0)
    words = [f"run={run.folder}", "data.split=test", "output=again"]
    assert seg("evaluate", *words, cwd=place).code == 0
    told = records.read_json(Path("again/metrics.json"))
    assert {k: None if v != v else v for k, v in found.metrics.items()} == told["metrics"]
    assert found.table.loc["test/dice", "value"] == found.metrics["test/dice"]
    assert found.folder == run.folder / "evaluate-test" and "<img" in found._repr_html_()


def test_predictions_are_listed_and_seen(run, place):
    Image.fromarray(np.zeros((40, 48), np.uint8)).save("a.png")
    found = api.predict(run, Path("a.png"), "predicted")
    assert {file.name for file in found.files} >= {"a.png"} and "<img" in found._repr_html_()
    assert api.predict(run, "a.png", "predicted").files == []


def test_runs_are_swept_and_compared(place):
    line, variables = list(sys.argv), dict(os.environ)
    swept = api.sweep(*TINY, "model=unet,unetpp", **{"ema": None})
    assert sys.argv == line and dict(os.environ) == variables
    assert len(swept.runs) == 2 and swept.folder.parent.name == "sweeps"
    assert list(swept.table["status"]) == ["finished"] * 2
    found = api.compare([swept], group_by=["model"], split="val")
    assert set(found.groups["group"]) == {"unet", "unetpp"} and list(found.groups["runs"]) == [1, 1]
    means = swept.table.groupby(swept.table["run"].str.contains("unetpp"))["best/val/dice"].mean()
    assert sorted(found.groups["mean"]) == pytest.approx(sorted(means))
    assert len(found.runs) == 2 and all(file.is_file() for file in found.files)
    assert "unetpp" in found._repr_html_()


def test_folds_are_scored(data):
    words = [w for w in TINY if not w.startswith("data.")]
    found = api.crossval(
        *words, "data=folder", **{"data.root": "data", "data.classes": ["a", "b"], "data.folds": 2}
    )
    assert len(found.folds) == 2 and all(fold.status == "finished" for fold in found.folds)
    assert found.table.loc["dice", "pooled"] == found.metrics["dice"]
    assert found.table.loc["dice", "mean"] == np.mean(
        [f.metrics["best/val/dice"] for f in found.folds]
    )


def test_the_queue_is_the_table_of_the_chosen_images(run, place):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
        Path("pool").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"pool/{i}.png")
    found = api.next_images(run, Path("pool"), "queue", n=2)
    assert list(found.table["rank"]) == [1, 2] and set(found.table["image"]) <= {
        "0.png",
        "1.png",
        "2.png",
    }
    assert {file.name for file in (found.folder / "images").iterdir()} == set(found.table["copy"])
    assert found.table["score"].isna().all() and "<img" in found._repr_html_()


def test_an_exported_file_takes_the_place_of_the_network(run, place):
    file = api.export(run, format="onnx", output="m.onnx")
    assert file == Path("m.onnx").absolute()
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    found = run.load(engine="onnx", exported=file).predict(image)
    np.testing.assert_allclose(found.probabilities, run.predict(image).probabilities, atol=1e-4)


def test_errors_of_data_are_a_result_of_the_check(data):
    assert api.check("data.size=32", panels=0).ok
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save("data/masks/0.png")
    found = api.check(
        "data=folder", **{"data.root": "data", "data.classes": ["a", "b"], "panels": 2}
    )
    assert not found.ok and "error" in set(found.issues["severity"])
    assert any("0.png" in file for file in found.issues["file"]) and "<img" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: api.train("model=unett"), "no such model; did you mean unet"),
        (lambda: api.train(**{"model.widht": 3}), "did you mean model.width"),
        (lambda: api.train("seed=0,1"), "several values are a sweep"),
        (lambda: api.train("data=folder", **{"data.root": "nowhere"}), "no such folder"),
        (lambda: api.sweep("seed=0,x"), "seed=x: a whole number is needed"),
        (lambda: api.compare(level=2), "level=2"),
        (lambda: api.predict("x", "y", "z", tile="big"), "tile=big"),
        (lambda: api.sweep("-h"), "can't be read as an override"),
        (lambda: api.sweep("seed=0,1", **{"trainer.devices": 2}), "python -m seg.train"),
        (lambda: api.train(*TINY, **{"trainer.devices": 2}), "python -m seg.train"),
        (lambda: api.train("seed=1", seed=2), "given as a word and as an option"),
        (lambda: api.train({"seed": 1}), "words are texts"),
        (lambda: api.evaluate(None), "give a Run"),
    ],
)  # fmt: skip
def test_a_mistake_is_raised_with_the_message_of_the_command_line(call, message, place):
    line = list(sys.argv)
    with pytest.raises(UserError, match=message):
        call()
    assert sys.argv == line


def test_options_may_be_results_paths_and_numbers_of_numpy(run, place):
    options = {
        "optim.lr": np.float64(0.5),
        "seed": np.int64(3),
        "optim.betas": np.array([0.5, 0.75]),
    }
    words = api.command_words((), options | {"init": run, "name": "a, b"})
    assert words == [
        "optim.lr=0.5",
        "seed=3",
        "optim.betas=[0.5,0.75]",
        f"init={run.folder}",
        'name="a, b"',
    ]


def test_a_run_is_found_by_its_folder_from_any_place(run, place, monkeypatch):
    monkeypatch.chdir("/")
    assert api.Run(str(run.folder)).metrics == run.metrics


def test_hydra_goes_on_where_it_was(run, place, tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        api.check("data.size=32", "data.train=1", panels=0)
        assert compose("mine").a == 1
