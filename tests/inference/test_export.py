"""What an exported file says, against the network it came from, by code that isn't the exporter's."""

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cases import slow_but
from PIL import Image
from small_runs import config, tiny
from torch import nn

from seg import errors
from seg.commands.export import export_run
from seg.data.normalization import Normalization
from seg.display.console import configure_logging
from seg.errors import RunError, UserError
from seg.export import main
from seg.inference import ensemble
from seg.inference import export as inference_export
from seg.inference.ensemble import Ensemble
from seg.inference.export import (
    COMPARED_BATCHES,
    COMPARED_SIZES,
    FORMAT_SUFFIXES,
    ExportDifference,
    compare_outputs,
    noise_images,
    reference_probabilities,
)
from seg.inference.export_facts import describe_run
from seg.inference.exported_network import ExportedNetwork, open_export, padded_rows, write_export
from seg.inference.file_prediction import predict_files
from seg.models import FCN, NestedUNet, Peer, SegNet, UNet
from seg.models.blocks import pad_to_multiple
from seg.models.contract import reflect_indices, same_size_logits
from seg.runs import checkpoint, load
from seg.runs.load import LoadedRun

ROOT = Path(__file__).parents[2]
GREY = Normalization(0.0, 255.0, [0.45], [0.2])
SHAPES = ((1, 1, 1), (1, 37, 53), (2, 64, 32), (3, 33, 2), (1, 96, 130))  # batch, height, width


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that are not those of a new network, each part audible in the output."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(0, 0.1, generator=draw)
        for module in getattr(model, "scores", []):  # of FCN: finer ones start at zero
            module.weight.normal_(0, 0.2, generator=draw)
    return model.eval()


def as_run(
    model: nn.Module, classes: int = 2, intensity: Normalization = GREY, task: str = "classes"
) -> LoadedRun:
    names = [f"class {i}" for i in range(classes)]
    colors = [(i, 2 * i, 3 * i) for i in range(classes)]
    here = Path("run")
    return LoadedRun(here, here, model, {}, names, colors, intensity, task)


def by_hand(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes, H, W) of images (B, C, H, W) as stored, in double precision."""
    at = run.intensity
    mean, std = (np.array(v).reshape(1, -1, 1, 1) for v in (at.mean, at.std))
    scaled = (image.astype(np.float64) - at.low) / (at.high - at.low)
    scaled = scaled.clip(0, 1) if at.clip else scaled
    with torch.inference_mode():
        normal = torch.from_numpy(((scaled - mean) / std).astype(np.float32))
        z = same_size_logits(run.model, normal).double().numpy()
    if run.overlapping:
        return 1 / (1 + np.exp(-z))
    if z.shape[1] == 1:
        p = 1 / (1 + np.exp(-z))
        return np.concatenate([1 - p, p], axis=1)
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def stored(run: LoadedRun, batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Images (B, C, H, W) of noise, a tenth of the range beyond what is stored if floats are."""
    low, high = run.intensity.low, run.intensity.high
    more = 0.1 * (high - low) if run.intensity.clip else 0
    shape = (batch, run.intensity.channels, height, width)
    drawn = np.random.default_rng(seed).uniform(low - more, high + more, shape)
    return (drawn if run.intensity.clip else drawn.round()).astype(np.float32)


def check(run: LoadedRun, tmp_path: Path, format: str = "onnx", shapes=SHAPES) -> Path:
    """Writes a run and compares it at each shape."""
    configure_logging()
    file = tmp_path / f"model{FORMAT_SUFFIXES[format]}"
    write_export(ExportedNetwork(run), describe_run(run, []), file, format, 12)
    call = open_export(file, format)
    for batch, height, width in shapes:
        image = stored(run, batch, height, width)
        found, truth = call(image), by_hand(run, image)
        assert found.dtype == np.float32 and found.shape == (batch, len(run.classes), height, width)
        np.testing.assert_allclose(found, truth, atol=1e-4, err_msg=f"{batch}x{height}x{width}")
    return file


