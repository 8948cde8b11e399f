"""Train one run from its config."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from seg import files, hardware
from seg.cli.compose import instantiate_node, plain_config
from seg.cli.paths import complete_epochs
from seg.cli.validation import check_literal
from seg.data.datamodule import DataModule
from seg.data.datasets.base import object_border
from seg.data.spacing import source_spacing
from seg.display.console import configure_logging, is_rank_zero, log_to_file
from seg.errors import UserError
from seg.losses.weighted_sum import find_weight_map
from seg.metrics.risk_control import parse_risk_bound
from seg.runs import checkpoint, folder
from seg.runs.reader import name_config_file
from seg.runs.run_info import RunInfo, run_info_from_hydra
from seg.training import init_weights
from seg.training.build import (
    add_crop_context,
    build_data,
    build_model,
    check_averaged_heads,
    check_head_weights,
    check_loss,
    check_optimizer_options,
    check_trainer_options,
    fill_class_weights,
    set_tiles,
)
from seg.training.distributed import shared_run_folder
from seg.training.fit import fit_run
from seg.training.resume import load_stopped_run
from seg.training.risk import check_risk_bound
from seg.training.task import SegmentationTask
from seg.version import __version__


def train(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: RunInfo | None = None
) -> dict[str, float]:
    """Train one run as ``train_run``, and return only the final metrics."""
    return train_run(cfg, callbacks, asked)[0]


def train_run(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: RunInfo | None = None
) -> tuple[dict[str, float], Path]:
    """Train one run, write its run folder, and return the final metrics and the folder.

    Args:
        cfg: composed from conf/train.yaml.
        callbacks: additional Lightning callbacks; one that raises ``RunPruned`` ends the run with that status.
        asked: facts that are not in the config; None: from the command line.

    Returns:
        ``best/val/...`` of the best checkpoint and, with a test split, ``test/...``; and the run folder.

    Raises:
        UserError: if the config, the data and the network do not fit together.
    """
    if cfg.get("dry"):
        raise UserError("dry=true: goes with a single run of seg.train; leave it out")
    try:
        if cfg.resume is None:
            if asked is None and cfg.extend is not None:
                raise UserError(f"extend={cfg.extend}: goes with resume=RUN and a later end")
            return build_and_fit(cfg, callbacks, asked or run_info_from_hydra(cfg))
        file = Path(str(cfg.resume)) / "config.yaml"
        cfg, asked = load_stopped_run(cfg)
        with name_config_file(file):
            return build_and_fit(cfg, callbacks, asked)
    finally:
        free_memory()


def free_memory() -> None:
    """Free the memory of a finished training, whose trainer and task reference each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build_and_fit(
    cfg: DictConfig, callbacks: Sequence[L.Callback], asked: RunInfo
) -> tuple[dict[str, float], Path]:
    """Build data, network, loss, metrics and optimiser, check them, and fit; see ``train``."""
    configure_logging(speaks=not asked.silent)
    outputs = Path(cfg.outputs) if asked.folder is None else asked.folder.parent
    if asked.folder is None and is_rank_zero():
        files.check_writable(outputs, outputs, given=f"outputs={outputs}")
    task, data, taken = build_parts(cfg)
    # Create and lock the run folder, and train in it.
    with (
        shared_run_folder(outputs, asked.name, asked.folder, asked.checkpoint) as place,
        folder.lock_folder(place.folder, "seg.train"),
    ):
        asked = replace(asked, folder=place.folder, checkpoint=place.checkpoint)
        folder.prepare_run_folder(place.folder, anew=place.checkpoint is None)
        with log_to_file(place.folder / "log.txt"):
            return fit_run(cfg, asked, task, data, taken, callbacks), place.folder


def build_parts(cfg: DictConfig) -> tuple[SegmentationTask, DataModule, str | None]:
    """Build data, network, loss, metrics and optimiser, and check that they fit together, before a folder is created.

    Args:
        cfg: config of the run, which is completed by what the data tells.

    Returns:
        The task, the data, and a description of the initial weights, None if they are random.
    """
    # Check what can be checked before the data is read.
    complete_epochs(cfg)
    check_literal(plain_config(cfg))
    L.seed_everything(cfg.seed, verbose=False)
    hardware.pick_accelerator(cfg.trainer.accelerator)
    # Open the data, which completes the config: channels, classes, and class weights.
    data = build_data(cfg)
    source, overlapping = data.source, data.source.task == "overlapping"
    cfg.loss = fill_class_weights(cfg.loss, data)
    config = plain_config(cfg)
    # With a border of its own class the most probable class counts; best chooses split_neck_px alone.
    alone = cfg.threshold == "best" and object_border(source).own_class
    if (bound := parse_risk_bound(cfg.threshold)) is not None:
        check_risk_bound(bound, source, source.splits["val"], f"threshold={cfg.threshold}")
    metrics = instantiate_node(
        cfg.metrics, "metrics", classes=source.classes, overlapping=overlapping,
        threshold=0.5 if cfg.threshold is None or alone or bound else cfg.threshold,
    )  # fmt: skip
    if metrics.needs_spacing:
        metrics.set_spacing(source_spacing(source))
    # Build the task; the card makes each checkpoint usable alone.
    card = {
        "format": checkpoint.CHECKPOINT_FORMAT,
        "version": __version__,
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
        "task": source.task,
        "threshold": metrics.threshold,
        "split_neck_px": None,
        "promise": None,
        "quality": None,
        "border": object_border(source).width,
    }
    task = SegmentationTask(
        build_model(cfg.model),
        instantiate_node(cfg.loss, "loss"),
        metrics,
        instantiate_node(cfg.optim, "optim"),
        instantiate_node(cfg.schedule, "schedule"),
        cfg.seed,
        card,
        config["head_weights"],
        config.get("weight_decay_of_all", True),
    )
    # Check that the parts fit together.
    check_head_weights(config["head_weights"], task.model)
    check_averaged_heads(task.model, overlapping)
    check_loss(task.loss, cfg.model.num_classes, overlapping)
    if (weights := find_weight_map(task.loss)) is not None:
        data.set_weight_map(weights.gaps)
    add_crop_context(data, task.model)
    set_tiles(task, data, config.get("tile", "auto"))
    check_optimizer_options(task)
    check_trainer_options(cfg.trainer, data, task.model)
    return task, data, cfg.init and init_weights.load_initial_weights(task.model, cfg.init)
