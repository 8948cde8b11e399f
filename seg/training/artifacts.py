"""Per-image counts and small prediction pictures, saved so that runs can be compared without the data set.

images.csv             split,image,class,tp,fp,fn: true positive, false positive and false negative pixels
predictions/names.json split -> names of the pictured images
predictions/SPLIT/     I-image.jpg, I-truth.png, I-prediction.png: I is the position in those names, from 0
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from seg import files
from seg.data.dataset import SegmentationDataset
from seg.display.colors import Color
from seg.display.layout import evenly_spaced
from seg.display.panels import flatten_labels, legend_entries, to_rgb
from seg.labels import IGNORE
from seg.metrics.confusion import PixelScores
from seg.runs import records
from seg.training.callbacks.pictures import predict_sample

SAVED_PICTURE_SIDE = 512  # px: the longest side of a picture
IGNORED_COLOR: Color = (176, 176, 176)  # colour of ignored pixels


def scored_names(names: list[str], world: int, count: int) -> list[str]:
    """Return the names of the scored images, in the order of ``PixelScores``.

    Args:
        names: all images of the split.
        world: number of ranks; rank r scores images r, r + world, r + 2 world, ...
        count: images scored; fewer than the split has if ``trainer.limit_val_batches`` is set.
    """
    shards = [names[rank::world] for rank in range(world)]
    sizes = range(len(names) + 1)
    size = next(n for n in sizes if sum(len(shard[:n]) for shard in shards) == count)
    return [name for shard in shards for name in shard[:size]]


def gather_counts(scores: PixelScores) -> Tensor:
    """Return TP, FP, FN and TN of all images, gathered from all ranks: (B, C, 4)."""
    with scores.sync_context():
        return scores.images()


def write_image_counts(
    file: Path, scored: dict[str, tuple[list[str], Tensor]], classes: list[str]
) -> None:
    """Write the true positive, false positive and false negative pixels of each image and class.

    Args:
        file: images.csv.
        scored: split -> names of its images, and their TP, FP, FN and TN (B, C, 4).
        classes: names.
    """
    with files.open_text(file, file.parent) as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "image", "class", "tp", "fp", "fn"])
        for split, (names, counts) in scored.items():
            for name, rows in zip(names, counts[..., :3].tolist(), strict=True):
                writer.writerows(
                    [split, name, c, *row] for c, row in zip(classes, rows, strict=True)
                )


def save_prediction_pictures(
    folder: Path, samples: dict[str, SegmentationDataset], count: int, colors: list[Color], model: nn.Module, threshold: float
) -> None:  # fmt: skip
    """Save image, truth and prediction of ``count`` images of each split, evenly spaced over the split.

    Args:
        folder: ``predictions`` of the run folder; created if absent.
        samples: split -> its data set of whole images.
        count: maximal number of images of a split.
        colors: one per class.
        model: on any device; its training mode is restored.
        threshold: probability above which a pixel is class 1 of two, or has a class that may overlap.
    """
    names, run = {}, folder.parent
    for split, images in samples.items():
        # Choose the images and the palette of the split.
        source = images.source
        overlapping = source.task == "overlapping"
        _, palette = legend_entries(list(source.classes), colors, overlapping)
        indices = evenly_spaced(len(images), count)
        names[split] = [images.names[i] for i in indices]
        files.make_folder(folder / split, run)
        for position, index in enumerate(indices):
            predicted = predict_sample(model, images, index, threshold)
            # Write the image as JPEG, and both masks as palette images, which keep the class indices.
            stem = f"{folder / split / str(position)}"
            rgb = Image.fromarray(to_rgb(predicted.image))
            rgb.thumbnail((SAVED_PICTURE_SIDE, SAVED_PICTURE_SIDE))
            with files.atomic_write(Path(f"{stem}-image.jpg"), run) as aside:
                rgb.save(aside, quality=85)
            for kind, mask in (("truth", predicted.truth), ("prediction", predicted.prediction)):
                with files.atomic_write(Path(f"{stem}-{kind}.png"), run) as aside:
                    palette_image(flatten_labels(mask), palette).save(aside, optimize=True)
    files.make_folder(folder, run)
    records.write_json(folder / "names.json", names, run)


def palette_image(mask: np.ndarray, colors: list[Color]) -> Image.Image:
    """Return a mask (H, W) as a palette image in the class colours, its longest side at most ``SAVED_PICTURE_SIDE`` px."""
    drawn = Image.fromarray(mask.astype(np.uint8)).convert("P")
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE] = IGNORED_COLOR
    drawn.putpalette(table.tobytes())
    scale = SAVED_PICTURE_SIDE / max(drawn.size)
    if scale < 1:
        size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
        drawn = drawn.resize(size, Image.Resampling.NEAREST)
    return drawn
