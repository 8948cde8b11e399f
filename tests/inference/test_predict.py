"""Prediction from file to file, against sums by hand; killed, refused, out of space, and gone on with."""

import csv
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import zarr
from cases import slow_but
from format_files import dicom, nifti, ome_zarr, record_chunks
from hydra.utils import instantiate
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from scipy import ndimage
from scipy.stats import entropy
from skimage.measure import regionprops_table
from small_runs import FOLDED, config, make_images

import seg
from seg import predict
from seg.cli.compose import compose_checked
from seg.commands.evaluate import evaluate
from seg.data.raster import ImageReader
from seg.data.spacing import read_spacing
from seg.display import panels
from seg.errors import DataError, RunError, UserError
from seg.inference import file_prediction, object_bands, outputs, zarr_writer
from seg.inference.band_writer import BandWriter
from seg.inference.file_prediction import predict_files
from seg.inference.outputs import OutputOptions, OutputTarget
from seg.runs import load, workers
from seg.runs.checkpoint import write_checkpoint
from seg.runs.records import write_json
from seg.training.run import train

GREEN = (0, 158, 115)
COLORS = [(32, 36, 44), GREEN, (240, 228, 66)]
SIZES = {"a": (64, 64), "b": (97, 130), "c": (200, 71), "d": (1, 150), "e": (150, 1), "f": (1, 1), "g": (65, 193)}  # fmt: skip
NETWORKS = {
    "same": {},
    "valid": {"padding": "valid"},
    "bilinear": {"up": "bilinear", "down": "average", "norm": "batch"},
    "nested": {"_target_": "seg.models.NestedUNet", "output": "average"},
}


def make_run(folder: Path, channels: int = 1, classes: int = 2, seed: int = 0, **changes) -> Path:
    """A checkpoint of a tiny network as it is drawn, whose logits are around 0.

    Args:
        folder: that receives it.
        channels: of the image.
        classes: of the mask.
        seed: of its weights.
        **changes: ``task``, ``threshold``, ``pages`` and ``intensity`` of the run; the rest are the network's.
    """
    own = {name: changes.pop(name) for name in ("task", "threshold") if name in changes}
    data = {"pages": changes.pop("pages", None)}
    intensity = {"low": 0.0, "high": 255.0, "mean": [0.45] * channels, "std": [0.25] * channels}
    intensity |= changes.pop("intensity", {})
    k = 1 if classes == 2 and own.get("task") != "overlapping" else classes
    node = {"_target_": "seg.models.UNet", "in_channels": channels, "num_classes": k, "width": 2,
            "depth": 2, "norm": "none"} | changes  # fmt: skip
    torch.manual_seed(seed)
    model = instantiate(node)
    seen = torch.from_numpy(textured(124, 124, channels, seed=99).transpose(2, 0, 1) / 255.0)
    with torch.no_grad():
        for norm in (one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.2), norm.running_var.uniform_(0.5, 2)
        x = model.eval()((seen.float()[None] - 0.45) / 0.25)
        for head in [model.head] if hasattr(model, "head") else model.heads.values():
            head.weight.mul_(2 / x.std())
            head.bias.sub_(2 * x[0].flatten(1).median(1).values / x.std())
    card = {
        "config": {"model": node, "loss": {"_target_": "seg.losses.Dice"}, "data": data},
        "classes": ["out", "in", "edge"][:classes], "colors": COLORS[:classes], "intensity": intensity,
    }  # fmt: skip
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "run.ckpt", {"seg": card | own, "state_dict": weights})
    return folder / "run.ckpt"


def textured(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs and noise, uint8."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(height, width, *channels))
    smooth = ndimage.gaussian_filter(field, (4, 4, *[0] * len(channels)))
    return (128 + 60 * np.tanh(9 * smooth) + 15 * rng.normal(size=field.shape)).clip(0, 255).astype(np.uint8)  # fmt: skip


def by_hand(file: Path, image: np.ndarray) -> np.ndarray:
    """Probabilities (C, H, W) of the whole image at once, by the formulas; valid networks see it mirrored."""
    content = torch.load(file, weights_only=True)
    card = content["seg"]
    model = instantiate(card["config"]["model"]).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in content["state_dict"].items()})
    own = card["intensity"]
    x = image.reshape(*image.shape[:2], -1).astype(np.float64)
    x = ((x - own["low"]) / (own["high"] - own["low"]) - own["mean"]) / own["std"]
    if context := getattr(model, "context", 0):
        after = [model.input_side(side) - side - context for side in image.shape[:2]]
        x = np.pad(x, [(context, after[0]), (context, after[1]), (0, 0)], mode="reflect")
    with torch.no_grad():
        logits = model(torch.from_numpy(x.transpose(2, 0, 1)).float()[None])[0].double().numpy()
    logits = logits[:, : image.shape[0], : image.shape[1]]
    if card.get("task") == "overlapping":
        return 1 / (1 + np.exp(-logits))
    if len(logits) == 1:
        return np.concatenate([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))])
    return np.exp(logits) / np.exp(logits).sum(0)


def words_of(run: object, given: object, output: object, *words: str) -> list[str]:
    return [f"run={run}", f"input={given}", f"output={output}", "accelerator=cpu", "tile=96", "overlap=32", *words]  # fmt: skip


def predicted(run: object, given: object, output: object, *words: str) -> list[Path]:
    return predict_files(config("predict", *words_of(run, given, output, *words)))


