"""Static quantisation of an exported ONNX file to 8-bit integers, calibrated on images."""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

# Operators computed in integers. The last convolutions and all that follows them, normalisation and padding stay float32.
QUANTIZED_OPERATORS = ("Conv", "ConvTranspose", "Relu", "MaxPool", "AveragePool", "Concat", "Add", "Resize")  # fmt: skip
QUANTIZATION_OPSET = 18  # scales for each channel need 13; measured with 18


class CalibrationImages:
    """Images for ONNX Runtime's calibration, read one after the other.

    Args:
        images: each (C, H, W) float32, values as stored.
    """

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input of the network; None after the last."""
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def last_nodes(model: "ModelProto") -> list[str]:
    """Return the names of a graph's last convolutions and of all nodes after them: those that give the probabilities."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    waiting = [output.name for output in model.graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        if node.op_type not in ("Conv", "ConvTranspose"):
            waiting.extend(node.input)
    return list(found)


def quantize_onnx(
    float_file: Path, file: Path, images: Iterable[np.ndarray], scratch: Path
) -> None:
    """Write an ONNX file whose convolutions compute in 8-bit integers.

    Weights become int8 with a scale for each output channel, activations uint8 with the range that they have on the
    images (Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342, section 3). The file describes
    this by pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO turn into integer kernels.
    The heads stay float32, so that probabilities have no steps.

    Args:
        float_file: float32, of opset ``QUANTIZATION_OPSET`` or higher.
        file: to write.
        images: from the training split, each (C, H, W) float32, values as stored.
        scratch: folder for intermediate files.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = scratch / "folded.onnx"
    # onnxruntime.quantization prints its progress and warns of optional steps
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(str(float_file), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded), str(file), cast(Any, CalibrationImages(images)), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED_OPERATORS),
            nodes_to_exclude=last_nodes(onnx.load(folded)),
        )  # fmt: skip
