"""A large image in tiles, against MONAI's sliding_window_inference: python benchmarks/predict.py RUN [--side 4096].

MONAI takes part where it is installed: pip install monai. All contestants use the same trained network, on the same
made image, on --threads threads, each in a process of its own, in turn, for --rounds rounds; printed are medians of the
seconds and of the peak memory, and how much of that came after the imports. --tasks:

predict   an array in memory to probabilities. Ours in tiles of 512 px with 64 px of context each side, so every 384 px;
          MONAI's in windows of 512 px and an overlap of 0.25, so every 384 px too, weighted by a Gaussian. With the
          error of the probabilities against the whole image at once.
masks     a TIFF to a TIFF of classes.
evaluate  a TIFF and its mask to Dice; ours with all scores of seg.evaluate, MONAI's with its DiceMetric.
objects   a TIFF to a TIFF of labels and a table of measurements; MONAI's with scikit-image's label and regionprops.

"ours, int8" is ours in OpenVINO, calibrated on made membranes: RUN has their classes. Of the last three, MONAI's windows and their overlap are those of our tiles, and their weight is constant. "MONAI, as
ours" has our memory layout (channels_last, memory kept). --side 512 --rounds 1 is a trial (below 1024 px, a
window, MONAI pads with zeros and differs). The memory of
masks and evaluate against the side of the image, as a table and a plot (half an hour):

    python benchmarks/predict.py RUN --sides 1024 2048 4096 8192 16384 --output docs/images/memory.png

With --monai-up-to 4096 MONAI takes part up to this side only, which saves most of that time.
"""

import argparse
import functools
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import timing
import torch

import seg
from seg.cli.compose import compose_checked
from seg.commands.evaluate import evaluate
from seg.commands.export import export_run
from seg.data.datasets.membranes import Membranes
from seg.hardware import prepare_for_inference
from seg.inference.file_prediction import predict_files
from seg.inference.predictor import Predictor
from seg.inference.tiling import AUTO_TILE, needed_overlap
from seg.logits import probabilities

TASKS = ("predict", "masks", "evaluate", "objects")
MEASURED = ["label", "area", "centroid", "bbox", "perimeter", "eccentricity", "orientation",
            "intensity_mean", "intensity_min", "intensity_max"]  # fmt: skip
WHOLE_BYTES = 400  # a pixel, of a network of width 16 at once
COLORS = {"ours": "#0072b2", "MONAI": "#d55e00", "ours, whole image": "#999999"}


class Contestant(NamedTuple):
    """One way of processing an image.

    Attributes:
        library: whose: ours or MONAI.
        options: of seg.load, or of the command.
        as_ours: whether MONAI's network has our memory layout.
    """

    library: str
    options: dict[str, Any] | None = None
    as_ours: bool = True


INT8 = {"engine": "openvino", "precision": "int8"}
ARRAYS = {
    "ours": Contestant("ours", {"tile": 512, "overlap": 64}),
    "MONAI": Contestant("MONAI", as_ours=False),
    "MONAI, as ours": Contestant("MONAI"),
    "ours, overlap=auto": Contestant("ours", {"tile": 512}),
    "ours, tile=1024": Contestant("ours", {"tile": 1024}),
    "ours, tile=2048": Contestant("ours", {"tile": 2048}),
    "ours, batch=4": Contestant("ours", {"tile": 512, "overlap": 64, "batch": 4}),
    "ours, int8": Contestant("ours", {"tile": 512, "overlap": 64, **INT8}),
}
FILES = {
    "ours": Contestant("ours"),
    "MONAI": Contestant("MONAI", as_ours=False),
    "MONAI, as ours": Contestant("MONAI"),
    "ours, tile=512": Contestant("ours", {"tile": 512}),
    "ours, int8": Contestant("ours", INT8),
    "ours, whole image": Contestant("ours", {"tile": None}),
}


# --- MONAI's side


def monai_logits(predictor: Predictor, image: np.ndarray, tile: int, overlap: float, mode: str) -> torch.Tensor:  # fmt: skip
    """Logits (1, K, H, W) of an image (H, W, C), window by window."""
    from monai.inferers import sliding_window_inference

    run = predictor.run
    normal = run.intensity.normalised(run.intensity.scaled(image)).transpose(2, 0, 1)
    batch = 4 if mode == "gaussian" else 1
    with torch.inference_mode():
        return sliding_window_inference(torch.from_numpy(np.ascontiguousarray(normal))[None], (tile, tile), batch,
                                        run.model, overlap, mode)  # fmt: skip


