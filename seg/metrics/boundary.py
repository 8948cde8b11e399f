"""Border metrics of each class: boundary F-score, surface Dice, 95 % Hausdorff and average surface distance.

Shape suffixes: H x W pixels, C classes, P border pixels. One image at a time, on the CPU.

A *border pixel* of a class is one of its pixels with a 4-neighbour of another class. The edge of the image
is no border: truth and prediction share it, so every prediction would find it. Ignored pixels (255 in the
truth) are left out: predictions there are not counted, and a class that ends at them has no border there.
A predicted border whose true border is hidden by ignored pixels therefore counts as false.

In a binary image the two classes have the two sides of one line as borders. A structure thinner than twice
the tolerance is all border, and a prediction anywhere in it is right: choose the tolerance accordingly.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from seg.labels import IGNORE
from seg.metrics.significance import BootstrapInput, mean_of_sums, score_total

DISTANCES = ("hausdorff_95", "surface_distance", "hausdorff_95_um", "surface_distance_um")


class BorderScores(NamedTuple):
    """Border counts and distances of one label in one image.

    Attributes:
        counts: (4,) int64, to be summed over images: predicted border pixels within the tolerance of the
            true border, predicted border pixels, true border pixels within the tolerance of the predicted
            border, true border pixels.
        hausdorff: float64 in px, 0..diagonal of the image, to be averaged over images; nan if neither map
            has a border and both or neither have the label.
        surface_distance: average symmetric surface distance in px, the mean over the border pixels of both
            maps of the distance to the other border; otherwise as ``hausdorff``.
        hausdorff_um: ``hausdorff`` in um; nan without a spacing.
        surface_distance_um: ``surface_distance`` in um; nan without a spacing.
    """

    counts: np.ndarray
    hausdorff: np.ndarray
    surface_distance: np.ndarray
    hausdorff_um: np.ndarray
    surface_distance_um: np.ndarray


def label_border_scores(
    pred_HW: np.ndarray,
    true_HW: np.ndarray,
    valid_HW: np.ndarray,
    tolerance: float,
    percentile: float = 95.0,
    spacing: tuple[float, float] | None = None,
) -> BorderScores:
    """Compare the borders of one label in one image; labels may overlap.

    The Hausdorff distance is the larger of the two directed percentiles with linear interpolation, as in
    MONAI. (MedPy takes one percentile over both directions, which lies between the two.) If only one map has
    a border, or only one has the label, it is the diagonal of the image ``hypot(H, W)``, larger than any
    distance in it: leaving the image out of the mean would hide a failure, infinity would hide all others.

    Args:
        pred_HW: bool, where the label is predicted.
        true_HW: bool, where the label is true.
        valid_HW: bool, False where ignored.
        tolerance: distance up to which a border pixel is right, px, 0 or more.
        percentile: percentile of the border distances, 0..100; 100 is the Hausdorff distance itself.
        spacing: height and width of a pixel in um; None: no distances in um.
    """
    # Borders inside the valid area only
    pred_HW, true_HW = pred_HW & valid_HW, true_HW & valid_HW
    pred_border_HW, true_border_HW = (
        border_pixels(pred_HW, valid_HW),
        border_pixels(true_HW, valid_HW),
    )
    # Without any border and with the same labels, both distances stay undefined (nan)
    pred_size, true_size = int(pred_border_HW.sum()), int(true_border_HW.sum())
    pred_hits, true_hits = 0, 0
    px, um = (np.nan, np.nan), (np.nan, np.nan)  # Hausdorff distance and surface distance
    # Both maps have a border: the tolerance is in px, whatever the spacing
    if pred_size and true_size:
        to_true_P, to_pred_P = border_distances(pred_border_HW, true_border_HW)
        pred_hits, true_hits = (int((d_P <= tolerance).sum()) for d_P in (to_true_P, to_pred_P))
        px = summarize_distances(to_true_P, to_pred_P, percentile)
        if spacing is not None:
            um = summarize_distances(
                *border_distances(pred_border_HW, true_border_HW, spacing), percentile
            )
    # Only one has a border or the label: the diagonal stands for a failure
    elif pred_size or true_size or pred_HW.any() != true_HW.any():
        height, width = valid_HW.shape
        px = (math.hypot(height, width),) * 2
        if spacing is not None:
            um = (math.hypot(height * spacing[0], width * spacing[1]),) * 2
    counts = np.array([pred_hits, pred_size, true_hits, true_size])
    return BorderScores(counts, *map(np.array, (*px, *um)))


def summarize_distances(
    to_true_P: np.ndarray, to_pred_P: np.ndarray, percentile: float
) -> tuple[float, float]:
    """Return the larger directed percentile, and the mean over both borders' pixels (ASSD)."""
    hausdorff = max(np.percentile(d_P, percentile) for d_P in (to_true_P, to_pred_P))
    return float(hausdorff), float(np.concatenate([to_true_P, to_pred_P]).mean())