def content(folder: Path) -> dict[str, bytes]:
    """Every file with results."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "predict.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def shown(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def run(root) -> Path:
    return make_run(root / "grey")


@pytest.fixture(scope="module")
def folder(root) -> Path:
    """Grey images of several sizes."""
    (root / "images").mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(textured(*size, seed=seed)).save(root / f"images/{name}.png")
    return root / "images"


@pytest.fixture(scope="module")
def stack(root) -> Path:
    """Three pages of 16 bits, with a resolution and a place on Earth."""
    pages = np.stack([textured(130, 97, seed=s).astype(np.uint16) * 257 for s in range(3)])
    tifffile.imwrite(
        root / "stack.tif", pages, resolution=(400, 250), resolutionunit="CENTIMETER", photometric="minisblack",
        extratags=[(33550, "d", 3, (0.5, 0.5, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 4.5e5, 5.1e6, 0.0), True),
                   (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True), (34737, "s", 6, "WGS84|", True)],
    )  # fmt: skip
    return root / "stack.tif"


@pytest.fixture(scope="module")
def run16(root) -> Path:
    return make_run(root / "sixteen", intensity={"high": 65535.0})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_give_what_the_whole_image_gives(root, folder, tmp_path, name, batch):
    file = make_run(root / name, **NETWORKS[name])
    predicted(file, folder, tmp_path, "save=[masks,probabilities]", f"batch={batch}")
    for stem in SIZES:
        image = shown(folder / f"{stem}.png")
        wanted = by_hand(file, image)
        p = tifffile.imread(tmp_path / f"probabilities/{stem}.tif").reshape(2, *image.shape)
        np.testing.assert_allclose(p, wanted, atol=1e-5)
        mask = shown(tmp_path / f"masks/{stem}.png")
        np.testing.assert_array_equal(mask, p[1] > 0.5)
        assert image.size < 200 or 0.02 < mask.mean() < 0.98
    assert not (tmp_path / ".partial").exists()
    assert json.loads((tmp_path / "predict.json").read_text())["status"] == "finished"


def test_the_context_that_the_network_states_leaves_no_seam(run, folder, tmp_path, capsys):
    words = ["overlap=auto", "save=[probabilities]", "check_seams=true"]
    predicted(run, folder / "c.png", tmp_path, *words)
    p = tifffile.imread(tmp_path / "probabilities/c.tif")
    np.testing.assert_allclose(p, by_hand(run, shown(folder / "c.png")), atol=1e-5)
    said = " ".join(capsys.readouterr().out.split())
    assert "overlap 32 px: from the architecture, the receptive field reaches" in said
    assert "tiles equal the whole image" in said
    largest = re.search(
        r"seams c\.png: probabilities in tiles differ by (\d\.\de[+-]\d\d) at most", said
    )
    assert largest is not None and float(largest[1]) <= 1e-5


def test_stacks_give_stacks_page_by_page_with_the_place_of_their_pixels(run16, stack, tmp_path):
    kinds = ["masks", "probabilities", "uncertainty", "instances", "submission", "overlays", "contours"]  # fmt: skip
    save = f"save=[{','.join(kinds)}]"
    written = predicted(run16, stack, tmp_path / "stack", save)
    assert sorted(written) == sorted((tmp_path / "stack" / name) for name in content(tmp_path / "stack"))  # fmt: skip
    pages = tifffile.imread(stack)
    (tmp_path / "pages").mkdir()
    for number, page in enumerate(pages):
        tifffile.imwrite(tmp_path / f"pages/stack-{number:03d}.tif", page)
    predicted(run16, tmp_path / "pages", tmp_path / "single", save)
    for kind in kinds[:5]:
        with tifffile.TiffFile(tmp_path / f"stack/{kind}/stack.tif") as tiff:
            whole, page = tiff.asarray(), tiff.pages[0]
            tags = page.tags
            assert tags["XResolution"].value == (400, 1) and tags["YResolution"].value == (250, 1)
            assert tags["ResolutionUnit"].value == 3
            assert tags[33550].value == (0.5, 0.5, 0.0) and tags[33922].value[3:5] == (4.5e5, 5.1e6)
            assert tags[34735].value == (1, 1, 0, 1, 1024, 0, 1, 1)
            assert tags[34737].value.rstrip("\0") == "WGS84|"
            assert page.compression.name.endswith("DEFLATE")
            assert page.is_tiled and page.tile == (256, 256)
        assert whole.shape == ((3, 2, 130, 97) if kind == "probabilities" else (3, 130, 97))
        assert whole.dtype == {"masks": np.uint8, "instances": np.uint16}.get(kind, np.float32)
        for number in range(3):
            alone = tifffile.imread(tmp_path / f"single/{kind}/stack-{number:03d}.tif")
            np.testing.assert_array_equal(whole[number], alone)
    for kind in kinds[5:]:
        for number in range(3):
            name = f"{kind}/stack-{number:03d}.png"
            assert (tmp_path / "stack" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()  # fmt: skip
    p = tifffile.imread(tmp_path / "stack/probabilities/stack.tif")
    for number, page in enumerate(pages):
        np.testing.assert_allclose(p[number], by_hand(run16, page), atol=1e-5)
    rows = list(csv.DictReader((tmp_path / "stack/instances/stack.csv").read_text().splitlines()))
    assert {row["page"] for row in rows} == {"0", "1", "2"}


@pytest.mark.parametrize("tags", [{"resolutionunit": "NONE", "resolution": (0, 0)}, {"resolution": (4e9, 1e-9)}], ids=str)  # fmt: skip
def test_odd_resolutions_are_no_obstacle(run, tmp_path, tags):
    image = textured(40, 50)
    tifffile.imwrite(tmp_path / "x.tif", image, **tags)
    predicted(run, tmp_path / "x.tif", tmp_path / "out", "save=[masks,instances]")
    assert tifffile.imread(tmp_path / "out/masks/x.tif").shape == image.shape


@pytest.mark.parametrize(("tag", "at", "value"), [("ResolutionUnit", 0, 0), ("ResolutionUnit", 0, 17), ("XResolution", 4, 0)])  # fmt: skip
def test_a_unit_or_fraction_that_there_is_not_is_no_obstacle(run, tmp_path, tag, at, value):
    file = tmp_path / "x.tif"
    tifffile.imwrite(file, textured(40, 50), resolution=(3, 3))
    with tifffile.TiffFile(file) as tiff:
        at += tiff.pages[0].tags[tag].valueoffset
    damaged = bytearray(file.read_bytes())
    damaged[at : at + 2] = value.to_bytes(2, "little")
    file.write_bytes(damaged)
    predicted(run, file, tmp_path / "out", "save=[masks,instances]")
    assert tifffile.imread(tmp_path / "out/masks/x.tif").shape == (40, 50)


@pytest.fixture(scope="module")
def kinds(root, run, folder) -> Path:
    """Every kind of result of one grey image of 97 x 130 px."""
    save = "save=[masks,probabilities,uncertainty,overlays,contours,instances,submission]"
    predicted(run, folder / "b.png", root / "kinds", save, "objects.min_size=20", "threshold=0.4")
    return root / "kinds"


@pytest.mark.parametrize(("name", "most"), [("uint16", 65535), ("uint8", 255)])
def test_probabilities_as_integers_are_within_half_a_step(run, folder, tmp_path, kinds, name, most):
    save = "save=[probabilities,uncertainty,submission]"
    predicted(run, folder / "b.png", tmp_path, save, f"probabilities={name}")
    for kind in ("probabilities", "uncertainty"):
        exact = tifffile.imread(kinds / kind / "b.tif").astype(np.float64)
        found = tifffile.imread(tmp_path / kind / "b.tif")
        assert found.dtype == name and found.shape == exact.shape
        assert np.abs(found / most - exact).max() <= 0.5 / most + 1e-7
        assert len(np.unique(found)) > 100
    assert tifffile.imread(tmp_path / "submission/b.tif").dtype == np.float32


def test_uncertainty_is_the_entropy_in_bits_and_the_submission_class_1(run, folder, kinds):
    p = by_hand(run, shown(folder / "b.png"))
    found = tifffile.imread(kinds / "uncertainty/b.tif")
    np.testing.assert_allclose(found, entropy(p, base=2), atol=2e-5)
    assert found.min() >= 0 and found.max() <= 1 + 1e-6
    sent = tifffile.imread(kinds / "submission/b.tif")
    assert sent.dtype == np.float32 and sent.shape == (97, 130)
    np.testing.assert_allclose(sent, p[1], atol=1e-5)


def test_the_mask_shows_its_classes_colours_and_follows_the_threshold(kinds):
    p = tifffile.imread(kinds / "probabilities/b.tif")
    with Image.open(kinds / "masks/b.png") as image:
        assert image.mode == "P" and image.getpalette()[:6] == [*COLORS[0], *GREEN]
        np.testing.assert_array_equal(np.array(image), p[1] > 0.4)
    assert ((p[1] > 0.4) != (p[1] > 0.5)).any()


def test_instances_are_the_regions_above_the_threshold_with_a_row_each(kinds, folder):
    p = tifffile.imread(kinds / "probabilities/b.tif")[1]
    labels = tifffile.imread(kinds / "instances/b.tif")
    regions, number = ndimage.label(p > 0.4)
    sizes = ndimage.sum_labels(np.ones_like(regions), regions, range(1, number + 1))
    kept = np.flatnonzero(sizes >= 20) + 1
    assert number > len(kept) > 3 and labels.max() == len(kept)
    np.testing.assert_array_equal(labels > 0, np.isin(regions, kept))
    rows = list(csv.DictReader((kinds / "instances/b.csv").read_text().splitlines()))
    names = ["label", "area", "centroid", "bbox", "perimeter", "eccentricity", "orientation", "intensity_mean", "intensity_min", "intensity_max"]  # fmt: skip
    wanted = regionprops_table(labels, shown(folder / "b.png")[:, :, None], properties=names)
    wanted["probability_mean"] = [p[labels == n].mean() for n in wanted["label"]]
    assert list(rows[0]) == ["page", *wanted]
    for name, values in wanted.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-5, err_msg=name)  # fmt: skip


def test_measurements_in_um_are_those_of_the_resolution_or_the_option(run, tmp_path):
    image = textured(60, 70)
    tifffile.imwrite(tmp_path / "x.tif", image, resolution=(400, 250), resolutionunit="CENTIMETER")
    for words, height, width in (([], 40, 25), (["spacing=[0.5,0.5]"], 0.5, 0.5)):
        output = tmp_path / f"out-{height}"
        predicted(run, tmp_path / "x.tif", output, "save=[instances]", *words)
        rows = list(csv.DictReader((output / "instances/x.csv").read_text().splitlines()))
        assert rows
        for row in rows:
            assert float(row["area_um2"]) == pytest.approx(int(row["area"]) * height * width)
            assert float(row["centroid-0_um"]) == pytest.approx(float(row["centroid-0"]) * height)
            assert float(row["bbox-3_um"]) == int(row["bbox-3"]) * width
            length = (
                f"{float(row['perimeter']) * 0.5:.6g}" if words else ""
            )  # pixels of 40 x 25 um are oblong
            assert row["perimeter_um"][:6] == length[:6]


def test_instances_in_bands_are_those_of_the_whole_image(run, tmp_path, monkeypatch):
    pages = np.stack([textured(150, 97, seed=s) for s in (3, 4)])
    tifffile.imwrite(tmp_path / "x.tif", pages, photometric="minisblack")
    words = "save=[instances]", "objects.split_neck_px=1", "threshold=0.4"
    predicted(run, tmp_path / "x.tif", tmp_path / "whole", *words)
    monkeypatch.setattr(object_bands, "BAND_PIXELS", 97 * 13)
    predicted(run, tmp_path / "x.tif", tmp_path / "bands", *words)
    assert not (tmp_path / "bands/.partial").exists() or not content(tmp_path / "bands/.partial")
    found, wanted = (tifffile.imread(tmp_path / f"{name}/instances/x.tif") for name in ("bands", "whole"))  # fmt: skip
    np.testing.assert_array_equal(found, wanted)
    tables = []
    for name in ("bands", "whole"):
        lines = (tmp_path / name / "instances/x.csv").read_text().splitlines()[1:]
        tables.append([[float(v) for v in line.split(",")] for line in lines])
    assert len(tables[0]) > 20
    np.testing.assert_allclose(*tables, rtol=1e-6)


def test_a_neck_parts_objects_and_none_at_all_are_an_empty_table(run, folder, tmp_path, kinds):
    predicted(run, folder / "b.png", tmp_path / "a", "save=[instances]", "objects.split_neck_px=1.0", "threshold=0.4", "objects.min_size=20")  # fmt: skip
    whole = tifffile.imread(kinds / "instances/b.tif")
    parted = tifffile.imread(tmp_path / "a/instances/b.tif")
    assert parted.max() > whole.max()
    predicted(run, folder / "b.png", tmp_path / "b", "save=[instances]", "threshold=0.99999")
    assert tifffile.imread(tmp_path / "b/instances/b.tif").max() == 0
    assert len((tmp_path / "b/instances/b.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "name", "words", "message"),
    [
        (outputs, "MAX_OUTLINE_PIXELS", ["save=[masks,polygons]"], r"b\.png: 97x130 px; save=\[polygons\] needs the whole"),
        (object_bands, "MAX_WINDOW_PIXELS", ["save=[instances]", "objects.split_neck_px=1"], r"b\.png: 97x130 px: an object of \d+x\d+ px"),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_memory_is_refused_and_nothing_is_left(
    run, folder, tmp_path, monkeypatch, module, name, words, message
):
    monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(object_bands, "BAND_PIXELS", 130)
    monkeypatch.setattr(object_bands, "SPLIT_PIXELS", 130)
    with pytest.raises(UserError, match=message):
        predicted(run, folder / "b.png", tmp_path, *words)
    assert not content(tmp_path) and not (tmp_path / ".partial").exists()


@pytest.fixture(scope="module")
def colour(root) -> tuple[Path, Path]:
    """A run of three classes on RGB, and an image."""
    Image.fromarray(textured(130, 97, 3, seed=5)).save(root / "colour.png")
    return make_run(root / "rgb", channels=3, classes=3, seed=1), root / "colour.png"


def expected_pictures(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where neighbours differ, upper and left ones, and within a pixel of such a border on both sides."""
    upper = np.zeros(mask.shape, bool)
    upper[:-1] = mask[:-1] != mask[1:]
    left = np.zeros(mask.shape, bool)
    left[:, :-1] = mask[:, :-1] != mask[:, 1:]
    both = upper | left
    both[1:] |= upper[:-1]
    both[:, 1:] |= left[:, :-1]
    return upper | left, both


