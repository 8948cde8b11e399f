"""Image files by their names: which are read, and which other files of a folder are passed over."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seg.data.stacks import STACK_SUFFIXES
from seg.data.tiff_layout import TIFF_SUFFIXES
from seg.errors import DataError

log = logging.getLogger("seg")

JPEG2000_SUFFIXES = {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
PILLOW_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm", ".avif"}
IMAGE_SUFFIXES = TIFF_SUFFIXES | STACK_SUFFIXES | PILLOW_SUFFIXES | JPEG2000_SUFFIXES
OTHER_FILES = {
    ".txt", ".csv", ".tsv", ".json", ".geojson", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".pdf",
    ".log", ".ini", ".cfg", ".toml", ".py", ".ipynb", ".sh", ".db", ".xls", ".xlsx", ".doc", ".docx",
    ".tfw", ".pgw", ".jgw", ".wld", ".prj", ".ovr", ".roi", "_seg.npy", ".md5", ".sha256",
}  # suffixes of files that are no images  # fmt: skip
BIO_FORMATS = "bfconvert IN{0} OUT.ome.tif"
CONVERSIONS = {
    **dict.fromkeys([".czi", ".nd2", ".lif", ".vsi", ".oib", ".oif", ".ims", ".lsm", ".scn", ".bif"], BIO_FORMATS),
    **dict.fromkeys([".mrxs", ".vms"], "vips tiffsave IN{0} OUT.tif --tile --pyramid --compression jpeg --bigtiff"),
    **dict.fromkeys([".heic", ".heif"], "heif-convert IN{0} OUT.png"),
    ".jxl": "djxl IN{0} OUT.png",
    ".img": "nib-convert IN.hdr OUT.nii.gz",
    "": "name it NAME.dcm if it is DICOM",
}  # suffix -> the command that converts such a file to one that is read  # fmt: skip


def image_suffix(file: Path) -> str:
    """Return the suffix of a file's name in lower case, ``.nii.gz`` and Cellpose's ``_seg.npy`` as one."""
    name = file.name.lower()
    compound = next((suffix for suffix in (".nii.gz", "_seg.npy") if name.endswith(suffix)), None)
    return compound or os.path.splitext(name)[1]


def image_stem(file: Path) -> str:
    """Return the name of a file without its suffix, of ``a.nii.gz`` ``a``."""
    return file.name[:-7] if image_suffix(file) == ".nii.gz" else file.stem


def is_image_file(file: Path) -> bool:
    """Return True if a file's name has the suffix of an image and is not hidden."""
    return image_suffix(file) in IMAGE_SUFFIXES and not file.name.startswith(".")


def scan_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files of a folder, sorted by name, and the files that are passed over.

    Hidden files, and those with a suffix of ``OTHER_FILES``, are in neither list.

    Raises:
        DataError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(os.listdir(folder))  # strings sort much faster than paths
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    files = [folder / n for n in names if n not in folders and not n.startswith(".")]
    images, others = [], []
    for file in files:
        suffix = image_suffix(file)
        if suffix in IMAGE_SUFFIXES:
            images.append(file)
        elif suffix not in OTHER_FILES:
            others.append(file)
    return images, others


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden and other files are left out.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    images, others = scan_folder(folder)
    check_images_found(folder, images, others)
    return images


def check_images_found(folder: Path, images: Sequence[Path], others: Sequence[Path] = ()) -> None:
    """Raise DataError if a folder holds no images, naming the other files that it holds."""
    if not images:
        text = f"{folder}: no images here; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError("; ".join([text, *describe_passed_over(others)]))


def log_passed_over(folder: Path) -> None:
    """Warn of the files of a folder that are not read, in one line; a single file has none."""
    if folder.is_dir():
        for line in describe_passed_over(scan_folder(folder)[1]):
            log.warning(line)


def describe_passed_over(files: Sequence[Path]) -> list[str]:
    """Return one line for files that are not read, with the commands that convert them; [] if there are none.

    The line is ``4 files passed over: 3 .czi, 1 .xyz; convert them: bfconvert IN.czi OUT.ome.tif``.
    """
    if not files:
        return []
    counts = Counter(image_suffix(file) for file in files)
    kinds = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in sorted(counts.items()))
    line = f"{len(files)} {'file' if len(files) == 1 else 'files'} passed over: {kinds}"
    hints = [hint for suffix in sorted(counts) if (hint := conversion_hint(suffix))]
    return ["; ".join([line, *hints])]


def conversion_hint(suffix: str) -> str:
    """Return how to convert a file with this suffix to one that is read; empty if it is not known."""
    if suffix not in CONVERSIONS:
        return ""
    command = CONVERSIONS[suffix].format(suffix)
    return f"convert {suffix}: {command}" if suffix else command
