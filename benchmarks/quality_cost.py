"""Cost of quality.csv: ``python benchmarks/quality_cost.py FOLDER [repeats=9] [images=16]``.

Trains tiny networks (width 6, depth 3) for grey and for colour images, and one of width 16, for one epoch on made images,
and predicts images of 256 and 512 px with the calibrated checkpoint and with ``last.ckpt``, which has no calibration, in turn. Printed are medians of the
processor time of ``seg.predict save=[masks]`` in one process, without its start, and the median of the ratios of
neighbours with its quartiles. Then the tiny network is cross-validated with a bound on what is missed; printed is the
share of the processor time that calibration and bound take, and the time that ``seg.doubt`` takes afterwards. One thread.
"""

import functools
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import timing
import torch
from PIL import Image

from seg.api import call_command, crossval, doubt, train
from seg.data.datasets.membranes import Membranes
from seg.inference.file_prediction import predict_files
from seg.inference.quality import ImageMeter
from seg.metrics.calibration import ProbabilityCounts
from seg.multirun import crossval as folds
from seg.training import fit

OPTIONS = {"repeats": "9", "images": "16"}
TINY = ["model.width=6", "model.depth=3"]
NETWORKS = {"tiny": (1, TINY), "tiny, colour": (3, TINY), "width 16": (1, ["model.width=16"])}
SIDES = (256, 512)
TRAINING = ["trainer=cpu", "trainer.max_epochs=1", "logger=none", "panels=0", "save_predictions=0"]
MADE = ["data=folder", "data.classes=[membrane,cell]"]
FOLDS = [
    *MADE, "data.folds=2", "loader.crop=256", "loader.repeats=4",
    "save=[masks,probabilities]", "threshold=missed:0.2", *TRAINING[:1], "trainer.max_epochs=4", *TRAINING[2:],
]  # fmt: skip


def write_made(folder: Path, side: int, channels: int, count: int) -> Path:
    """Write made images of one channel or three equal ones, and masks; return the folder."""
    source = Membranes(size=side, train=1, val=1, test=count)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in source.splits["test"]:
        image, mask = source.read(name)
        colour = image.squeeze() if channels == 1 else np.repeat(image, channels, 2)
        Image.fromarray(colour).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def predict_time(checkpoint: Path, images: Path, output: Path) -> float:
    """Return the processor time of a prediction, s."""
    shutil.rmtree(output, ignore_errors=True)
    before = time.process_time()
    options = {"run": str(checkpoint), "input": str(images), "output": str(output), "accelerator": "cpu"}  # fmt: skip
    call_command("predict", predict_files, ["save=[masks]"], options)
    return time.process_time() - before


def measure_predict(run: Path, images: Path, output: Path, repeats: int) -> list[str]:
    """Return medians with and without the table, and the ratio, as cells of a table."""
    files = [run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    calls = {file: functools.partial(predict_time, file, images, output) for file in files}
    times = np.array(list(timing.call_in_turn(calls, repeats, warm_up=1).values())).T
    ratio = np.quantile(times[:, 0] / times[:, 1], [0.5, 0.25, 0.75])
    with_table, without = np.median(times, 0)
    told = f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"
    return [f"{with_table:.3f} s", f"{without:.3f} s", told]


class Stopwatch:
    """Processor time spent in functions, of which none calls another."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: ModuleType | type, name: str) -> None:
        """Replace a function by one that is timed."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            before = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - before

        setattr(owner, name, timed)


def crossval_shares(data: Path, output: Path) -> str:
    """Return what calibration and threshold take of a cross-validation's processor time, and what seg.doubt adds."""
    watch = Stopwatch()
    for owner, names in {
        ImageMeter: ["add"], folds.OutOfFoldMeter: ["begin", "finish", "fit"], fit: ["calibrate_quality"],
        ProbabilityCounts: ["update"], folds: ["promise_of_folds"],
    }.items():  # fmt: skip
        for name in names:
            watch.watch(owner, name)
    start = time.process_time()
    run = crossval(*TINY, *FOLDS, **{"data.root": data, "output": output})
    total = time.process_time() - start
    doubt(run)
    after = time.process_time() - start - total
    return (
        f"quality and promise {watch.seconds:.2f} s of {total:.2f} s: {watch.seconds / total:.1%}; "
        f"seg.doubt {after:.2f} s more: {after / total:.1%}"
    )


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    options = OPTIONS | dict(word.split("=", 1) for word in sys.argv[2:])
    repeats, images = (int(options[name]) for name in OPTIONS)
    torch.set_num_threads(1)
    data = {
        (side, channels): write_made(folder / f"{side}-{channels}", side, channels, images)
        for side in SIDES
        for channels in (1, 3)
    }
    rows = []
    for name, (channels, words) in NETWORKS.items():
        root = data[SIDES[0], channels]
        made = [*MADE, "data.val=0.5", "loader.crop=64", *TRAINING, *words]
        run = train(*made, **{"data.root": root, "outputs": folder / "outputs"}).folder
        for side in SIDES:
            inputs = data[side, channels] / "images"
            cells = measure_predict(run, inputs, folder / "predicted", repeats)
            rows.append([name, str(side), *cells])
    shares = crossval_shares(data[SIDES[0], 1], folder / f"cv-{time.time():.0f}")
    print(timing.markdown(["network", "px", "with the table", "without", "ratio, quartiles"], rows))
    print(f"crossval of {images} images of {SIDES[0]} px, 2 folds of 4 epochs: {shares}")


if __name__ == "__main__":
    main()
