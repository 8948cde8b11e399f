"""A sweep, ``python -m seg.train -m``: one folder, a run for each combination, a table that grows.

SWEEP/sweep.json   the jobs: name and words of each; the command
SWEEP/JOB/         the run folder of each, named by what differs

The same command takes up what is unfinished: it finds the folder by its jobs. Who works in a sweep holds its
lock, so that two sweeps of one command that run at a time have two folders. Jobs run where Hydra's launcher
puts them: in this process one after another, in processes side by side, or on a cluster.
"""

import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seg import files
from seg.cli.compose import one_line
from seg.cli.conf_files import CONF
from seg.display.console import console, first_process
from seg.errors import RunError, UserError
from seg.multirun.progress import Watch
from seg.runs import provenance, records
from seg.runs.folder import Busy, alone, as_folder, create_folder, point_latest
from seg.runs.provenance import PACKAGE
from seg.runs.record import read_record, write_record
from seg.runs.run_info import Asked, named
from seg.training.distributed import ticket
from seg.training.resume import newest, saved_config

log = logging.getLogger("seg")
RECORD = "sweep.json"
LAUNCHERS = {"joblib": "parallel", "submitit": "slurm"}  # package's word -> its extra


class Sweep(Sweeper):
    """Hydra's sweeper over all combinations, in a folder that is found again.

    Args:
        max_batch_size: of Hydra's own sweeper; jobs are given to the launcher together.
        params: more words, of the config.
    """

    launcher: Launcher | None
    config: DictConfig | None

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        if max_batch_size is not None:
            raise UserError("hydra.sweeper.max_batch_size: has no use here; the launcher decides")
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Finds or makes the folder, and holds it."""
        check_launcher(config.hydra.launcher._target_)
        if ticket(Path()) is not None:
            raise UserError(
                "-m: this is one of several processes that were started together; start a sweep by one"
            )
        if Path(config.hydra.sweep.dir) != Path(config.outputs) / "sweeps/new":
            raise UserError(
                f"hydra.sweep.dir={config.hydra.sweep.dir}: a sweep lies below outputs/sweeps, where it is found again; "
                "give outputs=..., and name=... for its name"
            )
        self.context, self.config, self.held = hydra_context, config, ExitStack()
        self.jobs = planned(config, self.params)
        self.folder = self.held.enter_context(taken(config, self.jobs))
        for entry in self.folder.iterdir():
            files.check_links(entry, self.folder)
        files.check_tree(self.folder / ".submitit", self.folder)
        OmegaConf.update(config, "hydra.sweep.dir", str(self.folder))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs what is unfinished, and shows each job's row as it ends.

        Raises:
            SystemExit: 1, when a job isn't finished.
        """
        assert self.config is not None
        if records.read_json(self.folder / RECORD).get("source") != provenance.source_hash(
            PACKAGE, CONF
        ):
            console.print(
                "the code or its config files changed since this sweep was begun; fresh=true begins anew"
            )
        watch = Watch(self.folder, self.jobs)
        try:
            with self.held, watch:
                left = [n for n in range(len(self.jobs)) if n not in watch.finished]
                left = [n for n in left if self.composes(n)]
                if "BasicLauncher" in self.config.hydra.launcher._target_:  # one after another
                    for number in left:
                        self.launch([number])
                elif left:
                    self.launch(left)
        finally:
            watch.conclude()
        if len(watch.finished) < len(self.jobs):
            sys.exit(1)

    def launch(self, numbers: list[int]) -> None:
        assert self.launcher is not None
        place = f"hydra.sweep.dir={QuotedString(str(self.folder), Quote.single).with_quotes()}"
        words = [[*self.jobs[n]["overrides"], place] for n in numbers]
        for result in self.launcher.launch(words, initial_job_idx=numbers[0]):
            _ = result.return_value  # raises what a job raised beside its own failure

    def composes(self, number: int) -> bool:
        """Whether a job's words make a config; if not, the job has failed."""
        assert self.config is not None
        job = self.jobs[number]
        try:
            self.context.config_loader.load_sweep_config(self.config, job["overrides"])
        except (HydraException, OmegaConfBaseException) as error:
            note_failure(self.folder / job["folder"], error)
            return False
        return True


