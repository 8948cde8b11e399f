"""Find planted label errors: ``python benchmarks/doubt.py FOLDER``.

Makes images of round and square objects, plants errors of five kinds in a share of the masks, cross-validates, runs
seg.doubt, and prints recall and precision: of what it says stands out, and of its first k, with k the number of
planted errors. ``--rates 0 0.1 0.3`` gives the shares of images; each has a cross-validation of its own.
"""

import argparse

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

KINDS = ("missing", "invented", "shifted", "swapped", "whole")
SIZE, OBJECTS = 128, 7
TRAINING = [
    "data=folder", "data.classes=[background,round,square]", "data.folds=4", "model.width=8", "model.depth=3",
    "trainer.max_epochs=12", "loader.repeats=4", "loader.crop=64", "augment=d4", "logger=none", "panels=0",
]  # fmt: skip


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """Return a mask (H, W) uint8 of round objects, 1, and square ones, 2, that do not touch."""
    mask, (rows, columns) = np.zeros((SIZE, SIZE), np.uint8), np.mgrid[:SIZE, :SIZE]
    for number in range(OBJECTS * 4):
        (row, column), radius = rng.integers(10, SIZE - 10, 2), rng.uniform(4, 10)
        far = np.abs(rows - row), np.abs(columns - column)
        inside = np.hypot(*far) < radius if number % 2 else np.maximum(*far) < radius
        if not mask[ndimage.binary_dilation(inside, iterations=3)].any():
            mask[inside] = 1 if number % 2 else 2
    return mask


def draw_image(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image (H, W) uint8 of a mask: both kinds of objects have the same grey values, under noise."""
    shade = ndimage.gaussian_filter(rng.normal(size=mask.shape), 20) * 20 * 25
    image = 90 + shade + 50 * ndimage.gaussian_filter((mask > 0).astype(float), 1)
    return (image + rng.normal(0, 9, mask.shape)).clip(0, 255).astype(np.uint8)


def plant_error(
    mask: np.ndarray, kind: str, other: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return a mask with one error of a kind; ``other`` is the mask of another image."""
    wrong, (labels, count) = mask.copy(), ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    one = labels == rng.choice(np.flatnonzero(sizes[1:] >= 20) + 1)
    if kind == "missing":
        wrong[one] = 0
    elif kind == "swapped":
        wrong[one] = 3 - mask[one]
    elif kind == "shifted":
        wrong[one] = 0
        wrong[np.roll(one, rng.choice([-6, 6], 2), (0, 1))] = mask[one][0]
    elif kind == "invented":
        place = ndimage.distance_transform_edt(mask == 0)
        place[:12], place[-12:], place[:, :12], place[:, -12:] = 0, 0, 0, 0
        row, column = np.unravel_index(rng.choice(np.flatnonzero(place > 8)), mask.shape)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        wrong[np.hypot(rows - row, columns - column) < rng.uniform(2.7, 8)] = 1
    else:
        wrong = other.copy()
    return wrong


def make_data(root: Path, count: int, rate: float, seed: int) -> dict[str, str]:
    """Write images and masks, and the true masks; return image name -> kind of its planted error."""
    rng = np.random.default_rng(seed)
    masks = [draw_mask(rng) for _ in range(count)]
    images = [draw_image(mask, rng) for mask in masks]
    chosen = rng.permutation(count)[: round(rate * count)]
    kinds = {int(i): KINDS[n % len(KINDS)] for n, i in enumerate(chosen)}
    for part in ("images", "masks", "truth"):
        (root / part).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        given = plant_error(mask, kinds[i], masks[i - 1], rng) if i in kinds else mask
        for part, array in (("images", image), ("masks", given), ("truth", mask)):
            Image.fromarray(array).save(root / part / f"{i:03d}.png")
    return {f"{i:03d}": kind for i, kind in kinds.items()}


def main() -> None:
    """Measure every rate, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder for data and runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.02, 0.1, 0.3])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for rate in args.rates:
        place = args.folder / f"{rate:g}"
        kinds = make_data(place / "data", args.images, rate, args.seed)
        (place / "planted.json").write_text(json.dumps(kinds))
        words = [*TRAINING, f"data.root={place / 'data'}", f"output={place / 'cv'}"]
        run("crossval", *words)


def run(command: str, *words: str) -> None:
    """Run a command of the package."""
    subprocess.run(
        [sys.executable, "-m", f"seg.{command}", *words], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
