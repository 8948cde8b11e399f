"""The reliability plot: how often a network is right, against how sure it says it is."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import numpy as np

from seg.metrics.calibration import UNIT, Calibration


def reliability_plot(calibration: Calibration, title: str, file: Path) -> None:
    """Accuracy against confidence, a bar a bin, and below how many pixels each has."""
    left = np.arange(calibration.bins) / calibration.bins
    pixels, hits, confidence = (
        state.cpu().numpy()
        for state in (calibration.pixels, calibration.hits, calibration.confidence)
    )
    confidence = confidence / UNIT
    used = pixels > 0
    said, true = confidence[used] / pixels[used], hits[used] / pixels[used]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.5, 5.5), dpi=150, height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    width = 1 / calibration.bins
    above.plot([0, 1], [0, 1], color="#666666", linewidth=1, label="probabilities that hold")
    above.bar(left[used], true, width, align="edge", color="#56b4e9", edgecolor="white")
    above.plot(said, true, "o", color="#d55e00", markersize=4, label="mean confidence of a bin")
    above.set(ylabel="share of pixels that are right", ylim=(0, 1), xlim=(0, 1))
    above.set_title(
        f"{title}\nexpected calibration error {float(calibration.compute()):.4f}", parse_math=False
    )  # a path may have dollars
    above.title.set_fontsize(9)
    above.legend(fontsize=8, loc="upper left")
    below.bar(left, pixels / pixels.sum(), width, align="edge", color="#999999", edgecolor="white")
    below.set(xlabel="confidence", ylabel="share of pixels")
    figure.savefig(file)
    plt.close(figure)
