"""The same image twice, or nearly: across splits, inside one, and masks that are used twice."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from seg.data.quality.inspect import SIDE, TURNS, Look
from seg.data.quality.issues import Fault

ALIKE = 0.90  # correlation of two thumbnails from which on images are nearly the same
OWN = 0.85  # the same of what each thumbnail has beyond the mean of all
FEW = 8  # images below which there is no such mean, and ALIKE_FEW counts alone
ALIKE_FEW = 0.95


class Twins(NamedTuple):
    """Two images that are nearly the same: their places, the correlation, and how one is turned."""

    first: int
    second: int
    correlation: float
    turn: str


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


def alike(thumbs: np.ndarray) -> list[Twins]:
    """Pairs of thumbnails (N, SIDE, SIDE) that show nearly the same, in any turn; the most alike turn counts.

    Images of one kind share much (a dark rim, the road below the sky); so what each has beyond the mean of
    all must agree too, where there are enough images to know that mean.
    """
    flat = thumbs.reshape(len(thumbs), -1)
    mean = flat.mean(0) if len(flat) >= FEW else np.zeros_like(flat[0])
    least = ALIKE if len(flat) >= FEW else ALIKE_FEW
    own, coarse = unit_rows(flat - mean), coarser(flat - mean)
    best: dict[tuple[int, int], Twins] = {}
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
                    best[i, j] = Twins(i, j, r, turn)
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


def likeness(pair: Twins) -> str:
    return f"correlation {pair.correlation:.3f}{' when ' + pair.turn if pair.turn else ''}"
