"""Small data sets on disk, made for a test, and quiet surroundings."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ["SEG_CACHE"] = tempfile.mkdtemp(prefix="seg-cache-")  # the user's own stays as it is
os.environ["WANDB_MODE"] = "disabled"  # tests that need it say so

from pathlib import Path
from unittest.mock import patch

import numpy as np
import omegaconf._utils
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from seg.data.datasets.membranes import Membranes

atexit.register(shutil.rmtree, os.environ["SEG_CACHE"], ignore_errors=True)
torch.set_num_threads(1)  # tensors here are small, and tests share the cores

with patch.object(
    yaml, "SafeLoader", yaml.CSafeLoader
):  # libyaml: a config composes in .8 of the time
    YAML_LOADER = omegaconf._utils.get_yaml_loader()
omegaconf._utils.get_yaml_loader = lambda: YAML_LOADER


@pytest.fixture(autouse=True, scope="module")
def frozen_memory() -> None:
    """Exempt what collection and earlier modules made from garbage collection: .4 s of each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def stack_root(tmp_path) -> Path:
    """Ten sections of 48x48 in the layout of ISBI 2012."""
    source = Membranes(size=48, train=10, val=1, test=0)
    pairs = [source.read(name) for name in source.splits["train"]]
    root = tmp_path / "isbi"
    root.mkdir()
    tifffile.imwrite(root / "train-volume.tif", np.stack([i[..., 0] for i, _ in pairs]))
    tifffile.imwrite(root / "train-labels.tif", np.stack([m * 255 for _, m in pairs]))
    return root


@pytest.fixture
def folder_root(tmp_path) -> Path:
    """Six RGB images of 40x56 with index masks of three classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "folder"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        mask = np.kron(rng.integers(0, 3, (5, 7)), np.ones((8, 8))).astype(np.uint8)
        image = (mask[..., None] * 80 + rng.integers(0, 60, (40, 56, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture
def planes_root(tmp_path) -> Path:
    """Six grey images of 40x56 whose masks have a page each for two classes that overlap, 255 where unknown."""
    rng = np.random.default_rng(1)
    root = tmp_path / "planes"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(6):
        planes = np.kron(rng.random((2, 5, 7)) < 0.4, np.ones((1, 8, 8))).astype(np.uint8)
        image = 60 + 70 * planes[0] + 90 * planes[1] + rng.integers(0, 30, (40, 56), np.uint8)
        planes[0, :4] = 7
        tifffile.imwrite(root / "images" / f"{i}.tif", image.astype(np.uint8))
        tifffile.imwrite(root / "masks" / f"{i}.tif", planes, photometric="minisblack")
    return root


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run of one epoch with four validation images; read only."""
    from small_runs import tiny

    return tiny(tmp_path_factory.mktemp("trained"), "trainer.max_epochs=1", "data.val=4")[1]
