"""What a stranger's checkpoint, run folder or archive may make a command do: nothing of its own."""

import builtins
import bz2
import copy
import functools
import gzip
import importlib
import json
import logging
import lzma
import operator
import os
import pathlib
import pickle
import pkgutil
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import hydra.utils
import lightning as L
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.table import Table

import seg
from seg.cli.command import exit_user_error
from seg.cli.compose import compose_checked, plain_config
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.comparison.rerun_report import config_edits
from seg.comparison.run_files import read_options
from seg.data.datasets import download
from seg.display.console import configure_logging, escape_controls, log_to_file
from seg.errors import DataError, RunError, UserError, missing_extra_hint
from seg.inference import ensemble
from seg.inference.file_prediction import predict_files
from seg.inference.pruning import compare_depths
from seg.models import UNet
from seg.runs import folder as runs
from seg.runs import load, records, safe_loading
from seg.runs.checkpoint import read_checkpoint
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.reader import load_finished_run
from seg.runs.reader import read_untrusted_config as read_past
from seg.training.resume import load_stopped_run, read_saved_config
from seg.training.run import train

SECRET = "canary-" + "0" * 33


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """A run's, as seg.train writes it."""
    words = ["model=unet", "model.width=2", "model.depth=1", "logger=tensorboard", "optim=adamw"]
    found = plain_config(compose_checked("train", words))
    found["model"] |= {"in_channels": 1, "num_classes": 1}
    return found


def checkpoint(file: Path, config: Any, **changes: Any) -> Path:
    """A whole checkpoint with that config."""
    weights = {f"model.{k}": v for k, v in UNet(1, 1, width=2, depth=1).state_dict().items()}
    card = {
        "format": 1, "version": seg.version.__version__, "config": config, "classes": ["a", "b"], "task": "classes",
        "colors": [[0, 0, 0], [255, 255, 255]], "threshold": 0.5,
        "intensity": {"low": 0.0, "high": 255.0, "mean": [0.5], "std": [0.2]},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "seg": card | changes}, file)
    return file


def refused(read, *arguments: Any) -> str:
    """What a refusal says: one line, and nothing happened."""
    with pytest.raises(RunError) as caught:
        read(*arguments)
    said = str(caught.value)
    assert not Path("canary").exists() and SECRET not in said
    return said


# --- constructors


@pytest.fixture
def canaries(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Nodes that Hydra would build, each making a file called canary."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\ndef make(*a, **k): Path('canary').touch()\n"
        "class Made:\n    def __init__(self, *a, **k): make()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return [
        {"_target_": "planted.make"},
        {"_target_": "planted.Made"},
        {"_target_": "os.mkdir", "path": "canary"},
        {"_target_": "torch.save", "obj": 1, "f": "canary"},
        {"_target_": "shutil.copy", "src": "planted.py", "dst": "canary"},
        {"_target_": "seg.models.fcn.torch.save", "obj": 1, "f": "canary"},
        {"_target_": "seg.runs.checkpoint.write_checkpoint", "file": {"_target_": "pathlib.Path", "_args_": ["canary"]}, "content": {}},
        {"_target_": "hydra.utils.instantiate", "config": {"_target_": "planted.make"}, "_recursive_": False},
    ]  # fmt: skip


def test_the_canaries_would_sing(canaries):
    for node in canaries:
        hydra.utils.instantiate(node)
        place = Path("canary")
        assert place.exists(), node
        place.rmdir() if place.is_dir() else place.unlink()


def public(module: Any) -> list[str]:
    return [
        f"{module.__name__}.{k}" for k, v in vars(module).items() if callable(v) and k.isascii()
    ]


