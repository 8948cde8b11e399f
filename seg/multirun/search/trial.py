"""Trial of a search: a run of seg.train with the chosen values, and its objectives."""

import math
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import optuna
import torch
from optuna.trial import TrialState

from seg import hardware
from seg.cli.compose import compose_config, one_line, parse_overrides
from seg.cli.conf_files import is_hydra_override
from seg.data.datamodule import DataModule
from seg.models.contract import same_size_logits
from seg.models.profiling import measure_seconds
from seg.multirun.search.space import SearchDimension, short_names
from seg.multirun.search.study import MEASURED_OBJECTIVES
from seg.multirun.sweeper import isolate_job, record_failure
from seg.runs import load
from seg.runs.folder import folder_name
from seg.runs.record import RECORD_FILE, read_record
from seg.runs.run_info import RunInfo
from seg.training.fit import RunPruned
from seg.training.run import train


class PruningCallback(L.Callback):
    """Callback that reports the score of each validation to Optuna, and prunes the run when Optuna decides so.

    Args:
        trial: of the study.
        objective: key of the score.

    Raises:
        RunPruned: at the start of the next epoch.
    """

    def __init__(self, trial: optuna.Trial, objective: str) -> None:
        self.trial, self.objective = trial, objective
        self.behind = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        self.trial.report(float(trainer.callback_metrics[self.objective]), epoch)
        self.behind = self.trial.should_prune()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.behind:  # the checkpoint of the previous epoch is written by now
            raise RunPruned(f"pruned by its {self.objective} after epoch {trainer.current_epoch}")


@dataclass(frozen=True)
class TrialRunner:
    """Runner of trials.

    Attributes:
        axes: searched options.
        fixed: overrides that all trials share.
        objectives: names.
        data: of a trial; the largest validation image gives the size that is timed.
        study: name of the study.
        folder: of the study.
    """

    axes: list[SearchDimension]
    fixed: list[str]
    objectives: list[str]
    data: DataModule
    study: str
    folder: Path

    def run(self, trial: optuna.Trial) -> tuple[TrialState, list[float] | None]:
        """Train a trial; an error is recorded in the trial and its run folder.

        Returns:
            The state in which the trial ended, and its objectives if it completed.
        """
        # Name the run by its values.
        short, chosen = short_names(self.axes), trial.params
        tried = [f"{short[axis.name]}={axis.brief(chosen[axis.name])}" for axis in self.axes]
        name = f"{trial.number:03d}-{','.join(tried)}"
        folder = self.folder / folder_name(name)
        words = [*self.fixed, *(axis.word(chosen[axis.name]) for axis in self.axes)]
        trial.set_user_attr("folder", folder.name)
        # Train it; the search continues after a failure.
        with isolate_job(words):
            try:
                return TrialState.COMPLETE, self.trained(trial, words, name, folder)
            except RunPruned:
                return TrialState.PRUNED, None
            except Exception as error:
                record_failure(folder, error)
                trial.set_user_attr("error", f"{type(error).__name__}: {one_line(error)}")
                return TrialState.FAIL, None

    def trained(
        self, trial: optuna.Trial, words: list[str], name: str, folder: Path
    ) -> list[float]:
        """Train a run and return its objectives.

        Args:
            trial: of the study.
            words: overrides of the run.
            name: of the run.
            folder: of the run.

        Raises:
            ValueError: if an objective is nan.
        """
        # Config of the trial, on one device
        composed = compose_config("train", words)
        cfg, choices = composed.cfg, composed.choices
        if cfg.trainer.get("devices") == "auto":
            cfg.trainer.devices = 1
        # Facts of the run's record: overrides, choices of config groups, study and trial
        own = [o.input_line or "" for o in parse_overrides(words) if not is_hydra_override(o)]
        chosen = {group: choice for group, choice in choices.items() if "/" not in group and choice}
        asked = RunInfo(name, own, chosen, self.study, trial.number, folder, silent=True)
        # Optuna prunes only studies of one objective, and it must be measured after each epoch
        prunes = len(self.objectives) == 1 and self.objectives[0] not in MEASURED_OBJECTIVES
        scores = train(cfg, [PruningCallback(trial, self.objectives[0])] if prunes else [], asked)
        # A nan fails the trial, with an error that names the objective
        accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
        values = [self.value(name, scores, folder, accelerator) for name in self.objectives]
        for objective, value in zip(self.objectives, values, strict=True):
            if math.isnan(value):
                raise ValueError(f"{objective} is nan")
        return values

    def value(
        self, objective: str, scores: dict[str, float], folder: Path, accelerator: str
    ) -> float:
        """Return the value of an objective, from the scores of the best checkpoint or measured."""
        if objective == "parameters":
            return float(read_record(folder / RECORD_FILE).parameters or math.nan)
        if objective == "milliseconds":
            size = max(self.data.sizes["val"])
            return measure_milliseconds(folder, (self.data.intensity.channels, *size), accelerator)
        return scores[f"best/{objective}"]


def measure_milliseconds(folder: Path, shape: tuple[int, ...], accelerator: str) -> float:
    """Measure the median time, ms, of a float32 forward pass of one image of ``shape`` (C, H, W)."""
    device = hardware.torch_device(accelerator)
    model = load.load_run(folder).model.to(device)
    image = torch.rand(1, *shape, device=device)
    with torch.inference_mode():
        seconds = measure_seconds([lambda: same_size_logits(model, image)], device=device)
    return 1000 * seconds[0]
