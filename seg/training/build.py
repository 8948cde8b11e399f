"""Build data, network, loss and trainer from the config, and check that they fit together."""

import copy
import math
import os
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seg import hardware
from seg.cli.compose import CONSTRUCTOR_ERRORS, instantiate_node, one_line, plain_config
from seg.data.datamodule import DataModule
from seg.data.splits import check_training_splits
from seg.errors import UserError
from seg.inference.tiling import choose_tile
from seg.logits import num_logits
from seg.losses.class_weights import fill_auto_weights
from seg.models import Network
from seg.models.contract import require_network

if TYPE_CHECKING:
    from seg.training.task import SegmentationTask


def build_data(cfg: DictConfig) -> DataModule:
    """Build the data of a run, and set the model's ``in_channels`` and ``num_classes`` from it."""
    source = instantiate_node(cfg.data, "data")
    check_training_splits(source.splits)
    data: DataModule = instantiate_node(
        cfg.loader,
        "loader",
        source=source,
        augment=instantiate_node(cfg.augment, "augment"),
        seed=cfg.seed,
    )
    cfg.model.in_channels = data.intensity.channels
    cfg.model.num_classes = num_logits(
        len(source.classes), cfg.two_class_logits, source.task == "overlapping"
    )
    return data


def build_model(node: DictConfig) -> Network:
    """Return the network of the model's config.

    Raises:
        UserError: if the class refuses an option, or is no network.
    """
    try:
        return require_network(instantiate_node(node, "model"))
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def fill_class_weights(loss: DictConfig, data: DataModule) -> DictConfig:
    """Return the loss config with each ``auto`` replaced by class weights of the training split.

    Raises:
        UserError: if the training split does not determine them.
    """
    source, node = data.source, plain_config(loss)
    overlapping = source.task == "overlapping"
    try:
        return OmegaConf.create(
            fill_auto_weights(node, data.class_shares, source.classes, overlapping)
        )
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def check_head_weights(weights: list[float] | None, model: Network) -> None:
    """Raise UserError unless there is one weight per trained head, or none at all."""
    if weights is None:
        return
    if not isinstance(weights, list) or not all(
        isinstance(w, int | float) and math.isfinite(w) for w in weights
    ):
        raise UserError(f"head_weights={weights}: a list of numbers is needed, [1,1,1,2], or null")
    heads = model.num_heads
    if heads == 1 or len(weights) != heads or min(weights) < 0 or sum(weights) == 0:
        raise UserError(
            f"head_weights={weights}: this network trains {heads} head{'s' * (heads > 1)}; give null, or "
            "with deep supervision as many weights of 0 or more, not all 0"
        )


def check_averaged_heads(model: Network, overlapping: bool) -> None:
    """Raise UserError if heads of overlapping classes would be averaged."""
    if overlapping and model.averages_heads:
        raise UserError(
            "model.output=average: heads are averaged as a softmax, which overlapping classes do not have; "
            "give model.output=deepest"
        )


def add_crop_context(data: DataModule, model: Network) -> None:
    """Enlarge the crops of a network of valid convolutions by its context; loader.crop is the scored area."""
    if not model.context:
        return
    if data.crop is None:
        raise UserError(
            "loader.crop=null: a network of valid convolutions needs crops; give loader.crop=388"
        )
    data.set_context(model.input_side(data.crop), model.context)


def set_tiles(task: "SegmentationTask", data: DataModule, option: int | str | None) -> None:
    """Set the tiles in which larger images are evaluated, from the option ``tile``.

    Raises:
        UserError: if the network can't be evaluated in these tiles.
    """
    if not (option is None or option == "auto" or (isinstance(option, int) and option > 0)):
        raise UserError(f"tile={option}: a number of px, auto or null is needed")
    try:
        task.tiles = choose_tile(task.model, cast(Any, option))
    except ValueError as error:
        raise UserError(str(error)) from error
    data.set_tile(None if task.tiles is None else task.tiles.side)


def check_loss(loss: nn.Module, num_logits: int, overlapping: bool) -> None:
    """Raise UserError if the loss rejects logits of K channels, before the first step would fail."""
    logits = torch.zeros(1, num_logits, 2, 2)
    try:
        loss(logits, (logits if overlapping else logits[:, 0]).long())
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def check_optimizer_options(task: "SegmentationTask") -> None:
    """Raise UserError if the optimiser rejects its options, before the run begins."""
    try:
        task.optimizer()
    except CONSTRUCTOR_ERRORS as error:
        raise UserError(f"optim: {one_line(error)}") from error


