"""Description of the current memory demand, for out-of-memory errors."""

from typing import Any

import lightning as L

TRAINING_ADVICE = (
    "lower loader.batch_size (trainer.accumulate_grad_batches={} keeps the effective batch), loader.crop or "
    "model.width; on a GPU trainer.precision=bf16-mixed needs less too"
)
EVALUATION_ADVICE = "lower tile, loader.eval_batch_size or model.width"


class MemoryHint(L.Callback):
    """Keeps a description of the batch being processed, and of the options that lower its memory.

    Args:
        text: description before the first batch.
        accumulate: batches per optimiser step.

    Attributes:
        text: description of the current batch.
        lower: advice on the options to lower.
    """

    def __init__(self, text: str, accumulate: int) -> None:
        self.text, self.training = text, TRAINING_ADVICE.format(2 * accumulate)
        self.lower = self.training

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.text, self.lower = f"training, a batch of {describe_batch(batch)}", self.training

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:  # fmt: skip
        self.text, self.lower = f"validation, a batch of {describe_batch(batch)}", EVALUATION_ADVICE

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:  # fmt: skip
        self.text, self.lower = f"the test, a batch of {describe_batch(batch)}", EVALUATION_ADVICE


def describe_batch(batch: Any) -> str:
    """Describe the size of a batch of images (B, C, H, W), or of one that is read in tiles."""
    if "image" not in batch:
        return f"tiles of {', '.join(batch['name'])}"
    b, c, h, w = batch["image"].shape
    return f"{b} of {h}x{w} px and {c} channel(s)"
