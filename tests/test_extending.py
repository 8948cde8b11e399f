"""docs/extending.md: a network, a loss and a data set outside the package, each from one class and one YAML file."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seg.errors import RunError
from seg.inference.tiling import Tiling, needed_overlap
from seg.logits import probabilities
from seg.models.contract import same_size_logits
from seg.predict import main as predict
from seg.runs.safe_loading import check_targets
from seg.train import main as train

PAGE = (Path(__file__).parent.parent / "docs/extending.md").read_text()
BLOCKS = re.findall(r"```(?:py|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S)
SMALL = [
    "logger=none", "panels=1", "loader.crop=16", "trainer.max_steps=2", "trainer.limit_val_batches=1.0",
    "trainer.check_val_every_n_epoch=1",
]  # fmt: skip


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """The page's files in the current folder, which Python searches as it does for ``python -m``."""
    for name, text in BLOCKS:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(text + "\n\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_seg", raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("my_seg", None)


def run(main, monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [main.__module__, *words])
    main()


@pytest.mark.parametrize("choice", ["model=coarse", "loss=absolute", "data=disks"])
def test_an_addition_trains_and_is_validated(choice, user_folder, monkeypatch):
    lines = re.findall(r"^python -m seg\.train (.*)$", PAGE, re.M)
    words = next(line for line in lines if choice in line).split()
    made = [] if choice.startswith("data") else ["data.size=64", "data.train=4", "data.val=2"]
    made += [] if choice.startswith("model") else ["model.width=2"]
    run(train, monkeypatch, *words, *SMALL, *made)
    record = json.loads(Path("outputs/latest/run.json").read_text())
    assert record["status"] == "finished" and np.isfinite(record["metrics"]["best/val/dice"])


def test_a_network_of_the_user_predicts_once_its_package_is_named(user_folder, monkeypatch, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 71), np.uint8)).save("image.png")
    words = ["--config-dir", "mine", "model=coarse", "trainer=smoke", *SMALL, "data.size=64"]
    run(train, monkeypatch, *words)
    line = ["run=outputs/latest", "input=image.png", "output=results", "accelerator=cpu"]
    with pytest.raises(SystemExit) as refused:
        run(predict, monkeypatch, *line)
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "'my_seg.Coarse'" in message and "SEG_PACKAGES" in message and message.count("\n") == 1
    assert not Path("results/masks").exists()

    monkeypatch.setenv("SEG_PACKAGES", "other_package, my_seg")
    run(predict, monkeypatch, *line)
    with Image.open("results/masks/image.png") as mask:
        assert mask.size == (71, 50)


def test_another_class_in_the_checkpoint_stays_refused(user_folder, monkeypatch):
    monkeypatch.setenv("SEG_PACKAGES", "my_seg")
    check_targets({"_target_": "my_seg.Coarse"}, Path("x.ckpt"))
    # an import of the user's package is not written in it; a function is no class
    for target in ("my_seg.nn.Linear", "os.system", "my_seg_other.Coarse", "my_seg.probabilities"):
        with pytest.raises(RunError, match="names"):
            check_targets({"_target_": target}, Path("x.ckpt"))


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (130, 97)])
def test_a_valid_network_of_the_user_covers_any_image_and_its_tiles_have_no_seams(
    size, user_folder
):
    torch.manual_seed(0)
    model = importlib.import_module("my_seg").Coarse(1, 2, 4).eval()
    assert model.input_side(1) == 8 and model.input_side(3) == 10
    image = np.random.default_rng(0).random((*size, 1), np.float32)
    with torch.no_grad():
        logits = same_size_logits(model, torch.from_numpy(image.transpose(2, 0, 1))[None])
    assert logits.shape == (1, 2, *size)
    _, overlap, everywhere = needed_overlap(model)
    assert (overlap, everywhere) == (32, False)
    tiled = Tiling(model, lambda tile: tile, tile=96, overlap=overlap).whole(image)
    np.testing.assert_allclose(tiled, probabilities(logits)[0].numpy(), atol=1e-6)


def test_a_network_without_the_contract_is_refused_with_the_remedy(
    user_folder, monkeypatch, capsys
):
    Path("my_plain.py").write_text(
        "from torch import nn\n\n\nclass Plain(nn.Conv2d):\n"
        "    def __init__(self, in_channels: int, num_classes: int):\n"
        "        super().__init__(in_channels, num_classes, 1)\n"
    )
    Path("mine/model/plain.yaml").write_text(
        "_target_: my_plain.Plain\nin_channels: null\nnum_classes: null\n"
    )
    with pytest.raises(SystemExit) as refused:
        run(
            train, monkeypatch, "--config-dir", "mine", "model=plain", "trainer=smoke", *SMALL,
            "data.size=64",
        )  # fmt: skip
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "seg.models.Network" in message and "model.network._target_=my_plain.Plain" in message
