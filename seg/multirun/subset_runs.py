"""Trainings on nested subsets of the training images, each a run folder found by its run.json."""

import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import instantiate_node, plain_config
from seg.comparison.run_files import ImageCounts, read_counts
from seg.data.datasets.base import DataSource, image_groups
from seg.data.partition import split_hash
from seg.data.splits import check_training_splits
from seg.data.subset import draw_subset, restrict_training, training_units, unit_word
from seg.errors import RunError, UserError
from seg.metrics.learning_curve import LEAST_SIZES
from seg.multirun.folds import NEUTRAL_TRAIN_OPTIONS, dotted_leaves, to_json_value
from seg.multirun.trainings import check_one_device, delete_unfinished_runs, find_finished_run
from seg.runs.folder import relative_to_here
from seg.runs.workers import share_pieces
from seg.training.build import count_batches
from seg.training.run import train

log = logging.getLogger("seg")
ENOUGH_OPTIONS = ("output", "sizes", "seeds", "split", "confidence_level")  # not of seg.train
LEAST_UNITS = 4  # images or groups, below which there is no curve
LEAST_SCORED = 2  # images or groups
SMALLEST, DEFAULT_SIZES = 2, 4  # smallest subset, and number of subsets, of sizes=null


class Subset(NamedTuple):
    """One training.

    Attributes:
        size: number of training images, of groups where the data has them.
        seed: of the subset and the training.
        name: of the run.
        images: number of training images.
        hash: of the splits.
    """

    size: int
    seed: int
    name: str
    images: int
    hash: str


class SubsetPlan(NamedTuple):
    """Trainings of a learning curve.

    Attributes:
        word: what a size counts, images or groups.
        total: number of training images.
        sizes: increasing; the last is all.
        seeds: of each size.
        split: val or test, whose images are scored.
        groups: name -> group of the images, or None.
        pieces: the trainings, those of the first seed first.
        hash: of the splits of all images.
    """

    word: str
    total: int
    sizes: list[int]
    seeds: list[int]
    split: str
    groups: dict[str, str] | None
    pieces: list[Subset]
    hash: str


def plan_subsets(cfg: DictConfig) -> SubsetPlan:
    """Open the data and plan the trainings.

    Raises:
        UserError: if the options or the data allow no learning curve.
    """
    check_options(cfg)
    source: DataSource = instantiate_node(cfg.data, "data")
    check_training_splits(source.splits)
    word, count = unit_word(source), len(training_units(source))
    sizes = choose_sizes(cfg.sizes, count, word)
    split = cfg.split or ("test" if "test" in source.splits else "val")
    if split not in source.splits:
        raise UserError(
            f"split={split}: this data has {' and '.join(source.splits)}; give split=val"
        )
    scored, groups = source.splits[split], image_groups(source)
    if len(scored if groups is None else {groups[name] for name in scored}) < LEAST_SCORED:
        raise UserError(
            f"split={split}: it has one {word.removesuffix('s')}; an interval needs {LEAST_SCORED} or more, so enlarge the split"
        )
    seeds = list(range(cfg.seed, cfg.seed + cfg.seeds))
    prefix = f"{cfg.name}-" if cfg.name else ""
    pieces = []
    for seed in seeds:
        for size in sizes:
            names = draw_subset(source, size, seed)
            hashed = split_hash(restrict_training(source, size, seed).splits)
            name = f"{prefix}{word}-{size}-seed-{seed}"
            pieces.append(Subset(size, seed, name, len(names), hashed))
    total = len(source.splits["train"])
    return SubsetPlan(word, total, sizes, seeds, split, groups, pieces, split_hash(source.splits))


def check_options(cfg: DictConfig) -> None:
    """Raise UserError for options that can be checked before the data is read."""
    if cfg.outputs != cfg.output:
        raise UserError(
            f"outputs={cfg.outputs}: the runs are written below output; leave it out, and give output=..."
        )
    if cfg.loader.subset is not None:
        raise UserError(
            f"loader.subset={cfg.loader.subset}: set for each training; leave it out, and give sizes=..."
        )
    if not cfg.confidence_level:
        raise UserError(
            "confidence_level=0: the result is an interval; give a level above 0, such as 0.9"
        )
    if cfg.resume is not None:
        raise UserError(
            "resume: seg.enough continues by its own command; leave it out, and give its output"
        )
    why = "the trainings run one after another, each on one device; give trainer.devices=1"
    check_one_device(cfg.trainer, why)