@pytest.mark.parametrize("longest", [4096, 50])
def test_pictures_are_the_image_tinted_or_outlined_and_thinned_where_it_is_large(
    colour, tmp_path, monkeypatch, longest
):
    monkeypatch.setattr(outputs, "MAX_PICTURE_SIDE", longest)
    run, file = colour
    predicted(run, file, tmp_path, "save=[overlays,contours,masks]")
    thin = 1 if longest > 130 else 3
    image, mask = shown(file)[::thin, ::thin], shown(tmp_path / "masks/colour.png")
    assert mask.shape == (130, 97) and len(np.unique(mask)) == 3
    mask = mask[::thin, ::thin]
    edge, near = expected_pictures(image, mask)
    overlay, contours = (shown(tmp_path / kind / "colour.png") for kind in ("overlays", "contours"))
    assert overlay.shape == contours.shape == (-(-130 // thin), -(-97 // thin), 3)
    tinted = np.rint(0.55 * image + 0.45 * np.array(COLORS)[mask])
    np.testing.assert_array_equal(overlay[~edge], tinted[~edge])
    assert (overlay[edge] == 255).all() and edge.any()
    np.testing.assert_array_equal(contours[~near], image[~near])
    drawn = {tuple(c) for c in contours[near].tolist()}
    assert drawn == {GREEN, COLORS[2]}  # the higher of two classes; class 0 is never it


@pytest.mark.parametrize(("name", "shape", "dtype"), [("grey", (70, 50), np.uint8), ("rgb", (70, 50, 3), np.uint8), ("rgba", (70, 50, 4), np.uint8), ("palette", (70, 50), None), ("deep", (70, 50), np.uint16), ("1-bit", (70, 50), np.bool_)])  # fmt: skip
def test_png_of_every_kind(root, run, run16, colour, tmp_path, name, shape, dtype):
    rng = np.random.default_rng(0)
    if name == "palette":
        image = Image.fromarray(textured(*shape, 3)).quantize(17)
        wanted, own = np.array(image.convert("RGB")), colour[0]
    elif name == "1-bit":
        image = Image.fromarray(rng.random(shape) < 0.5)
        wanted, own = np.array(image) * np.uint8(255), run
    else:
        wanted = textured(*shape).astype(dtype)
        wanted = wanted * np.uint16(257) if name == "deep" else wanted
        image, own = Image.fromarray(wanted), {"deep": run16, "grey": run}.get(name, colour[0])
        wanted = wanted[..., :3] if name == "rgba" else wanted
    image.save(tmp_path / "x.png")
    predicted(own, tmp_path / "x.png", tmp_path / "out", "save=[masks,probabilities,overlays]")
    p = tifffile.imread(tmp_path / "out/probabilities/x.tif")
    np.testing.assert_allclose(p, by_hand(own, wanted), atol=1e-5)
    assert shown(tmp_path / "out/overlays/x.png").shape == (70, 50, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int16, np.int32])
def test_tiff_of_other_types(root, tmp_path, dtype):
    own = make_run(root / f"floats-{np.dtype(dtype)}", intensity={"low": -300.0, "high": 900.0})
    image = (textured(100, 130).astype(np.float64) * 4 - 250).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", image, compression="zlib", rowsperstrip=16)
    predicted(own, tmp_path / "x.tif", tmp_path / "out", "save=[probabilities,overlays,contours]")
    p = tifffile.imread(tmp_path / "out/probabilities/x.tif")
    np.testing.assert_allclose(p, by_hand(own, image.astype(np.float32)), atol=1e-5)


def test_integers_that_only_below_are_large_are_pictured_as_they_are(root, tmp_path):
    image = textured(200, 60).astype(np.int32) * 2
    image[150:] *= 300  # beyond 16 bits
    tifffile.imwrite(tmp_path / "x.tif", image)
    own = make_run(root / "int32", intensity={"high": 1e5})
    predicted(own, tmp_path / "x.tif", tmp_path / "out", "save=[contours,masks]")
    mask, drawn = tifffile.imread(tmp_path / "out/masks/x.tif"), shown(tmp_path / "out/contours/x.png")  # fmt: skip
    _, near = expected_pictures(image, mask)
    np.testing.assert_array_equal(drawn[~near], panels.to_rgb(image)[~near])


def test_pages_of_several_types_are_predicted_and_pictured_as_one(run, tmp_path):
    pages = [textured(60, 50), textured(60, 50).astype(np.uint16) * 257]  # the same picture
    with tifffile.TiffWriter(tmp_path / "x.tif") as out:
        for page in pages:
            out.write(page, metadata=None)
    predicted(run, tmp_path / "x.tif", tmp_path / "out", "save=[contours,masks]")
    masks = tifffile.imread(tmp_path / "out/masks/x.tif")
    np.testing.assert_array_equal(*masks)
    for number in range(2):
        _, near = expected_pictures(pages[0], masks[number])
        drawn = shown(tmp_path / f"out/contours/x-{number:03d}.png")
        np.testing.assert_array_equal(drawn[~near], panels.to_rgb(pages[0])[~near])


def test_overlapping_labels_give_a_page_each(root, tmp_path):
    own = make_run(root / "overlapping", classes=3, task="overlapping", threshold=0.3)
    image = textured(130, 97)
    Image.fromarray(image).save(tmp_path / "x.png")
    predicted(own, tmp_path / "x.png", tmp_path / "out", "save=[masks,probabilities,uncertainty,overlays,contours]")  # fmt: skip
    wanted = by_hand(own, image)
    p, masks, doubt = (tifffile.imread(tmp_path / f"out/{kind}/x.tif") for kind in ("probabilities", "masks", "uncertainty"))  # fmt: skip
    np.testing.assert_allclose(p, wanted, atol=1e-5)
    np.testing.assert_array_equal(masks, p > 0.3)
    assert masks.shape == (3, 130, 97) and masks.dtype == np.uint8 and masks.sum(0).max() > 1
    np.testing.assert_allclose(doubt, entropy([wanted, 1 - wanted], base=2).mean(0), atol=2e-5)
    first = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    edge, _ = expected_pictures(image, first)
    colors = np.array([COLORS[0], *COLORS])
    tinted = np.rint(0.55 * panels.to_rgb(image) + 0.45 * colors[first])
    np.testing.assert_array_equal(shown(tmp_path / "out/overlays/x.png")[~edge], tinted[~edge])


@pytest.mark.parametrize("kind", ["submission", "instances"])
@pytest.mark.parametrize("task", ["classes", "overlapping"])
def test_what_a_run_can_not_give_is_told_before_anything_is_made(
    root, folder, tmp_path, kind, task
):
    own = make_run(root / f"three-{task}", classes=3, task=task)
    with pytest.raises((UserError, DataError), match=rf"save=\[{kind}\]: .*; the run has 3"):
        predicted(own, folder, tmp_path / "out", f"save=[masks,{kind}]")
    assert not (tmp_path / "out").exists()
    request = OutputOptions(load.load_run(own), [kind], 0.5, "float32", {})
    place = OutputTarget(tmp_path, Path("a.png"), "a", 8, 8, 1, np.dtype(np.uint8))
    with pytest.raises(DataError, match=rf"save=\[{kind}\]"):  # whoever asks for it
        outputs.build_results(request, place)


def test_an_ensemble_says_the_mean_of_its_members_in_tiles_too(root, run, folder, tmp_path):
    other = make_run(root / "other", seed=7, threshold=0.7, intensity={"mean": [0.6], "std": [0.4]})
    predicted(f"[{run},{other}]", folder, tmp_path, "save=[masks,probabilities]")
    for stem in ("b", "c"):
        image = shown(folder / f"{stem}.png")
        wanted = (by_hand(run, image) + by_hand(other, image)) / 2
        p = tifffile.imread(tmp_path / f"probabilities/{stem}.tif")
        np.testing.assert_allclose(p, wanted, atol=1e-5)
        np.testing.assert_array_equal(shown(tmp_path / f"masks/{stem}.png"), p[1] > 0.6)


def test_name_of_254_bytes_is_predicted_like_others(run, tmp_path):
    (tmp_path / "images").mkdir()
    stems = ["a", "\u00e9" * 125, "z"]
    assert len(os.fsencode(f"{stems[1]}.png")) == 254
    for stem in stems:
        Image.fromarray(textured(150, 60)).save(tmp_path / "images" / f"{stem}.png")
    predicted(run, tmp_path / "images", tmp_path / "out", "save=[masks,probabilities]")
    for kind, suffix in (("masks", ".png"), ("probabilities", ".tif")):
        found = {file.name for file in (tmp_path / "out" / kind).iterdir()}
        assert found == {f"{stem}{suffix}" for stem in stems}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_turned_image_is_predicted_as_one_sees_it(run, tmp_path, suffix):
    seen, exif = textured(60, 50), Image.Exif()
    exif[274] = 6  # stored a quarter counter-clockwise of what one sees
    Image.fromarray(seen).save(tmp_path / "seen.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(seen))).save(tmp_path / f"stored{suffix}", exif=exif)  # fmt: skip
    for name in ("seen.png", f"stored{suffix}"):
        predicted(run, tmp_path / name, tmp_path / "out", "save=[probabilities]")
    p = [tifffile.imread(tmp_path / f"out/probabilities/{name}.tif") for name in ("seen", "stored")]
    assert p[0].shape == (2, 60, 50)
    np.testing.assert_array_equal(p[0], p[1])


def test_pages_of_a_file_with_a_name_of_255_bytes_have_names_of_their_own(run, tmp_path):
    file = tmp_path / f"{'s' * 251}.tif"
    tifffile.imwrite(file, np.stack([textured(60, 50, seed=n) for n in range(3)]), photometric="minisblack")  # fmt: skip
    predicted(run, file, tmp_path / "out", "save=[masks,overlays]")
    assert [found.name for found in (tmp_path / "out/masks").iterdir()] == [file.name]
    overlays = list((tmp_path / "out/overlays").iterdir())
    assert len(overlays) == 3 and {found.suffix for found in overlays} == {".png"}


def test_pages_as_channels_are_one_image(root, tmp_path):
    own = make_run(root / "channels", channels=2, pages="channels")
    pages = np.stack([textured(130, 97, seed=1), textured(130, 97, seed=2)])
    tifffile.imwrite(tmp_path / "x.tif", pages, resolution=(400, 250), photometric="minisblack")
    predicted(own, tmp_path / "x.tif", tmp_path / "out", "save=[probabilities,masks,overlays]")
    wanted = by_hand(own, pages.transpose(1, 2, 0))
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out/probabilities/x.tif"), wanted, atol=1e-5)  # fmt: skip
    with tifffile.TiffFile(tmp_path / "out/masks/x.tif") as tiff:
        assert tiff.asarray().shape == (130, 97)
        assert tiff.pages[0].tags["XResolution"].value == (400, 1)
    found = seg.load(own, tile=96, overlap=32, accelerator="cpu").predict(tmp_path / "x.tif")
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)


def test_a_loaded_run_predicts_arrays_and_files(run, folder, tmp_path):
    predictor = seg.load(str(run), tile=96, overlap=32, threshold=0.4, accelerator="cpu")
    image = shown(folder / "b.png")
    for given in (image, image[..., None], image[::-1][::-1], folder / "b.png", str(folder / "b.png")):  # fmt: skip
        found = predictor.predict(given)
        np.testing.assert_allclose(found.probabilities, by_hand(run, image), atol=1e-5)
        np.testing.assert_array_equal(found.mask, found.probabilities[1] > 0.4)
        np.testing.assert_array_equal(found.image[..., 0], image)
    assert found.classes == ["out", "in"] and found.overlay().shape == (97, 130, 3)
    for wrong, message in (
        (np.zeros((5, 5, 3), np.uint8), "the array: 3 channels; the run was trained on 1"),
        (np.zeros((5,), np.uint8), "the array: shape"),
        (np.zeros((0, 5), np.uint8), "the array: shape"),
        (np.full((5, 5), np.nan), "the array: 25 of 25 values are NaN"),
        (np.zeros((5, 5), complex), "the array: values of type complex128"),
        (tmp_path / "none.png", "none.png: no such file"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            predictor.predict(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, "tile=100 and overlap=32"),
        ({"overlap": 48}, "tile=96 and overlap=48"),
        ({"overlap": "much"}, "overlap=much: a number of px, or auto"),
        ({"batch": 0}, "batch=0"),
        ({"tta": "d8"}, "tta=d8: one of none, mirror, flips, d4"),
        ({"scales": [0]}, r"scales=\[0\]"),
        ({"threshold": 1}, "threshold=1: a number between 0 and 1"),
        ({"depth": 1}, "a UNet with one head can't be pruned"),
        ({"accelerator": "abacus"}, "abacus"),
    ],
)
def test_options_that_do_not_fit_are_named(run, options, message):
    with pytest.raises(ValueError, match=message):
        seg.load(run, **{"tile": 96, "overlap": 32, "accelerator": "cpu"} | options)


def test_a_depth_is_the_head_of_that_depth_alone(root, folder, tmp_path):
    node = {"_target_": "seg.models.NestedUNet", "depth": 3}
    run = make_run(root / "deep", **node)
    found = {}
    for depth in ("null", 1, 2, 3):
        predicted(run, folder / "b.png", tmp_path / f"{depth}", f"model.depth={depth}", "tile=192", "overlap=64", "save=[probabilities]")  # fmt: skip
        found[depth] = tifffile.imread(tmp_path / f"{depth}/probabilities/b.tif")
    image = shown(folder / "b.png")
    weights = torch.load(run, weights_only=True)
    for depth in (1, 2, 3):
        weights["seg"]["config"]["model"] |= {"output": depth}
        write_checkpoint(tmp_path / "head.ckpt", weights)
        np.testing.assert_allclose(found[depth], by_hand(tmp_path / "head.ckpt", image), atol=1e-5)
    np.testing.assert_array_equal(found["null"], found[3])
    assert np.abs(found[1] - found[2]).max() > 0.01
    with pytest.raises(UserError, match=r"model.depth=4: .* has heads \[1, 2, 3\]"):
        predicted(run, folder / "b.png", tmp_path / "4", "model.depth=4")


@pytest.fixture(scope="module")
def trained(root) -> tuple[Path, Path]:
    """A run that seg.train left, and its data."""
    data = make_images(root / "data")
    words = [f"data.root={data}", f"outputs={root / 'runs'}", "trainer.max_epochs=3"]
    train(config("train", *FOLDED, *words))
    return (root / "runs/latest").resolve(), data


@pytest.mark.parametrize("words", [["tta=flips"], ["tta=d4", "scales=[0.5,1.0]"]], ids=" ".join)
def test_evaluate_scores_the_masks_that_predict_writes(trained, tmp_path, words):
    run, data = trained
    scores = evaluate(config("evaluate", f"run={run}", f"output={tmp_path / 'e'}", "panels=0", *words))  # fmt: skip
    plain = evaluate(config("evaluate", f"run={run}", f"output={tmp_path / 'f'}", "panels=0"))
    predicted(
        run, data / "images", tmp_path / "p", "save=[masks]", "tile=192", "overlap=64", *words
    )
    names = json.loads((tmp_path / "e/metrics.json").read_text())["images"]
    truth = np.concatenate([shown(data / f"masks/{name}.png") for name in names])
    found = np.concatenate([shown(tmp_path / f"p/masks/{name}.png") for name in names])
    assert scores["val/pixel_accuracy"] == pytest.approx((truth == found).mean(), abs=1e-6)
    assert scores["val/pixel_accuracy"] != plain["val/pixel_accuracy"]


def test_tta_in_tiles_is_the_tta_of_the_whole_image(run, folder, tmp_path):
    predicted(run, folder / "c.png", tmp_path / "tiles", "tta=d4", "save=[probabilities]")
    predicted(run, folder / "c.png", tmp_path / "whole", "tta=d4", "save=[probabilities]", "tile=256")  # fmt: skip
    tiles, whole = (tifffile.imread(tmp_path / f"{n}/probabilities/c.tif") for n in ("tiles", "whole"))  # fmt: skip
    np.testing.assert_allclose(tiles, whole, atol=1e-5)
    assert np.abs(whole - by_hand(run, shown(folder / "c.png"))).max() > 0.01


def test_scales_leave_no_seams_and_their_grid_is_told(run, tmp_path, capsys):
    grey = np.random.default_rng(3).integers(0, 256, (500, 450), np.uint8)
    Image.fromarray(grey).save(tmp_path / "g.png")
    words = ["scales=[0.5,1.5]", "save=[probabilities]", "overlap=auto", "check_seams=true"]
    predicted(run, tmp_path / "g.png", tmp_path / "tiles", *words, "tile=320")
    predicted(run, tmp_path / "g.png", tmp_path / "whole", *words, "tile=640")
    tiles, whole = (tifffile.imread(tmp_path / f"{n}/probabilities/g.tif") for n in ("tiles", "whole"))  # fmt: skip
    # 8e-5: resizing rounds where a pixel lies, in float32; test_tta.py has it in float64
    np.testing.assert_allclose(tiles, whole, atol=2e-4)
    with pytest.raises(UserError, match=r"both must be multiples of 160 px, .*take tile=480"):
        predicted(run, tmp_path / "g.png", tmp_path / "off", "scales=[0.8]", "tile=512")


# -- stopped, refused, out of space: in processes of their own, forked from one that has its imports done


def typed(
    words: list[str],
    log: str,
    at: int = 0,
    act: str = "",
    limit: int = 0,
    late: bool = False,
    wrote: str = "",
) -> None:
    """The command, as typed, in a process of its own.

    Args:
        words: of the command line.
        log: file of what it says.
        at: before the band of that number is added to any output, something happens.
        act: kill, or a file that is touched, after which it waits.
        limit: bytes of the largest file that can be written.
        late: whether that holds only from the first TIFF on.
        wrote: file to which the name of each predicted file is appended.
    """
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    finish = BandWriter.finish

    def full(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        finish(*args)

    if limit and late:
        BandWriter.finish = full
    elif limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    add, added = BandWriter.add, [0]

    def counting(self, band):
        added[0] += 1
        if added[0] == at:
            if act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            Path(act).touch()
            time.sleep(60)
        add(self, band)

    if at:
        BandWriter.add = counting
    predict_file = file_prediction.predict_file

    def listing(file, name, *args):
        made = predict_file(file, name, *args)
        with open(wrote, "a") as out:
            out.write(f"{name}\n")
        return made

    if wrote:
        file_prediction.predict_file = listing
    sys.argv = ["seg.predict", *words]
    predict.main()


@pytest.fixture(scope="module")
def process(root):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_predict"])
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}", prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()

    def start(words: list[str], log: Path, **how) -> multiprocessing.Process:
        child = context.Process(target=typed, args=(words, str(log)), kwargs=how, daemon=True)
        child.start()
        return child

    return start


def ran(process, words: list[str], log: Path, **how) -> int:
    """Exit code; -9 where it was killed."""
    child = process(words, log, **how)
    child.join(120)
    code = child.exitcode
    child.close()
    return code


SAVE = "save=[masks,probabilities,overlays,instances,uncertainty]"


@pytest.mark.parametrize("at", slow_but([3, 24], 24))
def test_a_file_killed_midway_is_predicted_again_with_the_same_results(
    process, run16, stack, tmp_path, at
):
    # three pages of three bands of 64, 64 and 2 rows, five outputs each
    words = ["tile=64", "overlap=0", SAVE]
    predicted(run16, stack, tmp_path / "whole", *words)
    again = words_of(run16, stack, tmp_path / "out", *words)
    assert ran(process, again, tmp_path / "log", at=at, act="kill") == -signal.SIGKILL
    record = json.loads((tmp_path / "out/predict.json").read_text())
    assert record["status"] == "running" and not record["done"]
    assert all(name.startswith(".partial/") for name in content(tmp_path / "out"))
    assert ran(process, again, tmp_path / "log") == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out/.partial").exists()


def test_a_folder_killed_midway_keeps_what_is_done(process, run, folder, tmp_path):
    predicted(run, folder, tmp_path / "whole", "save=[masks,probabilities]")
    words = words_of(run, folder, tmp_path / "out", "save=[masks,probabilities]")
    # a: 1 band, b: 2 to 4: the second band of b
    assert ran(process, words, tmp_path / "log", at=6, act="kill") == -signal.SIGKILL
    done = tmp_path / "out/masks/a.png"
    before = done.stat().st_mtime_ns
    assert not (tmp_path / "out/masks/b.png").exists()
    assert ran(process, words, tmp_path / "log") == 0
    told = (tmp_path / "log").read_text()
    assert "1 of 7 inputs are done already, and kept" in told
    assert "6 of 6 inputs segmented" in told
    assert done.stat().st_mtime_ns == before
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert ran(process, words, tmp_path / "log") == 0
    assert re.fullmatch(r"\S+ holds the results of all 7 inputs already: nothing is predicted\n", (tmp_path / "log").read_text())  # fmt: skip
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_stopped_between_two_finished_kinds_the_same_command_writes_both(
    run, folder, tmp_path, monkeypatch
):
    def stopped(self, file, tags):
        raise KeyboardInterrupt

    monkeypatch.setattr(BandWriter, "finish", stopped)  # masks of a PNG are no TIFF
    with pytest.raises(KeyboardInterrupt):
        predicted(run, folder / "b.png", tmp_path, "save=[masks,probabilities]")
    monkeypatch.undo()
    assert (tmp_path / "masks/b.png").is_file() and not (tmp_path / "probabilities/b.tif").exists()
    assert not (tmp_path / ".partial").exists()
    predicted(run, folder / "b.png", tmp_path, "save=[masks,probabilities]")
    assert sorted(content(tmp_path)) == ["masks/b.png", "probabilities/b.tif"]


def test_a_changed_file_starts_anew(process, run, tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(textured(200, 71)).save(file)
    words = words_of(run, file, tmp_path / "out", "save=[masks,probabilities]")
    assert ran(process, words, tmp_path / "log", at=4, act="kill") == -signal.SIGKILL
    Image.fromarray(textured(200, 71, seed=9)).save(file)
    assert ran(process, words, tmp_path / "log") == 0
    p = tifffile.imread(tmp_path / "out/probabilities/x.tif")
    np.testing.assert_allclose(p, by_hand(run, shown(file)), atol=1e-5)
    Image.fromarray(textured(150, 80, seed=3)).save(file)  # finished, and changed again
    assert ran(process, words, tmp_path / "log") == 0
    assert shown(tmp_path / "out/masks/x.png").shape == (150, 80)


@pytest.fixture(scope="module")
def begun(root, folder) -> tuple[list[str], Path]:
    """The words of a prediction that was made, and its output."""
    for seed in (0, 1):  # of the same name
        make_run(root / f"run-{seed}", seed=seed)
    output = root / "begun"
    words = words_of(root / "run-0/run.ckpt", folder / "a.png", output, "save=[masks,instances]")
    predict_files(config("predict", *words))
    return words, output


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("threshold=0.3", "threshold=0.5, and this is threshold=0.3"),
        ("tile=160", "tile=96, and this is tile=160"),
        ("tta=flips", "tta=none, and this is tta=flips"),
        ("scales=[1,2]", r"scales=\[1.0\], and this is scales=\[1, 2\]"),
        ("probabilities=uint8", "probabilities=float32, and this is probabilities=uint8"),
        ("save=[masks]", r"save=.*, and this is save=\['masks'\]"),
        ("objects.min_size=5", "objects=.*, and this is objects=.*5}"),
        ("run=OTHER", "run=.*, and this is run=.*"),
    ],
)
def test_other_settings_on_one_folder_are_refused_by_name(
    root, begun, monkeypatch, capsys, word, message
):
    first, output = begun
    before = content(output)
    word = word.replace("OTHER", str(root / "run-1/run.ckpt"))
    kept = [one for one in first if not one.startswith(word.partition("=")[0] + "=")]
    monkeypatch.setattr(sys, "argv", ["seg.predict", *kept, word])
    with pytest.raises(SystemExit) as left:
        predict.main()
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert re.fullmatch(rf"error: output=\S+: begun with {message}; repeat the command that began it, or give another output\n", err), err  # fmt: skip
    assert content(output) == before


