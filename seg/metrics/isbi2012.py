"""Scores of the ISBI 2012 challenge: V_rand, V_info and the older rand, warping and pixel errors.

``section_scores`` scores one section at each threshold; ``best_scores`` averages the sections and selects the best
threshold, as the challenge did. V_rand and V_info after border thinning (Arganda-Carreras et al., Frontiers
in Neuroanatomy 9:142, 2015) tolerate thick borders and penalise gaps. The older errors are those of Table 1
of the U-Net paper, which the challenge later abandoned. The reference is Fiji's Trainable_Segmentation,
which holds the challenge's scripts; each function states how it differs.

Shape suffixes: H x W pixels, T thresholds. True is inside a cell, False is membrane. Cells are 4-connected,
membranes 8-connected.
"""

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from seg.labels import IGNORE
from seg.metrics.significance import BootstrapInput, mean_of_sums
from seg.objects import label_components

# 0.0, 0.1 ... summed up as in Fiji's loop: the last is 1 - 1e-16, so a probability of 1 is above it
CHALLENGE_THRESHOLDS = tuple(accumulate([0.1] * 10, initial=0.0))
MAX_OLDER_THRESHOLD = 0.95  # the older errors use ten thresholds, 0.0 ... 0.9
NO_WARPING = {"warping_error": np.nan, "split_merge_error": np.nan}
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)  # 8 neighbours
# a pixel's 8 neighbours (row, column) clockwise from the right: the even ones are its 4 neighbours
NEIGHBOUR_RING = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def section_scores(
    interior: NDArray, truth: NDArray, thresholds: tuple[float, ...] = CHALLENGE_THRESHOLDS
) -> dict[str, NDArray[np.float64]]:
    """Compute every score of one section at each threshold.

    Ignored pixels are border in truth and proposal (so an object that they cut is two objects in both), are
    not scored, and predictions there change nothing.

    Args:
        interior: probability (H, W) in 0..1 of being inside a cell.
        truth: (H, W) of 0 membrane, 1 cell, 255 ignored.
        thresholds: probabilities above which a pixel is inside.

    Returns:
        Arrays (T,) by name. ``v_rand`` and ``v_info`` with their ``_precision`` (falls with mergers) and
        ``_recall`` (falls with splits), in 0..1, higher is better; ``rand_error``, ``warping_error``,
        ``split_merge_error`` and ``pixel_error``, in 0..1, lower is better, and nan at thresholds of 0.95
        and more, which the challenge did not use. The two warping errors are nan for a section without
        valid pixels, all others for a section without cells.

    Raises:
        ValueError: if the sizes differ, a probability is not in 0..1, or a truth value is not 0, 1 or 255.
    """
    # True objects, which do not depend on the threshold.
    check_section(interior, truth)
    valid, inside = truth != IGNORE, truth == 1
    true_labels = label_components(inside)
    rows = []
    for threshold in thresholds:
        # Objects proposed at this threshold, and their overlaps with the true ones.
        proposal = (interior.astype(np.float64) > threshold) & valid
        labels = label_components(proposal)
        thinned = count_overlaps(true_labels, thin_borders(labels))
        older = threshold < MAX_OLDER_THRESHOLD
        # V_rand and V_info of 2015 at all thresholds, the older errors of 2012 at some.
        rows.append(
            f_score_entries("v_rand", *rand_scores(*thinned))
            | f_score_entries("v_info", *information_scores(*thinned))
            | {
                "rand_error": rand_error(*count_overlaps(true_labels, labels)[:3])
                if older
                else np.nan,
                "pixel_error": pixel_error(inside, proposal) if older else np.nan,
            }
            | (warping_errors(inside, proposal, valid) if older else NO_WARPING)
        )
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def best_scores(sections: list[dict[str, NDArray]]) -> dict[str, float]:
    """Average the sections at each threshold, then select the best threshold of each score.

    A section in which a score is nan is left out of the mean of that score. Precision and recall are given
    at the threshold at which their F-score is best.

    Args:
        sections: results of ``section_scores``.

    Returns:
        Score by name; nan if it is nan in all sections.
    """
    # Mean over the sections at each threshold.
    stacked = {key: np.stack([section[key] for section in sections]) for key in sections[0]}
    mean = {key: mean_without_nan(values) for key, values in stacked.items()}
    result = {}
    # Best threshold of each score; precision and recall at that of their F-score.
    for key, values in mean.items():
        f_score = mean[key.removesuffix("_precision").removesuffix("_recall")]
        if np.isnan(f_score).all():
            result[key] = np.nan
        else:
            index = np.nanargmin(f_score) if key.endswith("_error") else np.nanargmax(f_score)
            result[key] = float(values[index])
    return result


