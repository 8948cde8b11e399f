"""Run metadata that is not in the config: name, overrides, position in a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

DATA_LAYOUT_OPTIONS = tuple(  # options of the data's place and format on disk; left out of a run's name
    f"data.{option}="
    for option in (
        "root", "classes", "colors", "images", "masks", "table", "annotations", "pair_by", "pages", "mask_layers",
        "values", "palette", "ignore", "lists", "only_listed",
    )
)  # fmt: skip
# options that change nothing of what a network learns
NEUTRAL_OPTIONS = ("outputs", "name", "logger", "panels", "save_predictions", "save_checkpoints", "restart", "dry", "resume")  # fmt: skip
UNNAMED_OPTIONS = (
    *NEUTRAL_OPTIONS,
    "hydra",
    "trainer.max_",
    "loader.workers",
    *DATA_LAYOUT_OPTIONS,
)  # left out of a run's name


@dataclass(frozen=True)
class RunInfo:
    """Run metadata that is not in the config.

    Attributes:
        name: name of the run.
        overrides: words of the command line.
        choices: config group -> chosen file.
        group: name of the sweep or search that the run belongs to.
        job: number of the run in that sweep or search, from 0.
        folder: run folder; None: a new one below ``outputs``, named by time and ``name``.
        checkpoint: checkpoint from which a stopped run is resumed.
        silent: write messages to log.txt only, as the jobs of a sweep do.
        devices: indices of the devices reserved for this run; None: those of the config.
        changed: for a run that is made longer, option -> its value before and now.
        segments: recorded course of the learning rate, which the run repeats or continues; None: planned anew.
    """

    name: str
    overrides: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    job: int | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    silent: bool = False
    devices: list[int] | None = None
    changed: dict[str, list[Any]] = field(default_factory=dict)
    segments: list[list[Any]] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Return the metadata as run.json holds it."""
        return {
            k: v
            for k, v in asdict(self).items()
            if k not in ("folder", "checkpoint", "devices", "changed", "segments")
        }


def is_sweep_job() -> bool:
    """Return True in a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_info_from_hydra(cfg: DictConfig) -> RunInfo:
    """Return the metadata of the run that Hydra composed; without ``name=`` it is named by its overrides."""
    if not HydraConfig.initialized():
        return RunInfo(str(cfg.name or "run"))
    hydra = HydraConfig.get()
    words, choices = list(hydra.overrides.task), dict(hydra.runtime.choices)
    name = str(cfg.name or run_name(words, choices) or "default")
    return RunInfo(name, words, {k: v for k, v in choices.items() if "/" not in k and v})


def run_name(
    words: Sequence[str], choices: Mapping[str, str], skip: tuple[str, ...] = UNNAMED_OPTIONS
) -> str:
    """Return a name for a run: its overrides joined by ``-``, of a group only the chosen file.

    Args:
        words: overrides as typed, ``model=unet``.
        choices: config group -> chosen file.
        skip: beginnings of the overrides to leave out.
    """
    changed = [word.lstrip("+~") for word in words if not word.lstrip("+~").startswith(skip)]
    return "-".join(
        word.split("=", 1)[1] if word.split("=", 1)[0] in choices else word for word in changed
    )
