"""Compare run folders: choose the score, rank the runs, and write compare.csv and compare.html."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from seg import files
from seg.cli.compose import plain_config
from seg.cli.conf_files import did_you_mean, join_some
from seg.comparison import page
from seg.comparison.grouping import filter_runs, find_group, group_runs
from seg.comparison.ranking import ComparisonSpec, Ranking, rank_groups
from seg.comparison.run_records import ComparedRun, common_folder, find_runs, read_compared_runs
from seg.comparison.table import build_run_table
from seg.errors import UserError
from seg.files import open_regular


class ComparedRuns(NamedTuple):
    """Result of a comparison.

    Attributes:
        ranking: groups of the finished runs that have the score.
        others: runs that are not ranked.
        files: result files, of which none belongs to another program.
    """

    ranking: Ranking
    others: list[ComparedRun]
    files: list[Path]


def compare_folders(cfg: DictConfig) -> ComparedRuns:
    """Read, rank and test the runs of a config of seg.compare.

    Raises:
        UserError: if an option fits no run, or a file of another program is in the way.
    """
    # Read the runs, choose the score, and check that the results can be written.
    folders = find_runs([str(place) for place in cfg.runs])
    runs = filter_runs(read_compared_runs(folders), cfg.where)
    asked = choose_score(cfg, runs)
    output = Path(cfg.output) if cfg.output else common_folder([run.folder for run in runs])
    names = ["compare.csv", *(["compare.html"] if cfg.page else [])]
    files.check_writable(output, output, names)
    for name in names:
        check_overwrite(output / name)
    # Rank the finished runs.
    ranked = [run for run in runs if run.status == "finished" and asked.key in run.metrics]
    given = plain_config(cfg).get("group_by")
    groups = group_runs(ranked, [given] if isinstance(given, str) else given)
    baseline = find_group(groups, cfg.baseline) if cfg.baseline and groups else None
    others = [run for run in runs if run not in ranked]
    return ComparedRuns(
        rank_groups(groups, baseline, asked), others, [output / name for name in names]
    )


def choose_score(cfg: DictConfig, runs: list[ComparedRun]) -> ComparisonSpec:
    """Return the score and split to compare, by default Dice on test if every finished run has it, else val.

    Raises:
        UserError: if no finished run has such a score.
    """
    # The test split is the default only if every finished run has it
    finished = [run for run in runs if run.status == "finished"]
    tested = all("test/dice" in run.metrics for run in finished)
    split = cfg.split or ("test" if finished and tested else "val")
    asked = ComparisonSpec(cfg.score or "dice", split, cfg.level, cfg.resamples)
    # Scores that some finished run has on this split
    prefix = asked.key.removesuffix(asked.score)
    known = {k.removeprefix(prefix): None for run in finished for k in run.metrics if k.startswith(prefix)}  # fmt: skip
    if finished and not known:
        raise UserError(f"split={split}: no finished run has scores of it")
    if finished and asked.score not in known:
        hint = did_you_mean(asked.score, known)
        raise UserError(f"score={asked.score}: no finished run has it on {split}{hint} (there are: {join_some(list(known))})")  # fmt: skip
    return asked


def check_overwrite(file: Path) -> None:
    """Raise UserError if a file exists that seg.compare did not write."""
    if not file.exists():
        return
    with open_regular(file, None) as stream:
        start = stream.read(4000).decode("utf-8", errors="replace")
    if not start.startswith("run,status,rank") and page.PAGE_GENERATOR not in start:
        raise UserError(
            f"{file}: not written by seg.compare, so it is not overwritten; give output=FOLDER"
        )


def write_comparison(result: ComparedRuns, images: int, max_picture_mb: float) -> None:
    """Write the result files.

    Args:
        result: comparison to write.
        images: number of the worst, and of the most disputed images on the page.
        max_picture_mb: limit of the size of all pictures.
    """
    output = result.files[0].parent
    files.make_folder(output, output)
    for file in result.files:
        if file.suffix == ".csv":
            text = build_run_table(result.ranking, result.others).to_csv(index=False)
        else:
            text = page.render_comparison_page(
                result.ranking, result.others, images, max_picture_mb
            )
        files.write_text(file, text, output)
