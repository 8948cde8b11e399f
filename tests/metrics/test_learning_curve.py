"""Power laws are recovered from errors that follow them, and the interval behaves as an interval must."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from seg.display.learning_curve import draw_curve
from seg.metrics.learning_curve import (
    EXPONENTS,
    dice_of_counts,
    fit_learning_curve,
    fit_power_laws,
    resample_scores,
)

SIZES = np.array([4, 6, 10, 16])


def counts_of(dice_MSN: np.ndarray) -> np.ndarray:
    """Counts (M, S, N, 1, 3) of one class whose Dice is given: TP of 1000 pixels, the errors half FP, half FN."""
    tp = 1000 * dice_MSN
    wrong = 1000 - tp
    return np.stack([tp, wrong, wrong], -1)[..., None, :]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 1), st.sampled_from(EXPONENTS.tolist()), st.floats(0, 0.3))
def test_a_known_power_law_is_recovered(a, b, c):
    law = fit_power_laws(SIZES, (a * SIZES**-b + c)[None])
    assert law.b[0] == pytest.approx(b)
    np.testing.assert_allclose([law.a[0], law.c[0]], [a, c], atol=1e-6)
    np.testing.assert_allclose(law.errors(np.array([32]))[0], a * 32**-b + c, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.05, 0.6), min_size=4, max_size=4))
def test_no_least_squares_of_scipy_is_smaller(errors):
    law = fit_power_laws(SIZES, np.array([errors]))
    found = ((law.errors(SIZES)[0] - errors) ** 2).sum()
    for start in (0.15, 0.4, 0.9):
        other = least_squares(
            lambda p: p[0] * SIZES ** -p[1] + p[2] - errors, [0.3, start, 0.1], bounds=([-np.inf, 0.1, 0], [np.inf, 1, np.inf])
        )  # fmt: skip
        assert found <= 2 * other.cost + 2e-4  # the exponent's grid


def test_the_errors_of_several_rows_are_fitted_as_each_alone():
    rows = np.random.default_rng(0).uniform(0.1, 0.5, (5, 4))
    together = fit_power_laws(SIZES, rows)
    for i, row in enumerate(rows):
        alone = fit_power_laws(SIZES, row[None])
        np.testing.assert_array_equal([x[i] for x in together], [x[0] for x in alone])


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="2 sizes; 3 or more"):
        fit_power_laws(np.array([4, 8]), np.ones((1, 2)))


def test_dice_is_that_of_the_summed_counts():
    # class 0: 2 * 6 / (12 + 2 + 1), class 1: 2 * 3 / (6 + 1 + 2), class 2 occurs nowhere
    counts = np.array([[6, 2, 1], [3, 1, 2], [0, 0, 0]])
    assert dice_of_counts(counts[None])[0] == pytest.approx((12 / 15 + 6 / 9) / 2)


def test_without_noise_the_interval_is_the_curve():
    dice = 1 - (0.5 * SIZES**-0.5 + 0.1)
    curve = fit_learning_curve(SIZES, counts_of(np.broadcast_to(dice[:, None, None], (4, 2, 5))), 0.9, 50)  # fmt: skip
    truth = 0.5 * (16**-0.5 - 32**-0.5)
    np.testing.assert_allclose([curve.gain, curve.gain_low, curve.gain_high], truth, atol=2e-3)
    assert curve.seed_sd == pytest.approx(0, abs=1e-12)
    assert curve.grid[0] == 4 and curve.grid[-1] == pytest.approx(32)
    np.testing.assert_allclose(curve.high - curve.low, 0, atol=1e-9)


def test_a_flat_noisy_curve_has_an_interval_around_no_gain():
    rng = np.random.default_rng(1)
    dice = 0.8 + rng.normal(0, 0.02, (4, 3, 1)) + rng.normal(0, 0.02, (1, 1, 10))
    curve = fit_learning_curve(SIZES, counts_of(dice), 0.9, 300)
    assert curve.gain_low < 0 < curve.gain_high
    assert (curve.low <= curve.high).all()


def test_resampled_seeds_vary_as_the_mean_of_seeds_does():
    rng = np.random.default_rng(2)
    dice = np.broadcast_to(0.7 + rng.normal(0, 0.03, (1, 4, 1)), (3, 4, 6))
    drawn, of_images = resample_scores(counts_of(dice), 4000, rng)
    # variance of a mean of S: s^2 / S, with s^2 of S - 1 degrees of freedom
    np.testing.assert_allclose(drawn.var(0), dice[0, :, 0].var(ddof=1) / 4, rtol=0.1)
    np.testing.assert_allclose(of_images, dice[0, :, 0].mean())  # all images are alike
    wider, _ = resample_scores(counts_of(dice), 4000, rng, factor=2)
    np.testing.assert_allclose(wider.var(0), dice[0, :, 0].var(ddof=1), rtol=0.1)


def test_the_gain_is_counted_from_the_measured_scores_on_the_same_images():
    rng = np.random.default_rng(4)
    images = rng.normal(0, 0.05, (1, 1, 12))  # hard and easy images, the same for all networks
    dice = 1 - (0.5 * SIZES**-0.5 + 0.1)[:, None, None] + images
    curve = fit_learning_curve(SIZES, counts_of(np.repeat(dice, 2, 1)), 0.9, 200)
    assert curve.gain_high - curve.gain_low < 0.15 * (curve.high - curve.low)[-1]
    # A largest size that lies above the curve of the others gains less
    dice[-1] += 0.02
    above = fit_learning_curve(SIZES, counts_of(np.repeat(dice, 2, 1)), 0.9, 200)
    fitted = 1 - above.fitted[-1]
    assert (
        above.gain == pytest.approx(1 - fitted - above.scores[-1].mean())
        and above.gain < curve.gain + 0.02
    )


def test_the_same_seed_gives_the_same_interval_and_a_higher_level_a_wider_one():
    rng = np.random.default_rng(3)
    counts = counts_of(0.8 - 0.4 / SIZES[:, None, None] + rng.normal(0, 0.02, (4, 2, 8)))
    first, again, wide = (fit_learning_curve(SIZES, counts, level, 300) for level in (0.8, 0.8, 0.95))  # fmt: skip
    assert (first.gain_low, first.gain_high) == (again.gain_low, again.gain_high)
    assert wide.gain_low <= first.gain_low <= first.gain_high <= wide.gain_high


def test_the_legend_covers_nothing_of_the_plot(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    curve = fit_learning_curve(SIZES, counts_of(np.full((4, 2, 5), 0.5)), 0.9, 20)
    draw_curve(curve, "images", "val", "a sentence", tmp_path / "enough.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == 4 and axes.get_legend() is None
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    assert figure.bbox.padded(1).contains(*legend.get_window_extent().min)
    assert figure.bbox.padded(1).contains(*legend.get_window_extent().max)
