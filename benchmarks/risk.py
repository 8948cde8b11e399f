"""Bounds of threshold=missed:ALPHA and false:ALPHA, held on made images: python benchmarks/risk.py [pairs=22].

For each pair of a data and a training seed a small network is trained; thresholds come from its 30 validation images, as
in seg.train, and are measured on its 100 test images. Printed are means over the pairs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from seg.api import train
from seg.data.datasets.membranes import Membranes
from seg.metrics.risk_control import (
    THRESHOLDS,
    RiskBound,
    control_risk,
    foreground_scores,
    image_losses,
    scores_at,
)

OPTIONS = {"pairs": "22"}
SIZES = {"size": 128, "train": 12, "val": 30, "test": 100}
LINE = ["loader.crop=96", "model.width=8", "model.depth=3", "trainer=cpu", "trainer.max_epochs=4", "logger=none", "panels=0",
        "save_predictions=0"]  # fmt: skip
BOUNDS = [RiskBound(risk, alpha) for risk in ("missed", "false") for alpha in (0.05, 0.1, 0.2)]


def count_pixels(predictor, data: Membranes, split: str) -> np.ndarray:
    """Return background and foreground pixels of each image by the bin of their probability, (N, 2, B)."""
    counts = []
    for name in data.splits[split]:
        image, mask = data.read(name)
        bins = np.searchsorted(THRESHOLDS, predictor.probabilities(image)[1])
        counts.append([np.bincount(bins[mask == k], minlength=len(THRESHOLDS) + 1) for k in (0, 1)])
    return np.array(counts)


def measure_pair(seed: int) -> dict[str, list[float]]:
    """Train one network; return validation share, test share and test Dice for each bound, and for a threshold of 0.5."""
    options = {f"data.{name}": value for name, value in SIZES.items()}
    run = train(*LINE, **options, **{"data.data_seed": seed, "seed": seed})
    data, predictor = Membranes(data_seed=seed, **SIZES), run.load(accelerator="cpu")
    val, test = (count_pixels(predictor, data, split) for split in ("val", "test"))
    scores, half = foreground_scores(test), int(np.searchsorted(THRESHOLDS, 0.5))
    shares = [float(image_losses(test, risk)[:, half].mean()) for risk in ("missed", "false")]
    rows = {"0.5": [*shares, scores_at(scores, THRESHOLDS[half])["dice"]]}
    for bound in BOUNDS:
        chosen = control_risk(val, bound)
        assert chosen is not None
        place = int(np.searchsorted(THRESHOLDS, chosen.threshold))
        share = float(image_losses(test, bound.risk)[:, place].mean())
        dice = scores_at(scores, chosen.threshold)["dice"]
        rows[f"{bound.risk}:{bound.alpha:g}"] = [chosen.mean, share, dice]
    return rows


def main() -> None:
    pairs = int((OPTIONS | dict(word.split("=", 1) for word in sys.argv[1:]))["pairs"])
    with tempfile.TemporaryDirectory() as place:
        LINE.append(f"outputs={Path(place) / 'outputs'}")
        found = [measure_pair(seed) for seed in range(pairs)]
    print(
        f"| bound | share, validation | share, test | sd over the {pairs} | largest | Dice of the cells, test |\n"
        + "| --- " * 6
        + "|"
    )
    for name in found[0]:
        first, share, dice = np.array([rows[name] for rows in found]).T
        cells = [f"{first.mean():.3f}", f"{share.mean():.3f}", f"{share.std(ddof=1):.3f}", f"{share.max():.3f}", f"{dice.mean():.3f}"]  # fmt: skip
        if name == "0.5":
            cells = ["", f"{first.mean():.3f} missed, {share.mean():.3f} false", "", "", cells[-1]]
            name = "none: 0.5"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
