"""Data sets: reading, checking, splitting, augmenting and loading of images and masks.

The classes that conf/ names are imported on first use, since OpenCV and albumentations take seconds to import.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from seg.data.datamodule import DataModule
    from seg.data.datasets.annotations import Annotations
    from seg.data.datasets.coco import Coco
    from seg.data.datasets.folder import Folder
    from seg.data.datasets.isbi2012 import ISBI2012
    from seg.data.datasets.membranes import Membranes

__all__ = ["ISBI2012", "Annotations", "Coco", "DataModule", "Folder", "Membranes"]
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datamodule": ["DataModule"],
        "datasets.annotations": ["Annotations"],
        "datasets.coco": ["Coco"],
        "datasets.folder": ["Folder"],
        "datasets.isbi2012": ["ISBI2012"],
        "datasets.membranes": ["Membranes"],
    },
)