# dotted names of what could be called, of the standard library, of libraries and of ours
FOREIGN = sorted(
    {
        name
        for module in (os, subprocess, shutil, builtins, functools, operator, pathlib, importlib, pickle, pkgutil,
                       hydra.utils, torch, torch.hub, torch.nn, json, yaml, zipfile, tarfile, runs, ensemble)
        for name in public(module)
    }
    | {"builtins.eval", "builtins.exec", "os.system", "subprocess.run", "hydra.utils.get_method",
       "functools.partial", "operator.call", "torch.hub.load", "seg.train.main", "seg.multirun.sweeper.run_job"}
)  # fmt: skip
DISGUISES = [
    "{}", "seg.models.unet.{}", "seg.models..{}", "seg.models.{}", ".{}", "seg.models.unet.torch.{}", " {}",
    "{} ", "seg.models.UNet.{}", "seg.models.UNet.__init__.__globals__.{}", "seg.data.{}", "albumentations.{}",
    "seg.losses.weighted_sum.{}", "torch.optim.optimizer.{}", "seg.models.../../{}", "seg.models\u2024unet.{}",
    "segmentation_models_pytorch.{}", "seg.training.loggers.base.{}", "seg.models.typing.{}", "{}\x00", "\u0455eg.models.{}",
]  # fmt: skip


