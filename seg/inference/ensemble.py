"""Ensembles: the folds of a cross-validation, or any runs with the same classes and channels."""

import dataclasses
import functools
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median_low
from typing import Any, cast

import torch
from torch import Tensor, nn

from seg.data.nodata import integer_nodata
from seg.data.normalization import Normalization
from seg.errors import RunError
from seg.inference.depths import prune_run
from seg.logits import average_logits
from seg.models.contract import same_size_logits, tile_stride
from seg.models.network import Extent, Network, receptive_field
from seg.runs import load as runs_load
from seg.runs import records
from seg.runs.folder import CROSSVAL_FILE
from seg.runs.load import LoadedRun
from seg.runs.record import RECORD_FILE, RiskPromise, read_promise, read_quality, read_record
from seg.runs.safe_loading import CROSSVAL_LIMIT


class Ensemble(Network):
    """Ensemble that averages its members' probabilities.

    Each member was trained with the statistics of its own training split, so the ensemble takes grey values as stored
    and normalises them for each member.

    Args:
        members: networks of the same K.
        intensities: normalisation of each member's input.
        overlapping: whether classes overlap, each with its own sigmoid.

    Shape:
        image (B, C, H, W) as stored -> logits (B, K, H, W), any H and W; the context of valid convolutions is
        mirrored at the borders.
    """

    normalizes = True
    low: Tensor
    span: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        intensities: list[Normalization],
        overlapping: bool = False,
    ) -> None:
        super().__init__()
        # The ensemble takes grey values as stored, so its own scaling is the identity
        channels = intensities[0].channels
        self.intensity = Normalization(
            0.0, 1.0, [0.0] * channels, [1.0] * channels, False, *common_values(intensities),
            nodata=common_nodata(intensities), keeps_nodata=True, neighbours=intensities[0].neighbours,
        )  # fmt: skip
        # Statistics of the members as buffers, so that they move with the network and are exported
        self.members, self.overlapping = nn.ModuleList(members), overlapping
        self.clips = [intensity.clip for intensity in intensities]
        constants = {
            "low": [intensity.low for intensity in intensities],
            "span": [intensity.high - intensity.low or 1.0 for intensity in intensities],
            "mean": [intensity.mean for intensity in intensities],
            "std": [intensity.std for intensity in intensities],
        }
        for name, values in constants.items():  # (members, 1 or C, 1, 1)
            self.register_buffer(name, torch.tensor(values).reshape(len(members), -1, 1, 1))

    @property
    def name(self) -> str:
        return " + ".join(dict.fromkeys(cast(Network, member).name for member in self.members))

    @property
    def stride(self) -> int:
        """The least common multiple of the members' strides."""
        return math.lcm(*(tile_stride(member, least=1) for member in self.members))

    def forward(self, image: Tensor) -> Tensor:
        heads = [
            same_size_logits(member, self.normalised(image, i))
            for i, member in enumerate(self.members)
        ]
        return average_logits(heads, self.overlapping)

    def receptive_field(self, outputs: Extent) -> Extent:
        """Return the union of the members' receptive fields."""
        fields = (receptive_field(member, outputs) for member in self.members)
        return functools.reduce(operator.or_, fields)

    def normalised(self, image: Tensor, member: int) -> Tensor:
        """Return a member's input: the same operations as its Intensity's, so that the result is equal bit for bit."""
        scaled = (image - self.low[member]) / self.span[member]
        if self.clips[member]:
            scaled = scaled.clamp(0, 1)
        if (lost := self.find_nodata(image)) is not None:
            scaled = torch.where(lost, self.mean[member], scaled)
        return (scaled - self.mean[member]) / self.std[member]

    def find_nodata(self, image: Tensor) -> Tensor | None:
        """Return where an image as stored has no data, broadcastable bool; None: it can have none."""
        # Unsigned integers: a pixel has no data only where all channels of its section have the value
        stored, values = self.intensity.stored_type, self.intensity.nodata or []
        if stored is not None and stored.kind == "u":
            whole = integer_nodata(values, stored)
            same = [self.whole_sections(image == value) for value in whole]
            return functools.reduce(operator.or_, [torch.isnan(image), *same]) if whole else None
        # Floats: each channel by itself; nan is found by isnan
        same = [image == value for value in values if value == value]
        return functools.reduce(operator.or_, [torch.isnan(image), *same])

    def whole_sections(self, found: Tensor) -> Tensor:
        """Return where all channels of a section are True, broadcastable to (B, C, H, W)."""
        channels = self.intensity.image_channels
        if not self.intensity.neighbours:
            return found.float().amin(1, keepdim=True) > 0
        parts = found.float().split(channels, dim=1)
        return torch.cat([p.amin(1, keepdim=True).expand_as(p) for p in parts], dim=1) > 0


def common_values(intensities: list[Normalization]) -> tuple[str | None, list[float] | None]:
    """Return the type of the members' training images, and the range that holds the values of all; None: unknown."""
    types, ranges = {i.stored_type for i in intensities}, [i.value_range for i in intensities]
    dtype = types.pop()
    known = [span for span in ranges if span is not None]
    span = [min(low for low, _ in known), max(high for _, high in known)] if known else None
    return None if dtype is None else dtype.name, span


def common_nodata(intensities: list[Normalization]) -> list[float] | None:
    """Return the values that mean no data to any of the members; None: there is none."""
    values = [value for intensity in intensities for value in intensity.nodata or ()]
    return list({repr(value): value for value in values}.values()) or None


