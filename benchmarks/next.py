"""Annotation in the order of seg.next against random order, simulated: ``python benchmarks/next.py FOLDER vnc camvid --data DATA``.

Small networks start with 8 labelled images; then the labels of 24 more are revealed, chosen by each order with the
network so far. Each training has the same number of steps; of the labelled images every fourth validates. Printed
is the mean Dice of all classes, whose pixels are pooled over held-back images, and the paired difference from random
order over the seeds, with Student's intervals at 95 %. The same command continues where it stopped.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from seg.api import train
from seg.inference.predictor import Predictor
from seg.inference.quality import ImageMeter, expected_quality
from seg.logits import classes_from_probabilities
from seg.metrics.annotation_queue import order_images
from seg.metrics.image_features import ReferenceImages

SIZES = (8, 32)  # labelled images
EPOCHS, CROPS = 4, 384  # of a training; crops in an epoch
NETWORK = [
    "data=folder", "model.width=6", "model.depth=3", "trainer=cpu", "logger=none", "panels=0", "save_predictions=0",
    "loader.batch_size=4", "loader.skip_checks=[untrained]", "optim.lr=1.0e-2", f"trainer.max_epochs={EPOCHS}",
]  # fmt: skip
TRAINING = {
    "vnc": ["data.classes=[membrane,cell,mitochondrion]", "augment=d4", "loader.crop=64"],
    "camvid": [
        "data.classes=[sky,building,road,pavement,tree,mover]", "data.ignore=[11]", "augment=mirror", "loader.crop=56",
    ],
}  # fmt: skip
HELD_BACK = 3  # sections of vnc
TILES = {"vnc": (64, 64), "camvid": (60, 80)}  # px of the images, which are cut from reduced ones
REDUCED = {"vnc": 2, "camvid": 3}  # every second pixel of vnc, every third of camvid
IGNORED = 11
# Classes, some of them joined: rare ones are not learnt in trainings this short
JOINED = {
    "vnc": np.array([0, 1, 2, 1, 1], np.uint8),  # synapses and glia count as cells
    "camvid": np.array(
        [0, 1, 1, 2, 3, 4, 1, 1, 5, 5, 5, IGNORED], np.uint8
    ),  # poles, signs and fences as buildings
}
ORDERS = ("random", "quality", "error", "distance")


def make_images(name: str, data: Path, root: Path) -> None:
    """Write the images and masks of a data set, reduced and cut."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    folders = [data / name] if name == "vnc" else [data / name / part for part in ("train", "val")]
    for folder in folders:
        for file in sorted((folder / "images").iterdir()):
            image, mask = (np.array(Image.open(folder / k / file.name)) for k in ("images", "masks"))  # fmt: skip
            step = REDUCED[name]
            mask = JOINED[name][mask[::step, ::step]]
            image = np.array(Image.fromarray(image).resize(mask.shape[::-1], Image.Resampling.BOX))
            part = "" if name == "vnc" else f"{folder.name}_"
            height, width = TILES[name]
            for top in range(0, len(image), height):
                for left in range(0, image.shape[1], width):
                    tile = slice(top, top + height), slice(left, left + width)
                    save_pair(root, f"{part}{file.stem}_{top}_{left}", image[tile], mask[tile])


def save_pair(root: Path, stem: str, image: NDArray, mask: NDArray) -> None:
    """Write an image and its mask."""
    Image.fromarray(image).save(root / "images" / f"{stem}.png")
    Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