def test_what_our_modules_import_and_their_functions_are_no_constructors():
    found = 0
    for module in pkgutil.walk_packages(seg.__path__, "seg."):
        if not module.name.startswith(
            ("seg.models.", "seg.losses.", "seg.data.", "seg.training.loggers.")
        ):
            continue
        if missing_extra_hint(f"{module.name}.x") or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            home = getattr(value, "__module__", "")
            ours = isinstance(value, type) and home.startswith(
                ("seg.models", "seg.losses", "seg.data", "seg.training.loggers")
            )
            if callable(value) and not ours:
                packages = ("seg.models", "seg.losses", "seg.data", "seg.training.loggers")
                assert not safe_loading.is_defined_in(f"{module.name}.{name}", packages), (
                    module.name,
                    name,
                )
                found += 1
    assert found > 200


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Each place of a config that a node may be put into: keys and list items, to any depth."""
    below = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [place for key, value in below for place in ((*path, key), *places(value, (*path, key)))]


def put(config: dict, path: tuple, value: Any) -> dict:
    changed = copy.deepcopy(config)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


WRAPS = {
    "as it is": lambda node: node,
    "in a list": lambda node: [1, node],
    "in a dict": lambda node: {"deeper": {"still": node}},
    "in lists of lists": lambda node: [[[node]]],
}
HIDING = WRAPS | {  # what a pickle can hold, and YAML can't
    "in a tuple": lambda node: (node,),
    "in a tuple in a dict": lambda node: {"x": [({"y": (node,)},)]},
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_foreign_name_stands_wherever_in_a_config_is_refused_and_nothing_is_called(
    canaries, config, data
):
    node = data.draw(
        st.sampled_from(canaries)
        | st.builds(
            lambda name, disguise, more: {"_target_": disguise.format(name)} | more,
            st.sampled_from(FOREIGN), st.sampled_from(DISGUISES),
            st.sampled_from([{}, {"_args_": ["touch canary"]}, {"_partial_": True}, {"_recursive_": False}]),
        )
    )  # fmt: skip
    path = data.draw(st.sampled_from(places(config)))
    wrap = data.draw(st.sampled_from(sorted(WRAPS)))
    folder = Path("run")
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(put(config, path, WRAPS[wrap](node)), sort_keys=False)
    (folder / "config.yaml").write_text(text)
    refused(read_saved_config, folder)
    hidden = data.draw(st.sampled_from(sorted(HIDING)))
    path = data.draw(st.sampled_from([p for p in places(config) if p[0] in ("model", "loss")]))
    refused(load.load_run, checkpoint(Path("a.ckpt"), put(config, path, HIDING[hidden](node))))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", HIDING)
def test_evaluation_builds_nothing_foreign_from_a_checkpoint(canaries, config, hidden):
    cfg = compose_checked("evaluate", ["output=scores", "panels=0", "accelerator=cpu"])
    for group in ("data", "metrics", "loss", "model"):
        for node in canaries:
            bad = put(config, (group, "more"), HIDING[hidden](node))
            cfg.run = str(checkpoint(Path("a.ckpt"), bad))
            with pytest.raises(RunError, match=r"allowed|plain values|no such keyword"):
                evaluate(cfg)
            assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("node", "word"),
    [
        ({"_args_": [1, 1]}, "_args_"),
        ({"_recursive_": False}, "_recursive_"),
        ({"_partial_": True}, "_partial_"),
        ({"pretrained": True}, "weights from elsewhere"),
        ({"checkpoint_path": "/etc/passwd"}, "weights from elsewhere"),
        ({"_target_": "seg.models." + "a." * 5000 + "b"}, "allowed"),
        ({"_target_": ["seg.models.UNet"]}, "allowed"),
        ({"_target_": b"os.system"}, "bytes"),
        ({"width": torch.Size([2])}, "a Size"),
        ({"width": {1, 2}}, "a set"),
        ({("a", "b"): 1}, "a tuple"),
    ],
)
def test_words_by_which_hydra_would_do_more_than_call_by_name_are_refused(
    tmp_path, config, node, word
):
    changed = config | {"model": config["model"] | node}
    assert word in refused(load.load_run, checkpoint(tmp_path / "a.ckpt", changed))


def test_a_config_that_nests_without_end_is_refused(tmp_path, config):
    nested: list = []
    for _ in range(300):
        nested = [nested]
    file = checkpoint(tmp_path / "a.ckpt", config | {"model": config["model"] | {"width": nested}})
    assert "50 levels deep" in refused(load.load_run, file)


def test_only_the_networks_of_smp_are_honoured_not_its_encoders_which_fetch_weights(
    tmp_path, monkeypatch
):
    package = tmp_path / "segmentation_models_pytorch"
    for name in ("decoders", "encoders"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("class Net: ...\n")
    (package / "__init__.py").write_text("from .decoders import Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [m for m in sys.modules if m.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    assert safe_loading.is_defined_in(
        "segmentation_models_pytorch.Net", safe_loading.NETWORK_PACKAGES
    )
    assert not safe_loading.is_defined_in(
        "segmentation_models_pytorch.encoders.Net", safe_loading.NETWORK_PACKAGES
    )
    for name in [m for m in sys.modules if m.startswith("segmentation_models_pytorch")]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["${oc.env:SECRET}", "a ${oc.env:SECRET} b", "${hydra:runtime.cwd}", "${oc.decode:${oc.env:SECRET}}",
     "${oc.create:{_target_:planted.make}}", "\\${oc.env:SECRET}", "${seed}", "${oc.select:seed}"],
)  # fmt: skip
def test_no_interpolation_of_a_saved_config_is_resolved(tmp_path, monkeypatch, config, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    for path in (
        ("model", "norm"),
        ("data", "size"),
        ("name",),
        ("logger", "tensorboard", "seconds"),
    ):
        for value in (text, [text], {text: 1}):
            Path("config.yaml").write_text(yaml.safe_dump(put(config, path, value)))
            assert "interpolation" in refused(read_saved_config, Path())
            file = checkpoint(Path("a.ckpt"), put(config, path, value))
            assert "interpolation" in refused(load.load_run, file)
        refused(load.load_run, checkpoint(Path("a.ckpt"), put(config, path, (text,))))


YAML = {
    "python object": ("x: !!python/object/apply:os.mkdir ['canary']", "tags"),
    "python name": ("x: !!python/name:os.system", "tags"),
    "python module": ("x: !!python/module:planted", "tags"),
    "local tag": ("x: !evil {a: 1}", "tags"),
    "pairs, which are tuples": ("x: !!pairs [a: {_target_: planted.make}]", "tags"),
    "a set": ("x: !!set {a, b}", "tags"),
    "an alias": ("x: &a [1]\ny: *a", "aliases"),
    "an anchor": ("x: &a [1]", "aliases"),
    "a merge": ("x: {<<: {_target_: planted.make}}", "merge"),
    "a merge of aliases": ("a: &a {b: 1}\nx: {<<: [*a, *a]}", "aliases"),
    "a key twice": ("x: {_target_: planted.make, _target_: seg.losses.Dice}", "stands twice"),
    "a group twice": ("seed: 1\nmodel: {_target_: planted.make}\nmodel: {}", "stands twice"),
    "a date": ("x: 2026-11-27", "a date"),
    "many documents": ("---\na: 1\n---\nb: 1", "can't be read"),
    "deep flow": ("x: " + "[" * 100_000, "50 levels deep"),
    "deep block": ("- " * 100_000, "50 levels deep"),
    "deep keys": ("? " * 100_000, "50 levels deep"),
    "no text": ("\x00\x01", "can't be read"),
}


@pytest.mark.parametrize("trick", YAML)
def test_yaml_that_does_more_than_say_values_is_refused(canaries, config, trick):
    text, word = YAML[trick]
    plain_part = yaml.safe_dump(config, sort_keys=False)
    whole = text if text.startswith(("-", "?")) else f"{plain_part}{text}\n"
    Path("config.yaml").write_text(whole)
    said = refused(read_past, Path("config.yaml"))
    assert word in said and "\n" not in said and len(said) < 500


def test_a_saved_config_comes_back_as_it_was_written(tmp_path, config):
    more = {
        "name": "a: *b &c !d <<: {x} \x1b[31m \u202e",
        "colors": [[1, 2], [1, 2]],
        "none": None,
        "nan": 1e-30,
    }
    records.write_config(tmp_path / "config.yaml", config | more)
    assert safe_loading.read_yaml((tmp_path / "config.yaml").read_text()) == config | more


def test_compare_survives_yaml_that_grows_or_nests_without_bound(tmp_path):
    lines = ["a: &a {k0: 0, k1: 1, k2: 2, k3: 3, k4: 4}"]
    for old, new in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(
            f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}"
        )  # 10 ** 9 pairs at last
    for text in ("\n".join(lines), "[" * 100_000, YAML["python object"][0]):
        (tmp_path / "config.yaml").write_text(text)
        faults: list[str] = []
        assert read_options(tmp_path, faults) == {} and len(faults) == 1
        assert "config.yaml can't be read" in faults[0]


# --- pickles


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def bombs() -> dict[str, bytes]:
    """Files that would make a folder where they are loaded as pickles."""
    torch.save({"state_dict": {}, "global_step": 0, "seg": Bomb()}, "bomb")
    whole = Path("bomb").read_bytes()
    torch.save({"seg": Bomb()}, "legacy", _use_new_zipfile_serialization=False)
    return {
        "zip": whole,
        "legacy": Path("legacy").read_bytes(),
        "raw": pickle.dumps(Bomb(), protocol=2),
        "old": pickle.dumps(Bomb(), protocol=0),
    }


@pytest.fixture
def bombed(tmp_path, monkeypatch, config) -> Path:
    """A run folder, unfinished, all of whose checkpoints are pickle bombs."""
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/run")
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).write_bytes(bombs()["zip"])
    records.write_config(folder / "config.yaml", config)
    records.write_json(folder / "run.json", {"status": "interrupted", "name": "run"})
    shutil.copytree(folder, folder.with_name("other"))
    crossval = {"status": "finished", "images": {}, "folds": [{"run": "run"}, {"run": "other"}]}
    (Path("outputs") / CROSSVAL_FILE).write_text(json.dumps(crossval))
    return folder


def start(words: list[str]) -> None:
    train(
        compose_checked(
            "train", ["trainer=smoke", "logger=none", "data.size=32", "loader.crop=32", *words]
        )
    )


READERS = {
    "load": lambda run: load.load_run(run),
    "load file": lambda run: load.load_run(run / "checkpoints/last.ckpt"),
    "seg.load": lambda run: seg.load(run),
    "seg.load many": lambda run: seg.load([str(run), str(run)]),
    "cross-validation": lambda run: ensemble.load_members(str(run.parent)),
    "evaluate": lambda run: evaluate(compose_checked("evaluate", [f"run={run}"])),
    "predict": lambda run: predict_files(
        compose_checked("predict", [f"run={run}", "input=.", "output=out"])
    ),
    "prune": lambda run: compare_depths(compose_checked("prune", [f"run={run}"])),
    "export": lambda run: export_run(compose_checked("export", [f"run={run}"])),
    "init": lambda run: start([f"init={run}"]),
    "resume": lambda run: load_stopped_run(compose_checked("train", [f"resume={run}"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_bomb_goes_off_in_no_command(bombed, reader):
    with pytest.raises(ValueError) as caught:  # RunError or UserError: exit code 2
        READERS[reader](bombed)
    assert isinstance(caught.value, RunError | UserError) and ".ckpt" in str(caught.value)
    assert not Path("canary").exists()


def test_the_bombs_would_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in bombs().items():
        Path("x.ckpt").write_bytes(content)
        refused(load.load_run, "x.ckpt")
        pickle.loads(content) if name in ("raw", "old") else torch.load(
            "x.ckpt", weights_only=False
        )
        assert Path("canary").is_dir(), name
        Path("canary").rmdir()


def test_a_finished_run_with_a_bomb_is_compared_without_its_checkpoint(bombed):
    past = finished_run_of(bombed)
    assert list(config_edits(past)) == [] and not Path("canary").exists()


def finished_run_of(folder: Path):
    record = {
        "status": "finished", "metrics": {"best/val/dice": 0.5}, "name": "run", "seed": 0, "splits": {},
        "split_hash": "x",
    }  # fmt: skip
    records.write_json(folder / "run.json", record)
    return load_finished_run(str(folder))


# --- files outside of the folder


class Stop(L.Callback):
    """Ctrl-C after two steps."""

    def on_train_batch_end(self, trainer: L.Trainer, *arguments) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


SHORT = [
    "trainer=cpu", "logger=none", "data.size=32", "data.train=2", "data.val=1", "data.test=0", "loader.crop=32",
    "loader.repeats=2", "loader.batch_size=2", "model.width=2", "model.depth=1", "panels=0", "save_predictions=0",
    "trainer.max_epochs=4", "save_checkpoints=full",
]  # fmt: skip


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A run that was stopped after its first epoch."""
    monkeypatch.chdir(tmp_path)
    Path("victim.ckpt").write_text("precious")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(compose_checked("train", SHORT), [Stop()])
    return Path("outputs/latest").resolve()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../../victim.ckpt", "{victim}", "..", "."])
