"""Export of a trained run as ONNX, torch.export program or package of the Model Zoo, compared with the network."""

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from seg import files
from seg.display.tables import make_table
from seg.errors import UserError, first_line, missing_extra_hint
from seg.inference.bioimageio import MAX_ONNX_BYTES, write_package
from seg.inference.engines import export_name
from seg.inference.exported_network import (
    ExportedFunction,
    ExportedNetwork,
    open_export,
    write_export,
)
from seg.logits import probabilities
from seg.models.contract import same_size_logits
from seg.models.network import Network
from seg.models.segnet import SegNet
from seg.runs import load
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")
FORMAT_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "bioimageio": ".zip"}
COMPARED_SIZES = (
    (97, 97),
    (64, 160),
    (257, 320),
)  # px: a prime, which no stride divides; oblong; larger
COMPARED_BATCHES = (1, 2)
ROUNDING_FACTOR = 10  # by which a sound file may differ more than float32 from float64
TIED_SHARE = (
    0.005  # of the probabilities, at most; one wrong row of the smallest image compared is 0.01
)


@dataclass(frozen=True)
class ExportDifference:
    """Difference of an exported file from its network at one size and batch.

    Attributes:
        batch: number of images.
        height: px.
        width: px.
        largest: largest difference of a probability; inf if the sizes of the output differ.
        share: of the probabilities that differ by more than the tolerance.
    """

    batch: int
    height: int
    width: int
    largest: float
    share: float


def check_packages(cfg: DictConfig) -> None:
    """Raise UserError if a package that the format needs isn't installed."""
    for package in ("onnx", "onnxruntime") if cfg.format != "torch" else ():
        if need := missing_extra_hint(package):
            raise UserError(f"format={cfg.format} {need}")
    if cfg.precision != "float32" and cfg.format != "onnx":
        raise UserError(f"precision={cfg.precision}: format={cfg.format} is written in float32; take format=onnx")  # fmt: skip


def write_checked_package(
    run: LoadedRun, facts: dict, image: np.ndarray, file: Path, cfg: DictConfig
) -> None:
    """Write the package of the Model Zoo, whose ONNX file is compared with the network as ``write_checked`` does."""
    with files.scratch_folder(file.parent) as folder:
        onnx_file = folder / "weights.onnx"
        write_checked(run, facts, onnx_file, "onnx", cfg)
        write_package(run, facts, onnx_file, open_export(onnx_file, "onnx"), image, file, cfg)


def write_checked(run: LoadedRun, facts: dict, file: Path, kind: str, cfg: DictConfig) -> None:
    """Write the file and print how much its probabilities differ from the network's.

    Args:
        run: network to write.
        facts: stored beside it.
        file: to write.
        kind: onnx or torch.
        cfg: as conf/export.yaml.

    Raises:
        UserError: if it can't be written or run, or differs by more than ``cfg.tolerance`` and rounding explain.
    """
    # Export, then run the file with its own runtime on images of noise
    name = f"{run.checkpoint}: its {facts['network']}"
    try:
        write_export(ExportedNetwork(run), facts, file, kind, cfg.opset)
        gaps = compare_outputs(run, open_export(file, kind), noise_images(run), cfg.tolerance)
    except Exception as error:  # exporters raise errors of every class
        raise UserError(f"{name} can't be exported as {kind}: {first_line(error)}") from error
    log.info(
        "",
        extra={"table": build_difference_table(gaps, f"{kind} against PyTorch, images of noise")},
    )
    check_differences(run, gaps, cfg.tolerance, f"{name} as {kind}")


def check_differences(
    run: LoadedRun, gaps: list[ExportDifference], tolerance: float, name: str
) -> None:
    """Raise UserError if a file differs by more than the tolerance and rounding explain; log what rounding explains.

    Args:
        run: network that was written.
        gaps: differences of the file, with their shares beyond ``tolerance``.
        tolerance: largest difference of a probability.
        name: of network and format, for the message.
    """
    # A difference of nan counts as infinite, and fails the comparison below
    worst = max((gap.largest for gap in gaps), key=lambda gap: gap if gap == gap else np.inf)
    if worst <= tolerance:
        return
    beyond = f"{name} differs from PyTorch by {worst:.1e}, more than tolerance={tolerance:g}"
    remedy = "nothing is written. A larger tolerance writes it"
    if unpools_maxima(run.model):
        # Rounding decides which of two almost equal pixels is the maximum, and so where its value goes
        share = max(gap.share for gap in gaps)
        if not share <= TIED_SHARE:
            raise UserError(
                f"{beyond}, in {share:.1%} of the probabilities; at most {TIED_SHARE:.1%} are due to rounding in a "
                f"network that unpools maxima; {remedy}"
            )
        log.info(
            f"rounding   {share:.2%} of the probabilities differ by more than tolerance={tolerance:g}: where two pixels are "
            "almost equal, rounding decides which one is the maximum that the network unpools"
        )
        return
    # Rounding alone may exceed the tolerance where values are large, as those of noise in a wide type
    rounding = measure_rounding(run, noise_images(run))
    if not worst <= ROUNDING_FACTOR * rounding:
        raise UserError(
            f"{beyond} and than {ROUNDING_FACTOR} times the rounding of float32 in PyTorch ({rounding:.1e}); {remedy}"
        )
    log.info(
        f"rounding   PyTorch in float32 differs from float64 by {rounding:.1e} on these images"
    )


