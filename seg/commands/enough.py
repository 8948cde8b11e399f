"""Implementation of ``python -m seg.enough``."""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from seg import files
from seg.cli.command_line import quote_path
from seg.display.console import configure_logging, log_to_file
from seg.display.learning_curve import draw_curve
from seg.display.tables import format_signed, make_table
from seg.errors import UserError
from seg.metrics.learning_curve import LearningCurve, fit_learning_curve
from seg.multirun.subset_runs import (
    SubsetPlan,
    collect_counts,
    plan_subsets,
    train_subsets,
    training_settings,
)
from seg.runs import folder, records
from seg.runs.resumable import read_resumable_record
from seg.runs.workers import refuse_ranks

log = logging.getLogger("seg")
ENOUGH_FILE = "enough.json"  # record of a learning curve, in the folder of its runs
RESULTS = (ENOUGH_FILE, "enough.csv", "enough.png", "log.txt", ".lock")


def measure_enough(cfg: DictConfig) -> LearningCurve:
    """Train on all subsets, fit the learning curve, and write and print it.

    Args:
        cfg: composed from conf/enough.yaml.

    Raises:
        UserError: if the options, the data or the output folder allow no learning curve.
    """
    configure_logging()
    refuse_ranks("seg.enough")
    plan = plan_subsets(cfg)
    output = Path(cfg.output)
    files.check_writable(output, output, RESULTS)
    # Train what is unfinished, with the other workers
    with folder.lock_folder(output, "seg.enough", wait=True):
        begun = open_record(cfg, plan, output)
    train_subsets(cfg, plan, output)
    # Fit and write, one worker after another
    with folder.lock_folder(output, "seg.enough", wait=True):
        names, counts = collect_counts(plan, output)
        rows = counts if plan.groups is None else join_groups(counts, names, plan.groups)
        curve = fit_learning_curve(np.array(plan.sizes), rows, cfg.confidence_level)
        write_curve(plan, curve, rows.shape[2], begun, output)
    with log_to_file(output / "log.txt"):
        print_curve(plan, curve, rows.shape[2], output)
    return curve


def open_record(cfg: DictConfig, plan: SubsetPlan, output: Path) -> dict[str, Any]:
    """Return the record with which this command begins or continues a folder.

    Raises:
        UserError: if the folder belongs to other settings or images, or to another command.
    """
    now = {"status": "running", "settings": training_settings(cfg), "split_hash": plan.hash}
    if old := read_resumable_record(output / ENOUGH_FILE, now, "seg.enough"):
        if old["split_hash"] != plan.hash:
            raise UserError(
                f"output={output}: begun with other images, or other image names, than the data has now; give another "
                "output"
            )
        return now
    left = [e for e in output.iterdir() if e.name != ".lock" and not files.is_unfinished(e)]
    if left:
        raise UserError(
            f"output={output}: holds something else; give a new folder, or one of an earlier seg.enough"
        )
    records.write_json(output / ENOUGH_FILE, now, output)
    return now


def join_groups(counts: np.ndarray, names: list[str], groups: dict[str, str]) -> np.ndarray:
    """Return the counts (M, S, N, C, 3) summed over the images of each group, which resemble each other."""
    of_images = np.array([groups[name] for name in names])
    return np.stack([counts[:, :, of_images == g].sum(2) for g in np.unique(of_images)], axis=2)


def write_curve(
    plan: SubsetPlan, curve: LearningCurve, scored: int, begun: dict[str, Any], output: Path
) -> None:
    """Write enough.csv, enough.png and, last, enough.json."""
    with files.open_text(output / "enough.csv", output) as stream:
        writer = csv.writer(stream)
        writer.writerow([plan.word, "seed", "training_images", "dice", "run"])
        for piece in plan.pieces:
            dice = curve.scores[plan.sizes.index(piece.size), plan.seeds.index(piece.seed)]
            writer.writerow([piece.size, piece.seed, piece.images, f"{dice:.6f}", piece.name])
    with files.atomic_write(output / "enough.png", output) as part:
        draw_curve(curve, plan.word, plan.split, describe_gain(plan, curve), part)
    a, b, c = curve.law
    content = begun | {
        "status": "finished",
        "counted": plan.word,
        "split": plan.split,
        "scored": scored,
        "sizes": plan.sizes,
        "seeds": plan.seeds,
        "dice": curve.scores.tolist(),
        "law": {"a": a, "b": b, "c": c},
        "level": curve.level,
        "gain": curve.gain,
        "gain_interval": [curve.gain_low, curve.gain_high],
        "seed_sd": curve.seed_sd,
        "curve": {
            "n": curve.grid.tolist(), "dice": curve.fitted.tolist(), "low": curve.low.tolist(), "high": curve.high.tolist(),
        },
        "sentence": describe_gain(plan, curve),
    }  # fmt: skip
    records.write_json(output / ENOUGH_FILE, content, output)


def describe_gain(plan: SubsetPlan, curve: LearningCurve) -> str:
    """Return what doubling the training images brings, in one sentence."""
    count = plan.sizes[-1]
    span = f"{format_signed(curve.gain_low, 3)} to {format_signed(curve.gain_high, 3)}, {curve.level:.0%}"
    what = f"doubling the {count} training {plan.word} to {2 * count}"
    sd = f"{curve.seed_sd:.3f}".removeprefix("0")
    noise = f"; the seeds' noise is {sd}"
    if curve.gain_low <= 0 <= curve.gain_high:
        return f"whether {what} brings anything can't be told: {format_signed(curve.gain, 3)} Dice ({span}){noise}"
    return f"{what} {'brings' if curve.gain > 0 else 'costs'} {format_signed(curve.gain, 3)} Dice ({span}){noise}"


def print_curve(plan: SubsetPlan, curve: LearningCurve, scored: int, output: Path) -> None:
    """Print the table of sizes, the sentence and the files."""
    table = make_table("learning curve")
    for header in (f"training {plan.word}", "seeds", f"{plan.split} Dice", "+- sd", "curve"):
        table.add_column(header, justify="right")
    fitted = np.interp(plan.sizes, curve.grid, curve.fitted)
    for size, dice_S, line in zip(plan.sizes, curve.scores, fitted, strict=True):
        sd = f"{dice_S.std(ddof=1):.4f}"
        table.add_row(str(size), str(len(dice_S)), f"{dice_S.mean():.4f}", sd, f"{line:.4f}")
    log.info("", extra={"table": table})
    chosen = "; these also selected the checkpoints" * (plan.split == "val")
    units = plan.word if plan.groups is not None else "images"
    log.info(
        f"scored on {scored} {units} of {plan.split}{chosen}; the interval is by bootstrap over them and the seeds"
    )
    log.info(f"enough     {describe_gain(plan, curve)}")
    log.info(
        f"numbers {quote_path(output / ENOUGH_FILE)}, curve {quote_path(output / 'enough.png')}; nothing is said beyond twice the data"
    )
