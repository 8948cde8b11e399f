"""Evaluation by tiles gives the numbers of the whole image, for every kind of network, loss and metric."""

import subprocess
import sys
import tracemalloc
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from cases import slow_but
from format_files import ome_zarr, record_chunks
from small_runs import config
from torch import nn

from seg.commands.evaluate import evaluate
from seg.data.dataset import SegmentationDataset
from seg.data.datasets.folder import Folder
from seg.data.image_cache import ImageCache
from seg.data.normalization import Normalization
from seg.data.ome_zarr import ZarrImages
from seg.losses import Dice, LossOfBands, Lovasz, compute_loss
from seg.training.callbacks.pictures import predict_thinned
from seg.training.run import train

CLASSES = "data.classes=[out,in]"
SMALL = ["loader.crop=32", "loader.repeats=1", "logger=none", "model.width=2", "trainer=cpu", "trainer.max_epochs=1",
         "save_predictions=2", "panels=2", CLASSES]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four images of several sizes, in compressed TIFFs of tiles, with ignored pixels."""
    root = tmp_path_factory.mktemp("tiled")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i, (height, width) in enumerate([(110, 230), (200, 130), (96, 64), (230, 99)]):
        mask = (rng.random((height, width)) < 0.01 * (i + 1)).astype(np.uint8)
        mask = np.kron(mask[::8, ::8], np.ones((8, 8), np.uint8))[:height, :width]
        mask[:9, :9] = 255
        image = (
            (60 + 90 * (mask == 1) + rng.normal(0, 30, mask.shape)).clip(0, 255).astype(np.uint8)
        )
        options = {"compression": "zlib", "tile": (32, 32)}
        tifffile.imwrite(root / "images" / f"{i}.tif", image, **options)
        tifffile.imwrite(root / "masks" / f"{i}.tif", mask, **options)
    return root


def scores_of(root: Path, outputs: Path, *words: str) -> dict[str, float]:
    given = [
        "data=folder",
        f"data.root={root}",
        "data.val=0.75",
        f"outputs={outputs}",
        "data.ignore=[255]",
    ]
    return train(config("train", *given, *SMALL, *words))


CASES = {
    "unet, sum of losses": ["model=unet", "model.depth=2", "loss=bce_dice"],
    "unetpp, deep supervision": ["model=unetpp", "model.depth=2", "loss=focal"],
    "valid convolutions": ["model=unet_paper", "model.depth=1", "loss=tversky"],
    "losses of whole images": ["model=unet", "model.depth=1", "loss=sum", "loss.terms.lovasz.weight=1", "loss.terms.cldice.weight=1"],
    "weight map, all metrics": ["model=unet", "model.depth=1", "loss=weight_map", "metrics=full", "threshold=best"],
}  # fmt: skip


@pytest.mark.parametrize("case", slow_but(CASES, *list(CASES)[1:]))
def test_tiles_give_the_numbers_of_the_whole_image(root, tmp_path, case):
    whole = scores_of(root, tmp_path / "whole", "tile=null", *CASES[case])
    tiled = scores_of(root, tmp_path / "tiled", "tile=96", *CASES[case])
    assert whole.keys() == tiled.keys()
    for name, value in whole.items():
        assert tiled[name] == pytest.approx(value, abs=2e-6, nan_ok=True), name
    counts = [(tmp_path / kind / "latest/images.csv").read_text() for kind in ("whole", "tiled")]
    assert counts[0] == counts[1]
    pictures = [(tmp_path / kind / "latest/predictions/val") for kind in ("whole", "tiled")]
    for name in sorted(file.name for file in pictures[0].iterdir()):
        assert (pictures[0] / name).read_bytes() == (pictures[1] / name).read_bytes(), name


def recorded_segments(handle, touched, read, *args, **options):
    touched.extend(options["indices"])
    return read(handle, *args, **options)


def test_only_the_rows_of_a_band_are_decoded(root, monkeypatch):
    source = Folder(str(root), ["out", "in"], ignore=[255])
    for name in source.files:
        image, mask = source.read(name)
        rows = source.open_rows(name)
        assert rows.shape == image.shape[:2] and rows.dtype == image.dtype
        for start, stop in ((0, 7), (20, 64), (60, rows.shape[0])):
            assert (rows.image_rows(start, stop) == image[start:stop]).all()
            assert (rows.mask_rows(start, stop) == mask[start:stop]).all()
        touched: list[int] = []
        read = tifffile.FileHandle.read_segments
        with monkeypatch.context() as patch:
            patch.setattr(
                tifffile.FileHandle,
                "read_segments",
                partialmethod(recorded_segments, touched, read),
            )
            rows.image_rows(33, 64)
        across = -(-rows.shape[1] // 32)
        assert touched == list(range(across, 2 * across))
        rows.close()


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("runs")
    scores_of(root, outputs, "model=unet", "model.depth=1", "data.task=instances")
    return (outputs / "latest").resolve()


def test_an_ome_zarr_gives_the_numbers_of_a_tiff_from_the_chunks_of_a_band(root, run, tmp_path, monkeypatch):  # fmt: skip
    for part in ("images", "masks"):
        for file in (root / part).iterdir():
            pixels = tifffile.imread(file)
            ome_zarr(tmp_path / part / f"{file.stem}.ome.zarr", pixels, chunks=(64, 64))
    keys, decode, bands = record_chunks(monkeypatch), ZarrImages.decode, []

    def recorded(self, number, start, stop):
        before = len(keys)
        found = decode(self, number, start, stop)
        bands.append((start, stop, keys[before:]))
        return found

    given = [f"run={run}", "data=folder", "data.ignore=[255]", "data.split=all", "panels=0", "tile=192"]  # fmt: skip
    monkeypatch.setattr(ZarrImages, "decode", recorded)
    monkeypatch.setattr(ImageCache, "keep", lambda *words: None)  # as if memory were small
    found, wanted = (
        evaluate(config("evaluate", *given, f"data.root={place}", f"output={tmp_path / f'out-{place.name}'}"))
        for place in (tmp_path, root)
    )  # fmt: skip
    assert repr(found) == repr(wanted)
    assert any(start > 0 for start, _, _ in bands)
    for start, stop, read in bands:
        assert {int(key.split("/")[1]) for key in read} == set(range(start // 64, -(-stop // 64)))
        assert len(read) == len(set(read)) <= 6 * ((stop - start) // 64 + 1)


@pytest.mark.parametrize("words", [["tta=flips"], ["scales=[1.0,0.5]"], ["ensemble"]], ids=str)
def test_views_ensembles_and_objects_by_tiles(root, run, tmp_path, words):
    networks = f"run=[{run},{run}]" if words == ["ensemble"] else f"run={run}"
    given = [networks, "data.split=val", "panels=1", *(w for w in words if "=" in w)]
    scores = {
        tile: evaluate(config("evaluate", *given, f"tile={tile}", f"output={tmp_path / tile}"))
        for tile in ("null", "192")
    }
    assert any("object_f1" in name for name in scores["192"])
    for name, value in scores["null"].items():
        assert scores["192"][name] == pytest.approx(value, abs=2e-6, nan_ok=True), name


def test_a_loss_that_needs_the_whole_image_is_left_out_above_a_size():
    logits, mask = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 8, 8))
    for loss in (Lovasz(), Dice()):
        whole, _ = compute_loss(loss, [logits], mask)
        for kept in (64, 63):
            bands = LossOfBands(loss, 64, kept_pixels=kept)
            for rows in (slice(0, 3), slice(3, 8)):
                bands.add(logits[..., rows, :], mask[..., rows, :])
            value, _ = bands.compute()
            if isinstance(loss, Lovasz) and kept < 64:
                assert value.isnan() and not bands.fits
            else:
                assert value == pytest.approx(float(whole), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "tile", "found"),
    [
        ("unet", "64", "the receptive field reaches 94 px .* take tile=224"),
        ("unet", "100", "on a grid of 32 px"),
        ("unet model.norm=group", "256", "reads the whole image .* take tile=null"),
        ("unet", "0", "tile=0: a number of px, auto or null is needed"),
    ],
)
def test_a_tile_that_would_change_the_numbers_is_refused(root, tmp_path, model, tile, found):
    name, *words = model.split()
    with pytest.raises(ValueError, match=found):
        scores_of(root, tmp_path, f"model={name}", *words, f"tile={tile}")
    assert not any(tmp_path.iterdir())


def test_a_large_image_is_thinned_without_keeping_its_bands(tmp_path):
    model = nn.Conv2d(1, 2, 1)
    peaks = []
    for number, height in enumerate((4096, 16384)):
        for part in ("images", "masks"):
            (tmp_path / f"{number}/{part}").mkdir(parents=True)
            pixels = np.zeros((height, 256), np.uint8)
            tifffile.imwrite(
                tmp_path / f"{number}/{part}/a.tif", pixels, tile=(256, 256), compression="zlib"
            )
        source = Folder(str(tmp_path / str(number)), ["out", "in"])
        samples = SegmentationDataset(
            source, ["a"], Normalization(0.0, 255.0, [0.5], [0.2], dtype="uint8"), tile=1024
        )
        with samples.open_banded("a") as sample:
            tracemalloc.start()
            thinned = predict_thinned(model, samples, sample, 0.5)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert thinned.prediction.shape == thinned.truth.shape == (2048, 256 // (height // 2048))
    assert peaks[1] < 1.1 * peaks[0]


# large


MEASURED = """
import sys
from pathlib import Path
from seg.cli.compose import compose_checked
command, *words = sys.argv[1:]
if command == "train":
    from seg.training.run import train as function
