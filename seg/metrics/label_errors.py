"""Labels that out-of-fold probabilities contradict: confident pixels, gathered into regions and ranked.

A pixel of class i contradicts its label if the probability of another class j reaches j's threshold, the mean
probability of j over the pixels labelled j (Northcutt, Jiang and Chuang 2021, Confident Learning, JAIR 70,
arXiv:1911.00068, Eq. 1 and 2). Differs: pixels stand for examples; j must be more probable than i; pixels that a
small move of a border would explain do not count.

Shapes: labels (H, W) uint8 of class indices, 255 where ignored; probabilities (C, H, W).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from seg.labels import IGNORE
from seg.metrics.label_offsets import (
    best_offset,
    image_offset,
    inner_window,
    majority_offset,
    mean_probability,
    move_label,
    pick_probabilities,
)
from seg.objects import label_components

REGION, SHIFTED, WHOLE = "region", "shifted mask", "whole mask"
MAX_EVIDENCE = 5.0  # nats of one pixel at most, odds of 0.993 to 0.007
MAX_DEPTH = 32  # px, deeper pixels count as of this depth
MAX_BORDER = 4  # px, of border=auto
CHANCE_RATIO = 0.5  # of the median agreement beyond chance: a whole mask below is in doubt
EXPLAINED = 0.5  # share of an image's evidence that a shift must explain
LEAST_KAPPA = 0.4  # of the median image: below, the networks know too little to contradict a label
LEAST_KNOWN = 8  # images and regions that a statement needs
TAIL = 0.75  # shape of the distribution of evidence against right labels: 1 is exponential, smaller has a heavier tail
SIMULATIONS = 2_000_000  # numbers drawn for p values


class ImageFacts(NamedTuple):
    """Statistics of one image, which are pooled over all images.

    Attributes:
        confidence: sum over the pixels labelled j of the probability of j, (C,).
        pixels: number of pixels labelled j, (C,).
        depth: median depth of the wrong pixels, px; nan if there are none.
        kappa: agreement of label and prediction beyond chance (Cohen 1960), nan where undefined.
        offset: (rows, columns) by which the label lies away from the probabilities.
        image_offset: the same from the image's grey values.
    """

    confidence: np.ndarray
    pixels: np.ndarray
    depth: float
    kappa: float
    offset: tuple[int, int]
    image_offset: tuple[int, int]


class LabelStatistics(NamedTuple):
    """Statistics of all images.

    Attributes:
        thresholds: of each class; infinite for a class that no pixel has.
        border: px; a border that is wrong by at most this much is no label error.
        kappa: median over the images.
        offset: (rows, columns) by which labels lie away from the probabilities in most images; (0, 0) if the networks
            agree too little with the labels.
        image_offset: the same from the images' grey values.
        image_votes: number of images with that ``image_offset``.
    """

    thresholds: np.ndarray
    border: int
    kappa: float
    offset: tuple[int, int]
    image_offset: tuple[int, int]
    image_votes: int

    @property
    def networks_agree(self) -> bool:
        """False if the networks agree with the labels so little that their contradictions mean nothing."""
        return not self.kappa < LEAST_KAPPA


class Doubt(NamedTuple):
    """Region of an image whose label is in doubt.

    Attributes:
        kind: region, shifted mask or whole mask.
        said: class of the label; of a mask the most frequent one of its contradicted pixels.
        meant: class that the probabilities give.
        left: first column of its window, px.
        top: first row of its window, px.
        inside: (h, w) bool, the contradicted pixels of the window.
        confidence: mean probability of the class meant, 0..1.
        evidence: against the label, nats, weighted by certainty and overlap with an object.
        shift: (rows, columns) by which a shifted mask lies away.
    """

    kind: str
    said: int
    meant: int
    left: int
    top: int
    inside: np.ndarray
    confidence: float
    evidence: float
    shift: tuple[int, int] = (0, 0)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


# ---- statistics of all images


def measure_image(image: np.ndarray, label: np.ndarray, p_CHW: np.ndarray) -> ImageFacts:
    """Return the statistics of an image (H, W, C) with its label and out-of-fold probabilities."""
    known, classes = label != IGNORE, len(p_CHW)
    own = pick_probabilities(p_CHW, np.where(known, label, 0))[known]
    pixels = np.bincount(label[known], minlength=classes)
    confidence = np.bincount(label[known], own, minlength=classes)
    predicted = p_CHW.argmax(0).astype(np.uint8)
    wrong = known & (predicted != label)
    depths = move_depths(label, predicted, predicted, wrong)[wrong]
    depth = float(np.median(depths)) if len(depths) else math.nan
    inner = inner_window(label)
    p_inner = p_CHW[:, *inner]
    return ImageFacts(
        confidence,
        pixels,
        depth,
        cohen_kappa(label, predicted, classes),
        best_offset(label, lambda moved: mean_probability(p_inner, moved)),
        image_offset(image, label),
    )


def pool_images(facts: Sequence[ImageFacts], border: int | None = None) -> LabelStatistics:
    """Return the statistics of all images.

    Args:
        facts: of each image.
        border: px by which an ordinary border may be wrong; None: from the images.
    """
    confidence, pixels = (sum(getattr(f, name) for f in facts) for name in ("confidence", "pixels"))
    thresholds = np.divide(confidence, pixels, where=pixels > 0, out=np.full(len(pixels), np.inf))
    if border is None:
        depths = [fact.depth for fact in facts if fact.depth == fact.depth]
        border = min(MAX_BORDER, math.ceil(np.median(depths)) + 1) if depths else 1
    kappas = [fact.kappa for fact in facts if fact.kappa == fact.kappa]
    kappa = float(np.median(kappas)) if kappas else math.nan
    seen, votes = majority_offset([fact.image_offset for fact in facts])
    offset, _ = majority_offset([fact.offset for fact in facts])
    offset = (0, 0) if kappa < LEAST_KAPPA else offset
    return LabelStatistics(thresholds, border, kappa, offset, seen, votes)


def cohen_kappa(label: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return the agreement of two masks beyond chance: 1 where equal, 0 where independent; nan if undefined."""
    known = label != IGNORE
    pairs = label[known].astype(np.int64) * classes + predicted[known]
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    total = counts.sum()
    chance = float((counts.sum(0) / max(total, 1)) @ (counts.sum(1) / max(total, 1)))
    return float((np.trace(counts) / total - chance) / (1 - chance)) if chance < 1 and total else math.nan  # fmt: skip


