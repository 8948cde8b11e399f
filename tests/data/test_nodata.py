"""Values that mean no data: out of the statistics, ignored in the mask, the mean in the network's input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from cases import slow_but
from coco_files import box, coco_of
from PIL import Image
from small_runs import config

import seg
from seg.cli.compose import compose_checked, instantiate_node
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.data.datamodule import DataModule
from seg.data.datasets.coco import Coco
from seg.data.datasets.folder import Folder
from seg.data.image_io import read_image, write_mask
from seg.data.nodata import nodata_values
from seg.data.raster import ImageReader
from seg.data.tiff import WARNED
from seg.errors import DataError, UserError
from seg.inference import ensemble
from seg.inference.export import FORMAT_SUFFIXES as SUFFIXES
from seg.inference.exported_network import open_export
from seg.inference.file_prediction import predict_files
from seg.training.run import train

LOWEST = float(np.finfo(np.float32).min)
SIZE = (40, 48)
TRAINING = ["data=folder", "data.classes=[out,in]", "model.width=2", "model.depth=2", "loader.crop=32", "loader.repeats=2",
            "logger=none", "trainer=cpu", "trainer.max_epochs=1", "panels=1", "data.split_seed=1"]  # fmt: skip


def tag(value: object) -> dict:
    """Arguments of tifffile's writer for the tag GDAL_NODATA."""
    return {} if value is None else {"extratags": [(42113, "s", 0, str(value), True)]}


def make_data(
    root: Path, dtype: str, value: float, tagged: object = None, channels: int = 1, count: int = 6
) -> np.ndarray:
    """Images of noise with a corner of ``value``; returns them, (N, H, W, C), with NaN there."""
    rng = np.random.default_rng(0)
    images = []
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        known = rng.integers(20, 200, (*SIZE, channels)).astype(np.float64)
        mask = (known[..., 0] > 100).astype(np.uint8)
        stored = known.astype(dtype)
        stored[: 10 + number, :15] = value
        known[: 10 + number, :15] = np.nan
        options = tag(tagged) | {"photometric": "rgb" if channels == 3 else "minisblack"}
        pixels = stored if channels > 1 else stored[..., 0]
        tifffile.imwrite(root / f"images/{number}.tif", pixels, **options)
        tifffile.imwrite(root / f"masks/{number}.tif", mask)
        images.append(known)
    return np.stack(images)


@pytest.fixture(autouse=True)
def warned():
    WARNED.clear()


CASES = [  # type, value, tag, data.nodata
    ("float32", -9999, "-9999", None),
    ("float32", LOWEST, "-3.40282346638529e+38", None),
    ("float32", np.nan, "nan", None),
    ("float32", np.nan, None, "nan"),
    ("float32", -32768, None, -32768),
    ("float64", -1.7976931348623157e308, "-1.7976931348623157e+308", None),
    ("int16", -9999, "-9999", None),
    ("int32", 2147483647, "2147483647", None),
    ("uint8", 0, "0", None),
    ("uint8", 255, None, 255),
    ("uint16", 65535, "65535", None),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "value", "tagged", "option"), CASES)
def test_statistics_input_and_mask_leave_it_out(tmp_path, dtype, value, tagged, option, channels):
    images = make_data(tmp_path, dtype, value, tagged, channels)
    source = Folder(str(tmp_path), ["a", "b"], nodata=option, val=0.5)
    data = DataModule(source)
    known = images[[int(name) for name in source.splits["train"]]].reshape(-1, channels)
    low, high = (
        (0, np.iinfo(dtype).max) if dtype[0] == "u" else (np.nanmin(known), np.nanmax(known))
    )
    scaled = (known - low) / (high - low)
    assert (data.intensity.low, data.intensity.high) == (low, high)
    np.testing.assert_allclose(data.intensity.mean, np.nanmean(scaled, 0), rtol=1e-5)
    np.testing.assert_allclose(data.intensity.std, np.nanstd(scaled, 0), rtol=1e-5)
    for split in ("train", "val"):
        samples = data.samples(split)
        for number, name in enumerate(samples.names):
            sample, lost = samples[0, number], np.isnan(images[int(name)]).all(-1)
            right = tifffile.imread(tmp_path / f"masks/{name}.tif").astype(int)
            right[lost] = 255
            np.testing.assert_array_equal(sample["mask"], right)
            assert (sample["image"][:, lost] == 0).all()
            mean, std = np.nanmean(scaled, 0), np.nanstd(scaled, 0)
            normal = ((images[int(name)] - low) / (high - low) - mean) / std
            np.testing.assert_allclose(sample["image"][:, ~lost], normal[~lost].T, atol=1e-4)


