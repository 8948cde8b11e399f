"""Schema of run.json: what a run records about itself; the file is written and checked here.

``RunRecord`` documents the file. It is tolerant: runs of earlier versions lack fields, those of later versions have
more, and both are read. A field that is present must have its type.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
    model_validator,
)

from seg.errors import RunError
from seg.runs.records import read_json, without_nan, write_json
from seg.runs.safe_loading import RECORD_LIMIT

RECORD_FILE = "run.json"
RecordText = InstanceOf[str]  # str of pydantic refuses the bytes of a file name that is not UTF-8
RecordNumber = int | float | None  # null stands for nan


class RecordSection(BaseModel):
    """Part of a record; values are not converted, and unknown fields are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class GitState(RecordSection):
    """State of the checkout that a run was started from."""

    commit: RecordText = Field("", description="hash of the commit")
    dirty: bool = Field(
        False, description="true: tracked or new source files differ from the commit"
    )
    diff: RecordText | None = Field(
        None, description="12 hex digits of the SHA-256 of diff.patch; null: no difference"
    )


class HardwareState(RecordSection):
    """Machine that a run was trained on."""

    machine: RecordText = Field("", description="architecture, x86_64")
    system: RecordText = Field("", description="operating system, Linux")
    cpu: RecordText = Field("", description="model of the processor")
    instructions: RecordText = Field(
        "", description="instruction set of PyTorch's CPU kernels, AVX2"
    )
    cpus: int | None = Field(None, description="logical processors")
    threads: int = Field(1, ge=1, le=4096, description="threads of PyTorch")
    memory_gib: RecordNumber = Field(None, description="main memory, GiB")
    gpus: list[RecordText] = Field([], description="name of each visible GPU")


class DataState(RecordSection):
    """Data that a run was trained on."""

    fingerprint: RecordText = Field(
        "", description="16 hex digits of the SHA-256 of all names and pixels"
    )


Calibration = Literal["validation", "out-of-fold", "evaluated"]
Share = Annotated[float, Field(ge=0, le=1)]


class ForegroundScores(RecordSection):
    """Scores of class 1 of two over all pixels of some images."""

    threshold: Share = Field(0.5, description="probability above which a pixel is foreground")
    precision: RecordNumber = Field(None, description="in 0..1; null: nothing is predicted")
    recall: RecordNumber = Field(None, description="in 0..1; null: the images have no foreground")
    dice: RecordNumber = Field(None, description="in 0..1; null: neither")


class RiskPromise(RecordSection):
    """Bound that a threshold keeps on average, by conformal risk control; see seg.metrics.risk_control."""

    risk: Literal["missed", "false"] = Field(description="missed foreground, or false foreground")
    alpha: float = Field(gt=0, lt=1, description="bound of the mean over images of this share")
    threshold: float = Field(gt=0, lt=1, description="probability that keeps it")
    calibrated_on: Calibration = Field(
        description="images that chose it, and as what they were predicted"
    )
    images: int = Field(ge=1, description="number of these images")
    groups: int | None = Field(None, description="number of their groups; null: images of no group")
    mean: Share = Field(description="mean of the share over these images, or groups")
    scores: ForegroundScores = Field(
        ForegroundScores(), description="of the images at the threshold"
    )
    at_half: ForegroundScores = Field(ForegroundScores(), description="the same at 0.5")
    at_best: ForegroundScores = Field(ForegroundScores(), description="the same at the best Dice")

    def subject(self, classes: list[str]) -> str:
        """Return what the share is of, "of an image's membrane is missed"."""
        back, front = classes
        if self.risk == "missed":
            return f"of an image's {front} is missed"
        return f"of an image's {back} is predicted as {front}"

    def describe(self, classes: list[str]) -> str:
        """Return the promise as a sentence without a stop."""
        over = "images" if self.groups is None else "groups of images"
        among = "" if self.groups is None else f" of {self.groups} groups"
        return (
            f"on average over {over}, at most {100 * self.alpha:g} % {self.subject(classes)} (conformal risk "
            f"control; {100 * self.mean:.3g} % in {self.images} {self.calibrated_on} images{among})"
        )


def read_promise(content: dict[str, Any]) -> RiskPromise | None:
    """Return the bound that the threshold of a checkpoint's card, or of crossval.json, keeps; None: there is none.

    Raises:
        ValueError: if it is damaged.
    """
    if (promise := content.get("promise")) is None:
        return None
    try:
        return RiskPromise.model_validate(promise)
    except ValidationError as error:
        raise ValueError(f"its promise is damaged ({error.errors()[0]['msg']:.200})") from error


