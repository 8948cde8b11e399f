"""Report of a search: a row per trial, the best trials, importances, trials.csv and a page of plots."""

import csv
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path, render_command
from seg.display.tables import make_table
from seg.multirun.search.page import option_importances, render_search_page
from seg.multirun.search.space import SearchDimension, short_names
from seg.multirun.search.study import lock_study, objective_direction
from seg.runs.folder import relative_to_here

log = logging.getLogger("seg")


class SearchReport:
    """Report of a study: a row as each trial ends, and a summary when this worker is done.

    Args:
        study: with one or more objectives.
        axes: searched options.
        objectives: names.
        fixed: overrides of seg.train that all trials share.
        folder: of the study.
        storage: URL or file of the study, without password.
    """

    def __init__(
        self,
        study: optuna.Study,
        axes: list[SearchDimension],
        objectives: list[str],
        fixed: list[str],
        folder: Path,
        storage: str,
    ) -> None:
        self.study, self.axes, self.objectives = study, axes, objectives
        self.fixed, self.folder, self.storage = fixed, folder, storage
        self.short = short_names(axes)

    def head(self) -> None:
        """Print the header of the rows."""
        log.info(self.line("trial", list(self.short.values()), self.objectives, "minutes", ""))

    def row(self, trial: FrozenTrial) -> None:
        """Print the row of a trial that has ended, and update trials.csv."""
        values = [format_objective(value) for value in trial.values or []] or [""] * len(
            self.objectives
        )
        log.info(
            self.line(
                str(trial.number),
                self.tried(trial),
                values,
                f"{trial_minutes(trial):.2f}",
                self.note(trial),
            )
        )
        with lock_study(self.folder):
            write_csv_rows(self.folder / "trials.csv", self.rows())

    def line(self, first: str, tried: list[str], values: list[str], minutes: str, note: str) -> str:
        """Align the cells of a row: trial, searched options, objectives, minutes, note."""
        # A column is as wide as its header and the widest sample of its values
        cells = [f"{first:>5}"]
        for axis, text in zip(self.axes, tried, strict=True):
            samples = [axis.brief(value) for value in axis.samples()]
            width = max(8, len(self.short[axis.name]), *map(len, samples))
            cells.append(f"{text:>{width}}")
        cells += [
            f"{text:>{max(8, len(name))}}"
            for name, text in zip(self.objectives, values, strict=True)
        ]
        return "  ".join([*cells, f"{minutes:>7}", note]).rstrip()

    def tried(self, trial: FrozenTrial) -> list[str]:
        return [axis.brief(trial.params[axis.name]) for axis in self.axes]

    def note(self, trial: FrozenTrial) -> str:
        """Describe how a trial ended, and whether it is the best so far."""
        if trial.state == TrialState.PRUNED:
            return f"pruned after epoch {trial.last_step}"
        if trial.state == TrialState.FAIL:
            return f"failed: {str(trial.user_attrs.get('error'))[:100]}"
        if trial.number in [best.number for best in self.best()]:
            return "best so far" if len(self.objectives) == 1 else "on the front"
        return ""

    def done(self) -> list[FrozenTrial]:
        """Return the completed trials."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def best(self) -> list[FrozenTrial]:
        """Return the best trial; with several objectives, the Pareto front."""
        if not self.done():
            return []
        if len(self.objectives) == 1:
            return [self.study.best_trial]
        return sorted(self.study.best_trials, key=lambda trial: trial.values or [])

    def ranked(self) -> list[FrozenTrial]:
        """Return the five best trials; with several objectives, the Pareto front."""
        if len(self.objectives) > 1:
            return self.best()
        down = objective_direction(self.objectives[0]) == "maximize"
        return sorted(self.done(), key=lambda trial: trial.values or [], reverse=down)[:5]

    def words(self, trial: FrozenTrial) -> list[str]:
        """Return the overrides of seg.train that train a trial again."""
        return [*self.fixed, *(axis.word(trial.params[axis.name]) for axis in self.axes)]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of trials.csv: options, objectives, state, minutes, epochs and error of each trial."""
        return [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                **dict(zip(self.objectives, trial.values or [], strict=False)),
                **trial.params,
                "minutes": f"{trial_minutes(trial):.3f}",
                "epochs": trial.last_step,
                "folder": trial.user_attrs.get("folder"),
                "error": trial.user_attrs.get("error"),
            }
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING
        ]

    def print_summary(self) -> None:
        """Write the files of the study, and print the best trials, the importances and the next commands."""
        if not self.done():
            log.info("no trial has completed yet; there is nothing to report")
            return
        # Write trials.csv, best.yaml and search.html.
        best = self.best()
        shares = option_importances(self.study)
        with lock_study(self.folder):
            write_csv_rows(self.folder / "trials.csv", self.rows())
            overrides = [self.words(trial) for trial in best]
            text = yaml.safe_dump(overrides if len(self.objectives) > 1 else overrides[0])
            files.write_text(self.folder / "best.yaml", text, self.folder)
            command = render_command("train", *self.words(best[0]))
            plots = render_search_page(self.study, self.axes, self.objectives, command)
            files.write_text(self.folder / "search.html", plots, self.folder)
        # Print the best trials and what their ranking is worth.
        log.info("", extra={"table": self.table()})
        if shares:
            listed = ", ".join(f"{self.short[name]} {share:.0%}" for name, share in shares.items())
            log.info(
                f"importance: {listed} (share of the variance of {self.objectives[0]}, fANOVA)"
            )
        log.info(
            "each trial was trained once, with one seed: small differences of scores are not significant; "
            "train the best with several seeds"
        )
        place = relative_to_here(self.folder)
        log.info(
            f"plots {quote_path(place / 'search.html')}, all trials {quote_path(place / 'trials.csv')}, "
            f"their runs {quote_path(place)}/NUMBER-..."
        )
        # Print the next commands.
        log.info("next:")
        words = self.words(best[0])
        log.info(f"  {render_command('train', *words)}")
        seedless = [word for word in words if not word.startswith("seed=")]
        log.info(f"  {render_command('train', '-m', *seedless, 'seed=1,2,3')}")
        log.info(f"  optuna-dashboard {quote_path(self.storage)}")

    def table(self) -> Table:
        """Build the table of the best trials for the terminal."""
        title = "best trials" if len(self.objectives) == 1 else "trials on the Pareto front"
        table = make_table(title)
        for name in ("trial", *self.short.values(), *self.objectives, "minutes"):
            table.add_column(name, justify="right", overflow="fold")
        for trial in self.ranked():
            values = [format_objective(value) for value in trial.values or []]
            table.add_row(
                str(trial.number), *self.tried(trial), *values, f"{trial_minutes(trial):.2f}"
            )
        return table


def write_csv_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file atomically."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with files.open_text(file, file.parent) as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def trial_minutes(trial: FrozenTrial) -> float:
    """Return the minutes that a trial took, or has taken so far."""
    if trial.datetime_start is None:
        return 0.0
    ended = trial.datetime_complete or datetime.now()
    return (ended - trial.datetime_start).total_seconds() / 60


def format_objective(value: float) -> str:
    """Format a value with four decimals, fewer from 10 on."""
    return (
        f"{value:.4f}"
        if abs(value) < 10
        else f"{value:.1f}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )
