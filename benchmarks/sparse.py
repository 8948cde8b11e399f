"""Sparse labels against dense ones on real sections: ``python benchmarks/sparse.py DATA OUTPUT``.

DATA is the folder of Gerhard et al. 2013, ``images/`` and ``masks/``. Of the training sections a share of the pixels is labelled, in blocks or
in scribbles, and the others are ignored; the validation sections keep all labels. Each setting is trained with three seeds. Also counted: crops
without a label among 128, at random and as they are drawn.
"""

import argparse
import json
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
from PIL import Image

from seg.cli.compose import compose_checked
from seg.data.augment import Augment, cut_square
from seg.labels import IGNORE
from seg.training.run import train

TRAINED, SIDE, BLOCK, BRUSH = 7, 1024, 48, 9
CLASSES = "[membrane,intracellular,mitochondrion,synapse,glia]"
OPTIONS = ["data=folder", f"data.classes={CLASSES}", "data.ignore=[255]", "model.width=8", "loader.crop=128", "loader.repeats=40", "trainer=cpu",
           "trainer.max_epochs=5", "logger=none", "panels=0", "save_predictions=0", "loss=cross_entropy"]  # fmt: skip


def labelled_pixels(kind: str, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return where a section is labelled, (SIDE, SIDE) bool, at least ``share`` of its pixels."""
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    while drawn.mean() < share:
        if kind == "blocks":
            row, column = rng.integers(0, SIDE - BLOCK, 2)
            drawn[row : row + BLOCK, column : column + BLOCK] = 1
        else:
            steps = rng.normal(0, 40, (6, 2)).cumsum(0) + rng.integers(0, SIDE, 2)
            cv2.polylines(drawn, [steps.astype(np.int32)], False, 1, BRUSH)
    return drawn > 0


def write_data(source: Path, target: Path, kind: str, share: float) -> None:
    """Write the sections into folders of splits, those of training with a share of their labels."""
    rng = np.random.default_rng(0)
    for number, file in enumerate(sorted((source / "images").iterdir())):
        folder = target / ("train" if number < TRAINED else "val")
        mask = np.array(Image.open(source / "masks" / file.name))
        if number < TRAINED and kind != "dense":
            mask[~labelled_pixels(kind, share, rng)] = IGNORE
        for part, pixels in (("images", np.array(Image.open(file))), ("masks", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / file.name)


def count_empty_crops() -> tuple[int, int]:
    """Return the crops without a label among 128 of 64 px with 1 % of a section labelled: at random, and as drawn."""
    mask = np.full((SIDE, SIDE), IGNORE, np.uint8)
    mask[100:202, 300:402] = 1
    rng, augment = np.random.default_rng(0), Augment(A.Compose([]), 64, 0)
    image = np.zeros((SIDE, SIDE, 1), np.float32)
    random = [cut_square(mask, 64, 0, (rng.random(), rng.random()), None) for _ in range(128)]
    drawn = [augment(image, [mask], 0, index)[1][0] for index in range(128)]
    empty = [sum(bool((crop == IGNORE).all()) for crop in crops) for crops in (random, drawn)]
    return empty[0], empty[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    at_random, drawn = count_empty_crops()
    print(f"empty crops of 128: {at_random} at random, {drawn} as drawn")
    settings = [
        ("dense", 1.0),
        *((kind, share) for share in (0.2, 0.05) for kind in ("blocks", "scribbles")),
    ]
    results: dict[str, list[float]] = {}
    for seed in (0, 1, 2):
        for kind, share in settings:
            name = f"{kind} {share:.0%}"
            folder = given.output / f"{kind}-{share}"
            if not folder.exists():
                write_data(given.data, folder, kind, share)
            words = [
                *OPTIONS,
                f"data.root={folder}",
                f"seed={seed}",
                f"outputs={given.output / 'runs'}",
            ]
            results.setdefault(name, []).append(
                train(compose_checked("train", words))["best/val/dice"]
            )
            (given.output / "sparse.json").write_text(json.dumps(results, indent=2))
            print(f"{name:>14} seed {seed}: {results[name][-1]:.4f}", flush=True)
    for name, scores in results.items():
        print(f"| {name} | {np.mean(scores):.3f} | {', '.join(f'{s:.3f}' for s in scores)} |")


if __name__ == "__main__":
    main()
