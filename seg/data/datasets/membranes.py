"""Made electron-microscopy images: membranes between cells, and organelles that look like membranes.

For a first run, for tests and for demonstrations: nothing is downloaded, and a seed gives the same
bytes on every platform. To that end pixels depend only on operations that IEEE 754 rounds in one way
(+ - * / sqrt floor and comparisons, element by element), on raw random doubles and on random
integers: no exp or sin, no normal or Poisson draws, no reduction of floats.

Legend: s = side of the image in px; shade = factor on the brightness, 1 leaves it as it is;
unit = a smooth field of mean 0 and standard deviation about 1.
"""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from pydantic import Field

from seg.data.datasets.base import Task, check_task
from seg.errors import DataError

Window = tuple[slice, slice]
SPLITS = ("train", "val", "test")
BORDER = 64  # px around the image where cells have their seeds too
ROUND = 7  # px from two borders at which a cell's corner starts to round off
REACH = 96  # px beyond its radius over which a seed may own pixels
# discs thrown into 384 x 384 px, a size at a time: radii from, to (px), number of throws
DARTS = ((38, 66, 6), (20, 34, 20), (11, 18, 70), (7, 10, 110))


class Tissue(NamedTuple):
    """The cells under one image, each field (s, s); the mask is ``edge >= half``."""

    cell: np.ndarray  # which cell a pixel belongs to
    neighbour: np.ndarray  # the cell across the nearest border
    edge: np.ndarray  # px to that border
    half: np.ndarray  # half the membrane's thickness there, px


class Membranes:
    """Images in the manner of ISBI 2012, made when read: mask 0 is membrane, 1 is cell.

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142, is what they imitate. An image
    depends on its own ``(data_seed, split, index)``, so more images leave the first ones unchanged.

    Args:
        size: side of the square image, px; 32 .. 2048.
        train: number of training images.
        val: number of validation images.
        test: number of test images, 0 for none.
        difficulty: 0 .. 1; scales noise, faint stretches of membrane and look-alike organelles.
        data_seed: of everything random.
        task: ``instances``: the cells are also counted one by one.

    Raises:
        ValueError: when an argument is out of its range.
        DataError: from ``read``, when there is no image of that name.
    """

    classes: list[str] = ["membrane", "cell"]  # noqa: RUF012  (what the generator draws)
    colors: list[tuple[int, int, int]] = [(20, 60, 120), (255, 190, 60)]  # noqa: RUF012

    def __init__(
        self,
        size: Annotated[int, Field(ge=32, le=2048)] = 256,
        train: Annotated[int, Field(ge=1)] = 24,
        val: Annotated[int, Field(ge=1)] = 6,
        test: Annotated[int, Field(ge=0)] = 6,
        difficulty: Annotated[float, Field(ge=0, le=1)] = 0.5,
        data_seed: Annotated[int, Field(ge=0)] = 0,
        task: Task = "classes",
    ) -> None:
        check_task(task, self.classes)
        self.task: Task = task
        if not 32 <= size <= 2048:
            raise ValueError(f"data.size={size} px: give a side from 32 to 2048")
        for option, count, least in (("train", train, 1), ("val", val, 1), ("test", test, 0)):
            if count < least:
                raise ValueError(f"data.{option}={count} images: give {least} or more")
        if not 0 <= difficulty <= 1:
            raise ValueError(f"data.difficulty={difficulty}: give a number from 0 to 1")
        if data_seed < 0:
            raise ValueError(f"data.data_seed={data_seed}: give 0 or more")
        self.size, self.difficulty, self.data_seed = size, difficulty, data_seed
        counts = zip(SPLITS, (train, val, test), strict=True)
        self.splits = {split: [f"{split}-{i:03d}" for i in range(n)] for split, n in counts if n}
        self._made: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (s, s, 1) uint8 and its mask (s, s) uint8: 0 membrane, 1 cell."""
        if name not in self._made:
            split, _, index = name.rpartition("-")
            if name not in self.splits.get(split, []):
                last = {split: names[-1] for split, names in self.splits.items()}
                raise DataError(f"no made image {name!r}; the last of each split are {last}")
            key = SeedSequence([self.data_seed, SPLITS.index(split), int(index)])
            self._made[name] = draw(Generator(PCG64(key)), self.size, float(self.difficulty))
        return self._made[name]


def draw(rng: Generator, size: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """One image (s, s, 1) and its mask (s, s)."""
    tissue = grow(rng, size)
    shade = vesicles(rng, tissue, difficulty) * mitochondria(rng, tissue, difficulty)
    bright = cytoplasm(rng, tissue) * shade
    dark = membrane_darkness(rng, tissue, difficulty)
    image = bright - dark * (bright - 55)  # 55: grey level of a crisp membrane
    image = expose(rng, blur(image), difficulty)
    return image[..., None], (tissue.edge >= tissue.half).astype(np.uint8)


def grow(rng: Generator, size: int) -> Tissue:
    """Cells as the power diagram of packed discs, bent by a smooth displacement, corners rounded."""
    y, x = bent(rng, size)
    discs = pack(rng, size)
    cell, neighbour = np.zeros((2, size, size), np.intp)
    power, edge, second = np.full((3, size, size), np.inf)  # second: px to the border after next
    for i, (w, p) in enumerate(powers(discs, y, x)):
        cell[w] = np.where(p < power[w], i, cell[w])
        power[w] = np.minimum(p, power[w])
    for i, (w, p) in enumerate(powers(discs, y, x)):
        own = discs[cell[w]]
        between = 2 * np.sqrt(squared(own[..., 0] - discs[i, 0], own[..., 1] - discs[i, 1]))
        far = np.where(cell[w] == i, np.inf, (p - power[w]) / np.where(between > 0, between, 1))
        neighbour[w] = np.where(far < edge[w], i, neighbour[w])
        second[w] = np.minimum(second[w], np.maximum(far, edge[w]))
        edge[w] = np.minimum(far, edge[w])
    corner = np.clip(1 - (np.minimum(second, 1e3) - np.minimum(edge, 1e3)) / ROUND, 0, 1)
    edge = edge - ROUND / 4 * corner * corner  # a smooth minimum of the two nearest borders
    half = np.clip(2.4 + 0.7 * unit(rng, size, 24), 1.1, 3.6)
    return Tissue(cell, neighbour, edge, half)


def powers(discs: np.ndarray, y: np.ndarray, x: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
    """For each disc the window it may own, and there the power: squared distance less radius squared."""
    for cy, cx, r in discs:
        w = window(cy, cx, r + REACH, len(y))
        yield w, squared(y[w] - cy, x[w] - cx) - r * r


def bent(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates y and x (s, s) of the pixels after a smooth displacement, px."""
    moved = [
        10 * unit(rng, size, 90) + 4.5 * unit(rng, size, 36) + 1.2 * unit(rng, size, 9)
        for _ in range(2)
    ]
    place = np.arange(size, dtype=np.float64)
    return place[:, None] + moved[0], place + moved[1]