def load_members(run: str | Path | Sequence[str] | None, depth: int | None = None) -> LoadedRun:
    """Load a run, or an ensemble if ``run`` is the folder of a cross-validation or a list of runs.

    Args:
        run: run folder or checkpoint file, or several.
        depth: of the UNet++ head that is used alone; None: the output that the run's config names.

    Raises:
        RunError: if a member can't be read, or the members don't fit together.
    """
    # A list of runs: the images of all training splits count as seen
    if isinstance(run, Sequence) and not isinstance(run, str):
        if not run:
            raise RunError("run=[]: give at least one run")
        members = [prune_run(runs_load.load_run(str(path)), depth) for path in run]
        name = Path(" + ".join(str(member.checkpoint) for member in members))
        images = {image for member in members for image in read_training_names(member)}
        return join_members(members, name, members[0].folder, images)
    # The folder of a cross-validation, otherwise a single run
    if run is not None and (Path(str(run)) / CROSSVAL_FILE).is_file():
        return load_fold_ensemble(Path(str(run)), depth)
    return prune_run(runs_load.load_run(run), depth)


def load_fold_ensemble(folder: Path, depth: int | None = None) -> LoadedRun:
    """Load the ensemble of a finished cross-validation."""
    # The record is untrusted: check its structure before any path in it is used
    file = folder / CROSSVAL_FILE
    record = records.read_json(file, CROSSVAL_LIMIT)
    images, folds = record.get("images"), record.get("folds", [])
    if "status" not in record or not isinstance(images, dict) or not isinstance(folds, list):
        raise RunError(f"{file}: not written by seg.crossval")
    if record["status"] != "finished" or not folds:
        raise RunError(f"{file}: not finished; the command that began it goes on where it stopped")
    # All folds together have seen every image outside the test split
    folders = fold_folders(folder, folds)
    members = [prune_run(runs_load.load_run(path), depth) for path in folders]
    run = join_members(members, file, folder, set(images))
    try:
        promise, quality = read_promise(record), read_quality(record, len(run.classes))
    except ValueError as error:
        raise RunError(f"{file}: {error}; not written by seg.crossval") from error
    run = dataclasses.replace(run, quality=quality)
    return run if promise is None else keep_promise(run, promise, file)


def keep_promise(run: LoadedRun, promise: RiskPromise, file: Path) -> LoadedRun:
    """Return an ensemble with the threshold that was chosen for all its members together.

    Args:
        run: ensemble of a cross-validation.
        promise: that the threshold keeps on the out-of-fold images.
        file: record of the cross-validation, for messages.

    Raises:
        RunError: if the classes have no threshold.
    """
    if len(run.classes) != 2 or run.overlapping:
        raise RunError(f"{file}: its promise is of two classes; not written by seg.crossval")
    return dataclasses.replace(run, threshold=promise.threshold, promise=promise)


def fold_folders(folder: Path, folds: list[Any]) -> list[Path]:
    """Return the run folders of a cross-validation's folds.

    Raises:
        RunError: if a fold names no folder, two name the same, or one lies outside the cross-validation's folder.
    """
    names = [fold.get("run") if isinstance(fold, dict) else None for fold in folds]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise RunError(
            f"{folder / CROSSVAL_FILE}: a run of its own is needed for each fold; not written by seg.crossval"
        )
    return [path_inside(folder, str(name)) for name in names]


def path_inside(folder: Path, name: str) -> Path:
    """Return a path below a folder.

    Raises:
        RunError: if it leads out of the folder.
    """
    target = Path(os.path.realpath(folder / name)) if "\0" not in name else None
    if target is None or not target.is_relative_to(os.path.realpath(folder)):
        raise RunError(f"{folder / CROSSVAL_FILE}: names {name!r}, which lies outside its folder")
    return folder / name


def join_members(members: list[LoadedRun], name: Path, folder: Path, seen: set[str]) -> LoadedRun:
    """Return an ensemble as a run; fields that are not an argument are those of the first member.

    Args:
        members: of the same classes, channels, task and number of logits.
        name: stands in messages in the place of the checkpoint's path.
        folder: for its results.
        seen: names of the images on which any member was trained.

    Returns:
        The run; its threshold is the mean of the members', its ``split_neck_px`` their median; it promises nothing.

    Raises:
        RunError: if two members don't fit together; names them.
    """
    # All members must produce logits of the same classes from the same channels
    first = members[0]
    for other in members[1:]:
        check_members(first, other)
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
        split_neck_px=median_low(member.split_neck_px or 0 for member in members) or None,
        seen=frozenset(seen),
        promise=None,  # of one member alone
        quality=None,
    )


def check_members(first: LoadedRun, other: LoadedRun) -> None:
    """Raise RunError unless the probabilities of two runs can be averaged."""
    for name, ours, theirs in (
        ("classes", first.classes, other.classes),
        ("channels", first.intensity.channels, other.intensity.channels),
        ("data.neighbours", first.intensity.neighbours, other.intensity.neighbours),
        ("task", first.task, other.task),
        ("data.border", first.border, other.border),
        ("image types", str(first.intensity.stored_type), str(other.intensity.stored_type)),
        ("logits", first.config["model"]["num_classes"], other.config["model"]["num_classes"]),
    ):
        if ours != theirs:
            raise RunError(
                f"{first.checkpoint} and {other.checkpoint} make no ensemble: {name} {ours} and {theirs}"
            )


def read_training_names(run: LoadedRun) -> list[str]:
    """Return the names of a run's training images; none if its folder has no record of them."""
    try:
        return (read_record(run.folder / RECORD_FILE).splits or {}).get("train", [])
    except RunError:
        return []