def test_a_checkpoint_that_names_files_elsewhere_has_none_of_them_deleted(stopped, name):
    last = stopped / "checkpoints/last.ckpt"
    content = read_checkpoint(last)
    name = name.format(victim=Path("victim.ckpt").resolve())
    zero = torch.tensor(0.0)
    for state in content["callbacks"].values():
        if state.get("best_k_models"):  # worse than whatever comes, so that it is replaced
            state |= {"best_model_path": name, "kth_best_model_path": name, "best_k_models": {name: zero},
                      "best_model_score": zero, "kth_value": zero}  # fmt: skip
    torch.save(content, last)
    cfg, asked = load_stopped_run(compose_checked("train", [f"resume={stopped}"]))
    train(cfg, asked=asked)
    assert Path("victim.ckpt").read_text() == "precious"
    assert records.read_json(stopped / "run.json")["status"] == "finished"
    assert {file.name for file in last.parent.iterdir()} >= {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["log.txt", "metrics.csv", ".config.yaml", "checkpoints/.last.ckpt"]
)
def test_a_run_whose_files_are_links_that_lead_out_of_it_is_not_taken_up(stopped, name):
    (stopped / name).unlink(missing_ok=True)
    (stopped / name).symlink_to(Path("victim.ckpt").resolve())
    said = refused(load_stopped_run, compose_checked("train", [f"resume={stopped}"]))
    assert name in said and "a link to" in said
    assert Path("victim.ckpt").read_text() == "precious"