def boundary_f(counts: np.ndarray) -> np.ndarray:
    """Return the boundary F-score of each class: the harmonic mean of border precision and border recall.

    Precision is the share of the predicted border within the tolerance of the true one, recall the share of
    the true border within the tolerance of the predicted one. Csurka et al., What is a good evaluation
    measure for semantic segmentation?, BMVC 2013. As there, and unlike BSDS, one border pixel may match
    several of the other map. Differs: they average the scores of images; counts summed over images weigh an
    image by the length of its borders.

    Shape:
        counts (..., C, 4), of one image or summed over images -> (..., C) in 0..1; 0 if only one map has a
        border, nan if neither has.
    """
    pred_hits, pred_size, true_hits, true_size = np.moveaxis(np.asarray(counts, float), -1, 0)
    # 2pr / (p + r) with p = pred_hits / pred_size and r = true_hits / true_size
    whole = pred_hits * true_size + true_hits * pred_size
    return ratio_or_nan(2 * pred_hits * true_hits, whole, pred_size + true_size)


def surface_dice(counts: np.ndarray) -> np.ndarray:
    """Return the surface Dice of each class: the share of both borders within the tolerance of the other.

    Nikolov et al., arXiv:1809.04430. Differs from DeepMind's `surface-distance`: border pixels are counted,
    where it weighs contour pieces by their length (a diagonal piece is 1 per pixel here and sqrt(2) there),
    and the edge of the image is no border.

    Shape:
        counts (..., C, 4), of one image or summed over images -> (..., C) in 0..1; nan without any border.
    """
    pred_hits, pred_size, true_hits, true_size = np.moveaxis(np.asarray(counts, float), -1, 0)
    return ratio_or_nan(pred_hits + true_hits, pred_size + true_size, pred_size + true_size)


