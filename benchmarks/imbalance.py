"""Which loss for which imbalance: ``python benchmarks/imbalance.py outputs/sweeps/SWEEP [PLOT.png]``.

Reads the runs of a sweep over losses and seeds, docs/losses-and-metrics.md has the command; prints a table
of class 1 on the validation split, mean and sd over seeds, and draws its Dice over the steps.
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

from seg.panels import default_colors
from seg.tracking import read_metrics

SCORES = ("dice", "precision", "recall")


def finished(sweep: Path) -> dict[str, list[tuple[dict, list[dict[str, str]]]]]:
    """Loss -> the record and the measurements of each of its runs."""
    runs = defaultdict(list)
    for file in sorted(sweep.glob("*/run.json")):
        if file.parent.is_symlink():  # latest
            continue
        record = json.loads(file.read_text())
        if record["status"] == "finished":
            loss = re.sub(r"^synapses-|-seed=\d+$", "", record["name"])
            runs[loss].append((record, read_metrics(file.with_name("metrics.csv"))))
    return runs


def spread(values: list[float]) -> str:
    sd = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{sd}"


def main(sweep: Path, plot: Path) -> None:
    runs = finished(sweep)
    if not runs:
        sys.exit(f"{sweep}: no finished runs in it")
    record = next(iter(runs.values()))[0][0]
    name = [k.rsplit("/", 1)[1] for k in record["metrics"] if k.startswith("best/val/dice/")][1]
    curve = f"val/dice/{name}"
    print(f"| loss | {' | '.join(f'{s}, best epoch' for s in SCORES)} | Dice, last epoch | runs |")
    print("| --- |" + " --- |" * (len(SCORES) + 2))
    figure, axes = plt.subplots(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    colors = np.array(default_colors(8)) / 255
    order = sorted(runs, key=lambda x: -np.mean([best(r, "dice", name) for r, _ in runs[x]]))
    for color, loss in zip(np.delete(colors, 2, axis=0), order, strict=False):  # but for yellow
        rows = [[r for r in measured if r.get(curve)] for _, measured in runs[loss]]
        values = np.array([[float(r[curve]) for r in of_run] for of_run in rows])
        steps = [int(r["step"]) for r in rows[0]]
        mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
        axes.plot(steps, mean, color=color, label=loss)
        axes.fill_between(steps, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
        cells = [spread([best(r, s, name) for r, _ in runs[loss]]) for s in SCORES]
        last = spread(values[:, -1].tolist())
        print(f"| {loss} | {' | '.join(cells)} | {last} | {len(values)} |")
    axes.set(xlabel="step", ylabel=f"validation Dice of {name}", ylim=(0, None))
    axes.set_title("mean of the seeds, shaded: sd", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(plot)
    print(plot)


def best(record: dict, score: str, name: str) -> float:
    """A score of class ``name`` of the best checkpoint; a precision of nothing is 0."""
    value = record["metrics"][f"best/val/{score}/{name}"]
    return 0.0 if value is None or value != value else value


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "imbalance.png"))
