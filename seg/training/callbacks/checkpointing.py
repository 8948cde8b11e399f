"""Callbacks for stopping and resuming: checkpoints, signals, mid-epoch position, averaged weights."""

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from seg.data.sampler import EpochSampler
from seg.runs.checkpoint import is_whole, write_checkpoint
from seg.training.loggers.metrics_logger import MetricsCSV

log = logging.getLogger("seg")
PATH_KEYS = ("best_model_path", "kth_best_model_path", "last_model_path")
# Ctrl-C; schedulers; SLURM with --signal=USR1; submitit
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
# warnings of SLURM and submitit before the time limit, after which the job may be submitted again
WARNING_SIGNALS = ("SIGUSR1", "SIGUSR2")


class PortableModelCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose state holds file names instead of paths.

    A run folder that was moved or copied thus resumes with its best score, which Lightning drops if the path
    has changed; and a checkpoint does not contain the path of a home folder.
    """

    @property
    def state_key(self) -> str:
        # The key in checkpoints, which must not follow the name of the class.
        return f"Checkpoints{super().state_key.removeprefix(type(self).__qualname__)}"

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {key: Path(state[key]).name for key in PATH_KEYS}
        best = {Path(file).name: score for file, score in state["best_k_models"].items()}
        return state | names | {"best_k_models": best, "dirpath": ""}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        files = {key: self.placed(state_dict[key]) for key in PATH_KEYS}
        best = {self.placed(name): score for name, score in state_dict["best_k_models"].items()}
        state = {**state_dict, **files, "best_k_models": best, "dirpath": self.dirpath}
        # Without an intact best checkpoint, the next validation becomes the best.
        if not all(file and is_whole(Path(file)) for file in best):
            none = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": ""}
            state |= none | {"kth_value": self.kth_value, "best_k_models": {}}
        super().load_state_dict(state)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of each epoch, even if ``max_time`` ended it before its first step.

        Before the first validation no best checkpoint is saved; Lightning would warn about the missing score.
        """
        # Lightning 2.6.6 skips a step that it saved already, and counts from zero in a resumed run; no public API
        self._last_global_step_saved = -1
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save a run that a signal stopped between two steps, but not one that failed."""
        if isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)

    def placed(self, name: str) -> str:
        """Return the path of a checkpoint of that name in this run's folder; empty for any other name.

        Lightning deletes the file that a new checkpoint replaces, so it must never lie elsewhere.
        """
        file = Path(name).name
        return str(Path(str(self.dirpath)) / file) if file.endswith(".ckpt") else ""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that replaces files atomically: a file is complete, or still the previous one.

    Lightning's own writes to the system's temporary folder and then copies across disks.

    Args:
        folder: run folder; nothing is written through a link out of it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()  # Lightning passes resolved paths

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(Path(path).absolute(), checkpoint, self.folder)


class GracefulStop(L.Callback):
    """Graceful stop on Ctrl-C and on a scheduler's signals.

    A context manager around the set-up, training and scoring of a run. During training, a signal stops the run
    after the current optimiser step and saves a checkpoint; all ranks stop after the same step, whichever of them
    received the signal. Before and after training, when no state would be lost, a signal raises KeyboardInterrupt
    at once, and so does a second Ctrl-C during training.

    Attributes:
        asked: number of the first signal received, replaced by a later warning of the scheduler; None: none.
        before: handler of each signal outside the context.
        training: True while the end of a step is still to come.
        recording: True while the end of the run is being recorded.
    """

    asked: int | None = None

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.training = False
        self.recording = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (s for s in signal.Signals if s.name in STOP_SIGNALS):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal: remember it, and stop now or after the current step.

        Raises:
            KeyboardInterrupt: outside training, and at a second Ctrl-C.
        """
        again = self.asked is not None
        if not again or signal.Signals(number).name in WARNING_SIGNALS:
            self.asked = number
        if self.recording or (again and number != signal.SIGINT):
            return
        if again or not self.training:
            raise KeyboardInterrupt
        # Printed rather than logged: jobs of a sweep log to their log.txt only.
        print(
            f"{signal.Signals(number).name}: stopping after this step, or after the validation; the run can be "
            "resumed from there; Ctrl-C stops at once",
            file=sys.stderr,
        )

    def reraise(self, error: BaseException) -> None:
        """End the process in the way of the signal received; return if there was none.

        Args:
            error: cause of the new exception.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after another signal, with code 128 + its number; or whatever submitit raises.
        """
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt from error
        if self.asked is not None:
            scheduler = self.before.get(self.asked)
            if callable(scheduler) and self.asked != signal.SIGTERM:
                scheduler(self.asked, None)  # submitit's handler requeues the job and exits
            raise SystemExit(128 + self.asked) from error

    def take_over(self) -> None:
        """Install the SIGTERM handler again, which Lightning replaces in each fit, validate and test."""
        if self.before:
            signal.signal(signal.SIGTERM, self.note)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.leave: Any = signal.getsignal(signal.SIGTERM)  # Lightning's
        self.take_over()
        self.training = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Stop only after an optimiser step, as checkpoints hold no gradients; the last step ends the epoch anyway.
        done = batch_idx + 1
        last = done >= trainer.num_training_batches or trainer.should_stop
        if done % trainer.accumulate_grad_batches == 0 and not last:
            self.stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training = False
        if self.asked_anywhere(trainer):
            raise KeyboardInterrupt  # the last epoch's checkpoint is saved already

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.take_over()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.take_over()

    def asked_anywhere(self, trainer: L.Trainer) -> bool:
        """Return True if any rank received a signal."""
        if trainer.world_size > 1:
            number = torch.tensor(self.asked or 0, device=trainer.strategy.root_device)
            self.asked = int(trainer.strategy.reduce(number, reduce_op="max")) or self.asked
        return self.asked is not None

    def stop(self, trainer: L.Trainer) -> None:
        """Make Lightning stop after this step or epoch if any rank received a signal."""
        if self.asked_anywhere(trainer):
            self.leave(signal.SIGTERM, None)


