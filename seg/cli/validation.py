"""Validate a composed config against the files of conf/ and the constructors that it names.

The signature is the schema: an option must be an argument of the constructor that its node's ``_target_`` names,
and a value must fit that argument's annotation, or, without an annotation, the type of the file's own value.
Options that have no constructor, or one of another library, have their ranges in ``OPTION_RANGES``.

Legend: trees are plain dicts and lists; ``known`` is the corresponding node in the files of conf/, without the
options of the command line or of an experiment.
"""

import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from hydra._internal.utils import _locate
from hydra.core.override_parser.types import Override
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import SchemaError

from seg.cli.conf_files import (
    CONF,
    HYDRA_KEYS,
    did_you_mean,
    format_option_value,
    join_some,
    own_options,
)
from seg.cli.paths import NODATA_OPTIONS
from seg.cli.signatures import Arguments, read_arguments
from seg.errors import NotWholeNumber, UserError, missing_extra_hint
from seg.ranges import annotation_ranges

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word",
         list: "a list", dict: "a group of options"}  # fmt: skip
ERROR_TYPE_NAMES = {"bool_type": TYPE_NAMES[bool], "int_type": TYPE_NAMES[int], "float_type": TYPE_NAMES[float],
          "string_type": TYPE_NAMES[str], "list_type": TYPE_NAMES[list],
          "tuple_type": TYPE_NAMES[list], "dict_type": TYPE_NAMES[dict]}  # fmt: skip
RANGE_ERRORS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
MAX_COUNT = 2**63 - 1  # largest number of elements of an array


class OptionRange(NamedTuple):
    """Range of an option.

    Attributes:
        needed: the range in words, for messages: "a whole number of 1 or more".
        holds: function of a value; True if the value is in the range.
    """

    needed: str
    holds: Callable[[Any], bool]


NULL_RANGE = OptionRange("null", lambda v: v is None)
WORD_RANGE = OptionRange("a word", lambda v: isinstance(v, str) and v.strip() != "")
NAME_RANGE = OptionRange("a name", lambda v: is_number(v) or WORD_RANGE.holds(v))


def any_range(*limits: OptionRange) -> OptionRange:
    """Return the union of limits."""
    needed = ", or ".join(limit.needed for limit in limits)
    return OptionRange(needed, lambda v: any(limit.holds(v) for limit in limits))


PATH_RANGE = any_range(WORD_RANGE, NULL_RANGE)


def int_range(low: int, high: int = MAX_COUNT) -> OptionRange:
    """Return the limit of integers from ``low`` to ``high``, both included."""
    span = f"{low} or more" if high == MAX_COUNT else f"{low} to {high}"
    return OptionRange(f"a whole number of {span}", lambda v: type(v) is int and low <= v <= high)


POSITIVE_INT = int_range(1)
BATCHES_RANGE = any_range(
    OptionRange("a number of batches, 1 or more", lambda v: type(v) is int and v >= 1),
    OptionRange("a share above 0, to 1.0", lambda v: isinstance(v, float) and 0 < v <= 1),
)


def choice_range(*choices: str) -> OptionRange:
    """Return the limit of one of several words."""
    return OptionRange(f"one of {', '.join(choices)}", lambda v: v in choices)


def words_range(*choices: str) -> OptionRange:
    """Return the limit of lists of some words."""
    needed = f"a list of {', '.join(choices)}"
    return OptionRange(needed, lambda v: isinstance(v, list) and all(word in choices for word in v))


SPLIT_NAMES = choice_range("train", "val", "test", "all")


def share_range(of_none: str = "") -> OptionRange:
    """Return the limit of numbers in [0, 1); ``of_none`` says what 0 means."""
    return OptionRange(
        f"a number from 0{of_none} to below 1", lambda v: is_number(v) and 0 <= v < 1
    )


SHARE_RANGE = share_range()
PAIR_RANGE = OptionRange(
    "a pair of numbers from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(SHARE_RANGE.holds, v)),
)
SPACING_RANGE = OptionRange(
    "a list of two numbers above 0, [height, width] in um",
    lambda v: (
        isinstance(v, list) and len(v) == 2 and all(is_number(x) and 0 < x < math.inf for x in v)
    ),
)
WORKERS_RANGE = int_range(0, 1024)  # not the cores of this machine: a run may train on another one


