"""Pairing of images with masks: by file name, by a table, and page by page."""

import csv
import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from seg.data.image_files import (
    check_images_found,
    conversion_hint,
    describe_passed_over,
    image_stem,
    image_suffix,
    is_image_file,
    list_images,
    scan_folder,
)
from seg.data.image_io import count_pages, log_axes, read_axes
from seg.data.masks import shorten_list
from seg.data.similar_names import SIMILAR_HINT, find_similar, similar_file, similar_key
from seg.data.tiff import warn_once
from seg.data.tiff_layout import PagesOption
from seg.errors import DataError

LIST_LINE_HINT = "a line is one name, like {}"
PAIR_BY_HINT = ", or pair by a part of the names, data.pair_by='^[0-9]+'"
TABLE_COLUMNS = ("image", "mask", "split", "group")  # columns of a table that are not classes


class Pair(NamedTuple):
    """Files of an image and its mask.

    Attributes:
        image: file of the image.
        masks: file of the mask, of each class's layer in the order of the classes, or of each object; None: no such
            layer.
        page: page of both files, from 0; None: the files are one image each.
        pages: use of several pages; see ``seg.data.image_io.read_pages``.
    """

    image: Path
    masks: list[Path | None]
    page: int | None = None
    pages: PagesOption | None = None

    @property
    def mask_pages(self) -> PagesOption | None:
        """Use of several pages of the mask, which are never the channels of an image."""
        return "slices" if self.pages == "slices" else None

    @property
    def mask(self) -> Path:
        """File of the mask, or of its first layer."""
        return next(file for file in self.masks if file is not None)


def pair_by_names(
    folder: Path,
    images: str,
    masks: str,
    pair_by: str | None,
    layers: list[str] | None,
    only: set[str] | None,
    similar: bool = False,
    objects: bool = False,
) -> tuple[dict[str, Pair], list[DataError]]:
    """Return the pairs of a folder by image name, and an error for each file without a partner.

    Args:
        folder: folder that holds images and masks.
        images: its folder of images, or one file.
        masks: its folder of masks, or one file; with ``layers`` a folder with one folder per class.
        pair_by: regular expression; images and masks with the same match are a pair. None: those with the same
            name but for the suffix.
        layers: classes, if each has a file of its own; None: a mask is one file.
        only: names of the images to use, with or without suffix; None: all images.
        similar: pair names that differ only in case, white space or the encoding of accents, too.
        objects: whether a mask is a folder of that name, with a file for each object.

    Raises:
        DataError: if a folder or ``pair_by`` is wrong, or finds one key in two names.
    """
    if (folder / images).is_file() and (folder / masks).is_file():
        return {image_stem(Path(images)): Pair(folder / images, [folder / masks])}, []
    # Key the files of the images, and of each layer of the masks.
    image_files, issues = files_by_key(
        listed_images(folder / images, only, similar), pair_by, similar
    )
    planes = []
    for layer in [folder / masks] if layers is None else find_layer_folders(folder / masks, layers):
        absent = layers is not None and not layer.is_dir()
        listed = [] if absent else list_folders(layer) if objects else listed_images(layer)
        plane, doubled = files_by_key(listed, pair_by, similar)
        planes.append(plane)
        issues += doubled
    mask_keys = set().union(*planes)
    hint = "" if pair_by else PAIR_BY_HINT
    all_keys, image_keys = sorted(mask_keys), list(image_files)
    # Images without a mask are reported and left out.
    for key in [key for key in image_files if key not in mask_keys]:
        text, remedy = missing_partner("mask", "image", folder / masks, key, all_keys, hint)
        issues.append(DataError(file=image_files.pop(key), found=text, remedy=remedy, kind="no_mask"))  # fmt: skip
    # Masks without an image are reported, unless lists name the images to use.
    for key in [] if only is not None else sorted(mask_keys - set(image_files)):
        file = next(plane[key] for plane in planes if key in plane)
        text, remedy = missing_partner("image", "mask", folder / images, key, image_keys, hint)
        issues.append(DataError(file=file, found=text, remedy=remedy, kind="no_image"))
    pairs = {image_stem(f): Pair(f, [p.get(k) for p in planes]) for k, f in image_files.items()}
    if objects:
        pairs = {name: Pair(p.image, [*list_images(p.mask)]) for name, p in pairs.items()}
    return pairs, issues