def monai_interior(predictor: Predictor, image: np.ndarray) -> torch.Tensor:
    """Probability (H, W) of class 1, in the windows of our tiles."""
    _, context, _ = needed_overlap(predictor.run.model)
    logits = monai_logits(predictor, image, AUTO_TILE, 2 * context / AUTO_TILE, "constant")
    return logits[0, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[0, 1]


def monai_masks(predictor: Predictor, root: Path, output: Path) -> float:
    interior = monai_interior(predictor, read_image(root))
    tifffile.imwrite(output / "mask.tif", (interior > 0.5).to(torch.uint8).numpy(), compression="zlib", tile=(256, 256))  # fmt: skip
    return float((interior > 0.5).float().mean())


def monai_evaluate(predictor: Predictor, root: Path, output: Path) -> float:
    from monai.metrics import DiceMetric

    found = monai_interior(predictor, read_image(root)) > 0.5
    truth = torch.from_numpy(tifffile.imread(root / "masks/0.tif"))
    metric = DiceMetric()
    metric(y_pred=found[None, None], y=truth[None, None])
    return float(metric.aggregate())


def monai_objects(predictor: Predictor, root: Path, output: Path) -> float:
    import pandas as pd
    from skimage.measure import label, regionprops_table
    from skimage.morphology import remove_small_objects

    image = read_image(root)
    interior = monai_interior(predictor, image).numpy()
    labels = remove_small_objects(label(interior > 0.5, connectivity=1), max_size=15)
    table = regionprops_table(labels, image, properties=MEASURED)
    table |= {"probability_mean": regionprops_table(labels, interior, properties=["intensity_mean"])["intensity_mean"]}  # fmt: skip
    tifffile.imwrite(output / "labels.tif", labels.astype(np.int32), compression="zlib", tile=(256, 256))  # fmt: skip
    pd.DataFrame(table).to_csv(output / "table.csv", index=False)
    return float(len(table["area"]))


def read_image(root: Path) -> np.ndarray:
    return tifffile.imread(root / "images/0.tif")[..., None]


# --- our side


def our_command(task: str, run: str, root: Path, output: Path, options: dict[str, Any]) -> float:
    """Dice, the number of objects, or the share of class 1."""
    given = {key: "null" if value is None else value for key, value in options.items()}
    words = [f"run={run}", f"output={output}", "accelerator=cpu", *(f"{k}={v}" for k, v in given.items())]  # fmt: skip
    if task == "evaluate":
        words += ["data=folder", f"data.root={root}", "data.split=all", "panels=0"]
        scores = evaluate(compose_checked("evaluate", words))
        return next(scores[f"all/dice/{name}"] for name in list(seg.load(run).run.classes)[1:])
    kind = {"masks": "masks", "objects": "instances"}[task]
    predict_files(compose_checked("predict", [*words, f"input={root / 'images'}", f"save=[{kind}]"]))  # fmt: skip
    if task == "masks":
        return float((tifffile.imread(next((output / kind).glob("*.tif"))) > 0).mean())
    return float(len(next((output / kind).glob("*.csv")).read_text().splitlines()) - 1)


# --- one measurement, in a process of its own


def measure(task: str, name: str, run: str, root: Path, threads: int) -> dict[str, float]:
    """Seconds, MiB at the peak and before, and a result or error; imports and the network aren't timed."""
    torch.set_num_threads(threads)
    one = (ARRAYS if task == "predict" else FILES)[name]
    if one.library == "MONAI":
        import monai.inferers
        import monai.metrics  # noqa: F401
    given = dict(one.options or {})
    if "engine" in given:
        given["exported"] = str(root / "int8.onnx")
    predictor = seg.load(run, **(given if task == "predict" else {}))
    prepare_for_inference(predictor.run.model, "cpu")
    if not one.as_ours:
        predictor.run.model.to(memory_format=torch.contiguous_format)
    if task == "predict":
        return measure_arrays(one, predictor, root)
    monais = {"masks": monai_masks, "evaluate": monai_evaluate, "objects": monai_objects}
    with tempfile.TemporaryDirectory() as folder:
        if one.library == "MONAI":
            call = functools.partial(monais[task], predictor, root, Path(folder))
        else:
            call = functools.partial(our_command, task, run, root, Path(folder) / "out", given)
        before, started = timing.process_memory("VmRSS"), time.perf_counter()
        result = call()
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak": timing.process_memory("VmHWM"),
        "before": before,
        "result": result,
    }