Finite = Annotated[float, Field(allow_inf_nan=False)]
Margin = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ClassQuality(RecordSection):
    """Calibration of one class, and the intervals of its expected scores; see seg.metrics.expected_scores."""

    slope: Positive = Field(description="of the logit: 1 / temperature")
    offset: Finite = Field(description="of the logit")
    always: bool = Field(description="true: each calibration image has the class")
    images: int = Field(
        ge=0, description="calibration images that have a true and an expected score"
    )
    dice_margin: Margin | None = Field(None, description="half width of the interval, divided by seg.metrics.expected_scores.interval_scale; null: too few images")  # fmt: skip
    iou_margin: Margin | None = Field(None, description="the same of IoU")


class QualityRecord(RecordSection):
    """All that scores of images without truth need: calibration, intervals, and features of the images."""

    calibrated_on: Calibration = Field(description="images, and as what they were predicted")
    images: int = Field(ge=1, description="number of these images")
    threshold: Share | None = Field(description="of their predictions; null: each network had its own")  # fmt: skip
    usual: Share | None = Field(description="mean expected Dice that 5 % of these images have less than; null: none has any")  # fmt: skip
    classes: Annotated[list[ClassQuality], Field(max_length=1000)] = Field(description="as in classes")  # fmt: skip
    shift: Annotated[list[Finite], Field(min_length=1, max_length=4096)] = Field(description="of each channel: stored value that becomes 0")  # fmt: skip
    scale: Annotated[list[Positive], Field(min_length=1, max_length=4096)] = Field(description="of each channel: stored values that become 1")  # fmt: skip
    measured: int = Field(ge=0, description="images whose features were measured")
    center: Annotated[list[Finite], Field(max_length=64)] = Field(description="mean of each feature, see seg.metrics.image_features")  # fmt: skip
    spread: Annotated[list[Positive], Field(max_length=64)] = Field(description="standard deviation of each")  # fmt: skip
    limit: Positive = Field(description="largest deviation, in spreads, of an image that is like these")  # fmt: skip

    @model_validator(mode="after")
    def check_lengths(self) -> "QualityRecord":
        """Return the record if the lengths of its lists agree."""
        if len(self.shift) != len(self.scale) or len(self.center) != len(self.spread):
            raise ValueError("lists of its quality differ in length")
        return self


def read_quality(content: dict[str, Any], classes: int) -> QualityRecord | None:
    """Return what a checkpoint's card, or crossval.json, knows for scores without truth; None: nothing.

    Args:
        content: of the file.
        classes: number of classes.

    Raises:
        ValueError: if it is damaged.
    """
    if (quality := content.get("quality")) is None:
        return None
    try:
        found = QualityRecord.model_validate(quality)
    except ValidationError as error:
        raise ValueError(f"its quality is damaged ({error.errors()[0]['msg']:.200})") from error
    if len(found.classes) != classes:
        raise ValueError(f"its quality is of {len(found.classes)} classes, not {classes}")
    return found


