"""An exported file against PyTorch on this CPU: python benchmarks/export.py [size=512] [width=16] [rounds=9].

Needs the extra export. Networks are untrained, for weights don't change times. Each runs as seg.predict runs it, as
the ONNX file in ONNX Runtime and as the torch.export file in PyTorch, in turn. One thread and its CPU time, which
hardly depends on what else the machine does; printed are medians for one grey image, and the largest difference of
a probability.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seg.data.normalization import Normalization
from seg.display.console import configure_logging
from seg.inference.exported_network import ExportedNetwork, open_export, write_export
from seg.inference.predictor import Predictor
from seg.models import FCN, NestedUNet, SegNet, UNet
from seg.runs.load import LoadedRun

OPTIONS = {"size": 512, "width": 16, "rounds": 9}
NETWORKS = {"fcn": FCN, "segnet": SegNet, "unet": UNet, "unetpp": NestedUNet}


def milliseconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """The median CPU time of each call, taken in turn; the first round warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            if number:
                taken.append(1000 * (time.process_time() - started))
    return [statistics.median(taken) for taken in times]


def row(name: str, size: int, width: int, rounds: int, folder: Path) -> str:
    """A line of the table."""
    torch.manual_seed(0)
    intensity = Normalization(0.0, 255.0, [0.5], [0.2])
    model = NETWORKS[name](in_channels=1, num_classes=1, width=width).eval()
    run = LoadedRun(
        folder, folder, model, {}, ["out", "in"], [(0, 0, 0), (255, 255, 255)], intensity
    )
    calls = []
    for format in ("onnx", "torch"):
        write_export(ExportedNetwork(run), {"channels": 1}, folder / f"{name}.pt2", format, 12)
        calls.append(open_export(folder / f"{name}.pt2", format))
    predictor = Predictor(run, run.threshold, accelerator="cpu")
    calls.insert(0, lambda image: predictor.probabilities(image[0].transpose(1, 2, 0))[None])
    image = np.random.default_rng(0).integers(0, 256, (1, 1, size, size)).astype(np.float32)
    gap = max(np.abs(call(image) - calls[0](image)).max() for call in calls[1:])
    torch_ms, onnx_ms, exported_ms = milliseconds(
        [lambda c=call: c(image) for call in calls], rounds
    )
    return (
        f"| {name} | {torch_ms:.0f} | {onnx_ms:.0f} | {onnx_ms / torch_ms:.2f} "
        f"| {exported_ms:.0f} | {exported_ms / torch_ms:.2f} | {gap:.0e} |"
    )


def main() -> None:
    configure_logging()
    torch.set_num_threads(1)
    options = OPTIONS | {k: int(v) for k, v in (word.split("=") for word in sys.argv[1:])}
    print(
        "|  | PyTorch, ms | ONNX Runtime, ms | of PyTorch | torch.export, ms | of PyTorch | difference |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            print(row(name, **options, folder=Path(folder)), flush=True)


if __name__ == "__main__":
    main()
