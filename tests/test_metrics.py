"""Metrics against brute force, scikit-learn and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from seg.logits import IGNORE
from seg.metrics.confusion import PixelScores, Tally, confusion, dice, iou, precision, recall


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_scores_are_those_of_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, classes, (2, 3, 9, 9))
    ignored = rng.random(truth.shape) < 0.2
    counts = confusion(
        torch.from_numpy(found), torch.from_numpy(np.where(ignored, IGNORE, truth)), classes
    ).sum(0)
    pair = truth[~ignored], found[~ignored]
    options = {"labels": range(classes), "average": None, "zero_division": np.nan}
    for ours, theirs in (
        (dice, f1_score), (iou, jaccard_score),
        (precision, precision_score), (recall, recall_score),
    ):  # fmt: skip
        if theirs is jaccard_score:
            options["zero_division"] = 0
        np.testing.assert_allclose(
            ours(Tally.of(counts)).nan_to_num(0), np.nan_to_num(theirs(*pair, **options))
        )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_size_changes_nothing(batch):
    torch.manual_seed(0)
    found, truth = torch.randint(0, 3, (2, 5, 16, 16))
    whole, parts = PixelScores(["a", "b", "c"]), PixelScores(["a", "b", "c"])
    whole.update(found, truth)
    for start in range(0, 5, batch):
        parts.update(found[start : start + batch], truth[start : start + batch])
    assert {k: float(v) for k, v in whole.compute().items()} == {
        k: float(v) for k, v in parts.compute().items()
    }


def test_a_hand_counted_case():
    truth = torch.tensor([[[0, 0, 1, 1]], [[1, 1, 1, IGNORE]]])
    found = torch.tensor([[[0, 1, 1, 1]], [[1, 1, 0, 0]]])
    score = PixelScores(["ground", "thing"])
    score.update(found, truth)
    result = {k: float(v) for k, v in score.compute().items()}
    # ground: 1 hit, 2 true, 2 found; thing: 4 hits, 5 true, 5 found
    assert result["dice/ground"] == pytest.approx(2 / 4)
    assert result["dice/thing"] == pytest.approx(8 / 10)
    assert result["iou/ground"] == pytest.approx(1 / 3)
    assert result["dice"] == pytest.approx(0.65)
    assert result["pixel_accuracy"] == pytest.approx(5 / 7)
    # image 1: 2/3 and 4/5; image 2: 0 (found, not true) and 4/5
    assert result["dice_per_image"] == pytest.approx(((2 / 3 + 4 / 5) / 2 + (0 + 4 / 5) / 2) / 2)


def test_a_class_that_never_occurs_is_nan_and_left_out_of_the_mean():
    score = PixelScores(["a", "b", "never"])
    score.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    result = score.compute()
    assert math.isnan(result["dice/never"]) and result["dice"] == 1 and result["iou"] == 1


def test_a_value_that_is_no_class_is_an_error():
    with pytest.raises(ValueError, match=r"mask holds \[2, 254\]"):
        confusion(torch.zeros(1, 2, 2).long(), torch.tensor([[[0, 1], [2, 254]]]), 2)
