"""Prediction of files: band by band through the network; several workers share the files, and continue interrupted ones."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seg import files
from seg.cli.command_line import quote_path
from seg.data.image_files import log_passed_over
from seg.data.raster import ImageReader, open_pages
from seg.data.value_types import ValueConversion
from seg.display.console import configure_logging, console
from seg.errors import DataError, UserError
from seg.inference import ensemble
from seg.inference.outputs import (
    GrowingResult,
    OutputOptions,
    OutputTarget,
    PredictedBand,
    build_results,
    check_kinds_of_run,
    check_object_options,
    check_save_option,
    choose_object_options,
    refuse_object_options,
    separates_objects,
)
from seg.inference.prediction_folder import (
    PARTIAL_FOLDER,
    SharedRecord,
    check_output_folder,
    check_result_names,
    list_inputs,
    open_output_folder,
    piece_lock,
    read_file_stamp,
)
from seg.inference.predictor import Predictor, check_image_channels, mark_nodata
from seg.logits import classes_from_probabilities
from seg.runs import load
from seg.runs.workers import refuse_ranks, share_pieces

log = logging.getLogger("seg")


def predict_files(cfg: DictConfig) -> list[Path]:
    """Segment each input and return the files written, in folders named by what they hold.

    Args:
        cfg: as conf/predict.yaml.

    Raises:
        UserError: if an option is wrong or an input can't be read; the other inputs are done first.
        RunError: if the run can't be read, or the folder can't be written.
    """
    # check everything that can be checked before the first image is read
    configure_logging()
    refuse_ranks("seg.predict")
    check_predict_options(cfg)
    check_output_folder(Path(cfg.output), cfg.save)
    run = ensemble.load_members(cfg.run, cfg.model.depth)
    predictor = Predictor(
        run, load.threshold(run, cfg.threshold), cfg.tta, list(cfg.scales), cfg.tile, cfg.overlap,
        cfg.batch, cfg.accelerator, cfg.nodata,
    )  # fmt: skip
    request = OutputOptions(
        run, list(cfg.save), predictor.threshold, cfg.probabilities,
        choose_object_options(cfg.objects, run), cfg.spacing and list(cfg.spacing), cfg.pyramid,
    )  # fmt: skip
    check_kinds_of_run(request)
    if not any(separates_objects(kind, run) for kind in cfg.save):
        refuse_object_options(cfg.objects, f"save=[{','.join(cfg.save)}] has no instances")
    images = list_inputs(cfg.input, Path(cfg.output))
    with open_output_folder(Path(cfg.output)) as output:
        # leave out what an earlier command has done
        record = SharedRecord(output, cfg, run)
        left = [file for file in images if not record.is_done(file)]
        if not left and record.content["status"] == "finished":
            log.info(
                f"{quote_path(output)} holds the results of all {len(images)} inputs already: nothing is predicted"
            )
            return []
        check_result_names({file: images[file] for file in left}, record.content, output)
        if done := len(images) - len(left):
            log.info(f"{done} of {len(images)} inputs are done already, and kept")
        # segment the others; one that can't be read doesn't stop the rest
        written: list[Path] = []
        own: list[Path] = []
        failed: list[str] = []
        with build_rows_bar() as progress:

            def segment(file: Path) -> None:
                check_result_names({file: images[file]}, record.content, output)
                file_stamp = read_file_stamp(file)
                try:
                    written.extend(
                        predict_file(
                            file,
                            images[file],
                            predictor,
                            request,
                            output,
                            progress,
                            cfg.check_seams,
                        )
                    )
                except DataError as error:
                    failed.append(str(error))
                    return
                record.add(file, images[file], file_stamp)
                own.append(file)

            share_pieces(
                left,
                lambda file: piece_lock(output, images[file]),
                output,
                record.is_done,
                segment,
                "inputs",
            )
        written = record.finish(written, failed)
    others = len(left) - len(own) - len(failed)
    log.info(
        f"{len(own)} of {len(left)} inputs segmented{f', {others} by other workers' if others else ''}; results in "
        f"{quote_path(output)}"
    )
    log_passed_over(Path(cfg.input), Path(cfg.output))
    if failed:
        raise UserError("; ".join(failed))
    return written


def check_predict_options(cfg: DictConfig) -> None:
    """Raise UserError for options that are wrong whatever the run is."""
    for option, what in (
        ("input", "an image, a TIFF stack, a folder or a pattern"),
        ("output", "a folder"),
    ):
        if cfg[option] is None:
            raise UserError(f"{option} is not set: give {what}, {option}=...")
    check_save_option(cfg.save)
    check_object_options(cfg)
    if cfg.spacing is not None and "instances" not in cfg.save:
        raise UserError(
            f"spacing={list(cfg.spacing)}: save=[{','.join(cfg.save)}] has no instances; leave it out"
        )


def build_rows_bar() -> Progress:
    """Return a progress bar in percent of an image's rows."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


