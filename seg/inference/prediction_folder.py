"""Output folder of seg.predict: inputs, locks, and the record by which a command leaves out what is done."""

import json
import re
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seg import files
from seg.cli.compose import plain_config
from seg.data.image_files import (
    conversion_hint,
    describe_folder,
    find_images,
    image_stem,
    image_suffix,
    is_image_file,
    is_pattern,
    walk_images,
)
from seg.data.ome_zarr import RemotePath, image_path, is_store, store_state
from seg.data.sections import find_section_files
from seg.errors import DataError, UserError
from seg.inference.outputs import RESULT_KINDS, choose_object_options, finish_results, quote_name
from seg.inference.quality_table import merge_quality_parts
from seg.runs import load, records
from seg.runs.folder import hold_lock, lock_folder
from seg.runs.load import LoadedRun
from seg.runs.resumable import read_resumable_record

PREDICT_RECORD, PARTIAL_FOLDER, LOCK_SUFFIX = "predict.json", ".partial", ".lock"
NEUTRAL_PREDICT_OPTIONS = (
    "output",
    "accelerator",
    "check_seams",
    "batch",
)  # options that don't change the results


def list_inputs(given: str, output: Path) -> dict[Path, str]:
    """Return the image files of ``input`` with the name of their results: path without suffix, from the folder on.

    Args:
        given: a file, an OME-Zarr or its address, a folder, whose subfolders are taken too, or a pattern.
        output: folder of the results, which is no input.

    Raises:
        UserError: if it doesn't exist, isn't an image, or two images would have results of the same name.
        DataError: if the folder holds no image.
    """
    path, below = image_path(given), Path(given)
    if isinstance(path, RemotePath):
        return {path: image_stem(path)}
    if is_pattern(Path(), given):
        fixed = re.split(r"[*?\[]", given, maxsplit=1)[0]
        below = Path(fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ""))
        images = sorted(file for _, file in find_images(Path(), given))
        images = [file for file in images if not file.absolute().is_relative_to(output.absolute())]
        if not images:
            there = f"{below} {describe_folder(below)}" if below.is_dir() else f"no folder {below}"
            raise UserError(f"input={given}: no image matches; {there}")
    elif path.is_dir() and not is_store(path):
        images = walk_images(path, output)
    elif not path.exists():
        raise UserError(f"input={given}: no such file or folder")
    elif not is_image_file(path):
        hint = conversion_hint(image_suffix(path)) or "PNG, JPEG, TIFF and the like are read"
        raise UserError(f"input={given}: not an image by its name; {hint}")
    else:
        images, below = [path], path.parent
    names: dict[str, Path] = {}
    for file in images:
        name = file.relative_to(below).with_name(image_stem(file)).as_posix()
        if (other := names.setdefault(name, file)) is not file:
            raise UserError(
                f"input={given}: {other.name} and {file.name} would share one result; rename one"
            )
    return {file: name for name, file in names.items()}


def check_output_folder(output: Path, save: Sequence[str]) -> None:
    """Raise RunError unless results can be written to the folder and no link is among its files."""
    places = (f"{kind}/.part" for kind in save)
    files.check_writable(output, output, [PREDICT_RECORD, f"{PARTIAL_FOLDER}/.lock", *places])
    for part in (PARTIAL_FOLDER, *save):
        files.check_tree(output / part, output)


@contextmanager
def open_output_folder(output: Path) -> Generator[Path]:
    """Explain errors of writing; on leaving, remove the folder of partial results unless another worker uses it.

    Raises:
        UserError: if the folder can't be written.
    """
    try:
        yield output
    except OSError as error:
        raise UserError(
            f"output={output}: can't be written ({error.strerror or error}); the same command goes on from here"
        ) from error
    finally:
        remove_partial_folder(output)


def remove_partial_folder(output: Path) -> None:
    """Remove the folder of partial results, unless it holds rows or another worker holds a lock in it."""
    partial = output / PARTIAL_FOLDER
    with lock_record(output), ExitStack() as locks:
        rest = list(partial.iterdir())
        if not all(file.name.startswith(".") for file in rest):
            return
        for file in rest:
            if file.suffix == LOCK_SUFFIX and not locks.enter_context(hold_lock(file, output)):
                return
        files.remove_unfinished(partial)
        for file in rest:  # locks
            file.unlink(missing_ok=True)
        with suppress(OSError):  # another worker has begun
            partial.rmdir()


def lock_record(output: Path) -> AbstractContextManager[Path]:
    """Lock predict.json; other workers wait."""
    return lock_folder(output, "seg.predict", PARTIAL_FOLDER, wait=True)


