"""Processes that train one run together: the first of them decides where, and the others hear of it.

Lightning starts the others itself, and they inherit a variable; torchrun and SLURM start all of them at once,
and there a small file in ``outputs`` tells, which must be a folder that all machines see.
"""

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seg import files
from seg.display.console import first_process
from seg.errors import RunError
from seg.runs import records
from seg.runs.folder import as_folder, create_folder

VARIABLE = "SEG_RUN"
PATIENCE = 120  # s until the first process must have spoken
STARTED = time.time()
STALE = 60  # s before this process began: an older message is one that a killed run left


class Place(NamedTuple):
    """Where a run is trained, and the checkpoint from which it goes on."""

    folder: Path
    checkpoint: Path | None


@contextmanager
def one_place(
    outputs: Path, name: str, folder: Path | None, checkpoint: Path | None
) -> Generator[Place]:
    """The run's place, the same for all its processes; its folder is made.

    Args:
        outputs: receives the folder, which is named by time and ``name``.
        name: of the run.
        folder: the folder itself, where it is known already.
        checkpoint: as the first process has it.

    Raises:
        RunError: in another process, when the first says nothing.
    """
    message = ticket(outputs)
    if not first_process():
        yield heard(message)
        return
    folder = create_folder(outputs, name) if folder is None else folder
    files.make_folder(folder, folder)
    place = {"folder": str(folder.resolve()), "checkpoint": checkpoint and str(checkpoint)}
    os.environ[VARIABLE] = json.dumps(place)
    if message is not None:
        files.make_folder(outputs, outputs)
        records.write_json(message, place)
    try:
        yield Place(folder, checkpoint)
    finally:
        del os.environ[VARIABLE]
        if message is not None:
            message.unlink(missing_ok=True)


def heard(message: Path | None) -> Place:
    """What the first process says."""
    if VARIABLE in os.environ:
        place = json.loads(os.environ[VARIABLE])
    elif message is None:
        raise RunError("this process has a rank, and none started it: unset RANK or LOCAL_RANK")
    else:
        deadline = time.monotonic() + PATIENCE
        while not (message.exists() and message.stat().st_mtime > STARTED - STALE):
            if time.monotonic() > deadline:
                raise RunError(
                    f"{message}: the first process wrote no such file within {PATIENCE} s; it failed, or outputs= is "
                    "no folder that all machines see"
                )
            time.sleep(0.1)
        place = records.read_json(message)
    return Place(Path(place["folder"]), place["checkpoint"] and Path(place["checkpoint"]))


def ticket(outputs: Path) -> Path | None:
    """The file by which processes that were started together meet; None where they weren't."""
    told = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        words = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    elif "SLURM_PROCID" in os.environ and int(told("SLURM_NTASKS") or 1) > 1:
        words = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    else:
        return None
    return outputs / f".together-{as_folder('-'.join(told(word) or '0' for word in words))}"
