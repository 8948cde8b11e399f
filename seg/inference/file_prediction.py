"""Prediction of files: inputs, output folder, and resuming inside an image."""

import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.progress import Progress

from seg import files
from seg.cli.compose import plain
from seg.data.image_io import is_image, list_images
from seg.data.raster import Raster, images_of
from seg.errors import DataError, RunError, UserError
from seg.inference.outputs import KINDS, Band, Output, Place, Request, outputs
from seg.inference.predictor import Predictor, check_channels
from seg.logits import decided
from seg.runs import load, records
from seg.runs.folder import alone
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")
RECORD, PARTIAL = "predict.json", ".partial"
FREE = ("output", "accelerator", "check_seams", "batch")  # what results don't follow from


def inputs(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        images = list_images(path)
        stems: dict[str, Path] = {}
        for file in images:
            if (other := stems.setdefault(file.stem, file)) is not file:
                raise UserError(
                    f"input={given}: {other.name} and {file.name} would share one result; rename one"
                )
        return images
    if not path.exists():
        raise UserError(f"input={given}: no such file or folder")
    if not is_image(path):
        raise UserError(
            f"input={given}: not an image by its name; PNG, JPEG, TIFF and the like are read"
        )
    return [path]


def check_output(output: Path, save: Sequence[str]) -> None:
    """Raise RunError unless results can be written, with no link among what is there already."""
    places = (f"{kind}/.part" for kind in save)
    files.check_writable(output, output, [RECORD, f"{PARTIAL}/.lock", *places])
    for part in (PARTIAL, *save):
        files.check_tree(output / part, output)


@contextmanager
def working(output: Path) -> Generator[Path]:
    """The output folder, with a place for what grows; that place goes once nothing is in it.

    Raises:
        RunError: when another process is at work there.
        UserError: when it can't be written.
    """
    with alone(output, "seg.predict", PARTIAL) as partial:
        try:
            yield output
        except OSError as error:
            raise UserError(
                f"output={output}: can't be written ({error.strerror or error}); the same command goes on from here"
            ) from error
        finally:
            rest = list(partial.iterdir())
            if all(file.name.startswith(".") for file in rest):
                for file in rest:  # the lock, and marks that weren't written to their end
                    file.unlink()
                partial.rmdir()


def begin(output: Path, cfg: DictConfig, run: LoadedRun) -> dict[str, Any]:
    """The folder's record: as an interrupted command of the same settings left it, or new.

    Raises:
        UserError: when other results lie there.
    """
    settings = {name: value for name, value in plain(cfg).items() if name not in (*FREE, "input")}
    settings["threshold"] = load.threshold(run, cfg.threshold)
    settings = json.loads(json.dumps(settings)) | {"weights": load.fingerprint(run.model)}
    file = output / RECORD
    if file.is_file():
        record = records.read_json(file)
        if not all(isinstance(record.get(part), dict) for part in ("done", "settings")):
            raise UserError(f"{file}: not written by seg.predict; give another folder")
        for name, value in settings.items():
            if (was := record["settings"].get(name)) != value:
                raise UserError(
                    f"output={output}: holds results of {name}={was}, and this is {name}={value}; give another folder"
                )
        return record | {"status": "running"}
    full = [kind for kind in KINDS if (output / kind).is_dir() and any((output / kind).iterdir())]
    if full:
        raise UserError(
            f"output={output}: {full[0]}/ holds results already; give another folder or empty it"
        )
    record = {"status": "running", "settings": settings, "done": {}}
    records.write_json(file, record)
    return record


def check_names(images: list[Path], record: dict[str, Any], output: Path) -> None:
    """Raises UserError when results of other files would be overwritten."""
    done = {Path(name).stem: Path(name) for name in record["done"]}
    for file in images:
        other = done.get(file.stem, file)
        if other != file and other.absolute() != file.absolute():
            raise UserError(
                f"output={output}: holds results of {other}, and those of {file} have the same name; give another folder"
            )


def stamp(file: Path) -> list[int]:
    """Changes when a file does; of one that isn't there, as a broken link, empty."""
    try:
        facts = file.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]


