"""A 4096 x 4096 image in tiles, against MONAI's sliding_window_inference: python benchmarks/predict.py run=RUN.

Needs MONAI: pip install monai. The same trained network segments the same made image, from a file in memory to class
indices: ours in tiles of 512 px with 64 px of context each side, so every 384 px; MONAI's with windows of 512 px and
an overlap of 0.25, so every 384 px too, weighted by a Gaussian. Each contestant runs in a process of its own, in turn,
for several rounds (a quarter of an hour on two cores). Printed are medians of the seconds, the peak memory of the process and what it had before (imports,
network, image), and the error of the probabilities against the whole image at once. "MONAI, as ours" gives it our
memory layout (channels_last, memory kept). The rows below are ours with other settings.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import seg
from seg.data.datasets.membranes import Membranes
from seg.hardware import prepare_for_inference
from seg.inference.predictor import Predictor
from seg.logits import probabilities

OPTIONS = {"run": "outputs/latest", "size": "4096", "rounds": "3"}


def ours(predictor: Predictor, image: np.ndarray, keep: Callable[[int, np.ndarray], None]) -> None:
    """Band by band, as seg.predict does it."""
    tiling = predictor.tiling(*image.shape[:2])
    for top, _, p_CHW in tiling.bands(lambda a, b: image[a:b], len(image)):
        keep(top, p_CHW)


def monai(predictor: Predictor, image: np.ndarray, keep: Callable[[int, np.ndarray], None]) -> None:
    from monai.inferers import sliding_window_inference

    run = predictor.run
    normal = run.intensity.normalised(run.intensity.scaled(image)).transpose(2, 0, 1)
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(np.ascontiguousarray(normal))[None], (512, 512), 4, run.model, 0.25, "gaussian"
        )  # fmt: skip
        keep(0, probabilities(logits)[0].numpy())


# name -> (how, options of seg.load, laid out as ours)
CONTESTANTS = {
    "ours": (ours, {"tile": 512, "overlap": 64}, True),
    "MONAI": (monai, {}, False),
    "MONAI, as ours": (monai, {}, True),
    "ours, overlap=auto": (ours, {"tile": 512}, True),
    "ours, tile=1024": (ours, {"tile": 1024}, True),
    "ours, tile=2048": (ours, {"tile": 2048}, True),
    "ours, batch=4": (ours, {"tile": 512, "overlap": 64, "batch": 4}, True),
}


def measure(name: str, run: str, scratch: Path) -> dict[str, float]:
    """Seconds, MiB at the peak and before, and the largest and mean error; MONAI's imports aren't timed."""
    if name.startswith("MONAI"):
        import monai.inferers  # noqa: F401
    how, options, laid_out = CONTESTANTS[name]
    predictor = seg.load(run, **options)
    prepare_for_inference(predictor.run.model, "cpu")
    if not laid_out:
        predictor.run.model.to(memory_format=torch.contiguous_format)
    image = np.load(scratch / "image.npy")
    how(predictor, image[:640, :640], lambda top, p: None)  # first calls are slow
    whole = np.load(scratch / "whole.npy", mmap_mode="r")
    before, gaps, mask = peak(), [], np.empty(image.shape[:2], np.uint8)
    spent = 0.0

    def keep(top: int, p_CHW: np.ndarray) -> None:
        nonlocal spent
        mask[top : top + p_CHW.shape[1]] = p_CHW[1] > 0.5
        paused = time.perf_counter()
        for row in range(0, p_CHW.shape[1], 64):  # a little at a time, to need no memory
            gaps.append(
                np.abs(
                    p_CHW[1, row : row + 64]
                    - whole[top + row : top + row + 64][: p_CHW.shape[1] - row]
                )
            )
            gaps[-1] = np.array([gaps[-1].max(), gaps[-1].mean()])
        spent += time.perf_counter() - paused

    started = time.perf_counter()
    how(predictor, image, keep)
    seconds = time.perf_counter() - started - spent
    largest, mean = max(g[0] for g in gaps), float(np.mean([g[1] for g in gaps]))
    return {
        "seconds": seconds,
        "before": before,
        "peak": peak(),
        "largest": float(largest),
        "mean": mean,
    }


def peak() -> float:
    """MiB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(run: str, size: int, scratch: Path) -> None:
    """The image, made sections side by side, and its probabilities at once."""
    source = Membranes(size=512, train=4, val=1, test=0)
    four = [source.read(name)[0] for name in source.splits["train"]]
    times = -(-size // 512)
    rows = [
        np.concatenate([four[(r * 3 + c) % 4] for c in range(times)], axis=1) for r in range(times)
    ]
    image = np.concatenate(rows)[:size, :size]
    np.save(scratch / "image.npy", image)
    predictor = seg.load(run, tile=2 ** (size - 1).bit_length())
    np.save(scratch / "whole.npy", predictor.probabilities(image)[1])


def compete(run: str, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, __file__, "--prepare", run, str(size), scratch], check=True)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name in CONTESTANTS:
                words = [sys.executable, __file__, "--measure", name, run, scratch]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    best = statistics.median(one["seconds"] for one in found["ours"])
    print(
        f"{'':20}{'seconds':>9}{'/ ours':>8}{'peak, MiB':>11}{'of it new':>11}{'largest error':>15}{'mean':>10}"
    )
    for name, runs in found.items():
        one = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        print(
            f"{name:20}{one['seconds']:9.1f}{one['seconds'] / best:8.2f}{one['peak']:11.0f}"
            f"{one['peak'] - one['before']:11.0f}{one['largest']:15.1e}{one['mean']:10.1e}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    else:
        given = OPTIONS | dict(word.split("=") for word in sys.argv[1:])
        compete(given["run"], int(given["size"]), int(given["rounds"]))
