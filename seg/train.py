"""Trains a network: ``python -m seg.train model=unetpp loss=bce_dice``.

Composes the run from conf/, trains, scores the best checkpoint, and leaves a run folder that every
other command reads. ``-m`` with comma-separated values sweeps.
"""

import logging
import math
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seg import hardware, kept, provenance, reports, runs, sweep
from seg.asked import Asked, typed
from seg.checkpoints import Checkpoints, Interrupts, MidEpoch
from seg.cli import UserError, build, command, one_line, plain
from seg.console import first_process, logging_to, quiet
from seg.data.faults import KINDS
from seg.data.module import DataModule
from seg.data.splits import split_hash
from seg.logits import num_logits
from seg.losses.balance import balance
from seg.losses.sums import weight_map
from seg.models import NestedUNet, Peer, UNet
from seg.resume import continued, resumed
from seg.task import SegmentationTask
from seg.tracking import MetricsCSV, TrackedRun, finish, start

log = logging.getLogger("seg")
Part = TypeVar("Part", bound=L.Callback)


class Pruned(Exception):
    """Raised by a callback that ends a run which isn't worth going on with."""


def train(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: Asked | None = None
) -> dict[str, float]:
    """Trains what the config says and returns the final metrics; all it wrote lies in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        callbacks: more of Lightning's; one that raises ``Pruned`` ends the run, whose status tells so.
        asked: by default what the command line says.
    """
    asked = asked or typed(cfg)
    quiet(speaks=asked.job is None)
    L.seed_everything(cfg.seed, verbose=False)
    hardware.pick_accelerator(cfg.trainer.accelerator)  # an error now, if it isn't there
    data = open_data(cfg)
    source, overlapping = data.source, data.source.task == "overlapping"
    cfg.loss = balanced(cfg.loss, data)
    config = plain(cfg)
    metrics = build(
        cfg.metrics, "metrics", classes=source.classes, overlapping=overlapping,
        threshold=0.5 if cfg.threshold is None else cfg.threshold,
    )  # fmt: skip
    card = {
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
        "task": source.task,
        "threshold": metrics.threshold,
    }
    task = SegmentationTask(
        build(cfg.model, "model"),
        build(cfg.loss, "loss"),
        metrics,
        build(cfg.optim, "optim"),
        build(cfg.schedule, "schedule"),
        cfg.seed,
        card,
        config["head_weights"],
    )
    check_head_weights(config["head_weights"], task.model)
    check_average(task.model, overlapping)
    check_loss(task.loss, cfg.model.num_classes, overlapping)
    if (weights := weight_map(task.loss)) is not None:
        data.weigh(weights.gaps)
    fit_crops(data, task.model)
    taken = cfg.init and runs.start_from(task.model, cfg.init)
    folder = runs.share_folder(Path(cfg.outputs), asked.name, asked.folder)
    with runs.alone(folder, "seg.train"), logging_to(folder / "log.txt"):
        try:
            trainer, pictures = prepare(cfg, config, folder, asked, task, data, taken, callbacks)
        except BaseException:
            if asked.checkpoint is None:
                shutil.rmtree(folder, ignore_errors=True)  # nothing was trained
            raise
        return run(cfg, folder, asked, task, data, trainer, pictures)


def open_data(cfg: DictConfig) -> DataModule:
    """The data of a run; the model's config is told its channels and classes."""
    source = build(cfg.data, "data")
    data: DataModule = build(
        cfg.loader, "loader", source=source, augment=build(cfg.augment, "augment"), seed=cfg.seed
    )
    cfg.model.in_channels = data.intensity.channels
    cfg.model.num_classes = num_logits(
        len(source.classes), cfg.two_class_logits, source.task == "overlapping"
    )
    return data


def balanced(loss: DictConfig, data: DataModule) -> DictConfig:
    """The loss's config with numbers where it says ``auto``, from the training split.

    Raises:
        UserError: when that split can't tell.
    """
    source, node = data.source, plain(loss)
    overlapping = source.task == "overlapping"
    try:
        return OmegaConf.create(balance(node, data.shares, source.classes, overlapping))
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def check_head_weights(weights: list[float] | None, model: nn.Module) -> None:
    """Raises UserError unless there is a weight for each head that is trained, or none at all."""
    if weights is None:
        return
    if not isinstance(weights, list) or not all(
        isinstance(w, int | float) and math.isfinite(w) for w in weights
    ):
        raise UserError(f"head_weights={weights}: a list of numbers is needed, [1,1,1,2], or null")
    heads = len(model.heads) if isinstance(model, NestedUNet) and model.deep_supervision else 1
    if heads == 1 or len(weights) != heads or min(weights) < 0 or sum(weights) == 0:
        raise UserError(
            f"head_weights={weights}: this network trains {heads} head{'s' * (heads > 1)}; give null, or "
            "with deep supervision as many weights of 0 or more, not all 0"
        )


