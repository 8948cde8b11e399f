"""Engines that run an exported ONNX file in the place of a network: ONNX Runtime and OpenVINO."""

import dataclasses
import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from seg.cli.command_line import quote_path
from seg.errors import RunError, UserError, first_line, missing_extra_hint
from seg.files import read_bytes
from seg.inference.ensemble import Ensemble
from seg.inference.export_facts import hash_checkpoint, member_checkpoints
from seg.inference.exported_network import (
    DIGEST_KEY,
    ExportedFunction,
    as_ensemble,
    model_digest,
    open_onnxruntime,
)
from seg.models.contract import same_size_logits, tile_stride
from seg.models.network import Extent, Network
from seg.runs import pretrained
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")
EngineName = Literal["torch", "onnx", "openvino"]
PrecisionName = Literal["float32", "bfloat16", "int8"]
ENGINE_PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("float32", "bfloat16"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
ENGINE_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
ENGINE_TITLES = {"torch": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
ONNX_LIMIT = 2**31  # bytes of an ONNX file
SMALLEST_PROBABILITY = 1e-37  # whose logarithm is finite in float32


class EngineNetwork(Network):
    """Network whose logits come from an exported file, with the geometry of the network that was exported.

    Args:
        run_file: the file as a function, (B, C, H, W) as stored -> probabilities (B, classes, H, W), float32.
        ensemble: the exported network; it is not run.
        num_logits: K of the exported network.
        content: of the file; its SHA-256 counts as weights, by which an interrupted prediction is recognised.

    Shape:
        image (B, C, H, W) as stored -> logits (B, K, H, W) whose probabilities are those of the file.
    """

    normalizes = True

    def __init__(
        self, run_file: ExportedFunction, ensemble: Ensemble, num_logits: int, content: bytes = b""
    ) -> None:
        super().__init__()
        digest = torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)
        self.register_buffer("digest", digest)
        self.run_file, self.network, self.num_logits = run_file, ensemble, num_logits
        self.overlapping = ensemble.overlapping

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineNetwork":
        return self  # it holds no state that a copy could change

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def stride(self) -> int:
        return tile_stride(self.network, least=1)

    def forward(self, image: Tensor) -> Tensor:
        stored = image.float().cpu().contiguous().numpy()  # the engines compute on the CPU
        p = torch.from_numpy(self.run_file(stored)).to(image.device)
        log_p = p.clamp_min(SMALLEST_PROBABILITY).log()
        if self.overlapping:
            return log_p - (1 - p).clamp_min(SMALLEST_PROBABILITY).log()
        return log_p[:, 1:] - log_p[:, :1] if self.num_logits == 1 else log_p

    def receptive_field(self, outputs: Extent) -> Extent:
        return self.network.receptive_field(outputs)


def check_engine(engine: str, precision: str, accelerator: str) -> None:
    """Raise UserError if an engine is not installed, or doesn't compute in a precision or on a device."""
    if engine not in get_args(EngineName):
        raise UserError(f"engine={engine}: choose from {', '.join(get_args(EngineName))}")
    if precision not in get_args(PrecisionName):
        other = "; files in float16 are for other programs" * (precision == "float16")
        raise UserError(
            f"precision={precision}: choose from {', '.join(get_args(PrecisionName))}{other}"
        )
    if precision not in (known := ENGINE_PRECISIONS[engine]):
        able = [name for name, has in ENGINE_PRECISIONS.items() if precision in has]
        raise UserError(
            f"precision={precision}: engine={engine} computes in {' or '.join(known)}; take "
            f"engine={' or '.join(able)}"
        )
    if engine == "torch":
        return
    if accelerator not in ("auto", "cpu"):
        raise UserError(f"accelerator={accelerator}: engine={engine} runs on the CPU only; take engine=torch")  # fmt: skip
    for package in ENGINE_PACKAGES[engine]:
        if need := missing_extra_hint(package):
            raise UserError(f"engine={engine} {need}")


def with_engine(
    run: LoadedRun,
    given: str | Path | Sequence[str],
    engine: EngineName,
    precision: PrecisionName,
    exported: str | Path | None = None,
    accelerator: str = "auto",
    depth: int | None = None,
) -> LoadedRun:
    """Return a run whose network is computed by an engine; the run itself for ``engine=torch``.

    Args:
        run: loaded run or ensemble.
        given: the option ``run`` that it was loaded from.
        engine: torch, onnx or openvino.
        precision: float32, bfloat16 or int8.
        exported: file that ``seg.export`` wrote; None: the one in the folder of the run.
        accelerator: auto, cpu, gpu or mps.
        depth: option ``model.depth``; a file has one head alone, so it must be None.

    Raises:
        UserError: if the engine is not installed, or doesn't compute in this precision or on this device; or there is
            no exported file, or it was made from another network or in another precision.
        RunError: if the file can't be read.
    """
    check_engine(engine, precision, accelerator)
    if engine == "torch":
        if exported:
            raise UserError(f"exported={exported}: engine=torch runs the run's own network; take engine=onnx or openvino")  # fmt: skip
        return run
    if depth is not None:
        raise UserError(
            f"model.depth={depth}: an exported file has one head; python -m seg.prune run=RUN depth={depth} writes a "
            "checkpoint of that depth, which can be exported"
        )
    stored = "int8" if precision == "int8" else "float32"
    file = find_exported(run, given, stored, exported)
    content = read_onnx(file)
    check_origin(file, read_facts(content, file), run, given, stored, exported is not None)
    log.info(f"engine     {ENGINE_TITLES[engine]}, {precision}: {quote_path(file)}")
    try:
        run_file = OPENERS[engine](content, precision)
        return dataclasses.replace(run, **engine_fields(run, run_file, content))
    except Exception as error:  # runtimes raise errors of every class
        raise RunError(
            f"{file}: {ENGINE_TITLES[engine]} can't run it: {first_line(error)}"
        ) from error


def find_exported(
    run: LoadedRun, given: str | Path | Sequence[str], stored: str, exported: str | Path | None
) -> Path:
    """Return the exported file of a run.

    Raises:
        UserError: if there is none.
    """
    option = f" precision={stored}" * (stored != "float32")
    if exported:
        if not Path(exported).is_file():
            kind = "is a folder" if Path(exported).is_dir() else "there is no such file"
            raise UserError(
                f"exported={exported}: {kind}; give a file that seg.export{option} wrote"
            )
        return Path(exported)
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if listed or run.folder == pretrained.FOLDER:
        word = f"'run=[{','.join(map(str, given))}]'" if listed else f"run={given}"
        raise UserError(
            f"exported is not set: python -m seg.export {word}{option} output=FILE writes the file; give exported=FILE"
        )
    file = run.folder / export_name(stored)
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; python -m seg.export run={given}{option} writes it, or give exported=FILE"
        )
    return file


