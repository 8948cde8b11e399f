"""Images with true masks, and masks with planted errors, for ``benchmarks/doubt.py``."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from seg.labels import IGNORE

KINDS = ("missing", "invented", "shifted", "swapped", "whole")
SIZE, OBJECTS, LEAST_PX = 128, 28, 20  # px of a side; tries to place an object; px of an error
MOST, MOVE, ROOM = (
    0.1,
    6,
    8,
)  # share of an image that an object has at most; px of a shift; px around what is invented
Masks = dict[str, np.ndarray]


# ---- images and true masks


def draw_mask(rng: np.random.Generator, least: float) -> np.ndarray:
    """Return a mask (H, W) uint8 of round objects, 1, and square ones, 2, that do not touch."""
    mask, (rows, columns) = np.zeros((SIZE, SIZE), np.uint8), np.mgrid[:SIZE, :SIZE]
    for number in range(OBJECTS):
        (row, column), radius = rng.integers(10, SIZE - 10, 2), rng.uniform(least, 10)
        far = np.abs(rows - row), np.abs(columns - column)
        inside = np.hypot(*far) < radius if number % 2 else np.maximum(*far) < radius
        if not mask[ndimage.binary_dilation(inside, iterations=3)].any():
            mask[inside] = 1 if number % 2 else 2
    return mask


def draw_image(mask: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Return an image (H, W) uint8 of a mask: both kinds of objects have the same grey values, under noise."""
    shade = ndimage.gaussian_filter(rng.normal(size=mask.shape), 20) * 20 * 25
    image = 90 + shade + 50 * ndimage.gaussian_filter((mask > 0).astype(float), 1)
    return (image + rng.normal(0, noise, mask.shape)).clip(0, 255).astype(np.uint8)


def load_data(args: argparse.Namespace) -> tuple[Masks, Masks, int]:
    """Return images and true masks by name, and how many of the first ones are in the cross-validation."""
    if args.data == "objects":
        rng = np.random.default_rng(args.seed)
        masks = [draw_mask(rng, args.radius) for _ in range(2 * args.images)]
        images = {f"{i:03d}": draw_image(mask, rng, args.noise) for i, mask in enumerate(masks)}
        return images, dict(zip(images, masks, strict=True)), args.images
    read, count = {
        "vnc": (read_vnc, 128),
        "camvid": (read_camvid, 92),
        "isbi2012": (read_isbi, 120),
    }[args.data]
    pairs = list(read(args.source))
    images, masks = ({name: pair[i] for name, *pair in pairs} for i in (0, 1))
    return images, masks, count


def read_half(image: Path, mask: Path) -> tuple[Image.Image, Image.Image]:
    """Read an image and its mask at half the resolution."""
    with Image.open(image) as one, Image.open(mask) as two:
        return one.reduce(2), two.resize(
            (one.width // 2, one.height // 2), Image.Resampling.NEAREST
        )


def read_vnc(source: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, image and mask of 16 tiles of each section; the last two sections are held back."""
    for file in sorted((source / "images").iterdir()):
        image, mask = read_half(file, source / "masks" / file.name)
        for top in range(0, image.height, SIZE):
            for left in range(0, image.width, SIZE):
                box = (left, top, left + SIZE, top + SIZE)
                name = f"{file.stem}_{top // SIZE}{left // SIZE}"
                yield name, np.array(image.crop(box)), np.array(mask.crop(box))


def read_isbi(source: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, image and mask of the four quarters of each section."""
    images, labels = (
        tifffile.imread(source / f"train-{what}.tif") for what in ("volume", "labels")
    )
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for quarter in range(4):
            top, left = (256 * i for i in divmod(quarter, 2))
            place = slice(top, top + 256), slice(left, left + 256)
            yield f"{number:02d}_{quarter}", image[place], (label[place] > 0).astype(np.uint8)


def read_camvid(source: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, image and mask of every second frame; those of the folder val are held back."""
    for part in ("train", "val"):
        for file in sorted((source / part / "images").iterdir())[::2]:
            image, mask = map(np.array, read_half(file, source / part / "masks" / file.name))
            yield file.stem, image, np.where(mask == 11, IGNORE, mask).astype(np.uint8)


# ---- planted errors


def plant_error(
    mask: np.ndarray,
    kind: str,
    other: np.ndarray,
    things: tuple[int, ...],
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Return a mask with one error of a kind, or None if it has no place for it; ``other`` is another image's mask."""
    wrong = mask.copy()
    if kind == "whole":
        wrong = other.copy()
    elif kind == "invented":
        place = np.zeros(mask.shape, bool)
        for k in set(np.unique(mask)) - {*things, IGNORE}:
            place |= ndimage.distance_transform_edt(np.pad(mask == k, 1))[1:-1, 1:-1] > ROOM
        if not place.any():
            return None
        row, column = np.unravel_index(rng.choice(np.flatnonzero(place)), mask.shape)
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
        wrong[np.hypot(rows - row, columns - column) < rng.uniform(2.7, ROOM)] = rng.choice(things)
    else:
        objects = find_objects(mask, things)
        if not objects:
            return None
        one = objects[rng.integers(len(objects))]
        ring = mask[ndimage.binary_dilation(one, iterations=2) & ~one & (mask != IGNORE)]
        around, own = np.bincount(ring, minlength=1).argmax(), mask[one][0]
        wrong[one] = rng.choice([k for k in things if k != own]) if kind == "swapped" else around
        if kind == "shifted":
            wrong[ndimage.shift(one, rng.choice([-MOVE, MOVE], 2), order=0)] = own
    return wrong if ((wrong != mask) & (mask != IGNORE)).sum() >= LEAST_PX else None


def find_objects(mask: np.ndarray, things: tuple[int, ...]) -> list[np.ndarray]:
    """Return the objects (H, W) bool of some classes, without tiny and huge ones."""
    objects = []
    for k in things:
        labels, count = ndimage.label(mask == k)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        fit = (sizes >= LEAST_PX) & (sizes <= MOST * mask.size)
        objects += [labels == n for n in range(1, count + 1) if fit[n]]
    return objects


def plant_errors(masks: Masks, rate: float, things: tuple[int, ...], seed: int) -> tuple[Masks, dict[str, str]]:  # fmt: skip
    """Return masks with errors in a share of them, all kinds alike, and image name -> kind."""
    rng = np.random.default_rng([seed, 1])
    names, given, kinds = rng.permutation(sorted(masks)).tolist(), dict(masks), {}
    for n in range(round(rate * len(masks))):
        kind = KINDS[n % len(KINDS)]
        for name in names:
            other = masks[rng.choice([k for k in names if k != name])]
            wrong = None if name in kinds else plant_error(masks[name], kind, other, things, rng)
            if wrong is not None:
                given[name], kinds[name] = wrong, kind
                break
    return given, kinds


def write_images(arrays: Masks, folder: Path) -> None:
    """Write images or masks as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
