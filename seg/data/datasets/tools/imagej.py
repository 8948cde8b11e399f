"""ImageJ: ``a.zip`` of the ROI manager, or ``a.roi``, for ``a.tif``; ``a_RoiSet.zip`` and ``RoiSet_a.zip`` too."""

import io
import re
import struct
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

from seg import files
from seg.data.datasets.outlines import UNNAMED, Outline, as_ring, ellipse_ring, rectangle_ring
from seg.data.datasets.tools.parsing import (
    MAX_FILE_BYTES,
    ToolAnnotations,
    build_image,
    list_files,
    pass_over,
)
from seg.errors import DataError, missing_extra_hint

AFFIX = re.compile(r"^rois?(?:et)?[-_ ]|[-_ ]rois?(?:et)?$", re.IGNORECASE)
CLASS_NAMES = (  # "nucleus-0012", "cell 3" and "cell", but not ImageJ's own "0123-0456"
    re.compile(r"(\D.*)-\d{4,}"),
    re.compile(r"([^\W\d_]+(?: [^\W\d_]+)*)(?:[-_ ]\d+)?"),
)
WITHOUT_AREA = {"LINE", "FREELINE", "POLYLINE", "ANGLE", "POINT", "NOROI"}


def read_annotations(place: Path) -> ToolAnnotations:
    """Return the annotations (https://imagej.net) of a file, or of those of a folder.

    The class is the ROI's name without a number at its end; names that only hold numbers, as ImageJ gives, are
    ``object``. Needs the extra ``rois``.

    Raises:
        DataError: if a file is malformed, or the extra is missing.
    """
    images = []
    for file in list_files(place, (".zip", ".roi")):
        try:
            parts = read_parts(file)
        except DataError as error:
            pass_over(file, place, (".roi",), error)
            continue
        if not parts:
            continue
        if need := missing_extra_hint("roifile"):
            raise DataError(f"{file}: ImageJ's ROIs; reading them {need}")
        name = AFFIX.sub("", file.stem)
        images.append(build_image(file, name, None, parts, build_outline))
    return ToolAnnotations(images)


def read_parts(file: Path) -> list[bytes]:
    """Return the ROIs of a file as bytes; [] of a zip of other files.

    Raises:
        DataError: if it cannot be read or is too large.
    """
    try:
        content = files.read_bytes(file, MAX_FILE_BYTES)
        if file.suffix.lower() == ".roi":
            return [content]
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(".roi")]
            if sum(member.file_size for member in members) > MAX_FILE_BYTES:
                raise DataError(f"{file}: unpacks to more than {MAX_FILE_BYTES} bytes")
            return [archive.read(member) for member in members]
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{file}: can't be read ({error}); save the ROIs again") from error


def build_outline(number: int, content: bytes) -> Outline | str:
    """Return the outline of a ROI; its kind if it has no area."""
    roifile: Any = import_module("roifile")  # an extra
    try:
        roi = roifile.ImagejRoi.frombytes(content)
        rings = roi.coordinates(multi=True)
    except (struct.error, RuntimeError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"no ROI that is read ({error})") from error
    kind = roi.roitype.name
    if kind in WITHOUT_AREA and not roi.composite:
        return kind.lower()
    if max(roi.position, roi.z_position, roi.t_position) > 1:
        raise ValueError("it lies in another slice than the first; save the ROIs of each image")
    label = find_label(roi.name or "")
    if kind == "RECT" and not roi.composite:
        rings = [rectangle_ring(roi.left, roi.top, roi.right, roi.bottom)]
    elif kind == "OVAL":
        x, y = (roi.left + roi.right) / 2, (roi.top + roi.bottom) / 2
        rings = [ellipse_ring(x, y, (roi.right - roi.left) / 2, (roi.bottom - roi.top) / 2)]
    return Outline(number, label, [[as_ring(ring) for ring in rings]])


def find_label(name: str) -> str:
    """Return the class of a ROI's name."""
    matched = next((m for pattern in CLASS_NAMES if (m := pattern.fullmatch(name))), None)
    return matched[1] if matched else UNNAMED
