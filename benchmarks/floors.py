"""What a threshold scores on the made images, the floor under every network: python benchmarks/floors.py.

Prints Dice of both classes over the test split of ``data=membranes``: dark pixels are called membrane,
below Otsu's threshold of each image, and below the one grey value that is best for the whole split
(chosen with the truth, which no network sees), each also after a Gaussian blur.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from seg.data.datasets.membranes import Membranes
from seg.metrics.confusion import count_confusion
from seg.metrics.pixel_scores import ConfusionCounts, dice


def score(predictions: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
    """Dice (membrane, cell) over all pixels."""
    stacks = [torch.from_numpy(np.stack(s).astype(np.int64)) for s in (predictions, masks)]
    return dice(ConfusionCounts.from_confusion(count_confusion(*stacks, 2).sum(0))).numpy()


def main() -> None:
    source = Membranes()
    pairs = [source.read(name) for name in source.splits["test"]]
    masks = [mask for _, mask in pairs]
    print(f"{'threshold':<12} {'blur, px':>8} {'membrane':>9} {'cell':>7}")
    for sigma in (0, 1, 2):
        images = [gaussian_filter(image[..., 0].astype(float), sigma) for image, _ in pairs]
        otsu = score([i > threshold_otsu(i) for i in images], masks)
        best = max(
            (score([i > t for i in images], masks) for t in range(40, 200, 2)), key=lambda s: s[0]
        )
        for name, (membrane, cell) in (("Otsu", otsu), ("best", best)):
            print(f"{name:<12} {sigma:>8} {membrane:>9.3f} {cell:>7.3f}")


if __name__ == "__main__":
    main()
