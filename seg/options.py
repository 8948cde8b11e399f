"""Checks a composed config against its files and the constructors that it names.

The signature is the schema: an option must be an argument of the constructor that its node's
``_target_`` names, and a value must fit that argument's annotation; where there is none, the type
that the file's own value has.
"""

import difflib
import inspect
import typing
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

HERE = Path(__file__).parent
CONF = (
    HERE / "conf" if (HERE / "conf").exists() else HERE.parent / "conf"
)  # in a wheel, or a checkout
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


class UserError(ValueError):
    """A mistake of the user's: one line, no traceback."""


def group_names(config_name: str) -> dict[str, list[str]]:
    """Config groups -> their choices; experiment included though it may hold none yet."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def nearest(word: str, words: list[str]) -> str:
    """``; did you mean x?`` or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def listed(words: list[str]) -> str:
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


def unknown(key: str, siblings: list[str]) -> UserError:
    """The error for an option that isn't there, with the valid ones of its level."""
    parent, _, name = key.rpartition(".")
    full = [f"{parent}.{s}" if parent else s for s in siblings]
    close = nearest(name, siblings)
    if close and parent:
        close = close.replace("did you mean ", f"did you mean {parent}.")
    if not close and not parent:
        close = nearest(name, full)
    where = f"options of {parent}" if parent else "options"
    return UserError(f"{key}: no such option{close} ({where}: {listed(siblings)})")


def explain(
    error: Exception, config_name: str, overrides: list[Override], base: DictConfig | None
) -> str:
    """One sentence in the user's words for what Hydra could not compose."""
    groups = group_names(config_name)
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if (
            key in groups
            and isinstance(value, str)
            and value not in groups[key]
            and not override.is_delete()
        ):
            return f"{key}={value}: no such {key}{nearest(value, groups[key])} (choices: {listed(groups[key])})"
        if key in groups and isinstance(value, str) and override.is_add():
            return f"{override.input_line}: write {key}={value}, without the +"
        if key in groups and base is None and not isinstance(value, str) and value is not None:
            return f"{override.input_line}: {key} takes one of {listed(groups[key])}"
    if base is not None:
        for override in overrides:
            if (
                override.key_or_group not in groups
                and override.key_or_group.split(".")[0] != "hydra"
            ):
                try:
                    check_known(override.key_or_group, base)
                except UserError as wrong:
                    return str(wrong)
    return " ".join(str(error).split())


def check_known(key: str, base: DictConfig) -> None:
    """Raises UserError when the base config has no such path; list indices are let pass."""
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            return
        path = ".".join(parts[: depth + 1])
        if not isinstance(node, DictConfig):
            raise UserError(
                f"{path}: {'.'.join(parts[:depth])} is one value ({node}), not a group of options"
            )
        if part not in node:
            raise unknown(path, visible(node))
        node = OmegaConf.select(node, part) if OmegaConf.is_missing(node, part) else node[part]


def visible(node: DictConfig) -> list[str]:
    return [str(k) for k in node if k not in HYDRA_KEYS and k != "hydra"]


def check_plain(key: str, cfg: DictConfig, base: DictConfig) -> None:
    """An option typed by the user: known to the files, or an argument of its node's constructor."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        parent_key = ".".join(parts[:depth])
        parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
        known = OmegaConf.select(base, parent_key) if parent_key else base
        if not isinstance(parent, DictConfig) or isinstance(known, ListConfig):
            return
        if isinstance(known, DictConfig) and part in known:
            continue
        if "_target_" in parent or part in HYDRA_KEYS:
            return  # check_node knows the constructor
        if (
            known is None
            and depth > 0
            and "_target_" not in (OmegaConf.select(base, ".".join(parts[: depth - 1])) or {})
        ):
            return
        if isinstance(known, DictConfig) and not is_free(known, parent_key, base):
            raise unknown(".".join(parts[: depth + 1]), visible(known))


def is_free(node: DictConfig, path: str, base: DictConfig) -> bool:
    """Whether a mapping is an argument's value, whose keys the user chooses (terms, values)."""
    while "." in path:
        path = path.rpartition(".")[0]
        if "_target_" in (OmegaConf.select(base, path) or {}):
            return True
    return False


