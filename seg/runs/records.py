"""JSON and YAML files of a run folder."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from seg.errors import RunError


@contextmanager
def whole(file: Path) -> Generator[Path]:
    """A path to write what becomes ``file`` at the end: whole, or not at all.

    Raises:
        OSError: naming ``file``, as when its disk is full.
    """
    aside = file.with_name(f".{file.name}")
    try:
        yield aside
        os.replace(aside, file)
    except OSError as error:
        if error.filename in (None, str(aside)):
            error.filename = str(file)  # a write that fails doesn't say where
        raise
    finally:
        aside.unlink(missing_ok=True)


@rank_zero_only
def write_json(file: Path, content: dict) -> None:
    """Whole or not at all; nan, which JSON hasn't, becomes null."""
    with whole(file) as aside:
        text = json.dumps(without_nan(content), indent=2, ensure_ascii=False)
        aside.write_text(f"{text}\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """What ``write_json`` wrote.

    Raises:
        RunError: when it isn't there, or was damaged since.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can't be read ({error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not written by seg")
    return content


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(below) for below in value]
    return None if value != value else value


@rank_zero_only
def write_config(file: Path, config: dict) -> None:
    with whole(file) as aside:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        aside.write_text(text, encoding="utf-8")
