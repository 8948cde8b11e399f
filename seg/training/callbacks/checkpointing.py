"""What lets a run be stopped and taken up: its checkpoints, the interruption, the rest of an epoch."""

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from seg.data.sampler import EpochSampler
from seg.runs.checkpoint import is_whole, write_checkpoint

log = logging.getLogger("seg")
FILES = ("best_model_path", "kth_best_model_path", "last_model_path")
# Ctrl-C; schedulers; SLURM where it is asked; submitit
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Checkpoints(ModelCheckpoint):
    """A ModelCheckpoint whose state holds the names of its files, not their paths.

    So a run folder that was moved or copied resumes with its best score, which Lightning forgets when the
    path is another, and a checkpoint tells no home folder.
    """

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {key: Path(state[key]).name for key in FILES}
        best = {Path(file).name: score for file, score in state["best_k_models"].items()}
        return state | names | {"best_k_models": best, "dirpath": ""}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        files = {key: self.placed(state_dict[key]) for key in FILES}
        best = {self.placed(name): score for name, score in state_dict["best_k_models"].items()}
        state = {**state_dict, **files, "best_k_models": best, "dirpath": self.dirpath}
        if not all(is_whole(Path(file)) for file in best):  # the next validation is the best
            none = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": ""}
            state |= none | {"kth_value": self.kth_value, "best_k_models": {}}
        super().load_state_dict(state)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Where that is asked for: keeps a run that was stopped between two steps, not one that went wrong."""
        if isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)

    def placed(self, name: str) -> str:
        """The file of that name in this run's folder; nothing for none.

        Lightning deletes the one before it, which must be none elsewhere.
        """
        file = Path(name).name
        return str(Path(str(self.dirpath)) / file) if file.endswith(".ckpt") else ""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then puts it there, so that a file is whole or the one before.

    Lightning writes it into the system's temporary folder, from where on another disk it is copied.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(Path(path), checkpoint)


class Interrupts(L.Callback):
    """Ctrl-C, and what a scheduler sends, end a run after its step, or its validation, so that it can go on from there.

    Ctrl-C once more ends it at once. Of several processes all end after the same step, whichever was told.

    Attributes:
        asked: the signal that came.
        before: what would have been done about each signal otherwise.
    """

    asked: int | None = None

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self.leave: Any = signal.getsignal(signal.SIGTERM)  # Lightning's, which restores all
            for number in (s for s in signal.Signals if s.name in SIGNALS):
                self.before[number] = signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        print(
            "stops after this step, and can go on from there; Ctrl-C again stops at once",
            file=sys.stderr,
        )  # also of a job whose own lines go to its log.txt alone

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx + 1 < trainer.num_training_batches:
            self.stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop(trainer)

    def stop(self, trainer: L.Trainer) -> None:
        """Has Lightning leave, where any of the processes was asked to."""
        if trainer.world_size > 1:
            number = torch.tensor(self.asked or 0, device=trainer.strategy.root_device)
            self.asked = int(trainer.strategy.reduce(number, reduce_op="max")) or self.asked
        if self.asked is not None:
            self.leave(signal.SIGTERM, None)


class MidEpoch(L.Callback):
    """Goes on inside an epoch with the samples that were still to come; Lightning would begin with the first."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        loader = trainer.train_dataloader
        assert loader is not None and isinstance(loader.sampler, EpochSampler)
        if done < trainer.num_training_batches:
            loader.sampler.skip = done * loader.batch_size
        if loader.num_workers and trainer.global_step:
            # they have fetched ahead as if the run began, before Lightning tells the epoch
            loader.sampler.set_epoch(cast(Any, loop.epoch_progress.current).processed)
            iter(cast(Any, loop._data_fetcher))
