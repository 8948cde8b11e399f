"""The same data in every format of the table in docs/formats.md: the same masks, and the same scores after a training."""

import hashlib
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from format_builders import CLASSES, FORMATS, Arrays
from PIL import Image
from small_runs import config

from seg.cli.compose import compose_checked, instantiate_node
from seg.training.run import train

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/vnc"
SIDE, PLAIN = 48, "folders of PNG"
SMALL = ["trainer=smoke", "trainer.accelerator=cpu", "logger=none", "model.width=2", "model.depth=2", "loader.crop=32", "panels=0",
         "loader.check=false", "data.val=0.5"]  # fmt: skip


@cache
def small_slice() -> tuple[Arrays, Arrays]:
    """Crops of real sections with four classes; noise where these are absent."""
    images, masks = {}, {}
    for number in range(4):
        if REAL.is_dir():
            box = (720, 220, 720 + SIDE, 220 + SIDE)
            pair = [Image.open(REAL / part / f"{number:02d}.png").crop(box) for part in ("images", "masks")]  # fmt: skip
            image, mask = (np.asarray(one) for one in pair)
            mask = np.array([0, 1, 2, 3, 3], np.uint8)[mask]  # synapses and glia are one class
        else:
            noise = np.kron(
                np.random.default_rng(number).integers(0, 256, (12, 12)), np.ones((4, 4))
            )
            image, mask = noise.astype(np.uint8), (noise % 4).astype(np.uint8)
        images[f"s{number}"], masks[f"s{number}"] = image.copy(), mask.copy()
    return images, masks


def built_options(name: str, folder: Path, classless: bool) -> list[str]:
    """The options that read the slice in a format, written into ``folder``."""
    if extra := FORMATS[name].extra:
        pytest.importorskip(extra, reason=f"the package {extra} isn't installed")
    images, masks = small_slice()
    names = CLASSES
    if classless:
        masks, names = {key: mask.clip(max=1) for key, mask in masks.items()}, ["rest", "object"]
    folder.mkdir()
    words = FORMATS[name].build(folder, images, masks)
    classes = f"data.classes=[{','.join(names)}]"
    return [*words, classes, *([] if any(w.startswith("data.root") for w in words) else [f"data.root={folder}"])]  # fmt: skip


@cache
def hashes(name: str, folder: Path, classless: bool) -> dict[str, str]:
    """Name of an image without its folder -> SHA-256 of its pixels and mask, as read from a format."""
    words = built_options(name, folder, classless)
    source = instantiate_node(config("train", *words).data, "data")
    names = [name for split in source.splits.values() for name in split]
    return {
        Path(name).name: hashlib.sha256(b"".join(part.tobytes() for part in source.read(name))).hexdigest()
        for name in names
    }  # fmt: skip


@cache
def scores(name: str, folder: Path, classless: bool) -> dict[str, float]:
    words = built_options(name, folder, classless)
    return train(compose_checked("train", [*words, *SMALL, f"outputs={folder}-outputs"]))


def test_the_table_has_a_row_for_each_format_and_no_other():
    text = (ROOT / "docs/formats.md").read_text()
    table = text.split("## The same data in every format")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!format|---)([^|]+?) \|", table, re.M)
    assert rows == list(FORMATS)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != PLAIN])
def test_the_same_masks_are_read(tmp_path, tmp_path_factory, name):
    classless = FORMATS[name].classless
    plain = hashes(PLAIN, tmp_path_factory.getbasetemp() / f"read-{classless}", classless)
    assert hashes(name, tmp_path / "other", classless) == plain and len(plain) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMATS if name != PLAIN])
def test_the_same_scores_are_reached(tmp_path, tmp_path_factory, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classless = FORMATS[name].classless
    plain = scores(PLAIN, tmp_path_factory.getbasetemp() / f"plain-{classless}", classless)
    other = scores(name, tmp_path / "other", classless)
    assert repr(plain) == repr(other)  # to the last digit; scores of absent classes are nan
    assert plain["best/val/loss"] > 0
