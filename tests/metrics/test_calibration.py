"""Calibration and thresholds against torchmetrics, brute force and hand-worked cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score
from torchmetrics.classification import MulticlassCalibrationError

from seg.labels import IGNORE
from seg.logits import predicted_classes, probabilities
from seg.metrics.calibration import CalibrationError, ThresholdCurve, draw_reliability


def test_the_error_of_two_bins_by_hand():
    calibration = CalibrationError(bins=10)
    # confidence .9 twice, one right: |1.8 - 1|; confidence .6 twice, both right: |1.2 - 2|; of 4 pixels
    p = torch.tensor([0.9, 0.9, 0.6, 0.6])
    mask = torch.tensor([[[1, 0, 1, 1]]])
    calibration.update(torch.stack([1 - p, p]).view(1, 2, 1, 4), mask)
    assert float(calibration.compute()) == pytest.approx((0.8 + 0.8) / 4)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_error_is_that_of_torchmetrics(classes):
    torch.manual_seed(0)
    logits, mask = 2 * torch.randn(3, classes, 20, 20), torch.randint(0, classes, (3, 20, 20))
    mask[:, :4] = IGNORE
    ours, theirs = (
        CalibrationError(bins=12),
        MulticlassCalibrationError(classes, 12, ignore_index=IGNORE),
    )
    for one in (ours, theirs):
        one.update(probabilities(logits[:1]), mask[:1])
        one.update(probabilities(logits[1:]), mask[1:])
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_overlapping_labels_are_calibrated_as_two_class_problems():
    p = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.randint(0, 2, (2, 3, 8, 8))
    ours, pairs = CalibrationError(), CalibrationError()
    ours.update(p, mask)
    flat = p.reshape(-1, 1, 8, 8)
    pairs.update(torch.cat([1 - flat, flat], 1), mask.reshape(-1, 8, 8))
    assert float(ours.compute()) == pytest.approx(float(pairs.compute()))


def test_probabilities_that_are_nan_break_nothing():
    calibration = CalibrationError()
    calibration.update(torch.full((1, 2, 2, 2), float("nan")), torch.zeros(1, 2, 2).long())
    calibration.compute()
    assert int(calibration.pixels.sum()) == 4


def test_the_reliability_plot_is_a_picture(tmp_path):
    calibration = CalibrationError()
    calibration.update(probabilities(torch.randn(1, 1, 16, 16)), torch.randint(0, 2, (1, 16, 16)))
    draw_reliability(calibration, "made", tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as plot:
        assert min(plot.size) > 400


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_each_threshold_has_the_dice_of_predicting_with_it(seed):
    torch.manual_seed(seed)
    logits, mask = torch.randn(2, 1, 12, 12), torch.randint(0, 2, (2, 12, 12))
    mask[0, 0] = IGNORE
    curve = ThresholdCurve(steps=20)
    curve.update(probabilities(logits), mask)
    valid = mask != IGNORE
    for step, dice in enumerate(curve.compute(), start=1):
        found = predicted_classes(logits, step / 20)
        by_sklearn = f1_score(mask[valid], found[valid], average="macro", zero_division=0)
        assert float(dice) == pytest.approx(by_sklearn), step


def test_labels_share_the_threshold_of_their_best_mean():
    p = torch.tensor([[0.9, 0.3], [0.2, 0.35]]).view(1, 2, 1, 2)
    mask = torch.tensor([[1, 0], [0, 1]]).view(1, 2, 1, 2)
    curve = ThresholdCurve(labels=2, steps=100)
    curve.update(p, mask)
    assert 0.30 <= curve.best() < 0.35  # above the false .3, below the true .35
    assert float(curve.compute().max()) == 1


def test_nothing_seen_keeps_the_threshold_in_the_middle():
    curve = ThresholdCurve()
    curve.update(torch.full((1, 2, 2, 2), 0.5), torch.full((1, 2, 2), IGNORE))
    assert curve.best() == 0.5


def test_the_best_threshold_beats_one_half_on_a_timid_network():
    torch.manual_seed(0)
    mask = (torch.rand(1, 32, 32) < 0.1).long()
    logits = (mask * 3.0 - 4 + 0.3 * torch.randn(1, 32, 32)).unsqueeze(1)  # finds all, says p = .27
    curve = ThresholdCurve()
    curve.update(probabilities(logits), mask)
    best = curve.best()
    assert best < 0.27 and np.isclose(float(curve.compute().max()), 1)
    assert (predicted_classes(logits, best)[0] == mask[0]).all()


def test_certain_pixels_have_the_last_bin_for_themselves():
    # Half of the pixels are certain and wrong, half have .9 and are right: one bin for both would give .45.
    p = torch.tensor([1.0, 1.0, 0.9, 0.9]).reshape(1, 1, 1, 4)
    error = CalibrationError()
    error.update(torch.cat([1 - p, p], 1), torch.tensor([0, 0, 1, 1]).reshape(1, 1, 4))
    assert float(error.compute()) == pytest.approx(0.5 * 1 + 0.5 * 0.1)
