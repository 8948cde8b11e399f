"""Networks that compute in bfloat16: input and logits stay float32."""

import copy

import numpy as np
import pytest
import torch
from small_runs import config, tiny

from seg import hardware
from seg.commands.evaluate import evaluate
from seg.data.normalization import Normalization
from seg.errors import UserError
from seg.inference import predictor
from seg.inference.ensemble import Ensemble
from seg.inference.predictor import load_predictor
from seg.models import NestedUNet, UNet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("precision"))[1]


@pytest.mark.parametrize("kind", [UNet, NestedUNet])
def test_the_network_alone_is_converted(kind):
    torch.manual_seed(0)
    model = kind(in_channels=1, num_classes=1, width=4, depth=2).eval()
    image = torch.randn(1, 1, 32, 48)
    wanted = copy.deepcopy(model).bfloat16()(image.bfloat16()).float()
    exact = model(image)
    hardware.use_bfloat16(model)
    found = model(image)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert 0 < (found - exact).abs().max() < 0.1


def test_an_ensemble_normalises_in_float32():
    torch.manual_seed(0)
    member = UNet(in_channels=1, num_classes=1, width=4, depth=1).eval()
    # Values that bfloat16 can't tell apart, 40000 and 40001, are -1 and 1 after the normalisation
    intensity = Normalization(0.0, 1.0, [40000.5], [0.5], clip=False)
    image = 40000 + (torch.arange(64).reshape(1, 1, 8, 8) % 2).float()
    ensemble = Ensemble([member], [intensity]).eval()
    wanted = copy.deepcopy(member).bfloat16()((image - 40000.5).bfloat16() * 2).float()
    hardware.use_bfloat16(ensemble)
    assert torch.allclose(ensemble(image), wanted, atol=1e-5)


def test_predict_and_evaluate_take_the_precision(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    exact = load_predictor(run, accelerator="cpu").predict(image).probabilities
    rounded = load_predictor(run, accelerator="cpu", precision="bfloat16").predict(image)
    assert rounded.probabilities.dtype == np.float32
    assert 0 < np.abs(rounded.probabilities - exact).max() < 0.05
    scores = [
        evaluate(config("evaluate", f"run={run}", "panels=0", "accelerator=cpu", f"precision={p}", f"output={tmp_path / p}"))
        for p in ("float32", "bfloat16")
    ]  # fmt: skip
    assert scores[0]["val/loss"] != scores[1]["val/loss"]
    assert scores[0]["val/dice"] == pytest.approx(scores[1]["val/dice"], abs=0.02)


@pytest.mark.parametrize(
    ("found", "fast"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_a_slow_precision_is_said(found, fast, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    predictor.set_precision(UNet(in_channels=1, num_classes=1, width=4, depth=1), "bfloat16", "cpu")
    assert ("many times longer" in caplog.text) != fast
    precision, reason = hardware.pick_precision("auto", "cpu")
    assert precision == "32-true" and ("bf16-mixed is faster" in reason) == fast
    with pytest.raises(UserError, match="precision=int4: choose from float32, bfloat16, int8"):
        predictor.set_precision(UNet(in_channels=1, num_classes=1, width=4, depth=1), "int4", "cpu")  # ty: ignore