PLAIN = {
    "fcn32": lambda c, k: FCN(c, k, width=2, stride=32),
    "fcn16": lambda c, k: FCN(c, k, width=2, stride=16),
    "fcn8": lambda c, k: FCN(c, k, width=2, stride=8),
    "alexnet": lambda c, k: FCN(c, k, encoder="alexnet", width=2, stride=8),
    "segnet": lambda c, k: SegNet(c, k, width=2),
    "peer": lambda c, k: Peer(c, k, UNet(c, k, width=2, depth=2), multiple=12),
    **{
        f"unet-{up}": lambda c, k, up=up: UNet(c, k, width=4, depth=3, up=up)
        for up in ("transposed", "bilinear", "nearest", "pixel_shuffle", "unpool")
    },
    **{
        f"valid-{up}": lambda c, k, up=up: UNet(c, k, width=4, depth=2, up=up, padding="valid")
        for up in ("transposed", "bilinear", "nearest", "pixel_shuffle")
    },
    "residual": lambda c, k: UNet(
        c, k, width=4, depth=2, down="average", fuse="add", block="residual"
    ),
    "bottleneck": lambda c, k: UNet(
        c, k, width=4, depth=2, norm="none", down="strided", block="bottleneck"
    ),
    "valid-bottleneck": lambda c, k: UNet(
        c, k, width=4, depth=1, block="bottleneck", padding="valid"
    ),
}
NESTED = {
    **{
        f"{links}-{output}": lambda c, k, links=links, output=output: NestedUNet(
            c, k, width=2, depth=3, links=links, output=output
        )
        for links in ("dense", "short", "none")
        for output in ("deepest", 1, 2, "average")
    },
    **{
        f"{links}-alone": lambda c, k, links=links: NestedUNet(
            c, k, width=2, depth=3, links=links, deep_supervision=False
        )
        for links in ("dense", "short", "none")
    },
    "pruned": lambda c, k: NestedUNet(c, k, width=2, depth=2, pruned=True),
    "unpool-residual": lambda c, k: NestedUNet(
        c, k, width=2, depth=2, up="unpool", block="residual", fuse="add"
    ),
}


# of the nested grids: each kind of links, each kind of output
SOME = ("dense-average", "dense-1", "short-2", "none-deepest", "dense-alone", "pruned", "unpool-residual")  # fmt: skip


@pytest.mark.parametrize("name", slow_but([*PLAIN, *NESTED], *PLAIN, *SOME))
def test_onnx_says_what_the_network_says_at_any_size(name, tmp_path):
    model = lively((PLAIN | NESTED)[name](1, 1))
    check(as_run(model), tmp_path)


@pytest.mark.parametrize("name", slow_but([*PLAIN, *NESTED]))
def test_so_does_torch_export(name, tmp_path):
    check(as_run(lively((PLAIN | NESTED)[name](1, 1))), tmp_path, "torch")


SLOW = pytest.param("torch", marks=pytest.mark.slow)


@pytest.mark.parametrize("format", ["onnx", SLOW])
@pytest.mark.parametrize(
    ("logits", "classes", "task"),
    [(1, 2, "classes"), (2, 2, "instances"), (4, 4, "classes"), (3, 3, "overlapping")],
)
def test_every_kind_of_logits(logits, classes, task, format, tmp_path):
    model = lively(UNet(1, logits, width=2, depth=1))
    check(as_run(model, classes, GREY, task), tmp_path, format, ((1, 1, 1), (2, 9, 14)))


