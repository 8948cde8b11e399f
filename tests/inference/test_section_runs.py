"""A run that sees neighbouring sections, through each command, against its formula on whole arrays."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from PIL import Image
from small_runs import config, folded_run

import seg
from seg.commands.crossval import crossval
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.data.normalization import Normalization
from seg.errors import DataError, RunError, UserError
from seg.inference import ensemble
from seg.inference.ensemble import Ensemble
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.models import UNet
from seg.runs import load
from seg.runs.load import LoadedRun
from seg.training.run import train
from seg.training.sample_sheet import draw_sample_sheet, open_training_data

HEIGHT, WIDTH, SECTIONS = 136, 56, 5
SMALL = ["data=folder", "data.classes=[out,in]", "model.width=2", "model.depth=1", "loader.crop=32", "loader.repeats=2",
         "logger=none", "trainer=cpu", "trainer.max_epochs=2", "panels=1", "data.pages=slices"]  # fmt: skip


def make_volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sections (Z, H, W) uint8 of noise with a bar that wanders from section to section, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SECTIONS, HEIGHT, WIDTH), np.uint8)
    for z in range(SECTIONS):
        mask[z, 10 : 70 + 9 * z, 8 + 4 * z : 24 + 4 * z] = 1
    return (40 + 90 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8), mask


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two stacks of five sections, in compressed TIFFs."""
    root = tmp_path_factory.mktemp("stacks")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for seed, name in enumerate("ab"):
        for part, pages in zip(("images", "masks"), make_volume(seed), strict=True):
            tifffile.imwrite(root / part / f"{name}.tif", pages, photometric="minisblack", compression="zlib")  # fmt: skip
    return root


@pytest.fixture(scope="module")
def run(root) -> Path:
    words = [f"data.root={root}", f"outputs={root / 'runs'}", "data.neighbours=1"]
    train(config("train", *SMALL, *words))
    return (root / "runs/latest").resolve()


def by_hand(run: LoadedRun, volume: np.ndarray, z: int) -> np.ndarray:
    """Probability (H, W) of class 1 in a section of a volume (Z, H, W), by the network's formula."""
    near = [min(max(one, 0), len(volume) - 1) for one in (z - 1, z, z + 1)]
    scaled = volume[near].astype(np.float32) / np.float32(255)
    mean, std = (np.float32(v)[:, None, None] for v in (run.intensity.mean, run.intensity.std))
    with torch.no_grad():
        logit = run.model(torch.from_numpy((scaled - mean) / std)[None])[0, 0].double().numpy()
    return 1 / (1 + np.exp(-logit))


def predicted(run: object, given: object, output: Path, *words: str) -> list[Path]:
    options = [f"run={run}", f"input={given}", f"output={output}", "accelerator=cpu", *words]
    return predict_files(config("predict", *options))


def write_pages(folder: Path, volume: np.ndarray, name: str = "z{:02d}.png") -> Path:
    folder.mkdir()
    for z, page in enumerate(volume):
        Image.fromarray(page).save(folder / name.format(z))
    return folder


def test_a_run_knows_its_neighbours_and_has_a_channel_for_each_section(run):
    loaded = load.load_run(run)
    assert loaded.intensity.neighbours == 1 and loaded.intensity.channels == 3
    assert len(set(loaded.intensity.mean)) == 1
    assert loaded.config["model"]["in_channels"] == 3
    assert loaded.config["data"]["neighbours"] == 1


def test_a_stack_is_predicted_by_the_sections_around_each(run, root, tmp_path):
    written = predicted(run, root / "images/a.tif", tmp_path, "save=[probabilities,masks,overlays,instances]")  # fmt: skip
    assert len(written) == 2 + SECTIONS + 2
    volume, _ = make_volume(0)
    loaded = load.load_run(run)
    p = tifffile.imread(tmp_path / "probabilities/a.tif")
    for z in range(SECTIONS):
        np.testing.assert_allclose(p[z, 1], by_hand(loaded, volume, z), atol=1e-5)
    # measured and drawn on the section itself
    rows = (tmp_path / "instances/a.csv").read_text().splitlines()
    labels = tifffile.imread(tmp_path / "instances/a.tif")
    columns, cells = rows[0].split(","), [row.split(",") for row in rows[1:]]
    at = {name: columns.index(name) for name in ("page", "label")}
    mean = next(i for i, name in enumerate(columns) if "mean" in name and "prob" not in name)
    assert sum("mean" in name and "prob" not in name for name in columns) == 1
    for cell in cells:
        z, label = int(cell[at["page"]]), int(cell[at["label"]])
        assert float(cell[mean]) == pytest.approx(volume[z][labels[z] == label].mean(), rel=1e-4)


