"""Partition of image names into train, val and test, as pure functions.

A partition divides names into parts of given sizes: in blocks, at random, or so that groups stay whole and
each part gets its share of each class. Legend: U = units, images or groups of them; B = parts; L = labels:
0 for all images, then one for each class, which the images have in which it occurs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from seg.data.masks import shorten_list
from seg.errors import DataError

Splits = dict[str, list[str]]
Partition = Callable[[list[str], list[int]], list[list[str]]]  # names and sizes -> parts
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {  # name of a folder in any case -> its split
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test", "tr": "train", "ts": "test",
}  # fmt: skip
NEUTRAL_VALUES = {
    "test": "0",
    "contiguous": "false",
    "stratify": "false",
}  # value without effect, if not null


def divide_names(
    names: list[str],
    val: float | None,
    test: float,
    fold: int | None,
    folds: int,
    contiguous: bool,
    seed: int,
    groups: dict[str, str] | None = None,
    presence: Callable[[str], np.ndarray] | None = None,
) -> Splits:
    """Divide names into train, val and, if ``test`` is above 0, test.

    Args:
        names: in their order.
        val: share of the validation split, 0..1; None: 0.2, or the fold.
        test: share of the test split, 0..1; the same images for each fold.
        fold: index of the validation fold; None: the share ``val``.
        folds: number of disjoint validation splits that together hold all but the test images.
        contiguous: blocks in the order of names, where 2 comes before 10; the test's block is the last.
        seed: of the random draw.
        groups: name -> group, which stays whole; None: each image by itself.
        presence: function of a name that returns whether each class occurs, (C,); parts get their share of
            the images with each class. None: classes do not count.

    Raises:
        DataError: if options exclude each other or leave a split empty.
    """
    # Options that exclude each other.
    if contiguous:
        excluded = {"group_by": groups, "stratify": presence is not None}
        reject_options(excluded, "data.contiguous", "blocks go by names alone")
    if fold is not None:
        reject_options({"val": val}, f"data.fold={fold}", "the fold is what validates")
    # The partition by the options, applied to shares or folds.
    rng = np.random.default_rng(seed)
    partition: Partition = partial(random_parts, rng=rng)
    if contiguous:
        partition = block_parts
    elif groups or presence:
        occurring = {name: presence(name) for name in names} if presence else {}
        partition = partial(stratified_parts, rng=rng, groups=groups or {}, presence=occurring)
    if fold is None:
        return split_by_shares(names, 0.2 if val is None else val, test, partition)
    return split_by_fold(names, fold, folds, test, partition)


def split_by_shares(names: list[str], val: float, test: float, partition: Partition) -> Splits:
    """Divide names by the shares ``val`` and ``test``; the others train. A single image validates."""
    if not (val > 0 and test >= 0 and val + test < 1):
        raise DataError(
            f"data.val={val} and data.test={test}: shares of 0..1 that leave some to train on"
        )
    if len(names) == 1:
        return {"val": names}  # enough to evaluate on
    # Round the counts, with at least one image to validate on and one to train on
    counts = {"val": max(1, round(val * len(names))), "test": round(test * len(names))}
    left = len(names) - sum(counts.values())
    if left < 1:
        raise DataError(
            f"{len(names)} images can't be split into train and {counts}: add images to data.root, or take "
            "smaller shares data.val and data.test"
        )
    return name_parts(partition(names, [left, *counts.values()]))


def split_by_fold(
    names: list[str], fold: int, folds: int, test: float, partition: Partition
) -> Splits:
    """Divide names without the share ``test`` into folds, of which ``fold`` validates and the others train."""
    # Check the options and that each fold gets an image
    if not (folds >= 2 and 0 <= fold < folds):
        raise DataError(
            f"data.fold={fold} of data.folds={folds}: give 2 folds or more, and 0 <= fold < folds"
        )
    if not 0 <= test < 1:
        raise DataError(f"data.test={test}: a share of 0..1 that leaves some to train on")
    kept = round(test * len(names))
    left = len(names) - kept
    if left < folds:
        without = f", {kept} of them for the test" if kept else ""
        raise DataError(
            f"{len(names)} images{without}: data.folds={folds} needs more; add images or take fewer folds"
        )
    # First the test images, then the folds of the rest.
    rest, tested = partition(names, [left, kept])
    val = partition(rest, even_sizes(len(rest), folds))[fold]
    members = set(val)
    return name_parts([[name for name in rest if name not in members], val, tested])


def name_parts(parts: list[list[str]]) -> Splits:
    """Return the parts by the name of their split, without empty ones."""
    return {split: part for split, part in zip(SPLITS, parts, strict=True) if part}


def even_sizes(count: int, parts: int) -> list[int]:
    """Return sizes that differ by at most one, the larger ones first."""
    return [count // parts + (i < count % parts) for i in range(parts)]


def consecutive_parts(names: list[str], sizes: list[int]) -> list[list[str]]:
    """Divide names into consecutive parts."""
    ends = np.cumsum(sizes).tolist()
    return [names[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def block_parts(names: list[str], sizes: list[int]) -> list[list[str]]:
    """Divide names into contiguous parts in the order of names."""
    return consecutive_parts(sorted(names, key=natural_key), sizes)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which the number 2 comes before 10."""
    words = re.split(r"(\d+)", name)
    return [int(word) if i % 2 else word for i, word in enumerate(words)], name