def test_a_run_retrained_in_its_place_is_refused(root, folder, tmp_path):
    file = make_run(root / "latest")
    predicted(file, folder / "a.png", tmp_path)
    make_run(root / "latest", seed=1)
    with pytest.raises(UserError, match=r"begun with weights=\w{16}, and this is weights="):
        predicted(file, folder, tmp_path)


def test_a_threshold_that_the_run_got_since_is_another(root, folder, tmp_path):
    predicted(make_run(root / "tuned"), folder / "a.png", tmp_path)
    tuned = make_run(root / "tuned", threshold=0.6)  # of the same weights
    with pytest.raises(UserError, match=r"begun with threshold=0.5, and this is threshold=0.6"):  # fmt: skip
        predicted(tuned, folder / "b.png", tmp_path)


def test_batch_and_input_may_change(run, folder, tmp_path):
    predicted(run, folder / "b.png", tmp_path, "save=[masks]")
    predicted(run, folder / "c.png", tmp_path, "save=[masks]", "batch=2", "check_seams=true")
    assert sorted(content(tmp_path)) == ["masks/b.png", "masks/c.png"]


def test_results_of_a_file_of_the_same_name_are_not_overwritten(run, folder, tmp_path):
    predicted(run, folder / "b.png", tmp_path / "out", "save=[masks]")
    before = content(tmp_path / "out")
    (tmp_path / "more").mkdir()
    for name in ("b.png", "b.tif"):
        Image.fromarray(textured(50, 50)).save(tmp_path / "more" / name)
        with pytest.raises(UserError, match=rf"holds results of .*b\.png, and those of .*more/{name} have the same name"):  # fmt: skip
            predicted(run, tmp_path / "more" / name, tmp_path / "out", "save=[masks]")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("given", ["scans", "scans/**/*.*", "scans/*"])
