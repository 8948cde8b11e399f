"""How well borders are placed: boundary F-score, surface Dice and Hausdorff distance, by class.

Legend for shapes: H x W pixels, C classes, P border pixels. One image at a time, on the CPU.

A *border pixel* of a class is a pixel of it with a 4-neighbour of another class. The edge of the image
makes no border: truth and prediction share it, so it would be found for nothing. Ignored pixels (255 in
the truth) count nowhere: what is predicted there isn't seen, and a class that ends at them has no border
there. A prediction whose true border is hidden under ignored pixels is therefore a false one.

The two classes of a binary image see the two sides of one line. A structure that is thinner than twice
the tolerance is all border, and a prediction anywhere in it is right: choose the tolerance with that in
mind.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.logits import IGNORE
from seg.metrics.significance import Evidence, mean, total


class SurfaceScores(NamedTuple):
    """Border counts and distances of one image.

    Args:
        counts: (C, 4) int64, added over images to pool them: predicted border pixels within the tolerance
            of the true border, predicted border pixels, true border pixels within the tolerance of the
            predicted border, true border pixels.
        hausdorff: (C,) float64 in px, 0..image diagonal; nan where there is nothing to measure. Not
            additive: averaged over images.
    """

    counts: np.ndarray
    hausdorff: np.ndarray


def surface_scores(
    prediction_HW: np.ndarray,
    truth_HW: np.ndarray,
    num_classes: int,
    tolerance: float,
    percentile: float = 95.0,
) -> SurfaceScores:
    """Border agreement of one image, class by class; `label_scores` says what is measured.

    Args:
        prediction_HW: class of each pixel; what it says of ignored pixels is not read.
        truth_HW: class of each pixel, 255 = ignored.
        num_classes: C.
        tolerance: px, 0 or more; a border pixel this far from the other border is still right. Csurka et
            al. take 0.75 % of the image's diagonal.
        percentile: of the border distances, 0..100; 100 is the Hausdorff distance itself.

    Raises:
        ValueError: when the maps aren't two images of one size, a value is no class, or the tolerance or
            the percentile is out of range.
    """
    prediction_HW, truth_HW = np.asarray(prediction_HW), np.asarray(truth_HW)
    check(prediction_HW, truth_HW, num_classes, tolerance, percentile)
    valid_HW = truth_HW != IGNORE
    each = [
        label_scores(prediction_HW == c, truth_HW == c, valid_HW, tolerance, percentile)
        for c in range(num_classes)
    ]
    return SurfaceScores(*(np.stack(of_each) for of_each in zip(*each, strict=True)))


def label_scores(
    found_HW: np.ndarray,
    true_HW: np.ndarray,
    valid_HW: np.ndarray,
    tolerance: float,
    percentile: float = 95.0,
) -> SurfaceScores:
    """Border agreement of one label of one image, for labels that overlap too; C is missing in the result.

    The Hausdorff distance is the larger of the two directed percentiles, interpolated linearly (as MONAI;
    MedPy takes one percentile of both directions together, which lies between the two). Where only one map
    has a border, or has the label at all, it is the image's diagonal ``hypot(H, W)``, more than any
    distance in it: left out of a mean a failure would be hidden, infinite it would hide all else. It is nan
    where neither map has a border and both or none have the label.

    Args:
        found_HW: bool, where the label is predicted.
        true_HW: bool, where it is.
        valid_HW: bool, the pixels that aren't ignored.
        tolerance: px, 0 or more.
        percentile: of the border distances, 0..100.
    """
    found_HW, true_HW = found_HW & valid_HW, true_HW & valid_HW
    found_border_HW, true_border_HW = border(found_HW, valid_HW), border(true_HW, valid_HW)
    found, true = int(found_border_HW.sum()), int(true_border_HW.sum())
    found_hits, true_hits, hausdorff = 0, 0, np.nan
    if found and true:
        to_true_P, to_found_P = border_distances(found_border_HW, true_border_HW)
        found_hits, true_hits = (int((d_P <= tolerance).sum()) for d_P in (to_true_P, to_found_P))
        hausdorff = max(np.percentile(d_P, percentile) for d_P in (to_true_P, to_found_P))
    elif found or true or found_HW.any() != true_HW.any():
        hausdorff = math.hypot(*valid_HW.shape)
    return SurfaceScores(np.array([found_hits, found, true_hits, true]), np.array(hausdorff))


def boundary_f(counts: np.ndarray) -> np.ndarray:
    """Boundary F-score of each class (..., C) in 0..1 from counts (..., C, 4), summed over images or not.

    The harmonic mean of precision (share of the predicted border within the tolerance of the true one) and
    recall (the same of the true border); 0 where only one map has a border, nan where neither has.

    Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013. Differs: they
    average the scores of images, which you get from the counts of each image; summed counts let an image
    weigh by the length of its borders. Like theirs and unlike BSDS, a border pixel may be matched by
    several of the other map.
    """
    found_hits, found, true_hits, true = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    # 2pr / (p + r) with p = found_hits / found and r = true_hits / true
    return ratio(2 * found_hits * true_hits, found_hits * true + true_hits * found, found + true)


def surface_dice(counts: np.ndarray) -> np.ndarray:
    """Surface Dice of each class (..., C) in 0..1 from counts (..., C, 4), summed over images or not.

    The share of both borders' pixels within the tolerance of the other border; nan where neither has any.

    Nikolov et al., arXiv:1809.04430. Differs: border pixels are counted, where DeepMind's
    `surface-distance` weighs contour pieces between the pixels by their length, so a diagonal piece weighs
    1 per pixel here and sqrt(2) there; and there the edge of the image is part of the surface.
    """
    found_hits, found, true_hits, true = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    return ratio(found_hits + true_hits, found + true, found + true)


def ratio(part: np.ndarray, whole: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """``part / whole``; 0 where both are 0, but nan where there are no borders."""
    return np.where(borders > 0, part / np.where(whole > 0, whole, 1), np.nan)


def border(member_HW: np.ndarray, valid_HW: np.ndarray) -> np.ndarray:
    """Members with a valid 4-neighbour that is none, (H, W) bool; members are valid pixels."""
    other_HW = valid_HW & ~member_HW
    touches_HW = np.zeros_like(other_HW)
    touches_HW[1:] |= other_HW[:-1]
    touches_HW[:-1] |= other_HW[1:]
    touches_HW[:, 1:] |= other_HW[:, :-1]
    touches_HW[:, :-1] |= other_HW[:, 1:]
    return member_HW & touches_HW


def border_distances(a_HW: np.ndarray, b_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in px from each border pixel of a to the nearest of b (P,), and from each of b to a (P',).

    Shape:
        two masks (H, W) bool, neither of them empty.
    """
    either_HW = a_HW | b_HW
    rows, columns = either_HW.any(1).nonzero()[0], either_HW.any(0).nonzero()[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # holds both borders
    a, b = a_HW[box], b_HW[box]
    return distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]


