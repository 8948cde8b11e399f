"""Learning rate factors at the ends and in the middle."""

import pytest

from seg.errors import RunError
from seg.training.schedules import Constant, Cosine, Course, Poly, Segment


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


def test_a_course_of_one_segment_is_the_schedule():
    course = Course(Cosine(), [Segment(0, 1000, 0.0)])
    assert [course.factor(s) for s in range(1001)] == [
        Cosine().factor(s, 1000) for s in range(1001)
    ]


def test_a_longer_course_holds_the_last_factor_or_falls_again():
    # (1 - step / 4) falls 1, .75, .5, .25; then .25 is held, or 6 steps fall again: 1, 5/6, ...
    held, again = (Course(Poly(power=1.0), [Segment(0, 4, 0.0)]) for _ in range(2))
    held.lengthen(6, "hold")
    held.lengthen(8, "hold")
    again.lengthen(10, "restart")
    assert [held.factor(s) for s in range(8)] == [1, 0.75, 0.5] + [0.25] * 5
    assert [again.factor(s) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [again.factor(s) for s in range(4, 10)] == pytest.approx([1 - s / 6 for s in range(6)])
    assert (held.end, again.end) == (8, 10)


def test_a_falling_course_is_not_made_longer_without_a_word_on_it():
    for schedule in (Cosine(), Poly()):
        with pytest.raises(RunError, match=r"extend=hold .* extend=restart"):
            Course(schedule, [Segment(0, 4, 0.0)]).lengthen(6, None)
    flat = Course(Constant(), [Segment(0, 4, 0.0)])
    flat.lengthen(6, None)
    assert flat.segments == [Segment(0, 6, 0.0)]


def test_progress_at_a_segment_s_start_is_taken_up_and_runs_to_its_end():
    # half done at step 2; the rest takes 8 steps, so the whole would take 16
    course = Course(Poly(power=1.0), [Segment(0, 4, 0.0), Segment(2, 10, 0.5)])
    assert [course.factor(s) for s in (0, 1, 2, 6, 10)] == [1, 0.75, 0.5, 0.25, 0]