@pytest.mark.parametrize("percentiles", [None, [5, 95]])
@pytest.mark.parametrize(("dtype", "value"), [("float32", -9999), ("uint8", 0)])
def test_percentiles_leave_it_out(tmp_path, dtype, value, percentiles):
    images = make_data(tmp_path, dtype, value, value)
    source = Folder(str(tmp_path), ["a", "b"], val=0.5)
    intensity = DataModule(source, percentiles=percentiles).intensity
    known = images[[int(name) for name in source.splits["train"]]]
    known = known[~np.isnan(known)]
    if percentiles:
        low, high = np.percentile(
            known, percentiles, method="lower" if dtype[0] == "u" else "linear"
        )
        assert abs(intensity.low - low) <= 1 and abs(intensity.high - high) <= 1
        assert intensity.mean[0] == pytest.approx(
            ((known - low) / (high - low)).clip(0, 1).mean(), abs=0.02
        )
    assert intensity.value_range == [known.min(), known.max()]


@pytest.mark.parametrize(
    "layout",
    [{}, {"tile": (16, 16), "compression": "zlib"}, {"compression": "zlib", "rowsperstrip": 7}],
)
@pytest.mark.parametrize(("dtype", "value", "tagged", "option"), CASES)
def test_bands_are_the_rows_of_the_whole_image(tmp_path, dtype, value, tagged, option, layout):
    make_data(tmp_path, dtype, value, tagged, 3, count=1)
    pixels = tifffile.imread(tmp_path / "images/0.tif")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **layout, **tag(tagged))
    values = nodata_values(option, tmp_path / "a.tif")
    whole = read_image(tmp_path / "a.tif", nodata=values)
    reader = ImageReader(tmp_path / "a.tif", nodata=values)
    bands = [reader.rows(start, start + 8) for start in range(0, 40, 8)]
    reader.close()
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    assert reader.dtype == whole.dtype
    assert (np.isnan(whole) if whole.dtype.kind == "f" else whole == values[0])[:10, :15].all()


def test_a_pixel_is_ignored_where_no_channel_has_data_and_a_value_is_filled_alone(tmp_path):
    make_data(tmp_path, "float32", -9999, "-9999", 3)
    file = tmp_path / "images/0.tif"
    pixels = tifffile.imread(file)
    pixels[20, 20] = 50, -9999, 70
    tifffile.imwrite(file, pixels, photometric="rgb", **tag(-9999))
    image, mask = Folder(str(tmp_path), ["a", "b"]).read("0")
    assert np.isnan(image[20, 20]).tolist() == [False, True, False] and mask[20, 20] != 255
    data = DataModule(Folder(str(tmp_path), ["a", "b"], val=0.5))
    normal = data.intensity.normalised(data.intensity.scaled(image))
    assert (normal[20, 20] == 0).tolist() == [False, True, False]


def test_black_is_data_unless_all_channels_are(tmp_path):
    make_data(tmp_path, "uint8", 0, "0", 3)
    file = tmp_path / "images/0.tif"
    pixels = tifffile.imread(file)
    pixels[20, 20] = 200, 0, 0
    tifffile.imwrite(file, pixels, photometric="rgb", **tag(0))
    assert Folder(str(tmp_path), ["a", "b"]).read("0")[1][20, 20] != 255


def test_the_tag_is_of_stored_values_that_are_inverted_when_read(tmp_path):
    stored = np.arange(100, dtype=np.uint8).reshape(10, 10)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", **tag(7))
    assert nodata_values(None, tmp_path / "a.tif") == (248.0,)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0] == 248, stored == 7)


def test_the_tag_is_of_stored_values_that_a_scale_changes(tmp_path):
    stored = np.arange(100, dtype=np.int16).reshape(10, 10)
    stored[:3, :4] = -9999
    metadata = (
        '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item>'
        '<Item name="OFFSET" sample="0" role="offset">5</Item></GDALMetadata>'
    )
    extra = [(42112, "s", 0, metadata, True), *tag(-9999)["extratags"]]
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=extra, metadata=None)
    right = np.where(stored == -9999, np.nan, stored * 0.1 + 5)
    values = nodata_values(None, tmp_path / "a.tif")
    np.testing.assert_allclose(
        read_image(tmp_path / "a.tif", nodata=values)[..., 0], right, rtol=1e-6
    )
    reader = ImageReader(tmp_path / "a.tif", nodata=values)
    np.testing.assert_allclose(reader.rows(2, 5)[..., 0], right[2:5], rtol=1e-6)
    reader.close()


