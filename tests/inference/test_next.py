"""seg.next from the training to the data of the next one."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from small_runs import config, tiny

from seg.cli.compose import instantiate_node
from seg.commands.next import queue_images
from seg.data.datasets.membranes import Membranes
from seg.errors import DataError, RunError, UserError
from seg.inference import unlabelled
from seg.inference.file_prediction import predict_files
from seg.inference.predictor import load_predictor

RUN = ["data.val=12", "data.test=10", "data.train=6", "trainer.max_epochs=2", "loss=weighted_bce"]
SOURCE = Membranes(size=64, train=6, val=12, test=10)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("next"), *RUN)[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Six images, one of them in a subfolder, one twice, and one of noise."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    pictures = {name: SOURCE.read(name)[0].squeeze() for name in SOURCE.splits["test"][:4]}
    for i, (name, grey) in enumerate(pictures.items()):
        Image.fromarray(grey).save(folder / ("more" if i == 3 else "") / f"{name}.png")
    Image.fromarray(pictures["test-000"]).save(folder / "test-000-again.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


def queue(run: Path, inputs: Path, output: Path, *words: str) -> list[dict[str, str]]:
    queue_images(config("next", f"run={run}", f"input={inputs}", f"output={output}", *words))
    with (output / "next.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_queue_is_that_of_the_quality_and_its_data_are_read_back(run, images, tmp_path, capsys):
    rows = queue(run, images, tmp_path / "out", "n=5", "order=quality")
    said = " ".join(capsys.readouterr().out.split())
    assert "5 of 6 images" in said and "python -m seg.train data=folder" in said
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    # What seg.predict says of the same images
    line = [f"run={run}", f"input={images}", f"output={tmp_path / 'predicted'}", "save=[masks]"]
    predict_files(config("predict", *line))
    with (tmp_path / "predicted/quality.csv").open(newline="") as stream:
        quality = list(csv.DictReader(stream))
    dice = {row["image"]: float(row["dice"]) for row in quality if row["class"] == "membrane"}
    for row in quality:
        if row["class"] == "cell":
            dice[row["image"]] = (dice[row["image"]] + float(row["dice"])) / 2
    for row in rows:
        assert float(row["dice"]) == pytest.approx(dice[row["image"]], abs=2e-4)
        wanted = (1 - float(row["dice"])) * min(1, float(row["distance"]))
        assert float(row["score"]) == pytest.approx(wanted, abs=2e-4)
    # One of the two equal images is last, or not taken at all
    chosen = [row["image"] for row in rows]
    assert not {"test-000.png", "test-000-again.png"} <= {*chosen[:-1]}
    # Read back as data, with the masks that seg.predict writes
    node = {"_target_": "seg.data.Folder", "root": str(tmp_path / "out"), "classes": ["membrane", "cell"], "ignore": [255]}  # fmt: skip
    source = instantiate_node(OmegaConf.create(node), "data")
    names = [name for split in source.splits.values() for name in split]
    assert sorted(names) == sorted(row["copy"][:-4] for row in rows)
    for row in rows:
        image, mask = source.read(row["copy"][:-4])
        np.testing.assert_array_equal(image.squeeze(), Image.open(images / row["image"]))
        predicted = Image.open(tmp_path / "predicted/masks" / row["image"])
        np.testing.assert_array_equal(mask, predicted)
    with Image.open(tmp_path / "out/next.png") as sheet:
        assert sheet.width > 500
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "masks", "next.csv", "next.png"]  # fmt: skip


@pytest.mark.parametrize(("order", "predicted"), [("quality", 6), ("random", 2)])
def test_each_image_is_predicted_once(run, images, tmp_path, monkeypatch, order, predicted):
    pages = []
    predict_page = unlabelled.predict_page
    monkeypatch.setattr(unlabelled, "predict_page", lambda page, *more: pages.append(page.file) or predict_page(page, *more))  # fmt: skip
    rows = queue(run, images, tmp_path / "out", "n=2", f"order={order}")
    assert len(pages) == len(set(pages)) == predicted
    masks = sorted(file.name for file in (tmp_path / "out/masks").iterdir())
    assert masks == sorted(row["copy"] for row in rows) and len(masks) == 2


def test_random_order_needs_no_quality_and_is_that_of_its_seed(run, images, tmp_path):
    rows = queue(run, images, tmp_path / "a", "n=3", "order=random", "seed=4")
    assert [row["score"] for row in rows] == ["", "", ""] and all(row["dice"] for row in rows)
    old = run / "checkpoints/last.ckpt"  # it has no calibration
    with pytest.raises(RunError, match=r"last\.ckpt: order=quality needs scores, but it has no calibration"):  # fmt: skip
        queue(old, images, tmp_path / "b", "order=quality")
    again = queue(old, images, tmp_path / "b", "n=3", "order=random", "seed=4")
    assert [row["image"] for row in again] == [row["image"] for row in rows]
    assert all(row["dice"] == row["distance"] == "" for row in again)
    other = queue(old, images, tmp_path / "c", "n=6", "order=random", "seed=5")
    assert len({row["image"] for row in other}) == 6


def test_all_are_taken_where_there_are_fewer(run, images, tmp_path, capsys):
    assert len(queue(run, images / "more", tmp_path / "out", "order=quality")) == 1
    assert "all 1 are taken: fewer than n=20" in capsys.readouterr().out


def test_a_folder_that_holds_something_is_refused(run, images, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(queue(run, images, tmp_path / "out", "n=1")) == 1  # an empty one is not
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="out: holds something; give a new folder"):
        queue(run, images, tmp_path / "out", "n=1")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_read_is_named_after_the_others_are_done(run, images, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes((images / "test-000.png").read_bytes())
    (folder / "bad.png").write_text("no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        queue(run, folder, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out/images").iterdir()] == ["good.png"]
    Image.new("RGB", (64, 64)).save(folder / "good.png")
    with pytest.raises(DataError, match=r"bad\.png.*good\.png: 3 channels"):
        queue(run, folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_copies_of_one_name_are_refused(run, images, tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    for place in ("a/b.png", "a-b.png"):
        (tmp_path / "in" / place).write_bytes((images / "test-000.png").read_bytes())
    with pytest.raises(UserError, match=r"b\.png would have copies of the same name; rename one"):
        queue(run, tmp_path / "in", tmp_path / "out")


def test_runs_whose_predictions_are_no_start_are_refused(run, images, tmp_path):
    from seg.inference.unlabelled import check_run_has_starts

    loaded = load_predictor(run, accelerator="cpu").run
    with pytest.raises(RunError, match=r"data\.task=instances"):
        check_run_has_starts(dataclasses.replace(loaded, task="instances"))
