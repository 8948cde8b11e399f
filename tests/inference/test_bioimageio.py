"""Packages of the BioImage Model Zoo, read by code that isn't the writer's."""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from omegaconf import DictConfig
from PIL import Image
from small_runs import config

from seg.commands.export import export_run
from seg.data.normalization import Normalization
from seg.errors import DataError, UserError
from seg.inference import bioimageio
from seg.inference.bioimageio import Sides, channel_identifiers, fit_test_image
from seg.models import NestedUNet
from seg.runs.load import LoadedRun

GIVEN = {"image": None, "authors": ["Ada Lovelace"], "license": "CC-BY-4.0"}


def small_run(channels: int = 1, neighbours: int = 0, dtype: str = "uint8") -> LoadedRun:
    torch.manual_seed(0)
    model = NestedUNet(channels, 3, width=2, depth=2).eval()
    intensity = Normalization(0.0, 255.0, [0.5] * channels, [0.2] * channels, dtype=dtype, value_range=[3, 250], neighbours=neighbours)  # fmt: skip
    names, colors = ["cell", "wall", "gap, or not"], [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    return LoadedRun(Path("run/best.ckpt"), Path("run"), model, {}, names, colors, intensity)


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    values = np.random.default_rng(0).integers(0, 256, (96, 200), np.uint8)
    Image.fromarray(values).save(file)
    return file


def export_config(tmp_path: Path, **options: object) -> DictConfig:
    cfg = config("export", "format=bioimageio", f"output={tmp_path / 'model.zip'}", "run=run")
    cfg.bioimageio.update(GIVEN | options)
    return cfg


def write(monkeypatch: pytest.MonkeyPatch, run: LoadedRun, cfg: DictConfig) -> dict[str, bytes]:
    monkeypatch.setattr("seg.inference.ensemble.load_members", lambda _: run)
    monkeypatch.setattr("seg.inference.export_facts.member_checkpoints", lambda _: [])
    with zipfile.ZipFile(export_run(cfg)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_package_holds_what_its_description_says(tmp_path, monkeypatch, image_file):
    run = small_run()
    files = write(monkeypatch, run, export_config(tmp_path, image=str(image_file)))
    described = yaml.safe_load(files["rdf.yaml"])
    (image,), (output,) = described["inputs"], described["outputs"]
    for part in (image["test_tensor"], output["test_tensor"], described["weights"]["onnx"]):
        assert hashlib.sha256(files[part["source"]]).hexdigest() == part["sha256"]
    given, expected = (np.load(io.BytesIO(files[f"test_{n}.npy"])) for n in ("input", "output"))
    size = image["axes"][2]["size"]
    assert given.shape[:2] == (1, 1) and expected.shape == (1, 3, *given.shape[2:])
    assert all((side - size["min"]) % size["step"] == 0 for side in given.shape[2:])
    stored = np.asarray(Image.open(image_file))
    first = (200 - given.shape[3]) // 2
    np.testing.assert_array_equal(given[0, 0], stored[:, first : first + given.shape[3]])
    session = onnxruntime.InferenceSession(files["weights.onnx"])
    np.testing.assert_array_equal(session.run(None, {"image": given})[0], expected)
    assert output["axes"][1]["channel_names"] == ["cell", "wall", "gap__or_not"]
    assert described["cite"]
    cover = np.asarray(Image.open(io.BytesIO(files["cover.png"])))
    assert cover.shape == (given.shape[2], 2 * given.shape[3], 3)
    left = cover[:, : given.shape[3], 0].ravel()  # the image, its contrast stretched
    assert np.corrcoef(left, given[0, 0].ravel())[0, 1] > 0.99


def test_tiles_with_the_halo_equal_the_whole_image():
    """The middle of the smallest tile that a package allows does not depend on what lies outside of the tile."""
    run = small_run()
    sides = bioimageio.allowed_sides(run)
    image = torch.rand(1, 1, sides.smallest + 64, sides.smallest + 64)
    middle = slice(sides.halo, sides.smallest - sides.halo)
    with torch.inference_mode():
        whole = run.model(image)[..., : sides.smallest, : sides.smallest][..., middle, middle]
        tile = run.model(image[..., : sides.smallest, : sides.smallest])[..., middle, middle]
    torch.testing.assert_close(whole, tile, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "fitted"), [(70, 300, (96, 288)), (1000, 96, (512, 96)), (1, 1, (96, 96))]
)
def test_the_test_image_has_an_allowed_side(height, width, fitted):
    image = np.arange(height * width, dtype=np.uint16).reshape(height, width, 1)
    found = fit_test_image(image, Sides(smallest=96, step=32, halo=32))
    assert found.shape[:2] == fitted and np.isin(found, image).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "bioimageio.image is not set"),
        ({"authors": []}, "bioimageio.authors is not set"),
        ({"license": None}, "bioimageio.license is not set"),
        ({"name": "U-Net: cells"}, "bioimageio.name=U-Net: cells: 5 to 128 letters"),
    ],
)
def test_missing_options_are_named(tmp_path, monkeypatch, image_file, options, message):
    cfg = export_config(tmp_path, **({"image": str(image_file)} | options))
    with pytest.raises(UserError, match=message):
        write(monkeypatch, small_run(), cfg)
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (small_run(channels=3), DataError, "1 channels; the run was trained on 3"),
        (small_run(dtype="uint16"), UserError, "values of type uint8; .* trained on uint16"),
        (small_run(channels=3, neighbours=1), UserError, "data.neighbours=1"),
    ],
)
def test_images_unlike_those_of_the_training_are_refused(
    tmp_path, monkeypatch, image_file, run, error, message
):
    with pytest.raises(error, match=message):
        write(monkeypatch, run, export_config(tmp_path, image=str(image_file)))


@pytest.mark.parametrize(
    ("classes", "identifiers"),
    [
        (["cell", "Zelle ä", "3d", "for"], ["cell", "Zelle_ä", "class_3d", "class_for"]),
        (["a b", "a-b", "a_b"], ["a_b", "a_b_1", "a_b_2"]),
        (["a_b", "a_b_2", "a b"], ["a_b", "a_b_2", "a_b_2_2"]),
    ],
)
def test_channels_have_different_identifiers(classes, identifiers):
    assert channel_identifiers(classes) == identifiers


@pytest.mark.slow
def test_the_model_zoos_own_test_passes(tmp_path, monkeypatch, image_file):
    """By bioimageio.core in an environment of its own: it needs another pydantic."""
    write(monkeypatch, small_run(), export_config(tmp_path, image=str(image_file)))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    packages = ["bioimageio.core==0.10.4", "onnxruntime", "pydantic<2.12"]
    install = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True)
    if install.returncode:
        pytest.skip("bioimageio.core can't be installed here")
    code = (
        "import sys; from bioimageio.core import test_model; print(test_model(sys.argv[1]).status)"
    )
    told = subprocess.run([python, "-c", code, tmp_path / "model.zip"], capture_output=True, text=True)  # fmt: skip
    assert told.stdout.split()[-1:] == ["passed"], told.stdout + told.stderr
