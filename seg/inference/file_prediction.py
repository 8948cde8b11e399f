"""Prediction of files: each goes through the network band by band, and an interrupted one continues where it was."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seg import files
from seg.cli.command_line import quote_path
from seg.cli.compose import plain_config
from seg.data.raster import ImageReader, open_pages
from seg.display.console import configure_logging, console
from seg.errors import DataError, RunError, UserError
from seg.inference import ensemble
from seg.inference.outputs import (
    PROBABILITY_TYPES,
    GrowingResult,
    OutputOptions,
    OutputTarget,
    PredictedBand,
    build_results,
    check_kinds_of_run,
    check_object_options,
    check_save_option,
)
from seg.inference.prediction_folder import (
    PARTIAL_FOLDER,
    PREDICT_RECORD,
    check_output_folder,
    check_result_names,
    list_inputs,
    lock_output_folder,
    open_predict_record,
    read_file_stamp,
)
from seg.inference.predictor import Predictor, check_image_channels
from seg.logits import classes_from_probabilities
from seg.runs import load, records

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
    check_predict_options(cfg)
    check_output_folder(Path(cfg.output), cfg.save)
    run = ensemble.load_members(cfg.run, cfg.model.depth)
    predictor = Predictor(
        run, load.threshold(run, cfg.threshold), cfg.tta, list(cfg.scales), cfg.tile, cfg.overlap,
        cfg.batch, cfg.accelerator,
    )  # fmt: skip
    request = OutputOptions(
        run, list(cfg.save), predictor.threshold, cfg.probabilities, plain_config(cfg.objects)
    )
    check_kinds_of_run(request)
    images = list_inputs(cfg.input)
    with lock_output_folder(Path(cfg.output)) as output:
        # leave out what an earlier command has done
        record = open_predict_record(output, cfg, run)
        left = [file for file in images if record["done"].get(str(file)) != read_file_stamp(file)]
        if not left:
            raise UserError(
                f"output={cfg.output}: holds the results of all {len(images)} inputs already; give another folder"
            )
        check_result_names(left, record, output)
        if done := len(images) - len(left):
            log.info(f"{done} of {len(images)} inputs are done already, and kept")
        # segment the others; one that can't be read doesn't stop the rest
        written: list[Path] = []
        failed: list[str] = []
        with build_rows_bar() as progress:
            for file in left:
                file_stamp = read_file_stamp(file)
                try:
                    written += predict_file(
                        file, predictor, request, output, progress, cfg.check_seams
                    )
                except DataError as error:
                    failed.append(str(error))
                    continue
                record["done"][str(file)] = file_stamp
                records.write_json(output / PREDICT_RECORD, record)
        records.write_json(
            output / PREDICT_RECORD, record | {"status": "finished", "failed": failed}
        )
    log.info(
        f"{len(left) - len(failed)} of {len(left)} inputs segmented; results in {quote_path(output)}"
    )
    if failed:
        raise UserError("; ".join(failed))
    return written


def check_predict_options(cfg: DictConfig) -> None:
    """Raise UserError for options that are wrong whatever the run is."""
    for option, what in (("input", "an image, a TIFF stack or a folder"), ("output", "a folder")):
        if cfg[option] is None:
            raise UserError(f"{option} is not set: give {what}, {option}=...")
    check_save_option(cfg.save)
    if cfg.probabilities not in PROBABILITY_TYPES:
        raise UserError(
            f"probabilities={cfg.probabilities}: choose from {', '.join(PROBABILITY_TYPES)}"
        )
    check_object_options(cfg)


def build_rows_bar() -> Progress:
    """Return a progress bar in percent of an image's rows."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


def predict_file(
    file: Path,
    predictor: Predictor,
    request: OutputOptions,
    output: Path,
    progress: Progress,
    check_seams: bool = False,
) -> list[Path]:
    """Return the results of one file, continued from where an earlier command stopped.

    Raises:
        DataError: if it can't be read, or has other channels than the run was trained on; its partial results are
            removed.
    """
    pages = open_pages(file, predictor.pages_are_channels)
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
        # predict band by band; the results grow on disk
        dtype = np.result_type(*{page.dtype for page in pages})
        place = OutputTarget(output, file, height, width, len(pages), dtype)
        results = build_results(request, place)
        journey = ResumablePrediction(file, output, results, predictor)
        task = progress.add_task(file.name, total=height * len(pages))
        try:
            journey.predict_missing(pages, lambda rows: progress.update(task, completed=rows))
        except DataError:
            journey.remove_partial()
            raise
        finally:
            progress.remove_task(task)
        if check_seams:
            log_seams(file, predictor, pages[0])
        tags = pages[0].tags
    finally:
        for page in pages:
            page.close()
    # finish the files; partial results stay until all are written, so that a failure here loses nothing
    for kind in request.save:
        files.make_folder(output / kind, output)
    written = [path for result in results for path in result.finish(tags)]
    journey.remove_partial()
    return written


