"""Implementation of ``python -m seg.tune``."""

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