@pytest.mark.parametrize("value", ["300", "-1", "1.5", "nan", "no number", ""])
def test_a_tag_that_the_type_cannot_hold_means_nothing(tmp_path, value):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9), np.uint8), **tag(value))
    assert nodata_values(None, tmp_path / "a.tif") == ()


def test_none_makes_the_tag_a_value(tmp_path):
    make_data(tmp_path, "uint8", 0, "0")
    image, mask = Folder(str(tmp_path), ["a", "b"], nodata="none").read("0")
    assert (image[:10, :15] == 0).all() and (mask != 255).all()


def test_a_number_by_hand_is_added_to_the_tag(tmp_path):
    make_data(tmp_path, "uint8", 7, "7")
    image, mask = Folder(str(tmp_path), ["a", "b"], nodata=255).read("0")
    assert (image[:10, :15] == 255).all() and (mask[:10, :15] == 255).all()


def test_images_of_integers_need_one_value_and_the_remedies_work(tmp_path):
    make_data(tmp_path, "uint8", 0, "0")
    file = tmp_path / "images/3.tif"
    pixels = tifffile.imread(file)
    for other in (None, 255):
        tifffile.imwrite(file, pixels, **tag(other))
        with pytest.raises(DataError, match="images of integers need one value for all") as error:
            DataModule(Folder(str(tmp_path), ["a", "b"]))
        remedies = re.findall(r"data\.nodata=\S+", str(error.value))
        assert len(remedies) == 2
        for remedy in remedies:
            words = ["data=folder", f"data.root={tmp_path}", "data.classes=[a,b]"]
            DataModule(instantiate_node(config("train", *words, remedy.strip(",")).data, "data"))


def test_no_data_at_all_is_an_error(tmp_path):
    make_data(tmp_path, "float32", -9999, "-9999")
    for file in (tmp_path / "images").iterdir():
        tifffile.imwrite(file, np.full(SIZE, -9999, np.float32), **tag(-9999))
    with pytest.raises(DataError, match="the training images have no data"):
        DataModule(Folder(str(tmp_path), ["a", "b"]))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", -9999), ("float32", -32768), ("int16", -32768), ("int32", -99999), ("float32", LOWEST), ("float32", -LOWEST),
     ("float64", -1.7976931348623157e308)],
)  # fmt: skip
def test_a_value_that_looks_like_no_data_is_told_and_the_remedy_declares_it(
    tmp_path, caplog, dtype, value
):
    make_data(tmp_path, dtype, value)
    source = Folder(str(tmp_path), ["a", "b"])
    if abs(value) > 1e38:
        with pytest.raises(
            DataError, match=r"-?1\.7976931348623157e\+308|values are -?3\.4028234663852886e\+38"
        ) as error:
            source.read("0")
        text = str(error.value)
    else:
        source.read("0")
        text = caplog.text
        assert f"values of {value} are far below all others" in text
    for option in re.findall(r"(?:data\.)?nodata=[^\s)]+", text):
        command = "train" if option.startswith("data") else "predict"
        cfg = config(command, *(["data=folder", option] if command == "train" else [option]))
        number = cfg.data.nodata if command == "train" else cfg.nodata
        caplog.clear()
        WARNED.clear()
        assert np.isnan(
            Folder(str(tmp_path), ["a", "b"], nodata=number).read("0")[0][:10, :15]
        ).all()
        assert caplog.text == ""


def test_values_near_the_others_do_not_look_like_no_data(tmp_path, caplog):
    make_data(tmp_path, "int16", -32768)
    pixels = np.linspace(-32768, 32767, 1920).astype(np.int16).reshape(SIZE)
    tifffile.imwrite(tmp_path / "images/0.tif", pixels)
    Folder(str(tmp_path), ["a", "b"]).read("0")
    assert caplog.text == ""


def test_nan_that_is_not_declared_names_the_option(tmp_path):
    make_data(tmp_path, "float32", np.nan)
    with pytest.raises(
        DataError, match=r"150 of 1920 values are NaN.*data\.nodata=nan declares it"
    ):
        Folder(str(tmp_path), ["a", "b"]).read("0")
    cfg = compose_checked(
        "train", ["data=folder", f"data.root={tmp_path}", "data.classes=[a,b]", "data.nodata=nan"]
    )
    assert cfg.data.nodata == "nan" and instantiate_node(cfg.data, "data").read("0")[1][0, 0] == 255


