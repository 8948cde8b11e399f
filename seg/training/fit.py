"""One run, from a Trainer to its record: fits, scores the best checkpoint, and writes what came out."""

import errno
import logging
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from seg import hardware
from seg.cli.compose import build, one_line, plain
from seg.cli.resource_errors import explained
from seg.data.datamodule import DataModule
from seg.data.partition import split_hash
from seg.display.console import first_process
from seg.errors import UserError
from seg.runs import provenance, records
from seg.runs.checkpoint import read_checkpoint, write_checkpoint
from seg.runs.folder import point_latest, relative
from seg.runs.run_info import Asked
from seg.training import artifacts
from seg.training.callbacks import progress
from seg.training.callbacks.checkpointing import Checkpoints, Interrupts, MidEpoch, WholeFiles
from seg.training.callbacks.memory_hint import Demand
from seg.training.callbacks.nan_guard import Finite, NotFinite
from seg.training.callbacks.pictures import Pictures
from seg.training.callbacks.progress import Lines
from seg.training.loggers import MetricsCSV, TrackedRun, finish, start, without_keys
from seg.training.resume import clear, continued
from seg.training.summary import announce, conclude, parameters
from seg.training.task import SegmentationTask

log = logging.getLogger("seg")
Part = TypeVar("Part", bound=L.Callback)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, or a share of it


class Pruned(Exception):
    """Raised by a callback that ends a run which isn't worth going on with."""


def fit(
    cfg: DictConfig,
    asked: Asked,
    task: SegmentationTask,
    data: DataModule,
    taken: str | None,
    callbacks: Sequence[L.Callback],
) -> dict[str, float]:
    """The final metrics of a run; run.json tells how it ended.

    Args:
        cfg: of the run, settled.
        asked: its name, folder and the like.
        task: network, loss and metrics.
        data: of all splits.
        taken: what its first weights are, in words.
        callbacks: more of Lightning's.
    """
    folder = cast(Path, asked.folder)
    try:
        clear(folder)
        record = begun(cfg, asked, task, data)
        pictures = Pictures(
            data.samples("val"), cfg.panels, data.source.colors, folder / "panels", task.val_metrics.threshold
        )  # fmt: skip
        trainer = prepared(cfg, asked, [*callbacks, pictures])
        data.check_shares(trainer.world_size)
        announce(cfg, asked.name, task, data, taken)
        records.write_config(folder / "config.yaml", plain(cfg))
        provenance.write_beside(folder, data.digests)
        trainer.loggers = loggers(cfg, asked, task)
    except BaseException:
        if asked.checkpoint is None:
            shutil.rmtree(folder, ignore_errors=True)  # nothing was trained
        raise
    try:
        records.write_json(folder / "run.json", record | {"status": "running"})
        if not asked.silent:
            point_latest(folder)
        trainer.fit(task, datamodule=data, ckpt_path=asked.checkpoint, weights_only=True)
        minutes = part(trainer, Lines).seconds / 60
        scores = score(trainer, task, data)
        record |= {
            "threshold": task.val_metrics.threshold,
            "minutes": minutes,
            "steps": trainer.global_step,
        }
        keep(cfg, folder, task, data, trainer)
        if trainer.is_global_zero:
            pictures.threshold = task.val_metrics.threshold
            pictures.write(task.model)
    except BaseException as caught:
        demand = part(trainer, Demand)
        error = explained(caught, demand.text, demand.lower)
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = str(folder)  # as of a picture for which no space is left
        conclude_early(folder, record, trainer, error)
        if error is caught:
            raise
        raise error from caught
    records.write_json(folder / "run.json", record | {"status": "finished", "metrics": scores})
    facts = {name: record[name] for name in ("minutes", "steps", "parameters")}
    finish(trainer.loggers, "finished", scores | facts)
    hardware.part()
    if trainer.is_global_zero:
        conclude(folder, scores, data, minutes)
    if (
        part(trainer, Interrupts).asked == signal.SIGINT
    ):  # as the run ended: what comes after it is meant
        raise KeyboardInterrupt
    return scores


