"""The wheel, and the Makefile's and README's promises about set-up."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package as `pip install .` would lay it out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_brings_every_config_and_no_tests(wheel):
    here = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(wheel / "seg/conf") for p in (wheel / "seg/conf").rglob("*.yaml")} == here
    assert not (wheel / "tests").exists() and not (wheel / "outputs").exists()


def test_the_wheel_trains_from_another_folder(wheel, tmp_path):
    words = [
        "trainer=smoke",
        "data.size=64",
        "data.train=2",
        "data.val=1",
        "loader.crop=32",
        "model.width=2",
        "logger=none",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-m", "seg.train", *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    run = tmp_path / "outputs/latest"
    assert (run / "checkpoints/best.ckpt").is_file() and (run / "panels/all.png").is_file()
    assert str(wheel) not in done.stdout and "python -m seg.predict" in done.stdout


def test_make_help_lists_each_target():
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("install", "demo", "test", "lint", "clean", "help"):
        assert any(line.startswith(target) for line in shown.splitlines()), target


def test_every_tested_package_is_pinned():
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {w.split(">")[0].split("=")[0].split("<")[0].strip().lower() for w in wanted}
    assert names <= pins
