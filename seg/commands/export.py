"""Implementation of ``python -m seg.export``."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path
from seg.cli.compose import compose_checked
from seg.cli.conf_files import own_options
from seg.data.datamodule import DataModule
from seg.data.dataset import SegmentationDataset
from seg.display.console import configure_logging
from seg.display.tables import make_table
from seg.errors import DataError, UserError, first_line, missing_extra_hint
from seg.hardware import fuse_conv_bn, prepare_for_inference
from seg.inference import ensemble
from seg.inference.bioimageio import check_package
from seg.inference.engines import (
    ENGINE_PACKAGES,
    ENGINE_TITLES,
    OPENERS,
    engine_fields,
    read_onnx,
)
from seg.inference.export import (
    check_packages,
    compare_outputs,
    export_target,
    noise_images,
    write_checked,
    write_checked_package,
)
from seg.inference.export_facts import describe_run, describe_sections
from seg.inference.exported_network import (
    ExportedNetwork,
    add_facts,
    as_ensemble,
    open_export,
    write_export,
)
from seg.inference.outputs import choose_object_options
from seg.inference.quantization import QUANTIZATION_OPSET, quantize_onnx
from seg.inference.run_data import choose_data, open_run_data
from seg.models.contract import same_size_logits
from seg.runs.load import LoadedRun
from seg.training.build import set_tiles
from seg.training.evaluation import build_metrics, build_trained_loss, score_objects, score_split
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")
CALIBRATION_SIDE = 1024  # px of the middle of an image that sets the ranges of int8
TIMED_ROUNDS = 5
TIMED_SIDE = 256  # px; times of smaller images say little


@cache
def evaluation_options() -> DictConfig:
    """Return the options of seg.evaluate with which a file is scored: its defaults, in float32 on the CPU."""
    return compose_checked("evaluate", ["accelerator=cpu", "precision=float32"])


def export_run(cfg: DictConfig) -> Path:
    """Write the run as one file, after comparing it with the network, and return its path.

    Args:
        cfg: as conf/export.yaml.

    Raises:
        UserError: if an option is wrong, or the file can't be written, differs too much or loses too much of a score.
        RunError: if the run can't be read.
    """
    # Check packages and target before the network is exported
    configure_logging()
    check_packages(cfg)
    refuse_unused_options(cfg)
    run = ensemble.load_members(cfg.run)
    file, below = export_target(cfg, run)
    image = check_package(cfg.bioimageio, run) if cfg.format == "bioimageio" else None
    reduced = None
    if cfg.precision != "float32":
        reduced = open_reduction(cfg, run)
    elif chosen := [name for name, value in cfg.data.items() if value is not None]:
        raise UserError(
            f"data.{chosen[0]}: only precision=int8 and float16 are scored on data; leave it out"
        )
    # Write to a temporary file, which gets its name only after the comparison
    facts = describe_run(run, cfg.run, cfg.precision)
    with (
        files.folder_removed_if_empty(file.parent, below),
        files.atomic_write(file, below) as aside,
    ):
        if image is not None:
            write_checked_package(run, facts, image, aside, cfg)
        elif reduced is not None:
            write_reduced(reduced, facts, aside, cfg)
        else:
            write_checked(run, facts, aside, cfg.format, cfg)
    # Print input and output as the file's users see them
    channels, classes = run.intensity.channels, ", ".join(run.classes)
    log.info(
        f"in         image (batch, {channels}, height, width) float32, values as stored"
        f"{describe_sections(run.intensity)}"
    )
    log.info(f"out        probabilities (batch, {len(run.classes)}, height, width): {classes}")
    log.info(f"wrote      {quote_path(file)}: {file.stat().st_size / 1e6:.1f} MB")
    return file


def refuse_unused_options(cfg: DictConfig) -> None:
    """Raise UserError for an option that was changed and does nothing with this precision or format."""
    own = OmegaConf.create(own_options("export"))
    uses = {
        "calibration.split": cfg.precision == "int8",
        "calibration.images": cfg.precision == "int8",
        "max_loss": cfg.precision != "float32",
        "tolerance": cfg.precision == "float32",
        "opset": cfg.format != "torch",
    }
    for name, used in uses.items():
        value, filed = OmegaConf.select(cfg, name), OmegaConf.select(own, name)
        if not used and value != filed:
            raise UserError(
                f"{name}={value}: does nothing with format={cfg.format} precision={cfg.precision}; leave it out"
            )


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Run and images of an export in a lower precision.

    Attributes:
        run: exported run, whose network takes values as stored.
        calibration: images that set the ranges of the integers; None: none are needed.
        data: images on which the file is scored.
        split: of the data.
    """

    run: LoadedRun
    calibration: SegmentationDataset | None
    data: DataModule
    split: str


