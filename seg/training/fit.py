"""Fit a run with Lightning's Trainer, score its best checkpoint, and write the results into the run folder."""

import errno
import logging
import math
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from seg import hardware
from seg.cli.command_line import render_command, render_option
from seg.cli.compose import CONSTRUCTOR_ERRORS, instantiate_node, one_line, plain_config
from seg.cli.resource_errors import explain_error
from seg.cli.validation import is_number
from seg.data.datamodule import DataModule
from seg.data.datasets.base import image_groups
from seg.data.partition import split_hash
from seg.display.console import is_rank_zero, rank_zero_only
from seg.errors import USER_ERRORS, RunError
from seg.metrics.calibration import ProbabilityCounts, ProbabilityHistogram
from seg.metrics.risk_control import RiskBound, parse_risk_bound
from seg.models.profiling import count_frozen, count_parameters
from seg.runs import provenance, records
from seg.runs.checkpoint import (
    TRAINING_STATE,
    error_summary,
    keep_weights_only,
    load_skeleton,
    read_checkpoint,
    write_checkpoint,
)
from seg.runs.folder import relative_to_here, update_latest_link
from seg.runs.record import RiskPromise, write_record
from seg.runs.run_info import RunInfo
from seg.training import artifacts
from seg.training.build import epoch_steps
from seg.training.callbacks import progress
from seg.training.callbacks.checkpointing import (
    AtomicCheckpointIO,
    GracefulStop,
    PortableModelCheckpoint,
    ResumeMidEpoch,
    WeightAveraging,
)
from seg.training.callbacks.memory_hint import MemoryHint
from seg.training.callbacks.nan_guard import NonFiniteError, NonFiniteGuard
from seg.training.callbacks.pictures import PanelCallback
from seg.training.callbacks.progress import ProgressLogger
from seg.training.callbacks.time_limit import TimeLimit
from seg.training.data import TrainerData
from seg.training.evaluation import choose_split_neck
from seg.training.loggers.base import TrackedRun
from seg.training.loggers.guarded import finish_loggers, hide_secrets, start_loggers
from seg.training.loggers.metrics_logger import MetricsCSV
from seg.training.quality import fit_quality, groups_of, measure_values
from seg.training.resume import (
    copy_to_last,
    existing_checkpoints,
    plan_course,
    remove_unfinished_files,
    resumed_record,
)
from seg.training.risk import choose_risk_threshold, log_measured_risk, log_risk_threshold
from seg.training.schedules import Course
from seg.training.summary import print_run_header, print_run_summary
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")
CallbackType = TypeVar("CallbackType", bound=L.Callback)
DISK_FULL_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # disk full, quota exceeded, file too large


class StartMarker(L.Callback):
    """Records that training, or the validation before it, has begun, so that later errors are not blamed on its state.

    Args:
        resumed: True if the run continues from a checkpoint.

    Attributes:
        yes: True once training, or the validation before it, has begun.
    """

    def __init__(self, resumed: bool) -> None:
        self.resumed, self.yes = resumed, False

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.yes = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.resumed:
            check_optimizer(trainer)
        self.yes = True


