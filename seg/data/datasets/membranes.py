"""Synthetic electron-microscopy images: membranes between cells, and organelles that look like membranes.

For a first run, tests and demonstrations: nothing is downloaded, and a seed gives the same bytes on every platform.
To that end pixels depend only on operations that IEEE 754 rounds in one way (+ - * / sqrt floor and comparisons,
element by element), on raw random doubles and on random integers: no exp or sin, no normal or Poisson draws, no
reduction of floats.

Legend: s = side of the image in px; shade = factor on the brightness, 1 for none; unit field = smooth random field
of mean 0 and standard deviation about 1.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from pydantic import Field

from seg.data.datasets.base import Task, check_task
from seg.data.partition import SPLITS
from seg.errors import DataError

WindowSlices = tuple[slice, slice]
BORDER_PX = 64  # px around the image in which cells have seeds, too
CORNER_PX = 7  # px, difference of the distances to two borders below which a corner is rounded
SEED_REACH_PX = 96  # px beyond its radius in which a seed may own pixels
# Discs placed at random in 384 x 384 px, one size after another: smallest and largest radius (px), attempts.
DISC_SIZES = ((38, 66, 6), (20, 34, 20), (11, 18, 70), (7, 10, 110))


class Tissue(NamedTuple):
    """The cells of one image; the mask is ``edge >= half``.

    Attributes:
        cell: (s, s), index of the cell of a pixel.
        neighbour: (s, s), index of the cell across the nearest border.
        edge: (s, s), distance to that border in px.
        half: (s, s), half the thickness of the membrane there in px.
    """

    cell: np.ndarray
    neighbour: np.ndarray
    edge: np.ndarray
    half: np.ndarray


class Membranes:
    """Synthetic images in the style of ISBI 2012, drawn when read: mask 0 is membrane, 1 is cell.

    They imitate Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142. An image depends only on
    ``(data_seed, split, index)``, so that more images leave the first ones unchanged.

    Args:
        size: side of the square image, px; 32 .. 2048.
        train: number of training images.
        val: number of validation images.
        test: number of test images; 0: no test split.
        difficulty: 0 .. 1; scales noise, faint stretches of membrane and look-alike organelles.
        data_seed: seed of the images.
        task: ``classes``; ``instances``: the cells are also scored as objects.

    Raises:
        ValueError: if an argument is out of its range.
        DataError: from ``read``, if there is no image of that name.
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
        for option, count, minimum in (("train", train, 1), ("val", val, 1), ("test", test, 0)):
            if count < minimum:
                raise ValueError(f"data.{option}={count} images: give {minimum} or more")
        if not 0 <= difficulty <= 1:
            raise ValueError(f"data.difficulty={difficulty}: give a number from 0 to 1")
        if data_seed < 0:
            raise ValueError(f"data.data_seed={data_seed}: give 0 or more")
        self.size, self.difficulty, self.data_seed = size, difficulty, data_seed
        counts = zip(SPLITS, (train, val, test), strict=True)
        self.splits = {split: [f"{split}-{i:03d}" for i in range(n)] for split, n in counts if n}
        self.names = {name for names in self.splits.values() for name in names}
        self._made = drawn_images(size, float(difficulty), data_seed)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (s, s, 1) uint8 and its mask (s, s) uint8: 0 membrane, 1 cell."""
        if name not in self._made:
            split, _, index = name.rpartition("-")
            if name not in self.names:
                last = {split: names[-1] for split, names in self.splits.items()}
                raise DataError(f"no image {name!r}; the last name of each split is {last}")
            key = SeedSequence([self.data_seed, SPLITS.index(split), int(index)])
            self._made[name] = draw_membranes(
                Generator(PCG64(key)), self.size, float(self.difficulty)
            )
        return self._made[name]

    def stamp(self, name: str) -> str:
        """Return a text that changes when the result of ``read`` may: options, and the time of this file."""
        drawn = Path(__file__).stat().st_mtime_ns
        return f"{name} {self.size} {self.difficulty:g} {self.data_seed} {drawn}"


@lru_cache(maxsize=1)
def drawn_images(
    size: int, difficulty: float, data_seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the images drawn so far with these options, which the jobs of a sweep share: name -> image and mask."""
    return {}


