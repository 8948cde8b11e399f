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
from seg.display.console import quiet
from seg.errors import UserError, missing_extra
from seg.files import open_regular
from seg.inference import ensemble
from seg.inference.exported_network import Exported, Run, opened, write
from seg.logits import probabilities
from seg.models.contract import full_logits
from seg.runs import checkpoint, records
from seg.runs.archive import CHECKPOINT_LIMIT
from seg.runs.folder import CROSSVAL
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT
from seg.version import __version__

log = logging.getLogger("seg")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
SIZES = ((97, 97), (64, 160), (257, 320))  # px: a prime, which no stride divides; oblong; larger
BATCHES = (1, 2)
LARGEST = 2**31  # bytes of one ONNX file


@dataclass(frozen=True)
class Gap:
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


def export(cfg: DictConfig) -> Path:
    """Write the run as one file, after comparing it with the network, and return its path.

    Args:
        cfg: as conf/export.yaml.

    Raises:
        UserError: if an option is wrong, or the file can't be written or differs too much.
        RunError: if the run can't be read.
    """
    quiet()
    check_options(cfg)
    run = ensemble.load(cfg.run)
    file, below = target(cfg, run)
    facts = description(run, cfg.run)
    with files.made_folder(file.parent, below), files.whole(file, below) as aside:
        check_equal(run, facts, aside, cfg)
    channels, classes = run.intensity.channels, ", ".join(run.classes)
    log.info(f"in         image (batch, {channels}, height, width) float32, values as stored")
    log.info(f"out        probabilities (batch, {len(run.classes)}, height, width): {classes}")
    log.info(f"wrote      {quote_path(file)}: {file.stat().st_size / 1e6:.1f} MB")
    return file


def check_options(cfg: DictConfig) -> None:
    """Raise UserError for options out of range, or if a package that the format needs isn't installed."""
    if cfg.format not in SUFFIXES:
        raise UserError(f"format={cfg.format}: {' or '.join(SUFFIXES)} is needed")
    if not cfg.tolerance > 0:
        raise UserError(f"tolerance={cfg.tolerance}: it must be above 0")
    for package in ("onnx", "onnxruntime") if cfg.format == "onnx" else ():
        if need := missing_extra(package):
            raise UserError(f"format=onnx {need}")


def check_equal(run: LoadedRun, facts: dict, file: Path, cfg: DictConfig) -> None:
    """Write the file and print how much its probabilities differ from the network's.

    Raises:
        UserError: if it can't be written or run, or differs by more than ``cfg.tolerance``.
    """
    name = f"{run.checkpoint}: its {facts['network']}"
    try:
        write(Exported(run), facts, file, cfg.format, cfg.opset)
        gaps = differences(run, opened(file, cfg.format), made(run))
    except Exception as error:  # exporters raise errors of every class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{name} can't be exported as {cfg.format}: {reason}") from error
    log.info("", extra={"table": gap_table(gaps, f"{cfg.format} against PyTorch, images of noise")})
    worst = max((gap.largest for gap in gaps), key=lambda gap: gap if gap == gap else np.inf)
    if not worst <= cfg.tolerance:
        raise UserError(
            f"{name} as {cfg.format} differs from PyTorch by {worst:.1e}, more than "
            f"tolerance={cfg.tolerance:g}; nothing is written"
        )


def target(cfg: DictConfig, run: LoadedRun) -> tuple[Path, Path]:
    """Return the file to write, and the folder below which no link is followed.

    Raises:
        UserError: if it exists already, has another format's name, or the network is too large for the format.
        RunError: if it can't be written.
    """
    suffix = SUFFIXES[cfg.format]
    if cfg.output is None and OmegaConf.is_list(cfg.run):
        raise UserError("output is not set: several runs have no folder in common; give output=...")
    file = Path(cfg.output) if cfg.output else run.folder / "export" / f"model{suffix}"
    if file.suffix != suffix:
        raise UserError(f"output={file}: format={cfg.format} is written as a file named {suffix}")
    below = file.parent if cfg.output else run.folder
    files.check_writable(file.parent, below, [file.name], f"output={file}")
    if file.exists():
        raise UserError(f"output={file}: is there already; remove it or give another file")
    weights = sum(t.nbytes for t in run.model.state_dict().values())
    if cfg.format == "onnx" and weights >= LARGEST:
        raise UserError(
            f"{run.checkpoint}: weights of {weights / 1e9:.1f} GB, and one ONNX file holds less than "
            f"{LARGEST / 1e9:.1f}; take format=torch"
        )
    return file, below


