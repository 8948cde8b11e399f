"""Implementation of ``python -m seg.check``."""

import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seg import files
from seg.cli.command_line import config_dir_words, render_command, typed_overrides
from seg.data.quality.checks import find_issues, sort_issues
from seg.data.quality.contact_sheet import draw_check_sheet
from seg.data.quality.inspect import inspect_all
from seg.data.quality.issues import check_kinds, count_noun
from seg.data.quality.report import build_report, print_report
from seg.data.quality.unpaired import open_source
from seg.display.console import configure_logging, track_progress
from seg.errors import RunError, UserError
from seg.runs import records

log = logging.getLogger("seg")


def check_data(cfg: DictConfig) -> dict[str, Any]:
    """Check the data, print the issues, and return the content of check.json.

    Raises:
        UserError: if there is an error among the issues, after all have been printed.
    """
    report = write_report(cfg)
    errors = [issue for issue in report["faults"] if issue["severity"] == "error"]
    if errors:
        more = f" (and {count_noun(len(errors) - 1, 'more error')})" if errors[1:] else ""
        line = "{file}: {found}; {remedy}".format(**errors[0])
        raise UserError(f"{line}{more}; all are in {Path(cfg.output) / 'check.json'}")
    log.info(f"next: {command_on_this_data('train')}")
    plan = command_on_this_data("plan", "budget=30m")
    log.info(f"to choose crop, width and other settings for this data and machine: {plan}")
    return report


def write_report(cfg: DictConfig) -> dict[str, Any]:
    """Check the data, print the issues, write check.json and the sheet, and return the content of check.json."""
    configure_logging()
    check_kinds(cfg.loader.skip_checks)
    started = time.perf_counter()
    output = replaceable_folder(cfg.output)
    # Read all images and collect their issues.
    data = open_source(cfg)
    names = [(split, name) for split, names in data.source.splits.items() for name in names]
    inspection = inspect_all(data.source, track_progress(names, "reading"), data.root)
    issues = sort_issues(
        [*data.unpaired, *find_issues(data.source, inspection, data.root, data.redraw)],
        cfg.loader.skip_checks,
    )
    # Write and print the report.
    report = build_report(cfg, data.source, inspection, issues)
    sheet = (
        draw_check_sheet(data.source, inspection, issues, cfg.panels, report)
        if cfg.panels
        else None
    )
    files.make_folder(output, output)
    if sheet is None:
        (output / "sheet.png").unlink(missing_ok=True)  # of an earlier check
    else:
        with files.atomic_write(output / "sheet.png", output) as part:
            sheet.save(part)
    report["seconds"] = round(time.perf_counter() - started, 2)
    records.write_json(output / "check.json", report)
    print_report(data.source, report, issues, output, bool(cfg.panels))
    return report


def replaceable_folder(given: str) -> Path:
    """Return the folder for the results; those of an earlier check in it are replaced.

    Raises:
        UserError: if it holds a file of that name that is not of a check.
        RunError: if it cannot be written.
    """
    folder = Path(given)
    files.check_writable(folder, folder, ["check.json", "sheet.png"])
    present = [name for name in ("check.json", "sheet.png") if (folder / name).exists()]
    if present and not is_check_report(folder / "check.json"):
        raise UserError(
            f"output={given}: {present[0]} in it is not of seg.check and is not overwritten; give another folder"
        )
    return folder


def is_check_report(file: Path) -> bool:
    """Return True if a file is a report that ``check_data`` wrote."""
    if not file.is_file():
        return False
    try:
        content = records.read_json(file)
    except RunError:
        return False
    return isinstance(content, dict) and {"data", "errors", "warnings", "faults"} <= content.keys()


def command_on_this_data(command: str, *words: str) -> str:
    """Return a command that takes the options of seg.train with those that were given, and with further words."""
    kept = [
        w for w in typed_overrides() if w.split("=")[0].lstrip("+~") not in ("output", "panels")
    ]
    return render_command(command, *config_dir_words(), *kept, *words)
