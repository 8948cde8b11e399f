"""What an untrained decoder makes of a smooth map, for each way of upsampling: python benchmarks/checkerboard.py.

Prints how unlike the four pixels of a 2x2 block are (their standard deviation, as a share of the
map's): what a smooth map has by itself, and what the upsampling adds. Writes docs/images/upsampling.png.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from seg.models import UNet

PICTURE = Path(__file__).parent.parent / "docs/images/upsampling.png"


def smooth(channels: int, size: int) -> Tensor:
    """Random features that change slowly, as those far down in a network do."""
    coarse = torch.randn(1, channels, 4, 4)
    return F.interpolate(coarse, size=(size, size), mode="bicubic")


def unevenness(x: Tensor) -> float:
    """Standard deviation within 2x2 blocks over that of all."""
    blocks = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))
    return float(blocks.std(2).mean() / x.std())


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    x, skip = smooth(32, 24), torch.randn(1, 16, 48, 48)
    figure, axes = plt.subplots(1, 5, figsize=(10, 2.4), dpi=110, layout="constrained")
    for ax, up in zip(
        axes, ("transposed", "unpool", "nearest", "bilinear", "pixel_shuffle"), strict=True
    ):
        y = UNet(1, 1, 16, 1, up=up).up[0](x, skip)
        print(f"{up:14} {unevenness(y):.3f}")
        ax.imshow(y[0, 0], cmap="gray", interpolation="nearest")
        ax.set_title(f"{up}, {unevenness(y):.2f}", fontsize=9)
        ax.axis("off")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
