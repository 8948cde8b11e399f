"""Which of many runs is really better: ``python -m seg.compare outputs/sweeps/SWEEP group_by=model,loss``.

Ranks the runs' groups in a table, tells which differences are more than chance, and writes compare.csv, a
row a run, and compare.html, a page that needs no network.
"""

import logging
import math
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, ListConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from seg import files
from seg.cli import UserError, command
from seg.command_line import quote_hydra, quote_path
from seg.comparison import page
from seg.comparison.findings import cautions, claims, fate, headline, mean_of, score_name
from seg.comparison.grouping import (
    differing,
    filtered,
    grouped,
    named,
    readable,
    shown,
    value_of,
    words,
)
from seg.comparison.ranking import Asked, Comparison, Ranking, rank
from seg.comparison.results import Run, common_folder, find_runs, read_runs
from seg.console import console, quiet
from seg.files import open_regular
from seg.options import listed, nearest
from seg.reports import number
from seg.runs import relative

log = logging.getLogger("seg")
LISTS = ("runs", "where", "group_by")  # options that take several values
Cost = Callable[[Run], float | None]
COSTS: tuple[tuple[str, Cost], ...] = (  # of a run; the first are told first
    ("M", lambda run: None if run.parameters is None else run.parameters / 1e6),
    ("min", lambda run: run.minutes),
    ("img/s", lambda run: run.images_per_second),
)
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # a spreadsheet computes cells that begin so


def compare(cfg: DictConfig) -> Ranking:
    """Reads the runs, ranks them, writes the table and the page."""
    quiet()
    check(cfg)
    folders = find_runs([str(place) for place in cfg.runs])
    runs = filtered(read_runs(folders), cfg.where)
    asked = question(cfg, runs)
    output = Path(cfg.output) if cfg.output else common_folder([run.folder for run in runs])
    names = ["compare.csv", *(["compare.html"] if cfg.page else [])]
    files.check_writable(output, output, names)
    for name in names:
        check_ours(output / name)
    ranked = [run for run in runs if run.status == "finished" and asked.key in run.metrics]
    groups = grouped(ranked, named_options(cfg.group_by))
    baseline = named(groups, cfg.baseline) if cfg.baseline and groups else None
    ranking = rank(groups, baseline, asked)
    others = [run for run in runs if run not in ranked]
    tell(ranking, others)
    write(cfg, ranking, others, output)
    return ranking


def check(cfg: DictConfig) -> None:
    """Raises UserError for what can be known before a run is read."""
    if not 0 < cfg.level < 1:
        raise UserError(f"level={cfg.level}: a number above 0 and below 1 is needed, 0.95")
    for name, least in (("resamples", 1), ("images", 0), ("megabytes", 0)):
        if cfg[name] < least:
            raise UserError(f"{name}={cfg[name]}: {least} or more is needed")
    if cfg.split not in (None, "val", "test"):
        raise UserError(f"split={cfg.split}: val or test is needed, or null")
    for word in cfg.where:
        if "=" not in word:
            raise UserError(f"where={word}: an option and its value are needed, where=model=unet")


def named_options(given: ListConfig | str | None) -> list[str] | None:
    """The names of group_by: a list, one name, or none."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else [str(name) for name in given]


def question(cfg: DictConfig, runs: list[Run]) -> Asked:
    """Score and split that are compared.

    Raises:
        UserError: when no finished run has such a score.
    """
    finished = [run for run in runs if run.status == "finished"]
    tested = all("test/dice" in run.metrics for run in finished)
    split = cfg.split or ("test" if finished and tested else "val")
    asked = Asked(cfg.score or "dice", split, cfg.level, cfg.resamples)
    prefix = asked.key.removesuffix(asked.score)
    known = {k.removeprefix(prefix): None for run in finished for k in run.metrics if k.startswith(prefix)}  # fmt: skip
    if finished and not known:
        raise UserError(f"split={split}: no finished run has scores of it")
    if finished and asked.score not in known:
        near = nearest(asked.score, known)
        raise UserError(f"score={asked.score}: no finished run has it on {split}{near} (there are: {listed(list(known))})")  # fmt: skip
    return asked


def tell(ranking: Ranking, others: list[Run]) -> None:
    """The ranked table, what its marks claim, what to beware of, and the runs that aren't in it."""
    if ranking.groups:
        log.info("", extra={"table": fitting(ranking, console.width)})
        for mark, claim in claims(ranking):
            log.info(f"{mark}: {claim}")
        for line in cautions(ranking):
            log.info(f"beware: {line}")
    if others:
        table = Table(title="not ranked", title_justify="left", header_style="bold")
        for header in ("run", "status", "why"):
            table.add_column(header, overflow="fold")
        for run in others:
            table.add_row(Text(run.label), run.status, Text(fate(run, ranking.asked)))
        log.info("", extra={"table": table})
    log.info(headline(ranking, len(others)))


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


def write(cfg: DictConfig, ranking: Ranking, others: list[Run], output: Path) -> None:
    """compare.csv and compare.html."""
    pages = {"compare.csv": run_table(ranking, others).to_csv(index=False)}
    if cfg.page:
        pages["compare.html"] = page.render(ranking, others, cfg.images, cfg.megabytes)
    files.make_folder(output, output)
    for name, content in pages.items():
        files.write_text(output / name, content, output)
    for name in pages:
        log.info(f"wrote {quote_path(relative(output / name))}")


def check_ours(file: Path) -> None:
    """Raises UserError rather than have a file overwritten that this command didn't write."""
    if not file.exists():
        return
    with open_regular(file, None) as stream:
        start = stream.read(4000).decode("utf-8", errors="replace")
    if not start.startswith("run,status,rank") and page.GENERATOR not in start:
        raise UserError(f"{file}: not written by seg.compare, so it stays; give output=FOLDER")


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


def as_options(line: list[str]) -> list[str]:
    """A command line as Hydra reads it: bare words are runs, and commas make lists, not sweeps.

    Raises:
        UserError: when runs are given both ways.
    """
    folders = [w for w in line if "/" in w.partition("=")[0] or "=" not in w or Path(w).exists()]
    rest = [word for word in line if word not in folders]
    if folders and any(word.startswith("runs=") for word in rest):
        raise UserError(f"{folders[0]}: give the runs as words or as runs=[...], not both")
    return [*(["runs=" + quoted(folders)] if folders else []), *map(option, rest)]


def option(word: str) -> str:
    """One option, its commas quoted."""
    name, _, value = word.partition("=")
    if not value or value[0] in "[\"'" or value == "null":
        return word
    if name in LISTS:
        return f"{name}={quoted(words(value) if name == 'where' else value.split(','))}"
    return f"{name}={quote_hydra(value)}" if name in ("baseline", "score") else word


def quoted(values: list[str]) -> str:
    return f"[{','.join(quote_hydra(value) for value in values)}]"


def typed(arguments: Namespace) -> list[str]:
    """The words of the command line for Hydra."""
    if arguments.multirun:
        raise UserError("-m: a comparison is one; leave it out")
    return as_options(arguments.overrides)


@command("compare", typed)
def main(cfg: DictConfig) -> None:
    compare(cfg)


if __name__ == "__main__":
    main()
