"""Segments images with a trained run: ``python -m seg.predict run=outputs/latest input=IMAGES output=OUT``.

An image of any size goes through in bands of tiles, and its results grow on disk: memory doesn't depend on its
height. Stopped and typed again, the command goes on where it was.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seg.cli.command import command
from seg.cli.command_line import quote_path
from seg.cli.compose import plain
from seg.cli.resource_errors import explaining
from seg.display.console import console, quiet
from seg.errors import DataError, UserError
from seg.inference import ensemble
from seg.inference.file_prediction import (
    RECORD,
    begin,
    check_names,
    check_output,
    inputs,
    segment,
    stamp,
    working,
)
from seg.inference.outputs import DEPTHS, Request, check_kinds, check_objects, check_save
from seg.inference.predictor import Predictor
from seg.runs import load, records

log = logging.getLogger("seg")


def predict(cfg: DictConfig) -> list[Path]:
    """Segments each input and returns the files written, in folders named by what they hold."""
    quiet()
    check_request(cfg)
    check_output(Path(cfg.output), cfg.save)
    run = ensemble.load(cfg.run, cfg.model.depth)
    predictor = Predictor(
        run, load.threshold(run, cfg.threshold), cfg.tta, list(cfg.scales), cfg.tile, cfg.overlap,
        cfg.batch, cfg.accelerator,
    )  # fmt: skip
    request = Request(
        run, list(cfg.save), predictor.threshold, cfg.probabilities, plain(cfg.objects)
    )
    check_kinds(request)
    images = inputs(cfg.input)
    failed: list[str] = []
    with working(Path(cfg.output)) as output:
        record = begin(output, cfg, run)
        left = [file for file in images if record["done"].get(str(file)) != stamp(file)]
        if not left:
            raise UserError(
                f"output={cfg.output}: holds the results of all {len(images)} inputs already; give another folder"
            )
        check_names(left, record, output)
        if len(left) < len(images):
            log.info(
                f"{len(images) - len(left)} of {len(images)} inputs are done already, and kept"
            )
        written: list[Path] = []
        with bar() as progress:
            for file in left:
                seen = stamp(file)
                try:
                    written += segment(file, predictor, request, output, progress, cfg.check_seams)
                except DataError as error:
                    failed.append(str(error))
                    continue
                record["done"][str(file)] = seen
                records.write_json(output / RECORD, record)
        records.write_json(output / RECORD, record | {"status": "finished", "failed": failed})
    log.info(
        f"{len(left) - len(failed)} of {len(left)} inputs segmented; results in {quote_path(output)}"
    )
    if failed:
        raise UserError("; ".join(failed))
    return written


def check_request(cfg: DictConfig) -> None:
    """Raises UserError for what can be known before the run is read."""
    for option, what in (("input", "an image, a TIFF stack or a folder"), ("output", "a folder")):
        if cfg[option] is None:
            raise UserError(f"{option} is not set: give {what}, {option}=...")
    check_save(cfg.save)
    if cfg.probabilities not in DEPTHS:
        raise UserError(f"probabilities={cfg.probabilities}: choose from {', '.join(DEPTHS)}")
    check_objects(cfg)


def bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    return Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


@command("predict")
def main(cfg: DictConfig) -> None:
    asked = f"predicting, tile={cfg.tile} and batch={cfg.batch}"
    with explaining(asked, "lower tile or batch; a smaller tile has more overlap to compute"):
        predict(cfg)


if __name__ == "__main__":
    main()