class ResumeMidEpoch(L.Callback):
    """Restores the state that Lightning 2.6.6 omits when it resumes a run.

    Early stopping: EarlyStopping restores its counts but not the decision to stop, so that a run interrupted while
    it was scored would train for another epoch.

    Rows of metrics.csv: those written after the checkpoint are written again, so the checkpoint has their number.

    Samples: an interrupted epoch continues with its remaining samples. Lightning would start with the first.

    Epochs: with ``max_steps`` set, ``loops/fit_loop.py`` (``restarting``, ``_iteration_based_training``) mistakes a
    finished epoch for an interrupted one and skips the next. No public option turns that off, so ``max_steps`` is
    hidden from the loop until it has restarted.

    Longer runs: the end of a finished run is taken back, as ``reopen_end`` says.

    Args:
        longer: True if the run is given a later end than its checkpoint knows.
        patience: new patience of early stopping; None: none.
    """

    max_steps = -1

    def __init__(self, longer: bool = False, patience: int | None = None) -> None:
        self.longer, self.patience = longer, patience

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["should_stop"] = trainer.should_stop
        tables = [one for one in trainer.loggers if isinstance(one, MetricsCSV)]
        checkpoint["rows"] = tables[0].written if tables else None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.longer:
            reopen_end(checkpoint, self.patience)
        trainer.should_stop = trainer.should_stop or checkpoint.get("should_stop", False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        self.max_steps = loop.max_steps
        if trainer.ckpt_path is not None:
            loop.max_steps = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop
        loop.epoch_loop.max_steps = self.max_steps
        done = loop.epoch_loop.batch_progress.current.ready
        loader = trainer.train_dataloader
        assert loader is not None and isinstance(loader.sampler, EpochSampler)
        if done < trainer.num_training_batches:
            loader.sampler.skip = done * loader.batch_size
        if loader.num_workers and trainer.global_step:
            # Workers prefetched batches of epoch 0 before Lightning set the epoch: fetch again.
            loader.sampler.set_epoch(cast(Any, loop.epoch_progress.current).processed)
            iter(cast(Any, loop._data_fetcher))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # With nothing left to train, the loop returns before it counts the last epoch.
        epochs = cast(Any, trainer.fit_loop.epoch_progress.current)
        epochs.completed = epochs.processed  # trainer.current_epoch, a column of metrics.csv
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps


def reopen_end(checkpoint: dict[str, Any], patience: int | None) -> None:
    """Change the state of a run that ended, so that it trains on.

    The decision to stop is dropped, and the counts of early stopping get the new ``patience``; None: they are dropped. An
    epoch that ended before its last batch continues with its remaining batches, as that of a run that a signal stopped.
    """
    checkpoint["should_stop"] = False
    callbacks = checkpoint["callbacks"]
    for key in [key for key, state in callbacks.items() if "wait_count" in state]:
        if patience is None:
            del callbacks[key]
        else:
            callbacks[key] |= {"patience": patience, "stopped_epoch": 0}
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    unfinished = not batches["is_last_batch"] and batches["current"]["completed"] > 0
    if unfinished and epochs["current"]["processed"] == epochs["current"]["started"]:
        for count in (epochs["current"], epochs["total"]):
            count["processed"] -= 1


class WeightAveraging(EMAWeightAveraging):
    """Exponential moving average of the weights, used by validation during training and by checkpoints.

    Differs from Lightning's: validation after training uses the weights that were loaded, such as those of the best
    checkpoint, instead of the last average; and a resumed run with nothing left to train also ends with the average.
    """

    @property
    def state_key(self) -> str:
        return "EMAWeightAveraging"  # Lightning's name, as in older checkpoints

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # With nothing left to train, on_train_end is not called.
        super().on_train_end(trainer, pl_module)
