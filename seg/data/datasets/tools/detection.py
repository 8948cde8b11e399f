"""Detection of the tool that annotated a folder, and of the options that read it."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from seg.data.datasets.tools import cellpose, imagej, yolo
from seg.data.datasets.tools.parsing import list_files, read_json, read_xml
from seg.errors import DataError

MAX_SAMPLES = 30  # files of each kind that are looked at
JSON_TOOLS = {
    "labelme": "LabelMe",
    "qupath": "QuPath",
    "via": "VGG Image Annotator",
    "supervisely": "Supervisely",
}
COCO_KEYS = {"images", "annotations", "categories"}


class DetectedTool(NamedTuple):
    """A tool whose files a folder holds.

    Attributes:
        title: its name.
        file: the first of its files.
        options: words of the command line that read the folder.
    """

    title: str
    file: Path
    options: str


def detect_tool(folder: Path) -> DetectedTool | None:
    """Return the tool whose annotations lie in a folder; None if there are none that are known."""
    for file in list_files(folder, (".json", ".geojson"))[:MAX_SAMPLES]:
        try:
            content = read_json(file)
        except DataError:
            continue  # no annotation file, as far as one can tell
        for tool, title in JSON_TOOLS.items():
            if import_module(f"seg.data.datasets.tools.{tool}").matches_format(content):
                return DetectedTool(title, file, f"data={tool} data.root={folder}")
        if isinstance(content, dict) and set(content) >= COCO_KEYS:
            options = f"data=coco data.root={folder} data.annotations={file}"
            return DetectedTool("COCO", file, options)
    for file in list_files(folder, (".xml",))[:MAX_SAMPLES]:
        try:
            root = read_xml(file)
        except DataError:
            continue
        if root.tag == "annotations" and root.find("version") is not None:
            return DetectedTool("CVAT", file, f"data=cvat data.root={folder}")
    if cells := list_files(folder, (cellpose.SUFFIX,)):
        return DetectedTool("Cellpose", cells[0], f"data=cellpose data.root={folder}")
    for file in list_files(folder, (".zip", ".roi"))[:MAX_SAMPLES]:
        if file.suffix.lower() == ".roi" or holds_rois(file):
            return DetectedTool("ImageJ", file, f"data=imagej data.root={folder}")
    for file in list_files(folder, (".txt",))[:MAX_SAMPLES]:
        if file.name not in yolo.LIST_FILES and yolo.looks_like(file):
            return DetectedTool("YOLO segmentation", file, f"data=yolo data.root={folder}")
    return None


def holds_rois(file: Path) -> bool:
    """Return True if a zip holds ROIs of ImageJ."""
    try:
        return bool(imagej.read_parts(file))
    except DataError:
        return False
