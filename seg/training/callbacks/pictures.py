"""Panels of validation images during training."""

from pathlib import Path
from typing import cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from seg import files
from seg.data.dataset import SegmentationDataset
from seg.display.layout import evenly_spaced, stack_pictures
from seg.display.panels import draw_panel, flatten_labels, legend_entries, to_rgb
from seg.logits import predicted_classes
from seg.metrics.confusion import ConfusionCounts, count_confusion, dice
from seg.models.contract import same_size_logits
from seg.training.loggers.base import Picture
from seg.training.loggers.guarded import FaultTolerantLogger


class PanelCallback(L.Callback):
    """Panels of fixed validation images: sent to the loggers at each validation, written as files at the end.

    Args:
        samples: validation split, whole images.
        count: number of images, evenly spaced over the split.
        colors: one per class.
        folder: receives the files; created if absent.
        below: folder named by the user; nothing is written through a link below it.
        threshold: probability above which a pixel is class 1 of two, or has a class that may overlap.
    """

    def __init__(
        self,
        samples: SegmentationDataset,
        count: int,
        colors: list,
        folder: Path,
        below: Path,
        threshold: float = 0.5,
    ) -> None:
        self.samples, self.folder, self.below, self.threshold = samples, folder, below, threshold
        self.classes, self.colors = list(samples.source.classes), list(colors)
        self.overlapping = samples.source.task == "overlapping"
        self.indices = evenly_spaced(len(samples), count)
        self.shown_classes, self.shown_colors = legend_entries(
            self.classes, self.colors, self.overlapping
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, FaultTolerantLogger)]
        if not loggers or not self.indices or trainer.state.fn != "fit":
            return
        model = cast(torch.nn.Module, pl_module.model)
        pictures = [self.pictured(model, index) for index in self.indices]
        for logger in loggers:
            logger.log_pictures(pictures)

    def pictured(self, model: torch.nn.Module, index: int) -> Picture:
        sample = self.samples[0, index]
        prediction = predict_image(model, sample["image"], self.threshold, self.overlapping)
        return Picture(
            sample["name"],
            to_rgb(self.image(index)),
            flatten_labels(sample["mask"].numpy()),
            flatten_labels(prediction),
            self.shown_classes,
            self.shown_colors,
        )

    def image(self, index: int) -> np.ndarray:
        return self.samples.read(self.samples.names[index])[0]

    def write(self, model: torch.nn.Module, device: torch.device | str = "cpu") -> list[Path]:
        """Write the panels of a network: one PNG per image, and all.png.

        Args:
            model: moved to ``device`` and set to evaluation mode.
            device: to predict on.

        Returns:
            The files of the single images.
        """
        model = model.to(device).eval()
        if self.indices:
            files.make_folder(self.folder, self.below)
        rows, written = [], []
        for index in self.indices:
            # Predict the image, and score it by the Dice of each class.
            sample = self.samples[0, index]
            truth = sample["mask"]
            prediction = predict_image(
                model, sample["image"].to(device), self.threshold, self.overlapping
            )
            counts = count_confusion(
                torch.from_numpy(prediction)[None], truth[None], len(self.classes)
            )
            scores = dice(ConfusionCounts.from_confusion(counts[0], self.overlapping)).tolist()
            named = zip(self.classes, scores, strict=True)
            caption = ", ".join(f"{c} {v:.3f}" for c, v in named if v == v)
            # Draw and write its panel.
            rows.append(
                draw_panel(
                    self.image(index), flatten_labels(truth.numpy()), flatten_labels(prediction), self.shown_classes,
                    self.shown_colors, title=sample["name"], caption=f"Dice: {caption}",
                )
            )  # fmt: skip
            written.append(self.folder / files.short_name(f"{Path(sample['name']).name}.png"))
            with files.atomic_write(written[-1], self.below) as aside:
                rows[-1].save(aside)
        if rows:
            with files.atomic_write(self.folder / "all.png", self.below) as aside:
                stack_pictures(rows).save(aside)
        return written


@torch.no_grad()
def predict_image(
    model: torch.nn.Module, image: Tensor, threshold: float = 0.5, overlapping: bool = False
) -> np.ndarray:
    """Predict one normalised image (C, H, W); the model's training mode is restored.

    Returns:
        Class indices (H, W), or for overlapping classes binary planes (K, H, W); uint8.
    """
    device = next(model.parameters()).device
    training = model.training
    logits = same_size_logits(model.eval(), image[None].to(device))
    model.train(training)
    return predicted_classes(logits, threshold, overlapping)[0].cpu().numpy().astype(np.uint8)