def description(run: LoadedRun, given: Any) -> dict[str, Any]:
    """Return the facts that the file holds beside the network."""
    return {
        "seg": __version__,
        "classes": run.classes,
        "colors": [list(color) for color in run.colors],
        "threshold": run.threshold,
        "task": run.task,
        "channels": run.intensity.channels,
        "network": run.model.name,
        "checkpoints": {str(file): digest(file) for file in checkpoints(given)},
    }


def checkpoints(given: str | Path | Sequence[str]) -> list[Path]:
    """Return the checkpoint files of ``run=``, one for each member of an ensemble."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [checkpoint.find_checkpoint(one) for one in given]
    folder = Path(given)
    if not (folder / CROSSVAL).is_file():
        return [checkpoint.find_checkpoint(folder)]
    folds = records.read_json(folder / CROSSVAL, CROSSVAL_LIMIT)["folds"]
    return [checkpoint.find_checkpoint(one) for one in ensemble.fold_folders(folder, folds)]


def digest(file: Path) -> str:
    """Return the SHA-256 of a checkpoint."""
    with open_regular(file, CHECKPOINT_LIMIT) as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()


def made(run: LoadedRun) -> list[np.ndarray]:
    """Return two images (H, W, C) of noise in the range of stored values, the same in each call."""
    ensemble_of_run = Exported(run).ensemble
    low, span = ensemble_of_run.low[0].amin().item(), ensemble_of_run.span[0].amax().item()
    shape = (2, *SIZES[-1], run.intensity.channels)
    noise = np.random.default_rng(0).uniform(low, low + span, shape)
    return list(noise.astype(np.float32))


def differences(run: LoadedRun, exported: Run, images: list[np.ndarray]) -> list[Gap]:
    """Compare the file with the network as seg.predict runs it, at each size and batch."""
    gaps = []
    for height, width in SIZES:
        for batch in BATCHES:
            batch_BCHW = np.stack([resized(image, height, width) for image in images[:batch]])
            truth, output = expected(run, batch_BCHW), exported(batch_BCHW)
            same = truth.shape == output.shape
            largest = float(np.abs(truth - output).max()) if same else np.inf
            gaps.append(Gap(batch, height, width, largest))
    return gaps


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the upper left part (C, height, width) float32 of an image (H, W, C), tiled if the image is smaller."""
    rows, columns = np.arange(height) % image.shape[0], np.arange(width) % image.shape[1]
    return np.ascontiguousarray(image[rows][:, columns].transpose(2, 0, 1), np.float32)


@torch.inference_mode()
def expected(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Return the probabilities (B, classes, H, W) of images (B, C, H, W) as stored, by the network in PyTorch."""
    scaled = run.intensity.scaled(image.transpose(0, 2, 3, 1))
    normal = np.ascontiguousarray(run.intensity.normalised(scaled).transpose(0, 3, 1, 2))
    return probabilities(full_logits(run.model, torch.from_numpy(normal)), run.overlapping).numpy()


def gap_table(gaps: list[Gap], title: str) -> Table:
    """Return a table with a row for each size and a column for each batch."""
    table = Table(title=title, title_justify="left")
    table.add_column("image, px", style="bold", no_wrap=True)
    for batch in BATCHES:
        table.add_column(f"batch {batch}: largest difference", justify="right")
    for height, width in SIZES:
        row = [f"{g.largest:.1e}" for g in gaps if (g.height, g.width) == (height, width)]
        table.add_row(f"{height}x{width}", *row)
    return table
