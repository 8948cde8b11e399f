"""Which trained network is best in real time on a CPU: python benchmarks/realtime.py RUN [RUN ...] --output FOLDER.

Needs the extra export. Each run is a model; a UNet++ with several heads is one at each depth, pruned (seg.prune). Each
is scored on a split of its own data as seg.evaluate does it, and timed on one image as seg.predict runs it (PyTorch,
channels_last, batch normalisation folded) and as an ONNX file in ONNX Runtime (seg.export), all in turn, on --threads
threads. FOLDER gets realtime.json, the table realtime.md, and the plot realtime.png: accuracy over milliseconds, with
a line where 30 images a second are. --data-root says where the data lies now.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import numpy as np
import torch

from seg.cli.compose import compose_checked
from seg.display.console import configure_logging
from seg.errors import DataError, RunError, UserError
from seg.hardware import keep_freed_memory
from seg.inference import ensemble
from seg.inference.export import describe_run
from seg.inference.exported_network import ExportedNetwork, open_export, write_export
from seg.inference.outputs import choose_object_options
from seg.inference.predictor import Predictor
from seg.inference.pruning import prunable_depths, prune_run
from seg.inference.run_data import choose_data, open_run_data
from seg.models import NestedUNet, profiling
from seg.runs import load, records
from seg.runs.load import LoadedRun
from seg.runs.provenance import describe_hardware
from seg.training.evaluation import build_metrics, build_trained_loss, score_objects, score_split
from seg.training.task import SegmentationTask

REALTIME = 1000 / 30  # ms an image
RUNTIMES = {"PyTorch": "o", "ONNX Runtime": "s"}  # and their markers
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
        gap: largest difference of a probability between the two.
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


def scored(path: str, depth: int | None, split: str, root: str | None) -> dict[str, float]:
    """Dice, IoU and, where objects are counted, V_rand and friends, as seg.evaluate finds them."""
    words = [f"run={path}", f"data.split={split}", "accelerator=cpu"]
    words += [f"model.depth={depth}"] if depth else []
    words += [f"data.root={root}"] if root else []
    cfg = compose_checked("evaluate", words)
    run = ensemble.load_members(cfg.run, cfg.model.depth)
    metrics = build_metrics(cfg, run)
    data = open_run_data(cfg, run, *choose_data(cfg.data, run))
    task = SegmentationTask(run.model, build_trained_loss(run), metrics)
    scores = score_split(cfg, run, task, data, split)
    scores = {name.removeprefix(f"{split}/"): value for name, value in scores.items()}
    if data.source.task == "instances":
        samples, options = data.samples(split), choose_object_options(cfg.objects, run)
        scores |= score_objects(run, samples, metrics.threshold, options, "cpu")[0]
    return scores


def calls(run: LoadedRun, path: str, file: Path) -> dict[str, Call]:
    """How an image goes through, by runtime."""
    write_export(
        ExportedNetwork(run),
        describe_run(run, path),
        file,
        "onnx",
        compose_checked("export", []).opset,
    )
    predictor = Predictor(run, run.threshold, accelerator="cpu")
    predicted = lambda image: predictor.probabilities(image[0].transpose(1, 2, 0))[None]  # noqa: E731
    return {"PyTorch": predicted, "ONNX Runtime": open_export(file, "onnx")}


def timed(found: dict[str, dict[str, Call]], image: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:  # fmt: skip
    """Median ms of each model in each runtime; all in turn, so that a busy moment hits all alike."""
    taken = {name: {runtime: [] for runtime in RUNTIMES} for name in found}
    for number in range(rounds + 2):
        for name, both in found.items():
            for runtime, call in both.items():
                started = time.perf_counter()
                call(image)
                if number > 1:  # the first two warm up
                    taken[name][runtime].append(1000 * (time.perf_counter() - started))
    return {
        name: {runtime: statistics.median(times) for runtime, times in both.items()}
        for name, both in taken.items()
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
            scores = scored(path, depth, options.split, options.data_root)
            models[name] = Model(name, path, profiling.count_parameters(run.model), adds, scores)
            file = options.output / f"{name.replace(' ', '-').replace('+', 'p')}.onnx"
            found[name] = calls(run, path, file)
    shape = (1, channels, options.size, options.size)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    for name, times in timed(found, image, options.rounds).items():
        models[name].ms = times
        first, second = (call(image) for call in found[name].values())
        models[name].gap = float(np.abs(first - second).max())
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
    heads = ["model", "parameters", "G mult-adds", *shown.values(), "PyTorch, ms", "ONNX Runtime, ms", "images/s", "difference"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for one in models:
        values = [f"{one.scores[name]:.4f}" for name in shown]
        times = [f"{one.ms[runtime]:.1f}" for runtime in RUNTIMES]
        cells = [one.name, f"{one.parameters:,}", f"{one.multiply_adds:.2f}", *values, *times,
                 f"{1000 / one.ms[one.fastest]:.1f}", f"{one.gap:.0e}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    quick = [one for one in models if one.ms[one.fastest] <= REALTIME]
    if not quick:
        return [*lines, "", "none runs in real time (30 images/s)"]
    best = max(quick, key=lambda one: one.scores[score])
    told = f"{score} {best.scores[score]:.4f}, {best.ms[best.fastest]:.1f} ms by {best.fastest}"
    return [*lines, "", f"best in real time (30 images/s): {best.name}, {told}"]


def plot(models: list[Model], score: str, title: str, file: Path) -> None:
    """A score over the ms of the faster runtime, whose marker it has; a network's depths are joined."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    families: dict[str, list[Model]] = {}
    for one in models:
        families.setdefault(one.name.rpartition(" ")[0], []).append(one)
    for number, (family, own) in enumerate(families.items()):
        color = plt.get_cmap("tab10")(number % 10)
        own = sorted(own, key=lambda one: one.ms[one.fastest])
        axes.plot(
            [one.ms[one.fastest] for one in own], [one.scores[score] for one in own], color=color,
            linewidth=1, alpha=0.6, label=family,
        )  # fmt: skip
        for one in own:
            place = one.ms[one.fastest], one.scores[score]
            axes.plot(*place, RUNTIMES[one.fastest], color=color)
            axes.annotate(one.name.rpartition(" ")[2], place, (6, -3), textcoords="offset points", fontsize=8)  # fmt: skip
    for runtime, marker in RUNTIMES.items():
        axes.plot([], [], marker, color="grey", label=f"faster by {runtime}", linestyle="")
    axes.axvline(REALTIME, color="#d55e00", linewidth=1, linestyle="--", label="30 images/s")
    axes.set(xscale="log", xlabel="ms an image", ylabel=score, title=title)
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
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
