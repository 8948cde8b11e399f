"""Resumable sweeps, ``python -m seg.train -m``: one folder with a run per combination of options.

SWEEP/sweep.json   jobs: name, folder and overrides of each; the command
SWEEP/JOB/         run folder of a job, named by the options that differ

Repeating the command continues the unfinished sweep with the same jobs. Typed several times, it starts several
workers, which share the jobs: a job is locked by the process that trains it. Hydra's launcher decides where the jobs
of a worker run: one after another in its process, in parallel processes, or on a cluster.
"""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

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
from seg.cli.command_line import typed_command
from seg.cli.compose import one_line
from seg.cli.conf_files import CONF
from seg.cli.paths import complete_values
from seg.display.console import console, is_rank_zero
from seg.errors import RunError, UserError, install_command
from seg.multirun.progress import SweepProgress
from seg.runs import provenance, records
from seg.runs.folder import (
    FolderLocked,
    create_folder,
    folder_name,
    is_at_work,
    lock_folder,
    update_latest_link,
)
from seg.runs.provenance import PACKAGE_FOLDER
from seg.runs.record import RECORD_FILE, read_record, write_record
from seg.runs.run_info import RunInfo, run_name
from seg.runs.workers import POLL_SECONDS
from seg.training.distributed import rendezvous_file
from seg.training.resume import newest_checkpoint, read_saved_config

log = logging.getLogger("seg")
SWEEP_FILE = "sweep.json"
LAUNCHERS = {"joblib": "parallel", "submitit": "slurm"}  # library -> extra that installs it


class ResumableSweeper(Sweeper):
    """Hydra sweeper over all combinations of values, in a folder that the same command finds again.

    Args:
        max_batch_size: option of Hydra's own sweeper; must be None, as the launcher gets all jobs at once.
        params: further overrides, from the config.

    Raises:
        UserError: if ``max_batch_size`` is set.
    """

    launcher: Launcher | None
    config: DictConfig | None
    latest: ClassVar[Path | None] = None  # folder of the sweep that this process began last

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        if max_batch_size is not None:
            raise UserError(
                "hydra.sweeper.max_batch_size: not supported, the launcher decides; leave it out"
            )
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Find or create the sweep's folder, and create the launcher.

        Raises:
            UserError: if the launcher isn't installed, this is one of several ranks, hydra.sweep.dir is set, or
                restart=true is given while other workers train the jobs.
        """
        # Check the launcher, the process and the place.
        check_launcher(config.hydra.launcher._target_)
        if rendezvous_file(Path()) is not None:
            raise UserError(
                "-m: torchrun or SLURM started several processes; start a sweep from a single process"
            )
        complete_values(config)
        if Path(config.hydra.sweep.dir) != Path(config.outputs) / "sweeps/new":
            raise UserError(
                f"hydra.sweep.dir={config.hydra.sweep.dir}: a sweep must be below outputs/sweeps to be continued; "
                "give outputs=..., and name=... for its name"
            )
        # Find or create the folder, and check that no link leads out of it.
        self.context, self.config, self.held = hydra_context, config, ExitStack()
        self.jobs = plan_jobs(config, self.params)
        self.folder = self.held.enter_context(claim_sweep_folder(config, self.jobs))
        ResumableSweeper.latest = self.folder
        self.jobs = read_jobs(self.folder / SWEEP_FILE)  # in the order of the first worker
        for entry in self.folder.iterdir():
            files.check_links(entry, self.folder)
        files.check_tree(self.folder / ".submitit", self.folder)
        OmegaConf.update(config, "hydra.sweep.dir", str(self.folder))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the unfinished jobs, and print a row as each one ends.

        Raises:
            SystemExit: with code 1, if a job did not finish.
        """
        assert self.config is not None
        # Runs of different code in one sweep are not comparable, so tell the user
        if records.read_json(self.folder / SWEEP_FILE).get("source") != provenance.source_hash(
            PACKAGE_FOLDER, CONF
        ):
            console.print(
                "the code or its config files changed since this sweep was begun; restart=true starts a new sweep"
            )
        watch = SweepProgress(self.folder, self.jobs)
        try:
            with self.held, watch:
                self.run_jobs(watch)
        finally:
            watch.print_summary()
        if len(watch.finished) < len(self.jobs):
            sys.exit(1)

    def run_jobs(self, watch: SweepProgress) -> None:
        """Launch the unfinished jobs that no other worker has; wait for the others' and do those that are left."""
        assert self.config is not None
        in_turn = "BasicLauncher" in self.config.hydra.launcher._target_
        left = [n for n in range(len(self.jobs)) if n not in watch.finished and self.composes(n)]
        told = False
        while left:
            ran: set[int] = set()
            if in_turn:
                for number in left:
                    if self.is_free(number, watch):
                        ran |= self.launch([number])
            elif free := [number for number in left if self.is_free(number, watch)]:
                ran = self.launch(free)
            left = [n for n in left if n not in ran and not watch.is_over(n)]
            if left and not ran:
                if not told:
                    console.print(f"other workers have {len(left)} of the jobs; waiting for them")
                told = True
                time.sleep(POLL_SECONDS)

    def is_free(self, number: int, watch: SweepProgress) -> bool:
        """Return True for a job that has not ended and that no other process trains."""
        return not watch.is_over(number) and not is_at_work(
            self.folder / self.jobs[number]["folder"]
        )

    def launch(self, numbers: list[int]) -> set[int]:
        """Launch jobs and wait for them; re-raise errors other than a failed training.

        Returns:
            The jobs that ended, without those that another worker had begun.
        """
        assert self.launcher is not None
        directory = f"hydra.sweep.dir={QuotedString(str(self.folder), Quote.single).with_quotes()}"
        overrides = [[*self.jobs[n]["overrides"], directory] for n in numbers]
        results = self.launcher.launch(overrides, initial_job_idx=numbers[0])
        # return_value raises the error of the job, if any
        ended = [result.return_value is not False for result in results]
        return {n for n, here in zip(numbers, ended, strict=True) if here}

    def composes(self, number: int) -> bool:
        """Return True if a job's overrides compose a config; otherwise record the job as failed."""
        assert self.config is not None
        job = self.jobs[number]
        try:
            self.context.config_loader.load_sweep_config(self.config, job["overrides"])
        except (HydraException, OmegaConfBaseException) as error:
            record_failure(self.folder / job["folder"], error)
            return False
        return True


