"""Errors that a user can correct; a command reports each in one line with exit code 2."""

import re
from importlib.util import find_spec
from typing import Any

from seg.version import DISTRIBUTION


class UserError(ValueError):
    """A mistake in the command line or config, reported in one line without traceback."""


class NotWholeNumber(UserError):
    """An option that takes whole numbers was given another value."""


class DataError(ValueError):
    """Data that does not match the config; the message is one line, ``FILE: FOUND; EXPECTED; REMEDY``.

    Args:
        message: the whole line; None: composed of the fields below.
        file: path of the file, or ``FILE, page N``.
        found: what is wrong with it.
        expected: what is required instead; may be empty.
        remedy: the option or the action that corrects it; may be empty.
        kind: key of ``seg.data.quality.issues.ISSUE_KINDS``.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        file: object = "",
        found: str = "",
        expected: str = "",
        remedy: str = "",
        kind: str = "other",
    ) -> None:
        line = "; ".join(part for part in (found, expected, remedy) if part)
        super().__init__(f"{file}: {line}" if message is None else message)
        self.file, self.found, self.expected = str(file), found, expected
        self.remedy, self.kind = remedy, kind


class RunError(ValueError):
    """Run or checkpoint that is missing, damaged, unsafe or not written by this package."""


class HardwareError(ValueError):
    """Hardware that the config needs and the machine does not have."""


USER_ERRORS = (UserError, DataError, RunError, HardwareError)
EXTRAS = {  # extra -> its distributions, as in pyproject.toml
    "smp": ("segmentation-models-pytorch",),
    "coco": ("pycocotools",),
    "rois": ("roifile",),
    "dicom": ("pydicom",),
    "nifti": ("nibabel",),
    "zarr": ("zarr", "fsspec", "aiohttp"),
    "s3": ("s3fs",),
    "export": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "parallel": ("hydra-joblib-launcher",),
    "slurm": ("hydra-submitit-launcher",),
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "dashboard": ("optuna-dashboard",),
}
PACKAGE_EXTRAS = {"segmentation_models_pytorch": "smp", "pycocotools": "coco", "onnx": "export",
          "onnxruntime": "export", "openvino": "openvino", "trackio": "trackio", "tensorboard": "tensorboard",
          "mlflow": "mlflow", "roifile": "rois", "pydicom": "dicom", "nibabel": "nifti", "zarr": "zarr"}  # package -> its extra  # fmt: skip


SOURCE_LINE = re.compile(r"(Exception from|Check .* failed at) \S+:\d+:?")  # OpenVINO's


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters; without a message, its class.

    Leading lines that name a place in C++ source alone are left out, and a line that ends with a colon is continued.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    while len(lines) > 1 and SOURCE_LINE.fullmatch(lines[0]):
        del lines[0]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [f"{lines[0]} {lines[1].strip()}"]
    return lines[0][:300]


def missing_extra_hint(target: Any) -> str | None:
    """Return how to install the optional package of a constructor; None if it is installed or not needed.

    Args:
        target: package, or dotted name of a constructor. Modules of this package that need an extra have the
            package's name, as seg.training.loggers.trackio.
    """
    parts = str(target).split(".")
    package = next((part for part in parts[:-1] or parts if part in PACKAGE_EXTRAS), None)
    if package is None or find_spec(package):
        return None
    extra = PACKAGE_EXTRAS[package]
    return f"needs the extra {extra}: {install_command(extra)}"


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package, as typed in a shell."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
