"""Image files by name: listed in a folder, found by a pattern, and described for messages."""

import os
import re
from collections import Counter
from glob import glob, has_magic
from pathlib import Path

from seg.data.image_io import IMAGE_SUFFIXES, is_image_file
from seg.errors import DataError

WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^/\]]+\]")
WILDCARDS = re.compile(rf"(?:{WILDCARD.pattern})+")  # neighbours match one text together
WILDCARD_REGEX = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name; hidden and other files are left out.

    Raises:
        DataError: if the folder does not exist or holds no image; the message has what is there instead.
    """
    if not folder.is_dir():
        place = folder.parent
        beside = f"; {place} {describe_folder(place)}" if place.is_dir() else ""
        raise DataError(f"{folder}: no such folder{beside}")
    names = sorted(os.listdir(folder))  # strings sort much faster than paths
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    files = [file for n in names if n not in folders and is_image_file(file := folder / n)]
    if not files:
        raise no_images_error(folder)
    return files


def walk_images(folder: Path, without: Path | None = None) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted; hidden ones and those in ``without`` left out.

    Raises:
        DataError: if there are none.
    """
    files: list[Path] = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        if without is not None:
            below[:] = [
                name for name in below if Path(place, name).absolute() != without.absolute()
            ]
        files += [file for name in names if is_image_file(file := Path(place, name))]
    if not files:
        raise no_images_error(folder)
    return sorted(files)


def no_images_error(folder: Path) -> DataError:
    """Return the error of a folder that holds no images itself."""
    below = next(
        (n for _, _, names in os.walk(folder) for n in names if is_image_file(Path(n))), ""
    )
    if below:
        return DataError(f"{folder}: images only in its folders; it {describe_folder(folder)}")
    return DataError(
        f"{folder}: no images here; it {describe_folder(folder)}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
    )


def image_name(file: Path) -> str:
    """Return the name of a file without its suffix, be it ``.png`` or ``.ome.tif``."""
    stem = file.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


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
        if not is_image_file(file) or file.is_dir():
            continue
        stem = Path(path).with_name(image_name(file)).as_posix()
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
    folders = [entry.name for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if not entry.is_dir()]
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