def check_node(parent: Any, key: str | int, path: str, base: Any) -> None:
    """Checks what lies at parent[key] and below: constructors, their arguments, their types."""
    if path == "hydra":
        return
    if isinstance(parent, DictConfig) and OmegaConf.is_missing(parent, key):
        raise UserError(f"{path}: required")
    node = parent[key]
    known = OmegaConf.select(base, path) if isinstance(base, DictConfig) else None
    if isinstance(node, DictConfig):
        if "_target_" in node:
            check_call(node, path, known)
        for name in node:
            if name not in HYDRA_KEYS:
                check_node(node, name, f"{path}.{name}", base)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            check_node(node, index, f"{path}.{index}", base)
    if isinstance(parent, DictConfig) and "_target_" not in parent:
        check_like(path, node, known)


def check_call(node: DictConfig, path: str, known: Any) -> None:
    """A node that names a constructor: the constructor is there and takes these arguments."""
    target = node["_target_"]
    try:
        called = get_object(target)
    except Exception as error:
        raise UserError(
            f"{path}._target_={target}: can't be imported ({' '.join(str(error).split())})"
        ) from error
    parameters = inspect.signature(called).parameters
    values = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in node:
        if name in HYDRA_KEYS:
            continue
        if name not in parameters and not takes_all:
            raise unknown(
                f"{path}.{name}",
                visible(known) if isinstance(known, DictConfig) else list(parameters),
            )
        value = values[str(name)]
        if holds_target(value):
            continue
        adapter = annotation(target, str(name))
        if adapter is None:
            check_like(
                f"{path}.{name}", value, known.get(name) if isinstance(known, DictConfig) else None
            )
        elif not (value is None and isinstance(known, DictConfig) and known.get(name, 0) is None):
            check_fits(f"{path}.{name}", value, adapter, known)


def holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(holds_target(v) for v in value.values())
    return isinstance(value, list) and any(holds_target(v) for v in value)


@cache
def annotation(target: str, name: str) -> TypeAdapter | None:
    """What checks an argument's value; None where the constructor doesn't say or can't be asked."""
    called = get_object(target)
    function = called.__init__ if inspect.isclass(called) else called
    try:
        hint = typing.get_type_hints(function)[name]
        if "torch" in str(hint) or "Tensor" in str(hint) or hint is Any:
            return None
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (
        KeyError,
        NameError,
        TypeError,
        AttributeError,
        PydanticUserError,
        PydanticSchemaGenerationError,
    ):
        return None


def check_fits(path: str, value: Any, adapter: TypeAdapter, known: Any) -> None:
    """Raises UserError when the value doesn't fit the argument's annotation."""
    try:
        adapter.validate_python(
            tuple(value)
            if "tuple" in str(adapter.core_schema) and isinstance(value, list)
            else value
        )
    except ValidationError as error:
        first = error.errors()[0]
        now = known.get(path.rpartition(".")[2]) if isinstance(known, DictConfig) else None
        wanted = first["msg"][0].lower() + first["msg"][1:]
        literals = [e["ctx"]["expected"] for e in error.errors() if e["type"] == "literal_error"]
        close = ""
        if literals:
            choices = literals[0].replace(" or ", ", ").replace("'", "").split(", ")
            wanted, close = f"one of {', '.join(choices)}", nearest(str(value), choices)
        raise UserError(f"{path}={value}: {wanted}{close} (the file says {now})") from error


def check_like(path: str, value: Any, known: Any) -> None:
    """Raises UserError when a value is of another kind than the file's own; null there allows all."""
    if known is None or (value is None and not isinstance(known, bool | int | float)):
        return
    numbers = (
        isinstance(known, float) and isinstance(value, int | float) and not isinstance(value, bool)
    )
    texts = isinstance(known, str) and isinstance(value, str | int | float)
    mappings = isinstance(known, DictConfig | dict) and isinstance(value, DictConfig | dict)
    lists = isinstance(known, ListConfig | list) and isinstance(value, ListConfig | list)
    same = type(value) is type(known) and not isinstance(known, DictConfig | ListConfig)
    if not (numbers or texts or mappings or lists or same):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        kind = kinds.get(
            type(known), "a list" if isinstance(known, ListConfig) else "a group of options"
        )
        raise UserError(f"{path}={value}: {kind} is needed (the file says {known})")
