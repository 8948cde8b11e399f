"""Statistics of one image and its mask, computed before the checks."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from seg.data.datasets.base import DataSource, object_border, read_objects
from seg.data.datasets.folder import Folder, read_orientations
from seg.data.image_io import has_palette
from seg.data.masks import count_class_pixels
from seg.data.quality.issues import Issue, issue_from_error, relative_paths
from seg.errors import DataError
from seg.labels import IGNORE
from seg.objects import label_components

INSPECTED_PIXELS = 2**23  # pixels of an image, evenly spaced, where not all are needed
THUMBNAIL_PX = 32  # px of a thumbnail
ORIENTATIONS = {  # of arrays (H, W)
    "": lambda a: a,
    "mirrored": lambda a: a[:, ::-1],
    "upside down": lambda a: a[::-1],
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.T,
    "turned by 90 degrees": lambda a: a.T[::-1],
    "turned by 270 degrees": lambda a: a.T[:, ::-1],
    "transposed the other way": lambda a: a.T[::-1, ::-1],
}


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one image and its mask.

    Attributes:
        name: in the source.
        split: of the image.
        file: of the image, for messages.
        mask_file: of the mask, for messages.
        shape: (H, W), px.
        channels: number of channels.
        dtype: as stored.
        value_range: smallest and largest value.
        mean: of all values.
        sd: standard deviation, from at most 8 million evenly spaced pixels.
        pixels: number of pixels of each class, (K,).
        valid: number of pixels that are not ignored, in each class's plane, (K,).
        ignored: share of the mask that is ignored, in 0..1.
        image_hash: of the image's pixels.
        mask_hash: of the mask's pixels.
        thumbnail: of the image, (THUMBNAIL_PX, THUMBNAIL_PX) float32 of mean 0 and length 1, or 0.
        fits: for each of ``ORIENTATIONS`` that keeps the mask's size, the share of the grey values' variance that
            the classes explain, in 0..1, and the slope of the grey values at their borders (1: as elsewhere).
        jumps: share of neighbours that differ by more than 200 of 255; 0 for black-and-white images.
        constant: the value that every pixel has; None: they differ.
        grey: whether there are three equal channels.
        palette: whether the image is read as the colours of its palette.
        orientations: values of the tag Orientation of image and mask, 1 (upright) to 8.
        objects: number of objects, and of those that are one region each without their border; None: not counted.
    """

    name: str
    split: str
    file: str
    mask_file: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    value_range: tuple[float, float]
    mean: float
    sd: float
    pixels: np.ndarray
    valid: np.ndarray
    ignored: float
    image_hash: bytes
    mask_hash: bytes
    thumbnail: np.ndarray
    fits: dict[str, tuple[float, float]]
    jumps: float
    constant: list[float] | None
    grey: bool
    palette: bool
    orientations: tuple[int, int]
    objects: tuple[int, int] | None


class Inspection(NamedTuple):
    """Statistics of all images that could be read, and an issue for each of the others."""

    stats: list[ImageStats]
    issues: list[Issue]


def inspect_all(
    source: DataSource, names: Iterable[tuple[str, str]], root: Path | None
) -> Inspection:
    """Read each (split, name) of a source; paths in messages are relative to ``root``."""
    stats, issues = [], []
    for split, name in names:
        try:
            image, mask = source.read(name)
        except DataError as error:
            issues.append(replace(issue_from_error(error, root), name=name))
            continue
        stats.append(inspect_image(source, split, name, image, mask, root))
    return Inspection(stats, issues)


def image_and_mask_files(source: DataSource, name: str) -> tuple[Path, Path] | None:
    """Return the files of an image and its mask, if each has its own."""
    if not isinstance(source, Folder):
        return None
    pair = source.files[name]
    return pair.image, pair.mask