def check_optimizer(trainer: L.Trainer) -> None:
    """Raise ValueError unless the restored state of each optimiser fits its parameters."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name, value in group.items():
                if name != "params" and not has_default_type(value, optimizer.defaults.get(name)):
                    raise ValueError(f"the optimizer's {name} is {value!s:.40}")
            names = {name for p in group["params"] for name in optimizer.state.get(p, {})}
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                if state and set(state) != names:
                    raise ValueError(
                        f"the optimizer has {', '.join(sorted(map(str, names)))} of only some weights"
                    )
                for name, value in optimizer.state.get(parameter, {}).items():
                    if not isinstance(value, Tensor):
                        if value is not None and not is_number(value):
                            raise ValueError(f"the optimizer's {name} is {value!s:.40}")
                    elif value.shape not in (parameter.shape, ()):
                        raise ValueError(
                            f"the optimizer's {name} has the shape {tuple(value.shape)}"
                        )


def has_default_type(value: Any, default: Any) -> bool:
    """Return True if a restored option of an optimiser has the type of its default, and is finite."""
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return len(value) == len(default) and all(map(has_default_type, value, default))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if is_number(default):
        return is_number(value)
    return default is None or isinstance(value, type(default))


class RunPruned(Exception):
    """Raised by a callback to end an unpromising run early; its status is then ``pruned``."""


def fit_run(
    cfg: DictConfig,
    asked: RunInfo,
    task: SegmentationTask,
    data: DataModule,
    taken: str | None,
    callbacks: Sequence[L.Callback],
) -> dict[str, float]:
    """Train a run, score it, and return the final metrics; run.json records how it ended.

    Args:
        cfg: resolved config of the run.
        asked: name, folder and other facts that are not in the config.
        task: network, loss and metrics.
        data: all splits.
        taken: description of the initial weights; None: random.
        callbacks: additional Lightning callbacks.

    Returns:
        ``best/val/...`` of the best checkpoint and, with a test split, ``test/...``.
    """
    folder = cast(Path, asked.folder)
    with GracefulStop() as interrupts:
        # Prepare: until here nothing is trained, so that an error leaves no folder of a new run.
        try:
            remove_unfinished_files(folder)
            copy_to_last(folder, asked.checkpoint)
            record = initial_record(cfg, asked, task, data)
            pictures = PanelCallback(
                data.samples("val"), cfg.panels, data.source.colors, folder / "panels", folder, task.val_metrics.threshold
            )  # fmt: skip
            # Build the Trainer, and print and record what the run begins with.
            trainer = make_trainer(cfg, asked, [*callbacks, pictures], interrupts)
            data.check_ranks(trainer.world_size)
            steps = epoch_steps(cfg.trainer, data, trainer.world_size)
            task.course = plan_course(cfg, asked, task.schedule, steps)
            record["lr_segments"] = task.course.segments
            print_run_header(cfg, asked.name, task, data, taken)
            if asked.changed:
                log_longer_run(asked, task.course, cfg.extend)
                write_record(folder, record | {"status": "running"})
            records.write_config(folder / "config.yaml", plain_config(cfg))
            provenance.write_provenance_files(folder, data.digests)
            trainer.loggers = make_loggers(cfg, asked, task)
        except BaseException as error:
            if asked.checkpoint is None:
                shutil.rmtree(folder, ignore_errors=True)
            interrupts.reraise(error)
            raise
        try:
            # Mark the run as running, where seg.compare and outputs/latest find it.
            write_record(folder, record | {"status": "running"})
            if not asked.silent:
                update_latest_link(folder)
            # Fit, then score the weights that validated best.
            fit_from_checkpoint(trainer, task, data, asked.checkpoint)
            log_early_end(trainer, task.course, folder)
            minutes = get_callback(trainer, ProgressLogger).seconds / 60
            bound = parse_risk_bound(cfg.threshold)
            scores = score_best_checkpoint(trainer, task, data, cfg.threshold == "best", bound)
            record |= {
                "threshold": task.val_metrics.threshold,
                "split_neck_px": task.card.get("split_neck_px"),
                "promise": task.card.get("promise"),
                "quality": task.card.get("quality"),
                "minutes": minutes,
                "steps": trainer.global_step,
                "lr_segments": task.course.segments,
            }
            # Write per-image counts and pictures, which seg.compare reads.
            write_artifacts(cfg, folder, task, data, trainer)
            if trainer.is_global_zero:
                pictures.threshold = task.val_metrics.threshold
                pictures.write(task.model)
        except BaseException as caught:
            # Failed, pruned or interrupted: record it, and explain memory and disk errors.
            demand = get_callback(trainer, MemoryHint)
            error = explain_error(caught, demand.text, demand.lower)
            if (
                isinstance(error, OSError)
                and error.errno in DISK_FULL_ERRORS
                and error.filename is None
            ):
                error.filename = str(folder)  # libraries that write pictures leave it out
            handle_failure(folder, record, trainer, interrupts, error)
            if isinstance(error, RunPruned):
                drop_training_state(cfg, folder)
            if error is caught:
                raise
            raise error from caught
        # Finished: a signal no longer changes the status.
        interrupts.recording = True
        write_record(folder, record | {"status": "finished", "metrics": scores})
        drop_training_state(cfg, folder)
    # Close the loggers and the process group, and print the scores.
    facts = {name: record[name] for name in ("minutes", "steps", "parameters")}
    finish_loggers(trainer.loggers, "finished", scores | facts)
    hardware.destroy_process_group()
    if trainer.is_global_zero:
        print_run_summary(folder, scores, task, data, minutes)
    return scores


def fit_from_checkpoint(
    trainer: L.Trainer, task: SegmentationTask, data: DataModule, checkpoint: Path | None
) -> None:
    """Fit, starting from the checkpoint if there is one.

    Raises:
        RunError: if the state in the checkpoint is damaged or belongs to another run.
    """
    try:
        trainer.fit(task, datamodule=TrainerData(data), ckpt_path=checkpoint, weights_only=True)
    except (
        *CONSTRUCTOR_ERRORS,
        MisconfigurationException,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        if (
            checkpoint is None
            or get_callback(trainer, StartMarker).yes
            or isinstance(error, USER_ERRORS)
        ):
            raise
        raise RunError(
            f"{checkpoint}: its training state doesn't fit this run, or is damaged ({error_summary(error)})"
        ) from error


def log_early_end(trainer: L.Trainer, course: Course, folder: Path) -> None:
    """Log where ``max_time`` or ``patience`` ended a training.

    Args:
        trainer: after the training.
        course: of the learning rate, with the planned number of steps.
        folder: run folder.
    """
    callbacks, done = cast(Any, trainer).callbacks, trainer.global_step
    timed = any(isinstance(c, TimeLimit) for c in callbacks) and done != course.limit
    early = any(isinstance(c, EarlyStopping) and c.stopped_epoch for c in callbacks)
    reason = "patience" if early else "trainer.max_time" if timed else ""
    if not reason:
        return
    epochs = f" of {trainer.max_epochs}" if trainer.max_epochs != -1 else ""
    steps = f"{done} of {course.end}" if early else done
    again = render_command("rerun", render_option("run", relative_to_here(folder)))
    log.info(
        f"{reason} ended the training in epoch {max(1, trainer.current_epoch)}{epochs}, after {steps} steps"
        f"{'' if early else f', the same in  {again}'}"
    )


def handle_failure(
    folder: Path,
    record: dict[str, Any],
    trainer: L.Trainer,
    interrupts: GracefulStop,
    error: BaseException,
) -> None:
    """Record a failed, pruned or interrupted run, close its loggers, and print how to resume it.

    Args:
        folder: run folder.
        record: contents of run.json without the status.
        trainer: of the run.
        interrupts: signals received so far.
        error: that ended the run.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: after a scheduler's signal, with code 128 + its number; or whatever submitit raises.
    """
    # Record the status and the reason; signals wait until the file is written.
    interrupts.recording = True
    status = run_status(error)
    signalled = interrupts.asked if status == "interrupted" else None
    reason = hide_secrets(f"{type(error).__name__}: {one_line(error)}")
    reason = reason if signalled is None else signal.Signals(signalled).name
    try:
        write_record(folder, record | {"status": status, "error": reason})
    except OSError as full:
        log.warning(
            f"{full.filename}: {full.strerror}; its status was not updated and still reads running"
        )
    # Close the loggers, which may wait for a server: from here Ctrl-C acts at once.
    interrupts.recording = interrupts.training = False
    finish_loggers(trainer.loggers, status, {})
    # Print the command that resumes, unless the run would end the same way again.
    repeats = isinstance(error, RunPruned | NonFiniteError)
    if not repeats and existing_checkpoints(folder):
        resume = render_option("resume", relative_to_here(folder))
        log.info(f"goes on with  {render_command('train', resume)}")
    elif status == "interrupted":
        log.info("no checkpoint was written yet, so the run cannot be resumed; start it again")
    if signalled is not None:
        interrupts.reraise(error)


def initial_record(
    cfg: DictConfig, asked: RunInfo, task: SegmentationTask, data: DataModule
) -> dict[str, Any]:
    """Return the contents of run.json for a new run, or for a resumed run as it continues."""
    source = data.source
    record = provenance.collect_provenance() | asked.facts | {
        "seed": cfg.seed,
        "classes": list(source.classes),
        "colors": [list(color) for color in source.colors],
        "parameters": count_parameters(task.model),
        "frozen_parameters": count_frozen(task.model),
        "splits": source.splits,
        "split_hash": split_hash(source.splits),
        "data": {"fingerprint": provenance.data_fingerprint(data.digests)},
    }  # fmt: skip
    return record if asked.checkpoint is None else resumed_record(asked, record)


def log_longer_run(asked: RunInfo, course: Course, extend: str | None) -> None:
    """Log what is changed in a run that is made longer."""
    ends = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in asked.changed.items())
    extended = f"; extend={extend}" if extend else ""
    log.info(f"longer     {ends}; {course.end} steps{extended}")


def make_trainer(
    cfg: DictConfig, asked: RunInfo, more: Sequence[L.Callback], interrupts: GracefulStop
) -> L.Trainer:
    """Build the Trainer of a run with its callbacks and plugins.

    Args:
        cfg: resolved config of the run.
        asked: folder, devices and verbosity of the run.
        more: additional callbacks.
        interrupts: callback that stops the run on a signal.
    """
    # Callbacks: checkpoints, progress, resumption, signals, error reports, and those that are optional.
    checkpoints = (
        Path(os.path.abspath(cast(Path, asked.folder))) / "checkpoints"
    )  # Lightning expands ~ in others
    bar = progress.shows_progress_bar() and not asked.silent
    longer = any(name != "patience" for name in asked.changed)
    limit = cfg.trainer.get("max_time")
    timer = [] if limit is None else [TimeLimit(limit, longer, repeats=asked.segments is not None)]
    callbacks = [
        *timer,  # before those that check whether training should stop
        *more,
        PortableModelCheckpoint(
            checkpoints,
            "best",
            monitor="val/dice",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        PortableModelCheckpoint(
            checkpoints,
            "last",
            enable_version_counter=False,
            save_on_exception=True,
            save_on_train_epoch_end=True,
        ),
        ProgressLogger(),
        StartMarker(asked.checkpoint is not None),
        ResumeMidEpoch(longer=bool(asked.changed), patience=cfg.patience),
        interrupts,
        MemoryHint(
            f"the first step, of loader.batch_size={cfg.loader.batch_size} and loader.crop={cfg.loader.crop}",
            cfg.trainer.get("accumulate_grad_batches", 1),
        ),
        NonFiniteGuard(cast(Path, asked.folder), cfg.on_nonfinite),
        *optional_callbacks(cfg.patience, cfg.ema),
        *([progress.progress_bar()] if bar else []),
    ]
    # Plugins: without auto-requeue, Lightning writes no checkpoints of its own outside the run folder.
    devices = {} if asked.devices is None else {"devices": asked.devices}
    node = cast(DictConfig, OmegaConf.merge(cfg.trainer, devices))
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    environment = [SLURMEnvironment(auto_requeue=False)] if slurm else []
    plugins = [AtomicCheckpointIO(cast(Path, asked.folder)), *environment]
    return instantiate_node(
        node, "trainer", callbacks=callbacks, plugins=plugins, folder=str(asked.folder)
    )


def optional_callbacks(patience: int | None, ema: float | None) -> list[L.Callback]:
    """Return the callbacks for early stopping and weight averaging, as far as they are enabled.

    Args:
        patience: validations without a better Dice after which training stops, at least 1; None: off.
        ema: decay of the exponential moving average of the weights, between 0 and 1; None: off.
    """
    callbacks: list[L.Callback] = []
    if patience is not None:
        callbacks.append(EarlyStopping("val/dice", mode="max", patience=patience))
    if ema is not None:
        callbacks.append(WeightAveraging(decay=ema))
    return callbacks


def make_loggers(cfg: DictConfig, asked: RunInfo, task: SegmentationTask) -> list[Any]:
    """Return the writer of metrics.csv and, on rank 0, the loggers of the config."""
    folder, until, kept = cast(Path, asked.folder), None, None
    if asked.checkpoint is not None:
        content = load_skeleton(asked.checkpoint)  # without reading the weights once more
        for name in ("state_dict", *TRAINING_STATE):
            if not content.get(name):
                raise RunError(
                    f"{asked.checkpoint}: has no {name}, so the run cannot be resumed from it"
                )
        until, kept = content["global_step"], content.get("rows")
    table = MetricsCSV(folder / "metrics.csv", until, kept)
    followed = TrackedRun(
        asked.name, folder, plain_config(cfg), count_parameters(task.model), asked.group, asked.job, asked.choices
    )  # fmt: skip
    return [table, *(start_loggers(cfg.logger, followed) if is_rank_zero() else [])]


def get_callback(trainer: L.Trainer, kind: type[CallbackType]) -> CallbackType:
    """Return the Trainer's callback of a class."""
    return next(c for c in cast(Any, trainer).callbacks if isinstance(c, kind))


