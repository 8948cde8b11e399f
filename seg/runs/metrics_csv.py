"""metrics.csv: one row per measurement."""

from pathlib import Path

from seg import files
from seg.errors import RunError
from seg.files import UnsafePath
from seg.runs.safe_loading import read_rows


def append_line(file: Path, line: str) -> None:
    """Append a line to a file; if the disk is full, nothing is appended.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    with files.open_append(file, file.parent) as stream:
        before, rest = stream.tell(), line.encode()
        try:
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError as error:
            stream.truncate(before)
            error.filename = str(file)
            raise


def read_metrics(file: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv; a metric that was not measured in a row is an empty text.

    A last line without line end, as a power failure leaves it, and lines of another length than the header are
    dropped.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        rows = read_rows(file)
        header = next(rows, [])
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    except UnsafePath:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can't be read ({error})") from error
