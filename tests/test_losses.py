"""Losses against hand-worked values; test_losses_matrix.py has what each of them must hold."""

import math

import pytest
import torch
import torch.nn.functional as F

from seg.logits import IGNORE
from seg.losses import CrossEntropy, Dice, Focal, Jaccard, Sum, judge

ALL = {
    "bce": CrossEntropy,
    "dice": Dice,
    "dice_squared": lambda: Dice(squared=True),
    "iou": Jaccard,
    "focal": Focal,
    "bce_dice": lambda: Sum({"bce": {"weight": 0.5, "loss": CrossEntropy()}, "dice": {"weight": 1.0, "loss": Dice()}}),
}  # fmt: skip


@pytest.fixture(params=list(ALL))
def loss(request):
    torch.manual_seed(0)
    return ALL[request.param]()


def sample(k: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, k, size, size), torch.randint(0, max(k, 2), (2, size, size))


def test_the_right_answer_costs_least_and_the_opposite_most(loss):
    mask = torch.randint(0, 2, (1, 8, 8))
    right = (mask * 2 - 1).unsqueeze(1) * 20.0
    assert loss(right, mask) < 0.01 < loss(torch.zeros_like(right), mask) < loss(-right, mask)


def test_cross_entropy_is_torch_s_own():
    logits, mask = sample(4)
    mask[0, 0] = IGNORE
    torch.testing.assert_close(
        CrossEntropy()(logits, mask), F.cross_entropy(logits, mask, ignore_index=IGNORE)
    )
    logits, mask = sample(1)
    wanted = F.binary_cross_entropy_with_logits(logits[:, 0], mask.float())
    torch.testing.assert_close(CrossEntropy()(logits, mask), wanted)
    weighted = F.binary_cross_entropy_with_logits(
        logits[:, 0], mask.float(), pos_weight=torch.tensor(3.0)
    )
    torch.testing.assert_close(CrossEntropy([1.0, 3.0])(logits, mask), weighted)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        # four pixels, p of class 1 = .5 each, truth 1 1 0 0
        (CrossEntropy(), math.log(2)),
        (Focal(gamma=2.0), 0.25 * math.log(2)),  # (1 - .5)^2 log 2
        # each class: overlap 1, p 2, g 2 -> (2 + 1) / (4 + 1) = .6
        (Dice(smooth=1.0), 0.4),
        # each class: overlap 1, p^2 4 * .25 = 1, g 2 -> (2 + 1) / (3 + 1) = .75
        (Dice(smooth=1.0, squared=True), 0.25),
        # each class: (1 + 1) / (2 + 2 - 1 + 1) = .5
        (Jaccard(smooth=1.0), 0.5),
        (Sum({"a": {"weight": 2.0, "loss": CrossEntropy()}, "b": {"weight": 1.0, "loss": Dice()}}), 2 * math.log(2) + 0.4),
    ],
)  # fmt: skip
def test_a_hand_worked_value(loss, wanted):
    mask = torch.tensor([[[1, 1], [0, 0]]])
    torch.testing.assert_close(float(loss(torch.zeros(1, 1, 2, 2), mask)), wanted)


def test_heads_are_averaged_and_terms_named():
    (a, mask), (b, _) = sample(1), sample(1)
    loss = ALL["bce_dice"]()
    value, terms = judge(loss, [a, b], mask)
    torch.testing.assert_close(value, (loss(a, mask) + loss(b, mask)) / 2)
    torch.testing.assert_close(terms["dice"], (Dice()(a, mask) + Dice()(b, mask)) / 2)
    assert judge(Dice(), [a], mask)[1] == {}


def test_weights_that_do_not_fit_the_classes_say_so():
    with pytest.raises(ValueError, match="class_weights has 3 numbers and the data 2 classes"):
        CrossEntropy([1.0, 2.0, 3.0])(*sample(1))


def test_heads_are_weighed_as_told():
    heads, mask = [torch.randn(2, 1, 4, 4) for _ in range(3)], torch.randint(0, 2, (2, 4, 4))
    loss = Dice()
    values = [loss(head, mask) for head in heads]
    torch.testing.assert_close(judge(loss, heads, mask)[0], sum(values) / 3)
    weighed = (values[0] + 3 * values[2]) / 4
    torch.testing.assert_close(judge(loss, heads, mask, [1, 0, 3])[0], weighed)
    torch.testing.assert_close(judge(loss, heads[:1], mask, [1, 0, 3])[0], values[0])
