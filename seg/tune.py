"""Search hyper-parameters: ``python -m seg.tune 'optim.lr=tag(log, interval(1e-4, 1e-1))' trials=40``.

Each trial is a run of seg.train in the study's folder, with values chosen by Optuna. The same command continues the
study, and several processes can work on one study.

study.db     Optuna's database, unless ``storage`` names another
NUMBER-.../  run folder of each trial
trials.csv   a row per trial
best.yaml    overrides of the best trial; with several objectives, of each trial on the Pareto front
search.html  plots
"""

import sys

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from seg.cli.command import command, search_path_override
from seg.cli.search_arguments import search_overrides


@command("tune", search_overrides)
def main(cfg: DictConfig) -> None:
    from seg.commands.tune import tune  # here: it imports PyTorch
    from seg.multirun.search.study import hide_password

    arguments = get_args_parser().parse_args()
    # Runs and trackers record the command line: hide the password in it.
    if cfg.storage:
        hidden = hide_password(str(cfg.storage))
        for line in (sys.argv, sys.orig_argv):
            line[:] = [word.replace(str(cfg.storage), hidden) for word in line]
    tune([*search_path_override(arguments.config_dir), *arguments.overrides])


if __name__ == "__main__":
    main()
