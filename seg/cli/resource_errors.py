"""What a machine lacked when it ended a run, memory or a loader process, told with what to lower."""

import re
import signal
import traceback
from collections.abc import Generator
from contextlib import contextmanager

MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to|failed to) allocate|insufficient memory|bad_alloc|_ALLOC_FAILED"
    r"|could not create a (primitive|memory)",
    re.IGNORECASE,
)  # as torch, CUDA's libraries, numpy, OpenCV, the system and oneDNN say it
AMOUNT = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGT]iB))", re.IGNORECASE)
WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. )?"
)
FEWER = "fewer loader.workers, a smaller loader.memory or loader.batch_size need less memory"


class OutOfMemory(RuntimeError):
    """The memory of the machine, or of its GPU, was not enough."""


class WorkerEnded(RuntimeError):
    """A process that loads images ended, and not by itself."""


def explained(error: BaseException, demand: str, lower: str) -> BaseException:
    """The error itself, or what a person can do where the machine lacked something.

    Args:
        error: that ended a run.
        demand: what the machine was asked for.
        lower: what needs less memory.
    """
    if not isinstance(error, Exception):
        return error
    text = str(error)
    if isinstance(error, RuntimeError) and WORKER.search(text):
        said = WORKER.search(str(error.__cause__)) or WORKER.search(text)  # the first may know more
        assert said is not None
        return WorkerEnded(worker_end(*said.groups()))
    if isinstance(error, ConnectionError | EOFError) and in_loader(error):
        return WorkerEnded(
            f"a loader process ended as it handed a batch over, perhaps as memory ran out; {FEWER}"
        )
    if isinstance(error, MemoryError) or (
        not isinstance(error, ValueError) and MEMORY.search(text)
    ):
        amount = AMOUNT.search(text)
        asked = f" (asked for {readable(amount[1])} at once)" if amount else ""
        return OutOfMemory(f"out of memory in {demand}{asked}; {lower}")
    return error


def in_loader(error: Exception) -> bool:
    """Whether an error came up as a batch was taken from a loader's processes."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(file.endswith("torch/utils/data/dataloader.py") for file in files)


@contextmanager
def explaining(demand: str, lower: str) -> Generator[None]:
    """Raises what a person can do where the machine lacked something within; arguments as of ``explained``."""
    try:
        yield
    except Exception as error:
        told = explained(error, demand, lower)
        if told is error:
            raise
        raise told from error


def worker_end(pids: str, killed: str | None) -> str:
    """How loader processes ended, and what may help."""
    how = "ended by itself" if killed is None else f"was killed by signal {number(killed)}"
    reasons = {
        None: "it wrote why just above, if it could",
        "SIGKILL": "perhaps as memory ran out",
        "SIGBUS": "perhaps as /dev/shm is full, or a mapped file was cut",
    }
    why = reasons.get(killed and number(killed).split()[-1].strip("()"), "by whom isn't known")
    return f"a loader process (pid {pids}) {how}, {why}; {FEWER}"


def number(killed: str) -> str:
    """The signal that the system describes so: ``Killed`` as ``9 (SIGKILL)``."""
    found = [s for s in signal.Signals if (signal.strsignal(s) or "").split(":")[0] == killed]
    return f"{int(found[0])} ({found[0].name})" if found else killed


def readable(amount: str) -> str:
    """``4000000000000 bytes`` as ``3725.3 GiB``, less than one as MiB."""
    value, unit = amount.split()
    if unit != "bytes":
        return amount
    gib = float(value) / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.1f} MiB"
