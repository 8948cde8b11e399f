"""Pictures of a comparison: the worst and the most disputed images with the predictions of the groups.

The files come from the runs' ``predictions/`` folders. A picture is found by its index in names.json, never
by a name in it, and must lie inside the run's own folder.
"""

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seg.comparison.pixel_counts import image_scores, pool_counts
from seg.comparison.ranking import RankedGroup, Ranking
from seg.comparison.run_files import dict_or_empty, list_or_empty, printable_line
from seg.comparison.run_records import ComparedRun
from seg.files import UnsafePath, read_bytes, read_text
from seg.runs.safe_loading import RECORD_LIMIT, parse_json

MAX_GROUPS_SHOWN = 12  # groups shown next to image and truth
MAX_PICTURE_BYTES = 2**22  # bytes of a file; larger ones are not shown
PICTURE_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}  # by first bytes


@dataclass
class GalleryPicture:
    """A picture: its title and caption, and its data URI or None if there is no file."""

    title: str
    uri: str | None
    caption: str = ""


@dataclass
class GalleryRow:
    """An image, the reason why it is shown, and its pictures."""

    image: str
    why: str
    pictures: list[GalleryPicture] = field(default_factory=list)


@dataclass
class Gallery:
    """The rows, and a note on what is left out."""

    rows: list[GalleryRow] = field(default_factory=list)
    note: str = ""


class SavedPictures:
    """Pictures that a run saved of a split: image -> index of its files."""

    def __init__(self, run: ComparedRun, split: str) -> None:
        self.run, self.folder, self.places = run, run.folder / "predictions" / split, {}
        try:
            content = parse_json(read_text(run.folder / "predictions/names.json", RECORD_LIMIT))
        except (OSError, ValueError, RecursionError):
            return  # none were saved, or their images are unknown
        names = [printable_line(name) for name in list_or_empty(dict_or_empty(content).get(split))]
        self.places = {name: place for place, name in enumerate(names)}

    def uri(self, image: str, what: str) -> str | None:
        """Return a picture as data URI; None if it is no PNG or JPEG, too large, or outside the run's folder."""
        if image not in self.places:
            return None
        # Resolve links first: a run folder may point to files outside it
        file = self.folder / f"{self.places[image]}-{what}"
        try:
            if not Path(os.path.realpath(file)).is_relative_to(self.run.folder):
                return None
            content = read_bytes(file, MAX_PICTURE_BYTES)
        except (OSError, UnsafePath):
            return None
        # The content decides the type, not the file's name
        kind = next(
            (kind for start, kind in PICTURE_SIGNATURES.items() if content.startswith(start)), None
        )
        return kind and f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def build_gallery(ranking: Ranking, count: int, max_picture_mb: float) -> Gallery:
    """Return the ``count`` worst and the ``count`` most disputed images of which runs saved pictures.

    A column is a group, shown by the run whose score is nearest to the mean of the group.

    Args:
        ranking: ranking whose best groups and baseline are shown.
        count: number of images of each kind.
        max_picture_mb: limit of the size of all pictures; later rows are left out.
    """
    # groups with pictures, the baseline always
    columns = ranking.groups[:MAX_GROUPS_SHOWN]
    columns += [r for r in ranking.groups[MAX_GROUPS_SHOWN:] if r.comparison is None]
    kept = [(r, SavedPictures(typical_run(r), ranking.asked.split)) for r in columns]
    kept = [(r, pictures) for r, pictures in kept if pictures.places]

    # rows of the chosen images, as many as fit
    scores = {id(r): image_dice(r, ranking.asked.split) for r, _ in kept}
    images = list(dict.fromkeys(image for _, pictures in kept for image in pictures.places))
    chosen, result, size = choose_images(images, list(scores.values()), count), Gallery(), 0
    for image, why in chosen:
        row = GalleryRow(image, why, row_pictures(image, kept, scores))
        size += sum(len(picture.uri or "") for picture in row.pictures)
        if size > max_picture_mb * 2**20:
            break
        result.rows.append(row)

    # a note on the others
    others, omitted = len(images) - len(chosen), len(chosen) - len(result.rows)
    hidden = len(ranking.groups) - len(kept)
    notes = [f"{others} other images have pictures too"] if others else []
    notes += (
        [f"{omitted} more did not fit into max_picture_mb={max_picture_mb:g}"] if omitted else []
    )
    if hidden and images:
        notes.append(f"{hidden} group{'s are' if hidden > 1 else ' is'} left out here")
    result.note = "; ".join(notes)
    return result


def typical_run(r: RankedGroup) -> ComparedRun:
    """Return the run of a group whose score is nearest to the mean."""
    return r.group.runs[int(np.argmin(np.abs(r.scores - r.mean)))]


def image_dice(r: RankedGroup, split: str) -> dict[str, float]:
    """Return the Dice of each image, the mean over classes and seeds; empty without counts."""
    group = pool_counts(r.group.runs, split)
    if group is None:
        return {}
    return dict(zip(group.images, image_scores(group.pixels, "dice").mean(1), strict=True))


def choose_images(
    images: list[str], scores: list[dict[str, float]], count: int
) -> list[tuple[str, str]]:
    """Return the images of lowest mean Dice, then of the widest range between groups, with the reason."""
    # Scores of each image in the groups that have one; nan is left out
    known = {i: [s[i] for s in scores if s.get(i, np.nan) == s.get(i, np.nan)] for i in images}
    measured = [image for image in images if known[image]]
    if not measured:
        return [(image, "") for image in images[: 2 * count]]
    # Disputed images need two groups, and are none of the worst
    worst = sorted(measured, key=lambda i: np.mean(known[i]))[:count]
    rest = [i for i in measured if i not in worst and len(known[i]) > 1]
    disputed = sorted(rest, key=lambda i: -np.ptp(known[i]))[:count]
    return [
        *((i, f"among the worst: mean Dice {np.mean(known[i]):.3f}") for i in worst),
        *(
            (i, f"among the most disputed: Dice {min(known[i]):.3f} to {max(known[i]):.3f}")
            for i in disputed
        ),
    ]


def row_pictures(
    image: str, kept: list[tuple[RankedGroup, SavedPictures]], scores: dict[int, dict[str, float]]
) -> list[GalleryPicture]:
    """Return the pictures of a row: image, truth, and the prediction of each group."""
    # Image and truth are the same for all groups: take the first file that can be read
    row = []
    for title, what in (("image", "image.jpg"), ("truth", "truth.png")):
        uris = (pictures.uri(image, what) for _, pictures in kept)
        row.append(GalleryPicture(title, next((uri for uri in uris if uri), None)))
    for r, pictures in kept:
        score = scores[id(r)].get(image)
        caption = "" if score is None or score != score else f"Dice {score:.3f}"
        row.append(GalleryPicture(r.group.label, pictures.uri(image, "prediction.png"), caption))
    return row
