"""File of settings that ``experiment=NAME`` chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from seg import files
from seg.cli.conf_files import group_names
from seg.display.console import escape_controls
from seg.errors import UserError
from seg.files import read_bytes
from seg.planning.rules import Setting

MADE_BY = "# Settings chosen by seg.plan"
FILE_LIMIT = 2**20  # bytes of a file that may be one of ours


def check_output(file: Path, config_dir: str | None) -> None:
    """Check that a file of settings can be written and chosen, and that it replaces nothing but another one.

    Args:
        file: that is to be written.
        config_dir: folder given by ``--config-dir``, of which seg.train takes a single one.

    Raises:
        UserError: if it can't be chosen by ``experiment=``, or another file is there.
        RunError: if it can't be written.
    """
    if file.suffix != ".yaml" or not file.stem.replace("-", "_").isidentifier():
        raise UserError(f"output={file}: a name of letters, digits, - and _ with .yaml is needed")
    if file.absolute().parent.name != "experiment":
        better = file.parent / "experiment" / file.name
        raise UserError(
            f"output={file}: seg.train --config-dir finds it only in a folder named experiment; give output={better}"
        )
    if config_dir and Path(config_dir).resolve() != file.absolute().parent.parent.resolve():
        better = Path(config_dir) / "experiment" / file.name
        raise UserError(
            f"output={file}: seg.train takes one --config-dir, and it is {config_dir}; give output={better}"
        )
    if file.exists() and MADE_BY.encode() not in read_bytes(file, FILE_LIMIT):
        raise UserError(f"output={file}: it was not written by seg.plan; give another name")
    files.check_writable(file.parent, file.parent, [file.name])


def write_experiment(
    file: Path, header: Sequence[str], given: Sequence[Override], settings: Sequence[Setting]
) -> None:
    """Write given options and chosen settings, these with their reasons, as a file of conf/experiment.

    Args:
        file: to write or replace.
        header: further lines of the comment on top.
        given: overrides of the command line.
        settings: chosen.
    """
    groups = group_names()
    bases = [o.value() for o in given if o.key_or_group == "experiment"]
    chosen = [
        (o.key_or_group, o.value())
        for o in given
        if o.key_or_group in groups and o.key_or_group != "experiment"
    ]
    chosen += [(s.option, s.value) for s in settings if s.option in groups]
    values = {o.key_or_group: (o.value(), "given") for o in given if o.key_or_group not in groups}
    values |= {s.option: (s.value, s.reason) for s in settings if s.option not in groups}
    lines = [
        "# @package _global_",
        f"{MADE_BY}.",
        *(f"# {' '.join(line.split())}" for line in header),
    ]
    if bases or chosen:
        lines += ["defaults:", *(f"  - {base}" for base in bases)]
        lines += [f"  - override /{group}: {yaml_in_one_line(choice)}" for group, choice in chosen]
    lines += nested_lines(nest_names(values))
    files.make_folder(file.parent, file.parent)
    files.write_text(file, "\n".join([*map(escape_controls, lines), ""]), file.parent)


def nest_names(values: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Return dotted names as nested dicts, whose leaves are (value, comment)."""
    tree: dict[str, Any] = {}
    for name, leaf in values.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def nested_lines(tree: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return the lines of nested dicts in YAML."""
    lines = []
    for name, node in tree.items():
        if isinstance(node, dict):
            lines += [f"{indent}{name}:", *nested_lines(node, indent + "  ")]
        else:
            value, comment = node
            lines.append(
                f"{indent}{name}: {yaml_in_one_line(value)}  # {' '.join(comment.split())}"
            )
    return lines


def yaml_in_one_line(value: Any) -> str:
    """Return a value in YAML, in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n...\n").rstrip("\n")
