"""Plan of a search: parse and check the command line of seg.tune, and compose each searched option at its limits."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from seg.cli.compose import build, checked, composed, parse, plain
from seg.cli.conf_files import nearest, shown
from seg.data.datamodule import DataModule
from seg.errors import UserError
from seg.hardware import one_device
from seg.multirun.folds import as_json, flat
from seg.multirun.search.space import Axis, axes, is_search, short_names
from seg.multirun.search.study import MEASURED
from seg.runs import folder, run_info
from seg.training.build import open_data

OWN = (  # not options of seg.train
    "search", "trials", "sampler", "pruner", "objectives", "timeout", "name", "outputs", "storage",
)  # fmt: skip
FREE = (  # options of seg.train that do not affect the scores
    *run_info.FREE, "loader.workers", "loader.memory", "loader.cache",
)  # fmt: skip


class Plan(NamedTuple):
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
    axes: list[Axis]
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


def planned(words: Sequence[str]) -> Plan:
    """Build the plan of a command line.

    Args:
        words: overrides of the command line.

    Raises:
        UserError: if an option is wrong, a searched one at any of its limits included.
    """
    # Separate the options of the search from those of the trainings.
    line = gathered(words)
    cfg = checked("tune", line)
    check_request(cfg)
    fixed = [w for w in line if root(parse([w])[0].key_or_group) not in OWN]
    searched = axes(cfg.search)
    check_axes(searched, fixed)
    # Compose a trial at the limits of each searched option.
    firsts = [axis.word(axis.samples()[0]) for axis in searched]
    base = tried([*fixed, *firsts], searched[0])
    for number, axis in enumerate(searched):
        others = firsts[:number] + firsts[number + 1 :]
        for value in axis.samples()[1:]:
            tried([*fixed, *others, axis.word(value)], axis)
    # Record the settings of the trainings, and check the objectives on their data.
    _, _, choices = composed("train", [*fixed, *firsts])
    settings = dict(flat(as_json(plain(base))))
    settings = {k: v for k, v in settings.items() if not within(k, FREE)}
    data = open_data(base)
    check_objectives(list(cfg.objectives), base, data)
    name = str(cfg.name or named(searched, choices))
    return Plan(cfg, name, fixed, searched, data, settings)


def gathered(words: Sequence[str]) -> list[str]:
    """Move searched options into the option ``search``, as Hydra would run them as a sweep.

    Args:
        words: overrides of the command line.

    Returns:
        The overrides, with all searched options in a single ``search=[...]``.

    Raises:
        UserError: if a word can't be parsed.
    """
    # Collect the searched options, typed directly or in a list.
    rest = [word for word in words if not is_search(word)]
    typed = [word for word in words if word not in rest]
    given = [word for word in rest if word.startswith("search=")]
    for word in given:
        value = parse([word])[0].value()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{word}: a list of words is needed, 'search=[\"a.b=choice(1,2)\"]'")
        typed = [*value, *typed]
    if not typed:
        return rest
    quoted = ",".join(QuotedString(word, Quote.double).with_quotes() for word in typed)
    return [*(word for word in rest if word not in given), f"search=[{quoted}]"]


def check_request(cfg: DictConfig) -> None:
    """Raise UserError for wrong options of the search itself."""
    if not cfg.search:
        raise UserError(
            "nothing is searched: give an option several values, such as 'optim.lr=tag(log, interval(1e-4, 1e-1))' "
            "or 'model.width=choice(8,16,32)'"
        )
    if cfg.trials < 1:
        raise UserError(f"trials={cfg.trials}: 1 or more are needed")
    minutes = cfg.timeout
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise UserError(f"timeout={shown(minutes)}: minutes above 0 are needed, or null")
    if cfg.storage is not None and not isinstance(cfg.storage, str):
        raise UserError("storage: a database's URL or a file is needed, or null")
    if cfg.name is not None and not folder.as_folder(str(cfg.name)).strip("._"):
        raise UserError(f"name={cfg.name}: letters or digits are needed; it names a folder")


def check_axes(searched: list[Axis], fixed: list[str]) -> None:
    """Raise UserError for an option that can't be searched, or is given twice."""
    given = {o.get_key_element().lstrip("+"): o.input_line for o in parse(fixed)}
    for axis in searched:
        if root(axis.name) in OWN:
            raise UserError(f"{axis.typed}: an option of the search itself; give one value")
        if axis.name == "seed":
            raise UserError(
                f"{axis.typed}: the best seed is best by chance; search with one seed, and train the best trial with "
                "several"
            )
        if axis.name in given:
            raise UserError(f"{axis.typed}: {given[axis.name]} is given too; leave one out")
        given[axis.name] = axis.typed


def tried(words: list[str], axis: Axis) -> DictConfig:
    """Compose the config of a trial.

    Args:
        words: overrides of the trial.
        axis: option under test, which an error names.

    Raises:
        UserError: if the overrides compose no valid config, or one for several devices.
    """
    try:
        cfg = checked("train", words)
    except UserError as error:
        whole = "a whole number is needed" in str(error) and "interval(" in axis.typed
        hint = f"; {axis.key}=int(interval(...)) gives whole ones" if whole else ""
        raise UserError(f"{axis.typed}: {error}{hint}") from error
    trainer = plain(cfg.trainer)
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not one_device(devices, nodes):
        raise UserError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}: a trial trains on one device; start the same "
            "command once per device, CUDA_VISIBLE_DEVICES=1 python -m seg.tune ..."
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
    metrics = build(
        base.metrics, "metrics", classes=source.classes, overlapping=overlapping, threshold=0.5
    )
    logits = torch.zeros(1, base.model.num_classes, 8, 8)
    metrics.update(logits, (logits if overlapping else logits[:, 0]).long())
    scores = dict.fromkeys(("dice", "loss", *metrics.compute()))
    known = [*(f"val/{name}" for name in scores), *MEASURED]
    for objective in map(str, objectives):
        if objective.startswith("test/"):
            raise UserError(
                f"objectives: {objective} would select on the test images; give "
                f"val/{objective.removeprefix('test/')}"
            )
        if objective not in known:
            names = ", ".join(name for name in known if name.count("/") < 2)
            raise UserError(
                f"objectives: no {objective}{nearest(objective, known)} (there are {names})"
            )


def root(key: str) -> str:
    """Return the first part of an override's key."""
    return re.split(r"[./@]", key)[0]


def within(key: str, names: Sequence[str]) -> bool:
    """Return True if a dotted name is one of ``names``, or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def named(searched: list[Axis], choices: dict[str, str]) -> str:
    """Return the default name of a study: the model and the searched options."""
    short = short_names(searched)
    model = [] if "model" in short else [choices["model"]]
    return "-".join([*model, *short.values()])
