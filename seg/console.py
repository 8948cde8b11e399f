"""The terminal and log.txt: what a command says, without the libraries' chatter."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
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
            self.target.print(record.getMessage(), markup=False)
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
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    ours = logging.getLogger("seg")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = [h for h in ours.handlers if not isinstance(h, Terminal)]
    ours.addHandler(Terminal(console) if speaks and first_process() else logging.NullHandler())
    for name in (*LIBRARIES, "py.warnings"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False


@contextmanager
def logging_to(file: Path) -> Generator[None]:
    """Adds a log file for everything said within; tables become text."""
    with file.open("a", encoding="utf-8") as stream:
        said = Terminal(Console(file=stream, width=120, highlight=False))
        noise = logging.StreamHandler(stream)
        noise.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
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