def engine_fields(
    run: LoadedRun, run_file: ExportedFunction, content: bytes = b""
) -> dict[str, Any]:
    """Return the network and the normalisation of a run that an exported file computes."""
    ensemble = as_ensemble(run)
    channels = run.intensity.channels
    with torch.inference_mode():
        logits = same_size_logits(ensemble.members[0], torch.zeros(1, channels, 32, 32))
    network = EngineNetwork(run_file, ensemble, logits.shape[1], content)
    return {"model": network.eval(), "intensity": ensemble.intensity}


def export_name(precision: str) -> str:
    """Return the path of an exported ONNX file inside of its run's folder."""
    return f"export/model{'' if precision == 'float32' else f'-{precision}'}.onnx"


def read_onnx(file: Path) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        RunError: if it can't be read.
    """
    try:
        return read_bytes(file, ONNX_LIMIT)
    except OSError as error:
        raise RunError(f"{file}: can't be read: {error}") from error


def read_facts(content: bytes, file: Path) -> dict[str, Any]:
    """Return the facts that ``seg.export`` stored in an ONNX file.

    Raises:
        RunError: if it is no ONNX file, was not written by ``seg.export``, or was changed since.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(content)
        stored = {p.key: p.value for p in model.metadata_props}
        facts = json.loads(stored["seg"])
        if not isinstance(facts["checkpoints"], dict):
            raise TypeError("checkpoints")
        digest, wanted = model_digest(model), stored[DIGEST_KEY]
    except Exception as error:  # protobuf's, json's and those of a missing key
        raise RunError(
            f"{file}: damaged, or not an ONNX file that this version of seg.export wrote; export again"
        ) from error
    if digest != wanted:
        raise RunError(f"{file}: damaged, or changed since seg.export wrote it; export again")
    return facts


def check_origin(
    file: Path,
    facts: dict[str, Any],
    run: LoadedRun,
    given: str | Path | Sequence[str],
    stored: str,
    chosen: bool,
) -> None:
    """Raise UserError unless a file, or the one that ``exported=`` chose, is of this network, in this precision."""
    written = facts.get("precision", "float32")
    if written != stored:
        raise UserError(f"{file}: holds a network in {written}, and {stored} was asked for")
    hashes = [hash_checkpoint(file) for file in member_checkpoints(given)]
    same = sorted(facts["checkpoints"].values()) == sorted(hashes)
    if not same or facts.get("network") != run.model.name or facts.get("classes") != run.classes:
        remedy = "give a file of this run" if chosen else "remove it and export again"
        raise UserError(
            f"{file}: exported from another network than that of run={given} (the checkpoint changed since, or another "
            f"depth is asked for); {remedy}"
        )


@functools.cache
def openvino_core() -> Any:
    """Return the core of OpenVINO, one for the whole process: several may crash it (openvino issue 35338)."""
    import openvino

    return openvino.Core()


def open_openvino(content: bytes, precision: str) -> ExportedFunction:
    """Return a function that runs an ONNX file by OpenVINO on the CPU.

    Args:
        content: of the file.
        precision: of what the file computes in floats; bfloat16, or float32 for any other name.
    """
    hint = "bf16" if precision == "bfloat16" else "f32"
    core = openvino_core()
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", options)
    return lambda image: np.array(model([image])[0])


OPENERS: dict[str, Callable[[bytes, str], ExportedFunction]] = {
    "onnx": lambda content, precision: open_onnxruntime(content),
    "openvino": open_openvino,
}
