"""Conformal risk control: against brute force, in simulated calibrations, and its refusals."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seg.labels import IGNORE
from seg.logits import probabilities
from seg.metrics import SegmentationMetrics
from seg.metrics.calibration import ProbabilityHistogram
from seg.metrics.risk_control import (
    THRESHOLDS,
    RiskBound,
    control_risk,
    first_controlled,
    foreground_scores,
    image_losses,
    image_risks,
    parse_risk_bound,
    scores_at,
)

SIMULATIONS = 1000


def histogram(p: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Counts (N, 2, B) of images p (N, P) and masks (N, P), one pixel at a time."""
    counts = np.zeros((len(p), 2, len(THRESHOLDS) + 1), int)
    for image, (row, truth) in enumerate(zip(p, mask, strict=True)):
        for value, label in zip(row, truth, strict=True):
            if label != IGNORE:
                counts[image, label, int((value > THRESHOLDS).sum())] += 1
    return counts


def brute_force_threshold(p, mask, risk, alpha, groups=None) -> float | None:
    """The rule in fractions, threshold by threshold, from the one with the most errors of the other kind."""
    groups = list(range(len(p))) if groups is None else groups
    held = None
    for t in THRESHOLDS if risk == "missed" else THRESHOLDS[::-1]:
        by_group: dict = {}
        for row, truth, group in zip(p, mask, groups, strict=True):
            wrong, of = (row <= t, truth == 1) if risk == "missed" else (row > t, truth == 0)
            loss = Fraction(int((wrong & of).sum()), int(of.sum())) if of.any() else Fraction(0)
            by_group.setdefault(group, []).append(loss)
        units = [sum(losses) / len(losses) for losses in by_group.values()]
        n = len(units)
        mean = sum(units) / n
        if Fraction(n, n + 1) * mean + Fraction(1, n + 1) <= Fraction(str(alpha)):
            held = float(t)
        else:
            break
    return held


def random_images(rng, count, pixels=12):
    p = rng.choice(np.round(rng.random(6), 3), (count, pixels))  # many ties
    mask = rng.choice([0, 1, IGNORE], (count, pixels), p=[0.5, 0.4, 0.1])
    mask[rng.random(count) < 0.2] = 0  # no foreground
    return p, mask


