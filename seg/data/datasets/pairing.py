"""Pairing of images with masks: by file name or pattern, by a table, and page by page."""

import csv
import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from glob import escape
from pathlib import Path
from typing import NamedTuple

from seg.data.image_files import (
    conversion_hint,
    describe_folder,
    describe_passed_over,
    find_images,
    image_stem,
    image_suffix,
    is_pattern,
    is_single_image,
    list_images,
    scan_folder,
)
from seg.data.image_io import count_pages, log_axes, read_axes
from seg.data.masks import shorten_list
from seg.data.ome_zarr import check_address
from seg.data.partition import split_of_folders
from seg.data.similar_names import SIMILAR_HINT, find_similar, similar_file, similar_key
from seg.data.tiff import warn_once
from seg.data.tiff_layout import PagesOption
from seg.errors import DataError

LIST_LINE_HINT = "a line is one name, like {}"
PAIR_BY_HINT = ", or pair by a part of the names, data.pair_by='^[0-9]+'"
log = logging.getLogger("seg")
TABLE_COLUMNS = ("image", "mask", "split", "group")  # columns of a table that are not classes


class Pair(NamedTuple):
    """Files of an image and its mask.

    Attributes:
        image: file of the image, or of its first channel.
        masks: file of the mask; of each class's layer in the order of the classes, None: no such layer; or of each
            object.
        page: page of both files, from 0; None: the files are one image each.
        pages: use of several pages; see ``seg.data.image_io.read_pages``.
        channels: files of the further channels of the image.
    """

    image: Path
    masks: list[Path | None]
    page: int | None = None
    pages: PagesOption | None = None
    channels: tuple[Path, ...] = ()

    @property
    def mask_pages(self) -> PagesOption | None:
        """Use of several pages of the mask, which are never the channels of an image."""
        return "slices" if self.pages == "slices" else None

    @property
    def mask(self) -> Path:
        """File of the mask, or of its first layer."""
        return next(file for file in self.masks if file is not None)


class PairingOptions(NamedTuple):
    """Options that pair images and masks.

    Attributes:
        pair_by: regular expression; images and masks with the same match are a pair. None: those of the same name.
        object_files: the last wildcard of the masks numbers the objects of an image, each with a file.
        channel_files: the last wildcard of the images numbers the channels of an image, each with a file.
        only: names of the images to use, with or without suffix; None: all images.
        similar: pair names that differ only in case, white space or the encoding of accents, too.
    """

    pair_by: str | None = None
    object_files: bool = False
    channel_files: bool = False
    only: set[str] | None = None
    similar: bool = False


class NamedFiles(NamedTuple):
    """Name of an image, and its file; or the files of its channels or objects."""

    name: str
    files: list[Path]


FoundFiles = list[tuple[tuple[str, ...], Path]]  # texts that name a file, and the file


def find_files(root: Path, part: str, several: bool = False) -> FoundFiles:
    """Return the image files of ``data.images`` or ``data.masks``, with the texts that name them.

    Args:
        root: folder of the data.
        part: a folder, one file, or a pattern, whose wildcards match the texts.
        several: an image has several files: those of a folder of its name, unless it is a pattern.

    Raises:
        DataError: if there are none.
    """
    path = root / part
    if is_single_image(path):
        return [((image_stem(path),), path)]
    if several and path.is_dir():
        part = f"{escape(part)}/*/*"
    elif not is_pattern(root, part):
        return [((image_stem(file),), file) for file in listed_images(path)]
    if not (found := find_images(root, part)):
        raise DataError(f"{root / part}: no image matches; {root} {describe_folder(root)}")
    return found


