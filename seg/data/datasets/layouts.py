"""Layouts of a folder of images and masks: folders of splits, and the options that would pair what is there."""

import os
import re
from collections import defaultdict
from glob import has_magic
from itertools import product
from pathlib import Path
from typing import NamedTuple

from seg.cli.command_line import quote_shell, render_value
from seg.data.datasets.pairing import PairingOptions, find_files, pair_files
from seg.data.image_files import image_stem, is_image_file, is_pattern
from seg.data.ome_zarr import is_store
from seg.data.partition import SPLIT_FOLDERS, SPLITS
from seg.errors import DataError

MAX_EXAMINED = 500  # image files of a folder that a suggestion looks at
MAX_PATTERNS = 40  # patterns of the images, and of the masks, that are compared
MASK_WORDS = re.compile(
    r"(?i:mask|label|annot|segm|ground.?truth|manual|target)|(?<![A-Za-z])(?:gt|GT|seg|Seg|lbl)(?![a-z])"
)
IMAGE_WORDS = re.compile(
    r"(?i:img|image|jpe?g|photo|scan|raw|input)|(?<![A-Za-z])(?:im|rgb|RGB|sat)(?![a-z])"
)


def find_parts(root: Path, images: str, masks: str) -> dict[str, tuple[str, str]]:
    """Return the images and masks of each split's folder, or of all under "".

    Args:
        root: folder of the data.
        images: name of the folder of images, of one file, or a pattern.
        masks: the same of the masks.

    Returns:
        ``{"": (images, masks)}``; or, by name of a folder such as train or valid, ROOT/train/images or
        ROOT/images/train; empty if there is neither.

    Raises:
        DataError: if images lie beside the folders of the splits.
    """
    if is_pattern(root, images):
        return {"": (images, masks)}
    if not (root / images).exists():
        return {name: (f"{name}/{images}", f"{name}/{masks}") for name in split_folders(root)}
    below = split_folders(root / images) if (root / images).is_dir() else []
    if not below:
        return {"": (images, masks)}
    if beside := next((f for f in sorted((root / images).iterdir()) if is_image_file(f)), None):
        raise DataError(
            f"{root / images}: holds {beside.name} and the folders {', '.join(below)}; move the images into the "
            f"folders, or take only those outside, {render_words(f'{images}/*', f'{masks}/*')}"
        )
    return {name: (f"{images}/{name}", f"{masks}/{name}") for name in below}


def split_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are called like splits, in the order of the splits."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    found = [name for name in names if len(name) > 2 and name.lower() in SPLIT_FOLDERS]
    return sorted(found, key=lambda name: (SPLITS.index(SPLIT_FOLDERS[name.lower()]), name))


def render_words(images: str, masks: str, *more: str) -> str:
    """Return the words of a command line that set the images and the masks, and more words."""
    parts = {"images": images, "masks": masks}
    words = [f"data.{name}={render_pattern(part)}" for name, part in parts.items()]
    return " ".join([*words, *more])


def render_pattern(text: str) -> str:
    """Return a pattern quoted for Hydra, if needed, and for the shell."""
    plain = re.fullmatch(r"[\w./*?-]+", text) and not re.fullmatch(r"[\d.e_-]+", text)
    return quote_shell(text if plain else render_value(text))


class Candidate(NamedTuple):
    """Patterns that may pair images and masks: numbers of pairs, of names without a partner, and of files."""

    images: str
    masks: str
    pairs: int
    unpaired: int
    files: int


Matches = dict[str, list[tuple[tuple[str, ...], str]]]  # pattern -> (texts of its wildcards, path)


def suggest_layout(root: Path) -> str:
    """Return the words of a command line that pair the images of a folder with masks; "" if none do.

    Only patterns are tried in which a word says what the masks are: mask, label, gt and the like.
    """
    if (root / "imagesTr").is_dir():
        return "data=nnunet"
    matches = match_patterns(examined_images(root))
    found = [best_candidate(matches, objects) for objects in (False, True)]
    # A file for each object is likely if that explains more files.
    for best in sorted((c for c in found if c), key=lambda c: (-c.pairs, -c.files)):
        objects = best is found[1]
        more = ["data.mask_layers=objects"] * objects
        for images, masks in ((simple_part(best.images), simple_part(best.masks)), best[:2]):
            if count_pairs(root, images, masks, objects) >= best.pairs:
                return render_words(images, masks, *more)
    return ""


