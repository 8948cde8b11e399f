"""Export of a trained run as ONNX or torch.export program, compared with the network."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor, nn

from seg import files
from seg.cli.compose import build
from seg.errors import DataError, RunError, UserError
from seg.files import open_regular
from seg.inference import ensemble
from seg.inference.ensemble import Ensemble
from seg.logits import average, probabilities
from seg.models import Network
from seg.models.contract import coarsest, full_logits
from seg.runs import checkpoint, records
from seg.runs.archive import CHECKPOINT_LIMIT
from seg.runs.folder import CROSSVAL
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT, check_targets
from seg.version import __version__

log = logging.getLogger("seg")
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
SIZES = ((97, 97), (64, 160), (257, 320))  # px: a prime, which no stride divides; oblong; larger
BATCHES = (1, 2)
LARGEST = 2**31  # bytes of one ONNX file
AXES = {0: "batch", 2: "height", 3: "width"}  # what may differ from call to call
Run = Callable[[np.ndarray], np.ndarray]  # (B, C, H, W) -> (B, classes, H, W), both float32


@dataclass(frozen=True)
class Gap:
    """How far a file is from its network.

    Attributes:
        batch: images that went through together.
        height: px.
        width: px.
        largest: difference of a probability; inf where sizes differ.
    """

    batch: int
    height: int
    width: int
    largest: float


def check_equal(run: LoadedRun, facts: dict, file: Path, cfg: DictConfig) -> None:
    """Writes the file, and prints how far it is from the network.

    Raises:
        UserError: when it can't be written or run, or is farther than ``cfg.tolerance``.
    """
    name = f"{run.checkpoint}: its {facts['network']}"
    images, origin = examples(run)
    try:
        write(Exported(run), facts, file, cfg.format, cfg.opset)
        gaps = differences(run, opened(file, cfg.format), images)
    except Exception as error:  # exporters raise every kind
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{name} can't be exported as {cfg.format}: {why}") from error
    log.info("", extra={"table": gap_table(gaps, f"{cfg.format} against PyTorch, {origin}")})
    worst = max((gap.largest for gap in gaps), key=lambda gap: gap if gap == gap else np.inf)
    if not worst <= cfg.tolerance:
        raise UserError(
            f"{name} as {cfg.format} differs from PyTorch by {worst:.1e}, more than "
            f"tolerance={cfg.tolerance:g}; nothing is written"
        )


def target(cfg: DictConfig, run: LoadedRun) -> tuple[Path, Path]:
    """Return the file to write, and the folder that the user named.

    Raises:
        UserError: when it is there already, or can't be had, or has another format's name.
        RunError: when it can't be written.
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


