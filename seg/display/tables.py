"""What people see of a run: progress on the terminal, pictures, tables."""

import logging
from collections.abc import Mapping

from rich.table import Table

from seg.metrics.significance import Interval

log = logging.getLogger("seg")
COLUMNS = {
    "dice": "Dice (F1)",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
}
BORDERS = {
    "boundary_f": "boundary F",
    "surface_dice": "surface Dice",
    "hausdorff_95": "HD95, px",
}
NO_INTERVALS: Mapping[str, Interval] = {}


def score_table(
    title: str,
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> Table:
    """A row a class, the mean over those that occur below; with intervals, Dice and IoU have theirs."""
    columns = dict(COLUMNS)
    if intervals:  # they take the place of the least asked for
        del columns["specificity"]
    return class_table(title, columns, scores, classes, prefix, intervals)


def border_table(
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval] = NO_INTERVALS,
) -> Table:
    """How well the borders of each class lie."""
    columns = {name: text for name, text in BORDERS.items() if f"{prefix}{name}" in scores}
    return class_table("borders", columns, scores, classes, prefix, intervals)


def class_table(
    title: str,
    columns: Mapping[str, str],
    scores: Mapping[str, float],
    classes: list[str],
    prefix: str,
    intervals: Mapping[str, Interval],
) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("class")
    for name, header in columns.items():
        table.add_column(header, justify="right")
        if f"{prefix}{name}" in intervals:
            table.add_column("interval", justify="center", style="dim")
    for c in (*classes, None):
        if c is None:
            table.add_section()
        cells = []
        for name in columns:
            key = f"{prefix}{name}" if c is None else f"{prefix}{name}/{c}"
            cells.append(number(scores.get(key)))
            if f"{prefix}{name}" in intervals:
                cells.append(span(intervals[key]) if key in intervals else "")
        table.add_row("mean" if c is None else c, *cells, style="bold" if c is None else None)
    return table


OBJECTS = {  # scores of objects: key and name
    "v_rand": "V_rand, after border thinning",
    "v_info": "V_info, after border thinning",
    "rand_error": "rand error",
    "warping_error": "warping error, every pixel that differs",
    "split_merge_error": "warping error, splits and mergers",
    "pixel_error": "pixel error",
    "object_f1": "objects: F1 at IoU above 0.5",
    "ap": "objects: AP, mean over IoU 0.50 to 0.95",
    "pq": "objects: panoptic quality",
}


def object_table(
    scores: Mapping[str, float], prefix: str, intervals: Mapping[str, Interval]
) -> Table:
    """Scores of borders between objects, each at its best threshold, and of objects one by one."""
    title = "borders between objects at the best threshold, and objects one by one"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("score")
    table.add_column("", justify="right")
    if intervals:
        table.add_column("interval", justify="center", style="dim")
    for name, header in OBJECTS.items():
        key, tiny = f"{prefix}{name}", "warping" in header  # the paper gives these to 1e-6
        value = f"{scores[key]:.6f}" if tiny else number(scores[key])
        table.add_row(
            header, value, *([span(intervals[key], 6 if tiny else 3)] if intervals else [])
        )
    return table


def span(interval: Interval, digits: int = 3) -> str:
    """Its ends, briefly: .861-.874 or 3.4-5.1."""
    if interval.low != interval.low:
        return "-"
    if interval.high > 1:
        digits = 1 if interval.high < 100 else 0
        return f"{interval.low:.{digits}f}-{interval.high:.{digits}f}"
    ends = (f"{end:.{digits}f}" for end in (interval.low, interval.high))
    return "-".join("1" if end.startswith("1") else end.removeprefix("0") for end in ends)


def interval_line(images: int, level: float) -> str:
    """What the intervals are, and how far to trust them."""
    few = "; so few images make them too narrow" if images < 20 else ""
    return f"intervals: {level:.0%} by bootstrap over {images} images, taken as independent{few}"


def score_line(scores: Mapping[str, float], classes: list[str], prefix: str) -> str:
    """What stands under the table: what the mean leaves out, the images' own scores, accuracy."""
    spread = scores.get(f"{prefix}dice_per_image_sd")
    plus_minus = "" if spread is None else f" +- {spread:.4f}"
    absent = [
        c
        for c in classes
        if scores.get(f"{prefix}dice/{c}", 0) != scores.get(f"{prefix}dice/{c}", 0)
    ]
    left_out = f"; {', '.join(absent)} occurs nowhere and is left out of the mean" if absent else ""
    ece = scores.get(f"{prefix}ece")
    calibration = "" if ece is None else f"; expected calibration error {ece:.4f}"
    return (
        f"over all pixels of the split{left_out}; the mean of each image's own Dice is "
        f"{number(scores.get(f'{prefix}dice_per_image'))}{plus_minus}; "
        f"pixel accuracy {number(scores.get(f'{prefix}pixel_accuracy'))}{calibration}"
    )


def number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