@pytest.mark.parametrize("risk", ["missed", "false"])
@pytest.mark.parametrize("grouped", [False, True])
@given(seed=st.integers(0, 10**6), count=st.integers(2, 14), alpha=st.sampled_from([0.1, 0.25, 0.4, 0.7]))  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_the_threshold_is_that_of_the_rule_by_brute_force(risk, grouped, seed, count, alpha):
    rng = np.random.default_rng(seed)
    p, mask = random_images(rng, count)
    groups = [str(g) for g in rng.integers(0, max(2, count // 2), count)] if grouped else None
    found = control_risk(histogram(p, mask), RiskBound(risk, alpha), groups)
    wanted = brute_force_threshold(p, mask, risk, alpha, groups)
    assert (None if found is None else found.threshold) == wanted


@pytest.mark.parametrize("risk", ["missed", "false"])
@pytest.mark.parametrize(("images", "alpha"), [(9, 0.1), (25, 0.1), (40, 0.05), (12, 0.3)])
def test_the_mean_risk_of_a_new_image_is_at_most_alpha(risk, images, alpha):
    """Images of very different difficulty, 1000 calibration sets with one new image each."""
    rng = np.random.default_rng(images)
    pool = 400
    shift = rng.normal(0, 1.5, pool)[:, None] * [[-1, 1]]  # logits of background and foreground
    spread = rng.gamma(2, 0.7, pool)
    values = np.array([-1.5, 1.5]) + shift + rng.normal(0, 1, (60, pool, 2)) * spread[:, None]
    p = 1 / (1 + np.exp(-values))
    bins = np.searchsorted(THRESHOLDS, p)  # number of thresholds below
    counts = np.zeros((pool, 2, len(THRESHOLDS) + 1), int)
    for label in (0, 1):
        np.add.at(counts, (np.arange(pool)[None], label, bins[..., label]), 1)
    counts[rng.random(pool) < 0.1, 1] = 0  # no foreground
    losses = image_losses(counts, risk)
    risks = []
    for _ in range(SIMULATIONS):
        drawn = rng.choice(pool, images + 1, replace=False)
        found = control_risk(counts[drawn[:-1]], RiskBound(risk, alpha))
        if found is None:  # the paper's lambda_max, at which nothing is wrong
            risks.append(0.0)
        else:
            risks.append(losses[drawn[-1], np.searchsorted(THRESHOLDS, found.threshold)])
    error = np.std(risks, ddof=1) / math.sqrt(SIMULATIONS)
    assert np.mean(risks) <= alpha + 3 * error
    assert np.mean(risks) >= alpha - 2 / (images + 1) - 3 * error  # theorem 2: not much below


def test_without_the_correction_the_mean_risk_is_above_alpha():
    """The check above can fail: the threshold whose mean on the calibration images is alpha breaks the bound."""
    rng = np.random.default_rng(0)
    p = rng.random((400, 1))  # one pixel of foreground an image
    losses = (p <= THRESHOLDS).astype(float)
    risks = []
    for _ in range(4000):
        drawn = rng.choice(400, 10, replace=False)
        means = losses[drawn[:-1]].mean(0)
        risks.append(losses[drawn[-1], np.flatnonzero(means <= 0.25)[-1]])
    assert np.mean(risks) > 0.25 + 3 * np.std(risks) / math.sqrt(4000)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_stricter_bound_never_misses_more(seed):
    p, mask = random_images(np.random.default_rng(seed), 12)
    counts = histogram(p, mask)
    for risk, sign in (("missed", 1), ("false", -1)):
        found = [control_risk(counts, RiskBound(risk, a)) for a in (0.1, 0.2, 0.4, 0.8)]
        thresholds = [sign * one.threshold for one in found if one is not None]
        assert thresholds == sorted(thresholds)
        held = [one is not None for one in found]
        assert held == sorted(held)


def test_one_case_by_hand():
    # Four images of two foreground pixels; (sum of losses + 1) / 5 <= .5 allows losses of 1.5 in sum
    p = np.array([[0.2, 0.9], [0.3, 0.9], [0.4, 0.9], [0.8, 0.9]])
    found = control_risk(histogram(p, np.ones((4, 2), int)), RiskBound("missed", 0.5))
    # up to .8 the first three lose half each, 1.5; at .8 and above the fourth does, too
    assert found is not None and found.threshold == THRESHOLDS[THRESHOLDS < 0.8][-1]
    assert found.mean == 1.5 / 4 and found.units == 4
    # as two groups: (sum + 1) / 3 <= .5 allows .5 in sum, the mean loss of the first group below .8 alone
    found = control_risk(histogram(p, np.ones((4, 2), int)), RiskBound("missed", 0.5), list("aabb"))
    assert found is not None and found.threshold == THRESHOLDS[THRESHOLDS < 0.4][-1]
    assert found.mean == 0.25 and found.units == 2


@pytest.mark.parametrize(
    ("alpha", "fewest"),
    [(0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3), (0.5, 1), (0.9, 1), (0.07, 14)],
)
def test_one_image_fewer_than_needed_has_no_threshold(alpha, fewest):
    bound = RiskBound("missed", alpha)
    assert bound.fewest == fewest
    perfect = histogram(np.ones((fewest, 2)), np.ones((fewest, 2), int))
    assert control_risk(perfect, bound) is not None
    assert fewest == 1 or control_risk(perfect[1:], bound) is None


def test_images_without_foreground_risk_nothing_and_count():
    p, mask = np.full((12, 3), 0.4), np.zeros((12, 3), int)
    mask[0, 0] = 1
    counts = histogram(p, mask)
    losses = image_losses(counts, "missed")
    assert not losses[1:].any() and set(losses[0]) == {0, 1}
    # (1 + 1) / 13 <= .2: the one image with foreground may be missed as a whole
    found = control_risk(counts, RiskBound("missed", 0.2))
    assert found is not None and found.threshold == THRESHOLDS[-1]
    assert image_losses(histogram(p, np.full((12, 3), IGNORE)), "false").max() == 0


def test_losses_that_rise_or_leave_their_range_are_refused():
    for wrong in ([[0.1, 0.2]], [[1.5, 1.0]], [[0.5, -0.1]], [[math.nan, 0.0]]):
        with pytest.raises(ValueError, match=r"in 0\.\.1 and never rise"):
            first_controlled(np.array(wrong), 0.5)
    assert first_controlled(np.array([[1.0, 0.0, 0.0]]), 0.5) == 1


@pytest.mark.parametrize("logits", [1, 2])
def test_the_histogram_counts_the_pixels_of_each_image(logits):
    torch.manual_seed(0)
    values, mask = 3 * torch.randn(3, logits, 9, 7), torch.randint(0, 2, (3, 9, 7))
    mask[1, :2] = IGNORE
    p = probabilities(values)
    metric = ProbabilityHistogram()
    metric.update(p[:2], mask[:2])
    for rows in (slice(0, 4), slice(4, 9)):  # bands of the last image
        metric.update(p[2:, :, rows], mask[2:, rows], continued=rows.start > 0)
    counts = metric.compute().numpy()
    thresholds32 = THRESHOLDS.astype(np.float32)  # as predictions compare them
    flat = p[:, 1].flatten(1).numpy()
    wanted = np.zeros_like(counts)
    for image in range(3):
        for value, label in zip(flat[image], mask[image].flatten().tolist(), strict=True):
            if label != IGNORE:
                wanted[image, label, int((value > thresholds32).sum())] += 1
    np.testing.assert_array_equal(counts, wanted)


@pytest.mark.parametrize("threshold", [0.5, float(THRESHOLDS[100]), float(THRESHOLDS[700])])
def test_scores_and_risks_are_those_of_predicting_with_the_threshold(threshold):
    torch.manual_seed(1)
    logits, mask = 3 * torch.randn(4, 1, 16, 16), torch.randint(0, 2, (4, 16, 16))
    mask[0] = 0
    mask[1, :3] = IGNORE
    metrics = SegmentationMetrics(["out", "in"], threshold=threshold)
    metrics.histogram = ProbabilityHistogram()
    metrics.update(logits, mask)
    scores, counts = metrics.compute(), metrics.histogram.compute().numpy()
    found = scores_at(foreground_scores(counts), threshold)
    for name in ("precision", "recall", "dice"):
        assert found[name] == pytest.approx(float(scores[f"{name}/in"]))
    place = np.searchsorted(THRESHOLDS, threshold)
    for risk in ("missed", "false"):
        each = image_risks(metrics.pixels.images()[:, 1].numpy(), risk)
        np.testing.assert_allclose(image_losses(counts, risk)[:, place], each)
    best = scores_at(foreground_scores(counts), None)
    assert best["dice"] == foreground_scores(counts)["dice"].max()
    metrics.reset()
    assert metrics.histogram.image_counts == []


def test_a_bound_is_a_risk_and_a_share():
    assert parse_risk_bound("missed:0.1") == RiskBound("missed", 0.1)
    assert parse_risk_bound("false:.05") == RiskBound("false", 0.05)
    assert parse_risk_bound("missed:1e-2") == RiskBound("missed", 0.01)
    for wrong in ("missed", "missed:", "missed:0", "missed:1", "missed:-0.1", "missed:nan", "lost:0.1", "missed:0.1 ", 0.1, None, "best"):  # fmt: skip
        assert parse_risk_bound(wrong) is None
