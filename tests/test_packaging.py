"""The wheel, and the Makefile's and README's promises about set-up."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import seg
from seg.errors import EXTRAS, PACKAGE_EXTRAS, install_command
from seg.version import DISTRIBUTION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

SMALL = [
    "trainer=smoke", "data.size=64", "data.train=2", "data.val=1", "loader.crop=32", "model.width=2",
    "logger=none",
]  # fmt: skip
BUILD = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel's file."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*BUILD, "-w", str(folder), "."], cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    """The package as `pip install .` would lay it out."""
    with zipfile.ZipFile(built) as archive:
        archive.extractall(built.parent / "site")
    return built.parent / "site"


def test_the_wheel_brings_every_file_of_the_package_and_nothing_else(wheel):
    here = {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert {p.relative_to(wheel / "seg/conf") for p in (wheel / "seg/conf").rglob("*.yaml")} == here
    package = {p.relative_to(ROOT) for p in (ROOT / "seg").rglob("*") if p.is_file()}
    package = {p for p in package if "__pycache__" not in p.parts}
    files = {p.relative_to(wheel) for p in wheel.rglob("*") if p.is_file()}
    files = {p for p in files if not p.parts[0].endswith(".dist-info")}
    assert Path("seg/comparison/templates/compare.html") in files
    assert files == package | {Path("seg/conf") / p for p in here}


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder(wheel, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-m", "seg.train", *SMALL],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    run = tmp_path / "outputs/latest"
    assert (run / "checkpoints/best.ckpt").is_file() and (run / "panels/all.png").is_file()
    assert str(wheel) not in done.stdout and "python -m seg.predict" in done.stdout


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The python of an empty environment in which the wheel is installed; of ours it has the libraries."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    (site,) = place.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(built)], check=True, capture_output=True)
    # behind the environment's own: no .pth of ours is read, so that no checkout is
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def said(python: Path, folder: Path, *words: str) -> str:
    """What a command prints in a folder; it knows nothing of this checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_the_version_is_that_of_the_metadata(wheel):
    (about,) = wheel.glob("*.dist-info/METADATA")
    (line,) = (row for row in about.read_text().splitlines() if row.startswith("Version: "))
    assert line == f"Version: {seg.version.__version__}"


@pytest.mark.slow
def test_an_installed_wheel_trains_evaluates_predicts_and_compares(installed, tmp_path):
    code = "import importlib.metadata as m; import seg.version; print(seg.__file__, seg.version.__version__, m.version('seg-experiments'))"
    file, *versions = said(installed, tmp_path, "-c", code).split()
    assert (
        Path(file).is_relative_to(installed.parent.parent)
        and versions == [seg.version.__version__] * 2
    )
    said(installed, tmp_path, "-m", "seg.train", *SMALL)
    said(
        installed, tmp_path, "-m", "seg.evaluate", "run=outputs/latest", "panels=1", "output=scores"
    )
    assert (tmp_path / "scores/metrics.json").is_file()
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(tmp_path / "a.png")
    said(
        installed,
        tmp_path,
        "-m",
        "seg.predict",
        "run=outputs/latest",
        "input=a.png",
        "output=masks",
    )
    assert any((tmp_path / "masks").rglob("a*.png"))
    said(installed, tmp_path, "-m", "seg.compare", "outputs")
    page = (tmp_path / "outputs/compare.html").read_text()
    assert "plotly" in page and "Content-Security-Policy" in page


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
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert set(map(distribution, wanted)) <= pins


# --- what messages and pages tell to install


def distribution(requirement: str) -> str:
    """The name in a requirement."""
    return re.split(r"[<>=!~;\[ ]", requirement)[0].lower()


def texts() -> dict[Path, str]:
    """The text of every file of the repository that people read or that prints, on one line each."""
    files = [
        *ROOT.glob("*.md"),
        *(
            p
            for folder in ("seg", "conf", "docs", "benchmarks", "tests")
            for p in (ROOT / folder).rglob("*")
        ),
    ]
    return {
        file: " ".join(file.read_text("utf-8").split())
        for file in files
        if file.suffix in (".md", ".py", ".yaml", ".html")
    }


def test_nothing_tells_to_install_another_projects_package():
    """The distribution ``seg`` of the package index is a stranger's."""
    stranger = re.compile(r"\binstall (?:-\S+ )*['\"]?seg(?![\w-])")
    assert stranger.search("run pip install 'seg[export]'") and stranger.search("pip install seg")
    for file, text in texts().items():
        found = stranger.search(text) if file != Path(__file__) else None
        assert found is None, f"{file}: {found and found[0]}"


def test_every_documented_extra_exists_and_every_extra_is_documented():
    hint = re.compile(rf"pip install '{DISTRIBUTION}\[([\w,]+)\]'")
    pages = {file: text for file, text in texts().items() if file.suffix in (".md", ".yaml")}
    named = {
        e for text in pages.values() for extras in hint.findall(text) for e in extras.split(",")
    }
    assert named == set(EXTRAS)


def test_one_function_makes_every_message_about_an_extra():
    sources = [file for file in texts() if file.is_relative_to(ROOT / "seg")]
    assert [f.name for f in sources if "pip install" in f.read_text()] == ["errors.py"]
    assert install_command("export") == f"pip install '{DISTRIBUTION}[export]'"


def test_the_extras_of_messages_are_those_of_the_project():
    extras = {
        name: tuple(map(distribution, wanted))
        for name, wanted in PROJECT["optional-dependencies"].items()
        if name not in ("dev", "docs")  # tools for the project itself
    }
    assert PROJECT["name"] == DISTRIBUTION and extras == EXTRAS
    assert set(PACKAGE_EXTRAS.values()) <= set(EXTRAS)


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_of_a_message_finds_this_package_and_the_packages_of_the_extra(
    installed, built, extra
):
    """Without an index, what is not installed here is looked for under its own name, and nothing else is."""
    pip, install, *what = shlex.split(install_command(extra))
    offline = ["--dry-run", "--no-index", "--find-links", str(built.parent)]
    done = subprocess.run(
        [sys.executable, "-m", pip, "--python", str(installed), install, *offline, *what],
        capture_output=True, text=True,
    )  # fmt: skip
    absent = re.findall(r"No matching distribution found for (\S+)", done.stderr)
    assert done.returncode == bool(absent), done.stderr
    assert set(map(distribution, absent)) <= set(EXTRAS[extra])
    assert f"Requirement already satisfied: {DISTRIBUTION}[{extra}]" in done.stdout


def test_the_installed_script_says_what_is_installed(installed, tmp_path):
    words = [str(installed.parent / "seg"), "info"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (
        done.stdout.startswith("seg ") and f"{seg.version.__version__} (installed)" in done.stdout
    )
    for extra in EXTRAS:
        (row,) = (r for r in done.stdout.splitlines() if r.startswith(f"extra {extra} "))
        assert all(name in row for name in EXTRAS[extra]) or install_command(extra) in row