def section_bootstrap_inputs(sections: list[dict[str, NDArray]]) -> dict[str, BootstrapInput]:
    """Return for each score its rows and score function; every resample selects its own best threshold."""

    def lowest(sums: NDArray) -> NDArray:
        return np.fmin.reduce(
            mean_of_sums(sums), axis=-1
        )  # ignores thresholds that are nan in all sections

    def highest(sums: NDArray) -> NDArray:
        return np.fmax.reduce(mean_of_sums(sums), axis=-1)

    result = {}
    for name in sections[0]:
        if not name.endswith(("_precision", "_recall")):  # given at the threshold of the F-score
            values = np.stack([section[name] for section in sections])  # (N, T)
            rows = np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=-1)
            result[name] = rows, lowest if name.endswith("_error") else highest
    return result


def mean_without_nan(values: NDArray) -> NDArray[np.float64]:
    """Return the mean over the first axis without nan; nan where all values are."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


def check_section(interior: NDArray, truth: NDArray) -> None:
    """Raise ValueError if a section is no map of probabilities or its truth has other values."""
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


def f_score_entries(name: str, precision: float, recall: float, score: float) -> dict[str, float]:
    """Return an F-score with its precision and recall under their names."""
    return {name: score, f"{name}_precision": precision, f"{name}_recall": recall}


def thin_borders(labels: NDArray) -> NDArray[np.int32]:
    """Grow objects over their borders until only dams (0), about 1 px wide, separate them.

    Without any object the section is one object, as in Fiji. Differs: the watershed is scikit-image's, not
    that of Vincent and Soille, so a dam may be shifted by 1 px.

    Shape:
        labels (H, W) of 4-connected objects -> labels (H, W).
    """
    if not labels.any():
        return np.ones_like(labels)
    return watershed(labels == 0, labels, connectivity=1, watershed_line=True)


def count_overlaps(truth: NDArray, pred: NDArray) -> tuple[NDArray, NDArray, NDArray, int]:
    """Count the pixels of true cells by true object, by predicted object, and by both.

    Returns:
        ``a`` (true objects,), ``b`` (predicted objects,) and ``ab`` (pairs that occur,), int64 and above 0;
        and the number of pixels of true cells in no predicted object: singletons, each a segment of its
        own. ``sum(a) == sum(b) + singletons == sum(ab) + singletons``.
    """
    # Only pixels of true cells count, as in the foreground-restricted scores
    i, j = truth[truth > 0].astype(np.int64), pred[truth > 0]
    a, b = np.bincount(i), np.bincount(j[j > 0])
    # One number for each pair (i, j), so that a single sort counts the pairs that occur
    _, ab = np.unique((i * (len(b) + 1) + j)[j > 0], return_counts=True)
    return a[a > 0], b[b > 0], ab, int((j == 0).sum())


def rand_scores(a: NDArray, b: NDArray, ab: NDArray, singletons: int) -> tuple[float, float, float]:
    """Return the foreground-restricted Rand precision, recall and F-score in 0..1, from ``count_overlaps``.

    With thinned labels the F-score is V_rand. The sums of squares are those of Fiji's
    ``foregroundRestrictedStatsN2``, of counts instead of shares, which makes no difference.
    """
    if not a.size:
        return np.nan, np.nan, np.nan
    # A singleton has one pixel, so it adds 1 to a sum of squares
    both = square_sum(ab) + singletons
    true, pred = square_sum(a), square_sum(b) + singletons
    return both / pred, both / true, 2 * both / (true + pred)


def square_sum(counts: NDArray) -> float:
    """Return the sum of squares in float64."""
    return float((counts.astype(np.float64) ** 2).sum())


def information_scores(
    a: NDArray, b: NDArray, ab: NDArray, singletons: int
) -> tuple[float, float, float]:
    """Return mutual information / entropy of the truth, / entropy of the proposal, and their F-score.

    With thinned labels the F-score is V_info = 2 I / (H(truth) + H(proposal)). The first falls with mergers,
    the second with splits. Differs: where an entropy is 0 (a single object) its fraction is 1, and V_info is
    1 if both are 0; Fiji gives nan.
    """
    if not a.size:
        return np.nan, np.nan, np.nan
    # Entropies of truth, proposal and both together, in nats.
    n = a.sum()
    alone = singletons / n * np.log(n)  # entropy of the singletons, nats
    true, pred, both = (
        entropy_of_shares(a / n),
        entropy_of_shares(b / n) + alone,
        entropy_of_shares(ab / n) + alone,
    )
    # Mutual information I = H(truth) + H(proposal) - H(both), and its fractions.
    mutual = max(true + pred - both, 0.0)  # not negative through rounding
    return (
        entropy_share(mutual, true),
        entropy_share(mutual, pred),
        entropy_share(2 * mutual, true + pred),
    )


def entropy_of_shares(p: NDArray) -> float:
    """Return the entropy in nats of shares above 0."""
    return float(-(p * np.log(p)).sum())


def entropy_share(part: float, whole: float) -> float:
    """Return part / whole, at most 1; 1 where the whole is 0 up to the rounding of log(1)."""
    return min(part / whole, 1.0) if whole > 1e-12 else 1.0


def rand_error(a: NDArray, b: NDArray, ab: NDArray) -> float:
    """Return 1 - F-score of the foreground-restricted Rand index, from ``count_overlaps`` without thinning.

    Pairs of different pixels are counted, as in Fiji's ``foregroundRestrictedRandIndex``; border pixels of
    the proposal are in no pair. 0 if neither truth nor proposal has a pair. Differs: Fiji sums the pairs of
    all sections before the F-score; here each section has its own.
    """
    if not a.size:
        return np.nan
    together = float((a * (a - 1)).sum() + (b * (b - 1)).sum())
    return 1 - 2 * float((ab * (ab - 1)).sum()) / together if together else 0.0


def pixel_error(inside: NDArray, proposal: NDArray) -> float:
    """Return 1 - F-score of the cells' pixels; both (H, W) bool and False where ignored.

    The challenge used this output of Fiji's ``PixelError``, whose default is the share of differing pixels.
    Differs: Fiji sums the pixels of all sections first.
    """
    if not inside.any():
        return np.nan
    hits = np.count_nonzero(inside & proposal)
    return 1 - 2 * hits / (np.count_nonzero(inside) + np.count_nonzero(proposal))


def warping_errors(inside: NDArray, proposal: NDArray, valid: NDArray) -> dict[str, float]:
    """Compute topological errors: pixels that still differ after the truth is warped to the proposal.

    ``warping_error`` is their share of the valid pixels (Jain et al., CVPR 2010). ``split_merge_error``
    counts only those whose flip would join two cells or cut one: the challenge's "minimum splits and mergers
    warping error" of Table 1 in the U-Net paper. A gap in a border costs its width, a wall through a cell
    one pixel. Borders may shift, a thin one by 1 px only, because nothing but differing pixels is flipped. A
    spurious or missing cell costs in the first error and not in the second: a proposal without cells has a
    ``split_merge_error`` of 0, as in Fiji.

    Differs from Fiji's ``WarpingError``: pixels are flipped by sub-lattice, not by the distance of their
    probability from the threshold, so in noisy proposals a few pixels more or fewer may remain; and whether
    a flip cuts a cell is decided in the whole section.

    Shape:
        inside, proposal, valid: (H, W) bool; the first two are False where the last is.
    """
    if not valid.any():
        return NO_WARPING
    warped = warp_to_target(inside, proposal)
    remaining = warped != proposal
    return {
        "warping_error": np.count_nonzero(remaining) / np.count_nonzero(valid),
        "split_merge_error": splits_and_mergers(warped, remaining) / np.count_nonzero(valid),
    }


def warp_to_target(source: NDArray, target: NDArray) -> NDArray[np.bool_]:
    """Warp ``source`` to ``target`` (H, W) bool: flip differing simple points until none remains.

    A pixel is simple if its flip keeps the topology: it neither joins, cuts, creates nor removes a
    4-connected cell or an 8-connected piece of membrane. The area around the section is membrane. Pixels of
    one sub-lattice of stride 2 are not neighbours, so flipping them at once equals flipping them in turn.
    """
    # flat arrays with a border of membrane, so that every pixel has 8 neighbours
    height, width = source.shape
    image = np.pad(source, 1).ravel()
    differs = image != np.pad(target, 1).ravel()
    ring = np.array([row * (width + 2) + column for row, column in NEIGHBOUR_RING])
    lattice = (np.arange(height + 2)[:, None] % 2 * 2 + np.arange(width + 2) % 2).ravel()

    # flip simple points, then look again at the differing neighbours of those that were flipped
    todo = np.flatnonzero(differs)
    while todo.size:
        flipped = []
        for part in range(4):
            pixels = todo[lattice[todo] == part]
            pixels = pixels[count_pieces(image[pixels[:, None] + ring]) == 1]
            image[pixels] ^= True
            differs[pixels] = False
            flipped.append(pixels)
        beside_flipped = np.zeros_like(differs)
        beside_flipped[np.concatenate(flipped)[:, None] + ring] = True
        todo = np.flatnonzero(beside_flipped & differs)
    return image.reshape(height + 2, width + 2)[1:-1, 1:-1]


def count_pieces(neighbours: NDArray) -> NDArray[np.int64]:
    """Count the pieces of cell, 4-connected along the ring, that touch a pixel by an edge.

    The pixel is simple if the number is 1 (Yokoi's 4-connectivity number). It is 0 also if all are inside.

    Shape:
        neighbours (N, 8) bool in the order of ``NEIGHBOUR_RING`` -> (N,) in 0..4.
    """
    edge, corner = neighbours[:, 0::2], neighbours[:, 1::2]
    return (edge & ~(corner & np.roll(edge, -1, axis=1))).sum(1)


def splits_and_mergers(warped: NDArray, remaining: NDArray) -> int:
    """Count the remaining pixels whose flip in ``warped`` would join or cut cells; both (H, W) bool.

    As in Fiji, a pixel with two cells among its 8 neighbours is a merger (outside) or a split (inside); one
    inside with a single cell around it is a split if the cell falls apart without it. Around such a pixel
    pieces of the cell and of the border alternate. Two pieces of the cell are joined elsewhere exactly if
    the border between them is not connected, so the cell falls apart if the border has fewer components
    there than pieces.
    """
    # Pad by 1 px, so that every pixel has 8 neighbours (N, 8)
    rows, columns = np.nonzero(np.pad(remaining, 1))
    around = tuple(
        np.array(NEIGHBOUR_RING).T[:, None] + np.stack([rows, columns])[..., None]
    )  # 2 of (N, 8)
    image = np.pad(warped, 1)
    # Borders are 8-connected, cells 4-connected
    border, _ = ndimage.label(~image, EIGHT_NEIGHBOURS)
    cells_near = count_distinct(label_components(image)[around])
    falls_apart = image[rows, columns] & (
        count_pieces(image[around]) > count_distinct(border[around])
    )
    return int(((cells_near > 1) | falls_apart).sum())


def count_distinct(labels: NDArray) -> NDArray[np.int64]:
    """Return the number (N,) of different labels above 0 in each row (N, 8)."""
    ordered = np.sort(labels, axis=1)
    return (ordered[:, 0] > 0) + ((np.diff(ordered, axis=1) > 0) & (ordered[:, 1:] > 0)).sum(1)
