"""Pictures for a comparison: the worst and the most disputed images, predictions side by side.

Files come from the runs' ``predictions/`` folders; only pictures inside a run's own folder are taken, by
their place in names.json, never by a name that stands there.
"""

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seg.comparison.pixel_counts import image_scores, pooled
from seg.comparison.ranking import Ranked, Ranking
from seg.comparison.run_files import listed, mapping, text
from seg.comparison.run_records import Run
from seg.files import UnsafePath, read_bytes, read_text
from seg.runs.safe_loading import RECORD_LIMIT, json_value

COLUMNS = 12  # groups shown beside image and truth
LARGEST = 2**22  # bytes of one file
TYPES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}  # by their first bytes


@dataclass
class Picture:
    """One picture: what stands above and below it, and its data URI; None where it isn't kept."""

    title: str
    uri: str | None
    caption: str = ""


@dataclass
class Row:
    """An image, why it is shown, and its pictures."""

    image: str
    why: str
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Gallery:
    """What is shown, and a line on what isn't."""

    rows: list[Row] = field(default_factory=list)
    note: str = ""


class Kept:
    """The pictures that a run kept of a split: image -> its place."""

    def __init__(self, run: Run, split: str) -> None:
        self.run, self.folder, self.places = run, run.folder / "predictions" / split, {}
        try:
            content = json_value(read_text(run.folder / "predictions/names.json", RECORD_LIMIT))
        except (OSError, ValueError, RecursionError):
            return  # none were kept, or they can't be told apart
        names = [text(name) for name in listed(mapping(content).get(split))]
        self.places = {name: place for place, name in enumerate(names)}

    def uri(self, image: str, what: str) -> str | None:
        """A picture as a data URI; None where it isn't one, or lies outside the run's folder."""
        if image not in self.places:
            return None
        file = self.folder / f"{self.places[image]}-{what}"
        try:
            if not Path(os.path.realpath(file)).is_relative_to(self.run.folder):
                return None
            content = read_bytes(file, LARGEST)
        except (OSError, UnsafePath):
            return None
        kind = next((kind for start, kind in TYPES.items() if content.startswith(start)), None)
        return kind and f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def gallery(ranking: Ranking, count: int, megabytes: float) -> Gallery:
    """The ``count`` worst and the ``count`` most disputed images that runs kept pictures of.

    A column is a group, shown by the run whose score is nearest to the group's mean.

    Args:
        ranking: whose groups are shown, the best ones and the baseline.
        count: of each kind.
        megabytes: of pictures at most; later rows are left out.
    """
    shown = ranking.groups[:COLUMNS]
    shown += [r for r in ranking.groups[COLUMNS:] if r.comparison is None]  # the baseline always
    kept = [(r, Kept(typical(r), ranking.asked.split)) for r in shown]
    kept = [(r, pictures) for r, pictures in kept if pictures.places]
    scores = {id(r): scores_of(r, ranking.asked.split) for r, _ in kept}
    images = list(dict.fromkeys(image for _, pictures in kept for image in pictures.places))
    chosen, found, spent = choose(images, list(scores.values()), count), Gallery(), 0
    for image, why in chosen:
        row = Row(image, why, pictures_of(image, kept, scores))
        spent += sum(len(picture.uri or "") for picture in row.pictures)
        if spent > megabytes * 2**20:
            break
        found.rows.append(row)
    left = len(chosen) - len(found.rows)
    hidden = len(ranking.groups) - len(kept)
    parts = [f"{len(images) - len(chosen)} other images have pictures too"] if len(images) > len(chosen) else []  # fmt: skip
    parts += [f"{left} more did not fit into megabytes={megabytes:g}"] if left else []
    parts += (
        [f"{hidden} group{'s are' if hidden > 1 else ' is'} left out here"]
        if hidden and images
        else []
    )
    found.note = "; ".join(parts)
    return found


def typical(r: Ranked) -> Run:
    """The run of a group whose score is nearest to the mean."""
    return r.group.runs[int(np.argmin(np.abs(r.scores - r.mean)))]


def scores_of(r: Ranked, split: str) -> dict[str, float]:
    """Dice of each image, its mean over classes and seeds; empty where it can't be told."""
    group = pooled(r.group.runs, split)
    if group is None:
        return {}
    return dict(zip(group.images, image_scores(group.pixels, "dice").mean(1), strict=True))


def choose(images: list[str], scores: list[dict[str, float]], count: int) -> list[tuple[str, str]]:
    """The images of lowest mean Dice, then of the widest range between groups, and why each is shown."""
    known = {i: [s[i] for s in scores if s.get(i, np.nan) == s.get(i, np.nan)] for i in images}
    measured = [image for image in images if known[image]]
    if not measured:
        return [(image, "") for image in images[: 2 * count]]
    worst = sorted(measured, key=lambda i: np.mean(known[i]))[:count]
    rest = [i for i in measured if i not in worst and len(known[i]) > 1]
    disputed = sorted(rest, key=lambda i: -np.ptp(known[i]))[:count]
    found = [(i, f"among the worst: mean Dice {np.mean(known[i]):.3f}") for i in worst]
    return found + [(i, f"among the most disputed: Dice {min(known[i]):.3f} to {max(known[i]):.3f}") for i in disputed]  # fmt: skip


def pictures_of(
    image: str, kept: list[tuple[Ranked, Kept]], scores: dict[int, dict[str, float]]
) -> list[Picture]:
    """Image, truth, and a prediction a group."""
    row = []
    for title, what in (("image", "image.jpg"), ("truth", "truth.png")):
        uris = (pictures.uri(image, what) for _, pictures in kept)
        row.append(Picture(title, next((uri for uri in uris if uri), None)))
    for r, pictures in kept:
        score = scores[id(r)].get(image)
        caption = "" if score is None or score != score else f"Dice {score:.3f}"
        row.append(Picture(r.group.label, pictures.uri(image, "prediction.png"), caption))
    return row
