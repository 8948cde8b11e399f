"""Default colours of classes."""

import numpy as np

from seg.labels import IGNORE

Color = tuple[int, int, int]
OKABE_ITO: list[Color] = [  # black softened; the colours of the error cell come last
    *((32, 36, 44), (0, 158, 115), (240, 228, 66), (204, 121, 167)),
    *((86, 180, 233), (230, 159, 0), (0, 114, 178), (213, 94, 0)),
]


def default_colors(n: int) -> list[Color]:
    """Return distinct colours for n classes: Okabe-Ito, then each the farthest from all before it.

    Distances are Euclidean in OKLab; white and the greys of ignored pixels are not used. The first n - 1
    colours are those of ``default_colors(n - 1)``.

    Raises:
        ValueError: if n is not in 0..254.
    """
    if not 0 <= n <= 254:
        raise ValueError(
            f"{n} colours requested; a mask holds at most 254 classes, as {IGNORE} is ignored"
        )
    # Candidates: a grid of 12 values in each of R, G and B, without the darkest
    steps = np.arange(20, 256, 21)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    # Distance of each candidate to the reserved colours, in Oklab, where distances match perception
    reserved = [*OKABE_ITO, (255, 255, 255), (128, 128, 128), (176, 176, 176)]
    lab = _oklab(grid)
    gap = np.min([np.linalg.norm(lab - _oklab(np.array(c)), axis=-1) for c in reserved], axis=0)
    colors = OKABE_ITO[:n]
    # Farthest-point selection: take the candidate that is farthest from all colours so far
    while len(colors) < n:
        best = int(gap.argmax())
        colors.append((int(grid[best, 0]), int(grid[best, 1]), int(grid[best, 2])))
        gap = np.minimum(gap, np.linalg.norm(lab - lab[best], axis=-1))
    return colors


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (..., 3) in 0..255 to OKLab (Ottosson 2020), with gamma 2.2 for the sRGB curve."""
    to_lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.cbrt((rgb / 255) ** 2.2 @ np.transpose(to_lms)) @ np.transpose(to_lab)
