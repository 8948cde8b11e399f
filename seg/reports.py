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
from rich.table import Table
from torch import Tensor

from seg import files
from seg.console import console
from seg.data.module import Samples
from seg.logits import predicted_classes
from seg.metrics.confusion import Tally, confusion, dice
from seg.metrics.significance import Interval
from seg.panels import panel, picture, sheet, shown, to_rgb
from seg.tiles import full_logits
from seg.tracking import Guarded, Picture

log = logging.getLogger("seg")


def on_terminal() -> bool:
    """Whether anybody watches."""
    return console.is_terminal


def progress_bar() -> RichProgressBar:
    """Lightning's bar, with loss and Dice; for terminals."""
    return RichProgressBar(leave=False, theme=RichProgressBarTheme(metrics_format=".3f"))


class Lines(L.Callback):
    """One line for each validation, and images a second into the log.

    Attributes:
        seconds: spent on fitting until the last epoch's end, those before a run was taken up included.
    """

    seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before, self.started = self.seconds, time.perf_counter()
        self.paused, self.images = 0.0, 0

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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = self.before + time.perf_counter() - self.started
        seconds = time.perf_counter() - self.started - self.paused
        rate = self.images * trainer.world_size / max(seconds, 1e-9)
        values = {
            "images_per_second": rate,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch": float(trainer.current_epoch),
        }
        for one in trainer.loggers:  # now: Lightning's own way is after the epoch's checkpoint
            one.log_metrics(values, trainer.global_step - 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        now = time.perf_counter()
        self.paused += now - self.pause
        self.seconds = self.before + now - self.started
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        loss = values.get("train/loss", float("nan"))
        log.info(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>5}  "
            f"train/loss {loss:.3f}  val/loss {values['val/loss']:.3f}  "
            f"val/dice {values['val/dice']:.4f}  val/iou {values['val/iou']:.4f}  "
            f"{self.seconds:.0f} s"
        )


class Pictures(L.Callback):
    """Panels of fixed validation images: a file each when training ends, and to the loggers at each validation.

    Args:
        samples: the validation split, whole images.
        count: how many, evenly spread over the split.
        colors: one a class.
        folder: receives the files; made.
        below: folder that the user named.
        threshold: probability above which a pixel is class 1 of two, or has a class that may overlap.
    """

    def __init__(
        self,
        samples: Samples,
        count: int,
        colors: list,
        folder: Path,
        below: Path,
        threshold: float = 0.5,
    ) -> None:
        self.samples, self.folder, self.below, self.threshold = samples, folder, below, threshold
        self.classes, self.colors = list(samples.source.classes), list(colors)
        self.overlapping = samples.source.task == "overlapping"
        self.indices = evenly(len(samples), count)
        self.shown_classes, self.shown_colors = shown(self.classes, self.colors, self.overlapping)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [one for one in trainer.loggers if isinstance(one, Guarded)]
        if not loggers or not self.indices or trainer.state.fn != "fit":
            return
        model = cast(torch.nn.Module, pl_module.model)
        pictures = [self.pictured(model, index) for index in self.indices]
        for one in loggers:
            one.log_pictures(pictures)

    def pictured(self, model: torch.nn.Module, index: int) -> Picture:
        sample = self.samples[0, index]
        prediction = predict_one(model, sample["image"], self.threshold, self.overlapping)
        return Picture(
            sample["name"],
            to_rgb(self.image(index)),
            picture(sample["mask"].numpy()),
            picture(prediction),
            self.shown_classes,
            self.shown_colors,
        )

    def image(self, index: int) -> np.ndarray:
        return self.samples.read(self.samples.names[index])[0]

    def write(self, model: torch.nn.Module, device: torch.device | str = "cpu") -> list[Path]:
        """Writes the panels of the given network, best to worst unsorted: one PNG an image, and all.png."""
        model = model.to(device).eval()
        if self.indices:
            files.make_folder(self.folder, self.below)
        rows, written = [], []
        for index in self.indices:
            sample = self.samples[0, index]
            truth = sample["mask"]
            prediction = predict_one(
                model, sample["image"].to(device), self.threshold, self.overlapping
            )
            counts = confusion(torch.from_numpy(prediction)[None], truth[None], len(self.classes))
            scores = dice(Tally.of(counts[0], self.overlapping)).tolist()
            named = zip(self.classes, scores, strict=True)
            caption = ", ".join(f"{c} {v:.3f}" for c, v in named if v == v)
            rows.append(
                panel(
                    self.image(index), picture(truth.numpy()), picture(prediction), self.shown_classes,
                    self.shown_colors, title=sample["name"], caption=f"Dice: {caption}",
                )
            )  # fmt: skip
            written.append(self.folder / f"{Path(sample['name']).name}.png")
            with files.whole(written[-1], self.below) as aside:
                rows[-1].save(aside)
        if rows:
            with files.whole(self.folder / "all.png", self.below) as aside:
                sheet(rows).save(aside)
        return written


