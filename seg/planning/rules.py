"""Rules that choose the settings of a training, each with its reason; docs/plan.md has what each was measured to bring.

A rule is a pure function: fingerprint of the data, machine, time and measured speed in, settings out. Options that no rule
names keep the defaults of conf/.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seg.planning.fingerprint import Fingerprint

WIDTHS = (8, 16, 32, 64)
CROPS = (64, 96, 128, 192, 256)  # px
LEAST_CROP = 128  # px, where images are as large
CONTEXT = 1.5  # sides of the thickest regions that a crop holds
STEPS_NEEDED = 1000  # of a training of width 8; of others in proportion to the width
VALIDATIONS, VALIDATION_SHARE = 10, 0.1  # in a training: at most, and share of its time
MEMORY_SHARE = 0.5  # of the memory that a training may take
STEP_PIXELS = 4 * 128**2  # of a batch, at least
RARE_SHARE = 0.02  # share of the pixels below which a class is rare
OUTLIER_SD = 10.0  # standard deviations of the largest value from the mean


@dataclass(frozen=True)
class Machine:
    """Machine that trains.

    Attributes:
        accelerator: cpu, gpu or mps.
        cores: number of processor cores.
        memory: bytes of the GPU's memory, or else of the machine's; None: unknown.
        bfloat16: whether the accelerator multiplies bfloat16 in hardware.
    """

    accelerator: str
    cores: int
    memory: int | None
    bfloat16: bool = False


@dataclass(frozen=True)
class Measured:
    """Speed and memory of a training, measured on the machine.

    Attributes:
        width: model.width.
        crop: loader.crop.
        step_seconds: s of a training step.
        image_seconds: s of a validation image.
        peak: bytes of memory; None: unknown.
    """

    width: int
    crop: int
    step_seconds: float
    image_seconds: float
    peak: int | None


@dataclass(frozen=True)
class Setting:
    """A chosen option.

    Attributes:
        option: dotted name, or a group of conf/.
        value: of the option.
        reason: one line.
    """

    option: str
    value: Any
    reason: str


def data_settings(data: Fingerprint, machine: Machine) -> list[Setting]:
    """Return the settings that follow from the data and the machine, whatever the time."""
    return [
        *choose_rare_crops(data),
        *choose_percentiles(data),
        *choose_workers(machine),
        *choose_precision(machine),
    ]


def candidate_sizes(data: Fingerprint, widths: Sequence[int] = WIDTHS) -> list[tuple[int, int]]:
    """Return (width, crop) from small to large: first a larger crop, then wider networks."""
    largest = largest_crop(data)
    crops = sorted({min(LEAST_CROP, largest), largest})
    return [(widths[0], crop) for crop in crops] + [(width, largest) for width in widths[1:]]


def largest_crop(data: Fingerprint) -> int:
    """Return the side of a crop that holds the thickest regions with what is around them, at most that of an image."""
    needed = max(LEAST_CROP, CONTEXT * thickest_region(data))
    side = next((crop for crop in CROPS if crop >= needed), CROPS[-1])
    shorter = min(data.height, data.width)
    return max([crop for crop in CROPS if crop <= min(side, shorter)], default=CROPS[0])


def thickest_region(data: Fingerprint) -> float:
    """Return the thickness of the class whose regions are the thickest, px."""
    return max((t for t in data.thickness if not math.isnan(t)), default=0.0)


def batch_size(crop: int) -> int:
    """Return the number of crops of a step: 4, or more small ones."""
    return max(4, min(32, STEP_PIXELS // crop**2))


def speed_settings(
    data: Fingerprint, machine: Machine, budget: float, measured: Sequence[Measured]
) -> list[Setting]:
    """Return the settings that follow from the time and the measured speed.

    Args:
        data: fingerprint.
        machine: that trains.
        budget: s for the training and its final scores.
        measured: trainings of increasing size.
    """
    fitting = [one for one in measured if meets_needs(one, machine, budget)]
    chosen = fitting[-1] if fitting else measured[0]
    seconds = training_seconds(data, budget, chosen)
    steps, batch = max(1, int(seconds / chosen.step_seconds)), batch_size(chosen.crop)
    return [
        Setting("model.width", chosen.width, explain_width(chosen, measured, machine, steps)),
        Setting("loader.crop", chosen.crop, explain_crop(data, chosen)),
        Setting(
            "loader.batch_size",
            batch,
            f"as many pixels as {batch * chosen.crop**2 / 128**2:.3g} crops of 128 px",
        ),
        choose_repeats(data, batch, seconds, steps, chosen),
        Setting("trainer.max_time", format_duration(seconds), explain_time(data, budget, chosen)),
    ]


def meets_needs(training: Measured, machine: Machine, budget: float) -> bool:
    """Return True if a training has the steps that it needs, in half of the memory."""
    needed = STEPS_NEEDED * training.width / WIDTHS[0]  # a wider network needs more to be better
    return budget >= needed * training.step_seconds and not exceeds_memory(training, machine)


def exceeds_memory(training: Measured, machine: Machine) -> bool:
    """Return True if a training takes more than half of the memory, as far as both are known."""
    return bool(machine.memory and training.peak and training.peak > MEMORY_SHARE * machine.memory)


def explain_width(
    chosen: Measured, measured: Sequence[Measured], machine: Machine, steps: int
) -> str:
    """Return the reason for a width."""
    pace = f"about {steps:,} steps of {1000 * chosen.step_seconds:.0f} ms fit"
    wider = next((one for one in measured if one.width > chosen.width), None)
    if wider is None:
        return pace if steps >= STEPS_NEEDED else f"{pace}, which are few; more time would help"
    if exceeds_memory(wider, machine):
        return f"{pace}; width {wider.width} would take more than half of the memory"
    return f"{pace}; width {wider.width}, {1000 * wider.step_seconds:.0f} ms a step, would have too few"


def explain_crop(data: Fingerprint, chosen: Measured) -> str:
    """Return the reason for a crop."""
    regions = f"regions are up to {thickest_region(data):.0f} px thick"
    if chosen.crop < largest_crop(data):
        return f"{regions}, but steps of larger crops would be too few"
    if 2 * chosen.crop > min(data.height, data.width):
        return f"{regions}, images {data.height}x{data.width} px"
    return regions


def choose_rare_crops(data: Fingerprint) -> list[Setting]:
    """Return half of the crops centred on rare classes where a class is rare."""
    rare = [
        (share, name)
        for share, name in zip(data.shares, data.classes, strict=True)
        if 0 < share < RARE_SHARE
    ]
    if not rare:
        return []
    share, name = min(rare)
    return [
        Setting("loader.rare_class_crops", 0.5, f"{name} has {100 * share:.2g} % of the pixels")
    ]


def choose_percentiles(data: Fingerprint) -> list[Setting]:
    """Return percentiles of the grey values where single values lie far outside."""
    if data.outlier <= OUTLIER_SD:
        return []
    reason = f"single values lie {data.outlier:.0f} standard deviations from the mean"
    return [Setting("loader.percentiles", [0.1, 99.9], reason)]


def choose_workers(machine: Machine) -> list[Setting]:
    """Return loader processes for a GPU, which would wait for one process."""
    if machine.accelerator == "cpu" or machine.cores < 2:
        return []
    workers = min(8, machine.cores - 1)
    return [
        Setting("loader.workers", workers, f"{machine.cores} cores load while the GPU computes")
    ]


def choose_precision(machine: Machine) -> list[Setting]:
    """Return mixed precision for a CPU that multiplies bfloat16; on GPUs it is the default."""
    if machine.accelerator != "cpu" or not machine.bfloat16:
        return []
    reason = "this CPU multiplies bfloat16 in hardware: more steps in the same time"
    return [Setting("trainer.precision", "bf16-mixed", reason)]


def choose_repeats(
    data: Fingerprint, batch: int, seconds: float, steps: int, training: Measured
) -> Setting:
    """Return crops per image in an epoch, so that at most ten validations take a tenth of the time."""
    validation = data.images["val"] * training.image_seconds
    count = max(1, min(VALIDATIONS, int(VALIDATION_SHARE * seconds / max(validation, 1e-9))))
    repeats = max(1, round(steps * batch / count / data.images["train"]))
    epochs = max(1, round(steps * batch / repeats / data.images["train"]))
    return Setting(
        "loader.repeats",
        repeats,
        f"about {epochs} epochs, each with a validation of {validation:.2g} s",
    )


def training_seconds(data: Fingerprint, budget: float, training: Measured) -> float:
    """Return the time for training, s: the budget without the final scores, but at least half of it."""
    scored = data.images["val"] + data.images.get("test", 0)
    return max(budget / 2, budget - scored * training.image_seconds)


def explain_time(data: Fingerprint, budget: float, training: Measured) -> str:
    """Return the reason for the time of the training."""
    rest = budget - training_seconds(data, budget, training)
    return (
        f"budget without {rest:.2g} s for the final scores; the learning rate falls to its end then"
    )


def format_duration(seconds: float) -> str:
    """Return seconds as days:hours:minutes:seconds."""
    minutes, rest = divmod(max(1, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24:02}:{hours % 24:02}:{minutes:02}:{rest:02}"


def data_remarks(data: Fingerprint) -> list[str]:
    """Return what the settings cannot mend, in one line each."""
    lines = []
    if data.images["val"] < 5:
        few = (
            "one image validates"
            if data.images["val"] == 1
            else f"{data.images['val']} images validate"
        )
        lines.append(f"{few}, and scores differ by chance: seg.crossval scores every image")
    if data.groups is not None:
        lines.append(f"the images come in {data.groups} groups, each in one split")
    if data.labelled < 0.995:
        lines.append(
            f"{data.labelled:.1%} of the training pixels are labelled; crops without a label are moved to one"
        )
    return lines
