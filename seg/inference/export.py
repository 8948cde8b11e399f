"""Export of a trained run as ONNX or torch.export program, compared with the network."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path
from seg.data.normalization import Normalization
from seg.display.console import configure_logging
from seg.display.tables import make_table
from seg.errors import UserError, missing_extra_hint
from seg.files import open_regular
from seg.inference import ensemble
from seg.inference.exported_network import (
    ExportedFunction,
    ExportedNetwork,
    open_export,
    write_export,
)
from seg.logits import probabilities
from seg.models.contract import same_size_logits
from seg.runs import checkpoint, records
from seg.runs.archive import CHECKPOINT_LIMIT
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT
from seg.version import __version__

log = logging.getLogger("seg")
FORMAT_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
COMPARED_SIZES = (
    (97, 97),
    (64, 160),
    (257, 320),
)  # px: a prime, which no stride divides; oblong; larger
COMPARED_BATCHES = (1, 2)
MAX_ONNX_BYTES = 2**31  # bytes of one ONNX file


@dataclass(frozen=True)
class ExportDifference:
    """Difference of an exported file from its network at one size and batch.

    Attributes:
        batch: number of images.
        height: px.
        width: px.
        largest: largest difference of a probability; inf if the sizes of the output differ.
    """

    batch: int
    height: int
    width: int
    largest: float


def export_run(cfg: DictConfig) -> Path:
    """Write the run as one file, after comparing it with the network, and return its path.

    Args:
        cfg: as conf/export.yaml.

    Raises:
        UserError: if an option is wrong, or the file can't be written or differs too much.
        RunError: if the run can't be read.
    """
    # Check packages and target before the network is exported
    configure_logging()
    check_packages(cfg)
    run = ensemble.load_members(cfg.run)
    file, below = export_target(cfg, run)
    # Write to a temporary file, which gets its name only after the comparison
    facts = describe_run(run, cfg.run)
    with (
        files.folder_removed_if_empty(file.parent, below),
        files.atomic_write(file, below) as aside,
    ):
        write_checked(run, facts, aside, cfg)
    # Print input and output as the file's users see them
    channels, classes = run.intensity.channels, ", ".join(run.classes)
    log.info(
        f"in         image (batch, {channels}, height, width) float32, values as stored"
        f"{describe_sections(run.intensity)}"
    )
    log.info(f"out        probabilities (batch, {len(run.classes)}, height, width): {classes}")
    log.info(f"wrote      {quote_path(file)}: {file.stat().st_size / 1e6:.1f} MB")
    return file


def check_packages(cfg: DictConfig) -> None:
    """Raise UserError if a package that the format needs isn't installed."""
    for package in ("onnx", "onnxruntime") if cfg.format == "onnx" else ():
        if need := missing_extra_hint(package):
            raise UserError(f"format=onnx {need}")


def write_checked(run: LoadedRun, facts: dict, file: Path, cfg: DictConfig) -> None:
    """Write the file and print how much its probabilities differ from the network's.

    Raises:
        UserError: if it can't be written or run, or differs by more than ``cfg.tolerance``.
    """
    # Export, then run the file with its own runtime on images of noise
    name = f"{run.checkpoint}: its {facts['network']}"
    try:
        write_export(ExportedNetwork(run), facts, file, cfg.format, cfg.opset)
        gaps = compare_outputs(run, open_export(file, cfg.format), noise_images(run))
    except Exception as error:  # exporters raise errors of every class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{name} can't be exported as {cfg.format}: {reason}") from error
    log.info(
        "",
        extra={
            "table": build_difference_table(gaps, f"{cfg.format} against PyTorch, images of noise")
        },
    )
    # A difference of nan counts as infinite, and fails the comparison below
    worst = max((gap.largest for gap in gaps), key=lambda gap: gap if gap == gap else np.inf)
    if not worst <= cfg.tolerance:
        raise UserError(
            f"{name} as {cfg.format} differs from PyTorch by {worst:.1e}, more than "
            f"tolerance={cfg.tolerance:g}; nothing is written"
        )


def export_target(cfg: DictConfig, run: LoadedRun) -> tuple[Path, Path]:
    """Return the file to write, and the folder below which no link is followed.

    Raises:
        UserError: if it exists already, has another format's name, or the network is too large for the format.
        RunError: if it can't be written.
    """
    # Name of the file: its suffix tells the format
    suffix = FORMAT_SUFFIXES[cfg.format]
    if cfg.output is None and OmegaConf.is_list(cfg.run):
        raise UserError("output is not set: several runs have no folder in common; give output=...")
    file = Path(cfg.output) if cfg.output else run.folder / "export" / f"model{suffix}"
    if file.suffix != suffix:
        raise UserError(f"output={file}: format={cfg.format} is written as a file named {suffix}")
    # An existing file is never overwritten
    below = file.parent if cfg.output else run.folder
    files.check_writable(file.parent, below, [file.name], f"output={file}")
    if file.exists():
        raise UserError(f"output={file}: is there already; remove it or give another file")
    # Protocol buffers limit one ONNX file to 2 GiB
    weights = sum(t.nbytes for t in run.model.state_dict().values())
    if cfg.format == "onnx" and weights >= MAX_ONNX_BYTES:
        raise UserError(
            f"{run.checkpoint}: weights of {weights / 1e9:.1f} GB, and one ONNX file holds less than "
            f"{MAX_ONNX_BYTES / 1e9:.1f}; take format=torch"
        )
    return file, below