def check_average(model: nn.Module, overlapping: bool) -> None:
    """Raises UserError when heads would be averaged that can't be."""
    if overlapping and isinstance(model, NestedUNet) and model.output == "average":
        raise UserError(
            "model.output=average: heads are averaged as a softmax; overlapping classes have none"
        )


def fit_crops(data: DataModule, model: nn.Module) -> None:
    """Gives a network of valid convolutions crops with their surroundings: loader.crop is what is judged."""
    if not (isinstance(model, UNet) and model.context):
        return
    if data.crop is None:
        raise UserError("loader.crop=null: model.padding=valid needs crops; give loader.crop=388")
    data.widen(model.input_side(data.crop), model.context)


def check_loss(loss: nn.Module, num_logits: int, overlapping: bool) -> None:
    """Raises UserError when the loss can't judge such logits; better now than at the first step."""
    logits = torch.zeros(1, num_logits, 2, 2)
    try:
        loss(logits, (logits if overlapping else logits[:, 0]).long())
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def prepare(
    cfg: DictConfig,
    config: dict,
    folder: Path,
    asked: Asked,
    task: SegmentationTask,
    data: DataModule,
    taken: str | None,
    more: Sequence[L.Callback],
) -> tuple[L.Trainer, reports.Pictures]:
    """The Trainer with its callbacks and loggers, once the run is announced."""
    pictures = reports.Pictures(
        data.samples("val"),
        cfg.panels,
        data.source.colors,
        folder / "panels",
        task.val_metrics.threshold,
    )
    checkpoints = folder / "checkpoints"
    callbacks = [
        *more,
        Checkpoints(
            checkpoints, "best", monitor="val/dice", mode="max", enable_version_counter=False
        ),
        Checkpoints(checkpoints, "last", enable_version_counter=False, save_on_exception=True),
        reports.Lines(),
        MidEpoch(),
        Interrupts(),
        pictures,
        *([reports.progress_bar()] if reports.on_terminal() and asked.job is None else []),
    ]
    trainer: L.Trainer = build(cfg.trainer, "trainer", callbacks=callbacks)
    announce(cfg, asked.name, task, data, taken)
    runs.write_config(folder / "config.yaml", config)
    followed = TrackedRun(
        asked.name, folder, config, parameters(task.model), asked.group, asked.job, asked.choices
    )
    loggers = start(cfg.logger, followed) if first_process() else []
    until = None
    if asked.checkpoint is not None:
        until = runs.read_checkpoint(asked.checkpoint)["global_step"]
    trainer.loggers = [MetricsCSV(folder / "metrics.csv", until), *loggers]
    return trainer, pictures


def run(
    cfg: DictConfig,
    folder: Path,
    asked: Asked,
    task: SegmentationTask,
    data: DataModule,
    trainer: L.Trainer,
    pictures: reports.Pictures,
) -> dict[str, float]:
    """Fits, scores the best checkpoint and writes what came out; run.json tells how it ended."""
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
    if asked.checkpoint is not None:
        record = continued(folder, record)
    provenance.write_beside(folder, data.digests)
    runs.write_json(folder / "run.json", record | {"status": "running"})
    if asked.folder is None:
        runs.point_latest(folder)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=asked.checkpoint, weights_only=True)
        minutes = part(trainer, reports.Lines).seconds / 60
        scores = score(trainer, task, data)
        record["threshold"] = task.val_metrics.threshold
        keep(cfg, folder, task, data, trainer)
    except BaseException as error:
        how = {"status": ended(error), "error": f"{type(error).__name__}: {one_line(error)}"}
        runs.write_json(folder / "run.json", record | how)
        finish(trainer.loggers, how["status"], {})
        if part(trainer, Interrupts).asked == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise
    facts = {"minutes": minutes, "steps": trainer.global_step}
    finish(trainer.loggers, "finished", scores | facts | {"parameters": parameters(task.model)})
    hardware.part()
    if trainer.is_global_zero:
        pictures.threshold = task.val_metrics.threshold
        pictures.write(task.model)
        done = {"status": "finished", "minutes": minutes, "steps": trainer.global_step}
        runs.write_json(folder / "run.json", record | done | {"metrics": scores})
        conclude(folder, scores, data, minutes)
    return scores


