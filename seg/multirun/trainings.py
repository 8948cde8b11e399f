"""What the commands that train several runs share: the runs of a folder, and the check of one device."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from seg.cli.compose import plain_config
from seg.errors import RunError, UserError
from seg.hardware import uses_one_device
from seg.runs.record import RECORD_FILE, RunRecord, read_record


def check_one_device(trainer: DictConfig, why: str) -> None:
    """Raise UserError unless a trainer's config uses one process.

    Args:
        trainer: the config.
        why: end of the message, which says what is possible.
    """
    plain = plain_config(trainer)
    devices, nodes = plain.get("devices", 1), plain.get("num_nodes", 1)
    if not uses_one_device(devices, nodes):
        raise UserError(f"trainer.devices={devices} trainer.num_nodes={nodes}: {why}")


def find_finished_run(output: Path, name: str, split_hash: str) -> Path | None:
    """Return the folder of a finished run with a name and these splits; None if there is none."""
    for folder, record in runs_by_name(output, name):
        if record.status == "finished" and record.split_hash == split_hash:
            return folder
    return None


def delete_unfinished_runs(output: Path, name: str) -> list[Path]:
    """Delete the runs of a name that were not finished, and return their folders."""
    deleted = [
        folder for folder, record in runs_by_name(output, name) if record.status != "finished"
    ]
    for folder in deleted:
        shutil.rmtree(folder)
    return deleted


def runs_by_name(output: Path, name: str) -> Iterator[tuple[Path, RunRecord]]:
    """Yield the runs of a name in a folder: run folder and record."""
    for file in sorted(output.glob(f"*/{RECORD_FILE}")):
        if file.parent.is_symlink():  # latest
            continue
        try:
            record = read_record(file)
        except RunError:
            if file.exists():
                raise
            continue  # deleted by another worker
        if record.name == name:
            yield file.parent, record
