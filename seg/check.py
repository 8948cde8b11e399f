"""Check a data set before training: ``python -m seg.check data=folder data.root=DATA``.

Reads every image and mask and lists every fault with its remedy: errors (exit code 2) and warnings (0). Writes
check.json with all statistics and faults, and sheet.png, images with their masks laid over.
"""

import logging
import shlex
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track

from seg.cli.command import command
from seg.data.quality.checks import by_importance, judge
from seg.data.quality.contact_sheet import draw
from seg.data.quality.inspect import look_at_all
from seg.data.quality.issues import count
from seg.data.quality.report import record, tell
from seg.data.quality.unpaired import opened
from seg.display.console import console, quiet
from seg.errors import UserError
from seg.runs import records

log = logging.getLogger("seg")


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check the data, print the faults, and return the content of check.json.

    Raises:
        UserError: if there is an error among the faults, after all have been printed.
    """
    quiet()
    started = time.perf_counter()
    output = new_folder(cfg.output)
    # Read all images and collect their faults.
    data = opened(cfg)
    names = [(split, name) for split, names in data.source.splits.items() for name in names]
    hidden = not console.is_terminal
    steps = track(names, "reading", console=console, transient=True, disable=hidden)
    seen = look_at_all(data.source, steps, data.root)
    faults = by_importance([*data.unpaired, *judge(data.source, seen, data.root, data.redraw)])
    # Write and print the report.
    report = record(cfg, data.source, seen, faults)
    output.mkdir(parents=True, exist_ok=True)
    if cfg.panels:
        draw(data.source, seen, faults, cfg.panels, report).save(output / "sheet.png")
    report["seconds"] = round(time.perf_counter() - started, 2)
    records.write_json(output / "check.json", report)
    tell(data.source, report, faults, output, bool(cfg.panels))
    errors = [fault for fault in faults if fault.error]
    if errors:
        more = f" (and {count(len(errors) - 1, 'more error')})" if errors[1:] else ""
        raise UserError(f"{errors[0].line()}{more}; all are in {output / 'check.json'}")
    log.info(f"next: {train_command()}")
    return report


def new_folder(given: str) -> Path:
    """Return the folder for the results.

    Raises:
        UserError: if it holds results already, or is a file.
    """
    folder = Path(given)
    if any((folder / name).exists() for name in ("check.json", "sheet.png")):
        free = next(n for n in range(2, 10**6) if not Path(f"{folder}-{n}").exists())
        raise UserError(
            f"output={given}: holds results already; delete them, or give another folder, output={folder}-{free}"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={given}: is a file; give a folder")
    return folder


def train_command() -> str:
    """Return the training command with the same options."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [w for w in words if w.split("=")[0].lstrip("+~") not in ("output", "panels")]
    return shlex.join(["python", "-m", "seg.train", *kept])


@command("check")
def main(cfg: DictConfig) -> None:
    check(cfg)


if __name__ == "__main__":
    main()
