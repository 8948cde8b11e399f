"""Order in which unlabelled images are annotated, by expected Dice and by distance. Without PyTorch.

The image with the largest (1 - expected Dice) * min(1, distance) comes first, then that of the rest, and so on. The
distance is the largest difference of a feature, in units of what the known images differ, from their centre or from the
nearest image that comes before: the farthest-first traversal of the k-centre problem (Gonzalez 1985; for annotation Sener
and Savarese 2018, arXiv:1708.00489), weighted by the expected error.

Shape suffixes: N images, F features.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seg.metrics.image_features import ReferenceImages


class QueuedImage(NamedTuple):
    """Place of an image in the queue.

    Attributes:
        index: of the image.
        distance: from the known images and those before it; above 1 it is unlike all of them.
        score: by which it was chosen, in 0..1; 0: as good as the known ones.
    """

    index: int
    distance: float
    score: float


def order_images(
    dice_N: NDArray, features_NF: NDArray, reference: ReferenceImages, count: int
) -> list[QueuedImage]:
    """Return the first images of the queue; of equal ones, the first given.

    Args:
        dice_N: expected Dice, 0..1.
        features_NF: of the images; see ``ImageFeatures``.
        reference: of the known images.
        count: number of images wanted; fewer are returned if there are no more.
    """
    error_N = 1 - dice_N
    distance_N = reference.deviations(features_NF).max(1)
    left_N = np.ones(len(dice_N), bool)
    queue: list[QueuedImage] = []
    for _ in range(min(count, len(dice_N))):
        score_N = error_N * distance_N.clip(max=1)
        index = int(np.where(left_N, score_N, -1).argmax())
        queue.append(QueuedImage(index, float(distance_N[index]), float(score_N[index])))
        left_N[index] = False
        moved = ReferenceImages(features_NF[index], reference.spread, reference.limit)
        distance_N = np.minimum(distance_N, moved.deviations(features_NF).max(1))
    return queue