def run_status(error: BaseException) -> str:
    """Return the status of a run that ended with an error: pruned, failed or interrupted."""
    if isinstance(error, RunPruned):
        return "pruned"
    return "failed" if isinstance(error, Exception) else "interrupted"


def write_artifacts(
    cfg: DictConfig, folder: Path, task: SegmentationTask, data: DataModule, trainer: L.Trainer
) -> None:
    """Write per-image counts and prediction pictures, which seg.compare reads."""
    splits = {"val": task.val_metrics.pixels, "test": task.test_metrics.pixels}
    splits = {split: scores for split, scores in splits.items() if split in data.source.splits}
    counts = {split: artifacts.gather_counts(scores) for split, scores in splits.items()}
    scored = {
        split: (
            artifacts.scored_names(data.source.splits[split], trainer.world_size, len(cells)),
            cells,
        )
        for split, cells in counts.items()
    }
    if not trainer.is_global_zero:
        return
    artifacts.write_image_counts(folder / "images.csv", scored, data.source.classes)
    samples = {split: data.samples(split) for split in splits}
    artifacts.save_prediction_pictures(
        folder / "predictions", samples, cfg.save_predictions, data.source.colors, task.model, task.val_metrics.threshold
    )  # fmt: skip


def load_best_checkpoint(trainer: L.Trainer, task: SegmentationTask) -> Path:
    """Load the weights of the best checkpoint and return its file; save one if the run ended before a validation.

    Raises:
        RunError: if its weights don't fit.
    """
    checkpoints = cast(ModelCheckpoint, trainer.checkpoint_callback)
    best = Path(checkpoints.best_model_path or Path(str(checkpoints.dirpath)) / "best.ckpt")
    if not checkpoints.best_model_path:
        trainer.save_checkpoint(best)
    try:
        task.load_state_dict(read_checkpoint(best)["state_dict"])
    except (LookupError, TypeError, RuntimeError, AttributeError) as error:
        raise RunError(
            f"{best}: its weights don't fit this run ({error_summary(error)})"
        ) from error
    return best


