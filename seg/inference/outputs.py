"""What prediction leaves of an image: each kind grows band by band, and is finished as a file.

``KINDS``: masks, probabilities, uncertainty and the challenge's submission as TIFF (a mask of a PNG is a PNG); overlays
and contours as PNG, thinned to 4096 px where the image is larger; instances as TIFF of labels with a CSV of areas
and centroids.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
import torch
from omegaconf import DictConfig
from PIL import Image
from skimage.measure import regionprops_table

from seg import files
from seg.cli.compose import plain
from seg.data.image_io import write_mask
from seg.data.tiff import TIFF
from seg.display import panels
from seg.errors import DataError, UserError
from seg.inference.band_writer import Growing
from seg.inference.tta import uncertainty
from seg.metrics import instances
from seg.runs.load import LoadedRun

Depth = Literal["float32", "uint16", "uint8"]
DEPTHS = {"float32": np.float32, "uint16": np.uint16, "uint8": np.uint8}
SHOWN = 4096  # px: the longest side of a picture for people
COUNTED = 2**26  # pixels of the largest image whose objects are told apart, which needs it whole


class Request(NamedTuple):
    """What is wanted of each image.

    Attributes:
        run: whose network predicts.
        save: kinds of output.
        threshold: probability in 0..1 above which a pixel is class 1 of two, or has a label.
        depth: type of probabilities and uncertainty; integers span 0..1 by their range.
        objects: ``neck`` and ``min_size`` of seg.metrics.instances.objects.
    """

    run: LoadedRun
    save: list[str]
    threshold: float
    depth: Depth
    objects: dict[str, Any]


class Place(NamedTuple):
    """Where an image's results go, and how large it is.

    Attributes:
        output: the folder.
        file: of the image.
        height: px.
        width: px.
        pages: of the file.
        dtype: of the image as stored.
    """

    output: Path
    file: Path
    height: int
    width: int
    pages: int
    dtype: np.dtype


class Band(NamedTuple):
    """Rows of an image and what was predicted for them.

    Attributes:
        top: the first row, px.
        image: (h, W, C) as stored.
        probabilities: (classes, h, W) float32.
        mask: (h, W) class indices, or (K, h, W) of overlapping labels.
    """

    top: int
    image: np.ndarray
    probabilities: np.ndarray
    mask: np.ndarray


@dataclass
class Output:
    """One kind of result of one image while it grows.

    Attributes:
        growing: what was made so far.
        made: of a band, (h', W') or (planes, h', W').
        thin: every so many rows are taken.
        finish: makes the files and gives their paths; takes what a TIFF keeps of the image's tags.
    """

    growing: Growing
    made: Callable[[Band], np.ndarray]
    thin: int
    finish: Callable[[dict[str, Any]], list[Path]]

    def add(self, band: Band) -> None:
        self.growing.add(self.made(band))

    def rows(self, image_rows: int) -> int:
        """How many of its rows so many rows of a page make."""
        return -(-image_rows // self.thin)


def check_kinds(request: Request) -> None:
    """Raises DataError when a kind that is wanted can't be had of this run."""
    run = request.run
    if len(run.classes) == 2 and not run.overlapping:
        return
    for kind, why in (
        ("submission", "the challenge has two classes, membrane and cell"),
        ("instances", "objects are told apart where there are two classes"),
    ):
        if kind in request.save:
            overlap = " that overlap" if run.overlapping else ""
            raise DataError(
                f"save=[{kind}]: {why}; the run has {len(run.classes)}{overlap}: {', '.join(run.classes)}"
            )


def outputs(request: Request, place: Place) -> list[Output]:
    """The kinds asked for.

    Raises:
        DataError: when one of them can't be had of this image, or this run.
    """
    check_kinds(request)
    return [KINDS[kind](request, place, kind) for kind in request.save]


