"""Output to the terminal and to log.txt: our messages, without those of the libraries."""

import functools
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

from rich.console import Console
from rich.progress import track
from rich.text import Text

from seg import files

TERMINAL_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Return the text with control characters, which would act on a terminal, as escape sequences."""
    return TERMINAL_CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class EscapingConsole(Console):
    """Console that prints text literally: no markup, no emoji codes, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **options)


class EscapingFormatter(logging.Formatter):
    """Formatter that escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


console = EscapingConsole(soft_wrap=True)
Item = TypeVar("Item")
P = ParamSpec("P")
R = TypeVar("R")
NOISY_LOGGERS = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
    "torch",
)


class ConsoleHandler(logging.Handler):
    """Logging handler that prints the message, or the table of ``extra={"table": ...}``."""

    def __init__(self, target: Console) -> None:
        super().__init__()
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        table = getattr(record, "table", None)
        if table is None:
            self.target.print(
                record.getMessage(), soft_wrap=True
            )  # so that a printed command can be copied
        else:
            self.target.print(table, soft_wrap=False)


def track_progress(items: Sequence[Item], text: str) -> Iterable[Item]:
    """Iterate over items with a progress bar, which only a terminal shows."""
    hidden = not console.is_terminal
    return track(items, text, console=console, transient=True, disable=hidden)


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, the one that prints and writes."""
    module = sys.modules.get("lightning_utilities.core.rank_zero")  # absent: Lightning isn't used
    return not getattr(getattr(module, "rank_zero_only", None), "rank", 0)


def rank_zero_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """Decorate a function that does nothing, and returns None, in processes of other ranks."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_rank_zero() else None

    return guarded


def configure_logging(speaks: bool = True) -> None:
    """Print our own messages on the terminal; send those of libraries, and warnings, to log.txt only.

    Args:
        speaks: whether our own are printed; False for the jobs of a sweep.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold bytes that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    # Send warnings to the logging system, each place once
    logging.captureWarnings(True)
    warnings.simplefilter("default", append=True)  # after the filters of -W and of pytest
    # Own logger: one console handler, on rank 0 only
    ours = logging.getLogger("seg")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = [h for h in ours.handlers if not isinstance(h, ConsoleHandler)]
    ours.addHandler(ConsoleHandler(console) if speaks and is_rank_zero() else logging.NullHandler())
    # Libraries are silent on the console; the log file has their messages
    for name in (*NOISY_LOGGERS, "py.warnings"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False


class LogFile:
    """Unbuffered log file; a failed write is reported once on the terminal and does not end the run.

    Args:
        file: file to append to.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.raw, self.warned = file, files.open_append(file, file.parent), False

    def write(self, text: str) -> None:
        rest = text.encode("utf-8", "backslashreplace")
        try:
            while rest:  # a disk that fills up writes a part
                rest = rest[self.raw.write(rest) :]
        except OSError as error:
            if not self.warned:
                self.warned = True
                console.print(f"{self.file}: {error.strerror}; lines are missing in it")

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def close(self) -> None:
        self.raw.close()


@contextmanager
def log_to_file(file: Path) -> Generator[None]:
    """Write all messages of the block to a log file too; tables become text."""
    with closing(LogFile(file)) as stream:
        # Own messages as on the console, those of the libraries with time and level
        ours = ConsoleHandler(EscapingConsole(file=cast(IO[str], stream), width=120))
        others = logging.StreamHandler(stream)
        others.setFormatter(EscapingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        loggers = [logging.getLogger(name) for name in (*NOISY_LOGGERS, "py.warnings")]
        # Attach both for the duration of the context
        logging.getLogger("seg").addHandler(ours)
        for library in loggers:
            library.addHandler(others)
        try:
            yield
        finally:
            logging.getLogger("seg").removeHandler(ours)
            for library in loggers:
                library.removeHandler(others)
