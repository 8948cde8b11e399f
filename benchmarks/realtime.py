"""Which trained network is best in real time on a CPU: python benchmarks/realtime.py RUN [RUN ...] --output FOLDER.

Needs the extras export and openvino. Each run is a model in float32 and in int8; a UNet++ with several heads is one at
each depth, pruned (seg.prune). Each is scored on a split of its own data as seg.export does it, and timed on one image
as seg.predict runs it (PyTorch, channels_last, batch normalisation folded) and as an ONNX file in ONNX Runtime and
OpenVINO (seg.export), all in turn, on --threads threads. FOLDER gets realtime.json, the table realtime.md, and the plot realtime.png: accuracy over milliseconds, with
a line where 30 images a second are. --data-root says where the data lies now.
"""

import argparse
import dataclasses
import functools
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import numpy as np
import timing
import torch

from seg.cli.compose import compose_checked
from seg.commands.export import Reduction, calibration_images, open_reduction, score_run
from seg.display.console import configure_logging
from seg.errors import DataError, RunError, UserError
from seg.hardware import keep_freed_memory
from seg.inference.depths import prunable_depths, prune_run
from seg.inference.engines import engine_fields, open_openvino
from seg.inference.exported_network import ExportedNetwork, open_onnxruntime, write_export
from seg.inference.predictor import Predictor
from seg.inference.quantization import QUANTIZATION_OPSET, quantize_onnx
from seg.models import NestedUNet, profiling
from seg.runs import load, records
from seg.runs.load import LoadedRun
from seg.runs.provenance import describe_hardware

REALTIME = 1000 / 30  # ms an image
RUNTIMES = ("PyTorch", "ONNX Runtime", "OpenVINO")
Call = Callable[[np.ndarray], np.ndarray]  # (1, C, H, W) float32 -> (1, classes, H, W)


@dataclasses.dataclass
class Model:
    """A network, what it scores and how long it takes.

    Attributes:
        name: network, width and depth.
        run: path of its folder.
        parameters: numbers that it learnt.
        multiply_adds: of one image, in G.
        scores: of the split, by name.
        ms: median of an image, by runtime.
        gap: largest difference of a probability from that of PyTorch in float32.
    """

    name: str
    run: str
    parameters: int
    multiply_adds: float
    scores: dict[str, float]
    ms: dict[str, float] = dataclasses.field(default_factory=dict)
    gap: float = 0.0

    @property
    def fastest(self) -> str:
        return min(self.ms, key=lambda runtime: self.ms[runtime])


def depths(run: LoadedRun) -> list[int | None]:
    """The depths at which a run is a model; None: only as it is."""
    several = isinstance(run.model, NestedUNet) and len(run.model.heads) > 1
    return list(prunable_depths(run)) if several else [None]


def name_of(run: LoadedRun, depth: int | None) -> str:
    options = run.config["model"]
    kind = {"NestedUNet": "UNet++"}.get(type(run.model).__name__, type(run.model).__name__)
    width = f" {options['width']}" if "width" in options else ""
    deep = depth or options.get("depth")
    return f"{kind}{width}{f' L{deep}' if deep else ''}"


def reduction_of(run: LoadedRun, path: str, options: argparse.Namespace) -> Reduction:
    """The images that score a run, and those that calibrate int8."""
    words = [f"run={path}", "precision=int8", f"data.split={options.split}"]
    words += [f"data.root={options.data_root}"] if options.data_root else []
    return open_reduction(compose_checked("export", words), run)


