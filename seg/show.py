"""Pictures what training sees: ``python -m seg.show data=membranes augment=strong n=16``.

Takes each option of seg.train, and shows the samples that such a training starts with: each as its
crop alone, as the network sees it after augmentation, and with its mask.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageOps

from seg import files, panels
from seg.cli import UserError, build, command
from seg.command_line import quote_path
from seg.console import quiet
from seg.data.module import DataModule, EpochSampler, Samples
from seg.logits import IGNORE
from seg.train import fit_crops, open_data

log = logging.getLogger("seg")
SCREEN = 16 / 9  # width to height, about the picture's
SIDES = (200, 384)  # px of a cell: a smaller crop is enlarged, a larger one shrunk
SUFFIXES = (".png", ".jpg", ".jpeg")


def show(cfg: DictConfig) -> Path:
    """Writes the picture and returns where it lies."""
    quiet()
    file = Path(cfg.output)
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"output={cfg.output}: a picture is needed, {' or '.join(SUFFIXES)}")
    if cfg.n < 1 or cfg.epoch < 0:
        raise UserError(f"n={cfg.n} and epoch={cfg.epoch}: give n from 1, epoch from 0")
    files.check_writable(file.parent, file.parent, [file.name], f"output={file}")
    data = cropped_as_trained(cfg)
    page = contact_sheet(data, cfg.n, cfg.epoch)
    files.make_folder(file.parent, file.parent)
    with files.whole(file, file.parent) as aside:
        page.save(aside)
    log.info(f"crops      {data.sampling}")
    log.info(f"pictures   {quote_path(file)}, {page.width}x{page.height} px")
    return file


def cropped_as_trained(cfg: DictConfig) -> DataModule:
    """The training's data; for a network of valid convolutions, crops with their surroundings."""
    cfg.loader.check = False  # also what is wrong can be looked at
    data = open_data(cfg)
    with torch.device("meta"):  # only its sizes matter
        fit_crops(data, build(cfg.model, "model"))
    return data


def contact_sheet(data: DataModule, n: int, epoch: int) -> Image.Image:
    """The first samples of an epoch, and of later ones if it has fewer; several in a row."""
    samples = data.training()
    keys = list(itertools.islice(order(len(samples), data.seed, epoch), n))
    augmented = [samples[key] for key in keys]
    crops = Samples(data.store, samples.names, data.intensity, data.augment.alone(), data.repeats)
    plain = [crops[key] for key in keys]
    pictures = alike([one["image"].numpy() for one in (*plain, *augmented)])
    classes, colors = panels.shown(
        data.source.classes, data.source.colors, data.source.task == "overlapping"
    )
    em, context = 16, data.augment.context
    cells = [
        sample(crop, seen, panels.picture(one["mask"].numpy()), colors, one["name"], em, context)
        for crop, seen, one in zip(pictures[:n], pictures[n:], augmented, strict=True)
    ]
    page = grid(cells, gap=2 * em)
    ignored = any((one["mask"] == IGNORE).any() for one in augmented)
    legend = panels.legend_of(classes, colors, em, judged=False, ignored=bool(ignored))
    words = (
        f"Training samples from epoch {epoch} on, seed {data.seed}: {data.sampling}. Grey values are those after "
        "augmentation and normalisation, all pictures on one scale from their 1st to their 99th percentile."
    )
    if context:
        words += " The mask is drawn where the network is judged."
    strips = [panels.flow(p, page.width, em) for p in (panels.words(words), *legend)]
    return ImageOps.expand(panels.sheet([page, *strips], gap=em), border=em, fill="white")


def order(size: int, seed: int, epoch: int) -> Iterator[tuple[int, int]]:
    """The samples' keys as training takes them, from this epoch on."""
    sampler = EpochSampler(size, seed, shuffle=True)
    for number in itertools.count(epoch):
        sampler.set_epoch(number)
        yield from sampler


def alike(images: list[np.ndarray]) -> list[np.ndarray]:
    """Images (C, H, W) as (H, W, 3) uint8 for the eye, all on one scale of grey or colour."""
    rows = [image.reshape(len(image), -1) for image in images]
    joined = panels.to_rgb(np.concatenate(rows, axis=1).T[:, None])  # (pixels, 1, C)
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    parts = np.split(joined, ends)
    return [part.reshape(*image.shape[1:], 3) for part, image in zip(parts, images, strict=True)]


def sample(
    crop: np.ndarray,
    seen: np.ndarray,
    mask: np.ndarray,
    colors: list,
    name: str,
    em: int,
    context: int,
) -> Image.Image:
    """One sample's row: its crop, what the network sees, and that with its mask where it is judged."""
    truth = panels.overlay(seen, mask, colors)
    hidden = mask == IGNORE
    truth[hidden] = panels.colorize(mask, colors)[hidden]
    if context:
        inner = slice(context, -context)
        whole, truth = truth, seen.copy()
        truth[inner, inner] = whole[inner, inner]
    cells = {"crop": crop, "network sees": seen, "mask": truth}
    row = panels.row_of({key: fitted(cell) for key, cell in cells.items()}, em)
    title = panels.flow(panels.words(name), row.width, em)
    return panels.sheet([title, row])


def fitted(rgb: np.ndarray) -> np.ndarray:
    """At a size to look at: enlarged by a whole number, or shrunk."""
    low, high = SIDES
    longest = max(rgb.shape[:2])
    if longest > high:
        size = (max(1, round(rgb.shape[1] * high / longest)), max(1, round(rgb.shape[0] * high / longest)))  # fmt: skip
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
    factor = -(-low // longest) if longest < low else 1
    return rgb.repeat(factor, 0).repeat(factor, 1)


def grid(cells: list[Image.Image], gap: int) -> Image.Image:
    """The cells on white in rows, few places empty, and about as wide as a screen."""
    width, height = max(c.width for c in cells) + gap, max(c.height for c in cells) + gap

    def cost(columns: int) -> float:
        rows = -(-len(cells) // columns)
        empty = rows * columns / len(cells) - 1
        return 2 * empty + abs(math.log(columns * width / (rows * height) / SCREEN))

    columns = min(range(1, len(cells) + 1), key=cost)
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, cell in enumerate(cells):
        page.paste(cell, (i % columns * width, i // columns * height))
    return page


@command("show")
def main(cfg: DictConfig) -> None:
    show(cfg)


if __name__ == "__main__":
    main()