def test_tiles_give_what_the_whole_section_gives(run, root, tmp_path):
    for name, words in {"whole": ["tile=null"], "tiles": ["tile=96", "overlap=32", "batch=2"]}.items():  # fmt: skip
        predicted(run, root / "images/a.tif", tmp_path / name, "save=[probabilities]", *words)
    whole, tiles = (tifffile.imread(tmp_path / f"{n}/probabilities/a.tif") for n in ("whole", "tiles"))  # fmt: skip
    np.testing.assert_allclose(tiles, whole, atol=1e-6)


def test_files_of_a_folder_give_what_the_pages_of_a_stack_give(run, root, tmp_path):
    volume, _ = make_volume(0)
    folder = write_pages(tmp_path / "pages", volume)
    predicted(run, root / "images/a.tif", tmp_path / "stack", "save=[probabilities]")
    predicted(run, folder, tmp_path / "files", "save=[probabilities]")
    predicted(run, folder / "z03.png", tmp_path / "one", "save=[probabilities]")
    p = tifffile.imread(tmp_path / "stack/probabilities/a.tif")
    for z in range(SECTIONS):
        file = tmp_path / f"files/probabilities/z{z:02d}.tif"
        np.testing.assert_allclose(tifffile.imread(file), p[z], atol=1e-6)
    one = tifffile.imread(tmp_path / "one/probabilities/z03.tif")  # its neighbours lie beside it
    np.testing.assert_array_equal(one, tifffile.imread(tmp_path / "files/probabilities/z03.tif"))


def test_a_changed_neighbour_is_a_changed_input(run, tmp_path, capsys):
    folder = write_pages(tmp_path / "pages", make_volume(0)[0])
    words = [run, folder, tmp_path / "out", "save=[masks]"]
    assert len(predicted(*words)) == SECTIONS
    assert predicted(*words) == []
    Image.fromarray(make_volume(1)[0][4]).save(folder / "z04.png")
    record = json.loads((tmp_path / "out/predict.json").read_text()) | {"status": "running"}
    (tmp_path / "out/predict.json").write_text(json.dumps(record))
    assert {file.stem for file in predicted(*words)} == {"z03", "z04"}


def test_what_is_no_section_is_named_in_one_line(run, tmp_path):
    image = make_volume(0)[0]
    folder = write_pages(tmp_path / "photos", image[:1], "photo.png")
    with pytest.raises(UserError, match=r"^data.neighbours=1: \S*photo.png is no section of a stack, as .*stack in one file") as error:  # fmt: skip
        predicted(run, folder, tmp_path / "a")
    assert "\n" not in str(error.value)
    gap = write_pages(tmp_path / "gap", image)
    (gap / "z02.png").unlink()
    with pytest.raises(UserError, match=r"z01.png and \S*z03.png follow each other as sections 1 and 3"):  # fmt: skip
        predicted(run, gap, tmp_path / "b")
    other = write_pages(tmp_path / "size", image)
    Image.fromarray(image[2, :40]).save(other / "z02.png")
    with pytest.raises(UserError, match=r"z01.png is 136x56 px and its neighbour \S*z02.png 40x56 px"):  # fmt: skip
        predicted(run, other / "z01.png", tmp_path / "c")
    for output in "abc":
        assert not list((tmp_path / output).rglob("*.png"))


