"""A look at a data set before it is trained on: grey values, sizes, classes, and what is wrong with it.

What was found is kept in the user's cache, by the names, sizes and times of the files, so that the next start
needs no look.
"""

import hashlib
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from seg import files
from seg.data.datasets.base import Source
from seg.data.image_cache import MOST, Store, caches
from seg.data.masks import class_pixels
from seg.data.normalization import Intensity, Measure
from seg.data.quality.checks import judge
from seg.data.quality.inspect import Look, Looks, fingerprint, look
from seg.data.quality.issues import Fault
from seg.display.console import console
from seg.errors import DataError
from seg.logits import IGNORE

log = logging.getLogger("seg")
CLOSELY = 32  # images of a split whose masks are tried in every turn


class Survey(NamedTuple):
    """What a look at the data found.

    Attributes:
        intensity: how grey values become network input.
        sizes: (H, W) of the images of each split.
        shares: of the training split's pixels that are of each class, in 0..1, ignored ones aside; (C,).
        holds: whether each training image read has each class; (N, C).
        warnings: what is doubtful; errors are raised.
        digests: name -> hash of the image and of the mask, as read; of each that was read.
    """

    intensity: Intensity
    sizes: dict[str, set[tuple[int, int]]]
    shares: np.ndarray
    holds: np.ndarray
    warnings: list[Fault]
    digests: dict[str, tuple[str, str]]


def survey(
    store: Store,
    intensity: Intensity | None = None,
    percentiles: tuple[float, float] | None = None,
    check: bool = False,
) -> Survey:
    """Reads up to 1000 images of each split, or what an earlier look at the same files has found.

    Args:
        store: of the data.
        intensity: of the run whose network the data is for; None: measured on the training split.
        percentiles: of the grey values that become 0 and 1; None: the type's range.
        check: whether to judge as seg.check does.

    Raises:
        DataError: for the first file that can't be used, when channels or types differ, and for the gravest
            of what is wrong.
    """
    source = store.source
    for split, names in source.splits.items():
        if not names:
            raise DataError(f"the {split} split has no images: {type(source).__name__} found none")
    chosen = {s: names[:: -(-len(names) // MOST)] for s, names in source.splits.items()}
    known = None if intensity else kept_file(source, chosen, percentiles, check)
    if known is not None and (found := recalled(known)) is not None:
        return found
    found = surveyed(store, chosen, intensity, percentiles, check)
    if known is not None:
        remember(known, found)
    return found


def surveyed(
    store: Store,
    chosen: dict[str, list[str]],
    intensity: Intensity | None,
    percentiles: tuple[float, float] | None,
    check: bool,
) -> Survey:
    source, first = store.source, None
    measure, looks = Measure(percentiles), []
    sizes: dict[str, set[tuple[int, int]]] = {split: set() for split in chosen}
    pixels_NC, valid_C = [], np.zeros(len(source.classes))
    digests: dict[str, tuple[str, str]] = {}
    for split, names in chosen.items():
        closely = set(names[:: -(-len(names) // CLOSELY)])
        for name in track(
            names,
            f"reading {split}",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            image, mask = store.read(name)
            first = first or (name, image.shape[2], image.dtype)
            if (image.shape[2], image.dtype) != first[1:]:
                raise DataError(
                    f"{name}: {image.shape[2]} channels of {image.dtype}, but {first[0]} has {first[1]} "
                    f"of {first[2]}; all images of a data set must agree"
                )
            sizes[split].add(image.shape[:2])
            if split == "train":
                pixels_NC.append(class_pixels(mask, len(source.classes)))
                valid_C += (mask != IGNORE).sum((0, 1))  # of each plane, where classes overlap
                if intensity is None:
                    measure.add(image)
            if check:
                seen = look(source, split, name, image, mask, None, name in closely)
                looks.append(seen)
                digests[name] = (seen.image_hash.hex(), seen.mask_hash.hex())
            else:
                digests[name] = (fingerprint(image).hex(), fingerprint(mask).hex())
    if intensity is not None and first and first[1] != intensity.channels:
        raise DataError(
            f"{first[0]}: {first[1]} channels; the run was trained on {intensity.channels}"
        )
    counts = np.array(pixels_NC).reshape(-1, len(source.classes))
    shares = counts.sum(0) / valid_C.clip(1)
    warnings = judged(source, looks) if check else []
    return Survey(intensity or measure.intensity(), sizes, shares, counts > 0, warnings, digests)


def judged(source: Source, looks: list[Look]) -> list[Fault]:
    """The warnings.

    Raises:
        DataError: for the gravest error.
    """
    faults = judge(source, Looks(looks, []), None)
    errors = [fault for fault in faults if fault.error]
    if errors:
        more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
        raise DataError(
            f"{errors[0].line()}{more}; python -m seg.check with the same options shows all, loader.check=false "
            "trains all the same"
        )
    return faults


def kept_file(
    source: Source,
    chosen: dict[str, list[str]],
    percentiles: tuple[float, float] | None,
    check: bool,
) -> Path | None:
    """Where a look at the same files has left what it found; None where a source has no files."""
    stamp = getattr(source, "stamp", None)
    if stamp is None:
        return None
    try:
        stamps = [stamp(name) for names in chosen.values() for name in names]
    except OSError:  # a file went away; reading says which
        return None
    what = [type(source).__name__, source.classes, source.task, source.splits, percentiles, check]
    text = json.dumps([version("seg"), *what, stamps], default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return caches() / "surveys" / f"{key}.json"


def recalled(file: Path) -> Survey | None:
    """What was found before; None where nothing is there, or it can't be read."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        return Survey(
            Intensity(**kept["intensity"]),
            {split: {(h, w) for h, w in sizes} for split, sizes in kept["sizes"].items()},
            np.array(kept["shares"]),
            np.array(kept["holds"], bool),
            [Fault(**fault) for fault in kept["warnings"]],
            {name: (image, mask) for name, (image, mask) in kept["digests"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remember(file: Path, found: Survey) -> None:
    """Keeps what was found, whole or not at all."""
    kept: dict[str, Any] = {
        "intensity": found.intensity.to_dict(),
        "sizes": {split: sorted(sizes) for split, sizes in found.sizes.items()},
        "shares": found.shares.tolist(),
        "holds": found.holds.astype(int).tolist(),
        "warnings": [vars(fault) for fault in found.warnings],
        "digests": found.digests,
    }
    try:
        files.make_folder(file.parent, file.parent)
        files.write_text(file, json.dumps(kept), file.parent)
    except OSError as error:
        log.info(f"data       the look at it can't be kept in {file.parent} ({error.strerror})")
