"""Checks of a data set: from the statistics of its images to issues, each with its remedy."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from seg.data.datasets.base import DataSource
from seg.data.datasets.folder import LOSSY_SUFFIXES, Folder
from seg.data.image_io import read_pages
from seg.data.masks import NUMBERS_REMEDY, count_mask_colours
from seg.data.quality.duplicates import find_duplicates, find_near_duplicates
from seg.data.quality.inspect import ImageStats, Inspection
from seg.data.quality.issues import KINDS_BY_IMPORTANCE, Issue, count_noun, format_percent
from seg.labels import IGNORE

MIN_REGION_SHARE = 0.2  # of the pixels of rare values, those with equal neighbours on all sides
RedrawFunction = Callable[[str], dict[str, list[str]] | None]


def find_issues(
    source: DataSource,
    inspection: Inspection,
    root: Path | None,
    redraw: RedrawFunction = lambda option: None,
) -> list[Issue]:
    """Return all issues of a data set, the most important first.

    Args:
        source: of the data.
        inspection: statistics of all its images.
        root: folder of the data, if it has one.
        redraw: function of an option, ``split_seed=1``, that returns the splits with it, or None.
    """
    stats = inspection.stats
    issues = [
        *file_issues(source, inspection, root),
        *find_training_issues(source, stats, inspection.issues, redraw),
        *(issue for image in stats for issue in heuristic_issues(image)),
        *find_near_duplicates(source, stats),
    ]
    return sort_issues(issues)


def find_training_issues(
    source: DataSource,
    stats: list[ImageStats],
    unread: list[Issue] | None = None,
    redraw: RedrawFunction = lambda option: None,
) -> list[Issue]:
    """Return the issues of images that could be read, without heuristics, the most important first.

    Args:
        source: of the data.
        stats: statistics of the images.
        unread: an issue for each image that could not be read.
        redraw: see ``find_issues``.
    """
    issues = [
        *type_issues(stats),
        *(issue for image in stats for issue in content_issues(image)),
        *class_issues(source, stats, bool(unread), redraw),
        *find_duplicates(stats),
        *dataset_issues(stats),
    ]
    return sort_issues(issues)


def sort_issues(issues: list[Issue], skipped: Collection[str] | None = None) -> list[Issue]:
    """Sort issues by their kind, without those of skipped kinds; those of one kind keep their order."""
    kept = [issue for issue in issues if issue.kind not in (skipped or ())]
    return sorted(kept, key=lambda issue: KINDS_BY_IMPORTANCE.index(issue.kind))


def file_issues(source: DataSource, inspection: Inspection, root: Path | None) -> list[Issue]:
    """Return the issues of single files; wrong mask values with their shares and one remedy for all masks."""
    # Add what the pixels of each file show: frequent colours, or the share of each value
    counts: dict[str, Counter[int]] = {}  # pixels of each value, by file
    colours: Counter[int] = (
        Counter()
    )  # pixels of each colour 0xrrggbb, of all files with undeclared ones
    issues = []
    for issue in inspection.issues:
        name, _, page = issue.file.partition(", page ")
        file = Path(name) if root is None else root / name
        if issue.kind == "colours":
            painted = count_mask_colours(read_pages(file)[0])
            colours += painted
            issue = replace(issue, found=f"{issue.found}: {format_colours(painted)}")
        elif issue.kind == "values":
            option = "slices" if isinstance(source, Folder) and source.pages == "slices" else None
            pages = read_pages(file, int(page) if page else None, pages=option)
            pixels = sum((count_pixels(page) for page in pages), Counter[int]())
            if issue.remedy == NUMBERS_REMEDY and not is_lossy(file):
                pass  # the remedy of one mask is that of all
            elif any(is_noisy(page, len(source.classes), file) for page in pages):
                issue = replace(issue, kind="noise", **noise_texts(pixels, len(source.classes)))
            else:
                counts[issue.file] = pixels
                issue = replace(issue, found=f"{issue.found}, {format_pixel_shares(pixels)}")
        issues.append(issue)
    # One remedy for the values of all masks, and one for their colours.
    if not isinstance(source, Folder):
        return issues
    remedies = {}
    if counts:
        remedies["values"] = values_remedy(source, inspection.stats, counts)
    if colours and source.values.palette is None:
        remedies["colours"] = source.values.palette_remedy(colours)
    return [replace(f, remedy=remedies.get(f.kind, f.remedy)) for f in issues]


def count_pixels(page: np.ndarray) -> Counter[int]:
    """Count the pixels of each value; bits as 0 and 1."""
    values, numbers = np.unique(page * 1, return_counts=True)
    return Counter(dict(zip(values.tolist(), numbers.tolist(), strict=True)))


def is_lossy(file: Path) -> bool:
    """Return whether a file's format changes the values of a mask."""
    return file.suffix.lower() in LOSSY_SUFFIXES