def open_reduction(cfg: DictConfig, run: LoadedRun) -> Reduction:
    """Open the data that an export in a lower precision needs.

    Raises:
        UserError: if the data doesn't fit the run or has no such split.
    """
    model = as_ensemble(run)
    run = dataclasses.replace(run, model=model, intensity=model.intensity)
    options = evaluation_options()
    split, chosen = choose_data(cfg.data, run)
    data = open_run_data(options, run, split, chosen)
    data.set_tile(CALIBRATION_SIDE)
    calibration = None
    if cfg.precision == "int8":
        # images that trained a member are the right ones to calibrate on
        free = dataclasses.replace(run, seen=frozenset())
        name = cfg.calibration.split
        source = open_run_data(options, free, name, chosen, option="calibration.split")
        source.set_tile(CALIBRATION_SIDE)
        calibration = source.samples(name)
    return Reduction(run, calibration, data, split)


def write_reduced(reduction: Reduction, facts: dict, file: Path, cfg: DictConfig) -> None:
    """Write the network in int8 or float16, and print its scores and times beside those of float32.

    Args:
        reduction: run and data.
        facts: stored in the file, with the scores.
        file: to write.
        cfg: as conf/export.yaml.

    Raises:
        UserError: if it can't be written or run, or a score falls by more than ``cfg.max_loss``.
    """
    run, name = reduction.run, f"{reduction.run.checkpoint}: its {facts['network']}"
    try:
        with files.scratch_folder(file.parent) as scratch:
            write_precision(reduction, facts, file, scratch, cfg)
        gaps = compare_outputs(run, open_export(file, "onnx"), noise_images(run), cfg.tolerance)
        runs = open_engines(run, file, cfg.precision)
        image = read_centre(reduction.data.samples(reduction.split), 0, CALIBRATION_SIDE)
        seconds = time_runs(runs, image)
    except (UserError, DataError):
        raise
    except Exception as error:  # exporters and runtimes raise errors of every class
        raise UserError(
            f"{name} can't be exported in {cfg.precision}: {first_line(error)}"
        ) from error
    if not all(np.isfinite(gap.largest) for gap in gaps):
        raise UserError(
            f"{name} in {cfg.precision} gives no probabilities of the image's size; nothing is written"
        )
    # Score PyTorch in float32 and the file in each engine
    scores = {
        engine: score_run(one, reduction.data, reduction.split) for engine, one in runs.items()
    }
    log.info("", extra={"table": build_score_table(scores, seconds, image, reduction, cfg)})
    log_calibration(reduction, cfg)
    samples = reduction.calibration
    more_images = samples is not None and cfg.calibration.images < len(samples)
    check_losses(scores, cfg, name, more_images)
    if cfg.precision == "int8" and min(image.shape[1:]) >= TIMED_SIDE:
        log_fastest(seconds)
    add_facts(file, facts | {"scores": {ENGINE_TITLES[e]: one for e, one in scores.items()}})


def log_calibration(reduction: Reduction, cfg: DictConfig) -> None:
    """Print which images set the ranges of int8, and how many of them are scored, too."""
    samples = reduction.calibration
    if samples is None:
        return
    names = [samples.names[i] for i in calibration_indices(samples, cfg.calibration.images)]
    scored = reduction.data.samples(reduction.split).names
    both = len(set(names).intersection(scored))
    log.info(
        f"calibrated on {len(names)} images of {cfg.calibration.split}"
        + f"; {both} of the {len(scored)} scored images are among them, so the scores of int8 may be slightly too good"
        * (both > 0)
    )


def log_fastest(seconds: dict[str, float]) -> None:
    """Print the engine that is fastest on this CPU."""
    fastest = min(seconds, key=lambda engine: seconds[engine])
    if fastest == "torch":
        log.info(
            "fastest    engine=torch precision=float32: int8 is no faster than PyTorch for this network on this CPU"
        )
        return
    log.info(
        f"fastest    engine={fastest} precision=int8 of seg.predict and seg.evaluate, on this CPU: "
        f"{seconds['torch'] / seconds[fastest]:.2f} times PyTorch in float32"
    )


def open_engines(run: LoadedRun, file: Path, precision: str) -> dict[str, LoadedRun]:
    """Return the run in PyTorch, and with its network computed from a file by each engine that is installed."""
    runs = {"torch": dataclasses.replace(run, model=fuse_conv_bn(run.model))}
    content = read_onnx(file)
    for engine, packages in ENGINE_PACKAGES.items():
        if not any(map(missing_extra_hint, packages)):
            fields = engine_fields(run, OPENERS[engine](content, precision))
            runs[engine] = dataclasses.replace(run, **fields)
    return runs


def write_precision(
    reduction: Reduction, facts: dict, file: Path, scratch: Path, cfg: DictConfig
) -> None:
    """Write the ONNX file in int8, calibrated, or in float16."""
    if reduction.calibration is None:
        write_export(ExportedNetwork(reduction.run, float16=True), facts, file, "onnx", cfg.opset)
        return
    whole, opset = scratch / "float32.onnx", max(cfg.opset, QUANTIZATION_OPSET)
    write_export(ExportedNetwork(reduction.run), facts, whole, "onnx", opset)
    images = calibration_images(reduction.calibration, cfg.calibration.images)
    quantize_onnx(whole, file, images, scratch)
    add_facts(file, facts)


