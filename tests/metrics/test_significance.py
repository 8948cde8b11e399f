"""Intervals and tests against scipy, enumeration by hand and simulated data."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from seg.metrics.significance import (
    bootstrap_interval,
    holm_adjust,
    mean_of_sums,
    paired_test,
    per_image_rows,
)


def dice(sums: np.ndarray) -> np.ndarray:
    """Pooled Dice (...) of class 1 from confusion matrices (..., 2, 2)."""
    return 2 * sums[..., 1, 1] / (sums[..., 1, :].sum(-1) + sums[..., :, 1].sum(-1))


def best_dice(sums: np.ndarray) -> np.ndarray:
    """The best (R,) over thresholds from confusion matrices (R, T, 2, 2)."""
    return dice(sums).max(1)


def confusions(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, (*shape, 2, 2))


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_the_value_is_the_score_of_the_summed_rows(seed, images):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, 2, (2, images, 30))
    rows = np.stack([[(truth == i) & (found == j) for j in (0, 1)] for i in (0, 1)]).sum(-1)
    rows = np.moveaxis(rows, -1, 0)  # (N, 2, 2), truth by prediction
    result = bootstrap_interval(rows, dice, resamples=20)
    assert result.value == pytest.approx(f1_score(truth.ravel(), found.ravel()))
    assert result.images == images


def test_the_interval_is_that_of_scipy_for_a_mean():
    values = np.random.default_rng(0).gamma(2, size=30)
    ours = bootstrap_interval(per_image_rows(values), mean_of_sums, level=0.9, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    # the 5th percentile of 20,000 has a Monte-Carlo error of about 0.015 standard errors
    room = 0.08 * values.std() / np.sqrt(30)
    assert ours.low == pytest.approx(theirs.low, abs=room)
    assert ours.high == pytest.approx(theirs.high, abs=room)
    assert ours.value == pytest.approx(values.mean())


def test_the_interval_is_that_of_scipy_for_a_pooled_dice():
    rows = confusions(0, 25)

    def of_images(index: np.ndarray, axis: int) -> np.ndarray:  # (..., 25) -> (...)
        return dice(rows[index].sum(axis - 2))

    ours = bootstrap_interval(rows, dice, resamples=10_000)
    theirs = stats.bootstrap(
        (np.arange(25),), of_images, n_resamples=10_000, method="percentile", rng=1, vectorized=True
    )
    room = 0.1 * theirs.standard_error
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=room)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=room)


def test_all_resamples_of_two_images_are_known():
    # draws of {0, 1} with replacement: mean 0, 1/2, 1 with shares 1/4, 1/2, 1/4
    rows = per_image_rows(np.array([0.0, 1.0]))
    assert bootstrap_interval(rows, mean_of_sums, level=0.95)[1:3] == (
        0,
        1,
    )  # 2.5 % and 97.5 % are in the quarters
    assert bootstrap_interval(rows, mean_of_sums, level=0.4)[1:3] == (
        0.5,
        0.5,
    )  # 30 % and 70 % are in the half


def test_the_seed_decides_the_interval(monkeypatch):
    rows = confusions(0, 30)
    first = bootstrap_interval(rows, dice, resamples=500, seed=3)
    assert bootstrap_interval(rows, dice, resamples=500, seed=3) == first
    assert bootstrap_interval(rows, dice, resamples=500, seed=4) != first
    monkeypatch.setattr(
        "seg.metrics.significance.CHUNK_FLOATS", 34 * 7
    )  # seven resamples at a time
    assert bootstrap_interval(rows, dice, resamples=500, seed=3) == first


def test_one_image_has_a_value_but_no_interval():
    result = bootstrap_interval(confusions(0, 1), dice)
    assert result.value == pytest.approx(dice(confusions(0, 1))[0]) and result.images == 1
    assert np.isnan([result.low, result.high]).all()
    other = paired_test(confusions(0, 1), confusions(1, 1), dice)
    assert np.isnan([other.low, other.high]).all() and other.p == 1


def test_no_image_has_no_value():
    assert np.isnan(bootstrap_interval(np.zeros((0, 2)), mean_of_sums)[:3]).all()
    nothing = paired_test(np.zeros((0, 2)), np.zeros((0, 2)), mean_of_sums)
    assert np.isnan(nothing[:4]).all() and nothing.images == 0


def test_an_image_whose_row_is_nan_is_left_out_of_both_runs():
    a, b = np.random.default_rng(0).random((2, 9))
    a[2] = b[5] = np.nan
    kept = np.delete(np.arange(9), [2, 5])
    assert bootstrap_interval(per_image_rows(a), mean_of_sums) == bootstrap_interval(
        per_image_rows(np.delete(a, 2)), mean_of_sums
    )
    ours = paired_test(per_image_rows(a), per_image_rows(b), mean_of_sums)
    assert ours == paired_test(per_image_rows(a[kept]), per_image_rows(b[kept]), mean_of_sums)
    assert ours.images == 7 and np.isfinite(ours).all()


def test_resamples_without_a_score_are_left_out():
    rows = np.zeros((4, 2, 2))
    rows[0] = [[5, 1], [1, 8]]  # class 1 is in one image of four; 31 % of the resamples lack it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = bootstrap_interval(rows, dice)
    assert result[:3] == pytest.approx((16 / 18, 16 / 18, 16 / 18))
    never = bootstrap_interval(np.zeros((4, 2, 2)), dice)
    assert np.isnan(never[:3]).all()
    assert np.isnan(paired_test(np.zeros((4, 2, 2)), rows, dice)[:4]).all()


@given(st.integers(0, 10_000), st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_p_of_few_images_counts_every_swap(seed, images):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, (2, images)) / 7  # few values, so that many swaps tie
    signs = np.array(list(itertools.product([1, -1], repeat=images)))
    values = (signs * (b - a)).mean(1)
    p = np.mean(np.abs(values) >= abs((b - a).mean()) - 1e-12)
    assert paired_test(
        per_image_rows(a), per_image_rows(b), mean_of_sums, resamples=10
    ).p == pytest.approx(p)


@pytest.mark.parametrize("images", [12, 13])
def test_p_is_that_of_scipy_with_exact_and_random_swaps(images):
    a, b = np.random.default_rng(4).normal([[0], [0.5]], 1, (2, images))
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: (y - x).mean(axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    ).pvalue  # fmt: skip
    ours = paired_test(per_image_rows(a), per_image_rows(b), mean_of_sums).p
    assert 0.02 < theirs < 0.8
    error = 4 * np.sqrt(theirs * (1 - theirs) / 10_000)  # four standard errors of 10,000 swaps
    assert ours == pytest.approx(theirs, abs=1e-12 if images == 12 else error)


def test_the_smallest_p_is_that_of_the_two_extreme_swaps():
    for images in (5, 8):
        values = np.arange(images) / 10
        assert (
            paired_test(per_image_rows(values), per_image_rows(values + 1), mean_of_sums).p
            == 2 / 2**images
        )
    values = np.arange(40) / 10
    found = paired_test(
        per_image_rows(values), per_image_rows(values + 1), mean_of_sums, resamples=999
    )
    assert found.p == 1 / 1000  # (1 + 0) / (1 + 999)


@pytest.mark.parametrize("images", [2, 9, 40])
def test_identical_runs_do_not_differ(images):
    rows = confusions(images, images)
    assert paired_test(rows, rows, dice) == (0, 0, 0, 1, images)


def test_a_worse_run_is_the_mirror_of_a_better_one():
    a, b = confusions(0, 10), confusions(1, 10)
    there, back = paired_test(a, b, dice), paired_test(b, a, dice)
    assert there.value == pytest.approx(dice(b.sum(0)[None])[0] - dice(a.sum(0)[None])[0])
    assert back[:3] == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p == there.p


def test_the_interval_of_a_difference_draws_the_same_images_for_both_runs():
    hard, noise = np.random.default_rng(0).normal(
        0, [[10.0], [0.1]], (2, 50)
    )  # images differ, runs don't
    found = paired_test(per_image_rows(hard), per_image_rows(hard + 1 + noise), mean_of_sums)
    assert found.low < 1 < found.high
    # 2 x 1.96 standard errors of the differences alone
    assert found.high - found.low == pytest.approx(3.92 * noise.std() / np.sqrt(50), rel=0.1)
    assert found.p < 0.001


def test_the_level_of_an_interval_of_a_difference_is_the_one_asked_for():
    a, b = np.random.default_rng(0).normal(size=(2, 60))
    wide, narrow = (
        paired_test(per_image_rows(a), per_image_rows(b), mean_of_sums, level=q)
        for q in (0.95, 0.5)
    )
    # normal quantiles: 1.960 and 0.674
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.906, rel=0.1)


def test_p_of_equal_runs_is_small_as_seldom_as_it_says():
    rng = np.random.default_rng(0)
    p = []
    for seed in range(300):
        both = rng.normal(size=30)
        a, b = both + rng.normal(size=(2, 30))
        p.append(
            paired_test(
                per_image_rows(a), per_image_rows(b), mean_of_sums, resamples=400, seed=seed
            ).p
        )
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_the_best_over_thresholds_is_chosen_anew_in_each_resample():
    rows = confusions(0, 12, 5)  # (N, T, 2, 2)
    index = np.random.default_rng(9).integers(12, size=(4000, 12))
    by_hand = best_dice(rows[index].sum(1))
    ours = bootstrap_interval(rows, best_dice)
    assert ours.value == pytest.approx(max(dice(rows.sum(0))))
    room = 0.15 * by_hand.std()
    assert ours.low == pytest.approx(np.quantile(by_hand, 0.025), abs=room)
    assert ours.high == pytest.approx(np.quantile(by_hand, 0.975), abs=room)
    assert paired_test(rows, rows, best_dice).p == 1


def test_holm_adjusts_as_worked_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04; never falling: .04 .06 .06 .06
    np.testing.assert_allclose(
        holm_adjust(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06]
    )
    np.testing.assert_allclose(holm_adjust(np.array([0.6, 0.7])), [1, 1])  # 1.2 and .7: 1 at most
    np.testing.assert_allclose(holm_adjust(np.array([0.03, np.nan, 0.01])), [0.03, np.nan, 0.02])
    assert holm_adjust(np.array([])).shape == (0,)


def test_a_wrong_argument_is_an_error_that_names_it():
    rows = confusions(0, 5)
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap_interval(rows, dice, level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval(rows, dice, resamples=0)
    with pytest.raises(ValueError, match="one number per resample"):
        bootstrap_interval(rows, lambda sums: sums[:, 0])
    with pytest.raises(ValueError, match="the same images for both runs"):
        paired_test(rows, rows[:4], dice)