def unpools_maxima(model: Network) -> bool:
    """Return True if a network has a decoder that puts values where its encoder had maxima."""
    return any(
        isinstance(module, SegNet) or getattr(module, "up", None) == "unpool"
        for module in model.modules()
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
    name = f"export/model{suffix}" if cfg.format != "onnx" else export_name(cfg.precision)
    file = Path(cfg.output) if cfg.output else load.default_output(run, name)
    if file.suffix != suffix:
        raise UserError(f"output={file}: format={cfg.format} is written as a file named {suffix}")
    # An existing file is never overwritten
    below = file.parent if cfg.output else run.folder
    files.check_writable(file.parent, below, [file.name], f"output={file}")
    if file.exists():
        raise UserError(f"output={file}: is there already; remove it or give another file")
    # Protocol buffers limit one ONNX file to 2 GiB
    weights = sum(t.nbytes for t in run.model.state_dict().values())
    if cfg.format != "torch" and weights >= MAX_ONNX_BYTES:
        raise UserError(
            f"{run.checkpoint}: weights of {weights / 1e9:.1f} GB, and one ONNX file holds less than "
            f"{MAX_ONNX_BYTES / 1e9:.1f}; take format=torch"
        )
    return file, below


def noise_images(run: LoadedRun) -> list[np.ndarray]:
    """Return two images (H, W, C) of noise in the range of stored values, the same in each call."""
    ensemble_of_run = ExportedNetwork(run).ensemble
    low, span = ensemble_of_run.low[0].amin().item(), ensemble_of_run.span[0].amax().item()
    shape = (2, *COMPARED_SIZES[-1], run.intensity.channels)
    noise = np.random.default_rng(0).uniform(low, low + span, shape)
    return list(noise.astype(np.float32))


def compare_outputs(
    run: LoadedRun, exported: ExportedFunction, images: list[np.ndarray], tolerance: float
) -> list[ExportDifference]:
    """Compare the file with the network as seg.predict runs it, at each size and batch."""
    gaps = []
    for height, width in COMPARED_SIZES:
        for batch in COMPARED_BATCHES:
            batch_BCHW = np.stack([fit_image(image, height, width) for image in images[:batch]])
            truth, output = reference_probabilities(run, batch_BCHW), exported(batch_BCHW)
            same = truth.shape == output.shape
            gap = np.abs(truth - output) if same else np.array(np.inf)
            share = float(np.mean(~(gap <= tolerance)))
            gaps.append(ExportDifference(batch, height, width, float(gap.max()), share))
    return gaps


def measure_rounding(run: LoadedRun, images: list[np.ndarray]) -> float:
    """Return the largest difference of a probability between PyTorch in float32 and in float64.

    It is 0 for a network that computes in float32 alone.
    """
    exact = replace(run, model=copy.deepcopy(run.model).double())
    gaps = []
    for height, width in COMPARED_SIZES:
        batch_BCHW = np.stack([fit_image(image, height, width) for image in images])
        try:
            truth = reference_probabilities(exact, batch_BCHW)
        except RuntimeError:  # a foreign network may make tensors of float32 itself
            return 0.0
        gaps.append(float(np.abs(reference_probabilities(run, batch_BCHW) - truth).max()))
    return max(gaps)


def fit_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the upper left part (C, height, width) float32 of an image (H, W, C), tiled if the image is smaller."""
    rows, columns = np.arange(height) % image.shape[0], np.arange(width) % image.shape[1]
    return np.ascontiguousarray(image[rows][:, columns].transpose(2, 0, 1), np.float32)


@torch.inference_mode()
def reference_probabilities(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Return the probabilities (B, classes, H, W) of images (B, C, H, W) as stored, by the network in PyTorch."""
    scaled = run.intensity.scaled(image.transpose(0, 2, 3, 1))
    normal = np.ascontiguousarray(run.intensity.normalised(scaled).transpose(0, 3, 1, 2))
    x = torch.from_numpy(normal).to(next(run.model.parameters()).dtype)
    return probabilities(same_size_logits(run.model, x), run.overlapping).numpy()


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
