"""What is wrong with a data set, from what was seen of each image: each fault with its remedy."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from seg.data.datasets.base import Source
from seg.data.datasets.folder import Folder
from seg.data.image_io import read_pages
from seg.data.masks import short
from seg.data.quality.duplicates import exact, near
from seg.data.quality.inspect import Look, Looks
from seg.data.quality.issues import ORDER, Fault, percent
from seg.logits import IGNORE

Redraw = Callable[[str], dict[str, list[str]] | None]


def judge(
    source: Source, seen: Looks, root: Path | None, redraw: Redraw = lambda option: None
) -> list[Fault]:
    """All faults, the most important first: those of single files, and what only all of them tell.

    Args:
        source: of the data.
        seen: of all its images.
        root: folder of the data, if it has one.
        redraw: an option, ``split_seed=1`` -> the splits that it would give, or None.
    """
    looks = seen.looks
    faults = [
        *explain_values(source, seen, root),
        *unlike(looks),
        *single(looks),
        *classes(source, seen, redraw),
        *exact(looks),
        *near(looks),
        *whole_set(looks),
    ]
    return sorted(faults, key=lambda f: ORDER.index(f.kind))  # stable: in order of names within


def explain_values(source: Source, seen: Looks, root: Path | None) -> list[Fault]:
    """The faults of single files; where mask values are wrong, what they are in all, and what mends all."""
    found: dict[str, Counter[int]] = {}  # values and their numbers of pixels, by file
    faults = []
    for fault in seen.faults:
        named, _, page = fault.file.partition(", page ")
        file = Path(named) if root is None else root / named
        if fault.kind == "colours":
            faults.append(replace(fault, found=f"{fault.found}: {colours_of(file)}"))
        elif fault.kind == "values":
            pixels = np.concatenate(
                [one.ravel() for one in read_pages(file, int(page) if page else None)]
            )
            values, counts = np.unique(pixels, return_counts=True)
            found[fault.file] = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            if noisy(found[fault.file], len(source.classes), file):
                faults.append(replace(fault, kind="noise", **noise(found.pop(fault.file))))
            else:
                faults.append(fault)
        else:
            faults.append(fault)
    if not found or not isinstance(source, Folder):
        return faults
    remedy = values_remedy(source, seen.looks, found)
    return [
        replace(f, remedy=remedy, found=f"{f.found}, {pixels_each(found[f.file])}")
        if f.kind == "values"
        else f
        for f in faults
    ]


def noisy(found: Counter[int], num_classes: int, file: Path) -> bool:
    """Whether values come from lossy compression: many, most of them rare or beside a frequent one."""
    most = sum(n for _, n in found.most_common(num_classes + 1))
    many = len(found) > max(2 * num_classes + 2, 6)
    lossy = file.suffix.lower() in (".jpg", ".jpeg", ".webp") and len(found) > num_classes
    return lossy or (many and (most > 0.8 * found.total() or len(found) > 32))


def noise(found: Counter[int]) -> dict[str, str]:
    return {
        "found": f"{len(found)} different values, {pixels_each(found)}",
        "remedy": "save masks as PNG or TIFF from the original labels; JPEG and smooth resizing change values",
    }


def pixels_each(found: Counter[int]) -> str:
    """The most frequent values, and their shares."""
    shares = [f"{value}: {percent(n / found.total())}" for value, n in found.most_common(4)]
    return f"pixels of {', '.join(shares)}{' ...' if len(found) > 4 else ''}"


def colours_of(file: Path) -> str:
    """The most frequent colours of a file, as #rrggbb."""
    page = read_pages(file)[0]
    rgb = page[..., :3].reshape(-1, 3)
    if page.dtype != np.uint8:
        return f"{len(np.unique(rgb, axis=0))} colours"
    codes, counts = np.unique(rgb @ np.array([65536, 256, 1]), return_counts=True)
    order = counts.argsort()[::-1][:6]
    named = ", ".join(f"#{codes[i]:06x} {percent(counts[i] / len(rgb))}" for i in order)
    return f"{len(codes)} colour{'s' * (len(codes) > 1)}, {named}{' ...' if len(codes) > 6 else ''}"


