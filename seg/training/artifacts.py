"""What a run keeps of its images, so that runs can be compared where the data is not at hand.

images.csv             split,image,class,hit,false,missed: pixels of each image and class
predictions/names.json split -> names of the images that are pictured
predictions/SPLIT/     I-image.jpg, I-truth.png, I-prediction.png: the I-th of those names, from 0
"""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from seg import files
from seg.data.dataset import Samples
from seg.display.colors import Color
from seg.display.layout import evenly
from seg.display.panels import picture, shown, to_rgb
from seg.logits import IGNORE
from seg.metrics.confusion import PixelScores, Tally
from seg.runs import records
from seg.training.callbacks.pictures import predict_one

SIDE = 512  # px: the longest side of a picture
UNKNOWN: Color = (176, 176, 176)  # of ignored pixels


def seen(names: list[str], world: int, count: int) -> list[str]:
    """Names of the images that were scored, in the order in which ``PixelScores`` holds them.

    Args:
        names: of the split.
        world: processes, of which each takes every world-th image.
        count: images scored, fewer than the split has under ``trainer.limit_val_batches``.
    """
    own = [names[rank::world] for rank in range(world)]
    each = next(n for n in range(len(names) + 1) if sum(len(o[:n]) for o in own) == count)
    return [name for o in own for name in o[:each]]


def all_counts(scores: PixelScores) -> Tensor:
    """The confusion matrices of all images, those of the other processes included."""
    with scores.sync_context():
        return scores.images()


def write_counts(
    file: Path, scored: dict[str, tuple[list[str], Tensor]], classes: list[str], overlapping: bool
) -> None:
    """Pixels that are right, wrong and missed of each image and class.

    Args:
        file: images.csv.
        scored: split -> names of its images, and their confusion matrices (B, C, C) or (B, K, 2, 2).
        classes: names.
        overlapping: whether they are labels that overlap.
    """
    with files.open_text(file, file.parent) as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "image", "class", "hit", "false", "missed"])
        for split, (names, counts) in scored.items():
            tally = Tally.of(counts, overlapping)
            cells = torch.stack([tally.hit, tally.false, tally.missed], -1).tolist()
            for name, rows in zip(names, cells, strict=True):
                writer.writerows(
                    [split, name, c, *row] for c, row in zip(classes, rows, strict=True)
                )


def keep_pictures(
    folder: Path, samples: dict[str, Samples], count: int, colors: list[Color], model: nn.Module, threshold: float
) -> None:  # fmt: skip
    """Pictures of ``count`` images of each split, evenly spread: image, truth and prediction.

    Args:
        folder: predictions in the run's folder; made.
        samples: split -> its images, whole.
        count: at most so many of each split.
        colors: one a class.
        model: on any device; its mode is kept.
        threshold: probability above which a pixel is class 1 of two, or has a label.
    """
    names, run = {}, folder.parent
    for split, images in samples.items():
        source = images.source
        overlapping = source.task == "overlapping"
        _, palette = shown(list(source.classes), colors, overlapping)
        indices = evenly(len(images), count)
        names[split] = [images.names[i] for i in indices]
        files.make_folder(folder / split, run)
        for place, index in enumerate(indices):
            sample = images[0, index]
            prediction = predict_one(model, sample["image"], threshold, overlapping)
            stem = f"{folder / split / str(place)}"
            rgb = Image.fromarray(to_rgb(images.read(images.names[index])[0]))
            rgb.thumbnail((SIDE, SIDE))
            with files.whole(Path(f"{stem}-image.jpg"), run) as aside:
                rgb.save(aside, quality=85)
            for what, mask in (("truth", sample["mask"].numpy()), ("prediction", prediction)):
                with files.whole(Path(f"{stem}-{what}.png"), run) as aside:
                    paletted(picture(mask), palette).save(aside, optimize=True)
    files.make_folder(folder, run)
    records.write_json(folder / "names.json", names, run)


def paletted(mask: np.ndarray, colors: list[Color]) -> Image.Image:
    """A mask (H, W) as a palette image that shows each class in its colour, reduced to ``SIDE`` px."""
    drawn = Image.fromarray(mask.astype(np.uint8)).convert("P")
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE] = UNKNOWN
    drawn.putpalette(table.tobytes())
    scale = SIDE / max(drawn.size)
    if scale < 1:
        size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
        drawn = drawn.resize(size, Image.Resampling.NEAREST)
    return drawn
