"""Order of annotation, against queues worked out by hand and by brute force."""

import numpy as np
import pytest

from seg.metrics.annotation_queue import order_images
from seg.metrics.image_features import ReferenceImages

LINE = ReferenceImages(np.array([0.0]), np.array([1.0]), 10.0)  # distances are differences / 10


def test_a_queue_worked_out_by_hand():
    # Scores at first: .5 * .4 = .2, .5 * .5 = .25, .2 * 1 = .2, .9 * .1 = .09
    dice, features = np.array([0.5, 0.5, 0.8, 0.1]), np.array([[4.0], [5.0], [-30.0], [1.0]])
    queue = order_images(dice, features, LINE, 4)
    # Image 1 takes from image 0, which is 1 px from it, all but .5 * .1; image 2 is as far from it as before, and 3 too
    assert [one.index for one in queue] == [1, 2, 3, 0]
    assert [one.distance for one in queue] == pytest.approx([0.5, 3.0, 0.1, 0.1])
    assert [one.score for one in queue] == pytest.approx([0.25, 0.2, 0.09, 0.05])


def test_equal_images_come_in_the_given_order_and_all_are_taken():
    queue = order_images(np.ones(3), np.zeros((3, 1)), LINE, 5)
    assert [one.index for one in queue] == [0, 1, 2]
    assert [one.score for one in queue] == [0, 0, 0]
    assert order_images(np.zeros(0), np.zeros((0, 1)), LINE, 5) == []


def test_copies_of_an_image_wait_for_all_that_differ():
    rng = np.random.default_rng(0)
    different = rng.normal(size=(5, 4))
    features = np.concatenate([np.repeat(different[:1], 6, 0), different[1:]])
    reference = ReferenceImages(np.zeros(4), np.ones(4), 2.0)
    first = [one.index for one in order_images(np.full(10, 0.3), features, reference, 5)]
    assert sum(i < 6 for i in first) == 1


@pytest.mark.parametrize("seed", range(20))
def test_each_choice_has_the_largest_score_of_what_is_left(seed):
    rng = np.random.default_rng(seed)
    dice, features = rng.random(12), rng.normal(size=(12, 3))
    reference = ReferenceImages(rng.normal(size=3), rng.uniform(0.5, 2, 3), 1.7)
    queue = order_images(dice, features, reference, 12)
    assert sorted(one.index for one in queue) == list(range(12))
    known = [reference.center]
    left = set(range(12))
    for one in queue:
        scores = {
            i: (1 - dice[i]) * min(1, *(max(abs(features[i] - k) / reference.spread) / 1.7 for k in known))
            for i in left
        }  # fmt: skip
        assert one.score == pytest.approx(max(scores.values()))
        assert scores[one.index] == pytest.approx(one.score)
        left.remove(one.index)
        known.append(features[one.index])
    gains = [one.score for one in queue]
    assert gains == sorted(gains, reverse=True)
