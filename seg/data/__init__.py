"""Data sets: images and masks read, checked, split, augmented and loaded.

The classes that conf/ names are imported when they are first used: OpenCV and albumentations take seconds.
"""

from importlib import import_module
from typing import Any

CLASSES = {
    "DataModule": "datamodule",
    "Folder": "datasets.folder",
    "Coco": "datasets.coco",
    "ISBI2012": "datasets.isbi2012",
    "Membranes": "datasets.membranes",
}


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{CLASSES[name]}"), name)
