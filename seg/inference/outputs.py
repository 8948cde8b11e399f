"""Results of prediction: each kind grows on disk band by band and is finished as a file.

``RESULT_KINDS``: masks, probabilities, uncertainty and the challenge's submission as TIFF (the mask of a PNG is a PNG); overlays
and contours as PNG, subsampled to 4096 px; instances as TIFF of labels with a CSV of measurements; outlines as files of annotation tools, COCO's one for all images.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO
from urllib.parse import quote

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from seg import files
from seg.data.image_io import write_mask
from seg.data.ome_zarr import ZarrImages, is_store
from seg.data.spacing import pixel_spacing
from seg.data.tiff_layout import TIFF_SUFFIXES, has_pyramid
from seg.display import panels
from seg.errors import DataError, UserError, missing_extra_hint
from seg.inference import polygons
from seg.inference.band_writer import BandWriter
from seg.inference.object_bands import (
    iterate_bands,
    read_context,
    segment_bands,
)
from seg.inference.tta import normalized_entropy
from seg.labels import IGNORE
from seg.metrics import instances
from seg.metrics.object_measurements import CONTEXT_PX, ObjectMeasurements, convert_to_um
from seg.runs import records
from seg.runs.load import LoadedRun

PyramidOption = bool | Literal["auto"]
PYRAMID_SIDE = 8192  # px of the longer side above which pyramid=auto writes reduced levels
ProbabilityType = Literal["float32", "uint16", "uint8"]
PROBABILITY_TYPES = {"float32": np.float32, "uint16": np.uint16, "uint8": np.uint8}
COCO_FILE, COCO_PART = "instances.json", ".part.json"
MAX_COCO_BYTES = 2**32
OBJECT_DEFAULTS = {"split_neck_px": None, "min_size": 16}  # options of objects that nobody set
MAX_PICTURE_SIDE = 4096  # px, the longest side of overlays and contours
MAX_OUTLINE_PIXELS = 2**26  # pixels of the largest image for outlines, which need it in memory


class OutputOptions(NamedTuple):
    """Options of the results.

    Attributes:
        run: of the network that predicts.
        save: kinds of output.
        threshold: probability in 0..1 above which a pixel is class 1 of two, or has an overlapping class.
        depth: type of probabilities and uncertainty; integers map 0..1 to their range.
        objects: ``split_neck_px``, ``min_size`` and ``border`` of seg.metrics.instances.segment_objects.
        spacing: height and width of a pixel, um; None: that of each file's metadata.
        pyramid: whether masks and labels of objects have reduced levels; ``auto``: see ``has_levels``.
    """

    run: LoadedRun
    save: list[str]
    threshold: float
    depth: ProbabilityType
    objects: dict[str, Any]
    spacing: list[float] | None = None
    pyramid: PyramidOption = False


class OutputTarget(NamedTuple):
    """Output folder, and the size of the image.

    Attributes:
        output: folder of all results.
        file: the image.
        name: of its results: ``a``, or ``case/a`` in a subfolder.
        height: px.
        width: px.
        pages: number of pages of the file.
        dtype: of the image as stored.
    """

    output: Path
    file: Path
    name: str
    height: int
    width: int
    pages: int
    dtype: np.dtype


class PredictedBand(NamedTuple):
    """Rows of an image with their prediction.

    Attributes:
        top: the first row, px.
        image: (h, W, C) as stored.
        probabilities: (classes, h, W) float32.
        mask: (h, W) class indices, or (K, h, W) of overlapping classes; 255 without data.
    """

    top: int
    image: np.ndarray
    probabilities: np.ndarray
    mask: np.ndarray


@dataclass
class GrowingResult:
    """One kind of result of one image, which grows band by band.

    Attributes:
        growing: the rows written so far.
        convert_band: rows of the result from a band, (h', W') or (planes, h', W').
        finish: writes the files and returns their paths; its argument are the tags that a TIFF keeps of the image.
        scratch: further rows, which ``finish`` needs.
    """

    growing: BandWriter
    convert_band: Callable[[PredictedBand], np.ndarray]
    finish: Callable[[dict[str, Any]], list[Path]]
    scratch: tuple[BandWriter, ...] = ()

    def remove(self) -> None:
        """Remove the rows."""
        for writer in (self.growing, *self.scratch):
            writer.remove()

    def add(self, band: PredictedBand) -> None:
        """Append the rows of a band, a few at a time, so that their copies stay small."""
        for top, bottom in iterate_bands(*band.mask.shape[-2:]):
            rows = PredictedBand(
                band.top + top, band.image[top:bottom], band.probabilities[:, top:bottom],
                band.mask[..., top:bottom, :],
            )  # fmt: skip
            self.growing.add(self.convert_band(rows))


def check_kinds_of_run(request: OutputOptions) -> None:
    """Raise DataError if the run's classes don't allow one of the kinds."""
    run = request.run
    # Two exclusive classes allow every kind; a border between objects may be a third class
    if len(run.classes) == 2 and not run.overlapping:
        return
    for kind, reason in (
        ("submission", "the challenge has two classes, membrane and cell"),
        ("instances", "objects can be separated if there are two classes"),
    ):
        if kind in request.save and (kind, run.task) != ("instances", "instances"):
            overlap = " that overlap" if run.overlapping else ""
            raise DataError(
                f"save=[{kind}]: {reason}; the run has {len(run.classes)}{overlap}: {', '.join(run.classes)}"
            )


def build_results(request: OutputOptions, place: OutputTarget) -> list[GrowingResult]:
    """Return the results of ``request.save`` for one image.

    Raises:
        DataError: if one of them isn't possible for this image or this run.
    """
    check_kinds_of_run(request)
    return [RESULT_KINDS[kind](request, place, kind) for kind in request.save]


def build_writer(
    place: OutputTarget, kind: str, dtype: Any, planes: int = 0, thin: int = 1
) -> BandWriter:
    """Return the writer of a kind's rows, in the folder of partial results."""
    height, width = -(-place.height // thin), -(-place.width // thin)
    file = place.output / ".partial" / files.short_name(f"{quote_name(place.name)}.{kind}")
    return BandWriter(file, width, height, np.dtype(dtype), planes, place.pages, place.output)


def quote_name(name: str) -> str:
    """Return a file name that no other name of results has: slashes and the like as %2F."""
    return quote(os.fsencode(name), safe="")


def finish_as_tiff(grown: BandWriter, file: Path) -> Callable[[dict[str, Any]], list[Path]]:
    """Return the function that finishes the rows as a TIFF."""

    def finish(tags: dict[str, Any]) -> list[Path]:
        grown.finish(file, tags)
        return [file]

    return finish


def finish_as_levels(
    grown: BandWriter, kind: str, request: OutputOptions, place: OutputTarget
) -> Callable[[dict[str, Any]], list[Path]]:
    """Return the function that finishes rows of class indices; see ``write_labels``."""

    def finish(tags: dict[str, Any]) -> list[Path]:
        return [write_labels(grown, kind, tags, request, place, colors=request.run.colors)]

    return finish


def write_labels(
    grown: BandWriter, kind: str, tags: dict[str, Any], request: OutputOptions, place: OutputTarget,
    dtype: Any = None, colors: Sequence[tuple[int, int, int]] = (),
) -> Path:  # fmt: skip
    """Write class indices or labels as OME-Zarr for an image that is one, else as TIFF, and return its path.

    Args:
        grown: the rows.
        kind: of the result.
        tags: that a TIFF keeps of the image.
        request: options.
        place: the image.
        dtype: type of the values; None: that of the rows.
        colors: of the classes; empty: labels have none.
    """
    levels = has_levels(request.pyramid, place, tags)
    if is_store(place.file):
        from seg.inference.zarr_writer import write_zarr  # needs an extra, which has read the image

        folder = place.output / kind / f"{place.name}.ome.zarr"
        images = ZarrImages(place.file, request.run.config.get("data", {}).get("pages"))
        write_zarr(grown, folder, images, levels, dtype, () if request.run.overlapping else colors)
        return folder
    file = place.output / kind / f"{place.name}.tif"
    if levels:
        grown.finish_pyramid(file, tags, dtype, pixel_spacing(request.spacing, [place.file]))
    else:
        grown.finish(file, tags, dtype)
    return file


def has_levels(option: PyramidOption, place: OutputTarget, tags: dict[str, Any]) -> bool:
    """Return True if a result is to be a pyramid.

    With ``auto``, if the image is one or a side exceeds ``PYRAMID_SIDE``, unless it is georeferenced: GDAL knows no
    levels in SubIFDs. An image 1 px wide has no levels.

    Args:
        option: the option ``pyramid``.
        place: the image.
        tags: that the result keeps of the image.
    """
    if option != "auto":
        return option and place.width > 1
    if is_store(place.file):
        found = ZarrImages(place.file).metadata.levels > 1
    else:
        found = has_pyramid(place.file)
    large = found or max(place.height, place.width) > PYRAMID_SIDE
    return large and place.width > 1 and not tags.get("extratags")


def build_masks(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Class indices, as OME-Zarr for one, TIFF for a TIFF or a stack, else PNG; overlapping classes have a page each."""
    run, stem = request.run, place.name
    grown = build_writer(place, kind, np.uint8, len(run.classes) if run.overlapping else 0)
    tiled = place.file.suffix.lower() in TIFF_SUFFIXES or is_store(place.file)
    if run.overlapping or place.pages > 1 or tiled:
        finish = finish_as_levels(grown, kind, request, place)
    else:

        def finish(tags: dict[str, Any]) -> list[Path]:
            file = place.output / kind / f"{stem}.png"
            with grown.replacing(file) as aside:
                write_mask(aside, grown.page(0), run.colors)
            return [file]

    return GrowingResult(grown, lambda band: band.mask, finish)


def build_probabilities(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Probabilities of each class."""
    dtype = np.dtype(PROBABILITY_TYPES[request.depth])
    grown = build_writer(place, kind, dtype, planes=len(request.run.classes))
    file = place.output / kind / f"{place.name}.tif"
    return GrowingResult(
        grown, lambda b: scale_to_type(b.probabilities, dtype), finish_as_tiff(grown, file)
    )


def build_uncertainty(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Entropy of the class probabilities over its maximum."""
    dtype, overlapping = np.dtype(PROBABILITY_TYPES[request.depth]), request.run.overlapping
    grown = build_writer(place, kind, dtype)

    def made(band: PredictedBand) -> np.ndarray:
        return scale_to_type(
            normalized_entropy(torch.from_numpy(band.probabilities), overlapping).numpy(), dtype
        )

    return GrowingResult(
        grown, made, finish_as_tiff(grown, place.output / kind / f"{place.name}.tif")
    )


def build_submission(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Stack for the ISBI 2012 challenge: the probability of class 1 (cell), float32."""
    grown = build_writer(place, kind, np.float32)
    file = place.output / kind / f"{place.name}.tif"
    return GrowingResult(grown, lambda band: band.probabilities[1], finish_as_tiff(grown, file))


def scale_to_type(p: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return numbers in 0..1 as floats, or scaled to the whole range of an integer type."""
    if dtype.kind == "f":
        return p.astype(dtype)
    return np.rint(p * np.iinfo(dtype).max).astype(dtype)


def build_pictures(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Overlays or contours: the image tinted by class or with the classes' borders drawn, a PNG for each page."""
    run = request.run
    # Subsample rows and columns so that the longer side fits MAX_PICTURE_SIDE
    thin = -(-max(place.height, place.width) // MAX_PICTURE_SIDE)
    channels = min(3, run.intensity.image_channels)
    grown = build_writer(place, kind, place.dtype, channels + 1, thin)  # the mask is the last plane
    _, colors = panels.legend_entries(run.classes, run.colors, run.overlapping)
    draw = panels.draw_overlay if kind == "overlays" else panels.draw_contours

    # The first kept row of a band is the next multiple of thin in the whole image
    def made(band: PredictedBand) -> np.ndarray:
        rows = slice(-band.top % thin, None, thin)
        image = band.image[rows, ::thin, :channels].transpose(2, 0, 1)
        mask = panels.flatten_labels(band.mask)[None, rows, ::thin].astype(place.dtype)
        return np.concatenate([image, mask])

    # One PNG for each page, (H, W, C) with the mask taken off
    def finish(tags: dict[str, Any]) -> list[Path]:
        written, stem = [], place.name
        for number in range(place.pages):
            page = grown.page(number)
            image, mask = page[:-1].transpose(1, 2, 0), page[-1].astype(np.uint8)
            path = Path(f"{stem}-{number:03d}.png" if place.pages > 1 else f"{stem}.png")
            written.append(place.output / kind / path.parent / files.short_name(path.name))
            with grown.replacing(written[-1]) as aside:
                Image.fromarray(draw(image, mask, colors)).save(aside)
        return written

    return GrowingResult(grown, made, finish)


def build_instances(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Objects of class 1: a TIFF of labels, 0 between them, and a CSV of their measurements."""
    # Probabilities and image grow on disk; objects are found once the page is complete, as they cross bands
    channels = request.run.intensity.image_channels
    values = np.dtype([("interior", np.float32), ("image", place.dtype, (channels,))])
    grown = build_writer(place, kind, values)
    labelled = build_writer(place, f"{kind}.labels", np.int32)
    scratch = [
        build_writer(place._replace(pages=1), f"{kind}.pieces-{n}", np.int32) for n in range(3)
    ]

    def made(band: PredictedBand) -> np.ndarray:
        rows: Any = np.empty(band.mask.shape, values)
        rows["interior"], rows["image"] = object_interior(band), band.image
        return rows

    def finish(tags: dict[str, Any]) -> list[Path]:
        table = place.output / kind / f"{place.name}.csv"
        spacing = pixel_spacing(request.spacing, [place.file])
        counts = []
        with files.open_text(table, grown.folder, grown.file.parent) as out:
            for page in range(place.pages):
                for writer in scratch:
                    writer.remove()
                counts.append(label_page(grown, page, labelled, scratch, request, place))
                columns = measure_page(grown, page, labelled, counts[-1])
                if spacing is not None:
                    columns |= convert_to_um(columns, spacing)
                write_object_rows(out, page, columns)
        # The smallest of two integer types that holds all labels
        dtype = np.uint16 if max(counts) < 2**16 else np.int32
        return [write_labels(labelled, kind, tags, request, place, dtype), table]

    return GrowingResult(grown, made, finish, (labelled, *scratch))


def label_page(
    grown: BandWriter, page: int, labelled: BandWriter, scratch: list[BandWriter],
    request: OutputOptions, place: OutputTarget,
) -> int:  # fmt: skip
    """Append the labels of a page to a writer, and return the number of objects.

    Raises:
        DataError: if an object that is to be split is too large for memory.
    """
    count = 0
    try:
        for labels in segment_bands(
            lambda top, bottom: grown.rows(page, top, bottom)["interior"], scratch,
            request.threshold, **request.objects,
        ):  # fmt: skip
            labelled.add(labels)
            count = max(count, int(labels.max(initial=0)))
    except DataError as error:
        raise DataError(f"{place.file}: {place.height}x{place.width} px: {error}") from error
    return count


def measure_page(
    grown: BandWriter, page: int, labelled: BandWriter, count: int
) -> dict[str, np.ndarray]:
    """Return the measurements of the objects of a page."""
    measured = ObjectMeasurements(count, grown.dtype["image"].shape[0])
    for top, bottom in iterate_bands(grown.height, grown.width):
        labels = read_context(
            lambda first, last: labelled.rows(page, first, last), grown.height, top, bottom, CONTEXT_PX
        )  # fmt: skip
        rows = grown.rows(page, top, bottom)
        measured.add(top, labels, rows["image"], rows["interior"])
    return measured.table()


def write_object_rows(out: TextIO, page: int, columns: dict[str, np.ndarray]) -> None:
    """Write the measurements of a page as rows of a CSV, below the names of the columns; nan is an empty field."""
    table = csv.writer(out)
    if page == 0:
        table.writerow(["page", *columns])
    # A few rows at a time: as Python numbers they take much memory
    for first in range(0, len(columns["label"]), 10_000):
        parts = [values[first : first + 10_000] for values in columns.values()]
        texts = [map(str if v.dtype.kind in "iu" else number_text, v.tolist()) for v in parts]
        table.writerows((page, *row) for row in zip(*texts, strict=True))


def number_text(value: float) -> str:
    """Return a number with eight significant digits; nan is an empty text."""
    return "" if math.isnan(value) else f"{value:.8g}"


def build_polygons(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Outlines of the objects of each class but the first, as GeoJSON (``polygons``), LabelMe's JSON or ImageJ's ``rois``.

    Objects are the mask's regions; of a run that learned a border between objects, those of ``instances``.

    Raises:
        DataError: if the image is too large to be in memory as a whole, has pages that LabelMe doesn't know, or
            the extra ``rois`` is missing.
    """
    run, folder, stem = request.run, place.output / kind, place.name
    check_whole_image(place, kind)
    if kind == "labelme" and place.pages > 1:
        raise DataError(f"{place.file}: {place.pages} pages; LabelMe has no pages: save=[polygons] writes a file for each")  # fmt: skip
    if kind == "rois" and (need := missing_extra_hint("roifile")):
        raise DataError(f"save=[rois] {need}")
    # A mask with a border between its objects does not hold them as a whole
    single = run.border > 0
    dtype = np.float32 if single else np.uint8
    grown = build_writer(place, kind, dtype, len(run.classes) if run.overlapping else 0)

    def trace(page: np.ndarray) -> Iterator[polygons.TracedObject]:
        if not single:
            return polygons.trace_mask(page, len(run.classes))
        labels = instances.segment_objects(page, request.threshold, **request.objects)
        return polygons.trace_labels(labels)

    def finish(tags: dict[str, Any]) -> list[Path]:
        written = []
        for number in range(place.pages):
            objects = trace(grown.page(number))
            name = f"{stem}-{number:03d}" if place.pages > 1 else stem
            if kind == "labelme":
                written.append(folder / f"{name}.json")
                size = (place.height, place.width)
                text = polygons.as_labelme(
                    objects, run.classes, place.file, written[-1].parent, size
                )
            elif kind == "rois":
                written.append(folder / f"{name}.zip")
                content = polygons.as_rois(objects, run.classes, run.colors)
                files.write_bytes(written[-1], content, grown.folder)
                continue
            else:
                written.append(folder / f"{name}.geojson")
                text = polygons.as_geojson(objects, run.classes, run.colors, name)
            files.write_text(written[-1], text, grown.folder)
        return written

    return GrowingResult(grown, object_interior if single else lambda band: band.mask, finish)


def object_interior(band: PredictedBand) -> np.ndarray:
    """Return the probability (h, W) of being inside an object, 0 where there is no data."""
    return np.where(band.mask == IGNORE, 0, instances.object_probability(band.probabilities))


def build_coco(request: OutputOptions, place: OutputTarget, kind: str) -> GrowingResult:
    """Objects of each class but the first as COCO's JSON: a part of each image, for ``finish_results``.

    Raises:
        DataError: if the image is too large to be in memory as a whole, or has pages.
    """
    run, folder = request.run, place.output / kind
    check_whole_image(place, kind)
    if place.pages > 1:
        raise DataError(f"{place.file}: {place.pages} pages; COCO has no pages: save=[polygons] writes a file for each")  # fmt: skip
    planes = len(run.classes) if run.overlapping else 1
    grown = build_writer(place, kind, np.float32, 2 * planes)  # masks, then probabilities

    def made(band: PredictedBand) -> np.ndarray:
        if run.overlapping:
            return np.concatenate([band.mask, band.probabilities])
        mask = band.mask[None]
        index = np.where(mask == IGNORE, 0, mask).astype(np.int64)
        return np.concatenate([mask, np.take_along_axis(band.probabilities, index, 0)])

    def finish(tags: dict[str, Any]) -> list[Path]:
        page = grown.page(0)
        mask, probabilities = page[:planes].astype(np.uint8), page[planes:]
        if not run.overlapping:
            mask, probabilities = mask[0], probabilities[0]
        objects = polygons.trace_mask(mask, len(run.classes))
        first = 0 if run.overlapping else 1
        file_name = Path(place.name).with_name(place.file.name).as_posix()
        content = polygons.as_coco(objects, run.classes, first, file_name, probabilities)
        part = folder / files.short_name(f"{quote_name(place.name)}{COCO_PART}")
        files.write_text(part, json.dumps(content), grown.folder)
        return [part]

    return GrowingResult(grown, made, finish)


def finish_results(output: Path, written: list[Path]) -> list[Path]:
    """Merge the parts of COCO's JSON in an output folder, also those of an interrupted command.

    Args:
        output: folder of all results.
        written: files of the results.

    Returns:
        The files, with the merged one instead of the parts.
    """
    merged = output / "coco" / COCO_FILE
    if parts := sorted((output / "coco").glob(f"*{COCO_PART}")):
        whole = [merged, *parts] if merged.exists() else parts
        contents = [records.read_json(file, MAX_COCO_BYTES) for file in whole]
        files.write_text(merged, json.dumps(polygons.merge_coco(contents)), output)
        for part in parts:
            part.unlink()
    # Another worker may have merged the parts of this one
    others = [file for file in written if not file.name.endswith(COCO_PART)]
    return [*others, merged] if parts or len(others) < len(written) else written


def check_whole_image(place: OutputTarget, kind: str) -> None:
    """Raise DataError if an image is too large to be in memory as a whole."""
    if place.height * place.width > MAX_OUTLINE_PIXELS:
        raise DataError(
            f"{place.file}: {place.height}x{place.width} px; save=[{kind}] needs the whole image in memory, of at most "
            f"{MAX_OUTLINE_PIXELS >> 20} megapixels: cut the image, or leave {kind} out"
        )


RESULT_KINDS: dict[str, Callable[[OutputOptions, OutputTarget, str], GrowingResult]] = {
    "masks": build_masks,
    "probabilities": build_probabilities,
    "uncertainty": build_uncertainty,
    "overlays": build_pictures,
    "contours": build_pictures,
    "instances": build_instances,
    "polygons": build_polygons,
    "labelme": build_polygons,
    "rois": build_polygons,
    "coco": build_coco,
    "submission": build_submission,
}


def choose_object_options(given: DictConfig, run: LoadedRun | None = None) -> dict[str, Any]:
    """Return the options of ``instances.segment_objects``: the given ones, else the run's.

    Args:
        given: ``split_neck_px``, 0: connected regions, None: the run's; and ``min_size``.
        run: that predicts; None: connected regions.
    """
    neck = given.split_neck_px
    if neck is None:
        neck = None if run is None else run.split_neck_px
    return {
        "split_neck_px": None if neck == 0 else neck,
        "min_size": given.min_size,
        "border": 0 if run is None else run.border,
    }


def check_object_options(cfg: DictConfig) -> None:
    """Raise UserError unless the options of ``objects`` are accepted."""
    try:
        instances.segment_objects(np.zeros((1, 1)), **choose_object_options(cfg.objects))
    except (ValueError, TypeError) as error:
        raise UserError(f"objects: {error}") from error


def separates_objects(kind: str, run: LoadedRun) -> bool:
    """Return True if a kind of result depends on how objects are separated."""
    return kind == "instances" or (run.border > 0 and RESULT_KINDS[kind] is build_polygons)


def refuse_object_options(objects: DictConfig, why: str) -> None:
    """Raise UserError if an option of ``objects`` is given, which can do nothing for the reason ``why``."""
    for name, default in OBJECT_DEFAULTS.items():
        if (value := objects[name]) != default:
            raise UserError(f"objects.{name}={value}: {why}; leave it out")


def check_save_option(save: Sequence[str]) -> None:
    """Raise UserError unless ``save`` is a list of known kinds, not empty and without repetitions."""
    if not save or any(kind not in RESULT_KINDS for kind in save) or len(set(save)) < len(save):
        raise UserError(f"save={list(save)}: choose from {', '.join(RESULT_KINDS)}")
