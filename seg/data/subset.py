"""Nested random subsets of the training images, in which a group of images is in or out as a whole."""

import copy

import numpy as np

from seg.data.datasets.base import DataSource, image_groups
from seg.errors import DataError


def training_units(source: DataSource) -> list[list[str]]:
    """Return the training images by group, in the order of names; without groups each image is one of its own."""
    groups, units = image_groups(source) or {}, dict[str, list[str]]()
    for name in sorted(source.splits["train"]):
        units.setdefault(groups.get(name, name), []).append(name)
    return list(units.values())


def unit_word(source: DataSource) -> str:
    """Return what ``training_units`` counts: images or groups."""
    return "images" if image_groups(source) is None else "groups"


def draw_subset(source: DataSource, count: int, seed: int) -> list[str]:
    """Return the names of ``count`` training images, or of groups where the source has them, in their given order.

    With one seed a larger subset contains each smaller one.

    Raises:
        DataError: if there are fewer.
    """
    units = training_units(source)
    if count > len(units):
        raise DataError(
            f"loader.subset={count}: the training split has {len(units)} {unit_word(source)}; give {len(units)} or less"
        )
    order = np.random.default_rng(seed).permutation(len(units))
    chosen = {name for unit in order[:count] for name in units[unit]}
    return [name for name in source.splits["train"] if name in chosen]


def restrict_training(source: DataSource, count: int, seed: int) -> DataSource:
    """Return a copy of a source whose training split is the subset; other splits are unchanged."""
    smaller = copy.copy(source)
    smaller.splits = {**source.splits, "train": draw_subset(source, count, seed)}
    return smaller
