"""Data set for a trained run: its own or another one, checked against the run."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import instantiate_node, plain_config
from seg.cli.validation import argument_names, check_call, import_target
from seg.data.datamodule import DataModule
from seg.data.sections import find_sections
from seg.errors import RunError, UserError
from seg.runs import folder
from seg.runs.load import LoadedRun
from seg.runs.reader import name_config_file
from seg.runs.safe_loading import check_targets


def check_run_node(node: Any, group: str, run: LoadedRun, package: str) -> None:
    """Raise RunError unless a node of the run's config names a class of a package, and arguments that it takes."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise RunError(f"{run.checkpoint}: its config has no {group}")
    check_targets(node, run.checkpoint, packages=(package,))
    try:
        check_call(group, node)
    except UserError as error:
        raise RunError(f"{run.checkpoint}: {error}") from error


def open_run_data(
    cfg: DictConfig,
    run: LoadedRun,
    split: str,
    chosen: dict[str, Any],
    option: str = "data.split",
) -> DataModule:
    """Return the data of a split; ``all`` is every image of the data.

    Args:
        cfg: with ``eval_batch_size`` and ``workers``.
        run: which is evaluated.
        split: train, val, test or all.
        chosen: the data's config; see ``choose_data``.
        option: that names the split, for messages.

    Raises:
        UserError: if the data's classes or task aren't the run's, it has no such split, or images of the split trained a
            member of an ensemble.
        RunError: if the run's config names no data that can be used.
    """
    # Instantiate the data; an error in the run's own config names the run's file
    own = chosen == run.config.get("data")
    with name_config_file(run.checkpoint) if own else nullcontext():
        source = instantiate_node(OmegaConf.create(chosen), "data")
    # Classes and task must be those that the network was trained on
    if list(source.classes) != run.classes:
        raise UserError(f"the data's classes {source.classes} aren't the run's {run.classes}")
    if (source.task == "overlapping") != run.overlapping:
        raise UserError(
            f"data.task={source.task}: the run was trained on data.task={run.task}; classes overlap in both "
            "or in neither"
        )
    # Neighbours must be those that the network sees
    sections = find_sections(source)
    if (neighbours := sections.neighbours if sections else 0) != run.intensity.neighbours:
        raise UserError(
            f"data.neighbours={neighbours}: the run was trained on data.neighbours={run.intensity.neighbours}; give its own "
            "number, and data of stacks if it is above 0 (data=folder or data=isbi2012)"
        )
    # Keep only the chosen split, after checking that no member of an ensemble trained on it
    splits = {"all": [name for names in source.splits.values() for name in names]} | source.splits
    if split not in splits:
        names = ", ".join(source.splits)
        raise UserError(
            f"{option}={split}: this data has {names} and all; give {option} one of them"
        )
    check_unseen_images(run, split, chosen, splits[split])
    source.splits = {split: splits[split]}
    return DataModule(
        source,
        eval_batch_size=cfg.eval_batch_size,
        workers=cfg.workers,
        intensity=run.intensity,
        memory=0.5,  # larger data are read again, large images row by row
    )


def choose_data(given: DictConfig, run: LoadedRun) -> tuple[str, dict[str, Any]]:
    """Return the split and the data's config: that of ``data=``, or the run's own with the given options.

    Without ``data.split`` it is ``val`` of the run's own data, and ``all`` of other data.
    """
    data = plain_config(given)
    split = data.pop("split")
    # Other data, chosen by data=: unset classes, borders, nodata and neighbours are taken from the run
    own = run.config.get("data", {})
    if data.get("_target_") is not None:
        bordered = bool(own.get("border_class"))
        if "border" in data and data["task"] == run.task == "instances":
            data["border"] = own.get("border") if data["border"] is None else data["border"]
            data["border_class"] = bordered
        if "classes" in data and data["classes"] is None:
            data["classes"] = run.classes[:-1] if bordered else run.classes
        if "nodata" in data and data["nodata"] is None:
            data["nodata"] = own.get("nodata")
        if "neighbours" in data:
            data["neighbours"] = data["neighbours"] or run.intensity.neighbours
        return split or ("val" if is_own_data(data, own) else "all"), data
    # The run's own data: options that are null keep the run's value
    data = {key: value for key, value in data.items() if value is not None}
    check_run_node(own, "data", run, "seg.data")
    takes = (
        argument_names(import_target("data", own["_target_"])) or []
    )  # options that are newer than the run count, too
    unknown = sorted(set(data) - set(own) - set(takes))
    if unknown:
        raise UserError(
            f"data.{unknown[0]}: the run's data has no such option; it has {', '.join(own)}"
        )
    data = own | data
    return split or ("val" if is_own_data(data, own) else "all"), data


def is_own_data(data: dict[str, Any], own: dict[str, Any]) -> bool:
    """Return True if the config of some data names the place of the run's own data."""
    places = [
        [Path(str(node.get(key))).resolve() for key in ("root", "table", "annotations")]
        for node in (data, own)
    ]
    return data.get("_target_") == own.get("_target_") and places[0] == places[1]


def check_unseen_images(run: LoadedRun, split: str, data: dict[str, Any], names: list[str]) -> None:
    """Raise UserError if images of the run's own data trained a member of an ensemble."""
    if not is_own_data(data, run.config["data"]):
        return  # other data: its names may occur in both by chance
    # Images that a member trained on would give scores that are too good
    if count := len(run.seen.intersection(names)):
        folds = run.checkpoint.name == folder.CROSSVAL_FILE
        raise UserError(
            f"data.split={split}: {count} of its {len(names)} images trained a member of this ensemble"
            f"{f'; its out-of-fold scores are in {run.checkpoint}' * folds}; give data.split=test or other data"
        )