@pytest.mark.parametrize(
    "intensity",
    [
        Normalization(0.0, 65535.0, [0.3], [0.1]),
        Normalization(-1.5, 7.25, [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]),
        Normalization(-1.5, 7.25, [0.4, 0.5], [0.3, 0.2], clip=True),
        Normalization(12.0, 190.0, [0.5], [0.25], clip=True),
    ],
    ids=["uint16", "float", "clipped float", "clipped uint8"],
)
def test_stored_values_are_normalised_inside(intensity, tmp_path):
    model = lively(UNet(intensity.channels, 3, width=2, depth=1))
    check(as_run(model, 3, intensity), tmp_path, shapes=((1, 1, 1), (2, 9, 14)))


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 9, 40])
@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("block", ["double_conv", "bottleneck"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_a_border_is_continued_as_the_network_does_it(side, up, block, depth):
    ramp = torch.arange(side)
    same = UNet(1, 1, width=1, depth=depth)
    rows = torch.arange(float(side)).reshape(1, 1, side, 1)
    assert torch.equal(padded_rows(same, side), pad_to_multiple(rows, 2**depth)[0, 0, :, 0].long())
    valid = UNet(1, 1, width=1, depth=depth, up=up, block=block, padding="valid")
    after = valid.input_side(side) - side - valid.context
    assert torch.equal(padded_rows(valid, side), ramp[reflect_indices(side, valid.context, after)])


@pytest.mark.parametrize("format", ["onnx", SLOW])
@pytest.mark.parametrize(("logits", "task"), [(1, "classes"), (3, "classes"), (3, "overlapping")])
def test_an_ensemble_is_one_file(logits, task, format, tmp_path):
    members = [
        lively(UNet(1, logits, width=2, depth=1), 1),
        lively(UNet(1, logits, width=2, depth=2, padding="valid"), 2),
        lively(FCN(1, logits, width=2, stride=32), 3),
    ]
    spans = [GREY, Normalization(10.0, 200.0, [0.5], [0.3], clip=True), GREY]
    classes = max(2, logits)
    alone = [as_run(one, classes, at, task) for one, at in zip(members, spans, strict=True)]
    together = Ensemble(members, spans, task == "overlapping")
    run = as_run(together, classes, together.intensity, task)
    file = tmp_path / f"model{FORMAT_SUFFIXES[format]}"
    write_export(ExportedNetwork(run), describe_run(run, []), file, format, 12)
    for shape in SHAPES[:4]:
        image = stored(alone[0], *shape)
        mean = np.mean([by_hand(one, image) for one in alone], axis=0)
        np.testing.assert_allclose(open_export(file, format)(image), mean, atol=1e-4)


def test_what_is_told_is_the_runs_own():
    run = as_run(UNet(2, 3, width=1, depth=1), 3, Normalization(0.0, 1.0, [0.5] * 2, [1.0] * 2))
    told = describe_run(dataclasses.replace(run, threshold=0.3, task="overlapping"), [])
    assert (told["threshold"], told["task"], told["channels"]) == (0.3, "overlapping", 2)
    assert told["colors"] == [[0, 0, 0], [1, 2, 3], [2, 4, 6]] and told["network"] == "UNet"


def test_the_network_itself_stays_as_it_was():
    model = lively(NestedUNet(1, 1, width=2, depth=2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ExportedNetwork(as_run(model))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    words = ("model=unetpp", "model.output=average", "model.depth=2", "trainer.max_epochs=1")
    return tiny(tmp_path_factory.mktemp("export"), *words)[1]


def asked(*words: str):
    return config("export", *words)


def test_a_run_becomes_one_onnx_file_that_tells_what_it_is(trained, tmp_path, capfd):
    file = export_run(asked(f"run={trained}", f"output={tmp_path}/new/m.onnx"))
    assert file == tmp_path / "new/m.onnx" and [p.name for p in file.parent.iterdir()] == ["m.onnx"]
    printed = capfd.readouterr()
    assert printed.err == "" and "images of noise" in printed.out
    for size in ("97x97", "64x160", "257x320"):
        assert re.search(rf"{size} .* \d\.\de-0[5-9] .* \d\.\de-0[5-9] ", printed.out)
    assert max(map(len, printed.out.replace(str(tmp_path), "").splitlines())) <= 80
    assert "torchvision" not in printed.out and "Warning" not in printed.out
    model = onnx.load(file)
    assert {(one.domain, one.version) for one in model.opset_import} == {("", 12)}
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 1, "height", "width"]
    session = onnxruntime.InferenceSession(file)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["seg"])
    best = trained / "checkpoints/best.ckpt"
    digest = subprocess.run(["sha256sum", best], capture_output=True, text=True).stdout.split()[0]
    assert facts == {
        "seg": "0.1.0",
        "classes": ["membrane", "cell"],
        "colors": [list(color) for color in load.load_run(trained).colors],
        "threshold": 0.5,
        "task": "classes",
        "channels": 1,
        "neighbours": 0,
        "network": "NestedUNet",
        "precision": "float32",
        "checkpoints": {str(best): digest},
    }


def test_torch_export_tells_the_same(trained_run, tmp_path):
    file = export_run(asked(f"run={trained_run}", "format=torch", f"output={tmp_path}/m.pt2"))
    extra = {"seg.json": ""}
    torch.export.load(file, extra_files=extra)
    facts = json.loads(extra["seg.json"])
    assert facts["classes"] == ["membrane", "cell"] and len(facts["checkpoints"]) == 1


def test_members_of_an_ensemble_are_named(trained, tmp_path):
    two = f"run=[{trained},{trained}/checkpoints/last.ckpt]"
    with pytest.raises(UserError, match=r"output is not set: .* give output="):
        export_run(asked(two))
    facts = json.loads(
        onnx.load(export_run(asked(two, f"output={tmp_path}/m.onnx"))).metadata_props[0].value
    )
    assert [Path(p).name for p in facts["checkpoints"]] == ["best.ckpt", "last.ckpt"]


def test_the_folds_of_a_cross_validation_are_one_file(trained, tmp_path):
    for fold in ("fold-0", "fold-1"):
        shutil.copytree(trained / "checkpoints", tmp_path / fold / "checkpoints")
    record = {"status": "finished", "images": {}, "folds": [{"run": "fold-0"}, {"run": "fold-1"}]}
    (tmp_path / "crossval.json").write_text(json.dumps(record))
    file = export_run(asked(f"run={tmp_path}"))
    assert file == tmp_path / "export/model.onnx"
    facts = json.loads(onnx.load(file).metadata_props[0].value)
    assert [Path(p).parts[-3] for p in facts["checkpoints"]] == ["fold-0", "fold-1"]


def test_the_images_compared_are_noise_of_the_stored_range_and_always_the_same(trained):
    run = load.load_run(trained)
    first, second = noise_images(run), noise_images(run)
    assert np.array_equal(first, second) and 0 <= np.min(first) < 5 and 250 < np.max(first) <= 255


def test_a_file_that_differs_is_not_left(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_export, "ROUNDING_FACTOR", 0)
    words = (f"run={trained}", f"output={tmp_path}/m.onnx")
    with pytest.raises(
        UserError,
        match=r"differs from PyTorch by \d.* tolerance=1e-12 and than 0 times the rounding .*; nothing is",
    ):
        export_run(asked(*words, "tolerance=1.0e-12"))
    assert not list(tmp_path.iterdir())


def even_gaps(largest: float, share: float = 0) -> list[ExportDifference]:
    sizes = [(b, h, w) for h, w in COMPARED_SIZES for b in COMPARED_BATCHES]
    return [ExportDifference(*size, largest, share) for size in sizes]


def pretend_gaps(gaps: list[ExportDifference], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes an empty file that differs by these."""
    monkeypatch.setattr(
        inference_export, "write_export", lambda network, facts, file, *_: file.write_text("x")
    )
    monkeypatch.setattr(inference_export, "open_export", lambda *_: None)
    monkeypatch.setattr(inference_export, "compare_outputs", lambda *_: gaps)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("gap", [2e-4, float("nan"), float("inf")])
def test_one_difference_of_six_is_enough(place, gap, trained, tmp_path, monkeypatch):
    gaps = even_gaps(1e-6)
    gaps[place] = dataclasses.replace(gaps[place], largest=gap)
    pretend_gaps(gaps, monkeypatch)
    with pytest.raises(UserError, match="nothing is written"):
        export_run(asked(f"run={trained}", f"output={tmp_path}/m.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("largest", "share", "rounding", "told"),
    [
        (9e-3, 0.9, 1e-3, "PyTorch in float32 differs from float64 by 1.0e-03"),
        (9e-3, 0.9, 8e-4, None),
        (float("nan"), 0.9, float("nan"), None),
        (9e-3, 0.004, 1e-7, None),  # a U-Net doesn't unpool
    ],
)
def test_a_difference_that_float32_itself_makes_is_no_fault(
    largest, share, rounding, told, trained, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "seg")
    pretend_gaps(even_gaps(largest, share), monkeypatch)
    monkeypatch.setattr(inference_export, "measure_rounding", lambda *_: rounding)
    words = asked(f"run={trained}", f"output={tmp_path}/m.onnx")
    if told:
        assert export_run(words).exists() and told in caplog.text
        return
    with pytest.raises(UserError, match=r"times the rounding of float32.* A larger tolerance writes it"):  # fmt: skip
        export_run(words)


def test_rounding_is_larger_where_values_are_far_from_those_of_the_training():
    """Twelve bits stored in sixteen: noise of the whole type is hundreds of standard deviations away."""
    torch.manual_seed(0)
    network = lively(UNet(1, 1, width=4, depth=2))
    narrow = Normalization(0.0, 65535.0, [0.02], [0.0005], dtype="uint16")
    runs = [as_run(network, 2, one) for one in (GREY, narrow)]
    usual, far = (inference_export.measure_rounding(run, noise_images(run)) for run in runs)
    assert 0 < 10 * usual < far


def test_a_network_of_float32_alone_has_no_rounding_to_compare():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.matmul(x * self.weight, torch.eye(x.shape[-1]))

    run = as_run(Peer(1, 1, Single()).eval())
    assert inference_export.measure_rounding(run, noise_images(run)) == 0


@pytest.mark.parametrize(("share", "written"), [(0.004, True), (0.006, False)])
def test_few_pixels_may_differ_where_maxima_are_unpooled(share, written, tmp_path, monkeypatch, caplog):  # fmt: skip
    caplog.set_level(logging.INFO, "seg")
    run, cfg = as_run(lively(SegNet(1, 3, width=2)), 3), asked(f"run={tmp_path}")
    pretend_gaps(even_gaps(0.02, share), monkeypatch)
    if written:
        inference_export.write_checked(run, describe_run(run, []), tmp_path / "m", "onnx", cfg)
        assert "0.40% of the probabilities differ" in caplog.text
        return
    with pytest.raises(UserError, match=r"in 0\.6% of the probabilities; at most 0\.5%.* nothing is written"):  # fmt: skip
        inference_export.write_checked(run, describe_run(run, []), tmp_path / "m", "onnx", cfg)


def test_maxima_of_almost_equal_pixels_differ_between_programs(tmp_path):
    """Such a SegNet may differ in few places by far more than float32 rounds."""
    torch.manual_seed(0)
    run, file = as_run(lively(SegNet(1, 3, width=8)), 3), tmp_path / "m.onnx"
    inference_export.write_checked(run, describe_run(run, []), file, "onnx", asked(f"run={file}"))
    gaps = compare_outputs(run, open_export(file, "onnx"), noise_images(run), 1e-4)
    assert all(gap.share <= inference_export.TIED_SHARE for gap in gaps)


def test_every_size_and_batch_is_compared():
    run = as_run(lively(UNet(1, 1, width=2, depth=1)))
    images, asked_for = noise_images(run), []

    def wrong(image: np.ndarray) -> np.ndarray:
        asked_for.append(image)
        return reference_probabilities(run, image) + np.float32(len(asked_for))

    gaps = compare_outputs(run, wrong, images, 1e-4)
    assert [round(gap.largest) for gap in gaps] == [1, 2, 3, 4, 5, 6]
    assert {one.shape[0] for one in asked_for} == {1, 2}
    sides = {one.shape[2:] for one in asked_for}
    assert len(sides) == 3 and any(h % 2 for h, _ in sides) and any(h != w for h, w in sides)
    assert not np.array_equal(asked_for[-1][0], asked_for[-1][1])
    small = compare_outputs(
        run, lambda image: reference_probabilities(run, image)[:, :1], images, 1e-4
    )
    assert all(gap.largest == np.inf for gap in small)


class Branching(nn.Module):
    """A network that no tracer follows: what it does depends on the image's size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[-1] > 100 else -x


class Foreign(nn.Module):
    """A network of an operator that ONNX hasn't."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("network", [Branching, Foreign])
def test_a_network_that_can_not_be_exported_is_refused(
    network, format, trained, tmp_path, monkeypatch, capfd
):
    if (network, format) == (Foreign, "torch"):
        pytest.skip("torch.export has it")
    run = dataclasses.replace(load.load_run(trained), model=Peer(1, 1, network()).eval())
    monkeypatch.setattr(ensemble, "load_members", lambda given: run)
    file = tmp_path / f"m{FORMAT_SUFFIXES[format]}"
    with pytest.raises(
        UserError, match=f"its {network.__name__} (as|can't be exported as) {format}"
    ) as told:
        export_run(asked(f"run={trained}", f"format={format}", f"output={file}"))
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())
    assert "graph(" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["output=m.pt2"], "output=m.pt2: format=onnx is written as a file named .onnx"),
        (["output=/dev/null/m.onnx"], "output=/dev/null/m.onnx: can't be written"),
        (["opset=99"], "can't be exported as onnx: .*99"),
        (["opset=8"], "can't be exported as onnx: .*opset"),
        (
            ["calibration.images=3"],
            "calibration.images=3: does nothing with format=onnx precision=float32",
        ),
        (["max_loss=0.1"], "max_loss=0.1: does nothing with format=onnx precision=float32"),
        (
            ["precision=int8", "tolerance=0.1"],
            "tolerance=0.1: does nothing with format=onnx precision=int8",
        ),
        (["format=torch", "output=m.pt2", "opset=18"], "opset=18: does nothing with format=torch"),
    ],
)
def test_what_can_not_be_is_told(words, told, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, RunError), match=told):
        export_run(asked(f"run={trained}", "output=m.onnx", *words))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(trained, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_text("mine")
    with pytest.raises(UserError, match="is there already; remove it or give another file"):
        export_run(asked(f"run={trained}", f"output={file}"))
    assert file.read_text() == "mine"


def test_more_weights_than_one_onnx_file_holds(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_export, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(UserError, match="take format=torch"):
        export_run(asked(f"run={trained}", f"output={tmp_path}/m.onnx"))


def test_a_checkpoint_of_foreign_code_is_refused(trained, tmp_path):
    content = checkpoint.read_checkpoint(trained / "checkpoints/best.ckpt")
    content["seg"]["config"]["model"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(errors.RunError, match=r"names 'os.system'; only"):
        export_run(asked(f"run={tmp_path}/bad.ckpt"))
    assert [p.name for p in tmp_path.iterdir()] == ["bad.ckpt"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_named(package, trained, monkeypatch):
    real = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(
        UserError,
        match=r"format=onnx needs the extra export: pip install 'seg-experiments\[export\]'",
    ):
        export_run(asked(f"run={trained}"))


def test_the_example_gives_the_mask_of_predict_without_this_package_and_torch(trained, tmp_path):
    picture = ROOT / "docs/images/section.png"
    with Image.open(picture) as image:
        image.crop((0, 0, 101, 77)).save(tmp_path / "small.png")
    file = export_run(asked(f"run={trained}", f"output={tmp_path}/m.onnx"))
    words = [ROOT / "examples/onnx_predict.py", file, tmp_path / "small.png", tmp_path / "mask.png"]
    blocked = "import sys; sys.modules.update(seg=None, torch=None)"
    program = f"{blocked}; del sys.argv[0]; import runpy; runpy.run_path(sys.argv[0])"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predict_files(
        config("predict", f"run={trained}", f"input={tmp_path}/small.png", f"output={tmp_path}/p")
    )
    with (
        Image.open(tmp_path / "mask.png") as one,
        Image.open(tmp_path / "p/masks/small.png") as two,
    ):
        ours, theirs = np.asarray(one), np.asarray(two)
    assert ours.shape == (77, 101) and len(np.unique(ours)) == 2
    assert (ours != theirs).sum() <= 1  # a probability at the threshold


def test_the_page_shows_the_example_as_it_is():
    page, example = (
        (ROOT / "docs/export.md").read_text(),
        (ROOT / "examples/onnx_predict.py").read_text(),
    )
    assert f"```py\n{example}```" in page


def test_as_a_user_types_it(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference_export, "ROUNDING_FACTOR", 0)
    line = ["export", f"run={trained}", "tolerance=1e-12", f"output={tmp_path}/m.onnx"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