def test_coco_leaves_it_out_too(tmp_path):
    images = make_data(tmp_path, "float32", -9999, "-9999")
    shapes = {f"images/{i}.tif": [(3, box(5, 5, 30, 30))] for i in range(6)}
    content = coco_of(shapes, dict.fromkeys(shapes, SIZE))
    (tmp_path / "coco.json").write_text(json.dumps(content))
    source = Coco(str(tmp_path), str(tmp_path / "coco.json"), classes=["rest", "cell"])
    image, mask = source.read("images/0")
    right = np.zeros(SIZE, int)
    right[5:30, 5:30] = 1
    right[np.isnan(images[0][..., 0])] = 255
    np.testing.assert_array_equal(mask, right)
    np.testing.assert_array_equal(np.isnan(image), np.isnan(images[0]))


@pytest.fixture(
    scope="module",
    params=[("float32", -9999.0, "-9999"), ("uint8", 255, "255")],
    ids=["float", "integer"],
)
def runs(request, tmp_path_factory) -> tuple[Path, list[str]]:
    """Data whose tag says what means no data, and two runs trained on it."""
    place = tmp_path_factory.mktemp("nodata")
    make_data(place / "data", *request.param)
    folders = []
    for seed in (0, 1):
        outputs = place / f"outputs-{seed}"
        train(
            config(
                "train",
                *TRAINING,
                f"data.root={place / 'data'}",
                f"outputs={outputs}",
                f"seed={seed}",
            )
        )
        folders.append(str((outputs / "latest").resolve()))
    return place, folders


def without_tag(place: Path, name: str = "0") -> Path:
    """An image as it is, but for the tag."""
    file = place / "plain.tif"
    tifffile.imwrite(file, tifffile.imread(place / f"data/images/{name}.tif"))
    return file


def test_a_prediction_sees_the_mean_there_and_its_mask_is_255(runs):
    place, (folder, _) = runs
    predictor = seg.load(folder)
    predicted = predictor.predict(place / "data/images/0.tif")
    lost = np.zeros(SIZE, bool)
    lost[:10, :15] = True
    assert (predicted.mask[lost] == 255).all() and (predicted.mask[~lost] < 2).all()
    # the same network on the mean of the training images, in the place of the corner
    intensity = predictor.run.intensity
    stored = tifffile.imread(place / "data/images/0.tif").astype(np.float32)[..., None]
    normal = (
        (stored - intensity.low) / (intensity.high - intensity.low) - intensity.mean[0]
    ) / intensity.std[0]
    normal[lost] = 0
    with torch.no_grad():
        logits = predictor.run.model(
            torch.from_numpy(normal.transpose(2, 0, 1)[None].astype(np.float32))
        )
    np.testing.assert_allclose(predicted.probabilities[1], logits.sigmoid()[0, 0], atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 5, 20])
def test_a_mask_in_a_png_keeps_255_with_any_number_of_classes(tmp_path, classes):
    mask = np.array([[0, classes - 1, 255], [255, 0, 1]], np.uint8)
    write_mask(tmp_path / "a.png", mask, [(i, i, i) for i in range(classes)])
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.array(image), mask)


def test_the_checkpoint_keeps_the_value_for_files_without_the_tag(runs):
    place, (folder, _) = runs
    predictor = seg.load(folder)
    right = predictor.predict(place / "data/images/0.tif")
    file = without_tag(place)
    for image in (file, tifffile.imread(file)):
        np.testing.assert_array_equal(predictor.predict(image).mask, right.mask)
        np.testing.assert_array_equal(predictor.predict(image).probabilities, right.probabilities)


def test_an_ensemble_is_the_mean_of_its_members(runs):
    place, folders = runs
    members = [seg.load(folder).predict(place / "data/images/1.tif") for folder in folders]
    together = seg.load(folders).predict(place / "data/images/1.tif")
    mean = np.mean([member.probabilities for member in members], 0)
    np.testing.assert_allclose(together.probabilities, mean, atol=1e-5)
    assert (together.mask[:11, :15] == 255).all() and (together.mask[11:] < 2).all()
    model = ensemble.load_members(folders).model
    raw = torch.from_numpy(tifffile.imread(place / "data/images/1.tif").astype(np.float32))[
        None, None
    ]
    with torch.no_grad():
        np.testing.assert_allclose(
            model(raw).sigmoid()[0, 0], mean[1], atol=1e-5
        )  # as seg.export has it