def float_range(low: float, high: float = math.inf, *, open_: bool = False) -> OptionRange:
    """Return the limit of numbers from ``low`` to ``high``; ``open_`` excludes both ends."""
    if open_:
        span = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        return OptionRange(f"a number {span}", lambda v: is_number(v) and low < v < high)
    span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    return OptionRange(f"a number of {span}", lambda v: is_number(v) and low <= v <= high)


def word_range(word: str) -> OptionRange:
    """Return the limit of a single word."""
    return OptionRange(word, lambda v: v == word)


def is_words(value: Any) -> bool:
    """Return True for a list of texts that are not blank."""
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def is_duration(value: Any) -> bool:
    """Return True for ``days:hours:minutes:seconds``, 00:01:30:00."""
    return isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None


def is_budget(value: Any) -> bool:
    """Return True for hours, minutes and seconds of 10 s or more: 30m, 2h, 1h30m, 90s."""
    return isinstance(value, str) and (budget_seconds(value) or 0) >= 10


def budget_seconds(text: str) -> int | None:
    """Return the seconds of a time such as 1h30m; None if it is none."""
    match = re.fullmatch(r"(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?", text)
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (hours * 60 + minutes) * 60 + seconds


def is_age(value: Any) -> bool:
    """Return True for a number of hours, days or weeks: 12h, 30d, 8w."""
    return isinstance(value, str) and re.fullmatch(r"\d{1,6}[hdw]", value) is not None


def is_sizes(value: Any) -> bool:
    """Return True for a list of whole numbers of 1 or more that is not empty."""
    return isinstance(value, list) and value != [] and all(map(POSITIVE_INT.holds, value))


def is_risk_bound(value: Any) -> bool:
    """Return True for a bound of a risk, missed:0.1 or false:0.05."""
    from seg.metrics.risk_control import parse_risk_bound  # here: it imports NumPy

    return isinstance(value, str) and parse_risk_bound(value) is not None


