"""Trains a network: ``python -m seg.train model=unetpp loss=bce_dice``.

Composes the run from conf/, trains, scores the best checkpoint, and leaves a run folder that every
other command reads. ``-m`` with comma-separated values sweeps.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seg import __version__, files, hardware, runs, sweep
from seg.asked import Asked, sweeping, typed
from seg.cli import REFUSALS, UserError, build, command, one_line, plain
from seg.console import first_process, logging_to, quiet
from seg.data.module import DataModule
from seg.fit import fit
from seg.logits import num_logits
from seg.losses.balance import balance
from seg.losses.sums import weight_map
from seg.models import NestedUNet, UNet
from seg.options import check_literal
from seg.past import naming
from seg.resume import resumed
from seg.task import SegmentationTask
from seg.together import one_place

log = logging.getLogger("seg")


def train(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: Asked | None = None
) -> dict[str, float]:
    """Trains what the config says and returns the final metrics; all it wrote lies in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        callbacks: more of Lightning's; one that raises ``Pruned`` ends the run, whose status tells so.
        asked: by default what the command line says.
    """
    if cfg.resume is None:
        return begin(cfg, callbacks, asked or typed(cfg))
    file = Path(str(cfg.resume)) / "config.yaml"
    cfg, asked = resumed(cfg)
    with naming(file):
        return begin(cfg, callbacks, asked)


def begin(cfg: DictConfig, callbacks: Sequence[L.Callback], asked: Asked) -> dict[str, float]:
    """Builds what a run needs, and fits; see ``train``."""
    quiet(speaks=not asked.silent)
    check_literal(plain(cfg))
    L.seed_everything(cfg.seed, verbose=False)
    hardware.pick_accelerator(cfg.trainer.accelerator)  # an error now, if it isn't there
    outputs = Path(cfg.outputs) if asked.folder is None else asked.folder.parent
    if asked.folder is None and first_process():
        files.check_writable(outputs, outputs, given=f"outputs={outputs}")
    data = open_data(cfg)
    source, overlapping = data.source, data.source.task == "overlapping"
    cfg.loss = balanced(cfg.loss, data)
    config = plain(cfg)
    metrics = build(
        cfg.metrics, "metrics", classes=source.classes, overlapping=overlapping,
        threshold=0.5 if cfg.threshold is None else cfg.threshold,
    )  # fmt: skip
    card = {
        "format": runs.FORMAT,
        "version": __version__,
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
        "task": source.task,
        "threshold": metrics.threshold,
    }
    task = SegmentationTask(
        build(cfg.model, "model"),
        build(cfg.loss, "loss"),
        metrics,
        build(cfg.optim, "optim"),
        build(cfg.schedule, "schedule"),
        cfg.seed,
        card,
        config["head_weights"],
    )
    check_head_weights(config["head_weights"], task.model)
    check_average(task.model, overlapping)
    check_loss(task.loss, cfg.model.num_classes, overlapping)
    if (weights := weight_map(task.loss)) is not None:
        data.weigh(weights.gaps)
    fit_crops(data, task.model)
    check_optim(task)
    check_trainer(cfg.trainer, data)
    taken = cfg.init and runs.start_from(task.model, cfg.init)
    with (
        one_place(outputs, asked.name, asked.folder, asked.checkpoint) as place,
        runs.alone(place.folder, "seg.train"),
    ):
        asked = replace(asked, folder=place.folder, checkpoint=place.checkpoint)
        runs.lay_out(place.folder, anew=place.checkpoint is None)
        with logging_to(place.folder / "log.txt"):
            return fit(cfg, asked, task, data, taken, callbacks)


def open_data(cfg: DictConfig) -> DataModule:
    """The data of a run; the model's config is told its channels and classes."""
    source = build(cfg.data, "data")
    data: DataModule = build(
        cfg.loader, "loader", source=source, augment=build(cfg.augment, "augment"), seed=cfg.seed
    )
    cfg.model.in_channels = data.intensity.channels
    cfg.model.num_classes = num_logits(
        len(source.classes), cfg.two_class_logits, source.task == "overlapping"
    )
    return data


