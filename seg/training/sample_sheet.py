"""Contact sheet of training samples as the network receives them."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageOps

from seg.data.datamodule import DataModule
from seg.data.dataset import Samples
from seg.data.sampler import EpochSampler
from seg.display import panels
from seg.display.layout import fitted, grid
from seg.logits import IGNORE
from seg.training.build import build_model, fit_crops, open_data


def cropped_as_trained(cfg: DictConfig) -> DataModule:
    """The training's data; for a network of valid convolutions, crops with their surroundings."""
    cfg.loader.check = False  # also what is wrong can be looked at
    data = open_data(cfg)
    with torch.device("meta"):  # only its sizes matter
        fit_crops(data, build_model(cfg.model))
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
