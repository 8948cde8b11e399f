"""Tables of scores on the terminal, and the lines below them."""

import re
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from seg.metrics.significance import Interval

SCORE_COLUMNS = {
    "dice": "Dice (F1)",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
}
OVERLAP_COLUMNS = {"boundary_f": "boundary F", "surface_dice": "surface Dice"}
DISTANCE_COLUMNS = {
    "hausdorff_95": "HD95, px",
    "surface_distance": "ASSD, px",
    "hausdorff_95_um": "HD95, um",
    "surface_distance_um": "ASSD, um",
}
BORDER_COLUMNS = OVERLAP_COLUMNS | DISTANCE_COLUMNS
OBJECT_ROWS = {  # metric -> row of the table
    "v_rand": "V_rand, after border thinning",
    "v_info": "V_info, after border thinning",
    "rand_error": "rand error",
    "warping_error": "warping error, all differing pixels",
    "split_merge_error": "warping error, splits and mergers",
    "pixel_error": "pixel error",
    "object_f1": "objects: F1 at IoU above 0.5",
    "ap": "objects: AP, mean over IoU 0.50 to 0.95",
    "pq": "objects: panoptic quality",
}
NO_INTERVALS: Mapping[str, Interval] = {}


def make_table(title: str | Text) -> Table:
    """Return an empty table in the style of all tables of the package."""
    return Table(title=title, title_justify="left", header_style="bold")


def pixel_score_table(
    title: str,
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> Table:
    """Return a table of pixel scores: one row for each class, then the mean over those that occur.

    Args:
        title: title of the table.
        scores: scores by metric key, such as ``val/dice/CLASS``.
        classes: names of the classes.
        prefix: start of the keys, such as ``val/``.
        intervals: intervals by metric key; they replace the column of the specificity.
    """
    columns = dict(SCORE_COLUMNS)
    if intervals:
        del columns["specificity"]
    return metric_table(title, columns, scores, classes, prefix, intervals)


def border_tables(
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> list[Table]:
    """Return tables of the border scores and of the distances that were computed; arguments as in ``pixel_score_table``."""
    tables = []
    for title, group in (("borders", OVERLAP_COLUMNS), ("distances of borders", DISTANCE_COLUMNS)):
        columns = {name: text for name, text in group.items() if f"{prefix}{name}" in scores}
        if columns:
            tables.append(metric_table(title, columns, scores, classes, prefix, intervals))
    return tables


def metric_table(
    title: str,
    columns: Mapping[str, str],
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval],
) -> Table:
    """Return a table of some metrics by class; ``columns`` maps metrics to headers."""
    # a column for each metric, and one for its interval
    table = make_table(title)
    table.add_column("class")
    for name, header in columns.items():
        table.add_column(header, justify="right")
        if f"{prefix}{name}" in intervals:
            table.add_column("interval", justify="center", style="dim")

    # a row for each class, the mean (None) last
    for c in (*classes, None):
        if c is None:
            table.add_section()
        cells = []
        for name in columns:
            key = f"{prefix}{name}" if c is None else f"{prefix}{name}/{c}"
            cells.append(format_score(scores.get(key)))
            if f"{prefix}{name}" in intervals:
                cells.append(format_interval(intervals[key]) if key in intervals else "")
        table.add_row("mean" if c is None else c, *cells, style="bold" if c is None else None)
    return table


def object_table(
    scores: Mapping[str, float], prefix: str, intervals: Mapping[str, Interval]
) -> Table:
    """Return a table of ISBI 2012 scores, each at its best threshold, and of object scores."""
    table = make_table("borders between objects at the best threshold, and single objects")
    table.add_column("score")
    table.add_column("", justify="right")
    if intervals:
        table.add_column("interval", justify="center", style="dim")
    for name, header in OBJECT_ROWS.items():
        key, tiny = f"{prefix}{name}", "warping" in header  # the paper gives these to 1e-6
        value = f"{scores[key]:.6f}" if tiny else format_score(scores[key])
        ends = [format_interval(intervals[key], 6 if tiny else 3)] if intervals else []
        table.add_row(header, value, *ends)
    return table


def format_signed(value: float, digits: int = 4) -> str:
    """Return ``+.0123``; empty for nan."""
    return re.sub(r"^([+-])0\.", r"\1.", f"{value:+.{digits}f}") if value == value else ""


def format_interval(interval: Interval, digits: int = 3) -> str:
    """Return the ends of an interval in short form: .861-.874 or 3.4-5.1; "-" if it has none."""
    if interval.low != interval.low:
        return "-"
    if interval.high > 1:
        digits = 1 if interval.high < 100 else 0
        return f"{interval.low:.{digits}f}-{interval.high:.{digits}f}"
    ends = (f"{end:.{digits}f}" for end in (interval.low, interval.high))
    return "-".join("1" if end.startswith("1") else end.removeprefix("0") for end in ends)


def interval_line(images: int, level: float) -> str:
    """Return the line on how the intervals were computed; below 20 images it warns."""
    few = "; with so few images they are too narrow" if images < 20 else ""
    return f"intervals: {level:.0%}, bootstrap over {images} images, assumed independent{few}"


def score_line(
    scores: Mapping[str, float], classes: list[str], prefix: str, pixels: int | None = None
) -> str:
    """Return the line below a score table: labelled pixels, absent classes, Dice per image, accuracy, calibration."""

    def value(name: str) -> float | None:
        return scores.get(f"{prefix}{name}")

    spread, ece = value("dice_per_image_sd"), value("ece")
    plus_minus = "" if spread is None else f" +- {spread:.4f}"
    absent = [c for c in classes if (dice := value(f"dice/{c}")) is not None and dice != dice]
    verbs = ("does", "is") if len(absent) == 1 else ("do", "are")
    missed = never_predicted(scores, classes, prefix)
    left_out = f"; never predicted: {', '.join(missed)}" if missed else ""
    if absent:
        left_out += (
            f"; {', '.join(absent)} {verbs[0]} not occur and {verbs[1]} left out of the mean"
        )
    calibration = "" if ece is None else f"; expected calibration error {ece:.4f}"
    return (
        f"over all {'' if pixels is None else f'{pixels:,} '}labelled pixels of the split{left_out}; the mean of each image's own Dice is "
        f"{format_score(value('dice_per_image'))}{plus_minus}; "
        f"pixel accuracy {format_score(value('pixel_accuracy'))}{calibration}"
    )


def never_predicted(scores: Mapping[str, float], classes: list[str], prefix: str) -> list[str]:
    """Return the classes that occur in the truth and are predicted in no pixel."""
    nan = float("nan")
    return [
        c
        for c in classes
        if scores.get(f"{prefix}recall/{c}", nan) == 0
        and scores.get(f"{prefix}dice/{c}", nan) == 0
        and (precision := scores.get(f"{prefix}precision/{c}", 0.0)) != precision
    ]


def foreground_dice(
    scores: Mapping[str, float], classes: list[str], overlapping: bool, prefix: str
) -> tuple[str, float] | None:
    """Return Dice without the background, and what it is of: class 1 of two, or the mean of all classes but the first.

    None if there is no background, or if none of these classes occurs.
    """
    values = [scores.get(f"{prefix}dice/{c}", float("nan")) for c in classes[1:]]
    present = [value for value in values if value == value]
    if overlapping or not present:
        return None
    return classes[1] if len(classes) == 2 else f"without {classes[0]}", sum(present) / len(present)


def format_score(value: float | None) -> str:
    """Return a score with four digits; "-" if it is None or nan."""
    return "-" if value is None or value != value else f"{value:.4f}"