def predict_file(
    file: Path,
    name: str,
    predictor: Predictor,
    request: OutputOptions,
    output: Path,
    progress: Progress,
    check_seams: bool = False,
) -> list[Path]:
    """Predict one file, and return the files written, in subfolders as the name says.

    Raises:
        DataError: if it can't be read, or has other channels than the run was trained on.
    """
    nodata = predictor.nodata_values(file)
    pages, results = open_pages(file, predictor.pages, nodata), []
    try:
        # all pages must be of one size, with the channels of the run
        height, width, _ = pages[0].shape
        for page in pages:
            check_image_channels(page.shape[2], predictor.run, file)
            if page.shape[:2] != (height, width):
                raise DataError(
                    f"{file}: pages of {height}x{width} and {page.shape[0]}x{page.shape[1]} px; save them as "
                    "files of their own"
                )
        # values of another type or range are converted as a whole image, or refused
        conversions = [
            predictor.conversion(page.dtype, page.bands(), page_name(file, i, len(pages)))
            for i, page in enumerate(pages)
        ]
        # predict band by band; the results grow on disk, after what a killed command left there is removed
        dtype = np.result_type(
            *{c.dtype or page.dtype for c, page in zip(conversions, pages, strict=True)}
        )
        place = OutputTarget(output, file, name, height, width, len(pages), dtype)
        results = build_results(request, place)
        remove_partial(results)
        task = progress.add_task(file.name, total=height * len(pages))
        tiling, run = predictor.tiling(height, width, nodata), predictor.run
        try:
            for page, convert in zip(pages, conversions, strict=True):
                rows = converted_rows(page, convert)
                for top, image, p_CHW in tiling.bands(rows, height):
                    mask = classes_from_probabilities(p_CHW, predictor.threshold, run.overlapping)
                    mask = mark_nodata(mask, image, nodata)
                    for result in results:
                        result.add(PredictedBand(top, image, p_CHW, mask))
                    progress.advance(task, len(image))
                    del image, p_CHW, mask  # memory for the next band, or to finish the files
        finally:
            progress.remove_task(task)
        if check_seams:
            log_seams(file, predictor, pages[0], conversions[0])
        # finish the files
        for kind in request.save:
            files.make_folder((output / kind / name).parent, output)
        return [path for result in results for path in result.finish(pages[0].tags)]
    finally:
        for page in pages:
            page.close()
        remove_partial(results)


def remove_partial(results: list[GrowingResult]) -> None:
    """Remove the rows of unfinished results."""
    for result in results:
        result.remove()


def converted_rows(page: ImageReader, convert: ValueConversion) -> Callable[[int, int], np.ndarray]:
    """Return the function that reads rows of a page in the type of the training images."""
    return lambda start, stop: convert(page.rows(start, stop))


def page_name(file: Path, number: int, pages: int) -> str:
    """Return the name of a page in messages."""
    return f"{file}, page {number}" if pages > 1 else str(file)


def log_seams(
    file: Path, predictor: Predictor, page: ImageReader, convert: ValueConversion
) -> None:
    """Log how much the probabilities in tiles differ from those of the image at once."""
    height, width, _ = page.shape
    if max(height, width) <= predictor.tile:
        log.info(f"seams      {file.name}: none, it went through at once")
        return
    side = 3 * predictor.tile // 2
    part = convert(page.rows(0, min(height, side)))
    largest, mean = predictor.tiling(height, width).seams(part)
    log.info(
        f"seams      {file.name}: probabilities in tiles differ by {largest:.1e} at most, {mean:.1e} in the mean, "
        f"from {min(height, side)}x{min(width, side)} px at once"
    )


def begin_image_results(place: OutputTarget, request: OutputOptions) -> list[GrowingResult]:
    """Return the results of one image, which grow band by band in a folder of partial results."""
    files.make_folder(place.output / PARTIAL_FOLDER, place.output)
    results = build_results(request, place)
    remove_partial(results)
    return results


def finish_image_results(folder: Path, results: list[GrowingResult]) -> list[Path]:
    """Write the files of the results that ``begin_image_results`` began in a folder, and return their paths."""
    written = [path for result in results for path in result.finish({})]
    remove_partial(results)
    os.rmdir(folder / PARTIAL_FOLDER)
    return written