def missing_partner(
    kind: str, other: str, place: Path, key: str, candidates: list[str], hint: str
) -> tuple[str, str]:
    """Return the finding and the remedy for a file that has no partner in ``place``."""
    if similar := find_similar(key, candidates):
        return f"no {kind} of that name in {place}, but {similar}", SIMILAR_HINT
    return f"no {kind} of that name in {place}", f"add it or take the {other} out{hint}"


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name.

    Raises:
        DataError: if there is none.
    """
    folders = sorted(f for f in folder.glob("*/") if not f.name.startswith("."))
    if not folders:
        raise DataError(
            f"{folder}: holds no folders; data.mask_layers=objects needs one for each image, with a file for each object"
        )
    return folders


UNPAIRED_ERRORS: ContextVar[list[DataError] | None] = ContextVar("unpaired", default=None)


@contextmanager
def leave_out_unpaired() -> Generator[list[DataError]]:
    """Leave files without a partner out of the sources built inside; yield the list of their errors."""
    errors: list[DataError] = []
    token = UNPAIRED_ERRORS.set(errors)
    try:
        yield errors
    finally:
        UNPAIRED_ERRORS.reset(token)


def report_unpaired(issues: list[DataError]) -> None:
    """Raise the first issue, unless ``leave_out_unpaired`` collects them."""
    errors = UNPAIRED_ERRORS.get()
    if errors is not None:
        errors += issues
    elif issues:
        first = issues[0]
        alike = sum(issue.kind == first.kind for issue in issues)
        text = f"{first.found} ({alike} such files)" if alike > 1 else first.found
        raise DataError(file=first.file, found=text, remedy=first.remedy, kind=first.kind)


def report_passed_over(folder: Path, files: list[Path]) -> None:
    """Warn once of files of a folder that are not read, unless ``leave_out_unpaired`` collects them."""
    errors = UNPAIRED_ERRORS.get()
    if errors is None:
        for line in describe_passed_over(files):
            warn_once(folder, f"{folder} {line}", line)
        return
    for file in files:
        suffix = image_suffix(file)
        remedy = conversion_hint(suffix) or "save it as TIFF or PNG, or take it out"
        found = f"passed over: {suffix or 'a name without a suffix'} is not read"
        errors.append(DataError(file=file, found=found, remedy=remedy, kind="passed_over"))


def listed_images(path: Path, only: set[str] | None = None, similar: bool = False) -> list[Path]:
    """Return the image files of a folder, or the one file, restricted to the names in ``only``, or similar ones.

    Raises:
        DataError: if there are none.
    """
    files = [path]
    if not path.is_file():
        files, others = scan_folder(path)
        check_images_found(path, files, others)
        report_passed_over(path, others)
    if only is None:
        return files
    key = similar_key if similar else str
    names = set(map(key, only))
    chosen = [f for f in files if key(f.name) in names or key(image_stem(f)) in names]
    if not chosen:
        raise DataError(
            f"{path}: no image here is in data.lists; {LIST_LINE_HINT.format(image_stem(files[0]))}"
        )
    return chosen


def files_by_key(
    files: list[Path], pair_by: str | None, similar: bool = False
) -> tuple[dict[str, Path], list[DataError]]:
    """Return files by the key that pairs them, and an error for each that shares its name with a later one.

    The key is the name without the suffix, or the match of the regular expression: its first group, if any;
    with ``similar`` without regard to case, spaces and the encoding of accents.

    Raises:
        DataError: if the regular expression is invalid, or matches nothing in a name or the same in two.
    """
    try:
        pattern = re.compile(pair_by) if pair_by is not None else None
    except re.error as error:
        raise DataError(f"data.pair_by={pair_by}: not a regular expression ({error})") from error
    # Key of each file: its stem, or the part that the expression matches.
    by_key: dict[str, Path] = {}
    issues: list[DataError] = []
    for file in files:
        # A folder's name has no suffix
        name = key = image_stem(file) if is_image_file(file) else file.name
        if pattern is not None:
            match = pattern.search(name)
            key = match[min(1, pattern.groups)] if match else None
            if not key:
                raise DataError(f"data.pair_by={pair_by}: matches nothing in the name {file}")
        key = similar_key(key) if similar else key
        # Two files of one key: an error if pair_by makes it, an issue if the names do.
        if key in by_key and pattern is not None:
            raise DataError(
                f"{by_key[key]}: {file.name} has the same key {key!r} (data.pair_by); keep one of them"
            )
        if key in by_key:
            text = (
                f"{file.name} has the same name" + " but for case, white space or accents" * similar
            )
            issues.append(DataError(file=by_key[key], found=text, remedy="keep one of them", kind="same_name"))  # fmt: skip
        by_key[key] = file
    return by_key, issues


def find_layer_folders(folder: Path, classes: list[str]) -> list[Path]:
    """Return the folder of each class; one class may have none: it is where no other class is.

    Raises:
        DataError: if there are other folders, or more are missing.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.mask_layers=folders needs one in it for each class"
        )
    present = sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    unknown, missing = sorted(set(present) - set(classes)), [c for c in classes if c not in present]
    if unknown or len(missing) > 1 or len(missing) == len(classes):
        raise DataError(
            f"{folder}: holds the folders {shorten_list(present)}; data.mask_layers=folders needs one for each of "
            f"{shorten_list(classes)}, and one of these may be missing"
        )
    return [folder / name for name in classes]


