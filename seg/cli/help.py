"""Text of ``--help``: the config files themselves, which hold each option with default and comment."""

from pathlib import Path

from seg.cli.command_line import command_words
from seg.cli.conf_files import CONF, group_names


def help_text(config_name: str) -> str:
    """Return the help of a command: its own file, train.yaml if it extends that, and every file of its groups."""
    main = (CONF / f"{config_name}.yaml").read_text()
    files = [config_name, *(["train"] if "\n  - train " in main else [])]
    composed = "".join((CONF / f"{file}.yaml").read_text() for file in files)
    groups = {name: names for name, names in group_names().items() if f"- {name}: " in composed}
    typed = " ".join(command_words(config_name))
    parts = [f"{typed} [GROUP=CHOICE ...] [OPTION=VALUE ...]", ""]
    parts += [f"  {name}={'|'.join(names)}" for name, names in groups.items()]
    sweeps = ", -m sweeps values separated by commas" if config_name == "train" else ""
    parts += ["", f"--cfg job shows what a line composes{sweeps}.", ""]
    for file in files:
        parts += help_section(file, CONF / f"{file}.yaml", until="hydra:")
    for name, choices in groups.items():
        for choice in choices:
            parts += help_section(f"{name}={choice}", CONF / name / f"{choice}.yaml")
    return "\n".join(parts)


def help_section(title: str, file: Path, until: str | None = None) -> list[str]:
    """Return the lines of a file under a title, up to a key."""
    text = file.read_text()
    if until is not None:
        text = text.partition(f"\n{until}")[0]
    return [f"== {title} ==", *(f"  {line}" for line in text.rstrip().splitlines()), ""]