def check(
    prediction_HW: np.ndarray,
    truth_HW: np.ndarray,
    num_classes: int,
    tolerance: float,
    percentile: float,
) -> None:
    if prediction_HW.ndim != 2 or prediction_HW.shape != truth_HW.shape:
        raise ValueError(
            f"prediction is {prediction_HW.shape} and truth {truth_HW.shape}; both must be one (H, W)"
        )
    valid_HW = truth_HW != IGNORE
    for name, map_HW in (("truth", truth_HW), ("prediction", prediction_HW)):
        values = np.unique(map_HW[valid_HW])
        wrong = values[(values < 0) | (values >= num_classes)]
        if len(wrong):
            allowed = f"0..{num_classes - 1}" + (f" and {IGNORE} (ignore)" * (name == "truth"))
            raise ValueError(f"{name} holds {wrong.tolist()[:8]}; allowed are {allowed}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance} px; it must be 0 or more")
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it must be in 0..100")


class SurfaceMetric(Metric):
    """Boundary F-score, surface Dice and Hausdorff distance over a split; each image is measured on the CPU.

    F-score and surface Dice come from border pixels counted over the whole split, means are over the
    classes that have a border; ``hausdorff_95`` is the mean over the images that have the class.

    Args:
        classes: names in the order of the mask's values, or of its planes.
        tolerance: px; None: no F-score and no surface Dice.
        hausdorff: whether the distance is given.
    """

    full_state_update = False
    counts: list[Tensor]
    distances: list[Tensor]

    def __init__(self, classes: list[str], tolerance: float | None, hausdorff: bool) -> None:
        super().__init__()
        self.classes, self.tolerance, self.hausdorff = classes, tolerance, hausdorff
        self.add_state("counts", [], dist_reduce_fx="cat")
        self.add_state("distances", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        tolerance = self.tolerance or 0.0
        for found, truth in zip(prediction.cpu().numpy(), mask.cpu().numpy(), strict=True):
            if truth.ndim == 3:  # a plane a class
                labels = [
                    (found[c] == 1, truth[c] == 1, truth[c] != IGNORE) for c in range(len(truth))
                ]
            else:
                valid = truth != IGNORE
                labels = [(found == c, truth == c, valid) for c in range(len(self.classes))]
            each = [label_scores(*label, tolerance) for label in labels]
            for state, values in zip(
                (self.counts, self.distances), zip(*each, strict=True), strict=True
            ):
                stacked = torch.from_numpy(np.stack(values))[None]
                stacked = (
                    stacked if stacked.dtype == torch.int64 else stacked.float()
                )  # no float64 on MPS
                state.append(stacked.to(mask.device))

    def evidence(self) -> dict[str, Evidence]:
        """Score's name -> rows of the images, and the score of their sums: see seg.metrics.significance."""
        found: dict[str, Evidence] = {}
        if self.tolerance is not None:
            rows = dim_zero_cat(self.counts).cpu().numpy()
            for name, score in (("boundary_f", boundary_f), ("surface_dice", surface_dice)):
                found[name] = rows, lambda sums, score=score: over_present(score(sums))
                for i, c in enumerate(self.classes):
                    found[f"{name}/{c}"] = rows, lambda sums, score=score, i=i: score(sums)[:, i]
        if self.hausdorff:
            distances_BC = dim_zero_cat(self.distances).cpu().numpy()
            rows = np.stack([np.nan_to_num(distances_BC), ~np.isnan(distances_BC)], axis=-1)
            found["hausdorff_95"] = rows, lambda sums: over_present(mean(sums))
            for i, c in enumerate(self.classes):
                found[f"hausdorff_95/{c}"] = rows, lambda sums, i=i: mean(sums)[:, i]
        return found

    def compute(self) -> dict[str, Tensor]:
        scores = {}
        for name, (rows, score) in self.evidence().items():
            scores[name] = torch.tensor(total(rows, score), dtype=torch.float64)
        return scores


def over_present(scores_RC: np.ndarray) -> np.ndarray:
    """The mean (R,) over the classes that have a score; nan where none has."""
    known_RC = ~np.isnan(scores_RC)
    return np.where(known_RC, scores_RC, 0).sum(1) / known_RC.sum(1)