def conclude_early(
    folder: Path, record: dict[str, Any], trainer: L.Trainer, error: BaseException
) -> None:
    """Writes down how a run ended that raised this, and says how it goes on.

    Raises:
        KeyboardInterrupt: when it was Ctrl-C that ended it.
        SystemExit: when it was a signal of a scheduler, 128 and its number; or what submitit raises.
    """
    status, interrupts = ended(error), part(trainer, Interrupts)
    signalled = interrupts.asked if status == "interrupted" else None
    reason = without_keys(f"{type(error).__name__}: {one_line(error)}")
    reason = reason if signalled is None else signal.Signals(signalled).name
    try:
        records.write_json(folder / "run.json", record | {"status": status, "error": reason})
    except OSError as full:
        log.warning(f"{full.filename}: {full.strerror}; it still says that the run is running")
    finish(trainer.loggers, status, {})
    unlike = isinstance(error, Pruned | NotFinite)  # going on would end the same way
    if not unlike and (folder / "checkpoints/last.ckpt").is_file():
        log.info(f"goes on with  python -m seg.train resume={shlex.quote(str(relative(folder)))}")
    if signalled == signal.SIGINT:
        raise KeyboardInterrupt from error
    if signalled not in (None, signal.SIGTERM):
        scheduler = interrupts.before.get(signalled)
        if callable(scheduler):  # submitit's, which hands the job in again and leaves
            scheduler(signalled, None)
        raise SystemExit(128 + signalled) from error


def begun(
    cfg: DictConfig, asked: Asked, task: SegmentationTask, data: DataModule
) -> dict[str, Any]:
    """The record of a run as it begins, or goes on."""
    source = data.source
    record = provenance.origin() | asked.facts | {
        "seed": cfg.seed,
        "classes": list(source.classes),
        "colors": [list(color) for color in source.colors],
        "parameters": parameters(task.model),
        "splits": source.splits,
        "split_hash": split_hash(source.splits),
        "data": {"fingerprint": provenance.data_fingerprint(data.digests)},
    }  # fmt: skip
    return record if asked.checkpoint is None else continued(cast(Path, asked.folder), record)


def prepared(cfg: DictConfig, asked: Asked, more: Sequence[L.Callback]) -> L.Trainer:
    """The Trainer with its callbacks."""
    checkpoints = cast(Path, asked.folder) / "checkpoints"
    bar = progress.on_terminal() and not asked.silent
    callbacks = [
        *more,
        Checkpoints(
            checkpoints, "best", monitor="val/dice", mode="max", enable_version_counter=False
        ),
        Checkpoints(
            checkpoints,
            "last",
            enable_version_counter=False,
            save_on_exception=True,
            save_on_train_epoch_end=True,
        ),
        Lines(),
        MidEpoch(),
        Interrupts(),
        Demand(
            f"the first step, of loader.batch_size={cfg.loader.batch_size} and loader.crop={cfg.loader.crop}",
            cfg.trainer.get("accumulate_grad_batches", 1),
        ),
        Finite(cast(Path, asked.folder), cfg.bad_steps),
        *chosen(cfg.patience, cfg.ema),
        *([progress.progress_bar()] if bar else []),
    ]
    devices = {} if asked.devices is None else {"devices": asked.devices}
    node = cast(DictConfig, OmegaConf.merge(cfg.trainer, devices))
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    place = (
        [SLURMEnvironment(auto_requeue=False)] if slurm else []
    )  # else checkpoints lie elsewhere
    plugins = [WholeFiles(), *place]
    return build(node, "trainer", callbacks=callbacks, plugins=plugins, folder=str(asked.folder))


def chosen(patience: int | None, ema: float | None) -> list[L.Callback]:
    """Lightning's own for stopping early and for averaging weights, where they are asked for.

    Raises:
        UserError: when a number is out of its range.
    """
    found: list[L.Callback] = []
    if patience is not None:
        if type(patience) is not int or patience < 1:
            raise UserError(f"patience={patience}: a number of validations, 1 or more, or null")
        found.append(EarlyStopping("val/dice", mode="max", patience=patience))
    if ema is not None:
        if type(ema) not in (int, float) or not 0 < ema < 1:
            raise UserError(f"ema={ema}: a decay between 0 and 1 is needed, 0.99, or null")
        found.append(EMAWeightAveraging(decay=ema))
    return found


