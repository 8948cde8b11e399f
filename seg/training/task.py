"""Ties a network, a loss and the metrics to Lightning's loop."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from seg.losses import Sum, judge
from seg.metrics import SegmentationMetrics
from seg.models.contract import full_logits
from seg.models.network import Network
from seg.training.schedules import Constant, Schedule


class SegmentationTask(L.LightningModule):
    """Logits -> loss and metrics; optimiser and schedule.

    Args:
        model: image (B, C, H, W) -> logits (B, K, H, W), or a list of them while training.
        loss: (logits, mask) -> scalar.
        metrics: of a split; validation and test get one each.
        optim: parameters -> optimiser.
        schedule: learning rate over the run.
        seed: from which each step's random numbers follow, so that a run can be taken up at any step.
        card: what a checkpoint must know to be used alone: plain values only.
        head_weights: of each head under deep supervision, shallowest first; None: equal.
    """

    def __init__(
        self,
        model: Network,
        loss: nn.Module,
        metrics: SegmentationMetrics,
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
        self.val_metrics, self.test_metrics = metrics, deepcopy(metrics)
        names = (
            ["loss", *(f"loss/{name}" for name in loss.losses)]
            if isinstance(loss, Sum)
            else ["loss"]
        )
        self.mean_losses = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in names}
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
        """Loss of a batch; training logs it and its terms, else it is averaged and the metrics counted."""
        image, mask, gaps = batch["image"], batch["mask"], batch.get("gaps")
        logits = self.model(image) if stage == "train" else full_logits(self.model, image)
        heads = logits if isinstance(logits, list) else [logits]
        mask = centre(mask, heads[-1].shape[-2:])
        gaps = None if gaps is None else centre(gaps, heads[-1].shape[-2:])
        with torch.autocast(image.device.type, enabled=False):
            loss, terms = judge(
                self.loss, [head.float() for head in heads], mask, self.head_weights, gaps
            )
        values = {"loss": loss.detach()}
        values |= {f"loss/{name}": value.detach() for name, value in terms.items()}
        if stage == "train":
            self.log_dict(
                {f"train/{name}": value for name, value in values.items()}, batch_size=len(image)
            )
            return loss
        for name, value in values.items():  # the mean over images, also of several processes
            cast(MeanMetric, self.mean_losses[name]).update(value, weight=len(image))
        self.metrics(stage).update(heads[-1], mask)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def metrics(self, stage: str) -> SegmentationMetrics:
        return self.val_metrics if stage == "val" else self.test_metrics

    def on_validation_epoch_start(self) -> None:
        self.start("val")

    def on_test_epoch_start(self) -> None:
        self.start("test")

    def start(self, stage: str) -> None:
        """Forgets what was counted before; it stays readable until then."""
        self.metrics(stage).reset()
        for mean in self.mean_losses.values():
            cast(MeanMetric, mean).reset()

    def log_metrics(self, stage: str) -> None:
        scores = {name: cast(MeanMetric, mean).compute() for name, mean in self.mean_losses.items()}
        scores |= self.metrics(stage).compute()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()})

    def optimizer(self) -> Optimizer:
        """A new one, of all that is learnt."""
        if self.optim is None:
            raise RuntimeError("this task was made to evaluate; it has no optimiser")
        return self.optim(p for p in self.model.parameters() if p.requires_grad)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seg"] = self.card


def centre(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """The middle of masks (B, H, W) or (B, K, H, W) at the size of the logits, which valid convolutions make smaller."""
    top, left = (mask.shape[-2] - size[0]) // 2, (mask.shape[-1] - size[1]) // 2
    return mask[..., top : top + size[0], left : left + size[1]]
