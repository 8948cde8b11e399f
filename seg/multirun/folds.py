"""Folder of a cross-validation: its folds, its record, and how it is continued.

crossval.json records the settings, so that the same command continues and any other is refused. Each fold is a run
folder next to it, found by its run.json.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from seg import files
from seg.cli.compose import instantiate_node, plain_config
from seg.data.datasets.base import DataSource
from seg.data.partition import Splits, split_hash
from seg.data.splits import check_training_splits
from seg.errors import RunError, UserError
from seg.multirun.trainings import find_finished_run
from seg.runs import records
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.record import read_promise, read_quality
from seg.runs.resumable import read_resumable_record
from seg.runs.safe_loading import CROSSVAL_LIMIT

CROSSVAL_OPTIONS = (
    "output",
    "save",
    "overlap",
    "confidence_level",
    "objects",
)  # not options of seg.train
NEUTRAL_TRAIN_OPTIONS = (
    "outputs",
    "logger",
    "panels",
    "save_checkpoints",
    "tile",
    "dry",
)  # options of seg.train that do not affect the weights
OUT_OF_FOLD = "out-of-fold"


class FoldPlan(NamedTuple):
    """Splits and run names of all folds.

    Attributes:
        splits: of each fold.
        hashes: of each fold's splits.
        names: of each fold's run.
        fold_of: image name -> fold that validates it, without the images of the test split.
    """

    splits: list[Splits]
    hashes: list[str]
    names: list[str]
    fold_of: dict[str, int]


def plan_folds(cfg: DictConfig) -> FoldPlan:
    """Split the data into folds.

    Raises:
        UserError: if the folds do not validate each image outside the test split exactly once, or two images
            would share a file.
    """
    # Each fold must train on exactly the images that the other folds validate.
    splits = [open_fold(cfg, fold).splits for fold in range(cfg.data.folds)]
    check_training_splits(splits[0])
    fold_of = {name: fold for fold, split in enumerate(splits) for name in split["val"]}
    for fold, split in enumerate(splits):
        others = [name for name, other in fold_of.items() if other != fold]
        if sorted(split["train"]) != sorted(others) or split.get("test") != splits[0].get("test"):
            raise UserError(
                f"data.fold={fold}: its training images aren't those that the other folds validate; a "
                "cross-validation needs disjoint folds that cover all images"
            )
    # The predictions of all folds go to one folder, so that file names must differ.
    owners: dict[Path, str] = {}
    for name in fold_of:
        if (other := owners.setdefault(prediction_file(name), name)) != name:
            raise UserError(
                f"data: {other!r} and {name!r} would share a file of {OUT_OF_FOLD}; rename one"
            )
    prefix = f"{cfg.name}-" if cfg.name else ""
    names = [f"{prefix}fold-{fold}" for fold in range(len(splits))]
    return FoldPlan(splits, [split_hash(split) for split in splits], names, fold_of)


def open_fold(cfg: DictConfig, fold: int) -> DataSource:
    """Open the data with the given fold for validation."""
    return instantiate_node(OmegaConf.create(plain_config(cfg.data) | {"fold": fold}), "data")


def prediction_file(name: str) -> Path:
    """Return the file name of an image's prediction; folders in the name are joined by two underscores."""
    return Path(files.short_name(f"{name.replace('/', '__')}.png"))


