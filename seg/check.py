"""Check a data set before training: ``python -m seg.check data=folder data.root=DATA``.

Reads every image and mask and lists every issue with its remedy: errors (exit code 2) and warnings (0). Writes
check.json with all statistics and issues, and sheet.png, images with their masks laid over.
"""

import logging
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from seg import files
from seg.cli.command import command
from seg.cli.command_line import config_dir_words, render_command
from seg.data.quality.checks import find_issues, sort_issues
from seg.data.quality.contact_sheet import draw_check_sheet
from seg.data.quality.inspect import inspect_all
from seg.data.quality.issues import count_noun
from seg.data.quality.report import build_report, print_report
from seg.data.quality.unpaired import open_source
from seg.display.console import configure_logging, track_progress
from seg.errors import UserError
from seg.runs import records

log = logging.getLogger("seg")


def check_data(cfg: DictConfig) -> dict[str, Any]:
    """Check the data, print the issues, and return the content of check.json.

    Raises:
        UserError: if there is an error among the issues, after all have been printed.
    """
    configure_logging()
    started = time.perf_counter()
    output = unused_folder(cfg.output)
    # Read all images and collect their issues.
    data = open_source(cfg)
    names = [(split, name) for split, names in data.source.splits.items() for name in names]
    inspection = inspect_all(data.source, track_progress(names, "reading"), data.root)
    issues = sort_issues(
        [*data.unpaired, *find_issues(data.source, inspection, data.root, data.redraw)]
    )
    # Write and print the report.
    report = build_report(cfg, data.source, inspection, issues)
    sheet = (
        draw_check_sheet(data.source, inspection, issues, cfg.panels, report)
        if cfg.panels
        else None
    )
    files.make_folder(output, output)
    if sheet is not None:
        with files.atomic_write(output / "sheet.png", output) as part:
            sheet.save(part)
    report["seconds"] = round(time.perf_counter() - started, 2)
    records.write_json(output / "check.json", report)
    print_report(data.source, report, issues, output, bool(cfg.panels))
    errors = [issue for issue in issues if issue.error]
    if errors:
        more = f" (and {count_noun(len(errors) - 1, 'more error')})" if errors[1:] else ""
        raise UserError(f"{errors[0].line()}{more}; all are in {output / 'check.json'}")
    log.info(f"next: {train_command()}")
    return report


def unused_folder(given: str) -> Path:
    """Return the folder for the results.

    Raises:
        UserError: if it holds results already.
        RunError: if it cannot be written.
    """
    folder = Path(given)
    files.check_writable(folder, folder, ["check.json", "sheet.png"])
    if any((folder / name).exists() for name in ("check.json", "sheet.png")):
        free = next(n for n in range(2, 10**6) if not Path(f"{folder}-{n}").exists())
        raise UserError(
            f"output={given}: holds results already; delete them, or give another folder, output={folder}-{free}"
        )
    return folder


def train_command() -> str:
    """Return the command that trains on this data: the same options for seg.train."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [w for w in words if w.split("=")[0].lstrip("+~") not in ("output", "panels")]
    return render_command("train", *config_dir_words(), *kept)


@command("check")
def main(cfg: DictConfig) -> None:
    check_data(cfg)


if __name__ == "__main__":
    main()