def is_nodata(value: Any) -> bool:
    """Return True for a number, which may be NaN but not infinite, and for nan and none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (number and not math.isinf(value)) or value in ("nan", "none")


OPTION_RANGES = {  # dotted name of an option -> its range
    "seed": int_range(0, 2**32 - 1),
    "name": any_range(NAME_RANGE, NULL_RANGE),
    "outputs": WORD_RANGE,
    "init": any_range(WORD_RANGE, NULL_RANGE),
    "resume": any_range(WORD_RANGE, NULL_RANGE),
    "extend": any_range(choice_range("hold", "restart"), NULL_RANGE),
    "two_class_logits": any_range(OptionRange("1", lambda v: v == 1), OptionRange("2", lambda v: v == 2)),
    "patience": any_range(OptionRange("a number of validations, 1 or more", POSITIVE_INT.holds), NULL_RANGE),
    "ema": any_range(float_range(0, 1, open_=True), NULL_RANGE),
    "on_nonfinite": choice_range("stop", "skip"),
    "save_checkpoints": choice_range("weights", "full"),
    "panels": int_range(0),
    "save_predictions": int_range(0),
    "optim.lr": float_range(0),
    "optim.weight_decay": float_range(0),
    "optim.momentum": SHARE_RANGE,
    "optim.dampening": float_range(0, 1),
    "optim.betas": PAIR_RANGE,
    "optim.eps": float_range(0),
    "threshold": any_range(float_range(0, 1, open_=True), word_range("best"), OptionRange("missed:0.1, false:0.05 (any share between 0 and 1)", is_risk_bound), NULL_RANGE),
    "loader.workers": OptionRange(WORKERS_RANGE.needed, lambda v: v is None or WORKERS_RANGE.holds(v)),  # null: in seg.rerun
    "workers": WORKERS_RANGE,
    **dict.fromkeys(NODATA_OPTIONS, any_range(OptionRange("a number, nan or none", is_nodata), NULL_RANGE)),
    "accelerator": choice_range("auto", "cpu", "gpu", "mps"),
    "run": any_range(WORD_RANGE, OptionRange("a list of them", lambda v: isinstance(v, list) and all(map(WORD_RANGE.holds, v))), NULL_RANGE),
    "input": any_range(WORD_RANGE, NULL_RANGE),
    "output": any_range(WORD_RANGE, NULL_RANGE),
    "loader.cache": PATH_RANGE,
    "spacing": any_range(SPACING_RANGE, NULL_RANGE),
    "data.spacing": any_range(SPACING_RANGE, NULL_RANGE),
    "data.root": PATH_RANGE,
    "data.table": PATH_RANGE,
    "data.images": WORD_RANGE,
    "data.masks": WORD_RANGE,
    "data.url": PATH_RANGE,
    "data.pair_by": PATH_RANGE,
    "data.group_by": PATH_RANGE,
    "data.split": any_range(SPLIT_NAMES, NULL_RANGE),
    "model.depth": any_range(int_range(1, 12), NULL_RANGE),
    "engine": choice_range("torch", "onnx", "openvino"),
    "exported": any_range(WORD_RANGE, NULL_RANGE),
    "max_loss": float_range(0),
    "calibration.split": SPLIT_NAMES,
    "calibration.images": POSITIVE_INT,
    "tta": choice_range("none", "mirror", "flips", "d4"),
    "confidence_level": share_range(" (no intervals)"),
    "look": any_range(word_range("auto"), SHARE_RANGE),
    "sizes": any_range(OptionRange("a list of whole numbers of 1 or more, [4,8,16]", is_sizes), NULL_RANGE),
    "seeds": int_range(2, 1000),
    "objects.split_neck_px": any_range(float_range(0), NULL_RANGE),
    "objects.min_size": POSITIVE_INT,
    "eval_batch_size": POSITIVE_INT,
    "tile": any_range(word_range("auto"), POSITIVE_INT, NULL_RANGE),
    "overlap": any_range(word_range("auto"), int_range(0)),
    "batch": POSITIVE_INT,
    "probabilities": choice_range("float32", "uint16", "uint8"),
    "pyramid": any_range(choice_range("auto"), OptionRange("true or false", lambda v: isinstance(v, bool))),
    "depth": any_range(POSITIVE_INT, NULL_RANGE),
    "rounds": POSITIVE_INT,
    "format": choice_range("onnx", "torch", "bioimageio"),
    **dict.fromkeys(("bioimageio.image", "bioimageio.license", "bioimageio.name", "bioimageio.description"), any_range(WORD_RANGE, NULL_RANGE)),
    "bioimageio.authors": OptionRange("a list of names", is_words),
    "tolerance": float_range(0, open_=True),
    "opset": int_range(12, 20),  # 20: the last that PyTorch's TorchScript exporter writes
    "n": POSITIVE_INT,
    "order": choice_range("quality", "random"),
    "epoch": int_range(0),
    "status": words_range("finished", "running", "killed", "failed", "interrupted", "pruned", "damaged"),
    "clean": words_range("failed", "interrupted", "pruned", "killed", "superseded"),
    "budget": OptionRange("a time of 10 s or more: 30m, 2h, 1h30m, 90s", is_budget),
    "older": any_range(OptionRange("hours, days or weeks: 12h, 30d, 8w", is_age), NULL_RANGE),
    "group_by": any_range(OptionRange("a list of options", is_words), NULL_RANGE),
    "level": float_range(0, 1, open_=True),
    "resamples": POSITIVE_INT,
    "num_examples": int_range(0),
    "max_picture_mb": int_range(0),
    "split": any_range(choice_range("val", "test"), NULL_RANGE),
    "score": any_range(WORD_RANGE, NULL_RANGE),
    "baseline": any_range(WORD_RANGE, NULL_RANGE),
    "trials": POSITIVE_INT,
    "timeout": any_range(float_range(0, open_=True), NULL_RANGE),
    "storage": any_range(WORD_RANGE, NULL_RANGE),
    "sampler.n_startup_trials": int_range(0),
    "sampler.population_size": int_range(2),
    "pruner.n_startup_trials": int_range(0),
    "pruner.n_warmup_steps": int_range(0),
    "pruner.min_resource": POSITIVE_INT,
    "pruner.reduction_factor": int_range(2),
    "threads": any_range(POSITIVE_INT, NULL_RANGE),
    "reviewed": any_range(WORD_RANGE, NULL_RANGE),
    "border": any_range(word_range("auto"), int_range(0)),
    "min_size": POSITIVE_INT,
    "false_alarm": float_range(0, 1, open_=True),
    "data.channels": POSITIVE_INT,
    "data.size": POSITIVE_INT,
    "logits": POSITIVE_INT,
    "trainer.num_nodes": POSITIVE_INT,
    "trainer.precision": choice_range("auto", "32-true", "bf16-mixed", "16-mixed"),
    "trainer.max_epochs": any_range(int_range(0), OptionRange("-1", lambda v: v == -1), NULL_RANGE),
    "trainer.max_steps": any_range(int_range(0), OptionRange("-1", lambda v: v == -1)),
    "trainer.max_time": any_range(OptionRange("days:hours:minutes:seconds, 00:01:30:00", is_duration), NULL_RANGE),
    "trainer.check_val_every_n_epoch": POSITIVE_INT,
    "trainer.accumulate_grad_batches": POSITIVE_INT,
    "trainer.gradient_clip_val": any_range(float_range(0), NULL_RANGE),
    "trainer.limit_train_batches": BATCHES_RANGE,
    "trainer.limit_val_batches": BATCHES_RANGE,
    "trainer.log_every_n_steps": POSITIVE_INT,
    **{f"logger.{name}.project": WORD_RANGE for name in ("wandb", "trackio", "mlflow")},
    **{f"logger.{name}.group": PATH_RANGE for name in ("wandb", "trackio", "mlflow")},
    "logger.wandb.entity": PATH_RANGE,
    "logger.trackio.folder": PATH_RANGE,
}  # fmt: skip

COMPUTED = choice_range("float32", "bfloat16", "int8")
EXPORTED = choice_range("float32", "int8", "float16")
COMMAND_RANGES = {  # command, name of an option that means something else in another command -> its range
    ("predict", "precision"): COMPUTED,
    ("evaluate", "precision"): any_range(COMPUTED, NULL_RANGE),
    ("export", "precision"): EXPORTED,
    ("list", "score"): WORD_RANGE,
    **{(name, "output"): WORD_RANGE for name in ("check", "crossval", "enough", "plan", "show")},
}

FURTHER_TYPES = {
    "tile": type(None),
    "pyramid": bool,
}  # options that are words in the files -> what else they may be


def file_value_hint(known: Any) -> str:
    """Return a hint with the value in the file; empty for a group."""
    return "" if holds_dict(known) else f" (the file says {format_option_value(known)})"


def unknown_option(key: str, siblings: list[str]) -> UserError:
    """Return the error for an unknown option, with the options of its level."""
    parent, _, name = key.rpartition(".")
    close = did_you_mean(name, siblings)
    if close and parent:
        close = close.replace("did you mean ", f"did you mean {parent}.")
    where = f"options of {parent}" if parent else "options"
    return UserError(f"{key}: no such option{close} ({where}: {join_some(siblings) or 'none'})")


def check_group_choice(override: Override, groups: dict[str, list[str]]) -> None:
    """Raise UserError if an override chooses a file that its group does not have."""
    key, value, line = override.key_or_group, override.value(), override.input_line
    if key not in groups or override.is_delete() or isinstance(value, dict):
        return
    # Each name must be a file of the group
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{line}: {key} takes one of {join_some(groups[key])}")
    for name in names:
        if "/" not in name and name not in groups[key]:
            similar = did_you_mean(name, groups[key])
            raise UserError(
                f"{key}={name}: no such {key}{similar} (choices: {join_some(groups[key])})"
            )
    # Number of choices, and a prefix that a group does not take
    if names[1:] and not allows_several(key):
        raise UserError(
            f"{line}: {key} takes one of {join_some(groups[key])}, and {len(names)} are given"
        )
    if override.is_add() or override.is_force_add():
        raise UserError(f"{line}: write {str(line).lstrip('+')}, without the +")


def allows_several(group: str) -> bool:
    """Return True if several files of a group can be chosen: they do not hold one constructor each."""
    files = (CONF / group).glob("*.yaml")
    return not any("\n_target_:" in file.read_text("utf-8") for file in files)


def check_override_name(
    override: Override,
    base: dict[str, Any],
    unchosen: Collection[str],
    groups: Mapping[str, list[str]],
) -> None:
    """Raise UserError if an override names an option that the files do not have, or adds one that they have.

    Args:
        override: word of the command line.
        base: options of the files.
        unchosen: groups of which no file is chosen.
        groups: config group -> names of its files.
    """
    # Descend part by part, as far as the files have the option.
    node: Any = base
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[: depth + 1])
        # An entry of a list, or a part below a plain value.
        if isinstance(node, list) and part.isdigit():
            if int(part) >= len(node):
                whole = ".".join(parts[:depth])
                raise UserError(f"{path}: {whole} has {len(node)} entries, from 0")
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            whole = ".".join(parts[:depth])
            raise UserError(
                f"{path}: {whole} is one value{file_value_hint(node)}, not a group of options"
            )
        # A name that this level lacks: suggest where it is, what to choose first, or a similar one.
        if part not in node:
            inside = [
                ".".join([*parts[:depth], str(name), part])
                for name, group in node.items()
                if isinstance(group, dict) and part in group
            ]
            if len(parts) == depth + 1 and inside:
                raise UserError(f"{path}: no such option; did you mean {inside[0]}?")
            if depth == 1 and "_target_" not in node and part in groups.get(parts[0], ()):
                raise UserError(
                    f"{override.input_line}: {part} isn't chosen; add {parts[0]}={part}, or "
                    f"{parts[0]}=[{','.join([*option_names(node), part])}]"
                )
            if depth == 0 and part in unchosen:
                line = override.input_line
                raise UserError(f"{line}: choose its file first, {part}=..., and then {line}")
            raise unknown_option(path, option_names(node))
        node = node[part]
    # The option exists: it can't be added, and a group takes no plain value.
    if override.is_add():
        word = str(override.input_line).lstrip("+")
        raise UserError(f"+{word}: write {word}, without the +")
    if isinstance(node, dict | list) and type(override.value()) is not type(node):
        raise UserError(
            f"{override.input_line}: {TYPE_NAMES[type(node)]} is needed{file_value_hint(node)}"
        )


def is_new_option(override: Override, base: Any, unchosen: Collection[str]) -> bool:
    """Return True if an override gives an option of a group of which no file is chosen, as data.root in seg.evaluate.

    The run's own config has the option; what it is called is checked there.
    """
    group, _, name = override.key_or_group.partition(".")
    node = base.get(group)
    if (
        group not in unchosen
        or "." in name
        or not name
        or override.is_add()
        or override.is_delete()
    ):
        return False
    return (
        isinstance(node, dict) and name not in node and not did_you_mean(name, option_names(node))
    )


def option_names(node: Mapping[str, Any]) -> list[str]:
    """Return the names of a node's options, without Hydra's keywords."""
    return [str(key) for key in node if key not in HYDRA_KEYS]


class OptionChecker:
    """Check of a composed config; constructors of other libraries are imported last, since that takes seconds.

    Args:
        command: whose own file has further options, conf/COMMAND.yaml; empty: none.
        unchosen: dotted names of groups of which no file is chosen.
        tested_files: True if all files are of this package, whose values are valid; only others are checked.
    """

    def __init__(
        self, command: str = "", unchosen: Collection[str] = (), *, tested_files: bool = False
    ) -> None:
        self.command, self.unchosen, self.tested_files = command, unchosen, tested_files
        self.foreign: list[tuple[str, dict[str, Any], Any]] = []

    def check(self, tree: dict[str, Any], known: dict[str, Any]) -> None:
        """Raise UserError unless a config has the same options as the files, and valid values.

        Args:
            tree: the config.
            known: that of the files.
        """
        check_extras(tree)
        self.check_group(tree, known, own_options(self.command) if self.command else None)
        self.check_foreign()

    def check_foreign(self) -> None:
        """Check the nodes that were put off, by importing their constructors."""
        for path, node, filed in self.foreign:  # grows by the nodes inside of nodes
            self.check_arguments(path, node, filed, import_arguments(path, node["_target_"]))

    def check_group(
        self, level: dict[str, Any], known: dict[str, Any], own: Any, path: str = ""
    ) -> None:
        """Check a group of options.

        Args:
            level: the group.
            known: the group in the files.
            own: the group in the command's own file.
            path: dotted name of the group; empty: the whole config.
        """
        # Compare each option of this level with the file's; one whose file's value is another option, after that one
        ours = own if isinstance(own, dict) else {}
        for name in sorted([*level, *known], key=lambda name: str(ours.get(name)).startswith("${")):
            full = f"{path}.{name}" if path else str(name)
            if name not in level:
                raise UserError(f"~{full}: can't be left out, the command reads it")
            if name not in known:
                raise unknown_option(full, option_names(known))
            value, filed = level[name], known[name]
            if self.tested_files and same_value(value, filed) and not holds_text(value, "???"):
                continue
            # Constructors are checked by their signatures, groups recursively, values by type
            below = ours.get(name)
            if isinstance(value, dict) and "_target_" in value:
                self.check_call(full, value, filed, below if isinstance(below, dict) else {})
            elif isinstance(value, dict) and isinstance(filed, dict) and full not in self.unchosen:
                self.check_group(value, filed, below, full)
            elif full not in self.unchosen:
                self.check_value(full, value, filed, None)

    def check_call(
        self, path: str, node: dict[str, Any], known: Any, own: Mapping[str, Any] | None = None
    ) -> None:
        """Check that a node's constructor exists and accepts these arguments.

        Args:
            path: dotted name of the node.
            node: constructor and arguments.
            known: the node in the files.
            own: additional options of the node, from the command's own file.
        """
        check_extras(node, path)
        target = node["_target_"]
        # The file's values, if they are for the same constructor
        if not isinstance(known, dict) or known.get("_target_", target) != target:
            known = {}
        # An option is one of the command's own, or an argument of the constructor
        ours = {} if own is None or "_target_" in own else own
        for name in [name for name in node if name in ours]:
            self.check_value(f"{path}.{name}", node[name], ours[name], None)
        rest = {name: value for name, value in node.items() if name not in ours}
        if (arguments := read_arguments(str(target))) is not None:
            self.check_arguments(path, rest, known, arguments)
        else:
            for name, value in rest.items():
                if name in known and range_violation(f"{path}.{name}", value, self.command):
                    check_like(f"{path}.{name}", value, known[name])
                    check_range(f"{path}.{name}", value, known[name], self.command)
            self.foreign.append((path, rest, known))

    def check_arguments(
        self, path: str, node: dict[str, Any], known: Any, arguments: Arguments | None
    ) -> None:
        """Check the arguments of a constructor: their names, and their values by their annotations."""
        for name, value in node.items():
            if name in HYDRA_KEYS:
                continue
            if arguments is not None and name not in arguments:
                raise unknown_option(f"{path}.{name}", option_names(known) or list(arguments))
            if value is not None or known.get(name, 0) is not None:
                annotation = None if arguments is None else arguments[name]
                self.check_value(f"{path}.{name}", value, known.get(name), annotation)

    def check_value(self, path: str, value: Any, known: Any, wanted: Any) -> None:
        """Check that a value, with everything in it, fits an annotation; None: there is none."""
        if value == "???":
            raise UserError(f"{path}: required")
        # Nested structures: constructors, typed dictionaries, and containers of dictionaries
        if isinstance(value, dict) and "_target_" in value:
            self.check_call(path, value, known)
        elif isinstance(value, dict) and typing.is_typeddict(wanted):
            self.check_typed_dict(path, value, known, wanted)
        elif isinstance(value, dict) and holds_dict(list(value.values())):
            inner = value_annotation(wanted, Mapping)
            for name in value:
                self.check_value(f"{path}.{name}", value[name], get_or_none(known, name), inner)
        elif isinstance(value, list) and holds_dict(value):
            inner = value_annotation(wanted, Sequence)
            for index, item in enumerate(value):
                self.check_value(f"{path}.{index}", item, get_or_none(known, index), inner)
        else:
            # A plain value: by its annotation if there is one, else like the file's value
            if (adapter := type_adapter(wanted)) is not None:
                check_fits(path, value, wanted, adapter, known)
            else:
                check_like(path, value, known)
            check_range(path, value, known, self.command)

    def check_typed_dict(self, path: str, value: dict[str, Any], known: Any, wanted: Any) -> None:
        """Check the fields of a dict whose annotation is a TypedDict."""
        hints = typing.get_type_hints(wanted, include_extras=True)
        for name in [*value, *wanted.__required_keys__]:
            if name not in hints:
                raise unknown_option(f"{path}.{name}", list(hints))
            if name not in value:
                raise UserError(f"{path}.{name}: required")
            self.check_value(f"{path}.{name}", value[name], get_or_none(known, name), hints[name])


def check_call(path: str, node: dict[str, Any]) -> None:
    """Raise UserError unless the constructor of a node exists and accepts its arguments."""
    checker = OptionChecker()
    checker.check_call(path, node, {})
    checker.check_foreign()


def check_extras(node: Any, path: str = "") -> None:
    """Raise UserError for a constructor, at any depth, that needs an extra which is not installed."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()  # fmt: skip
    for name, value in items:
        if name == "_target_" and (need := missing_extra_hint(value)):
            raise UserError(f"{path}._target_={value}: {need}")
        check_extras(value, f"{path}.{name}" if path else str(name))