def pair_by_table(
    file: Path, classes: list[str], similar: bool = False
) -> tuple[dict[str, Pair], dict[str, str] | None, dict[str, str] | None]:
    """Return the pairs of a CSV file, and from its columns, if present, name -> split and name -> group.

    Columns: ``image``; ``mask``, or one per class with the class's name; optional ``split`` (train, val, test)
    and ``group``. Paths are relative to the table's folder. An image's name is its path without the suffix. With
    ``similar`` a path may differ from the file's name in case, white space or the encoding of accents.

    Raises:
        DataError: if a line cannot be used; the message has its number.
    """
    # The columns that hold masks.
    rows = read_table(file, classes)
    pairs, splits, groups = {}, {}, {}
    layers = [c for c in classes if c in rows[0][1] and c not in TABLE_COLUMNS]
    columns = classes if layers else ["mask"]
    if layers and "mask" in rows[0][1] and "mask" not in classes:
        raise DataError(
            f"{file}: its first line names mask and {shorten_list(layers)}; a column for the mask or one for each class "
            "is needed, not both"
        )
    for line, row in rows:
        # Each line names files that exist.
        where = f"{file}, line {line}"
        if not row["image"]:
            raise DataError(f"{where}: no image; give its path")
        if not any(row.get(c) for c in columns):
            raise DataError(f"{where}: no mask; give its path, or take the line out")
        image = find_table_file(file.parent / row["image"], similar, where)
        masks = [
            find_table_file(file.parent / row[c], similar, where) if row.get(c) else None
            for c in columns
        ]
        # Each image has one line.
        written = Path(row["image"])
        name = written.with_name(image_stem(written)).as_posix()
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


def find_table_file(path: Path, similar: bool, where: str) -> Path:
    """Return the file of a table's path, or with ``similar`` the one with a similar name.

    Raises:
        DataError: if there is none; ``where`` names the line.
    """
    if file_exists(path):
        return path
    other = similar_file(path)
    if other is None:
        raise DataError(f"{where}: {path} does not exist; paths start at the table's folder")
    if similar:
        return other
    difference = find_similar(path.name, [other.name])
    raise DataError(f"{where}: {path} does not exist, but {difference}; {SIMILAR_HINT}")


def file_exists(file: Path) -> bool:
    """Return True if a file exists; False if its name is longer than the system allows."""
    try:
        return file.is_file()
    except OSError:
        return False


def read_table(file: Path, classes: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the line numbers and cells of a CSV file, by the names of its first line.

    Raises:
        DataError: if it cannot be read, or its first line names the wrong columns.
    """
    # The separator is the most frequent one of the first line.
    try:
        text = file.read_text("utf-8-sig")
        heading = text.splitlines()[0] if text.strip() else ""
        separator = max(",;\t", key=heading.count)
        reader = csv.DictReader(
            text.splitlines(), delimiter=separator, skipinitialspace=True, strict=True
        )
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: can't be read as a table ({reason})") from error
    # The columns: none twice, none misspelt, none missing.
    twice = [c for c in (*TABLE_COLUMNS, *classes) if columns.count(c) > 1]
    if twice:
        raise DataError(f"{file}: its first line names {twice[0]} twice; keep one of the columns")
    known = (*TABLE_COLUMNS, *classes)
    misspelt = [c for c in columns if c not in known and c.lower().rstrip("s") in known]
    if misspelt:
        right = misspelt[0].lower().rstrip("s")
        raise DataError(f"{file}: its first line names {misspelt[0]!r}; write {right}")
    if "image" not in columns or not {"mask", *classes} & set(columns):
        raise DataError(
            f"{file}: its first line names {columns}; image and mask are needed (or a column for each class), "
            "and optionally split and group"
        )
    # The rows: at least one, each with all cells.
    if not rows:
        raise DataError(f"{file}: no lines below the first; a line names an image and its mask")
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(f"{file}, line {line}: must have {len(columns)} cells, as the first line")  # fmt: skip
    return [(line, {key: cell.strip() for key, cell in row.items()}) for line, row in rows]


def split_pages(name: str, pair: Pair) -> dict[str, Pair]:
    """Return each slice of a stack as an image of its own, named NAME-07, with the same slice of its mask.

    With ``pages`` None a file is a stack where its axes say so; one that can't be read is left to its reader.

    Raises:
        DataError: if a mask has another number of slices than its image.
    """
    if pair.pages == "channels":
        return {name: pair}
    if pair.pages is None:
        try:
            pages, axes = read_axes(pair.image)
        except DataError:
            return {name: pair}
        log_axes(pair.image, axes)
        if pages == 1 or not axes:
            return {name: pair}
    else:
        pages = count_pages(pair.image, pair.pages)
    for mask in pair.masks:
        if mask is None:
            continue
        mask_pages = count_pages(mask, pair.mask_pages, mask=True)
        if mask_pages != pages:
            raise DataError(
                f"{mask}: {mask_pages} pages, but its image {pair.image} has {pages}; data.pages=slices, and an image "
                "whose axes are slices, need one mask for each page"
            )
    digits = len(str(pages - 1))
    return {
        f"{name}-{page:0{digits}d}" if pages > 1 else name: pair._replace(page=page)
        for page in range(pages)
    }
