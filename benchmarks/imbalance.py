"""Which loss for which imbalance: ``python benchmarks/imbalance.py outputs/sweeps/SWEEP [PLOT.png]``.

Reads the runs of a sweep over losses and seeds, docs/losses.md has the command; prints a table
of class 1 on the validation split, mean and sd over seeds, and draws its Dice over the steps. "Any
threshold" is the best Dice that a threshold chosen on the same split gives: what a loss has learnt, apart
from where it puts one half.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import numpy as np
import torch
from omegaconf import OmegaConf

from seg.cli.compose import instantiate_node
from seg.data.datamodule import DataModule
from seg.display.colors import default_colors
from seg.metrics import SegmentationMetrics
from seg.models.contract import same_size_logits
from seg.runs import load
from seg.runs.metrics_csv import read_metrics

SCORES = ("dice", "precision", "recall")


def finished(sweep: Path) -> dict[str, list[tuple[dict, list[dict[str, str]], Path]]]:
    """Loss -> the record, the measurements and the folder of each of its runs."""
    found = defaultdict(list)
    for file in sorted(sweep.glob("*/run.json")):
        if file.parent.is_symlink():  # latest
            continue
        record = json.loads(file.read_text())
        if record["status"] == "finished":
            loss = re.sub(r"^synapses-|-seed=\d+$", "", record["name"])
            measured = read_metrics(file.with_name("metrics.csv"))
            found[loss].append((record, measured, file.parent))
    return found


@torch.inference_mode()
def at_any_threshold(folder: Path) -> float:
    """Dice of class 1 of a run's best checkpoint at the threshold that is best for it."""
    run = load.load_run(folder)
    source = instantiate_node(OmegaConf.create(run.config["data"]), "data")
    source.splits = {"val": source.splits["val"]}
    samples = DataModule(source, intensity=run.intensity).samples("val")
    metrics = SegmentationMetrics(run.classes, threshold="best")
    seen = [
        (samples[0, i]["image"][None], samples[0, i]["mask"][None]) for i in range(len(samples))
    ]
    for _ in range(2):
        metrics.reset()
        for image, mask in seen:
            metrics.update(same_size_logits(run.model, image), mask)
        score = metrics.compute()[f"dice/{run.classes[1]}"]
        metrics.choose_threshold()
    return float(score)


def spread(values: list[float]) -> str:
    sd = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{sd}"


def main(sweep: Path, plot: Path) -> None:
    losses = finished(sweep)
    if not losses:
        sys.exit(f"{sweep}: no finished runs in it")
    record = next(iter(losses.values()))[0][0]
    name = [k.rsplit("/", 1)[1] for k in record["metrics"] if k.startswith("best/val/dice/")][1]
    curve = f"val/dice/{name}"
    heads = [f"{score}, best epoch" for score in SCORES]
    print(f"| loss | {' | '.join(heads)} | dice, last epoch | dice, any threshold | runs |")
    print("| --- |" + " --- |" * (len(SCORES) + 3))
    figure, axes = plt.subplots(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    colors = np.array(default_colors(8)) / 255
    order = sorted(losses, key=lambda x: -np.mean([best(r, "dice", name) for r, *_ in losses[x]]))
    for color, loss in zip(np.delete(colors, 2, axis=0), order, strict=False):  # but for yellow
        rows = [in_training(measured, curve) for _, measured, _ in losses[loss]]
        values = np.array([[float(r[curve]) for r in of_run] for of_run in rows])
        steps = [int(r["step"]) for r in rows[0]]
        for of_run in values:
            axes.plot(steps, of_run, color=color, alpha=0.3, linewidth=1)
        axes.plot(steps, values.mean(0), color=color, linewidth=2.5, label=loss)
        cells = [spread([best(r, score, name) for r, *_ in losses[loss]]) for score in SCORES]
        cells += [spread(values[:, -1].tolist())]
        cells += [spread([at_any_threshold(folder) for *_, folder in losses[loss]])]
        print(f"| {loss} | {' | '.join(cells)} | {len(values)} |", flush=True)
    axes.set(xlabel="step", ylabel=f"validation Dice of {name}", ylim=(0, None))
    axes.set_title("thin: a seed each; thick: their mean", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(plot)
    print(plot)


def in_training(measured: list[dict[str, str]], curve: str) -> list[dict[str, str]]:
    """The rows that have the curve, without those of the best checkpoint after the last epoch."""
    rows = [row for row in measured if row.get(curve)]
    return [row for row in rows if int(row["epoch"]) < max(int(r["epoch"]) for r in rows)]


def best(record: dict, score: str, name: str) -> float:
    """A score of class ``name`` of the best checkpoint; a precision of nothing is 0."""
    value = record["metrics"][f"best/val/{score}/{name}"]
    return 0.0 if value is None or value != value else value


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "imbalance.png"))
