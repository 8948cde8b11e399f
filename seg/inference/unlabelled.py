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
from seg.inference.prediction_folder import PARTIAL_FOLDER
from seg.inference.predictor import Predictor, check_image_channels
from seg.inference.quality import ImageQuality, QualityScorer
from seg.runs.load import LoadedRun

PREVIEW_PX = 256  # longer side of a preview is below twice this


class UnlabelledImage(NamedTuple):
    """An image without a label.

    Attributes:
        file: the image.
        name: its path without suffix, from the input folder on.
        mask: file of its predicted mask.
        preview: file of its preview; see ``read_preview``.
        quality: what the run expects; None: it does not know.
        features: of its values; None: not measured, or without data.
    """

    file: Path
    name: str
    mask: Path
    preview: Path
    quality: ImageQuality | None = None
    features: NDArray | None = None

    @property
    def path(self) -> str:
        """Path from the input folder on."""
        return Path(self.name).with_name(self.file.name).as_posix()

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


def flat_name(name: str) -> str:
    """Return the name of an image's mask without suffix: the folders of the data have no subfolders."""
    return name.replace("/", "-")


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


def predict_start(
    file: Path, name: str, predictor: Predictor, scorer: QualityScorer | None, folder: Path, scratch: Path
) -> UnlabelledImage:  # fmt: skip
    """Write the predicted mask of an image to ``masks`` of a folder, and return what the run expects of it.

    Args:
        file: the image.
        name: its path without suffix, from the input folder on.
        predictor: of the run.
        scorer: of the run; None: it does not know how good its predictions are.
        folder: that receives the mask.
        scratch: folder that receives the preview.
    """
    run = predictor.run
    with open_image(file, predictor) as page:
        height, width, _ = page.shape
        meter = None if scorer is None else scorer.begin(height, width)
        place = OutputTarget(folder, file, flat_name(name), height, width, 1, page.dtype)
        request = OutputOptions(run, ["masks"], predictor.threshold, "float32", {})
        results = begin_image_results(place, request)
        step = max(1, max(height, width) // PREVIEW_PX)
        images, masks = [], []
        try:
            for band in predict_page(page, predictor):
                if meter is not None:
                    meter.add(band.top, band.image, band.probabilities, band.mask)
                for result in results:
                    result.add(band)
                rows = slice(-band.top % step, None, step)
                images.append(band.image[rows, ::step].copy())
                masks.append(flatten_labels(band.mask[..., rows, ::step]).copy())
                del band  # memory for the next one
            files.make_folder(folder / "masks", folder)
            (mask,) = finish_image_results(folder, results)
        finally:
            shutil.rmtree(
                folder / PARTIAL_FOLDER, ignore_errors=True
            )  # of an image that can't be read
    preview = scratch / f"{flat_name(name)}.npz"
    with files.atomic_write(preview, scratch) as aside, aside.open("wb") as stream:
        np.savez(stream, image=np.concatenate(images), mask=np.concatenate(masks))
    if scorer is None or meter is None:
        return UnlabelledImage(file, name, mask, preview)
    features = meter.features.compute()
    return UnlabelledImage(file, name, mask, preview, scorer.score(meter), features)


def read_preview(file: Path) -> Preview:
    """Return the preview that ``predict_start`` wrote."""
    with np.load(file) as arrays:
        return Preview(arrays["image"], arrays["mask"])


def copy_image(one: UnlabelledImage, folder: Path) -> None:
    """Copy an image to ``images`` of a folder."""
    copy = files.make_folder(folder / "images", folder) / one.copy_name
    with files.atomic_write(copy, folder) as aside:
        shutil.copyfile(one.file, aside)
