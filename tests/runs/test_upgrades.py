"""Runs that an earlier version left are read by this one; one of a later version is told."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from omegaconf import OmegaConf

import seg
from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.commands.compare import compare_runs
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.commands.rerun import rerun
from seg.commands.sync import sync
from seg.errors import RunError
from seg.inference.pruning import compare_depths
from seg.multirun.rerun import upgrade_config
from seg.runs import checkpoint, load, records
from seg.runs.reader import load_finished_run
from seg.training.resume import load_stopped_run, newest_checkpoint
from seg.training.run import train

FIXTURES = Path(__file__).parents[1] / "fixtures"
VERSIONS = sorted(folder.name for folder in FIXTURES.glob("v*"))
CLOSE = {"rel": 0, "abs": 1e-5}
pytestmark = pytest.mark.parametrize("version", VERSIONS)


def made_image() -> np.ndarray:
    """That of tests/fixtures/make.py."""
    spec = importlib.util.spec_from_file_location("make", FIXTURES / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return make.image()


@pytest.fixture
def outputs(version, tmp_path, monkeypatch) -> Path:
    """A copy of a version's runs, in the folder that one stands in."""
    shutil.copytree(FIXTURES / version / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return Path("outputs")


def expected(version: str, name: str) -> dict[str, float]:
    return json.loads((FIXTURES / version / "expected" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_an_earlier_versions_checkpoint_predicts_what_it_did(version, name):
    found = seg.load(FIXTURES / version / "outputs" / name, accelerator="cpu").predict(made_image())
    wanted = tifffile.imread(FIXTURES / version / "expected" / f"{name}.tif")
    assert np.ptp(wanted) > 0.01  # no constant
    np.testing.assert_allclose(found.probabilities[1], wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_an_earlier_versions_run_scores_what_it_did(version, outputs, name):
    words = [
        f"run=outputs/{name}",
        "panels=0",
        "accelerator=cpu",
        "output=scores",
        "confidence_level=0",
    ]
    found = evaluate(compose_checked("evaluate", words))
    wanted = expected(version, name)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, **CLOSE, nan_ok=True)


@pytest.mark.slow
def test_earlier_versions_runs_are_compared(version, outputs):
    compare_runs(compose_checked("compare", ["runs=[outputs]"]))
    page, table = (Path("outputs", name).read_text() for name in ("compare.html", "compare.csv"))
    final = records.read_json(outputs / "unet" / "run.json")["metrics"]
    assert "<html" in page and f"{final['test/dice']:.4f}"[:5] in table
    assert "unetpp" in table


@pytest.mark.slow
def test_a_network_of_an_earlier_version_is_pruned_and_exported(version, outputs):
    levels = compare_depths(compose_checked("prune", ["run=outputs/unetpp", "depth=1", "rounds=1"]))
    full = expected(version, "unetpp")["val/dice"]
    assert levels[1].scores["dice"] == pytest.approx(full, **CLOSE)
    small = load.load_run("outputs/unetpp/prune/L1.ckpt")
    assert small.config["model"]["pruned"] is True
    export_run(compose_checked("export", ["run=outputs/unet", "format=torch", "output=net.pt2"]))
    assert Path("net.pt2").stat().st_size > 1000


@pytest.mark.slow
def test_a_run_that_an_earlier_version_left_unfinished_goes_on(version, outputs):
    folder = outputs / "unfinished"
    before = checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")
    cfg, asked = load_stopped_run(compose_checked("train", [f"resume={folder}"]))
    cfg.save_checkpoints = "full"
    train(cfg, asked=asked)
    record = records.read_json(folder / "run.json")
    after = checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")
    assert record["status"] == "finished" and len(record["resumed"]) == 1
    assert before["global_step"] == 1 and after["global_step"] == record["steps"] == 4


@pytest.mark.slow
def test_a_rerun_takes_an_earlier_versions_options(version, outputs):
    past = load_finished_run("outputs/unetpp")
    config = upgrade_config(compose_checked("rerun", ["run=outputs/unetpp"]), past)
    assert config["model"]["deep_supervision"] is True and config["optim"]["momentum"] == 0
    assert past.record.metrics["best/val/dice"] == pytest.approx(
        expected(version, "unetpp")["val/dice"], **CLOSE
    )


@pytest.mark.slow
def test_an_earlier_versions_run_is_trained_again(version, outputs):
    found = rerun(compose_checked("rerun", ["run=outputs/unetpp", "threads=1"]))
    assert found["scores"]["best/val/dice"]["then"] == pytest.approx(
        expected(version, "unetpp")["val/dice"], **CLOSE
    )
    assert found["run"] == "unetpp" and found["verdict"] in ("same", "within noise", "different")


def test_an_earlier_versions_recordings_are_listed(version, outputs):
    cfg = OmegaConf.load(CONF / "sync.yaml")
    cfg.outputs = "outputs"
    (one,) = sync(cfg)
    assert (one.name, one.state) == ("unet", "not sent") and one.started.startswith("20")


def test_the_runs_kept_tell_nothing_of_the_machine_and_are_small(version):
    files = [file for file in (FIXTURES / version).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 150_000
    private = re.compile(rb"/home/|/root/|/Users/|/tmp/|/work|\bC:\\|nodename|hostname", re.I)
    for file in files:
        if file.suffix not in (".tif", ".jpg", ".png"):
            assert not private.search(file.read_bytes()), file
    for name in ("unet", "unetpp", "unfinished"):
        record = records.read_json(FIXTURES / version / "outputs" / name / "run.json")
        assert record["command"][:3] == ["python", "-m", "seg.train"]
        assert (record["hardware"]["cpu"], record["environment"]) == ("any", {})


def changed(version: str, file: Path, /, **card) -> Path:
    """A checkpoint of that version whose card says something else."""
    source = FIXTURES / version / "outputs/unet/checkpoints/best.ckpt"
    content = torch.load(source, weights_only=True)
    content["seg"] |= card
    torch.save(content, file)
    return file


def test_a_checkpoint_tells_its_format_and_its_version(version):
    card = checkpoint.read_checkpoint(FIXTURES / version / "outputs/unet/checkpoints/best.ckpt")[
        "seg"
    ]
    assert card["format"] in range(1, checkpoint.CHECKPOINT_FORMAT + 1)
    assert version == f"v{'.'.join(card['version'].split('.')[:2])}"


@pytest.mark.parametrize("later", [checkpoint.CHECKPOINT_FORMAT + 1, "two", None, 0, [1]])
def test_a_checkpoint_of_a_later_format_is_refused_with_the_version_that_wrote_it(
    version, tmp_path, later
):
    file = changed(version, tmp_path / "a.ckpt", format=later, version="7.8.9")
    wanted = rf"a\.ckpt: written by seg 7\.8\.9 in format .*but seg {seg.version.__version__} reads format 1"
    with pytest.raises(RunError, match=wanted) as refused:
        load.load_run(file)
    assert "\n" not in str(refused.value)
    folder = tmp_path / "outputs" / "unfinished"
    shutil.copytree(FIXTURES / version / "outputs" / "unfinished", folder)
    changed(version, folder / "checkpoints/last.ckpt", format=later, version="7.8.9")
    with pytest.raises(RunError, match=r"written by seg 7\.8\.9 in format"):
        newest_checkpoint(folder)


def test_what_a_later_version_added_to_a_checkpoint_is_passed_over(version, tmp_path):
    file = changed(version, tmp_path / "a.ckpt", version="7.8.9", surprise={"of": [1, 2]})
    assert load.load_run(file).classes == ["membrane", "cell"]
    card = torch.load(file, weights_only=True)["seg"]
    config = card["config"]
    config["model"] |= {"mode_of_later": True}
    file = changed(version, tmp_path / "b.ckpt", version="7.8.9", config=config)
    with pytest.raises(
        RunError, match=r"of this version \(this is seg .*; seg 7\.8\.9 wrote it\): .*"
    ):
        load.load_run(file)
    config["model"] = {"_target_": "seg.models.Later", "in_channels": 1, "num_classes": 1}
    file = changed(version, tmp_path / "c.ckpt", version="7.8.9", config=config)
    with pytest.raises(RunError, match=r"names 'seg\.models\.Later'.*seg 7\.8\.9 wrote it"):
        load.load_run(file)


def test_a_checkpoint_of_before_there_were_formats_is_read(version, tmp_path):
    file = changed(version, tmp_path / "a.ckpt")
    content = torch.load(file, weights_only=True)
    for name in ("format", "version"):
        del content["seg"][name]
    torch.save(content, file)
    assert load.load_run(file).classes == ["membrane", "cell"]
