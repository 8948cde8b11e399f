"""Cellpose: ``a_seg.npy`` for ``a.png``, whose masks number the cells."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from seg import files
from seg.data.datasets.outlines import UNNAMED, Outline, pack_bitmap
from seg.data.datasets.tools.parsing import (
    MAX_FILE_BYTES,
    AnnotatedImage,
    ToolAnnotations,
    list_files,
)
from seg.errors import DataError

SUFFIX = "_seg.npy"
REMEDY = "in Cellpose, save the masks as PNG or TIFF and take data=folder"
ALLOWED = {  # constructors of arrays and numbers; no other name in a file is called
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.numeric": {"_frombuffer"},
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays, numbers, texts, lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the cells (https://cellpose.readthedocs.io/en/latest/outputs.html) of a file, or of those of a folder.

    Raises:
        DataError: if a file is malformed, or holds anything but arrays and plain values.
    """
    images = []
    for file in list_files(place, (SUFFIX,)):
        masks = read_masks(file)
        windows = ndimage.find_objects(masks)
        outlines = [
            Outline(number, UNNAMED, [], pack_bitmap(masks[window] == number, window[0].start, window[1].start))
            for number, window in enumerate(windows, start=1)
            if window is not None
        ]  # fmt: skip
        name = file.name.removesuffix(SUFFIX)
        images.append(AnnotatedImage(name, (masks.shape[0], masks.shape[1]), file, outlines))
    return ToolAnnotations(images)


def read_masks(file: Path) -> np.ndarray:
    """Return the numbers of the cells (H, W) int32, 0 between them."""
    try:
        stream = io.BytesIO(files.read_bytes(file, MAX_FILE_BYTES))
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of NPY than 1.0")
        np.lib.format.read_array_header_1_0(stream)
        content = ArrayUnpickler(stream).load()
        masks = content.item()["masks"]
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error})") from error
    except Exception as error:  # unpickling malformed bytes raises nearly any error
        raise DataError(f"{file}: no masks of Cellpose in it ({error}); {REMEDY}") from error
    if not isinstance(masks, np.ndarray) or masks.ndim != 2 or masks.dtype.kind not in "iu":
        raise DataError(f"{file}: its masks are not one plane of numbers; {REMEDY}")
    if masks.size and not 0 <= int(masks.min()) <= int(masks.max()) < 2**24:
        raise DataError(f"{file}: its cells are numbered {masks.min()} to {masks.max()}; {REMEDY}")
    return masks.astype(np.int32)
