"""Find planted label errors: ``python benchmarks/doubt.py FOLDER``.

Makes images of round and square objects, or takes ``--data vnc`` (tiles of 256 px at half the resolution), ``--data
camvid`` (every second frame at half the resolution) or ``--data isbi2012`` (quarters of the sections) from ``--source``; plants errors of five kinds in a share of the
masks, cross-validates, lists the doubts, and prints a row of a table for each share: planted errors, how many of them
have a region in the list, and among the first k regions, with k the number of planted errors; precision of these; the
planted errors among the k images of the largest mean loss; and the regions that stand out. Intervals are Wilson's at
95 %. ``--after N`` plants N times after the cross-validation of unchanged masks, which saves N cross-validations. The
same command continues where it stopped.

``--retrain SEEDS`` then trains on the masks with the first k doubts accepted, and prints the Dice of clean images.
``python benchmarks/doubt.py --offsets data=isbi2012 data.root=DATA`` counts the offsets of the masks of any data.
"""

import argparse
import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from omegaconf import OmegaConf
from PIL import Image
from planted import Masks, load_data, plant_errors, write_images
from scipy.stats import binomtest

from seg.cli.compose import compose_checked, instantiate_node, plain_config
from seg.commands.doubt import list_doubts
from seg.inference.doubt_files import RankedDoubt, correct_mask
from seg.labels import IGNORE
from seg.metrics.label_errors import WHOLE
from seg.metrics.label_offsets import image_offset
from seg.multirun.out_of_fold import open_out_of_fold


class Data(NamedTuple):
    """Data set that errors are planted in.

    Attributes:
        things: classes of objects that are missing, invented, shifted or swapped.
        training: options of seg.crossval and seg.train.
        folds: further options of seg.crossval.
        retraining: further options of seg.train.
    """

    things: tuple[int, ...]
    training: list[str]
    folds: list[str]
    retraining: list[str]


COMMON = ["data=folder", "model.width=8", "logger=none", "panels=0"]
REAL = ["model.depth=4", "loss=cross_entropy"]
DATA = {
    "objects": Data(
        (1, 2),
        [*COMMON, "data.classes=[background,round,square]", "model.depth=3", "trainer.max_epochs=12",
         "loader.repeats=4", "loader.crop=64", "augment=d4"],
        ["data.folds=4"], ["trainer.max_epochs=2", "loader.repeats=24"],
    ),
    "vnc": Data(
        (2, 3, 4),
        [*COMMON, *REAL, "data.classes=[membrane,cell,mitochondrion,synapse,glia]", "trainer.max_epochs=8",
         "loader.repeats=4", "loader.crop=96", "loader.batch_size=8", "augment=d4"],
        ["data.folds=2", "data.group_by='^[0-9][0-9]'"], ["trainer.max_epochs=1", "loader.repeats=8"],
    ),
    "camvid": Data(
        (2, 6, 7, 8, 9, 10),
        [*COMMON, *REAL, "data.classes=[sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist]",
         "data.ignore=[255]", "trainer.max_epochs=12", "loader.repeats=2", "loader.crop=128", "augment=mirror"],
        ["data.folds=2"], ["trainer.max_epochs=1", "loader.repeats=12"],
    ),
    "isbi2012": Data(
        (0, 1),  # nothing can be invented: a membrane has no room
        [*COMMON, "model.depth=4", "data.classes=[membrane,cell]", "trainer.max_epochs=8", "loader.repeats=4",
         "loader.crop=96", "loader.batch_size=8", "augment=d4"],
        ["data.folds=2", "data.group_by='^[0-9][0-9]'"], [],
    ),
}  # fmt: skip


# ---- scores


