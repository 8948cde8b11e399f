"""Images of another type or range than the training images: converted without doubt, or refused by name."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_runs import config

import seg
from seg.commands.evaluate import evaluate
from seg.data import statistics
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.normalization import IntensityStatistics
from seg.data.value_types import convert_image
from seg.errors import DataError, RunError, UserError
from seg.inference.file_prediction import predict_files
from seg.runs import load
from seg.training.run import train

BYTES = np.random.default_rng(0).integers(0, 256, (20, 30, 1)).astype(np.uint8)
WORDS = np.random.default_rng(1).integers(0, 4096, (20, 30, 1)).astype(np.uint16)
UNIT = np.random.default_rng(2).random((20, 30, 1)).astype(np.float32)


def trained_on(image: np.ndarray, percentiles: tuple[float, float] | None = None):
    statistics = IntensityStatistics(percentiles)
    statistics.add(image)
    return statistics.intensity()


@pytest.mark.parametrize("percentiles", [None, (1, 99)])
@pytest.mark.parametrize("image", [BYTES, WORDS, UNIT], ids=["uint8", "uint16", "float32"])
def test_the_normalisation_keeps_type_and_range(image, percentiles):
    found = trained_on(image, percentiles)
    assert found.stored_type == image.dtype
    assert found.value_range == pytest.approx([image.min(), image.max()])
    np.testing.assert_array_equal(convert_image(found, image, "a"), image)


@pytest.mark.parametrize(
    ("trained", "given", "right"),
    [
        (BYTES, BYTES.astype(np.uint16) * 257, BYTES),
        (BYTES, BYTES.astype(np.uint16), BYTES),
        (BYTES, (BYTES / 255).astype(np.float32), BYTES),
        (BYTES, BYTES.astype(np.float32), BYTES),
        (BYTES, UNIT * 200, UNIT * 200),  # floats in 0..255 stay
        (BYTES, UNIT, UNIT * 255),
        (BYTES, np.zeros_like(WORDS), np.zeros_like(BYTES)),
        (WORDS, WORDS.astype(np.float32), WORDS),
        (WORDS, (WORDS / 65535).astype(np.float32), WORDS),
        (UNIT, UNIT / 2, UNIT / 2),
        (BYTES.astype(np.float32), BYTES, BYTES),
        (WORDS.astype(np.float32), WORDS, WORDS),
    ],
)
def test_what_is_certain_is_converted(trained, given, right):
    found = convert_image(trained_on(trained), given, "a")
    np.testing.assert_allclose(found, right.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize(
    ("trained", "given", "words"),
    [
        (BYTES, WORDS, "uint16 values of .* but the run was trained on uint8 values of 0 to 255"),
        (BYTES, BYTES.astype(np.float32) - 9, "float32 values of -9 to 246"),
        (BYTES, (BYTES > 99).astype(np.float32), "float32 values of 0 to 1,"),  # dark, or binary?
        (WORDS, BYTES, "uint8 values of 0 to 255, but the run was trained on uint16 values of"),
        (WORDS, (BYTES / 255).astype(np.float32), "float32 values of 0 to 1,"),
        (UNIT, BYTES, "uint8 values of 0 to 255, but the run was trained on float32 values of"),
        (UNIT, BYTES.astype(np.float32), "float32 values of 0 to 255"),
        (BYTES.astype(np.float32), UNIT, "float32 values of"),
        (WORDS.astype(np.float32), WORDS * 16, "uint16 values of"),
    ],
)
def test_what_leaves_a_doubt_is_refused(trained, given, words):
    with pytest.raises(DataError, match=f"a.tif: {words}.*convert the image as the training"):
        convert_image(trained_on(trained), given, "a.tif")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 8-bit images, and its folder of images."""
    folder = tmp_path_factory.mktemp("types")
    root = write_folder(folder / "data", lambda image: image)
    words = ["data=folder", f"data.root={root}", "data.classes=[out,in]", "model.width=2", "model.depth=2",
             "loader.crop=32", "logger=none", "trainer=cpu", "trainer.max_epochs=1", "panels=0"]  # fmt: skip
    train(config("train", *words, f"outputs={folder}/outputs"))
    return (folder / "outputs/latest").resolve(), root


