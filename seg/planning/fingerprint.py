"""Fingerprint of a data set: the facts from which the settings of a training are chosen."""

from dataclasses import dataclass

import cv2
import numpy as np

from seg.data.datamodule import DataModule
from seg.data.datasets.base import DataSource, image_groups
from seg.data.normalization import Normalization
from seg.display.console import track_progress

MOST_READ = 24  # training images, evenly spaced, whose masks are measured


@dataclass(frozen=True)
class Fingerprint:
    """Facts of a data set.

    Attributes:
        images: number of images of each split.
        groups: number of groups of images; None: they come in no groups.
        height: median of the training images, px.
        width: likewise.
        channels: of an image.
        dtype: as stored.
        outlier: distance of the smallest or the largest value from the mean, in standard deviations of the channel for which
            it is the least.
        classes: names.
        shares: share of the labelled training pixels of each class.
        labelled: share of the training pixels that are labelled.
        thickness: px, of the regions of each class: twice the 95th percentile of the distance to their border; nan: absent.
    """

    images: dict[str, int]
    groups: int | None
    height: int
    width: int
    channels: int
    dtype: str
    outlier: float
    classes: list[str]
    shares: list[float]
    labelled: float
    thickness: list[float]


def take_fingerprint(data: DataModule) -> Fingerprint:
    """Return the fingerprint of a data set; of many training images up to 24 are read again."""
    source, intensity, groups = data.source, data.intensity, image_groups(data.source)
    names = source.splits["train"]
    chosen = names[:: -(-len(names) // MOST_READ)]
    shapes, thickness_NC = [], []
    for name in track_progress(chosen, "measuring"):
        mask = data.image_cache.read(name)[1]
        planes = class_planes(source, mask)
        shapes.append(mask.shape[:2])
        thickness_NC.append([region_thickness(plane) for plane in planes])
    height, width = np.median(shapes, axis=0)
    return Fingerprint(
        images={split: len(names) for split, names in source.splits.items()},
        groups=None if groups is None else len(set(groups.values())),
        height=int(height),
        width=int(width),
        channels=intensity.image_channels,
        dtype=str(intensity.stored_type),
        outlier=farthest_value(intensity),
        classes=list(source.classes),
        shares=data.class_shares.tolist(),
        labelled=data.labelled,
        thickness=median_of_present(np.array(thickness_NC)),
    )


def class_planes(source: DataSource, mask: np.ndarray) -> np.ndarray:
    """Return where each class is, (C, H, W) bool, of a mask (H, W) or (H, W, C)."""
    if mask.ndim == 3:
        return np.moveaxis(mask == 1, -1, 0)
    return np.stack([mask == k for k in range(len(source.classes))])


def region_thickness(plane: np.ndarray) -> float:
    """Return twice the 95th percentile of the distance to the border, px, of a class's pixels; nan without any."""
    if not plane.any():
        return float("nan")
    distance = cv2.distanceTransform(plane.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return 2 * float(np.quantile(distance[plane], 0.95))


def median_of_present(values_NC: np.ndarray) -> list[float]:
    """Return the median of each column without nan; nan if it has nothing else."""
    present = [column[~np.isnan(column)] for column in values_NC.T]
    return [float(np.median(column)) if column.size else float("nan") for column in present]


def farthest_value(intensity: Normalization) -> float:
    """Return ``Fingerprint.outlier``; 0 if the range is unknown."""
    if intensity.value_range is None:
        return 0.0
    ends = np.array(intensity.value_range)[:, None]
    scaled = (ends - intensity.low) / (intensity.high - intensity.low or 1.0)
    mean, std = np.array(intensity.mean), np.array(intensity.std)
    return float(np.abs((scaled - mean) / std).max(0).min())