def loggers(cfg: DictConfig, asked: Asked, task: SegmentationTask) -> list[Any]:
    """metrics.csv, and what else was chosen; of several processes the first has the others."""
    folder, until = cast(Path, asked.folder), None
    if asked.checkpoint is not None:
        until = read_checkpoint(asked.checkpoint)["global_step"]
    table = MetricsCSV(folder / "metrics.csv", until)
    followed = TrackedRun(
        asked.name, folder, plain(cfg), parameters(task.model), asked.group, asked.job, asked.choices
    )  # fmt: skip
    return [table, *(start(cfg.logger, followed) if first_process() else [])]


def part(trainer: L.Trainer, kind: type[Part]) -> Part:
    """The callback of that class."""
    return next(c for c in cast(Any, trainer).callbacks if isinstance(c, kind))


def ended(error: BaseException) -> str:
    """How a run ended that raised this."""
    if isinstance(error, Pruned):
        return "pruned"
    return "failed" if isinstance(error, Exception) else "interrupted"


def keep(
    cfg: DictConfig, folder: Path, task: SegmentationTask, data: DataModule, trainer: L.Trainer
) -> None:
    """Writes what seg.compare reads of each image: counts, and pictures of some."""
    splits = {"val": task.val_metrics.pixels, "test": task.test_metrics.pixels}
    splits = {split: scores for split, scores in splits.items() if split in data.source.splits}
    counts = {split: artifacts.all_counts(scores) for split, scores in splits.items()}
    scored = {
        split: (artifacts.seen(data.source.splits[split], trainer.world_size, len(found)), found)
        for split, found in counts.items()
    }
    if not trainer.is_global_zero:
        return
    overlapping = data.source.task == "overlapping"
    artifacts.write_counts(folder / "images.csv", scored, data.source.classes, overlapping)
    samples = {split: data.samples(split) for split in splits}
    artifacts.keep_pictures(
        folder / "predictions", samples, cfg.kept, data.source.colors, task.model, task.val_metrics.threshold
    )  # fmt: skip


def score(trainer: L.Trainer, task: SegmentationTask, data: DataModule) -> dict[str, float]:
    """Metrics of the best checkpoint on the validation split, and on the test split where there is one.

    A run too short to have validated is scored as it is, and kept as its own best. Where the threshold is
    to be the best one, validation chooses it, and the best checkpoint remembers.
    """
    checkpoints = cast(ModelCheckpoint, trainer.checkpoint_callback)
    best = Path(checkpoints.best_model_path or Path(str(checkpoints.dirpath)) / "best.ckpt")
    if checkpoints.best_model_path:
        task.load_state_dict(read_checkpoint(best)["state_dict"])
    else:
        trainer.save_checkpoint(best)
    validated = trainer.validate(task, datamodule=data, verbose=False)[0]
    if task.val_metrics.curve is not None:
        chosen = task.val_metrics.choose_threshold()
        task.test_metrics.threshold = chosen
        for checkpoint in (best, best.with_name("last.ckpt")):
            keep_threshold(checkpoint, chosen)
        log.info(f"threshold  {chosen:g}, the best Dice on the validation split; kept in the run")
        validated = trainer.validate(task, datamodule=data, verbose=False)[0]
    scores = {f"best/{k}": v for k, v in validated.items()}
    if "test" in data.source.splits:
        scores |= trainer.test(task, datamodule=data, verbose=False)[0]
    return scores


@rank_zero_only
def keep_threshold(checkpoint: Path, threshold: float) -> None:
    """Writes the threshold into a checkpoint, from where evaluate and predict take it; if it is there."""
    if not checkpoint.is_file():
        return
    content = read_checkpoint(checkpoint)
    content["seg"]["threshold"] = threshold
    write_checkpoint(checkpoint, content)
