"""Memory, time and disk that a training needs, measured by a few of its steps; no file is written."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from seg import files
from seg.cli.compose import instantiate_node
from seg.data.datamodule import DataModule
from seg.errors import UserError
from seg.hardware import pick_accelerator, uses_one_device
from seg.runs.machine import memory_gib
from seg.training.build import epoch_steps
from seg.training.data import TrainerData
from seg.training.resume import option_amount
from seg.training.schedules import Course, Segment
from seg.training.task import SegmentationTask

STEPS, MOST_STEPS = 2, 50  # that are run: at least, and at most until the seconds are over
GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """Demand of a training.

    Attributes:
        steps: number of steps that were run.
        step_seconds: s of a step, loading of its batch included, without the first one.
        image_seconds: s of a validation image.
        memory: peak, bytes: of the GPU's memory, or else of the process; None: unknown.
        image_memory: bytes that images in memory will take beyond those that are there already.
        weights: bytes of the weights in a checkpoint.
        state: bytes of the optimiser's state in a checkpoint.
    """

    steps: int
    step_seconds: float
    image_seconds: float
    memory: int | None
    image_memory: int
    weights: int
    state: int

    @property
    def peak(self) -> int | None:
        """Peak memory of the whole training, bytes."""
        return None if self.memory is None else self.memory + self.image_memory


class StepTimer(L.Callback):
    """Ends the training after at least two steps, and takes the times of the steps and of a validation image.

    Args:
        seconds: after which no further step is begun.

    Attributes:
        durations: s of each step, with the loading of its batches.
        validated: s of the last validation batch.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.durations, self.validated = seconds, [], 0.0

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        self.mark = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == len(self.durations):  # the batch is not the last one of its step
            return
        wait_for_device(trainer)
        now = time.perf_counter()
        self.durations.append(now - self.mark)
        self.mark = now
        trainer.should_stop = (
            len(self.durations) >= STEPS and sum(self.durations[1:]) >= self.seconds
        )

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.mark = time.perf_counter()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        wait_for_device(trainer)
        self.validated = time.perf_counter() - self.mark


def wait_for_device(trainer: L.Trainer) -> None:
    """Wait until a GPU has done its work, so that a clock can be read."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()


def measure_demand(
    cfg: DictConfig, task: SegmentationTask, data: DataModule, seconds: float = 3.0
) -> Demand:
    """Run at least two steps of a training and validate one image, and return the demand.

    Args:
        cfg: resolved config of the run.
        task: network, loss and metrics.
        data: all splits.
        seconds: of steps, after which no further one is begun.

    Raises:
        UserError: if the training has several devices.
    """
    if not uses_one_device(cfg.trainer.get("devices", 1), cfg.trainer.get("num_nodes", 1)):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: the demand of one device is measured; give trainer.devices=1"
        )
    timer = StepTimer(seconds)
    batches = MOST_STEPS * cfg.trainer.get("accumulate_grad_batches", 1)
    few = {"limit_train_batches": batches, "limit_val_batches": 1, "max_time": None}
    node = OmegaConf.merge(
        cfg.trainer, few, {"max_epochs": STEPS, "max_steps": -1, "check_val_every_n_epoch": 1}
    )
    trainer: L.Trainer = instantiate_node(cast(DictConfig, node), "trainer", callbacks=[timer])
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    task.course = Course(task.schedule, [Segment(0, STEPS * batches, 0.0)])
    trainer.fit(task, datamodule=TrainerData(data))
    timed = timer.durations[1:]  # the first step also makes buffers and the optimiser's state
    state = cast(Any, trainer.optimizers[0]).state.values()
    return Demand(
        len(timer.durations),
        step_seconds=sum(timed) / len(timed),
        image_seconds=timer.validated / data.eval_batch_size,
        memory=torch.cuda.max_memory_allocated() if on_gpu else peak_process_memory(),
        image_memory=0 if on_gpu else missing_images(data),
        weights=sum(t.nbytes for t in task.state_dict().values()),
        state=sum(t.nbytes for values in state for t in values.values() if torch.is_tensor(t)),
    )


def missing_images(data: DataModule) -> int:
    """Return the bytes that images will take in memory beyond those that are there, if all fit."""
    cache = data.image_cache
    if not cache.open or not cache.kept or cache.folder is not None:
        return 0
    images = sum(len(names) for names in data.source.splits.values())
    total = cache.size * images // len(cache.kept)
    return total - cache.size if total <= cache.memory else 0


def peak_process_memory() -> int | None:
    """Return the peak memory of this process, bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(accelerator: str) -> int | None:
    """Return the memory of the GPU, or else of the machine, bytes; None if unknown."""
    if pick_accelerator(accelerator) == "gpu":
        return torch.cuda.get_device_properties(0).total_memory
    gib = memory_gib()
    return None if gib is None else int(gib * GIB)


def training_seconds(cfg: DictConfig, data: DataModule, demand: Demand) -> tuple[int, float]:
    """Return the number of steps of a training, and its seconds with validations and the final scores."""
    splits, trainer = data.source.splits, cfg.trainer
    epoch = epoch_steps(trainer, data, 1)
    validation = validation_images(cfg, data) * demand.image_seconds
    period = epoch * trainer.get("check_val_every_n_epoch", 1)
    # Scores of the best checkpoint: twice with a chosen threshold; then the test split, and pictures.
    pictures = cfg.panels + min(cfg.save_predictions, len(splits["val"]))
    rounds = 1 if cfg.threshold is None or isinstance(cfg.threshold, float) else 2
    final = rounds * validation + (pictures + len(splits.get("test", ()))) * demand.image_seconds
    # The end: epochs, steps or time, whichever comes first.
    limits = [epoch * trainer.max_epochs] if trainer.max_epochs != -1 else []
    limits += [trainer.max_steps] if trainer.get("max_steps", -1) != -1 else []
    mean = demand.step_seconds + validation / period  # s of a step with its share of a validation
    if trainer.get("max_time") is not None:
        limits.append(int(option_amount(trainer.max_time) / mean))
    steps = min(limits)
    return steps, steps * demand.step_seconds + steps // period * validation + final


def validation_images(cfg: DictConfig, data: DataModule) -> int:
    """Return the number of images of a validation."""
    images, limit = len(data.source.splits["val"]), cfg.trainer.get("limit_val_batches", 1.0)
    limited = limit * data.eval_batch_size if isinstance(limit, int) else int(images * limit)
    return min(images, limited)


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(files.nearest_existing(folder)).free
