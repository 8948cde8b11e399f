"""Optuna study of a search, shared by any number of workers and continued by the same command.

Workers are coordinated through the study's folder, ``outputs/searches/NAME``: ``.lock`` is held while a worker
opens the study or asks for a trial, and each worker holds a lock of its own while it lives, so that the trial of a
killed worker is detected and run again.
"""

import itertools
import math
import os
import random
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import Timeout
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from seg import files
from seg.errors import UserError
from seg.metrics.direction import smaller_is_better
from seg.multirun.search.space import SearchDimension
from seg.runs.resumable import check_same_settings

MAX_GRID_POINTS = 1000  # maximal number of combinations of a grid
MEASURED_OBJECTIVES = ("milliseconds", "parameters")  # objectives other than scores


class Grid(RandomSampler):
    """Grid search: every combination once, in the order in which ``enqueue_grid`` enqueued them."""


def objective_direction(objective: str) -> Literal["minimize", "maximize"]:
    """Return the direction in which an objective is optimised."""
    name = objective.removeprefix("val/")
    return "minimize" if name in MEASURED_OBJECTIVES or smaller_is_better(name) else "maximize"


def hide_password(storage: str) -> str:
    """Return a storage's URL or file without its password."""
    # A file is a journal; a database needs its URL
    if "://" not in storage:
        return storage
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):  # malformed URL or port
        return f"{storage.partition('://')[0]}://***"


def storage_url(storage: str | None, folder: Path) -> str:
    """Return the URL of a study's database, or the file of its journal; by default study.db in its folder."""
    database = str(folder.resolve() / "study.db")
    return storage or URL.create("sqlite", database=database).render_as_string()


def open_storage(storage: str) -> BaseStorage:
    """Open a database or journal, creating it if absent.

    Raises:
        UserError: if it can't be opened.
    """
    hidden = hide_password(storage)
    check_storage_file(storage)
    if "://" not in storage:
        if storage.endswith((".db", ".sqlite", ".sqlite3")):
            raise UserError(f"storage={storage}: write sqlite:///{storage} for a database")
        try:
            return JournalStorage(JournalFileBackend(storage))
        except (OSError, ValueError) as error:
            raise UserError(f"storage={storage}: can't be opened as a journal ({error})") from error
    # SQLite: wait up to 60 s for the locks of other workers
    wait = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}  # s
    try:
        return RDBStorage(storage, engine_kwargs=wait)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].replace(storage, hidden)
        raise UserError(f"storage={hidden}: can't be opened ({reason})") from error


def check_storage_file(storage: str) -> None:
    """Raise UserError if a study's file exists but is no regular file; reading a pipe or a device may never end."""
    if storage.startswith("sqlite"):
        try:
            file = make_url(storage).database
        except SQLAlchemyError:
            return  # reported when it is opened
    else:
        file = None if "://" in storage else storage
    if file and os.path.lexists(file) and not os.path.isfile(file):
        raise UserError(f"storage={storage}: no regular file; give another storage, or remove it")


@contextmanager
def explain_damaged_study(storage: str) -> Generator[None]:
    """Convert errors of a damaged study, for which Optuna has no type of its own, to a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (
        SQLAlchemyError,
        StorageInternalError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = str(error).partition("\n")[0][:200].replace(storage, hide_password(storage))
        raise UserError(
            f"storage={hide_password(storage)}: the study in it can't be read ({type(error).__name__}: {reason}); "
            "give another storage, or another name"
        ) from error


@contextmanager
def lock_study(folder: Path) -> Generator[None]:
    """Lock a study's folder; other workers wait."""
    with files.file_lock(folder / ".lock", folder):
        yield


@contextmanager
def register_worker(folder: Path) -> Generator[str]:
    """Lock and yield a name for this worker; its file remains if the worker fails."""
    file = folder / f".worker-{secrets.token_hex(8)}"
    with files.file_lock(file, folder):
        yield file.name
        file.unlink(missing_ok=True)


