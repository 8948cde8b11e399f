"""seg.list: what it says of runs, which of them clean removes, and that it removes nothing else."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, spread

from seg.cli.compose import compose_checked
from seg.cli.list_arguments import to_overrides
from seg.commands.list import list_runs
from seg.comparison import listing
from seg.errors import UserError
from seg.runs import folder as run_folder
from seg.runs.folder import CROSSVAL_FILE, lock_folder


def made(folder: Path, day: int = 1, wrong: int = 10, **options: Any) -> Path:
    """Return a run of no sweep, started on a day of November, with a checkpoint of 1000 bytes."""
    begun = f"2026-11-{day:02d}T00:00:00+0000"
    options = {"group": None, "started": begun} | options
    make_run(folder, {"val": spread([wrong, 20])}, **options)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/best.ckpt").write_bytes(bytes(1000))
    return folder


def listed(*words: str) -> list[str]:
    """Return the labels that a command prints."""
    runs = list_runs(compose_checked("list", to_overrides(list(words))))
    return sorted(run.label for run in runs)


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each entry below a folder, not through links: path -> inode, and content of a file."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            plain = path.is_file() and not path.is_symlink()
            found[str(path)] = path.lstat().st_ino, path.read_bytes() if plain else b""
    return found


def test_a_run_is_listed_with_status_score_size_and_age(tmp_path, capsys):
    done = made(tmp_path / "done")
    made(tmp_path / "works", status="running")
    made(tmp_path / "dead", status="running")
    made(tmp_path / "broken", status="failed", error="OSError: no disk", epochs=1)
    (tmp_path / "done/link").symlink_to(tmp_path)
    size = sum(f.stat().st_size for f in done.rglob("*") if f.is_file() and not f.is_symlink())
    os.utime(done / "run.json", (0, os.stat(done / "run.json").st_mtime - 40 * 86400))
    with lock_folder(tmp_path / "works", "test"):
        runs = {run.label: run for run in listing.read_listed_runs([str(tmp_path)])}
        listed(str(tmp_path))
    assert {label: run.status for label, run in runs.items()} == {
        "done": "finished", "works": "running", "dead": "killed", "broken": "failed",
    }  # fmt: skip
    assert runs["done"].size == size
    assert runs["done"].score("val/dice") == pytest.approx(
        0.85
    )  # 10 and 20 of 100 pixels are wrong
    assert [*runs][-1] == "done" and round(runs["done"].age / 86400) == 40
    said = capsys.readouterr().out
    assert "0.8500" in said and "40 d" in said and "4 runs, " in said and "killed" in said


def test_filters_choose_runs_and_refuse_what_no_run_has(tmp_path):
    old, new = made(tmp_path / "old", seed=1), made(tmp_path / "new", seed=2)
    made(tmp_path / "bad", status="failed", seed=2)
    place = str(tmp_path)
    os.utime(old / "run.json", (0, os.stat(new / "run.json").st_mtime - 15 * 86400))
    assert listed(place, "older=2w") == ["old"] and listed(place, "older=16d") == []
    assert listed(place, "where=seed=2") == ["bad", "new"]
    assert listed(place, "status=failed,killed") == ["bad"]
    assert listed(place, "where=seed=2", "status=finished") == ["new"]
    for word, said in [
        ("where=seed=3", "no run has it"), ("score=val/dise", "did you mean val/dice"), ("older=2", "12h, 30d, 8w"),
        ("clean=running", "a list of failed"), ("clean=finished", "a list of failed"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            listed(place, word)


def test_only_a_newer_finished_run_of_the_same_config_and_data_supersedes(tmp_path):
    made(tmp_path / "base", day=10)
    same = {"name": "x", "outputs": "elsewhere", "logger": {"_target_": "y"}, "panels": 9}
    made(tmp_path / "first", day=1, config=same)
    made(tmp_path / "stopped", day=2, status="interrupted")
    made(tmp_path / "later-failed", day=20, status="failed")
    made(tmp_path / "later-empty", day=21)
    shutil.rmtree(tmp_path / "later-empty/checkpoints")
    made(tmp_path / "later-rerun", day=22)
    (tmp_path / "later-rerun/rerun.json").write_text("{}")
    others: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1}, "lr": {"config": {"optim": {"lr": 1.0}}}, "images": {"data": {"fingerprint": "beef"}},
        "unknown-images": {"data": None}, "split": {"splits": {"train": ["u"]}}, "no-start": {"started": None},
        "fold": {"config": {"data": {"fold": 1}}}, "epochs": {"epochs": 5},
    }  # fmt: skip
    for name, options in others.items():
        made(tmp_path / name, day=1, **options)
    assert listed(str(tmp_path), "clean=superseded") == ["first", "stopped"]
    runs = {run.label: run for run in listing.read_listed_runs([str(tmp_path)])}
    assert runs["first"].newer == runs["stopped"].newer == "base"


def test_clean_is_dry_by_default_and_then_removes_exactly_what_it_named(tmp_path, capsys):
    made(tmp_path / "done")
    bad = made(tmp_path / "group/bad", status="failed", error="OSError: no disk")
    made(tmp_path / "stopped", status="interrupted")
    (tmp_path / "group/latest").symlink_to("bad")
    (tmp_path / "group/notes.txt").write_text("mine")
    before = entries(tmp_path)
    assert listed(str(tmp_path), "clean=failed") == ["group/bad"]
    said = capsys.readouterr().out
    assert "OSError: no disk" in said and "1 run to remove" in said and "apply=true" in said
    assert entries(tmp_path) == before
    assert listed(str(tmp_path), "clean=failed", "apply=true") == ["group/bad"]
    assert "removed 1 run, " in capsys.readouterr().out
    gone = {str(bad), str(tmp_path / "group/latest")}
    after = {k: v for k, v in before.items() if k not in gone and not k.startswith(f"{bad}/")}
    assert entries(tmp_path) == after


def test_what_must_stay_is_kept_with_the_reason(tmp_path, capsys):
    for name, wrong in (("best", 1), ("second", 5), ("newer", 3)):
        day = 20 if name == "newer" else 1
        made(tmp_path / "sweep" / name, day, wrong, group="sweep")
    for name in ("fold-0", "fold-1"):
        made(tmp_path / "cv" / name, status="failed")
    (tmp_path / "cv" / CROSSVAL_FILE).write_text("{}")
    made(tmp_path / "outer", status="failed")
    made(tmp_path / "outer/inner", status="running")
    made(tmp_path / "busy", status="interrupted")
    made(tmp_path / "begun/job", status="failed")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/run.json").write_text("{")
    before = entries(tmp_path)
    words = ["clean=failed,interrupted,pruned,killed,superseded", "apply=true"]
    with lock_folder(tmp_path / "busy", "test"), lock_folder(tmp_path / "begun", "test"):
        assert listed(str(tmp_path), *words) == ["sweep/second"]
    said = capsys.readouterr().out
    for line in (
        "kept: sweep/best, the best of sweep by val/", "kept: cv/fold-0, a fold of a cross-validation",
        "kept: outer, another run lies in its folder", "kept: busy, a process is at work in it",
        "kept: begun/job, a process is at work in begun",
    ):  # fmt: skip
        assert line in said
    new = {str(tmp_path / "busy/.lock"), str(tmp_path / "begun/.lock")}
    removed = str(tmp_path / "sweep/second")
    assert {k: v for k, v in entries(tmp_path).items() if k not in new} == {
        k: v for k, v in before.items() if k != removed and not k.startswith(f"{removed}/")
    }


def test_no_link_leads_a_removal_out_of_the_named_folder(tmp_path):
    mine = made(tmp_path / "mine/run", status="failed")
    outputs = tmp_path / "outputs"
    bad = made(outputs / "bad", status="failed")
    (outputs / "linked").symlink_to(mine)
    (bad / "checkpoints/more").symlink_to(mine)
    (bad / "file.ckpt").symlink_to(mine / "run.json")
    before = entries(tmp_path / "mine")
    assert listed(str(outputs), "clean=failed", "apply=true") == ["bad"]
    assert not bad.exists() and entries(tmp_path / "mine") == before
    # a folder, or one above it, that becomes a link after it was read
    for place in ("run", "in/run"):
        made(outputs / place, status="failed")
        runs = listing.read_listed_runs([str(outputs / place)])
        shutil.rmtree(outputs / place)
        if place == "run":
            (outputs / place).symlink_to(mine)
        else:
            (outputs / "in").rmdir()
            (outputs / "in").symlink_to(mine.parent)
        freed, (failure,) = listing.remove_runs(runs)
        assert freed == 0 and "a link to" in failure
        assert {k: v for k, v in entries(tmp_path / "mine").items() if ".lock" not in k} == before


def test_a_removal_that_failed_half_way_can_be_repeated(tmp_path, monkeypatch, capsys):
    made(tmp_path / "bad", status="failed")
    made(tmp_path / "done", seed=1)
    remove = shutil.rmtree

    def full(*args: Any, **words: Any) -> None:
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(run_folder.shutil, "rmtree", full)
    assert listed(str(tmp_path), "clean=failed", "apply=true") == ["bad"]
    said = capsys.readouterr().out
    assert "x: Permission denied" in said and "removed 0 runs, 0 bytes freed" in said
    monkeypatch.setattr(run_folder.shutil, "rmtree", remove)
    assert listed(str(tmp_path), "clean=failed", "apply=true") == ["bad"]
    assert listed(str(tmp_path)) == ["done"]


def test_a_lock_taken_between_listing_and_removal_keeps_the_run(tmp_path):
    made(tmp_path / "bad", status="failed")
    runs = listing.read_listed_runs([str(tmp_path)])
    with lock_folder(tmp_path / "bad", "test"):
        before = entries(tmp_path)
        assert listing.remove_runs(runs)[1] and entries(tmp_path) == before
