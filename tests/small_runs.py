"""Runs of seconds, and the configs and images that they start from."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override
from PIL import Image

from seg.cli.conf_files import CONF, group_names
from seg.runs import checkpoint
from seg.training.run import train

TINY = ["data.size=64", "data.train=4", "data.val=2", "data.test=1", "loader.crop=32", "loader.repeats=2",
        "logger=none", "model.width=4", "trainer=cpu", "trainer.max_epochs=2", "panels=1", "trainer.log_every_n_steps=1",
        "save_checkpoints=full"]  # fmt: skip

FOLDS = 3
FOLDED = ["data=folder", "data.classes=[out,in]", f"data.folds={FOLDS}", "model.width=2", "model.depth=2", "loader.crop=32",
        "loader.repeats=2", "logger=none", "trainer=cpu", "trainer.max_epochs=1", "panels=0",
        "save_checkpoints=full"]  # fmt: skip


@cache
def composed_choices(name: str, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(choices))


def config(name: str, *overrides: str) -> DictConfig:
    """The config of a command; its files are composed once for each choice of groups."""
    choices = [w for w in overrides if w[0] in "+~" or w.partition("=")[0] in group_names()]
    cfg = copy.deepcopy(composed_choices(name, tuple(choices)))
    for word in (word for word in overrides if word not in choices):
        override = OverridesParser.create().parse_override(word)
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def tiny(tmp_path: Path, *overrides: str) -> tuple[dict[str, float], Path]:
    """The scores and the folder of a small training, of a U-Net of two levels where no model is named."""
    outputs = tmp_path / "outputs"
    depth = [] if any(word.startswith("model") for word in overrides) else ["model.depth=2"]
    scores = train(config("train", *TINY, *depth, f"outputs={outputs}", *overrides))
    return scores, (outputs / "latest").resolve()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


def make_images(root: Path, count: int = 8) -> Path:
    """Grey images of 64x48, each of a brightness of its own, with two objects of class 1."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :48]
    for i in range(count):
        mask = np.hypot(rows - 16 - i, columns - 24) < 8 + i // 2
        mask |= abs(rows - 50) + abs(columns - 10 - 3 * i) < 10
        image = 20 + 9 * i + (30 + 10 * i) * mask + rng.integers(0, 20 + i, mask.shape)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    return root


def composed(outputs: Path, *words: str) -> DictConfig:
    """Return the config that Hydra gives a sweeper."""
    single = ["hydra.mode=MULTIRUN", f"outputs={outputs}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", single, return_hydra_config=True)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        cfg.hydra.overrides.task = list(words)
        cfg.restart = "restart=true" in words
        cfg.hydra.sweep.dir = str(outputs / "sweeps/new")
    return cfg


def folded_run(root: Path, output: Path, *words: str) -> list[str]:
    return [*FOLDED, f"data.root={root}", f"output={output}", *words]
