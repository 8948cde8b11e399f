"""Panels of validation images during training."""

from pathlib import Path
from typing import cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from seg import files
from seg.data.dataset import Samples
from seg.display.layout import evenly
from seg.display.panels import panel, picture, sheet, shown, to_rgb
from seg.logits import predicted_classes
from seg.metrics.confusion import Tally, confusion, dice
from seg.models.contract import full_logits
from seg.training.loggers import Guarded, Picture


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