def pack(rng: Generator, size: int) -> np.ndarray:
    """Discs (n, 3) of y, x and radius in px, the large ones first, none overlapping much."""
    side = size + 2 * BORDER
    discs = np.empty((0, 3))
    for least, most, darts in DARTS:
        for y, x, r in rng.random((-(-darts * side * side // (384 * 384)), 3)):
            y, x, r = y * side - BORDER, x * side - BORDER, least + r * (most - least)
            apart = 0.95 * (discs[:, 2] + r)
            if (squared(discs[:, 0] - y, discs[:, 1] - x) >= apart * apart).all():
                discs = np.vstack([discs, (y, x, r)])
    return discs


def membrane_darkness(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """0 .. 1: how far a pixel goes from the cytoplasm's grey to the membrane's; faint in stretches."""
    size = len(tissue.edge)
    each = rng.random(1 + max(tissue.cell.max(), tissue.neighbour.max()))
    pair = each[tissue.cell] + each[tissue.neighbour]
    pair = pair - np.floor(pair)  # uniform in 0 .. 1, one value per pair of cells
    faint = 2 * (unit(rng, size, 20) + 2.0 - 1.5 * difficulty)  # below 0 in the faint stretches
    contrast = (1 - 0.85 * difficulty * pair) * np.clip(1 + faint, 0.08, 1)
    reach = tissue.edge / tissue.half
    line = np.clip(1.25 * (1 - reach * reach), 0, 1)
    haze = np.clip(1 - tissue.edge / 14, 0, 1) * np.clip(unit(rng, size, 26) - 0.6, 0, 1)
    return np.maximum(line * contrast, 0.6 * haze)


def cytoplasm(rng: Generator, tissue: Tissue) -> np.ndarray:
    """Grey levels of the cells without organelles: a level per cell, and grains of several sizes."""
    size = len(tissue.edge)
    tint, grain = rng.random((2, tissue.cell.max() + 1))
    level = 170 - 66 * tint * tint * tint
    rough = 8 + 10 * grain
    texture = 0.8 * unit(rng, size, 2.2) + 0.8 * unit(rng, size, 4.5) + 0.5 * unit(rng, size, 13)
    return level[tissue.cell] + rough[tissue.cell] * texture


def mitochondria(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """Shade of dark elongated bodies in large cells, with a darker rim and stripes inside."""
    size = len(tissue.edge)
    shade, wobble = np.ones((size, size)), unit(rng, size, 11)
    room = np.flatnonzero(tissue.edge > 12)
    for _ in range(round((3 + 9 * difficulty) * size * size / 65536) if len(room) else 0):
        cy, cx = divmod(int(room[rng.integers(len(room))]), size)
        short = min(8 + 10 * rng.random(), float(tissue.edge[cy, cx]))
        long = short * (1.1 + 1.1 * rng.random())
        w = window(cy, cx, 1.5 * long, size)
        along, across = turned(rng, w, cy, cx)
        along, across = along / long, across / short
        rim = (1 - np.sqrt(squared(along, across))) * short + 1.2 * wobble[w]
        rim = np.minimum(rim, tissue.edge[w] - tissue.half[w] - 3.5)  # px inside the outline
        wave = across * short / 5.5 + 0.35 * wobble[w]
        crista = np.abs(wave - np.floor(wave) - 0.5) * 2  # 0 .. 1, a triangle every 5.5 px
        body = 0.68 - 0.22 * np.clip(2 * crista - 0.9, 0, 1)
        body = np.where(rim < 2.2, 0.5, body)
        shade[w] = np.where(rim > 0, np.minimum(body, shade[w]), shade[w])
    return shade


def vesicles(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """Shade of small dark rings, in clusters and alone, and of short dark tubules."""
    size = len(tissue.edge)
    inside = tissue.edge - tissue.half
    shade = np.ones((size, size))
    for _ in range(round((10 + 30 * difficulty) * size * size / 65536)):
        home = rng.integers(size, size=2)
        for dy, dx in rng.integers(-22, 23, size=(int(rng.integers(1, 14)), 2)):
            cy, cx = int(home[0] + dy), int(home[1] + dx)
            radius, depth = 1.4 + 2.4 * rng.random(), 0.25 + 0.4 * rng.random()
            w = window(cy, cx, radius + 3, size)
            y, x = np.ogrid[w]
            ring = np.abs(np.sqrt(squared(y - cy, x - cx)) - radius)
            ring = np.where(inside[w] > 2, np.clip(1.5 - 0.8 * ring, 0, 1), 0)
            shade[w] = np.minimum(shade[w], 1 - depth * ring)
    tubule = np.clip(1.6 - 12 * np.abs(unit(rng, size, 20)), 0, 1)
    where = np.clip(unit(rng, size, 30) - 1.4 + 1.2 * difficulty, 0, 1) * np.clip(inside - 3, 0, 1)
    return shade * (1 - 0.5 * tubule * np.clip(3 * where, 0, 1))


def expose(rng: Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """What the camera writes: uneven light, shot noise whose variance grows with the light, uint8."""
    size = len(image)
    light = 1 + (0.05 + 0.1 * difficulty) * unit(rng, size, size / 2)
    image = np.clip(image * light, 4, 255)
    dots = rng.integers(0, 256, size=(8, size, size)).sum(0)  # of 8 uniform draws: nearly normal
    noise = (dots - 1020) / 209.0  # mean 0, standard deviation 1
    image = blur(image + (1.5 + 2.6 * difficulty) * np.sqrt(image) * noise)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def unit(rng: Generator, size: int, step: float) -> np.ndarray:
    """Smooth field (s, s) of unit deviation: a random grid, one node every step px, as a B-spline."""
    place = np.arange(size) / step
    node = np.floor(place).astype(np.intp)
    t = place - node
    weights = (0.5 * (1 - t) * (1 - t), 0.75 - (t - 0.5) * (t - 0.5), 0.5 * t * t)
    grid = rng.random((int(node[-1]) + 3,) * 2) - 0.5
    rows = sum(w[:, None] * grid[node + k] for k, w in enumerate(weights))
    return 6.3 * sum(w * rows[:, node + k] for k, w in enumerate(weights))


def blur(image: np.ndarray) -> np.ndarray:
    """Binomial blur by 1 2 1 along both axes; the borders repeat."""
    p = np.pad(image, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 16


def window(y: float, x: float, reach: float, size: int) -> Window:
    """Slices of the image's pixels within reach px of (y, x) along both axes; perhaps empty."""

    def along(center: float) -> slice:
        first, last = max(int(center - reach), 0), max(int(center + reach) + 1, 0)
        return slice(min(first, size), min(last, size))

    return along(y), along(x)


def turned(rng: Generator, w: Window, cy: int, cx: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the window's pixels along and across a random direction through (cy, cx), px."""
    uy, ux = rng.integers(-50, 50, size=2) + 0.5  # half a step: never the zero vector
    length = np.sqrt(squared(uy, ux))
    y, x = np.ogrid[w]
    y, x = y - cy, x - cx
    return (y * uy + x * ux) / length, (x * uy - y * ux) / length


def squared(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Squared length of (y, x)."""
    return y * y + x * x
