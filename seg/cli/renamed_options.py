"""Options that were renamed: their names before 0.2 and their present names.

Until ``REMOVED_IN`` the old names work on the command line, in config files of a user, and in the files of earlier
runs. Constructors have the present names only.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, flag_override

from seg.errors import UserError

REMOVED_IN = "0.3"
RENAMED_OPTIONS = {  # dotted name before 0.2 -> present name; both are in the same group
    "kept": "save_predictions",
    "fresh": "restart",
    "bad_steps": "on_nonfinite",
    "loader.foreground": "loader.rare_class_crops",
    "data.blocks": "data.contiguous",
    "data.layers": "data.mask_layers",
    "objects.neck": "objects.split_neck_px",
    "confidence": "confidence_level",  # of seg.evaluate and seg.crossval
    "images": "num_examples",  # of seg.compare, as the next
    "megabytes": "max_picture_mb",
}
# marks, name and =value; a word without = is an override only after ~
OVERRIDE = re.compile(r"(?=~|[^=]+=)([+~]*)([\w.]+)(=.*|)", re.DOTALL)


@cache
def announce_renaming(old: str) -> None:
    """Print once on stderr that an option was renamed."""
    new = RENAMED_OPTIONS[old]
    print(f"{old} is now {new}; the old word works until version {REMOVED_IN}", file=sys.stderr)


def rename_option(name: str) -> str:
    """Return the present name of an option; an old name is announced once."""
    if name not in RENAMED_OPTIONS:
        return name
    announce_renaming(name)
    return RENAMED_OPTIONS[name]


def rename_words(words: Sequence[str]) -> list[str]:
    """Return overrides with the present names of their options; each old name is announced once.

    Args:
        words: overrides, ``name=value``, ``+name=value`` or ``~name``; other words stay as they are.

    Raises:
        UserError: if an option is given by its old and by its present name.
    """
    parts = [
        match.groups() if (match := OVERRIDE.fullmatch(word)) else ("", "", word) for word in words
    ]
    names = {name: word for (_, name, _), word in zip(parts, words, strict=True)}
    for name, word in names.items():
        new = RENAMED_OPTIONS.get(name)
        if new in names:
            raise UserError(f"{word} and {names[new]}: {name} is now {new}; give one of them")
    return [f"{marks}{rename_option(name)}{rest}" for marks, name, rest in parts]


def rename_composed(cfg: DictConfig, words: Iterable[str]) -> None:
    """Rename, in place, the options that a user's config file gives by their old names.

    An option typed on the command line goes before that of a file.

    Args:
        cfg: composed by Hydra.
        words: overrides of the command line, with present names.
    """
    typed = {match[2] for word in words if (match := OVERRIDE.fullmatch(word))}
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        for old, new in RENAMED_OPTIONS.items():
            group, _, key = old.rpartition(".")
            node = OmegaConf.select(cfg, group) if group else cfg
            if not isinstance(node, DictConfig) or key not in node or not is_own_group(group, node):
                continue
            announce_renaming(old)
            # as plain values, with interpolations unresolved
            value = cast(dict[str, Any], OmegaConf.to_container(node))[key]
            del node[key]
            if new not in typed:
                node[new.rpartition(".")[2]] = value


def rename_options(config: dict[Any, Any], group: str = "") -> dict[Any, Any]:
    """Return a config of an earlier run with the present names of its options, in the same order.

    Args:
        config: nested plain values, or a flat dict of dotted names.
        group: name of the group that ``config`` is; empty: the whole config.
    """
    renamed: dict[Any, Any] = {}
    for key, value in config.items():
        name = f"{group}.{key}" if group else key
        new = RENAMED_OPTIONS.get(name) if is_own_group(group, config) else None
        new = new.removeprefix(f"{group}.") if new else key
        nested = isinstance(value, dict) and not group
        renamed[new] = rename_options(value, str(key)) if nested else value
    return renamed


def is_own_group(group: str, node: Any) -> bool:
    """Return False for a data source of another package, whose arguments have names of their own."""
    return group != "data" or str(node.get("_target_", "seg.")).startswith("seg.")
