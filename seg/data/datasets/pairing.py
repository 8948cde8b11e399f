"""Which image belongs to which mask: by name, by a table, and page by page.

Pairs are kept packed: reading a Python object writes its reference count, so that a hundred thousand paths
would be copied, page by page, into the memory of each loader process.
"""

import csv
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seg.data.image_io import count_pages, list_images
from seg.data.masks import short
from seg.errors import DataError

NONE = -1  # page of a file that is taken whole


class Pair(NamedTuple):
    """Where an image and its mask are.

    Attributes:
        image: its file.
        masks: file of the mask, or of each class's plane in the order of the classes; None: no such plane.
        page: of both files, from 0; None: they are taken whole.
    """

    image: Path
    masks: list[Path | None]
    page: int | None = None

    @property
    def mask(self) -> Path:
        """The mask's file, or the first of its planes."""
        return next(file for file in self.masks if file is not None)


class Pairs:
    """Pairs by the image's name, in their order.

    Args:
        pairs: name -> pair.
    """

    def __init__(self, pairs: dict[str, Pair]) -> None:
        self.names = packed(list(pairs))
        self.images = packed([str(pair.image) for pair in pairs.values()])
        masks = [str(mask or "") for pair in pairs.values() for mask in pair.masks]
        self.masks = packed(masks).reshape(len(pairs), -1)
        pages = [NONE if pair.page is None else pair.page for pair in pairs.values()]
        self.pages = np.array(pages, np.int32)
        self.order = np.argsort(self.names, kind="stable")
        self.sorted = self.names[self.order]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self.names.tolist())

    def __getitem__(self, name: str) -> Pair:
        place = int(np.searchsorted(self.sorted, np.bytes_(name.encode())))
        if place == len(self.names) or self.sorted[place] != name.encode():
            raise KeyError(name)
        row = int(self.order[place])
        page = int(self.pages[row])
        masks = [Path(file.decode()) if file else None for file in self.masks[row].tolist()]
        return Pair(Path(self.images[row].decode()), masks, None if page == NONE else page)


def packed(texts: list[str]) -> np.ndarray:
    """Texts in one block of memory, as UTF-8 bytes.

    Raises:
        DataError: for the name of a file that isn't UTF-8.
    """
    try:
        return np.array([text.encode() for text in texts], np.bytes_)
    except UnicodeEncodeError as error:
        raise DataError(f"{error.object!r}: a name that isn't UTF-8; rename the file") from error


def paired_by_name(
    folder: Path,
    images: str,
    masks: str,
    pair_by: str | None,
    layers: list[str] | None,
    only: set[str] | None,
) -> tuple[dict[str, Pair], list[DataError]]:
    """Return the pairs of a folder by image name, and an error for each file without a partner.

    Args:
        folder: of both.
        images: its folder of images, or one file.
        masks: its folder of masks, or one file; with ``layers`` a folder of a folder for each class.
        pair_by: regular expression; what it finds in both names is the same. None: the names are.
        layers: the classes, where each has files of its own; None: a mask has one file.
        only: names of images or of their files; the others are left out. None: all count.

    Raises:
        DataError: when a folder or ``pair_by`` is wrong, or two images would have one name.
    """
    if (folder / images).is_file() and (folder / masks).is_file():
        return {Path(images).stem: Pair(folder / images, [folder / masks])}, []
    image_files, issues = keyed(listed(folder / images, only), pair_by)
    planes = []
    folders = [folder / masks] if layers is None else layer_folders(folder / masks, layers)
    for place in folders:
        absent = layers is not None and not place.is_dir()
        plane, doubled = ({}, []) if absent else keyed(listed(place), pair_by)
        planes.append(plane)
        issues += doubled
    have = set().union(*planes)
    hint = "" if pair_by else PATTERN
    for key in [key for key in image_files if key not in have]:
        found = f"no mask of that name in {folder / masks}"
        remedy = f"add it or take the image out{hint}"
        issues.append(DataError(file=image_files.pop(key), found=found, remedy=remedy, kind="no_mask"))  # fmt: skip
    for key in [] if only is not None else sorted(have - set(image_files)):
        file = next(plane[key] for plane in planes if key in plane)
        found = f"no image of that name in {folder / images}"
        remedy = f"add it or take the mask out{hint}"
        issues.append(DataError(file=file, found=found, remedy=remedy, kind="no_image"))
    pairs = {f.stem: Pair(f, [p.get(k) for p in planes]) for k, f in image_files.items()}
    if len(pairs) < len(image_files):  # pair_by found different keys in one name but for the suffix
        raise DataError(
            f"{folder / images}: two files have one name but for the suffix; rename one"
        )
    return pairs, issues