def predict(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Probabilities (1, classes, H, W) of an image (1, C, H, W)."""
    return predictor.probabilities(image[0].transpose(1, 2, 0))[None]


def precisions(run: LoadedRun, file: Path, reduction: Reduction) -> dict[str, tuple[dict[str, Call], dict[str, float]]]:  # fmt: skip
    """Precision -> how an image goes through, by runtime, and the scores; int8 is scored in OpenVINO."""
    predictor = Predictor(run, run.threshold, accelerator="cpu")
    write_export(
        ExportedNetwork(run), {"channels": run.intensity.channels}, file, "onnx", QUANTIZATION_OPSET
    )
    int8 = file.with_stem(f"{file.stem}-int8")
    assert reduction.calibration is not None
    quantize_onnx(file, int8, calibration_images(reduction.calibration, 32), file.parent)
    found = {}
    for precision, one in (("", file), (" int8", int8)):
        calls: dict[str, Call] = {"PyTorch": functools.partial(predict, predictor)} if not precision else {}  # fmt: skip
        calls["ONNX Runtime"] = open_onnxruntime(one)
        calls["OpenVINO"] = open_openvino(one.read_bytes(), "float32")
        scored = reduction.run
        if precision:
            scored = dataclasses.replace(scored, **engine_fields(run, calls["OpenVINO"]))
        found[precision] = calls, score_run(scored, reduction.data, reduction.split)
    return found


def timed(found: dict[str, dict[str, Call]], image: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:  # fmt: skip
    """Median ms of each model in each runtime; all in turn, so that a busy moment hits all alike."""
    calls = {
        (name, runtime): functools.partial(call, image)
        for name, own in found.items()
        for runtime, call in own.items()
    }
    times = timing.time_in_turn(calls, rounds, warm_up=2)
    return {
        name: {runtime: 1000 * statistics.median(times[name, runtime]) for runtime in found[name]}
        for name in found
    }


def measured(options: argparse.Namespace) -> list[Model]:
    """All models, scored and timed."""
    models: dict[str, Model] = {}
    found: dict[str, dict[str, Call]] = {}
    channels = 1
    for path in options.runs:
        whole = load.load_run(path)
        channels = whole.intensity.channels
        for depth in depths(whole):
            run = prune_run(whole, depth)
            name = name_of(run, depth)
            name += f", {Path(path).name}" if name in models else ""
            print(f"{name} ...", file=sys.stderr, flush=True)
            image = torch.zeros(1, channels, options.size, options.size)
            adds = profiling.count_multiply_adds(run.model, image)["Global"] / 1e9
            file = options.output / f"{name.replace(' ', '-').replace('+', 'p')}.onnx"
            parameters = profiling.count_parameters(run.model)
            for precision, (calls, scores) in precisions(run, file, reduction_of(run, path, options)).items():  # fmt: skip
                models[name + precision] = Model(name + precision, path, parameters, adds, scores)
                found[name + precision] = calls
    shape = (1, channels, options.size, options.size)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    for name, times in timed(found, image, options.rounds).items():
        models[name].ms = times
        truth = found[name.removesuffix(" int8")]["PyTorch"](image)
        models[name].gap = max(float(np.abs(c(image) - truth).max()) for c in found[name].values())
    return sorted(models.values(), key=lambda model: model.ms[model.fastest])


def columns(models: list[Model]) -> dict[str, str]:
    """Score -> its header: Dice of each class, if there are few, and V_rand where there is one."""
    scores = models[0].scores
    classes = [name for name in scores if name.startswith("dice/")]
    shown = {name: f"{name.removeprefix('dice/')} Dice" for name in classes[:3]}
    return (shown if len(classes) <= 3 else {"dice": "Dice"}) | (
        {"v_rand": "V_rand"} if "v_rand" in scores else {}
    )


def table(models: list[Model], score: str) -> list[str]:
    """Markdown, the fastest first; the best one in real time last."""
    shown = columns(models)
    heads = ["model", "parameters", "G mult-adds", *shown.values(), *(f"{r}, ms" for r in RUNTIMES), "images/s", "difference"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for one in models:
        values = [f"{one.scores[name]:.4f}" for name in shown]
        times = [f"{one.ms[r]:.1f}" if r in one.ms else "" for r in RUNTIMES]
        cells = [one.name, f"{one.parameters:,}", f"{one.multiply_adds:.2f}", *values, *times,
                 f"{1000 / one.ms[one.fastest]:.1f}", f"{one.gap:.0e}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    quick = [one for one in models if one.ms[one.fastest] <= REALTIME]
    if not quick:
        return [*lines, "", "none runs in real time (30 images/s)"]
    best = max(quick, key=lambda one: one.scores[score])
    told = f"{score} {best.scores[score]:.4f}, {best.ms[best.fastest]:.1f} ms by {best.fastest}"
    return [*lines, "", f"best in real time (30 images/s): {best.name}, {told}"]


def family_of(name: str) -> str:
    """The models that a line joins: U-Nets of all widths, the depths of a UNet++."""
    words = [word for word in name.split() if word != "int8" and not re.fullmatch(r"L\d+", word)]
    return words[0] if words[0] == "UNet" else " ".join(words)


def label_of(name: str) -> str:
    """Width of a U-Net, depth of a pruned UNet++: the label of a point."""
    words = name.split()
    return (
        words[1] if words[0] == "UNet" else next((w for w in words if re.fullmatch(r"L\d+", w)), "")
    )


def plot(models: list[Model], score: str, title: str, file: Path) -> None:
    """A score over the ms of the fastest runtime; filled markers are int8."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    families: dict[str, int] = {}
    lines: dict[tuple[str, bool], list[Model]] = {}
    for one in models:
        families.setdefault(family_of(one.name), len(families))
        lines.setdefault((family_of(one.name), one.name.endswith("int8")), []).append(one)
    for (family, int8), own in lines.items():
        color = plt.get_cmap("tab10")(families[family])
        own = sorted(own, key=lambda one: one.ms[one.fastest])
        ms, scores = [one.ms[one.fastest] for one in own], [one.scores[score] for one in own]
        axes.plot(
            ms, scores, "o-" if int8 else "o--", color=color, linewidth=1, alpha=0.8,
            markerfacecolor=color if int8 else "white", label=f"{family}, {'int8' if int8 else 'float32'}",
        )  # fmt: skip
        for one, x, y in zip(own, ms, scores, strict=True):
            axes.annotate(label_of(one.name), (x, y), (4, 5), textcoords="offset points", fontsize=8)  # fmt: skip
    axes.axvline(REALTIME, color="#d55e00", linewidth=1, linestyle=":", label="30 images/s")
    axes.set(xscale="log", xlabel="ms an image, fastest runtime", ylabel=score, title=title)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file)
    plt.close(figure)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder or checkpoint file")
    parser.add_argument("--output", type=Path, required=True, help="folder, made if absent")
    parser.add_argument("--split", default="val", help="train, val or test: where they are scored")
    parser.add_argument("--data-root", help="folder of the data, if it isn't where it was")
    parser.add_argument("--score", help="of the plot and the choice; else Dice of the first of two classes, or the mean")  # fmt: skip
    parser.add_argument("--size", type=int, default=512, help="px, side of the timed image")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> int:
    options = asked()
    configure_logging(speaks=False)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        models = measured(options)
    except (UserError, DataError, RunError) as error:
        print(error, file=sys.stderr)
        return 2
    names = [name for name in models[0].scores if name.startswith("dice/")]
    score = options.score or (names[0] if len(names) == 2 else "dice")
    if score not in models[0].scores:
        print(f"--score {score}: there are {', '.join(models[0].scores)}", file=sys.stderr)
        return 2
    facts = describe_hardware() | {
        "threads": options.threads,
        "size": options.size,
        "split": options.split,
    }
    title = f"{options.size}x{options.size} px, {options.threads} threads of {facts['cpu']}"
    lines = table(models, score)
    print(title, *lines, sep="\n")
    (options.output / "realtime.md").write_text("\n".join([title, "", *lines]) + "\n", "utf-8")
    plot(models, score, title, options.output / "realtime.png")
    told = [dataclasses.asdict(model) for model in models]
    records.write_json(options.output / "realtime.json", facts | {"models": told})
    return 0


if __name__ == "__main__":
    sys.exit(main())
