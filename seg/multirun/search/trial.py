"""One trial of a search: a run of seg.train with the values chosen, and what it is worth."""

import math
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import optuna
import torch
from optuna.trial import TrialState

from seg import hardware
from seg.cli.compose import composed, one_line, parse
from seg.cli.conf_files import is_hydras
from seg.data.datamodule import DataModule
from seg.models.contract import full_logits
from seg.models.profiling import median_seconds
from seg.multirun.search.space import Axis, short_names
from seg.multirun.search.study import MEASURED
from seg.multirun.sweeper import note_failure, own_surroundings
from seg.runs import load, records
from seg.runs.folder import as_folder
from seg.runs.run_info import Asked
from seg.training.fit import Pruned
from seg.training.run import train


class Scores(L.Callback):
    """Tells the study the score of each validation, and ends a run that it would end before the next epoch.

    Args:
        trial: of the study.
        objective: the score's name.
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
        if self.behind:  # not before: now the checkpoint of the epoch is written
            raise Pruned(f"its {self.objective} lies behind after epoch {trainer.current_epoch}")


@dataclass(frozen=True)
class Attempt:
    """How trials are made.

    Attributes:
        axes: what is searched.
        fixed: words that each trial has beside.
        objectives: what it is judged by.
        data: as each trial has it; its largest validation image is of the size that is timed.
        study: name of it.
        folder: of the study.
    """

    axes: list[Axis]
    fixed: list[str]
    objectives: list[str]
    data: DataModule
    study: str
    folder: Path

    def run(self, trial: optuna.Trial) -> tuple[TrialState, list[float] | None]:
        """How the trial ended, and its values if it did so well; one that failed keeps its error."""
        short, chosen = short_names(self.axes), trial.params
        tried = [f"{short[axis.name]}={axis.brief(chosen[axis.name])}" for axis in self.axes]
        name = f"{trial.number:03d}-{','.join(tried)}"
        folder = self.folder / as_folder(name)
        words = [*self.fixed, *(axis.word(chosen[axis.name]) for axis in self.axes)]
        trial.set_user_attr("folder", folder.name)
        with own_surroundings(words):
            try:
                return TrialState.COMPLETE, self.trained(trial, words, name, folder)
            except Pruned:
                return TrialState.PRUNED, None
            except Exception as error:  # the next trial may do better
                note_failure(folder, error)
                trial.set_user_attr("error", f"{type(error).__name__}: {one_line(error)}")
                return TrialState.FAIL, None

    def trained(
        self, trial: optuna.Trial, words: list[str], name: str, folder: Path
    ) -> list[float]:
        """The value of each objective.

        Raises:
            ValueError: when one is nan.
        """
        cfg, _, choices = composed("train", words)
        if cfg.trainer.get("devices") == "auto":
            cfg.trainer.devices = 1
        own = [o.input_line or "" for o in parse(words) if not is_hydras(o)]
        chosen = {group: choice for group, choice in choices.items() if "/" not in group and choice}
        asked = Asked(name, own, chosen, self.study, trial.number, folder, silent=True)
        prunes = len(self.objectives) == 1 and self.objectives[0] not in MEASURED
        scores = train(cfg, [Scores(trial, self.objectives[0])] if prunes else [], asked)
        accelerator = hardware.pick_accelerator(cfg.trainer.accelerator)
        values = [self.value(one, scores, folder, accelerator) for one in self.objectives]
        for objective, value in zip(self.objectives, values, strict=True):
            if math.isnan(value):
                raise ValueError(f"{objective} is nan")
        return values

    def value(
        self, objective: str, scores: dict[str, float], folder: Path, accelerator: str
    ) -> float:
        """Of one objective; scores are those of the best checkpoint."""
        if objective == "parameters":
            return records.read_json(folder / "run.json")["parameters"]
        if objective == "milliseconds":
            size = max(self.data.sizes["val"])
            return milliseconds(folder, (self.data.intensity.channels, *size), accelerator)
        return scores[f"best/{objective}"]


def milliseconds(folder: Path, shape: tuple[int, ...], accelerator: str) -> float:
    """Median time of a forward of one image (C, H, W) in float32, by the run's best checkpoint."""
    device = hardware.torch_device(accelerator)
    model = load.load(folder).model.to(device)
    image = torch.rand(1, *shape, device=device)
    with torch.inference_mode():
        seconds = median_seconds([lambda: full_logits(model, image)], device=device)
    return 1000 * seconds[0]