def score_best_checkpoint(
    trainer: L.Trainer,
    task: SegmentationTask,
    data: DataModule,
    best_options: bool = False,
    bound: RiskBound | None = None,
) -> dict[str, float]:
    """Score the best checkpoint on the validation split, and on the test split if there is one.

    A run too short to have validated is scored with its last weights. With ``best_options`` (``threshold=best``) the
    validation split chooses the threshold and, of data with objects, ``split_neck_px``; with ``bound``
    (``threshold=missed:0.1``) the threshold that keeps it. They are then stored in the checkpoints.

    Returns:
        ``best/val/...`` and ``test/...``.
    """
    best = load_best_checkpoint(trainer, task)
    task.val_metrics.histogram = None if bound is None else ProbabilityHistogram()
    task.val_metrics.counts = counts = ProbabilityCounts(task.val_metrics.overlapping)
    validated = trainer.validate(task, datamodule=TrainerData(data), verbose=False)[0]
    # Choose the threshold, and score again with it; then how objects are separated.
    chosen: dict[str, Any] = {}
    promise = None
    if bound is not None:
        promise = keep_risk_bound(task, bound, data, trainer.world_size)
        chosen = {"threshold": task.val_metrics.threshold, "promise": task.card["promise"]}
    if promise is not None:
        validated = trainer.validate(task, datamodule=TrainerData(data), verbose=False)[0]
    if task.val_metrics.curve is not None:
        threshold = task.val_metrics.choose_threshold()
        task.test_metrics.threshold = chosen["threshold"] = threshold
        log.info(
            f"threshold  {threshold:g}, which maximises Dice on the validation split; stored in the run"
        )
        validated = trainer.validate(task, datamodule=TrainerData(data), verbose=False)[0]
    if best_options and data.source.task == "instances":
        samples, device = data.samples("val"), trainer.strategy.root_device
        neck = choose_split_neck(task.model, samples, task.val_metrics.threshold, device)
        chosen["split_neck_px"] = task.card["split_neck_px"] = neck
        found = "connected regions" if neck is None else f"split_neck_px={neck:g}"
        log.info(f"objects    {found}, the highest F1 on the validation split; stored in the run")
    task.card["quality"] = calibrate_quality(
        counts, data, task.val_metrics.threshold, trainer.world_size
    )
    task.val_metrics.counts = None
    chosen["quality"] = task.card["quality"]
    store_choices(best, chosen)
    of_best = {"promise": None, "quality": None}
    store_choices(best.with_name("last.ckpt"), chosen | of_best)
    scores = {f"best/{k}": v for k, v in validated.items()}
    if "test" in data.source.splits:
        scores |= trainer.test(task, datamodule=TrainerData(data), verbose=False)[0]
        if promise is not None:
            counts = artifacts.gather_counts(task.test_metrics.pixels)
            log_measured_risk(promise, counts, data.source.classes, "test")
    return scores