def same_value(value: Any, filed: Any) -> bool:
    """Return True for equal values of equal types; 1, 1.0 and True differ."""
    return repr(value) == repr(filed)


def holds_text(value: Any, text: str) -> bool:
    """Return True if a value is a text, or holds it at any depth."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return any(holds_text(item, text) for item in items)
    return value == text


def check_range(path: str, value: Any, known: Any, command: str) -> None:
    """Raise UserError for a value outside of the range of its option."""
    if needed := range_violation(path, value, command):
        raise UserError(
            f"{path}={format_option_value(value)}: {needed} is needed{file_value_hint(known)}"
        )


def value_annotation(wanted: Any, kind: type) -> Any:
    """Return the annotation of a container's values, of ``dict[str, int] | None`` int; None if it has none."""
    for annotation in (wanted, *typing.get_args(wanted)):
        origin = typing.get_origin(annotation)
        if inspect.isclass(origin) and issubclass(origin, kind):
            return typing.get_args(annotation)[-1]
    return None


def check_literal(node: Any, path: str = "") -> None:
    """Raise UserError if a resolved value contains ``${``, which would be resolved again from a run's config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()  # fmt: skip
    for name, value in items:
        check_literal(value, f"{path}.{name}" if path else str(name))
    if isinstance(node, str) and "${" in node:
        raise UserError(
            f"{path}={node}: a run cannot store a value with ${{, which would be resolved again when the run is "
            "read; rename the file or folder, or give another value"
        )


def get_or_none(known: Any, key: Any) -> Any:
    """Return ``known[key]``, or None if there is no such item."""
    try:
        return known[key]
    except (KeyError, IndexError, TypeError):
        return None


def holds_dict(value: Any) -> bool:
    """Return True for a dict, or a list with a dict at any depth."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_dict, value)))


