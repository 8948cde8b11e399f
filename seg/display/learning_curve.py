"""Plot of a learning curve."""

import textwrap
from pathlib import Path

from seg.metrics.learning_curve import LearningCurve


def draw_curve(curve: LearningCurve, word: str, split: str, title: str, file: Path) -> None:
    """Draw the trainings as points, the curve and its interval, dashed beyond the data, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(5.5, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    inside = curve.grid <= curve.sizes[-1]
    axes.fill_between(
        curve.grid, curve.low, curve.high, color="#56b4e9", alpha=0.3, linewidth=0, label=f"{curve.level:.0%} interval"
    )  # fmt: skip
    axes.plot(curve.grid[inside], curve.fitted[inside], color="#0072b2", label="power law")
    axes.plot(
        curve.grid[~inside], curve.fitted[~inside], "--", color="#0072b2", label="extrapolated"
    )
    for size, scores in zip(curve.sizes, curve.scores, strict=True):
        points = axes.plot([size] * len(scores), scores, "o", color="#d55e00", markersize=4)[0]
    points.set_label("trainings")
    axes.set_xscale("log", base=2)
    ticks = [*curve.sizes.tolist(), 2 * int(curve.sizes[-1])]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set(xlabel=f"training {word}", ylabel=f"{split} Dice")
    axes.set_title("\n".join(textwrap.wrap(title, 68)), fontsize=9, parse_math=False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, format="png")
