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

from seg.cli.compose import compose_checked, instantiate_node
from seg.logits import classes_from_probabilities, probabilities
from seg.metrics.confusion import PixelScores
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
        counts = {
            f"{n}-{s}": train_counts(cfg[max(SIZES)], n, s) for n in SIZES for s in SEEDS
        }
        n = 2 * max(SIZES)
        counts |= {f"{n}-{s}": train_counts(cfg[n], n, s) for s in TRUTH_SEEDS}
        with file.open("wb") as stream:
            np.savez(stream, **counts)
    with np.load(file) as stored:
        return dict(stored)


def main() -> None:
    """Measure every data seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the counts of the trainings")
    parser.add_argument("--repeats", type=int, nargs=2, default=[10, 50], help="data seeds: first, one after the last")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for data_seed in range(*args.repeats):
        counts = measure_repeat(args.folder / f"{data_seed:03d}.npz", data_seed)
        d = {}
        for k, c in counts.items():
            s = c.sum(0); d[k] = (2*s[:,0]/(2*s[:,0]+s[:,1]+s[:,2])).mean()
        print(data_seed, {k: round(float(v), 3) for k, v in d.items()}, flush=True)


if __name__ == "__main__":
    main()
