"""Lines of a training: one for each validation, others in time, and where it ended early."""

import re

import pytest
from small_runs import tiny

from seg.display.tables import foreground_dice, never_predicted
from seg.training.callbacks import progress

NAN = float("nan")


def test_never_predicted_are_classes_of_the_truth_without_a_predicted_pixel():
    scores = {
        "dice/a": 0.9, "recall/a": 0.9, "precision/a": 0.9,
        "dice/b": 0.0, "recall/b": 0.0, "precision/b": NAN,  # in the truth, predicted nowhere
        "dice/c": 0.0, "recall/c": 0.0, "precision/c": 0.0,  # predicted in wrong places
        "dice/d": NAN, "recall/d": NAN, "precision/d": NAN,  # neither
    }  # fmt: skip
    assert never_predicted(scores, list("abcd"), "") == ["b"]
    assert foreground_dice(scores, list("abcd"), False, "") == ("without a", 0.0)
    assert foreground_dice(scores, ["b", "a"], False, "") == ("a", 0.9)
    assert foreground_dice(scores, ["a", "d"], False, "") is None
    assert foreground_dice(scores, list("ab"), True, "") is None


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_line_in_time_between_validations(tmp_path, capsys, monkeypatch, seconds):
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    scores, _ = tiny(tmp_path, "trainer.max_epochs=1")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    between = [f"epoch   1  step     {n} of 2  train/loss" for n in (1, 2)]
    between += [f"epoch   1  validation, batch {n} of 2" for n in (1, 2)]
    assert len(lines) == (5 if seconds == 0 else 1)
    for line, start in zip(lines, between, strict=False):
        assert line.startswith(start) or seconds
    found = re.search(r"val/dice (\S+) \(cell (\S+)\)", lines[-1])
    assert found and len(lines[-1]) < 130
    dice, cell = map(float, found.groups())
    assert dice == pytest.approx(scores["best/val/dice"], abs=1e-4)
    assert cell == pytest.approx(scores["best/val/dice/cell"], abs=1e-4)


def test_a_class_that_is_never_predicted_is_told(tmp_path, capsys):
    tiny(tmp_path, "trainer.max_epochs=1", "optim.lr=0", "threshold=0.999999")
    out = capsys.readouterr().out
    assert (
        out.count("never predicted: cell") == 3
    )  # in the line, and below the tables of validation and test


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_time=00:00:00:00"], r"trainer\.max_time ended the training in epoch 1 of 9, after [01] steps, the same in  python -m seg\.rerun run="),
        (["patience=1", "optim.lr=0"], r"patience ended the training in epoch 2 of 9, after 4 of 18 steps"),
        (["trainer.max_epochs=1"], None),
    ],
)  # fmt: skip
def test_an_early_end_is_told(tmp_path, capsys, words, told):
    tiny(tmp_path, "trainer.max_epochs=9", *words)
    out = capsys.readouterr().out
    assert ("ended the training" in out) == (told is not None)
    assert told is None or re.search(told, out), out