def open_record(cfg: DictConfig, plan: FoldPlan, output: Path) -> dict[str, Any]:
    """Open the folder's record, or write a new one.

    Args:
        cfg: config of seg.crossval.
        plan: folds of the data.
        output: folder of the cross-validation.

    Returns:
        The contents of crossval.json, of status finished if nothing is left to do, otherwise running.

    Raises:
        UserError: if the folder belongs to other settings or images, or is no cross-validation's.
        RunError: if a finished record is damaged.
    """
    # Record of this command: a change of the settings is refused, other options are replaced
    options = training_settings(cfg)
    now = {
        "status": "running",
        "settings": options,
        "settings_hash": hashlib.sha256(json.dumps(options).encode()).hexdigest()[:12],
        "options": to_json_value(
            {name: plain_config(cfg)[name] for name in CROSSVAL_OPTIONS if name != "output"}
        ),
        "split_hashes": plan.hashes,
        "images": plan.fold_of,
    }
    # Continue an earlier record; it is finished if all folds, predictions and options are in place.
    file = output / CROSSVAL_FILE
    if old := read_resumable_record(file, now, "seg.crossval", CROSSVAL_LIMIT):
        if old["split_hashes"] != now["split_hashes"]:
            raise UserError(
                f"output={output}: begun with other images, or other image names, than the data has now; give "
                "another output"
            )
        whole = all(find_finished_fold(output, plan, fold) for fold in range(len(plan.names)))
        whole = whole and (output / OUT_OF_FOLD).is_dir() and old["options"] == now["options"]
        if old["status"] == "finished" and whole:
            check_scores(old, file)
            return old
    else:
        check_crossval_folder(output)
    records.write_json(file, now)
    return now


def check_crossval_folder(output: Path) -> None:
    """Raise UserError if a folder holds anything but a cross-validation."""
    entries = list(output.iterdir()) if output.is_dir() else []
    if (
        entries
        and not (output / CROSSVAL_FILE).is_file()
        and not all(e.name == ".lock" or files.is_unfinished(e) for e in entries)
    ):
        raise UserError(
            f"output={output}: holds something else; give a new folder, or one of an earlier seg.crossval"
        )


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return each option that affects the trainings: dotted name -> JSON value."""
    tree = {
        name: node
        for name, node in plain_config(cfg).items()
        if name not in (*CROSSVAL_OPTIONS, *NEUTRAL_TRAIN_OPTIONS)
    }
    leaves = dotted_leaves(to_json_value(tree))
    return {name: v for name, v in leaves if name not in ("loader.workers", "data.fold")}


def to_json_value(value: Any) -> Any:
    """Return a value as it comes back from a JSON file: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def dotted_leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts: dotted name and value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from dotted_leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def check_scores(record: dict[str, Any], file: Path) -> None:
    """Raise RunError unless all scores of a finished cross-validation are present and are numbers."""
    try:
        # Collect all numbers of the record
        tables = [record["mean"], record["sd"], *(fold["metrics"] for fold in record["folds"])]
        pooled = [record[part] for part in ("pooled", "test") if part in record]
        tables += [part["metrics"] for part in pooled]
        ends = [end for part in pooled for end in part["intervals"].values()]
        # Check their types; None stands for nan
        good = all(map(is_score, (value for table in tables for value in table.values())))
        good = good and all(len(end) == 2 and all(map(is_score, end)) for end in ends)
        good = good and all(type(part["images"]) is int for part in pooled)
        good = good and all(isinstance(name, str) for name in record["classes"])
        good = good and all(type(fold["fold"]) is int for fold in record["folds"])
        good = good and {*record["mean"]} == {*record["sd"]} and "pooled" in record
        read_promise(record)
        read_quality(record, len(record["classes"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error!r}); give another output") from error
    if not good:
        raise RunError(f"{file}: its scores are damaged; give another output")


def is_score(value: Any) -> bool:
    """Return True for a number, or None, which stands for nan."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def find_finished_fold(output: Path, plan: FoldPlan, fold: int) -> Path | None:
    """Return the folder of a fold's finished run; None if there is none."""
    return find_finished_run(output, plan.names[fold], plan.hashes[fold])


def finished_fold(output: Path, plan: FoldPlan, fold: int) -> Path:
    """Return the folder of a fold's finished run.

    Raises:
        RunError: if there is none.
    """
    if (folder := find_finished_fold(output, plan, fold)) is None:
        raise RunError(f"{output}: its run {plan.names[fold]} is gone; repeat the command")
    return folder
