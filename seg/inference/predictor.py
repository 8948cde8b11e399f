"""Predictor of a trained run, for seg.predict and, as ``seg.load``, for notebooks."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from seg.data.image_io import as_image, channels_hint, read_image
from seg.data.nodata import NodataOption, nodata_pixels, nodata_values
from seg.data.ome_zarr import image_path
from seg.data.sections import check_same_size, find_section_files
from seg.data.tiff_layout import PagesOption
from seg.data.value_types import ValueConversion, find_conversion, scan_bands
from seg.display import panels
from seg.errors import DataError, UserError
from seg.hardware import (
    fuse_conv_bn,
    multiplies_bfloat16,
    pick_accelerator,
    prepare_for_inference,
    torch_device,
    use_bfloat16,
)
from seg.inference import ensemble
from seg.inference.engines import (
    EngineName,
    EngineNetwork,
    PrecisionName,
    check_engine,
    with_engine,
)
from seg.inference.tiling import Tiling, check_tiles, choose_side, needed_overlap
from seg.inference.tta import ViewsName, with_tta
from seg.labels import IGNORE
from seg.logits import classes_from_probabilities
from seg.models.contract import needed_context, tile_stride
from seg.runs import load as runs_load
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image.

    Attributes:
        image: (H, W, C), in the type of the training images.
        probabilities: (classes, H, W) float32 in 0..1.
        mask: (H, W) uint8 class indices, or (classes, H, W) of 0 and 1 where classes overlap; 255 where the image
            has no data.
        classes: names, in the order of the indices.
        colors: one (red, green, blue) in 0..255 a class.
    """

    image: np.ndarray
    probabilities: np.ndarray
    mask: np.ndarray
    classes: list[str]
    colors: list[tuple[int, int, int]]

    def overlay(self) -> np.ndarray:
        """Return the image tinted by class, (H, W, 3) uint8; ``PIL.Image.fromarray(...)`` shows it in a notebook."""
        _, colors = panels.legend_entries(self.classes, self.colors, self.mask.ndim == 3)
        return panels.draw_overlay(self.image, panels.flatten_labels(self.mask), colors)


