"""Train one run from its config."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from seg import files, hardware
from seg.cli.compose import build, plain
from seg.cli.validation import check_literal
from seg.display.console import first_process, logging_to, quiet
from seg.losses.weighted_sum import weight_map
from seg.runs import checkpoint, folder
from seg.runs.reader import naming
from seg.runs.run_info import Asked, typed
from seg.training import init_weights
from seg.training.build import (
    balanced,
    build_model,
    check_average,
    check_head_weights,
    check_loss,
    check_optim,
    check_trainer,
    fit_crops,
    open_data,
)
from seg.training.distributed import one_place
from seg.training.fit import fit
from seg.training.resume import resumed
from seg.training.task import SegmentationTask
from seg.version import __version__


def train(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: Asked | None = None
) -> dict[str, float]:
    """Train one run, write its run folder, and return the final metrics.

    Args:
        cfg: composed from conf/train.yaml.
        callbacks: additional Lightning callbacks; one that raises ``Pruned`` ends the run with that status.
        asked: facts that are not in the config; None: from the command line.

    Returns:
        ``best/val/...`` of the best checkpoint and, with a test split, ``test/...``.

    Raises:
        UserError: if the config, the data and the network do not fit together.
    """
    try:
        if cfg.resume is None:
            return begin(cfg, callbacks, asked or typed(cfg))
        file = Path(str(cfg.resume)) / "config.yaml"
        cfg, asked = resumed(cfg)
        with naming(file):
            return begin(cfg, callbacks, asked)
    finally:
        free_memory()


def free_memory() -> None:
    """Free the memory of a finished training, whose trainer and task reference each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin(cfg: DictConfig, callbacks: Sequence[L.Callback], asked: Asked) -> dict[str, float]:
    """Build data, network, loss, metrics and optimiser, check them, and fit; see ``train``."""
    # Check what can be checked before the data is read.
    quiet(speaks=not asked.silent)
    check_literal(plain(cfg))
    L.seed_everything(cfg.seed, verbose=False)
    hardware.pick_accelerator(cfg.trainer.accelerator)
    outputs = Path(cfg.outputs) if asked.folder is None else asked.folder.parent
    if asked.folder is None and first_process():
        files.check_writable(outputs, outputs, given=f"outputs={outputs}")
    # Open the data, which completes the config: channels, classes, and class weights.
    data = open_data(cfg)
    source, overlapping = data.source, data.source.task == "overlapping"
    cfg.loss = balanced(cfg.loss, data)
    config = plain(cfg)
    metrics = build(
        cfg.metrics, "metrics", classes=source.classes, overlapping=overlapping,
        threshold=0.5 if cfg.threshold is None else cfg.threshold,
    )  # fmt: skip
    # Build the task; the card makes each checkpoint usable alone.
    card = {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
        "task": source.task,
        "threshold": metrics.threshold,
    }
    task = SegmentationTask(
        build_model(cfg.model),
        build(cfg.loss, "loss"),
        metrics,
        build(cfg.optim, "optim"),
        build(cfg.schedule, "schedule"),
        cfg.seed,
        card,
        config["head_weights"],
    )
    # Check that the parts fit together, before a folder is created.
    check_head_weights(config["head_weights"], task.model)
    check_average(task.model, overlapping)
    check_loss(task.loss, cfg.model.num_classes, overlapping)
    if (weights := weight_map(task.loss)) is not None:
        data.weigh(weights.gaps)
    fit_crops(data, task.model)
    check_optim(task)
    check_trainer(cfg.trainer, data)
    # Create and lock the run folder, and train in it.
    taken = cfg.init and init_weights.start_from(task.model, cfg.init)
    with (
        one_place(outputs, asked.name, asked.folder, asked.checkpoint) as place,
        folder.alone(place.folder, "seg.train"),
    ):
        asked = replace(asked, folder=place.folder, checkpoint=place.checkpoint)
        folder.lay_out(place.folder, anew=place.checkpoint is None)
        with logging_to(place.folder / "log.txt"):
            return fit(cfg, asked, task, data, taken, callbacks)