def open_study(
    name: str,
    storage: BaseStorage,
    sampler: BaseSampler,
    pruner: BasePruner,
    asked: dict[str, Any],
) -> optuna.Study:
    """Open a study, or create it; a worker that joins reseeds its sampler.

    Args:
        name: of the study.
        storage: of the study.
        sampler: chooses the values of a trial.
        pruner: ends unpromising trials.
        asked: ``searched``, ``objectives`` and ``settings``, which can't change later.

    Raises:
        UserError: if the study was begun with others.
    """
    # Only the first worker records the facts, with which later ones must agree
    exists = name in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True,
        directions=[objective_direction(objective) for objective in asked["objectives"]],
    )  # fmt: skip
    if exists:
        # A study of another program may have the same name
        begun = study.user_attrs
        if not set(asked) <= set(begun) or not all(
            isinstance(begun[key], type(asked[key])) for key in asked
        ):
            raise UserError(
                f"name={name}: a study of that name was not created by seg.tune; give another name"
            )
        check_same_settings(f"name={name}", flat_facts(begun), flat_facts(asked), "name")
        # Two workers with the same seed would ask for the same values
        sampler.reseed_rng()
    else:
        for key, value in asked.items():
            study.set_user_attr(key, value)
    return study


def flat_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a study as settings; a searched option has its range as value."""
    return {"objectives": facts["objectives"]} | facts["settings"] | facts["searched"]


def check_trials(study: optuna.Study, axes: Sequence[SearchDimension], objectives: int) -> None:
    """Raise ValueError unless all ended trials have values of the searched options and the objectives."""
    names = {axis.name for axis in axes}
    for trial in study.get_trials(deepcopy=False):
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if ended and set(trial.params) != names:
            raise ValueError(f"trial {trial.number} has values of {sorted(trial.params)!s:.80}")
        if trial.state == TrialState.COMPLETE and len(trial.values or []) != objectives:
            raise ValueError(f"trial {trial.number} has no value of each objective")


def enqueue_grid(study: optuna.Study, axes: Sequence[SearchDimension], seed: int) -> None:
    """Enqueue every combination that is not in the study yet, in an order shuffled by the seed."""
    points = list(grid_points(axes))
    random.Random(seed).shuffle(points)
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)


def grid_points(axes: Sequence[SearchDimension]) -> list[dict[str, Any]]:
    """Return all combinations of the searched options.

    Raises:
        UserError: if an option is continuous, or there are more than ``MAX_GRID_POINTS`` combinations.
    """
    values = []
    for axis in axes:
        # A continuous interval has no finite list of values
        if (choices := axis.values()) is None:
            raise UserError(
                f"sampler=grid: {axis.typed} has infinitely many values; give choice(...) or range(...)"
            )
        values.append(choices)
    count = math.prod(map(len, values))
    if count > MAX_GRID_POINTS:
        raise UserError(
            f"sampler=grid: {count} combinations; at most {MAX_GRID_POINTS} are allowed"
        )
    names = [axis.name for axis in axes]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]


def is_counted(trial: FrozenTrial) -> bool:
    """Return True if a trial counts towards ``trials``: not a waiting one, nor one cut off that runs again."""
    if trial.state != TrialState.FAIL:
        return trial.state != TrialState.WAITING
    facts = trial.user_attrs
    return "error" in facts or ("again" in facts and "interrupted" not in facts)


def ask_trial(
    study: optuna.Study, axes: Sequence[SearchDimension], folder: Path, trials: int, me: str
) -> optuna.Trial | None:
    """Ask the study for the next trial.

    Args:
        study: shared by the workers.
        axes: searched options.
        folder: of the study.
        trials: number of trials wanted in all.
        me: name of this worker.

    Returns:
        The trial; None if enough are done or running, or a grid is exhausted.
    """
    with lock_study(folder):
        # Under the lock, so that two workers never start one trial more than asked for
        requeue_dead_trials(study, folder)
        existing = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in existing)
        exhausted = isinstance(study.sampler, Grid) and not waiting
        if sum(map(is_counted, existing)) >= trials or exhausted:
            return None
        # The name of the worker tells others whose lock to try
        trial = study.ask({axis.name: axis.distribution for axis in axes})
        trial.set_user_attr("worker", me)
        return trial


def requeue_dead_trials(study: optuna.Study, folder: Path) -> None:
    """Fail the trials whose worker has died, and queue them again unless they were queued again before."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = Path(trial.user_attrs.get("worker", "")).name
        if not name or not (folder / name).is_file():
            continue  # its worker may live on a machine that doesn't share the folder
        try:
            # The lock is free only if its worker has died
            with files.file_lock(folder / name, folder).acquire(timeout=0):
                requeue_trial(study, trial, retry="again" not in trial.user_attrs)
        except Timeout:
            continue
        (folder / name).unlink(missing_ok=True)


def requeue_trial(
    study: optuna.Study, trial: optuna.Trial | FrozenTrial, retry: bool = True
) -> None:
    """Fail an interrupted trial, and queue another with the same values."""
    study.tell(trial.number, state=TrialState.FAIL)
    if retry:
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
