"""Lines printed before and after a training."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg import hardware
from seg.cli.command_line import quote_path, render_command, render_option
from seg.data.datamodule import DataModule
from seg.data.datasets.base import object_border
from seg.data.quality.issues import ISSUE_KINDS, format_percent
from seg.data.sections import find_sections
from seg.display import tables
from seg.models.profiling import describe_parameters
from seg.runs.folder import relative_to_here
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")


def print_run_header(
    cfg: DictConfig, name: str, task: SegmentationTask, data: DataModule, taken: str | None
) -> None:
    """Log the first lines of a run: name, model, data and hardware.

    Args:
        cfg: resolved config of the run.
        name: of the run.
        task: with the network.
        data: all splits.
        taken: description of the initial weights; None: random.
    """
    # Collect the numbers.
    splits = ", ".join(f"{len(n)} {s}" for s, n in data.source.splits.items())
    sizes = sorted({size for split in data.sizes.values() for size in split})
    span = f"{sizes[0][0]}x{sizes[0][1]}" + (
        f" to {sizes[-1][0]}x{sizes[-1][1]}" if len(sizes) > 1 else ""
    )
    accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
    precision, why = hardware.pick_precision(cfg.trainer.precision, accelerator)
    # Print the run and its network.
    log.info(f"run        {name}, seed {cfg.seed}")
    log.info(f"model      {task.model.name}, {describe_parameters(task.model, 1e6, 2, ' M')}")
    if task.model.context and data.crop:
        side = task.model.input_side(data.crop)
        inner = side - 2 * task.model.context
        log.info(f"crops      {side}x{side} px go in, the {inner}x{inner} in their middle come out")
    # Print what was found in the data, and how it is used.
    if data.warnings:
        kinds = list(dict.fromkeys(ISSUE_KINDS[fault.kind].heading for fault in data.warnings))
        more = f" and {len(kinds) - 2} other kinds" if kinds[2:] else ""
        log.info(f"warnings   {'; '.join(kinds[:2])}{more}: python -m seg.check lists them")
    if data.labelled < 0.995:
        moved = ", crops without a label are moved to one" if data.crop else ""
        log.info(
            f"labels     {format_percent(data.labelled)} of the training pixels are labelled{moved}"
        )
    if data.focus:
        log.info(f"sampling   {data.describe_crops}")
    if taken:
        log.info(f"init       {taken}")
    log.info(
        f"data       {type(data.source).__name__}: {splits}; {span} px, {data.intensity.image_channels} channel(s); "
        f"classes {', '.join(data.source.classes)}"
    )
    if sections := find_sections(data.source):
        log.info(f"sections   {sections.describe()}")
    if data.source.task == "instances":
        log.info(f"objects    {object_border(data.source).describe()}")
    log.info(f"hardware   {accelerator}, precision {precision} ({why})")
    if cfg.save_checkpoints == "weights":
        log.info(
            "keeps      weights only, once finished; save_checkpoints=full allows training it longer"
        )


def print_run_summary(
    folder: Path, scores: dict[str, float], task: SegmentationTask, data: DataModule, minutes: float
) -> None:
    """Print the final scores of a run and the commands that use it next.

    Args:
        folder: run folder.
        scores: final metrics.
        task: with the metrics of validation and test.
        data: all splits.
        minutes: spent on training.
    """
    place = relative_to_here(folder)
    run = render_option("run", place)
    for prefix, title, metrics in (
        ("best/val/", "validation, best checkpoint", task.val_metrics),
        ("test/", "test", task.test_metrics),
    ):
        if f"{prefix}dice" in scores:
            log.info(
                "",
                extra={
                    "table": tables.pixel_score_table(title, scores, data.source.classes, prefix)
                },
            )
            pixels = metrics.pixels.scored_pixels
            log.info(tables.score_line(scores, data.source.classes, prefix, pixels))
            for table in tables.border_tables(scores, data.source.classes, prefix):
                log.info("", extra={"table": table})
    log.info(
        f"trained in {minutes:.1f} minutes; run folder {quote_path(place)}, "
        f"pictures {quote_path(place / 'panels/all.png')}"
    )
    log.info("next:")
    log.info(f"  {render_command('evaluate', run)}")
    log.info(f"  {render_command('predict', run, 'input=IMAGES', 'output=PREDICTIONS')}")
    log.info(f"  {render_command('compare')} {quote_path(relative_to_here(folder.parent))}")
