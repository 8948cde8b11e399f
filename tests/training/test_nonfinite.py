"""A non-finite loss or gradient stops the run with a helpful error, or the step is skipped."""

import lightning as L
import pytest
import torch
from small_runs import TINY, config, weights

from seg.runs import checkpoint, records
from seg.training.callbacks.nan_guard import BAD_BATCH_FILE, NonFiniteError
from seg.training.run import train

WORDS = [*TINY, "panels=0", "trainer.max_epochs=2"]


class Poison(L.Callback):
    """Makes the images of a step, or a gradient, not a number."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.what == "image" and trainer.global_step == self.step:
            batch["image"][0, 0, 0, 0] = float("nan")

    def on_after_backward(self, trainer, pl_module) -> None:
        if self.what == "gradient" and trainer.global_step == self.step:
            next(pl_module.model.parameters()).grad[0] = float("inf")


@pytest.mark.parametrize("what", ["image", "gradient"])
def test_a_run_stops_at_the_step_and_keeps_its_batch(tmp_path, what):
    first = "the loss is nan" if what == "image" else r"gradients of model\.\S+ are not finite"
    with pytest.raises(NonFiniteError, match=rf"step 2: {first}.*images train-00\d"):
        train(config("train", *WORDS, f"outputs={tmp_path}"), [Poison(2, what)])
    folder = next(f.parent for f in tmp_path.glob("*/run.json") if not f.parent.is_symlink())
    record = records.read_json(folder / "run.json")
    assert record["status"] == "failed" and record["error"].startswith("NonFiniteError: step 2")
    kept = checkpoint.read_checkpoint(folder / BAD_BATCH_FILE)
    assert kept["step"] == 2 and kept["image"].shape == (4, 1, 32, 32) and len(kept["name"]) == 4
    assert bool(kept["image"].isnan().any()) == (what == "image")
    assert checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


@pytest.mark.parametrize("what", ["image", "gradient"])
def test_skipped_steps_change_no_weight(tmp_path, caplog, what):
    words = [*WORDS, "on_nonfinite=skip", "optim.weight_decay=0"]
    train(config("train", *words, f"outputs={tmp_path}"), [Poison(3, what)])
    assert "step 3: " in caplog.text and "step skipped" in caplog.text
    folder = (tmp_path / "latest").resolve()
    assert records.read_json(folder / "run.json")["status"] == "finished"
    assert not (folder / BAD_BATCH_FILE).exists()
    state = checkpoint.read_checkpoint(folder / "checkpoints/last.ckpt")
    steps = {int(s["step"]) for s in state["optimizer_states"][0]["state"].values()}
    assert steps == {state["global_step"] - 1}  # every tensor left that one step out
    assert all(torch.isfinite(t).all() for t in state["state_dict"].values())


def test_another_word_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_nonfinite is ignore; one of stop, skip is needed"):
        train(config("train", *WORDS, f"outputs={tmp_path}", "on_nonfinite=ignore"))
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