class RunRecord(RecordSection):
    """Content of run.json, in the order of the file."""

    command: list[RecordText] = Field([], description="words of the command, the first is Python")
    started: RecordText = Field("", description="local time with offset, 2026-11-27T08:25:01+0000")
    versions: dict[RecordText, RecordText] = Field(
        {}, description="package -> version; also python, opencv, cuda and cudnn"
    )
    git: GitState | None = Field(None, description="null: not a git checkout")
    source: RecordText = Field(
        "", description="12 hex digits of the SHA-256 of the files of seg/ and conf/"
    )
    hardware: HardwareState = Field(HardwareState(), description="machine of the training")
    environment: dict[RecordText, RecordText] = Field(
        {}, description="set environment variables that can change numbers"
    )
    name: RecordText | None = Field(None, description="name of the run")
    overrides: list[RecordText] = Field([], description="words of the command line, optim.lr=0.01")
    choices: dict[RecordText, RecordText] = Field({}, description="config group -> chosen file")
    group: RecordText | None = Field(None, description="sweep or search of the run; null: none")
    job: int | None = Field(None, description="number of the job in that sweep or search, from 0")
    silent: bool = Field(
        False, description="true: messages went to log.txt only, not to the terminal"
    )
    seed: int | None = Field(None, description="seed of weights, splits, augmentation and sampling")
    classes: list[RecordText] = Field(
        [], description="class names, in the order of the mask values"
    )
    colors: list[list[int]] = Field([], description="one (red, green, blue) in 0..255 per class")
    parameters: int | None = Field(
        None, description="number of weights of the network, learned and frozen"
    )
    frozen_parameters: int | None = Field(None, description="number of these that are not trained")
    splits: dict[RecordText, list[RecordText]] | None = Field(
        None, description="train, val and test -> names of their images"
    )
    split_hash: RecordText | None = Field(
        None, description="12 hex digits of the SHA-256 of the splits"
    )
    data: DataState = Field(DataState(), description="images and masks")
    resumed: list[dict[RecordText, Any]] = Field(
        [], description="one entry per resume: command, started, and what differs"
    )
    threshold: RecordNumber = Field(
        None, description="probability in 0..1 above which a pixel has a label"
    )
    split_neck_px: RecordNumber = Field(
        None, description="px by which objects are split at necks; null: connected regions"
    )
    promise: RiskPromise | None = Field(
        None, description="bound that the threshold keeps on average; null: none was asked for"
    )
    quality: QualityRecord | None = Field(
        None,
        description="for scores of images without truth; null: the run has no validation images",
    )
    minutes: RecordNumber = Field(None, description="duration of the training, minutes")
    steps: int | None = Field(None, description="optimiser steps")
    lr_segments: list[list[int | float | None]] | None = Field(
        None,
        description="course of the learning rate: first step, planned steps, and progress of the schedule there; "
        "null: the rate is held",
    )
    status: Literal["running", "finished", "failed", "interrupted", "pruned"] = Field(
        description="state of the run"
    )
    metrics: dict[RecordText, RecordNumber] | None = Field(
        None, description="final scores, best/val/dice; null: nan"
    )
    error: RecordText | None = Field(
        None, description="of a failed run: type and message; of an interrupted one: the signal"
    )

    @field_validator("choices", mode="before")
    @classmethod
    def drop_null(cls, choices: Any) -> Any:
        """Return the choices without groups for which an early version wrote null."""
        if not isinstance(choices, dict):
            return choices
        return {group: choice for group, choice in choices.items() if choice is not None}

    @field_validator("lr_segments")
    @classmethod
    def check_segments(cls, segments: list[list[Any]] | None) -> list[list[Any]] | None:
        """Return the segments if each starts after the one before it, and the first at step 0."""
        if segments is None:
            return None
        starts = []
        for segment in segments:
            if len(segment) != 3:
                raise ValueError("a segment has not three values")
            start, end, progress = segment
            whole = type(start) is int and type(end) is int and 0 <= start <= end
            if not whole or not (progress is None or 0 <= progress < 1):
                raise ValueError(f"a segment is {segment}")
            starts.append(start)
        held_first = bool(segments) and segments[0][2] is None
        if starts[:1] != [0] or starts != sorted(set(starts)) or held_first:
            raise ValueError(f"its segments start at steps {starts[:5]}")
        return segments

    @field_validator("metrics")
    @classmethod
    def drop_non_finite(
        cls, metrics: dict[str, RecordNumber] | None
    ) -> dict[str, RecordNumber] | None:
        """Return the metrics with None for what is not finite."""
        return metrics and {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in metrics.items()
        }

    def missing_field(self) -> str | None:
        """Return a field that a finished run needs and this one lacks; None if it has all."""
        needed = ("name", "seed", "splits", "split_hash", "metrics")
        missing = (name for name in needed if getattr(self, name) is None)
        return next(missing, None) if self.status == "finished" else None

    def content(self) -> dict[str, Any]:
        """Return the fields that the file has, without defaults."""
        return self.model_dump(exclude_unset=True)


def read_record(file: Path) -> RunRecord:
    """Return the record of a run, finished or not.

    Raises:
        RunError: if the file cannot be read, or a field has the wrong type.
    """
    return parse_record(read_json(file, RECORD_LIMIT), file)


def parse_record(content: dict[str, Any], file: Path) -> RunRecord:
    """Return the content of a file as a record.

    Raises:
        RunError: if a field has the wrong type.
    """
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:2]) if first["loc"] else "the record"
        raise RunError(
            f"{file}: {place:.100} is damaged ({first['msg']:.200}); not written by seg.train"
        ) from error


def read_damaged_record(file: Path) -> RunRecord:
    """Return the record of a run whose file may be damaged, without the values that have a wrong type.

    A wrong item of a list takes the list with it.

    Raises:
        RunError: if the file cannot be read, or the run has no known status.
    """
    content = read_json(file, RECORD_LIMIT)
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        for problem in error.errors():
            remove_value(content, problem["loc"])
    return parse_record(content, file)


def remove_value(content: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """Remove the value at a place, as pydantic names it, from nested dicts."""
    name, *deeper = place
    value = content.get(str(name))
    if deeper and isinstance(value, dict):
        remove_value(value, tuple(deeper))
    else:
        content.pop(str(name), None)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json into a run folder, whole or not at all.

    Args:
        folder: of the run.
        record: fields of a ``RunRecord``; written as they are, nan as null.

    Raises:
        ValueError: if a field has the wrong type, or a finished run lacks one.
        OSError: if the file cannot be written.
    """
    content = without_nan(dict(record))
    if missing := RunRecord.model_validate(content).missing_field():
        raise ValueError(f"{RECORD_FILE}: {missing} is missing")
    write_json(folder / RECORD_FILE, content)
