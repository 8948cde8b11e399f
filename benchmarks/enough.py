"""Does the interval of seg.enough cover the truth? ``python benchmarks/enough.py FOLDER``.

Makes a data set of 16 training images for each data seed, trains on nested subsets of 4, 6, 10 and 16 of them with 2
seeds, extrapolates to 32 images as seg.enough does, and compares with the mean Dice of 3 trainings on these 16 and 16
more images, all scored on the same 24 images. Prints a row of a table for the data seeds of ``--repeats``: how many
intervals cover the truth, and how wide they are. The same command continues where it stopped.

The trainings are plain loops over seg's data, networks and losses with the same number of steps for all sizes, a
second each on an idle core; what is tested is the curve and its interval.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from scipy.stats import binomtest

from seg.cli.compose import compose_checked, instantiate_node
from seg.logits import classes_from_probabilities, probabilities
from seg.metrics.confusion import PixelScores
from seg.metrics.learning_curve import dice_of_counts, fit_learning_curve
from seg.training.build import build_data, build_model

SIZES, SEEDS, TRUTH_SEEDS = (4, 6, 10, 16), (0, 1), (2, 3, 4)
STEPS, BATCH = 96, 4
WORDS = [
    "data=membranes", "data.size=48", "data.val=24", "data.test=0", "model.width=4", "model.depth=2", "augment=none",
    "optim.lr=2.0e-2", "loader.crop=null", f"loader.batch_size={BATCH}", "loader.eval_batch_size=24", "loader.check=false",
]  # fmt: skip


def train_counts(cfg: DictConfig, size: int, seed: int) -> np.ndarray:
    """Train on a subset of the training images; return TP, FP, FN of each validation image and class (N, C, 3)."""
    cfg = copy.deepcopy(cfg)
    cfg.seed, cfg.loader.subset, cfg.loader.repeats = seed, size, -(-STEPS * BATCH // size)
    torch.manual_seed(seed)
    data, overlapping = build_data(cfg), False
    model, loss = build_model(cfg.model), instantiate_node(cfg.loss, "loss")
    optimizer, schedule = (
        torch.optim.AdamW(model.parameters(), cfg.optim.lr),
        instantiate_node(cfg.schedule, "schedule"),
    )
    # One pass of the loader holds all steps
    for step, batch in zip(range(STEPS), data.train_dataloader(), strict=False):
        optimizer.param_groups[0]["lr"] = cfg.optim.lr * schedule.factor(step, STEPS)
        optimizer.zero_grad()
        loss(model(batch["image"]), batch["mask"]).backward()
        optimizer.step()
    # Score the last weights
    scores = PixelScores(data.source.classes, overlapping)
    model.eval()
    with torch.no_grad():
        for batch in data.val_dataloader():
            p = probabilities(model(batch["image"]), overlapping).numpy()
            predicted = np.stack([classes_from_probabilities(one, 0.5, overlapping) for one in p])
            scores.update(torch.from_numpy(predicted).long(), batch["mask"])
    return scores.images().numpy()[..., :3]


def measure_repeat(file: Path, data_seed: int) -> dict[str, np.ndarray]:
    """Return the counts of all trainings of a data seed; from the file if they were measured before."""
    if not file.exists():
        cfg = {
            n: compose_checked("train", [*WORDS, f"data.train={n}", f"data.data_seed={data_seed}"])
            for n in (max(SIZES), 2 * max(SIZES))
        }
        counts = {f"{n}-{s}": train_counts(cfg[max(SIZES)], n, s) for n in SIZES for s in SEEDS}
        n = 2 * max(SIZES)
        counts |= {f"{n}-{s}": train_counts(cfg[n], n, s) for s in TRUTH_SEEDS}
        with file.open("wb") as stream:
            np.savez(stream, **counts)
    with np.load(file) as stored:
        return dict(stored)


def judge_repeat(counts: dict[str, np.ndarray], level: float) -> dict[str, float]:
    """Return whether the intervals of a repeat cover the truth, their widths and the errors of the prediction."""
    rows = np.array([[counts[f"{n}-{s}"] for s in SEEDS] for n in SIZES])
    curve = fit_learning_curve(np.array(SIZES), rows, level)
    held_back = np.stack([counts[f"{2 * max(SIZES)}-{s}"] for s in TRUTH_SEEDS])
    truth = dice_of_counts(held_back.sum(1)).mean()
    gain, low, high = truth - curve.scores[-1].mean(), curve.low[-1], curve.high[-1]
    return {
        "score": low <= truth <= high,
        "gain": curve.gain_low <= gain <= curve.gain_high,
        "score width": high - low,
        "gain width": curve.gain_high - curve.gain_low,
        "error": curve.fitted[-1] - truth,
        "no change": -gain,
        "says more": curve.gain_low > 0,
        "says more rightly": curve.gain_low > 0 and gain > 0,
        "says fewer": curve.gain_high < 0,
    }


def main() -> None:
    """Measure every data seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the counts of the trainings")
    parser.add_argument(
        "--repeats",
        type=int,
        nargs=2,
        default=[10, 50],
        help="data seeds: the first, one after the last",
    )
    parser.add_argument("--levels", type=float, nargs="+", default=[0.9, 0.8])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    counts = [measure_repeat(args.folder / f"{n:03d}.npz", n) for n in range(*args.repeats)]
    print(
        "| level | score at 32 covered | width | gain covered | width | error of the curve at 32: mean, sd | of no change: mean, sd | gain above 0, true of these | below 0 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for level in args.levels:
        rows = [judge_repeat(one, level) for one in counts]
        columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
        cells = [
            f"{level:g}", share(columns["score"]), f"{np.median(columns['score width']):.3f}",
            share(columns["gain"]), f"{np.median(columns['gain width']):.3f}",
            *(f"{columns[n].mean():+.3f}, {columns[n].std(ddof=1):.3f}" for n in ("error", "no change")),
            f"{int(columns['says more'].sum())}, {int(columns['says more rightly'].sum())}",
            f"{int(columns['says fewer'].sum())}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def share(hits: np.ndarray) -> str:
    """Return a count with Wilson's interval of its share at 95 %."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return f"{int(hits.sum())} of {len(hits)} ({interval.low:.2f} to {interval.high:.2f})"


if __name__ == "__main__":
    main()