def values_remedy(source: Folder, looks: list[Look], found: dict[str, Counter[int]]) -> str:
    """The setting that makes the values of all masks legal, from those of right and of wrong masks."""
    index = {value: i for value, i in source.values.index.items() if i != IGNORE}
    wrong = sorted({v for values in found.values() for v in values} - set(source.values.index))
    used = {i for one in looks for i in np.flatnonzero(one.pixels).tolist()}
    seen = {v for v, i in index.items() if i in used} | {
        v for values in found.values() for v in values if v in index
    }
    names = source.values.classes
    every = sorted(seen | set(wrong))
    if any(v != v or v != int(v) for v in wrong):
        return "save whole numbers: each value is a class"
    if len(every) <= len(names):
        return f"'data.values={pairs(dict(zip(every, range(len(every)), strict=True)))}'"
    void = f"if {short(wrong)} is void, 'data.ignore={sorted({*ignored_values(source), *wrong})}'"
    if len(names) == 2 and len(wrong) == 1 and not any(max(index) in v for v in found.values()):
        merged = pairs(index | {wrong[0]: 1})
        return f"if {wrong[0]} is {names[1]}, 'data.values={merged}'; {void}"
    if wrong == [IGNORE]:
        return f"is it void? 'data.ignore={sorted({*ignored_values(source), IGNORE})}'"
    if source.task == "overlapping":
        return f"a plane holds {sorted(index)} or what 'data.values' says; {void}"
    return (
        f"correct the file, or name {short(wrong)} in data.classes ({len(names)} are named); {void}"
    )


def ignored_values(source: Folder) -> list[int]:
    return [value for value, i in source.values.index.items() if i == IGNORE]


def pairs(values: dict[int, int]) -> str:
    return "{" + ", ".join(f"{v}: {i}" for v, i in values.items()) + "}"


def unlike(looks: list[Look]) -> list[Fault]:
    """Images of another type or number of channels than most."""
    kinds = Counter((one.channels, one.dtype) for one in looks)
    if len(kinds) < 2:
        return []
    (channels, dtype), usual = kinds.most_common(1)[0]
    expected = (
        f"{channels} channel{'s' * (channels > 1)} of {dtype}, as {usual} of {len(looks)} have"
    )
    faults = []
    for one in looks:
        if (one.channels, one.dtype) == (channels, dtype):
            continue
        if one.palette:
            remedy = "a palette image is read as its colours: save it as the others are, convert('L') in Pillow"
        elif one.dtype != dtype:
            remedy = f"read it again from its origin as {dtype}; scaling {one.dtype} up restores no grey values"
        else:
            remedy = f"save it with {channels} channel{'s' * (channels > 1)}"
        found = f"{one.channels} channel{'s' * (one.channels > 1)} of {one.dtype}, {span(one)}"
        faults.append(Fault("unlike", one.file, found, remedy, expected, one.name))
    return faults


def span(one: Look) -> str:
    return f"values {one.span[0]:g} to {one.span[1]:g}"


def single(looks: list[Look]) -> list[Fault]:
    """What one image and its mask tell."""
    faults = []
    for one in looks:
        if not one.valid.any():
            remedy = "label it, or take the pair out; or is a class in data.ignore?"
            found = "no pixel of a class, all are ignored"
            faults.append(Fault("ignored", one.mask_file, found, remedy, name=one.name))
        if one.flat is not None:
            found, remedy = (
                f"every pixel is {one.flat}",
                "take the pair out, or export it anew",
            )
            faults.append(Fault("flat", one.file, found, remedy, name=one.name))
        if one.jumps > 0.02:
            found = f"{percent(one.jumps)} of neighbouring pixels differ by more than 200 of 255"
            remedy = "export the 16-bit image as 16-bit TIFF or PNG, or scale it to 0..255 before it becomes 8-bit"
            faults.append(Fault("low_byte", one.file, found, remedy, name=one.name))
        if fault := turned(one):
            faults.append(fault)
    return faults