class Exported(nn.Module):
    """A run as other programs use it.

    Sizes are computed as tensors and by rounding up without negative numbers, for what follows from a size
    by a Python ``if`` is fixed by a tracer, and exporters round ``-n // m`` towards zero.

    Args:
        run: its network, or networks, with what makes their input of stored values.

    Shape:
        image (B, C, H, W) float32 as stored -> class probabilities (B, classes, H, W), any B, H, W >= 1.
    """

    def __init__(self, run: LoadedRun) -> None:
        super().__init__()
        model = run.model
        if not model.normalizes:
            model = Ensemble([model], [run.intensity], run.overlapping)
        self.ensemble, self.overlapping = cast(Ensemble, model), run.overlapping
        self.eval()  # all of it, or the ONNX exporter would leave the networks in training mode

    def forward(self, image: Tensor) -> Tensor:
        heads = [
            self.logits(cast(Network, network), self.ensemble.normalised(image, number))
            for number, network in enumerate(self.ensemble.members)
        ]
        logits = average(heads, self.overlapping) if len(heads) > 1 else heads[0]
        return probabilities(logits, self.overlapping)

    def logits(self, network: Network, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W): padded to what the network takes, and cropped."""
        height, width = x.shape[-2:]
        rows, columns = taken(network, height), taken(network, width)
        y = network(x.index_select(-2, rows).index_select(-1, columns))
        # not sliced: torch.export would note whether the slice is whole, and refuse the other case
        return y.index_select(-2, torch.arange(height)).index_select(-1, torch.arange(width))


def taken(network: Network, side: int) -> Tensor:
    """Which of an image's rows 0 .. side - 1 a network gets, as it pads itself, or ``full_logits`` it."""
    last = torch.arange(side)[-1:]  # side - 1, which the exported graph computes
    if network.context:
        smallest, step, context = network.smallest, network.stride, network.context
        least = smallest - 2 * context  # px that the smallest input gives; at most a step
        rows = smallest + (side - least + step - 1) // step * step
        period = (2 * last).clamp(min=1)
        index = (torch.arange(rows) - context) % period
        return torch.minimum(index, 2 * last - index)
    step = coarsest(network, least=1)
    index = torch.arange((side + step - 1) // step * step)
    mirror = 2 * last - index
    enough = mirror.amin(0) >= 0  # for a reflection; else the edge is repeated
    return torch.minimum(index, torch.where(enough, mirror, last))


def description(run: LoadedRun, given: Any) -> dict[str, Any]:
    """What stands in the file beside the network."""
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
    """The files behind ``run=``: several of an ensemble."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [checkpoint.find_checkpoint(one) for one in given]
    folder = Path(given)
    if not (folder / CROSSVAL).is_file():
        return [checkpoint.find_checkpoint(folder)]
    folds = records.read_json(folder / CROSSVAL, CROSSVAL_LIMIT)["folds"]
    return [checkpoint.find_checkpoint(one) for one in ensemble.fold_folders(folder, folds)]


def digest(file: Path) -> str:
    """The SHA-256 of a checkpoint."""
    with open_regular(file, CHECKPOINT_LIMIT) as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()


def write(network: Exported, facts: dict, file: Path, format: str, opset: int) -> None:
    """The network and what is told of it, in one file."""
    image = torch.zeros(2, facts["channels"], 70, 90)  # none of the sizes is special
    if format == "onnx":
        write_onnx(network, image, facts, file, opset)
    else:
        write_torch(network, image, facts, file)


def write_onnx(network: Exported, image: Tensor, facts: dict, file: Path, opset: int) -> None:
    """By the TorchScript exporter: as exact as dynamo's on every network here, 20 times faster, no onnxscript."""
    import onnx

    untold = patch.object(torch._C, "_jit_onnx_log", create=True)  # the whole graph, on an error
    with warnings.catch_warnings(action="ignore"), untold:  # what tracing fixes, the sizes show
        torch.onnx.export(
            network, (image,), file, dynamo=False, opset_version=opset, input_names=["image"],
            output_names=["probabilities"], dynamic_axes={"image": AXES, "probabilities": AXES},
        )  # fmt: skip
    model = onnx.load(file)
    model.metadata_props.add(
        key="seg", value=files.encodable(json.dumps(facts, ensure_ascii=False))
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def write_torch(network: Exported, image: Tensor, facts: dict, file: Path) -> None:
    """By torch.export, which by itself takes no size of which 1 or a whole multiple is a special case."""
    from torch.fx.experimental import _config

    dynamic = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC)
    general = cast(Any, _config).patch(backed_size_oblivious=True)
    with warnings.catch_warnings(action="ignore"), general:
        program = torch.export.export(network, (image,), dynamic_shapes={"image": dynamic})
        program._guards_code = [
            guard
            for guard in getattr(program, "_guards_code", [])  # PyTorch 2.9 and newer
            if not guard.startswith("1 < max(1, ")  # which layout in memory: none of our business
        ]
        told = {"seg.json": files.encodable(json.dumps(facts, ensure_ascii=False))}
        with file.open("wb") as stream:  # of any name, which its own writer takes in UTF-8 alone
            torch.export.save(program, stream, extra_files=told)


def opened(file: Path, format: str) -> Run:
    """What a written file computes, as its users run it, on the CPU."""
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        return lambda image: np.asarray(session.run(None, {"image": image})[0])
    with warnings.catch_warnings(action="ignore"), file.open("rb") as stream:
        module = torch.export.load(stream).module()
    return torch.inference_mode()(lambda image: module(torch.from_numpy(image)).numpy())


def examples(run: LoadedRun) -> tuple[list[np.ndarray], str]:
    """Two images (H, W, C) as stored, and what they are: of the run's validation, if they are there."""
    own = run.config.get("data", {})
    try:
        check_targets(own, run.checkpoint, packages=("seg.data",))
        source = build(OmegaConf.create(own), "data")
        names = source.splits["val"][:2]
        images = [source.read(name)[0] for name in names]
    except (UserError, DataError, RunError, OSError, KeyError):
        names, images = [], []
    if not images or any(image.shape[2] != run.intensity.channels for image in images):
        return made(run), "made images (the run's own aren't there)"
    if len(images) == 1:
        images.append(images[0][::-1])
    return images, f"validation images {', '.join(names)}"


def made(run: LoadedRun) -> list[np.ndarray]:
    """Two images of noise in the range of stored values, always the same."""
    known = Exported(run).ensemble
    low, span = known.low[0].amin().item(), known.span[0].amax().item()
    shape = (2, *SIZES[-1], run.intensity.channels)
    noise = np.random.default_rng(0).uniform(low, low + span, shape)
    return list(noise.astype(np.float32))


def differences(run: LoadedRun, exported: Run, images: list[np.ndarray]) -> list[Gap]:
    """The file against the network as seg.predict runs it, at each size and batch."""
    gaps = []
    for height, width in SIZES:
        for batch in BATCHES:
            image = np.stack([resized(one, height, width) for one in images[:batch]])
            truth, found = expected(run, image), exported(image)
            same = truth.shape == found.shape
            largest = float(np.abs(truth - found).max()) if same else np.inf
            gaps.append(Gap(batch, height, width, largest))
    return gaps


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) -> float32 (C, height, width): the upper left part, repeated where the image is smaller."""
    rows, columns = np.arange(height) % image.shape[0], np.arange(width) % image.shape[1]
    return np.ascontiguousarray(image[rows][:, columns].transpose(2, 0, 1), np.float32)


@torch.inference_mode()
def expected(run: LoadedRun, image: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes, H, W) of images (B, C, H, W) as stored, by the network in PyTorch."""
    scaled = run.intensity.scaled(image.transpose(0, 2, 3, 1))
    normal = np.ascontiguousarray(run.intensity.normalised(scaled).transpose(0, 3, 1, 2))
    return probabilities(full_logits(run.model, torch.from_numpy(normal)), run.overlapping).numpy()


def gap_table(gaps: list[Gap], title: str) -> Table:
    """A row a size, a column a batch."""
    table = Table(title=title, title_justify="left")
    table.add_column("image, px", style="bold", no_wrap=True)
    for batch in BATCHES:
        table.add_column(f"batch {batch}: largest difference", justify="right")
    for height, width in SIZES:
        row = [f"{g.largest:.1e}" for g in gaps if (g.height, g.width) == (height, width)]
        table.add_row(f"{height}x{width}", *row)
    return table
