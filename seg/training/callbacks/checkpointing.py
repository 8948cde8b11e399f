"""What makes a run resumable: its checkpoints, the way a signal stops it, and the state that Lightning leaves out."""

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
from seg.training.loggers import MetricsCSV

log = logging.getLogger("seg")
FILES = ("best_model_path", "kth_best_model_path", "last_model_path")
# Ctrl-C; schedulers; SLURM where it is asked; submitit
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
WARNINGS = (
    "SIGUSR1",
    "SIGUSR2",
)  # those of SLURM and submitit, after which the job may be submitted again


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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of each epoch, also of one that time ended before its first step.

        Nothing is saved as the best before the first validation, of which Lightning would warn.
        """
        # Lightning 2.6.6 saves once for each step, counted from zero in a resumed run; nothing public changes that
        self._last_global_step_saved = -1
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Where that is asked for: save a run that was stopped between two steps, not one that went wrong."""
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

    Args:
        folder: of the run, in which no link is written through.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()  # as Lightning names the files in it

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(Path(path).absolute(), checkpoint, self.folder)


class Interrupts(L.Callback):
    """Signals that end a run: Ctrl-C, and those that a scheduler sends.

    As a context manager it handles them while a run is set up, trained and scored. During training, a signal stops
    the run after the current optimiser step, and a checkpoint is saved there; of several processes all stop after
    the same step, whichever was signalled. Before training and while the run is scored, where no state would be
    lost, a signal raises KeyboardInterrupt at once, and so does a second Ctrl-C during training.

    Attributes:
        asked: the signal that came; the first, but that a scheduler's warning replaces it.
        before: handler of each signal outside the context.
    """

    asked: int | None = None

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.training = False  # whether the end of a step is still to come
        self.recording = False  # whether the end of the run is being written down

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (s for s in signal.Signals if s.name in SIGNALS):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        again = self.asked is not None
        if not again or signal.Signals(number).name in WARNINGS:
            self.asked = number
        if self.recording or (again and number != signal.SIGINT):
            return
        if again or not self.training:
            raise KeyboardInterrupt
        print(
            f"{signal.Signals(number).name}: stopping after this step, or after the validation; the run can be "
            "resumed from there; Ctrl-C stops at once",
            file=sys.stderr,
        )  # also of a job whose own lines go to its log.txt alone

    def reraise(self, error: BaseException) -> None:
        """End the process as the signal asks, if one came.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after another signal, with 128 and its number; or whatever submitit raises.
        """
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt from error
        if self.asked is not None:
            scheduler = self.before.get(self.asked)
            if callable(scheduler) and self.asked != signal.SIGTERM:
                scheduler(self.asked, None)  # submitit's, which submits the job again and exits
            raise SystemExit(128 + self.asked) from error

    def take_over(self) -> None:
        """Handle SIGTERM alone. Lightning sets a handler of its own in each fit, validate and test."""
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
        done = batch_idx + 1
        last = (
            done >= trainer.num_training_batches or trainer.should_stop
        )  # the epoch ends in order
        if (
            done % trainer.accumulate_grad_batches == 0 and not last
        ):  # a gradient is in no checkpoint
            self.stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training = False
        if self.asked_anywhere(trainer):
            raise KeyboardInterrupt  # nothing to save: the last epoch's checkpoint is there

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.take_over()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.take_over()

    def asked_anywhere(self, trainer: L.Trainer) -> bool:
        """Whether any of the processes that train together was signalled."""
        if trainer.world_size > 1:
            number = torch.tensor(self.asked or 0, device=trainer.strategy.root_device)
            self.asked = int(trainer.strategy.reduce(number, reduce_op="max")) or self.asked
        return self.asked is not None

    def stop(self, trainer: L.Trainer) -> None:
        """Have Lightning stop after this step or epoch, if a signal came."""
        if self.asked_anywhere(trainer):
            self.leave(signal.SIGTERM, None)


class Resumption(L.Callback):
    """Restores what Lightning 2.6.6 leaves out when a run is resumed.

    The decision to stop: the counts of EarlyStopping are restored, but not that they ended the training, so that a
    run stopped while it was scored would train for another epoch.

    The rows of metrics.csv: those written after the checkpoint are written again, so the checkpoint has their number.

    The samples: an epoch is continued with those still to come. Lightning would begin with the first.

    The epoch: with ``max_steps`` set, ``loops/fit_loop.py`` (``restarting``, ``_iteration_based_training``) takes an
    epoch that was finished for one to be continued and skips the next. Nothing public turns that off, so
    ``max_steps`` is hidden from the loop until it has restarted.
    """

    max_steps = -1

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["should_stop"] = trainer.should_stop
        tables = [one for one in trainer.loggers if isinstance(one, MetricsCSV)]
        checkpoint["rows"] = tables[0].written if tables else None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
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
            # they have fetched ahead as if the run began, before Lightning tells the epoch
            loader.sampler.set_epoch(cast(Any, loop.epoch_progress.current).processed)
            iter(cast(Any, loop._data_fetcher))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # where nothing was left to train, the loop returned before it counted the last epoch
        epochs = cast(Any, trainer.fit_loop.epoch_progress.current)
        epochs.completed = epochs.processed  # trainer.current_epoch, a column of metrics.csv
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps


class Average(EMAWeightAveraging):
    """Moving average of the weights, which validation during training and the checkpoints use.

    Differs from Lightning's: after training, validation sees the weights that it is given, such as those of the best
    checkpoint, and not the last average instead; and a resumed run that has nothing left to train ends with the
    average too.
    """

    @property
    def state_key(self) -> str:
        return "EMAWeightAveraging"  # as in checkpoints that were written before this class

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # where nothing was left to train, on_train_end was not called
        super().on_train_end(trainer, pl_module)
