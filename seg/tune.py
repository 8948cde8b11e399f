"""Search hyper-parameters: ``python -m seg.tune 'optim.lr=tag(log, interval(1e-4, 1e-1))' trials=40``.

Each trial is a run of seg.train in the study's folder, with values chosen by Optuna. The same command continues the
study, and several processes can work on one study.

study.db     Optuna's database, unless ``storage`` names another
NUMBER-.../  run folder of each trial
trials.csv   a row per trial
best.yaml    overrides of the best trial; with several objectives, of each trial on the Pareto front
search.html  plots
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence

import optuna
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from seg.cli.command import command, search_path_override
from seg.display.console import configure_logging
from seg.errors import UserError
from seg.multirun.search.plan import gather_searched, plan_search
from seg.multirun.search.study import hide_password
from seg.multirun.search.worker import run_search

log = logging.getLogger("seg")


def tune(words: Sequence[str]) -> optuna.Study:
    """Run a search until its study has enough trials.

    Args:
        words: overrides of the command line.

    Returns:
        The study.

    Raises:
        UserError: before anything is written, if the command line is wrong.
        RuntimeError: if all trials failed.
    """
    configure_logging()
    return run_search(plan_search(words))


def search_overrides(arguments: Namespace) -> list[str]:
    """Return the overrides for Hydra, with the searched options in ``search``."""
    if arguments.multirun:
        raise UserError(
            "-m: seg.tune searches without it; leave it out, or sweep with seg.train -m"
        )
    return gather_searched(arguments.overrides)


@command("tune", search_overrides)
def main(cfg: DictConfig) -> None:
    arguments = get_args_parser().parse_args()
    # Runs and trackers record the command line: hide the password in it.
    if cfg.storage:
        hidden = hide_password(str(cfg.storage))
        for line in (sys.argv, sys.orig_argv):
            line[:] = [word.replace(str(cfg.storage), hidden) for word in line]
    tune([*search_path_override(arguments.config_dir), *arguments.overrides])


if __name__ == "__main__":
    main()