def test_results_mirror_the_folders_of_the_input(run, folder, tmp_path, given):
    scans, out = tmp_path / "scans", tmp_path / "scans/out"
    inputs = {"b.png": "b", "one/b.png": "one/b", "one/two/c.ome.tif": "one/two/c"}
    for name in inputs:
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(folder / f"{Path(name).name[0]}.png")
        image.save(scans / name)
    for name in [".hidden/d.png", "one/note.txt"]:
        (scans / name).parent.mkdir(exist_ok=True)
        (scans / name).write_text("no image")
    names = ["b"] if given == "scans/*" else sorted(inputs.values())
    kinds = "save=[masks,overlays,instances,labelme,probabilities]"
    predicted(run, tmp_path / given, out, kinds)
    ends = {"masks": ".png", "overlays": ".png", "probabilities": ".tif", "labelme": ".json"}
    expected = {f"{kind}/{n}{end}" for n in names for kind, end in ends.items()}
    expected |= {f"instances/{n}{end}" for n in names for end in (".tif", ".csv")}
    tiff = "masks/one/two/c.tif"  # the mask of a TIFF
    expected = {tiff if name == "masks/one/two/c.png" else name for name in expected}
    assert set(content(out)) == expected
    # those of one file alone are the same
    predicted(run, folder / "b.png", tmp_path / "flat", "save=[masks]")
    for name in names[:2]:
        assert content(out)[f"masks/{name}.png"] == content(tmp_path / "flat")["masks/b.png"]
        described = json.loads((out / f"labelme/{name}.json").read_text())
        image = (out / f"labelme/{name}.json").parent / described["imagePath"]
        assert image.resolve() == scans / f"{name}.png"
    assert predicted(run, tmp_path / given, out, kinds) == []  # done already
    # a file whose results have the same name, though it lies elsewhere
    (tmp_path / "more/one").mkdir(parents=True)
    for name in ("b.png", "one/b.png")[: len(names)]:
        Image.open(folder / "b.png").save(tmp_path / "more" / name)
        with pytest.raises(UserError, match=rf"scans/{name}, and those of .*/more/{name} have the same name"):  # fmt: skip
            predicted(run, tmp_path / "more", out, kinds)
        (tmp_path / "more" / name).unlink()


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_three_workers_write_each_result_once_though_one_is_killed(process, run, tmp_path):
    # Twelve images in two folders, with equal file names
    scans = tmp_path / "scans"
    for i in range(12):
        file = scans / f"p{i % 2}/{i // 2}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(textured(100 + i, 110, seed=i)).save(file)
    kinds = "save=[masks,probabilities,coco]"
    predicted(run, scans, tmp_path / "one", kinds)
    # The first worker stands still in its first image, p0/0.png, until the others have done the rest
    words, here = words_of(run, scans, tmp_path / "out", kinds), tmp_path / "here"
    wrote = tmp_path / "wrote"
    first = process(words, tmp_path / "log-0", at=2, act=str(here), wrote=str(wrote))
    wait_until(here.exists)
    logs = [tmp_path / f"log-{i}" for i in (1, 2)]
    others = [process(words, log, wrote=str(wrote)) for log in logs]
    record = tmp_path / "out/predict.json"
    wait_until(lambda: len(json.loads(record.read_text())["done"]) == 11)
    wait_until(lambda: all("of the inputs; waiting for them" in log.read_text() for log in logs))
    os.kill(first.pid, signal.SIGKILL)
    for worker in others:
        worker.join(60)
        assert worker.exitcode == 0
    first.join()
    assert content(tmp_path / "out") == content(tmp_path / "one")
    merged = json.loads((tmp_path / "out/coco/instances.json").read_text())
    assert {row["file_name"] for row in merged["images"]} == {
        f"p{i % 2}/{i // 2}.png" for i in range(12)
    }
    assert sorted(wrote.read_text().split()) == sorted(f"p{i % 2}/{i // 2}" for i in range(12))
    one, out = (json.loads((tmp_path / n / "predict.json").read_text()) for n in ("one", "out"))
    assert (out["status"], out["failed"], out["done"]) == ("finished", [], one["done"])
    shares = [re.search(r"(\d+) of 12 inputs segmented, (\d+) by other", log.read_text()) for log in logs]  # fmt: skip
    assert sum(int(share[1]) for share in shares) == 12


