"""Read and write the JSON and YAML files of a run folder; in distributed training only rank 0 writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seg import files
from seg.display.console import is_rank_zero
from seg.errors import RunError
from seg.files import UnsafePath, read_text
from seg.runs.safe_loading import RECORD_LIMIT, parse_json


def write_json(file: Path, content: dict, below: Path | None = None) -> None:
    """Write a JSON file, whole or not at all; nan, which JSON does not have, becomes null.

    Args:
        file: file to write or replace.
        content: plain values.
        below: folder that the user named; None: the folder of ``file``.

    Raises:
        UnsafePath: if ``file``, or a folder between it and ``below``, is a link.
        OSError: if the file cannot be written.
    """
    if not is_rank_zero():
        return
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
    files.write_text(file, f"{text}\n", below or file.parent)


def write_arrays(file: Path, arrays: dict[str, np.ndarray], below: Path) -> None:
    """Write arrays as a compressed NPZ file, whole or not at all.

    Args:
        file: file to write or replace.
        arrays: name -> array.
        below: folder that the user named.

    Raises:
        UnsafePath: if ``file``, or a folder between it and ``below``, is a link.
        OSError: if the file cannot be written.
    """
    with files.open_binary(file, below) as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_json(file: Path, limit: int = RECORD_LIMIT) -> dict[str, Any]:
    """Return the content of a JSON file that ``write_json`` wrote.

    Args:
        file: run.json, sweep.json and the like.
        limit: largest size in bytes.

    Raises:
        RunError: if it does not exist or is damaged.
    """
    try:
        content = parse_json(read_text(file, limit))
    except UnsafePath:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"{file}: can't be read ({reason})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not written by seg")
    return content


def without_nan(value: Any) -> Any:
    """Return plain values with None for nan, and lists for tuples."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if value != value else value


def encodable_values(value: Any) -> Any:
    """Return plain values with escapes in texts that YAML cannot hold, such as bytes of a folder's name."""
    if isinstance(value, dict):
        return {key: encodable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encodable_values(item) for item in value]
    return files.encodable(value) if isinstance(value, str) else value


def write_config(file: Path, config: dict) -> None:
    """Write config.yaml, whole or not at all."""
    if not is_rank_zero():
        return
    text = yaml.safe_dump(encodable_values(config), sort_keys=False, allow_unicode=True)
    files.write_text(file, text, file.parent)