def import_target(path: str, target: Any) -> Callable:
    """Import what ``_target_`` names; Hydra's public get_object would log failures.

    Raises:
        UserError: if it cannot be imported or called.
    """
    if need := missing_extra_hint(target):
        raise UserError(f"{path}._target_={target}: {need}")
    try:
        called = _locate(str(target))
    except Exception as error:
        module, _, name = str(target).rpartition(".")
        close = did_you_mean(name, dir(sys.modules[module])) if module in sys.modules else ""
        raise UserError(f"{path}._target_={target}: can't be imported{close}") from error
    if not callable(called):
        raise UserError(f"{path}._target_={target}: can't be called")
    return called


def argument_names(called: Callable) -> list[str] | None:
    """Return the argument names of a constructor; None if it accepts any or has no signature."""
    try:
        parameters = inspect.signature(called).parameters
    except ValueError:
        return None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_all else list(parameters)


def import_arguments(path: str, target: Any) -> Arguments | None:
    """Import a constructor and return its arguments; None if it accepts any."""
    called = import_target(path, target)
    names = argument_names(called)
    return None if names is None else {name: argument_type(called, name) for name in names}


@cache
def argument_type(called: Callable, name: str) -> Any:
    """Return the annotation of an argument; None if there is none."""
    try:
        function = called.__init__ if inspect.isclass(called) else called
        annotation = typing.get_type_hints(function, include_extras=True)[name]
    except (KeyError, NameError, TypeError, AttributeError):
        return None
    return None if annotation is Any else annotation