@pytest.mark.parametrize(
    ("name", "value"), [("names", {"a.png": ["a"]}), ("names", ["a"]), ("done", ["a.png"])]
)
def test_a_damaged_record_is_named(run, folder, tmp_path, name, value):
    predicted(run, folder / "b.png", tmp_path / "out", "save=[masks]")
    file = tmp_path / "out/predict.json"
    write_json(file, json.loads(file.read_text()) | {name: value})
    with pytest.raises(UserError, match=r"predict\.json: damaged, or not written by seg\.predict"):
        predicted(run, folder / "c.png", tmp_path / "out", "save=[masks]")


def test_a_record_with_a_setting_of_thousands_of_letters_is_refused_in_a_short_line(
    run, folder, tmp_path
):
    predicted(run, folder / "b.png", tmp_path / "out", "save=[masks]")
    file = tmp_path / "out/predict.json"
    record = json.loads(file.read_text())
    record["settings"] |= {"x" * 5000: 1, "tta": "y" * 5000}
    write_json(file, record)
    with pytest.raises(UserError, match=r"begun with tta=yyy.*repeat the command") as refused:
        predicted(run, folder / "b.png", tmp_path / "out", "save=[masks]")
    assert len(str(refused.value)) < 1500


def test_ranks_are_no_workers(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(UserError, match=r"seg\.predict: started as one of several ranks"):
        predicted(run, folder / "b.png", tmp_path / "out")


def test_a_file_of_another_worker_is_waited_for_and_not_predicted_again(
    run, folder, tmp_path, monkeypatch
):
    # In one process: while b is locked, c is predicted; then the other worker has done b
    out, lock = tmp_path / "out", tmp_path / "out/.partial/.b.lock"
    (tmp_path / "in").mkdir()
    for name in "bc":
        (tmp_path / f"in/{name}.png").symlink_to(folder / f"{name}.png")
    predicted(run, tmp_path / "in/b.png", out, "save=[masks]")
    done = json.loads((out / "predict.json").read_text())
    write_json(out / "predict.json", done | {"done": {}})
    lock.parent.mkdir()
    held = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", held, lock], stdin=-1, stdout=-1) as other:
        other.stdout.readline()

        def end(seconds: float) -> None:
            now = json.loads((out / "predict.json").read_text())
            assert list(now["done"]) == [str(tmp_path / "in/c.png")]
            write_json(out / "predict.json", now | {"done": now["done"] | done["done"]})
            other.kill()
            other.wait()

        monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=end))
        written = predicted(run, tmp_path / "in", out, "save=[masks]")
    assert written == [out / "masks/c.png"]
    assert sorted(content(out)) == ["masks/b.png", "masks/c.png"]