def draw_membranes(rng: Generator, size: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return one image (s, s, 1) and its mask (s, s)."""
    tissue = grow_cells(rng, size)
    shade = vesicle_shade(rng, tissue, difficulty) * mitochondria_shade(rng, tissue, difficulty)
    bright = cytoplasm_grey(rng, tissue) * shade
    dark = membrane_darkness(rng, tissue, difficulty)
    image = bright - dark * (bright - 55)  # 55: grey level of a crisp membrane
    image = expose_image(rng, binomial_blur(image), difficulty)
    return image[..., None], (tissue.edge >= tissue.half).astype(np.uint8)


def grow_cells(rng: Generator, size: int) -> Tissue:
    """Return cells: the power diagram of packed discs, smoothly deformed, with rounded corners."""
    # The cell of a pixel is the disc of the least power.
    y, x = displaced_grid(rng, size)
    discs = pack_discs(rng, size)
    # Least power so far of each pixel, and the index of its disc
    cell, neighbour = np.zeros((2, size, size), np.intp)
    power, edge, second = np.full(
        (3, size, size), np.inf
    )  # second: px to the second nearest border
    for i, (w, p) in enumerate(disc_powers(discs, y, x)):
        cell[w] = np.where(p < power[w], i, cell[w])
        power[w] = np.minimum(p, power[w])
    # Distances to the nearest and the second nearest border.
    for i, (w, p) in enumerate(disc_powers(discs, y, x)):
        own = discs[cell[w]]
        between = 2 * np.sqrt(squared_length(own[..., 0] - discs[i, 0], own[..., 1] - discs[i, 1]))
        distance = (p - power[w]) / np.where(between > 0, between, 1)
        distance = np.where(cell[w] == i, np.inf, distance)
        neighbour[w] = np.where(distance < edge[w], i, neighbour[w])
        second[w] = np.minimum(second[w], np.maximum(distance, edge[w]))
        edge[w] = np.minimum(distance, edge[w])
    # Rounded corners, and the thickness of the membranes.
    corner = np.clip(1 - (np.minimum(second, 1e3) - np.minimum(edge, 1e3)) / CORNER_PX, 0, 1)
    edge = edge - CORNER_PX / 4 * corner * corner  # a smooth minimum of the two nearest borders
    half = np.clip(2.4 + 0.7 * unit_field(rng, size, 24), 1.1, 3.6)
    return Tissue(cell, neighbour, edge, half)


def disc_powers(
    discs: np.ndarray, y: np.ndarray, x: np.ndarray
) -> Iterator[tuple[WindowSlices, np.ndarray]]:
    """Yield for each disc the window that it may own and its power there: squared distance minus squared radius."""
    for cy, cx, r in discs:
        w = window_around(cy, cx, r + SEED_REACH_PX, len(y))
        yield w, squared_length(y[w] - cy, x[w] - cx) - r * r


def displaced_grid(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates y and x (s, s) of the pixels after a smooth displacement, px."""
    moved = [
        10 * unit_field(rng, size, 90)
        + 4.5 * unit_field(rng, size, 36)
        + 1.2 * unit_field(rng, size, 9)
        for _ in range(2)
    ]
    place = np.arange(size, dtype=np.float64)
    return place[:, None] + moved[0], place + moved[1]


def pack_discs(rng: Generator, size: int) -> np.ndarray:
    """Return discs (n, 3) of y, x and radius in px, large ones first, that hardly overlap."""
    side = size + 2 * BORDER_PX
    discs = np.empty((0, 3))
    for smallest, largest, darts in DISC_SIZES:
        for y, x, r in rng.random((-(-darts * side * side // (384 * 384)), 3)):
            y, x, r = (
                y * side - BORDER_PX,
                x * side - BORDER_PX,
                smallest + r * (largest - smallest),
            )
            apart = 0.95 * (discs[:, 2] + r)
            if (squared_length(discs[:, 0] - y, discs[:, 1] - x) >= apart * apart).all():
                discs = np.vstack([discs, (y, x, r)])
    return discs


def membrane_darkness(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """Return weights 0 .. 1 (s, s) from the grey of cytoplasm to that of membrane, faint in stretches."""
    # Contrast: one value per pair of cells, and faint stretches.
    size = len(tissue.edge)
    value = rng.random(1 + max(tissue.cell.max(), tissue.neighbour.max()))
    pair = value[tissue.cell] + value[tissue.neighbour]
    pair = pair - np.floor(pair)  # uniform in 0 .. 1
    faint = 2 * (
        unit_field(rng, size, 20) + 2.0 - 1.5 * difficulty
    )  # below 0 in the faint stretches
    contrast = (1 - 0.85 * difficulty * pair) * np.clip(1 + faint, 0.08, 1)
    # Profile across the membrane, and haze next to it.
    reach = tissue.edge / tissue.half
    line = np.clip(1.25 * (1 - reach * reach), 0, 1)
    haze = np.clip(1 - tissue.edge / 14, 0, 1) * np.clip(unit_field(rng, size, 26) - 0.6, 0, 1)
    return np.maximum(line * contrast, 0.6 * haze)


def cytoplasm_grey(rng: Generator, tissue: Tissue) -> np.ndarray:
    """Return grey levels of the cells without organelles: one level a cell, and grains of several sizes."""
    size = len(tissue.edge)
    tint, grain = rng.random((2, tissue.cell.max() + 1))
    level = 170 - 66 * tint * tint * tint
    rough = 8 + 10 * grain
    texture = (
        0.8 * unit_field(rng, size, 2.2)
        + 0.8 * unit_field(rng, size, 4.5)
        + 0.5 * unit_field(rng, size, 13)
    )
    return level[tissue.cell] + rough[tissue.cell] * texture


def mitochondria_shade(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """Return the shade of dark elongated bodies in large cells, with a darker rim and stripes inside."""
    size = len(tissue.edge)
    shade, wobble = np.ones((size, size)), unit_field(rng, size, 11)
    room = np.flatnonzero(tissue.edge > 12)
    for _ in range(round((3 + 9 * difficulty) * size * size / 65536) if len(room) else 0):
        # Position, size and direction.
        cy, cx = divmod(int(room[rng.integers(len(room))]), size)
        short = min(8 + 10 * rng.random(), float(tissue.edge[cy, cx]))
        long = short * (1.1 + 1.1 * rng.random())
        w = window_around(cy, cx, 1.5 * long, size)
        along, across = rotated_grid(rng, w, cy, cx)
        along, across = along / long, across / short
        # Rim, stripes (cristae) and body.
        rim = (1 - np.sqrt(squared_length(along, across))) * short + 1.2 * wobble[w]
        rim = np.minimum(rim, tissue.edge[w] - tissue.half[w] - 3.5)  # px inside the outline
        wave = across * short / 5.5 + 0.35 * wobble[w]
        crista = np.abs(wave - np.floor(wave) - 0.5) * 2  # 0 .. 1, a triangle every 5.5 px
        body = 0.68 - 0.22 * np.clip(2 * crista - 0.9, 0, 1)
        body = np.where(rim < 2.2, 0.5, body)
        shade[w] = np.where(rim > 0, np.minimum(body, shade[w]), shade[w])
    return shade


def vesicle_shade(rng: Generator, tissue: Tissue, difficulty: float) -> np.ndarray:
    """Return the shade of small dark rings, in clusters and alone, and of short dark tubules."""
    size = len(tissue.edge)
    inside = tissue.edge - tissue.half
    shade = np.ones((size, size))
    # Clusters of rings.
    for _ in range(round((10 + 30 * difficulty) * size * size / 65536)):
        home = rng.integers(size, size=2)
        for dy, dx in rng.integers(-22, 23, size=(int(rng.integers(1, 14)), 2)):
            cy, cx = int(home[0] + dy), int(home[1] + dx)
            radius, depth = 1.4 + 2.4 * rng.random(), 0.25 + 0.4 * rng.random()
            w = window_around(cy, cx, radius + 3, size)
            y, x = np.ogrid[w]
            ring = np.abs(np.sqrt(squared_length(y - cy, x - cx)) - radius)
            ring = np.where(inside[w] > 2, np.clip(1.5 - 0.8 * ring, 0, 1), 0)
            shade[w] = np.minimum(shade[w], 1 - depth * ring)
    # Tubules.
    tubule = np.clip(1.6 - 12 * np.abs(unit_field(rng, size, 20)), 0, 1)
    where = np.clip(unit_field(rng, size, 30) - 1.4 + 1.2 * difficulty, 0, 1) * np.clip(
        inside - 3, 0, 1
    )
    return shade * (1 - 0.5 * tubule * np.clip(3 * where, 0, 1))


def expose_image(rng: Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """Return the recorded image uint8: uneven light, and shot noise whose variance grows with the light."""
    size = len(image)
    light = 1 + (0.05 + 0.1 * difficulty) * unit_field(rng, size, size / 2)
    image = np.clip(image * light, 4, 255)
    dots = rng.integers(0, 256, size=(8, size, size)).sum(0)  # of 8 uniform draws: nearly normal
    noise = (dots - 1020) / 209.0  # mean 0, standard deviation 1
    image = binomial_blur(image + (1.5 + 2.6 * difficulty) * np.sqrt(image) * noise)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def unit_field(rng: Generator, size: int, step: float) -> np.ndarray:
    """Return a unit field (s, s): a quadratic B-spline on a random grid with one node every ``step`` px."""
    place = np.arange(size) / step
    node = np.floor(place).astype(np.intp)
    t = place - node
    weights = (0.5 * (1 - t) * (1 - t), 0.75 - (t - 0.5) * (t - 0.5), 0.5 * t * t)
    grid = rng.random((int(node[-1]) + 3,) * 2) - 0.5
    rows = sum(w[:, None] * grid[node + k] for k, w in enumerate(weights))
    return 6.3 * sum(w * rows[:, node + k] for k, w in enumerate(weights))


def binomial_blur(image: np.ndarray) -> np.ndarray:
    """Return the image blurred by 1 2 1 along both axes; border pixels are repeated."""
    p = np.pad(image, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 16


def window_around(y: float, x: float, reach: float, size: int) -> WindowSlices:
    """Return slices of the pixels within ``reach`` px of (y, x) along both axes; they may be empty."""

    def along(center: float) -> slice:
        first, last = max(int(center - reach), 0), max(int(center + reach) + 1, 0)
        return slice(min(first, size), min(last, size))

    return along(y), along(x)


def rotated_grid(
    rng: Generator, w: WindowSlices, cy: int, cx: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of the window's pixels along and across a random direction through (cy, cx), px."""
    uy, ux = rng.integers(-50, 50, size=2) + 0.5  # half a step: never the zero vector
    length = np.sqrt(squared_length(uy, ux))
    y, x = np.ogrid[w]
    y, x = y - cy, x - cx
    return (y * uy + x * ux) / length, (x * uy - y * ux) / length


def squared_length(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the squared length of (y, x)."""
    return y * y + x * x