def is_noisy(page: np.ndarray, num_classes: int, file: Path) -> bool:
    """Return True if a mask (H, W) looks lossily compressed or smoothly resized.

    Its rare values are then scattered along borders, while classes and objects are regions: most of their pixels
    have a neighbour of the same value on each side.
    """
    pixels = count_pixels(page)
    if len(pixels) <= num_classes:
        return False
    page = page[..., 0] if page.ndim == 3 else page
    if is_lossy(file):
        return True
    if len(pixels) <= max(2 * num_classes + 2, 6):
        return False
    frequent = [value for value, _ in pixels.most_common(num_classes)]
    rare = ~np.isin(page, frequent)
    inside = np.ones(page.shape, bool)
    for axis in (0, 1):
        same = np.diff(page * 1, axis=axis) == 0
        head, tail = ((slice(None),) * axis + (part,) for part in (slice(1, None), slice(-1)))
        inside[head] &= same
        inside[tail] &= same
    return bool(inside[rare].mean() < MIN_REGION_SHARE)


def noise_texts(pixels: Counter[int], num_classes: int) -> dict[str, str]:
    """Return finding and remedy for a lossily compressed mask."""
    remedy = (
        "save masks as PNG or TIFF from the original labels; JPEG and smooth resizing change values"
    )
    if num_classes == 2:
        remedy += "; or data.mask_threshold=127: class 1 is where a mask is brighter"
    found = f"{len(pixels)} different values, {format_pixel_shares(pixels)}"
    return {"found": found, "remedy": remedy}


def format_pixel_shares(pixels: Counter[int]) -> str:
    """Return the most frequent values with their shares."""
    shares = [
        f"{value}: {format_percent(n / pixels.total())}" for value, n in pixels.most_common(4)
    ]
    return f"pixels of {', '.join(shares)}{' ...' if len(pixels) > 4 else ''}"


def format_colours(colours: Counter[int]) -> str:
    """Return the most frequent colours, as #rrggbb, with their shares."""
    if not colours:
        return "not of 8 bits"
    shares = ", ".join(
        f"#{code:06x} {format_percent(n / colours.total())}" for code, n in colours.most_common(6)
    )
    return f"{count_noun(len(colours), 'colour')}, {shares}{' ...' if len(colours) > 6 else ''}"


def values_remedy(source: Folder, stats: list[ImageStats], counts: dict[str, Counter[int]]) -> str:
    """Return the option that declares the values of all masks.

    Args:
        source: of the data.
        stats: statistics of the masks that could be read.
        counts: pixels of each value, for each mask with undeclared values.
    """
    used = {i for image in stats for i in np.flatnonzero(image.pixels).tolist()}
    declared = {value for value, i in source.values.index.items() if i in used and i != IGNORE}
    wrong_masks = {value for pixels in counts.values() for value in pixels}
    return source.values.remedy(sorted(declared | wrong_masks), sorted(wrong_masks))