def divide(name: str, root: Path, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return the names of the images that may be labelled, shuffled, and of those held back."""
    names = sorted(file.stem for file in (root / "images").iterdir())
    if name == "vnc":
        held = {f"{i:02d}" for i in rng.choice(10, HELD_BACK, replace=False)}
    else:
        held = {"val"}
    out = [one for one in names if one.partition("_")[0] in held]
    pool = [one for one in names if one not in set(out)]
    return [pool[i] for i in rng.permutation(len(pool))], out


def fit_network(name: str, root: Path, labelled: list[str], seed: int, place: Path) -> Predictor:
    """Train with some images, every fourth of which validates, and return the predictor."""
    place.mkdir(parents=True, exist_ok=True)
    table = place / f"{len(labelled)}.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "mask", "split"])
        for i, one in enumerate(labelled):
            split = "val" if i % 4 == 3 else "train"
            writer.writerow([root / "images" / f"{one}.png", root / "masks" / f"{one}.png", split])
    repeats = CROPS // (len(labelled) * 3 // 4)
    words = [*NETWORK, *TRAINING[name], f"loader.repeats={repeats}", f"seed={seed}"]
    return train(*words, f"data.table={table}", f"outputs={place}/outputs").load(accelerator="cpu")


def read_image(root: Path, name: str) -> NDArray:
    """Return an image (H, W, C)."""
    image = np.array(Image.open(root / "images" / f"{name}.png"))
    return image[..., None] if image.ndim == 2 else image


def mean_dice(predictor: Predictor, root: Path, names: list[str]) -> float:
    """Return the mean over the classes of the Dice of all pixels of some images."""
    classes = len(predictor.run.classes)
    confusion = np.zeros((classes, classes))
    for name in names:
        p_CHW = predictor.probabilities(read_image(root, name))
        found, mask = p_CHW.argmax(0), np.array(Image.open(root / "masks" / f"{name}.png"))
        valid = mask != IGNORED
        pairs = mask[valid].astype(int) * classes + found[valid]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    total = confusion.sum(0) + confusion.sum(1)
    return float((2 * np.diag(confusion)[total > 0] / total[total > 0]).mean())


def choose(
    order: str, predictor: Predictor, root: Path, pool: list[str], count: int
) -> tuple[list[str], float]:
    """Return the next images of the pool in an order."""
    if order == "random":
        return pool[:count], np.nan
    run = predictor.run
    quality = run.quality
    assert quality is not None
    dice, features = [], []
    for name in pool:
        image = read_image(root, name)
        p_CHW = predictor.probabilities(image)
        meter = ImageMeter(*image.shape[:2], quality.shift, quality.scale, run.overlapping)
        labels = classes_from_probabilities(p_CHW, run.threshold, run.overlapping)
        meter.add(0, image, p_CHW, labels)
        values = meter.features.compute()
        assert meter.counts_CTPB is not None and values is not None
        dice.append(expected_quality(quality, meter.counts_CTPB, values).mean_dice or 0.0)
        features.append(values)
    dice_N = np.array(dice)
    if order == "error":
        chosen = list(np.argsort(dice_N, kind="stable")[:count])
    else:
        reference = ReferenceImages(np.array(quality.center), np.array(quality.spread), quality.limit)  # fmt: skip
        dice_N = np.zeros(len(pool)) if order == "distance" else dice_N
        queue = order_images(dice_N, np.stack(features), reference, count)
        chosen = [one.index for one in queue]
    return [pool[i] for i in chosen], float(np.mean(dice))


def simulate(name: str, seed: int, orders: list[str], place: Path, data: Path) -> None:
    """Write the scores of each order over the number of labelled images, for one seed."""
    root = place / name
    if not (root / "masks").exists():
        make_images(name, data, root)
    pool, out = divide(name, root, np.random.default_rng(seed))
    start, rest = pool[: SIZES[0]], pool[SIZES[0] :]
    folder = place / f"{name}-{seed}"
    first: Predictor | None = None
    for order in orders:
        file = place / f"{name}-{seed}-{order}.json"
        if file.exists():
            continue
        if first is None:
            first = fit_network(name, root, start, seed, folder / "start")
            first_score = mean_dice(first, root, out)
        predictor, labelled, left, scores = first, [*start], [*rest], [first_score]
        for size in SIZES[1:]:
            added, _ = choose(order, predictor, root, left, size - len(labelled))
            labelled += added
            left = [one for one in left if one not in set(added)]
            predictor = fit_network(name, root, labelled, seed, folder / order)
            scores.append(mean_dice(predictor, root, out))
        file.write_text(json.dumps({"scores": scores, "labelled": labelled}))
        print(name, seed, order, [round(score, 4) for score in scores], flush=True)


def print_table(names: list[str], seeds: list[int], orders: list[str], place: Path) -> None:
    """Print mean Dice over the seeds, and its difference from random order."""
    print(f"| data | labelled | {' | '.join(orders)} | {' | '.join(f'{o} - random' for o in orders[1:])} |")  # fmt: skip
    print("| --- " * (1 + 2 * len(orders)) + "|")
    for name in names:
        found = {
            order: np.array([json.loads((place / f"{name}-{seed}-{order}.json").read_text())["scores"] for seed in seeds])
            for order in orders
        }  # fmt: skip
        for i, size in enumerate(SIZES):
            cells = [f"{found[order][:, i].mean():.3f}" for order in orders]
            for order in orders[1:]:
                gap = found[order][:, i] - found["random"][:, i]
                half = stats.t.ppf(0.975, len(gap) - 1) * stats.sem(gap) if i else 0.0
                cells.append(f"{gap.mean():+.3f} ({gap.mean() - half:+.3f} to {gap.mean() + half:+.3f})" if i else "0")  # fmt: skip
            print(f"| {name} | {size} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=list(TRAINING))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["random", "quality"])
    parser.add_argument("--data", type=Path, required=True, help="folder of vnc and camvid")
    args = parser.parse_args()
    place = args.folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.names:
            simulate(name, seed, args.orders, place, args.data)
    print_table(args.names, args.seeds, args.orders, place)


if __name__ == "__main__":
    main()
