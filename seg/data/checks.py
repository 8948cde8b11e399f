"""What is wrong with a data set: each image and mask is looked at, and each fault is listed with its remedy.

`survey_all` reads; the functions below it judge what was read. The rules of what a file may hold stand in the
sources: here their errors are collected, and what no single file can tell is added.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from seg.data.folder import Folder
from seg.data.images import TIFF, read_pages
from seg.data.masks import short
from seg.data.module import class_pixels
from seg.data.sources import DataError, Source
from seg.logits import IGNORE

SIDE = 32  # px of a thumbnail
ALIKE = 0.90  # correlation of two thumbnails from which on images are nearly the same
OWN = 0.85  # the same of what each thumbnail has beyond the mean of all
FEW = 8  # images below which there is no such mean, and ALIKE_FEW counts alone
ALIKE_FEW = 0.95
TURNS = {
    "": lambda a: a,
    "mirrored": lambda a: a[..., ::-1],
    "upside down": lambda a: a[..., ::-1, :],
    "turned by 180 degrees": lambda a: a[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2),
    "turned by 90 degrees": lambda a: a.swapaxes(-1, -2)[..., ::-1, :],
    "turned by 270 degrees": lambda a: a.swapaxes(-1, -2)[..., ::-1],
    "transposed the other way": lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1],
}  # of arrays (..., H, W)


Redraw = Callable[[str], dict[str, list[str]] | None]


class Kind(NamedTuple):
    """A kind of fault: its heading, whether it is an error (else a warning), and what is right instead."""

    heading: str
    error: bool
    expected: str


KINDS = {  # the most important first
    "unreadable": Kind("files that can't be read", True, "a whole image file"),
    "no_mask": Kind("images without a mask", True, "a mask of that name"),
    "no_image": Kind("masks without an image", True, "an image of that name"),
    "same_name": Kind("files of one name", True, "a name of its own"),
    "pixels": Kind("images whose pixels can't be used", True, "finite numbers"),
    "size": Kind("masks of another size than their image", True, "the same height and width"),
    "turned": Kind("masks that fit their image better when turned", True, "the image's own way up"),
    "colours": Kind("masks that are colour pictures", True, "one class index a pixel"),
    "noise": Kind("masks with JPEG noise", True, "only the values declared"),
    "values": Kind("mask values that nobody declared", True, "only the values declared"),
    "other": Kind("files that aren't what the data's config says", True, "see the remedy"),
    "unlike": Kind("images unlike the others", True, "one type and number of channels"),
    "low_byte": Kind("8 bits of a 16-bit image", True, "neighbours that differ little"),
    "empty": Kind("splits without images", True, "at least one image"),
    "ignored": Kind("masks that are ignored altogether", True, "at least one pixel of a class"),
    "never": Kind("classes that never occur", True, "at least one pixel"),
    "untrained": Kind("classes that the training split lacks", True, "at least one training image"),
    "contradiction": Kind("one image with two masks", True, "one mask for the same pixels"),
    "leak": Kind("the same image in two splits", True, "no image in two splits"),
    "near_leak": Kind("nearly the same image in two splits", True, "no image in two splits"),
    "same_mask": Kind("different images with the very same mask", False, "a mask for each image"),
    "unscored": Kind("classes that a judged split lacks", False, "each class in each split"),
    "repeated": Kind("the same image twice in a split", False, "each image once"),
    "near_repeated": Kind("nearly the same images in a split", False, "each image once"),
    "depth": Kind("16-bit images that use fewer bits", False, "values up to 65535"),
    "flat": Kind("images without contrast", False, "something to see"),
    "palette": Kind("palette images read as their colours", False, "grey values or true colours"),
    "grey": Kind("grey images saved as colours", False, "one channel"),
}  # fmt: skip
UNPAIRED = (
    "no_mask",
    "no_image",
    "same_name",
)  # kinds of fault that the others' check can do without
ORDER = list(KINDS)
SAYS = {  # how a source's error shows its kind
    "no mask of that name": "no_mask",
    "no image of that name": "no_image",
    "has the same name": "same_name",
    "not a readable image|no such file": "unreadable",
    "NaN or infinite|values of type": "pixels",
    "px, and its image": "size",
    "a colour picture": "colours",
    "mask value .* not declared": "values",
}


@dataclass(frozen=True)
class Fault:
    """One finding.

    Attributes:
        kind: of KINDS.
        file: or what else it was found in.
        found: what is there.
        remedy: the setting or the deed that mends it.
        expected: what should be there; "": what the kind says.
        name: of the image in its source; "" where none is meant.
    """

    kind: str
    file: str
    found: str
    remedy: str
    expected: str = ""
    name: str = ""

    @property
    def error(self) -> bool:
        return KINDS[self.kind].error

    @property
    def right(self) -> str:
        """What was expected."""
        return self.expected or KINDS[self.kind].expected

    def line(self) -> str:
        """The fault in one sentence."""
        return f"{self.file}: {self.found}; {self.remedy}"


@dataclass(frozen=True)
class Look:
    """What was seen of one image and its mask.

    Attributes:
        name: in the source.
        split: that it belongs to.
        file: of the image, for messages.
        mask_file: of the mask, likewise.
        shape: (H, W), px.
        channels: C.
        dtype: as stored.
        span: smallest and largest value.
        mean: of all values.
        sd: their standard deviation.
        pixels: of each class (K,).
        valid: pixels that aren't ignored, of each class's plane (K,).
        ignored: share of the mask that is, in 0..1.
        image_hash: of the pixels.
        mask_hash: likewise.
        thumb: (SIDE, SIDE) float32 of mean 0 and length 1, or 0.
        fits: by each of TURNS that keeps the mask's size: how much of the grey values' variance the classes
            then explain, in 0..1, and how steep the grey values are at their borders (1: as elsewhere).
        jumps: share of neighbours that differ by more than 200 of 255, where most values are no extremes.
        flat: the one value that every pixel has; None: they differ.
        grey: whether three channels are equal.
        palette: whether the file has one.
    """

    name: str
    split: str
    file: str
    mask_file: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    span: tuple[float, float]
    mean: float
    sd: float
    pixels: np.ndarray
    valid: np.ndarray
    ignored: float
    image_hash: bytes
    mask_hash: bytes
    thumb: np.ndarray
    fits: dict[str, tuple[float, float]]
    jumps: float
    flat: list[float] | None
    grey: bool
    palette: bool


class Survey(NamedTuple):
    """All images that could be read, and a fault for each of the others."""

    looks: list[Look]
    faults: list[Fault]


def survey_all(source: Source, names: Iterable[tuple[str, str]], root: Path | None) -> Survey:
    """Reads each (split, name) of a source; files are named relative to ``root``."""
    looks, faults = [], []
    for split, name in names:
        try:
            image, mask = source.read(name)
        except DataError as error:
            faults.append(replace(told(error, root), name=name))
            continue
        looks.append(look(source, split, name, image, mask, root))
    return Survey(looks, faults)


def told(error: DataError, root: Path | None) -> Fault:
    """A source's error, ``FILE: found; remedy``, as a fault."""
    file, _, rest = relative(str(error), root).partition(": ")
    kind = next((kind for words, kind in SAYS.items() if re.search(words, rest)), "other")
    kind = "other" if file.startswith("data.") else kind  # an option's fault, whatever it says
    rest = re.sub(r" \(\d+ such \w+\)", "", rest)  # the others have faults of their own
    found, _, remedy = rest.partition("; ")
    expected = ""
    if kind == "values":
        expected, _, remedy = remedy.partition("; ")
    if kind == "unreadable":
        remedy = remedy or "copy it anew from where it came, or take it and its pair out"
    if kind == "size" and turned_sizes(found):
        found, remedy = f"{found}: transposed", "swap the mask's rows and columns, or the image's"
    elif kind == "size":
        remedy = "take the mask that belongs to the image, or resize it by nearest neighbour"
    return Fault(kind, file, found, remedy or "see the guide to data", expected)