else:
    from seg.commands.evaluate import evaluate as function
scores = function(compose_checked(command, words))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(scores[f"{'best/val' if command == 'train' else 'all'}/dice"], int(peak.split()[1]) / 1024)
"""


def write_pattern(root: Path, name: str, side: int) -> None:
    """A square image and its mask, which repeat 256 px, as TIFFs of tiles."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((16, 16)) < 0.3, np.ones((16, 16))).astype(np.uint8)
    image = (60 + 90 * mask + rng.normal(0, 30, mask.shape)).clip(0, 255).astype(np.uint8)
    for part, tile in (("images", image), ("masks", mask)):
        (root / part).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            root / part / f"{name}.tif", (tile for _ in range((-(-side // 256)) ** 2)), shape=(side, side), dtype=np.uint8,
            tile=(256, 256), compression="zlib", photometric="minisblack",
        )  # fmt: skip


def dice_and_peak(*words: str) -> tuple[float, float]:
    """Dice, and the largest memory in MiB, of a command in a process of its own."""
    line = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    dice, peak = map(float, done.stdout.splitlines()[-1].split())
    print(words[0], dice, peak)
    return dice, peak


@pytest.mark.slow
def test_the_default_network_validates_8192_px_and_scores_20000_px_in_bounded_memory(tmp_path):
    for name, side in (("few", 512), ("large", 8192)):
        write_pattern(tmp_path / "data", name, side)
    for split, name in (("train", "few"), ("val", "large")):
        (tmp_path / f"{split}.txt").write_text(f"{name}\n")
    dice, peak = dice_and_peak(
        "train", "data=folder", f"data.root={tmp_path / 'data'}", CLASSES, f"data.lists={tmp_path}", f"outputs={tmp_path / 'outputs'}",
        "trainer=cpu", "trainer.max_steps=2", "logger=none",
    )  # fmt: skip
    assert 0 < dice < 1 and peak < 1750  # with the scores and pictures at the end
    write_pattern(tmp_path / "other", "a", 20_000)
    dice, peak = dice_and_peak(
        "evaluate", f"run={tmp_path / 'outputs/latest'}", "data=folder", f"data.root={tmp_path / 'other'}", CLASSES,
        "data.split=all", f"output={tmp_path / 'scores'}", "accelerator=cpu",
    )  # fmt: skip
    assert 0 < dice < 1 and peak < 1900
