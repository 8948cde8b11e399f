"""Images that occur twice, exactly or nearly, across splits or inside one, and masks that are used twice."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from seg.data.datasets.base import DataSource
from seg.data.quality.inspect import ImageStats
from seg.data.quality.issues import Issue

MIN_CORRELATION = 0.90  # correlation of two thumbnails from which images are nearly the same
MIN_OWN_CORRELATION = 0.85  # the same for their differences from the mean thumbnail
FEW_IMAGES = 8  # images below which that mean is not used, and ALIKE_FEW counts alone
MIN_CORRELATION_FEW = 0.95
MIN_COPY_CORRELATION = 0.985  # of all pixels, from which one image is a copy of the other: JPEG of quality 50 has .985 to .998


class NearDuplicate(NamedTuple):
    """Two images that are nearly the same: their indices and the correlation of their thumbnails."""

    first: int
    second: int
    correlation: float


def find_duplicates(stats: list[ImageStats]) -> list[Issue]:
    """Return an issue for each image with the pixels of an earlier one, and for each mask used twice."""
    # Images of the same pixels: with another mask, in another split, or in the same split.
    issues, same = [], defaultdict(list)
    for image in stats:
        same[image.image_hash].append(image)
    for first, *others in same.values():
        for image in others:
            if image.mask_hash != first.mask_hash:
                found = f"the same pixels as {first.file}, with another mask"
                remedy = "keep the right mask, and one of the images"
                issues.append(Issue("contradiction", image.file, found, remedy, name=image.name))
            across = [other for other in (first, *others) if other.split != image.split]
            if across:
                found = (
                    f"in {image.split}, the same pixels as {across[0].file} in {across[0].split}"
                )
                remedy = "take one of them out"
                issues.append(Issue("leak", image.file, found, remedy, name=image.name))
            else:
                found = f"the same pixels as {first.file}"
                remedy = "take one of them out: it counts twice"
                issues.append(Issue("repeated", image.file, found, remedy, name=image.name))
    # One mask, of two classes or more, for different images.
    used = defaultdict(list)
    for image in stats:
        if image.valid.any() and (image.pixels > 0).sum() > 1:
            used[image.mask_hash].append(image)
    for first, *others in used.values():
        for image in others:
            related = float((image.thumbnail * first.thumbnail).sum()) > MIN_CORRELATION
            if image.image_hash != first.image_hash and not related:
                found = f"pixel by pixel {first.mask_file}"
                remedy = "check whether it is a copy under the wrong name"
                issues.append(Issue("same_mask", image.mask_file, found, remedy, name=image.name))
    return issues


def similar_pairs(thumbs: np.ndarray) -> list[NearDuplicate]:
    """Return the pairs of thumbnails (N, THUMBNAIL_PX, THUMBNAIL_PX) that are nearly the same, the most similar first.

    All images of a data set may have much in common, such as a dark rim. So their differences from the mean
    must agree too, if there are enough images to compute that mean.
    """
    # Differences from the mean thumbnail, of length 1.
    flat = thumbs.reshape(len(thumbs), -1)
    mean = flat.mean(0) if len(flat) >= FEW_IMAGES else np.zeros_like(flat[0])
    least = MIN_CORRELATION if len(flat) >= FEW_IMAGES else MIN_CORRELATION_FEW
    length = np.linalg.norm(flat - mean, axis=1, keepdims=True)
    own = np.where(length > 1e-4, (flat - mean) / length.clip(1e-12), 0)
    # Pairs whose thumbnails and whose differences correlate.
    twins = []
    for start in range(0, len(flat), 1024):  # a block of rows of the N x N correlations
        rows = slice(start, start + 1024)
        correlation = flat[rows] @ flat.T
        close = (correlation >= least) & (own[rows] @ own.T >= MIN_OWN_CORRELATION)
        for i, j in np.argwhere(np.triu(close, start + 1)).tolist():
            twins.append(NearDuplicate(i + start, j, float(correlation[i, j])))
    return sorted(twins, key=lambda pair: -pair.correlation)


def find_near_duplicates(source: DataSource, stats: list[ImageStats]) -> list[Issue]:
    """Return an issue for each image nearly in another split, and for each group of similar images in one.

    It is an error only if almost all pixels agree, and a warning for images that are alike.
    """
    if len(stats) < 2:
        return []
    # Similar pairs, without those of equal pixels, which are reported as duplicates
    pairs = similar_pairs(np.stack([image.thumbnail for image in stats]))
    pairs = [p for p in pairs if stats[p.first].image_hash != stats[p.second].image_hash]
    issues, leaking, groups = [], set(), {}
    # Across splits: each image once, with the most similar one; in one split: join the groups of both.
    for pair in pairs:
        first, second = stats[pair.first], stats[pair.second]
        if first.split == second.split:
            members = {
                *groups.get(pair.first, [pair.first]),
                *groups.get(pair.second, [pair.second]),
            }
            groups |= dict.fromkeys(members, members)
        elif second.name not in leaking:
            leaking.add(second.name)
            correlation = pixel_correlation(source, first, second)
            kind, likeness = "near_leak", format_correlation(pair)
            if correlation >= MIN_COPY_CORRELATION:
                kind, likeness = "copy_leak", f"correlation of all pixels {correlation:.4f}"
            found = f"in {second.split}, nearly {first.file} in {first.split}, {likeness}"
            remedy = (
                "take one out, or split so that a sequence or specimen stays together: data.group_by, "
                "data.contiguous=true, or folders"
            )
            issues.append(Issue(kind, second.file, found, remedy, name=second.name))
    # One issue per group, with its most similar pair.
    for members in {id(m): m for m in groups.values()}.values():
        first, *others = (stats[i] for i in sorted(members))
        closest = next(p for p in pairs if {p.first, p.second} <= members)
        rest = f" and {len(others) - 2} more" if others[2:] else ""
        listed = ", ".join(image.file for image in others[:2])
        found = f"in {first.split}, nearly {listed}{rest}, {format_correlation(closest)}"
        remedy = "they count several times; keep them in one split when the splits are drawn anew"
        issues.append(Issue("near_repeated", first.file, found, remedy, name=first.name))
    return issues


def pixel_correlation(source: DataSource, first: ImageStats, second: ImageStats) -> float:
    """Return the correlation of the grey values of two images, in -1..1; 0 for images of different sizes."""
    if first.shape != second.shape:
        return 0.0
    grey = [
        source.read(image.name)[0].mean(-1, dtype=np.float64).ravel() for image in (first, second)
    ]
    grey = [np.nan_to_num(values - np.nanmean(values)) for values in grey]
    lengths = [np.linalg.norm(values) for values in grey]
    return float(grey[0] @ grey[1] / max(lengths[0] * lengths[1], 1e-12))


def format_correlation(pair: NearDuplicate) -> str:
    """Return the correlation of two images as text."""
    return f"correlation {pair.correlation:.3f}"
