"""Learning rate factors at the ends and in the middle."""

import pytest

from seg.training.schedules import Constant, Cosine, Poly


def test_cosine_climbs_and_falls_to_half_in_the_middle_and_nothing_at_the_end():
    schedule = Cosine(warmup=0.1)
    assert [schedule.factor(s, 100) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.factor(10, 100) == pytest.approx(1.0)
    assert schedule.factor(55, 100) == pytest.approx(0.5)
    assert schedule.factor(100, 100) == pytest.approx(0.0)


def test_poly_and_constant_follow_their_formula():
    assert Poly(power=2.0).factor(50, 100) == pytest.approx(0.25)
    assert Poly().factor(100, 100) == 0 and Constant().factor(7, 10) == 1


@pytest.mark.parametrize("make", [lambda: Cosine(warmup=1.0), lambda: Poly(power=0.0)])
def test_a_value_out_of_range_is_an_error(make):
    with pytest.raises(ValueError, match=r"is \d"):
        make()