def test_a_loaded_run_predicts_files_and_arrays_of_all_sections(run, root, tmp_path):
    volume, _ = make_volume(0)
    predictor, loaded = seg.load(str(run), accelerator="cpu"), load.load_run(run)
    folder = write_pages(tmp_path / "pages", volume)
    wanted = by_hand(loaded, volume, 2)
    for given in (folder / "z02.png", volume[1:4].transpose(1, 2, 0)):
        found = predictor.predict(given)
        np.testing.assert_allclose(found.probabilities[1], wanted, atol=1e-5)
        np.testing.assert_array_equal(found.image[..., 0], volume[2])
        assert found.overlay().shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(DataError, match=r"1 channel\(s\), but the run sees the sections z-1 to z\+1 .*give \(height, width, 3\)"):  # fmt: skip
        predictor.predict(volume[2])
    with pytest.raises(DataError, match="5 pages, but one image is needed"):
        predictor.predict(root / "images/a.tif")


def test_evaluation_is_that_of_the_predictions_also_in_tiles_and_of_other_data(run, root, tmp_path):
    predicted(run, root / "images", tmp_path / "p", "save=[masks]")
    scores = evaluate(config("evaluate", f"run={run}", f"output={tmp_path / 'e'}", "panels=1"))
    names = json.loads((tmp_path / "e/metrics.json").read_text())["images"]
    places = [(name[0], int(name[-1])) for name in names]
    truth, found = (
        np.stack([tifffile.imread(folder / f"{s}.tif")[z] for s, z in places])
        for folder in (root / "masks", tmp_path / "p/masks")
    )
    assert scores["val/pixel_accuracy"] == pytest.approx((truth == found).mean(), abs=1e-6)
    tiled = evaluate(config("evaluate", f"run={run}", f"output={tmp_path / 't'}", "panels=1", "tile=96"))  # fmt: skip
    for name, value in scores.items():
        assert tiled[name] == pytest.approx(value, abs=2e-6, nan_ok=True), name
    for folder in "et":  # pictures of one channel, the section's own
        with Image.open(next((tmp_path / folder / "panels").glob("*.png"))) as picture:
            assert picture.size[0] > WIDTH
    other = tmp_path / "other"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("runs"))
    words = ["data=folder", f"data.root={other}", "data.pages=slices", "data.split=val", "panels=0"]
    same = evaluate(config("evaluate", f"run={run}", f"output={tmp_path / 'o'}", *words))
    assert same["val/dice"] == pytest.approx(scores["val/dice"], abs=1e-9)


def test_data_of_other_neighbours_are_refused(run, root, tmp_path):
    message = r"^data.neighbours=2: the run was trained on data.neighbours=1; give its own number"
    with pytest.raises(UserError, match=message):
        evaluate(config("evaluate", f"run={run}", f"output={tmp_path}", "+data.neighbours=2"))
    words = ["data=folder", f"data.root={root}", "data.pages=slices", "data.neighbours=2"]
    with pytest.raises(UserError, match=message):
        evaluate(config("evaluate", f"run={run}", f"output={tmp_path}", *words))
    with pytest.raises(UserError, match=r"^data.neighbours=0: the run was trained on data.neighbours=1.*data of stacks"):  # fmt: skip
        evaluate(config("evaluate", f"run={run}", f"output={tmp_path}", "data=coco", f"data.root={write_coco(tmp_path / 'coco')}", f"data.annotations={tmp_path / 'coco/coco.json'}"))  # fmt: skip


def write_coco(root: Path) -> Path:
    root.mkdir()
    images = []
    for number in range(4):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 8, "width": 8})
    boxes = [
        {"id": n + 1, "image_id": n, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0,
         "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]} for n in range(4)
    ]  # fmt: skip
    text = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "in"}]}
    (root / "coco.json").write_text(json.dumps(text))
    return root


def test_an_exported_file_takes_the_sections_as_its_channels_and_says_so(run, tmp_path, capsys):
    file = export_run(config("export", f"run={run}", f"output={tmp_path / 'm.onnx'}"))
    said = " ".join(capsys.readouterr().out.split())
    words = "image (batch, 3, height, width) float32, values as stored: the sections z-1 to z+1 of a stack, 1 channel(s) each"
    assert words in said
    volume, _ = make_volume(0)
    facts = json.loads({p.key: p.value for p in onnx.load(file).metadata_props}["seg"])
    assert facts["channels"] == 3 and facts["neighbours"] == 1
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    p = session.run(None, {"image": volume[1:4][None].astype(np.float32)})[0]
    np.testing.assert_allclose(p[0][1], by_hand(load.load_run(run), volume, 2), atol=1e-5)


