"""Scores of ISBI 2012 against scikit-learn, scikit-image, brute force and the labels of the challenge."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information
from sklearn.metrics import homogeneity_completeness_v_measure
from sklearn.metrics.cluster import pair_confusion_matrix

from seg.labels import IGNORE
from seg.metrics import isbi2012
from seg.metrics.instances import label_components
from seg.metrics.isbi2012 import (
    CHALLENGE_THRESHOLDS,
    best_scores,
    count_overlaps,
    information_scores,
    rand_error,
    rand_scores,
    section_bootstrap_inputs,
    section_scores,
    thin_borders,
    warp_to_target,
    warping_errors,
)

ISBI = Path(__file__).parents[3] / "shared/data/isbi2012/train-labels.tif"
SCORES = ("v_rand", "v_info")
ERRORS = ("rand_error", "warping_error", "split_merge_error", "pixel_error")
CROSS = ndimage.generate_binary_structure(2, 1)
SQUARE = np.ones((3, 3))


def at(interior, truth, threshold=0.5) -> dict[str, float]:
    """Scores of one section at one threshold."""
    scores = section_scores(np.asarray(interior, float), np.asarray(truth), (threshold,))
    return {key: value.item() for key, value in scores.items()}


def cells(seed: int, size: int = 24) -> np.ndarray:
    """Random blobs (size, size) uint8 of 1 parted by 0, with thin walls, holes and specks."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0.5, 2))
    return (np.abs(smooth) > np.quantile(np.abs(smooth), 0.3)).astype(np.uint8)


def soft(truth: np.ndarray, seed: int) -> np.ndarray:
    """A probability map (H, W) that resembles the truth."""
    noise = np.random.default_rng(seed).random(truth.shape)
    return np.clip(0.7 * ndimage.gaussian_filter(truth.astype(float), 0.7) + 0.3 * noise, 0, 1)


