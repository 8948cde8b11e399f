"""Validate a composed config against the files of conf/ and the constructors that it names.

The signature is the schema: an option must be an argument of the constructor that its node's ``_target_`` names,
and a value must fit that argument's annotation, or, without an annotation, the type of the file's own value.
Options that have no constructor, or one of another library, have their ranges in ``LIMITS``.

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

from seg.cli.conf_files import CONF, HYDRA_KEYS, listed, nearest, shown
from seg.errors import UserError, missing_extra

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word",
         list: "a list", dict: "a group of options"}  # fmt: skip
FAULTS = {"bool_type": KINDS[bool], "int_type": KINDS[int], "float_type": KINDS[float],
          "string_type": KINDS[str], "list_type": KINDS[list],
          "tuple_type": KINDS[list], "dict_type": KINDS[dict]}  # fmt: skip
BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
WORD_64 = 2**63 - 1  # largest number of elements of an array


class Limit(NamedTuple):
    """Range of an option.

    Attributes:
        needed: the range in words, for messages: "a whole number of 1 or more".
        holds: function of a value; True if the value is in the range.
    """

    needed: str
    holds: Callable[[Any], bool]


NULL = Limit("null", lambda v: v is None)
WORD = Limit("a word", lambda v: isinstance(v, str) and v.strip() != "")
NAME = Limit("a name", lambda v: is_number(v) or WORD.holds(v))


def either(*limits: Limit) -> Limit:
    """Return the union of limits."""
    needed = ", or ".join(limit.needed for limit in limits)
    return Limit(needed, lambda v: any(limit.holds(v) for limit in limits))


PLACE = either(WORD, NULL)


def whole(low: int, high: int = WORD_64) -> Limit:
    """Return the limit of integers from ``low`` to ``high``, both included."""
    span = f"{low} or more" if high == WORD_64 else f"{low} to {high}"
    return Limit(f"a whole number of {span}", lambda v: type(v) is int and low <= v <= high)


MANY = whole(1)
BATCHES = either(
    Limit("a number of batches, 1 or more", lambda v: type(v) is int and v >= 1),
    Limit("a share above 0, to 1.0", lambda v: isinstance(v, float) and 0 < v <= 1),
)


def words(*choices: str) -> Limit:
    """Return the limit of one of several words."""
    return Limit(f"one of {', '.join(choices)}", lambda v: v in choices)


SPLITS = words("train", "val", "test")


def share(of_none: str = "") -> Limit:
    """Return the limit of numbers in [0, 1); ``of_none`` says what 0 means."""
    return Limit(f"a number from 0{of_none} to below 1", lambda v: is_number(v) and 0 <= v < 1)


SHARE = share()
PAIR = Limit(
    "a pair of numbers from 0 to below 1",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(SHARE.holds, v)),
)
WORKERS = whole(0, 1024)  # not the cores of this machine: a run may train on another one


def real(low: float, high: float = math.inf, *, open_: bool = False) -> Limit:
    """Return the limit of numbers from ``low`` to ``high``; ``open_`` excludes both ends."""
    if open_:
        span = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        return Limit(f"a number {span}", lambda v: is_number(v) and low < v < high)
    span = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    return Limit(f"a number of {span}", lambda v: is_number(v) and low <= v <= high)


def one(word: str) -> Limit:
    """Return the limit of a single word."""
    return Limit(word, lambda v: v == word)


def is_words(value: Any) -> bool:
    """Return True for a list of texts that are not blank."""
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def is_duration(value: Any) -> bool:
    """Return True for ``days:hours:minutes:seconds``, 00:01:30:00."""
    return isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value) is not None


LIMITS = {  # dotted name of an option -> its range
    "seed": whole(0, 2**32 - 1),
    "name": either(NAME, NULL),
    "outputs": WORD,
    "init": either(WORD, NULL),
    "resume": either(WORD, NULL),
    "two_class_logits": either(Limit("1", lambda v: v == 1), Limit("2", lambda v: v == 2)),
    "patience": either(Limit("a number of validations, 1 or more", MANY.holds), NULL),
    "ema": either(real(0, 1, open_=True), NULL),
    "bad_steps": words("stop", "skip"),
    "panels": whole(0),
    "kept": whole(0),
    "optim.lr": real(0),
    "optim.weight_decay": real(0),
    "optim.momentum": SHARE,
    "optim.dampening": real(0, 1),
    "optim.betas": PAIR,
    "optim.eps": real(0),
    "threshold": either(real(0, 1, open_=True), one("best"), NULL),
    "loader.batch_size": MANY,
    "loader.repeats": whole(1, 10**6),
    "loader.eval_batch_size": MANY,
    "loader.crop": either(whole(1, 2**15), NULL),
    "loader.workers": Limit(WORKERS.needed, lambda v: v is None or WORKERS.holds(v)),  # null: in seg.rerun
    "workers": WORKERS,
    "accelerator": words("auto", "cpu", "gpu", "mps"),
    "run": either(WORD, Limit("a list of them", lambda v: isinstance(v, list) and all(map(WORD.holds, v))), NULL),
    "input": either(WORD, NULL),
    "output": either(WORD, NULL),
    "loader.cache": PLACE,
    "data.root": PLACE,
    "data.table": PLACE,
    "data.images": WORD,
    "data.masks": WORD,
    "data.url": PLACE,
    "data.pair_by": PLACE,
    "data.group_by": PLACE,
    "data.split": SPLITS,
    "model.depth": either(whole(1, 12), NULL),
    "tta": words("none", "flips", "d4"),
    "confidence": share(" (no intervals)"),
    "objects.neck": either(real(0, open_=True), NULL),
    "objects.min_size": MANY,
    "eval_batch_size": MANY,
    "tile": MANY,
    "overlap": either(one("auto"), whole(0)),
    "batch": MANY,
    "probabilities": words("float32", "uint16", "uint8"),
    "depth": either(MANY, NULL),
    "rounds": MANY,
    "format": words("onnx", "torch"),
    "tolerance": real(0, open_=True),
    "opset": whole(12, 20),  # 20: the last that PyTorch's TorchScript exporter writes
    "n": MANY,
    "epoch": whole(0),
    "group_by": either(Limit("a list of options", is_words), NULL),
    "level": real(0, 1, open_=True),
    "resamples": MANY,
    "images": whole(0),
    "megabytes": whole(0),
    "split": either(words("val", "test"), NULL),
    "score": either(WORD, NULL),
    "baseline": either(WORD, NULL),
    "trials": MANY,
    "timeout": either(real(0, open_=True), NULL),
    "storage": either(WORD, NULL),
    "sampler.n_startup_trials": whole(0),
    "sampler.population_size": whole(2),
    "pruner.n_startup_trials": whole(0),
    "pruner.n_warmup_steps": whole(0),
    "pruner.min_resource": MANY,
    "pruner.reduction_factor": whole(2),
    "seeds": whole(0),
    "threads": either(MANY, NULL),
    "data.channels": MANY,
    "data.size": MANY,
    "logits": MANY,
    "loader.memory": real(0, 2**20),  # GiB
    "trainer.num_nodes": MANY,
    "trainer.precision": words("auto", "32-true", "bf16-mixed", "16-mixed"),
    "trainer.max_epochs": either(whole(0), Limit("-1", lambda v: v == -1), NULL),
    "trainer.max_steps": either(whole(0), Limit("-1", lambda v: v == -1)),
    "trainer.max_time": either(Limit("days:hours:minutes:seconds, 00:01:30:00", is_duration), NULL),
    "trainer.check_val_every_n_epoch": MANY,
    "trainer.accumulate_grad_batches": MANY,
    "trainer.gradient_clip_val": either(real(0), NULL),
    "trainer.limit_train_batches": BATCHES,
    "trainer.limit_val_batches": BATCHES,
    "trainer.log_every_n_steps": MANY,
    **{f"logger.{name}.project": WORD for name in ("wandb", "trackio", "mlflow")},
    **{f"logger.{name}.group": PLACE for name in ("wandb", "trackio", "mlflow")},
    "logger.wandb.entity": PLACE,
    "logger.trackio.folder": PLACE,
}  # fmt: skip


def says(known: Any) -> str:
    """Return a hint with the value in the file; empty for a group."""
    return "" if holds_dict(known) else f" (the file says {shown(known)})"


def unknown(key: str, siblings: list[str]) -> UserError:
    """Return the error for an unknown option, with the options of its level."""
    parent, _, name = key.rpartition(".")
    close = nearest(name, siblings)
    if close and parent:
        close = close.replace("did you mean ", f"did you mean {parent}.")
    where = f"options of {parent}" if parent else "options"
    return UserError(f"{key}: no such option{close} ({where}: {listed(siblings) or 'none'})")


def check_choice(override: Override, groups: dict[str, list[str]]) -> None:
    """Raise UserError if an override chooses a file that its group does not have."""
    key, value, line = override.key_or_group, override.value(), override.input_line
    if key not in groups or override.is_delete() or isinstance(value, dict):
        return
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{line}: {key} takes one of {listed(groups[key])}")
    for name in names:
        if "/" not in name and name not in groups[key]:
            similar = nearest(name, groups[key])
            raise UserError(
                f"{key}={name}: no such {key}{similar} (choices: {listed(groups[key])})"
            )
    if names[1:] and not takes_several(key):
        raise UserError(
            f"{line}: {key} takes one of {listed(groups[key])}, and {len(names)} are given"
        )
    if override.is_add() or override.is_force_add():
        raise UserError(f"{line}: write {str(line).lstrip('+')}, without the +")


def takes_several(group: str) -> bool:
    """Return True if several files of a group can be chosen: they do not hold one constructor each."""
    files = (CONF / group).glob("*.yaml")
    return not any("\n_target_:" in file.read_text("utf-8") for file in files)


def check_word(
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
    node: Any = base
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[: depth + 1])
        if isinstance(node, list) and part.isdigit():
            if int(part) >= len(node):
                whole = ".".join(parts[:depth])
                raise UserError(f"{path}: {whole} has {len(node)} entries, from 0")
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            whole = ".".join(parts[:depth])
            raise UserError(f"{path}: {whole} is one value{says(node)}, not a group of options")
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
                    f"{parts[0]}=[{','.join([*visible(node), part])}]"
                )
            similar = nearest(part, visible(node))
            if depth == 0 and part in unchosen:
                line = override.input_line
                raise UserError(f"{line}: choose its file first, {part}=..., and then {line}")
            if parts[0] in unchosen and not similar and not override.is_delete():
                raise UserError(f"{override.input_line}: write +{override.input_line}")
            raise unknown(path, visible(node))
        node = node[part]
    if override.is_add():
        word = str(override.input_line).lstrip("+")
        raise UserError(f"+{word}: write {word}, without the +")
    if isinstance(node, dict | list) and type(override.value()) is not type(node):
        raise UserError(f"{override.input_line}: {KINDS[type(node)]} is needed{says(node)}")


def visible(node: Mapping[str, Any]) -> list[str]:
    """Return the names of a node's options, without Hydra's keywords."""
    return [str(key) for key in node if key not in HYDRA_KEYS]


def check_level(
    level: dict[str, Any],
    known: dict[str, Any],
    own: Any,
    unchosen: Collection[str],
    path: str = "",
) -> None:
    """Raise UserError unless a group of options has the same names as in the files, and valid values.

    Args:
        level: the group.
        known: the group in the files.
        own: the group in the command's own file.
        unchosen: dotted names of groups of which no file is chosen.
        path: dotted name of the group; empty: the whole config.
    """
    for name in [*level, *known]:
        full = f"{path}.{name}" if path else str(name)
        if name not in level:
            raise UserError(f"~{full}: can't be left out, the command reads it")
        if name not in known:
            raise unknown(full, visible(known))
        value, filed = level[name], known[name]
        below = own.get(name) if isinstance(own, dict) else None
        if isinstance(value, dict) and "_target_" in value:
            check_call(full, value, filed, below if isinstance(below, dict) else {})
        elif isinstance(value, dict) and isinstance(filed, dict) and full not in unchosen:
            check_level(value, filed, below, unchosen, full)
        elif full not in unchosen:
            check_value(full, value, filed, None)


def check_call(path: str, node: dict[str, Any], known: Any, own: Mapping[str, Any]) -> None:
    """Raise UserError unless a node's constructor exists and accepts these arguments.

    Args:
        path: dotted name of the node.
        node: constructor and arguments.
        known: the node in the files.
        own: additional options of the node, from the command's own file.
    """
    called = located(path, node["_target_"])
    parameters = arguments(called)
    if not isinstance(known, dict) or known.get("_target_", node["_target_"]) != node["_target_"]:
        known = {}  # the file's node is of another constructor
    ours = {} if "_target_" in own else own
    for name, value in node.items():
        if name in HYDRA_KEYS:
            continue
        if name in ours:
            check_value(f"{path}.{name}", value, ours[name], None)
        elif parameters is not None and name not in parameters:
            raise unknown(f"{path}.{name}", visible(known) or list(parameters))
        elif value is not None or known.get(name, 0) is not None:
            check_value(f"{path}.{name}", value, known.get(name), hint(called, str(name)))


def check_value(path: str, value: Any, known: Any, wanted: Any) -> None:
    """Raise UserError unless a value, with everything in it, fits an annotation; None: there is none."""
    if value == "???":
        raise UserError(f"{path}: required")
    if isinstance(value, dict) and "_target_" in value:
        check_call(path, value, known, {})
    elif isinstance(value, dict) and typing.is_typeddict(wanted):
        hints = typing.get_type_hints(wanted, include_extras=True)
        for name in [*value, *wanted.__required_keys__]:
            if name not in hints:
                raise unknown(f"{path}.{name}", list(hints))
            if name not in value:
                raise UserError(f"{path}.{name}: required")
            check_value(f"{path}.{name}", value[name], at(known, name), hints[name])
    elif isinstance(value, dict) and holds_dict(list(value.values())):
        for name in value:
            check_value(f"{path}.{name}", value[name], at(known, name), held(wanted, Mapping))
    elif isinstance(value, list) and holds_dict(value):
        for index, item in enumerate(value):
            check_value(f"{path}.{index}", item, at(known, index), held(wanted, Sequence))
    else:
        if (adapter := adapter_of(wanted)) is not None:
            check_fits(path, value, wanted, adapter, known)
        else:
            check_like(path, value, known)
        if needed := refusal(path, value):
            raise UserError(f"{path}={shown(value)}: {needed} is needed{says(known)}")


def held(wanted: Any, kind: type) -> Any:
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


def at(known: Any, key: Any) -> Any:
    """Return ``known[key]``, or None if there is no such item."""
    try:
        return known[key]
    except (KeyError, IndexError, TypeError):
        return None


def holds_dict(value: Any) -> bool:
    """Return True for a dict, or a list with a dict at any depth."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_dict, value)))


