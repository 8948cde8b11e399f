"""Ties a network, a loss and the metrics to Lightning's loop."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seg.logits import predicted_classes
from seg.losses import judge
from seg.metrics import SegmentationMetrics
from seg.schedules import Constant, Schedule
from seg.tiles import full_logits


class SegmentationTask(L.LightningModule):
    """Logits -> loss and metrics; optimiser and schedule.

    Args:
        model: image (B, C, H, W) -> logits (B, K, H, W), or a list of them while training.
        loss: (logits, mask) -> scalar.
        classes: names in the order of the mask's values.
        optim: parameters -> optimiser.
        schedule: learning rate over the run.
        seed: from which each step's random numbers follow, so that a run can be taken up at any step.
        card: what a checkpoint must know to be used alone: plain values only.
        head_weights: of each head under deep supervision, shallowest first; None: equal.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        classes: list[str],
        optim: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        card: dict[str, Any] | None = None,
        head_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.optim, self.schedule = optim, schedule or Constant()
        self.seed, self.card = seed, card or {}
        self.head_weights = head_weights
        self.val_metrics, self.test_metrics = (
            SegmentationMetrics(classes),
            SegmentationMetrics(classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)  # dropout of this step

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.step(batch, "test")

    def step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Loss of a batch; logs it and its terms, and counts the metrics outside training."""
        image, mask = batch["image"], batch["mask"]
        logits = self.model(image) if stage == "train" else full_logits(self.model, image)
        heads = logits if isinstance(logits, list) else [logits]
        mask = centre(mask, heads[-1].shape[-2:])
        with torch.autocast(image.device.type, enabled=False):
            loss, terms = judge(
                self.loss, [head.float() for head in heads], mask, self.head_weights
            )
        train = stage == "train"
        values = {f"{stage}/loss": loss.detach()}
        values |= {f"{stage}/loss/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(
            values,
            on_step=train,
            on_epoch=not train,  # the mean over images
            batch_size=len(image),
            sync_dist=not train,
        )
        if not train:
            self.metrics(stage).update(predicted_classes(heads[-1]), mask)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def metrics(self, stage: str) -> SegmentationMetrics:
        return self.val_metrics if stage == "val" else self.test_metrics

    def log_metrics(self, stage: str) -> None:
        scores = self.metrics(stage).compute()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()})
        self.metrics(stage).reset()

    def configure_optimizers(self) -> Any:
        if self.optim is None:
            raise RuntimeError("this task was made to evaluate; it has no optimiser")
        optimizer = self.optim(p for p in self.model.parameters() if p.requires_grad)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seg"] = self.card


def centre(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle of masks (B, H, W) at the size of the logits, which valid convolutions make smaller."""
    top, left = (mask.shape[-2] - size[0]) // 2, (mask.shape[-1] - size[1]) // 2
    return mask[..., top : top + size[0], left : left + size[1]]