def test_a_section_without_data_is_the_mean_in_an_ensemble_too():
    at = Normalization(0.0, 255.0, [0.4, 0.6], [0.1, 0.2], dtype="uint8", nodata=[7.0])
    at = at.with_neighbours(1)
    image = np.random.default_rng(0).choice(np.array([7, 90], np.uint8), (9, 11, 6))
    wanted = at.normalised(at.scaled(image)).transpose(2, 0, 1)
    assert 20 < (wanted.reshape(3, 2, -1) == 0).all(1).sum() < 150  # about a quarter of 3 x 99
    network = Ensemble([UNet(6, 1, width=1, depth=1)], [at])
    stored = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None]
    np.testing.assert_array_equal(network.normalised(stored, 0)[0].numpy(), wanted)


def test_each_fold_predicts_its_own_sections_with_neighbours_of_other_folds(root, tmp_path):
    words = ["data.images=images/a.tif", "data.masks=masks/a.tif", "data.pages=slices", "data.neighbours=1",
             "data.contiguous=true", "data.folds=2", "save=[probabilities]"]  # fmt: skip
    output = tmp_path / "cv"
    record = crossval(config("crossval", *folded_run(root, output, *words)))
    assert record["status"] == "finished" and len(record["images"]) == SECTIONS
    assert list(record["images"].values()) == [
        0,
        0,
        0,
        1,
        1,
    ]  # so sections 2 and 3 have a neighbour of the other
    volume, _ = make_volume(0)
    for name, fold in record["images"].items():
        loaded = load.load_run(output / record["folds"][fold]["run"])
        (file,) = output.rglob(f"{name}.tif")
        wanted = by_hand(loaded, volume, int(name[-1]))
        np.testing.assert_allclose(tifffile.imread(file)[1], wanted, atol=1e-5)
    joined = ensemble.load_members(str(output))
    assert joined.intensity.neighbours == 1 and joined.intensity.image_channels == 1
    predicted(output, root / "images/a.tif", tmp_path / "p", "save=[probabilities]")
    p = tifffile.imread(tmp_path / "p/probabilities/a.tif")
    members = [load.load_run(output / fold["run"]) for fold in record["folds"]]
    wanted = np.mean([by_hand(member, volume, 2) for member in members], axis=0)
    np.testing.assert_allclose(p[2, 1], wanted, atol=1e-5)


def test_runs_of_other_neighbours_make_no_ensemble(run, root, tmp_path):
    train(config("train", *SMALL, f"data.root={root}", f"outputs={tmp_path}", "data.neighbours=2"))
    with pytest.raises(RunError, match=r"make no ensemble: (channels|data.neighbours)"):
        ensemble.load_members([str(run), str(tmp_path / "latest")])


def test_depths_of_a_grid_that_sees_sections_are_compared(root, tmp_path):
    words = [f"data.root={root}", f"outputs={tmp_path}", "data.neighbours=1", "model=unetpp", "model.depth=2"]  # fmt: skip
    train(config("train", *SMALL, *words))
    levels = compare_depths(config("prune", f"run={tmp_path / 'latest'}", "rounds=1", "depth=1"))
    assert [level.name for level in levels] == ["L1", "L2", "average"]
    assert load.load_run(next(tmp_path.rglob("L1.ckpt"))).intensity.neighbours == 1


def test_a_damaged_number_of_neighbours_is_named(run, tmp_path):
    at = dict(load.load_run(run).intensity.to_dict())
    load.check_intensity(**at)
    for wrong in (-1, 2, True, "1", None):
        with pytest.raises(ValueError, match="neighbours"):
            load.check_intensity(**at | {"neighbours": wrong})


def test_the_sample_sheet_shows_the_section_in_the_middle(root):
    sheets = []
    for words in ([], ["data.neighbours=1"]):
        cfg = config("train", *SMALL, f"data.root={root}", "augment=none", *words)
        sheets.append(np.array(draw_sample_sheet(open_training_data(cfg), 3, 0)))
    np.testing.assert_array_equal(*sheets)