class Predictor:
    """A run's network on its device, with tiling and test-time augmentation.

    Args:
        run: the loaded run.
        threshold: probability in 0..1 above which a pixel is class 1 of two, or has an overlapping class.
        tta: none (1 view of each image), mirror (2), flips (4) or d4 (8); their probabilities are averaged.
        scales: factors of the image's sides, averaged too.
        tile: px; a larger image goes through in overlapping tiles of this side; auto: 1024, or None where a layer reads the
            whole image; None: every image goes through at once.
        overlap: px of context on each side of a tile; auto: as much as the receptive field needs.
        batch: number of tiles that go through together.
        accelerator: auto, cpu, gpu or mps.
        nodata: value of the images that means no data, or ``nan``, besides those that the run knows and the tag
            GDAL_NODATA; ``none``: no value does.
        precision: float32 or bfloat16 of the network; of a network that an engine runs, what the engine was opened with.

    Raises:
        UserError: if an option doesn't fit the run's network.
    """

    def __init__(
        self,
        run: LoadedRun,
        threshold: float,
        tta: ViewsName = "none",
        scales: Sequence[float] = (1.0,),
        tile: int | Literal["auto"] | None = "auto",
        overlap: int | str = "auto",
        batch: int = 1,
        accelerator: str = "auto",
        nodata: NodataOption | None = None,
        precision: PrecisionName = "float32",
    ) -> None:
        self.run, self.threshold, self.nodata = run, threshold, nodata
        self.asked, self.batch = overlap, batch
        self.said: set[str] = set()
        if accelerator not in ACCELERATORS:
            raise UserError(f"accelerator={accelerator}: choose from {', '.join(ACCELERATORS)}")
        # Fuse convolutions with batch normalisation, and move the network to its device
        self.device = torch_device(pick_accelerator(accelerator))
        network = fuse_conv_bn(run.model)
        if not isinstance(network, EngineNetwork):
            set_precision(network, precision, self.device)
        prepare_for_inference(network, self.device)
        if overlap != "auto" and not isinstance(overlap, int):
            raise UserError(f"overlap={overlap}: a number of px, or auto, is needed")
        # Check the tiles now, so that wrong options fail before the first image
        try:
            self.model = with_tta(network, tta, scales, run.overlapping)
            self.step = tile_stride(self.model)
            self.least = -(-needed_context(self.model) // self.step) * self.step
            self.tile = tile if isinstance(tile, int) else choose_side(self.model, tile)
            check_tiles(self.model, self.tile, self.least if overlap == "auto" else int(overlap))
            self.tiling(1, 1)
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def pages(self) -> PagesOption | None:
        """Use of the pages of a TIFF that the run was trained with: its option ``data.pages``."""
        return self.run.config.get("data", {}).get("pages")

    @cached_property
    def overlap(self) -> int:
        """Context on each side of a tile, px; by default as much as the network's receptive field needs."""
        if self.asked != "auto":
            return int(self.asked)
        # As much context as the receptive field needs, as far as a tile has room for it
        margin, needed, everywhere = needed_overlap(self.model)
        largest = (self.tile - 1) // 2 // self.step * self.step
        overlap = min(max(needed, self.least), largest)
        if everywhere:
            log.warning(
                f"overlap    {overlap} px: a layer of this network reads the whole image (as group normalisation does), "
                f"so that no overlap makes tiles equal to it; images of up to {self.tile} px a side go through at once: "
                "take a larger tile"
            )
        elif needed > largest:
            log.warning(
                f"overlap    {overlap} px: from the architecture, the receptive field reaches {margin} px beyond the "
                f"kept part of a tile, more than tile={self.tile} has room for, and tiles will differ from the whole "
                f"image; take tile={2 * needed + self.step} or more"
            )
        else:
            times = (self.tile / (self.tile - 2 * overlap)) ** 2
            log.info(
                f"overlap    {overlap} px: from the architecture, the receptive field reaches {margin} px beyond the "
                f"kept part of a tile; tiles equal the whole image but for rounding, at up to {times:.1f} times its time"
            )
        return overlap

    def nodata_values(self, file: Path | None) -> tuple[float, ...]:
        """Return the values that mean no data in a file: of the option, of the run and of the file's tag."""
        option = self.nodata
        if option is None and self.run.config.get("data", {}).get("nodata") == "none":
            option = "none"
        known = () if option == "none" else tuple(self.run.intensity.nodata or ())
        found = nodata_values(option, file)
        return (*found, *known) if option is not None else (*known, *found)

    def tiling(self, height: int, width: int, nodata: Sequence[float] | None = None) -> Tiling:
        """Return the tiling of an image of that size; an image no larger than a tile goes through at once.

        Args:
            height: px.
            width: px.
            nodata: values that mean no data; None: those of the run.
        """
        intensity = self.run.intensity
        if nodata is not None:
            intensity = replace(intensity, nodata=list(nodata) or None)
        overlap = self.overlap if max(height, width) > self.tile else self.least
        return Tiling(
            self.model, lambda image: intensity.normalised(intensity.scaled(image)),
            self.tile, overlap, self.batch, self.device, self.run.overlapping,
        )  # fmt: skip

    def conversion(
        self, dtype: np.dtype, bands: Iterable[np.ndarray], name: str
    ) -> ValueConversion:
        """Return the conversion of an image to the type of the training images, and say each kind once.

        Raises:
            DataError: if the type or the range is another one, and the values leave a doubt.
        """
        found = find_conversion(self.run.intensity, dtype, bands, name)
        if found.remark and found.remark not in self.said:
            self.said.add(found.remark)
            log.info(f"values     {name}: {found.remark}, as the run was trained on")
        return found

    def probabilities(self, image: np.ndarray, nodata: Sequence[float] | None = None) -> np.ndarray:
        """Return the class probabilities (classes, H, W) float32 of an image (H, W, C) as stored; see ``tiling``."""
        return self.tiling(image.shape[0], image.shape[1], nodata).whole(image)

    def predict(self, image: np.ndarray | str | Path) -> Prediction:
        """Segment one image: an array (H, W) or (H, W, C) as stored, or a file of one image.

        A run that sees neighbours takes those of a file from its folder, and of an array as its channels.

        Raises:
            DataError: if it can't be read, isn't finite, or has other channels than the run was trained on, or values
                of another type or range whose conversion isn't certain.
        """
        # Read the image (H, W, C), or its sections, without data where the option, the run or the file says so
        if isinstance(image, str | Path):
            file = image_path(image)
            sections, nodata = self.read_sections(file), self.nodata_values(file)
        else:
            nodata = self.nodata_values(None)
            sections = self.split_sections(as_image(np.asarray(image), "the array", nodata))
        # Convert the values to the type of the training images, or refuse them
        parts = []
        for name, pixels in sections:
            check_image_channels(pixels.shape[2], self.run, name)
            parts.append(self.conversion(pixels.dtype, scan_bands(pixels), name)(pixels))
        check_same_size({name: pixels.shape for name, pixels in sections})
        stored = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        # Probabilities and class indices; pixels without data are 255 in the mask
        p_CHW = self.probabilities(stored, nodata)
        mask = classes_from_probabilities(p_CHW, self.threshold, self.run.overlapping)
        stored = stored[..., self.run.intensity.own_channels]
        mask = mark_nodata(mask, stored, nodata)
        return Prediction(stored, p_CHW, mask, self.run.classes, self.run.colors)

    def read_sections(self, file: Path) -> list[tuple[str, np.ndarray]]:
        """Return names and pixels (H, W, C) of the files that the network sees: the file, and its neighbours if any."""
        nodata = self.nodata_values(file)
        image = read_image(file, pages=self.pages, nodata=nodata)
        if not (neighbours := self.run.intensity.neighbours):
            return [(str(file), image)]
        files = find_section_files(file, neighbours)
        read = {file.name: image}
        for other in files:
            if other.name not in read:
                values = (*nodata, *self.nodata_values(other))
                read[other.name] = read_image(other, pages=self.pages, nodata=values)
        return [(str(one), read[one.name]) for one in files]

    def split_sections(self, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Return names and pixels (H, W, C) of the sections whose channels an array holds.

        Raises:
            DataError: if it doesn't hold the channels of all sections that the network sees.
        """
        n, channels = self.run.intensity.neighbours, self.run.intensity.channels
        if n and array.shape[2] != channels:
            raise DataError(
                f"the array: {array.shape[2]} channel(s), but the run sees the sections z-{n} to z+{n} (data.neighbours={n}): "
                f"give (height, width, {channels}), section after section, or the file of a section"
            )
        return [("the array", part) for part in np.split(array, 2 * n + 1, axis=-1)]


def set_precision(network: nn.Module, precision: PrecisionName, device: str) -> None:
    """Set the type in which a network computes, and warn if it is slow on the device.

    Raises:
        UserError: if PyTorch doesn't compute in it.
    """
    check_engine("torch", precision, "auto")
    if precision == "float32":
        return
    use_bfloat16(network)
    if device != "mps" and not multiplies_bfloat16(device):  # not measured on Apple's GPUs
        log.warning(
            f"precision  bfloat16 may take many times longer than float32: this {device} doesn't multiply it in hardware"
        )


def mark_nodata(mask: np.ndarray, image: np.ndarray, nodata: Sequence[float] | None) -> np.ndarray:
    """Return a predicted mask (H, W) or (K, H, W), 255 where all channels of the image (H, W, C) have no data."""
    lost = nodata_pixels(image, nodata)
    return mask if lost is None else np.where(lost, IGNORE, mask).astype(np.uint8)


def load_predictor(
    run: str | Path | Sequence[str],
    *,
    depth: int | None = None,
    tta: ViewsName = "none",
    scales: Sequence[float] = (1.0,),
    threshold: float | None = None,
    tile: int | Literal["auto"] | None = "auto",
    overlap: int | Literal["auto"] = "auto",
    batch: int = 1,
    accelerator: str = "auto",
    nodata: NodataOption | None = None,
    precision: PrecisionName = "float32",
    engine: EngineName = "torch",
    exported: str | Path | None = None,
) -> Predictor:
    """Load a run, or an ensemble of runs, for prediction.

    Args:
        run: run folder, checkpoint file, folder of seg.crossval, or a list of runs; the probabilities of several are
            averaged.
        depth: of the UNet++ head that is used alone; None: the output that the run's config names.
        tta: none (1 view of each image), mirror (2), flips (4) or d4 (8); their probabilities are averaged.
        scales: factors of the image's sides, averaged too.
        threshold: probability above which a pixel is class 1 of two; None: the run's own.
        tile: px, auto or None; see ``Predictor``.
        overlap: px of context on each side of a tile; auto: as much as the receptive field needs.
        batch: number of tiles that go through together.
        accelerator: auto, cpu, gpu or mps.
        nodata: value of the images that means no data, or ``nan``; see ``Predictor``.
        precision: float32, bfloat16 or int8 of the network.
        engine: torch, or onnx or openvino, which run a file that ``seg.export`` wrote.
        exported: that file; None: the one in the folder of the run.

    Raises:
        RunError: if the run can't be read.
        UserError: if an option doesn't fit the run's network.
    """
    loaded = ensemble.load_members(run, depth)
    loaded = with_engine(loaded, run, engine, precision, exported, accelerator, depth)
    threshold = runs_load.threshold(loaded, threshold)
    return Predictor(
        loaded, threshold, tta, scales, tile, overlap, batch, accelerator, nodata, precision
    )


def check_image_channels(channels: int, run: LoadedRun, file: str | Path) -> None:
    """Raise DataError if an image has other channels than the run was trained on."""
    if channels != run.intensity.image_channels:
        split = run.config.get("data", {}).get("channel_files")
        split_hint = "; its channels were files (data.channel_files): predict arrays (H, W, C) by seg.load(RUN).predict"
        raise DataError(
            f"{file}: {channels} channels; the run was trained on {run.intensity.image_channels}"
            f"{split_hint if split else channels_hint(channels, run.intensity.image_channels)}"
        )
