"""Trains a network: ``python -m seg.train model=unetpp loss=bce_dice``.

Composes the run from conf/, trains, scores the best checkpoint, and leaves a run folder that every
other command reads. ``-m`` with comma-separated values sweeps.
"""

import logging

from omegaconf import DictConfig

from seg.cli.command import command
from seg.multirun import sweeper
from seg.runs.run_info import sweeping
from seg.training.run import train

log = logging.getLogger("seg")


@command("train", sweeps=True)
def main(cfg: DictConfig) -> None:
    if sweeping():
        sweeper.job(cfg, train)
    else:
        train(cfg)


if __name__ == "__main__":
    main()
