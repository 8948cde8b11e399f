"""Description of the largest memory demand so far, for out-of-memory errors."""

from typing import Any

import lightning as L

TRAINING = (
    "lower loader.batch_size (trainer.accumulate_grad_batches={} keeps the effective batch), loader.crop or "
    "model.width; on a GPU trainer.precision=bf16-mixed needs less too"
)
WHOLE = "whole images go in there: lower loader.eval_batch_size or model.width, or cut the images"


class Demand(L.Callback):
    """Remembers what the machine was asked for last.

    Args:
        text: what it is asked for first.
        accumulate: batches that make one optimiser step.
    """

    def __init__(self, text: str, accumulate: int) -> None:
        self.text, self.training = text, TRAINING.format(2 * accumulate)
        self.lower = self.training

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.text, self.lower = f"training, a batch of {size(batch)}", self.training

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:  # fmt: skip
        self.text, self.lower = f"validation, a batch of {size(batch)}", WHOLE

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:  # fmt: skip
        self.text, self.lower = f"the test, a batch of {size(batch)}", WHOLE


def size(batch: Any) -> str:
    """A batch's images (B, C, H, W), in words."""
    b, c, h, w = batch["image"].shape
    return f"{b} of {h}x{w} px and {c} channel(s)"