def planned(config: DictConfig, params: dict[str, str]) -> list[dict[str, Any]]:
    """The jobs of a sweep: name, folder and words of each, the name made of what differs between them.

    Raises:
        UserError: when a word has no end of values.
    """
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [w for w in config.hydra.overrides.task if not w.lstrip("+").startswith("fresh=")]
    overrides = OverridesParser.create().parse_overrides(words)
    if any(override.key_or_group == "resume" for override in overrides):
        raise UserError(
            "resume: a sweep goes on by its own command; resume takes one run, without -m"
        )
    for override in overrides:
        key = override.key_or_group
        if key in ("name", "outputs") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: a sweep has one {key}; give one value")
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a sweep needs a list of values; seg.tune searches an interval"
            )
    swept = {o.get_key_element() for o in overrides if o.is_sweep_override()}
    choices = dict(config.hydra.runtime.choices)
    jobs: list[dict[str, Any]] = []
    for words in BasicSweeper.split_arguments(overrides, None)[0]:
        name = named([w for w in words if w.partition("=")[0] in swept], choices, ()) or "job"
        folder = as_folder(name)
        if folder in [job["folder"] for job in jobs]:  # alike when cut off, or in plain letters
            folder = f"{folder}-{len(jobs)}"
        if words in [job["overrides"] for job in jobs]:
            raise UserError(f"{name}: two jobs of the sweep are the same; give each value once")
        jobs.append({"name": name, "folder": folder, "overrides": words})
    return jobs


@contextmanager
def taken(config: DictConfig, jobs: list[dict[str, Any]]) -> Generator[Path]:
    """The folder of these jobs for this process alone: one begun earlier, else a new one."""
    parent = Path(config.hydra.sweep.dir).parent
    with ExitStack() as held:
        for folder in () if config.fresh else begun(parent, jobs):
            try:
                held.enter_context(alone(folder, "sweep"))
            except Busy:
                continue
            yield folder
            return
        folder = create_folder(parent, config.name or "sweep")
        held.enter_context(alone(folder, "sweep"))
        command = [Path(sys.executable).name, *sys.orig_argv[1:]]
        content = {
            "command": command,
            "source": provenance.source_hash(PACKAGE, CONF),
            "jobs": jobs,
        }
        records.write_json(folder / RECORD, content)
        point_latest(folder)
        yield folder


def begun(parent: Path, jobs: list[dict[str, Any]]) -> Iterator[Path]:
    """The sweeps of the same jobs, in whatever order, the newest first."""
    wanted = {frozenset(job["overrides"]) for job in jobs}
    for file in sorted(parent.glob(f"*/{RECORD}"), reverse=True):
        if file.parent.is_symlink():
            continue
        try:
            there = read_jobs(file)
            found = {frozenset(job["overrides"]) for job in there}
            folders = [file.parent / job["folder"] for job in there]
        except RunError as error:
            reason = one_line(error).removeprefix(f"{file}: ")
            console.print(f"{file}: damaged, and left out ({reason})")
            continue
        if found == wanted:
            for folder in folders:
                files.check_links(folder, file.parent)
            yield file.parent


