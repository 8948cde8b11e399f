"""The study of a search: Optuna's, begun once, worked on by any number of processes, continued.

A study has a folder, ``outputs/searches/NAME``, in which workers keep out of each other's way: ``.lock`` is
held while one opens the study or takes a trial, and each worker holds a lock of its own for as long as it
lives, so that a trial which died with its process is known and run again.
"""

import itertools
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
from seg.cli.conf_files import shown
from seg.errors import UserError
from seg.metrics.direction import smaller_is_better
from seg.multirun.search.space import Axis

MOST = 1000  # combinations of a grid
MEASURED = ("milliseconds", "parameters")  # objectives beside the scores


class Grid(RandomSampler):
    """Every combination once: ``queue`` puts them into the study, and this draws what lies there."""


def direction(objective: str) -> Literal["minimize", "maximize"]:
    """Which way an objective is better."""
    name = objective.removeprefix("val/")
    return "minimize" if name in MEASURED or smaller_is_better(name) else "maximize"


def without_password(storage: str) -> str:
    """A storage as it may be shown."""
    if "://" not in storage:
        return storage
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):  # no URL, or a port that is no number
        return f"{storage.partition('://')[0]}://***"


def address(storage: str | None, folder: Path) -> str:
    """Where a study lies: a database's URL, or a file of Optuna's journal."""
    database = str(folder.resolve() / "study.db")
    return storage or URL.create("sqlite", database=database).render_as_string()


def open_storage(storage: str) -> BaseStorage:
    """The database, or the journal, made if absent.

    Raises:
        UserError: when it can't be reached.
    """
    hidden = without_password(storage)
    check_file(storage)
    if "://" not in storage:
        if storage.endswith((".db", ".sqlite", ".sqlite3")):
            raise UserError(f"storage={storage}: write sqlite:///{storage} for a database")
        try:
            return JournalStorage(JournalFileBackend(storage))
        except (OSError, ValueError) as error:
            raise UserError(f"storage={storage}: can't be opened as a journal ({error})") from error
    wait = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}  # s
    try:
        return RDBStorage(storage, engine_kwargs=wait)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].replace(storage, hidden)
        raise UserError(f"storage={hidden}: can't be opened ({reason})") from error


def check_file(storage: str) -> None:
    """Raise UserError if a study's file is there and is no regular one: reading a pipe or a device has no end."""
    if storage.startswith("sqlite"):
        try:
            file = make_url(storage).database
        except SQLAlchemyError:
            return  # told as it is opened
    else:
        file = None if "://" in storage else storage
    if file and os.path.lexists(file) and not os.path.isfile(file):
        raise UserError(f"storage={storage}: no regular file; give another storage, or remove it")


@contextmanager
def readable(storage: str) -> Generator[None]:
    """Raises UserError, naming the study's storage, where its content is damaged.

    Optuna tells so by whatever its parsing happens to raise.
    """
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
        reason = str(error).partition("\n")[0][:200].replace(storage, without_password(storage))
        raise UserError(
            f"storage={without_password(storage)}: the study in it can't be read ({type(error).__name__}: {reason}); "
            "give another storage, or another name"
        ) from error


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """One process at a time; the others wait."""
    with files.lock(folder / ".lock", folder):
        yield


@contextmanager
def worker(folder: Path) -> Generator[str]:
    """The name of this process in the study, whose lock it holds until it ends; its file stays if it fails."""
    file = folder / f".worker-{secrets.token_hex(8)}"
    with files.lock(file, folder):
        yield file.name
        file.unlink(missing_ok=True)


def begin(
    name: str,
    storage: BaseStorage,
    sampler: BaseSampler,
    pruner: BasePruner,
    asked: dict[str, Any],
) -> optuna.Study:
    """The study, made if absent; a worker that joins draws other numbers than the one that began.

    Args:
        name: of the study.
        storage: that holds it.
        sampler: which chooses.
        pruner: which ends trials.
        asked: ``searched``, ``objectives`` and ``settings``, which stay.

    Raises:
        UserError: when it was begun with something else.
    """
    there = name in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True,
        directions=[direction(objective) for objective in asked["objectives"]],
    )  # fmt: skip
    if there:
        check_same(name, study.user_attrs, asked)
        sampler.reseed_rng()
    else:
        for key, value in asked.items():
            study.set_user_attr(key, value)
    return study


