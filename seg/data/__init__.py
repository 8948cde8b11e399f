"""Data sets: reading, checking, splitting, augmenting and loading of images and masks.

The classes that conf/ names are imported on first use, since OpenCV and albumentations take seconds to import.
"""

from importlib import import_module
from typing import Any

CLASSES = {
    "DataModule": "datamodule",
    "Folder": "datasets.folder",
    "Coco": "datasets.coco",
    "Annotations": "datasets.annotations",
    "ISBI2012": "datasets.isbi2012",
    "Membranes": "datasets.membranes",
}


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{CLASSES[name]}"), name)