def random_parts(names: list[str], sizes: list[int], rng: np.random.Generator) -> list[list[str]]:
    """Divide names at random; the first part gets what the others leave."""
    drawn = rng.permutation(len(names)).tolist()
    others = len(names) - sizes[0]
    order = [names[i] for i in drawn[others:] + drawn[:others]]
    return [sorted(part) for part in consecutive_parts(order, sizes)]


def stratified_parts(
    names: list[str],
    sizes: list[int],
    rng: np.random.Generator,
    groups: dict[str, str],
    presence: dict[str, np.ndarray],
) -> list[list[str]]:
    """Divide names into parts of whole groups, each with its share of the images in which a class occurs.

    Without groups the sizes are exact; with groups they are as near as ``iterative_stratification`` gets.

    Raises:
        DataError: if there are fewer groups than parts.
    """
    # Units: the groups, or single images.
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(groups.get(name, name), []).append(name)
    wanted = sum(size > 0 for size in sizes)
    if len(units) < wanted:
        raise DataError(
            f"data.group_by leaves {len(units)} group{'s' * (len(units) > 1)}, {shorten_list(sorted(units))}, for "
            f"{wanted} parts: more groups, fewer data.folds or a smaller data.test are needed"
        )
    # Their images with each label, and the images with each label due to each part.
    members = list(units.values())
    weight_UL = np.array(
        [np.sum([[1, *presence.get(n, ())] for n in unit], axis=0) for unit in members], int
    )
    # Shares by images; even folds get equal shares whatever the rounding
    even = min(sizes) > 0 and max(sizes) - min(sizes) <= 1
    share_B = np.ones(len(sizes), int) if even else np.array(sizes)
    lack_BL = np.outer(share_B, weight_UL.sum(0))
    if not groups:
        lack_BL[:, 0] = np.array(sizes) * share_B.sum()
    parts = iterative_stratification(weight_UL, share_B, lack_BL, rng, even)
    return [sorted(name for unit in part for name in members[unit]) for part in parts]


