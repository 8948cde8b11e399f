"""Contact sheet of training samples as the network receives them."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from seg.data.datamodule import DataModule
from seg.data.dataset import SegmentationDataset
from seg.data.sampler import EpochSampler
from seg.display import panels
from seg.display.layout import (
    draw_grid,
    draw_items,
    draw_row,
    draw_sheet,
    fit_grid_cell,
    paragraph_items,
    stack_pictures,
)
from seg.labels import IGNORE
from seg.training.build import add_crop_context, build_data, build_model


def open_training_data(cfg: DictConfig) -> DataModule:
    """Return the data of a training, with the larger crops that a network of valid convolutions needs."""
    cfg.loader.check = False  # faulty data can be drawn, too
    data = build_data(cfg)
    with torch.device("meta"):  # only its sizes are needed
        add_crop_context(data, build_model(cfg.model))
    return data


def draw_sample_sheet(data: DataModule, n: int, epoch: int) -> Image.Image:
    """Draw the first ``n`` samples from an epoch on, each as crop, as network input and with its mask."""
    # The samples, and their crops without transforms.
    samples = data.train_dataset()
    keys = list(itertools.islice(sample_keys(len(samples), data.seed, epoch), n))
    augmented = [samples[key] for key in keys]
    crops = SegmentationDataset(
        data.image_cache,
        samples.names,
        data.intensity,
        data.augment.without_transforms(),
        data.repeats,
    )
    plain = [crops[key] for key in keys]
    own = data.intensity.own_channels
    pictures = stretch_together([item["image"][own].numpy() for item in (*plain, *augmented)])
    classes, colors = panels.legend_entries(
        data.source.classes, data.source.colors, data.source.task == "overlapping"
    )
    em, context = 16, data.augment.context
    cells = [
        draw_sample(
            crop,
            image,
            panels.flatten_labels(item["mask"].numpy()),
            colors,
            item["name"],
            em,
            context,
        )
        for crop, image, item in zip(pictures[:n], pictures[n:], augmented, strict=True)
    ]
    page = draw_grid(cells, gap=2 * em)
    # Legend and explanation below.
    ignored = any((item["mask"] == IGNORE).any() for item in augmented)
    legend = panels.legend_paragraphs(classes, colors, em, judged=False, ignored=bool(ignored))
    words = (
        f"Training samples from epoch {epoch} on, seed {data.seed}: {data.describe_crops}. Grey values are those after "
        "augmentation and normalisation, all pictures on one scale from their 1st to their 99th percentile."
    )
    if context:
        words += " The mask is drawn where the loss is computed."
    return draw_sheet([page, paragraph_items(words), *legend], page.width, em, gap=em, border=em)


def sample_keys(size: int, seed: int, epoch: int) -> Iterator[tuple[int, int]]:
    """Yield the keys of the samples in the order of training, from an epoch on."""
    sampler = EpochSampler(size, seed, shuffle=True)
    for number in itertools.count(epoch):
        sampler.set_epoch(number)
        yield from sampler


def stretch_together(images: list[np.ndarray]) -> list[np.ndarray]:
    """Return images (C, H, W) as pictures (H, W, 3) uint8, all on one scale of grey or colour."""
    rows = [image.reshape(len(image), -1) for image in images]
    joined = panels.to_rgb(np.concatenate(rows, axis=1).T[:, None])  # (pixels, 1, C)
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    parts = np.split(joined, ends)
    return [part.reshape(*image.shape[1:], 3) for part, image in zip(parts, images, strict=True)]


def draw_sample(
    crop: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    colors: list,
    name: str,
    em: int,
    context: int,
) -> Image.Image:
    """Draw a sample's row: its crop, the network's input, and this with the mask inside the context.

    Args:
        crop: (H, W, 3) uint8 without transforms.
        image: (H, W, 3) uint8 after the transforms.
        mask: (H, W) class indices.
        colors: of the classes.
        name: of the image, the row's title.
        em: px of text.
        context: px at each border where no loss is computed.
    """
    truth = panels.draw_overlay(image, mask, colors)
    hidden = mask == IGNORE
    truth[hidden] = panels.colorize(mask, colors)[hidden]
    if context:
        inner = slice(context, -context)
        whole, truth = truth, image.copy()
        truth[inner, inner] = whole[inner, inner]
    cells = {"crop": crop, "network sees": image, "mask": truth}
    row = draw_row({key: fit_grid_cell(cell) for key, cell in cells.items()}, em)
    title = draw_items(paragraph_items(name), row.width, em)
    return stack_pictures([title, row])