def log_seams(file: Path, predictor: Predictor, page: ImageReader) -> None:
    """Log how much the probabilities in tiles differ from those of the image at once."""
    height, width, _ = page.shape
    if max(height, width) <= predictor.tile:
        log.info(f"seams      {file.name}: none, it went through at once")
        return
    side = 3 * predictor.tile // 2
    part = page.rows(0, min(height, side))
    largest, mean = predictor.tiling(height, width).seams(part)
    log.info(
        f"seams      {file.name}: probabilities in tiles differ by {largest:.1e} at most, {mean:.1e} in the mean, "
        f"from {min(height, side)}x{min(width, side)} px at once"
    )


@dataclass(frozen=True)
class ResumablePrediction:
    """Resumable prediction of one file: after each band a record says up to which row all outputs are complete.

    Attributes:
        file: the image.
        output: folder of all results.
        results: of all kinds, which grow band by band.
        predictor: the run's network and its tiles.
    """

    file: Path
    output: Path
    results: list[GrowingResult]
    predictor: Predictor

    @property
    def mark(self) -> Path:
        """JSON file of the page and the row up to which all outputs are complete."""
        return self.output / PARTIAL_FOLDER / files.short_name(f"{self.file.name}.json")

    def predict_missing(self, pages: list[ImageReader], tell: Callable[[int], None]) -> None:
        """Predict the rows that are missing.

        Args:
            pages: of the file, all of one size.
            tell: called after each band with the number of rows that are complete, of all pages together.
        """
        run, threshold = self.predictor.run, self.predictor.threshold
        height, width, _ = pages[0].shape
        tiling = self.predictor.tiling(height, width)
        settings = {"stamp": read_file_stamp(self.file), "tiles": [tiling.tile, tiling.overlap]}
        first, start = self.restore_position(height, settings)
        for number in range(first, len(pages)):
            first_row = start if number == first else 0
            for top, image, p_CHW in tiling.bands(pages[number].rows, height, first_row):
                band = PredictedBand(
                    top, image, p_CHW, classes_from_probabilities(p_CHW, threshold, run.overlapping)
                )
                for result in self.results:
                    result.add(band)
                bottom = top + len(image)
                records.write_json(self.mark, settings | {"at": [number, bottom]}, self.output)
                tell(number * height + bottom)

    def restore_position(self, height: int, settings: dict[str, Any]) -> tuple[int, int]:
        """Return the next page and row, and cut off what the outputs hold beyond them.

        A record of another file, or of other tiles, doesn't count: the file begins anew.
        """
        page, row = 0, 0
        if self.mark.is_file():
            content = records.read_json(self.mark)
            if all(content.get(name) == value for name, value in settings.items()):
                page, row = self.place(content.get("at"), height)
        rows = [result.growing.height * page + result.rows(row) for result in self.results]
        pairs = list(zip(self.results, rows, strict=True))
        if any(result.growing.done() < count for result, count in pairs):
            page, row, pairs = 0, 0, [(result, 0) for result in self.results]
        for result, count in pairs:
            result.growing.truncate_rows(count)
        if (page, row) != (0, 0):
            log.info(f"{self.file.name} goes on at page {page}, row {row}")
        return (page, row) if row < height else (page + 1, 0)

    def place(self, at: Any, height: int) -> tuple[int, int]:
        """Return page and row of a record.

        Raises:
            RunError: if they aren't two whole numbers in range.
        """
        if not isinstance(at, list) or [type(number) for number in at] != [int, int]:
            raise RunError(
                f"{self.mark}: not written by seg.predict; remove it to begin the image anew"
            )
        page, row = at
        if not 0 <= page < 2**31 or not 0 <= row <= height:
            raise RunError(
                f"{self.mark}: names page {page} and row {row}; remove it to begin the image anew"
            )
        return page, row

    def remove_partial(self) -> None:
        """Remove the record and the partial results."""
        self.mark.unlink(missing_ok=True)
        for result in self.results:
            result.growing.remove()


def write_results(
    folder: Path, file: Path, image: np.ndarray, p_CHW: np.ndarray, request: OutputOptions
) -> list[Path]:
    """Write the results of an image that is in memory, and return their files.

    Args:
        folder: of the results.
        file: after which they are named.
        image: (H, W, C) as stored.
        p_CHW: class probabilities.
        request: what is written.
    """
    files.make_folder(folder / PARTIAL_FOLDER, folder)
    place = OutputTarget(folder, file, *image.shape[:2], 1, image.dtype)
    mask = classes_from_probabilities(p_CHW, request.threshold, request.run.overlapping)
    written = []
    for result in build_results(request, place):
        result.growing.truncate_rows(0)
        result.add(PredictedBand(0, image, p_CHW, mask))
        written += result.finish({})
        result.growing.remove()
    os.rmdir(folder / PARTIAL_FOLDER)
    return written