def pair_files(
    images: FoundFiles,
    planes: list[FoundFiles],
    options: PairingOptions,
    places: tuple[Path, Path],
    prefix: str = "",
) -> tuple[dict[str, Pair], list[DataError]]:
    """Return the pairs by image name, and an error for each file without a partner.

    A file that both patterns match is a mask; if that leaves no image, it is an image.

    Args:
        images: files of the images.
        planes: files of the masks, of each layer.
        options: of pairing.
        places: where images and masks were looked for, for messages.
        prefix: of the names: the folder of the split and a slash.

    Raises:
        DataError: if ``pair_by`` is wrong or finds one key in two names, or patterns do not suit each other.
    """
    # Divide files that both patterns match.
    masks = {file for plane in planes for _, file in plane}
    if both := {file for _, file in images} & masks:
        if only_images := [(texts, file) for texts, file in images if file not in both]:
            images = only_images
        else:
            planes = [[(t, file) for t, file in plane if file not in both] for plane in planes]
            if not any(planes):
                raise DataError(f"{places[0]}: data.images and data.masks are the same files")
    # Key the files of the images, and of each layer of the masks.
    if options.object_files and planes[0]:
        count = len(planes[0][0][0]) - 1 + options.channel_files
        images = [(texts[:count], file) for texts, file in images]
    image_files, issues = files_by_key(
        keep_listed(name_files(images, "images", options.channel_files), options, places[0]),
        options,
    )
    if options.channel_files:
        check_channel_files(images)
    mask_files = []
    for plane in planes:
        by_key, doubled = files_by_key(name_files(plane, "masks", options.object_files), options)
        mask_files.append(by_key)
        issues += doubled
    if options.pair_by is None:
        check_wildcards(image_files, mask_files, places)
    mask_keys = set().union(*mask_files)
    hint = "" if options.pair_by else PAIR_BY_HINT
    all_keys, image_keys = sorted(mask_keys), list(image_files)
    # A test split without any mask is left out: it is there to be predicted.
    test = [
        k for k, named in image_files.items() if split_of_folders(prefix + named.name) == "test"
    ]
    if test and mask_keys.isdisjoint(test):
        log.warning(
            f"{places[0]}: {len(test)} test images have no masks and are left out; seg.predict takes them"
        )
        image_files = {key: named for key, named in image_files.items() if key not in set(test)}
    # Images without a mask are reported and left out.
    for key in [key for key in image_files if key not in mask_keys]:
        text, remedy = missing_partner("mask", "image", places[1], key, all_keys, hint)
        file = image_files.pop(key).files[0]
        issues.append(DataError(file=file, found=text, remedy=remedy, kind="no_mask"))
    # Masks without an image are reported, unless lists name the images to use.
    for key in [] if options.only is not None else sorted(mask_keys - set(image_keys)):
        file = next(by_key[key] for by_key in mask_files if key in by_key).files[0]
        text, remedy = missing_partner("image", "mask", places[0], key, image_keys, hint)
        issues.append(DataError(file=file, found=text, remedy=remedy, kind="no_image"))
    pairs = {}
    for key, (name, (first, *channels)) in image_files.items():
        files: list[Path | None] = []
        for by_key in mask_files:
            files += by_key[key].files if key in by_key else [None]
        pairs[prefix + name] = Pair(first, files, channels=tuple(channels))
    return pairs, issues


def name_files(found: FoundFiles, part: str, several: bool) -> list[NamedFiles]:
    """Return the files of each image; with ``several`` those that differ only in the last text belong together."""
    if not several or not found:
        return [NamedFiles("/".join(texts), [file]) for texts, file in found]
    if len(found[0][0]) < 2:
        option, example = {
            "images": ("channel_files=true", "*_[0-9][0-9][0-9][0-9].png"),
            "masks": ("mask_layers=objects", "masks/*/*.png"),
        }[part]
        raise DataError(
            f"data.{option} needs a folder or two wildcards in data.{part}: the image, and its files; as in "
            f"data.{part}='{example}'"
        )
    groups: dict[str, list[Path]] = {}
    for texts, file in found:
        groups.setdefault("/".join(texts[:-1]), []).append(file)
    return [NamedFiles(name, files) for name, files in groups.items()]


def check_channel_files(images: FoundFiles) -> None:
    """Raise DataError unless each image has a file for the same channels."""
    channels: dict[str, list[str]] = {}
    for texts, _ in images:
        channels.setdefault("/".join(texts[:-1]), []).append(texts[-1])
    first = next(iter(channels))
    for name, found in channels.items():
        if found != channels[first]:
            raise DataError(
                f"data.channel_files=true: {name} has the channels {', '.join(found)}, but {first} has "
                f"{', '.join(channels[first])}; add the missing files, or take these out"
            )