def located(path: str, target: Any) -> Callable:
    """Import what ``_target_`` names; Hydra's public get_object would log failures.

    Raises:
        UserError: if it cannot be imported or called.
    """
    if need := missing_extra(target):
        raise UserError(f"{path}._target_={target}: {need}")
    try:
        called = _locate(str(target))
    except Exception as error:
        module, _, name = str(target).rpartition(".")
        close = nearest(name, dir(sys.modules[module])) if module in sys.modules else ""
        raise UserError(f"{path}._target_={target}: can't be imported{close}") from error
    if not callable(called):
        raise UserError(f"{path}._target_={target}: can't be called")
    return called


def arguments(called: Callable) -> list[str] | None:
    """Return the argument names of a constructor; None if it accepts any or has no signature."""
    try:
        parameters = inspect.signature(called).parameters
    except ValueError:
        return None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_all else list(parameters)


@cache
def hint(called: Callable, name: str) -> Any:
    """Return the annotation of an argument; None if there is none."""
    try:
        function = called.__init__ if inspect.isclass(called) else called
        annotation = typing.get_type_hints(function, include_extras=True)[name]
    except (KeyError, NameError, TypeError, AttributeError):
        return None
    return None if annotation is Any else annotation


@cache
def adapter_of(wanted: Any) -> TypeAdapter | None:
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
            elif problem["type"] in BOUNDS:
                kinds += ranges(wanted)
            else:
                message = problem["msg"][0].lower() + problem["msg"][1:]
                kinds.append(FAULTS.get(problem["type"], message.removeprefix("input should be ")))
        # the most specific kind only
        if any(kind.startswith("a list, ") for kind in kinds):
            kinds = [kind for kind in kinds if kind not in (KINDS[list], KINDS[float])]
        if KINDS[float] in kinds:
            kinds = [kind for kind in kinds if kind != KINDS[int]]
        # one sentence with a hint
        needed = [f"one of {', '.join(choices)}"] if choices else []
        needed += [f"{' or '.join(dict.fromkeys(kinds))} is needed"] if kinds else []
        close = nearest(str(value), choices)
        if kinds == [KINDS[str]] and isinstance(value, int | float) and not choices:
            close = f"; write \"{path}='{shown(value)}'\""
        raise UserError(
            f"{path}={shown(value)}: {' or '.join(needed)}{close}{says(known)}"
        ) from error


