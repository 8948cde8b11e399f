"""Panels of validation images during training."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from seg import files
from seg.data.dataset import BandedSample, SegmentationDataset
from seg.display.layout import evenly_spaced, stack_pictures
from seg.display.panels import draw_panel, flatten_labels, legend_entries, to_rgb
from seg.inference.tiling import Tiling, choose_tile
from seg.logits import predicted_classes
from seg.metrics.confusion import count_confusion
from seg.metrics.pixel_scores import ConfusionCounts, dice
from seg.models.contract import same_size_logits
from seg.training.loggers.base import Picture
from seg.training.loggers.guarded import FaultTolerantLogger

PICTURED_SIDE = 2048  # px: the longest side of a pictured image that is larger than a tile


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
        predicted = predict_sample(model, self.samples, index, self.threshold)
        return Picture(
            self.samples.names[index],
            to_rgb(predicted.image),
            flatten_labels(predicted.truth),
            flatten_labels(predicted.prediction),
            self.shown_classes,
            self.shown_colors,
        )

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
            name, predicted = (
                self.samples.names[index],
                predict_sample(model, self.samples, index, self.threshold),
            )
            scores = dice(
                ConfusionCounts.from_confusion(predicted.counts, self.overlapping)
            ).tolist()
            named = zip(self.classes, scores, strict=True)
            caption = ", ".join(f"{c} {v:.3f}" for c, v in named if v == v)
            # Draw and write its panel.
            rows.append(
                draw_panel(
                    predicted.image, flatten_labels(predicted.truth), flatten_labels(predicted.prediction),
                    self.shown_classes, self.shown_colors, title=name, caption=f"Dice: {caption}",
                )
            )  # fmt: skip
            written.append(self.folder / files.short_name(f"{Path(name).name}.png"))
            with files.atomic_write(written[-1], self.below) as aside:
                rows[-1].save(aside)
        if rows:
            with files.atomic_write(self.folder / "all.png", self.below) as aside:
                stack_pictures(rows).save(aside)
        return written


class PredictedSample(NamedTuple):
    """Image of a split with its truth and prediction, for pictures; every n-th pixel of an image larger than a tile.

    Attributes:
        image: (H, W, C) as stored.
        truth: (H, W) class indices, or planes (K, H, W); 255 is ignored.
        prediction: in the truth's shape.
        counts: confusion matrix of all pixels, (C, C) or (K, 2, 2).
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    counts: Tensor


@torch.no_grad()
def predict_sample(
    model: torch.nn.Module, samples: SegmentationDataset, index: int, threshold: float = 0.5
) -> PredictedSample:
    """Predict an image of a split; the model's training mode is restored."""
    name, classes = samples.names[index], len(samples.source.classes)
    overlapping = samples.source.task == "overlapping"
    if not samples.is_large(name):
        sample = samples[0, index]
        prediction = predict_image(model, sample["image"], threshold, overlapping)
        counts = count_confusion(torch.from_numpy(prediction)[None], sample["mask"][None], classes)
        return PredictedSample(samples.read(name)[0], sample["mask"].numpy(), prediction, counts[0])
    with samples.open_banded(name) as sample:
        return predict_thinned(model, samples, sample, threshold)


def predict_thinned(
    model: torch.nn.Module, samples: SegmentationDataset, sample: BandedSample, threshold: float
) -> PredictedSample:
    """Predict a large image band by band, and keep every n-th pixel of the longest side's ``PICTURED_SIDE``."""
    classes, overlapping = len(samples.source.classes), samples.source.task == "overlapping"
    step = -(-max(sample.shape) // PICTURED_SIDE)
    parts, total = [], torch.tensor(0)
    for top, rows, logits in logits_of_bands(model, samples, sample):
        prediction = predicted_classes(torch.from_numpy(logits)[None], threshold, overlapping)
        truth = sample.mask_rows(top, top + len(rows))
        counted = torch.from_numpy(truth.astype(np.int64))[None]
        total = total + count_confusion(prediction, counted, classes)[0]
        rows, first = rows[..., samples.intensity.own_channels], -top % step
        masks = (truth, prediction[0].numpy().astype(np.uint8))
        thinned = rows[first::step, ::step], *(m[..., first::step, ::step] for m in masks)
        parts.append([np.copy(one) for one in thinned])  # a view would keep all rows
    image, truth, prediction = zip(*parts, strict=True)
    joined = (np.concatenate(masks, axis=-2) for masks in (truth, prediction))
    return PredictedSample(np.concatenate(image), *joined, total)


def logits_of_bands(
    model: torch.nn.Module, samples: SegmentationDataset, sample: BandedSample
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield a large image from top to bottom: the first row, the rows as stored, their logits (K, h, W)."""
    tiles = choose_tile(model, cast(int, samples.tile))
    assert tiles is not None
    training, device = model.training, next(model.parameters()).device
    model.eval()
    tiling = Tiling(model, sample.prepare, *tiles, device=device, logits=True)
    yield from tiling.parts(sample.image_rows, sample.shape[0])
    model.train(training)


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