def labelled(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random label images (12, 12), 0 is background in the first and a dam in the second."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (12, 12)), rng.integers(0, 6, (12, 12))


def without_singletons(truth, found) -> tuple[np.ndarray, np.ndarray]:
    """The labels (N,) of the true cells' pixels, each pixel on a dam a segment of its own."""
    true, found = truth[truth > 0], found[truth > 0].copy()
    dams = found == 0
    found[dams] = 1000 + np.arange(dams.sum())
    return true, found


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_rand_scores_count_ordered_pairs_of_pixels(seed):
    truth, found = labelled(seed)
    true, proposed = without_singletons(truth, found)
    same_true, same_found = true[:, None] == true, proposed[:, None] == proposed
    both = (same_true & same_found).sum()  # a pixel pairs with itself, too
    precision, recall, score = rand_scores(*count_overlaps(truth, found))
    assert precision == pytest.approx(both / same_found.sum())
    assert recall == pytest.approx(both / same_true.sum())
    assert score == pytest.approx(2 * precision * recall / (precision + recall))


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_information_scores_are_homogeneity_completeness_and_v_measure(seed):
    truth, found = labelled(seed)
    expected = homogeneity_completeness_v_measure(*without_singletons(truth, found))
    assert information_scores(*count_overlaps(truth, found)) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_rand_error_counts_pairs_of_different_pixels(seed):
    truth, found = labelled(seed)
    (_, fp), (fn, tp) = pair_confusion_matrix(*without_singletons(truth, found))
    error = rand_error(*count_overlaps(truth, found)[:3])
    assert error == pytest.approx(1 - 2 * tp / (2 * tp + fp + fn))


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_without_dams_the_scores_are_those_of_scikit_image(seed):
    truth, found = labelled(seed)
    found += 1
    a, b, ab, singletons = count_overlaps(truth, found)
    assert singletons == 0
    error = adapted_rand_error(truth, found, ignore_labels=(0,))[0]
    assert rand_error(a, b, ab) == pytest.approx(error)
    splits, mergers = variation_of_information(truth, found, ignore_labels=(0,))  # bits
    share, _, _ = information_scores(a, b, ab, 0)
    assert share == pytest.approx(1 - mergers * np.log(2) / isbi2012.entropy_of_shares(a / a.sum()))
    assert splits >= 0


def test_a_merger_halves_the_precision():
    truth = [[1, 1, 1, 0, 1, 1, 1]]
    scores = at(np.ones((1, 7)), truth)
    # true objects of 3 and 3, one found: both 9 + 9, true 9 + 9, found 6 * 6
    assert scores["v_rand_precision"] == pytest.approx(18 / 36)
    assert scores["v_rand_recall"] == 1
    assert scores["v_rand"] == pytest.approx(2 / 3)
    assert scores["v_info"] == scores["v_info_precision"] == 0  # one segment tells nothing
    # pairs: together in both 3 + 3, in truth 3 + 3, in the proposal 15
    assert scores["rand_error"] == pytest.approx(1 - 2 * 6 / (6 + 15))
    assert scores["pixel_error"] == pytest.approx(1 - 2 * 6 / (6 + 7))
    assert scores["warping_error"] == scores["split_merge_error"] == pytest.approx(1 / 7)


def test_a_split_lowers_the_recall():
    truth = [[1, 1, 1, 1, 1]]
    scores = at([[1, 1, 0, 1, 1]], truth)
    # found 2, 2 and the dam's pixel alone: both 4 + 4 + 1, true 25, found 4 + 4 + 1
    assert scores["v_rand_precision"] == 1
    assert scores["v_rand_recall"] == pytest.approx(9 / 25)
    assert scores["v_rand"] == pytest.approx(18 / 34)
    assert scores["v_info"] == 0
    assert scores["rand_error"] == pytest.approx(1 - 2 * 2 / (10 + 2))
    assert scores["warping_error"] == scores["split_merge_error"] == pytest.approx(1 / 5)


def test_thinning_leaves_dams_between_objects_only():
    found = np.zeros((5, 9), int)
    found[:, 0], found[:, 8] = 1, 2  # 7 px of border between them
    thinned = thin_borders(found)
    np.testing.assert_array_equal(thinned[0], [1, 1, 1, 1, 0, 2, 2, 2, 2])
    np.testing.assert_array_equal(thinned, np.tile(thinned[0], (5, 1)))
    assert (thin_borders(np.zeros((4, 4), int)) == 1).all()  # as Fiji floods a flat image


@given(st.integers(0, 100_000))
@settings(max_examples=20, deadline=None)
def test_thinned_objects_grow_and_never_touch_by_an_edge(seed):
    found = label_components(cells(seed))
    thinned = thin_borders(found)
    np.testing.assert_array_equal(thinned[found > 0], found[found > 0])
    for one, other in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
        assert ((one == other) | (one == 0) | (other == 0)).all()


def test_a_thick_border_costs_nothing_after_thinning():
    truth = np.ones((9, 21), np.uint8)
    truth[:, 10] = 0
    thick = truth.copy()
    thick[:, 6:15] = 0
    scores = at(thick, truth)
    assert scores["v_rand"] == scores["v_info"] == 1
    assert scores["warping_error"] == 0
    assert scores["rand_error"] > 0.1 and scores["pixel_error"] > 0.1


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_truth_against_itself_is_perfect(seed):
    truth = cells(seed)
    result = best_scores([section_scores(truth.astype(np.float32), truth)])
    assert all(result[key] == 0 for key in ERRORS)
    assert result["v_info"] == pytest.approx(1)
    assert result["v_rand"] == 1


@given(st.integers(0, 100_000))
@settings(max_examples=20, deadline=None)
def test_what_is_predicted_where_ignored_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    truth = cells(seed)
    interior = soft(truth, seed)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    other = np.where(truth == IGNORE, rng.random(truth.shape), interior)
    assert at(interior, truth) == at(other, truth)


def two_cells() -> np.ndarray:
    truth = np.zeros((11, 15), np.uint8)
    truth[1:-1, 1:-1] = 1
    truth[:, 7] = 0
    return truth


def test_a_shifted_straight_border_costs_no_warping():
    shifted = two_cells()
    shifted[1:-1, 7], shifted[:, 6] = 1, 0
    scores = at(shifted, two_cells())
    assert scores["warping_error"] == scores["split_merge_error"] == 0
    # 9 px inside lost and 9 won, of 9 * 12
    assert scores["pixel_error"] == pytest.approx(1 - 2 * 99 / (2 * 108))


def test_a_thin_border_cannot_jump():
    jumped = two_cells()
    jumped[1:-1, 7], jumped[:, 5] = 1, 0
    # only pixels that differ may flip: the 9 px of column 7 stay, as does the last of column 5
    assert at(jumped, two_cells())["warping_error"] == pytest.approx(10 / 165)


def test_a_gap_in_a_border_is_a_merger_of_its_width():
    for width in (1, 3, 5):
        broken = two_cells()
        broken[2 : 2 + width, 7] = 1
        scores = at(broken, two_cells())
        assert scores["warping_error"] == scores["split_merge_error"] == pytest.approx(width / 165)


def test_a_wall_through_a_cell_is_a_split_of_one_pixel():
    walled = two_cells()
    walled[:, 4] = 0
    scores = at(walled, two_cells())
    # the border outside grows into the cell from both ends, until a last pixel would cut it
    assert scores["warping_error"] == scores["split_merge_error"] == pytest.approx(1 / 165)


def test_a_spurious_a_missing_and_a_hollow_cell_cost_only_in_the_whole_warping_error():
    truth = np.zeros((11, 15), np.uint8)
    truth[2:8, 2:8] = 1
    spurious, missing, hollow = truth.copy(), 0 * truth, truth.copy()
    spurious[3:6, 11:14] = 1
    hollow[4:6, 4:6] = 0
    # 9 px that no simple flip can grow; a cell shrinks to its last pixel; a hole cannot open
    for proposal, pixels in ((spurious, 9), (missing, 1), (hollow, 4)):
        scores = at(proposal, truth)
        assert scores["warping_error"] == pytest.approx(pixels / 165)
        assert scores["split_merge_error"] == 0


def test_a_pixel_is_simple_exactly_when_its_flip_changes_no_topology():
    for code in range(256):
        ring = np.array([code >> k & 1 for k in range(8)], bool)
        image = np.zeros((5, 5), bool)
        for inside, (row, column) in zip(ring, isbi2012.NEIGHBOUR_RING, strict=True):
            image[2 + row, 2 + column] = inside
        kept = [topology(image)]
        image[2, 2] = True
        kept.append(topology(image))
        local = kept[0] == kept[1] and touches(ring)
        assert (isbi2012.count_pieces(ring[None])[0] == 1) == local, ring


def topology(image: np.ndarray) -> tuple[int, int]:
    """How many cells and how many pieces of membrane there are in (H, W) bool, outside included."""
    padded = np.pad(image, 1)
    return ndimage.label(padded, CROSS)[1], ndimage.label(~padded, SQUARE)[1]


def touches(ring: np.ndarray) -> bool:
    """Whether exactly one cell touches the centre by an edge, when only the ring is known."""
    image = np.zeros((3, 3), bool)
    for inside, (row, column) in zip(ring, isbi2012.NEIGHBOUR_RING, strict=True):
        image[1 + row, 1 + column] = inside
    labels, _ = ndimage.label(image, CROSS)
    by_edge = {labels[0, 1], labels[1, 0], labels[1, 2], labels[2, 1]} - {0}
    return len(by_edge) == 1


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_warping_keeps_the_topology_and_stops_when_nothing_can_move(seed):
    truth, target = cells(seed) == 1, cells(seed + 1) == 1
    target = np.where(np.random.default_rng(seed).random(truth.shape) < 0.5, truth, target)
    warped = warp_to_target(truth, target)
    assert topology(warped) == topology(truth)
    assert ((warped == truth) | (warped == target)).all()
    for row, column in np.argwhere(warped != target):
        flipped = np.pad(warped, 2)
        patch = flipped[row + 1 : row + 4, column + 1 : column + 4]
        ring = np.array([patch[1 + r, 1 + c] for r, c in isbi2012.NEIGHBOUR_RING])
        assert not touches(ring) or ring.all()
    np.testing.assert_array_equal(warp_to_target(truth, truth), truth)


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_splits_and_mergers_are_found_by_flipping_each_pixel(seed):
    truth = cells(seed) == 1
    target = soft(truth, seed) > 0.5
    warped = warp_to_target(truth, target)
    expected = 0
    labels = np.pad(label_components(warped), 1)
    for row, column in np.argwhere(warped != target) + 1:
        flipped = np.pad(warped, 1)
        flipped[row, column] ^= True
        before, after = (
            set(np.delete(image[row - 1 : row + 2, column - 1 : column + 2].ravel(), 4)) - {0}
            for image in (labels, label_components(flipped))
        )
        inside = labels[row, column] > 0
        expected += len(before) > 1 or (inside and len(after) > 1)
    error = warping_errors(truth, target, np.ones_like(truth))["split_merge_error"]
    assert error == pytest.approx(expected / truth.size)


def test_thresholds_add_up_as_in_fiji():
    assert len(CHALLENGE_THRESHOLDS) == 11
    np.testing.assert_allclose(CHALLENGE_THRESHOLDS, np.linspace(0, 1, 11))
    truth = two_cells()
    scores = section_scores(truth.astype(np.float32), truth)
    np.testing.assert_array_equal(scores["v_rand"], np.ones(11))  # 1 is above the last threshold
    tenth = section_scores(np.where(truth, np.float32(0.1), np.float32(0)), truth)
    assert tenth["v_rand"][1] == 1  # float32 0.1 is above float64 0.1


def test_each_score_takes_its_own_best_threshold():
    one = {
        "v_rand": [0.2, 0.8, 0.5],
        "v_rand_recall": [0.9, 0.4, 0.1],
        "pixel_error": [0.3, 0.2, 0.1],
    }
    two = {
        "v_rand": [0.4, 0.4, 0.9],
        "v_rand_recall": [0.9, 0.6, 0.3],
        "pixel_error": [0.1, 0.3, 0.5],
    }
    sections = [{key: np.array(values) for key, values in part.items()} for part in (one, two)]
    # means: v_rand 0.3, 0.6, 0.7; its recall there 0.2; pixel_error 0.2, 0.25, 0.3
    assert best_scores(sections) == pytest.approx(
        {"v_rand": 0.7, "v_rand_recall": 0.2, "pixel_error": 0.2}
    )


def test_a_section_without_a_cell_is_left_out_of_the_mean():
    truth = two_cells()
    interior = soft(truth, 0)
    full, empty = section_scores(interior, truth), section_scores(interior, 0 * truth)
    assert all(np.isnan(empty[key]).all() for key in (*SCORES, "rand_error", "pixel_error"))
    assert empty["warping_error"][5] > 0  # cells where there are none
    both, alone = best_scores([full, empty]), best_scores([full])
    assert all(both[key] == alone[key] for key in (*SCORES, "rand_error", "pixel_error"))
    ignored = section_scores(interior, np.full_like(truth, IGNORE))
    assert all(np.isnan(values).all() for values in ignored.values())
    assert all(np.isnan(value) for value in best_scores([ignored]).values())


def test_evidence_over_all_sections_is_the_best_score():
    truth = two_cells()
    sections = [section_scores(soft(truth, k), truth) for k in range(3)]
    sections.append(section_scores(soft(truth, 3), 0 * truth))
    expected, found = best_scores(sections), section_bootstrap_inputs(sections)
    assert set(found) == {*SCORES, *ERRORS}
    for name, (rows, score) in found.items():
        assert len(rows) == 4
        with np.errstate(invalid="ignore"):  # as seg.metrics.significance calls a score
            whole, one = score(np.stack([rows.sum(0), 2 * rows[0]]))
        assert whole == pytest.approx(expected[name])
        # a resample of one section, twice, has that section's own best threshold
        assert one == pytest.approx(best_scores(sections[:1])[name])


def test_a_lone_cell_and_cells_of_one_pixel_can_be_perfect():
    lone = at(np.ones((4, 4)), np.ones((4, 4), int))  # no entropy to share
    assert (
        lone["v_rand"] == lone["v_info"] == lone["v_info_precision"] == lone["v_info_recall"] == 1
    )
    specks = np.eye(4, dtype=int)  # no pair of pixels in a cell
    assert at(specks, specks)["rand_error"] == 0


def test_older_errors_have_ten_thresholds():
    truth = two_cells()
    scores = section_scores(soft(truth, 0), truth)
    for key in ERRORS:
        np.testing.assert_array_equal(np.isnan(scores[key]), np.arange(11) == 10)
    assert not np.isnan(scores["v_rand"]).any()


@pytest.mark.parametrize(
    ("interior", "truth", "message"),
    [
        (np.ones((4, 5)), np.ones((4, 4), int), "same"),
        (np.full((4, 4), 1.5), np.ones((4, 4), int), "0..1"),
        (np.full((4, 4), np.nan), np.ones((4, 4), int), "0..1"),
        (np.ones((4, 4)), np.full((4, 4), 7), r"\[7\]"),
    ],
)
def test_wrong_input_is_refused(interior, truth, message):
    with pytest.raises(ValueError, match=message):
        section_scores(interior, truth)


def real_labels() -> np.ndarray:
    """The challenge's 30 training labels (30, 512, 512) bool, True inside."""
    if not ISBI.exists():
        pytest.skip(f"needs the labels of ISBI 2012 in {ISBI}")
    return tifffile.imread(ISBI) > 0


def proposals(inside: np.ndarray, section: int) -> dict[str, np.ndarray]:
    """What the reference numbers were computed for; dilated and eroded by the 4-neighbour cross."""
    membrane = ~inside[section]
    return {
        "all cell": np.ones_like(membrane),
        "neighbour": inside[section + 1 if section < 29 else 28],
        "dilated": ~ndimage.binary_dilation(membrane, CROSS),
        "eroded": ~ndimage.binary_erosion(membrane, CROSS, border_value=1),
        "truth": inside[section],
    }


# V_rand and V_info, mean of the 30 sections: computed apart, before this code was written
REFERENCE = {
    "all cell": (0.0780, 0.0),
    "neighbour": (0.7942, 0.8488),
    "dilated": (0.9992, 0.9987),
    "eroded": (0.9703, 0.9919),
    "truth": (1.0, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_the_30_sections_reproduce_the_reference_numbers(name):
    inside = real_labels()
    sections = [
        section_scores(proposals(inside, k)[name].astype(float), inside[k].astype(np.uint8), (0.5,))
        for k in range(30)
    ]
    scores = best_scores(sections)
    assert (scores["v_rand"], scores["v_info"]) == pytest.approx(REFERENCE[name], abs=6e-5)


def test_real_sections_forgive_thick_borders_and_punish_gaps():
    inside = real_labels()
    scores = {
        name: at(proposal, inside[0].astype(np.uint8))
        for name, proposal in proposals(inside, 0).items()
    }
    assert scores["truth"]["v_rand"] == scores["truth"]["v_info"] == 1
    assert scores["dilated"]["v_rand"] > 0.998 and scores["dilated"]["v_info"] > 0.997
    assert 0.65 < scores["neighbour"]["v_rand"] < 0.95
    assert scores["all cell"]["v_info"] == 0 and scores["all cell"]["v_rand"] < 0.15
    assert scores["eroded"]["v_rand_recall"] == 1  # gaps only merge
    assert scores["eroded"]["v_rand_precision"] < 1
    warping = [scores[name]["warping_error"] for name in ("truth", "eroded", "neighbour")]
    assert warping[0] == 0 < warping[1] < 1e-3 < warping[2]
