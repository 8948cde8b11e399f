"""Pixel metrics against brute force, scikit-learn and values worked by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    jaccard_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)

from seg.labels import IGNORE
from seg.logits import classes_from_probabilities, predicted_classes, probabilities
from seg.metrics import SegmentationMetrics
from seg.metrics.confusion import PixelScores, count_confusion
from seg.metrics.pixel_scores import PIXEL_SCORES
from seg.metrics.significance import bootstrap_interval, bootstrap_intervals

NAMES = ["a", "b", "c", "d", "e"]


def floats(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_scores_are_those_of_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, classes, (2, 3, 9, 9))
    ignored = rng.random(truth.shape) < 0.2
    score = PixelScores(NAMES[:classes])
    score.update(torch.from_numpy(found), torch.from_numpy(np.where(ignored, IGNORE, truth)))
    ours = floats(score.compute())
    pair = truth[~ignored], found[~ignored]
    occurs = sorted(set(pair[0]) | set(pair[1]))
    for name, theirs in (
        ("dice", f1_score), ("f1", f1_score), ("iou", jaccard_score),
        ("precision", precision_score), ("recall", recall_score),
    ):  # fmt: skip
        each = theirs(*pair, labels=range(classes), average=None, zero_division=0)
        mine = np.nan_to_num([ours[f"{name}/{c}"] for c in NAMES[:classes]])
        np.testing.assert_allclose(mine, each, err_msg=name)
        macro = theirs(*pair, labels=occurs, average="macro", zero_division=0)
        assert ours[name] == pytest.approx(macro), name
    (tn, fp), (_, _) = multilabel_confusion_matrix(*pair, labels=range(classes)).transpose(1, 2, 0)
    np.testing.assert_allclose([ours[f"specificity/{c}"] for c in NAMES[:classes]], tn / (tn + fp))
    assert ours["pixel_accuracy"] == pytest.approx(accuracy_score(*pair))


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_the_confusion_matrix_is_that_of_counting_pixel_by_pixel(seed, classes):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, classes, (2, 2, 5, 4))
    truth[rng.random(truth.shape) < 0.3] = IGNORE
    counted = np.zeros((2, classes, classes), int)
    for image, (true, said) in enumerate(zip(truth, found, strict=True)):
        for t, s in zip(true.ravel(), said.ravel(), strict=True):
            if t != IGNORE:
                counted[image, t, s] += 1
    ours = count_confusion(torch.from_numpy(found), torch.from_numpy(truth), classes)
    assert ours.dtype == torch.int64
    np.testing.assert_array_equal(ours.numpy(), counted)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_size_changes_nothing(batch, overlapping):
    torch.manual_seed(0)
    shape = (5, 3, 16, 16) if overlapping else (5, 16, 16)
    found, truth = torch.randint(0, 2 if overlapping else 3, (2, *shape))
    whole, parts = PixelScores(NAMES[:3], overlapping), PixelScores(NAMES[:3], overlapping)
    whole.update(found, truth)
    for start in range(0, 5, batch):
        parts.update(found[start : start + batch], truth[start : start + batch])
    assert floats(whole.compute()) == floats(parts.compute())


def test_a_hand_counted_case():
    truth = torch.tensor([[[0, 0, 1, 1]], [[1, 1, 1, IGNORE]]])
    found = torch.tensor([[[0, 1, 1, 1]], [[1, 1, 0, 0]]])
    score = PixelScores(["ground", "thing"])
    score.update(found, truth)
    result = floats(score.compute())
    # ground: 1 hit, 2 true, 2 found; thing: 4 hits, 5 true, 5 found
    assert result["dice/ground"] == pytest.approx(2 / 4)
    assert result["dice/thing"] == pytest.approx(8 / 10)
    assert result["iou/ground"] == pytest.approx(1 / 3)
    assert result["dice"] == pytest.approx(0.65)
    assert result["specificity/ground"] == pytest.approx(4 / 5)  # of 5 pixels of thing 4 left alone
    assert result["pixel_accuracy"] == pytest.approx(5 / 7)
    # image 1: 2/3 and 4/5; image 2: 0 (found, not true) and 4/5
    images = [(2 / 3 + 4 / 5) / 2, (0 + 4 / 5) / 2]
    assert result["dice_per_image"] == pytest.approx(np.mean(images))
    assert result["dice_per_image_sd"] == pytest.approx(np.std(images, ddof=1))


def test_labels_that_overlap_are_two_class_problems_of_their_own():
    truth = torch.tensor([[[[1, 1, 0, 0]], [[1, 0, 0, IGNORE]]]])
    found = torch.tensor([[[[1, 0, 1, 0]], [[1, 0, 0, 1]]]])
    score = PixelScores(["first", "second"], overlapping=True)
    score.update(found, truth)
    result = floats(score.compute())
    assert result["dice/first"] == pytest.approx(2 / 4)  # 1 hit, 1 false, 1 missed
    assert result["dice/second"] == 1  # 1 hit; what is said of the ignored pixel doesn't count
    assert result["accuracy/first"] == pytest.approx(2 / 4)
    assert result["pixel_accuracy"] == pytest.approx(3 / 4)  # the labels' mean


def test_a_class_that_never_occurs_is_nan_and_left_out_of_the_mean():
    score = PixelScores(["a", "b", "never"])
    score.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    result = floats(score.compute())
    assert math.isnan(result["dice/never"]) and result["dice"] == 1 and result["iou"] == 1


def test_a_class_that_is_never_called_has_a_precision_of_0_in_the_mean():
    score = PixelScores(["a", "rare"])
    score.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1]]]))
    result = floats(score.compute())
    assert math.isnan(result["precision/rare"]) and result["precision"] == pytest.approx(0.75 / 2)


def test_a_value_that_is_no_class_is_an_error():
    with pytest.raises(ValueError, match=r"mask holds \[2, 254\]"):
        count_confusion(torch.zeros(1, 2, 2).long(), torch.tensor([[[0, 1], [2, 254]]]), 2)
    with pytest.raises(ValueError, match=r"mask holds \[-1\]"):
        count_confusion(torch.zeros(1, 1, 2).long(), torch.tensor([[[0, -1]]]), 2)
    with pytest.raises(ValueError, match=r"mask holds \[2\]; allowed are 0..1"):
        count_confusion(torch.zeros(1, 3, 1, 1).long(), torch.full((1, 3, 1, 1), 2), 3)


def test_values_that_a_device_found_to_be_no_class_raise_at_the_end():
    score = PixelScores(["a", "b"])
    score.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
    score.invalid_pixels += 3  # as an update on a GPU does, which isn't waited for
    with pytest.raises(ValueError, match="3 mask pixels are neither a class"):
        score.compute()


def test_half_precision_logits_are_told_apart_in_float32():
    logits = torch.linspace(-0.7, -0.4, 4001).bfloat16().view(1, 1, 1, -1)
    for two in (logits, torch.cat([-logits / 2, logits / 2], 1)):
        found = predicted_classes(two, 0.37)
        np.testing.assert_array_equal(
            found[0], classes_from_probabilities(probabilities(two)[0].numpy(), 0.37)
        )


def test_every_score_has_its_evidence():
    torch.manual_seed(0)
    score = PixelScores(NAMES[:3])
    score.update(*torch.randint(0, 3, (2, 6, 8, 8)))
    logged, evidence = floats(score.compute()), score.bootstrap_inputs()
    for name in (
        *PIXEL_SCORES,
        "dice/a",
        "iou/c",
        "specificity/b",
        "dice_per_image",
        "iou_per_image",
    ):
        found = bootstrap_interval(*evidence[name], resamples=200)
        assert found.value == pytest.approx(logged[name]), name
        assert found.low <= found.value <= found.high


def test_scores_that_share_resamples_have_the_intervals_that_each_has_alone():
    torch.manual_seed(0)
    score = PixelScores(NAMES[:3])
    score.update(*torch.randint(0, 3, (2, 6, 8, 8)))
    evidence = score.bootstrap_inputs()
    together = bootstrap_intervals(evidence, resamples=200)
    assert list(together) == list(evidence)
    for name, (rows, function) in evidence.items():
        alone = bootstrap_interval(rows.copy(), function, resamples=200)
        np.testing.assert_equal(tuple(together[name]), tuple(alone), err_msg=name)


def test_the_matrices_of_images_are_kept_on_request_and_forgotten_with_the_counts():
    prediction, mask = (
        torch.tensor([[[0, 1, 1]], [[1, 1, 0]]]),
        torch.tensor([[[0, 0, 1]], [[1, 1, IGNORE]]]),
    )
    score = PixelScores(NAMES[:2], keep_matrices=True)
    score.update(prediction[:1], mask[:1])
    score.update(prediction[1:], mask[1:])
    assert score.matrices().tolist() == [[[1, 1], [0, 1]], [[0, 0], [0, 2]]]
    assert score.images().tolist() == [[[1, 0, 1, 1], [1, 1, 0, 1]], [[0, 0, 0, 2], [2, 0, 0, 0]]]
    score.reset()
    score.update(prediction[1:], mask[1:])
    assert score.matrices().tolist() == [[[0, 0], [0, 2]]]
    with pytest.raises(RuntimeError, match="keep_matrices"):
        PixelScores(NAMES[:2]).matrices()


def test_all_parts_agree_for_any_batch_size_and_reset_forgets():
    torch.manual_seed(0)
    logits, mask = torch.randn(4, 1, 24, 24), torch.randint(0, 2, (4, 24, 24))
    mask[0, :3] = IGNORE
    results = []
    for batch in (1, 4):
        full = SegmentationMetrics(
            ["a", "b"], tolerance=1.0, hausdorff=True, calibration=True, threshold="best"
        )
        full.update(torch.randn(1, 1, 24, 24), mask[:1])
        full.reset()
        for start in range(0, 4, batch):
            full.update(logits[start : start + batch], mask[start : start + batch])
        results.append(floats(full.compute()) | {"threshold": full.choose_threshold()})
    assert results[0] == pytest.approx(results[1])
    assert {"boundary_f", "surface_dice/a", "hausdorff_95", "ece", "dice", "accuracy/b"} <= set(
        results[0]
    )


def in_a_process(rank: int, rendezvous: str, output: str) -> None:
    """Counts its share of three images: the first process two of them, the second one."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    metrics = SegmentationMetrics(**FULL)
    for image in (0, 2) if rank == 0 else (1,):
        metrics.update(*(x[image : image + 1] for x in three_images()))
    scores = floats(metrics.compute()) | {"threshold": metrics.choose_threshold()}
    if rank == 0:
        torch.save(scores, output)
    torch.distributed.barrier()  # none leaves before the other is here
    torch.distributed.destroy_process_group()


FULL = {"classes": ["a", "b"], "tolerance": 1.0, "hausdorff": True, "calibration": True, "threshold": "best"}  # fmt: skip


def three_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (3, 16, 16), generator=generator)
    return torch.randn(3, 1, 16, 16, generator=generator), mask


def test_two_processes_count_each_image_once(tmp_path):
    output = tmp_path / "scores.pt"
    torch.multiprocessing.start_processes(
        in_a_process, (str(tmp_path / "meet"), str(output)), nprocs=2, start_method="fork"
    )
    alone = SegmentationMetrics(**FULL)
    alone.update(*three_images())
    wanted = floats(alone.compute()) | {"threshold": alone.choose_threshold()}
    assert torch.load(output) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; .* a number above 0 to below 1 is needed"),
        ({"threshold": "bst"}, "threshold is bst"),
        (
            {"classes": NAMES, "threshold": 0.3},
            "5 classes, of which the most probable is predicted",
        ),
        ({"tolerance": -1.0}, "tolerance is -1.0; a number of 0 or more"),
    ],
)
def test_a_wrong_choice_is_told(words, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(**{"classes": ["a", "b"]} | words)
