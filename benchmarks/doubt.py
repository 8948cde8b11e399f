"""Find planted label errors: ``python benchmarks/doubt.py FOLDER``.

Makes images of round and square objects, plants errors of five kinds in a share of the masks, cross-validates, runs
seg.doubt, and prints a row of a table for each share: planted errors, how many of them have a region in the list, and
among the first k regions, with k the number of planted errors; precision of these; the planted errors among the k
images of the largest mean loss; and the regions that stand out.
Intervals are Wilson's at 95 %. The same command continues where it stopped.

``python benchmarks/doubt.py --offsets data=isbi2012 data.root=DATA`` counts the offsets of the masks of any data.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import tifffile
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage
from scipy.stats import binomtest

from seg.cli.compose import compose_checked, instantiate_node, plain_config
from seg.metrics.label_errors import image_offset

KINDS = ("missing", "invented", "shifted", "swapped", "whole")
SIZE, OBJECTS, LEAST_PX = 128, 28, 20  # px of a side; tries to place an object; px of an error
TRAINING = [
    "data=folder", "data.classes=[background,round,square]", "data.folds=4", "model.width=8", "model.depth=3",
    "trainer.max_epochs=12", "loader.repeats=4", "loader.crop=64", "augment=d4", "logger=none", "panels=0",
]  # fmt: skip


def draw_mask(rng: np.random.Generator, least: float) -> np.ndarray:
    """Return a mask (H, W) uint8 of round objects, 1, and square ones, 2, that do not touch."""
    mask, (rows, columns) = np.zeros((SIZE, SIZE), np.uint8), np.mgrid[:SIZE, :SIZE]
    for number in range(OBJECTS):
        (row, column), radius = rng.integers(10, SIZE - 10, 2), rng.uniform(least, 10)
        far = np.abs(rows - row), np.abs(columns - column)
        inside = np.hypot(*far) < radius if number % 2 else np.maximum(*far) < radius
        if not mask[ndimage.binary_dilation(inside, iterations=3)].any():
            mask[inside] = 1 if number % 2 else 2
    return mask


def draw_image(mask: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Return an image (H, W) uint8 of a mask: both kinds of objects have the same grey values, under noise."""
    shade = ndimage.gaussian_filter(rng.normal(size=mask.shape), 20) * 20 * 25
    image = 90 + shade + 50 * ndimage.gaussian_filter((mask > 0).astype(float), 1)
    return (image + rng.normal(0, noise, mask.shape)).clip(0, 255).astype(np.uint8)


def plant_error(
    mask: np.ndarray, kind: str, other: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return a mask with one error of a kind; ``other`` is the mask of another image."""
    wrong, (labels, count) = mask.copy(), ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    one = labels == rng.choice(np.flatnonzero(sizes[1:] >= LEAST_PX) + 1)
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


def make_data(root: Path, args: argparse.Namespace, rate: float) -> dict[str, str]:
    """Write images and masks, and the true masks; return image name -> kind of its planted error."""
    rng = np.random.default_rng(args.seed)
    masks = [draw_mask(rng, args.radius) for _ in range(args.images)]
    images = [draw_image(mask, rng, args.noise) for mask in masks]
    chosen = rng.permutation(args.images)[: round(rate * args.images)]
    kinds = {int(i): KINDS[n % len(KINDS)] for n, i in enumerate(chosen)}
    for part in ("images", "masks", "truth"):
        (root / part).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        given = plant_error(mask, kinds[i], masks[i - 1], rng) if i in kinds else mask
        for part, array in (("images", image), ("masks", given), ("truth", mask)):
            Image.fromarray(array).save(root / part / f"{i:03d}.png")
    return {f"{i:03d}": kind for i, kind in kinds.items()}


def score_list(place: Path) -> str:
    """Return the row of a table for the list of doubts in a folder; a region is right if an error is in its box."""
    kinds = json.loads((place / "planted.json").read_text())
    wrong = {}
    for name in kinds:
        mask, truth = (
            np.array(Image.open(place / f"data/{p}/{name}.png")) for p in ("masks", "truth")
        )
        wrong[name] = mask != truth
    with (place / "doubt/doubt.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = [is_right(row, wrong) for row in rows]

    def found(chosen: list[int]) -> int:
        return len({rows[i]["image"] for i in chosen if right[i]})

    first = list(range(min(len(kinds), len(rows))))
    out = [i for i, row in enumerate(rows) if row["stands_out"] == "yes"]
    cells = [
        str(len(kinds)),
        str(len(rows)),
        share(found(list(range(len(rows)))), len(kinds)),
        share(found(first), len(kinds)),
        share(sum(right[i] for i in first), len(first)),
        share(len(set(kinds) & set(rank_by_loss(place)[: len(kinds)])), len(kinds)),
        share(found(out), len(kinds)),
        share(sum(right[i] for i in out), len(out)),
    ]
    return f"| {place.name} | {' | '.join(cells)} |"


def rank_by_loss(place: Path) -> list[str]:
    """Return the images by their mean cross-entropy, largest first: what a plain ranking would show."""
    losses = {}
    for file in (place / "cv/out-of-fold/probabilities").iterdir():
        mask = np.array(Image.open(place / f"data/masks/{file.stem}.png"))
        p = np.take_along_axis(tifffile.imread(file), mask[None].astype(int), 0)
        losses[file.stem] = -np.log(np.maximum(p, 1e-9)).mean()
    return sorted(losses, key=lambda name: -losses[name])


def is_right(row: dict[str, str], wrong: dict[str, np.ndarray]) -> bool:
    """Return True if a planted error has a pixel in the box of a row."""
    left, top, width, height = (int(row[name]) for name in ("left", "top", "width", "height"))
    return row["image"] in wrong and bool(
        wrong[row["image"]][top : top + height, left : left + width].any()
    )


def share(count: int, of: int) -> str:
    """Return a count with its share's interval."""
    if not of:
        return "none"
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return f"{count} of {of} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    """Measure every rate, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder for data and runs")
    parser.add_argument("--offsets", nargs="+", help="options of data whose masks are measured")
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.02, 0.1, 0.3])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--noise", type=float, default=9, help="sd of the grey values' noise")
    parser.add_argument("--radius", type=float, default=4, help="px of the smallest objects")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.offsets:
        print(count_offsets(args.offsets))
        return
    print("| rate | planted | regions | in the list | in the first k | right of the first k | in the first k images by mean loss | standing out | right of these |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rate in args.rates:
        place = args.folder / f"{rate:g}"
        if not (place / "planted.json").exists():
            kinds = make_data(place / "data", args, rate)
            (place / "planted.json").write_text(json.dumps(kinds))
        run("crossval", *TRAINING, f"data.root={place / 'data'}", f"output={place / 'cv'}")
        run("doubt", f"run={place / 'cv'}", f"output={place / 'doubt'}")
        print(score_list(place), flush=True)


def count_offsets(words: list[str]) -> Counter[tuple[int, int]]:
    """Return how many masks of some data lie off their image by (rows, columns) px."""
    node = OmegaConf.create(plain_config(compose_checked("train", words).data))
    source = instantiate_node(node, "data")
    names = [name for names in source.splits.values() for name in names]
    return Counter(image_offset(*source.read(name)) for name in names)


def run(command: str, *words: str) -> None:
    """Run a command of the package."""
    subprocess.run(
        [sys.executable, "-m", f"seg.{command}", *words], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
