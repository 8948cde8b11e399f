"""Render compare.html: one self-contained file that makes no network request.

Text from run folders is untrusted: jinja2 escapes it in the markup, `embedded` in the data of the script, the
script inserts it by textContent; a Content-Security-Policy allows only the page's own two scripts.
"""

import base64
import hashlib
import json
import math
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import plotly

from seg.comparison.gallery import build_gallery
from seg.comparison.grouping import format_option, listed_options, option_value
from seg.comparison.pixel_counts import image_scores
from seg.comparison.ranking import Comparison, RankedGroup, Ranking, class_intervals
from seg.comparison.run_files import ImageCounts
from seg.comparison.run_records import ComparedRun
from seg.comparison.summary import (
    list_warnings,
    mean_fact,
    p_value_line,
    score_name,
    unranked_reason,
    write_headline,
)

PAGE_GENERATOR = '<meta name="generator" content="seg.compare">'
CURVE_METRICS = ("train/loss", "val/loss", "val/dice/", "lr", "images_per_second")
MAX_PAGE_SCORES = (
    400_000  # scores of images in a page; above, first classes and then images are left out
)


def render_comparison_page(
    ranking: Ranking, others: list[ComparedRun], images: int, max_picture_mb: float
) -> str:
    """Return the page as HTML.

    Args:
        ranking: ranking of the groups.
        others: runs that are not ranked.
        images: number of the worst, and of the most disputed images to show.
        max_picture_mb: limit of the size of all pictures.
    """
    # Autoescape: names from run folders are untrusted
    folder = files("seg.comparison") / "templates"
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((folder / "compare.html").read_text(encoding="utf-8"))
    runs = [*ranking.runs, *others]
    own = (folder / "compare.js").read_text(encoding="utf-8")
    # The policy's hashes need line ends of \n, to which HTML parsers normalise
    plots = plotly.offline.get_plotlyjs().replace("\r\n", "\n")
    data = page_data(ranking, runs)
    return template.render(
        generator=PAGE_GENERATOR,
        csp="default-src 'none'; "
        f"script-src {script_hash(plots)} {script_hash(own)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        css=(folder / "compare.css").read_text(encoding="utf-8"),
        plots=plots,
        own=own,
        data=embed_json(data),
        headline=write_headline(ranking, len(others)),
        score=score_name(ranking.asked),
        asked=ranking.asked,
        chosen=ranking.baseline_is_best,
        options=list(ranking.groups[0].group.options) if ranking.groups else [],
        groups=[group_page_row(r, ranking) for r in ranking.groups],
        keys=data["keys"],
        rows=[run_page_row(i, run, row, ranking) for i, (run, row) in enumerate(zip(runs, data["runs"], strict=True))],
        p_line=p_value_line(ranking),
        cautions=list_warnings(ranking),
        gallery=build_gallery(ranking, images, max_picture_mb),
        environment=environment_facts(runs),
        scatter=any(row["set"] is not None for row in data["runs"]),
        curves=any(row["curves"]["values"] for row in data["runs"]),
    )  # fmt: skip


