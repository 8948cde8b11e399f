"""Progress bar, a line for each validation, and a line in time where validations are far apart."""

import logging
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from seg.display.console import console
from seg.display.tables import foreground_dice, never_predicted

log = logging.getLogger("seg")
LINE_SECONDS = 30.0  # longest time without a line, where there is no progress bar


def shows_progress_bar() -> bool:
    """Return True if the output is a terminal or a notebook."""
    return console.is_terminal or console.is_jupyter


def progress_bar() -> ProgressBar:
    """Return Lightning's progress bar with loss and Dice: rich's for terminals, tqdm's for notebooks."""
    if console.is_jupyter:
        return TQDMProgressBar(leave=False)
    return RichProgressBar(leave=False, theme=RichProgressBarTheme(metrics_format=".3f"))


class ProgressLogger(L.Callback):
    """Logs a line per validation, and images per second at the end of each epoch.

    Without a progress bar it also logs a line when none has been logged for ``LINE_SECONDS``.

    Attributes:
        seconds: spent on training up to the end of the last epoch, including the time before a resumption.
    """

    seconds = 0.0

    @property
    def state_key(self) -> str:
        return "Lines"  # in checkpoints, whatever the name of the class

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before, self.started = self.seconds, time.perf_counter()
        self.paused, self.images, self.last_line = 0.0, 0, self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += len(batch["image"])
        if self.line_is_due(trainer):
            self.log_line(
                f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>5} of "
                f"{cast(Any, pl_module).course.end}  train/loss {float(outputs['loss']):.3f}  "
                f"{self.before + time.perf_counter() - self.started:.0f} s"
            )

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and self.line_is_due(trainer):
            batches = trainer.num_val_batches[dataloader_idx]
            self.log_line(
                f"epoch {trainer.current_epoch + 1:>3}  validation, batch {batch_idx + 1} of {batches}"
            )

    def line_is_due(self, trainer: L.Trainer) -> bool:
        """Return True if the last line is long ago and no progress bar is shown."""
        due = time.perf_counter() - self.last_line >= LINE_SECONDS
        return due and trainer.is_global_zero and trainer.progress_bar_callback is None

    def log_line(self, line: str) -> None:
        self.last_line = time.perf_counter()
        log.info(line)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = self.before + time.perf_counter() - self.started
        seconds = time.perf_counter() - self.started - self.paused
        rate = self.images * trainer.world_size / max(seconds, 1e-9)
        values = {
            "images_per_second": rate,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch": float(trainer.current_epoch),
        }
        # Written directly: Lightning would write them only after the epoch's checkpoint.
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step - 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        now = time.perf_counter()
        self.paused += now - self.pause
        self.seconds = self.before + now - self.started
        task: Any = pl_module
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        loss = float(task.train_losses.get("loss", float("nan")))
        metrics: Any = task.val_metrics
        foreground = foreground_dice(values, metrics.classes, metrics.overlapping, "val/")
        beside = f" ({foreground[0]} {foreground[1]:.4f})" if foreground else ""
        missed = ", ".join(never_predicted(values, metrics.classes, "val/"))
        self.log_line(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>5}  "
            f"train/loss {loss:.3f}  val/loss {values['val/loss']:.3f}  "
            f"val/dice {values['val/dice']:.4f}{beside}  val/iou {values['val/iou']:.4f}  {self.seconds:.0f} s"
            f"{f'  never predicted: {missed}' if missed else ''}"
        )
