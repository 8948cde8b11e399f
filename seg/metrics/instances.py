"""Objects from a map of cell interiors, and how well they match the true ones, object by object.

Legend for shapes: H x W pixels, T IoU thresholds; ``...`` any leading axes, such as images.
Labels are (H, W) int32: 0 is background, each object has its own positive number.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from seg.metrics.significance import Evidence

IOU_TWENTIETHS = np.arange(10, 20)  # 0.50, 0.55 ... 0.95, kept whole so that ties are exact
IOU_THRESHOLDS = IOU_TWENTIETHS / 20
CROSS = ndimage.generate_binary_structure(2, 1)  # 4 neighbours


def components(mask: NDArray) -> NDArray[np.int32]:
    """Labels (H, W) of the 4-connected components of a mask (H, W) bool, from 1 on in reading order."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, CROSS, labels)
    return labels


def objects(
    interior: NDArray, threshold: float = 0.5, neck: float | None = None, min_size: int = 16
) -> NDArray[np.int32]:
    """Labels (H, W) of the objects in a map of cell interiors: connected regions, or what necks part.

    With ``neck``: a watershed on the distance to the nearest pixel outside, from its peaks; a peak that
    rises less than ``neck`` above the way to a higher one is no seed of its own. Each 4-connected
    component keeps at least one. Right for round objects that touch (nuclei); where objects are long and
    uneven in width (neurites) it splits too much.

    Args:
        interior: probability (H, W) in 0..1 of being inside a cell.
        threshold: inside is above it.
        neck: px by which an object's half-width must shrink at a neck to be split there; None: 4-connected
            regions as they are.
        min_size: px of the smallest object; smaller ones become background.

    Raises:
        ValueError: when ``neck`` isn't above 0 or ``min_size`` is below 1.
    """
    if (neck is not None and not 0 < neck < np.inf) or min_size < 1:
        raise ValueError(f"neck={neck} px must be above 0, and min_size={min_size} px at least 1")
    if neck is None:
        return large(components(interior > threshold), min_size)
    mask = np.pad(interior > threshold, 1)  # outside the image is outside the cells
    whole = components(mask)
    depth = ndimage.distance_transform_edt(mask)  # px to the nearest pixel outside
    peaks = mask & local_maxima(reconstruction(depth - neck, depth), connectivity=2)
    seeds, number = ndimage.label(peaks, np.ones((3, 3)))
    seedless = mask & ~np.isin(whole, whole[peaks])
    labels = watershed(-depth, np.where(seedless, whole + number, seeds), connectivity=1, mask=mask)
    return large(labels[1:-1, 1:-1], min_size)


def large(labels: NDArray, min_size: int) -> NDArray[np.int32]:
    """The objects of at least so many px."""
    return consecutive(np.where(areas(labels)[labels] >= min_size, labels, 0))


def consecutive(labels: NDArray) -> NDArray[np.int32]:
    """The same objects, numbered 1, 2 ... in the order of their old numbers."""
    present = np.unique(labels[labels > 0])
    return ((np.searchsorted(present, labels) + 1) * (labels > 0)).astype(np.int32)


def match(truth: NDArray, found: NDArray, valid: NDArray | None = None) -> NDArray[np.float64]:
    """Counts (T, 4) of one image: objects matched, false, missed, and the sum of the matched IoUs.

    A true and a found object match at IoU threshold t when their IoU is **above** t. No threshold is
    below 0.5, and above one half an object has at most one partner (the two would share pixels
    otherwise), so the matching is unique and needs no assignment. At exactly 0.5 it isn't unique,
    hence "above": Kirillov et al. 2019 and the Data Science Bowl 2018 say the same; StarDist's
    ``matching`` counts IoU = t as a match after an optimal assignment.

    The counts add up: sum them over images, or over a resampling of images, then call
    ``object_scores``.

    Args:
        truth: labels (H, W) int; 0 is background.
        found: labels (H, W) int, of any numbering.
        valid: (H, W) bool, False where the truth is ignored (255): no object has area there, and one
            that lies there entirely isn't counted. Default: every pixel is valid.

    Returns:
        (T, 4) float64 with columns tp, fp, fn, sum of IoU; rows are ``IOU_THRESHOLDS``.
    """
    if truth.shape != found.shape:
        raise ValueError(f"truth is {truth.shape} px and found is {found.shape}: sizes must agree")
    if valid is not None:
        truth, found = truth[valid], found[valid]
    true_area, found_area = areas(truth), areas(found)
    both = (truth > 0) & (found > 0)
    pair = truth[both].astype(np.int64) * len(found_area) + found[both]
    pair, shared = np.unique(pair, return_counts=True)
    i, j = np.divmod(pair, len(found_area))
    union = true_area[i] + found_area[j] - shared
    hit = 20 * shared > IOU_TWENTIETHS[:, None] * union  # (T, pairs)
    tp = hit.sum(1)
    true_objects, found_objects = np.count_nonzero(true_area), np.count_nonzero(found_area)
    iou = (hit * (shared / union)).sum(1)
    return np.stack([tp, found_objects - tp, true_objects - tp, iou], 1).astype(np.float64)


def areas(labels: NDArray) -> NDArray[np.int64]:
    """Pixels of each label, by its number; the background counts 0."""
    area = np.bincount(labels.ravel(), minlength=1)
    area[0] = 0
    return area


def object_scores(counts: NDArray) -> dict[str, NDArray[np.float64]]:
    """Scores (...) of counts (..., T, 4) from ``match``, summed over the images that are pooled.

    Each score is in 0..1, and nan where it has no denominator: all of them where there is neither a
    true nor a found object, precision where none is found, recall where none is true, ``sq`` where
    nothing matches.

    Returns:
        ``object_precision``, ``object_recall``, ``object_f1`` at IoU above 0.5; ``ap/0.50`` ...
        ``ap/0.95`` = tp / (tp + fp + fn), and ``ap`` their mean (Data Science Bowl 2018, StarDist: no
        ranking by confidence); ``sq`` mean IoU of the matches, ``rq`` = ``object_f1``, and ``pq`` =
        sq * rq, the panoptic quality of one class (Kirillov et al., CVPR 2019, arXiv:1801.00868).
    """
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


def evidence(counts: NDArray) -> dict[str, Evidence]:
    """Rows and scores for seg.metrics.significance, of the counts (N, T, 4) of N images."""
    names = object_scores(counts[0])
    return {name: (counts, lambda sums, name=name: object_scores(sums)[name]) for name in names}