def measure_arrays(one: Contestant, predictor: Predictor, root: Path) -> dict[str, float]:
    """As ``measure``, of an array in memory; with the largest and the mean error of the probabilities."""
    image, whole = np.load(root / "image.npy"), np.load(root / "whole.npy", mmap_mode="r")
    mask = np.empty(image.shape[:2], np.uint8)
    gaps: list[tuple[float, float]] = []
    spent = 0.0

    def process(part: np.ndarray, keep: Callable[[int, np.ndarray], None]) -> None:
        if one.library == "MONAI":
            keep(0, probabilities(monai_logits(predictor, part, 512, 0.25, "gaussian"))[0].numpy())
            return
        tiling = predictor.tiling(*part.shape[:2])
        for top, _, p_CHW in tiling.bands(lambda a, b: part[a:b], len(part)):
            keep(top, p_CHW)

    def keep(top: int, p_CHW: np.ndarray) -> None:
        nonlocal spent
        mask[top : top + p_CHW.shape[1]] = p_CHW[1] > 0.5
        paused = time.perf_counter()
        for row in range(0, p_CHW.shape[1], 64):  # a little at a time, to need no memory
            found = p_CHW[1, row : row + 64]
            gap = np.abs(found - whole[top + row : top + row + len(found)])
            gaps.append((float(gap.max()), float(gap.mean())))
        spent += time.perf_counter() - paused

    process(image[:640, :640], lambda top, p_CHW: None)  # first calls are slow
    before, started = timing.process_memory("VmHWM"), time.perf_counter()
    process(image, keep)
    seconds = time.perf_counter() - started - spent
    largest, mean = max(g[0] for g in gaps), float(np.mean([g[1] for g in gaps]))
    return {"seconds": seconds, "peak": timing.process_memory("VmHWM"), "before": before, "largest": largest, "mean": mean}  # fmt: skip


def prepare(run: str, side: int, root: Path, tasks: list[str]) -> None:
    """The image, made sections side by side, in a compressed TIFF with its mask; for ``predict`` its probabilities at once."""
    source = Membranes(size=512, train=4, val=1, test=0)
    four = [source.read(name) for name in source.splits["train"]]
    times = -(-side // 512)
    for number, part in enumerate(("images", "masks")):
        rows = [np.concatenate([four[(r * 3 + c) % 4][number] for c in range(times)], 1) for r in range(times)]  # fmt: skip
        whole = np.concatenate(rows)[:side, :side]
        (root / part).mkdir()
        plane = whole[..., 0] if number == 0 else whole
        tifffile.imwrite(root / part / "0.tif", plane, compression="zlib", tile=(256, 256))
        if number == 0 and "predict" in tasks:
            np.save(root / "image.npy", whole)
            predictor = seg.load(run, tile=2 ** (side - 1).bit_length())
            np.save(root / "whole.npy", predictor.probabilities(whole)[1])
    if importlib.util.find_spec("openvino") is not None:
        words = [f"run={run}", "precision=int8", f"output={root / 'int8.onnx'}", "data=membranes", "data.split=val"]  # fmt: skip
        export_run(compose_checked("export", words))


# --- all of them


def contestants(task: str, side: int, names: list[str] | None = None) -> list[str]:
    """Those that can take part: MONAI if it is installed, the whole image if it fits into half of the memory."""
    free = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line).split()[1]) * 1024  # fmt: skip
    every = ARRAYS if task == "predict" else FILES
    found = [name for name in every if names is None or name in names]
    if importlib.util.find_spec("monai") is None:
        found = [name for name in found if every[name].library != "MONAI"]
    if importlib.util.find_spec("openvino") is None:
        found = [name for name in found if name != "ours, int8"]
    if side**2 * WHOLE_BYTES > free / 2:
        found = [name for name in found if name != "ours, whole image"]
    return found


