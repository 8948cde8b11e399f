"""Render command lines that can be pasted into a shell: quoted for Hydra's grammar and for the shell."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

UNQUOTED_TEXT = re.compile(
    r"[A-Za-z0-9_./-]+"
)  # needs no quotes, unless it parses as a number, null or bool
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def render_command(command: str, *words: str) -> str:
    """Return ``seg COMMAND WORDS``, or ``python -m seg.COMMAND WORDS``, with each word quoted for the shell if needed."""
    return " ".join([*command_words(command), *map(quote_shell, words)])


def command_words(command: str) -> list[str]:
    """Return the words that start a command, in the form in which this process was started."""
    return ["seg", command] if started_by_script() else ["python", "-m", f"seg.{command}"]


def typed_command() -> list[str]:
    """Return the words with which this process was started, without the folders of Python and of the script."""
    if started_by_script():
        return ["seg", *sys.orig_argv[2:]]
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def started_by_script() -> bool:
    """Return True if this process runs the installed script ``seg``."""
    return len(sys.orig_argv) > 1 and Path(sys.orig_argv[1]).name in ("seg", "seg.exe")


def typed_overrides() -> list[str]:
    """Return the overrides that were typed for this command; empty if it was called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def config_dir_words() -> list[str]:
    """Return ``--config-dir FOLDER`` as words, if this command has that flag; else an empty list."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    return ["--config-dir", folders[0]] if folders else []


def render_option(name: str, value: Any) -> str:
    """Return ``name=value`` in Hydra's grammar, not yet quoted for the shell.

    Args:
        name: dotted name of the option, ``loader.workers``.
        value: None, bool, number, string or path, or lists and dicts of these.
    """
    return f"{name}={render_value(value)}"


def render_value(value: Any) -> str:
    """Return a value in Hydra's override grammar, which parses and resolves to the same value."""
    # Plain values; bool before int, since bool is a subclass of int
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # Containers, recursively
    if isinstance(value, list | tuple):
        return f"[{','.join(map(render_value, value))}]"
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{render_value(k)}:{render_value(v)}" for k, v in value.items()) + "}"
        )
    # Text, quoted only where the parser of Hydra needs it
    text = str(value)
    return text if parses_unquoted(text) else quote_hydra(text)


def parses_unquoted(text: str) -> bool:
    """Return True if Hydra parses the unquoted text as the same string."""
    if UNQUOTED_TEXT.fullmatch(text) is None:
        return False
    try:
        return OverridesParser.create().parse_override(f"x={text}").value() == text
    except HydraException:
        return False


def quote_hydra(text: str) -> str:
    r"""Return a string in double quotes for Hydra, with interpolations escaped.

    Backslashes are doubled only before a quote or ``${``; Hydra and OmegaConf keep all others.
    """
    literal = re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", text)
    doubled = re.sub(r'\\+(?="|$)', lambda match: match[0] * 2, literal)
    return '"' + doubled.replace('"', '\\"') + '"'


def quote_shell(word: str) -> str:
    r"""Return a word quoted for the shell; control characters, which a terminal would obey, as in ``$'a\nb'``."""
    if CONTROL_CHARACTERS.search(word) is None:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{CONTROL_CHARACTERS.sub(spell_control, escaped)}'"


def spell_control(match: re.Match[str]) -> str:
    """Return a matched control character as octal escapes."""
    return "".join(f"\\{byte:03o}" for byte in match[0].encode(errors="surrogateescape"))


def quote_path(path: Path | str) -> str:
    """Return a path quoted for the shell; one that begins with ``-`` gets ``./`` in front."""
    text = str(path)
    return quote_shell(f"./{text}" if text.startswith("-") else text)