def turned(one: Look) -> Fault | None:
    """A mask whose classes and whose borders both fit the image much better another way round."""
    if not one.fits:
        return None
    (own, steep), turn = one.fits[""], max(one.fits, key=lambda t: one.fits[t][0])
    better, steeper = one.fits[turn]
    if not (better > max(0.02, 1.2 * own) and steeper > 1.2 * steep):
        return None
    found = f"turned: as it is, the classes explain {percent(own)} of the grey values' variance, and {turn} {percent(better)}"
    remedy = "compare mask and image in sheet.png, and save the mask the image's way up"
    return Fault("turned", one.mask_file, found, remedy, name=one.name)


def classes(source: Source, seen: Looks, redraw: Redraw) -> list[Fault]:
    """Splits without images, and classes that they lack."""
    failed = {fault.name for fault in seen.faults}
    faults = [
        Fault("empty", split, "no images", "put images there, or move some from another split")
        for split, names in source.splits.items()
        if not names
    ]
    if not seen.looks:
        return faults
    images = {
        split: np.sum([one.pixels > 0 for one in seen.looks if one.split == split] or 0, axis=0)
        * np.ones(len(source.classes))
        for split in source.splits
    }
    among = f" in the {len(seen.looks)} masks that could be read" if failed else ""
    total = np.sum(list(images.values()), axis=0)
    for i, name in enumerate(source.classes):
        if not total[i]:
            remedy = "leave it out of data.classes (data.values renumbers the others), or add images that show it"
            faults.append(Fault("never", name, f"class {i} has no pixel{among}", remedy))
            continue
        for split, counts in images.items():
            if counts[i] or not source.splits[split]:
                continue
            elsewhere = ", ".join(f"{int(n[i])} of {s}" for s, n in images.items() if n[i])
            found = f"class {i} is in no image of {split}{among}, but in {elsewhere}"
            kind = "untrained" if split == "train" else "unscored"
            faults.append(Fault(kind, name, found, split_remedy(source, seen.looks, split, redraw)))
    return faults


def split_remedy(source: Source, looks: list[Look], split: str, redraw: Redraw) -> str:
    """What brings each class into each split: an option of the draw, where the split is drawn."""
    present = {one.name: one.pixels > 0 for one in looks}
    whole = np.any(list(present.values()), axis=0)
    for option in ("stratify=true", *(f"split_seed={seed}" for seed in range(50))):
        drawn = redraw(option)
        if drawn is None:  # folders or lists say, or the source has no such option
            break
        parts = [np.any([present.get(n, ~whole) for n in part], axis=0) for part in drawn.values()]
        if all((part >= whole).all() for part in parts):
            return f"data.{option} brings each class into each split"
    return f"bring an image that shows it into {split}"


def whole_set(looks: list[Look]) -> list[Fault]:
    """What holds for all images: unused bits, palettes, grey saved as colours."""
    faults = []
    if not looks:
        return faults
    what = f"all {len(looks)} images"
    if all(one.dtype == "uint16" for one in looks):
        highest = int(max(one.span[1] for one in looks))
        bits = max(8, highest.bit_length())
        if highest > 0 and bits <= 14:
            found = f"the largest value is {highest}: {bits} bits"
            remedy = f"save them as 8-bit, or multiply by {2 ** (16 - bits)}: brightness is augmented in shares of 65535"
            faults.append(Fault("depth", what, found, remedy))
    palettes = [one for one in looks if one.palette]
    if len(palettes) > len(looks) / 2:
        found = f"{len(palettes)} have a palette; {palettes[0].file} is read as {palettes[0].channels} channels"
        remedy = "if the palette only paints grey values, save those: Image.open(f) without convert, as mode L"
        faults.append(Fault("palette", what, found, remedy))
    elif all(one.grey for one in looks):
        remedy = "save one channel: read three times as fast, and the network has fewer weights"
        faults.append(Fault("grey", what, "three channels, equal in each pixel", remedy))
    return faults
