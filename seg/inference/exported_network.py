"""Exported network: one module from stored values to probabilities, and its files."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from seg import files
from seg.inference.ensemble import Ensemble
from seg.logits import probabilities
from seg.models import Network
from seg.models.contract import tile_stride
from seg.runs.load import LoadedRun

if TYPE_CHECKING:
    from onnx import ModelProto

DIGEST_KEY = "seg.sha256"  # of an ONNX file's metadata
DYNAMIC_AXES = {0: "batch", 2: "height", 3: "width"}  # dimensions that may differ from call to call
ExportedFunction = Callable[
    [np.ndarray], np.ndarray
]  # (B, C, H, W) -> (B, classes, H, W), both float32


class ExportedNetwork(nn.Module):
    """Network of a run with normalisation, padding, cropping and activation inside.

    Sizes are computed as tensors and rounded up without negative numbers: a tracer fixes the result of a Python ``if`` on
    a size, and exporters round ``-n // m`` towards zero.

    Args:
        run: a network, or an ensemble, and the normalisation of its input.
        float16: compute the networks in float16; normalisation and activation stay float32.

    Shape:
        image (B, C, H, W) float32 as stored -> class probabilities (B, classes, H, W), any B, H, W >= 1.
    """

    def __init__(self, run: LoadedRun, float16: bool = False) -> None:
        super().__init__()
        self.ensemble, self.overlapping = as_ensemble(run), run.overlapping
        self.float16 = float16
        if float16:
            self.ensemble = copy.deepcopy(self.ensemble)
            self.ensemble.members.half()
        self.eval()  # the whole module: the ONNX exporter restores the mode of the outermost one

    def forward(self, image: Tensor) -> Tensor:
        each = []
        for number, network in enumerate(self.ensemble.members):
            logits = self.logits(cast(Network, network), self.ensemble.normalised(image, number))
            each.append(probabilities(logits, self.overlapping))
        # The mean as average_logits has it, without ReduceLogSumExp, which OpenVINO can't read in opsets 13 to 17
        return sum(each[1:], each[0]) / len(each) if len(each) > 1 else each[0]

    def logits(self, network: Network, x: Tensor) -> Tensor:
        """Return the logits (B, K, H, W) of normalised images (B, C, H, W), padded for the network and cropped."""
        height, width = x.shape[-2:]
        rows, columns = padded_rows(network, height), padded_rows(network, width)
        x = x.index_select(-2, rows).index_select(-1, columns)
        y = network(x.half()).float() if self.float16 else network(x)
        # index_select, because torch.export would fix whether a slice is whole and refuse the other case
        return y.index_select(-2, torch.arange(height)).index_select(-1, torch.arange(width))


def as_ensemble(run: LoadedRun) -> Ensemble:
    """Return the network of a run as one that takes values as stored."""
    if run.model.normalizes:
        return cast(Ensemble, run.model)
    return Ensemble([run.model], [run.intensity], run.overlapping)


def padded_rows(network: Network, side: int) -> Tensor:
    """Return the row of an image, in 0 .. side - 1, of each row of the network's padded input.

    The same padding as ``pad_to_multiple``'s, or as ``same_size_logits``'s for valid convolutions, in operations that export.
    """
    last = torch.arange(side)[-1:]  # side - 1, which the exported graph computes
    if network.context:
        smallest, step, context = network.smallest, network.stride, network.context
        least = smallest - 2 * context  # px of logits of the smallest input; at most one step
        rows = smallest + (side - least + step - 1) // step * step
        period = (2 * last).clamp(min=1)
        index = (torch.arange(rows) - context) % period
        return torch.minimum(index, 2 * last - index)
    step = tile_stride(network, least=1)
    index = torch.arange((side + step - 1) // step * step)
    mirror = 2 * last - index
    fits = mirror.amin(0) >= 0  # else the image is too small to reflect, and its edge is repeated
    return torch.minimum(index, torch.where(fits, mirror, last))


def write_export(
    network: ExportedNetwork, facts: dict, file: Path, format: str, opset: int
) -> None:
    """Write the network and the facts of its run to one file.

    Args:
        network: in evaluation mode, on the CPU.
        facts: of ``description``; a JSON object in the file.
        file: that is written.
        format: ``onnx`` or ``torch``.
        opset: version of ONNX's operators.
    """
    image = torch.zeros(2, facts["channels"], 70, 90)  # sizes that are no special case
    if format == "onnx":
        write_onnx(network, image, facts, file, opset)
    else:
        write_torch(network, image, facts, file)


def write_onnx(
    network: ExportedNetwork, image: Tensor, facts: dict, file: Path, opset: int
) -> None:
    """Write an ONNX file by PyTorch's TorchScript exporter.

    It is as exact as its successor (``dynamo=True``) on every network here, 20 times faster, and needs no onnxscript.
    """
    # the warnings are about sizes that tracing fixes, which the comparison at several sizes tests
    with warnings.catch_warnings(action="ignore"), without_graph_dump():
        torch.onnx.export(
            network, (image,), file, dynamo=False, opset_version=opset, input_names=["image"],
            output_names=["probabilities"], dynamic_axes={"image": DYNAMIC_AXES, "probabilities": DYNAMIC_AXES},
        )  # fmt: skip
    add_facts(file, facts)


def add_facts(file: Path, facts: dict) -> None:
    """Store the facts and the digest of graph, weights and facts in an ONNX file, and check its complete graph."""
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    value = files.encodable(json.dumps(facts, ensure_ascii=False))
    model.metadata_props.add(key="seg", value=value)
    model.metadata_props.add(key=DIGEST_KEY, value=model_digest(model))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def model_digest(model: "ModelProto") -> str:
    """Remove the digest from the metadata of an ONNX model, and return the SHA-256 of the rest."""
    others = [(prop.key, prop.value) for prop in model.metadata_props if prop.key != DIGEST_KEY]
    del model.metadata_props[:]
    for key, value in others:
        model.metadata_props.add(key=key, value=value)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@contextmanager
def without_graph_dump() -> Generator[None]:
    """Keep the exporter from printing the whole graph when it fails."""
    name, module = "_jit_onnx_log", torch._C
    original = getattr(module, name, None)
    setattr(module, name, lambda *_: None)
    try:
        yield
    finally:
        if original is None:
            delattr(module, name)
        else:
            setattr(module, name, original)


def write_torch(network: ExportedNetwork, image: Tensor, facts: dict, file: Path) -> None:
    """Write a torch.export program for images of any size, also those of side 1 or of a whole multiple."""
    from torch.fx.experimental import _config

    # Oblivious sizes keep the program from being specialised for sides of 0 and 1
    dynamic = dict.fromkeys(DYNAMIC_AXES, torch.export.Dim.DYNAMIC)
    general = cast(Any, _config).patch(backed_size_oblivious=True)
    with warnings.catch_warnings(action="ignore"), general:
        # PyTorch 2.9 and newer: leave out the guards on the memory layout, which doesn't change the result
        program = torch.export.export(network, (image,), dynamic_shapes={"image": dynamic})
        program._guards_code = [
            guard
            for guard in getattr(program, "_guards_code", [])
            if not guard.startswith("1 < max(1, ")
        ]
        extra = {"seg.json": files.encodable(json.dumps(facts, ensure_ascii=False))}
        # a stream, because PyTorch's writer opens only names in UTF-8
        with file.open("wb") as stream:
            torch.export.save(program, stream, extra_files=extra)


def open_export(file: Path, format: str) -> ExportedFunction:
    """Return a function that runs a written file on the CPU, as its users do."""
    if format == "onnx":
        return open_onnxruntime(file)
    with warnings.catch_warnings(action="ignore"), file.open("rb") as stream:
        module = torch.export.load(stream).module()
    return torch.inference_mode()(lambda image: module(torch.from_numpy(image)).numpy())


def open_onnxruntime(model: Path | bytes) -> ExportedFunction:
    """Return a function that runs an ONNX file, or its content, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # else threads stay busy after a call
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda image: np.asarray(session.run(None, {"image": image})[0])