def plan_jobs(config: DictConfig, params: dict[str, str]) -> list[dict[str, Any]]:
    """Return the jobs of a sweep: name, folder and overrides of each, named by the options that differ.

    Args:
        config: composed, with Hydra's own part.
        params: further overrides.

    Raises:
        UserError: if an option can't be swept, has no list of values, or two jobs are the same.
    """
    # Parse the overrides, and reject options that can't be swept.
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [w for w in config.hydra.overrides.task if not w.lstrip("+").startswith("restart=")]
    overrides = OverridesParser.create().parse_overrides(words)
    if any(override.key_or_group in ("resume", "extend") for override in overrides):
        raise UserError(
            "resume: repeat the sweep's own command to continue it; resume= continues a single run, without -m"
        )
    if any(o.key_or_group == "dry" and o.value() is not False for o in overrides):
        raise UserError("dry=true: goes with a single run; leave out -m")
    for override in overrides:
        key = override.key_or_group
        if key in ("name", "outputs") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: a sweep has a single {key}; give one value")
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a sweep needs a list of values; seg.tune searches an interval"
            )
    # Name each combination, with a folder of its own.
    swept = {o.get_key_element() for o in overrides if o.is_sweep_override()}
    choices = dict(config.hydra.runtime.choices)
    jobs: list[dict[str, Any]] = []
    for words in BasicSweeper.split_arguments(overrides, None)[0]:
        name = run_name([w for w in words if w.partition("=")[0] in swept], choices, ()) or "job"
        folder = folder_name(name)
        if folder in [job["folder"] for job in jobs]:  # names may agree once shortened to a folder
            folder = f"{folder}-{len(jobs)}"
        if words in [job["overrides"] for job in jobs]:
            raise UserError(f"{name}: two jobs of the sweep are the same; give each value once")
        jobs.append({"name": name, "folder": folder, "overrides": words})
    return jobs


