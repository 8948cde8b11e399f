"""Predicts an image of any size: whole where it is small, else in overlapping tiles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seg.logits import probabilities
from seg.models.contract import coarsest, full_logits, surroundings
from seg.models.network import Extent, receptive_field


def needed_overlap(model: nn.Module) -> tuple[int, int, bool]:
    """Return the context that tiles need to equal the whole image, as the network states it.

    Returns:
        px that the logits of a tile's kept part depend on around it; these rounded up to the grid; and whether layers
        read the whole image besides (a normalisation over it), so that no context is enough.
    """
    step = coarsest(model)
    field = receptive_field(model, Extent(0, step))
    margin = max(-field.low, field.high - step, 0)
    return margin, -(-margin // step) * step, field.everywhere


def check_tiles(model: nn.Module, tile: int, overlap: int) -> None:
    """Raises ValueError unless tiles start on the network's grid, have a middle and enough context."""
    step, context = coarsest(model), surroundings(model)
    if tile % step or overlap % step or overlap < 0 or tile <= 2 * overlap:
        raise ValueError(
            f"tile={tile} and overlap={overlap}: both must be multiples of {step} px, "
            f"and tile more than twice overlap; take tile={max(3, tile // step) * step}"
        )
    if overlap < context:
        _, enough, _ = needed_overlap(model)
        raise ValueError(
            f"overlap={overlap}: this network needs {context} px of context; take overlap={enough}"
        )


# what to read, which part of the result to keep, and where it goes
Span = tuple[slice, slice, slice]


def spans(size: int, tile: int, overlap: int) -> Iterator[Span]:
    """The tiles along one side; kept parts cover it once, each with ``overlap`` px of context or the border."""
    if size <= tile:
        yield slice(0, size), slice(0, size), slice(0, size)
        return
    step = tile - 2 * overlap
    for low in range(0, size - 2 * overlap, step):
        high = min(low + tile, size)
        start, stop = low + overlap if low else 0, high - overlap if high < size else size
        yield slice(low, high), slice(start - low, stop - low), slice(start, stop)
        if high == size:
            return


@dataclass(frozen=True)
class Tiling:
    """How an image goes through a network.

    Attributes:
        model: in evaluation mode, on ``device``.
        prepare: makes network input of what is stored, (h, w, C) -> (h, w, C) float32.
        tile: px, side of what goes through at once.
        overlap: px of context on each side.
        batch: tiles that go through together.
        device: where the model is.
        overlapping: whether classes overlap, each with a probability of its own.

    Raises:
        ValueError: when tiles don't lie on the network's grid, or lack context.
    """

    model: nn.Module
    prepare: Callable[[np.ndarray], np.ndarray]
    tile: int = 1024
    overlap: int = 128
    batch: int = 1
    device: str | torch.device = "cpu"
    overlapping: bool = False

    def __post_init__(self) -> None:
        check_tiles(self.model, self.tile, self.overlap)
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: tiles that go through together, at least 1")

    def bands(
        self, rows: Callable[[int, int], np.ndarray], height: int, start: int = 0
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """An image from top to bottom: the first row, the rows as stored, their probabilities (C, h, W).

        Args:
            rows: the image's rows from one to before another, (h, W, C).
            height: of the image, px.
            start: the first row that is wanted; bands that end before it aren't predicted.
        """
        for read, keep, put in spans(height, self.tile, self.overlap):
            if put.stop > start:
                band = rows(read.start, read.stop)
                yield put.start, band[keep], self.across(band)[:, keep]

    def across(self, band: np.ndarray) -> np.ndarray:
        """Probabilities (C, h, W) of rows (h, W, C), tile by tile from left to right."""
        alike: dict[int, list[Span]] = {}  # by width
        for span in spans(band.shape[1], self.tile, self.overlap):
            alike.setdefault(span[0].stop - span[0].start, []).append(span)
        result: np.ndarray | None = None
        for group in alike.values():
            for first in range(0, len(group), self.batch):
                some = group[first : first + self.batch]
                p_BCHW = self.probabilities([band[:, read] for read, _, _ in some])
                if result is None:
                    result = np.empty((p_BCHW.shape[1], *band.shape[:2]), np.float32)
                for p_CHW, (_, keep, put) in zip(p_BCHW, some, strict=True):
                    result[:, :, put] = p_CHW[:, :, keep].cpu().numpy()
        assert result is not None  # an image has at least one tile
        return result

    @torch.inference_mode()
    def probabilities(self, tiles: list[np.ndarray]) -> Tensor:
        """Probabilities (B, C, h, w) of tiles (h, w, C) of one size."""
        normal = np.stack([self.prepare(tile).transpose(2, 0, 1) for tile in tiles])
        logits = full_logits(self.model, torch.from_numpy(normal).to(self.device))
        return probabilities(logits, self.overlapping)

    def whole(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities (C, H, W) float32 of an image (H, W, C) as stored."""
        parts = [p_CHW for _, _, p_CHW in self.bands(lambda a, b: image[a:b], len(image))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def seams(self, image: np.ndarray) -> tuple[float, float]:
        """Largest and mean difference of probabilities, in tiles and at once, over a part that fits in memory.

        The part is the image's upper left one, up to one and a half tiles each way.
        """
        side = 3 * self.tile // 2
        part = image[:side, :side]
        at_once = self.probabilities([part])[0].cpu().numpy()
        gap = np.abs(self.whole(part) - at_once)
        return float(gap.max()), float(gap.mean())
