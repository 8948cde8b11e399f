"""The run folder, and checkpoints that are refused."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch

from seg.errors import RunError
from seg.inference import ensemble
from seg.models import UNet
from seg.runs import folder, load, records
from seg.runs.checkpoint import check_finite, read_checkpoint
from seg.runs.reader import read_finished_record
from seg.runs.record import HardwareState, RunRecord, read_record, write_record
from seg.training import init_weights, resume


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(20) as pool:
        folders = list(
            pool.map(lambda _: folder.create_folder(tmp_path, "model=unet x/../y"), range(20))
        )
    assert len(set(folders)) == 20
    assert not set("= /,[]{}") & set("".join(f.name for f in folders))  # run=FOLDER needs no quotes
    assert all(f.is_dir() and f.parent == tmp_path for f in folders)
    folder.update_latest_link(folders[3])
    assert (tmp_path / "latest").resolve() == folders[3]


def test_a_user_s_own_folder_called_latest_stays(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest/keep.txt").write_text("mine")
    folder.update_latest_link(folder.create_folder(tmp_path, "x"))
    assert (tmp_path / "latest/keep.txt").read_text() == "mine"


MODEL = {"_target_": "seg.models.UNet", "in_channels": 1, "num_classes": 1, "width": 2, "depth": 1}


def checkpoint(file, model=MODEL, **changes):
    weights = {f"model.{k}": v for k, v in UNet(1, 1, width=2, depth=1).state_dict().items()}
    card = {
        "config": {"model": model, "loss": {"_target_": "seg.losses.Dice"}},
        "classes": ["a", "b"],
        "colors": [[0, 0, 0], [255, 255, 255]],
        "intensity": {"low": 0.0, "high": 255.0, "mean": [0.5], "std": [0.2]},
    }
    file.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": weights, "seg": card | changes}, file)
    return file


def test_a_checkpoint_alone_is_enough(tmp_path):
    run = load.load_run(checkpoint(tmp_path / "a.ckpt"))
    assert run.classes == ["a", "b"] and run.model(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "seg": Bomb()}, "bomb.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("bomb.ckpt", "raw.ckpt"):
        with pytest.raises(RunError, match=name):
            load.load_run(name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch exploded"},
        MODEL | {"width": {"_target_": "builtins.eval", "_args_": ["1+1"]}},
        MODEL | {"norm": [{"_target_": "subprocess.run", "args": "touch exploded"}]},
        MODEL | {"width": "${oc.env:HOME}"},
        MODEL | {"_target_": "seg.modelsx.evil"},
        {"_target_": "seg.models.fcn.torch.serialization.os.system", "command": "touch exploded"},
        {"_target_": "seg.models.pretrained.load_state_dict_from_url", "url": "http://127.0.0.1/x"},
        {"_target_": "seg.models.fcn.torch.nn.Identity"},
        MODEL | {"_target_": 5},
    ],
)
def test_a_config_that_names_foreign_code_is_refused(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"only|interpolation"):
        load.load_run(checkpoint(tmp_path / "a.ckpt", model))
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_checkpoint_is_an_error_that_names_it(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    whole = checkpoint(tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name in ("text.ckpt", "cut.ckpt", "other.ckpt"):
        with pytest.raises(RunError, match=name):
            load.load_run(tmp_path / name)
    with pytest.raises(RunError, match="no such folder or file"):
        load.load_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="no checkpoints"):
        load.load_run(tmp_path)
    with pytest.raises(RunError, match="run is not set"):
        load.load_run(None)


@pytest.mark.skipif(bool(find_spec("segmentation_models_pytorch")), reason="the extra is there")
def test_a_network_of_an_extra_that_is_not_installed_names_it(tmp_path):
    network = {"_target_": "segmentation_models_pytorch.Unet", "encoder_weights": "imagenet"}
    model = {"_target_": "seg.models.Peer", "in_channels": 1, "num_classes": 1, "network": network}
    with pytest.raises(
        RunError, match=r"a.ckpt: .* needs the extra smp: pip install 'seg-experiments\[smp\]'"
    ):
        load.load_run(checkpoint(tmp_path / "a.ckpt", model))


def test_reading_a_run_back_downloads_no_weights():
    network = {"_target_": "segmentation_models_pytorch.Unet", "encoder_name": "x"}
    for given in ({}, {"encoder_weights": "imagenet"}):
        node = {"network": network | given, "multiple": 32}
        assert load.without_pretrained_weights(node)["network"] == network | {
            "encoder_weights": None
        }


@pytest.mark.parametrize(
    "more", [{"encoder_name": "tu-hf-hub:a/b"}, {"checkpoint_path": "evil.pth"}]
)
def test_a_config_that_reads_weights_from_elsewhere_is_refused(tmp_path, more):
    with pytest.raises(RunError, match="reads weights from elsewhere"):
        load.load_run(checkpoint(tmp_path / "a.ckpt", MODEL | more))


@pytest.mark.parametrize(
    ("name", "value", "count"), [("weight", float("nan"), 3), ("running_var", float("-inf"), 1)]
)
def test_weights_that_are_not_finite_are_refused_by_name_and_number(tmp_path, name, value, count):
    file = checkpoint(tmp_path / "checkpoints/last.ckpt")
    content = read_checkpoint(file)
    name = next(key for key in content["state_dict"] if key.endswith(name))
    tensor = content["state_dict"][name]
    tensor.view(-1)[:count] = value
    state = {"global_step": 1, "loops": {}, "lr_schedulers": [], "callbacks": {}}
    torch.save(content | state, file)
    told = (
        rf"last.ckpt: {count} of {tensor.numel()} values of {name} are nan or inf; finite weights"
    )
    reads = (
        lambda: load.load_run(file),
        lambda: ensemble.load_members([str(file), str(file)], None),
        lambda: init_weights.load_initial_weights(UNet(1, 1, width=2, depth=1), str(file)),
        lambda: resume.newest_checkpoint(tmp_path),
    )
    for read in reads:
        with pytest.raises(RunError, match=told):
            read()


def test_several_tensors_that_are_not_finite_are_counted(tmp_path):
    weights = {"a": torch.zeros(2), "b": torch.tensor([1, 2]), "c": torch.tensor([0.0, torch.nan])}
    check_finite({**weights, "c": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(RunError, match=r"x: 1 of 2 values of c are nan or inf; "):
        check_finite(weights, tmp_path / "x")
    with pytest.raises(
        RunError, match=r"x: 2 of 2 values of a are nan or inf \(and of 1 more tensor\); "
    ):
        check_finite(weights | {"a": torch.full((2,), torch.inf)}, tmp_path / "x")


RECORD = {
    "command": ["python"], "versions": {"torch": "2"}, "git": None, "hardware": {"threads": 2, "later": 1},
    "name": "caf\udce9", "choices": {"model": "unet"}, "seed": 0, "splits": {"train": ["a"], "val": ["b"]},
    "split_hash": "0", "data": {"fingerprint": "1"}, "threshold": 0.5, "minutes": 3, "later": {"a": [1]},
    "status": "finished", "metrics": {"best/val/dice": 1, "best/val/loss": float("nan")},
}  # fmt: skip


def test_run_json_is_written_as_given_and_read_with_what_it_lacks_or_has_more(tmp_path):
    write_record(tmp_path, RECORD)
    content = json.loads((tmp_path / "run.json").read_text())
    written = RECORD | {"metrics": {"best/val/dice": 1, "best/val/loss": None}}
    assert list(content) == list(RECORD)
    assert content | {"name": RECORD["name"]} == written  # the name's byte as an escape
    record = read_record(tmp_path / "run.json")
    assert record.content() == content and record.overrides == [] and record.hardware.threads == 2
    records.write_json(tmp_path / "run.json", {"status": "interrupted", "choices": {"a": None}})
    old = read_record(tmp_path / "run.json")
    assert (old.hardware.threads, old.choices, old.name) == (1, {}, None)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"status": "done"}, "status"),
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"metrics": {"best/val/dice": "1"}}, "metrics.best/val/dice"),
        ({"splits": {"train": "a"}}, "splits.train"),
        ({"overrides": [1]}, "overrides.0"),
        ({"choices": []}, "choices"),
        ({"resumed": [1]}, "resumed.0"),
        ({"hardware": {"threads": 10**6}}, "hardware.threads"),
    ],
)
def test_a_field_of_another_type_is_named_and_not_written(tmp_path, change, place):
    records.write_json(tmp_path / "run.json", RECORD | change)
    with pytest.raises(RunError, match=rf"run.json: {place} is damaged"):
        read_record(tmp_path / "run.json")
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="validation error"):
        write_record(tmp_path, RECORD | change)
    assert not (tmp_path / "run.json").exists()


def test_a_finished_run_without_its_splits_is_read_but_not_written(tmp_path):
    records.write_json(tmp_path / "run.json", RECORD | {"split_hash": None})
    assert read_record(tmp_path / "run.json").status == "finished"
    with pytest.raises(RunError, match=r"run\.json: the record is damaged \(split_hash is missing"):
        read_finished_record(tmp_path / "run.json")
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="split_hash is missing"):
        write_record(tmp_path, RECORD | {"split_hash": None})
    assert not (tmp_path / "run.json").exists()


def test_each_field_of_run_json_is_documented():
    for model in (RunRecord, HardwareState):
        assert all(field.description for field in model.model_fields.values())


def test_the_schema_of_run_json_needs_no_torch():
    code = "import sys, seg.runs.record; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
