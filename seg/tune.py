"""Searches for better options: ``python -m seg.tune 'optim.lr=tag(log, interval(1e-4, 1e-1))' trials=40``.

Each trial is a run of seg.train in the study's folder, with values that Optuna chose; the study lies there
too, so that the same command goes on where it stopped, and several of it work on one study.

study.db     Optuna's, unless ``storage`` names another place
NUMBER-.../  the run folder of each trial
trials.csv   a row a trial
best.yaml    the words that make the best trial; of each, where there are several objectives
search.html  plots
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence

import optuna
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from seg.cli.command import command, searching
from seg.display.console import quiet
from seg.errors import UserError
from seg.multirun.search.plan import gathered, planned
from seg.multirun.search.study import without_password
from seg.multirun.search.worker import search

log = logging.getLogger("seg")


def tune(words: Sequence[str]) -> optuna.Study:
    """The study, once it holds as many trials as asked for.

    Args:
        words: of the command line.

    Raises:
        UserError: before anything is made, when the line can't be.
        RuntimeError: when all trials fail.
    """
    quiet()
    return search(planned(words))


def typed(arguments: Namespace) -> list[str]:
    """The words of the command line for Hydra."""
    if arguments.multirun:
        raise UserError("-m: seg.tune searches as it is; leave it out, or sweep with seg.train -m")
    return gathered(arguments.overrides)


@command("tune", typed)
def main(cfg: DictConfig) -> None:
    arguments = get_args_parser().parse_args()
    if cfg.storage:  # runs keep the command that made them, and trackers too
        hidden = without_password(str(cfg.storage))
        for line in (sys.argv, sys.orig_argv):
            line[:] = [word.replace(str(cfg.storage), hidden) for word in line]
    tune([*searching(arguments.config_dir), *arguments.overrides])


if __name__ == "__main__":
    main()