# ---- doubts of one image


def move_depths(
    label: np.ndarray, predicted: np.ndarray, meant: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """Return how far a border must have moved to explain each of some pixels, (H, W) px.

    A pixel of class i that is meant to be j may lie beside a border of the label, at most its distance to the nearest
    pixel labelled j, and beside one of the prediction, at most its distance to the nearest pixel predicted as i. Only
    if both are near does a moved border explain it: the larger one counts.
    """
    depths = np.zeros(label.shape)
    for classes, mask in ((meant, label), (label, predicted)):
        for k in np.unique(classes[where]):
            here = where & (classes == k)
            same = mask == k
            far = ndimage.distance_transform_edt(~same)[here] if same.any() else float(MAX_DEPTH)
            depths[here] = np.maximum(depths[here], far)
    return depths.clip(max=MAX_DEPTH)


class Contradictions(NamedTuple):
    """Contradicted pixels of an image.

    Attributes:
        meant: class (H, W) that the probabilities give.
        everywhere: (H, W) bool, all of them.
        core: (H, W) bool, those that no moved border explains.
        evidence: (H, W), log of the odds of the class meant against the labelled one, in nats.
    """

    meant: np.ndarray
    everywhere: np.ndarray
    core: np.ndarray
    evidence: np.ndarray

    @property
    def total(self) -> float:
        """Evidence of the core."""
        return float(self.evidence[self.core].sum())


def find_contradictions(
    label: np.ndarray, p_CHW: np.ndarray, statistics: LabelStatistics
) -> Contradictions:
    """Return the pixels of an image whose label the probabilities contradict."""
    known = label != IGNORE
    said = np.where(known, label, 0)
    able = np.where(p_CHW >= statistics.thresholds[:, None, None], p_CHW, 0)
    meant = able.argmax(0).astype(np.uint8)
    p_meant, p_said = pick_probabilities(p_CHW, meant), pick_probabilities(p_CHW, said)
    found = known & (able.max(0) > p_said) & (meant != label)
    odds = np.log(np.maximum(p_meant, 1e-9)) - np.log(np.maximum(p_said, 1e-9))
    depths = move_depths(label, p_CHW.argmax(0).astype(np.uint8), meant, found)
    core = found & (depths > statistics.border)
    return Contradictions(meant, found, core, odds.clip(0, MAX_EVIDENCE))


def find_doubts(
    label: np.ndarray,
    p_CHW: np.ndarray,
    facts: ImageFacts,
    statistics: LabelStatistics,
    min_size: int,
) -> list[Doubt]:
    """Return the doubts of an image, strongest first.

    Args:
        label: (H, W).
        p_CHW: out-of-fold probabilities.
        facts: of this image.
        statistics: of all images.
        min_size: px, smaller regions are left out.
    """
    # An offset of most labels is a finding of its own, and no doubt of each border
    label = move_label(label, statistics.offset)
    found = find_contradictions(label, p_CHW, statistics)
    if not found.core.any():
        return []
    # The mask of another image is wrong in several classes; a lone missing object only in the background
    several = len(np.unique(label[found.core])) > 1
    if several and facts.kappa < CHANCE_RATIO * statistics.kappa:
        return strong_enough([mask_doubt(WHOLE, label, p_CHW, found, found.total)], min_size)
    # An offset of this mask alone, if it explains most of the evidence
    masks = []
    extra = (facts.offset[0] - statistics.offset[0], facts.offset[1] - statistics.offset[1])
    if extra != (0, 0):
        moved = move_label(label, extra)
        rest = find_contradictions(moved, p_CHW, statistics)
        if rest.total < (1 - EXPLAINED) * found.total:
            one = mask_doubt(SHIFTED, label, p_CHW, found, found.total - rest.total)
            masks, label, found = [one._replace(shift=extra)], moved, rest
    regions = find_regions(label, p_CHW, found, statistics.border, min_size)
    return sorted(strong_enough([*masks, *regions], min_size), key=lambda one: -one.evidence)


def strong_enough(doubts: list[Doubt], min_size: int) -> list[Doubt]:
    """Return the doubts with at least 1 nat for each pixel of the smallest region."""
    return [doubt for doubt in doubts if doubt.evidence >= min_size]


def mask_doubt(
    kind: str, label: np.ndarray, p_CHW: np.ndarray, found: Contradictions, score: float
) -> Doubt:
    """Return the doubt of a whole mask."""
    inside, (rows, columns) = (
        found.everywhere,
        ndimage.find_objects(found.everywhere.astype(np.uint8))[0],
    )
    pairs = label[inside].astype(np.int64) * len(p_CHW) + found.meant[inside]
    said, meant = divmod(int(np.bincount(pairs).argmax()), len(p_CHW))
    confidence = float(pick_probabilities(p_CHW, found.meant)[inside].mean())
    window, score = inside[rows, columns], score * certainty_weight(confidence)
    return Doubt(kind, said, meant, columns.start, rows.start, window, confidence, score)


def certainty_weight(confidence: float) -> float:
    """Return the weight of a mean probability of the class meant: 0 up to 0.5, 1 at 1."""
    return max(2 * confidence - 1, 0.0)


def find_regions(
    label: np.ndarray, p_CHW: np.ndarray, found: Contradictions, border: int, min_size: int
) -> list[Doubt]:
    """Return the connected regions of each pair of classes: the core and contradicted pixels near it.

    The evidence of their pixels is weighted by ``certainty_weight`` and the square root of ``object_overlap``.
    """
    regions, classes = [], len(p_CHW)
    predicted = p_CHW.argmax(0)
    pairs = np.where(found.everywhere, label.astype(np.int64) * classes + found.meant, -1)
    for pair in np.unique(pairs[found.core]):
        said, meant = divmod(int(pair), classes)
        here = pairs == pair
        grown = ndimage.binary_dilation(found.core & here, iterations=border, mask=here)
        labels = label_components(grown)
        objects = [label_components(label == said), label_components(predicted == meant)]
        areas = [np.bincount(numbers.ravel()) for numbers in objects]
        for number, window in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[window] == number
            if inside.sum() < min_size:
                continue
            confidence = float(p_CHW[meant][window][inside].mean())
            overlap = max(
                object_overlap(inside, numbers[window], area)
                for numbers, area in zip(objects, areas, strict=True)
            )
            evidence = float(found.evidence[window][inside & found.core[window]].sum())
            evidence *= certainty_weight(confidence) * math.sqrt(overlap)
            left, top = window[1].start, window[0].start
            regions.append(Doubt(REGION, said, meant, left, top, inside, confidence, evidence))
    return regions


def object_overlap(inside: np.ndarray, numbers: np.ndarray, areas: np.ndarray) -> float:
    """Return the largest IoU of a region with an object, 0..1.

    A label error most often concerns a whole object, of the label or of the prediction; a mistake of a network a part.

    Args:
        inside: (h, w) bool, the region.
        numbers: (h, w) numbers of the objects, 0 elsewhere.
        areas: px of each number in the whole image.
    """
    shared = np.bincount(numbers[inside], minlength=len(areas))
    return float((shared / (areas + inside.sum() - shared))[1:].max(initial=0.0))


# ---- what stands out


def rank_doubts(
    doubts: Sequence[Doubt], images: int, min_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how unusual each doubt of a data set is among those of its kind and classes.

    Evidence against right labels is taken as Weibull distributed with the shape ``TAIL``, so that its power ``TAIL`` is
    exponential. The mean of this comes from the median of all regions, which few label errors reach; fewer than 8 are
    filled up with the smallest region at full confidence. The chance is read from the distribution of the standardised
    maximum, simulated with as many regions.

    Args:
        doubts: of all images.
        images: number of images; below 8 nothing is unusual.
        min_size: px of the smallest region.

    Returns:
        The number of regions of its kind and with its evidence that are expected where no label is wrong, and the chance
        that any region is as unusual there.
    """
    if not doubts:
        return np.zeros(0), np.zeros(0)
    kinds = [(doubt.kind, doubt.said, doubt.meant) for doubt in doubts]
    counts = Counter(kinds)
    common = np.log([counts[kind] for kind in kinds])
    least = (MAX_EVIDENCE * min_size * math.log(2)) ** TAIL
    evidence = np.array([doubt.evidence for doubt in doubts]) ** TAIL
    filled = max(LEAST_KNOWN - len(doubts), 0)
    known = np.concatenate([evidence, np.full(filled, least)])
    mean = max(float(np.median(known)), least) / math.log(2)
    surprise = evidence / mean - common
    reference = simulated_maxima(common, filled)
    ranks = len(reference) - np.searchsorted(reference, surprise)
    chance = (ranks + 1) / (len(reference) + 1)
    return np.exp(-surprise), chance if images >= LEAST_KNOWN else np.ones(len(doubts))


def simulated_maxima(common: np.ndarray, others: int) -> np.ndarray:
    """Return simulated maxima of exponential numbers, in units of the mean that their median gives; sorted.

    Args:
        common: what is subtracted from each number.
        others: further numbers, of which only the median knows.
    """
    count = len(common) + others
    trials = min(max(SIMULATIONS // count, 1000), 5000)
    drawn = np.random.default_rng(0).exponential(size=(trials, count)).astype(np.float32)
    means = np.median(drawn, axis=1, keepdims=True) / math.log(2)
    return np.sort((drawn[:, : len(common)] / means - common).max(1))
