"""The networks in the package, and their model cards."""

import os
import re
from pathlib import Path

import pytest
import torch
from small_runs import config, tiny

from seg.commands.evaluate import evaluate
from seg.errors import RunError, UserError
from seg.inference.predictor import load_predictor
from seg.runs import pretrained
from seg.runs.checkpoint import find_checkpoint, read_checkpoint
from seg.runs.load import load_run
from seg.runs.reader import load_finished_run

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data/isbi2012"
NETWORKS = pretrained.list_networks()


def card_scores(name: str) -> dict[str, str]:
    """Row -> value of the table of scores in a model card."""
    text = (pretrained.FOLDER / f"{name}.md").read_text()
    return dict(re.findall(r"^\| ([^|]+) \| (\d\.\d{4}) \|", text, re.M))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_small_tells_no_path_and_has_a_card_of_its_recipe(name):
    file = find_checkpoint(f"pretrained:{name}")
    assert file.stat().st_size <= 3_000_000
    stored = read_checkpoint(file)["seg"]["config"]
    given = config("train", f"experiment={name}_pretrained")
    for group in ("model", "loss", "optim", "schedule", "loader", "augment"):
        expected = dict(given[group]) | ({"in_channels": 1, "num_classes": 1} if group == "model" else {})  # fmt: skip
        assert {k: str(v) for k, v in stored[group].items()} == {k: str(v) for k, v in expected.items()}, group  # fmt: skip
    assert stored["data"].get("root") is None and stored["outputs"] == "outputs"
    assert not re.search(rb"/(?:home|tmp|root|work)/", file.read_bytes())
    card = (pretrained.FOLDER / f"{name}.md").read_text()
    parameters = sum(p.numel() for p in load_run(file).model.parameters())
    assert f"{parameters:,} parameters" in card
    assert f"experiment={name}_pretrained" in card and f"run=pretrained:{name}" in card
    assert f"]({'../seg/runs/pretrained/' + name}.md)" in (ROOT / "docs/pretrained.md").read_text()


SCORES = {"Dice of membrane": "dice/membrane", "Dice of cell": "dice/cell", "mean Dice": "dice",
          "IoU of membrane": "iou/membrane", "IoU of cell": "iou/cell"}  # fmt: skip
BORDERS = {"V_rand, after border thinning": "v_rand", "V_info, after border thinning": "v_info"}


def test_the_scores_of_the_card_are_those_of_the_network(tmp_path):
    """On the made images, which need no file."""
    cfg = config("evaluate", "run=pretrained:membranes", "data.split=test", f"output={tmp_path}", "panels=0")  # fmt: skip
    found = evaluate(cfg)
    told = card_scores("membranes")
    assert told == {row: f"{found[f'test/{SCORES[row]}']:.4f}" for row in told} and len(told) == 5


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data/isbi2012 is absent")
def test_the_scores_of_the_card_are_those_of_the_network_on_isbi_2012(tmp_path):
    cfg = config("evaluate", "run=pretrained:isbi2012", f"output={tmp_path}", "panels=0")
    cfg.data = {"split": "val", "root": str(DATA)}
    found = evaluate(cfg)
    told, rows = card_scores("isbi2012"), SCORES | BORDERS
    assert told == {row: f"{found[f'val/{rows[row]}']:.4f}" for row in told} and len(told) == 7


def test_a_network_starts_a_training(tmp_path):
    words = ["model.width=16", "model.depth=3", "trainer.max_epochs=1"]
    start = load_run("pretrained:membranes").model.state_dict()
    _, run = tiny(tmp_path, "init=pretrained:membranes", "optim.lr=0", *words)
    trained = load_run(run).model.state_dict()
    weights = [key for key in start if key.endswith("weight")]
    assert all(torch.equal(trained[key], start[key]) for key in weights) and len(weights) > 20


def test_nothing_is_written_into_the_package():
    before = sorted(os.listdir(pretrained.FOLDER))
    with pytest.raises(UserError, match="output is not set: membranes is a network of the package"):
        evaluate(config("evaluate", "run=pretrained:membranes"))
    assert sorted(os.listdir(pretrained.FOLDER)) == before


def test_a_network_has_no_record_to_train_again_from():
    with pytest.raises(RunError, match=r"run=pretrained:isbi2012: a run folder is needed, .* no record"):  # fmt: skip
        load_finished_run("pretrained:isbi2012")


def test_a_wrong_name_lists_the_networks():
    with pytest.raises(RunError, match="run=pretrained:isbi: no such network; there are pretrained:isbi2012, "):  # fmt: skip
        load_predictor("pretrained:isbi")