def type_issues(stats: list[ImageStats]) -> list[Issue]:
    """Return an issue for each image whose type or number of channels is not the most frequent one."""
    kinds = Counter((image.channels, image.dtype) for image in stats)
    if len(kinds) < 2:
        return []
    # The most frequent kind is what the others should be.
    (channels, dtype), usual = kinds.most_common(1)[0]
    expected = f"{count_noun(channels, 'channel')} of {dtype}, as {usual} of {len(stats)} have"
    issues = []
    for image in stats:
        if (image.channels, image.dtype) == (channels, dtype):
            continue
        if image.palette:
            remedy = "a palette image is read as its colours: save it as the others are, convert('L') in Pillow"
        elif image.dtype != dtype:
            remedy = f"read it again from its origin as {dtype}; scaling {image.dtype} up restores no grey values"
        else:
            remedy = f"save it with {count_noun(channels, 'channel')}"
        low, high = image.value_range
        found = (
            f"{count_noun(image.channels, 'channel')} of {image.dtype}, values {low:g} to {high:g}"
        )
        issues.append(Issue("unlike", image.file, found, remedy, expected, image.name))
    return issues


def content_issues(image: ImageStats) -> list[Issue]:
    """Return the issues of one image and its mask."""
    issues = []
    if not image.valid.any():
        remedy = "label it, or take the pair out; or is a class in data.ignore?"
        found = "no pixel of a class, all are ignored"
        issues.append(Issue("ignored", image.mask_file, found, remedy, name=image.name))
    if image.constant is not None:
        found, remedy = f"every pixel is {image.constant}", "take the pair out, or export it again"
        issues.append(Issue("flat", image.file, found, remedy, name=image.name))
    return issues


def heuristic_issues(image: ImageStats) -> list[Issue]:
    """Return what is probably wrong with one image and its mask, by heuristics.

    The grey values may be the low byte of 16 bits. The mask may be turned: its classes and its borders both
    fit the image much better in another orientation.
    """
    issues = []
    # Objects that the border does not keep apart as regions.
    if image.objects is not None and image.objects[1] < image.objects[0]:
        found = f"{image.objects[0] - image.objects[1]} of {count_noun(image.objects[0], 'object')}"
        remedy = "touching objects merge with data.border=0; thin ones fall apart with a wide border: compare data.border=1 and 2"
        issues.append(Issue("merged", image.mask_file, found, remedy, name=image.name))
    # Neighbours wrap around from 255 to 0.
    if image.jumps > 0.02:
        found = (
            f"{format_percent(image.jumps)} of neighbouring pixels differ by more than 200 of 255"
        )
        remedy = "export the 16-bit image as 16-bit TIFF or PNG, or scale it to 0..255 before it becomes 8-bit"
        issues.append(Issue("low_byte", image.file, found, remedy, name=image.name))
    # Another orientation of the mask fits much better.
    if image.fits:
        (own, own_slope), turn = image.fits[""], max(image.fits, key=lambda t: image.fits[t][0])
        best, best_slope = image.fits[turn]
        if best > max(0.02, 1.2 * own) and best_slope > 1.2 * own_slope:
            found = (
                f"turned: as it is, the classes explain {format_percent(own)} of the grey values' variance, and {turn} "
                f"{format_percent(best)}"
            )
            remedy = (
                "compare mask and image in sheet.png, and save the mask in the image's orientation"
            )
            issues.append(Issue("turned", image.mask_file, found, remedy, name=image.name))
    return issues