def check_wildcards(
    images: dict[str, NamedFiles], masks: list[dict[str, NamedFiles]], places: tuple[Path, Path]
) -> None:
    """Raise DataError if no name of a mask has as many parts as those of the images."""
    counts = [{named.name.count("/") for named in by_key.values()} for by_key in (images, *masks)]
    if len(masks) == 1 and masks[0] and counts[0].isdisjoint(counts[1]):
        first = [next(iter(by_key.values())).name for by_key in (images, *masks) if by_key]
        raise DataError(
            f"{places[0]} and {places[1]}: their wildcards match other parts, {' and '.join(first)}; write patterns "
            "whose wildcards match the same in image and mask, or data.pair_by"
        )


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


def listed_images(folder: Path) -> list[Path]:
    """Return the image files of a folder; files that are not read are reported.

    Raises:
        DataError: if there is no such folder, or no image in it.
    """
    images = list_images(folder)
    report_passed_over(folder, scan_folder(folder)[1])
    return images


def keep_listed(images: list[NamedFiles], options: PairingOptions, place: Path) -> list[NamedFiles]:
    """Return the images whose names are in ``options.only``, or similar ones.

    Raises:
        DataError: if there are none.
    """
    if options.only is None:
        return images
    key = similar_key if options.similar else str
    names = set(map(key, options.only))
    chosen = [
        named
        for named in images
        if not names.isdisjoint(
            {key(named.name), *(key(text) for f in named.files for text in (f.name, f.stem))}
        )
    ]
    if not chosen:
        raise DataError(
            f"{place}: no image here is in data.lists; {LIST_LINE_HINT.format(images[0].name)}"
        )
    return chosen


def files_by_key(
    files: list[NamedFiles], options: PairingOptions
) -> tuple[dict[str, NamedFiles], list[DataError]]:
    """Return files by the key that pairs them, and an error for each that shares its name with a later one.

    The key is the name, or the match of ``pair_by``: its first group, if any; with ``similar`` without regard to
    case, spaces and the encoding of accents.

    Raises:
        DataError: if the regular expression is invalid, or matches nothing in a name or the same in two.
    """
    pair_by = options.pair_by
    try:
        pattern = re.compile(pair_by) if pair_by is not None else None
    except re.error as error:
        raise DataError(f"data.pair_by={pair_by}: not a regular expression ({error})") from error
    # Key of each file: its name, or the part that the expression matches.
    by_key: dict[str, NamedFiles] = {}
    issues: list[DataError] = []
    for named in files:
        key, file = named.name, named.files[0]
        if pattern is not None:
            match = pattern.search(key)
            key = match[min(1, pattern.groups)] if match else None
            if not key:
                raise DataError(f"data.pair_by={pair_by}: matches nothing in the name {file}")
        key = similar_key(key) if options.similar else key
        # Two files of one key: an error if pair_by makes it, an issue if the names do.
        if key in by_key and pattern is not None:
            raise DataError(
                f"{by_key[key].files[0]}: {file.name} has the same key {key!r} (data.pair_by); keep one of them"
            )
        if key in by_key:
            text = (
                f"{file.name} has the same name"
                + " but for case, white space or accents" * options.similar
            )
            issues.append(DataError(file=by_key[key].files[0], found=text, remedy="keep one of them", kind="same_name"))  # fmt: skip
        by_key[key] = named
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
    and ``group``. Paths are relative to the table's folder; addresses of OME-Zarr stand as they are. An image's name is its path without the suffix. With
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
        image = find_table_file(file.parent, row["image"], similar, where)
        masks = [
            find_table_file(file.parent, row[c], similar, where) if row.get(c) else None
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


def find_table_file(folder: Path, cell: str, similar: bool, where: str) -> Path:
    """Return the file of a table's path or address, or with ``similar`` the one with a similar name.

    Raises:
        DataError: if there is none; ``where`` names the line.
    """
    if "://" in cell:
        return check_address(cell, where)
    path = folder / cell
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
        return is_single_image(file)
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
