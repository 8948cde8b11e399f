"""Checks a composed config against its files and the constructors that it names.

The signature is the schema: an option must be an argument of the constructor that its node's
``_target_`` names, and a value must fit that argument's annotation; where there is none, the type
that the file's own value has. Trees here are plain dicts and lists; ``known`` is the same place in
the files, before any word of the user's or of an experiment.
"""

import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.utils import _locate
from hydra.core.override_parser.types import Override
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import SchemaError

from seg.limits import refusal

HERE = Path(__file__).parent
CONF = (
    HERE / "conf" if (HERE / "conf").exists() else HERE.parent / "conf"
)  # in a wheel, or a checkout
EXTRAS = {"segmentation_models_pytorch": "smp", "pycocotools": "coco", "onnx": "export",
          "onnxruntime": "export", "trackio": "trackio", "tensorboard": "tensorboard",
          "mlflow": "mlflow"}  # package -> its extra  # fmt: skip
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word",
         list: "a list", dict: "a group of options"}  # fmt: skip
FAULTS = {"bool_type": KINDS[bool], "int_type": KINDS[int], "float_type": KINDS[float],
          "string_type": KINDS[str], "list_type": KINDS[list],
          "tuple_type": KINDS[list], "dict_type": KINDS[dict]}  # fmt: skip


BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")


class UserError(ValueError):
    """A mistake of the user's: one line, no traceback."""


def group_names(overrides: Collection[Override] = ()) -> dict[str, list[str]]:
    """Config groups -> their choices, also those of folders that ``hydra.searchpath`` adds."""
    folders = [CONF]
    for override in overrides:
        added = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(added, list):
            folders += [Path(str(folder).removeprefix("file://")) for folder in added]
    groups: dict[str, set[str]] = {}
    for file in (file for folder in folders for file in folder.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(groups[name]) for name in sorted(groups)}


def is_hydras(override: Override) -> bool:
    return override.key_or_group.replace("/", ".").split(".")[0] == "hydra"


def nearest(word: str, words: Collection[str]) -> str:
    """``; did you mean x?`` or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def listed(words: list[str]) -> str:
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


def shown(value: Any) -> str:
    """As one writes it on a command line."""
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )


def says(known: Any) -> str:
    return "" if holds_dict(known) else f" (the file says {shown(known)})"


def unknown(key: str, siblings: list[str]) -> UserError:
    """The error for an option that isn't there, with the valid ones of its level."""
    parent, _, name = key.rpartition(".")
    close = nearest(name, siblings)
    if close and parent:
        close = close.replace("did you mean ", f"did you mean {parent}.")
    where = f"options of {parent}" if parent else "options"
    return UserError(f"{key}: no such option{close} ({where}: {listed(siblings) or 'none'})")


def check_choice(override: Override, groups: dict[str, list[str]]) -> None:
    """Raises UserError when the word chooses a file of a group that isn't there."""
    key, value, line = override.key_or_group, override.value(), override.input_line
    if key not in groups or override.is_delete() or isinstance(value, dict):
        return
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{line}: {key} takes one of {listed(groups[key])}")
    for name in names:
        if "/" not in name and name not in groups[key]:
            near = nearest(name, groups[key])
            raise UserError(f"{key}={name}: no such {key}{near} (choices: {listed(groups[key])})")
    if names[1:] and not takes_several(key):
        raise UserError(
            f"{line}: {key} takes one of {listed(groups[key])}, and {len(names)} are given"
        )
    if override.is_add() or override.is_force_add():
        raise UserError(f"{line}: write {str(line).lstrip('+')}, without the +")


def takes_several(group: str) -> bool:
    """Whether several files of a group can be chosen: not where each is the arguments of one constructor."""
    files = (CONF / group).glob("*.yaml")
    return not any("\n_target_:" in file.read_text("utf-8") for file in files)


def check_word(
    override: Override,
    base: dict[str, Any],
    unchosen: Collection[str],
    groups: Mapping[str, list[str]],
) -> None:
    """Raises UserError when the files have no such path, or have it where ``+`` was typed."""
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
            near = nearest(part, visible(node))
            if depth == 0 and part in unchosen:
                line = override.input_line
                raise UserError(f"{line}: choose its file first, {part}=..., and then {line}")
            if parts[0] in unchosen and not near and not override.is_delete():
                raise UserError(f"{override.input_line}: write +{override.input_line}")
            raise unknown(path, visible(node))
        node = node[part]
    if override.is_add():
        word = str(override.input_line).lstrip("+")
        raise UserError(f"+{word}: write {word}, without the +")
    if isinstance(node, dict | list) and type(override.value()) is not type(node):
        raise UserError(f"{override.input_line}: {KINDS[type(node)]} is needed{says(node)}")


def visible(node: Mapping[str, Any]) -> list[str]:
    return [str(key) for key in node if key not in HYDRA_KEYS]


