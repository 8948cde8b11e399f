"""JSON and YAML files of a run folder."""

import json
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from seg import files
from seg.errors import RunError
from seg.files import UnsafePath, read_text
from seg.runs.safe_loading import RECORD_LIMIT, json_value


@rank_zero_only
def write_json(file: Path, content: dict, below: Path | None = None) -> None:
    """Write a file of JSON, whole or not at all; nan, which JSON hasn't, becomes null.

    Args:
        file: that is written or replaced.
        content: plain values.
        below: folder that the user named; None: that of ``file``.
    """
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
    files.write_text(file, f"{text}\n", below or file.parent)


def read_json(file: Path, limit: int = RECORD_LIMIT) -> dict[str, Any]:
    """Return what ``write_json`` wrote.

    Args:
        file: run.json, sweep.json and the like.
        limit: largest size in bytes.

    Raises:
        RunError: if it is not there, or was damaged since.
    """
    try:
        content = json_value(read_text(file, limit))
    except UnsafePath:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"{file}: can't be read ({reason})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not written by seg")
    return content


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(below) for below in value]
    return None if value != value else value


def encodable(value: Any) -> Any:
    """Return plain values with escapes in texts that YAML cannot hold, such as bytes of a folder's name."""
    if isinstance(value, dict):
        return {key: encodable(below) for key, below in value.items()}
    if isinstance(value, list):
        return [encodable(below) for below in value]
    return files.encodable(value) if isinstance(value, str) else value


@rank_zero_only
def write_config(file: Path, config: dict) -> None:
    text = yaml.safe_dump(encodable(config), sort_keys=False, allow_unicode=True)
    files.write_text(file, text, file.parent)
