"""Errors that a user can correct; a command reports each in one line with exit code 2."""

from importlib.util import find_spec
from typing import Any


class UserError(ValueError):
    """Mistake of the user: reported in one line, without traceback."""


class DataError(ValueError):
    """Data that does not match the config; the message is one line, ``FILE: FOUND; EXPECTED; REMEDY``.

    Args:
        message: the whole line; None: composed of the fields below.
        file: path of the file, or ``FILE, page N``.
        found: what is wrong with it.
        expected: what is required instead; may be empty.
        remedy: the option or the action that corrects it; may be empty.
        kind: key of ``seg.data.quality.issues.KINDS``.
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
    """Hardware that the config needs and the machine lacks."""


MISTAKES = (UserError, DataError, RunError, HardwareError)
EXTRAS = {"segmentation_models_pytorch": "smp", "pycocotools": "coco", "onnx": "export",
          "onnxruntime": "export", "trackio": "trackio", "tensorboard": "tensorboard",
          "mlflow": "mlflow"}  # package -> its extra  # fmt: skip


def missing_extra(target: Any) -> str | None:
    """Return what to install for a missing optional package, or for a class that needs it; else None.

    A class of this package that needs one is in a module of its name, as seg.training.loggers.trackio.
    """
    words = str(target).split(".")
    package = next((word for word in words[:-1] or words if word in EXTRAS), None)
    if package is None or find_spec(package):
        return None
    return f"needs the extra {EXTRAS[package]}: pip install 'seg[{EXTRAS[package]}]'"