def part(trainer: L.Trainer, kind: type[Part]) -> Part:
    """The callback of that class."""
    return next(c for c in cast(Any, trainer).callbacks if isinstance(c, kind))


def parameters(model: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in model.parameters())


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
    scored = {
        split: (kept.seen(data.source.splits[split], trainer.world_size), kept.all_counts(scores))
        for split, scores in splits.items()
    }
    if not trainer.is_global_zero:
        return
    overlapping = data.source.task == "overlapping"
    kept.write_counts(folder / "images.csv", scored, data.source.classes, overlapping)
    samples = {split: data.samples(split) for split in splits}
    kept.keep_pictures(
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
        task.load_state_dict(runs.read_checkpoint(best)["state_dict"])
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
    content = runs.read_checkpoint(checkpoint)
    content["seg"]["threshold"] = threshold
    runs.write_checkpoint(checkpoint, content)


def announce(
    cfg: DictConfig, name: str, task: SegmentationTask, data: DataModule, taken: str | None
) -> None:
    """What trains on what: the first lines of a run."""
    splits = ", ".join(f"{len(n)} {s}" for s, n in data.source.splits.items())
    sizes = sorted({size for split in data.sizes.values() for size in split})
    span = f"{sizes[0][0]}x{sizes[0][1]}" + (
        f" to {sizes[-1][0]}x{sizes[-1][1]}" if len(sizes) > 1 else ""
    )
    accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
    precision, why = hardware.pick_precision(cfg.trainer.precision, accelerator)
    log.info(f"run        {name}, seed {cfg.seed}")
    network = task.model.network if isinstance(task.model, Peer) else task.model
    log.info(
        f"model      {type(network).__name__}, {parameters(task.model) / 1e6:.2f} M parameters"
    )
    if isinstance(task.model, UNet) and task.model.context and data.crop:
        side = task.model.input_side(data.crop)
        inner = side - 2 * task.model.context
        log.info(f"crops      {side}x{side} px go in, the {inner}x{inner} in their middle come out")
    if data.warnings:
        kinds = list(dict.fromkeys(KINDS[fault.kind].heading for fault in data.warnings))
        more = f" and {len(kinds) - 2} other kinds" if kinds[2:] else ""
        log.info(f"warnings   {'; '.join(kinds[:2])}{more}: python -m seg.check tells more")
    if data.focus:
        log.info(f"sampling   {data.sampling}")
    if taken:
        log.info(f"init       {taken}")
    log.info(
        f"data       {type(data.source).__name__}: {splits}; {span} px, {data.intensity.channels} channel(s); "
        f"classes {', '.join(data.source.classes)}"
    )
    log.info(f"hardware   {accelerator}, precision {precision} ({why})")


def conclude(folder: Path, scores: dict[str, float], data: DataModule, minutes: float) -> None:
    """The closing table and what a user wants next."""
    shown = shlex.quote(str(runs.relative(folder)))
    for prefix, title in (("best/val/", "validation, best checkpoint"), ("test/", "test")):
        if f"{prefix}dice" in scores:
            log.info(
                "", extra={"table": reports.score_table(title, scores, data.source.classes, prefix)}
            )
            log.info(reports.score_line(scores, data.source.classes, prefix))
            if any(f"{prefix}{name}" in scores for name in reports.BORDERS):
                table = reports.border_table(scores, data.source.classes, prefix)
                log.info("", extra={"table": table})
    log.info(
        f"trained in {minutes:.1f} minutes; run folder {shown}, pictures {shown}/panels/all.png"
    )
    log.info("next:")
    log.info(f"  python -m seg.evaluate run={shown}")
    log.info(f"  python -m seg.predict run={shown} input=IMAGES output=PREDICTIONS")


@command("train")
def main(cfg: DictConfig) -> None:
    if sweep.in_sweep():
        sweep.job(cfg, train)
    elif cfg.resume is not None:
        config, asked = resumed(cfg)
        train(config, asked=asked)
    else:
        train(cfg)


if __name__ == "__main__":
    main()
