"""What a run tells of its code, data and machine, and what it keeps to itself."""

import csv
import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import config

from seg.cli import conf_files
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.runs import checkpoint, provenance, records
from seg.runs.provenance import ImageDigests, data_fingerprint, read_checkout, source_hash
from seg.training.callbacks.checkpointing import PortableModelCheckpoint
from seg.training.run import train

SMALL = ["trainer=smoke", "logger=none", "model.width=2", "model.depth=1", "loader.crop=32", "panels=1",
         "data.size=64", "data.train=2", "data.val=1", "data.test=0"]  # fmt: skip


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def written(folder: Path, **files: str) -> None:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_py", ".py").replace("_yaml", ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.fixture
def repository(tmp_path):
    """A package in git, with one commit and nothing changed since."""
    top = tmp_path / "checkout"
    written(
        top, seg__init_py="", seg__a_py="a = 1\n", seg__gone_py="x = 1\n", conf__a_yaml="a: 1\n"
    )
    (top / "seg/__init__.py").write_text("# ours\n")
    (top / "secret.txt").write_text("none yet\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-qm", "one")
    return top


def change(top: Path) -> None:
    """A file of each kind: changed, deleted, new; and some that are nobody's business."""
    (top / "seg/a.py").write_text("a = 2\n")
    (top / "seg/gone.py").unlink()
    written(top, seg__new__b_py="b = 'no newline at the end'", conf__b_yaml="b: 1\n")
    (top / "secret.txt").write_text("canary-tracked\n")
    (top / "seg/.env").write_text("KEY=canary-untracked\n")
    (top / "seg/notes.txt").write_text("canary-notes\n")
    written(top, tests__t_py="canary-test = 1\n", seg__new__empty_py="")
    (top / "conf/link.yaml").symlink_to(top / "secret.txt")


def test_the_commit_and_the_kept_diff_together_are_the_code(repository, tmp_path):
    assert (clean := read_checkout(repository)) and clean.state() == {
        "commit": git(repository, "rev-parse", "HEAD").strip(), "dirty": False, "diff": None
    }  # fmt: skip
    change(repository)
    found = read_checkout.__wrapped__(repository)
    assert found.state()["dirty"] and found.commit == clean.commit
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(repository), str(again))
    (tmp_path / "diff.patch").write_bytes(found.kept())
    git(again, "apply", "../diff.patch")
    for name in ("seg/a.py", "seg/new/b.py", "seg/new/empty.py", "conf/b.yaml", "seg/__init__.py"):
        assert (again / name).read_bytes() == (repository / name).read_bytes(), name
    assert not (again / "seg/gone.py").exists()
    assert b"canary" not in found.patch
    heads = [line for line in found.patch.decode().splitlines() if line.startswith("diff --git")]
    names = ["conf/b.yaml", "seg/a.py", "seg/gone.py", "seg/new/b.py", "seg/new/empty.py"]
    assert sorted(heads) == [f"diff --git a/{name} b/{name}" for name in names]


def test_another_change_is_another_diff(repository):
    change(repository)
    first = read_checkout.__wrapped__(repository).state()["diff"]
    assert read_checkout.__wrapped__(repository).state()["diff"] == first
    (repository / "conf/b.yaml").write_text("b: 2\n")
    assert read_checkout.__wrapped__(repository).state()["diff"] != first


def test_of_a_very_large_diff_the_names_are_kept(repository):
    (repository / "seg/a.py").write_text("a = 1  # much\n" * 100_000)
    found = read_checkout(repository)
    lines = found.kept().decode().splitlines()
    assert len(found.kept()) < 1000 < 2**20 < len(found.patch)
    assert "1.4 MiB" in lines[0] and lines[1:] == ["# seg/a.py"]
    assert found.state()["diff"] == hashlib.sha256(found.patch).hexdigest()[:12]