def choose_sizes(option: Sequence[int] | None, count: int, word: str) -> list[int]:
    """Return the sizes of the subsets by the option ``sizes``, increasing.

    Args:
        option: list of sizes; None: four by equal factors, from a quarter to all.
        count: number of images or groups that can be trained on.
        word: what these are.

    Raises:
        UserError: if the data is too small, or fewer than three sizes differ.
    """
    if count < LEAST_UNITS:
        raise UserError(
            f"data: the training split has {count} {word}; a learning curve needs {LEAST_UNITS} or more, as with more "
            "images, or a smaller data.val and data.test"
        )
    if option is None:
        smallest = max(SMALLEST, count // 4)
        sizes = sorted({round(s) for s in np.geomspace(smallest, count, DEFAULT_SIZES)})
    else:
        sizes = sorted(set(option))
    typed = f"sizes=[{','.join(map(str, sizes))}]"
    if sizes[-1] > count:
        raise UserError(f"{typed}: the training split has {count} {word}; give sizes up to {count}")
    if len(sizes) < LEAST_SIZES:
        raise UserError(
            f"{typed}: {len(sizes)} different size{'s' * (len(sizes) > 1)} of {count} {word}; a curve "
            f"needs {LEAST_SIZES} or more, sizes=[{max(1, count // 4)},{count // 2},{count}]"
        )
    return sizes


def train_subsets(cfg: DictConfig, plan: SubsetPlan, output: Path) -> None:
    """Train what is not finished, with the other workers of the command."""
    left = [
        piece for piece in plan.pieces if find_finished_run(output, piece.name, piece.hash) is None
    ]
    if kept := len(plan.pieces) - len(left):
        log.info(f"{kept} of {len(plan.pieces)} trainings are finished and kept")
    share_pieces(
        left,
        lambda piece: output / f".{piece.name}.lock",
        output,
        lambda piece: find_finished_run(output, piece.name, piece.hash) is not None,
        lambda piece: train_subset(cfg, plan, piece, output),
        "trainings",
    )


def train_subset(cfg: DictConfig, plan: SubsetPlan, piece: Subset, output: Path) -> None:
    """Delete an unfinished run of a training, and train it."""
    for folder in delete_unfinished_runs(output, piece.name):
        log.info(
            f"{relative_to_here(folder)} was not finished; it was deleted, and is trained again"
        )
    log.info(f"training   on {piece.size} of {plan.sizes[-1]} {plan.word}, seed {piece.seed}")
    train(subset_config(cfg, plan, piece))


def subset_config(cfg: DictConfig, plan: SubsetPlan, piece: Subset) -> DictConfig:
    """Return the config of seg.train for one training: its epochs have as many steps as those of all images."""
    own = copy.deepcopy(cfg)
    OmegaConf.set_struct(own, False)
    own.outputs, own.name, own.seed = str(cfg.output), piece.name, piece.seed
    for key in ENOUGH_OPTIONS:
        del own[key]
    # Steps of an epoch of all images; a smaller subset gives more crops of each
    batches = count_batches(plan.total * cfg.loader.repeats, cfg.loader.batch_size, 1)
    limit = cfg.trainer.get("limit_train_batches", 1.0)
    limit = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    own.loader.subset = piece.size
    own.loader.repeats = math.ceil(plan.total * cfg.loader.repeats / piece.images)
    own.trainer.limit_train_batches = limit
    if own.trainer.get("devices") == "auto":
        own.trainer.devices = 1
    for logger in own.logger.values():
        if "group" in logger and logger.group is None:
            logger.group = cfg.name or Path(cfg.output).resolve().name
    return own


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return each option that affects the trainings, but for sizes and seeds: dotted name -> JSON value."""
    left_out = (*ENOUGH_OPTIONS, *NEUTRAL_TRAIN_OPTIONS, "seed")
    tree = {name: node for name, node in plain_config(cfg).items() if name not in left_out}
    leaves = dotted_leaves(to_json_value(tree))
    return {name: value for name, value in leaves if name != "loader.workers"}


def collect_counts(plan: SubsetPlan, output: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the scored images, and TP, FP, FN of each training (M, S, N, C, 3).

    Raises:
        RunError: if a run is gone, or lacks its counts of the same images.
    """
    found: dict[tuple[int, int], ImageCounts] = {}
    for piece in plan.pieces:
        if (folder := find_finished_run(output, piece.name, piece.hash)) is None:
            raise RunError(f"{output}: its run {piece.name} is gone; repeat the command")
        faults: list[str] = []
        counts = read_counts(folder, {}, faults).get(plan.split)
        if counts is None or faults:
            raise RunError(
                f"{folder}: images.csv lacks the counts of {plan.split} ({'; '.join(faults) or 'no such rows'}); delete "
                "this folder and repeat the command"
            )
        found[piece.size, piece.seed] = counts
    first = next(iter(found.values()))
    if any(c.images != first.images or c.classes != first.classes for c in found.values()):
        raise RunError(f"{output}: its runs scored different images; give another output")
    pixels = [[found[size, seed].pixels for seed in plan.seeds] for size in plan.sizes]
    return list(first.images), np.array(pixels)