def evenly(size: int, count: int) -> list[int]:
    """``count`` indices spread over 0 .. size - 1."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, count))}) if count else []


@torch.no_grad()
def predict_one(
    model: torch.nn.Module, image: Tensor, threshold: float = 0.5, overlapping: bool = False
) -> np.ndarray:
    """Classes (H, W) or planes (K, H, W) uint8 of one normalised image (C, H, W); the mode is kept."""
    device = next(model.parameters()).device
    training = model.training
    logits = full_logits(model.eval(), image[None].to(device))
    model.train(training)
    return predicted_classes(logits, threshold, overlapping)[0].cpu().numpy().astype(np.uint8)


COLUMNS = {
    "dice": "Dice (F1)",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
}
BORDERS = {
    "boundary_f": "boundary F",
    "surface_dice": "surface Dice",
    "hausdorff_95": "HD95, px",
}
NO_INTERVALS: Mapping[str, Interval] = {}


def score_table(
    title: str,
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> Table:
    """A row a class, the mean over those that occur below; with intervals, Dice and IoU have theirs."""
    columns = dict(COLUMNS)
    if intervals:  # they take the place of the least asked for
        del columns["specificity"]
    return class_table(title, columns, scores, classes, prefix, intervals)


def border_table(
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> Table:
    """How well the borders of each class lie."""
    columns = {name: text for name, text in BORDERS.items() if f"{prefix}{name}" in scores}
    return class_table("borders", columns, scores, classes, prefix, intervals)


def class_table(
    title: str,
    columns: Mapping[str, str],
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval],
) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("class")
    for name, header in columns.items():
        table.add_column(header, justify="right")
        if f"{prefix}{name}" in intervals:
            table.add_column("interval", justify="center", style="dim")
    for c in (*classes, None):
        if c is None:
            table.add_section()
        cells = []
        for name in columns:
            key = f"{prefix}{name}" if c is None else f"{prefix}{name}/{c}"
            cells.append(number(scores.get(key)))
            if f"{prefix}{name}" in intervals:
                cells.append(span(intervals[key]) if key in intervals else "")
        table.add_row("mean" if c is None else c, *cells, style="bold" if c is None else None)
    return table


OBJECTS = {  # scores of objects: key and name
    "v_rand": "V_rand, after border thinning",
    "v_info": "V_info, after border thinning",
    "rand_error": "rand error",
    "warping_error": "warping error, every pixel that differs",
    "split_merge_error": "warping error, splits and mergers",
    "pixel_error": "pixel error",
    "object_f1": "objects: F1 at IoU above 0.5",
    "ap": "objects: AP, mean over IoU 0.50 to 0.95",
    "pq": "objects: panoptic quality",
}


def object_table(
    scores: Mapping[str, float], prefix: str, intervals: Mapping[str, Interval]
) -> Table:
    """Scores of borders between objects, each at its best threshold, and of objects one by one."""
    title = "borders between objects at the best threshold, and objects one by one"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("score")
    table.add_column("", justify="right")
    if intervals:
        table.add_column("interval", justify="center", style="dim")
    for name, header in OBJECTS.items():
        key, tiny = f"{prefix}{name}", "warping" in header  # the paper gives these to 1e-6
        value = f"{scores[key]:.6f}" if tiny else number(scores[key])
        table.add_row(
            header, value, *([span(intervals[key], 6 if tiny else 3)] if intervals else [])
        )
    return table


def span(interval: Interval, digits: int = 3) -> str:
    """Its ends, briefly: .861-.874 or 3.4-5.1."""
    if interval.low != interval.low:
        return "-"
    if interval.high > 1:
        digits = 1 if interval.high < 100 else 0
        return f"{interval.low:.{digits}f}-{interval.high:.{digits}f}"
    ends = (f"{end:.{digits}f}" for end in (interval.low, interval.high))
    return "-".join("1" if end.startswith("1") else end.removeprefix("0") for end in ends)


def interval_line(images: int, level: float) -> str:
    """What the intervals are, and how far to trust them."""
    few = "; so few images make them too narrow" if images < 20 else ""
    return f"intervals: {level:.0%} by bootstrap over {images} images, taken as independent{few}"


def score_line(scores: Mapping[str, float], classes: list[str], prefix: str) -> str:
    """What stands under the table: what the mean leaves out, the images' own scores, accuracy."""
    spread = scores.get(f"{prefix}dice_per_image_sd")
    plus_minus = "" if spread is None else f" +- {spread:.4f}"
    absent = [
        c
        for c in classes
        if scores.get(f"{prefix}dice/{c}", 0) != scores.get(f"{prefix}dice/{c}", 0)
    ]
    left_out = f"; {', '.join(absent)} occurs nowhere and is left out of the mean" if absent else ""
    ece = scores.get(f"{prefix}ece")
    calibration = "" if ece is None else f"; expected calibration error {ece:.4f}"
    return (
        f"over all pixels of the split{left_out}; the mean of each image's own Dice is "
        f"{number(scores.get(f'{prefix}dice_per_image'))}{plus_minus}; "
        f"pixel accuracy {number(scores.get(f'{prefix}pixel_accuracy'))}{calibration}"
    )


def number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
