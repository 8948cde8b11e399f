"""Distributed training: rank 0 creates the run folder and shares its path with the other ranks.

Ranks that Lightning starts inherit an environment variable. Ranks that torchrun or SLURM started together read
a small file in ``outputs``, which must be a folder that all machines share.
"""

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seg import files
from seg.display.console import is_rank_zero
from seg.errors import RunError
from seg.runs import records
from seg.runs.folder import create_folder, folder_name

LOCATION_VARIABLE = "SEG_RUN"
MAX_WAIT = 120  # s to wait for the file of rank 0
PROCESS_START = time.time()
MAX_FILE_AGE = 60  # s before this process began: an older file was left behind by a killed run


class RunLocation(NamedTuple):
    """Run folder, and the checkpoint that training resumes from."""

    folder: Path
    checkpoint: Path | None


@contextmanager
def shared_run_folder(
    outputs: Path, name: str, folder: Path | None, checkpoint: Path | None
) -> Generator[RunLocation]:
    """Create the run folder on rank 0 and yield the same location on every rank.

    Args:
        outputs: parent of the new folder, which is named by time and ``name``.
        name: of the run.
        folder: the folder itself, if it is known already.
        checkpoint: to resume from, as rank 0 knows it.

    Raises:
        RunError: on another rank, if rank 0 announces no folder.
    """
    message = rendezvous_file(outputs)
    if not is_rank_zero():
        yield receive_run_folder(message)
        return
    folder = create_folder(outputs, name) if folder is None else folder
    files.make_folder(folder, folder)
    place = {"folder": str(folder.resolve()), "checkpoint": checkpoint and str(checkpoint)}
    # Ranks that Lightning starts from here inherit the variable; the others read the file.
    os.environ[LOCATION_VARIABLE] = json.dumps(place)
    if message is not None:
        files.make_folder(outputs, outputs)
        records.write_json(message, place)
    try:
        yield RunLocation(folder, checkpoint)
    finally:
        del os.environ[LOCATION_VARIABLE]
        if message is not None:
            message.unlink(missing_ok=True)


def receive_run_folder(message: Path | None) -> RunLocation:
    """Return the location announced by rank 0.

    Args:
        message: file written by rank 0; None if the ranks were not started together.

    Raises:
        RunError: if nothing is announced within ``MAX_WAIT`` seconds.
    """
    if LOCATION_VARIABLE in os.environ:
        place = json.loads(os.environ[LOCATION_VARIABLE])
    elif message is None:
        raise RunError(
            "RANK or LOCAL_RANK is set, but no other process of this run was found; unset them"
        )
    else:
        deadline = time.monotonic() + MAX_WAIT
        while not (message.exists() and message.stat().st_mtime > PROCESS_START - MAX_FILE_AGE):
            if time.monotonic() > deadline:
                raise RunError(
                    f"{message}: rank 0 wrote no such file within {MAX_WAIT} s; either it failed, or outputs= is "
                    "not a folder that all machines share"
                )
            time.sleep(0.1)
        place = records.read_json(message)
    return RunLocation(Path(place["folder"]), place["checkpoint"] and Path(place["checkpoint"]))


def rendezvous_file(outputs: Path) -> Path | None:
    """Return the file through which ranks started together share the location; None for a single process."""
    get = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        variables = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    elif "SLURM_PROCID" in os.environ and int(get("SLURM_NTASKS") or 1) > 1:
        variables = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    else:
        return None
    run = "-".join(get(variable) or "0" for variable in variables)
    return outputs / f".together-{folder_name(run)}"