def class_issues(
    source: DataSource, stats: list[ImageStats], unread: bool, redraw: RedrawFunction
) -> list[Issue]:
    """Return an issue for each split without images, and for each class that a split or all of them lack."""
    issues = [
        Issue("empty", split, "no images", "put images there, or move some from another split")
        for split, names in source.splits.items()
        if not names
    ]
    if not stats:
        return issues
    # Images that have each class, split by split.
    images = {
        split: np.sum([image.pixels > 0 for image in stats if image.split == split] or 0, axis=0)
        * np.ones(len(source.classes))
        for split in source.splits
    }  # split -> images that have each class, (K,)
    among = f" in the {len(stats)} masks that could be read" if unread else ""
    total = np.sum(list(images.values()), axis=0)
    # Classes without a pixel, and splits that lack a class.
    for i, name in enumerate(source.classes):
        if not total[i]:
            remedy = "leave it out of data.classes (data.values renumbers the others), or add images that show it"
            issues.append(Issue("never", name, f"class {i} has no pixel{among}", remedy))
            continue
        for split, counts in images.items():
            if counts[i] or not source.splits[split]:
                continue
            elsewhere = ", ".join(f"{int(n[i])} of {s}" for s, n in images.items() if n[i])
            found = f"class {i} is in no image of {split}{among}, but in {elsewhere}"
            kind = "untrained" if split == "train" else "unscored"
            issues.append(Issue(kind, name, found, redraw_remedy(stats, split, redraw)))
    return issues


def redraw_remedy(stats: list[ImageStats], split: str, redraw: RedrawFunction) -> str:
    """Return the option that brings each class into each split, or the advice to add an image."""
    present = {image.name: image.pixels > 0 for image in stats}
    every = np.any(list(present.values()), axis=0)
    for option in ("stratify=true", *(f"split_seed={seed}" for seed in range(50))):
        drawn = redraw(option)
        if drawn is None:  # the splits are folders or lists, or the source has no such option
            break
        parts = [np.any([present.get(n, ~every) for n in part], axis=0) for part in drawn.values()]
        if all((part >= every).all() for part in parts):
            return f"data.{option} brings each class into each split"
    return f"bring an image that shows it into {split}"


def dataset_issues(stats: list[ImageStats]) -> list[Issue]:
    """Return the issues of all images together: orientation tags, unused bits, palettes, grey saved as colours."""
    # Checks of the data set as a whole need at least one readable image
    issues = []
    if not stats:
        return issues
    what = f"all {len(stats)} images"
    # Orientation tags of images whose masks have others.
    turned = [image for image in stats if image.orientations[0] != image.orientations[1]]
    if turned:
        tags = "the tag Orientation (EXIF or TIFF; 1 is upright) is {} in the image and {} in its mask".format(
            *turned[0].orientations
        )
        more = f" ({len(turned)} such images)" if turned[1:] else ""
        remedy = (
            "both are read as one sees them: compare them in sheet.png; if the mask fits the stored pixels, "
            "give both files the same tag"
        )
        issues.append(Issue("orientation", turned[0].file, f"{tags}{more}", remedy))
    # 16-bit images whose upper bits are 0.
    if all(image.dtype == "uint16" for image in stats):
        highest = int(max(image.value_range[1] for image in stats))
        bits = max(8, highest.bit_length())
        if highest > 0 and bits <= 14:
            found = f"the largest value is {highest}: {bits} bits"
            remedy = (
                "loader.percentiles=[1,99] maps the grey values that occur to 0..1; or save them as 8-bit, or multiply "
                f"by {2 ** (16 - bits)}"
            )
            issues.append(Issue("depth", what, found, remedy))
    # Palettes, or three equal channels.
    palettes = [image for image in stats if image.palette]
    if len(palettes) > len(stats) / 2:
        found = f"{len(palettes)} have a palette; {palettes[0].file} is read as {palettes[0].channels} channels"
        remedy = "if the palette only colours grey values, save those: Image.open(f) without convert, as mode L"
        issues.append(Issue("palette", what, found, remedy))
    elif all(image.grey for image in stats):
        remedy = "save one channel: read three times as fast, and the network has fewer weights"
        issues.append(Issue("grey", what, "three channels, equal in each pixel", remedy))
    return issues