def balanced(loss: DictConfig, data: DataModule) -> DictConfig:
    """The loss's config with numbers where it says ``auto``, from the training split.

    Raises:
        UserError: when that split can't tell.
    """
    source, node = data.source, plain(loss)
    overlapping = source.task == "overlapping"
    try:
        return OmegaConf.create(balance(node, data.shares, source.classes, overlapping))
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def check_head_weights(weights: list[float] | None, model: nn.Module) -> None:
    """Raises UserError unless there is a weight for each head that is trained, or none at all."""
    if weights is None:
        return
    if not isinstance(weights, list) or not all(
        isinstance(w, int | float) and math.isfinite(w) for w in weights
    ):
        raise UserError(f"head_weights={weights}: a list of numbers is needed, [1,1,1,2], or null")
    heads = len(model.heads) if isinstance(model, NestedUNet) and model.deep_supervision else 1
    if heads == 1 or len(weights) != heads or min(weights) < 0 or sum(weights) == 0:
        raise UserError(
            f"head_weights={weights}: this network trains {heads} head{'s' * (heads > 1)}; give null, or "
            "with deep supervision as many weights of 0 or more, not all 0"
        )


def check_average(model: nn.Module, overlapping: bool) -> None:
    """Raises UserError when heads would be averaged that can't be."""
    if overlapping and isinstance(model, NestedUNet) and model.output == "average":
        raise UserError(
            "model.output=average: heads are averaged as a softmax; overlapping classes have none"
        )


def fit_crops(data: DataModule, model: nn.Module) -> None:
    """Gives a network of valid convolutions crops with their surroundings: loader.crop is what is judged."""
    if not (isinstance(model, UNet) and model.context):
        return
    if data.crop is None:
        raise UserError("loader.crop=null: model.padding=valid needs crops; give loader.crop=388")
    data.widen(model.input_side(data.crop), model.context)


def check_loss(loss: nn.Module, num_logits: int, overlapping: bool) -> None:
    """Raises UserError when the loss can't judge such logits; better now than at the first step."""
    logits = torch.zeros(1, num_logits, 2, 2)
    try:
        loss(logits, (logits if overlapping else logits[:, 0]).long())
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def check_optim(task: SegmentationTask) -> None:
    """Raises UserError when the optimiser refuses its options, which it would do after the run had begun."""
    try:
        task.optimizer()
    except REFUSALS as error:
        raise UserError(f"optim: {one_line(error)}") from error


def check_trainer(node: DictConfig, data: DataModule) -> None:
    """Raises UserError when Lightning refuses an option, or what is left of an epoch is nothing."""
    trainer = build(node, "trainer")
    processes, cores = trainer.num_devices, os.cpu_count() or 1
    if hardware.pick_accelerator(node.accelerator) == "cpu" and processes > max(8, cores):
        raise UserError(f"trainer.devices={node.devices}: this machine has {cores} cores")
    world, splits = trainer.world_size, data.source.splits
    samples = {
        "limit_train_batches": (len(splits["train"]) * data.repeats, data.batch_size // world or 1),
        "limit_val_batches": (len(splits["val"]), data.eval_batch_size),
    }
    for option, (count, size) in samples.items():
        share, batches = node.get(option, 1.0), math.ceil(math.ceil(count / world) / size)
        if isinstance(share, float) and int(share * batches) == 0:
            raise UserError(
                f"trainer.{option}={share}: of {batches} batch{'es' * (batches > 1)} that is none; give how "
                "many, 1 or more"
            )


@command("train", sweeps=True)
def main(cfg: DictConfig) -> None:
    if sweeping():
        sweep.job(cfg, train)
    else:
        train(cfg)


if __name__ == "__main__":
    main()