class Scores(NamedTuple):
    """Counts of one list of doubts."""

    planted: int
    regions: int
    listed: int
    first: int
    first_right: int
    first_of: int
    by_loss: int
    out: int
    out_right: int
    out_of: int

    def row(self, rate: float) -> str:
        """Return the row of a table."""
        cells = [
            f"{rate:g}", str(self.planted), str(self.regions), share(self.listed, self.planted), share(self.first, self.planted),
            share(self.first_right, self.first_of), share(self.by_loss, self.planted), share(self.out, self.planted),
            share(self.out_right, self.out_of),
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def score_list(
    ranked: list[RankedDoubt], truth: Masks, given: Masks, kinds: dict[str, str], cv: Path
) -> Scores:
    """Return the counts of a list of doubts; a region is right if at least half of its pixels are mislabelled."""
    right = [is_right(one, truth, given) for one in ranked]
    k = len(kinds)
    out = [i for i, one in enumerate(ranked) if one.stands_out]

    def found(chosen: list[int]) -> int:
        return len({ranked[i].image for i in chosen if right[i]} & set(kinds))

    everywhere, first = list(range(len(ranked))), list(range(min(k, len(ranked))))
    by_loss = len(set(kinds) & set(rank_by_loss(cv, given)[:k]))
    return Scores(
        k, len(ranked), found(everywhere), found(first), sum(right[i] for i in first), len(first), by_loss, found(out),
        sum(right[i] for i in out), len(out),
    )  # fmt: skip


def is_right(one: RankedDoubt, truth: Masks, given: Masks) -> bool:
    """Return True if at least half of the pixels of a doubt are mislabelled."""
    window = one.doubt.window
    wrong = (truth[one.image][window] != given[one.image][window])[one.doubt.inside]
    return bool(wrong.mean() >= 0.5)


def rank_by_loss(cv: Path, given: Masks) -> list[str]:
    """Return the images by their mean cross-entropy, largest first: what a plain ranking would show."""
    losses = {}
    for name, mask in given.items():
        p_CHW, known = tifffile.imread(cv / f"out-of-fold/probabilities/{name}.tif"), mask != IGNORE
        p = np.take_along_axis(p_CHW, np.where(known, mask, 0)[None].astype(int), 0)[0]
        losses[name] = -np.log(np.maximum(p[known], 1e-9)).mean()
    return sorted(losses, key=lambda name: -losses[name])


def share(count: int, of: int) -> str:
    """Return a count with its share's interval."""
    if not of:
        return "none"
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return f"{count} of {of} ({interval.low:.2f} to {interval.high:.2f})"


def find_planted(place: Path, root: Path) -> list[RankedDoubt]:
    """Return the doubts of a cross-validation, with the masks of a folder."""
    cfg = compose_checked("doubt", [f"run={place / 'cv'}", f"data.root={root}"])
    return list_doubts(open_out_of_fold(cfg.run, cfg.data), cfg)[0]


# ---- retraining


def accept(given: Masks, chosen: list[RankedDoubt], word: str) -> Masks:
    """Return masks with some doubts accepted; whole masks are ignored."""
    masks = dict(given)
    for one in chosen:
        how = "ignore" if one.doubt.kind == WHOLE else word
        masks[one.image] = correct_mask(masks[one.image], one.doubt, how)
    return masks


def retrain(place: Path, args: argparse.Namespace, given: Masks, truth: Masks, ranked: list[RankedDoubt], k: int, held: tuple[Masks, Masks]) -> None:  # fmt: skip
    """Train on corrected masks and print the Dice of held-back images after the last epoch, a row for each correction."""
    images = {name: np.array(Image.open(place / f"data/images/{name}.png")) for name in given}
    for k_now in (round(part * k) for part in args.parts):
        first = ranked[:k_now]
        looked = np.random.default_rng([args.seed, 2]).permutation(sorted(given))[:k_now].tolist()
        arms = {
            "0-nothing": given,
            f"{k_now}-class": accept(given, first, "class"),
            f"{k_now}-random-images": given | {name: truth[name] for name in looked},
            "all-corrected": truth,
            f"{k_now}-ignore": accept(given, first, "ignore"),
        }  # fmt: skip
        for arm, masks in arms.items():
            root = place / "retrain" / arm
            for part, pair in (("train", (images, masks)), ("val", held)):
                for folder, arrays in zip(("images", "masks"), pair, strict=True):
                    write_images(arrays, root / part / folder)
            scores = [retrained_dice(root, args, seed) for seed in range(args.retrain)]
            print(f"| {arm} | {' | '.join(f'{score:.4f}' for score in scores)} |", flush=True)


def retrained_dice(root: Path, args: argparse.Namespace, seed: int) -> float:
    """Train a network on corrected masks, unless done; return the Dice of the held-back images after the last epoch."""
    outputs, what = root / f"seed-{seed}", DATA[args.data]
    file = root / f"seed-{seed}.csv"
    if not file.exists():
        options = dict(word.split("=", 1) for word in [*what.training, *what.retraining])
        options |= {"data.ignore": "[255]", "loader.skip_checks": "[ignored]"}  # of whole masks
        options |= {"data.root": root, "outputs": outputs, "seed": seed}
        run("train", *(f"{name}={value}" for name, value in options.items()))
        file.write_bytes((outputs / "latest/metrics.csv").read_bytes())
    with file.open(newline="") as stream:
        scores = [row["val/dice"] for row in csv.DictReader(stream)]
    return float([score for score in scores if score][-1])


# ---- commands


def main() -> None:
    """Measure every rate, and print a row for each."""
    args = parse_arguments()
    if args.offsets:
        print(count_offsets(args.offsets))
        return
    what = DATA[args.data]
    images, masks, count = load_data(args)
    names = list(images)
    truth, held = {name: masks[name] for name in names[:count]}, names[count:]
    print("| rate | planted | regions | in the list | in the first k | right of the first k | in the first k images by mean loss | standing out | right of these |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for rate in args.rates:
        place = args.folder / f"{0 if args.after else rate:g}"
        given, kinds = plant_errors(truth, 0 if args.after else rate, what.things, args.seed)
        if not (place / "data/images").exists():
            write_images(given, place / "data/masks")
            write_images({name: images[name] for name in given}, place / "data/images")
        words = [
            *what.training,
            *what.folds,
            f"data.root={place / 'data'}",
            f"output={place / 'cv'}",
        ]
        run("crossval", *words)
        if args.after:
            print(score_repeats(place, args, truth, rate).row(rate), flush=True)
            continue
        ranked = find_planted(place, place / "data")
        print(score_list(ranked, truth, given, kinds, place / "cv").row(rate), flush=True)
        if args.retrain:
            clean = {name: images[name] for name in held}, {name: masks[name] for name in held}
            retrain(place, args, given, truth, ranked, len(kinds), clean)


def score_repeats(place: Path, args: argparse.Namespace, truth: Masks, rate: float) -> Scores:
    """Return the sums of the counts over errors planted several times after the cross-validation."""
    scores = []
    for repeat in range(args.after):
        given, kinds = plant_errors(truth, rate, DATA[args.data].things, args.seed + repeat)
        root = place / "after"
        write_images({}, root)
        if not (root / "images").exists():
            (root / "images").symlink_to((place / "data/images").resolve())
        write_images(given, root / "masks")
        ranked = find_planted(place, root)
        scores.append(score_list(ranked, truth, given, kinds, place / "cv"))
    return Scores(*(sum(column) for column in zip(*scores, strict=True)))


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="folder for data and runs")
    parser.add_argument("--offsets", nargs="+", help="options of data whose masks are measured")
    parser.add_argument("--data", choices=DATA, default="objects")
    parser.add_argument(
        "--source", type=Path, help="folder of vnc (images, masks), camvid (train, val) or isbi2012"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.02, 0.1, 0.3])
    parser.add_argument("--after", type=int, default=0, help="plantings after the cross-validation")
    parser.add_argument("--retrain", type=int, default=0, help="networks per correction")
    parser.add_argument(
        "--parts", type=float, nargs="+", default=[0.5, 1], help="of k, accepted to retrain"
    )
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--noise", type=float, default=9, help="sd of the grey values' noise")
    parser.add_argument("--radius", type=float, default=4, help="px of the smallest objects")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


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
