"""Tables of a comparison: the ranking on the terminal, and the rows of compare.csv."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from seg.comparison.grouping import format_option, listed_options, option_value
from seg.comparison.ranking import Comparison, Ranking
from seg.comparison.run_records import ComparedRun
from seg.comparison.summary import mean_fact, score_name, unranked_reason
from seg.display.console import console
from seg.display.tables import format_score, format_signed, make_table

CostFunction = Callable[[ComparedRun], float | None]
COST_COLUMNS: tuple[tuple[str, CostFunction], ...] = (  # of a run; the last are left out first
    ("M", lambda run: None if run.parameters is None else run.parameters / 1e6),
    ("min", lambda run: run.minutes),
    ("img/s", lambda run: run.images_per_second),
)
FORMULA_STARTS = tuple(
    "=+-@\uff1d\uff0b\uff0d\uff20"
)  # first characters of a spreadsheet's formulas


def fit_group_table(ranking: Ranking, width: int) -> Table:
    """Return the table of the ranking with as many costs as fit the width of the terminal.

    If the options alone do not fit, they share one column.
    """
    options = list(ranking.groups[0].group.options)
    # Leave out costs from the last on until the table fits
    for costs in (COST_COLUMNS, COST_COLUMNS[:2], COST_COLUMNS[:1], ()):
        table = build_group_table(ranking, dict(costs), options)
        if console.measure(table, options=console.options.update(width=1000)).maximum <= width:
            return table
    return build_group_table(ranking, {}, []) if len(options) > 3 else table


def build_group_table(
    ranking: Ranking, costs: dict[str, CostFunction], options: list[str]
) -> Table:
    """Return one row for each group, from best to worst; without options the first column is its name."""
    asked = ranking.asked
    table = make_table(Text(f"{score_name(asked)} on {asked.split}"))
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    for name in options or ["group"]:
        table.add_column(Text(name), overflow="fold")
    baseline = "best" if ranking.baseline_is_best else "baseline"
    interval = f"{asked.level:.0%} interval"
    # Headers of two lines, so that two options fit a terminal of 80 columns.
    for name in (
        "mean",
        "+- sd",
        "n",
        *costs,
        f"to\n{baseline}",
        interval,
        "p\nimages",
        "p\nseeds",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for r in ranking.groups:
        cells = [format_option(r.group.options[name]) for name in options] or [r.group.label]
        means = (format_cost(mean_fact(r.group, cost)) for cost in costs.values())
        spread = format_score(r.sd) if len(r.scores) > 1 else ""
        table.add_row(
            *map(Text, cells), format_score(r.mean), spread, str(len(r.scores)), *means,
            *difference_cells(r.comparison, baseline), style="bold" if r.comparison is None else None,
        )  # fmt: skip
    return table


def build_group_frame(ranking: Ranking) -> pd.DataFrame:
    """Return a row per group, from best to worst: score, and difference from the baseline; nan where there is none."""
    rows = []
    for r in ranking.groups:
        c = r.comparison or Comparison()
        rows.append({
            "group": r.group.label, "mean": r.mean, "sd": r.sd, "runs": len(r.scores), "seeds": r.seeds,
            "baseline": r.comparison is None, "difference": c.value, "low": c.low, "high": c.high,
            "p_images": c.p_images, "p_seeds": c.p_seeds, "incomparable": c.apart,
        })  # fmt: skip
    return pd.DataFrame(rows)


def difference_cells(c: Comparison | None, baseline: str) -> tuple[str, str, str, str]:
    """Return the cells of the difference, its interval over images (else over seeds, "s"), and both p."""
    if c is None:
        return baseline, "", "", ""
    low, high, unit = (c.low, c.high, "") if c.low == c.low else (c.seeds_low, c.seeds_high, " s")
    span = f"{format_signed(low)} {format_signed(high)}{unit}" if low == low else ""
    return format_signed(c.value), c.apart or span, format_p(c.p_images), format_p(c.p_seeds)


def format_p(p: float) -> str:
    """Return ``.0123`` or ``<.0001``; empty for nan."""
    if p != p:
        return ""
    return "<.0001" if p < 0.0001 else f"{p:.4f}".removeprefix("0")


def format_cost(value: float | None) -> str:
    """Return a cost with three digits; empty for None."""
    return "" if value is None else f"{value:.3g}"


def build_run_table(ranking: Ranking, others: list[ComparedRun]) -> pd.DataFrame:
    """Return the rows of compare.csv: each run with its differing options, costs and final metrics."""
    # Ranked runs first; columns are the options in which any runs differ
    ranks = {id(run): (place, r) for place, r in enumerate(ranking.groups) for run in r.group.runs}
    runs = [*ranking.runs, *others]
    names = listed_options(runs)
    metrics = dict.fromkeys(key for run in runs for key in run.metrics)
    rows = []
    for run in runs:
        place, r = ranks.get(id(run), (None, None))
        row: dict[str, Any] = {
            "run": run.label, "status": run.status, "rank": None if place is None else place + 1,
            "group": r.group.label if r else "", "name": run.name, "sweep": run.sweep, "seed": run.seed,
        }  # fmt: skip
        row |= {name: option_value(run, name) for name in names}
        row |= {
            "parameters": run.parameters, "minutes": run.minutes, "steps": run.steps,
            "epochs": run.epochs, "images_per_second": run.images_per_second,
        }  # fmt: skip
        row |= {key: run.metrics.get(key) for key in metrics}
        row["note"] = "; ".join(run.faults) if r else unranked_reason(run, ranking.asked)
        rows.append({quote_formula(key): quote_formula(value) for key, value in row.items()})
    return pd.DataFrame(rows).convert_dtypes()


def quote_formula(value: object) -> object:
    """Return a cell that no spreadsheet reads as a formula; numbers stay numbers."""
    # Names from run folders are untrusted, and a spreadsheet would execute a formula
    if isinstance(value, list):
        value = format_option(value)
    if not isinstance(value, str):
        return value
    try:
        return value if math.isfinite(float(value)) else f"'{value}"
    except ValueError:
        return f"'{value}" if value.lstrip().startswith(FORMULA_STARTS) else value