def iterative_stratification(
    weight_UL: np.ndarray,
    share_B: np.ndarray,
    lack_BL: np.ndarray,
    rng: np.random.Generator,
    largest_first: bool,
) -> list[list[int]]:
    """Return the units of each part by iterative stratification.

    Sechidis, Tsoumakas and Vlahavas 2011, ECML PKDD: the rarest label is assigned first, each unit to the part
    that lacks it most, then to the part with the most room, then at random. Differs: a full part gets nothing
    more, no part stays empty, and the largest units may come first, which evens out parts of equal size.

    Args:
        weight_UL: images of each unit with each label; integers.
        share_B: share of the images that each part is due, integers; a part of 0 gets none.
        lack_BL: images with each label that are due to each part, times the sum of the shares.
        rng: draws the order of the units, and decides between equals.
        largest_first: whether the units with the most images of the label come first.
    """
    parts: list[list[int]] = [[] for _ in share_B]
    lack_BL, left = lack_BL.copy(), rng.permutation(len(weight_UL)).tolist()
    while left:
        # The units with the rarest label.
        left_L = weight_UL[left].sum(0)
        rarest = min(np.flatnonzero(left_L), key=lambda label: left_L[label])
        turn = [unit for unit in left if weight_UL[unit, rarest]]
        left = [unit for unit in left if not weight_UL[unit, rarest]]
        if largest_first:
            turn.sort(key=lambda unit: -weight_UL[unit, rarest])
        for done, unit in enumerate(turn):
            # The parts with room, or the empty ones if each of the remaining units is needed for one of them.
            candidates = [b for b, part in enumerate(parts) if share_B[b] and not part]
            if len(candidates) < len(turn) - done + len(left):
                candidates = np.flatnonzero(lack_BL[:, 0] > 0).tolist()
            best = max((lack_BL[b, rarest], lack_BL[b, 0], rng.random(), b) for b in candidates)[-1]
            parts[best].append(unit)
            lack_BL[best] -= weight_UL[unit] * share_B.sum()
    return parts


def find_groups(names: list[str], pattern: str) -> dict[str, str]:
    """Return name -> group: the pattern's first group, or all that it matches.

    It is searched for in the name without folders, or with them if the pattern has a slash.

    Raises:
        DataError: if the pattern is invalid, or a name does not match.
    """
    # The pattern must compile and match every name
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.group_by={pattern}: not a regular expression ({error})") from error
    whole = "/" in pattern
    matches = {name: compiled.search(name if whole else name.rpartition("/")[2]) for name in names}
    groups = {n: match[min(1, compiled.groups)] for n, match in matches.items() if match}
    without = [name for name in names if not groups.get(name)]
    if without:
        raise DataError(
            f"data.group_by={pattern}: no group in the name {without[0]!r}"
            f"{f' ({len(without)} such names)' if len(without) > 1 else ''}; it must find one in every name"
        )
    return groups


def check_groups_apart(splits: Splits, groups: dict[str, str]) -> None:
    """Raise DataError if a group is in two splits."""
    places: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            first, other = places.setdefault(groups[name], (split, name))
            if first != split:
                raise DataError(
                    f"data.group_by: group {groups[name]!r} is in {first} ({other}) and in {split} ({name}); "
                    "move it to one of them"
                )


def split_of_folders(name: str) -> str | None:
    """Return the split of the first folder in a name that is called like one, such as train or valid; else None."""
    if "/" not in name:
        return None
    # tr and ts are nnU-Net's, in this spelling: imagesTr
    parts = [part for part in name.split("/")[:-1] if len(part) > 2 or part in ("Tr", "Ts")]
    return next((SPLIT_FOLDERS[p.lower()] for p in parts if p.lower() in SPLIT_FOLDERS), None)


def splits_by_folder(names: list[str]) -> Splits | None:
    """Return the splits of images in folders called like splits; None unless each image is in one."""
    splits: Splits = {split: [] for split in SPLITS}
    for name in names:
        split = split_of_folders(name)
        if split is None:
            return None
        splits[split].append(name)
    return {split: members for split, members in splits.items() if members}


def reject_options(options: Mapping[str, object], beside: str, why: str) -> None:
    """Raise DataError for the first option that is set (neither None nor False) although another excludes it.

    Args:
        options: name -> value.
        beside: the option or the data that excludes them, for the message.
        why: reason, for the message.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            text = "" if isinstance(value, dict) else f"={'true' if value is True else value}"
            off = NEUTRAL_VALUES.get(name, "null")
            raise DataError(f"data.{name}{text} beside {beside}: {why}; take data.{name}={off}")


def split_hash(splits: Splits) -> str:
    """Return 12 hex digits of the SHA-256 of the sorted names of each split."""
    members = {split: sorted(names) for split, names in splits.items()}
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()[:12]
