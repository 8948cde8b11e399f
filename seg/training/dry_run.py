"""Dry run of a training: ``python -m seg.train dry=true`` tells what it needs, and writes nothing."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from seg.display.console import configure_logging
from seg.errors import UserError
from seg.training.demand import (
    Demand,
    available_memory,
    free_disk,
    measure_demand,
    training_seconds,
    validation_images,
)
from seg.training.run import build_parts

log = logging.getLogger("seg")


def dry_run(cfg: DictConfig) -> Demand:
    """Measure a few steps and a validation image, print memory, time and disk, and return the measurements.

    Raises:
        UserError: as for the training itself, and for a run that is resumed.
    """
    configure_logging()
    if cfg.resume is not None:
        raise UserError("dry=true: measures a new run; leave out resume")
    task, data, _ = build_parts(cfg)
    demand = measure_demand(cfg, task, data)
    steps, seconds = training_seconds(cfg, data, demand)
    log.info(f"dry run    {demand.steps} steps and 1 validation image")
    log.info(f"memory     {describe_memory(cfg.trainer.accelerator, demand.peak)}")
    log.info(
        f"time       {format_seconds(seconds)} to the end: {steps} steps of {format_seconds(demand.step_seconds)}, "
        f"validations of {validation_images(cfg, data)} images of {format_seconds(demand.image_seconds)}, and the final scores"
    )
    # best.ckpt and last.ckpt hold the optimiser's state, too, until the run is finished
    full, kept = demand.weights + demand.state, demand.weights
    last = full if cfg.save_checkpoints == "full" else kept
    log.info(
        f"disk       {format_bytes(2 * full)} of checkpoints while it trains, {format_bytes(2 * last)} afterwards, besides "
        f"pictures; {format_bytes(free_disk(Path(cfg.outputs)))} free"
    )
    log.info("nothing was written")
    return demand


def describe_memory(accelerator: str, peak: int | None) -> str:
    """Return the peak memory and what there is."""
    if peak is None:
        return "unknown on this system"
    available = available_memory(accelerator)
    whole = f" of {format_bytes(available)}" if available else ""
    return f"{format_bytes(peak)}{whole} at the peak{', which is too much' if available and peak > available else ''}"


def format_bytes(count: int) -> str:
    """Return bytes as MiB or GiB with two or three digits."""
    return f"{count / 2**20:.3g} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def format_seconds(seconds: float) -> str:
    """Return a duration in ms, s, minutes or hours."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