def test_no_program_that_git_is_told_of_runs(repository, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    program.chmod(0o755)
    for key in ("diff.external", "core.pager", "pager.diff", "diff.own.textconv", "diff.own.command",
                "core.fsmonitor"):  # fmt: skip
        git(repository, "config", key, str(program))
    git(repository, "config", "color.ui", "always")
    git(repository, "config", "diff.noprefix", "true")
    (repository / ".git/info/attributes").write_text("*.py diff=own\n")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(program))
    monkeypatch.setenv("GIT_PAGER", str(program))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as within a hook
    (repository / "seg/a.py").write_text("a = 2\n")
    ran.unlink(missing_ok=True)
    patch = read_checkout(repository).patch.decode()
    assert "--- a/seg/a.py\n+++ b/seg/a.py\n" in patch and "-a = 1\n+a = 2\n" in patch
    assert not ran.exists()


def test_a_package_that_no_repository_tracks_has_no_commit(repository, tmp_path, monkeypatch):
    site = repository / ".venv/site-packages"  # a wheel installed below a user's own repository
    shutil.copytree(repository / "seg", site / "seg")
    assert read_checkout(site) is None
    shutil.copytree(repository / "seg", tmp_path / "alone/seg")
    assert read_checkout(tmp_path / "alone") is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert read_checkout.__wrapped__(repository) is None


def test_a_checkout_and_its_wheel_have_one_source_hash_and_each_change_another(tmp_path):
    top, wheel = tmp_path / "top", tmp_path / "wheel"
    written(top, seg__a_py="a = 1\n", seg__b__c_py="c = 1\n", conf__x__y_yaml="y: 1\n")
    shutil.copytree(top / "seg", wheel / "seg")
    shutil.copytree(top / "conf", wheel / "seg/conf")
    (wheel / "seg/__pycache__").mkdir()
    (wheel / "seg/__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    ask = source_hash.__wrapped__
    first = ask(top / "seg", top / "conf")
    assert ask(wheel / "seg", wheel / "seg/conf") == first and len(first) == 12
    found = {first}
    for step in (
        lambda: (wheel / "seg/b/c.py").write_text("c = 2\n"),
        lambda: (wheel / "seg/conf/x/y.yaml").write_text("y: 2\n"),
        lambda: (wheel / "seg/b/c.py").rename(wheel / "seg/b/d.py"),
    ):
        step()
        found.add(ask(wheel / "seg", wheel / "seg/conf"))
    assert len(found) == 4


def digests(root: Path, check: bool = True) -> ImageDigests:
    source = Folder(str(root), ["a", "b", "c"], val=0.34)
    return DataModule(source, crop=32, check=check).digests


def repaint(file: Path) -> None:
    """Changes one pixel."""
    pixels = np.array(Image.open(file))
    pixels[3, 4] = (pixels[3, 4] + 1) % 3
    Image.fromarray(pixels).save(file)


def test_a_fingerprint_is_that_of_the_pixels_wherever_they_lie(folder_root, tmp_path):
    first = digests(folder_root)
    assert sorted(first) == [str(i) for i in range(6)]
    for place, part in enumerate(("images", "masks")):
        pixels = np.array(Image.open(folder_root / part / "3.png"))
        wanted = hashlib.blake2b(f"uint8 {pixels.shape}".encode(), digest_size=16)
        wanted.update(pixels.tobytes())
        assert first["3"][place] == wanted.hexdigest()
    assert digests(folder_root) == first  # from the cache
    assert digests(folder_root, check=False) == first
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder_root, copy)
    assert data_fingerprint(digests(copy)) == data_fingerprint(first)
    for part in ("masks", "images"):
        before = digests(copy)
        repaint(copy / part / "3.png")
        after = digests(copy)
        assert [name for name in after if after[name] != before[name]] == ["3"]
        assert after["3"][part == "images"] == before["3"][part == "images"]  # of the other part
        assert data_fingerprint(after) != data_fingerprint(before)
    (copy / "images/3.png").rename(copy / "images/9.png")
    (copy / "masks/3.png").rename(copy / "masks/9.png")
    renamed = digests(copy)
    assert renamed["9"] == after["3"] and data_fingerprint(renamed) != data_fingerprint(after)


