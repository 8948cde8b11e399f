"""Tiled prediction: a small image goes through at once, a larger one in overlapping tiles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from seg.hardware import release_freed_memory
from seg.logits import probabilities
from seg.models.contract import needed_context, same_size_logits, tile_stride
from seg.models.network import Extent, receptive_field

AUTO_TILE = 1024  # px
PART_PIXELS = 2**20  # of a band that are scored together, some 50 bytes a pixel


def needed_overlap(model: nn.Module) -> tuple[int, int, bool]:
    """Return the context that tiles need to equal the whole image, as the network states it.

    Returns:
        The px around the kept part of a tile that its logits depend on; these rounded up to the grid; and whether a
        layer reads the whole image (as group normalisation does), so that no context is enough.
    """
    step = tile_stride(model)
    field = receptive_field(model, Extent(0, step))
    margin = max(-field.low, field.high - step, 0)
    return margin, -(-margin // step) * step, field.everywhere


def check_tiles(model: nn.Module, tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles start on the network's grid and have a middle and enough context."""
    step, context = tile_stride(model), needed_context(model)
    if tile % step or overlap % step or overlap < 0 or tile <= 2 * overlap:
        raise ValueError(
            f"tile={tile} and overlap={overlap}: both must be multiples of {step} px, "
            f"and tile more than twice overlap; take tile={max(3, tile // step) * step}"
        )
    if overlap < context:
        _, needed, _ = needed_overlap(model)
        raise ValueError(
            f"overlap={overlap}: this network needs {context} px of context; take overlap={needed}"
        )


class TileSize(NamedTuple):
    """Side of the tiles and context on each of their sides, px."""

    side: int
    overlap: int


