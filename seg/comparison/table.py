"""Tables of a comparison: the ranked groups on the terminal, and the rows of compare.csv."""

import math
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from seg.comparison.grouping import differing, readable, shown, value_of
from seg.comparison.ranking import Comparison, Ranking
from seg.comparison.run_records import Run
from seg.comparison.summary import fate, mean_of, score_name
from seg.display.console import console
from seg.display.tables import number

Cost = Callable[[Run], float | None]
COSTS: tuple[tuple[str, Cost], ...] = (  # of a run; the first are told first
    ("M", lambda run: None if run.parameters is None else run.parameters / 1e6),
    ("min", lambda run: run.minutes),
    ("img/s", lambda run: run.images_per_second),
)
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # a spreadsheet computes cells that begin so


def fitting(ranking: Ranking, width: int) -> Table:
    """The table of groups, without as many of the costs as are too much for a terminal so wide.

    Where the options alone are, they share a column.
    """
    options = list(ranking.groups[0].group.options)
    for costs in (COSTS, COSTS[:2], COSTS[:1], ()):
        table = group_table(ranking, dict(costs), options)
        if console.measure(table, options=console.options.update(width=1000)).maximum <= width:
            return table
    return group_table(ranking, {}, []) if len(options) > 3 else table


def group_table(ranking: Ranking, costs: dict[str, Cost], options: list[str]) -> Table:
    """A row a group, from best to worst; without options the group's name has a column."""
    asked = ranking.asked
    table = Table(
        title=Text(f"{score_name(asked)} on {asked.split}"), title_justify="left", header_style="bold",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in options or ["group"]:
        table.add_column(Text(name), overflow="fold")
    baseline = "best" if ranking.chosen else "baseline"
    for name in ("mean", "+- sd", "n", *costs, f"to {baseline}", f"{asked.level:.0%} interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("real?", no_wrap=True)
    for r in ranking.groups:
        cells = [shown(r.group.options[name]) for name in options] or [r.group.label]
        spent = (brief(mean_of(r.group, cost)) for cost in costs.values())
        spread = number(r.sd) if len(r.scores) > 1 else ""
        table.add_row(
            *map(Text, cells), number(r.mean), spread, str(len(r.scores)), *spent,
            *difference(r.comparison, baseline), style="bold" if r.comparison is None else None,
        )  # fmt: skip
    return table


def difference(c: Comparison | None, baseline: str) -> tuple[str, str, str]:
    """Difference, its interval over images (else over seeds), and the mark."""
    if c is None:
        return baseline, "", ""
    low, high, of = (c.low, c.high, "") if c.low == c.low else (c.seeds_low, c.seeds_high, " s")
    span = f"{signed(low)} {signed(high)}{of}" if low == low else ""
    return signed(c.value), span, c.mark


def signed(value: float) -> str:
    """``+.0123``; empty for nan."""
    return re.sub(r"^([+-])0\.", r"\1.", f"{value:+.4f}") if value == value else ""


def brief(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.3g}"


def run_table(ranking: Ranking, others: list[Run]) -> pd.DataFrame:
    """A row a run, best group first: what it differs in, what it cost, all its final metrics."""
    of = {id(run): (place, r) for place, r in enumerate(ranking.groups) for run in r.group.runs}
    runs = [*ranking.runs, *others]
    names = [name for name in differing(readable(runs)) if name not in ("name", "sweep")]
    metrics = dict.fromkeys(key for run in runs for key in run.metrics)
    rows = []
    for run in runs:
        place, r = of.get(id(run), (None, None))
        row: dict[str, Any] = {
            "run": run.label, "status": run.status, "rank": None if place is None else place + 1,
            "group": r.group.label if r else "", "name": run.name, "sweep": run.sweep, "seed": run.seed,
        }  # fmt: skip
        row |= {name: value_of(run, name) for name in names}
        row |= {
            "parameters": run.parameters, "minutes": run.minutes, "steps": run.steps,
            "epochs": run.epochs, "images_per_second": run.images_per_second,
        }  # fmt: skip
        row |= {key: run.metrics.get(key) for key in metrics}
        row["note"] = "; ".join(run.faults) if r else fate(run, ranking.asked)
        rows.append({harmless(key): harmless(value) for key, value in row.items()})
    return pd.DataFrame(rows).convert_dtypes()


def harmless(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if isinstance(value, list):
        value = shown(value)
    if not isinstance(value, str):
        return value
    try:
        return value if math.isfinite(float(value)) else f"'{value}"
    except ValueError:
        return f"'{value}" if value.lstrip().startswith(FORMULA) else value
