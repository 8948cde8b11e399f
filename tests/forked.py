"""A command run as a user types it, in a fork of this process: five seconds less than a new Python takes.

A fork has limits of memory and time of its own, so that nothing a command does harms the test.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a command ended: its exit code (negative: the signal that killed it), and what it said and left."""

    code: int
    out: str
    err: str
    left: list[str]

    @property
    def status(self) -> str | None:
        """What run.json says of the only run that was made."""
        found = [path for path in self.left if path.endswith("/run.json")]
        return json.loads(Path(found[0]).read_text())["status"] if found else None


def seg(command: str, *words: str, cwd: Path, gib: float = 3.0, seconds: int = 60) -> Outcome:
    """What ``python -m seg.COMMAND WORDS`` does in a folder.

    Args:
        command: its module in seg.
        words: of the command line.
        cwd: where it is called, an empty folder.
        gib: memory that it may ask for, GiB.
        seconds: of the processor that it may take; in all it may last three times as long.
    """
    module = f"seg.{command}"
    is_package = find_spec(module).submodule_search_locations is not None
    main = importlib.import_module(f"{module}.__main__" if is_package else module).main

    def call() -> None:
        sys.argv = [f"seg.{command}", *words]
        main()

    return ended(forked(call, cwd, gib, seconds), cwd, 3 * seconds)


def forked(call: Callable[[], None], cwd: Path, gib: float, seconds: int) -> int:
    """The process that a function runs in, its output in ``cwd``'s neighbours ``NAME.out`` and ``NAME.err``."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 98
    try:
        os.setsid()
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream, end in ((1, sys.__stdout__, "out"), (2, sys.__stderr__, "err")):
            os.dup2(os.open(f"{cwd}.{end}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest's own lie elsewhere
            assert stream is not None
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        call()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 97
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def ended(process: int, cwd: Path, seconds: float) -> Outcome:
    """Waits for a process of ``forked``; one that lasts longer is killed."""
    deadline = time.monotonic() + seconds
    while (done := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(process, 9)
            done = os.waitpid(process, 0)
            break
        time.sleep(0.005)
    out, err = (Path(f"{cwd}.{end}").read_text() for end in ("out", "err"))
    left = sorted(str(path) for path in cwd.rglob("*"))
    return Outcome(os.waitstatus_to_exitcode(done[1]), out, err, left)