def choose_tile(model: nn.Module, option: int | Literal["auto"] | None) -> TileSize | None:
    """Return the tiles in which images are evaluated that are larger; None: every image goes through at once.

    Args:
        model: network.
        option: px; ``auto``: ``AUTO_TILE``, or more if the receptive field needs it, and None where a layer reads the
            whole image, so that no tile equals it; None: None.

    Raises:
        ValueError: if the tile is off the network's grid, or has no room for the context that it needs.
    """
    if option is None:
        return None
    training = model.training
    step, (margin, overlap, everywhere) = tile_stride(model), needed_overlap(model.eval())
    model.train(training)
    if option == "auto":
        side = -(-max(AUTO_TILE, 3 * overlap) // step) * step
        return None if everywhere else TileSize(side, overlap)
    if everywhere:
        raise ValueError(
            f"tile={option}: a layer of this network reads the whole image (as group normalisation does), so that tiles "
            "would differ from it; take tile=null"
        )
    if option <= 2 * overlap or option % step:
        raise ValueError(
            f"tile={option}: the receptive field reaches {margin} px beyond the kept part of a tile, and tiles start on "
            f"a grid of {step} px; take tile={2 * overlap + step} or a larger multiple of {step}"
        )
    return TileSize(option, overlap)


def choose_side(model: nn.Module, option: int | Literal["auto"] | None) -> int:
    """Return the side of the tiles, px, as ``choose_tile``; one that no image exceeds if there are no tiles."""
    tiles = choose_tile(model, option)
    return tile_stride(model) * 2**20 if tiles is None else tiles.side


# one side of a tile: px to read, px of the result to keep, px of the image where they go
TileSpan = tuple[slice, slice, slice]


def tile_spans(size: int, tile: int, overlap: int) -> Iterator[TileSpan]:
    """Yield the tiles along one side; the kept parts cover it once, each with ``overlap`` px of context or the border."""
    if size <= tile:
        yield slice(0, size), slice(0, size), slice(0, size)
        return
    # Each tile but the first and last keeps its middle, of tile - 2 * overlap px
    step = tile - 2 * overlap
    for low in range(0, size - 2 * overlap, step):
        high = min(low + tile, size)
        start, stop = low + overlap if low else 0, high - overlap if high < size else size
        yield slice(low, high), slice(start - low, stop - low), slice(start, stop)
        if high == size:
            return


@dataclass(frozen=True)
class Tiling:
    """A network and its tiles: class probabilities of images of any size.

    Attributes:
        model: in evaluation mode, on ``device``.
        prepare: normalises stored values, (h, w, C) -> (h, w, C) float32.
        tile: px, side of a tile; a multiple of the network's grid.
        overlap: px of context on each side.
        batch: number of tiles that go through together.
        device: of the model.
        overlapping: whether classes overlap, each with its own sigmoid.
        logits: whether the results are logits instead of probabilities.

    Raises:
        ValueError: if the tiles are off the network's grid, or have less context than it needs.
    """

    model: nn.Module
    prepare: Callable[[np.ndarray], np.ndarray]
    tile: int = 1024
    overlap: int = 128
    batch: int = 1
    device: str | torch.device = "cpu"
    overlapping: bool = False
    logits: bool = False

    def __post_init__(self) -> None:
        check_tiles(self.model, self.tile, self.overlap)
        if self.batch < 1:
            raise ValueError(
                f"batch={self.batch}: the number of tiles that go through together must be at least 1"
            )

    def bands(
        self, rows: Callable[[int, int], np.ndarray], height: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield an image from top to bottom: the first row, the rows as stored (h, W, C), their probabilities (C, h, W).

        Args:
            rows: returns the rows from ``start`` to before ``stop`` of the image, (h, W, C).
            height: of the image, px.
        """
        for read, keep, put in tile_spans(height, self.tile, self.overlap):
            release_freed_memory()  # tiles of several sizes, and what used the memory before
            band = rows(read.start, read.stop)
            yield put.start, band[keep], self.across(band, keep)

    def parts(
        self, rows: Callable[[int, int], np.ndarray], height: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield copies of the rows of ``bands``, at most ``PART_PIXELS`` together.

        A caller that keeps one of them keeps no band while the next one is predicted.
        """
        for top, band, p_CHW in self.bands(rows, height):
            step = max(1, PART_PIXELS // band.shape[1])
            for first in range(0, len(band), step):
                part = slice(first, first + step)
                yield top + first, band[part].copy(), p_CHW[:, part].copy()
            del band, p_CHW

    def across(self, band: np.ndarray, kept: slice) -> np.ndarray:
        """Return the probabilities (C, h, W) of the kept ones of rows (H, W, C), tile by tile from left to right."""
        # tiles of one width can go through together
        by_width: dict[int, list[TileSpan]] = {}
        for span in tile_spans(band.shape[1], self.tile, self.overlap):
            by_width.setdefault(span[0].stop - span[0].start, []).append(span)
        # The number of classes is known only after the first batch
        result: np.ndarray | None = None
        for group in by_width.values():
            for first in range(0, len(group), self.batch):
                spans_of_batch = group[first : first + self.batch]
                p_BCHW = self.probabilities([band[:, read] for read, _, _ in spans_of_batch])
                if result is None:
                    shape = (p_BCHW.shape[1], kept.stop - kept.start, band.shape[1])
                    result = np.empty(shape, np.float32)
                for p_CHW, (_, keep, put) in zip(p_BCHW, spans_of_batch, strict=True):
                    result[:, :, put] = p_CHW[:, kept, keep].cpu().numpy()
        assert result is not None  # an image has at least one tile
        return result

    @torch.inference_mode()
    def probabilities(self, tiles: list[np.ndarray]) -> Tensor:
        """Return the probabilities (B, C, h, w) of tiles (h, w, C) of one size."""
        normal = np.stack([self.prepare(tile).transpose(2, 0, 1) for tile in tiles])
        logits = same_size_logits(self.model, torch.from_numpy(normal).to(self.device))
        return logits.float() if self.logits else probabilities(logits, self.overlapping)

    def whole(self, image: np.ndarray) -> np.ndarray:
        """Return the class probabilities (C, H, W) float32 of an image (H, W, C) as stored."""
        parts = [
            p_CHW for _, _, p_CHW in self.bands(lambda start, stop: image[start:stop], len(image))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def seams(self, image: np.ndarray) -> tuple[float, float]:
        """Return the largest and the mean difference between the probabilities in tiles and at once.

        They are compared on the upper left part of the image, up to one and a half tiles a side.
        """
        side = 3 * self.tile // 2
        part = image[:side, :side]
        at_once = self.probabilities([part])[0].cpu().numpy()
        gap = np.abs(self.whole(part) - at_once)
        return float(gap.max()), float(gap.mean())
