"""A trained UNet++ at a smaller depth: what a head needs, with the weights it has (Zhou et al. 2018, figure 1c)."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich.table import Table
from torch import Tensor

from seg.cli.command_line import quote_path, render_command, render_option
from seg.data.datamodule import DataModule
from seg.errors import UserError
from seg.hardware import pick_accelerator, settle, torch_device
from seg.metrics import SegmentationMetrics
from seg.models import Network, profiling
from seg.runs import checkpoint
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")


def prunable(run: LoadedRun) -> list[int]:
    """The depths of a run's heads.

    Raises:
        UserError: when it has only one.
    """
    if not run.model.depths:
        raise UserError(
            f"{run.checkpoint}: a {run.model.name} with one head can't be pruned; "
            "train model=unetpp model.deep_supervision=true"
        )
    return run.model.depths


def network(run: LoadedRun, changes: dict[str, Any]) -> Network:
    """Return the run's network with other constructor options and those of its weights that it needs."""
    options = {k: v for k, v in run.config["model"].items() if k != "_target_"} | changes
    model = type(run.model)(**options)
    weights = run.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def pruned(run: LoadedRun, depth: int) -> Network:
    """Return the network of head ``depth`` alone, without the nodes that it does not need."""
    return network(run, run.model.pruned_options(depth))


def shallower(run: LoadedRun, depth: int | None) -> LoadedRun:
    """The run with its network at that depth; None: as it is.

    Raises:
        UserError: when it has no such depth.
    """
    if depth is None:
        return run
    if (depths := prunable(run)) and depth not in depths:
        raise UserError(f"model.depth={depth}: {run.checkpoint} has heads {depths}")
    return dataclasses.replace(run, model=pruned(run, depth))


@dataclasses.dataclass(frozen=True)
class Level:
    """One network out of a grid, and what it scores and costs.

    Attributes:
        name: L1, L2, ... or average.
        scores: as logged in training, ``dice``, ``iou``, ``dice/CLASS`` and so on.
        parameters: weights.
        multiply_adds: of one image.
        peak_bytes: of tensors, for one image.
        seconds: median for one image.
    """

    name: str
    scores: dict[str, float]
    parameters: int
    multiply_adds: int
    peak_bytes: int
    seconds: float


@torch.inference_mode()
def write_pruned(
    run: LoadedRun, depth: int, file: Path, below: Path, data: DataModule, split: str
) -> None:
    """A checkpoint of head ``depth`` alone, after its logits proved equal to the full network's."""
    small, full = pruned(run, depth), network(run, run.model.head_options(depth))
    image = data.samples(split)[0, 0]["image"][None]
    if not torch.equal(small(image), full(image)):
        raise RuntimeError(f"the pruned network differs from head {depth} of {run.checkpoint}")
    content = checkpoint.read_checkpoint(run.checkpoint)
    card = content["seg"]
    card["config"]["model"] |= run.model.pruned_options(depth)
    weights = {f"model.{name}": value for name, value in small.state_dict().items()}
    checkpoint.write_checkpoint(file, {"state_dict": weights, "seg": card}, below)
    log.info(
        f"wrote {quote_path(file)}: {profiling.parameters(small):,} of {profiling.parameters(full):,} parameters; its "
        f"logits equal head {depth} of the full network bit for bit"
    )
    words = (render_option("run", file), "input=IMAGES", "output=PREDICTIONS")
    log.info(f"  {render_command('predict', *words)}")


@torch.inference_mode()
def compare(
    networks: dict[str, Network],
    run: LoadedRun,
    data: DataModule,
    split: str,
    rounds: int,
    accelerator: str,
) -> list[Level]:
    """Scores and costs of each network on a split; times are taken in turn."""
    device = torch_device(pick_accelerator(accelerator))
    samples = data.samples(split)
    image = samples[0, 0]["image"][None].to(device)
    for model in networks.values():
        settle(model, device)
    seconds = profiling.median_seconds(
        [functools.partial(model, image) for model in networks.values()], rounds, device
    )
    return [
        Level(
            name,
            score(model, data, split, run, device),
            profiling.parameters(model),
            profiling.multiply_adds(model, image)["Global"],
            profiling.peak_memory(functools.partial(model, image), device),
            taken,
        )
        for (name, model), taken in zip(networks.items(), seconds, strict=True)
    ]


def score(
    model: Network, data: DataModule, split: str, run: LoadedRun, device: str
) -> dict[str, float]:
    """Metrics over a split."""
    metrics = SegmentationMetrics(run.classes, run.overlapping, threshold=run.threshold).to(device)
    for batch in data.loader(data.samples(split), data.eval_batch_size, shuffle=False):
        logits: Tensor = model(batch["image"].to(device))
        metrics.update(logits, batch["mask"].to(device))
    return {name: float(value) for name, value in metrics.compute().items()}


def level_table(levels: list[Level], title: str) -> Table:
    """A row a level; time also as a share of the deepest one's."""
    table = Table(title=title, title_justify="left")
    deepest = [level for level in levels if level.name != "average"][-1]
    table.add_column("level", style="bold", no_wrap=True)
    heads = ("Dice", "IoU", "parameters", "G mult-adds", "MiB", "ms", f"of {deepest.name}")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for level in levels:
        table.add_row(
            level.name,
            f"{level.scores['dice']:.4f}",
            f"{level.scores['iou']:.4f}",
            f"{level.parameters:,}",
            f"{level.multiply_adds / 1e9:.2f}",
            f"{level.peak_bytes / 2**20:.0f}",
            f"{level.seconds * 1000:.1f}",
            f"{level.seconds / deepest.seconds:.2f}",
        )
    return table


def plot(levels: list[Level], file: Path) -> None:
    """Dice against time; the area of a disc is the number of parameters."""
    figure, axes = plt.subplots(figsize=(6, 4), dpi=150, layout="constrained")
    most = max(level.parameters for level in levels)
    for level in levels:
        x, y = level.seconds * 1000, level.scores["dice"]
        area = 1200 * level.parameters / most
        axes.scatter(x, y, s=area, alpha=0.4, linewidths=0, color="#0072b2")
        axes.scatter(x, y, s=8, color="#0072b2")
        label = f"{level.name}, {level.parameters / 1e6:.2f} M"
        above = -1 if level.name == "average" else 1  # it stands where the deepest one does
        axes.annotate(
            label, (x, y), (0, 26 * above), textcoords="offset points", ha="center", va="center"
        )
    axes.set(xlabel="ms an image", ylabel="Dice, mean over classes")
    axes.margins(x=0.25, y=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(file)
    plt.close(figure)
