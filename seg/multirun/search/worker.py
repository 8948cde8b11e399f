"""Worker of a search: ask for a trial, train it, report its score."""

import logging
import math
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from seg import files
from seg.cli.command_line import quote_path
from seg.cli.compose import instantiate_node, parse_overrides
from seg.cli.conf_files import is_hydra_override
from seg.display.console import configure_logging
from seg.errors import UserError
from seg.multirun.search.plan import SearchPlan
from seg.multirun.search.report import SearchReport
from seg.multirun.search.study import (
    MEASURED_OBJECTIVES,
    Grid,
    ask_trial,
    check_trials,
    enqueue_grid,
    explain_damaged_study,
    grid_points,
    hide_password,
    is_counted,
    lock_study,
    open_storage,
    open_study,
    register_worker,
    requeue_trial,
    storage_url,
)
from seg.multirun.search.trial import TrialRunner
from seg.runs.folder import folder_name, relative_to_here

log = logging.getLogger("seg")
MAX_FIRST_FAILURES = 3  # failed trials at the start after which the search ends


def run_search(plan: SearchPlan) -> optuna.Study:
    """Run a search until it has enough trials; see ``tune``.

    Args:
        plan: checked command line.

    Returns:
        The study.

    Raises:
        UserError: if the study can't be opened, or was begun with other settings.
        RuntimeError: if all trials failed.
    """
    # Build sampler and pruner; a grid must be finite.
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the report has a row per trial
    cfg = plan.cfg
    sampler, pruner = (
        instantiate_node(cfg.sampler, "sampler"),
        instantiate_node(cfg.pruner, "pruner"),
    )
    if isinstance(sampler, Grid):
        grid_points(plan.axes)
    # Open or create the study, in its folder.
    folder = Path(cfg.outputs) / folder_name(plan.name)
    with open_study_folder(cfg, folder) as storage, register_worker(folder) as me:
        where = storage_url(cfg.storage, folder)
        with explain_damaged_study(where):
            with lock_study(folder):
                study = open_study(plan.name, storage, sampler, pruner, plan.facts)
                if isinstance(sampler, Grid):
                    enqueue_grid(study, plan.axes, cfg.seed)
            check_trials(study, plan.axes, len(cfg.objectives))
        # Work on it, and report even if this worker is interrupted.
        storage_name = hide_password(where)
        report = SearchReport(
            study, plan.axes, list(cfg.objectives), plan.fixed, folder, storage_name
        )
        print_study_header(plan, study, folder)
        try:
            run_trials(plan, study, folder, me, report)
        except (KeyboardInterrupt, SystemExit):
            report.print_summary()
            raise
        report.print_summary()
    # A search in which nothing succeeded must not look like a success
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if finished and all(trial.state == TrialState.FAIL for trial in finished):
        raise RuntimeError(f"all trials failed; the last: {last_error(study)}")
    return study


def run_trials(
    plan: SearchPlan, study: optuna.Study, folder: Path, me: str, report: SearchReport
) -> None:
    """Run trials until there are enough, or the timeout is over.

    Args:
        plan: checked command line.
        study: shared by the workers.
        folder: of the study.
        me: name of this worker.
        report: prints a row per trial.

    Raises:
        RuntimeError: if the first ``MAX_FIRST_FAILURES`` trials all failed.
    """
    # The timeout is in minutes; a trial that has begun is not cut off
    ends = time.monotonic() + 60 * (math.inf if plan.cfg.timeout is None else plan.cfg.timeout)
    attempt = TrialRunner(
        plan.axes, plan.fixed, list(plan.cfg.objectives), plan.data, plan.name, folder
    )
    report.head()
    while time.monotonic() < ends:
        # None: enough trials are done or running
        trial = ask_trial(study, plan.axes, folder, plan.cfg.trials, me)
        if trial is None:
            return
        try:
            state, values = attempt.run(trial)
        except BaseException:
            # Interrupted, by Ctrl-C or a signal: the same values are queued again
            trial.set_user_attr("interrupted", True)
            requeue_trial(study, trial)
            raise
        finally:
            configure_logging()  # restore the terminal output, which the run turned off
        report.row(study.tell(trial, values, state))
        # A common cause, such as missing data, would fail every further trial as well
        if only_failures(study):
            raise RuntimeError(
                f"the first {MAX_FIRST_FAILURES} trials failed, which points to a common cause; the last: "
                f"{last_error(study)}"
            )
    log.info(f"timeout={plan.cfg.timeout:g}: no further trial is started")


def only_failures(study: optuna.Study) -> bool:
    """Return True if at least ``MAX_FIRST_FAILURES`` trials ended, and all of them failed."""
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and is_counted(t)]
    return len(ended) >= MAX_FIRST_FAILURES and all(t.state == TrialState.FAIL for t in ended)


def last_error(study: optuna.Study) -> str:
    errors = [t.user_attrs["error"] for t in study.trials if "error" in t.user_attrs]
    return errors[-1] if errors else "was cut off"


@contextmanager
def open_study_folder(cfg: DictConfig, folder: Path) -> Generator[BaseStorage]:
    """Create the study's folder and open its storage; an error removes a folder that was new.

    Raises:
        UserError: if the folder can't be written, or the storage can't be opened.
    """
    # Create the folder, and check that no link leads out of it.
    fresh = not folder.exists()
    try:
        files.make_folder(folder, folder)
        files.check_tree(folder, folder, inner=True)  # loggers of trials make links of their own
        for entry in folder.iterdir():
            files.check_links(entry, folder)
    except OSError as error:
        raise UserError(f"outputs={cfg.outputs}: can't be written ({error.strerror})") from error
    # Open the storage.
    try:
        with lock_study(folder):
            storage = open_storage(storage_url(cfg.storage, folder))
        yield storage
    except UserError:
        if fresh:
            for file in (folder / ".lock", *folder.glob(".worker-*")):
                file.unlink(missing_ok=True)
            with suppress(OSError):  # another worker has written there
                folder.rmdir()
        raise


def print_study_header(plan: SearchPlan, study: optuna.Study, folder: Path) -> None:
    """Print the study, its searched and fixed options, and the number of earlier trials."""
    earlier = sum(map(is_counted, study.get_trials(deepcopy=False)))
    before = f", {earlier} of them done earlier" if earlier else ""
    log.info(f"study      {quote_path(relative_to_here(folder))}: {plan.cfg.trials} trials{before}")
    if plan.cfg.storage is not None:
        log.info(f"storage    {hide_password(plan.cfg.storage)}")
    for axis in plan.axes:
        log.info(f"searched   {axis.name}: {axis}")
    fixed = " ".join(
        word for word in plan.fixed if not is_hydra_override(parse_overrides([word])[0])
    )
    log.info(f"fixed      {fixed or 'all other options at their defaults'}; seed {plan.cfg.seed}")
    objectives = list(plan.cfg.objectives)
    if plan.cfg.pruner["_target_"] != "optuna.pruners.NopPruner" and (
        len(objectives) > 1 or objectives[0] in MEASURED_OBJECTIVES
    ):
        log.info("pruning    none: it needs a single objective that each validation measures")
