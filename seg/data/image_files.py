"""Image files by name: which are read, listed in folders, found by patterns, and what else a folder holds."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from seg.data.ome_zarr import is_store
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
    **dict.fromkeys([".czi", ".nd2", ".lif", ".vsi", ".oib", ".oif", ".ims", ".scn", ".bif"], BIO_FORMATS),
    **dict.fromkeys([".mrxs", ".vms"], "vips tiffsave IN{0} OUT.tif --tile --pyramid --compression jpeg --bigtiff"),
    **dict.fromkeys([".heic", ".heif"], "heif-convert IN{0} OUT.png"),
    ".jxl": "djxl IN{0} OUT.png",
    ".img": "nib-convert IN.hdr OUT.nii.gz",
    "": "name it NAME.dcm if it is DICOM",
}  # suffix -> the command that converts such a file to one that is read  # fmt: skip

WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^/\]]+\]")
WILDCARDS = re.compile(rf"(?:{WILDCARD.pattern})+")  # neighbours match one text together
WILDCARD_REGEX = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def image_suffix(file: Path) -> str:
    """Return the suffix of a file's name in lower case, ``.nii.gz`` and Cellpose's ``_seg.npy`` as one."""
    name = file.name.lower()
    compound = next((suffix for suffix in (".nii.gz", "_seg.npy") if name.endswith(suffix)), None)
    return compound or os.path.splitext(name)[1]


def image_stem(file: Path) -> str:
    """Return the name of a file without its suffix, be it ``.png``, ``.nii.gz`` or ``.ome.tif``."""
    stem = file.name[:-7] if image_suffix(file) == ".nii.gz" else file.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def is_image_file(file: Path) -> bool:
    """Return True if a file's name has the suffix of an image and is not hidden."""
    return image_suffix(file) in IMAGE_SUFFIXES and not file.name.startswith(".")


def is_single_image(path: Path) -> bool:
    """Return True if a path is a file, or a folder that is one image: an OME-Zarr."""
    return path.is_file() or (is_store(path) and path.is_dir())


def scan_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files of a folder, sorted by name, and the files that are passed over.

    Hidden files, and those with a suffix of ``OTHER_FILES``, are in neither list.

    Raises:
        DataError: if the folder does not exist.
    """
    if not folder.is_dir():
        place = folder.parent
        beside = f"; {place} {describe_folder(place)}" if place.is_dir() else ""
        raise DataError(f"{folder}: no such folder{beside}")
    names = sorted(os.listdir(folder))  # strings sort much faster than paths
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    return divide_names(folder, [n for n in names if n not in folders or is_store(folder / n)])


def divide_names(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the image files among names of a folder, and those that are passed over, as ``scan_folder``."""
    images, others = [], []
    for file in (folder / name for name in names if not name.startswith(".")):
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
    """Raise DataError if a folder holds no images, with what it holds instead."""
    if images:
        return
    below = next(
        (n for _, _, names in os.walk(folder) for n in names if is_image_file(Path(n))), ""
    )
    if below:
        raise DataError(f"{folder}: images only in its folders; it {describe_folder(folder)}")
    text = f"{folder}: no images here; it {describe_folder(folder)}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
    raise DataError("; ".join([text, *describe_passed_over(others)]))