def relative(text: str, root: Path | None) -> str:
    """A message whose paths start at the data's folder."""
    return text if root is None or root == Path() else text.replace(f"{root}/", "")


def turned_sizes(found: str) -> bool:
    """Whether a message names two sizes of which one is the other turned."""
    sizes = re.findall(r"\b(\d+)x(\d+)\b", found)
    return len(sizes) == 2 and sizes[0] != sizes[1] and sizes[0] == sizes[1][::-1]


def files_of(source: Source, name: str) -> tuple[Path, Path] | None:
    """Files of an image and its mask, where each has its own."""
    return source.files[name] if isinstance(source, Folder) else None


def look(
    source: Source, split: str, name: str, image: np.ndarray, mask: np.ndarray, root: Path | None
) -> Look:
    """What is seen of an image (H, W, C) and its mask (H, W) or (H, W, K)."""
    files, num_classes = files_of(source, name), len(source.classes)
    valid = np.broadcast_to((mask != IGNORE).sum((0, 1)), num_classes)
    grey = image[..., : min(3, image.shape[2])].mean(-1, dtype=np.float32)
    return Look(
        name, split,
        file=relative(str(files[0]), root) if files else name,
        mask_file=relative(str(files[1]), root) if files else f"mask of {name}",
        shape=(image.shape[0], image.shape[1]),
        channels=image.shape[2],
        dtype=str(image.dtype),
        span=(float(image.min()), float(image.max())),
        mean=float(image.mean(dtype=np.float64)),
        sd=float(image.std(dtype=np.float64)),
        pixels=class_pixels(mask, num_classes),
        valid=valid,
        ignored=float((mask == IGNORE).mean()),
        image_hash=fingerprint(image),
        mask_hash=fingerprint(mask),
        thumb=thumbnail(grey),
        fits=fits(grey, mask),
        jumps=jumps(image),
        flat=image[0, 0].tolist() if (image == image[:1, :1]).all() else None,
        grey=image.shape[2] == 3 and bool((image == image[..., :1]).all()),
        palette=files is not None and has_palette(files[0]),
    )  # fmt: skip


