"""What the command line says of a run beside its config: its name, and its place in a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

LAYOUT = tuple(  # options that say how data lies on disk; a run's name leaves them out
    f"data.{option}="
    for option in (
        "root", "classes", "colors", "images", "masks", "table", "annotations", "pair_by", "pages", "layers",
        "values", "palette", "ignore", "lists", "only_listed",
    )
)  # fmt: skip
FREE = (
    "outputs",
    "name",
    "logger",
    "panels",
    "kept",
    "fresh",
    "resume",
)  # nothing learnt follows from them
UNTOLD = (*FREE, "hydra", "trainer.max_", "loader.workers", *LAYOUT)  # left out of a run's name


@dataclass(frozen=True)
class Asked:
    """What is known of a run beside its config.

    Attributes:
        name: of the run.
        overrides: words of the command line.
        choices: the file chosen in each group.
        group: of the sweep or search that it belongs to.
        job: its number there.
        folder: the run's, where it is not to be made of time and name below ``outputs``.
        checkpoint: of the folder, from which the run goes on.
        silent: whether what it says goes to its log.txt alone, as one of many does.
        devices: indices of those that it has to itself, beside other runs; None: as its config says.
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

    @property
    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {
            k: v for k, v in asdict(self).items() if k not in ("folder", "checkpoint", "devices")
        }


def sweeping() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def typed(cfg: DictConfig) -> Asked:
    """What the command line says of a run; its name is made of what differs from the defaults."""
    if not HydraConfig.initialized():
        return Asked(str(cfg.name or "run"))
    hydra = HydraConfig.get()
    words, choices = list(hydra.overrides.task), dict(hydra.runtime.choices)
    name = str(cfg.name or named(words, choices) or "default")
    return Asked(name, words, {k: v for k, v in choices.items() if "/" not in k and v})


def named(words: Sequence[str], choices: Mapping[str, str], skip: tuple[str, ...] = UNTOLD) -> str:
    """The words that tell runs apart, of a group only what was chosen."""
    changed = [word.lstrip("+~") for word in words if not word.lstrip("+~").startswith(skip)]
    return "-".join(
        word.split("=", 1)[1] if word.split("=", 1)[0] in choices else word for word in changed
    )
