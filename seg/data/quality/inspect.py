"""What is seen of an image and its mask, before anything is judged."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from seg.data.datasets.base import Source
from seg.data.datasets.folder import Folder
from seg.data.masks import class_pixels
from seg.data.quality.issues import Fault, relative, told
from seg.data.tiff import TIFF
from seg.errors import DataError
from seg.logits import IGNORE

ENOUGH = 2**23  # pixels of an image that are looked at, evenly spread, where all need not be
SIDE = 32  # px of a thumbnail
TURNS = {
    "": lambda a: a,
    "mirrored": lambda a: a[..., ::-1],
    "upside down": lambda a: a[..., ::-1, :],
    "turned by 180 degrees": lambda a: a[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2),
    "turned by 90 degrees": lambda a: a.swapaxes(-1, -2)[..., ::-1, :],
    "turned by 270 degrees": lambda a: a.swapaxes(-1, -2)[..., ::-1],
    "transposed the other way": lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1],
}  # of arrays (..., H, W)


@dataclass(frozen=True)
class Look:
    """What was seen of one image and its mask.

    Attributes:
        name: in the source.
        split: that it belongs to.
        file: of the image, for messages.
        mask_file: of the mask, likewise.
        shape: (H, W), px.
        channels: C.
        dtype: as stored.
        span: smallest and largest value.
        mean: of all values.
        sd: their standard deviation; of a large image's 8 million evenly spread pixels.
        pixels: of each class (K,).
        valid: pixels that aren't ignored, of each class's plane (K,).
        ignored: share of the mask that is, in 0..1.
        image_hash: of the pixels.
        mask_hash: likewise.
        thumb: (SIDE, SIDE) float32 of mean 0 and length 1, or 0.
        fits: by each of TURNS that keeps the mask's size: how much of the grey values' variance the classes
            then explain, in 0..1, and how steep the grey values are at their borders (1: as elsewhere).
        jumps: share of neighbours that differ by more than 200 of 255, where most values are no extremes.
        flat: the one value that every pixel has; None: they differ.
        grey: whether three channels are equal.
        palette: whether the file has one.
    """

    name: str
    split: str
    file: str
    mask_file: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    span: tuple[float, float]
    mean: float
    sd: float
    pixels: np.ndarray
    valid: np.ndarray
    ignored: float
    image_hash: bytes
    mask_hash: bytes
    thumb: np.ndarray
    fits: dict[str, tuple[float, float]]
    jumps: float
    flat: list[float] | None
    grey: bool
    palette: bool


class Looks(NamedTuple):
    """All images that could be read, and a fault for each of the others."""

    looks: list[Look]
    faults: list[Fault]


def look_at_all(source: Source, names: Iterable[tuple[str, str]], root: Path | None) -> Looks:
    """Reads each (split, name) of a source; files are named relative to ``root``."""
    looks, faults = [], []
    for split, name in names:
        try:
            image, mask = source.read(name)
        except DataError as error:
            faults.append(replace(told(error, root), name=name))
            continue
        looks.append(look(source, split, name, image, mask, root))
    return Looks(looks, faults)


def files_of(source: Source, name: str) -> tuple[Path, Path] | None:
    """Files of an image and its mask, where each has its own."""
    if not isinstance(source, Folder):
        return None
    pair = source.files[name]
    return pair.image, pair.mask


def look(
    source: Source,
    split: str,
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    root: Path | None,
    closely: bool = True,
) -> Look:
    """What is seen of an image (H, W, C) and its mask (H, W) or (H, W, K); ``closely``: in each turn."""
    files, num_classes = files_of(source, name), len(source.classes)
    valid = np.broadcast_to((mask != IGNORE).sum((0, 1)), num_classes)
    thin = max(1, round((mask.shape[0] * mask.shape[1] / ENOUGH) ** 0.5))
    some = image[::thin, ::thin]
    grey = some[..., : min(3, image.shape[2])].mean(-1, dtype=np.float32)
    return Look(
        name, split,
        file=relative(str(files[0]), root) if files else name,
        mask_file=relative(str(files[1]), root) if files else f"mask of {name}",
        shape=(image.shape[0], image.shape[1]),
        channels=image.shape[2],
        dtype=str(image.dtype),
        span=(float(image.min()), float(image.max())),
        mean=float(image.mean(dtype=np.float64)),
        sd=float(some.std(dtype=np.float64)),
        pixels=class_pixels(mask, num_classes),
        valid=valid,
        ignored=float(1 - (valid / np.prod(mask.shape[:2])).mean()),
        image_hash=fingerprint(image),
        mask_hash=fingerprint(mask),
        thumb=thumbnail(grey),
        fits=fits(grey, mask[::thin, ::thin]) if closely else {},
        jumps=jumps(image[:, : image.shape[1] // thin]),
        flat=image[0, 0].tolist() if (some == some[:1, :1]).all() else None,
        grey=image.shape[2] == 3 and bool((some == some[..., :1]).all()),
        palette=files is not None and has_palette(files[0]),
    )  # fmt: skip


def fingerprint(pixels: np.ndarray) -> bytes:
    """Equal for arrays of the same type, shape and values."""
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """(H, W) as (SIDE, SIDE) float32 of mean 0 and length 1; 0 where there is no contrast."""
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small, highest = small - small.mean(), np.abs(small).max()
    length = np.linalg.norm(small)
    return small / length if length > 1e-5 * highest else np.zeros_like(small)


def fits(grey: np.ndarray, mask: np.ndarray) -> dict[str, tuple[float, float]]:
    """How well a mask fits its image, by turn of the mask that keeps its size; see ``Look.fits``."""
    if mask.ndim == 3:
        return {}
    step = max(1, max(mask.shape) // 256)
    size = tuple(n // step for n in mask.shape)
    small = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA)
    coarse = mask[step // 2 :: step, step // 2 :: step][: size[0], : size[1]]
    slope = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))
    turned = {turn: np.ascontiguousarray(move(coarse)) for turn, move in TURNS.items()}
    return {
        turn: (explained(small, m), steepness(slope, m))
        for turn, m in turned.items()
        if m.shape == small.shape
    }


def steepness(slope: np.ndarray, mask: np.ndarray) -> float:
    """Slope of the grey values at the mask's borders, over that of the whole image; 0 without borders."""
    edge = np.zeros(mask.shape, bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return float(slope[edge].mean() / max(slope.mean(), 1e-9)) if edge.any() else 0.0


def explained(grey: np.ndarray, mask: np.ndarray) -> float:
    """Between-class variance over total variance, of the pixels that aren't ignored."""
    classes, values = mask.ravel(), grey.ravel().astype(np.float64)
    sums = [np.bincount(classes, power, IGNORE + 1)[:IGNORE] for power in (None, values, values**2)]
    counts, firsts, seconds = sums
    if not counts.any():
        return 0.0
    whole = firsts.sum() ** 2 / counts.sum()
    variance = seconds.sum() - whole
    between = (firsts**2 / counts.clip(1)).sum() - whole
    return float(between / variance) if variance > 1e-9 * seconds.sum() else 0.0


def jumps(image: np.ndarray) -> float:
    """Share of horizontal neighbours that differ by more than 200 of 255; 0 for black and white."""
    if image.dtype != np.uint8 or image.shape[1] < 2:
        return 0.0
    plane = image[..., 0]
    extreme = ((plane < 16) | (plane > 239)).mean()
    steps = cv2.absdiff(np.ascontiguousarray(plane[:, 1:]), np.ascontiguousarray(plane[:, :-1]))
    return 0.0 if extreme > 0.5 else float((steps > 200).mean())


def has_palette(file: Path) -> bool:
    if file.suffix.lower() in TIFF:
        return False
    with Image.open(file) as image:
        return image.mode == "P"
