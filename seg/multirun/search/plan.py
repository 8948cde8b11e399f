"""Plan of a search: parse and check the command line of seg.tune, and compose each searched option at its limits."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from seg.cli.compose import (
    compose_checked,
    compose_config,
    instantiate_node,
    parse_overrides,
    plain_config,
)
from seg.cli.conf_files import did_you_mean, format_option_value
from seg.cli.search_arguments import gather_searched
from seg.data.datamodule import DataModule
from seg.errors import NotWholeNumber, UserError
from seg.multirun.folds import dotted_leaves, to_json_value
from seg.multirun.search.space import SearchDimension, parse_dimensions, short_names
from seg.multirun.search.study import MEASURED_OBJECTIVES
from seg.multirun.trainings import check_one_device
from seg.runs import folder, run_info
from seg.training.build import build_data

SEARCH_OPTIONS = (  # not options of seg.train
    "search", "trials", "sampler", "pruner", "objectives", "timeout", "name", "outputs", "storage",
)  # fmt: skip
NEUTRAL_TRIAL_OPTIONS = (  # options of seg.train that do not affect the scores
    *run_info.NEUTRAL_OPTIONS, "loader.workers", "loader.memory", "loader.cache",
)  # fmt: skip


class SearchPlan(NamedTuple):
    """Checked plan of a search.

    Attributes:
        cfg: config of seg.tune.
        name: of the study.
        fixed: overrides of seg.train that all trials share.
        axes: searched options.
        data: of a trial.
        settings: options of the first trial, dotted name -> value, which the study records.
    """

    cfg: DictConfig
    name: str
    fixed: list[str]
    axes: list[SearchDimension]
    data: DataModule
    settings: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts that must stay the same when a study is continued."""
        return {
            "searched": {axis.name: str(axis) for axis in self.axes},
            "objectives": list(self.cfg.objectives),
            "settings": self.settings,
        }


def plan_search(words: Sequence[str]) -> SearchPlan:
    """Build the plan of a command line.

    Args:
        words: overrides of the command line.

    Raises:
        UserError: if an option is wrong, a searched one at any of its limits included.
    """
    # Separate the options of the search from those of the trainings.
    line = gather_searched(words)
    cfg = compose_checked("tune", line)
    check_search_options(cfg)
    fixed = [
        w for w in line if key_root(parse_overrides([w])[0].key_or_group) not in SEARCH_OPTIONS
    ]
    searched = parse_dimensions(cfg.search)
    check_axes(searched, fixed)
    # Compose a trial at the limits of each searched option.
    firsts = [axis.word(axis.samples()[0]) for axis in searched]
    base = compose_trial([*fixed, *firsts], searched[0])
    for number, axis in enumerate(searched):
        others = firsts[:number] + firsts[number + 1 :]
        for value in axis.samples()[1:]:
            compose_trial([*fixed, *others, axis.word(value)], axis)
    # Record the settings of the trainings, and check the objectives on their data.
    choices = compose_config("train", [*fixed, *firsts]).choices
    settings = dict(dotted_leaves(to_json_value(plain_config(base))))
    settings = {k: v for k, v in settings.items() if not is_within(k, NEUTRAL_TRIAL_OPTIONS)}
    data = build_data(base)
    check_objectives(list(cfg.objectives), base, data)
    name = str(cfg.name or default_study_name(searched, choices))
    return SearchPlan(cfg, name, fixed, searched, data, settings)


def check_search_options(cfg: DictConfig) -> None:
    """Raise UserError for wrong options of the search itself."""
    if not cfg.search:
        raise UserError(
            "nothing is searched: give an option several values, such as 'optim.lr=tag(log, interval(1e-4, 1e-1))' "
            "or 'model.width=choice(8,16,32)'"
        )
    if cfg.trials < 1:
        raise UserError(f"trials={cfg.trials}: 1 or more are needed")
    # nan fails both comparisons
    minutes = cfg.timeout
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise UserError(
            f"timeout={format_option_value(minutes)}: minutes above 0 are needed, or null"
        )
    if cfg.storage is not None and not isinstance(cfg.storage, str):
        raise UserError("storage: a database's URL or a file is needed, or null")
    if cfg.name is not None and not folder.folder_name(str(cfg.name)).strip("._"):
        raise UserError(f"name={cfg.name}: letters or digits are needed; it names a folder")