def check_level(
    level: dict[str, Any],
    known: dict[str, Any],
    own: Any,
    unchosen: Collection[str],
    path: str = "",
) -> None:
    """A group of options that the command itself reads: no more keys than the files have, no fewer."""
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
    """A node that names a constructor: it is there and takes these arguments.

    Args:
        path: of the node.
        node: its options.
        known: the same node in the files.
        own: options beside the constructor's that the command's own file has there.
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
    """A value and what lies below it, against an annotation (None: the constructor has none)."""
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
    """Return the annotation of what a mapping or sequence holds, of ``dict[str, int] | None`` int; else None."""
    for one in (wanted, *typing.get_args(wanted)):
        origin = typing.get_origin(one)
        if inspect.isclass(origin) and issubclass(origin, kind):
            return typing.get_args(one)[-1]
    return None


def check_literal(node: Any, path: str = "") -> None:
    """Raise UserError where a resolved value still holds ``${``, which no command would read back from a run."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()  # fmt: skip
    for name, value in below:
        check_literal(value, f"{path}.{name}" if path else str(name))
    if isinstance(node, str) and "${" in node:
        raise UserError(
            f"{path}={node}: a run keeps no value with ${{ in it, which would be resolved anew when the run is "
            "read; rename the file or folder, or take another value"
        )


def at(known: Any, key: Any) -> Any:
    try:
        return known[key]
    except (KeyError, IndexError, TypeError):
        return None


def holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_dict, value)))


def located(path: str, target: Any) -> Callable:
    """What ``_target_`` names; hydra's own get_object would log as it fails."""
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


def missing_extra(target: Any) -> str | None:
    """What to install for an optional package, or a constructor of it, that isn't there.

    Ours that need one stand in a module of its name, as seg.tracking.trackio.
    """
    words = str(target).split(".")
    package = next((word for word in words[:-1] or words if word in EXTRAS), None)
    if package is None or find_spec(package):
        return None
    return f"needs the extra {EXTRAS[package]}: pip install 'seg[{EXTRAS[package]}]'"


def arguments(called: Callable) -> list[str] | None:
    """The names that a constructor takes; None where it takes all or doesn't say."""
    try:
        parameters = inspect.signature(called).parameters
    except ValueError:
        return None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if takes_all else list(parameters)


@cache
def hint(called: Callable, name: str) -> Any:
    """An argument's annotation; None where the constructor doesn't say."""
    try:
        function = called.__init__ if inspect.isclass(called) else called
        found = typing.get_type_hints(function, include_extras=True)[name]
    except (KeyError, NameError, TypeError, AttributeError):
        return None
    return None if found is Any else found


@cache
def adapter_of(wanted: Any) -> TypeAdapter | None:
    """What checks a value against an annotation; None where that can't be done."""
    if wanted is None or "torch" in str(wanted):
        return None
    try:
        return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticUserError, PydanticSchemaGenerationError, SchemaError, TypeError, NameError):
        return None


def check_fits(path: str, value: Any, wanted: Any, adapter: TypeAdapter, known: Any) -> None:
    """Raise UserError when the value doesn't fit the argument's annotation, of which ``adapter`` is made."""
    tuples = "tuple" in str(adapter.core_schema) and isinstance(value, list)  # YAML has none
    try:
        adapter.validate_python(tuple(value) if tuples else value)
    except ValidationError as error:
        kinds, choices = [], []
        for found in error.errors():
            if found["type"] == "literal_error":
                choices += (
                    found["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
                )
            elif found["type"] in BOUNDS:
                kinds += ranges(wanted)
            else:
                message = found["msg"][0].lower() + found["msg"][1:]
                kinds.append(FAULTS.get(found["type"], message.removeprefix("input should be ")))
        if any(kind.startswith("a list, ") for kind in kinds):
            kinds = [kind for kind in kinds if kind not in (KINDS[list], KINDS[float])]
        if KINDS[float] in kinds:
            kinds = [kind for kind in kinds if kind != KINDS[int]]
        needed = [f"one of {', '.join(choices)}"] if choices else []
        needed += [f"{' or '.join(dict.fromkeys(kinds))} is needed"] if kinds else []
        close = nearest(str(value), choices)
        if kinds == [KINDS[str]] and isinstance(value, int | float) and not choices:
            close = f"; write \"{path}='{shown(value)}'\""
        raise UserError(
            f"{path}={shown(value)}: {' or '.join(needed)}{close}{says(known)}"
        ) from error


def ranges(wanted: Any) -> list[str]:
    """Return the ranges that an annotation gives its numbers, in words: ``a number from 0 to below 1``."""
    inner = typing.get_args(wanted)
    if typing.get_origin(wanted) is not typing.Annotated:
        words = [words for one in inner for words in ranges(one)]
        return (
            [f"a list, each {one}" for one in words] if typing.get_origin(wanted) is list else words
        )
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
    """Raises UserError when a value is of another kind than the file's own; null there allows all."""
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
