"""What a command line of seg.tune asks for: read, checked, and each option searched tried at its ends."""

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

OWN = (  # not of the trainings
    "search", "trials", "sampler", "pruner", "objectives", "timeout", "name", "outputs", "storage",
)  # fmt: skip
FREE = (  # of the trainings, but no score follows from them
    *run_info.FREE, "loader.workers", "loader.memory", "loader.cache",
)  # fmt: skip


class Plan(NamedTuple):
    """What a command line asks for, checked.

    Attributes:
        cfg: of this command.
        name: of the study.
        fixed: words of seg.train that each trial has.
        axes: what is searched.
        data: of a trial.
        settings: each option of the first choice, by its dotted name: a study keeps them.
    """

    cfg: DictConfig
    name: str
    fixed: list[str]
    axes: list[Axis]
    data: DataModule
    settings: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What the study stays with."""
        return {
            "searched": {axis.name: str(axis) for axis in self.axes},
            "objectives": list(self.cfg.objectives),
            "settings": self.settings,
        }


def planned(words: Sequence[str]) -> Plan:
    """What the line asks for.

    Raises:
        UserError: when it can't be; each option searched is checked as any other, at its ends.
    """
    line = gathered(words)
    cfg = checked("tune", line)
    check_request(cfg)
    fixed = [w for w in line if root(parse([w])[0].key_or_group) not in OWN]
    searched = axes(cfg.search)
    check_axes(searched, fixed)
    firsts = [axis.word(axis.samples()[0]) for axis in searched]
    base = tried([*fixed, *firsts], searched[0])
    for number, axis in enumerate(searched):
        others = firsts[:number] + firsts[number + 1 :]
        for value in axis.samples()[1:]:
            tried([*fixed, *others, axis.word(value)], axis)
    _, _, choices = composed("train", [*fixed, *firsts])
    settings = dict(flat(as_json(plain(base))))
    settings = {k: v for k, v in settings.items() if not within(k, FREE)}
    data = open_data(base)
    check_objectives(list(cfg.objectives), base, data)
    name = str(cfg.name or named(searched, choices))
    return Plan(cfg, name, fixed, searched, data, settings)


def gathered(words: Sequence[str]) -> list[str]:
    """A command line with what it searches in the option ``search``, since Hydra takes it for a sweep.

    Raises:
        UserError: when a word can't be read.
    """
    rest = [word for word in words if not is_search(word)]
    typed = [word for word in words if word not in rest]
    given = [word for word in rest if word.startswith("search=")]
    for word in given:
        value = parse([word])[0].value()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UserError(f"{word}: a list of words is needed, 'search=[\"a.b=choice(1,2)\"]'")
        typed = [*value, *typed]
    if not typed:
        return rest
    quoted = ",".join(QuotedString(word, Quote.double).with_quotes() for word in typed)
    return [*(word for word in rest if word not in given), f"search=[{quoted}]"]


def check_request(cfg: DictConfig) -> None:
    """Raises UserError for what can be known of the search itself."""
    if not cfg.search:
        raise UserError(
            "nothing is searched: give an option several values, as 'optim.lr=tag(log, interval(1e-4, 1e-1))' "
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
    """Raises UserError for an option that can't be searched, or is given twice."""
    given = {o.get_key_element().lstrip("+"): o.input_line for o in parse(fixed)}
    for axis in searched:
        if root(axis.name) in OWN:
            raise UserError(f"{axis.typed}: an option of the search itself; give one value")
        if axis.name == "seed":
            raise UserError(
                f"{axis.typed}: the best seed is luck; search with one, and train the best trial with several"
            )
        if axis.name in given:
            raise UserError(f"{axis.typed}: {given[axis.name]} stands there too; leave one out")
        given[axis.name] = axis.typed


def tried(words: list[str], axis: Axis) -> DictConfig:
    """The config of a trial with these words.

    Raises:
        UserError: when there is none; tells what was searched.
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
            "command once for each, as CUDA_VISIBLE_DEVICES=1 python -m seg.tune ..."
        )
    return cfg


def check_objectives(objectives: list[Any], base: DictConfig, data: DataModule) -> None:
    """Raises UserError unless each is measured, and stands there once."""
    if not objectives or len(set(map(str, objectives))) < len(objectives):
        raise UserError(
            f"objectives=[{','.join(map(str, objectives))}]: one or more different ones"
        )
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
                f"objectives: {objective} would choose by the images that are to judge the choice; take "
                f"val/{objective.removeprefix('test/')}"
            )
        if objective not in known:
            some = ", ".join(name for name in known if name.count("/") < 2)
            raise UserError(
                f"objectives: no {objective}{nearest(objective, known)} (there are {some})"
            )


def root(key: str) -> str:
    return re.split(r"[./@]", key)[0]


def within(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted name is one of these, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def named(searched: list[Axis], choices: dict[str, str]) -> str:
    """The study's name: the model, and what is searched."""
    short = short_names(searched)
    model = [] if "model" in short else [choices["model"]]
    return "-".join([*model, *short.values()])