def fingerprint(pixels: np.ndarray) -> bytes:
    """Equal for arrays of the same type, shape and values."""
    kind = f"{pixels.dtype} {pixels.shape}".encode()
    return hashlib.blake2b(kind + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """(H, W) as (SIDE, SIDE) float32 of mean 0 and length 1; 0 where there is no contrast."""
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small, highest = small - small.mean(), np.abs(small).max()
    length = np.linalg.norm(small)
    return small / length if length > 1e-5 * highest else np.zeros_like(small)


def fits(grey: np.ndarray, mask: np.ndarray) -> dict[str, tuple[float, float]]:
    """How well a mask fits its image, by turn of the mask that keeps its size; see ``Look.fits``."""
    if mask.ndim == 3:
        return {}
    step = max(1, max(mask.shape) // 256)
    size = tuple(n // step for n in mask.shape)
    small = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_AREA)
    coarse = mask[step // 2 :: step, step // 2 :: step][: size[0], : size[1]]
    slope = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))
    turned = {turn: np.ascontiguousarray(move(coarse)) for turn, move in TURNS.items()}
    return {
        turn: (explained(small, m), steepness(slope, m))
        for turn, m in turned.items()
        if m.shape == small.shape
    }


def steepness(slope: np.ndarray, mask: np.ndarray) -> float:
    """Slope of the grey values at the mask's borders, over that of the whole image; 0 without borders."""
    edge = np.zeros(mask.shape, bool)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return float(slope[edge].mean() / max(slope.mean(), 1e-9)) if edge.any() else 0.0


def explained(grey: np.ndarray, mask: np.ndarray) -> float:
    """Between-class variance over total variance, of the pixels that aren't ignored."""
    classes, values = mask.ravel(), grey.ravel().astype(np.float64)
    sums = [np.bincount(classes, power, IGNORE + 1)[:IGNORE] for power in (None, values, values**2)]
    counts, firsts, seconds = sums
    if not counts.any():
        return 0.0
    whole = firsts.sum() ** 2 / counts.sum()
    variance = seconds.sum() - whole
    between = (firsts**2 / counts.clip(1)).sum() - whole
    return float(between / variance) if variance > 1e-9 * seconds.sum() else 0.0


def jumps(image: np.ndarray) -> float:
    """Share of horizontal neighbours that differ by more than 200 of 255; 0 for black and white."""
    if image.dtype != np.uint8 or image.shape[1] < 2:
        return 0.0
    plane = image[..., 0]
    extreme = ((plane < 16) | (plane > 239)).mean()
    steps = cv2.absdiff(np.ascontiguousarray(plane[:, 1:]), np.ascontiguousarray(plane[:, :-1]))
    return 0.0 if extreme > 0.5 else float((steps > 200).mean())


def has_palette(file: Path) -> bool:
    if file.suffix.lower() in TIFF:
        return False
    with Image.open(file) as image:
        return image.mode == "P"


def judge(
    source: Source, survey: Survey, root: Path | None, redraw: Redraw = lambda option: None
) -> list[Fault]:
    """All faults, the most important first: those of single files, and what only all of them tell.

    Args:
        source: of the data.
        survey: of all its images.
        root: folder of the data, if it has one.
        redraw: an option, ``split_seed=1`` -> the splits that it would give, or None.
    """
    looks = survey.looks
    faults = [
        *explain_values(source, survey, root),
        *unlike(looks),
        *single(looks),
        *classes(source, survey, redraw),
        *exact(looks),
        *near(looks),
        *whole_set(looks),
    ]
    return sorted(faults, key=lambda f: ORDER.index(f.kind))  # stable: in order of names within


def explain_values(source: Source, survey: Survey, root: Path | None) -> list[Fault]:
    """The faults of single files; where mask values are wrong, what they are in all, and what mends all."""
    found: dict[str, Counter[int]] = {}  # values and their numbers of pixels, by file
    faults = []
    for fault in survey.faults:
        file = Path(fault.file) if root is None else root / fault.file
        if fault.kind == "colours":
            faults.append(replace(fault, found=f"{fault.found}: {colours_of(file)}"))
        elif fault.kind == "values":
            pixels = np.concatenate([page.ravel() for page in read_pages(file)])
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
    remedy = values_remedy(source, survey.looks, found)
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


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """0.12345 as 12.3 %; what is there is never 0 %."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


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


def classes(source: Source, survey: Survey, redraw: Redraw) -> list[Fault]:
    """Splits without images, and classes that they lack."""
    failed = {fault.name for fault in survey.faults}
    faults = [
        Fault("empty", split, "no images", "put images there, or move some from another split")
        for split, names in source.splits.items()
        if not names
    ]
    if not survey.looks:
        return faults
    seen = {
        split: np.sum([one.pixels > 0 for one in survey.looks if one.split == split] or 0, axis=0)
        * np.ones(len(source.classes))
        for split in source.splits
    }
    among = f" in the {len(survey.looks)} masks that could be read" if failed else ""
    total = np.sum(list(seen.values()), axis=0)
    for i, name in enumerate(source.classes):
        if not total[i]:
            remedy = "leave it out of data.classes (data.values renumbers the others), or add images that show it"
            faults.append(Fault("never", name, f"class {i} has no pixel{among}", remedy))
            continue
        for split, counts in seen.items():
            if counts[i] or not source.splits[split]:
                continue
            elsewhere = ", ".join(f"{int(n[i])} of {s}" for s, n in seen.items() if n[i])
            found = f"class {i} is in no image of {split}{among}, but in {elsewhere}"
            kind = "untrained" if split == "train" else "unscored"
            faults.append(
                Fault(kind, name, found, split_remedy(source, survey.looks, split, redraw))
            )
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


def exact(looks: list[Look]) -> list[Fault]:
    """Images of the same pixels: across splits, inside one, with other masks; and masks used twice."""
    faults, same = [], defaultdict(list)
    for one in looks:
        same[one.image_hash].append(one)
    for first, *others in same.values():
        for one in others:
            found = f"the same pixels as {first.file}"
            if one.mask_hash != first.mask_hash:
                remedy = "keep the right mask, and one of the images"
                found += ", with another mask"
                faults.append(Fault("contradiction", one.file, found, remedy, name=one.name))
            across = [other for other in (first, *others) if other.split != one.split]
            if across:
                found = f"in {one.split}, the same pixels as {across[0].file} in {across[0].split}"
                faults.append(Fault("leak", one.file, found, "take one of them out", name=one.name))
            else:
                remedy = "take one of them out: it counts twice"
                faults.append(Fault("repeated", one.file, found, remedy, name=one.name))
    used = defaultdict(list)
    for one in looks:
        if one.valid.any() and (one.pixels > 0).sum() > 1:
            used[one.mask_hash].append(one)
    for first, *others in used.values():
        for one in others:
            if one.image_hash != first.image_hash and not related(one, first):
                found = f"pixel by pixel {first.mask_file}"
                remedy = "look whether it is a copy under the wrong name"
                faults.append(Fault("same_mask", one.mask_file, found, remedy, name=one.name))
    return faults


def related(one: Look, other: Look) -> bool:
    return float((one.thumb * other.thumb).sum()) > ALIKE


class Pair(NamedTuple):
    """Two images that are nearly the same: their places, the correlation, and how one is turned."""

    first: int
    second: int
    correlation: float
    turn: str


def alike(thumbs: np.ndarray) -> list[Pair]:
    """Pairs of thumbnails (N, SIDE, SIDE) that show nearly the same, in any turn; the most alike turn counts.

    Images of one kind share much (a dark rim, the road below the sky); so what each has beyond the mean of
    all must agree too, where there are enough images to know that mean.
    """
    flat = thumbs.reshape(len(thumbs), -1)
    mean = flat.mean(0) if len(flat) >= FEW else np.zeros_like(flat[0])
    least = ALIKE if len(flat) >= FEW else ALIKE_FEW
    own, coarse = unit_rows(flat - mean), coarser(flat - mean)
    best: dict[tuple[int, int], Pair] = {}
    for turn, move in TURNS.items():
        turned = np.ascontiguousarray(move(thumbs)).reshape(flat.shape)
        rough = coarser(turned - mean)
        for start in range(0, len(flat), 1024):  # rows of a block of the N x N correlations
            close = np.triu(rough[start : start + 1024] @ coarse.T >= OWN - 0.1, start + 1)
            for i, j in np.argwhere(close).tolist():
                i += start
                r = float(turned[i] @ flat[j])
                if r < least or unit_rows(turned[i : i + 1] - mean)[0] @ own[j] < OWN:
                    continue
                if (i, j) not in best or r > best[i, j].correlation:
                    best[i, j] = Pair(i, j, r, turn)
    return sorted(best.values(), key=lambda pair: -pair.correlation)


def coarser(flat: np.ndarray) -> np.ndarray:
    """Thumbnails (N, SIDE * SIDE) at half the side, each of length 1: a first sieve."""
    cells = flat.reshape(len(flat), SIDE // 2, 2, SIDE // 2, 2)
    return unit_rows(cells.mean((2, 4)).reshape(len(flat), -1))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-4, rows / length.clip(1e-12), 0)


def near(looks: list[Look]) -> list[Fault]:
    """Images nearly the same: each judged image with its nearest of an earlier split, and groups in a split."""
    if len(looks) < 2:
        return []
    pairs = alike(np.stack([one.thumb for one in looks]))
    pairs = [p for p in pairs if looks[p.first].image_hash != looks[p.second].image_hash]
    faults, told, groups = [], set(), {}
    for pair in pairs:
        first, second = looks[pair.first], looks[pair.second]
        if first.split == second.split:
            members = {
                *groups.get(pair.first, [pair.first]),
                *groups.get(pair.second, [pair.second]),
            }
            groups |= dict.fromkeys(members, members)
        elif second.name not in told:
            told.add(second.name)
            found = f"in {second.split}, nearly {first.file} in {first.split}, {likeness(pair)}"
            remedy = (
                "take one out, or split so that a sequence or specimen stays together: data.group_by, "
                "data.blocks=true, or folders"
            )
            faults.append(Fault("near_leak", second.file, found, remedy, name=second.name))
    for members in {id(m): m for m in groups.values()}.values():
        first, *others = (looks[i] for i in sorted(members))
        closest = next(p for p in pairs if {p.first, p.second} <= members)
        rest = f" and {len(others) - 2} more" if others[2:] else ""
        listed = ", ".join(one.file for one in others[:2])
        found = f"in {first.split}, nearly {listed}{rest}, {likeness(closest)}"
        remedy = (
            "they count several times; a new draw of the splits could part them: keep them together"
        )
        faults.append(Fault("near_repeated", first.file, found, remedy, name=first.name))
    return faults


def likeness(pair: Pair) -> str:
    return f"correlation {pair.correlation:.3f}{' when ' + pair.turn if pair.turn else ''}"


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