def ratio_or_nan(part: np.ndarray, whole: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return part / whole; 0 where both are 0, nan where there are no borders."""
    return np.where(borders > 0, part / np.where(whole > 0, whole, 1), np.nan)


def border_pixels(member_HW: np.ndarray, valid_HW: np.ndarray) -> np.ndarray:
    """Return the members (H, W) that have a valid 4-neighbour outside; all members must be valid."""
    other_HW = valid_HW & ~member_HW
    touches_HW = np.zeros_like(other_HW)
    touches_HW[1:] |= other_HW[:-1]
    touches_HW[:-1] |= other_HW[1:]
    touches_HW[:, 1:] |= other_HW[:, :-1]
    touches_HW[:, :-1] |= other_HW[:, 1:]
    return member_HW & touches_HW


def border_distances(
    a_HW: np.ndarray, b_HW: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each border pixel to the nearest of the other border, for both borders.

    The unit is px, or that of ``spacing`` (height and width of a pixel).

    Shape:
        two masks (H, W) bool, neither empty -> (P,) of a's border pixels and (P',) of b's.
    """
    # crop to the box that holds both borders: the distance transforms are the cost
    either_HW = a_HW | b_HW
    rows, columns = either_HW.any(1).nonzero()[0], either_HW.any(0).nonzero()[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    a, b = a_HW[box], b_HW[box]
    to_b, to_a = (distance_transform_edt(~border, sampling=spacing) for border in (b, a))
    return to_b[a], to_a[b]


class BorderMetric(Metric):
    """Boundary F-score, surface Dice and distances of a split, measured image by image on the CPU.

    F-score and surface Dice follow from border pixels counted over the whole split; ``hausdorff_95`` and
    ``surface_distance`` are means over the images in which they are defined. Means over classes leave out undefined scores.

    Args:
        classes: names in the order of the mask's values, or of its planes.
        tolerance: px; None: neither F-score nor surface Dice.
        hausdorff: whether the Hausdorff distance and the average symmetric surface distance are computed.
        spacing: height and width of a pixel in um, for both distances in um as well; None: only in px.
    """

    full_state_update = False
    counts: list[Tensor]
    distances: list[Tensor]

    def __init__(
        self,
        classes: list[str],
        tolerance: float | None,
        hausdorff: bool,
        spacing: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.tolerance, self.hausdorff = classes, tolerance, hausdorff
        self.spacing = spacing
        self.add_state("counts", [], dist_reduce_fx="cat")
        self.add_state("distances", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        tolerance = self.tolerance or 0.0
        # Prediction, truth and valid pixels of each label, (H, W) bool
        for pred, truth in zip(prediction.cpu().numpy(), mask.cpu().numpy(), strict=True):
            if truth.ndim == 3:  # one plane for each label
                labels = [
                    (pred[c] == 1, truth[c] == 1, truth[c] != IGNORE) for c in range(len(truth))
                ]
            else:
                valid = truth != IGNORE
                labels = [(pred == c, truth == c, valid) for c in range(len(self.classes))]
            # Scores of the labels: counts (C, 4), and one list (C,) for each kind of distance
            counts, *distances = zip(
                *(
                    label_border_scores(
                        *label, tolerance, spacing=self.spacing if self.hausdorff else None
                    )
                    for label in labels
                ),
                strict=True,
            )
            self.counts.append(torch.from_numpy(np.stack(counts))[None].to(mask.device))
            distances_1DC = torch.from_numpy(np.array(distances))[None]
            self.distances.append(distances_1DC.float().to(mask.device))  # MPS has no float64

    def bootstrap_inputs(self) -> dict[str, BootstrapInput]:
        """Return for each score its rows by image and its score function: see seg.metrics.significance."""
        # The defaults of the lambdas bind the loop variables, which change later
        evidence: dict[str, BootstrapInput] = {}
        if self.tolerance is not None:
            rows = dim_zero_cat(self.counts).cpu().numpy()
            for name, score in (("boundary_f", boundary_f), ("surface_dice", surface_dice)):
                evidence[name] = rows, lambda sums, score=score: mean_over_defined(score(sums))
                for i, c in enumerate(self.classes):
                    evidence[f"{name}/{c}"] = rows, lambda sums, score=score, i=i: score(sums[:, i])
        # Images in which a distance is nan add 0 to its sum and 0 to its number
        if self.hausdorff:
            distances_BDC = dim_zero_cat(self.distances).cpu().numpy()
            names = DISTANCES if self.spacing is not None else DISTANCES[:2]
            for number, name in enumerate(names):
                distances_BC = distances_BDC[:, number]
                rows = np.stack([np.nan_to_num(distances_BC), ~np.isnan(distances_BC)], axis=-1)
                evidence[name] = rows, lambda sums: mean_over_defined(mean_of_sums(sums))
                for i, c in enumerate(self.classes):
                    evidence[f"{name}/{c}"] = rows, lambda sums, i=i: mean_of_sums(sums[:, i])
        return evidence

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name: ``boundary_f``, ``boundary_f/CLASS`` and so on."""
        return {
            name: torch.tensor(score_total(rows, score), dtype=torch.float64)
            for name, (rows, score) in self.bootstrap_inputs().items()
        }


def mean_over_defined(scores_RC: np.ndarray) -> np.ndarray:
    """Return the mean (R,) over the classes whose score is not nan; nan if all are."""
    known_RC = ~np.isnan(scores_RC)
    return np.where(known_RC, scores_RC, 0).sum(1) / known_RC.sum(1)