def check_axes(searched: list[SearchDimension], fixed: list[str]) -> None:
    """Raise UserError for an option that can't be searched, or is given twice."""
    # Overrides by name, to which each searched option is added
    given = {o.get_key_element().lstrip("+"): o.input_line for o in parse_overrides(fixed)}
    for axis in searched:
        if key_root(axis.name) in SEARCH_OPTIONS:
            raise UserError(f"{axis.typed}: an option of the search itself; give one value")
        if axis.name == "seed":
            raise UserError(
                f"{axis.typed}: the best seed is best by chance; search with one seed, and train the best trial with "
                "several"
            )
        if axis.name in given:
            raise UserError(f"{axis.typed}: {given[axis.name]} is given too; leave one out")
        given[axis.name] = axis.typed


def compose_trial(words: list[str], axis: SearchDimension) -> DictConfig:
    """Compose the config of a trial.

    Args:
        words: overrides of the trial.
        axis: option under test, which an error names.

    Raises:
        UserError: if the overrides compose no valid config, or one for several devices.
    """
    try:
        cfg = compose_checked("train", words)
    except UserError as error:
        whole = isinstance(error, NotWholeNumber) and "interval(" in axis.typed
        hint = f"; {axis.key}=int(interval(...)) gives whole ones" if whole else ""
        raise UserError(f"{axis.typed}: {error}{hint}") from error
    # Ranks on further devices would not know the trial
    check_one_device(
        cfg.trainer,
        "a trial trains on one device; start the same command once per device, CUDA_VISIBLE_DEVICES=1 python -m seg.tune ...",
    )
    return cfg


def check_objectives(objectives: list[Any], base: DictConfig, data: DataModule) -> None:
    """Raise UserError unless all objectives are known, distinct, and not of the test split."""
    if not objectives or len(set(map(str, objectives))) < len(objectives):
        raise UserError(
            f"objectives=[{','.join(map(str, objectives))}]: give one or more distinct objectives"
        )
    # Compute the metrics of an empty image, for their names.
    source, overlapping = data.source, data.source.task == "overlapping"
    metrics = instantiate_node(
        base.metrics, "metrics", classes=source.classes, overlapping=overlapping, threshold=0.5
    )
    logits = torch.zeros(1, base.model.num_classes, 8, 8)
    metrics.update(logits, (logits if overlapping else logits[:, 0]).long())
    scores = dict.fromkeys(("dice", "loss", *metrics.compute()))
    known = [*(f"val/{name}" for name in scores), *MEASURED_OBJECTIVES]
    # Selection on the test split would make its scores too good
    for objective in map(str, objectives):
        if objective.startswith("test/"):
            raise UserError(
                f"objectives: {objective} would select on the test images; give "
                f"val/{objective.removeprefix('test/')}"
            )
        if objective not in known:
            names = ", ".join(name for name in known if name.count("/") < 2)
            raise UserError(
                f"objectives: no {objective}{did_you_mean(objective, known)} (there are {names})"
            )


def key_root(key: str) -> str:
    """Return the first part of an override's key."""
    return re.split(r"[./@]", key)[0]


def is_within(key: str, names: Sequence[str]) -> bool:
    """Return True if a dotted name is one of ``names``, or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def default_study_name(searched: list[SearchDimension], choices: dict[str, str]) -> str:
    """Return the default name of a study: the model and the searched options."""
    short = short_names(searched)
    model = [] if "model" in short else [choices["model"]]
    return "-".join([*model, *short.values()])
