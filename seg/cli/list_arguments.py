"""Command line of seg.compare and seg.list: options that are lists, written with commas or as bare words."""

from argparse import Namespace
from pathlib import Path

from seg.cli.command_line import quote_hydra
from seg.errors import UserError

LIST_OPTIONS = ("runs", "where", "group_by", "status", "clean")  # options with several values


def list_overrides(arguments: Namespace) -> list[str]:
    """Return the parsed command line as Hydra reads it.

    Raises:
        UserError: for -m, and if runs are given both as words and as an option.
    """
    if arguments.multirun:
        raise UserError("-m: one command reads all runs; leave it out")
    return to_overrides(arguments.overrides)


def to_overrides(line: list[str]) -> list[str]:
    """Return a command line as Hydra reads it: bare words become ``runs``, commas make lists, not sweeps.

    Raises:
        UserError: if runs are given both as words and as an option.
    """
    folders = [w for w in line if "/" in w.partition("=")[0] or "=" not in w or Path(w).exists()]
    rest = [word for word in line if word not in folders]
    if folders and any(word.startswith("runs=") for word in rest):
        raise UserError(f"{folders[0]}: give runs either as words or as runs=[...]")
    return [*(["runs=" + quote_list(folders)] if folders else []), *map(quote_option, rest)]


def quote_option(word: str) -> str:
    """Return an option with its commas quoted."""
    name, _, value = word.partition("=")
    if not value or value[0] in "[\"'" or value == "null":
        return word
    if name in LIST_OPTIONS:
        return f"{name}={quote_list(split_words(value) if name == 'where' else value.split(','))}"
    return f"{name}={quote_hydra(value)}" if name in ("baseline", "score") else word


def quote_list(values: list[str]) -> str:
    """Return values as a list in Hydra's grammar."""
    return f"[{','.join(quote_hydra(value) for value in values)}]"


def split_words(text: str) -> list[str]:
    """Split ``a=1,b=[2,3],c=x`` into its three words."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and "=" not in part:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return [part.strip() for part in parts]
