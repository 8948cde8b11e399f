"""Unlabelled images: what a run expects of them, and predicted masks from which their annotation starts."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seg import files
from seg.data.ome_zarr import is_store
from seg.data.raster import ImageReader, open_pages
from seg.display.panels import flatten_labels
from seg.errors import DataError, RunError
from seg.inference.file_prediction import (
    begin_image_results,
    converted_rows,
    finish_image_results,
    page_name,
    predict_bands,
)
from seg.inference.outputs import OutputOptions, OutputTarget, PredictedBand
from seg.inference.predictor import Predictor, check_image_channels
from seg.inference.quality import ImageQuality, QualityScorer
from seg.runs.load import LoadedRun

PREVIEW_PX = 256  # longer side of a preview is below twice this


class UnlabelledImage(NamedTuple):
    """An image without a label.

    Attributes:
        file: the image.
        name: its path without suffix, from the input folder on.
        quality: what the run expects; None: it does not know.
        features: of its values; None: not measured.
    """

    file: Path
    name: str
    quality: ImageQuality | None = None
    features: NDArray | None = None

    @property
    def path(self) -> str:
        """Path from the input folder on."""
        return Path(self.name).with_name(self.file.name).as_posix()

    @property
    def flat_name(self) -> str:
        """Name of the mask without suffix: the folders of the data have no subfolders."""
        return self.name.replace("/", "-")

    @property
    def copy_name(self) -> str:
        """Name of the copy."""
        return self.path.replace("/", "-")


class Preview(NamedTuple):
    """A reduced image with its prediction.

    Attributes:
        image: (h, w, C) as stored.
        mask: (h, w) class indices; of overlapping classes 0 is none, and 1 the first.
    """

    image: NDArray
    mask: NDArray


def check_run_has_starts(run: LoadedRun) -> None:
    """Raise RunError if the run's predictions are no masks from which an annotation can start."""
    if run.task == "instances":
        raise RunError(
            f"{run.checkpoint}: data.task=instances; predicted classes are no numbered objects to correct: predict the "
            "images by seg.predict save=[instances]"
        )
    if neighbours := run.intensity.neighbours:
        raise RunError(
            f"{run.checkpoint}: data.neighbours={neighbours}; sections are annotated with their neighbours, so single images "
            "can't be chosen: give a run without neighbours"
        )


@contextmanager
def open_image(file: Path, predictor: Predictor) -> Generator[ImageReader]:
    """Open a file of one image.

    Raises:
        DataError: if it can't be read, holds several images, or has other channels than the run was trained on.
    """
    if is_store(file):
        raise DataError(f"{file}: an OME-Zarr; save the image as a TIFF or PNG")
    pages = open_pages(file, predictor.pages, predictor.nodata_values(file))
    try:
        if len(pages) > 1:
            raise DataError(
                f"{file}: {len(pages)} pages, but one image is needed; save each page as a file"
            )
        check_image_channels(pages[0].shape[2], predictor.run, file)
        yield pages[0]
    finally:
        for page in pages:
            page.close()


def predict_page(page: ImageReader, predictor: Predictor) -> Generator[PredictedBand]:
    """Return the prediction of an image, band by band."""
    conversion = predictor.conversion(page.dtype, page.bands(), page_name(page))
    rows = converted_rows([page], {page: conversion})
    return predict_bands(predictor, rows, *page.shape[:2], predictor.nodata_values(page.file))


def measure_unlabelled(
    file: Path, name: str, predictor: Predictor, scorer: QualityScorer
) -> UnlabelledImage:
    """Return an image with what the run expects of its prediction."""
    with open_image(file, predictor) as page:
        meter = scorer.begin(*page.shape[:2])
        for band in predict_page(page, predictor):
            meter.add(band.top, band.image, band.probabilities, band.mask)
            del band  # memory for the next one
    return UnlabelledImage(file, name, scorer.score(meter), meter.features.compute())


def write_start(one: UnlabelledImage, predictor: Predictor, folder: Path) -> Preview:
    """Copy an image to ``images`` and write its predicted mask to ``masks``; return a preview."""
    run = predictor.run
    with open_image(one.file, predictor) as page:
        height, width, _ = page.shape
        place = OutputTarget(folder, one.file, one.flat_name, height, width, 1, page.dtype)
        request = OutputOptions(run, ["masks"], predictor.threshold, "float32", {})
        results = begin_image_results(place, request)
        step = max(1, max(height, width) // PREVIEW_PX)
        images, masks = [], []
        for band in predict_page(page, predictor):
            for result in results:
                result.add(band)
            rows = slice(-band.top % step, None, step)
            images.append(band.image[rows, ::step].copy())
            masks.append(flatten_labels(band.mask[..., rows, ::step]).copy())
            del band
        files.make_folder(folder / "masks", folder)
        finish_image_results(folder, results)
    copy = files.make_folder(folder / "images", folder) / one.copy_name
    with files.atomic_write(copy, folder) as aside:
        shutil.copyfile(one.file, aside)
    return Preview(np.concatenate(images), np.concatenate(masks))