def growing(place: Place, kind: str, dtype: Any, planes: int = 0, thin: int = 1) -> Growing:
    height, width = -(-place.height // thin), -(-place.width // thin)
    file = place.output / ".partial" / f"{place.file.name}.{kind}"
    return Growing(file, width, height, np.dtype(dtype), planes, place.pages, place.output)


def as_tiff(grown: Growing, file: Path) -> Callable[[dict[str, Any]], list[Path]]:
    def finish(tags: dict[str, Any]) -> list[Path]:
        grown.finish(file, tags)
        return [file]

    return finish


def masks(request: Request, place: Place, kind: str) -> Output:
    """Class indices; a page for each of classes that overlap, which then is a TIFF."""
    run, stem = request.run, place.file.stem
    grown = growing(place, kind, np.uint8, len(run.classes) if run.overlapping else 0)
    if run.overlapping or place.file.suffix.lower() in TIFF:
        finish = as_tiff(grown, place.output / kind / f"{stem}.tif")
    else:

        def finish(tags: dict[str, Any]) -> list[Path]:
            file = place.output / kind / f"{stem}.png"
            with grown.aside(file) as aside:
                write_mask(aside, grown.page(0), run.colors)
            return [file]

    return Output(grown, lambda band: band.mask, 1, finish)


def probabilities(request: Request, place: Place, kind: str) -> Output:
    """Of each class."""
    dtype = np.dtype(DEPTHS[request.depth])
    grown = growing(place, kind, dtype, planes=len(request.run.classes))
    file = place.output / kind / f"{place.file.stem}.tif"
    return Output(grown, lambda b: stored(b.probabilities, dtype), 1, as_tiff(grown, file))


def uncertainties(request: Request, place: Place, kind: str) -> Output:
    """Entropy of the classes' probabilities over its greatest value."""
    dtype, overlapping = np.dtype(DEPTHS[request.depth]), request.run.overlapping
    grown = growing(place, kind, dtype)

    def made(band: Band) -> np.ndarray:
        return stored(uncertainty(torch.from_numpy(band.probabilities), overlapping).numpy(), dtype)

    return Output(grown, made, 1, as_tiff(grown, place.output / kind / f"{place.file.stem}.tif"))


def submission(request: Request, place: Place, kind: str) -> Output:
    """What the ISBI 2012 challenge takes: float32, 0 surely membrane (class 0), 1 surely not."""
    grown = growing(place, kind, np.float32)
    file = place.output / kind / f"{place.file.stem}.tif"
    return Output(grown, lambda band: band.probabilities[1], 1, as_tiff(grown, file))


def stored(p: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in 0..1 as a type whose whole range they span."""
    if dtype.kind == "f":
        return p.astype(dtype)
    return np.rint(p * np.iinfo(dtype).max).astype(dtype)


def pictures(request: Request, place: Place, kind: str) -> Output:
    """The image tinted by class, or with the classes' borders drawn; a PNG for each page."""
    run = request.run
    thin = -(-max(place.height, place.width) // SHOWN)
    channels = min(3, run.intensity.channels)
    seen = growing(place, kind, place.dtype, channels + 1, thin)  # the mask is the last plane
    _, colors = panels.shown(run.classes, run.colors, run.overlapping)
    draw = panels.overlay if kind == "overlays" else panels.outlined

    def made(band: Band) -> np.ndarray:
        rows = slice(-band.top % thin, None, thin)
        image = band.image[rows, ::thin, :channels].transpose(2, 0, 1)
        mask = panels.picture(band.mask)[None, rows, ::thin].astype(place.dtype)
        return np.concatenate([image, mask])

    def finish(tags: dict[str, Any]) -> list[Path]:
        written, stem = [], place.file.stem
        for number in range(place.pages):
            page = seen.page(number)
            image, mask = page[:-1].transpose(1, 2, 0), page[-1].astype(np.uint8)
            name = f"{stem}-{number:03d}.png" if place.pages > 1 else f"{stem}.png"
            written.append(place.output / kind / name)
            with seen.aside(written[-1]) as aside:
                Image.fromarray(draw(image, mask, colors)).save(aside)
        return written

    return Output(seen, made, thin, finish)


def labelled(request: Request, place: Place, kind: str) -> Output:
    """Objects of class 1: a TIFF of labels, 0 between them, and a CSV of their areas and centroids."""
    stem = place.file.stem
    if place.height * place.width > COUNTED:
        raise DataError(
            f"{place.file}: {place.height}x{place.width} px; save=[instances] needs the whole image in memory and takes "
            f"up to {COUNTED >> 20} megapixels: cut it, or leave instances out"
        )
    grown = growing(place, kind, np.float32)

    def finish(tags: dict[str, Any]) -> list[Path]:
        written = [place.output / kind / f"{stem}{suffix}" for suffix in (".tif", ".csv")]
        labels, rows = [], []
        for number in range(place.pages):
            interior = grown.page(number)
            labels.append(instances.objects(interior, request.threshold, **request.objects))
            rows += measured(labels[-1], interior, number)
        stack = np.stack(labels)
        stack = stack.astype(np.uint16 if stack.max() < 2**16 else np.int32)
        with grown.aside(written[0]) as aside:
            tifffile.imwrite(
                aside, stack if place.pages > 1 else stack[0], compression="zlib",
                photometric="minisblack", metadata={"axes": "ZYX" if place.pages > 1 else "YX"},
                **tags,
            )  # fmt: skip
        with files.open_text(written[1], grown.folder, grown.file.parent) as out:
            table = csv.DictWriter(out, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        return written

    return Output(grown, lambda band: band.probabilities[1], 1, finish)


COLUMNS = ("page", "label", "area_px", "centroid_row_px", "centroid_column_px", "mean_probability")


def measured(labels: np.ndarray, interior: np.ndarray, page: int) -> list[dict[str, Any]]:
    """A row of ``COLUMNS`` for each object of a page."""
    wanted = ("label", "area", "centroid", "mean_intensity")
    found = regionprops_table(labels, interior, properties=wanted)
    values = zip(*(found[name] for name in found), strict=True)
    return [
        dict(
            zip(
                COLUMNS,
                (page, int(n), int(area), *(f"{v:.2f}" for v in at), f"{p:.4f}"),
                strict=True,
            )
        )
        for n, area, *at, p in values
    ]


KINDS: dict[str, Callable[[Request, Place, str], Output]] = {
    "masks": masks,
    "probabilities": probabilities,
    "uncertainty": uncertainties,
    "overlays": pictures,
    "contours": pictures,
    "instances": labelled,
    "submission": submission,
}


def check_objects(cfg: DictConfig) -> None:
    """Raises UserError for a way to tell objects apart that there isn't."""
    try:
        instances.objects(np.zeros((1, 1)), **plain(cfg.objects))
    except (ValueError, TypeError) as error:
        raise UserError(f"objects: {error}") from error


def check_save(save: Sequence[str]) -> None:
    """Raises UserError unless something is to be saved, once, and it is something there is."""
    if not save or any(kind not in KINDS for kind in save) or len(set(save)) < len(save):
        raise UserError(f"save={list(save)}: choose from {', '.join(KINDS)}")
