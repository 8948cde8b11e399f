"""What a search tells: a row for each trial, the best ones, what mattered, a table and a page of plots."""

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
from seg.multirun.search.page import importances, page
from seg.multirun.search.space import Axis, short_names
from seg.multirun.search.study import direction, locked
from seg.runs.folder import relative

log = logging.getLogger("seg")


class Report:
    """Rows while a study goes on, and all the rest when this worker is done.

    Args:
        study: with one objective or more.
        axes: what is searched.
        objectives: names.
        fixed: words of seg.train that all trials have.
        folder: of the study.
        storage: where it lies, as it may be shown.
    """

    def __init__(
        self,
        study: optuna.Study,
        axes: list[Axis],
        objectives: list[str],
        fixed: list[str],
        folder: Path,
        storage: str,
    ) -> None:
        self.study, self.axes, self.objectives = study, axes, objectives
        self.fixed, self.folder, self.storage = fixed, folder, storage
        self.short = short_names(axes)

    def head(self) -> None:
        """The names of the columns."""
        log.info(self.line("trial", list(self.short.values()), self.objectives, "minutes", ""))

    def row(self, trial: FrozenTrial) -> None:
        """A trial that has ended."""
        values = [brief(value) for value in trial.values or []] or [""] * len(self.objectives)
        log.info(
            self.line(
                str(trial.number),
                self.tried(trial),
                values,
                f"{minutes(trial):.2f}",
                self.note(trial),
            )
        )
        with locked(self.folder):
            write_table(self.folder / "trials.csv", self.rows())

    def line(self, first: str, tried: list[str], values: list[str], minutes: str, note: str) -> str:
        cells = [f"{first:>5}"]
        for axis, text in zip(self.axes, tried, strict=True):
            samples = [axis.brief(value) for value in axis.samples()]
            wide = max(8, len(self.short[axis.name]), *map(len, samples))
            cells.append(f"{text:>{wide}}")
        cells += [
            f"{text:>{max(8, len(name))}}"
            for name, text in zip(self.objectives, values, strict=True)
        ]
        return "  ".join([*cells, f"{minutes:>7}", note]).rstrip()

    def tried(self, trial: FrozenTrial) -> list[str]:
        return [axis.brief(trial.params[axis.name]) for axis in self.axes]

    def note(self, trial: FrozenTrial) -> str:
        """How it ended, and whether none is better."""
        if trial.state == TrialState.PRUNED:
            return f"pruned after epoch {trial.last_step}"
        if trial.state == TrialState.FAIL:
            return f"failed: {str(trial.user_attrs.get('error'))[:100]}"
        if trial.number in [best.number for best in self.best()]:
            return "best so far" if len(self.objectives) == 1 else "on the front"
        return ""

    def done(self) -> list[FrozenTrial]:
        """The trials that came through."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def best(self) -> list[FrozenTrial]:
        """The best trial; of several objectives all that no other beats in each."""
        if not self.done():
            return []
        if len(self.objectives) == 1:
            return [self.study.best_trial]
        return sorted(self.study.best_trials, key=lambda trial: trial.values or [])

    def ranked(self) -> list[FrozenTrial]:
        """The five best, or the front."""
        if len(self.objectives) > 1:
            return self.best()
        down = direction(self.objectives[0]) == "maximize"
        return sorted(self.done(), key=lambda trial: trial.values or [], reverse=down)[:5]

    def words(self, trial: FrozenTrial) -> list[str]:
        """What makes this trial once more."""
        return [*self.fixed, *(axis.word(trial.params[axis.name]) for axis in self.axes)]

    def rows(self) -> list[dict[str, Any]]:
        """Of trials.csv: what was tried and what came of it."""
        return [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                **dict(zip(self.objectives, trial.values or [], strict=False)),
                **trial.params,
                "minutes": f"{minutes(trial):.3f}",
                "epochs": trial.last_step,
                "folder": trial.user_attrs.get("folder"),
                "error": trial.user_attrs.get("error"),
            }
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING
        ]

    def conclude(self) -> None:
        """Tables, what mattered, files, and what to do next."""
        if not self.done():
            log.info("no trial has come through yet: there is nothing to tell")
            return
        best = self.best()
        mattered = importances(self.study)
        with locked(self.folder):
            write_table(self.folder / "trials.csv", self.rows())
            found = [self.words(trial) for trial in best]
            text = yaml.safe_dump(found if len(self.objectives) > 1 else found[0])
            files.write_text(self.folder / "best.yaml", text, self.folder)
            command = render_command("train", *self.words(best[0]))
            plots = page(self.study, self.axes, self.objectives, command)
            files.write_text(self.folder / "search.html", plots, self.folder)
        log.info("", extra={"table": self.table()})
        if mattered:
            told = ", ".join(f"{self.short[name]} {share:.0%}" for name, share in mattered.items())
            log.info(
                f"what mattered: {told} (share of the variance of {self.objectives[0]}, fANOVA)"
            )
        log.info(
            "each trial trained once, with one seed: of scores that lie close together none is better; "
            "several seeds of the best tell"
        )
        place = relative(self.folder)
        log.info(
            f"plots {quote_path(place / 'search.html')}, all trials {quote_path(place / 'trials.csv')}, "
            f"their runs {quote_path(place)}/NUMBER-..."
        )
        log.info("next:")
        words = self.words(best[0])
        log.info(f"  {render_command('train', *words)}")
        seedless = [word for word in words if not word.startswith("seed=")]
        log.info(f"  {render_command('train', '-m', *seedless, 'seed=1,2,3')}")
        log.info(f"  optuna-dashboard {quote_path(self.storage)}")

    def table(self) -> Table:
        """The five best, or the front."""
        title = "the best trials" if len(self.objectives) == 1 else "trials that none beats in all"
        table = Table(title=title, title_justify="left", header_style="bold")
        for name in ("trial", *self.short.values(), *self.objectives, "minutes"):
            table.add_column(name, justify="right", overflow="fold")
        for trial in self.ranked():
            values = [brief(value) for value in trial.values or []]
            table.add_row(str(trial.number), *self.tried(trial), *values, f"{minutes(trial):.2f}")
        return table


def write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with files.open_text(file, file.parent) as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def minutes(trial: FrozenTrial) -> float:
    """That it took; so far, if it goes on."""
    if trial.datetime_start is None:
        return 0.0
    ended = trial.datetime_complete or datetime.now()
    return (ended - trial.datetime_start).total_seconds() / 60


def brief(value: float) -> str:
    """Four digits behind the point of a score, fewer of larger numbers."""
    return (
        f"{value:.4f}"
        if abs(value) < 10
        else f"{value:.1f}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )
