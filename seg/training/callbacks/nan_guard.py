"""What becomes of a step whose loss or gradient isn't finite: the run stops there, or goes on without it."""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from seg.runs import checkpoint

log = logging.getLogger("seg")
FILE = "bad-batch.pt"  # image, mask and names of the batch, for torch.load


class NotFinite(RuntimeError):
    """A loss or gradient is nan or infinite."""


class Finite(L.Callback):
    """Looks at each step's gradients before the optimiser takes them.

    Under 16-mixed precision infinite gradients are usual, and its scaler leaves such steps out by itself: there
    only the loss counts.

    Args:
        folder: receives the batch that a run stopped at.
        bad_steps: stop raises; skip leaves the step out.
    """

    def __init__(self, folder: Path, bad_steps: Literal["stop", "skip"]) -> None:
        if bad_steps not in ("stop", "skip"):
            raise ValueError(f"bad_steps is {bad_steps}; stop or skip is needed")
        self.folder, self.skip = folder, bad_steps == "skip"
        self.batch: dict[str, Any] = {}
        self.loss: Tensor | None = None
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch
        if self.skip:  # running means and the like, which a forward changes
            self.buffers = [(b, b.clone()) for b in pl_module.buffers()]

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        assert self.loss is not None
        scaled = trainer.precision == "16-mixed"
        named = [] if scaled else gradients(pl_module)
        finite = [self.loss.isfinite().all(), *(g.isfinite().all() for _, g in named)]
        if bool(
            torch.stack([f.to(self.loss.device) for f in finite]).all()
        ):  # one wait for the device
            return
        bad = [name for (name, _), ok in zip(named, finite[1:], strict=True) if not ok]
        told = self.describe(trainer.global_step, bad)
        if not self.skip:
            file = self.keep(trainer.global_step, trainer.global_rank)
            raise NotFinite(
                f"{told}; {file} has the batch; a smaller optim.lr or trainer.gradient_clip_val=1 may "
                "help, bad_steps=skip goes on without such steps"
            )
        log.warning(f"{told}; left out")
        optimizer.zero_grad()
        for buffer, before in self.buffers:
            buffer.copy_(before)

    def describe(self, step: int, bad: list[str]) -> str:
        """Which step, of which images, and what of it isn't finite."""
        assert self.loss is not None
        parts = [] if self.loss.isfinite().all() else [f"the loss is {float(self.loss)}"]
        more = f" and {len(bad) - 3} more" if bad[3:] else ""
        parts += [f"gradients of {', '.join(bad[:3])}{more} aren't finite"] if bad else []
        return f"step {step}: {'; '.join(parts)}; images {', '.join(self.batch['name'])}"

    def keep(self, step: int, rank: int) -> Path:
        """The file into which the batch is written for a look; of several processes each has its own."""
        file = self.folder / (f"{rank}-{FILE}" if rank else FILE)
        content = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.batch.items()}
        checkpoint.write_checkpoint(file, content | {"step": step})
        return file


def gradients(module: L.LightningModule) -> list[tuple[str, Tensor]]:
    """The parameters that have a gradient: name and gradient."""
    return [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