@contextmanager
def claim_sweep_folder(config: DictConfig, jobs: list[dict[str, Any]]) -> Generator[Path]:
    """Yield the folder of a sweep, an earlier one of the same jobs or a new one; its first worker locks it.

    Raises:
        UserError: if restart=true is given while other workers train the jobs.
    """
    parent = Path(config.hydra.sweep.dir).parent
    with ExitStack() as locks:
        # Workers that start at the same time find the same folder
        with lock_folder(parent, "sweep", wait=True):
            folder = next(find_earlier_sweeps(parent, jobs), None)
            if folder is not None and config.restart:
                if is_at_work(folder) or any(is_at_work(folder / job["folder"]) for job in jobs):
                    raise UserError(
                        f"restart=true: other workers train these jobs in {folder}; leave it out to join them, or "
                        "stop them"
                    )
                folder = None
            if folder is None:
                folder = create_sweep_folder(config, jobs)
            with suppress(FolderLocked):
                locks.enter_context(lock_folder(folder, "sweep"))
        yield folder


def create_sweep_folder(config: DictConfig, jobs: list[dict[str, Any]]) -> Path:
    """Create the folder of a sweep, and record its jobs."""
    folder = create_folder(Path(config.hydra.sweep.dir).parent, config.name or "sweep")
    content = {
        "command": typed_command(),
        "source": provenance.source_hash(PACKAGE_FOLDER, CONF),
        "jobs": jobs,
    }
    records.write_json(folder / SWEEP_FILE, content)
    update_latest_link(folder)
    return folder


def find_earlier_sweeps(parent: Path, jobs: list[dict[str, Any]]) -> Iterator[Path]:
    """Yield the folders of earlier sweeps with the same jobs, in any order of jobs, newest first."""
    # Sets, as neither the order of jobs nor that of overrides matters
    wanted = {frozenset(job["overrides"]) for job in jobs}
    for file in sorted(parent.glob(f"*/{SWEEP_FILE}"), reverse=True):
        if file.parent.is_symlink():
            continue
        try:
            earlier = read_jobs(file)
            overrides = {frozenset(job["overrides"]) for job in earlier}
            folders = [file.parent / job["folder"] for job in earlier]
        except RunError as error:
            reason = one_line(error).removeprefix(f"{file}: ")
            console.print(f"{file}: damaged, ignored ({reason})")
            continue
        # A link could lead a job to write outside the sweep's folder
        if overrides == wanted:
            for folder in folders:
                files.check_links(folder, file.parent)
            yield file.parent


def read_jobs(file: Path) -> list[dict[str, Any]]:
    """Read the jobs of a sweep: name, folder and overrides of each.

    Raises:
        RunError: if they are damaged, or a folder lies outside the sweep's.
    """
    jobs = records.read_json(file).get("jobs")
    if not isinstance(jobs, list) or not jobs or not all(map(is_job, jobs)):
        raise RunError(f"{file}: damaged, its jobs were not written by seg.train -m")
    return jobs


def is_job(job: Any) -> bool:
    """Return True for a valid job: name, overrides, and a folder name without separators."""
    if not isinstance(job, dict) or not isinstance(job.get("overrides"), list):
        return False
    # The folder must be one path component, so that it lies in the sweep's folder
    words = [job.get("name"), job.get("folder"), *job["overrides"]]
    if not all(isinstance(word, str) for word in words):
        return False
    folder = job["folder"]
    return folder not in ("", ".", "..") and not set(folder) & set("/\\\0")


def check_launcher(target: str) -> None:
    """Raise UserError if the library of a launcher isn't installed."""
    for library, extra in LAUNCHERS.items():
        if f"hydra_{library}_launcher" in target:
            try:
                __import__(target.rpartition(".")[0])
            except ImportError as error:
                raise UserError(
                    f"hydra/launcher={extra}: needs the extra {extra}: {install_command(extra)}"
                ) from error