@cache
def type_adapter(wanted: Any) -> TypeAdapter | None:
    """Return pydantic's validator of an annotation; None if pydantic cannot validate it."""
    if wanted is None or "torch" in str(wanted):
        return None
    try:
        return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticUserError, PydanticSchemaGenerationError, SchemaError, TypeError, NameError):
        return None


def check_fits(path: str, value: Any, wanted: Any, adapter: TypeAdapter, known: Any) -> None:
    """Raise UserError unless a value fits the annotation ``wanted``, whose validator is ``adapter``."""
    tuples = "tuple" in str(adapter.core_schema) and isinstance(value, list)  # YAML has none
    try:
        adapter.validate_python(tuple(value) if tuples else value)
    except ValidationError as error:
        # what each member of the annotation needs: a word out of choices, or a kind of value
        kinds, choices = [], []
        for problem in error.errors():
            if problem["type"] == "literal_error":
                expected = problem["ctx"]["expected"]
                choices += expected.replace(" or ", ", ").replace("'", "").split(", ")
            elif problem["type"] in RANGE_ERRORS:
                kinds += annotation_ranges(wanted)
            else:
                message = problem["msg"][0].lower() + problem["msg"][1:]
                kinds.append(
                    ERROR_TYPE_NAMES.get(problem["type"], message.removeprefix("input should be "))
                )
        # the most specific kind only
        if any(kind.startswith("a list, ") for kind in kinds):
            kinds = [kind for kind in kinds if kind not in (TYPE_NAMES[list], TYPE_NAMES[float])]
        if TYPE_NAMES[float] in kinds:
            kinds = [kind for kind in kinds if kind != TYPE_NAMES[int]]
        # one sentence with a hint
        needed = [f"one of {', '.join(choices)}"] if choices else []
        needed += [f"{' or '.join(dict.fromkeys(kinds))} is needed"] if kinds else []
        close = did_you_mean(str(value), choices)
        if kinds == [TYPE_NAMES[str]] and isinstance(value, int | float) and not choices:
            close = f"; write \"{path}='{format_option_value(value)}'\""
        elif set(kinds) == {TYPE_NAMES[str]} and (hint := quoting_hint(path, value)):
            close = hint
        kind = NotWholeNumber if TYPE_NAMES[int] in kinds else UserError
        raise kind(
            f"{path}={format_option_value(value)}: {' or '.join(needed)}{close}{file_value_hint(known)}"
        ) from error