UNPAIRED: ContextVar[list[DataError] | None] = ContextVar("unpaired", default=None)


@contextmanager
def leave_out_unpaired() -> Generator[list[DataError]]:
    """Leave files without a partner out of the sources built inside; yield the list of their errors."""
    errors: list[DataError] = []
    token = UNPAIRED.set(errors)
    try:
        yield errors
    finally:
        UNPAIRED.reset(token)


def report_unpaired(issues: list[DataError]) -> None:
    """Raise the first issue, unless ``leave_out_unpaired`` collects them."""
    errors = UNPAIRED.get()
    if errors is not None:
        errors += issues
    elif issues:
        first = issues[0]
        alike = sum(issue.kind == first.kind for issue in issues)
        found = f"{first.found} ({alike} such files)" if alike > 1 else first.found
        raise DataError(file=first.file, found=found, remedy=first.remedy, kind=first.kind)


LIKE = "a line is one name, like {}"
PATTERN = ", or pair by a part of the names, data.pair_by='^[0-9]+'"


def listed(place: Path, only: set[str] | None = None) -> list[Path]:
    """The image files of a folder, or the one file; those in ``only``, by name with or without suffix.

    Raises:
        DataError: when there are none.
    """
    files = [place] if place.is_file() else list_images(place)
    if only is None:
        return files
    chosen = [f for f in files if f.name in only or f.stem in only]
    if not chosen:
        raise DataError(f"{place}: no image here is in data.lists; {LIKE.format(files[0].stem)}")
    return chosen


def keyed(files: list[Path], pair_by: str | None) -> tuple[dict[str, Path], list[DataError]]:
    """Return files by what pairs them, and an error for each that shares its name with a later one.

    They are paired by their name without the suffix, or by what the regular expression finds.

    Raises:
        DataError: when the regular expression finds nothing in a name, or the same in two.
    """
    try:
        pattern = re.compile(pair_by) if pair_by is not None else None
    except re.error as error:
        raise DataError(f"data.pair_by={pair_by}: not a regular expression ({error})") from error
    named: dict[str, Path] = {}
    issues: list[DataError] = []
    for file in files:
        key = file.stem
        if pattern is not None:
            match = pattern.search(file.stem)
            key = match[min(1, pattern.groups)] if match else None
            if not key:
                raise DataError(f"data.pair_by={pair_by}: finds nothing in the name {file}")
        if key in named and pattern is not None:
            raise DataError(
                f"{named[key]}: {file.name} beside it has the same {key!r} (data.pair_by); keep one of them"
            )
        if key in named:
            found = f"{file.name} beside it has the same name"
            issues.append(DataError(file=named[key], found=found, remedy="keep one of them", kind="same_name"))  # fmt: skip
        named[key] = file
    return named, issues