def read_jobs(file: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep: name, folder and words of each.

    Raises:
        RunError: if they are damaged, or a folder is none of the sweep's own.
    """
    jobs = records.read_json(file).get("jobs")
    if not isinstance(jobs, list) or not jobs or not all(map(is_job, jobs)):
        raise RunError(f"{file}: damaged, its jobs aren't as seg.train -m writes them")
    return jobs


def is_job(job: Any) -> bool:
    """Whether this is a job of a sweep."""
    if not isinstance(job, dict) or not isinstance(job.get("overrides"), list):
        return False
    words = [job.get("name"), job.get("folder"), *job["overrides"]]
    if not all(isinstance(word, str) for word in words):
        return False
    folder = job["folder"]
    return folder not in ("", ".", "..") and not set(folder) & set("/\\\0")


def check_launcher(target: str) -> None:
    """Raises UserError when a launcher's package isn't installed."""
    for word, extra in LAUNCHERS.items():
        if f"hydra_{word}_launcher" in target:
            try:
                __import__(target.rpartition(".")[0])
            except ImportError as error:
                raise UserError(
                    f"hydra/launcher={extra}: needs the extra {extra}: pip install 'seg[{extra}]'"
                ) from error


def job(cfg: DictConfig, train: Callable[..., dict[str, float]]) -> dict[str, float] | None:
    """One job of a sweep; its failure is noted in its folder, and the others go on.

    Args:
        cfg: of the job.
        train: what is done with it, told what was ``asked``.
    """
    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    words = list(hydra.overrides.task)
    jobs = read_jobs(sweep / RECORD)
    number = [set(one["overrides"]) for one in jobs].index(set(words))
    choices = {k: v for k, v in hydra.runtime.choices.items() if "/" not in k and v}
    folder = sweep / jobs[number]["folder"]
    files.check_links(folder, sweep)
    name = jobs[number]["name"]
    try:
        with own_surroundings(words), free_gpu(sweep, cfg) as devices:
            last = stopped_at(folder) if first_process() else None  # the others are told
            if last is not None:
                cfg = saved_config(folder)  # as it was begun
            asked = Asked(name, words, choices, sweep.name, number, folder, last, True, devices)
            return train(cfg, asked=asked)
    except Busy:  # a process that outlived its sweep
        return None
    except Exception as error:
        note_failure(folder, error)
        return None


def stopped_at(folder: Path) -> Path | None:
    """The checkpoint from which a job that was stopped, or failed, goes on; None: there is none."""
    try:
        return newest(folder) if (folder / "config.yaml").is_file() else None
    except RunError:  # all damaged
        return None


def note_failure(folder: Path, error: Exception) -> None:
    """Writes into a job's folder that it failed, and where."""
    files.make_folder(folder, folder.parent)
    try:
        record = read_record(folder / "run.json").content()
    except RunError:  # not there yet, or damaged
        record = {"name": folder.name}
    how = {"status": "failed", "error": f"{type(error).__name__}: {one_line(error)}"}
    write_record(folder, record | how)
    text = "".join(traceback.format_exception(error))
    with files.append(folder / "log.txt", folder) as log:
        log.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def own_surroundings(words: list[str]) -> Generator[None]:
    """Leaves nothing of a job behind: processes that train together, memory, variables.

    Meanwhile the command line is the job's, since Lightning starts further processes by it.
    """
    line, variables = sys.argv, dict(os.environ)
    sys.argv = [line[0], *words]
    if "--config-dir" in line:
        place = line.index("--config-dir")
        sys.argv += line[place : place + 2]
    try:
        yield
    except BaseException:
        leave_group()
        raise
    finally:
        sys.argv = line
        os.environ.clear()
        os.environ.update(variables)
        gc.collect()  # trainer and task hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def leave_group() -> None:
    """Ends the processes that a failed job started to train with this one, and what would end this one too."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):  # kills all when one fails: right for one run
            processes, thread._child_processes = thread._child_processes, []
            for process in processes:
                process.kill()
                process.wait()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def free_gpu(sweep: Path, cfg: DictConfig) -> Generator[list[int] | None]:
    """Of several GPUs one that no other job of the sweep has, where jobs run side by side; else None."""
    count = torch.cuda.device_count()
    launcher = HydraConfig.get().launcher._target_
    if "joblib" not in launcher or count < 2 or cfg.trainer.devices not in ("auto", 1):
        yield None
        return
    while True:
        for gpu in range(count):
            lock = files.lock(sweep / f".gpu-{gpu}", sweep)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield [gpu]
            finally:
                lock.release()
            return
        time.sleep(1)  # more jobs than GPUs


# Hydra takes sweepers from the package of its plugins alone, so this module answers by such a name too
Sweep.__module__ = "hydra_plugins.seg"
sys.modules[Sweep.__module__] = sys.modules[__name__]
Plugins.instance().register(Sweep)
