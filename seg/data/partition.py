"""Which images train, which validate and which test: pure functions on names.

A partition cuts names into parts of given sizes, in blocks, at random, or dealt so that groups stay whole
and each part gets its share of each class. Legend: U = units, images or groups of them; B = parts;
L = what is shared out: images, and for each class the images in which it occurs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from seg.data.masks import short
from seg.errors import DataError

Splits = dict[str, list[str]]
Partition = Callable[[list[str], list[int]], list[list[str]]]  # names and sizes -> parts
SPLITS = ("train", "val", "test")
OFF = {
    "test": "0",
    "blocks": "false",
    "stratify": "false",
}  # how an option is left out, if not null


def divide(
    names: list[str],
    val: float | None,
    test: float,
    fold: int | None,
    folds: int,
    blocks: bool,
    seed: int,
    groups: dict[str, str] | None = None,
    presence: Callable[[str], np.ndarray] | None = None,
) -> Splits:
    """Names in train, val and, if any are kept for it, test.

    Args:
        names: in their order.
        val: share in 0..1 that validates; None: 0.2, or the fold.
        test: share in 0..1 kept for the test; with folds it is the same for each.
        fold: which of ``folds`` validates; None: the share ``val``.
        folds: number of disjoint validation splits that together hold all but the test images.
        blocks: contiguous in the order of names, where 2 comes before 10; the test's block is the last.
        seed: of what is random.
        groups: name -> group, which stays whole; None: each image by itself.
        presence: name -> (C,) whether each class occurs; parts get their share of it. None: not looked at.

    Raises:
        DataError: when options exclude each other or leave a split empty.
    """
    if blocks:
        beside = {"group_by": groups, "stratify": presence is not None}
        refuse(beside, "data.blocks", "blocks go by names alone")
    if fold is not None:
        refuse({"val": val}, f"data.fold={fold}", "the fold is what validates")
    rng = np.random.default_rng(seed)
    partition: Partition = partial(shuffled, rng=rng)
    if blocks:
        partition = in_blocks
    elif groups or presence:
        occurring = {name: presence(name) for name in names} if presence else {}
        partition = partial(dealt, rng=rng, groups=groups or {}, presence=occurring)
    if fold is None:
        return share_split(names, 0.2 if val is None else val, test, partition)
    return fold_split(names, fold, folds, test, partition)


def share_split(names: list[str], val: float, test: float, partition: Partition) -> Splits:
    """The shares ``val`` and ``test`` of the names; the others train."""
    if not (val > 0 and test >= 0 and val + test < 1):
        raise DataError(
            f"data.val={val} and data.test={test}: shares of 0..1 that leave some to train on"
        )
    counts = {"val": max(1, round(val * len(names))), "test": round(test * len(names))}
    left = len(names) - sum(counts.values())
    if left < 1:
        raise DataError(
            f"{len(names)} images can't be split into train and {counts}: add images to data.root, or take "
            "smaller shares data.val and data.test"
        )
    return filled(partition(names, [left, *counts.values()]))


def fold_split(
    names: list[str], fold: int, folds: int, test: float, partition: Partition
) -> Splits:
    """Fold ``fold`` of what the share ``test`` leaves validates; the other folds train."""
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
    rest, tested = partition(names, [left, kept])
    val = partition(rest, even_sizes(len(rest), folds))[fold]
    held = set(val)
    return filled([[name for name in rest if name not in held], val, tested])


def filled(parts: list[list[str]]) -> Splits:
    """The parts by the name of their split, without an empty test."""
    return {split: part for split, part in zip(SPLITS, parts, strict=True) if part}


def even_sizes(count: int, parts: int) -> list[int]:
    """Sizes that differ by at most one, the larger ones first."""
    return [count // parts + (i < count % parts) for i in range(parts)]


def consecutive(names: list[str], sizes: list[int]) -> list[list[str]]:
    ends = np.cumsum(sizes).tolist()
    return [names[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def in_blocks(names: list[str], sizes: list[int]) -> list[list[str]]:
    """Contiguous parts in the order of names."""
    return consecutive(sorted(names, key=natural), sizes)


def natural(name: str) -> tuple[list[str | int], str]:
    """Sorts names so that the number 2 comes before 10."""
    words = re.split(r"(\d+)", name)
    return [int(word) if i % 2 else word for i, word in enumerate(words)], name


def shuffled(names: list[str], sizes: list[int], rng: np.random.Generator) -> list[list[str]]:
    """Parts drawn at random; the first gets what the others leave."""
    drawn = rng.permutation(len(names)).tolist()
    taken = len(names) - sizes[0]
    order = [names[i] for i in drawn[taken:] + drawn[:taken]]
    return [sorted(part) for part in consecutive(order, sizes)]


def dealt(
    names: list[str],
    sizes: list[int],
    rng: np.random.Generator,
    groups: dict[str, str],
    presence: dict[str, np.ndarray],
) -> list[list[str]]:
    """Parts of whole groups, each with its share of the images in which a class occurs.

    Single images fill the sizes exactly; groups come as near as ``deal`` gets.

    Raises:
        DataError: when there are fewer groups than parts.
    """
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(groups.get(name, name), []).append(name)
    wanted = sum(size > 0 for size in sizes)
    if len(units) < wanted:
        raise DataError(
            f"data.group_by leaves {len(units)} group{'s' * (len(units) > 1)}, {short(sorted(units))}, for "
            f"{wanted} parts: more groups, fewer data.folds or a smaller data.test are needed"
        )
    members = list(units.values())
    weight_UL = np.array(
        [np.sum([[1, *presence.get(n, ())] for n in unit], axis=0) for unit in members], int
    )
    even = min(sizes) > 0 and max(sizes) - min(sizes) <= 1
    share_B = np.ones(len(sizes), int) if even else np.array(sizes)
    lack_BL = np.outer(share_B, weight_UL.sum(0))
    if not groups:
        lack_BL[:, 0] = np.array(sizes) * share_B.sum()
    parts = deal(weight_UL, share_B, lack_BL, rng, even)
    return [sorted(name for unit in part for name in members[unit]) for part in parts]


def deal(
    weight_UL: np.ndarray,
    share_B: np.ndarray,
    lack_BL: np.ndarray,
    rng: np.random.Generator,
    largest_first: bool,
) -> list[list[int]]:
    """The units of each part, by iterative stratification.

    Sechidis, Tsoumakas and Vlahavas 2011, ECML PKDD: the rarest label is dealt first, each unit to the part
    that lacks it most, then to that with the most room, then by chance. Differs: a full part gets nothing
    more, none stays empty, and the largest units may come first, which evens out parts of one size.

    Args:
        weight_UL: images of a unit, in all (label 0) and with each class; integers.
        share_B: of the images that each part is to get, integers; a part of 0 gets none.
        lack_BL: images that are due to each part, times the sum of the shares.
        rng: draws the order of the units, and decides between equals.
        largest_first: the units with most images of the label come before the others.
    """
    parts: list[list[int]] = [[] for _ in share_B]
    lack_BL, left = lack_BL.copy(), rng.permutation(len(weight_UL)).tolist()
    while left:
        left_L = weight_UL[left].sum(0)
        rarest = min(np.flatnonzero(left_L), key=lambda label: left_L[label])
        turn = [unit for unit in left if weight_UL[unit, rarest]]
        left = [unit for unit in left if not weight_UL[unit, rarest]]
        if largest_first:
            turn.sort(key=lambda unit: -weight_UL[unit, rarest])
        for done, unit in enumerate(turn):
            takers = [b for b, part in enumerate(parts) if share_B[b] and not part]
            if len(takers) < len(turn) - done + len(
                left
            ):  # else each one left goes to an empty part
                takers = np.flatnonzero(lack_BL[:, 0] > 0).tolist()
            most = max((lack_BL[b, rarest], lack_BL[b, 0], rng.random(), b) for b in takers)[-1]
            parts[most].append(unit)
            lack_BL[most] -= weight_UL[unit] * share_B.sum()
    return parts


def groups_of(names: list[str], pattern: str) -> dict[str, str]:
    """Name -> its group: the pattern's first group, or all that it matches; folders in a name aside.

    Raises:
        DataError: when the pattern is none, or a name doesn't match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.group_by={pattern}: not a regular expression ({error})") from error
    found = {name: compiled.search(name.rpartition("/")[2]) for name in names}
    groups = {n: match[min(1, compiled.groups)] for n, match in found.items() if match}
    lonely = [name for name in names if not groups.get(name)]
    if lonely:
        raise DataError(
            f"data.group_by={pattern}: no group in the name {lonely[0]!r}"
            f"{f' ({len(lonely)} such names)' if len(lonely) > 1 else ''}; it must find one in every name"
        )
    return groups


def check_apart(splits: Splits, groups: dict[str, str]) -> None:
    """Raises DataError when a group is on two sides."""
    seen: dict[str, tuple[str, str]] = {}
    for split, names in splits.items():
        for name in names:
            first, other = seen.setdefault(groups[name], (split, name))
            if first != split:
                raise DataError(
                    f"data.group_by: group {groups[name]!r} is in {first} ({other}) and in {split} ({name}); "
                    "move it to one side"
                )


def refuse(options: Mapping[str, object], beside: str, why: str) -> None:
    """Raises DataError for the first option that is given (neither None nor False) beside another."""
    for name, value in options.items():
        if value is not None and value is not False:
            said = "" if isinstance(value, dict) else f"={'true' if value is True else value}"
            off = OFF.get(name, "null")
            raise DataError(f"data.{name}{said} beside {beside}: {why}; take data.{name}={off}")


def split_hash(splits: Splits) -> str:
    """12 hex digits of the SHA-256 of the sorted names of each split."""
    members = {split: sorted(names) for split, names in splits.items()}
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()[:12]