def layer_folders(folder: Path, classes: list[str]) -> list[Path]:
    """The folder of each class; one class may have none: it is where no other is.

    Raises:
        DataError: when there are other folders, or more are missing.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.layers=folders needs one in it for each class"
        )
    there = sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    strange, missing = sorted(set(there) - set(classes)), [c for c in classes if c not in there]
    if strange or len(missing) > 1 or len(missing) == len(classes):
        raise DataError(
            f"{folder}: holds the folders {short(there)}; data.layers=folders needs one for each of "
            f"{short(classes)}, and one of these may lack it"
        )
    return [folder / name for name in classes]


def paired_by_table(
    file: Path, classes: list[str]
) -> tuple[dict[str, Pair], dict[str, str] | None, dict[str, str] | None]:
    """Pairs of a CSV file, and where it has such columns: name -> split, name -> group.

    Columns: image; mask, or one of each class's name; perhaps split (train, val, test) and group. Paths
    start at the table's folder. An image's name is its path there without the suffix.

    Raises:
        DataError: naming the line that can't be used.
    """
    rows = table_rows(file, classes)
    pairs, splits, groups = {}, {}, {}
    layers = [c for c in classes if c in rows[0][1] and c not in OWN]
    columns = classes if layers else ["mask"]
    if layers and "mask" in rows[0][1] and "mask" not in classes:
        raise DataError(
            f"{file}: its first line names mask and {short(layers)}; a column for the mask or one for each class "
            "is needed, not both"
        )
    for line, row in rows:
        where = f"{file}, line {line}"
        if not row["image"]:
            raise DataError(f"{where}: no image; give its path")
        if not any(row.get(c) for c in columns):
            raise DataError(f"{where}: no mask; give its path, or take the line out")
        image = file.parent / row["image"]
        masks = [file.parent / row[c] if row.get(c) else None for c in columns]
        for path in (image, *masks):
            if path is not None and not exists(path):
                raise DataError(f"{where}: {path} isn't there; paths start at {file.parent}")
        name = Path(row["image"]).with_suffix("").as_posix()
        if name in pairs:
            raise DataError(f"{where}: {name} is on an earlier line too; keep one of them")
        pairs[name] = Pair(image, masks)
        splits[name], groups[name] = row.get("split", ""), row.get("group", "")
        if "group" in row and not row["group"]:
            raise DataError(f"{where}: no group; give one, or leave the column out")
    return (
        pairs,
        splits if "split" in rows[0][1] else None,
        groups if "group" in rows[0][1] else None,
    )


OWN = ("image", "mask", "split", "group")  # columns of a table beside those of classes


def exists(file: Path) -> bool:
    try:
        return file.is_file()
    except (
        OSError
    ):  # a name longer than the system allows, as of two lines that a quotation mark joins
        return False


def table_rows(file: Path, classes: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells of a CSV file, by its own heading.

    Raises:
        DataError: when it can't be read, or its heading isn't right.
    """
    try:
        text = file.read_text("utf-8-sig")
        heading = text.splitlines()[0] if text.strip() else ""
        mark = max(",;\t", key=heading.count)
        reader = csv.DictReader(
            text.splitlines(), delimiter=mark, skipinitialspace=True, strict=True
        )
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: can't be read as a table ({reason})") from error
    twice = [c for c in (*OWN, *classes) if columns.count(c) > 1]
    if twice:
        raise DataError(f"{file}: its first line names {twice[0]} twice; keep one of the columns")
    known = ("image", "mask", *OWN, *classes)
    misspelt = [c for c in columns if c not in known and c.lower().rstrip("s") in known]
    if misspelt:
        right = misspelt[0].lower().rstrip("s")
        raise DataError(f"{file}: its first line names {misspelt[0]!r}; write {right}")
    if "image" not in columns or not {"mask", *classes} & set(columns):
        raise DataError(
            f"{file}: its first line names {columns}; image and mask are needed (or a column for each class), "
            "perhaps split and group"
        )
    if not rows:
        raise DataError(f"{file}: no lines below the first; a line names an image and its mask")
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(
                f"{file}, line {line}: has not {len(columns)} cells, as the first line has"
            )
    return [(line, {key: cell.strip() for key, cell in row.items()}) for line, row in rows]


def page_by_page(pairs: dict[str, Pair]) -> dict[str, Pair]:
    """Each page of a TIFF as an image of its own, NAME-07, with the same page of its mask.

    Raises:
        DataError: when a mask has another number of pages than its image.
    """
    single: dict[str, Pair] = {}
    for name, pair in pairs.items():
        pages = count_pages(pair.image)
        for mask in pair.masks:
            if mask is not None and (other := count_pages(mask)) != pages:
                raise DataError(
                    f"{mask}: {other} pages, and its image {pair.image} {pages}; data.pages=slices needs one mask "
                    "for each page"
                )
        digits = len(str(pages - 1))
        for page in range(pages):
            single[f"{name}-{page:0{digits}d}" if pages > 1 else name] = pair._replace(page=page)
    return single
