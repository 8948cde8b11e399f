"""Implementation of ``python -m seg.next``."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from seg import files
from seg.cli.command_line import quote_path, render_command, render_option
from seg.data.image_files import log_passed_over
from seg.display.console import configure_logging, track_progress
from seg.display.queue_sheet import draw_pair, draw_queue
from seg.errors import DataError, RunError, UserError
from seg.inference import ensemble
from seg.inference.prediction_folder import list_inputs
from seg.inference.predictor import Predictor
from seg.inference.quality import NO_CALIBRATION, QualityScorer, make_scorer, table_number
from seg.inference.unlabelled import (
    UnlabelledImage,
    check_run_has_starts,
    copy_image,
    flat_name,
    predict_start,
    read_preview,
)
from seg.labels import IGNORE
from seg.metrics.annotation_queue import order_images
from seg.metrics.image_features import ReferenceImages
from seg.runs import load
from seg.runs.load import LoadedRun
from seg.runs.record import QualityRecord
from seg.runs.workers import refuse_ranks

log = logging.getLogger("seg")
COLUMNS = ("rank", "image", "copy", "dice", "distance", "score")
TABLE, SHEET = "next.csv", "next.png"


class RankedImage(NamedTuple):
    """An image of the queue.

    Attributes:
        image: that is to be annotated.
        distance: from the known images, and in the order ``quality`` from those before it; None: unknown.
        score: by which it was chosen, in 0..1; None: at random.
    """

    image: UnlabelledImage
    distance: float | None
    score: float | None

    @property
    def dice(self) -> float | None:
        """Mean expected Dice, in 0..1; None: unknown."""
        return None if self.image.quality is None else self.image.quality.mean_dice


def queue_images(cfg: DictConfig) -> list[RankedImage]:
    """Choose the images to annotate next, write them with their predicted masks, and return them, first one first.

    Args:
        cfg: as conf/next.yaml.

    Raises:
        UserError: if an option is wrong, or the folder holds something.
        DataError: if an image can't be read; the table is written without it.
        RunError: if the run can't be read, or doesn't know how good its predictions are.
    """
    configure_logging()
    refuse_ranks("seg.next")
    for option, what in (("input", "a folder of images"), ("output", "a new folder")):
        if cfg[option] is None:
            raise UserError(f"{option} is not set: give {what}, {option}=...")
    output = Path(cfg.output)
    check_new_folder(output)
    run = ensemble.load_members(cfg.run)
    check_run_has_starts(run)
    scorer = build_queue_scorer(run, cfg.order)
    predictor = Predictor(
        run, load.threshold(run, cfg.threshold), tile=cfg.tile, overlap=cfg.overlap, batch=cfg.batch,
        accelerator=cfg.accelerator, nodata=cfg.nodata,
    )  # fmt: skip
    inputs = list_inputs(cfg.input, output)
    check_flat_names(inputs)
    failed: list[str] = []
    files.make_folder(output.parent, output.parent)
    with (
        files.atomic_folder(output, output.parent) as aside,
        files.scratch_folder(aside) as scratch,
    ):
        ranked = rank_inputs(inputs, predictor, scorer, cfg, aside, scratch, failed)
        if not ranked:
            raise DataError("; ".join(failed) or f"input={cfg.input}: no image has data")
        write_queue(ranked, run, aside)
    print_queue(ranked, len(inputs), run, cfg, output)
    log_passed_over(Path(cfg.input), output)
    if failed:
        raise DataError("; ".join(failed))
    return ranked


def check_new_folder(output: Path) -> None:
    """Raise UserError unless a folder is absent or empty, and RunError unless it can be written."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"output={output}: holds something; give a new folder")
    files.check_writable(output, output, [TABLE])


def check_flat_names(inputs: dict[Path, str]) -> None:
    """Raise UserError if two images would have copies of the same name."""
    names: dict[str, Path] = {}
    for file, name in inputs.items():
        if (other := names.setdefault(flat_name(name), file)) is not file:
            raise UserError(f"{other} and {file} would have copies of the same name; rename one")


def build_queue_scorer(run: LoadedRun, order: str) -> QualityScorer | None:
    """Return the scorer of a run; None: it does not know how good its predictions are, and the order needs no scores.

    Raises:
        RunError: if the order needs them.
    """
    if run.quality is None and order == "quality":
        raise RunError(
            f"{run.checkpoint}: order=quality needs scores, but it {NO_CALIBRATION}; train again, or give order=random"
        )
    if run.quality is None:
        return None
    return make_scorer(run, run.quality, intervals=False)