def quoting_hint(path: str, value: Any) -> str:
    """Return a remedy for names that YAML reads as numbers or as true and false; empty if there are none."""
    if not isinstance(value, list | dict) or not any(isinstance(v, int | float) for v in value):
        return ""
    words = {False: "no", True: "yes"}
    names = [words[v] if isinstance(v, bool) else str(v) for v in value]
    quoted = [f"'{n}'" if isinstance(v, int | float) else n for n, v in zip(names, value, strict=True)]  # fmt: skip
    booleans = any(isinstance(v, bool) for v in value)
    reason = " (YAML reads no, off, yes and on as false and true)" if booleans else ""
    listed = f'"{path}=[{",".join(quoted)}]"' if isinstance(value, list) else ", ".join(quoted)
    return f"; quote the names, {listed}{reason}"


def check_like(path: str, value: Any, known: Any) -> None:
    """Raise UserError if a value has another type than the file's own; null in the file allows any."""
    if known is None or isinstance(value, FURTHER_TYPES.get(path, ())):
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A float accepts an integer and text accepts a number, as YAML reads them; bool is no number
    if isinstance(known, float):
        same = number
    elif isinstance(known, str):
        same = number or isinstance(value, str)
    else:
        same = type(value) is type(known)
    if not same:
        kind = NotWholeNumber if isinstance(known, int) else UserError
        raise kind(
            f"{path}={format_option_value(value)}: {TYPE_NAMES[type(known)]} is needed{file_value_hint(known)}"
        )
    # Entries of a list, like the file's first entry
    if isinstance(known, list) and known and not holds_dict(known):
        for item in value:
            check_like(path, item, known[0])


def is_number(value: Any) -> bool:
    """Return True for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def range_violation(path: str, value: Any, command: str = "") -> str | None:
    """Return the needed range in words if a value is outside of it, else None."""
    for number in value if isinstance(value, list) else [value]:
        if path in NODATA_OPTIONS:
            break
        if isinstance(number, float) and not math.isfinite(number):
            return "a finite number"
        if type(number) is int and abs(number) > MAX_COUNT:
            return "a number of at most 64 bits"
    limit = COMMAND_RANGES.get((command, path), OPTION_RANGES.get(path))
    return None if limit is None or limit.holds(value) else limit.needed
