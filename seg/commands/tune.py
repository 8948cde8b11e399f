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
from collections.abc import Sequence

import optuna

from seg.display.console import configure_logging
from seg.multirun.search.plan import plan_search
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