# --- what a terminal is told


@pytest.mark.parametrize("name", ["\x1b[31mred\x1b[0m", "\x1b]0;owned\x07", "\x9b31m", "[red]x[/red]",
                                  "[/nope]", "[link=http://evil]x[/link]", ":cat:", "\u202egnp.exe"])  # fmt: skip
def test_a_name_can_tell_a_terminal_nothing_and_is_no_markup(name, tmp_path, capsys):
    configure_logging()
    shown = escape_controls(name)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    with log_to_file(tmp_path / "log.txt"):
        logging.getLogger("seg").info(f"class {name}")
        logging.getLogger("seg").info("", extra={"table": table})
        logging.getLogger("py.warnings").warning(name)
    with pytest.raises(SystemExit):
        exit_user_error(UserError(name))
    printed = capsys.readouterr()
    for text, times in (
        (printed.out, 4),
        (printed.err, 1),
        ((tmp_path / "log.txt").read_text(), 5),
    ):
        assert text.count(shown) == times
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


# --- archives


def bomb_of_headers(kind: bytes, pack, size: int = 10 * 2**30) -> bytes:
    """A packed tar whose first header announces so many bytes of a name, and has them: zeros."""
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, size
    piece = 2**24
    return pack(head.tobuf(tarfile.GNU_FORMAT)) + pack(bytes(piece)) * (size // piece)


def zip_of_zeros(size: int) -> bytes:
    """A zip archive of one honest member of so many zeros, deflated a piece at a time."""
    piece, count, check = bytes(2**20), size >> 20, 0
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    body = body * count + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    for _ in range(count if count < 100 else 0):
        check = zlib.crc32(piece, check)
    name = b"train-volume.tif"
    extra = b"\x01\x00\x10\x00" + size.to_bytes(8, "little") + len(body).to_bytes(8, "little")
    common = (
        b"\x2d\x00\x00\x00\x08\x00\x00\x00\x00\x00" + check.to_bytes(4, "little") + b"\xff" * 8
        + len(name).to_bytes(2, "little") + len(extra).to_bytes(2, "little")
    )  # fmt: skip
    local = b"PK\x03\x04" + common + name + extra + body
    central = b"PK\x01\x02\x2d\x00" + common + bytes(14) + name + extra
    end = b"PK\x05\x06" + bytes(4) + b"\x01\x00\x01\x00"
    end += len(central).to_bytes(4, "little") + len(local).to_bytes(4, "little") + b"\x00\x00"
    return local + central + end


BOMBS = {
    "zip": lambda: zip_of_zeros(10 * 2**30),
    "tar.gz": lambda: bomb_of_headers(tarfile.REGTYPE, gzip.compress),
    "pax header": lambda: bomb_of_headers(tarfile.XHDTYPE, gzip.compress),
    "pax header, bz2": lambda: bomb_of_headers(tarfile.XHDTYPE, bz2.compress),
    "long name": lambda: bomb_of_headers(tarfile.GNUTYPE_LONGNAME, lzma.compress),
    "long link": lambda: bomb_of_headers(tarfile.GNUTYPE_LONGLINK, bz2.compress),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_of_10_gb_is_refused_with_little_memory_disk_and_time(tmp_path, bomb):
    (tmp_path / "archive").write_bytes(BOMBS[bomb]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"^URL: unpacks to more than 256 MiB$"):
        download.unpack_files(tmp_path / "archive", ["train-volume.tif"], tmp_path, "URL")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # kB
    assert [file.name for file in tmp_path.iterdir()] == ["archive"]


def test_the_zip_that_is_made_here_is_one(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of_zeros(2**21))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("train-volume.tif") == bytes(2**21)


def test_a_name_in_a_packed_tar_takes_no_memory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 2**20)
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        (tmp_path / "archive").write_bytes(bomb_of_headers(kind, gzip.compress, 2**25))
        monkeypatch.setattr(tarfile, "open", None)  # it must not even come to that
        with pytest.raises(DataError, match=r"^URL: unpacks to more than 1 MiB$"):
            download.unpack_files(tmp_path / "archive", ["x"], tmp_path, "URL")
        monkeypatch.undo()
        monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 2**20)
