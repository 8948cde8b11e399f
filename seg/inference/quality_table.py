"""quality.csv in an output folder: a part of each input, which the last worker of a command merges."""

import csv
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from seg import files
from seg.cli.command_line import quote_path
from seg.errors import RunError, first_line
from seg.files import read_text
from seg.inference.quality import COLUMNS, QUALITY_FILE, ImageQuality, look_line
from seg.runs import records
from seg.runs.safe_loading import TABLE_LIMIT

log = logging.getLogger("seg")
QUALITY_PART = ".quality.json"


def write_quality_part(
    output: Path, name: str, file: Path, qualities: Sequence[ImageQuality], classes: Sequence[str]
) -> None:
    """Write the rows of one input.

    Args:
        output: folder of the results.
        name: of the input's results.
        file: the input.
        qualities: of each page.
        classes: names.
    """
    image = Path(name).with_name(file.name).as_posix()
    pages = [None] if len(qualities) == 1 else range(len(qualities))
    rows = [row for page, q in zip(pages, qualities, strict=True) for row in q.rows(image, page, classes)]  # fmt: skip
    part = output / files.short_name(f".{quote(os.fsencode(name), safe='')}{QUALITY_PART}")
    files.write_text(part, json.dumps({"rows": rows}), output)


def merge_quality_parts(output: Path) -> None:
    """Add the parts of all workers to quality.csv, under the lock of the folder's record.

    Rows of an input that was predicted again are replaced.
    """
    table = output / QUALITY_FILE
    parts = sorted(output.glob(f"*{QUALITY_PART}"))
    if parts:
        new = [row for part in parts for row in records.read_json(part)["rows"]]
        images = {row[0] for row in new}
        old = [list(row.values()) for row in read_quality_rows(table) if row["image"] not in images]
        write_quality_rows(table, sorted([*old, *new], key=lambda row: row[0]), output)
        for part in parts:
            part.unlink()


def write_quality_rows(table: Path, rows: Sequence[Sequence[Any]], below: Path) -> None:
    """Write quality.csv, whole or not at all."""
    with files.open_text(table, below) as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def read_quality_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of quality.csv by column; none if there is no file.

    Raises:
        RunError: if the file is damaged.
    """
    if not table.exists():
        return []
    remedy = "remove it; the same command writes the rows of new inputs"
    try:
        reader = csv.DictReader(read_text(table, TABLE_LIMIT).splitlines(keepends=True))
        rows = list(reader)
    except (ValueError, csv.Error) as error:
        raise RunError(f"{table}: damaged: {first_line(error)}; {remedy}") from error
    whole = all(None not in row and None not in row.values() for row in rows)
    if list(reader.fieldnames or []) != list(COLUMNS) or not whole:
        raise RunError(f"{table}: damaged: other columns than {', '.join(COLUMNS)}; {remedy}")
    return rows


def log_quality(output: Path) -> None:
    """Log which images of quality.csv need a look, if there is one."""
    looks: dict[str, bool] = {}
    for row in read_quality_rows(output / QUALITY_FILE):
        image = row["image"] + (f" page {row['page']}" if row["page"] else "")
        looks[image] = row["look"] == "yes"
    if looks:
        log.info(f"quality    {look_line(looks.items())}; {quote_path(output / QUALITY_FILE)}")