def walk_images(folder: Path, without: Path | None = None) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted; hidden ones and those in ``without`` left out.

    Raises:
        DataError: if there are none.
    """
    files, others = divide_tree(folder, without)
    check_images_found(folder, files, others)
    return files


def log_passed_over(folder: Path, without: Path | None = None) -> None:
    """Warn of the files of a folder and its subfolders that are not read, in one line; a single image has none."""
    several = folder.is_dir() and not is_store(folder)
    for line in describe_passed_over(divide_tree(folder, without)[1]) if several else ():
        log.warning(line)


def divide_tree(folder: Path, without: Path | None) -> tuple[list[Path], list[Path]]:
    """Return the image files of a folder and its subfolders, sorted, and those that are passed over."""
    files: list[Path] = []
    others: list[Path] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        names += [name for name in below if is_store(Path(name))]
        below[:] = [name for name in below if not is_store(Path(name))]
        if without is not None:
            below[:] = [
                name for name in below if Path(place, name).absolute() != without.absolute()
            ]
        images, passed = divide_names(Path(place), names)
        files, others = files + images, others + passed
    return sorted(files), sorted(others)


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


def is_pattern(root: Path, text: str) -> bool:
    """Return True if a text has wildcards and no file or folder of ``root`` has that very name."""
    return has_magic(text) and not (root / text).exists()


def find_images(root: Path, pattern: str) -> list[tuple[tuple[str, ...], Path]]:
    """Return the image files that match a pattern, each with the texts that its wildcards match.

    Neighbouring wildcards match one text. The suffix of the file does not belong to it.

    Args:
        root: folder at which the pattern starts.
        pattern: with ``*``, ``?``, ``[...]``, and ``**`` for any number of folders.

    Returns:
        (texts, file), in the order of the texts.
    """
    regexes = [compile_pattern(text) for text in pattern_stems(pattern)]
    found = []
    for path in glob(pattern, root_dir=root, recursive=True):
        file = root / path
        inside = any(is_store(parent) for parent in Path(path).parents)
        if inside or not is_image_file(file) or (file.is_dir() and not is_store(file)):
            continue
        stem = Path(path).with_name(image_stem(file)).as_posix()
        match = next((m for regex in regexes if (m := regex.fullmatch(stem))), None)
        texts = match.groups() if match else (stem,)
        found.append((tuple(text.strip("/") for text in texts), file))
    return sorted(found, key=lambda item: "/".join(item[0]) + ".")  # as names with a suffix sort


def pattern_stems(pattern: str) -> list[str]:
    """Return a pattern without its suffix, ``*_mask`` of ``*_mask.tif*``, and as it is, if it may have none."""
    head, slash, last = Path(pattern).as_posix().rpartition("/")
    stems = [last.rpartition(".")[0], last] if "." in last else [last]
    return [head + slash + re.sub(r"(?i)\.ome$", "", stem) for stem in stems if stem]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, with a group for each run of neighbouring wildcards."""
    literals = [re.escape(text) for text in WILDCARDS.split(pattern)]
    groups = [
        "".join(
            WILDCARD_REGEX.get(token) or token.replace("[!", "[^")
            for token in WILDCARD.findall(run)
        )
        for run in WILDCARDS.findall(pattern)
    ]
    parts = [f"({group}){literal}" for group, literal in zip(groups, literals[1:], strict=True)]
    return re.compile(literals[0] + "".join(parts))


def describe_folder(folder: Path) -> str:
    """Return the content of a folder, such as "holds 30 *.jpg, 30 *_mask.png and the folder old"."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    stores = {entry.name for entry in entries if is_store(Path(entry.name))}
    folders = [entry.name for entry in entries if entry.is_dir() and entry.name not in stores]
    files = [entry.name for entry in entries if not entry.is_dir() or entry.name in stores]
    # Files by ending: that of several files, _mask.png, else the suffix; a file that is alone by its name
    endings = [re.sub(r"^.*?((?:[_-][A-Za-z]\w*)?(?:\.\w+)*)$", r"\1", name) for name in files]
    shared = Counter(endings)
    kinds = [e if shared[e] > 1 else Path(n).suffix for n, e in zip(files, endings, strict=True)]
    first = dict(zip(reversed(kinds), reversed(files), strict=True))
    common = Counter(kinds).most_common(6)
    parts = [f"{n} *{kind}" if n > 1 else first[kind] for kind, n in common]
    parts += ["other files"] if len(first) > len(common) else []
    parts = list(files) if len(files) <= 3 else parts
    if folders:
        more = f", ... {folders[-1]} ({len(folders)})" if len(folders) > 8 else ""
        shown = ", ".join(folders[:8] if not more else folders[:3]) + more
        parts.append(f"the folder{'s' * (len(folders) > 1)} {shown}")
    if not parts:
        return "is empty"
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    below = (
        f"; {folders[0]} {describe_folder(folder / folders[0])}" if folders and not files else ""
    )
    return f"holds {listed}{below}"
