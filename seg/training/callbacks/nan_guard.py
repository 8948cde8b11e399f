"""Handle non-finite losses and gradients: stop the run or skip the step."""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from seg.ranges import check_ranges
from seg.runs import checkpoint

log = logging.getLogger("seg")
BAD_BATCH_FILE = "bad-batch.pt"  # image, mask and names of the batch, readable by torch.load


class NonFiniteError(RuntimeError):
    """Raised when a loss or gradient is nan or infinite."""


class NonFiniteGuard(L.Callback):
    """Checks loss and gradients before each optimiser step.

    Under 16-mixed precision, infinite gradients are normal and the gradient scaler skips such steps itself; only the
    loss is checked then.

    Args:
        folder: run folder, which receives the batch that stopped the run.
        on_nonfinite: stop: raise NonFiniteError; skip: skip the step.

    Raises:
        ValueError: if ``on_nonfinite`` is neither.
    """

    @check_ranges
    def __init__(self, folder: Path, on_nonfinite: Literal["stop", "skip"]) -> None:
        self.folder, self.skip = folder, on_nonfinite == "skip"
        self.batch: dict[str, Any] = {}
        self.loss: Tensor | None = None
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch
        if self.skip:  # batch norm's running statistics, which the forward pass changes
            self.buffers = [(b, b.clone()) for b in pl_module.buffers()]

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        assert self.loss is not None
        # The largest magnitude of all values is finite if each is: one synchronisation of the device.
        scaled = trainer.precision == "16-mixed"
        named = [] if scaled else named_gradients(pl_module)
        largest = get_total_norm([self.loss, *(gradient for _, gradient in named)], torch.inf)
        if bool(largest.isfinite()):
            return
        # Stop with the batch saved, or skip the step and restore the buffers.
        bad = [name for name, gradient in named if not gradient.isfinite().all()]
        description = self.describe(trainer.global_step, bad)
        if not self.skip:
            file = self.keep(trainer.global_step, trainer.global_rank)
            raise NonFiniteError(
                f"{description}; the batch is saved in {file}; a smaller optim.lr or trainer.gradient_clip_val=1 may "
                "help, and on_nonfinite=skip skips such steps"
            )
        log.warning(f"{description}; step skipped")
        optimizer.zero_grad()
        for buffer, before in self.buffers:
            buffer.copy_(before)

    def describe(self, step: int, bad: list[str]) -> str:
        """Describe a bad step: its number, the non-finite values and the images."""
        assert self.loss is not None
        parts = [] if self.loss.isfinite().all() else [f"the loss is {float(self.loss)}"]
        more = f" and {len(bad) - 3} more" if bad[3:] else ""
        parts += [f"gradients of {', '.join(bad[:3])}{more} are not finite"] if bad else []
        return f"step {step}: {'; '.join(parts)}; images {', '.join(self.batch['name'])}"

    def keep(self, step: int, rank: int) -> Path:
        """Save the batch for inspection, one file per rank, and return the file."""
        file = self.folder / (f"{rank}-{BAD_BATCH_FILE}" if rank else BAD_BATCH_FILE)
        content = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.batch.items()}
        checkpoint.write_checkpoint(file, content | {"step": step})
        return file


def named_gradients(module: L.LightningModule) -> list[tuple[str, Tensor]]:
    """Return name and gradient of each parameter that has one."""
    return [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