def compete(options: argparse.Namespace, side: int, names: list[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:  # fmt: skip
    """Task -> contestant -> medians."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as root:
        timing.run_child(__file__, "--prepare", options.run, side, root, *options.tasks)
        for task in options.tasks:
            children = {
                name: functools.partial(timing.run_child, __file__, "--measure", task, name, options.run, root, options.threads)
                for name in contestants(task, side, names)
            }  # fmt: skip
            print(f"{side} px, {task}, {', '.join(children)} ...", file=sys.stderr, flush=True)
            results[task] = timing.medians(timing.call_in_turn(children, options.rounds))
    return results


def table(found: dict[str, dict[str, float]]) -> str:
    """Contestants beside ours, in Markdown."""
    first, *_ = found.values()
    more = [key for key in first if key not in ("seconds", "peak", "before")]
    rows = []
    for name, one in found.items():
        new = one["peak"] - one["before"]
        rows.append([name, f"{one['seconds']:.1f}", f"{one['seconds'] / first['seconds']:.2f}", f"{one['peak']:.0f}", f"{new:.0f}",
                     f"{new / (first['peak'] - first['before']):.2f}", *(f"{one[key]:.5g}" for key in more)])  # fmt: skip
    return timing.markdown(
        ["", "seconds", "/ ours", "peak, MiB", "of it new", "/ ours", *more], rows
    )


def compare_sides(options: argparse.Namespace) -> None:
    """Memory against side: a table and a plot."""
    options.tasks = [task for task in options.tasks if task in ("masks", "evaluate")]
    ours = [name for name in COLORS if FILES[name].library == "ours"]
    found = {
        side: compete(options, side, list(COLORS) if side <= options.monai_up_to else ours)
        for side in options.sides
    }
    for task in options.tasks:
        names = [name for name in COLORS if any(name in found[side][task] for side in found)]
        peaks = {n: [found[side][task].get(n, {}).get("peak") for side in found] for n in names}
        rows = [[n, *("" if p is None else f"{p:.0f}" for p in own)] for n, own in peaks.items()]
        print(f"\n{task}, MiB at the peak\n")
        print(timing.markdown(["", *(f"{side} px" for side in found)], rows))
    if options.output:
        plot(found, options.tasks, options.output)


def plot(found: dict[int, dict[str, dict[str, dict[str, float]]]], tasks: list[str], file: Path) -> None:  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")  # before pyplot: no window
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 3.6), dpi=100, layout="constrained", sharey=True, squeeze=False)  # fmt: skip
    titles = {"masks": "seg.predict", "evaluate": "seg.evaluate"}
    for axes, task in zip(panels[0], tasks, strict=True):
        for name, color in COLORS.items():
            sides = [side for side in found if name in found[side][task]]
            peaks = [found[side][task][name]["peak"] / 1024 for side in sides]
            axes.plot(sides, peaks, "o-", color=color, label=name)
        axes.set(xscale="log", yscale="log", xlabel="side of the image, px", title=titles[task])
        axes.set_xticks(list(found), [str(side) for side in found])
        axes.minorticks_off()
        axes.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("peak memory, GiB")
    panels[0][0].legend()
    figure.savefig(file, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint file")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--side", type=int, default=4096, help="px of the image")
    parser.add_argument(
        "--sides", type=int, nargs="+", help="several, for the memory of masks and evaluate"
    )
    parser.add_argument(
        "--monai-up-to",
        type=int,
        default=16384,
        help="px of the largest side at which MONAI takes part",
    )
    parser.add_argument("--output", type=Path, help="PNG of the memory against the sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.sides:
        compare_sides(options)
        return
    for task, found in compete(options, options.side).items():
        print(f"\n{task}, {options.side}x{options.side} px, {options.threads} threads", "", table(found), sep="\n")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
        print("null")  # the result is the last line
    elif sys.argv[1:2] == ["--measure"]:
        task, name, run, root, threads = sys.argv[2:]
        print(json.dumps(measure(task, name, run, Path(root), int(threads))))
    else:
        main()