def rank_inputs(
    inputs: dict[Path, str],
    predictor: Predictor,
    scorer: QualityScorer | None,
    cfg: DictConfig,
    folder: Path,
    scratch: Path,
    failed: list[str],
) -> list[RankedImage]:
    """Predict images once, and return the first ones of the queue.

    Args:
        inputs: file -> name.
        predictor: of the run.
        scorer: of the run.
        cfg: options.
        folder: that receives the predicted masks, also of images that the queue leaves out.
        scratch: folder that receives previews.
        failed: receives what is wrong with the images that can't be read.
    """
    chosen = list(inputs.items())
    if cfg.order == "random":
        order = np.random.default_rng(cfg.seed).permutation(len(chosen))
        chosen = [chosen[i] for i in order[: cfg.n]]
    found: list[UnlabelledImage] = []
    for file, name in track_progress(chosen, "predicting"):
        try:
            found.append(predict_start(file, name, predictor, scorer, folder, scratch))
        except DataError as error:
            failed.append(str(error))
    if cfg.order == "random":
        return [RankedImage(one, one.quality.distance if one.quality else None, None) for one in found]  # fmt: skip
    assert scorer is not None
    known = [one for one in found if one.features is not None]
    if lost := len(found) - len(known):
        log.info(f"left out   {lost} images without data")
    return rank_by_quality(known, scorer.quality, cfg.n)


def rank_by_quality(
    found: Sequence[UnlabelledImage], quality: QualityRecord, count: int
) -> list[RankedImage]:
    """Return the first images by expected Dice and distance; an image of which nothing is expected counts as Dice 0."""
    if not found:
        return []
    reference = ReferenceImages(np.array(quality.center), np.array(quality.spread), quality.limit)
    dice_N = np.array([(one.quality and one.quality.mean_dice) or 0.0 for one in found])
    features_NF = np.stack([one.features for one in found if one.features is not None])
    queue = order_images(dice_N, features_NF, reference, count)
    return [RankedImage(found[one.index], one.distance, one.score) for one in queue]


def write_queue(ranked: Sequence[RankedImage], run: LoadedRun, folder: Path) -> None:
    """Write the images, the sheet and the table, and remove the masks of other images."""
    chosen = {one.image.mask for one in ranked}
    for mask in (folder / "masks").iterdir():
        if mask not in chosen:
            mask.unlink()
    pairs = list[Image.Image]()
    for rank, one in enumerate(ranked, start=1):
        copy_image(one.image, folder)
        preview = read_preview(one.image.preview)
        dice = "" if one.dice is None else f", expected Dice {one.dice:.2f}"
        title = f"{rank}  {one.image.path}{dice}"
        pairs.append(draw_pair(*preview, run.colors, title, run.overlapping))
    with files.atomic_write(folder / SHEET, folder) as aside:
        draw_queue(pairs, run.classes, run.colors, run.overlapping).save(aside)
    with files.open_text(folder / TABLE, folder) as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for rank, one in enumerate(ranked, start=1):
            numbers = map(table_number, (one.dice, one.distance, one.score))
            names = map(files.encodable, (one.image.path, one.image.copy_name))
            writer.writerow([rank, *names, *numbers])


def print_queue(
    ranked: Sequence[RankedImage], inputs: int, run: LoadedRun, cfg: DictConfig, output: Path
) -> None:
    """Log what was chosen, and how to go on."""
    if cfg.n > inputs:
        log.info(f"images     all {inputs} are taken: fewer than n={cfg.n}")
    how = "by expected Dice and distance" if cfg.order == "quality" else "at random"
    log.info(
        f"queue      {len(ranked)} of {inputs} images, {how}: {quote_path(output / TABLE)}, pictures {quote_path(output / SHEET)}"
    )
    far = sum(one.distance is not None and one.distance > 1 for one in ranked)
    if far:
        log.info(f"unlike     {far} of them are unlike every known image; their expected Dice means little")  # fmt: skip
    masks, images = (quote_path(output / name) for name in ("masks", "images"))
    log.info(
        f"next, correct the predicted masks in {masks} ({IGNORE}: unknown), then train with {images} alone, or after moving "
        "both into the folders of the old data:"
    )
    words = [
        "data=folder", render_option("data.root", output), render_option("data.classes", run.classes),
        render_option("data.ignore", [IGNORE]),
    ]  # fmt: skip
    if run.overlapping:
        words[-1] = "data.task=overlapping"
    log.info(f"  {render_command('train', *words)}")