def inspect_image(
    source: DataSource,
    split: str,
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    root: Path | None,
    heuristics: bool = True,
) -> ImageStats:
    """Return the statistics of an image and its mask.

    Args:
        source: that both come from.
        split: of the image.
        name: of the image.
        image: (H, W, C).
        mask: (H, W) or (H, W, K).
        root: folder that paths in messages are relative to.
        heuristics: whether to compute ``fits`` and ``jumps``, and to count objects.
    """
    # No data is replaced by the mean for the statistics; the hash is that of the stored pixels
    stored = image
    if image.dtype.kind == "f" and np.isnan(image).any():  # no data
        known = image[~np.isnan(image)]
        image = np.where(np.isnan(image), known.mean() if known.size else 0, image).astype(
            np.float32
        )
    # Evenly spaced pixels are enough for most statistics of a large image.
    files, num_classes = image_and_mask_files(source, name), len(source.classes)
    valid = np.broadcast_to((mask != IGNORE).sum((0, 1)), num_classes)
    step = max(1, round((mask.shape[0] * mask.shape[1] / INSPECTED_PIXELS) ** 0.5))
    thinned = image[::step, ::step]
    grey = thinned[..., : min(3, image.shape[2])].mean(-1, dtype=np.float32)
    return ImageStats(
        name, split,
        file=relative_paths(str(files[0]), root) if files else name,
        mask_file=relative_paths(str(files[1]), root) if files else f"mask of {name}",
        shape=(image.shape[0], image.shape[1]),
        channels=image.shape[2],
        dtype=str(image.dtype),
        value_range=(float(image.min()), float(image.max())),
        mean=float(image.mean(dtype=np.float64)),
        sd=float(thinned.std(dtype=np.float64)),
        pixels=count_class_pixels(mask, num_classes),
        valid=valid,
        ignored=float(1 - (valid / np.prod(mask.shape[:2])).mean()),
        image_hash=hash_pixels(stored),
        mask_hash=hash_pixels(mask),
        thumbnail=make_thumbnail(grey),
        fits=orientation_fits(grey, mask[::step, ::step]) if heuristics else {},
        jumps=jump_share(image[:, : image.shape[1] // step]) if heuristics else 0.0,
        constant=image[0, 0].tolist() if (thinned == thinned[:1, :1]).all() else None,
        grey=image.shape[2] == 3 and bool((thinned == thinned[..., :1]).all()),
        palette=files is not None and has_palette(files[0]),
        orientations=read_orientations(source.files[name]) if isinstance(source, Folder) else (1, 1),
        objects=count_objects(source, name, mask) if heuristics and source.task == "instances" else None,
    )  # fmt: skip


def count_objects(source: DataSource, name: str, mask: np.ndarray) -> tuple[int, int]:
    """Return the number of an image's objects, and of those that are one region of the mask by themselves."""
    regions = label_components(mask == 1)
    if not object_border(source).separate:
        return int(regions.max()), int(regions.max())
    labels = np.maximum(read_objects(source, name), 0)
    # An object is told apart if its only region is no other object's
    pairs = np.unique(np.stack([labels[regions > 0], regions[regions > 0]]), axis=1)
    objects, their = np.bincount(pairs[0])[pairs[0]], np.bincount(pairs[1])[pairs[1]]
    return int(np.count_nonzero(np.bincount(labels.ravel())[1:])), int(
        ((objects == 1) & (their == 1)).sum()
    )


def hash_pixels(pixels: np.ndarray) -> bytes:
    """Return a hash of an array's type, shape and values."""
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def make_thumbnail(grey: np.ndarray) -> np.ndarray:
    """Return (H, W) as (THUMBNAIL_PX, THUMBNAIL_PX) float32 of mean 0 and length 1; 0 if there is no contrast."""
    small = cv2.resize(
        grey.astype(np.float32), (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA
    )
    small, highest = small - small.mean(), np.abs(small).max()
    length = np.linalg.norm(small)
    return small / length if length > 1e-5 * highest else np.zeros_like(small)


def orientation_fits(grey: np.ndarray, mask: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return how well a mask (H, W) fits its image in each orientation of its size; see ``ImageStats.fits``."""
    if mask.ndim == 3:
        return {}
    # Image and mask at about 256 px, of a narrow strip at least 1 px wide; the grey values' slope there.
    step = max(1, min(max(mask.shape) // 256, *mask.shape))
    size = tuple(n // step for n in mask.shape)
    small = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA)
    coarse = mask[step // 2 :: step, step // 2 :: step][: size[0], : size[1]]
    slope = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))
    # Each orientation of the mask that keeps its size.
    turned = {turn: np.ascontiguousarray(move(coarse)) for turn, move in ORIENTATIONS.items()}
    return {
        turn: (explained_variance(small, moved), border_slope(slope, moved))
        for turn, moved in turned.items()
        if moved.shape == small.shape
    }


def border_slope(slope: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean slope at the mask's borders over that of the whole image; 0 without borders."""
    edge = np.zeros(mask.shape, bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return float(slope[edge].mean() / max(slope.mean(), 1e-9)) if edge.any() else 0.0


def explained_variance(grey: np.ndarray, mask: np.ndarray) -> float:
    """Return between-class variance over total variance, of the pixels that are not ignored."""
    classes, values = mask.ravel(), grey.ravel().astype(np.float64)
    sums = [np.bincount(classes, power, IGNORE + 1)[:IGNORE] for power in (None, values, values**2)]
    counts, firsts, seconds = sums
    if not counts.any():
        return 0.0
    whole = firsts.sum() ** 2 / counts.sum()
    variance = seconds.sum() - whole
    between = (firsts**2 / counts.clip(1)).sum() - whole
    return float(between / variance) if variance > 1e-9 * seconds.sum() else 0.0


def jump_share(image: np.ndarray) -> float:
    """Return the share of horizontal neighbours that differ by more than 200; 0 for black and white."""
    if image.dtype != np.uint8 or image.shape[1] < 2:
        return 0.0
    plane = image[..., 0]
    extreme = ((plane < 16) | (plane > 239)).mean()
    steps = cv2.absdiff(np.ascontiguousarray(plane[:, 1:]), np.ascontiguousarray(plane[:, :-1]))
    return 0.0 if extreme > 0.5 else float((steps > 200).mean())