@pytest.mark.parametrize("late", [False, True])
def test_out_of_space_is_one_line_and_the_same_command_continues(
    process, run, folder, tmp_path, late
):
    words = words_of(run, folder / "c.png", tmp_path / "out", "save=[masks,probabilities]")
    # the probabilities take 113,600 bytes while they grow
    assert ran(process, words, tmp_path / "log", limit=60_000, late=late) == 2
    told = (tmp_path / "log").read_text()
    last = told.splitlines()[-1]
    assert re.fullmatch(r"error: output=\S+: can't be written \(.+\); the same command goes on from here", last), told  # fmt: skip
    assert "None" not in last and "Traceback" not in told and told.count("error:") == 1
    there = content(tmp_path / "out")
    assert set(there) == ({"masks/c.png"} if late else set())
    assert ran(process, words, tmp_path / "log") == 0
    predicted(run, folder / "c.png", tmp_path / "whole", "save=[masks,probabilities]")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_good_files_are_done_and_bad_ones_listed(process, run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(textured(150, 60)).save(folder / "m-good.png")
    (folder / "a-empty.png").touch()
    (folder / "b-noise.tif").write_bytes(bytes(range(256)) * 9)
    Image.fromarray(textured(20, 20, 3)).save(folder / "c-rgb.png")
    bad = textured(150, 60).astype(np.float32)
    bad[140, 3] = np.inf
    tifffile.imwrite(folder / "d-inf.tif", bad, compression="zlib", rowsperstrip=10)
    with tifffile.TiffWriter(folder / "e-sizes.tif") as out:
        out.write(textured(30, 40), metadata=None)
        out.write(textured(40, 30), metadata=None)
    (folder / "f-link.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "g-folder.png").mkdir()  # is left out
    words = words_of(run, folder, tmp_path / "out", "save=[masks,probabilities]")
    assert ran(process, words, tmp_path / "log") == 2
    told = (tmp_path / "log").read_text()
    error = told.splitlines()[-1]
    assert error.startswith("error: ") and "1 of 7 inputs segmented" in told
    for name, why in (
        ("a-empty.png", "not a readable image"),
        ("b-noise.tif", "not a readable image"),
        (
            "c-rgb.png",
            "3 channels; the run was trained on 1; RGB becomes grey with Pillow: .*convert\\('L'\\)",
        ),
        ("d-inf.tif", "1 of .* values are NaN or infinite"),
        ("e-sizes.tif", "pages of 30x40 and 40x30 px"),
        ("f-link.png", "no such file"),
    ):
        assert re.search(rf"{re.escape(name)}[^;]*: {why}", error), (name, error)
    assert sorted(content(tmp_path / "out")) == ["masks/m-good.png", "probabilities/m-good.tif"]
    assert not (tmp_path / "out/.partial").exists()
    tifffile.imwrite(folder / "d-inf.tif", np.nan_to_num(bad, posinf=3))  # mended
    for name in ("a-empty.png", "b-noise.tif", "c-rgb.png", "e-sizes.tif", "f-link.png"):
        (folder / name).unlink()
    assert ran(process, words, tmp_path / "log") == 0
    assert "1 of 1 inputs segmented" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=null"], "input is not set: give an image"),
        (["output=null"], "output is not set: give a folder"),
        (["input=nowhere"], "input=nowhere: no such file or folder"),
        (["input=EMPTY"], "no images here; it is empty"),
        (["input=TWO/*.bmp"], r"TWO/\*.bmp: no image matches; .*TWO holds x\.png and x\.tif"),
        (["input=TEXT"], "not an image by its name"),
        (["input=SLIDE.czi"], "bfconvert IN.czi OUT.ome.tif"),
        (["input=TWO"], "x.png and x.tif would share one result"),
        (["save=[]"], r"save=\[\]: choose from masks, probabilities"),
        (["save=[mask]"], r"save=\['mask'\]: choose from"),
        (["save=[masks,masks]"], r"save=\['masks', 'masks'\]"),
        (["objects.min_size=0"], "objects: .*min_size=0"),
        (["objects.split_neck_px=-1"], "objects: split_neck_px=-1"),
        (
            ["spacing=[0.5,0.5]"],
            r"spacing=\[0\.5, 0\.5\]: save=\[masks,overlays\] has no instances",
        ),
        (["tile=50"], "tile=50 and overlap=32"),
        (["overlap=some"], "overlap=some"),
        (["batch=0"], "batch=0"),
        (["threshold=2"], "threshold=2"),
        (["scales=[]"], r"scales=\[\]"),
        (["tta=all"], "tta=all"),
        (["model.depth=2"], "can't be pruned"),
        (["run=null"], "run is not set"),
        (["run=nowhere"], "run=nowhere: no such folder or file"),
        (["run=GARBAGE"], "not a checkpoint of seg.train"),
        (["run=FOREIGN"], "not a checkpoint of seg.train"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_can_not_be_is_told_before_anything_is_made(run, folder, tmp_path, words, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "TWO").mkdir()
    for name in ("x.png", "x.tif"):
        Image.fromarray(textured(20, 20)).save(tmp_path / "TWO" / name)
    for name in ("TEXT", "GARBAGE", "SLIDE.czi"):
        (tmp_path / name).write_text("text")
    torch.save({"model": torch.zeros(3)}, tmp_path / "FOREIGN")
    words = [re.sub(r"=([A-Z]+(\.czi)?)(?=/|$)", rf"={tmp_path}/\1", word) for word in words]
    keys = [word.partition("=")[0] + "=" for word in words]
    line = [w for w in words_of(run, folder / "a.png", tmp_path / "out") if not w.startswith(tuple(keys))]  # fmt: skip
    with pytest.raises((UserError, DataError, RunError), match=message):
        predict_files(config("predict", *line, *words))
    assert not (tmp_path / "out").exists()


def test_folders_with_other_things_are_left_alone(run, folder, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/mine.png").write_text("mine")
    with pytest.raises(UserError, match=r"masks/ holds results already"):
        predicted(run, folder / "a.png", tmp_path)
    (tmp_path / "predict.json").write_text("{}")
    with pytest.raises(UserError, match=r"predict\.json: not written by seg\.predict"):
        predicted(run, folder / "a.png", tmp_path)
    (tmp_path / "predict.json").write_text("{")
    with pytest.raises(RunError, match=r"predict\.json: can't be read"):
        predicted(run, folder / "a.png", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        predicted(run, folder / "a.png", tmp_path / "file")
    assert (tmp_path / "masks/mine.png").read_text() == "mine"
    assert not (tmp_path / ".partial").exists()


def test_names_with_dots_spaces_and_other_letters(run, tmp_path):
    (tmp_path / "in").mkdir()
    names = ["a.b", "a b", "größe", "x=1,[2]", "-v"]
    for name in names:
        Image.fromarray(textured(40, 40)).save(tmp_path / "in" / f"{name}.png")
    predicted(run, tmp_path / "in", tmp_path / "out", "save=[masks,instances]")
    assert {p.name for p in (tmp_path / "out/masks").iterdir()} == {f"{name}.png" for name in names}
    assert len(list((tmp_path / "out/instances").iterdir())) == 2 * len(names)


# -- large


MEASURED = """
import json, sys, time
from pathlib import Path
from omegaconf import OmegaConf
from seg.cli.conf_files import CONF
from hydra import compose, initialize_config_dir
import torch
torch.set_num_threads(1)
from seg.inference.file_prediction import predict_files
with initialize_config_dir(str(CONF), version_base="1.3"):
    cfg = compose("predict", sys.argv[1:])
started = time.process_time()  # a busy machine doesn't count
predict_files(cfg)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": time.process_time() - started, "peak": int(peak.split()[1]) * 1024}))
"""


@pytest.mark.slow
def test_memory_stays_small_and_time_in_proportion_for_400_megapixels(root, run, tmp_path):
    import subprocess

    pattern = np.kron(textured(64, 64), np.ones((4, 4), np.uint8))  # a tile of 256 px
    found = {}
    for side in (10_000, 20_000):
        tiles = -(-side // 256)
        tifffile.imwrite(
            tmp_path / f"{side}.tif", (pattern for _ in range(tiles**2)), shape=(side, side), dtype=np.uint8,
            tile=(256, 256), compression="zlib", bigtiff=True, photometric="minisblack",
        )  # fmt: skip
        words = [f"run={run}", f"input={tmp_path / f'{side}.tif'}", f"output={tmp_path / f'out-{side}'}", "accelerator=cpu", "save=[masks,instances]"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True
        )
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, found[side])
        with tifffile.TiffFile(tmp_path / f"out-{side}/masks/{side}.tif") as tiff:
            page = tiff.pages[0]
            assert page.shape == (side, side) and page.dtype == np.uint8 and page.is_tiled
            corner = tiff.asarray()[-256:, -300:-44]
        assert 0.02 < corner.mean() < 0.98
    assert found[20_000]["peak"] < 1.2e9
    assert found[20_000]["seconds"] / 4 < 2 * found[10_000]["seconds"]
    assert load.load_run(run).model is not None


def test_every_format_gives_the_masks_of_the_same_pixels_in_a_tiff(tmp_path, caplog):
    run = make_run(tmp_path / "run")
    stack = np.stack([textured(97, 130, seed=n) for n in range(3)])
    for part in ("given", "same"):
        (tmp_path / part).mkdir()
    np.save(tmp_path / "given/array.npy", stack[0])
    dicom(tmp_path / "given/frames.dcm", stack)
    nifti(tmp_path / "given/volume.nii.gz", stack.T)
    tiles = {"tile": (16, 16), "photometric": "minisblack", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "given/slide.svs") as tiff:
        for step in (1, 2, 4):
            tiff.write(stack[0, ::step, ::step], description="Aperio", **tiles)
    for name in ("a.czi", "b.czi", "c.czi", "d.xyz", "notes.txt"):
        (tmp_path / "given" / name).write_bytes(b"")
    tifffile.imwrite(tmp_path / "same/one.tif", stack[0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "same/all.tif", stack, photometric="minisblack")
    options = ("save=[masks,overlays]", "tile=96", "overlap=32")
    predicted(run, tmp_path / "given", tmp_path / "out", *options)
    lines = [record.message for record in caplog.records]
    assert (
        lines[-1]
        == "4 files passed over: 3 .czi, 1 .xyz; convert .czi: bfconvert IN.czi OUT.ome.tif"
    )
    predicted(run, tmp_path / "same", tmp_path / "twin", *options)
    one, three = (tifffile.imread(tmp_path / f"twin/masks/{name}.tif") for name in ("one", "all"))
    masks = tmp_path / "out/masks"
    assert sorted(f.name for f in masks.iterdir()) == [
        "array.png",
        "frames.tif",
        "slide.tif",
        "volume.tif",
    ]
    np.testing.assert_array_equal(np.array(Image.open(masks / "array.png")), one)
    np.testing.assert_array_equal(tifffile.imread(masks / "slide.tif"), one)
    np.testing.assert_array_equal(tifffile.imread(masks / "frames.tif"), three)
    np.testing.assert_array_equal(tifffile.imread(masks / "volume.tif"), three)


def levels_of(file: Path) -> list[np.ndarray]:
    """The levels of the one series of a TIFF."""
    with tifffile.TiffFile(file) as tiff:
        (series,) = tiff.series
        return [level.asarray() for level in series.levels]


def test_the_masks_of_pyramids_and_large_images_are_pyramids(run, tmp_path, monkeypatch):
    image = textured(600, 300)
    tiled = {"tile": (64, 64), "photometric": "minisblack"}
    scans = tmp_path / "scans"
    scans.mkdir()
    with tifffile.TiffWriter(scans / "ome.ome.tif") as tiff:
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
        tiff.write(image, subifds=1, metadata={"axes": "YX", **sizes}, **tiled)
        tiff.write(image[::2, ::2], subfiletype=1, **tiled)
    geo = [(33550, 12, 3, (1.0, 1.0, 0.0), True)]
    for name, extra in (("slide", None), ("geo", geo)):
        with tifffile.TiffWriter(scans / f"{name}.tif") as tiff:
            tiff.write(image, metadata=None, extratags=extra, **tiled)
            tiff.write(image[::2, ::2], metadata=None, subfiletype=1, **tiled)
    tifffile.imwrite(scans / "plain.tif", image, **tiled)
    predicted(run, scans, tmp_path / "auto", "save=[masks,instances]", "tile=640")
    for option in ("true", "false"):
        words = ("save=[masks]", f"pyramid={option}", "tile=640")
        predicted(run, scans / "geo.tif", tmp_path / option, *words)
    levels = {}
    for file in sorted(tmp_path.glob("*/*/*.tif")):
        first, *others = levels_of(file)
        for number, one in enumerate(others, 1):
            np.testing.assert_array_equal(one, first[:: 2**number, :: 2**number])
        plain = tifffile.imread(tmp_path / "auto" / file.parent.name / "plain.tif")
        np.testing.assert_array_equal(first, plain)
        levels[file.relative_to(tmp_path).as_posix()] = len(others)
    kinds = {"ome": 2, "slide": 2, "geo": 0, "plain": 0}
    assert levels == {"true/masks/geo.tif": 2, "false/masks/geo.tif": 0} | {
        f"auto/{kind}/{name}.tif": n for kind in ("masks", "instances") for name, n in kinds.items()
    }
    assert read_spacing(tmp_path / "auto/masks/ome.tif") == (0.25, 0.5)
    monkeypatch.setattr(outputs, "PYRAMID_SIDE", 599)
    predicted(run, scans / "plain.tif", tmp_path / "large", "save=[masks]", "tile=640")
    assert len(levels_of(tmp_path / "large/masks/plain.tif")) == 3


@pytest.mark.parametrize("version", [2, 3])
def test_the_results_of_an_ome_zarr_are_ome_zarrs_of_its_axes(tmp_path, version):
    run = make_run(tmp_path / "run", channels=2)
    volume = textured(97, 130, 2, 3, 2)  # H, W and T, Z, C
    stored = np.moveaxis(volume, (2, 4, 3), (0, 1, 2))
    scale = {"z": 2.0, "y": 0.5, "x": 0.25}
    ome_zarr(tmp_path / "in/a.ome.zarr", stored, "tczyx", version, (1, 2), scale, chunks=(1, 1, 1, 32, 64))  # fmt: skip
    tifffile.imwrite(tmp_path / "same.ome.tif", stored, metadata={"axes": "TCZYX"})
    options = ("save=[masks,instances,probabilities]", "probabilities=uint8")
    written = predicted(run, tmp_path / "in", tmp_path / "out", *options)
    predicted(run, tmp_path / "same.ome.tif", tmp_path / "twin", *options)
    assert [file.name for file in written] == ["a.ome.zarr", "a.ome.zarr", "a.csv", "a.tif"]
    for file in written[:2]:
        group = zarr.open_group(file, mode="r")
        attributes = group.attrs["ome"] if version == 3 else group.attrs
        (image,) = attributes["multiscales"]
        assert [axis["name"] for axis in image["axes"]] == [*"tzyx"]
        assert [axis.get("unit") for axis in image["axes"]] == [None, *["micrometer"] * 3]
        twin = tifffile.imread(tmp_path / f"twin/{file.parent.name}/same.tif")
        wanted = twin.reshape(2, 3, 97, 130)
        assert len(image["datasets"]) == 2  # as the input has levels
        for step, dataset in zip((1, 2), image["datasets"], strict=True):
            np.testing.assert_array_equal(group[dataset["path"]][:], wanted[..., ::step, ::step])
            (transform,) = dataset["coordinateTransformations"]
            assert transform["scale"] == [1, 2, 0.5 * step, 0.25 * step]
        assert read_spacing(file) == (0.5, 0.25)
    attributes = dict(zarr.open_group(written[0], mode="r").attrs)
    colors = attributes.get("ome", attributes)["image-label"]["colors"]
    assert colors[1] == {"label-value": 1, "rgba": [*GREEN, 255]}
    twin = (tmp_path / "twin/probabilities/same.tif").read_bytes()
    assert (tmp_path / "out/probabilities/a.tif").read_bytes() == twin
    # The same command does nothing, and a changed chunk is predicted again
    assert predicted(run, tmp_path / "in", tmp_path / "out", *options) == []
    record = tmp_path / "out/predict.json"
    record.write_text(record.read_text().replace("finished", "running"))
    left = tmp_path / "out/.partial/.0123456789abcdef.part/0"  # of a killed command
    left.mkdir(parents=True)
    os.utime(tmp_path / "in/a.ome.zarr/0" / ("c/0/0/0/0/0" if version == 3 else "0/0/0/0/0"))
    assert len(predicted(run, tmp_path / "in", tmp_path / "out", *options)) == 4
    assert not (tmp_path / "out/.partial").exists()


def test_a_band_of_an_ome_zarr_is_read_from_its_chunks_alone(run, tmp_path, monkeypatch):
    ome_zarr(tmp_path / "a.zarr", textured(600, 60), chunks=(64, 64))
    keys, starts = record_chunks(monkeypatch), []
    rows = ImageReader.rows

    def recorded(self, start, stop):
        before = len(keys)
        found = rows(self, start, stop)
        starts.append(start)
        assert {int(key.split("/")[1]) for key in keys[before:]} <= set(
            range(start // 64, -(-stop // 64))
        )
        return found

    monkeypatch.setattr(ImageReader, "rows", recorded)
    predicted(run, tmp_path / "a.zarr", tmp_path / "out", "save=[masks]")
    assert len(starts) > 5 and set(keys) == {f"0/{n}/0" for n in range(10)}
    assert len(keys) <= 2 * 10 + len(starts)  # the scan of the values, the bands and their overlap


def test_overlapping_labels_of_an_ome_zarr_are_its_channels(tmp_path):
    run = make_run(tmp_path / "run", classes=3, task="overlapping")
    image = textured(60, 50, 2)
    for axes, wanted in (("zyx", "czyx"), ("tyx", "tcyx")):
        ome_zarr(tmp_path / "in/a.zarr", np.moveaxis(image, -1, 0), axes)
        words = ("save=[masks]", "pyramid=false")
        (file,) = predicted(run, tmp_path / "in/a.zarr", tmp_path / axes, *words)
        group = zarr.open_group(file, mode="r")
        (one,) = group.attrs["multiscales"]
        assert "".join(axis["name"] for axis in one["axes"]) == wanted
        assert len(one["datasets"]) == 1
        found = group["0"][:] if axes == "tyx" else np.moveaxis(group["0"][:], 1, 0)
        for number in range(2):
            p = by_hand(run, image[..., number])
            sure = abs(p - 0.5) > 1e-4
            np.testing.assert_array_equal(found[number][sure], (p > 0.5)[sure])


def test_an_address_is_predicted_and_large_results_have_levels(run, tmp_path, monkeypatch):
    image = textured(200, 150)
    ome_zarr("memory://scans/a.ome.zarr", image, "yx", 3, chunks=(64, 64))
    monkeypatch.setattr(outputs, "PYRAMID_SIDE", 199)
    monkeypatch.setattr(zarr_writer, "CHUNK_PX", 64)
    words = [f"run={run}", "input=memory://scans/a.ome.zarr", f"output={tmp_path / 'out'}"]
    more = ["accelerator=cpu", "tile=96", "overlap=32", "save=[masks]"]
    cfg = compose_checked("predict", [*words, *more])
    (file,) = predict_files(cfg)
    assert file == tmp_path / "out/masks/a.ome.zarr"
    tifffile.imwrite(tmp_path / "a.tif", image)
    (twin,) = predicted(run, tmp_path / "a.tif", tmp_path / "twin", "save=[masks]")
    wanted = tifffile.imread(twin)
    levels = zarr.open_group(file, mode="r")
    assert sorted(levels.array_keys()) == ["0", "1", "2"]
    for level in range(3):
        np.testing.assert_array_equal(levels[str(level)][:], wanted[:: 2**level, :: 2**level])
    assert predict_files(cfg) == []
    seen = seg.load(run).predict("memory://scans/a.ome.zarr")
    np.testing.assert_array_equal(seen.image[..., 0], image)
    for given in ("ftp://server/a.zarr", "s3://bucket/a.tif"):
        with pytest.raises((UserError, DataError), match="an address that is not read"):
            predicted(run, given, tmp_path / "other")


def test_the_channels_of_a_file_are_those_of_its_axes(tmp_path):
    run = make_run(tmp_path / "run", channels=2)
    image = textured(60, 50, 3, 2)  # slices and channels
    volume = np.moveaxis(image, (2, 3), (0, 1))
    tifffile.imwrite(tmp_path / "a.ome.tif", volume, metadata={"axes": "ZCYX"})
    predicted(run, tmp_path / "a.ome.tif", tmp_path / "out", "save=[probabilities]")
    found = tifffile.imread(tmp_path / "out/probabilities/a.tif")
    for z in range(3):
        np.testing.assert_allclose(found[z], by_hand(run, image[:, :, z]), atol=2e-6)
    assert by_hand(run, image[:, :, 0]).shape == found[0].shape
