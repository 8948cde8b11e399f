"""UNet++ at each depth, and the small one alone: ``python -m seg.prune run=outputs/latest depth=2``.

A head at depth d needs only part of the grid (Zhou et al. 2018, figure 1c): the table says what each
depth scores and costs, ``depth`` writes a checkpoint of nothing but what that depth needs.
"""

import dataclasses
import logging
from pathlib import Path

import matplotlib
from omegaconf import DictConfig

from seg import files
from seg.cli.command import command
from seg.cli.command_line import quote_path
from seg.display.console import quiet
from seg.errors import UserError
from seg.inference.pruning import (
    Level,
    compare,
    level_table,
    network,
    plot,
    prunable,
    pruned,
    write_pruned,
)
from seg.inference.run_data import open_data
from seg.runs import load, provenance, records

matplotlib.use("Agg")  # before pyplot: no window
log = logging.getLogger("seg")


def prune(cfg: DictConfig) -> list[Level]:
    """Compares the depths of a run's grid, writes table and plot, and the small network if asked."""
    quiet()
    if cfg.rounds < 1:
        raise UserError(f"rounds={cfg.rounds}: it must be at least 1")
    run = load.load(cfg.run)
    depths = prunable(run)
    if cfg.depth is not None and (not isinstance(cfg.depth, int) or cfg.depth not in depths):
        raise UserError(f"depth={cfg.depth}: {run.checkpoint} has heads {depths}")
    folder = Path(cfg.output) if cfg.output else run.folder / "prune"
    below = folder if cfg.output else run.folder
    checkpoints = [] if cfg.depth is None else [f"L{cfg.depth}.ckpt"]
    files.check_writable(folder, below, ["prune.json", "prune.png", *checkpoints])
    split, data = open_data(cfg, run)
    networks = {f"L{depth}": pruned(run, depth) for depth in depths}
    if not run.overlapping:  # the heads are averaged as a softmax
        networks["average"] = network(run, run.model.head_options("average"))
    levels = compare(networks, run, data, split, cfg.rounds, cfg.accelerator)
    log.info("", extra={"table": level_table(levels, f"{split}, {run.checkpoint}")})
    facts = {"checkpoint": str(run.checkpoint), "split": split, "origin": provenance.origin()}
    with files.made_folder(folder, below):
        if cfg.depth is not None:
            write_pruned(run, cfg.depth, folder / f"L{cfg.depth}.ckpt", below, data, split)
        told = facts | {"levels": [dataclasses.asdict(level) for level in levels]}
        records.write_json(folder / "prune.json", told, below)
        with files.whole(folder / "prune.png", below) as aside:
            plot(levels, aside)
    log.info(
        f"numbers {quote_path(folder / 'prune.json')}, plot {quote_path(folder / 'prune.png')}"
    )
    return levels


@command("prune")
def main(cfg: DictConfig) -> None:
    prune(cfg)


if __name__ == "__main__":
    main()
