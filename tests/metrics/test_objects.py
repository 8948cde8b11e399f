"""Objects and their matching against hand-worked cases and an optimal assignment."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from seg.metrics.instances import (
    IOU_THRESHOLDS,
    label_components,
    match_objects,
    object_bootstrap_inputs,
    object_scores,
    segment_objects,
)


def blocks(seed: int, size: int = 24) -> np.ndarray:
    """Labels of up to 12 random rectangles, later ones on top."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    for number in range(1, rng.integers(1, 13)):
        row, column, height, width = rng.integers((0, 0, 2, 2), (size - 4, size - 4, 10, 10))
        labels[row : row + height, column : column + width] = number
    return labels


def shaken(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels moved by up to a pixel, some lost and some joined."""
    rng = np.random.default_rng(seed)
    moved = np.roll(labels, rng.integers(-1, 2, 2), (0, 1))
    renamed = rng.permutation(20)[: labels.max() + 1] + 1
    renamed[rng.random(len(renamed)) < 0.2] = 0
    return np.where(moved > 0, renamed[moved], 0)


def discs(*centres_and_radii: tuple[int, int, int]) -> np.ndarray:
    row, column = np.mgrid[:48, :64]
    return np.any(
        [(row - r) ** 2 + (column - c) ** 2 < radius**2 for r, c, radius in centres_and_radii], 0
    )


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_an_optimal_assignment(seed):
    truth = blocks(seed)
    found = shaken(truth, seed)
    true_numbers, found_numbers = np.unique(truth[truth > 0]), np.unique(found[found > 0])
    iou = np.array(
        [
            [((truth == i) & (found == j)).sum() / ((truth == i) | (found == j)).sum()
             for j in found_numbers]
            for i in true_numbers
        ]
    ).reshape(len(true_numbers), len(found_numbers))  # fmt: skip
    for row, threshold in zip(match_objects(truth, found), IOU_THRESHOLDS, strict=True):
        gain = np.where(iou > threshold + 1e-9, 1 + iou, 0)  # as many matches as can be, then IoU
        i, j = linear_sum_assignment(-gain)
        hit = gain[i, j] > 0
        tp = hit.sum()
        expected = [tp, len(found_numbers) - tp, len(true_numbers) - tp, iou[i, j][hit].sum()]
        np.testing.assert_allclose(row, expected)


def test_a_hand_worked_case():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 0, 3]])
    found = np.array([[7, 7, 7, 0, 0, 4, 4, 4, 4, 0]])
    # 1 with 7: 3 of 4 = 0.75; 2 with 4: 3 of 4 = 0.75; 3 is missed
    counts = match_objects(truth, found)
    np.testing.assert_array_equal(counts[0], [2, 0, 1, 1.5])
    np.testing.assert_array_equal(counts[4], [2, 0, 1, 1.5])  # IoU above 0.70
    np.testing.assert_array_equal(counts[5], [0, 2, 3, 0])  # above 0.75: a tie is no match
    scores = object_scores(counts)
    assert scores["object_precision"] == 1
    assert scores["object_recall"] == pytest.approx(2 / 3)
    assert scores["object_f1"] == pytest.approx(4 / 5)
    assert scores["sq"] == pytest.approx(0.75)
    assert scores["pq"] == pytest.approx(0.75 * 4 / 5)
    assert scores["pq"] == pytest.approx(scores["sq"] * scores["rq"])
    assert scores["ap/0.50"] == pytest.approx(2 / 3)
    assert scores["ap/0.75"] == 0
    assert scores["ap"] == pytest.approx(5 * (2 / 3) / 10)  # 0.50 ... 0.70 of ten thresholds


def test_ties_at_every_threshold_are_no_match():
    for k, threshold in enumerate(IOU_THRESHOLDS):
        truth, found = np.ones((1, 20), int), np.ones((1, 20), int)
        found[0, round(20 * threshold) :] = 0  # IoU is exactly the threshold
        assert match_objects(truth, found)[:, 0].sum() == k, threshold


def test_an_object_cut_in_two_halves_has_no_match():
    truth, found = np.ones((4, 8), int), np.ones((4, 8), int)
    found[:, 4:] = 2  # both IoU 0.5: an assignment from 0.5 on could take either
    np.testing.assert_array_equal(match_objects(truth, found)[0], [0, 2, 1, 0])


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_truth_against_itself_is_perfect_under_any_names(seed):
    truth = blocks(seed)
    other = np.append(0, np.random.default_rng(seed).permutation(truth.max()) + 5)[truth]
    n = len(np.unique(truth[truth > 0]))
    np.testing.assert_array_equal(match_objects(truth, other), np.tile([n, 0, 0, n], (10, 1)))
    if n:
        assert all(score == 1 for score in object_scores(match_objects(truth, other)).values())


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_swapping_truth_and_finding_swaps_false_and_missed(seed):
    truth = blocks(seed)
    found = shaken(truth, seed)
    np.testing.assert_allclose(
        match_objects(truth, found), match_objects(found, truth)[:, [0, 2, 1, 3]]
    )
    np.testing.assert_allclose(
        match_objects(truth, found), match_objects(truth[::-1].T, found[::-1].T)
    )


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_ignoring_pixels_equals_cropping_them(seed):
    truth = blocks(seed)
    found = shaken(truth, seed)
    valid = np.ones(truth.shape, bool)
    valid[:, 15:] = False
    np.testing.assert_array_equal(
        match_objects(truth, found, valid), match_objects(truth[:, :15], found[:, :15])
    )
    assert match_objects(truth, found, ~valid & valid).sum() == 0


def test_images_pool_by_summing():
    images = [(blocks(seed), shaken(blocks(seed), seed)) for seed in range(5)]
    counts = np.stack([match_objects(*image) for image in images])  # (images, T, 4)
    side_by_side = match_objects(
        np.hstack([truth + 100 * k * (truth > 0) for k, (truth, _) in enumerate(images)]),
        np.hstack([found + 100 * k * (found > 0) for k, (_, found) in enumerate(images)]),
    )
    np.testing.assert_allclose(counts.sum(0), side_by_side)
    each, pooled = object_scores(counts), object_scores(counts.sum(0))
    assert each["ap"].shape == (5,)
    assert pooled["pq"] == pytest.approx(object_scores(side_by_side)["pq"])
    assert each["pq"][3] == pytest.approx(object_scores(counts[3])["pq"])


def test_evidence_of_resampled_images_is_the_score_of_their_sum():
    counts = np.stack(
        [match_objects(blocks(seed), shaken(blocks(seed), seed)) for seed in range(4)]
    )
    draws = np.stack([counts[[0, 0, 3, 1]].sum(0), counts.sum(0)])  # (resamples, T, 4)
    found = object_bootstrap_inputs(counts)
    for name, (rows, score) in found.items():
        np.testing.assert_array_equal(rows, counts)
        np.testing.assert_array_equal(score(draws), object_scores(draws)[name])
    assert set(found) == set(object_scores(counts))
    assert len({float(score(draws)[0]) for _, score in found.values()}) > 5  # each its own


def test_scores_without_a_denominator_are_nan():
    empty, one = np.zeros((4, 4), int), np.ones((4, 4), int)
    assert all(np.isnan(score) for score in object_scores(match_objects(empty, empty)).values())
    false = object_scores(match_objects(empty, one))
    assert false["object_precision"] == false["pq"] == false["ap"] == 0
    assert np.isnan(false["object_recall"]) and np.isnan(false["sq"])
    missed = object_scores(match_objects(one, empty))
    assert missed["object_recall"] == missed["pq"] == 0
    assert np.isnan(missed["object_precision"])


def test_corners_do_not_connect_components():
    mask = np.array([[1, 0, 1], [0, 1, 1]], bool)
    np.testing.assert_array_equal(label_components(mask), [[1, 0, 2], [0, 2, 2]])


def test_touching_discs_are_split_where_they_meet():
    left, right = (24, 20, 12), (24, 40, 12)
    found = segment_objects(discs(left, right).astype(float), split_neck_px=2.0)
    assert found.max() == 2
    # the neck is half-way: centres 20 px apart
    assert set(np.unique(found[:, :30])) == {0, found[24, 20]}
    assert set(np.unique(found[:, 31:])) == {0, found[24, 40]}
    np.testing.assert_array_equal(found > 0, discs(left, right))
    scores = object_scores(
        match_objects(np.where(np.arange(64) > 30, 2, 1) * discs(left, right), found)
    )
    assert scores["ap"] == 1


def test_a_deeper_neck_is_needed_for_a_split_as_neck_grows():
    pair = discs((24, 20, 12), (24, 34, 12)).astype(float)
    # centres 14 px apart: half-width 12 in the discs, sqrt(144 - 49) = 9.7 in the neck, 2.3 px less
    assert segment_objects(pair, split_neck_px=1.5).max() == 2
    assert segment_objects(pair, split_neck_px=3).max() == 1


def test_each_component_keeps_an_object_beside_a_larger_one():
    mask = discs((24, 30, 14))
    mask[24, 46:63] = True  # 1 px wide: depth 1 is less than the neck
    mask[2:5, 2:10] = True
    found = segment_objects(mask.astype(float), split_neck_px=2.0)
    assert found.max() == 3
    np.testing.assert_array_equal(found > 0, mask)
    assert len(np.unique(found[24, 46:63])) == 1


def test_small_objects_become_background():
    mask = np.zeros((20, 20), bool)
    mask[2:6, 2:6], mask[10:15, 10:13] = True, True  # 16 and 15 px
    assert segment_objects(mask.astype(float), min_size=16).max() == 1
    assert segment_objects(mask.astype(float), min_size=16)[3, 3] == 1
    assert segment_objects(mask.astype(float), min_size=15).max() == 2
    assert segment_objects(np.zeros((8, 8))).max() == 0


def test_inside_is_above_the_threshold():
    interior = np.full((8, 8), 0.5)
    assert segment_objects(interior, threshold=0.5).max() == 0
    assert (segment_objects(interior, threshold=0.4) == 1).all()
    assert segment_objects(interior, threshold=0.4).dtype == np.int32


@pytest.mark.parametrize("wrong", [{"split_neck_px": 0}, {"min_size": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="px"):
        segment_objects(np.ones((4, 4)), **wrong)