def ranges(wanted: Any) -> list[str]:
    """Return the ranges of an annotation's numbers in words, "a number from 0 to below 1"."""
    inner = typing.get_args(wanted)
    if typing.get_origin(wanted) is not typing.Annotated:
        texts = [text for member in inner for text in ranges(member)]
        is_list = typing.get_origin(wanted) is list
        return [f"a list, each {text}" for text in texts] if is_list else texts
    bounds: dict[str, float] = {}
    for limit in inner[1].metadata:
        bounds |= {n: getattr(limit, n) for n in ("ge", "gt", "le", "lt") if hasattr(limit, n)}
    low = f"from {bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}"
    high = f" to {bounds['le']:g}" if "le" in bounds else ""
    high = f" to below {bounds['lt']:g}" if "lt" in bounds else high
    if not high and "ge" in bounds:
        return [f"{KINDS[inner[0]]} of {bounds['ge']:g} or more"]
    return [f"{KINDS[inner[0]]} {low}{high}"]


def check_like(path: str, value: Any, known: Any) -> None:
    """Raise UserError if a value has another type than the file's own; null in the file allows any."""
    if known is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(known, float):
        same = number
    elif isinstance(known, str):
        same = number or isinstance(value, str)
    else:
        same = type(value) is type(known)
    if not same:
        raise UserError(f"{path}={shown(value)}: {KINDS[type(known)]} is needed{says(known)}")
    if isinstance(known, list) and known and not holds_dict(known):
        for item in value:
            check_like(path, item, known[0])


def is_number(value: Any) -> bool:
    """Return True for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def refusal(path: str, value: Any) -> str | None:
    """Return the needed range in words if a value is outside of it, else None."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            return "a finite number"
        if type(number) is int and abs(number) > WORD_64:
            return "a number of at most 64 bits"
    limit = LIMITS.get(path)
    return None if limit is None or limit.holds(value) else limit.needed
