"""Depths of a trained grid compared, and one of them kept alone."""

import itertools
import json

import pytest
import torch
from PIL import Image
from small_runs import config, tiny

from seg.errors import RunError, UserError
from seg.inference.pruning import compare_depths
from seg.models import NestedUNet, profiling
from seg.runs import checkpoint, load


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    _, folder = tiny(tmp_path_factory.mktemp("prune"), "model=unetpp", "model.norm=batch")
    return folder


def test_each_depth_is_scored_and_costs_less_than_the_next(trained, capsys):
    levels = compare_depths(config("prune", f"run={trained}", "rounds=1"))
    assert [level.name for level in levels] == ["L1", "L2", "L3", "L4", "average"]
    for cheaper, dearer in itertools.pairwise(levels[:4]):
        assert cheaper.parameters < dearer.parameters
        assert cheaper.multiply_adds < dearer.multiply_adds
        assert cheaper.peak_bytes < dearer.peak_bytes
    record = json.loads((trained / "run.json").read_text())["metrics"]
    assert levels[3].scores["dice"] == pytest.approx(record["best/val/dice"])  # L4 is what trained
    told = json.loads((trained / "prune/prune.json").read_text())
    assert [level["scores"]["iou"] for level in told["levels"]] == [
        level.scores["iou"] for level in levels
    ]
    with Image.open(trained / "prune/prune.png") as picture:
        assert picture.size[0] > 500
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 80


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pruned_checkpoint_holds_only_what_its_head_needs_and_says_the_same(trained, depth):
    compare_depths(config("prune", f"run={trained}", f"depth={depth}", "rounds=1"))
    file = trained / f"prune/L{depth}.ckpt"
    small, full = load.load_run(file), load.load_run(trained)
    counted = NestedUNet(1, 1, 4, depth, pruned=True)
    assert profiling.count_parameters(small.model) == profiling.count_parameters(counted)
    stored = checkpoint.read_checkpoint(file)["state_dict"]
    assert sum(v.numel() for k, v in stored.items() if not k.endswith("tracked")) < sum(
        v.numel() for v in full.model.state_dict().values()
    )
    for size in ((64, 64), (50, 97)):
        image = torch.randn(1, 1, *size)
        full.model.output = depth
        assert torch.equal(small.model(image), full.model(image))
    assert small.classes == full.classes and small.config["model"]["depth"] == depth


def test_what_can_not_be_pruned_is_told(trained, trained_run):
    with pytest.raises(UserError, match=r"depth=7: .* has heads \[1, 2, 3, 4\]"):
        compare_depths(config("prune", f"run={trained}", "depth=7"))
    with pytest.raises(RunError, match="output=/dev/null/x: can't be written"):
        compare_depths(config("prune", f"run={trained}", "output=/dev/null/x"))
    with pytest.raises(UserError, match="a UNet with one head can't be pruned"):
        compare_depths(config("prune", f"run={trained_run}"))


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000, 250)  # 1 MB
    assert profiling.measure_peak_memory(lambda: (x + 1) + 1) == pytest.approx(2e6, rel=0.01)
    assert profiling.measure_peak_memory(lambda: [x + 1, x + 1, x + 1]) == pytest.approx(
        3e6, rel=0.01
    )


def test_multiply_adds_of_a_convolution_are_counted_by_hand():
    layer = torch.nn.Conv2d(2, 3, 3, padding=1)
    assert (
        profiling.count_multiply_adds(layer, torch.zeros(1, 2, 5, 7))["Global"] == 5 * 7 * 3 * 2 * 9
    )
