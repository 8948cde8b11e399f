"""Statistics of a data set, computed before training: grey values, sizes, classes and what is wrong.

They are kept in the user's cache under the names, sizes and times of the files, so that the next start reads
no image.
"""

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from seg import files
from seg.data.datasets.base import DataSource
from seg.data.image_cache import ImageCache, cache_root, choose_inspected
from seg.data.image_io import channels_hint
from seg.data.masks import count_class_pixels
from seg.data.nodata import integer_nodata
from seg.data.normalization import IntensityStatistics, Normalization
from seg.data.quality.checks import find_training_issues
from seg.data.quality.inspect import ImageStats, hash_pixels, inspect_image
from seg.data.quality.issues import OPTIONAL_KINDS, Issue
from seg.display.console import track_progress
from seg.errors import DataError
from seg.labels import IGNORE
from seg.version import __version__

log = logging.getLogger("seg")
STATISTICS_FORMAT = 4  # of the cached statistics: 4 has the labelled share


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of a data set.

    Attributes:
        intensity: normalisation of the images.
        sizes: (H, W) of the images of each split.
        shares: share of the training split's pixels that each class has, in 0..1, without ignored ones; (C,).
        class_presence: for each training image read, whether each class occurs; (N, C).
        labelled: share of the training split's pixels that are not ignored, in 0..1.
        warnings: faults that do not prevent training; errors are raised.
        digests: name -> hash of the image and of the mask as read, for each that was read.
    """

    intensity: Normalization
    sizes: dict[str, set[tuple[int, int]]]
    class_shares: list[float]
    class_presence: list[list[bool]]
    labelled: float
    warnings: list[Issue]
    digests: dict[str, tuple[str, str]]


STATISTICS_SCHEMA = TypeAdapter(DatasetStatistics)


def measure_dataset(
    store: ImageCache,
    intensity: Normalization | None = None,
    percentiles: tuple[float, float] | None = None,
    check: bool = False,
    skip_checks: Collection[str] = (),
) -> DatasetStatistics:
    """Read up to 1000 images of each split, or return the cached statistics of the same files.

    From then on the store raises if one of these images changes.

    Args:
        store: of the data.
        intensity: normalisation of a trained network; None: computed from the training split.
        percentiles: of the grey values that become 0 and 1; None: the type's range.
        check: whether to check the data as seg.check does, except for its heuristics.
        skip_checks: kinds of issues that are left out.

    Raises:
        DataError: for the first file that cannot be used, if channels or types differ, and for the most
            important error of the check.
    """
    # Each split that exists must have images
    source = store.source
    for split, names in source.splits.items():
        if not names:
            raise DataError(f"the {split} split has no images: {type(source).__name__} found none")
    # Stamps before the images are read: a later change is then noticed.
    chosen = {split: choose_inspected(names) for split, names in source.splits.items()}
    stamps = store.file_stamps(name for names in chosen.values() for name in names)
    # The cached statistics, or those of the images.
    file = None
    if intensity is None and len(stamps) == sum(map(len, chosen.values())):
        checks = sorted(skip_checks) if check else None
        file = statistics_file(source, list(stamps.values()), percentiles, checks)
    statistics = None if file is None else read_statistics(file)
    if statistics is None:
        statistics = compute_statistics(store, chosen, intensity, percentiles, check, skip_checks)
        if file is not None:
            write_statistics(file, statistics)
    store.freeze(stamps, statistics.digests)
    return statistics


def compute_statistics(
    store: ImageCache,
    chosen: dict[str, list[str]],
    intensity: Normalization | None,
    percentiles: tuple[float, float] | None,
    check: bool,
    skip_checks: Collection[str],
) -> DatasetStatistics:
    """Compute the statistics of the chosen images of each split; see ``measure_dataset``."""
    # Running sums over the images, so that none is kept in memory
    source, first = store.source, None
    measure, looks = IntensityStatistics(percentiles), []
    sizes: dict[str, set[tuple[int, int]]] = {split: set() for split in chosen}
    pixels_NC, valid_C, total = [], np.zeros(len(source.classes)), 0
    digests: dict[str, tuple[str, str]] = {}
    seen: dict[tuple[int, ...], str] = {}  # value of no data -> the first image of integers with it
    for split, names in chosen.items():
        for name in track_progress(names, f"reading {split}"):
            # All images have the type and the channels of the first.
            image, mask = store.read(name)
            first = first or (name, image.shape[2], image.dtype)
            if (image.shape[2], image.dtype) != first[1:]:
                raise DataError(
                    f"{name}: {image.shape[2]} channels of {image.dtype}, but {first[0]} has {first[1]} "
                    f"of {first[2]}; all images of a data set must agree"
                )
            nodata = known_nodata(source, name)
            if image.dtype.kind == "u":
                unify_nodata(seen, integer_nodata(nodata, image.dtype)[:1], name)
            # Sizes, classes and grey values.
            sizes[split].add(image.shape[:2])
            if split == "train":
                pixels_NC.append(count_class_pixels(mask, len(source.classes)))
                valid_C += (mask != IGNORE).sum((0, 1))  # of each plane, where classes overlap
                total += mask.shape[0] * mask.shape[1]
                if intensity is None:
                    measure.add(image, nodata)
            # Hashes, and what the check needs.
            if check:
                looks.append(
                    inspect_image(source, split, name, image, mask, None, heuristics=False)
                )
                hashes = looks[-1].image_hash, looks[-1].mask_hash
            else:
                hashes = hash_pixels(image), hash_pixels(mask)
            digests[name] = (hashes[0].hex(), hashes[1].hex())
    # Check the images against the run that gave the normalisation
    if intensity is not None and first and first[1] != intensity.image_channels:
        raise DataError(
            f"{first[0]}: {first[1]} channels; the run was trained on {intensity.image_channels}"
            f"{channels_hint(first[1], intensity.image_channels)}"
        )
    if intensity is None and measure.is_empty:
        raise DataError(
            "the training images have no data: each of their values means no data; check data.nodata"
        )
    if intensity is not None and seen:
        intensity = adopt_nodata(intensity, *next(iter(seen.items())))
    # Shares of the classes, and the check.
    counts_NC = np.array(pixels_NC).reshape(-1, len(source.classes))
    shares = (counts_NC.sum(0) / valid_C.clip(1)).tolist()
    warnings = check_training_data(source, looks, skip_checks) if check else []
    intensity = intensity or measure.intensity()
    presence, labelled = (counts_NC > 0).tolist(), float(valid_C.mean() / max(total, 1))
    return DatasetStatistics(intensity, sizes, shares, presence, labelled, warnings, digests)


def known_nodata(source: DataSource, name: str) -> tuple[float, ...]:
    """Return the values that mean no data in an image; none if the source does not know."""
    if not hasattr(source, "nodata_values"):
        return ()
    return source.nodata_values(name)  # ty: ignore[not-callable]


def unify_nodata(seen: dict[tuple[int, ...], str], found: list[int], name: str) -> None:
    """Raise DataError if images of integers have different values that mean no data; add the image to ``seen``."""
    seen.setdefault(tuple(found), name)
    if len(seen) > 1:
        (value, first), (other, second) = list(seen.items())[:2]
        words = [f"{v[0]} means no data in {n}" if v else f"none in {n}" for v, n in ((value, first), (other, second))]  # fmt: skip
        known = (value or other)[0]
        raise DataError(
            f"{words[0]}, and {words[1]} (GDAL_NODATA); images of integers need one value for all, data.nodata={known}, or "
            "data.nodata=none"
        )


def adopt_nodata(intensity: Normalization, found: tuple[int, ...], name: str) -> Normalization:
    """Return a run's normalisation with the value that means no data in images of integers.

    Raises:
        DataError: if the run has another value.
    """
    if not found:
        return intensity
    known = integer_nodata(intensity.nodata or (), np.dtype(np.uint16))
    if known and known[0] != found[0]:
        raise DataError(
            f"{name}: {found[0]} means no data, but {known[0]} in the images that the run was trained on; "
            f"give data.nodata={known[0]}"
        )
    return intensity if known else replace(intensity, nodata=[float(found[0])])


def check_training_data(
    source: DataSource, looks: list[ImageStats], skipped: Collection[str]
) -> list[Issue]:
    """Return the warnings that are not of skipped kinds.

    Raises:
        DataError: for the most important error.
    """
    faults = [f for f in find_training_issues(source, looks) if f.kind not in skipped]
    errors = [fault for fault in faults if fault.error]
    if errors:
        more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
        optional = errors[0].kind in OPTIONAL_KINDS
        off = f"loader.skip_checks=[{errors[0].kind}]" if optional else "loader.check=false"
        raise DataError(
            f"{errors[0].line()}{more}; python -m seg.check with the same options shows all, "
            f"{off} trains all the same"
        )
    return faults


def statistics_file(
    source: DataSource,
    stamps: list[str],
    percentiles: tuple[float, float] | None,
    skipped: list[str] | None,
) -> Path:
    """Return the file for the statistics of a source whose images have these stamps; ``skipped`` is None without checks."""
    parts = [
        type(source).__name__,
        source.classes,
        source.task,
        source.splits,
        percentiles,
        skipped,
    ]
    text = json.dumps([__version__, STATISTICS_FORMAT, *parts, stamps], default=str)
    return cache_root() / "surveys" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def read_statistics(file: Path) -> DatasetStatistics | None:
    """Return the statistics that a file holds; None if it is missing or damaged."""
    try:
        return STATISTICS_SCHEMA.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def write_statistics(file: Path, statistics: DatasetStatistics) -> None:
    """Write the statistics to a file."""
    try:
        files.make_folder(file.parent, file.parent)
        files.write_bytes(file, STATISTICS_SCHEMA.dump_json(statistics), file.parent)
    except (OSError, files.UnsafePath) as error:
        reason = getattr(error, "strerror", None) or error
        log.info(f"data       statistics can't be kept in {file.parent} ({reason})")