def check_single_samples(
    model: Network, data: DataModule, world: int, limit: int | float | None
) -> None:
    """Raise UserError if a batch of one sample would give a normalisation layer one value a channel.

    Args:
        model: the network.
        data: of the run.
        world: number of processes.
        limit: trainer.limit_train_batches.
    """
    # The smallest batch of a process: the last of an epoch, unless the limit leaves it out.
    count = math.ceil(len(data.source.splits["train"]) * data.repeats / world)
    size = data.batch_size // world or 1
    batches = math.ceil(count / size)
    last = count - (batches - 1) * size
    if isinstance(limit, int) and limit < batches:
        last = size
    if last > 1 or normalises_one_sample(model, data):
        return
    # A number that leaves no single sample.
    per_rank = next((n for n in range(max(2, size), count + 1) if count % n != 1), None)
    crop = "" if data.crop is not None or len(data.sizes["train"]) == 1 else "loader.crop=256 "
    remedy = f"loader.batch_size={per_rank * world}" if per_rank else f"loader.repeats={2 * data.repeats} loader.batch_size={2 * world}"  # fmt: skip
    raise UserError(
        f"loader.batch_size={data.batch_size}: {'the last batch of an epoch' if last < size else 'a batch'} has one "
        f"sample (of {count} an epoch{f' for each of {world} processes' if world > 1 else ''}), and from it a normalisation "
        f"layer of this network gets a map of one pixel, which has no variance; give {crop}{remedy}"
    )


def normalises_one_sample(model: Network, data: DataModule) -> bool:
    """Return True if the network trains on one sample: normalisation layers need several values a channel."""
    if data.crop is not None:
        height = width = model.input_side(data.crop) if model.context else data.crop
    else:
        height, width = min(data.sizes["train"], key=min)
    image = torch.zeros(1, data.intensity.channels, height, width)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(model).train()(image)
    except ValueError as error:  # of PyTorch's batch, instance and group normalisation
        if str(error).startswith("Expected more than 1"):
            return False
        raise
    return True


def count_batches(samples: int, size: int, world: int) -> int:
    """Return the number of batches of an epoch on each of ``world`` ranks."""
    return math.ceil(math.ceil(samples / world) / size)


def training_batches(data: DataModule, world: int) -> int:
    """Return the number of training batches of an epoch on each rank, without a limit."""
    samples = len(data.source.splits["train"]) * data.repeats
    return count_batches(samples, data.batch_size // world or 1, world)


def epoch_steps(node: DictConfig, data: DataModule, world: int) -> int:
    """Return the number of optimiser steps of an epoch.

    Args:
        node: options of the Trainer.
        data: with the training split.
        world: number of ranks.
    """
    batches, limit = training_batches(data, world), node.get("limit_train_batches", 1.0)
    limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return math.ceil(limited / node.get("accumulate_grad_batches", 1))


def check_trainer_options(node: DictConfig, data: DataModule, model: Network) -> None:
    """Raise UserError if an option does not fit: to Lightning, the network, or the number of batches and samples."""
    if node.get("checkpoint_activations") and not model.can_checkpoint:
        raise UserError(
            f"trainer.checkpoint_activations=true: {model.name} keeps its activations; only fcn, segnet, unet, unetpp "
            "and networks with can_checkpoint compute them again: give false"
        )
    trainer = instantiate_node(node, "trainer")
    processes, cores = trainer.num_devices, os.cpu_count() or 1
    if hardware.pick_accelerator(node.accelerator) == "cpu" and processes > max(8, cores):
        raise UserError(f"trainer.devices={node.devices}: this machine has {cores} cores")
    # A limit given as a fraction must leave at least one batch per rank.
    world = trainer.world_size
    limited = {
        "limit_train_batches": training_batches(data, world),
        "limit_val_batches": count_batches(
            len(data.source.splits["val"]), data.eval_batch_size, world
        ),
    }
    for option, batches in limited.items():
        share = node.get(option, 1.0)
        if isinstance(share, float) and int(share * batches) == 0:
            raise UserError(
                f"trainer.{option}={share}: that is none of {batches} batch{'es' * (batches > 1)}; give a "
                "number of batches, 1 or more"
            )
    check_single_samples(model, data, world, node.get("limit_train_batches", 1.0))
