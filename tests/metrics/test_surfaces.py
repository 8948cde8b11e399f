"""Border metrics against all pairwise distances, scikit-image and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.metrics import hausdorff_distance
from skimage.morphology import erosion

from seg.labels import IGNORE
from seg.metrics.boundary import (
    BorderMetric,
    BorderScores,
    boundary_f,
    label_border_scores,
    surface_dice,
)

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def random_maps(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A blocky prediction and truth of some size, a few of its pixels ignored."""
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 14, 2)
    blocks = rng.integers(0, classes, (2, -(-h // 3), -(-w // 3)))
    truth, found = np.kron(blocks, np.ones((3, 3), dtype=int))[:, :h, :w]
    noisy = rng.random((h, w)) < 0.1
    found = np.where(rng.random() < 0.5, found, truth)  # half of the predictions are near the truth
    found = np.where(noisy, rng.integers(0, classes, (h, w)), found)
    return found, np.where(rng.random((h, w)) < 0.15 * rng.integers(2), IGNORE, truth)


def surface_scores(found, truth, classes: int, tolerance: float, percentile: float = 95.0):
    """Counts (C, 4) and distances (C,) of one image."""
    valid = truth != IGNORE
    scores = [
        label_border_scores(found == c, truth == c, valid, tolerance, percentile)
        for c in range(classes)
    ]
    return BorderScores(*map(np.stack, zip(*scores, strict=True)))


def slow_border(classes: np.ndarray, valid: np.ndarray, c: int) -> list[tuple[int, int]]:
    """Pixels of class c with a neighbour of another, read off one by one."""
    points = []
    for y, x in np.argwhere(valid & (classes == c)):
        for y2, x2 in ((y + dy, x + dx) for dy, dx in NEIGHBOURS):
            inside = 0 <= y2 < classes.shape[0] and 0 <= x2 < classes.shape[1]
            if inside and valid[y2, x2] and classes[y2, x2] != c:
                points.append((y, x))
                break
    return points


def slow_scores(found, truth, c, tolerance, percentile):
    """The four counts and the Hausdorff distance from the distance of each pair of border pixels."""
    valid = truth != IGNORE
    ours, theirs = slow_border(found, valid, c), slow_border(truth, valid, c)
    if not ours or not theirs:
        present = [bool((valid & (m == c)).any()) for m in (found, truth)]
        lost = ours or theirs or present[0] != present[1]
        return [0, len(ours), 0, len(theirs)], math.hypot(*truth.shape) if lost else math.nan
    nearest_true = [min(math.dist(p, q) for q in theirs) for p in ours]
    nearest_found = [min(math.dist(p, q) for p in ours) for q in theirs]
    hits = [sum(d <= tolerance for d in ds) for ds in (nearest_true, nearest_found)]
    worst = max(np.percentile(ds, percentile) for ds in (nearest_true, nearest_found))
    return [hits[0], len(ours), hits[1], len(theirs)], worst


@given(
    st.integers(0, 100_000), st.sampled_from([0, 1, math.sqrt(2), 2.5]), st.sampled_from([50, 95])
)
@settings(max_examples=120, deadline=None)
def test_counts_and_distances_are_those_of_all_pairs_of_border_pixels(seed, tolerance, percentile):
    found, truth = random_maps(seed)
    scores = surface_scores(found, truth, 3, tolerance, percentile)
    for c in range(3):
        counts, distance = slow_scores(found, truth, c, tolerance, percentile)
        assert scores.counts[c].tolist() == counts
        np.testing.assert_allclose(scores.hausdorff[c], distance)


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_the_100th_percentile_is_the_hausdorff_distance_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros(
        (2, 24, 24), dtype=bool
    )  # away from the edge, where erosion means something else
    masks[:, 2:-2, 2:-2] = np.kron(rng.random((2, 5, 5)) < 0.6, np.ones((4, 4)))
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    borders = [mask & ~erosion(mask, cross) for mask in masks]
    assume(masks.any((1, 2)).all())
    ours = surface_scores(masks[0].astype(int), masks[1].astype(int), 2, 1.0, percentile=100)
    assert ours.hausdorff[1] == pytest.approx(hausdorff_distance(*borders))
    assert ours.counts[1, [1, 3]].tolist() == [border.sum() for border in borders]


def test_a_square_moved_by_two_pixels_scores_what_was_worked_by_hand():
    truth, found = np.zeros((2, 12, 12), dtype=int)
    truth[3:7, 3:7] = 1  # rows and columns 3..6: a ring of 12 border pixels around 4 inner ones
    found[3:7, 5:9] = 1  # the same, two columns to the right
    counts, hausdorff, *_ = surface_scores(found, truth, 2, tolerance=1.0)
    # predicted ring, nearest true border pixel is columns 3..6 of the true ring:
    #   rows 3, 6: columns 5, 6 at 0, column 7 at 1, column 8 at 2 -> distances 0 0 1 2, twice
    #   rows 4, 5: column 5 at 1 (to row 3 or 6, or to column 6), column 8 at 2 -> 1 2, twice
    # within 1: 3 + 3 + 1 + 1 = 8 of 12; the true ring mirrors it
    assert counts[1].tolist() == [8, 12, 8, 12]
    assert boundary_f(counts)[1] == pytest.approx(8 / 12)  # precision = recall
    assert surface_dice(counts)[1] == pytest.approx((8 + 8) / (12 + 12))
    # sorted 0 0 0 0 1 1 1 1 2 2 2 2; the 95th percentile is a 2
    assert hausdorff[1] == 2
    exact = surface_scores(found, truth, 2, tolerance=0.0).counts[1]
    assert exact.tolist() == [4, 12, 4, 12]  # the four zeros


def test_f_and_surface_dice_differ_where_precision_and_recall_do():
    counts = np.array([6, 6, 10, 30])  # precision 1, recall 1/3
    assert boundary_f(counts) == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))  # 1/2
    assert surface_dice(counts) == pytest.approx(16 / 36)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_a_perfect_prediction_scores_one_and_has_no_distance(seed):
    _, truth = random_maps(seed)
    counts, hausdorff, *_ = surface_scores(
        np.where(truth == IGNORE, 0, truth), truth, 3, tolerance=0.0
    )
    bordered = counts[:, 3] > 0
    for score in (boundary_f, surface_dice):
        np.testing.assert_array_equal(score(counts), np.where(bordered, 1, np.nan))
    np.testing.assert_array_equal(hausdorff, np.where(bordered, 0, np.nan))


def test_the_edge_of_the_image_makes_no_border():
    truth = np.zeros((5, 6), dtype=int)
    truth[:, 3:] = 1
    counts, *_ = surface_scores(truth, truth, 2, tolerance=0.0)
    assert counts.tolist() == [[5, 5, 5, 5]] * 2  # a column of each class, not a ring


def test_touching_corners_make_no_border():
    truth = np.zeros((4, 4), dtype=int)
    truth[:2, :2] = 1  # (1, 1) touches (2, 2) by a corner; its border is (0, 1), (1, 0), (1, 1)
    assert surface_scores(truth, truth, 2, tolerance=0.0).counts[:, 3].tolist() == [4, 3]


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_what_is_predicted_on_ignored_pixels_changes_nothing(seed):
    found, truth = random_maps(seed)
    truth[:, ::2] = IGNORE
    other = np.where(
        truth == IGNORE, np.random.default_rng(seed).integers(0, 9, truth.shape), found
    )
    ours, theirs = surface_scores(found, truth, 3, 1.0), surface_scores(other, truth, 3, 1.0)
    np.testing.assert_array_equal(ours.counts, theirs.counts)
    np.testing.assert_array_equal(ours.hausdorff, theirs.hausdorff)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_ignoring_a_strip_at_the_edge_equals_cropping_it(seed):
    found, truth = random_maps(seed)
    cut = max(1, truth.shape[1] // 2)
    cropped = surface_scores(found[:, :cut], truth[:, :cut], 3, 1.0)
    truth[:, cut:] = IGNORE
    ignored = surface_scores(found, truth, 3, 1.0)
    np.testing.assert_array_equal(ignored.counts, cropped.counts)
    both = (cropped.counts[:, [1, 3]] > 0).all(1)  # else it is the diagonal, of another image
    np.testing.assert_array_equal(ignored.hausdorff[both], cropped.hausdorff[both])


def test_an_ignored_region_has_no_border_of_its_own():
    truth = np.zeros((7, 7), dtype=int)
    truth[2:5, 2:5] = IGNORE
    counts, hausdorff, *_ = surface_scores(np.zeros_like(truth), truth, 2, tolerance=1.0)
    assert counts.tolist() == [[0, 0, 0, 0]] * 2
    assert np.isnan(hausdorff).all()


def test_a_class_that_one_map_lacks_scores_zero_and_is_as_far_as_the_diagonal():
    empty, thing = np.zeros((2, 6, 8), dtype=int)
    thing[2:4, 2:4] = 1
    for found, truth in ((empty, thing), (thing, empty)):
        counts, hausdorff, *_ = surface_scores(found, truth, 3, tolerance=2.0)
        assert boundary_f(counts)[:2].tolist() == surface_dice(counts)[:2].tolist() == [0, 0]
        assert hausdorff[:2].tolist() == [10, 10]  # hypot(6, 8)
        assert np.isnan([boundary_f(counts)[2], surface_dice(counts)[2], hausdorff[2]]).all()


def test_a_whole_image_of_the_wrong_class_is_far_though_it_has_no_border():
    counts, hausdorff, *_ = surface_scores(
        np.ones((3, 4), int), np.zeros((3, 4), int), 3, tolerance=1.0
    )
    assert hausdorff[:2].tolist() == [5, 5] and np.isnan(hausdorff[2])
    assert np.isnan(boundary_f(counts)).all() and np.isnan(surface_dice(counts)).all()


def test_images_are_pooled_by_adding_their_counts():
    square, empty = np.zeros((2, 10, 10), dtype=int)
    square[3:6, 3:6] = 1  # a ring of 8
    right, missed = (surface_scores(found, square, 2, 1.0).counts for found in (square, empty))
    pooled = right + missed  # of class 1: 8 of 8 predicted, 8 of 16 true pixels
    assert boundary_f(pooled)[1] == pytest.approx(2 * 8 / (8 + 16))  # p = 1, r = 1/2: 2/3
    assert surface_dice(pooled)[1] == pytest.approx((8 + 8) / (8 + 16))
    np.testing.assert_array_equal(boundary_f(np.stack([right, missed]))[:, 1], [1, 0])  # (N, C)


def test_planes_of_labels_score_as_class_indices_do():
    truth, found = torch.from_numpy(np.stack([random_maps(seed, 2) for seed in (3, 3)])[0])[:, None]
    truth[0, 0, 0] = IGNORE
    found = found.where(found != IGNORE, 0)
    index, planes = (BorderMetric(["a", "b"], 1.0, True) for _ in range(2))
    index.update(found, truth)
    masks = torch.stack([(truth == c).long() for c in (0, 1)], 1)
    ignored = (truth == IGNORE).unsqueeze(1).expand_as(masks)
    planes.update(
        torch.stack([(found == c).long() for c in (0, 1)], 1), masks.where(~ignored, IGNORE)
    )
    scores = {name: float(value) for name, value in index.compute().items()}
    assert {name: float(value) for name, value in planes.compute().items()} == scores
    assert 0 < scores["boundary_f"] <= 1 and scores["hausdorff_95/a"] >= 0


def slow_distances(found, truth, c: int, spacing: tuple[float, float]) -> tuple[float, float]:
    """95 % Hausdorff and average symmetric surface distance from all pairs of border pixels."""
    valid = truth != IGNORE
    ours, theirs = (
        [(y * spacing[0], x * spacing[1]) for y, x in slow_border(m, valid, c)]
        for m in (found, truth)
    )
    if not ours or not theirs:
        present = [bool((valid & (m == c)).any()) for m in (found, truth)]
        lost = ours or theirs or present[0] != present[1]
        height, width = truth.shape
        far = math.hypot(height * spacing[0], width * spacing[1]) if lost else math.nan
        return far, far
    sides = [
        [min(math.dist(p, q) for q in b) for p in a] for a, b in ((ours, theirs), (theirs, ours))
    ]
    return max(np.percentile(d, 95) for d in sides), sum(map(sum, sides)) / sum(map(len, sides))


@given(st.integers(0, 100_000), st.sampled_from([(1.0, 1.0), (0.5, 0.5), (3.0, 0.25), (0.1, 2.0)]))
@settings(max_examples=60, deadline=None)
def test_distances_in_um_are_those_of_all_pairs_of_border_pixels(seed, spacing):
    found, truth = random_maps(seed)
    for c in range(3):
        scores = label_border_scores(found == c, truth == c, truth != IGNORE, 1.0, spacing=spacing)
        ours = scores.hausdorff_um, scores.surface_distance_um
        np.testing.assert_allclose(ours, slow_distances(found, truth, c, spacing))
        px = scores.hausdorff, scores.surface_distance
        np.testing.assert_allclose(px, slow_distances(found, truth, c, (1.0, 1.0)))


def test_distances_of_a_moved_line_by_hand():
    truth, found = np.zeros((2, 20, 20), dtype=int)
    truth[5, :], found[8, :] = 1, 1  # all pixels of both lines are border, 3 rows apart
    by_row = BorderMetric(["a", "b"], None, True, spacing=(0.5, 0.1))
    by_row.update(torch.from_numpy(found)[None], torch.from_numpy(truth)[None])
    scores = {name: float(value) for name, value in by_row.compute().items()}
    assert scores["hausdorff_95/b"] == scores["surface_distance/b"] == 3
    assert scores["hausdorff_95_um/b"] == scores["surface_distance_um/b"] == 1.5  # 3 rows of 0.5 um
    by_column = BorderMetric(["a", "b"], None, True, spacing=(0.5, 0.1))
    by_column.update(torch.from_numpy(found.T.copy())[None], torch.from_numpy(truth.T.copy())[None])
    scores = {name: float(value) for name, value in by_column.compute().items()}
    assert scores["surface_distance_um/b"] == pytest.approx(0.3)  # 3 columns of 0.1 um


def test_without_a_spacing_there_is_no_distance_in_um():
    metric = BorderMetric(["a", "b"], None, True)
    metric.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long))
    assert {name.partition("/")[0] for name in metric.compute()} == {
        "hausdorff_95",
        "surface_distance",
    }
