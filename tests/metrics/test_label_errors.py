"""Planted label errors against simulated out-of-fold probabilities, and parts against hand-worked cases."""

import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import cohen_kappa_score

from seg.labels import IGNORE
from seg.metrics.label_errors import (
    SHIFTED,
    TAIL,
    WHOLE,
    Doubt,
    cohen_kappa,
    find_contradictions,
    find_doubts,
    measure_image,
    move_depths,
    object_overlap,
    pool_images,
    rank_doubts,
)
from seg.metrics.label_offsets import best_offset, explained_variance, move_label

SIZE, IMAGES = 96, 16


def draw_truth(rng: np.random.Generator) -> np.ndarray:
    """Return a mask of three classes: squares and discs on background."""
    mask, (rows, columns) = np.zeros((SIZE, SIZE), np.uint8), np.mgrid[:SIZE, :SIZE]
    for number, (row, column) in enumerate([(22, 22), (22, 70), (70, 22), (70, 70)]):
        row, column = (int(rng.integers(v - 6, v + 7)) for v in (row, column))
        far = np.abs(rows - row), np.abs(columns - column)
        radius = int(rng.integers(6, 10))
        inside = np.hypot(*far) < radius if number % 2 else np.maximum(*far) < radius
        mask[inside] = 1 + number % 2
    return mask


def predict(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return probabilities (3, H, W) of a good network: soft borders, displaced by a pixel here and there."""
    one_hot = np.stack([ndimage.gaussian_filter((truth == k).astype(float), 1) for k in range(3)])
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=truth.shape), 2) for _ in range(3)])
    odds = np.exp(9 * one_hot + 9 * noise)
    return (odds / odds.sum(0)).astype(np.float32)


@pytest.fixture
def made() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Images, masks and probabilities."""
    rng = np.random.default_rng(0)
    masks = [draw_truth(rng) for _ in range(IMAGES)]
    probabilities = [predict(mask, rng) for mask in masks]
    return [50.0 * mask[..., None] for mask in masks], masks, probabilities


def doubts_of(images, masks, probabilities, level=0.05, min_size=16) -> list[tuple[int, Doubt]]:
    """Return (image, doubt) of all doubts whose chance is at most a level, most unusual first."""
    facts = [measure_image(*one) for one in zip(images, masks, probabilities, strict=True)]
    pooled = pool_images(facts)
    found = [
        (i, doubt)
        for i in range(len(masks))
        for doubt in find_doubts(masks[i], probabilities[i], facts[i], pooled, min_size)
    ]
    expected, chance = rank_doubts([d for _, d in found], len(masks), min_size)
    return [found[n] for n in np.argsort(expected, kind="stable") if chance[n] <= level]


def test_thresholds_are_the_mean_confidence_of_each_class_without_ignored_pixels():
    label = np.array([[0, 0, 1, IGNORE]], np.uint8)
    p = np.array([[[0.9, 0.7, 0.4, 0.0]], [[0.1, 0.3, 0.6, 1.0]]], np.float32)
    pooled = pool_images([measure_image(np.zeros((1, 4, 1)), label, p)] * 2)
    np.testing.assert_allclose(pooled.thresholds, [0.8, 0.6], rtol=1e-6)


def test_a_pixel_contradicts_its_label_where_another_class_reaches_its_threshold():
    label = np.zeros((1, 12), np.uint8)
    p_1 = np.array([0.7] * 3 + [0.9] * 3 + [0.2] * 6, np.float32)[None]
    facts = measure_image(np.zeros((1, 12, 1)), label, np.stack([1 - p_1, p_1]))
    pooled = pool_images([facts])._replace(thresholds=np.array([0.5, 0.8]), border=1)
    found = find_contradictions(label, np.stack([1 - p_1, p_1]), pooled)
    assert found.everywhere.ravel().tolist() == [False] * 3 + [True] * 3 + [False] * 6
    np.testing.assert_allclose(found.evidence[found.everywhere], math.log(9), rtol=1e-5)


def test_the_depth_is_how_far_a_border_must_move():
    # label: class 1 from column 10 on; predicted: from column 7 on, and a spot in column 2
    label, predicted = np.zeros((1, 20), np.uint8), np.zeros((1, 20), np.uint8)
    label[:, 10:], predicted[:, 7:], predicted[:, 2] = 1, 1, 1
    wrong = label != predicted
    depths = move_depths(label, predicted, predicted, wrong)
    assert depths[0, [7, 8, 9]].tolist() == [3, 2, 3]  # from column 6 to it, or from column 10
    assert depths[0, 2] == 8 and not depths[~wrong].any()


def test_the_overlap_is_the_iou_with_the_best_object_of_the_whole_image():
    inside = np.array([[1, 1, 1], [1, 0, 0]], bool)
    numbers = np.array([[0, 1, 1], [2, 2, 0]])
    # object 1 has 2 of the region's 4 px and 4 px outside the window; object 2 has 1 and 1 outside the region
    assert object_overlap(inside, numbers, np.array([90, 6, 2])) == pytest.approx(2 / (6 + 4 - 2))
    assert object_overlap(inside, np.zeros((2, 3), int), np.array([96])) == 0


@pytest.mark.parametrize(("confidence", "listed"), [(0.45, False), (0.9, True)])
def test_a_region_counts_as_far_as_the_networks_are_sure(confidence, listed):
    label = np.zeros((20, 20), np.uint8)
    p_CHW = np.zeros((3, 20, 20), np.float32)
    p_CHW[0] = 1
    p_CHW[:, 6:12, 6:12] = np.array([0.05, confidence, 0.95 - confidence])[:, None, None]
    facts = measure_image(label[..., None], label, p_CHW)
    pooled = pool_images([facts], border=1)._replace(thresholds=np.array([0.9, 0.4, 0.9]))
    regions = find_doubts(label, p_CHW, facts, pooled, 16)
    assert len(regions) == listed
    if listed:  # a whole object of the prediction, so that only certainty weighs its 36 px
        pixel = math.log(confidence / 0.05)
        assert regions[0].evidence == pytest.approx(36 * pixel * (2 * confidence - 1), rel=1e-4)


def test_kappa_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    label, predicted = rng.integers(0, 4, (2, 30, 30)).astype(np.uint8)
    predicted[:15] = label[:15]
    assert cohen_kappa(label, predicted, 4) == pytest.approx(
        cohen_kappa_score(label.ravel(), predicted.ravel())
    )
    assert math.isnan(cohen_kappa(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8), 2))


