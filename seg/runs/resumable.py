"""Folders that an interrupted command continues, and only the command that began them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seg.cli.conf_files import format_option_value
from seg.cli.renamed_options import rename_options
from seg.errors import UserError
from seg.runs.records import read_json
from seg.runs.safe_loading import RECORD_LIMIT, cut_text

MAX_DIFFERENCES = 4  # differing settings that an error names
MAX_LENGTH = 300  # characters of each of them


def read_resumable_record(
    file: Path, now: Mapping[str, Any], command: str, limit: int = RECORD_LIMIT
) -> dict[str, Any] | None:
    """Return the record with which a command began a folder; None if the folder is new.

    Args:
        file: record in the folder.
        now: record that the command would begin it with: ``settings``, name -> JSON value, and more.
        command: name of the command, seg.predict.
        limit: largest size in bytes.

    Raises:
        UserError: if another command wrote the file, or it was begun with other settings.
        RunError: if it cannot be read.
    """
    if not file.is_file():
        return None
    begun = read_json(file, limit)
    if not set(now) <= set(begun) or not isinstance(begun["settings"], dict):
        raise UserError(f"{file}: not written by {command}; give another output")
    for name in ("settings", "options"):  # by their names before 0.2
        if isinstance(begun.get(name), dict):
            begun[name] = rename_options(begun[name])
    check_same_settings(f"output={file.parent}", begun["settings"], now["settings"])
    return begun


def check_same_settings(
    place: str, begun: Mapping[str, Any], now: Mapping[str, Any], other: str = "output"
) -> None:
    """Raise UserError if two settings differ; it names each difference, as found and as given.

    Args:
        place: option that names what was begun, output=FOLDER.
        begun: recorded settings, name -> JSON value; a missing one is null.
        now: settings of this command.
        other: option that would begin something new.
    """
    begun = rename_options(dict(begun))
    differ = [n for n in dict.fromkeys([*now, *begun]) if begun.get(n) != now.get(n)]
    if not differ:
        return
    was, is_now = (
        ", ".join(
            cut_text(f"{n}={format_option_value(side.get(n))}", MAX_LENGTH)
            for n in differ[:MAX_DIFFERENCES]
        )
        for side in (begun, now)
    )
    more = len(differ) - MAX_DIFFERENCES
    others = f" ({more} more differ)" if more > 0 else ""
    raise UserError(
        f"{place}: begun with {was}, and this is {is_now}{others}; repeat the command that began it, or give "
        f"another {other}"
    )