def describe_run(run: LoadedRun, given: Any) -> dict[str, Any]:
    """Return the facts that the file holds beside the network."""
    return {
        "seg": __version__,
        "classes": run.classes,
        "colors": [list(color) for color in run.colors],
        "threshold": run.threshold,
        **({"promise": run.promise.describe(run.classes)} if run.promise else {}),
        "task": run.task,
        "channels": run.intensity.channels,
        "neighbours": run.intensity.neighbours,
        "network": run.model.name,
        "checkpoints": {str(file): hash_checkpoint(file) for file in member_checkpoints(given)},
    }


def describe_sections(intensity: Normalization) -> str:
    """Return what the channels of the input are, of a network that sees neighbours; else an empty text."""
    n, each = intensity.neighbours, intensity.image_channels
    return f": the sections z-{n} to z+{n} of a stack, {each} channel(s) each" if n else ""


def member_checkpoints(given: str | Path | Sequence[str]) -> list[Path]:
    """Return the checkpoint files of ``run=``, one for each member of an ensemble."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [checkpoint.find_checkpoint(one) for one in given]
    folder = Path(given)
    if not (folder / CROSSVAL_FILE).is_file():
        return [checkpoint.find_checkpoint(folder)]
    folds = records.read_json(folder / CROSSVAL_FILE, CROSSVAL_LIMIT)["folds"]
    return [checkpoint.find_checkpoint(one) for one in ensemble.fold_folders(folder, folds)]


def hash_checkpoint(file: Path) -> str:
    """Return the SHA-256 of a checkpoint."""
    with open_regular(file, CHECKPOINT_LIMIT) as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()


def noise_images(run: LoadedRun) -> list[np.ndarray]:
    """Return two images (H, W, C) of noise in the range of stored values, the same in each call."""
    ensemble_of_run = ExportedNetwork(run).ensemble
    low, span = ensemble_of_run.low[0].amin().item(), ensemble_of_run.span[0].amax().item()
    shape = (2, *COMPARED_SIZES[-1], run.intensity.channels)
    noise = np.random.default_rng(0).uniform(low, low + span, shape)
    return list(noise.astype(np.float32))


def compare_outputs(
    run: LoadedRun, exported: ExportedFunction, images: list[np.ndarray]
) -> list[ExportDifference]:
    """Compare the file with the network as seg.predict runs it, at each size and batch."""
    gaps = []
    for height, width in COMPARED_SIZES:
        for batch in COMPARED_BATCHES:
            batch_BCHW = np.stack([fit_image(image, height, width) for image in images[:batch]])
            truth, output = reference_probabilities(run, batch_BCHW), exported(batch_BCHW)
            same = truth.shape == output.shape
            largest = float(np.abs(truth - output).max()) if same else np.inf
            gaps.append(ExportDifference(batch, height, width, largest))
    return gaps


def fit_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the upper left part (C, height, width) float32 of an image (H, W, C), tiled if the image is smaller."""
    rows, columns = np.arange(height) % image.shape[0], np.arange(width) % image.shape[1]
    return np.ascontiguousarray(image[rows][:, columns].transpose(2, 0, 1), np.float32)


@torch.inference_mode()
def reference_probabilities(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Return the probabilities (B, classes, H, W) of images (B, C, H, W) as stored, by the network in PyTorch."""
    scaled = run.intensity.scaled(image.transpose(0, 2, 3, 1))
    normal = np.ascontiguousarray(run.intensity.normalised(scaled).transpose(0, 3, 1, 2))
    return probabilities(
        same_size_logits(run.model, torch.from_numpy(normal)), run.overlapping
    ).numpy()


def build_difference_table(gaps: list[ExportDifference], title: str) -> Table:
    """Return a table with a row for each size and a column for each batch."""
    table = make_table(title)
    table.add_column("image, px", style="bold", no_wrap=True)
    for batch in COMPARED_BATCHES:
        table.add_column(f"batch {batch}: largest difference", justify="right")
    for height, width in COMPARED_SIZES:
        row = [f"{g.largest:.1e}" for g in gaps if (g.height, g.width) == (height, width)]
        table.add_row(f"{height}x{width}", *row)
    return table
