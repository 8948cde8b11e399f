"""Candidates timed in turn: medians, ratios to a reference, one Markdown table, and the machine.

The load of a machine varies. So each round calls every candidate once, and the next round begins with the next
candidate; compared are only medians of the same rounds. What needs a process of its own, for a clean start or its peak
memory, runs a script that prints JSON as its last line.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from seg.runs.provenance import describe_hardware

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


class Row(NamedTuple):
    """A candidate beside its reference.

    Attributes:
        candidate: name.
        reference: name of the candidate that the ratio is to.
        median: over the rounds, in ``unit``.
        unit: such as ms or MiB.
        ratio: median of the candidate / median of the reference.
    """

    candidate: str
    reference: str
    median: float
    unit: str
    ratio: float


def call_in_turn(
    candidates: Mapping[Name, Callable[[], Result]], rounds: int, warm_up: int = 0
) -> dict[Name, list[Result]]:
    """Call every candidate once a round and return its results, without those of the first ``warm_up`` rounds."""
    names = list(candidates)
    results: dict[Name, list[Result]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = candidates[name]()
            if number >= warm_up:
                results[name].append(result)
    return results


def time_call(
    call: Callable[[], object],
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> float:
    """Return the mean seconds of ``repeats`` calls; ``synchronize`` waits for a GPU before the clock is read."""
    wait = synchronize or (lambda: None)
    wait()
    started = clock()
    for _ in range(repeats):
        call()
    wait()
    return (clock() - started) / repeats


def wait_for_gpu() -> None:
    """Wait until a GPU, where there is one, has computed all that was given to it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_in_turn(
    candidates: Mapping[Name, Callable[[], object]], rounds: int, warm_up: int = 1, **options: Any
) -> dict[Name, list[float]]:
    """Return the seconds of every candidate by round; the options are those of ``time_call``."""
    timed = {name: lambda c=call: time_call(c, **options) for name, call in candidates.items()}
    return call_in_turn(timed, rounds, warm_up)


def medians(results: Mapping[Name, Sequence[Mapping[str, float]]]) -> dict[Name, dict[str, float]]:
    """Return the median of each quantity over the rounds, by candidate."""
    return {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }


def compare(
    values: Mapping[str, Sequence[float]], reference: str, unit: str, factor: float = 1.0
) -> list[Row]:
    """Return the median of each candidate, times ``factor``, and its ratio to that of the reference."""
    found = {name: statistics.median(rounds) for name, rounds in values.items()}
    return [
        Row(name, reference, factor * median, unit, median / found[reference])
        for name, median in found.items()
    ]


def run_child(script: str | Path, *words: object, **options: Any) -> Any:
    """Run a script in a process of its own and return the JSON of its last line; ``options`` of subprocess.run.

    Raises:
        RuntimeError: with the end of what the script printed, if it fails.
    """
    line = [sys.executable, str(Path(script).resolve()), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, **options)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise RuntimeError(f"{Path(script).name} {' '.join(line[2:])}: {said}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


def process_memory(field: str) -> float:
    """Return MiB of this process: VmHWM, the peak so far, or VmRSS, now. Linux only.

    getrusage's maximum is not used: it includes the memory of the parent at the fork.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table(benchmarks: Mapping[str, Sequence[Row]]) -> str:
    """Return the rows of benchmarks, by name, as one Markdown table."""
    return markdown(
        ["benchmark", "candidate", "reference", "median", "ratio"],
        [
            [name, row.candidate, row.reference, f"{shorten(row.median)} {row.unit}", f"{row.ratio:.3f}"]
            for name, rows in benchmarks.items()
            for row in rows
        ],
    )  # fmt: skip


def shorten(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def describe_machine() -> str:
    """Return versions and machine in a line."""
    facts = describe_hardware()
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "lightning", "numpy")]
    return ", ".join([
        f"Python {platform.python_version()}", *versions, f"{facts['cpu']} ({facts['instructions']})",
        f"{facts['cpus']} CPUs", f"{facts['threads']} threads",
        f"GPU: {'; '.join(facts['gpus']) or 'none'}", f"load {os.getloadavg()[0]:.1f}",
    ])  # fmt: skip