@pytest.mark.parametrize("offset", [(0, 0), (-1, 0), (3, -2), (6, 6)])
def test_an_offset_of_a_mask_is_found_and_undone(offset):
    truth = draw_truth(np.random.default_rng(3))
    label = np.roll(truth, offset, (0, 1))
    assert best_offset(label, lambda moved: explained_variance(truth[6:-6, 6:-6], moved)) == offset
    moved = move_label(label, offset)
    known = moved != IGNORE
    np.testing.assert_array_equal(moved[known], truth[known])
    assert (~known).sum() == truth.size - (SIZE - abs(offset[0])) * (SIZE - abs(offset[1]))


def test_nothing_stands_out_where_no_label_is_wrong(made):
    assert doubts_of(*made) == []


def plant(masks: list[np.ndarray], i: int, kind: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the mask of an image with an error, and the pairs of classes said and meant of its pixels."""
    mask = masks[i].copy()
    labels, _ = ndimage.label(mask)
    one = labels == labels[labels > 0][0]
    k = int(mask[one][0])
    if kind == "missing":
        mask[one] = 0
        return mask, [(0, k)]
    if kind == "swapped":
        mask[one] = 3 - k
        return mask, [(3 - k, k)]
    if kind == "invented":
        mask[42:53, 42:53] = 1  # 121 px
        return mask, [(1, 0)]
    if kind == "border":
        mask[one], moved = 0, np.roll(one, (7, 7), (0, 1))
        mask[moved] = k
        return mask, [(0, k), (k, 0)]
    if kind == "shifted":
        return np.roll(mask, (4, 0), (0, 1)), []
    return masks[i - 1], []


@pytest.mark.parametrize("kind", ["missing", "swapped", "invented", "border", "shifted", "whole"])
def test_a_planted_error_comes_first_and_nothing_else_stands_out(made, kind):
    images, masks, probabilities = made
    wrong, pairs = plant(masks, 5, kind)
    given = [*masks[:5], wrong, *masks[6:]]
    first, doubt = doubts_of(images, given, probabilities, level=1)[0]
    found = doubts_of(images, given, probabilities)
    assert first == 5 and {i for i, _ in found} <= {5}
    assert found or kind in ("missing", "border")  # networks miss objects of that size, too
    if pairs:
        assert {(one.said, one.meant) for _, one in [*found, (5, doubt)]} <= set(pairs)
        differing = (wrong != masks[5])[doubt.window] & doubt.inside
        assert differing.sum() >= 0.8 * doubt.inside.sum()
    else:
        assert doubt.kind == {"shifted": SHIFTED, "whole": WHOLE}[kind]
        assert doubt.shift == ((4, 0) if kind == "shifted" else (0, 0))


def test_a_small_error_comes_first_in_the_list(made):
    images, masks, probabilities = made
    wrong = masks[5].copy()
    wrong[46:51, 46:51] = 1  # 25 px
    found = doubts_of(images, [*masks[:5], wrong, *masks[6:]], probabilities, level=1)
    assert found[0][0] == 5 and found[0][1].inside.sum() == pytest.approx(25, abs=3)


def test_a_lone_missing_object_is_a_region_and_not_a_whole_mask(made):
    images, masks, probabilities = made
    only, label = np.zeros_like(masks[5]), np.zeros_like(masks[5])
    only[30:50, 30:50] = 1
    p = predict(only, np.random.default_rng(9))
    given = [*masks[:5], label, *masks[6:]]
    found = doubts_of([*images[:5], only[..., None], *images[6:]], given, [*probabilities[:5], p, *probabilities[6:]])  # fmt: skip
    assert [(i, d.kind, d.said, d.meant) for i, d in found] == [(5, "region", 0, 1)]


def test_ignored_pixels_are_never_in_doubt(made):
    images, masks, probabilities = made
    wrong, _ = plant(masks, 5, "missing")
    wrong = np.where(wrong != masks[5], IGNORE, wrong).astype(np.uint8)
    assert doubts_of(images, [*masks[:5], wrong, *masks[6:]], probabilities) == []


def test_an_offset_of_all_masks_is_one_finding_and_no_doubts(made):
    images, masks, probabilities = made
    moved = [np.roll(mask, -3, 0) for mask in masks]
    facts = [measure_image(*one) for one in zip(images, moved, probabilities, strict=True)]
    pooled = pool_images(facts)
    assert pooled.offset == (-3, 0) == pooled.image_offset and pooled.image_votes == IMAGES
    assert doubts_of(images, moved, probabilities) == []


def test_the_chance_holds_where_no_label_is_wrong():
    """At most about 5 % of 200 sets of Weibull distributed evidence have one that stands out at 5 %."""
    rng, alarms = np.random.default_rng(0), 0
    window = np.ones((4, 4), bool)
    for _ in range(200):
        kinds = rng.integers(0, 3, 30)
        doubts = [
            Doubt("region", int(k), 3, 0, 0, window, 0.9, float(e))
            for k, e in zip(kinds, 500 * rng.weibull(TAIL, 30), strict=True)
        ]
        _, chance = rank_doubts(doubts, 30, 16)
        alarms += chance.min() <= 0.05
    assert 2 <= alarms <= 20  # 10 are expected; sd 3.1


def test_networks_that_know_nothing_give_no_offset():
    rng, facts = np.random.default_rng(0), []
    for _ in range(10):
        label = rng.integers(0, 3, (40, 40)).astype(np.uint8)
        p_CHW = rng.dirichlet(np.ones(3), (40, 40)).transpose(2, 0, 1).astype(np.float32)
        p_CHW[:, 1:] = 0.9 * p_CHW[:, 1:] + 0.1 * np.eye(3, dtype=np.float32)[label[:-1]].transpose(2, 0, 1)  # fmt: skip
        facts.append(measure_image(label[..., None].astype(float), label, p_CHW))
    assert {fact.offset for fact in facts} == {(-1, 0)}  # all seem to lie a pixel higher
    statistics = pool_images(facts)
    assert statistics.offset == (0, 0) and not statistics.networks_agree