def test_files_in_tiles_have_the_mask_of_the_whole(runs, tmp_path):
    place, (folder, _) = runs
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/large.tif"
    pixels = np.tile(tifffile.imread(place / "data/images/0.tif"), (3, 4))
    tifffile.imwrite(file, pixels, rowsperstrip=8, compression="zlib")
    right = seg.load(folder).predict(file)
    assert (right.mask == 255).sum() == 12 * 150
    kinds = "save=[masks,overlays,contours,probabilities,instances]"
    words = [
        f"run={folder}",
        f"output={tmp_path / 'out'}",
        kinds,
        f"input={tmp_path / 'in'}",
        "tile=96",
    ]
    predict_files(config("predict", *words))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/masks/large.tif"), right.mask)
    probabilities = tifffile.imread(tmp_path / "out/probabilities/large.tif")
    np.testing.assert_allclose(probabilities, right.probabilities, atol=1e-5)
    objects = tifffile.imread(tmp_path / "out/instances/large.tif")
    assert (objects[right.mask == 255] == 0).all()


def test_evaluation_ignores_it(runs, tmp_path):
    place, (folder, _) = runs
    scores = evaluate(
        config("evaluate", f"run={folder}", f"output={tmp_path / 'out'}", "data.split=all")
    )
    predictor, hits, union = seg.load(folder), 0, 0
    for number in range(6):
        mask = predictor.predict(place / f"data/images/{number}.tif").mask
        truth = tifffile.imread(place / f"data/masks/{number}.tif")
        known = mask != 255
        hits += int(((mask == 1) & (truth == 1) & known).sum())
        union += int((((mask == 1) | (truth == 1)) & known).sum())
    assert scores["all/iou/in"] == pytest.approx(hits / union if union else 0, abs=1e-6)


@pytest.mark.parametrize("kind", slow_but(["onnx", "torch"], "onnx"))
def test_an_exported_network_sees_the_mean_there(runs, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    place, (folder, _) = runs
    file = export_run(
        config(
            "export", f"run={folder}", f"format={kind}", f"output={tmp_path}/model{SUFFIXES[kind]}"
        )
    )
    right = seg.load(folder).predict(place / "data/images/0.tif")
    raw = tifffile.imread(place / "data/images/0.tif").astype(np.float32)[None, None]
    np.testing.assert_allclose(open_export(file, kind)(raw)[0], right.probabilities, atol=1e-4)


def test_other_data_with_another_value_is_refused_and_the_remedy_scores_it(runs, tmp_path):
    _, (folder, _) = runs
    if seg.load(folder).run.intensity.dtype != "uint8":
        make_data(tmp_path / "other", "float32", -1.0, "-1")  # floats need no common value
        words = [
            f"run={folder}",
            "data=folder",
            f"data.root={tmp_path}/other",
            f"output={tmp_path}/out",
        ]
        assert evaluate(config("evaluate", *words))
        return
    make_data(tmp_path / "other", "uint8", 0, "0")
    words = [
        f"run={folder}",
        "data=folder",
        f"data.root={tmp_path}/other",
        f"output={tmp_path}/out",
    ]
    with pytest.raises(DataError, match="0 means no data, but 255 in the images") as error:
        evaluate(config("evaluate", *words))
    remedy = re.search(r"data\.nodata=\S+", str(error.value))[0]
    assert evaluate(config("evaluate", *words, remedy))


def test_a_file_with_nan_is_predicted_with_the_option_that_its_error_names(runs, tmp_path):
    _, (folder, _) = runs
    make_data(tmp_path, "float32", np.nan, count=1)
    words = [
        f"run={folder}",
        f"input={tmp_path / 'images'}",
        f"output={tmp_path / 'out'}",
        "save=[masks]",
    ]
    with pytest.raises(UserError, match="values are NaN") as error:
        predict_files(config("predict", *words))
    remedy = re.search(r"in seg\.predict (nodata=\w+)", str(error.value))[1]
    predict_files(compose_checked("predict", [*words, remedy, f"output={tmp_path / 'second'}"]))
    mask = tifffile.imread(tmp_path / "second/masks/0.tif")
    assert (mask[:10, :15] == 255).all() and (mask[10:] < 2).all()
