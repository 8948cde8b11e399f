"""Pruned depths of a trained UNet++: the nodes that one head needs, with their weights.

Zhou et al. 2018, arXiv:1807.10165, figure 1c.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from seg import files
from seg.cli.command_line import quote_path, render_command, render_option
from seg.data.datamodule import DataModule
from seg.display.console import configure_logging
from seg.display.tables import make_table
from seg.errors import UserError
from seg.hardware import pick_accelerator, prepare_for_inference, torch_device
from seg.inference.depths import prunable_depths, prune_network, rebuild_network
from seg.inference.run_data import choose_data, open_run_data
from seg.metrics import SegmentationMetrics
from seg.models import Network, profiling
from seg.runs import checkpoint, load, provenance, records
from seg.runs.load import LoadedRun

log = logging.getLogger("seg")


@dataclasses.dataclass(frozen=True)
class DepthScores:
    """Scores and costs of one depth, or of the average of all heads.

    Attributes:
        name: L1, L2, ... or average.
        scores: by the names logged in training: ``dice``, ``iou``, ``dice/CLASS`` and so on.
        parameters: number of weights.
        multiply_adds: for one image.
        peak_bytes: of tensors, for one image.
        seconds: median for one image.
    """

    name: str
    scores: dict[str, float]
    parameters: int
    multiply_adds: int
    peak_bytes: int
    seconds: float


def compare_depths(cfg: DictConfig) -> list[DepthScores]:
    """Compare the depths of a run's network; write a table, a plot and, if asked, the small network.

    Args:
        cfg: as conf/prune.yaml.

    Raises:
        UserError: if an option is wrong, or the network has only one head.
        RunError: if the run can't be read, or the folder can't be written.
    """
    # check everything before the first image is read
    configure_logging()
    run = load.load_run(cfg.run)
    depths = prunable_depths(run)
    if cfg.depth is not None and (not isinstance(cfg.depth, int) or cfg.depth not in depths):
        raise UserError(f"depth={cfg.depth}: {run.checkpoint} has heads {depths}")
    folder = Path(cfg.output) if cfg.output else load.default_output(run, "prune")
    below = folder if cfg.output else run.folder
    checkpoints = [] if cfg.depth is None else [f"L{cfg.depth}.ckpt"]
    files.check_writable(folder, below, ["prune.json", "prune.png", *checkpoints])
    split, chosen = choose_data(cfg.data, run)
    data = open_run_data(cfg, run, split, chosen)
    # compare every depth, and the average of the heads unless classes overlap: it is a softmax
    networks = {f"L{depth}": prune_network(run, depth) for depth in depths}
    if not run.overlapping:
        networks["average"] = rebuild_network(run, run.model.head_options("average"))
    levels = measure_networks(networks, run, data, split, cfg.rounds, cfg.accelerator)
    log.info("", extra={"table": build_depth_table(levels, f"{split}, {run.checkpoint}")})
    # write what was asked for
    record: dict[str, Any] = {
        "checkpoint": str(run.checkpoint),
        "split": split,
        "origin": provenance.collect_provenance(),
    }
    with files.folder_removed_if_empty(folder, below):
        if cfg.depth is not None:
            write_pruned(run, cfg.depth, folder / f"L{cfg.depth}.ckpt", below, data, split)
        record |= {"levels": [dataclasses.asdict(level) for level in levels]}
        records.write_json(folder / "prune.json", record, below)
        with files.atomic_write(folder / "prune.png", below) as aside:
            plot_depths(levels, aside)
    log.info(
        f"numbers {quote_path(folder / 'prune.json')}, plot {quote_path(folder / 'prune.png')}"
    )
    return levels


@torch.inference_mode()
def write_pruned(
    run: LoadedRun, depth: int, file: Path, below: Path, data: DataModule, split: str
) -> None:
    """Write a checkpoint of head ``depth`` alone.

    Raises:
        RuntimeError: if its logits differ from those of the full network on the first image of the split.
    """
    # The small network must give exactly the logits of its head in the full network
    small, full = prune_network(run, depth), rebuild_network(run, run.model.head_options(depth))
    image = data.samples(split)[0, 0]["image"][None]
    if not torch.equal(small(image), full(image)):
        raise RuntimeError(f"the pruned network differs from head {depth} of {run.checkpoint}")
    # Keep the card of the run, with the options of the small network in its config
    content = checkpoint.read_checkpoint(run.checkpoint)
    card = content["seg"]
    card["config"]["model"] |= run.model.pruned_options(depth)
    card["promise"] = card["quality"] = None  # of the full network
    weights = {f"model.{name}": value for name, value in small.state_dict().items()}
    checkpoint.write_checkpoint(file, {"state_dict": weights, "seg": card}, below)
    log.info(
        f"wrote {quote_path(file)}: {profiling.count_parameters(small):,} of {profiling.count_parameters(full):,} parameters; its "
        f"logits equal head {depth} of the full network bit for bit"
    )
    # Name the command that uses the checkpoint
    options = (render_option("run", file), "input=IMAGES", "output=PREDICTIONS")
    log.info(f"  {render_command('predict', *options)}")


@torch.inference_mode()
def measure_networks(
    networks: dict[str, Network],
    run: LoadedRun,
    data: DataModule,
    split: str,
    rounds: int,
    accelerator: str,
) -> list[DepthScores]:
    """Return scores and costs of each network on a split; the networks are timed in turn.

    Args:
        networks: by name.
        run: from which they come.
        data: of the split.
        split: ``train``, ``val`` or ``test``.
        rounds: number of timings of each network; the median counts.
        accelerator: auto, cpu, gpu or mps.
    """
    # Costs are those of the split's first image (1, C, H, W)
    device = torch_device(pick_accelerator(accelerator))
    samples = data.samples(split)
    image = samples[0, 0]["image"][None].to(device)
    for model in networks.values():
        prepare_for_inference(model, device)
    # Time the networks in turn, so that a slow phase of the machine affects all of them
    seconds = profiling.measure_seconds(
        [functools.partial(model, image) for model in networks.values()], rounds, device
    )
    return [
        DepthScores(
            name,
            score_network(model, data, split, run, device),
            profiling.count_parameters(model),
            profiling.count_multiply_adds(model, image)["Global"],
            profiling.measure_peak_memory(functools.partial(model, image), device),
            median,
        )
        for (name, model), median in zip(networks.items(), seconds, strict=True)
    ]


def score_network(
    model: Network, data: DataModule, split: str, run: LoadedRun, device: str
) -> dict[str, float]:
    """Return the metrics of a network over a split."""
    metrics = SegmentationMetrics(run.classes, run.overlapping, threshold=run.threshold).to(device)
    for batch in data.loader(data.samples(split), data.eval_batch_size, shuffle=False):
        logits: Tensor = model(batch["image"].to(device))
        metrics.update(logits, batch["mask"].to(device))
    return {name: float(value) for name, value in metrics.compute().items()}


def build_depth_table(levels: list[DepthScores], title: str) -> Table:
    """Return a table with a row for each level; its time also as a share of the deepest level's."""
    table = make_table(title)
    # Times are relative to the deepest head; the average runs all heads
    deepest = [level for level in levels if level.name != "average"][-1]
    table.add_column("level", style="bold", no_wrap=True)
    headings = ("Dice", "IoU", "parameters", "G mult-adds", "MiB", "ms", f"of {deepest.name}")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
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


def plot_depths(levels: list[DepthScores], file: Path) -> None:
    """Plot Dice against time; the area of a disc is proportional to the number of parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    # A large disc for the parameters, and a dot that marks the exact point
    largest = max(level.parameters for level in levels)
    for level in levels:
        x, y = level.seconds * 1000, level.scores["dice"]
        area = 1200 * level.parameters / largest
        axes.scatter(x, y, s=area, alpha=0.4, linewidths=0, color="#0072b2")
        axes.scatter(x, y, s=8, color="#0072b2")
        label = f"{level.name}, {level.parameters / 1e6:.2f} M"
        above = -1 if level.name == "average" else 1  # its disc lies on the deepest level's
        axes.annotate(
            label, (x, y), (0, 26 * above), textcoords="offset points", ha="center", va="center"
        )
    axes.set(xlabel="ms an image", ylabel="Dice, mean over classes")
    axes.margins(x=0.25, y=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(file)
