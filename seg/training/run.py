"""Train one run from its config."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from seg import files, hardware
from seg.cli.compose import build, plain
from seg.cli.validation import check_literal
from seg.display.console import first_process, logging_to, quiet
from seg.losses.weighted_sum import weight_map
from seg.runs import checkpoint, folder
from seg.runs.reader import naming
from seg.runs.run_info import Asked, typed
from seg.training import init_weights
from seg.training.build import (
    balanced,
    build_model,
    check_average,
    check_head_weights,
    check_loss,
    check_optim,
    check_trainer,
    fit_crops,
    open_data,
)
from seg.training.distributed import one_place
from seg.training.fit import fit
from seg.training.resume import resumed
from seg.training.task import SegmentationTask
from seg.version import __version__


def train(
    cfg: DictConfig, callbacks: Sequence[L.Callback] = (), asked: Asked | None = None
) -> dict[str, float]:
    """Trains what the config says and returns the final metrics; all it wrote lies in the run folder.

    Args:
        cfg: composed from conf/train.yaml.
        callbacks: more of Lightning's; one that raises ``Pruned`` ends the run, whose status tells so.
        asked: by default what the command line says.
    """
    if cfg.resume is None:
        return begin(cfg, callbacks, asked or typed(cfg))
    file = Path(str(cfg.resume)) / "config.yaml"
    cfg, asked = resumed(cfg)
    with naming(file):
        return begin(cfg, callbacks, asked)


def begin(cfg: DictConfig, callbacks: Sequence[L.Callback], asked: Asked) -> dict[str, float]:
    """Builds what a run needs, and fits; see ``train``."""
    quiet(speaks=not asked.silent)
    check_literal(plain(cfg))
    L.seed_everything(cfg.seed, verbose=False)
    hardware.pick_accelerator(cfg.trainer.accelerator)  # an error now, if it isn't there
    outputs = Path(cfg.outputs) if asked.folder is None else asked.folder.parent
    if asked.folder is None and first_process():
        files.check_writable(outputs, outputs, given=f"outputs={outputs}")
    data = open_data(cfg)
    source, overlapping = data.source, data.source.task == "overlapping"
    cfg.loss = balanced(cfg.loss, data)
    config = plain(cfg)
    metrics = build(
        cfg.metrics, "metrics", classes=source.classes, overlapping=overlapping,
        threshold=0.5 if cfg.threshold is None else cfg.threshold,
    )  # fmt: skip
    card = {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "config": config,
        "classes": source.classes,
        "colors": [list(c) for c in source.colors],
        "intensity": data.intensity.to_dict(),
        "task": source.task,
        "threshold": metrics.threshold,
    }
    task = SegmentationTask(
        build_model(cfg.model),
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
    check_optim(task)
    check_trainer(cfg.trainer, data)
    taken = cfg.init and init_weights.start_from(task.model, cfg.init)
    with (
        one_place(outputs, asked.name, asked.folder, asked.checkpoint) as place,
        folder.alone(place.folder, "seg.train"),
    ):
        asked = replace(asked, folder=place.folder, checkpoint=place.checkpoint)
        folder.lay_out(place.folder, anew=place.checkpoint is None)
        with logging_to(place.folder / "log.txt"):
            return fit(cfg, asked, task, data, taken, callbacks)