class SharedRecord:
    """predict.json, which the workers of one command share: ``done`` and ``names`` of the files.

    Args:
        output: folder of the results.
        cfg: as conf/predict.yaml.
        run: that predicts.

    Raises:
        UserError: if the folder holds results of other settings, or of another program.
    """

    def __init__(self, output: Path, cfg: DictConfig, run: LoadedRun) -> None:
        self.output, self.file = output, output / PREDICT_RECORD
        self.neighbours = run.intensity.neighbours
        with lock_record(output):
            self.content = open_predict_record(output, cfg, run)
            self.stamp = read_file_stamp(self.file)

    def is_done(self, file: Path) -> bool:
        """Return True if a worker has predicted the file as it is now."""
        self.refresh()
        return self.content["done"].get(str(file)) == self.input_stamp(file)

    def input_stamp(self, file: Path) -> list[int]:
        """Return the stamps of a file, and of the files of its neighbours, which its results depend on."""
        inputs = [file]
        if self.neighbours:
            with suppress(DataError, OSError):  # a stack in one file has no others
                inputs = find_section_files(file, self.neighbours)
        return [number for one in inputs for number in read_file_stamp(one)]

    def refresh(self) -> None:
        """Read what the other workers have added."""
        if (stamp := read_file_stamp(self.file)) != self.stamp:
            self.content = records.read_json(self.file)
            check_predict_record(self.content, self.file)
            self.stamp = stamp

    def add(self, file: Path, name: str, file_stamp: list[int]) -> None:
        """Record a file as done."""
        with lock_record(self.output):
            self.refresh()
            self.content["done"][str(file)] = file_stamp
            self.content.setdefault("names", {})[str(file)] = name
            self.write({"status": "running"})

    def finish(self, written: list[Path], failed: list[str]) -> list[Path]:
        """Complete the results of all workers, and return the files that this one wrote."""
        with lock_record(self.output):
            self.refresh()
            written = finish_results(self.output, written)
            merge_quality_parts(self.output)
            self.write({"status": "finished", "failed": failed})
        return written

    def write(self, change: dict[str, Any]) -> None:
        """Write the record with a change; its lock is held."""
        self.content |= change
        records.write_json(self.file, self.content)
        self.stamp = read_file_stamp(self.file)


def piece_lock(output: Path, name: str) -> Path:
    """Return the lock of a file whose results have a name, in the folder of partial results."""
    return output / PARTIAL_FOLDER / files.short_name(f".{quote_name(name)}{LOCK_SUFFIX}")


def open_predict_record(output: Path, cfg: DictConfig, run: LoadedRun) -> dict[str, Any]:
    """Return the record of the folder: that of an interrupted command with the same settings, or a new one.

    Raises:
        UserError: if the folder holds results of other settings, or of another program.
    """
    # Settings that change the results, as they come back from JSON, and the weights
    settings = {
        name: value
        for name, value in plain_config(cfg).items()
        if name not in (*NEUTRAL_PREDICT_OPTIONS, "input")
    }
    settings["threshold"] = load.threshold(run, cfg.threshold)
    chosen = choose_object_options(cfg.objects, run)
    settings["objects"] = {name: chosen[name] for name in ("split_neck_px", "min_size")}
    settings = json.loads(json.dumps(settings)) | {"weights": load.weights_fingerprint(run.model)}
    file = output / PREDICT_RECORD
    # continue an interrupted command, if its settings are the same
    record: dict[str, Any] = {"status": "running", "settings": settings, "done": {}}
    if begun := read_resumable_record(file, record, "seg.predict"):
        check_predict_record(begun, file)
        return begun
    # begin anew, in a folder without results
    full = [
        kind for kind in RESULT_KINDS if (output / kind).is_dir() and any((output / kind).iterdir())
    ]
    if full:
        raise UserError(
            f"output={output}: {full[0]}/ holds results already; give another folder or empty it"
        )
    records.write_json(file, record)
    return record


def check_predict_record(record: dict[str, Any], file: Path) -> None:
    """Raise UserError unless a record says of files when they were changed, and what their results are called."""
    done, names = record.get("done"), record.get("names", {})
    whole = isinstance(done, dict) and isinstance(names, dict)
    if not whole or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{file}: damaged, or not written by seg.predict; give another output")


def check_result_names(images: dict[Path, str], record: dict[str, Any], output: Path) -> None:
    """Raise UserError if results of other files would be overwritten."""
    names = record.setdefault("names", {})
    done = {names.get(file, image_stem(Path(file))): Path(file) for file in record["done"]}
    for file, name in images.items():
        other = done.get(name, file)
        if other != file and other.absolute() != file.absolute():
            raise UserError(
                f"output={output}: holds results of {other}, and those of {file} have the same name; give another folder"
            )


def read_file_stamp(file: Path) -> list[int]:
    """Return size in bytes and time of change in ns; an empty list if the file doesn't exist or can't be read."""
    try:
        if is_store(file):
            return store_state(file)
        status = file.stat()
    except (OSError, DataError):
        return []
    return [status.st_size, status.st_mtime_ns]
