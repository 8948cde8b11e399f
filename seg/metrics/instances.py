"""Object metrics: split a map of cell interiors into objects, match them with the true ones, score.

Shape suffixes: H x W pixels, T IoU thresholds; ``...`` any leading axes, such as images.
Labels are (H, W) int32: 0 is background, each object has its own positive number.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from seg.metrics.significance import BootstrapInput
from seg.objects import (
    first_pixels,
    grow_objects,
    label_components,
    rank_by_position,
    renumber_objects,
)

IOU_TWENTIETHS = np.arange(10, 20)  # 0.50, 0.55 ... 0.95 as integers: ties are exact
IOU_THRESHOLDS = IOU_TWENTIETHS / 20
DILATIONS = 48  # px that values spread in all regions together; scikit-image reconstructs others


def object_probability(p_CHW: NDArray) -> NDArray:
    """Return the probability (H, W) in 0..1 of being inside an object: that of class 1 of two.

    Of three classes it is that of class 1 against the more probable of the others: above 0.5 where class 1 is the most
    probable one.
    """
    if len(p_CHW) == 2:
        return p_CHW[1]
    return p_CHW[1] / (p_CHW[1] + np.maximum(p_CHW[0], p_CHW[2])).clip(1e-30)


def segment_objects(
    interior: NDArray,
    threshold: float = 0.5,
    split_neck_px: float | None = None,
    min_size: int = 16,
    border: int = 0,
) -> NDArray[np.int32]:
    """Split a map of cell interiors into objects: connected regions, optionally split at their necks.

    With ``split_neck_px``: a watershed of the distance to the nearest outside pixel, seeded at its peaks. A peak
    that rises less than ``split_neck_px`` above the saddle to a higher one is no seed; every 4-connected component
    keeps at least one. Suited to round objects that touch (nuclei); long objects of uneven width (neurites)
    are over-split.

    Args:
        interior: probability (H, W) in 0..1 of being inside a cell.
        threshold: probability above which a pixel is inside.
        split_neck_px: px by which the half-width of an object must shrink at a neck to be split there; None: no
            splitting.
        min_size: px of the smallest object; smaller ones become background.
        border: px that each of two touching objects lacks in the map, since the network learned a gap there; they
            are grown back by it.

    Returns:
        Labels (H, W) int32.

    Raises:
        ValueError: if ``split_neck_px`` is not above 0 or ``min_size`` is below 1.
    """
    if (split_neck_px is not None and not 0 < split_neck_px < np.inf) or min_size < 1:
        raise ValueError(
            f"split_neck_px={split_neck_px} px must be above 0 and min_size={min_size} px at least 1"
        )
    mask = interior > threshold
    labels = label_components(mask) if split_neck_px is None else split_necks(mask, split_neck_px)
    return remove_small_objects(grow_objects(labels, border), min_size)


def split_necks(mask: NDArray[np.bool_], split_neck_px: float) -> NDArray[np.int32]:
    """Return the labels of the objects of a mask (H, W), split at their necks; see ``segment_objects``.

    An object depends on its own 8-connected region alone. Objects are numbered in reading order.
    """
    # Depth of each pixel in its region.
    mask = np.pad(mask, 1)  # the area around the image is outside
    whole = label_components(mask)
    depth = ndimage.distance_transform_edt(mask)  # px to the nearest pixel outside
    # One seed for each peak that rises split_neck_px above its saddle (h-maxima).
    peaks = mask & local_maxima(
        reconstruct_by_dilation(np.maximum(depth - split_neck_px, 0), depth), connectivity=2
    )
    seeds, number = ndimage.label(peaks, np.ones((3, 3)))
    # Regions too shallow for a seed stay whole; the watershed divides the others.
    seedless = mask & ~np.isin(whole, whole[peaks])
    markers = np.where(seedless, whole + number, seeds)
    # Markers are flooded first, in reading order: ties depend on nothing else in the image.
    height = -depth
    height[markers > 0] = np.arange(np.count_nonzero(markers)) - 2.0 * mask.size
    labels = watershed(height, markers, connectivity=1, mask=mask)[1:-1, 1:-1]
    return rank_by_position(first_pixels(labels))[labels]


def reconstruct_by_dilation(
    seed: NDArray[np.float64], depth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the reconstruction by dilation of a seed (H, W) under a depth (H, W), 8-connected; both 0 outside regions.

    Equal to scikit-image's ``reconstruction``, which sorts all pixels: several times slower where values spread by few
    px, as in round objects.
    """
    square, step = np.ones((3, 3), np.uint8), 8
    before = seed
    for _ in range(DILATIONS // step):
        before = seed
        for _ in range(step):
            seed = np.minimum(cv2.dilate(seed, square), depth)
        if np.array_equal(seed, before):
            return seed
    # Values spread farther in a few regions, such as long ones: scikit-image finishes each of them.
    regions, _ = ndimage.label(depth > 0, square)
    boxes = ndimage.find_objects(regions)
    for number in np.unique(regions[seed != before]):
        box = boxes[number - 1]
        inside = regions[box] == number
        seed[box][inside] = reconstruction(seed[box] * inside, depth[box] * inside)[inside]
    return seed


def remove_small_objects(labels: NDArray, min_size: int) -> NDArray[np.int32]:
    """Return the labels without the objects smaller than min_size px."""
    return renumber_objects(np.where(object_areas(labels)[labels] >= min_size, labels, 0))


def match_objects(
    truth: NDArray, pred: NDArray, valid: NDArray | None = None
) -> NDArray[np.float64]:
    """Match the predicted objects of one image with the true ones at each IoU threshold.

    Two objects match at threshold t if their IoU is **above** t. As no threshold is below 0.5, an object has
    at most one match (two would share pixels), so no assignment is needed; at exactly 0.5 the match would
    not be unique. The same rule as Kirillov et al. 2019 and the Data Science Bowl 2018; StarDist's
    ``matching`` counts IoU = t as a match after an optimal assignment.

    The counts are additive: sum them over images, or over resampled images, then call ``object_scores``.

    Args:
        truth: labels (H, W) int; 0 is background.
        pred: labels (H, W) int, numbered in any way.
        valid: (H, W) bool, False where the truth is ignored: objects have no area there, and an object
            entirely in it is not counted. None: every pixel is valid.

    Returns:
        (T, 4) float64 with columns TP, FP, FN, sum of the matched IoUs; rows are ``IOU_THRESHOLDS``.

    Raises:
        ValueError: if the sizes differ.
    """
    if truth.shape != pred.shape:
        raise ValueError(
            f"truth is {truth.shape} px and prediction {pred.shape} px; sizes must agree"
        )
    if valid is not None:
        truth, pred = truth[valid], pred[valid]

    # pairs of objects that share pixels, with their intersection and union
    true_area, pred_area = object_areas(truth), object_areas(pred)
    both = (truth > 0) & (pred > 0)
    pair = truth[both].astype(np.int64) * len(pred_area) + pred[both]
    pair, shared = np.unique(pair, return_counts=True)
    i, j = np.divmod(pair, len(pred_area))
    union = true_area[i] + pred_area[j] - shared

    # counts at each threshold
    hit = 20 * shared > IOU_TWENTIETHS[:, None] * union  # (T, pairs)
    tp = hit.sum(1)
    true_objects, pred_objects = np.count_nonzero(true_area), np.count_nonzero(pred_area)
    iou = (hit * (shared / union)).sum(1)
    return np.stack([tp, pred_objects - tp, true_objects - tp, iou], 1).astype(np.float64)


def object_areas(labels: NDArray) -> NDArray[np.int64]:
    """Return the number of pixels of each label, indexed by label; 0 for the background."""
    area = np.bincount(labels.ravel(), minlength=1)
    area[0] = 0
    return area


def object_scores(counts: NDArray) -> dict[str, NDArray[np.float64]]:
    """Return object scores (...) from counts (..., T, 4) of ``match_objects``, summed over the pooled images.

    Each score is in 0..1, and nan where its denominator is 0: all scores without any object, precision
    without predicted objects, recall without true ones, ``sq`` without a match.

    Returns:
        ``object_precision``, ``object_recall``, ``object_f1`` at IoU above 0.5; ``ap/0.50`` ... ``ap/0.95``
        = TP / (TP + FP + FN) and ``ap``, their mean (as in the Data Science Bowl 2018 and StarDist, without
        a ranking by confidence); ``sq``, the mean IoU of the matches, ``rq`` = ``object_f1`` and ``pq`` =
        sq * rq, the panoptic quality of one class (Kirillov et al., CVPR 2019, arXiv:1801.00868).
    """
    # AP at every threshold; the other scores only at IoU above 0.5, the first threshold
    tp, fp, fn, iou = np.moveaxis(np.asarray(counts, np.float64), -1, 0)  # each (..., T)
    with np.errstate(divide="ignore", invalid="ignore"):
        ap = tp / (tp + fp + fn)
        at_half = {
            "object_precision": tp / (tp + fp),
            "object_recall": tp / (tp + fn),
            "object_f1": 2 * tp / (2 * tp + fp + fn),
            "pq": 2 * iou / (2 * tp + fp + fn),  # 0, not nan, where nothing matches
            "sq": iou / tp,
            "rq": 2 * tp / (2 * tp + fp + fn),
        }
    scores = {name: score[..., 0] for name, score in at_half.items()}
    return (
        scores
        | {"ap": ap.mean(-1)}
        | {f"ap/{t:.2f}": ap[..., k] for k, t in enumerate(IOU_THRESHOLDS)}
    )


def object_bootstrap_inputs(counts: NDArray) -> dict[str, BootstrapInput]:
    """Return for each score its rows and score function, from the counts (N, T, 4) of N images."""
    names = object_scores(counts[0])
    return {name: (counts, lambda sums, name=name: object_scores(sums)[name]) for name in names}