def run_job(cfg: DictConfig, train: Callable[..., dict[str, float]]) -> bool:
    """Run one job of a sweep; record a failure in its folder, so that the other jobs continue.

    Args:
        cfg: config of the job.
        train: called with the config and ``asked``, the facts that are not in it.

    Returns:
        False if another process trains the job.
    """
    # Find the job by its overrides.
    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    words = list(hydra.overrides.task)
    jobs = read_jobs(sweep / SWEEP_FILE)
    number = [set(entry["overrides"]) for entry in jobs].index(set(words))
    choices = {k: v for k, v in hydra.runtime.choices.items() if "/" not in k and v}
    folder = sweep / jobs[number]["folder"]
    files.check_links(folder, sweep)
    name = jobs[number]["name"]
    # Lock it against other workers
    with ExitStack() as held:
        try:
            held.enter_context(lock_folder(folder, "seg.train"))
        except FolderLocked:
            return False
        if is_rank_zero() and is_finished(folder):  # by another worker
            return True
        # Train it, or resume it from its last checkpoint with its saved config.
        try:
            with isolate_job(words), claim_gpu(sweep, cfg) as devices:
                last = job_checkpoint(folder) if is_rank_zero() else None  # rank 0 announces it
                if last is not None:
                    cfg = read_saved_config(folder)
                train(
                    cfg,
                    asked=RunInfo(
                        name, words, choices, sweep.name, number, folder, last, True, devices
                    ),
                )
        except Exception as error:
            record_failure(folder, error)
    return True


def is_finished(folder: Path) -> bool:
    """Return True for the folder of a finished job."""
    try:
        return read_record(folder / RECORD_FILE).status == "finished"
    except RunError:  # absent or damaged
        return False


def job_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that a stopped or failed job resumes from; None if there is no intact one."""
    try:
        return newest_checkpoint(folder) if (folder / "config.yaml").is_file() else None
    except RunError:
        return None


def record_failure(folder: Path, error: Exception) -> None:
    """Record a failure in a job's folder: status and error in run.json, the traceback in log.txt."""
    # Keep the fields of the record that a job wrote before it failed
    files.make_folder(folder, folder.parent)
    try:
        record = read_record(folder / RECORD_FILE).content()
    except RunError:  # absent or damaged
        record = {"name": folder.name}
    failure = {"status": "failed", "error": f"{type(error).__name__}: {one_line(error)}"}
    write_record(folder, record | failure)
    # Bytes, as the traceback may hold characters that are not valid in UTF-8
    text = "".join(traceback.format_exception(error))
    with files.open_append(folder / "log.txt", folder) as log:
        log.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def isolate_job(words: list[str]) -> Generator[None]:
    """Isolate a job that runs in this process: restore argv and environment, and end the ranks it started.

    Within the context ``sys.argv`` is the job's command line, as Lightning starts further ranks with it.
    """
    # Set the command line of the job.
    line, variables = sys.argv, dict(os.environ)
    sys.argv = [line[0], *words]
    if "--config-dir" in line:
        position = line.index("--config-dir")
        sys.argv += line[position : position + 2]
    # Run it, and clean up.
    try:
        yield
    except BaseException:
        kill_ddp_children()
        raise
    finally:
        sys.argv = line
        os.environ.clear()
        os.environ.update(variables)


def kill_ddp_children() -> None:
    """Kill the ranks that a failed job started, and disarm Lightning's observer, which would kill this process."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):  # kills all ranks once one fails
            processes, thread._child_processes = thread._child_processes, []
            for process in processes:
                process.kill()
                process.wait()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def claim_gpu(sweep: Path, cfg: DictConfig) -> Generator[list[int] | None]:
    """Lock and yield a free GPU for a job of a parallel sweep; yield None if it needs no choice."""
    # Only parallel jobs of one device each compete for GPUs
    count = torch.cuda.device_count()
    launcher = HydraConfig.get().launcher._target_
    if "joblib" not in launcher or count < 2 or cfg.trainer.devices not in ("auto", 1):
        yield None
        return
    # Try the lock of each GPU, and wait while there are more jobs than GPUs.
    while True:
        for gpu in range(count):
            lock = files.file_lock(sweep / f".gpu-{gpu}", sweep)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield [gpu]
            finally:
                lock.release()
            return
        time.sleep(1)


# Hydra accepts sweepers only from its plugin package, so the class is registered under such a name. Then it has its own
# again, by which the processes of a cluster import it as they read their job.
ResumableSweeper.__module__ = "hydra_plugins.seg"
Plugins.instance().register(ResumableSweeper)
ResumableSweeper.__module__ = __name__
