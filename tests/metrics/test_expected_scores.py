"""Expected scores and features of images: by hand, by simulation, and against other libraries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score, jaccard_score

from seg.labels import IGNORE
from seg.logits import classes_from_probabilities
from seg.metrics.calibration import ProbabilityCounts
from seg.metrics.expected_scores import (
    BINS,
    CENTRES,
    STEP,
    ClassCalibration,
    conformal_margin,
    expected_scores,
    fewest_images,
    fit_calibration,
    held_out_scores,
    mirror_counts,
    true_scores,
)
from seg.metrics.image_features import NAMES, STRIP, ImageFeatures, fit_reference
from seg.metrics.probability_counts import count_probabilities, probability_bins


def counts_of(p_NP, mask_NP, threshold=0.5):
    """Counts (N, 2, 2, B) of class 1 of images of one row."""
    p = torch.tensor(np.stack([1 - p_NP, p_NP], 1)[:, :, None], dtype=torch.float32)
    found = torch.tensor((p_NP > threshold).astype(np.uint8))[:, None]
    return count_probabilities(p, found, torch.tensor(mask_NP)[:, None])[:, 0].numpy()


def test_expected_dice_is_the_ratio_of_expected_pixels():
    # Logits 1.125 and -1.125 are centres of bins: q = .7549 and .2451. Three pixels are predicted, two are not:
    # S = 3 * .7549 = 2.2647, R = 2 * .2451 = .4902, Dice = 2 S / (3 + S + R) = .7870, IoU = S / (3 + R) = .6489
    p = expit(np.array([[1.125, 1.125, 1.125, -1.125, -1.125]]))
    counts = counts_of(p, np.zeros((1, 5), int))
    found = expected_scores(counts.sum(1), ClassCalibration())
    assert found.dice[0] == pytest.approx(0.7871, abs=5e-5)
    assert found.iou[0] == pytest.approx(0.6489, abs=5e-5)
    # A temperature of 2 halves the logits: q = .6370 and .3630, S = 1.911, R = .726
    found = expected_scores(counts.sum(1), ClassCalibration(0.5))
    assert found.dice[0] == pytest.approx(2 * 1.911 / (3 + 1.911 + 0.726), abs=5e-4)
    none = counts_of(np.full((1, 5), 0.2), np.zeros((1, 5), int))
    assert np.isnan(expected_scores(none.sum(1), ClassCalibration()).dice[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.booleans())
def test_counts_give_the_true_scores_of_another_library(seed, classes, overlapping):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 4, (1, classes, 9, 7)), dtype=torch.float32)
    p = logits.sigmoid() if overlapping else logits.softmax(1)
    shape = (classes, 9, 7) if overlapping else (9, 7)
    mask = rng.integers(0, 2 if overlapping else classes, shape)
    mask[..., rng.random((9, 7)) < 0.2] = IGNORE
    found = classes_from_probabilities(p[0].numpy(), 0.5, overlapping)
    counts = count_probabilities(p, torch.tensor(found)[None], torch.tensor(mask)[None], overlapping)  # fmt: skip
    counts = counts[0].numpy()
    if classes == 2 and not overlapping:
        counts = np.concatenate([mirror_counts(counts), counts])
    for c in range(classes):
        labels, truth = (found[c], mask[c]) if overlapping else (found == c, mask == c)
        known = (mask[c] if overlapping else mask) != IGNORE
        pair = (truth[known] == 1).astype(int), labels[known].astype(int)
        scores = true_scores(counts[c][None])
        assert counts[c].sum() == known.sum()
        if not (pair[0].any() or pair[1].any()):
            assert np.isnan(scores.dice[0])
            continue
        assert scores.dice[0] == pytest.approx(f1_score(*pair, zero_division=0))
        assert scores.iou[0] == pytest.approx(jaccard_score(*pair, zero_division=0))
        # The bins hold the probabilities: their mean logit is off by half a bin at most
        values = p[0, c].numpy()[known]
        logit = np.clip(torch.logit(torch.tensor(values)).numpy(), CENTRES[0], CENTRES[-1])
        assert abs((counts[c].sum((0, 1)) * CENTRES).sum() - logit.sum()) <= STEP / 2 * known.sum() + 1e-3  # fmt: skip


def test_probabilities_of_0_and_1_and_nan_have_bins():
    bins = probability_bins(torch.tensor([0.0, 1e-30, 0.5, 1.0, float("nan")]))
    assert bins.tolist() == [0, 0, BINS // 2, BINS - 1, 0]


def test_counts_of_bands_are_those_of_the_whole_image():
    p = torch.rand(1, 3, 40, 30).softmax(1)
    found, mask = p.argmax(1), torch.randint(0, 3, (1, 40, 30))
    whole, banded = ProbabilityCounts(), ProbabilityCounts()
    whole.update(p, found, mask)
    for top in range(0, 40, 16):
        rows = slice(top, top + 16)
        banded.update(p[:, :, rows], found[:, rows], mask[:, rows], continued=top > 0)
    assert torch.equal(whole.compute(), banded.compute())
    assert whole.compute().shape == (1, 3, 2, 2, BINS)


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 0.0), (1.6, 0.0), (0.8, -1.0)])
def test_the_temperature_is_recovered_from_simulated_labels(slope, offset):
    rng = np.random.default_rng(0)
    logits = rng.normal(-0.5, 3, (20, 4000))
    mask = (rng.random(logits.shape) < expit(slope * logits + offset)).astype(int)
    found = fit_calibration(counts_of(expit(logits), mask).sum(2))
    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.offset == pytest.approx(offset, abs=0.06)
    assert (found.offset == 0) == (offset == 0)


def test_labels_drawn_from_the_probabilities_have_the_expected_dice():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (200, 2000)) + rng.normal(0, 2, (200, 1))
    mask = (rng.random(logits.shape) < expit(logits)).astype(int)
    counts = counts_of(expit(logits), mask)
    gap = true_scores(counts).dice - expected_scores(counts.sum(1), ClassCalibration()).dice
    assert abs(gap.mean()) < 0.003 and abs(gap).max() < 0.1


def test_a_class_without_pixels_has_the_identity():
    counts = counts_of(np.full((3, 50), 0.3), np.zeros((3, 50), int))
    assert fit_calibration(counts.sum(2)) == ClassCalibration()
    assert fit_calibration(counts[:0].sum(2)) == ClassCalibration()


@pytest.mark.parametrize("number", [9, 20, 57])
def test_conformal_intervals_hold_as_often_as_theory_says(number):
    # Vovk et al.: the coverage is ceil((n + 1) * .9) / (n + 1) on average if residuals have no ties
    rng = np.random.default_rng(number)
    residuals = rng.standard_t(3, (4000, number + 1))
    held = [abs(row[-1]) <= conformal_margin(row[:-1]) for row in residuals]
    rank = int(np.ceil((number + 1) * 0.9 - 1e-9))
    assert np.mean(held) == pytest.approx(rank / (number + 1), abs=0.015)


def test_too_few_images_have_no_interval():
    assert fewest_images() == 9
    assert conformal_margin(np.ones(8)) is None and conformal_margin(np.ones(9)) == 1
    assert fewest_images(0.5) == 1


def test_residuals_come_from_calibrations_on_other_images():
    rng = np.random.default_rng(2)
    counts = counts_of(rng.random((3, 60)), rng.integers(0, 2, (3, 60)))
    held_out = held_out_scores(counts)
    for i in range(3):
        others = fit_calibration(np.delete(counts, i, 0).sum(2))
        alone = expected_scores(counts[i : i + 1].sum(1), others)
        assert held_out.dice[i] == alone.dice[0] and held_out.iou[i] == alone.iou[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 50), st.integers(1, 3), st.integers(1, 40))
def test_features_do_not_depend_on_the_bands(height, width, channels, step):
    image = np.random.default_rng(height).normal(size=(height, width, channels)).astype(np.float32)
    whole, banded = ImageFeatures(height, width), ImageFeatures(height, width)
    whole.add(0, image)
    for top in range(0, height, step):
        banded.add(top, image[top : top + step])
    np.testing.assert_array_equal(whole.compute(), banded.compute())
    assert whole.compute().shape == (channels * len(NAMES),) and np.isfinite(whole.compute()).all()


def test_features_are_those_of_their_names():
    rng = np.random.default_rng(3)
    image = rng.normal(1, 2, (256, 256, 1)).astype(np.float32)
    features = ImageFeatures(256, 256)
    features.add(0, image)
    found = dict(zip(NAMES, features.compute(), strict=True))
    assert found["mean"] == pytest.approx(image.mean(), abs=1e-4)
    assert np.exp(found["log_sd"]) == pytest.approx(2, rel=0.02)
    assert found["quantile_0.25"] == pytest.approx(np.quantile(image, 0.25), abs=0.05)
    # Mean size of a difference of two normal values of deviation 2: 2 * 2 / sqrt(pi)
    assert np.exp(found["log_step_4"]) == pytest.approx(4 / np.sqrt(np.pi), rel=0.02)
    # The Laplacian's squared weights sum to 36: deviation 6 * 2, mean size * sqrt(2 / pi)
    assert np.exp(found["log_noise"]) == pytest.approx(12 * np.sqrt(2 / np.pi), rel=0.02)
    # Means of blocks of 32 x 32 pixels deviate by 2 / 32
    assert np.exp(found["log_block_sd"]) == pytest.approx(2 / 32, rel=0.3)


def test_stored_values_are_normalised_by_channel():
    stored = np.random.default_rng(6).integers(0, 256, (70, 40, 2), np.uint8)
    shift, scale = np.array([90, 20]), np.array([40, 5])
    by_meter, before = ImageFeatures(70, 40, shift, scale), ImageFeatures(70, 40)
    by_meter.add(0, stored)
    before.add(0, (stored - shift) / scale)
    np.testing.assert_allclose(by_meter.compute(), before.compute(), atol=1e-5)
    lost = np.zeros((70, 40), bool)
    lost[:, :7] = True
    holed, cut = ImageFeatures(70, 40, shift, scale), ImageFeatures(70, 33, shift, scale)
    holed.add(0, stored, lost)
    cut.add(0, stored[:, 7:])
    steps = [
        i
        for i, name in enumerate(NAMES * 2)
        if name.startswith(("mean", "log_sd", "log_step", "log_noise"))
    ]
    np.testing.assert_allclose(holed.compute()[steps], cut.compute()[steps], atol=1e-5)


def test_pixels_without_data_are_left_out():
    image = np.random.default_rng(4).normal(size=(64, 64, 1)).astype(np.float32)
    whole, holed = ImageFeatures(64, 32), ImageFeatures(64, 64)
    whole.add(0, image[:, :32])
    lost = image.copy()
    lost[:, 32:] = np.nan
    holed.add(0, lost)
    pairs = dict(zip(NAMES, zip(whole.compute(), holed.compute(), strict=True), strict=True))
    for name in ("mean", "log_sd", "log_noise", "log_step_1", "log_block_sd"):
        assert pairs[name][0] == pytest.approx(pairs[name][1], abs=1e-5)
    empty = ImageFeatures(64, 64)
    empty.add(0, np.full_like(image, np.nan))
    assert empty.compute() is None


def test_a_huge_image_is_measured_in_strips_over_its_whole_height():
    features = ImageFeatures(100_000, 5000)
    spans = features.spans()
    measured = sum(bottom - top for top, bottom in spans) * 5000
    assert measured <= 2**18 + STRIP * 5000 and spans[0] == (0, STRIP)
    assert spans[-1][0] > 0.4 * 100_000


def test_distances_are_those_of_each_image_from_the_others():
    features = np.random.default_rng(5).normal(size=(12, 4))
    reference, distances = fit_reference(features)
    for i in range(12):
        rest = np.delete(features, i, 0)
        far = (np.abs(features[i] - rest.mean(0)) / (rest.std(0) + 0.05)).max()
        assert distances[i] == pytest.approx(far / reference.limit)
    assert distances.max() <= 1
    strange = features[:1] + np.array([0, 0, 30, 0])
    assert reference.deviations(strange)[0].argmax() == 2 and reference.deviations(strange).max() > 1  # fmt: skip


def test_counts_of_further_images_than_memory_has_room_for_are_left_out(monkeypatch):
    monkeypatch.setattr("seg.metrics.calibration.COUNTED_BYTES", 3 * 4 * BINS * 8)
    p = torch.rand(1, 2, 8, 8).softmax(1)
    limited, whole = ProbabilityCounts(), ProbabilityCounts(limited=False)
    for metric in (limited, whole):
        for _ in range(5):
            metric.update(p, p.argmax(1), p.argmax(1))
            metric.update(p, p.argmax(1), p.argmax(1), continued=True)
    assert len(limited.compute()) == 3 and len(whole.compute()) == 5
    assert torch.equal(limited.compute(), whole.compute()[:3])


def test_images_of_a_group_count_as_one():
    # Nine groups of one residual, and one of two: 11 * .9 = 9.9 groups must be below, so the largest of all
    groups = np.array([*range(9), 9, 9])
    residuals = np.array([*range(1, 10), 10.0, -20.0])
    assert conformal_margin(residuals, groups=groups) == 20
    assert (
        conformal_margin(residuals, 0.85, groups) == 10
    )  # 9.35 groups: those of 1 to 9, and half the last
    assert (
        conformal_margin(residuals, 0.8) == 10
    )  # of 11 images, the one of rank 12 * .8, rounded up
    assert conformal_margin(np.arange(40.0), groups=np.arange(40) // 5) is None