def test_the_order_of_names_and_the_split_are_not_in_the_fingerprint():
    one, two = {"a": ("1", "2"), "b": ("3", "4")}, {"b": ("3", "4"), "a": ("1", "2")}
    assert data_fingerprint(one) == data_fingerprint(two)
    swapped = {"a": ("2", "1"), "b": ("3", "4")}
    assert data_fingerprint(one) != data_fingerprint(swapped)


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    """A run of someone with a name, a host, a home and keys, started in another folder."""
    place = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, "canary-user")
        for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN"):
            patch.setenv(name, "canary-key")
        patch.setenv("HOSTNAME", "canary-host")
        patch.setattr(socket, "gethostname", lambda: "canary-host")
        patch.setattr("platform.node", lambda: "canary-host")
        patch.setenv("HOME", str(place / "canary-home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(place)
        train(config("train", *SMALL))
    return (place / "outputs/latest").resolve()


def test_a_run_folder_names_no_user_host_home_or_key(private_run):
    mine = {b"canary", str(Path.home()).encode() + b"/", str(private_run.parent).encode()}
    mine |= {name.encode() for name in (socket.gethostname(), os.uname().nodename) if len(name) > 4}
    files = [file for file in private_run.rglob("*") if file.is_file()]
    assert len(files) > 8
    found = [(file.name, word) for file in files for word in mine if word in file.read_bytes()]
    assert found == []


def test_a_moved_run_keeps_its_best_score_and_its_files(tmp_path):
    first = PortableModelCheckpoint(
        tmp_path / "here/checkpoints", "best", monitor="val/dice", mode="max"
    )
    best = str(tmp_path / "here/checkpoints/best.ckpt")
    first.best_model_path = first.kth_best_model_path = best
    first.best_k_models, first.best_model_score = {best: torch.tensor(0.7)}, torch.tensor(0.7)
    assert str(tmp_path) not in str(first.state_dict())
    second = PortableModelCheckpoint(
        tmp_path / "there/checkpoints", "best", monitor="val/dice", mode="max"
    )
    moved = str(tmp_path / "there/checkpoints/best.ckpt")
    (tmp_path / "there/checkpoints").mkdir(parents=True)
    checkpoint.write_checkpoint(Path(moved), {"state_dict": {}})
    second.load_state_dict(first.state_dict())
    assert second.best_model_path == second.kth_best_model_path == moved
    assert second.best_k_models == {moved: torch.tensor(0.7)} and second.best_model_score == 0.7
    assert second.last_model_path == ""


def test_a_run_tells_where_it_came_from(private_run):
    record = records.read_json(private_run / "run.json")
    assert record["environment"]["OMP_NUM_THREADS"] == "1"
    assert set(record["environment"]) <= set(provenance.RECORDED_VARIABLES)
    assert {"python", "torch", "numpy", "opencv", "albumentations"} <= set(record["versions"])
    assert record["source"] == source_hash(provenance.PACKAGE_FOLDER, conf_files.CONF)
    assert record["hardware"]["cpu"] and record["hardware"]["instructions"]
    with (private_run / "fingerprints.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["train-000", "train-001", "val-000"]
    kept = provenance.read_digests(private_run / "fingerprints.csv")
    assert record["data"] == {"fingerprint": data_fingerprint(kept)}
    checkout = read_checkout(provenance.PACKAGE_FOLDER.parent)
    dirty = bool(checkout and checkout.patch)
    assert (private_run / "diff.patch").is_file() == dirty


def test_made_images_have_a_fingerprint_too_and_other_options_another(tmp_path):
    from seg.data.datasets.membranes import Membranes

    found = {
        data_fingerprint(DataModule(Membranes(32, 1, 1, 0, data_seed=seed), crop=32).digests)
        for seed in (0, 0, 1)
    }
    assert len(found) == 2
