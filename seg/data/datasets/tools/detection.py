"""Detection of the tool that annotated a folder, and of the command that reads it."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from seg.cli.command_line import render_command, render_option
from seg.data.datasets.tools import cellpose, cvat, imagej, labelstudio, yolo
from seg.data.datasets.tools.parsing import list_files, read_json, read_xml
from seg.data.partition import SPLIT_FOLDERS, SPLITS
from seg.errors import DataError

MAX_SAMPLES = 30  # files of each kind that are looked at
JSON_TOOLS = {
    "labelme": "LabelMe",
    "qupath": "QuPath",
    "via": "VGG Image Annotator",
    "supervisely": "Supervisely",
    "labelstudio": "Label Studio",
}
COCO_KEYS = {"images", "annotations", "categories"}


class DetectedTool(NamedTuple):
    """A tool whose files a folder holds.

    Attributes:
        title: its name.
        file: the first of its files.
        command: the command that checks the folder with the options that read it.
    """

    title: str
    file: Path
    command: str


def detect_tool(folder: Path) -> DetectedTool | None:
    """Return the tool whose annotations lie in a folder; None if there are none that are known."""
    return (
        detect_json(folder)
        or detect_masks(folder)
        or detect_cvat(folder)
        or detect_cells(folder)
        or detect_lines(folder)
    )


def build_detected(title: str, file: Path, data: str, folder: Path, **options: Any) -> DetectedTool:
    """Return a tool with the command of its options."""
    given = {"root": str(folder)} | options
    words = [render_option(f"data.{name}", value) for name, value in given.items()]
    return DetectedTool(title, file, render_command("check", f"data={data}", *words))


def detect_json(folder: Path) -> DetectedTool | None:
    """Return the tool of a folder's JSON files."""
    coco = []
    for file in list_files(folder, (".json", ".geojson"))[:MAX_SAMPLES]:
        try:
            content = read_json(file)
        except DataError:
            continue  # no annotation file, as far as one can tell
        for tool, title in JSON_TOOLS.items():
            if import_module(f"seg.data.datasets.tools.{tool}").matches_format(content):
                return build_detected(title, file, tool, folder)
        if isinstance(content, dict) and set(content) >= COCO_KEYS:
            coco.append(file)
    if not coco:
        return None
    places = split_files(coco, folder)
    annotations = {split: str(file) for split, file in places.items()} or str(coco[0])
    return build_detected("COCO", coco[0], "coco", folder, annotations=annotations)


def split_files(files: list[Path], folder: Path) -> dict[str, Path]:
    """Return split -> its file, by the words of their paths; {} unless train and val have one each."""
    found: dict[str, list[Path]] = {}
    for file in files:
        words = re.findall(r"[a-z]+", file.relative_to(folder).as_posix().lower())
        for split in {SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS}:
            found.setdefault(split, []).append(file)
    if not {"train", "val"} <= set(found) or any(len(several) > 1 for several in found.values()):
        return {}
    return {split: found[split][0] for split in SPLITS if split in found}


def detect_masks(folder: Path) -> DetectedTool | None:
    """Return the tool of a folder's mask files in folders of Pascal VOC, or of Label Studio's brush masks."""
    if maps := list_files(folder, (cvat.LABEL_MAP,)):
        return build_detected("CVAT", maps[0], "cvat", folder)
    masks = folder / "SegmentationClass"
    if masks.is_dir() and (folder / "JPEGImages").is_dir():
        return build_detected("Pascal VOC", masks, "voc", folder)
    if brushes := labelstudio.list_brush_images(folder):
        return build_detected("Label Studio", brushes[0], "labelstudio", folder)
    return None


def detect_cvat(folder: Path) -> DetectedTool | None:
    """Return CVAT if one of a folder's XML files is its own."""
    for file in list_files(folder, (".xml",))[:MAX_SAMPLES]:
        try:
            root = read_xml(file)
        except DataError:
            continue
        if root.tag == "annotations" and root.find("version") is not None:
            return build_detected("CVAT", file, "cvat", folder)
    return None


def detect_cells(folder: Path) -> DetectedTool | None:
    """Return Cellpose or ImageJ, if a folder holds their files."""
    if cells := list_files(folder, (cellpose.SUFFIX,)):
        return build_detected("Cellpose", cells[0], "cellpose", folder)
    for file in list_files(folder, (".zip", ".roi"))[:MAX_SAMPLES]:
        if file.suffix.lower() == ".roi" or holds_rois(file):
            return build_detected("ImageJ", file, "imagej", folder)
    return None


def detect_lines(folder: Path) -> DetectedTool | None:
    """Return YOLO if one of a folder's text files holds its lines."""
    for file in list_files(folder, (".txt",))[:MAX_SAMPLES]:
        try:
            found = file.name not in yolo.LIST_FILES and yolo.looks_like(file)
        except DataError:
            continue
        if found:
            return build_detected("YOLO segmentation", file, "yolo", folder)
    return None


def holds_rois(file: Path) -> bool:
    """Return True if a zip holds ROIs of ImageJ."""
    try:
        return bool(imagej.read_parts(file))
    except DataError:
        return False