def write_folder(root, change):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(5):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        image = (40 + 150 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        tifffile.imwrite(root / "images" / f"{i}.tif", change(image))
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


VARIANTS = {
    "words": lambda image: image.astype(np.uint16) * 257,
    "unit": lambda image: (image / 255).astype(np.float32),
    "floats": lambda image: image.astype(np.float32),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_gives_the_mask_and_the_scores_of_the_same_image(
    run, variant, tmp_path, capsys
):
    folder, root = run
    other = write_folder(tmp_path / "other", VARIANTS[variant])
    masks = []
    for name, images in (("own", root), (variant, other)):
        output = tmp_path / f"out-{name}"
        predict_files(
            config(
                "predict", f"run={folder}", f"input={images}/images", f"output={output}", "tile=32"
            )
        )
        masks.append([np.array(Image.open(output / f"masks/{i}.tif")) for i in range(5)])
    np.testing.assert_array_equal(*masks)
    assert len(np.unique(masks[0])) == 2
    said = capsys.readouterr().out
    assert said.count("as uint8") == (variant != "floats")  # once for all files
    # An array, an ensemble, and the scores.
    predictor, ensemble = seg.load(str(folder)), seg.load([str(folder), str(folder)])
    image = tifffile.imread(root / "images/0.tif")
    for model in (predictor, ensemble):
        np.testing.assert_array_equal(
            model.predict(VARIANTS[variant](image)).mask, model.predict(image).mask
        )
    scores = []
    for name, images in (("own", root), (variant, other)):
        words = ["data=folder", f"data.root={images}", "data.split=all", "panels=1"]
        scores.append(
            evaluate(config("evaluate", f"run={folder}", *words, f"output={tmp_path / name}"))
        )
    assert scores[0] == pytest.approx(scores[1], nan_ok=True)


def test_another_type_is_refused_by_name_and_the_other_files_are_predicted(run, tmp_path):
    folder, root = run
    images = tmp_path / "images"
    images.mkdir()
    tifffile.imwrite(images / "a.tif", WORDS[..., 0])
    tifffile.imwrite(images / "b.tif", tifffile.imread(root / "images/0.tif"))
    with pytest.raises(UserError, match=r"a.tif: uint16 values of .* trained on uint8 values"):
        predict_files(config("predict", f"run={folder}", f"input={images}", f"output={tmp_path}/o"))
    assert [file.name for file in (tmp_path / "o/masks").iterdir()] == ["b.tif"]


def test_an_older_checkpoint_knows_its_type_by_its_range():
    old = trained_on(BYTES).to_dict()
    del old["dtype"], old["value_range"]
    found = convert_image(type(trained_on(BYTES))(**old), BYTES.astype(np.uint16) * 257, "a")
    np.testing.assert_array_equal(found, BYTES)


def test_runs_on_images_of_other_types_make_no_ensemble(run, trained_run, tmp_path):
    other = write_folder(tmp_path / "d", lambda image: image.astype(np.uint16) * 16)
    words = ["data=folder", f"data.root={other}", "data.classes=[membrane,cell]", "model.width=4", "loader.crop=32",
             "logger=none", "trainer=cpu", "trainer.max_epochs=1", "panels=0", f"outputs={tmp_path}/o"]  # fmt: skip
    train(config("train", *words))
    assert load.load_run(tmp_path / "o/latest").intensity.dtype == "uint16"
    with pytest.raises(RunError, match="no ensemble: image types uint8 and uint16"):
        seg.load([str(trained_run), str(tmp_path / "o/latest")])


def test_a_file_of_another_type_that_was_not_inspected_is_never_trained_on(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "d", lambda image: image)
    odd = root / "images/3.tif"
    tifffile.imwrite(odd, tifffile.imread(odd).astype(np.uint16) * 257)
    monkeypatch.setattr(
        statistics, "choose_inspected", lambda names: [n for n in names if n != "3"][:2]
    )
    data = DataModule(Folder(str(root), ["a", "b"]), crop=32)
    split = next(s for s, names in data.source.splits.items() if "3" in names)
    samples = data.train_dataset() if split == "train" else data.eval_dataset(split)
    with pytest.raises(DataError, match=r"3: uint16 values, but the images .* are uint8"):
        samples[0, data.source.splits[split].index("3")]
