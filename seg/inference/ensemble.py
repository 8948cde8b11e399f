"""Several trained networks as one: those of a cross-validation, or any runs of one kind of data."""

import dataclasses
import functools
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from seg.data.normalization import Intensity
from seg.errors import RunError
from seg.inference.pruning import shallower
from seg.logits import average
from seg.models.contract import coarsest, full_logits
from seg.models.network import Extent, Network, receptive_field
from seg.runs import load as runs_load
from seg.runs import records
from seg.runs.folder import CROSSVAL
from seg.runs.load import LoadedRun
from seg.runs.safe_loading import CROSSVAL_LIMIT


class Ensemble(Network):
    """Networks that speak as one: its probabilities are the mean of theirs.

    Each member was trained with its own split's statistics, so the ensemble's input has those of none: it
    is the grey values as stored, as ``intensity`` says, and made in here into what each member alone gets.

    Args:
        members: networks of the same K.
        intensities: of each member: how grey values become its input.
        overlapping: whether classes overlap, each with a sigmoid of its own.

    Shape:
        image (B, C, H, W) as stored -> logits (B, K, H, W), any H and W; members of valid convolutions get
        their mirrored context.
    """

    normalizes = True
    low: Tensor
    span: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, members: Sequence[nn.Module], intensities: list[Intensity], overlapping: bool = False
    ) -> None:
        super().__init__()
        channels = intensities[0].channels
        self.intensity = Intensity(0.0, 1.0, [0.0] * channels, [1.0] * channels)
        self.members, self.overlapping = nn.ModuleList(members), overlapping
        self.clips = [one.clip for one in intensities]
        facts = {
            "low": [one.low for one in intensities],
            "span": [one.high - one.low or 1.0 for one in intensities],
            "mean": [one.mean for one in intensities],
            "std": [one.std for one in intensities],
        }
        for name, values in facts.items():  # (members, 1 or C, 1, 1)
            self.register_buffer(name, torch.tensor(values).reshape(len(members), -1, 1, 1))

    @property
    def name(self) -> str:
        return " + ".join(dict.fromkeys(cast(Network, member).name for member in self.members))

    @property
    def stride(self) -> int:
        """A multiple of each member's."""
        return math.lcm(*(coarsest(member, least=1) for member in self.members))

    def forward(self, image: Tensor) -> Tensor:
        heads = [
            full_logits(member, self.normalised(image, i)) for i, member in enumerate(self.members)
        ]
        return average(heads, self.overlapping)

    def receptive_field(self, outputs: Extent) -> Extent:
        """Of the member that sees most."""
        fields = (receptive_field(member, outputs) for member in self.members)
        return functools.reduce(operator.or_, fields)

    def normalised(self, image: Tensor, member: int) -> Tensor:
        """The input of a member: ``Intensity.scaled`` and ``normalised``, step by step, bit for bit."""
        scaled = (image - self.low[member]) / self.span[member]
        if self.clips[member]:
            scaled = scaled.clamp(0, 1)
        return (scaled - self.mean[member]) / self.std[member]


def load(run: str | Path | Sequence[str] | None, depth: int | None = None) -> LoadedRun:
    """A run, or an ensemble where ``run`` is the folder of a cross-validation or a list of runs.

    Args:
        run: run folder or checkpoint file, or several.
        depth: of the head of a UNet++ that is taken alone; None: what the run's config says.

    Raises:
        RunError: when a member can't be read, or members don't fit together.
    """
    if isinstance(run, Sequence) and not isinstance(run, str):
        if not run:
            raise RunError("run=[]: give at least one run")
        members = [shallower(runs_load.load(str(one)), depth) for one in run]
        name = Path(" + ".join(str(member.checkpoint) for member in members))
        seen = {image for member in members for image in trained(member)}
        return join(members, name, members[0].folder, seen)
    if run is not None and (Path(str(run)) / CROSSVAL).is_file():
        return load_folds(Path(str(run)), depth)
    return shallower(runs_load.load(run), depth)


def load_folds(folder: Path, depth: int | None = None) -> LoadedRun:
    """The ensemble of a finished cross-validation."""
    file = folder / CROSSVAL
    record = records.read_json(file, CROSSVAL_LIMIT)
    images, folds = record.get("images"), record.get("folds", [])
    if "status" not in record or not isinstance(images, dict) or not isinstance(folds, list):
        raise RunError(f"{file}: not written by seg.crossval")
    if record["status"] != "finished" or not folds:
        raise RunError(f"{file}: not finished; the command that began it goes on where it stopped")
    folders = fold_folders(folder, folds)
    members = [shallower(runs_load.load(one), depth) for one in folders]
    return join(members, file, folder, set(images))


def fold_folders(folder: Path, folds: list[Any]) -> list[Path]:
    """The run folders of a cross-validation's folds, each once.

    Raises:
        RunError: when they aren't named, or lie elsewhere.
    """
    names = [fold.get("run") if isinstance(fold, dict) else None for fold in folds]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise RunError(
            f"{folder / CROSSVAL}: names no run of its own for each fold; not written by seg.crossval"
        )
    return [inside(folder, str(name)) for name in names]


def inside(folder: Path, name: str) -> Path:
    """A path below a folder.

    Raises:
        RunError: when it leads out of it.
    """
    place = Path(os.path.realpath(folder / name)) if "\0" not in name else None
    if place is None or not place.is_relative_to(os.path.realpath(folder)):
        raise RunError(f"{folder / CROSSVAL}: names {name!r}, which lies outside its folder")
    return folder / name


def join(members: list[LoadedRun], name: Path, folder: Path, seen: set[str]) -> LoadedRun:
    """An ensemble as a run: the first member's in what isn't said here.

    Args:
        members: of the same classes, channels, task and number of logits.
        name: what it is called, in the place of a checkpoint.
        folder: of its results.
        seen: names of the images that trained any member.

    Returns:
        its threshold is the mean of the members'.

    Raises:
        RunError: naming two members that don't fit together.
    """
    first = members[0]
    for other in members[1:]:
        check_alike(first, other)
    model = Ensemble(
        [member.model for member in members],
        [member.intensity for member in members],
        first.overlapping,
    )
    return dataclasses.replace(
        first,
        checkpoint=name,
        folder=folder,
        model=model.eval(),
        intensity=model.intensity,
        threshold=fmean(member.threshold for member in members),
        seen=frozenset(seen),
    )


def check_alike(first: LoadedRun, other: LoadedRun) -> None:
    """Raises RunError unless the probabilities of two runs can be averaged."""
    for what, one, two in (
        ("classes", first.classes, other.classes),
        ("channels", first.intensity.channels, other.intensity.channels),
        ("task", first.task, other.task),
        ("logits", first.config["model"]["num_classes"], other.config["model"]["num_classes"]),
    ):
        if one != two:
            raise RunError(
                f"{first.checkpoint} and {other.checkpoint} make no ensemble: {what} {one} and {two}"
            )


def trained(run: LoadedRun) -> list[str]:
    """Names of the images that trained a run; none where its folder doesn't say."""
    try:
        names = records.read_json(run.folder / "run.json")["splits"]["train"]
    except (RunError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
