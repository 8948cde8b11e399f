"""Command-line words that are lists: runs, filters and groups of seg.compare."""

from pathlib import Path

from seg.cli.command_line import quote_hydra
from seg.errors import UserError

LISTS = ("runs", "where", "group_by")  # options that take several values


def as_options(line: list[str]) -> list[str]:
    """A command line as Hydra reads it: bare words are runs, and commas make lists, not sweeps.

    Raises:
        UserError: when runs are given both ways.
    """
    folders = [w for w in line if "/" in w.partition("=")[0] or "=" not in w or Path(w).exists()]
    rest = [word for word in line if word not in folders]
    if folders and any(word.startswith("runs=") for word in rest):
        raise UserError(f"{folders[0]}: give the runs as words or as runs=[...], not both")
    return [*(["runs=" + quoted(folders)] if folders else []), *map(option, rest)]


def option(word: str) -> str:
    """One option, its commas quoted."""
    name, _, value = word.partition("=")
    if not value or value[0] in "[\"'" or value == "null":
        return word
    if name in LISTS:
        return f"{name}={quoted(words(value) if name == 'where' else value.split(','))}"
    return f"{name}={quote_hydra(value)}" if name in ("baseline", "score") else word


def quoted(values: list[str]) -> str:
    return f"[{','.join(quote_hydra(value) for value in values)}]"


def words(text: str) -> list[str]:
    """``a=1,b=[2,3],c=x`` as its three words."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and "=" not in part:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return [part.strip() for part in parts]
