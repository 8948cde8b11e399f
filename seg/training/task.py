"""LightningModule that combines a network, a loss, metrics, an optimiser and a schedule."""

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from seg.data.dataset import BandedSample
from seg.inference.tiling import TileSize, Tiling
from seg.losses import LossOfBands, compute_loss, term_names
from seg.losses.weighted_sum import KEPT_PIXELS
from seg.metrics import SegmentationMetrics
from seg.models.contract import same_size_logits
from seg.models.network import Network
from seg.training.schedules import Constant, Course, Schedule, Segment

log = logging.getLogger("seg")


class SegmentationTask(L.LightningModule):
    """Training, validation and test steps of a segmentation network.

    Args:
        model: image (B, C, H, W) -> logits (B, K, H, W), or a list of them in training mode.
        loss: (logits, mask) -> scalar.
        metrics: of one split; validation and test use separate copies.
        optim: parameters -> optimiser; None for a task that only evaluates.
        schedule: factor of the learning rate at each step; None: constant.
        seed: of the random numbers of each step, so that a run can be resumed at any step.
        card: plain values stored in every checkpoint, from which it can be used alone.
        head_weights: weight of the loss of each head under deep supervision, shallowest first; None: equal.
        weight_decay_of_all: whether the optimiser's weight decay covers all parameters; False: not biases and the parameters of
            normalisation layers, all those of one dimension.
        tiles: in which larger images are evaluated; None: every image goes through the network at once.
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
        weight_decay_of_all: bool = True,
        tiles: TileSize | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.optim, self.schedule = optim, schedule or Constant()
        self.seed, self.card, self.tiles = seed, card or {}, tiles
        self.course: Course | None = None  # set by fit_run; None: planned by Lightning
        self.without_loss: set[str] = set()
        self.train_losses: dict[str, Tensor] = {}  # of the last training step
        self.head_weights, self.weight_decay_of_all = head_weights, weight_decay_of_all
        self.val_metrics, self.test_metrics = metrics, deepcopy(metrics)
        names = ["loss", *(f"loss/{name}" for name in term_names(loss))]
        self.mean_losses = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in names}
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # The random numbers of a step, such as dropout, depend on (seed, step) only.
        seed = self.seed * 1_000_003 + self.global_step
        if self.device.type == "cpu":  # torch.manual_seed formats tracebacks for GPUs
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        loss, factor = self.step(batch, "train"), self.accumulation_factor(batch_index)
        return loss if factor == 1 else loss * factor

    def losses_are_logged(self) -> bool:
        """Return True if Lightning writes the losses of this step: every n-th, and the last of an epoch and of the training.

        Other steps log nothing, since a call of ``log_dict`` takes as long as a small layer.
        """
        step, every = self.global_step + 1, cast(Any, self.trainer).log_every_n_steps
        return step % every == 0 or self.trainer.is_last_batch or step == self.trainer.max_steps

    def accumulation_factor(self, batch_index: int) -> float:
        """Return the factor of a batch's loss that divides accumulated gradients by the number of their batches.

        Lightning divides by ``accumulate_grad_batches`` even if an epoch ends with fewer batches.
        """
        batches = self.trainer.accumulate_grad_batches
        rest = int(self.trainer.num_training_batches) % batches
        incomplete = rest > 0 and batch_index >= int(self.trainer.num_training_batches) - rest
        return batches / rest if incomplete else 1.0

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.evaluation_step(batch, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.evaluation_step(batch, "test", self.trainer.test_dataloaders)

    def evaluation_step(self, batch: dict[str, Any], stage: str, loader: Any) -> None:
        """Score a batch, or the images of one that are larger than a tile."""
        if "image" in batch:
            self.step(batch, stage)
            return
        for name in batch["name"]:
            with loader.dataset.open_banded(name) as sample:
                self.score_bands(sample, stage)

    def score_bands(self, sample: BandedSample, stage: str) -> None:
        """Accumulate the metrics and the loss of a large image, of which only a band is in memory."""
        assert self.tiles is not None
        height, width = sample.shape
        loss = LossOfBands(self.loss, height * width)
        tiling = Tiling(self.model, sample.prepare, *self.tiles, device=self.device, logits=True)
        for top, _, logits in tiling.parts(sample.image_rows, height):
            bottom = top + logits.shape[1]
            logits_1KHW = torch.from_numpy(logits)[None].to(self.device)
            mask = torch.from_numpy(sample.mask_rows(top, bottom).astype("int64"))[None]
            mask = mask.to(self.device)
            self.metrics(stage).update_band(logits_1KHW, mask, top == 0, bottom == height)
            loss.add(logits_1KHW, mask)
        total, terms = loss.compute()
        values = {"loss": total} | {f"loss/{name}": value for name, value in terms.items()}
        for name, value in values.items():
            if not loss.fits and loss.needs_all and value.isnan():
                self.report_without_loss(sample.name, loss)
            else:
                cast(MeanMetric, self.mean_losses[name]).update(value)

    def report_without_loss(self, name: str, loss: LossOfBands) -> None:
        """Say once for an image that its loss is left out of the mean."""
        if name not in self.without_loss:
            self.without_loss.add(name)
            parts = ", ".join(type(part).__name__ for part in loss.needs_all)
            log.info(
                f"loss       {name}: left out of the mean loss; {parts} needs the whole image, which is possible up to "
                f"{KEPT_PIXELS / 1e6:.0f} megapixels"
            )

    def step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Compute the loss of a batch; log it in training, otherwise accumulate that of each image and the metrics.

        Args:
            batch: image (B, C, H, W), mask (B, H, W) or (B, K, H, W), optionally the weight map's ``gaps``.
            stage: train, val or test.

        Returns:
            The loss, a scalar: of the batch in training, otherwise of its last image.
        """
        image, mask, gaps = batch["image"], batch["mask"], batch.get("gaps")
        logits = self.model(image) if stage == "train" else same_size_logits(self.model, image)
        heads = logits if isinstance(logits, list) else [logits]
        # Valid convolutions shrink the logits: crop the mask to their size. Losses run in float32.
        mask = crop_to_logits(mask, heads[-1].shape[-2:])
        gaps = None if gaps is None else crop_to_logits(gaps, heads[-1].shape[-2:])
        heads = [head.float() for head in heads]
        if stage == "train":
            loss, values = self.compute_losses(heads, mask, gaps)
            self.train_losses = values
            if self.losses_are_logged():
                self.log_dict(
                    {f"train/{name}": value for name, value in values.items()},
                    batch_size=len(image),
                )
            return loss
        # The epoch's loss is the mean over images, whatever the batch size and the number of ranks: losses that
        # sum over a batch (Dice, focal) are computed image by image.
        for i in range(len(image)):
            one = slice(i, i + 1)
            loss, values = self.compute_losses(
                [head[one] for head in heads], mask[one], None if gaps is None else gaps[one]
            )
            for name, value in values.items():
                cast(MeanMetric, self.mean_losses[name]).update(value)
        self.metrics(stage).update(heads[-1], mask)
        return loss

    def compute_losses(
        self, heads: list[Tensor], mask: Tensor, gaps: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the values to log: ``loss``, and ``loss/NAME`` of each term of a sum."""
        with torch.autocast(mask.device.type, enabled=False):
            loss, terms = compute_loss(self.loss, heads, mask, self.head_weights, gaps)
        values = {"loss": loss.detach()}
        return loss, values | {f"loss/{name}": value.detach() for name, value in terms.items()}

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
        """Reset the metrics and losses of a stage; the previous epoch's stay readable until then."""
        self.metrics(stage).reset()
        for mean in self.mean_losses.values():
            cast(MeanMetric, mean).reset()

    def log_metrics(self, stage: str) -> None:
        scores = {name: cast(MeanMetric, mean).compute() for name, mean in self.mean_losses.items()}
        scores |= self.metrics(stage).compute()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()})

    def optimizer(self) -> Optimizer:
        """Return a new optimiser of all trainable parameters.

        Raises:
            RuntimeError: if the task has no ``optim``.
        """
        if self.optim is None:
            raise RuntimeError("this task has no optimiser; it can only evaluate")
        learned = [p for p in self.model.parameters() if p.requires_grad]
        if self.weight_decay_of_all:
            return self.optim(learned)
        groups: Any = [
            {"params": [p for p in learned if p.ndim > 1]},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return self.optim(groups)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        if self.course is None:
            steps = int(self.trainer.estimated_stepping_batches)
            self.course = Course(self.schedule, [Segment(0, steps, 0.0)])
        scheduler = LambdaLR(optimizer, self.course.factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        # A checkpoint at the end of a run that was made longer holds the rate of a step that was not planned.
        scheduler, course = cast(LambdaLR, self.lr_schedulers()), self.course
        assert course is not None
        rates = [base * course.factor(scheduler.last_epoch) for base in scheduler.base_lrs]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seg"] = self.card


def crop_to_logits(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Crop masks (B, H, W) or (B, K, H, W) centrally to the ``size`` (H', W') of the logits."""
    top, left = (mask.shape[-2] - size[0]) // 2, (mask.shape[-1] - size[1]) // 2
    return mask[..., top : top + size[0], left : left + size[1]]
