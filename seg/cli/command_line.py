"""Render command lines that run as printed: an option for Hydra's grammar, a word for the shell."""

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PLAIN = re.compile(
    r"[A-Za-z0-9_./-]+"
)  # needs no quotes, unless it reads as a number, null or true
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def render_command(command: str, *words: str) -> str:
    """Return ``python -m seg.COMMAND WORDS``, each word quoted for the shell where it needs that."""
    return " ".join(["python", "-m", f"seg.{command}", *map(quote_shell, words)])


def config_folder() -> list[str]:
    """Return ``--config-dir FOLDER`` as words, where this command was given one."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    return ["--config-dir", folders[0]] if folders else []


def render_option(name: str, value: Any) -> str:
    """Return ``name=value`` as Hydra reads it, before the shell's own quotes.

    Args:
        name: path of the option, ``loader.workers``.
        value: None, a bool, a number, a string or path, or lists and dicts of these.
    """
    return f"{name}={render_value(value)}"


def render_value(value: Any) -> str:
    """Return a value in Hydra's override grammar: parsed and resolved it is the same value again."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(render_value, value))}]"
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{render_value(k)}:{render_value(v)}" for k, v in value.items()) + "}"
        )
    text = str(value)
    return text if is_plain(text) else quote_hydra(text)


def is_plain(text: str) -> bool:
    """Whether Hydra reads the bare text as this very string."""
    if PLAIN.fullmatch(text) is None:
        return False
    try:
        return OverridesParser.create().parse_override(f"x={text}").value() == text
    except HydraException:
        return False


def quote_hydra(text: str) -> str:
    r"""Return a string in Hydra's double quotes, its interpolations escaped.

    Backslashes are doubled only before a quote or ``${``: elsewhere both Hydra and OmegaConf keep them.
    """
    literal = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)
    doubled = re.sub(r'\\+(?="|$)', lambda found: found[0] * 2, literal)
    return '"' + doubled.replace('"', '\\"') + '"'


def quote_shell(word: str) -> str:
    r"""Return a word as the shell takes it; control characters, which a terminal obeys, as in ``$'a\nb'``."""
    if CONTROLS.search(word) is None:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{CONTROLS.sub(spell_control, escaped)}'"


def spell_control(found: re.Match[str]) -> str:
    return "".join(f"\\{byte:03o}" for byte in found[0].encode(errors="surrogateescape"))


def quote_path(path: Path | str) -> str:
    """Return a path as a word of the shell that no command takes for a flag."""
    text = str(path)
    return quote_shell(f"./{text}" if text.startswith("-") else text)
