"""Compare many runs: ``python -m seg.compare outputs/sweeps/SWEEP group_by=model,loss``.

Prints a table of the ranked groups with the significance of their differences, and writes compare.csv, one row
for each run, and compare.html, a page that needs no network.
"""

import logging
from argparse import Namespace
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.text import Text

from seg import files
from seg.cli.command import command
from seg.cli.command_line import quote_path
from seg.cli.conf_files import listed, nearest
from seg.cli.list_arguments import as_options
from seg.comparison import page
from seg.comparison.grouping import filtered, grouped, named
from seg.comparison.ranking import Asked, Ranking, rank
from seg.comparison.run_records import Run, common_folder, find_runs, read_runs
from seg.comparison.summary import cautions, fate, headline, p_line
from seg.comparison.table import fitting, run_table
from seg.display.console import console, quiet
from seg.display.tables import make_table
from seg.errors import UserError
from seg.files import open_regular
from seg.runs.folder import relative

log = logging.getLogger("seg")


def compare(cfg: DictConfig) -> Ranking:
    """Read, rank and test the runs; print the table and write compare.csv and compare.html.

    Raises:
        UserError: if an option fits no run, or a file of another program is in the way.
    """
    quiet()
    check(cfg)

    # runs, the score, and files that may be written
    folders = find_runs([str(place) for place in cfg.runs])
    runs = filtered(read_runs(folders), cfg.where)
    asked = question(cfg, runs)
    output = Path(cfg.output) if cfg.output else common_folder([run.folder for run in runs])
    names = ["compare.csv", *(["compare.html"] if cfg.page else [])]
    files.check_writable(output, output, names)
    for name in names:
        check_ours(output / name)

    # ranking
    ranked = [run for run in runs if run.status == "finished" and asked.key in run.metrics]
    groups = grouped(ranked, named_options(cfg.group_by))
    baseline = named(groups, cfg.baseline) if cfg.baseline and groups else None
    ranking = rank(groups, baseline, asked)
    others = [run for run in runs if run not in ranked]
    tell(ranking, others)
    write(cfg, ranking, others, output)
    return ranking


def check(cfg: DictConfig) -> None:
    """Raise UserError if a word of ``where`` has no value; other ranges are checked with the config."""
    for word in cfg.where:
        if "=" not in word:
            raise UserError(f"where={word}: an option and its value are needed, where=model=unet")


def named_options(given: ListConfig | str | None) -> list[str] | None:
    """Return the names of group_by, given as a list or a single name; None if it is null."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else [str(name) for name in given]


def question(cfg: DictConfig, runs: list[Run]) -> Asked:
    """Return the score and split to compare, by default Dice on test if every finished run has it, else val.

    Raises:
        UserError: if no finished run has such a score.
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
        hint = nearest(asked.score, known)
        raise UserError(f"score={asked.score}: no finished run has it on {split}{hint} (there are: {listed(list(known))})")  # fmt: skip
    return asked


def tell(ranking: Ranking, others: list[Run]) -> None:
    """Print the ranking, the meaning of p, warnings, the runs that are not ranked, and the result."""
    if ranking.groups:
        log.info("", extra={"table": fitting(ranking, console.width)})
        if line := p_line(ranking):
            log.info(line)
        for line in cautions(ranking):
            log.info(f"warning: {line}")
    if others:
        table = make_table("not ranked")
        for header in ("run", "status", "reason"):
            table.add_column(header, overflow="fold")
        for run in others:
            table.add_row(Text(run.label), run.status, Text(fate(run, ranking.asked)))
        log.info("", extra={"table": table})
    log.info(headline(ranking, len(others)))


def write(cfg: DictConfig, ranking: Ranking, others: list[Run], output: Path) -> None:
    """Write compare.csv and, unless page=false, compare.html."""
    pages = {"compare.csv": run_table(ranking, others).to_csv(index=False)}
    if cfg.page:
        pages["compare.html"] = page.render(ranking, others, cfg.images, cfg.megabytes)
    files.make_folder(output, output)
    for name, content in pages.items():
        files.write_text(output / name, content, output)
    for name in pages:
        log.info(f"wrote {quote_path(relative(output / name))}")


def check_ours(file: Path) -> None:
    """Raise UserError if a file exists that this command did not write."""
    if not file.exists():
        return
    with open_regular(file, None) as stream:
        start = stream.read(4000).decode("utf-8", errors="replace")
    if not start.startswith("run,status,rank") and page.GENERATOR not in start:
        raise UserError(
            f"{file}: not written by seg.compare, so it is not overwritten; give output=FOLDER"
        )


def typed(arguments: Namespace) -> list[str]:
    """Return the command line as Hydra reads it."""
    if arguments.multirun:
        raise UserError("-m: there is only one comparison; leave it out")
    return as_options(arguments.overrides)


@command("compare", typed)
def main(cfg: DictConfig) -> None:
    compare(cfg)


if __name__ == "__main__":
    main()
