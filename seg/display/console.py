"""The terminal and log.txt: what a command says, without the libraries' chatter."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.text import Text

from seg import files

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text whose control characters, by which a terminal would be told what to do, are spelt out."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class Told(Console):
    """Shows names as they are: no markup, no codes of emoji, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class Spelt(logging.Formatter):
    """What libraries say, likewise."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


console = Told(soft_wrap=True)
LIBRARIES = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
    "torch",
)


class Terminal(logging.Handler):
    """Prints messages as they are, and a table given as ``extra={"table": ...}``."""

    def __init__(self, target: Console) -> None:
        super().__init__()
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        table = getattr(record, "table", None)
        if table is None:
            self.target.print(record.getMessage(), soft_wrap=True)  # a command stays in one line
        else:
            self.target.print(table, soft_wrap=False)


def first_process() -> bool:
    """Whether this is the process that speaks and writes, of those that train one run together."""
    return not getattr(rank_zero_only, "rank", 0)


def quiet(speaks: bool = True) -> None:
    """Our own messages to the terminal; those of the libraries, and warnings, only to log.txt.

    Args:
        speaks: false: our own go only to log.txt too, as those of a sweep's jobs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that isn't UTF-8 ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.captureWarnings(True)
    warnings.simplefilter("default", append=True)  # after the filters of -W and of the tests
    ours = logging.getLogger("seg")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = [h for h in ours.handlers if not isinstance(h, Terminal)]
    ours.addHandler(Terminal(console) if speaks and first_process() else logging.NullHandler())
    for name in (*LIBRARIES, "py.warnings"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False


class LogFile:
    """A file that is written at once; a full disk is told on the terminal, and ends no run.

    Args:
        file: to add to.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.raw, self.told = file, files.append(file, file.parent), False

    def write(self, text: str) -> None:
        left = text.encode("utf-8", "backslashreplace")
        try:
            while left:  # a disk that fills up takes a part
                left = left[self.raw.write(left) :]
        except OSError as error:
            if not self.told:
                self.told = True
                console.print(f"{self.file}: {error.strerror}; lines are lost")

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.raw.close()


@contextmanager
def logging_to(file: Path) -> Generator[None]:
    """Adds a log file for everything said within; tables become text."""
    with closing(LogFile(file)) as stream:
        said = Terminal(Told(file=cast(IO[str], stream), width=120))
        noise = logging.StreamHandler(stream)
        noise.setFormatter(Spelt("%(asctime)s %(name)s %(levelname)s %(message)s"))
        loggers = [logging.getLogger(name) for name in (*LIBRARIES, "py.warnings")]
        logging.getLogger("seg").addHandler(said)
        for library in loggers:
            library.addHandler(noise)
        try:
            yield
        finally:
            logging.getLogger("seg").removeHandler(said)
            for library in loggers:
                library.removeHandler(noise)
