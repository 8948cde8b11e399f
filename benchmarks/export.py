"""An exported file against PyTorch on this CPU: python benchmarks/export.py [size=512] [width=16] [rounds=9] [networks=unet,unetpp].

Needs the extras export and openvino. Networks are untrained, for weights don't change times. Each runs as seg.predict
runs it in float32 and bfloat16, as the ONNX file in ONNX Runtime and in OpenVINO, in float32 and in int8, and as the
torch.export file in PyTorch, in turn. One thread and its CPU time, which hardly depends on what else the machine does;
printed are medians for one grey image, ratios to PyTorch, and the largest difference of a probability (of int8 it says
little: untrained networks are undecided everywhere).
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing
import torch

from seg.data.normalization import Normalization
from seg.display.console import configure_logging
from seg.inference.engines import open_openvino
from seg.inference.exported_network import (
    ExportedNetwork,
    open_export,
    open_onnxruntime,
    write_export,
)
from seg.inference.predictor import Predictor
from seg.inference.quantization import QUANTIZATION_OPSET, quantize_onnx
from seg.models import FCN, NestedUNet, SegNet, UNet
from seg.runs.load import LoadedRun

OPTIONS = {"size": 512, "width": 16, "rounds": 9}
NETWORKS = {"fcn": FCN, "segnet": SegNet, "unet": UNet, "unetpp": NestedUNet}


def predict(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Return the probabilities (1, classes, H, W) of an image (1, C, H, W)."""
    return predictor.probabilities(image[0].transpose(1, 2, 0))[None]


def measure_network(
    name: str, size: int, width: int, rounds: int, folder: Path
) -> list[timing.Row]:
    """Return the CPU time of a network in each runtime."""
    torch.manual_seed(0)
    intensity = Normalization(0.0, 255.0, [0.5], [0.2])
    model = NETWORKS[name](in_channels=1, num_classes=1, width=width).eval()
    run = LoadedRun(
        folder, folder, model, {}, ["out", "in"], [(0, 0, 0), (255, 255, 255)], intensity
    )
    predictor = Predictor(run, run.threshold, accelerator="cpu")
    other = Predictor(run, run.threshold, accelerator="cpu", precision="bfloat16")
    calls = {"PyTorch": functools.partial(predict, predictor), "PyTorch, bfloat16": functools.partial(predict, other)}  # fmt: skip
    whole, int8, program = (folder / f"{name}{end}" for end in (".onnx", "-int8.onnx", ".pt2"))
    write_export(ExportedNetwork(run), {"channels": 1}, whole, "onnx", QUANTIZATION_OPSET)
    write_export(ExportedNetwork(run), {"channels": 1}, program, "torch", 12)
    image = np.random.default_rng(0).integers(0, 256, (1, 1, size, size)).astype(np.float32)
    quantize_onnx(whole, int8, [image[0]], folder)
    for precision, file in (("float32", whole), ("int8", int8)):
        calls[f"ONNX Runtime, {precision}"] = open_onnxruntime(file)
        calls[f"OpenVINO, {precision}"] = open_openvino(file.read_bytes(), precision)
    calls["torch.export"] = open_export(program, "torch")
    truth = calls["PyTorch"](image)
    gaps = {runtime: np.abs(call(image) - truth).max() for runtime, call in calls.items()}
    timed = {f"{name}, {r}": functools.partial(call, image) for r, call in calls.items()}
    times = timing.time_in_turn(timed, rounds, clock=time.process_time)
    rows = timing.compare(times, f"{name}, PyTorch", "ms", 1000)
    return [
        row._replace(candidate=f"{row.candidate} (difference {gap:.0e})" if gap else row.candidate)
        for row, gap in zip(rows, gaps.values(), strict=True)
    ]


def measure(
    size: int = 512, width: int = 16, rounds: int = 9, networks: tuple[str, ...] = tuple(NETWORKS)
) -> list[timing.Row]:
    configure_logging()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure_network(name, size, width, rounds, Path(folder)) for name in networks]
    return [row for rows in found for row in rows]


def main() -> None:
    given = dict(word.split("=") for word in sys.argv[1:])
    networks = given.pop("networks", ",".join(NETWORKS)).split(",")
    options = OPTIONS | {k: int(v) for k, v in given.items()}
    rows = measure(**options, networks=tuple(networks))
    print(f"{timing.describe_machine()}\n\n{timing.table({'{size} px'.format(**options): rows})}")


if __name__ == "__main__":
    main()
