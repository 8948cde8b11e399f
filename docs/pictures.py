"""Draws the pictures of losses.md and metrics.md, from made data: ``python docs/pictures.py [FOLDER]``."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import binary_dilation, label

from seg.data.datasets.membranes import Membranes
from seg.display.colors import default_colors
from seg.display.panels import colorize
from seg.losses import CrossEntropy, Focal, WeightedBCE, WeightMap
from seg.metrics import instances, isbi2012

SIZE = 192  # px, of the made images


def ten_classes() -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W) and its mask of ten classes: membrane, and nine kinds of cell."""
    source = Membranes(size=SIZE, train=1, val=1, test=0)
    image, mask = source.read("train-000")
    cells, _ = label(mask)
    return image[..., 0], np.where(mask == 1, (cells - 1) % 9 + 1, 0).astype(np.uint8)


def masks() -> Figure:
    """One mask as indices, as colours, as planes, and what a resized colour picture holds."""
    image, mask = ten_classes()
    colors = np.array(default_colors(10), np.uint8)
    painted = colorize(mask, default_colors(10))
    small = np.array(Image.fromarray(painted).resize((SIZE // 2,) * 2, Image.Resampling.BILINEAR))
    legal = (small[..., None, :] == colors).all(-1).any(-1)
    invented = np.where(legal[..., None], 255 - (255 - small) // 4, np.uint8([200, 16, 46]))
    figure = plt.figure(figsize=(12, 5.3), layout="constrained")
    grid = figure.add_gridspec(2, 20, height_ratios=(2.2, 1))
    top = (
        (image, "the image", {"cmap": "gray"}),
        (mask, "index mask, as stored: 0 to 9,\nnearly black to the eye", {"cmap": "gray", "vmin": 0, "vmax": 255}),
        (painted, "the same with a palette:\nstill one index a pixel", {}),
        (invented, f"the colours saved as RGB and resized:\n{(~legal).mean():.0%} of the pixels (red) are of no class", {}),
    )  # fmt: skip
    for place, (picture, title, options) in zip(range(0, 20, 5), top, strict=True):
        axes = figure.add_subplot(grid[0, place : place + 5])
        axes.imshow(picture, interpolation="nearest", **options)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    for c in range(10):
        axes = figure.add_subplot(grid[1, 2 * c : 2 * c + 2])
        axes.imshow(mask == c, cmap="gray", interpolation="nearest")
        axes.set_title(f"one-hot\nplane {c}", fontsize=8, color=colors[c] * 0.8 / 255)
        axes.set(xticks=[], yticks=[])
    return figure


def weight_map() -> Figure:
    """A section, its cells, and the weight map of the U-Net paper's figure 3."""
    source = Membranes(size=SIZE, train=1, val=1, test=0)
    image, mask = source.read("train-000")
    cells = instances.label_components(mask == 1)
    shuffled = np.random.default_rng(1).permutation(cells.max()) + 1
    picture = np.where(cells > 0, np.concatenate([[0], shuffled])[cells], np.nan)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    axes[0].imshow(image[..., 0], cmap="gray")
    axes[1].imshow(picture, cmap="hsv", interpolation="nearest")
    shown = axes[2].imshow(1 + WeightMap().gaps(mask), cmap="jet")
    figure.colorbar(shown, ax=axes[2], label="w(x), w_c = 1")
    titles = ("image", "truth: its cells, one by one", "w0 = 10, sigma = 5 px")
    for one, title in zip(axes, titles, strict=True):
        one.set_title(title, fontsize=9)
        one.axis("off")
    return figure


def curves() -> Figure:
    """What one pixel of class 1 costs, and how hard it pulls, against its probability."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    logit = torch.linspace(-5, 5, 201)
    losses = {
        "bce": CrossEntropy(),
        "weighted_bce, w = 4": WeightedBCE(4.0),
        "focal, gamma = 2": Focal(gamma=2.0),
        "focal, gamma = 5": Focal(gamma=5.0),
    }
    mask = torch.ones(1, 1, 1, dtype=torch.int64)
    for name, loss in losses.items():
        x = logit.clone().requires_grad_()
        values = torch.stack([loss(v.view(1, 1, 1, 1), mask) for v in x])
        values.sum().backward()
        p = logit.sigmoid().numpy()
        left.plot(p, values.detach().numpy(), label=name)
        right.plot(p, -x.grad.numpy(), label=name)
    left.set(xlabel="probability of the truth", ylabel="loss of the pixel", ylim=(0, 6))
    right.set(xlabel="probability of the truth", ylabel="pull on the logit")
    left.legend(fontsize=8)
    for one in (left, right):
        one.grid(alpha=0.3)
    return figure


def gap_or_width() -> Figure:
    """Two predictions with the same Dice, one of which lets cells run together."""
    source = Membranes(size=SIZE, train=1, val=1, test=0)
    _, truth = source.read("train-000")
    thick = 1 - binary_dilation(truth == 0).astype(np.uint8)
    rng, gaps = np.random.default_rng(0), truth.copy()
    while membrane_dice(gaps, truth) > membrane_dice(thick, truth):
        y, x = rng.integers(8, SIZE - 8, 2)
        gaps[y - 5 : y + 6, x - 5 : x + 6] = 1
    shown = {"truth": truth, "membranes a pixel thicker": thick, "gaps": gaps}
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
    for one, (name, found) in zip(axes, shown.items(), strict=True):
        v_rand = isbi2012.best_scores([isbi2012.section_scores(found.astype(float), truth)])[
            "v_rand"
        ]
        one.imshow(found, cmap="gray", interpolation="nearest")
        scores = f"membrane Dice {membrane_dice(found, truth):.3f}, V_rand {v_rand:.3f}"
        one.set_title(f"{name}\n{scores}", fontsize=9)
        one.axis("off")
    return figure


def membrane_dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * ((found == 0) & (truth == 0)).sum() / ((found == 0).sum() + (truth == 0).sum())


PICTURES = {"masks": masks, "weight-map": weight_map, "loss-curves": curves, "gap-or-width": gap_or_width}  # fmt: skip


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=100)
        plt.close(figure)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