def segment(
    file: Path,
    predictor: Predictor,
    request: Request,
    output: Path,
    progress: Progress,
    check_seams: bool = False,
) -> list[Path]:
    """The results of one file, from where an earlier command left it.

    Raises:
        DataError: when it can't be read, or isn't what the run was trained on; then nothing of it is left.
    """
    pages = images_of(file, predictor.pages_are_channels)
    try:
        height, width, _ = pages[0].shape
        for page in pages:
            check_channels(page.shape[2], predictor.run, file)
            if page.shape[:2] != (height, width):
                raise DataError(
                    f"{file}: pages of {height}x{width} and {page.shape[0]}x{page.shape[1]} px; save them as "
                    "files of their own"
                )
        dtype = np.result_type(*{page.dtype for page in pages})
        place = Place(output, file, height, width, len(pages), dtype)
        made = outputs(request, place)
        journey = Journey(file, output, made, predictor)
        task = progress.add_task(file.name, total=height * len(pages))
        try:
            journey.go(pages, lambda rows: progress.update(task, completed=rows))
        except DataError:
            journey.forget()
            raise
        finally:
            progress.remove_task(task)
        if check_seams:
            told_seams(file, predictor, pages[0])
        tags = pages[0].tags
    finally:
        for page in pages:
            page.close()
    for kind in request.save:
        files.make_folder(output / kind, output)
    written = [path for one in made for path in one.finish(tags)]
    journey.forget()  # not before all is there: else what failed at the last would begin anew
    return written


def told_seams(file: Path, predictor: Predictor, page: Raster) -> None:
    """Says how far tiles are from the image at once."""
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
class Journey:
    """One file's way through the network, band by band, with a mark of how far it came.

    Attributes:
        file: of the image.
        output: folder of all results.
        outputs: that grow.
        predictor: of the run.
    """

    file: Path
    output: Path
    outputs: list[Output]
    predictor: Predictor

    @property
    def mark(self) -> Path:
        """JSON of the page and the row up to which all outputs are whole."""
        return self.output / PARTIAL / f"{self.file.name}.json"

    def go(self, pages: list[Raster], tell: Callable[[int], None]) -> None:
        """Predicts what isn't there yet; tells how many rows are."""
        run, threshold = self.predictor.run, self.predictor.threshold
        height, width, _ = pages[0].shape
        tiling = self.predictor.tiling(height, width)
        way = {"stamp": stamp(self.file), "tiles": [tiling.tile, tiling.overlap]}
        first, start = self.reached(height, way)
        for number in range(first, len(pages)):
            begun = start if number == first else 0
            for top, image, p_CHW in tiling.bands(pages[number].rows, height, begun):
                band = Band(top, image, p_CHW, decided(p_CHW, threshold, run.overlapping))
                for one in self.outputs:
                    one.add(band)
                bottom = top + len(image)
                records.write_json(self.mark, way | {"at": [number, bottom]}, self.output)
                tell(number * height + bottom)

    def reached(self, height: int, way: dict[str, Any]) -> tuple[int, int]:
        """The page and the row that come next; what is beyond them in the outputs is cut off.

        Only what went the same way counts: the same file, in the same tiles, whose context is measured anew.
        """
        page, row = 0, 0
        if self.mark.is_file():
            content = records.read_json(self.mark)
            if all(content.get(name) == value for name, value in way.items()):
                page, row = self.place(content.get("at"), height)
        wanted = [one.growing.height * page + one.rows(row) for one in self.outputs]
        pairs = list(zip(self.outputs, wanted, strict=True))
        if any(one.growing.done() < rows for one, rows in pairs):
            page, row, pairs = 0, 0, [(one, 0) for one in self.outputs]
        for one, rows in pairs:
            one.growing.cut(rows)
        if (page, row) != (0, 0):
            log.info(f"{self.file.name} goes on at page {page}, row {row}")
        return (page, row) if row < height else (page + 1, 0)

    def place(self, at: Any, height: int) -> tuple[int, int]:
        """A page and a row of it, as the mark has them.

        Raises:
            RunError: if they are none.
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

    def forget(self) -> None:
        """Removes all that there is of it."""
        self.mark.unlink(missing_ok=True)
        for one in self.outputs:
            one.growing.remove()


def write(
    folder: Path, file: Path, image: np.ndarray, p_CHW: np.ndarray, request: Request
) -> list[Path]:
    """The results of one image (H, W, C) that is in memory, named as the file."""
    files.make_folder(folder / PARTIAL, folder)
    place = Place(folder, file, *image.shape[:2], 1, image.dtype)
    mask = decided(p_CHW, request.threshold, request.run.overlapping)
    written = []
    for one in outputs(request, place):
        one.growing.cut(0)
        one.add(Band(0, image, p_CHW, mask))
        written += one.finish({})
        one.growing.remove()
    os.rmdir(folder / PARTIAL)
    return written
