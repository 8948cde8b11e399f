"""What people see of a run: progress on the terminal, pictures, tables."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import WandbLogger
from rich.table import Table
from torch import Tensor

from seg import metrics
from seg.console import console
from seg.data.module import Samples
from seg.logits import IGNORE, predicted_classes
from seg.panels import panel, sheet, to_rgb
from seg.tiles import full_logits

log = logging.getLogger("seg")


def on_terminal() -> bool:
    """Whether anybody watches."""
    return console.is_terminal


def progress_bar() -> RichProgressBar:
    """Lightning's bar, with loss and Dice; for terminals."""
    return RichProgressBar(leave=False, theme=RichProgressBarTheme(metrics_format=".3f"))


class Lines(L.Callback):
    """One line for each validation, and images a second into the log."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started, self.paused, self.images = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += len(batch["image"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.perf_counter() - self.started - self.paused
        rate = self.images * trainer.world_size / max(seconds, 1e-9)
        pl_module.log("images_per_second", rate)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        self.paused += time.perf_counter() - self.pause
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        loss = values.get("train/loss", float("nan"))
        log.info(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>5}  "
            f"train/loss {loss:.3f}  val/loss {values['val/loss']:.3f}  "
            f"val/dice {values['val/dice']:.4f}  val/iou {values['val/iou']:.4f}  "
            f"{time.perf_counter() - self.started:.0f} s"
        )


class Pictures(L.Callback):
    """Panels of fixed validation images: a file each when training ends, and to W&B at each validation.

    Args:
        samples: the validation split, whole images.
        count: how many, evenly spread over the split.
        classes: names in the order of the mask's values.
        colors: one a class.
        folder: receives the files.
    """

    def __init__(
        self, samples: Samples, count: int, classes: list[str], colors: list, folder: Path
    ) -> None:
        self.samples, self.classes, self.colors, self.folder = samples, classes, colors, folder
        self.indices = evenly(len(samples), count)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [one for one in trainer.loggers if isinstance(one, WandbLogger)]
        if (
            not loggers
            or not self.indices
            or trainer.state.fn != "fit"
            or not trainer.is_global_zero
        ):
            return
        import wandb

        names = dict(enumerate(self.classes)) | {IGNORE: "ignore"}
        pictures = []
        for index in self.indices:
            sample = self.samples[0, index]
            prediction = predict_one(cast(torch.nn.Module, pl_module.model), sample["image"])
            masks = {"prediction": prediction, "truth": sample["mask"].numpy()}
            pictures.append(
                wandb.Image(
                    to_rgb(self.image(index)),
                    caption=sample["name"],
                    masks={k: {"mask_data": m, "class_labels": names} for k, m in masks.items()},
                )
            )
        for one in loggers:
            one.experiment.log({"val/images": pictures, "trainer/global_step": trainer.global_step})

    def image(self, index: int) -> np.ndarray:
        return self.samples.source.read(self.samples.names[index])[0]

    def write(self, model: torch.nn.Module, device: torch.device | str = "cpu") -> list[Path]:
        """Writes the panels of the given network, best to worst unsorted: one PNG an image, and all.png."""
        model = model.to(device).eval()
        rows, files = [], []
        for index in self.indices:
            sample = self.samples[0, index]
            truth, prediction = sample["mask"], predict_one(model, sample["image"].to(device))
            scores = metrics.dice(
                metrics.confusion(
                    torch.from_numpy(prediction)[None], truth[None], len(self.classes)
                )[0]
            )
            dice = ", ".join(
                f"{c} {v:.3f}" for c, v in zip(self.classes, scores.tolist(), strict=True) if v == v
            )
            rows.append(
                panel(
                    self.image(index), truth.numpy(), prediction, self.classes, self.colors,
                    title=sample["name"], caption=f"Dice: {dice}",
                )
            )  # fmt: skip
            files.append(self.folder / f"{Path(sample['name']).name}.png")
            rows[-1].save(files[-1])
        if rows:
            sheet(rows).save(self.folder / "all.png")
        return files


def evenly(size: int, count: int) -> list[int]:
    """``count`` indices spread over 0 .. size - 1."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, count))}) if count else []


@torch.no_grad()
def predict_one(model: torch.nn.Module, image: Tensor) -> np.ndarray:
    """Classes (H, W) uint8 of one normalised image (C, H, W), in the mode the network is in, kept so."""
    device = next(model.parameters()).device
    training = model.training
    classes = predicted_classes(full_logits(model.eval(), image[None].to(device)))[0]
    model.train(training)
    return classes.cpu().numpy().astype(np.uint8)


def score_table(title: str, scores: Mapping[str, float], classes: list[str], prefix: str) -> Table:
    """Dice, IoU, precision and recall: a row a class, the mean below."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("class")
    columns = ("dice", "iou", "precision", "recall")
    for name in ("Dice", "IoU", "precision", "recall"):
        table.add_column(name, justify="right")
    for c in classes:
        table.add_row(c, *(number(scores.get(f"{prefix}{name}/{c}")) for name in columns))
    table.add_section()
    table.add_row(
        "mean",
        number(scores.get(f"{prefix}dice")),
        number(scores.get(f"{prefix}iou")),
        "",
        "",
        style="bold",
    )
    return table


def score_line(scores: Mapping[str, float], prefix: str) -> str:
    """What stands under the table: the images' own scores, and accuracy."""
    spread = scores.get(f"{prefix}dice_per_image_sd")
    plus_minus = "" if spread is None else f" +- {spread:.4f}"
    return (
        f"over all pixels of the split; the mean of each image's own Dice is "
        f"{number(scores.get(f'{prefix}dice_per_image'))}{plus_minus}; "
        f"accuracy {number(scores.get(f'{prefix}accuracy'))}"
    )


def number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
