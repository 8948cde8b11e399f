"""Files and groups of conf/, and parts of messages about their options."""

import difflib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf"  # of a wheel
if not CONF.exists():
    CONF = PACKAGE.parent / "conf"  # of a checkout
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def group_names(overrides: Collection[Override] = ()) -> dict[str, list[str]]:
    """Return config group -> names of its files, with those of folders added by ``hydra.searchpath``."""
    folders = [CONF]
    for override in overrides:
        added = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(added, list):
            folders += [Path(str(folder).removeprefix("file://")) for folder in added]
    groups: dict[str, set[str]] = {}
    for file in (file for folder in folders for file in folder.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(groups[name]) for name in sorted(groups)}


@cache
def own_options(config_name: str) -> dict[str, Any]:
    """Return the options of a command's own file, without the groups of which it chooses a file; not to be changed."""
    content = yaml.safe_load((CONF / f"{config_name}.yaml").read_text("utf-8"))
    defaults = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
    chosen = {group for entry in defaults for group, choice in entry.items() if choice}
    return {name: value for name, value in content.items() if name not in {*chosen, "hydra"}}


def is_hydra_override(override: Override) -> bool:
    """Return True for an override of Hydra's own config."""
    return override.key_or_group.replace("/", ".").split(".")[0] == "hydra"


def did_you_mean(word: str, words: Collection[str]) -> str:
    """Return ``; did you mean x?`` for the most similar word, or an empty text."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def join_some(words: list[str]) -> str:
    """Return at most 12 words, separated by commas."""
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


def format_option_value(value: Any) -> str:
    """Return a value as typed on a command line, without quotes."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
