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
from seg.cli.conf_files import did_you_mean, join_some
from seg.cli.list_arguments import to_overrides
from seg.comparison import page
from seg.comparison.grouping import filter_runs, find_group, group_runs
from seg.comparison.ranking import ComparisonSpec, Ranking, rank_groups
from seg.comparison.run_records import ComparedRun, common_folder, find_runs, read_compared_runs
from seg.comparison.summary import list_warnings, p_value_line, unranked_reason, write_headline
from seg.comparison.table import build_run_table, fit_group_table
from seg.display.console import configure_logging, console
from seg.display.tables import make_table
from seg.errors import UserError
from seg.files import open_regular
from seg.runs.folder import relative_to_here

log = logging.getLogger("seg")


def compare_runs(cfg: DictConfig) -> Ranking:
    """Read, rank and test the runs; print the table and write compare.csv and compare.html.

    Raises:
        UserError: if an option fits no run, or a file of another program is in the way.
    """
    configure_logging()
    check_where(cfg)

    # runs, the score, and files that may be written
    folders = find_runs([str(place) for place in cfg.runs])
    runs = filter_runs(read_compared_runs(folders), cfg.where)
    asked = choose_score(cfg, runs)
    output = Path(cfg.output) if cfg.output else common_folder([run.folder for run in runs])
    names = ["compare.csv", *(["compare.html"] if cfg.page else [])]
    files.check_writable(output, output, names)
    for name in names:
        check_overwrite(output / name)

    # ranking
    ranked = [run for run in runs if run.status == "finished" and asked.key in run.metrics]
    groups = group_runs(ranked, group_by_names(cfg.group_by))
    baseline = find_group(groups, cfg.baseline) if cfg.baseline and groups else None
    ranking = rank_groups(groups, baseline, asked)
    others = [run for run in runs if run not in ranked]
    print_comparison(ranking, others)
    write_comparison(cfg, ranking, others, output)
    return ranking


def check_where(cfg: DictConfig) -> None:
    """Raise UserError if a word of ``where`` has no value; other ranges are checked with the config."""
    for word in cfg.where:
        if "=" not in word:
            raise UserError(f"where={word}: an option and its value are needed, where=model=unet")


def group_by_names(given: ListConfig | str | None) -> list[str] | None:
    """Return the names of group_by, given as a list or a single name; None if it is null."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else [str(name) for name in given]


def choose_score(cfg: DictConfig, runs: list[ComparedRun]) -> ComparisonSpec:
    """Return the score and split to compare, by default Dice on test if every finished run has it, else val.

    Raises:
        UserError: if no finished run has such a score.
    """
    finished = [run for run in runs if run.status == "finished"]
    tested = all("test/dice" in run.metrics for run in finished)
    split = cfg.split or ("test" if finished and tested else "val")
    asked = ComparisonSpec(cfg.score or "dice", split, cfg.level, cfg.resamples)
    prefix = asked.key.removesuffix(asked.score)
    known = {k.removeprefix(prefix): None for run in finished for k in run.metrics if k.startswith(prefix)}  # fmt: skip
    if finished and not known:
        raise UserError(f"split={split}: no finished run has scores of it")
    if finished and asked.score not in known:
        hint = did_you_mean(asked.score, known)
        raise UserError(f"score={asked.score}: no finished run has it on {split}{hint} (there are: {join_some(list(known))})")  # fmt: skip
    return asked


def print_comparison(ranking: Ranking, others: list[ComparedRun]) -> None:
    """Print the ranking, the meaning of p, warnings, the runs that are not ranked, and the result."""
    if ranking.groups:
        log.info("", extra={"table": fit_group_table(ranking, console.width)})
        if line := p_value_line(ranking):
            log.info(line)
        for line in list_warnings(ranking):
            log.info(f"warning: {line}")
    if others:
        table = make_table("not ranked")
        for header in ("run", "status", "reason"):
            table.add_column(header, overflow="fold")
        for run in others:
            table.add_row(Text(run.label), run.status, Text(unranked_reason(run, ranking.asked)))
        log.info("", extra={"table": table})
    log.info(write_headline(ranking, len(others)))


def write_comparison(
    cfg: DictConfig, ranking: Ranking, others: list[ComparedRun], output: Path
) -> None:
    """Write compare.csv and, unless page=false, compare.html."""
    pages = {"compare.csv": build_run_table(ranking, others).to_csv(index=False)}
    if cfg.page:
        pages["compare.html"] = page.render_comparison_page(
            ranking, others, cfg.images, cfg.megabytes
        )
    files.make_folder(output, output)
    for name, content in pages.items():
        files.write_text(output / name, content, output)
    for name in pages:
        log.info(f"wrote {quote_path(relative_to_here(output / name))}")


def check_overwrite(file: Path) -> None:
    """Raise UserError if a file exists that this command did not write."""
    if not file.exists():
        return
    with open_regular(file, None) as stream:
        start = stream.read(4000).decode("utf-8", errors="replace")
    if not start.startswith("run,status,rank") and page.PAGE_GENERATOR not in start:
        raise UserError(
            f"{file}: not written by seg.compare, so it is not overwritten; give output=FOLDER"
        )


def compare_overrides(arguments: Namespace) -> list[str]:
    """Return the command line as Hydra reads it."""
    if arguments.multirun:
        raise UserError("-m: there is only one comparison; leave it out")
    return to_overrides(arguments.overrides)


@command("compare", compare_overrides)
def main(cfg: DictConfig) -> None:
    compare_runs(cfg)


if __name__ == "__main__":
    main()