def examined_images(root: Path) -> list[str]:
    """Return the paths of the first image files of a folder and its subfolders, relative to it."""
    paths: list[str] = []
    for place, below, names in os.walk(root):
        names += [name for name in below if is_store(Path(name))]
        below[:] = sorted(n for n in below if not n.startswith(".") and not is_store(Path(n)))
        here = Path(place).relative_to(root)
        images = [name for name in sorted(names) if is_image_file(Path(name))]
        paths += [(here / name).as_posix() for name in images[:MAX_EXAMINED]]
        if len(paths) > 3 * MAX_EXAMINED:
            break
    return paths


def match_patterns(paths: list[str]) -> Matches:
    """Return the patterns that suit one of the paths, and all paths that each of them matches.

    In a pattern each folder is a name or ``*``, and the file a name, ``*``, or ``*`` with a beginning or an ending.
    """
    matches: Matches = defaultdict(list)
    for path in paths:
        *folders, last = path.split("/")
        if len(folders) > 4 or has_magic(path):
            continue
        name = image_stem(Path(last))
        suffix = last[len(name) :]
        files = [(f"*{suffix}", name), ("*", name)]
        for separator in re.finditer(r"[_\-. ]", name):
            start, end = separator.span()
            files += [(f"*{name[start:]}{suffix}", name[:start])] if start else []
            files += [(f"{name[:end]}*{suffix}", name[end:])] if end < len(name) else []
        files += [(last, "")] if folders else []
        for places in product(*(((folder, ""), ("*", folder)) for folder in folders)):
            for pattern, text in files:
                parts = (*places, (pattern, text))
                texts = tuple(text for _, text in parts if text)
                matches["/".join(part for part, _ in parts)].append((texts, path))
    return matches


def best_candidate(matches: Matches, objects: bool) -> Candidate | None:
    """Return the patterns that pair the most files with the fewest left over; None if none pair half of them."""
    ordered = sorted(matches, key=lambda pattern: (-len(matches[pattern]), len(pattern)))
    images = [p for p in ordered if not MASK_WORDS.search(p)][:MAX_PATTERNS]
    masks = [p for p in ordered if MASK_WORDS.search(p)][:MAX_PATTERNS]
    tried = (compare_patterns(i, m, matches, objects) for i in images for m in masks)
    candidates = [c for c in tried if c and 2 * c.pairs >= c.unpaired + c.pairs]

    def order(one: Candidate) -> tuple[int, int, int, int, int, str]:
        both = one.images + one.masks
        words = len(IMAGE_WORDS.findall(one.images)) + len(MASK_WORDS.findall(one.masks))
        return one.unpaired - one.pairs, -one.files, both.count("*"), -words, -len(both), both

    return min(candidates, key=order, default=None)


def compare_patterns(images: str, masks: str, matches: Matches, objects: bool) -> Candidate | None:
    """Return how two patterns pair; None if their wildcards do not suit each other, or a name has two files."""
    count = masks.count("*") - objects
    if not count or images.count("*") < count or (not objects and images.count("*") != count):
        return None
    of_masks = {path for _, path in matches[masks]}
    image_names = [texts[:count] for texts, path in matches[images] if path not in of_masks]
    mask_names = [texts[:count] for texts, _ in matches[masks]]
    distinct = [set(image_names), set(mask_names)]
    if len(distinct[0]) < len(image_names) or (not objects and len(distinct[1]) < len(mask_names)):
        return None
    pairs = len(distinct[0] & distinct[1])
    unpaired = len(distinct[0]) + len(distinct[1]) - 2 * pairs
    return Candidate(images, masks, pairs, unpaired, len(image_names) + len(mask_names))


def simple_part(pattern: str) -> str:
    """Return the folder of a pattern such as ``img/*.png`` or ``*/img/*.png``; other patterns as they are."""
    *folders, last = pattern.split("/")
    named = [folder for folder in folders if folder != "*"]
    return "/".join(named) if named and re.fullmatch(r"\*(\.\w+)*", last) else pattern


def count_pairs(root: Path, images: str, masks: str, objects: bool) -> int:
    """Return the number of pairs that ``data.images`` and ``data.masks`` give."""
    count, options = 0, PairingOptions(object_files=objects)
    try:
        for image_part, mask_part in find_parts(root, images, masks).values():
            places = (root / image_part, root / mask_part)
            planes = [find_files(root, mask_part, objects)]
            count += len(pair_files(find_files(root, image_part), planes, options, places)[0])
    except DataError:
        return 0
    return count