def embed_json(data: Any) -> str:
    """Return data as JSON that cannot end the script element around it."""
    text = json.dumps(round_numbers(data), separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def round_numbers(value: Any) -> Any:
    """Return data with five digits for each number, and None for those that JSON has not."""
    if isinstance(value, dict):
        return {key: round_numbers(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(child) for child in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def script_hash(script: str) -> str:
    """Return the hash of a script in the notation of the Content-Security-Policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page_data(ranking: Ranking, runs: list[ComparedRun]) -> dict[str, Any]:
    """Return the data from which the script of the page draws."""
    asked = ranking.asked
    place = {id(run): i for i, r in enumerate(ranking.groups) for run in r.group.runs}
    # options, and images with as many scores as the page may hold
    keys = listed_options(runs)
    counts = [run.counts.get(asked.split) for run in runs]
    sets = list(dict.fromkeys(c.images for c in counts if c))
    classes = list(dict.fromkeys(name for c in counts if c for name in c.classes))
    whole = sum(c.pixels[..., 0].size for c in counts if c) <= MAX_PAGE_SCORES
    step = max(1, math.ceil(sum(len(c.images) for c in counts if c) / MAX_PAGE_SCORES))
    configs, facts = (
        column_texts([getattr(run, part) for run in runs]) for part in ("options", "facts")
    )
    return {
        "asked": {
            "name": score_name(asked), "key": asked.key, "split": asked.split, "level": asked.level,
            "smaller": asked.smaller_is_better,
        },
        "keys": keys,
        "classes": classes,
        "sets": [list(names[::step]) for names in sets],
        "step": step,
        "groups": [group_plot_data(r, ranking) for r in ranking.groups],
        "runs": [
            {
                "label": run.label,
                "group": place.get(id(run)),
                "seed": run.seed,
                "status": run.status,
                "score": run.metrics.get(asked.key),
                "classes": class_scores(run, asked.key),
                "parameters": run.parameters,
                "minutes": run.minutes,
                "options": [plain_value(option_value(run, key)) for key in keys],
                "set": sets.index(count.images) if count else None,
                "dice": image_dice_rows(count, classes if whole else [], step) if count else None,
                "curves": select_curves(run, f"val/{asked.score}"),
            }
            for run, count in zip(runs, counts, strict=True)
        ],
        "config": configs,
        "facts": facts,
    }  # fmt: skip


def plain_value(value: Any) -> Any:
    """Return a number unchanged, any other value as text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and abs(value) < 1e300 else format_option(value)


def column_texts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each name the text that all have, or the list of texts, None where there is none."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [format_option(part[name]) if name in part else None for part in parts]
        columns[name] = values[0] if len(set(values)) == 1 else values
    return columns


def class_scores(run: ComparedRun, key: str) -> dict[str, float]:
    """Return the score of each class, and the mean under the empty name."""
    base = key.partition("/")[0] if key.startswith("test/") else "best/val"
    name = key.removeprefix(f"{base}/").partition("/")[0]
    mean = {"": run.metrics[f"{base}/{name}"]} if f"{base}/{name}" in run.metrics else {}
    start = f"{base}/{name}/"
    return mean | {k.removeprefix(start): v for k, v in run.metrics.items() if k.startswith(start)}


def image_dice_rows(count: ImageCounts, classes: list[str], step: int) -> list[list[float]]:
    """Return for each image the mean Dice over classes, then the Dice of each class."""
    # Dice is 0 / 0 = nan where a class is neither true nor predicted
    tp, fp, fn = np.moveaxis(count.pixels[::step].astype(float), -1, 0)
    with np.errstate(invalid="ignore"):
        dice_NC = 2 * tp / (2 * tp + fp + fn)
    columns = [image_scores(count.pixels[::step], "dice")]
    for name in classes:
        known = name in count.classes
        columns.append(
            dice_NC[:, count.classes.index(name)] if known else np.full(len(dice_NC), np.nan)
        )
    return np.stack(columns, axis=1).tolist()


def select_curves(run: ComparedRun, score: str) -> dict[str, Any]:
    """Return the learning curves that the page shows; others are in metrics.csv."""
    curves = {
        name: values
        for name, values in run.curves.values.items()
        if name in (score, "val/dice", "val/iou") or name.startswith(CURVE_METRICS)
    }
    return {
        "step": run.curves.steps,
        "epoch": run.curves.epochs,
        "steps": run.steps,
        "values": curves,
    }


def group_plot_data(r: RankedGroup, ranking: Ranking) -> dict[str, Any]:
    """Return the data of a group for the plots."""
    return {
        "label": r.group.label,
        "mean": r.mean,
        "sd": r.sd,
        "runs": len(r.scores),
        "parameters": mean_fact(r.group, lambda run: run.parameters),
        "minutes": mean_fact(r.group, lambda run: run.minutes),
        "intervals": class_intervals(r, ranking.asked),
    }


def group_page_row(r: RankedGroup, ranking: Ranking) -> dict[str, Any]:
    """Return a row of the ranking; its interval is drawn on the scale of all rows."""
    return {
        "options": [format_option(value) for value in r.group.options.values()],
        "r": r,
        "parameters": mean_fact(r.group, lambda run: run.parameters),
        "minutes": mean_fact(r.group, lambda run: run.minutes),
        "rate": mean_fact(r.group, lambda run: run.images_per_second),
        "drawn": interval_positions(r.comparison, interval_scale(ranking))
        if r.comparison
        else None,
        "significant": r.comparison.significant(ranking.alpha) if r.comparison else (),
    }


def interval_scale(ranking: Ranking) -> float:
    """Return the largest absolute end of an interval: half the width of the drawings."""
    ends = [
        e for c in ranking.comparisons for e in (c.low, c.high, c.seeds_low, c.seeds_high, c.value)
    ]
    return max((abs(e) for e in ends if e == e), default=0.0) or 1.0


def interval_positions(c: Comparison, reach: float) -> dict[str, float | None]:
    """Return positions 0..100 of the value and of the ends of its intervals; 50 is no difference."""
    ends = {"value": c.value, "low": c.low, "high": c.high, "seeds_low": c.seeds_low, "seeds_high": c.seeds_high}  # fmt: skip
    return {k: round(50 + 48 * v / reach, 2) if v == v else None for k, v in ends.items()}


def run_page_row(
    index: int, run: ComparedRun, row: dict[str, Any], ranking: Ranking
) -> dict[str, Any]:
    """Return a row of the table of runs."""
    ranked = row["group"] is not None
    return {
        "index": index, "run": run, "options": [format_option(v) for v in row["options"]], "group": row["group"],
        "score": row["score"], "rate": run.images_per_second,
        "note": "; ".join(run.faults) if ranked else unranked_reason(run, ranking.asked),
    }  # fmt: skip


def environment_facts(runs: list[ComparedRun]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return each fact with its values and their number of runs; facts that differ come first."""
    facts = []
    for name in dict.fromkeys(name for run in runs for name in run.facts):
        values = [run.facts.get(name, "unknown") for run in runs]
        if name not in ("command", "started"):
            facts.append((name, [(value, values.count(value)) for value in dict.fromkeys(values)]))
    return sorted(facts, key=lambda item: len(item[1]) < 2)
