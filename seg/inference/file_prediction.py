"""Prediction of files: band by band through the network; several workers share the files, and continue interrupted ones."""

import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seg import files
from seg.cli.command_line import quote_path
from seg.data.image_files import log_passed_over
from seg.data.raster import ImageReader, open_pages
from seg.data.sections import (
    check_same_size,
    check_single_axis,
    find_section_files,
    rows_around,
)
from seg.data.value_types import ValueConversion
from seg.display.console import configure_logging, console
from seg.errors import DataError, UserError
from seg.inference import ensemble
from seg.inference.engines import with_engine
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
)
from seg.inference.predictor import Predictor, check_image_channels, mark_nodata
from seg.inference.quality import ImageQuality, QualityScorer, build_scorer
from seg.inference.quality_table import log_quality, write_quality_part
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
    run = with_engine(
        run, cfg.run, cfg.engine, cfg.precision, cfg.exported, cfg.accelerator, cfg.model.depth
    )
    predictor = Predictor(
        run, load.threshold(run, cfg.threshold), cfg.tta, list(cfg.scales), cfg.tile, cfg.overlap,
        cfg.batch, cfg.accelerator, cfg.nodata, cfg.precision,
    )  # fmt: skip
    request = OutputOptions(
        run, list(cfg.save), predictor.threshold, cfg.probabilities,
        choose_object_options(cfg.objects, run), cfg.spacing and list(cfg.spacing), cfg.pyramid,
    )  # fmt: skip
    check_kinds_of_run(request)
    load.log_promise(run, cfg)
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
        scorer = build_scorer(run, cfg, predictor.threshold)
        # segment the others; one that can't be read doesn't stop the rest
        written: list[Path] = []
        own: list[Path] = []
        failed: list[str] = []
        with build_rows_bar() as progress:

            def segment(file: Path) -> None:
                check_result_names({file: images[file]}, record.content, output)
                file_stamp = record.input_stamp(file)
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
                            scorer,
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
    if scorer is not None:
        log_quality(Path(cfg.output))
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
    scorer: QualityScorer | None = None,
) -> list[Path]:
    """Predict one file, and return the files written, in subfolders as the name says.

    Raises:
        DataError: if it can't be read, or has other channels than the run was trained on.
    """
    nodata = predictor.nodata_values(file)
    pages, results = open_pages(file, predictor.pages, nodata), []
    opened = list(pages)
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
        sections = open_sections(file, pages, predictor, nodata, opened)
        conversions = {
            page: predictor.conversion(page.dtype, page.bands(), page_name(page)) for page in opened
        }
        # predict band by band; the results grow on disk, after what a killed command left there is removed
        dtype = np.result_type(*{conversions[page].dtype or page.dtype for page in pages})
        place = OutputTarget(output, file, name, height, width, len(pages), dtype)
        results = build_results(request, place)
        remove_partial(results)
        task = progress.add_task(file.name, total=height * len(pages))
        qualities: list[ImageQuality] = []
        try:
            for around in sections:
                rows = converted_rows(around, conversions)
                meter = None if scorer is None else scorer.begin(height, width)
                for band in predict_bands(predictor, rows, height, width, nodata):
                    if meter is not None:
                        meter.add(band.top, band.image, band.probabilities, band.mask)
                    for result in results:
                        result.add(band)
                    progress.advance(task, len(band.image))
                    del band  # memory for the next band, or to finish the files
                if scorer is not None and meter is not None:
                    qualities.append(scorer.score(meter))
        finally:
            progress.remove_task(task)
        if check_seams:
            log_seams(file, predictor, pages[0].shape, converted_rows(sections[0], conversions))
        # finish the files
        for kind in request.save:
            files.make_folder((output / kind / name).parent, output)
        if scorer is not None:
            write_quality_part(output, name, file, qualities, predictor.run.classes)
        return [path for result in results for path in result.finish(pages[0].tags)]
    finally:
        for page in opened:
            page.close()
        remove_partial(results)


def predict_bands(
    predictor: Predictor,
    rows: Callable[[int, int], np.ndarray],
    height: int,
    width: int,
    nodata: Sequence[float],
) -> Generator[PredictedBand]:
    """Yield the prediction of an image band by band; keeps no band while the next one is predicted.

    Args:
        predictor: of the run.
        rows: returns the rows from ``start`` to before ``stop``, with the channels that the network sees.
        height: px.
        width: px.
        nodata: values that mean no data.
    """
    run = predictor.run
    for top, stored, p_CHW in predictor.tiling(height, width, nodata).bands(rows, height):
        image = stored[..., run.intensity.own_channels]
        mask = classes_from_probabilities(p_CHW, predictor.threshold, run.overlapping)
        mask = mark_nodata(mask, image, nodata)
        yield PredictedBand(top, image, p_CHW, mask)
        del stored, image, p_CHW, mask


def open_sections(
    file: Path,
    pages: list[ImageReader],
    predictor: Predictor,
    nodata: Sequence[float],
    opened: list[ImageReader],
) -> list[list[ImageReader]]:
    """Return for each page of a file the pages that the network sees: itself, and its neighbours as the run was trained.

    Those of a single image are the files of its folder whose names have the neighbouring numbers.

    Args:
        file: that is predicted.
        pages: of the file.
        predictor: of the run.
        nodata: values that mean no data in the file.
        opened: receives the readers of further files.

    Raises:
        DataError: if the neighbours can't be found or read, or have another size.
    """
    neighbours = predictor.run.intensity.neighbours
    if not neighbours:
        return [[page] for page in pages]
    if len(pages) > 1:
        check_single_axis(file, pages[0].axes, neighbours)
        rows = (rows_around(row, neighbours, 0, len(pages) - 1) for row in range(len(pages)))
        return [[pages[row] for row in near] for near in rows]
    near = find_section_files(file, neighbours)
    readers = {file.name: pages[0]}
    for other in near:
        if other.name not in readers:
            values = (*nodata, *predictor.nodata_values(other))
            found = open_pages(other, predictor.pages, values)
            opened += found[:1]
            readers[other.name] = found[0]
            if len(found) > 1:
                raise DataError(
                    f"{other}: {len(found)} pages, but its neighbour {file.name} has one; save each section as a file"
                )
    check_same_size({str(file.with_name(name)): one.shape for name, one in readers.items()})
    return [[readers[other.name] for other in near]]


def remove_partial(results: list[GrowingResult]) -> None:
    """Remove the rows of unfinished results."""
    for result in results:
        result.remove()


def converted_rows(
    pages: list[ImageReader], conversions: Mapping[ImageReader, ValueConversion]
) -> Callable[[int, int], np.ndarray]:
    """Return the function that reads rows of the pages that the network sees, in the type of the training images."""

    def rows(start: int, stop: int) -> np.ndarray:
        parts = [conversions[page](page.rows(start, stop)) for page in pages]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return rows


def page_name(page: ImageReader) -> str:
    """Return the name of a page in messages."""
    return f"{page.file}, page {page.page}" if page.pages > 1 else str(page.file)


def log_seams(
    file: Path,
    predictor: Predictor,
    shape: tuple[int, ...],
    rows: Callable[[int, int], np.ndarray],
) -> None:
    """Log how much the probabilities in tiles differ from those of the image at once."""
    height, width, _ = shape
    if max(height, width) <= predictor.tile:
        log.info(f"seams      {file.name}: none, it went through at once")
        return
    side = 3 * predictor.tile // 2
    largest, mean = predictor.tiling(height, width).seams(rows(0, min(height, side)))
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
