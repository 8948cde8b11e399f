"""UNet++ at each depth, and the small one alone: ``python -m seg.prune run=outputs/latest depth=2``.

A head at depth d needs only part of the grid (Zhou et al. 2018, figure 1c): the table says what each
depth scores and costs, ``depth`` writes a checkpoint of nothing but what that depth needs.
"""

import dataclasses
import functools
import logging
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window
import matplotlib.pyplot as plt
import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from seg import costs, files, provenance, runs
from seg.cli import UserError, command
from seg.command_line import quote_path, render_command, render_option
from seg.console import quiet
from seg.data.module import DataModule
from seg.depth import PRUNED, network, prunable, pruned
from seg.evaluate import open_data
from seg.hardware import pick_accelerator, settle, torch_device
from seg.metrics import SegmentationMetrics
from seg.models import NestedUNet

log = logging.getLogger("seg")


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


def prune(cfg: DictConfig) -> list[Level]:
    """Compares the depths of a run's grid, writes table and plot, and the small network if asked."""
    quiet()
    if cfg.rounds < 1:
        raise UserError(f"rounds={cfg.rounds}: it must be at least 1")
    run = runs.load(cfg.run)
    depths = prunable(run)
    if cfg.depth is not None and (not isinstance(cfg.depth, int) or cfg.depth not in depths):
        raise UserError(f"depth={cfg.depth}: {run.checkpoint} has heads {depths}")
    folder = Path(cfg.output) if cfg.output else run.folder / "prune"
    below = folder if cfg.output else run.folder
    checkpoints = [] if cfg.depth is None else [f"L{cfg.depth}.ckpt"]
    files.check_writable(folder, below, ["prune.json", "prune.png", *checkpoints])
    split, data = open_data(cfg, run)
    networks = {f"L{depth}": pruned(run, depth) for depth in depths}
    if not run.overlapping:  # heads are averaged as a softmax
        networks["average"] = network(run, output="average")
    levels = compare(networks, run, data, split, cfg.rounds, cfg.accelerator)
    log.info("", extra={"table": level_table(levels, f"{split}, {run.checkpoint}")})
    facts = {"checkpoint": str(run.checkpoint), "split": split, "origin": provenance.origin()}
    with files.made_folder(folder, below):
        if cfg.depth is not None:
            write_pruned(run, cfg.depth, folder / f"L{cfg.depth}.ckpt", below, data, split)
        told = facts | {"levels": [dataclasses.asdict(level) for level in levels]}
        runs.write_json(folder / "prune.json", told, below)
        with files.whole(folder / "prune.png", below) as aside:
            plot(levels, aside)
    log.info(
        f"numbers {quote_path(folder / 'prune.json')}, plot {quote_path(folder / 'prune.png')}"
    )
    return levels


@torch.inference_mode()
def write_pruned(
    run: runs.LoadedRun, depth: int, file: Path, below: Path, data: DataModule, split: str
) -> None:
    """A checkpoint of head ``depth`` alone, after its logits proved equal to the full network's."""
    small, full = pruned(run, depth), network(run, output=depth)
    image = data.samples(split)[0, 0]["image"][None]
    if not torch.equal(small(image), full(image)):
        raise RuntimeError(f"the pruned network differs from head {depth} of {run.checkpoint}")
    content = runs.read_checkpoint(run.checkpoint)
    card = content["seg"]
    card["config"]["model"] |= PRUNED | {"depth": depth}
    weights = {f"model.{name}": value for name, value in small.state_dict().items()}
    runs.write_checkpoint(file, {"state_dict": weights, "seg": card}, below)
    log.info(
        f"wrote {quote_path(file)}: {costs.parameters(small):,} of {costs.parameters(full):,} parameters; its "
        f"logits equal head {depth} of the full network bit for bit"
    )
    words = (render_option("run", file), "input=IMAGES", "output=PREDICTIONS")
    log.info(f"  {render_command('predict', *words)}")


@torch.inference_mode()
def compare(
    networks: dict[str, NestedUNet],
    run: runs.LoadedRun,
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
    seconds = costs.median_seconds(
        [functools.partial(model, image) for model in networks.values()], rounds, device
    )
    return [
        Level(
            name,
            score(model, data, split, run, device),
            costs.parameters(model),
            costs.multiply_adds(model, image)["Global"],
            costs.peak_memory(functools.partial(model, image), device),
            taken,
        )
        for (name, model), taken in zip(networks.items(), seconds, strict=True)
    ]


def score(
    model: NestedUNet, data: DataModule, split: str, run: runs.LoadedRun, device: str
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


@command("prune")
def main(cfg: DictConfig) -> None:
    prune(cfg)


if __name__ == "__main__":
    main()