def keep_risk_bound(
    task: SegmentationTask, bound: RiskBound, data: DataModule, world: int
) -> RiskPromise | None:
    """Set the threshold that keeps a bound on the last validation, if any does; return what it promises.

    Args:
        task: whose metrics have a histogram, which is removed.
        bound: asked for.
        data: with the validation split.
        world: number of ranks.
    """
    histogram = cast(ProbabilityHistogram, task.val_metrics.histogram)
    counts = histogram.compute()  # gathered from all ranks
    task.val_metrics.histogram = None
    names = artifacts.scored_names(data.source.splits["val"], world, len(counts))
    promise = choose_risk_threshold(counts, bound, data.source, names, "validation")
    if promise is not None:
        task.val_metrics.threshold = task.test_metrics.threshold = promise.threshold
        log_risk_threshold(promise, data.source.classes)
    task.card["promise"] = None if promise is None else promise.model_dump()
    return promise


def calibrate_quality(
    counts: ProbabilityCounts, data: DataModule, threshold: float, world: int
) -> dict[str, Any] | None:
    """Return what scores of images without truth need, on rank 0; None if the data has too few images.

    Args:
        counts: of the last validation.
        data: with the splits for training and validation.
        threshold: of the last validation.
        world: number of ranks.
    """
    counts_NCTPB = counts.compute().cpu().numpy()  # gathered from all ranks
    if not is_rank_zero():
        return None
    # Names rank by rank; a limit of the memory for counts may have left out the last of each rank
    train, val = data.samples("train"), data.samples("val")
    names = artifacts.scored_names(val.names, world, len(counts_NCTPB))
    features, others = measure_values(val, names), measure_values(train, train.names)
    groups = groups_of(names, image_groups(data.source))
    quality = fit_quality(
        counts_NCTPB, features, others, data.intensity, len(data.source.classes), "validation", threshold, groups
    )  # fmt: skip
    return None if quality is None else quality.model_dump()


@rank_zero_only
def drop_training_state(cfg: DictConfig, folder: Path) -> None:
    """Keep only the weights of a finished or pruned run, unless ``save_checkpoints=full``.

    An error is only a warning, as the run is complete with full checkpoints too.
    """
    try:
        if cfg.save_checkpoints == "weights":
            keep_weights_only(folder)
    except (OSError, RunError) as error:
        log.warning(f"{folder}: its checkpoints keep their training state ({error_summary(error)})")


@rank_zero_only
def store_choices(checkpoint: Path, chosen: dict[str, float | None]) -> None:
    """Store what validation chose in a checkpoint, if it exists; evaluate and predict read it from there."""
    if not checkpoint.is_file():
        return
    content = read_checkpoint(checkpoint)
    content["seg"] |= chosen
    write_checkpoint(checkpoint, content, checkpoint.parent.parent)
