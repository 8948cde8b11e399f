"""A line is judged, and runs are read, before anything heavy is imported; benchmarks/start.py measures it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, spread
from PIL import Image

HEAVY = {
    "torch", "lightning", "torchmetrics", "albumentations", "cv2", "scipy", "skimage", "matplotlib", "pandas",
    "plotly", "wandb", "optuna", "sqlalchemy", "sklearn", "tifffile", "imagecodecs", "requests", "segmentation_models_pytorch",
}  # fmt: skip
RUN_LINES = """
import importlib, json, sys
codes = []
for line in json.loads(sys.argv[1]):
    module, *sys.argv[1:] = line
    sys.argv[0] = module
    name = "seg.models.__main__" if module == "models" else f"seg.{module}"
    try:
        importlib.import_module(name).main()
        codes.append(0)
    except SystemExit as error:
        codes.append(error.code)
print(json.dumps([codes, sorted({name.split(".")[0] for name in sys.modules})]))
"""
JUDGED = [
    *(([command, "--help"], 0) for command in (
        "train", "evaluate", "predict", "compare", "prune", "export", "tune", "check", "crossval", "rerun", "show", "sync",
        "list", "models", "doubt", "enough", "next", "plan",
    )),
    (["train", "--version"], 0),
    (["train", "--hlep"], 2),
    (["train", "optm.lr=1"], 2),
    (["train", "model.widht=8"], 2),
    (["train", "model=unett"], 2),
    (["train", "model.width=-1"], 2),
    (["train", "model.padding=none"], 2),
    (["train", "optim.lr=fast"], 2),
    (["train", "loss.terms.bce.weight=-1"], 2),
    (["train", "trainer.max_epochs=x"], 2),
    (["train", "-m", "seed=0,1,x"], 2),
    (["train", "data=folder", "data.root=nowhere"], 2),
    (["check", "data=folder", "data.root=nowhere"], 2),
    (["crossval", "data=folder", "data.root=nowhere"], 2),
    (["enough", "data=folder", "data.root=nowhere"], 2),
    (["enough", "seeds=1"], 2),
    (["plan", "budget=1x"], 2),
    (["tune", "optim.lr=1,2", "trails=3"], 2),
    (["predict", "tiel=3"], 2),
    (["compare", "level=2"], 2),
]  # fmt: skip


def run_lines(lines: list[list[str]], cwd) -> tuple[list[int], set[str]]:
    """Return the exit codes of command lines run in one new process, and the packages imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_LINES, json.dumps(lines)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes, packages = json.loads(done.stdout.splitlines()[-1])
    return codes, set(packages)


def test_no_line_is_judged_with_a_heavy_package(tmp_path):
    codes, packages = run_lines([line for line, _ in JUDGED], tmp_path)
    assert codes == [code for _, code in JUDGED]
    assert packages & HEAVY == set()


@pytest.fixture
def runs(tmp_path):
    images = {"val": spread([20, 30, 40])}
    for seed in (0, 1):
        make_run(tmp_path / f"outputs/run-{seed}", images, choices={"model": "unet"}, seed=seed, epochs=2, pictures=1)  # fmt: skip
    return tmp_path


def test_runs_are_read_and_data_is_checked_without_pytorch(runs):
    check = ["check", "data.size=32", "data.train=2", "data.val=1", "data.test=1"]
    lines = [["list", "outputs"], ["compare", "outputs"], ["sync"], check]
    codes, packages = run_lines(lines, runs)
    unneeded = {"torch", "lightning", "torchmetrics", "albumentations"}
    assert codes == [0] * 4 and packages & unneeded == set()


def test_data_is_shown_without_lightning(tmp_path):
    line = ["show", "n=1", "data.size=32", "data.train=2", "loader.crop=32"]
    codes, packages = run_lines([line], tmp_path)
    assert codes == [0] and "lightning" not in packages


def test_a_run_predicts_without_lightning(tmp_path):
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    Image.fromarray(image).save(tmp_path / "a.png")
    run = Path(__file__).parents[1] / "fixtures/v0.1/outputs/unet"
    codes, packages = run_lines([["predict", f"run={run}", "input=a.png", "output=out"]], tmp_path)
    unneeded = {"lightning", "torchmetrics", "albumentations", "matplotlib", "sympy"}
    assert codes == [0] and packages & unneeded == set()
