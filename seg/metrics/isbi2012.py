"""The scores of ISBI 2012: does a membrane map part the cells as the truth does?

``section_scores`` judges one section at each threshold; ``best`` averages the sections and takes the
best threshold, as the challenge did. Scores after border thinning (V_rand, V_info; Arganda-Carreras
et al., Frontiers in Neuroanatomy 9:142, 2015) forgive thick borders and punish gaps; the older errors
are those of the U-Net paper's Table 1, which the challenge later dismissed. Read beside Fiji's
Trainable_Segmentation, where the challenge's scripts lie; each function says how it differs.

Legend for shapes: H x W pixels, T thresholds. Inside is True: a cell, not its membrane. Cells are
4-connected, membranes 8-connected.
"""

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from seg.logits import IGNORE
from seg.metrics.instances import components
from seg.metrics.significance import Evidence, mean

# 0.0, 0.1 ... as Fiji's loop adds them up: the last is 1 - 1e-16, so a probability of 1 is above it
THRESHOLDS = tuple(accumulate([0.1] * 10, initial=0.0))
LAST_OLDER = 0.95  # the older errors had ten thresholds, 0.0 ... 0.9
NO_WARPING = {"warping_error": np.nan, "split_merge_error": np.nan}
SQUARE = np.ones((3, 3), bool)  # 8 neighbours
# a pixel's 8 neighbours (row, column) clockwise from the right: the even ones are its 4 neighbours
RING = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def section_scores(
    interior: NDArray, truth: NDArray, thresholds: tuple[float, ...] = THRESHOLDS
) -> dict[str, NDArray[np.float64]]:
    """Every score of one section at each threshold, as arrays (T,).

    Ignored pixels count nowhere: they are border in truth and proposal alike (so an object that
    they cut is two objects in both), are never scored, and what is predicted there changes nothing.

    Args:
        interior: probability (H, W) in 0..1 of being inside a cell.
        truth: (H, W) of 0 membrane, 1 cell, 255 ignored.
        thresholds: inside is above it.

    Returns:
        ``v_rand``, ``v_info`` and their ``_precision`` (falls with mergers) and ``_recall`` (falls
        with splits) in 0..1, higher is better; ``rand_error``, ``warping_error``,
        ``split_merge_error``, ``pixel_error`` in 0..1, lower is better, and nan at thresholds from
        0.95 on, where the challenge didn't take them. All but the two warping errors are nan for a
        section without a cell; those two for one without a valid pixel.

    Raises:
        ValueError: when sizes differ, a probability isn't in 0..1, or a value isn't 0, 1 or 255.
    """
    check(interior, truth)
    valid, inside = truth != IGNORE, truth == 1
    true_labels = components(inside)
    rows = []
    for threshold in thresholds:
        proposal = (interior.astype(np.float64) > threshold) & valid
        found = components(proposal)
        thinned = overlaps(true_labels, thin(found))
        older = threshold < LAST_OLDER
        rows.append(
            scored("v_rand", *rand_scores(*thinned))
            | scored("v_info", *information_scores(*thinned))
            | {
                "rand_error": rand_error(*overlaps(true_labels, found)[:3]) if older else np.nan,
                "pixel_error": pixel_error(inside, proposal) if older else np.nan,
            }
            | (warping_errors(inside, proposal, valid) if older else NO_WARPING)
        )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def best(sections: list[dict[str, NDArray]]) -> dict[str, float]:
    """Mean over the sections at each threshold, then the best threshold of each score.

    A section where a score is nan is left out of that score's mean; a score that is nan in all stays
    nan. Precision and recall are taken where their F-score is best, so that they belong together.
    """
    stacked = {key: np.stack([section[key] for section in sections]) for key in sections[0]}
    mean = {key: mean_of_defined(values) for key, values in stacked.items()}
    result = {}
    for key, values in mean.items():
        leader = mean[key.removesuffix("_precision").removesuffix("_recall")]
        if np.isnan(leader).all():
            result[key] = np.nan
        else:
            at = np.nanargmin(leader) if key.endswith("_error") else np.nanargmax(leader)
            result[key] = float(values[at])
    return result


def evidence(sections: list[dict[str, NDArray]]) -> dict[str, Evidence]:
    """Rows and scores for seg.metrics.significance: each resample takes its own best threshold."""

    def lowest(sums: NDArray) -> NDArray:
        return np.fmin.reduce(mean(sums), axis=-1)  # past a threshold that is nan in all sections

    def highest(sums: NDArray) -> NDArray:
        return np.fmax.reduce(mean(sums), axis=-1)

    found = {}
    for name in sections[0]:
        if not name.endswith(("_precision", "_recall")):  # these two belong to another's threshold
            values = np.stack([section[name] for section in sections])  # (N, T)
            rows = np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=-1)
            found[name] = rows, lowest if name.endswith("_error") else highest
    return found


