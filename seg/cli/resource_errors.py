"""Turn out-of-memory and DataLoader-worker failures into errors that name the settings to reduce."""

import re
import signal
import traceback
from collections.abc import Generator
from contextlib import contextmanager

MEMORY_PATTERN = re.compile(
    r"out of memory|(can't|cannot|unable to|failed to) allocate|insufficient memory|bad_alloc|_ALLOC_FAILED"
    r"|could not create a (primitive|memory)",
    re.IGNORECASE,
)  # messages of torch, CUDA libraries, numpy, OpenCV, the system and oneDNN
AMOUNT_PATTERN = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGT]iB))", re.IGNORECASE)
WORKER_PATTERN = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. )?"
)
MEMORY_ADVICE = (
    "fewer loader.workers, a smaller loader.memory or loader.batch_size need less memory"
)


class OutOfMemory(RuntimeError):
    """The memory of the machine or its GPU was exhausted."""


class WorkerDied(RuntimeError):
    """A DataLoader worker process died."""


def explain_error(error: BaseException, demand: str, lower: str) -> BaseException:
    """Return a clearer error for memory and worker failures; any other error unchanged.

    Args:
        error: error that ended a run.
        demand: description of what needed the memory, "the first step, of loader.batch_size=8".
        lower: advice on which settings to reduce.
    """
    if not isinstance(error, Exception):
        return error
    text = str(error)
    # A loader process that died, as PyTorch reports it
    if isinstance(error, RuntimeError) and WORKER_PATTERN.search(text):
        match = WORKER_PATTERN.search(str(error.__cause__)) or WORKER_PATTERN.search(
            text
        )  # the cause has the signal
        assert match is not None
        return WorkerDied(describe_worker_end(*match.groups()))
    # A loader process that died while it sent data
    if isinstance(error, ConnectionError | EOFError) and raised_in_loader(error):
        return WorkerDied(
            f"a loader process died while sending a batch, perhaps because memory ran out; {MEMORY_ADVICE}"
        )
    # Memory, of the machine or of the GPU; PyTorch raises RuntimeError for some of these
    if isinstance(error, MemoryError) or (
        not isinstance(error, ValueError) and MEMORY_PATTERN.search(text)
    ):
        amount = AMOUNT_PATTERN.search(text)
        request = f" (asked for {format_amount(amount[1])} at once)" if amount else ""
        return OutOfMemory(f"out of memory in {demand}{request}; {lower}")
    return error


def raised_in_loader(error: Exception) -> bool:
    """Return True if an error was raised while fetching a batch from DataLoader workers."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(file.endswith("torch/utils/data/dataloader.py") for file in files)


@contextmanager
def explain_errors(demand: str, lower: str) -> Generator[None]:
    """Replace memory and worker failures in the context by clearer errors; arguments as in ``explain_error``."""
    try:
        yield
    except Exception as error:
        clearer = explain_error(error, demand, lower)
        if clearer is error:
            raise
        raise clearer from error


def describe_worker_end(pids: str, killed: str | None) -> str:
    """Return how loader processes ended, the likely reason, and what may help."""
    how = (
        "ended unexpectedly" if killed is None else f"was killed by signal {signal_number(killed)}"
    )
    reasons = {
        None: "perhaps because memory ran out; its own message, if any, is above",
        "SIGKILL": "perhaps because memory ran out",
        "SIGBUS": "perhaps because /dev/shm is full, or a mapped file was truncated",
    }
    why = reasons.get(
        killed and signal_number(killed).split()[-1].strip("()"), "the sender is unknown"
    )
    return f"a loader process (pid {pids}) {how}, {why}; {MEMORY_ADVICE}"


def signal_number(killed: str) -> str:
    """Return number and name of a signal from its description: ``9 (SIGKILL)`` for ``Killed``."""
    matches = [s for s in signal.Signals if (signal.strsignal(s) or "").split(":")[0] == killed]
    return f"{int(matches[0])} ({matches[0].name})" if matches else killed


def format_amount(amount: str) -> str:
    """Return ``4000000000000 bytes`` as ``3725.3 GiB``; amounts below 1 GiB in MiB."""
    value, unit = amount.split()
    if unit != "bytes":
        return amount
    gib = float(value) / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"