def check_same(name: str, old: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError when a study was begun with another search, or with other settings."""
    remedy = "give the same, or begin another study with name=..."
    if not set(now) <= set(old) or not all(isinstance(old[key], type(now[key])) for key in now):
        raise UserError(f"name={name}: a study there that seg.tune didn't begin; give another name")
    if old["objectives"] != now["objectives"]:
        was, has = (f"objectives=[{','.join(one['objectives'])}]" for one in (old, now))
        raise UserError(f"name={name}: begun with {was}, and this is {has}; {remedy}")
    for part in ("searched", "settings"):
        before, after = old[part], now[part]
        for key in [*after, *before]:
            was, has = (shown(one[key]) if key in one else "absent" for one in (before, after))
            if was != has:
                verb = "searches" if part == "searched" else "has"
                raise UserError(
                    f"name={name}: this study {verb} {key}: {was}, and here it is {has}; {remedy}"
                )


def check_trials(study: optuna.Study, axes: Sequence[Axis], objectives: int) -> None:
    """Raise ValueError unless a study's trials have values of what is searched, and of the objectives."""
    names = {axis.name for axis in axes}
    for trial in study.get_trials(deepcopy=False):
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        if ended and set(trial.params) != names:
            raise ValueError(f"trial {trial.number} has values of {sorted(trial.params)!s:.80}")
        if trial.state == TrialState.COMPLETE and len(trial.values or []) != objectives:
            raise ValueError(f"trial {trial.number} has no value of each objective")


def queue(study: optuna.Study, axes: Sequence[Axis], seed: int) -> None:
    """Puts every combination that the study hasn't into it, in an order drawn from the seed."""
    points = list(combinations(axes))
    random.Random(seed).shuffle(points)
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)


def combinations(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every combination of what is searched.

    Raises:
        UserError: when they can't be counted, or are too many.
    """
    values = []
    for axis in axes:
        if (each := axis.values()) is None:
            raise UserError(
                f"sampler=grid: {axis.typed} has no end of values; give choice(...) or range(...)"
            )
        values.append(each)
    count = 1
    for each in values:
        count *= len(each)
    if count > MOST:
        raise UserError(f"sampler=grid: {count} combinations; at most {MOST} are tried")
    names = [axis.name for axis in axes]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of the trials asked for: not one that waits, nor one cut off, which runs again."""
    if trial.state != TrialState.FAIL:
        return trial.state != TrialState.WAITING
    mine = trial.user_attrs
    return "error" in mine or ("again" in mine and "interrupted" not in mine)


def take(
    study: optuna.Study, axes: Sequence[Axis], folder: Path, trials: int, me: str
) -> optuna.Trial | None:
    """The next trial; None where as many as asked for are done or under way, or a grid is through."""
    with locked(folder):
        revive(study, folder)
        there = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in there)
        if sum(map(counts, there)) >= trials or (isinstance(study.sampler, Grid) and not waiting):
            return None
        trial = study.ask({axis.name: axis.distribution for axis in axes})
        trial.set_user_attr("worker", me)
        return trial


def revive(study: optuna.Study, folder: Path) -> None:
    """Gives up the trials whose worker is gone; they run again, unless it is gone for the second time."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = Path(trial.user_attrs.get("worker", "")).name
        if not name or not (folder / name).is_file():
            continue  # on a machine that doesn't share the folder: none can tell
        try:
            with files.lock(folder / name, folder).acquire(timeout=0):
                cut_off(study, trial, retry="again" not in trial.user_attrs)
        except Timeout:
            continue
        (folder / name).unlink(missing_ok=True)


def cut_off(study: optuna.Study, trial: optuna.Trial | FrozenTrial, retry: bool = True) -> None:
    """Ends a trial that didn't come to an end, and queues another with the same values."""
    study.tell(trial.number, state=TrialState.FAIL)
    if retry:
        study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