def mean_of_defined(values: NDArray) -> NDArray[np.float64]:
    """Mean over the first axis of what isn't nan; nan where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


def check(interior: NDArray, truth: NDArray) -> None:
    if interior.shape != truth.shape or interior.ndim != 2:
        raise ValueError(
            f"interior is {interior.shape} and truth {truth.shape}; both must be the same (H, W)"
        )
    if not ((interior >= 0) & (interior <= 1)).all():  # nan fails too
        raise ValueError(
            "interior must be probabilities in 0..1; apply the sigmoid or softmax first"
        )
    wrong = np.setdiff1d(truth, (0, 1, IGNORE))
    if wrong.size:
        raise ValueError(
            f"truth holds {wrong[:8].tolist()}; allowed are 0 membrane, 1 cell, {IGNORE} ignored"
        )


def scored(name: str, precision: float, recall: float, score: float) -> dict[str, float]:
    return {name: score, f"{name}_precision": precision, f"{name}_recall": recall}


def thin(labels: NDArray) -> NDArray[np.int32]:
    """Objects grown over their borders until only dams (0), about 1 px wide, part them.

    Without any object the whole section is one basin, as in Fiji, where a flat image floods as one.
    Differs: scikit-image's watershed instead of Vincent and Soille's, so dams may lie 1 px aside.

    Shape:
        labels (H, W) of 4-connected objects -> labels (H, W).
    """
    if not labels.any():
        return np.ones_like(labels)
    return watershed(labels == 0, labels, connectivity=1, watershed_line=True)


def overlaps(truth: NDArray, found: NDArray) -> tuple[NDArray, NDArray, NDArray, int]:
    """Pixels of true cells, counted by true object, by found object, and by both.

    Returns:
        ``a`` (true objects,), ``b`` (found objects,), ``ab`` (pairs that occur,), each int64 and above
        0, and how many pixels of true cells lie in no found object: singletons, each a segment of its
        own. ``sum(a) == sum(b) + singletons == sum(ab) + singletons``.
    """
    i, j = truth[truth > 0].astype(np.int64), found[truth > 0]
    a, b = np.bincount(i), np.bincount(j[j > 0])
    _, ab = np.unique((i * (len(b) + 1) + j)[j > 0], return_counts=True)
    return a[a > 0], b[b > 0], ab, int((j == 0).sum())


def rand_scores(a: NDArray, b: NDArray, ab: NDArray, singletons: int) -> tuple[float, float, float]:
    """Foreground-restricted Rand precision, recall and F-score in 0..1, of ``overlaps``.

    With thinned labels the F-score is V_rand: the sums of squares of Fiji's
    ``foregroundRestrictedStatsN2``, here of counts instead of shares, which cancels.
    """
    if not a.size:
        return np.nan, np.nan, np.nan
    both = square_sum(ab) + singletons
    true, found = square_sum(a), square_sum(b) + singletons
    return both / found, both / true, 2 * both / (true + found)


def square_sum(counts: NDArray) -> float:
    return float((counts.astype(np.float64) ** 2).sum())


def information_scores(
    a: NDArray, b: NDArray, ab: NDArray, singletons: int
) -> tuple[float, float, float]:
    """Mutual information as a share of the truth's entropy, of the proposal's, and their F-score.

    With thinned labels the F-score is V_info = 2 I / (H(truth) + H(proposal)); the truth's share falls
    with mergers, the proposal's with splits. Differs: where an entropy is 0 (one object) its share is
    1, having nothing to lose, and V_info is 1 when both are; Fiji gives nan.
    """
    if not a.size:
        return np.nan, np.nan, np.nan
    n = a.sum()
    alone = singletons / n * np.log(n)  # entropy of the singletons, nats
    true, found, both = entropy(a / n), entropy(b / n) + alone, entropy(ab / n) + alone
    mutual = max(true + found - both, 0.0)  # rounding
    return share(mutual, true), share(mutual, found), share(2 * mutual, true + found)


def entropy(p: NDArray) -> float:
    """In nats, of shares above 0."""
    return float(-(p * np.log(p)).sum())


def share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 1e-12 else 1.0  # 1e-12: rounding of log(1)


def rand_error(a: NDArray, b: NDArray, ab: NDArray) -> float:
    """1 - F-score of the foreground-restricted Rand index, of ``overlaps`` without thinning.

    Counts pairs of different pixels, as Fiji's ``foregroundRestrictedRandIndex``; border pixels of the
    proposal are in no pair. 0 where neither truth nor proposal holds a pair. Differs: Fiji adds up
    the pairs of all sections before the F-score; here each section has its own.
    """
    if not a.size:
        return np.nan
    together = float((a * (a - 1)).sum() + (b * (b - 1)).sum())
    return 1 - 2 * float((ab * (ab - 1)).sum()) / together if together else 0.0


def pixel_error(inside: NDArray, proposal: NDArray) -> float:
    """1 - F-score of the cells' pixels; both (H, W) bool and False where ignored.

    The challenge's choice in Fiji's ``PixelError``, whose plain value is the share of differing pixels.
    Differs: Fiji adds up the pixels of all sections first.
    """
    if not inside.any():
        return np.nan
    hits = np.count_nonzero(inside & proposal)
    return 1 - 2 * hits / (np.count_nonzero(inside) + np.count_nonzero(proposal))


def warping_errors(inside: NDArray, proposal: NDArray, valid: NDArray) -> dict[str, float]:
    """Topological errors: pixels that still differ once the truth is warped to the proposal.

    ``warping_error`` counts them all, as a share of the valid pixels (Jain et al., CVPR 2010).
    ``split_merge_error`` counts only those whose flip would join two cells or cut one: the challenge's
    "minimum splits and mergers warping error", which is Table 1 of the U-Net paper. A gap in a border
    costs its width, a wall through a cell one pixel; borders may shift, but a thin one only by 1 px,
    since nothing but differing pixels flips. A spurious or missing cell costs in the first and not
    in the second, so a proposal without any cell has a ``split_merge_error`` of 0, in Fiji too: read
    it beside the others.

    Differs from Fiji's ``WarpingError``: pixels are flipped in sub-lattices, not by how far the
    probability is from the threshold, so where a proposal is noisy a few pixels more or less may
    remain; and whether a flip cuts a cell is decided in the whole section.

    Shape:
        inside, proposal, valid: (H, W) bool; the first two are False where the last is.
    """
    if not valid.any():
        return NO_WARPING
    warped = warp(inside, proposal)
    left = warped != proposal
    return {
        "warping_error": np.count_nonzero(left) / np.count_nonzero(valid),
        "split_merge_error": splits_and_mergers(warped, left) / np.count_nonzero(valid),
    }


def warp(source: NDArray, target: NDArray) -> NDArray[np.bool_]:
    """``source`` moved towards ``target`` (H, W) bool by flipping simple points until none is left.

    A pixel is simple when its flip changes no topology: it neither joins, cuts, makes nor removes a
    4-connected cell or an 8-connected piece of membrane. Outside the section is membrane. Pixels of
    one sub-lattice of stride 2 aren't neighbours, so they flip at once as if one after the other.
    """
    height, width = source.shape
    image = np.pad(source, 1).ravel()
    differs = image != np.pad(target, 1).ravel()
    ring = np.array([row * (width + 2) + column for row, column in RING])
    lattice = (np.arange(height + 2)[:, None] % 2 * 2 + np.arange(width + 2) % 2).ravel()
    todo = np.flatnonzero(differs)
    while todo.size:
        flipped = []
        for part in range(4):
            pixels = todo[lattice[todo] == part]
            pixels = pixels[pieces(image[pixels[:, None] + ring]) == 1]
            image[pixels] ^= True
            differs[pixels] = False
            flipped.append(pixels)
        near = np.zeros_like(differs)  # only where a neighbour has changed can the answer change
        near[np.concatenate(flipped)[:, None] + ring] = True
        todo = np.flatnonzero(near & differs)
    return image.reshape(height + 2, width + 2)[1:-1, 1:-1]


def pieces(neighbours: NDArray) -> NDArray[np.int64]:
    """How many pieces of cell, 4-connected round the ring, touch a pixel by an edge.

    The pixel is simple when it is 1 (Yokoi's 4-connectivity number). 0 also when all are inside.

    Shape:
        neighbours (N, 8) bool in the order of ``RING`` -> (N,) in 0..4.
    """
    edge, corner = neighbours[:, 0::2], neighbours[:, 1::2]
    return (edge & ~(corner & np.roll(edge, -1, axis=1))).sum(1)


def splits_and_mergers(warped: NDArray, left: NDArray) -> int:
    """How many of the pixels ``left`` would, flipped in ``warped`` (both (H, W) bool), join or cut cells.

    As Fiji sorts them: a pixel with two cells among its 8 neighbours is a merger (outside) or a split
    (inside); one inside, with a single cell around, is a split when that cell falls apart without it.
    Round such a pixel the cell's pieces and the border's alternate; two pieces stay joined elsewhere
    exactly when the border's pieces between them aren't one, so the cell falls apart when the border
    has fewer components there than pieces.
    """
    rows, columns = np.nonzero(np.pad(left, 1))
    around = tuple(np.array(RING).T[:, None] + np.stack([rows, columns])[..., None])  # 2 of (N, 8)
    image = np.pad(warped, 1)
    border, _ = ndimage.label(~image, SQUARE)
    cells_near = distinct(components(image)[around])
    falls_apart = image[rows, columns] & (pieces(image[around]) > distinct(border[around]))
    return int(((cells_near > 1) | falls_apart).sum())


def distinct(labels: NDArray) -> NDArray[np.int64]:
    """How many different labels above 0 each row (N, 8) holds."""
    ordered = np.sort(labels, axis=1)
    return (ordered[:, 0] > 0) + ((np.diff(ordered, axis=1) > 0) & (ordered[:, 1:] > 0)).sum(1)