def calibration_indices(samples: SegmentationDataset, count: int) -> list[int]:
    """Return the indices of at most ``count`` images of a split, evenly spaced in their order."""
    return [int(i) for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).round()]


def calibration_images(samples: SegmentationDataset, count: int) -> Iterator[np.ndarray]:
    """Yield the middle (C, h, w) of the images that ``calibration_indices`` chooses."""
    for index in calibration_indices(samples, count):
        yield read_centre(samples, index, CALIBRATION_SIDE)


def read_centre(samples: SegmentationDataset, index: int, side: int) -> np.ndarray:
    """Return the middle of an image (C, h, w) float32, at most ``side`` px high and wide."""
    name = samples.names[index]
    if samples.is_large(name):
        with samples.open_banded(name) as banded:
            height = banded.shape[0]
            top = max(0, height - side) // 2
            rows = banded.prepare(banded.image_rows(top, min(height, top + side)))
        image = rows.transpose(2, 0, 1)
    else:
        image = samples[0, index]["image"].numpy()
    top, left = (max(0, full - side) // 2 for full in image.shape[-2:])
    return np.ascontiguousarray(image[:, top : top + side, left : left + side], np.float32)


def score_run(run: LoadedRun, data: DataModule, split: str) -> dict[str, float]:
    """Return the scores of a run on a split: Dice and IoU, their values for each class, and V_rand of instances."""
    options = evaluation_options()
    metrics = build_metrics(options, run)
    task = SegmentationTask(run.model, build_trained_loss(run), metrics)
    set_tiles(task, data, options.tile)
    found = score_split(options, run, task, data, split)
    scores = {
        key.removeprefix(f"{split}/"): value
        for key, value in found.items()
        if key.split("/")[1] in ("dice", "iou")
    }
    if data.source.task == "instances":
        prepare_for_inference(run.model, "cpu")
        objects = choose_object_options(options.objects, run)
        values, _ = score_objects(run, data.samples(split), metrics.threshold, objects, "cpu")
        scores["v_rand"] = values["v_rand"]
    return scores


def time_runs(runs: dict[str, LoadedRun], image: np.ndarray) -> dict[str, float]:
    """Return the median seconds of the networks of some runs for an image (C, H, W), measured in turn."""
    batch = torch.from_numpy(image)[None]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        prepare_for_inference(run.model, "cpu")
    with torch.inference_mode():
        for _ in range(TIMED_ROUNDS):
            for name, run in runs.items():
                same_size_logits(
                    run.model, batch
                )  # not timed: threads of the engine before may still spin
                started = time.perf_counter()
                same_size_logits(run.model, batch)
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def build_score_table(
    scores: dict[str, dict[str, float]],
    seconds: dict[str, float],
    image: np.ndarray,
    reduction: Reduction,
    cfg: DictConfig,
) -> Table:
    """Return a table with a column for PyTorch in float32 and for each engine."""
    count = len(reduction.data.samples(reduction.split))
    table = make_table(f"{cfg.precision} against float32, {reduction.split}, {count} images")
    table.add_column("", style="bold", no_wrap=True)
    for engine in scores:
        precision = "float32" if engine == "torch" else cfg.precision
        table.add_column(f"{ENGINE_TITLES[engine]}, {precision}", justify="right")
    for key, reference in scores["torch"].items():
        cells = [f"{reference:.4f}"]
        for engine in list(scores)[1:]:
            cells.append(f"{scores[engine][key]:.4f} ({scores[engine][key] - reference:+.4f})")
        table.add_row(key, *cells)
    times = [f"{1000 * s:.0f} ({seconds['torch'] / s:.2f}x)" for s in seconds.values()]
    table.add_row(f"ms, {image.shape[1]}x{image.shape[2]} px", *times)
    return table


def check_losses(
    scores: dict[str, dict[str, float]], cfg: DictConfig, name: str, more_images: bool
) -> None:
    """Raise UserError if a score of an engine is below that of PyTorch by more than ``cfg.max_loss``.

    Args:
        scores: engine -> name -> value.
        cfg: as conf/export.yaml.
        name: of the network, for the message.
        more_images: whether the calibration split has images that weren't taken, which may help.
    """
    for engine, own in list(scores.items())[1:]:
        losses = {key: value - own[key] for key, value in scores["torch"].items() if value == value}
        if not losses:
            raise UserError(
                f"{name}: no score of the {len(own)} could be computed on these images; nothing is written"
            )
        worst = max(losses, key=lambda key: losses[key] if losses[key] == losses[key] else np.inf)
        if not losses[worst] <= cfg.max_loss:
            remedy = "more calibration.images or " * more_images
            raise UserError(
                f"{name} in {cfg.precision} loses {losses[worst]:.4f} of {worst} in {ENGINE_TITLES[engine]}, more than "
                f"max_loss={cfg.max_loss:g}; nothing is written. Give {remedy}a larger max_loss"
            )
