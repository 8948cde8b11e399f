"""Implementation of ``python -m seg.doubt``."""

import inspect
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.table import Table

from seg import files
from seg.cli.command_line import quote_path, render_command, render_option
from seg.data.datasets.base import object_border
from seg.data.datasets.folder import Folder
from seg.display.console import configure_logging, track_progress
from seg.display.doubt_panel import draw_doubt
from seg.display.tables import make_table
from seg.errors import UserError
from seg.inference.doubt_files import (
    RankedDoubt,
    correct_mask,
    read_reviewed,
    table_rows,
    write_corrected,
    write_outlines,
    write_table,
)
from seg.inference.doubt_page import DoubtCard, picture_uri, render_doubt_page
from seg.labels import IGNORE
from seg.metrics.label_errors import (
    LEAST_KAPPA,
    LEAST_KNOWN,
    REGION,
    SHIFTED,
    Doubt,
    LabelStatistics,
    find_doubts,
    measure_image,
    pool_images,
    rank_doubts,
)
from seg.multirun.out_of_fold import OutOfFold, open_out_of_fold
from seg.runs import records

log = logging.getLogger("seg")
REPLACED = (
    "masks",
    "ignore",
    "values",
    "palette",
    "mask_layers",
    "mask_threshold",
    "fold",
    "folds",
)  # by corrected masks
RESULTS = ("doubt.csv", "doubt.html", "doubt.json", "outlines", "panels")


def doubt_labels(cfg: DictConfig) -> list[RankedDoubt]:
    """Find the doubts of a cross-validation and write them, or write corrected masks; return the doubts.

    Raises:
        UserError: if an option is wrong, or the folder holds something else.
        RunError: if the cross-validation cannot be read.
    """
    configure_logging()
    accepted = read_reviewed(Path(cfg.reviewed)) if cfg.reviewed else None
    data = open_out_of_fold(cfg.run, cfg.data)
    output = results_folder(cfg)
    below = output if cfg.output else data.folder
    check_output(output, below, accepted is not None)
    if accepted and object_border(data.source).separate:
        raise UserError(
            f"run={cfg.run}: its masks number objects, which a class can't replace; correct them in the annotation "
            "tool with the outlines"
        )
    ranked, statistics = list_doubts(data, cfg)
    if accepted:
        write_corrected_masks(data, ranked, accepted, output, below)
        return ranked
    files.make_folder(output, below)
    write_results(data, ranked, statistics, cfg, output, below)
    print_results(data, ranked, statistics, cfg, output)
    return ranked


def results_folder(cfg: DictConfig) -> Path:
    """Return the folder of the results: ``output``, or one in that of the cross-validation."""
    return Path(cfg.output or Path(cfg.run) / ("corrected" if cfg.reviewed else "doubt"))


def check_output(output: Path, below: Path, corrected: bool) -> None:
    """Raise UserError unless a folder can be written, and is absent, empty, or of an earlier search."""
    files.check_writable(output, below, ["masks/.part"] if corrected else RESULTS[:3])
    for name in RESULTS:
        files.check_links(output / name, below)
    present = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if present and (corrected or not (present <= {*RESULTS} and "doubt.json" in present)):
        raise UserError(f"output={output}: holds something else; give a new folder")


def list_doubts(data: OutOfFold, cfg: DictConfig) -> tuple[list[RankedDoubt], LabelStatistics]:
    """Return the doubts of all images, most unusual first, and the statistics."""
    facts = {
        name: measure_image(*data.read(name)) for name in track_progress(data.names, "reading")
    }
    statistics = pool_images(
        list(facts.values()), None if cfg.border == "auto" else int(cfg.border)
    )
    found: list[tuple[str, Doubt]] = []
    for name in track_progress(data.names, "comparing"):
        _, label, p_CHW = data.read(name)
        doubts = find_doubts(label, p_CHW, facts[name], statistics, cfg.min_size)
        found += [(name, doubt) for doubt in doubts]
    doubts = [doubt for _, doubt in found]
    expected, chances = rank_doubts(doubts, len(data.names), cfg.min_size)
    if not statistics.networks_agree:
        chances = np.ones(len(doubts))
    ranked = [
        RankedDoubt(name, doubt, float(number), float(chance), bool(chance <= cfg.false_alarm))
        for (name, doubt), number, chance in zip(found, expected, chances, strict=True)
    ]
    return sorted(ranked, key=lambda one: one.expected), statistics


def write_results(
    data: OutOfFold,
    ranked: Sequence[RankedDoubt],
    statistics: LabelStatistics,
    cfg: DictConfig,
    output: Path,
    below: Path,
) -> None:
    """Write the outlines, the pictures, the table, the page and, last, doubt.json."""
    run = data.run
    with files.atomic_folder(output / "outlines", below) as aside:
        write_outlines(ranked, run.classes, run.colors, aside, aside)
    with files.atomic_folder(output / "panels", below) as aside:
        for number, one in enumerate(ranked[: cfg.panels], start=1):
            picture = draw_panel(data, one, number)
            with files.atomic_write(aside / f"{number:03d}.png", aside) as part:
                picture.save(part)
    rows = table_rows(ranked, run.classes)
    write_table(rows, output / "doubt.csv", below)
    write_page(data, ranked, rows, cfg.panels, output, below)
    content = {
        "images": len(data.names),
        "regions": len(ranked),
        "stand_out": sum(one.stands_out for one in ranked),
        "thresholds": dict(
            zip(run.classes, (float(t) if np.isfinite(t) else None for t in statistics.thresholds), strict=True)
        ),
        "border_px": statistics.border,
        "offset_px": list(statistics.offset),
        "image_offset_px": list(statistics.image_offset),
        "image_votes": statistics.image_votes,
    }  # fmt: skip
    records.write_json(output / "doubt.json", content, below)


def draw_panel(data: OutOfFold, one: RankedDoubt, number: int) -> Image.Image:
    """Draw the surroundings of a region in the image, its label and the prediction, and its place."""
    (image, label, p_CHW), run, doubt = data.read(one.image), data.run, one.doubt
    height, width = doubt.inside.shape
    predicted, box = p_CHW.argmax(0).astype(np.uint8), (doubt.left, doubt.top, width, height)
    title = f"{number}  {one.image}: {describe_doubt(doubt, run.classes)}"
    return draw_doubt(image, label, predicted, box, run.classes, run.colors, title)


def write_page(
    data: OutOfFold,
    ranked: Sequence[RankedDoubt],
    rows: Sequence[Sequence[str]],
    panels: int,
    output: Path,
    below: Path,
) -> None:
    """Write doubt.html, on which the regions that have a picture are accepted or rejected."""
    classes = data.run.classes
    cards = [
        DoubtCard(
            f"{number}  {one.image}: {describe_doubt(one.doubt, classes)}",
            one.doubt.kind,
            "Move it back" if one.doubt.kind == SHIFTED else f"It is {classes[one.doubt.meant]}",
            one.stands_out,
            picture_uri(output / "panels" / f"{number:03d}.png"),
        )
        for number, one in enumerate(ranked[:panels], start=1)
    ]
    out = sum(one.stands_out for one in ranked)
    headline = f"{len(ranked)} contradicted regions in {len(data.names)} images, {out} stand out"
    files.write_text(output / "doubt.html", render_doubt_page(rows, cards, headline), below)


def describe_doubt(doubt: Doubt, classes: Sequence[str]) -> str:
    """Return what a doubt says, in a few words."""
    if doubt.kind == REGION:
        return f"label {classes[doubt.said]}, network {classes[doubt.meant]}"
    return f"{doubt.kind} by {describe_offset(doubt.shift)}" if any(doubt.shift) else doubt.kind


def describe_offset(offset: tuple[int, int]) -> str:
    """Return an offset of rows and columns in words: 1 px up, 2 px left."""
    words = zip(offset, (("up", "down"), ("left", "right")), strict=True)
    return ", ".join(f"{abs(move)} px {names[move > 0]}" for move, names in words if move)


def print_results(
    data: OutOfFold,
    ranked: Sequence[RankedDoubt],
    statistics: LabelStatistics,
    cfg: DictConfig,
    output: Path,
) -> None:
    """Print the findings, the table of what stands out and the next command."""
    count = len(data.names)
    if any(statistics.image_offset):
        log.info(
            f"offset     the labels of {statistics.image_votes} of {count} images lie {describe_offset(statistics.image_offset)} of where "
            "they explain the grey values best; the networks have learnt that, so it is no doubt below"
        )
    if any(statistics.offset):
        log.info(
            f"offset     most labels lie {describe_offset(statistics.offset)} of the predictions; they were moved back before the comparison"
        )
    out = [one for one in ranked if one.stands_out]
    place = quote_path(output / "doubt.csv")
    if not statistics.networks_agree:
        log.info(
            f"labels     nothing can be said: the networks agree with the labels too little (Cohen's kappa {statistics.kappa:.2f} in the "
            f"median image, {LEAST_KAPPA} is needed); train them longer"
        )
        return
    if not out and count < LEAST_KNOWN:
        log.info(
            f"labels     {count} images are too few to say what stands out; {len(ranked)} contradicted regions are in {place}"
        )
        return
    if not out:
        log.info(
            f"labels     nothing stands out among {count} images: each of {len(ranked)} contradicted regions may be a mistake of the "
            f"networks; all are in {place}, the most unusual in {quote_path(output / 'doubt.html')}"
        )
        return
    images = len({one.image for one in out})
    log.info("", extra={"table": doubt_table(out[: cfg.panels], data.run.classes)})
    log.info(
        f"labels     {len(out)} of {len(ranked)} contradicted regions stand out, in {images} of {count} images; table {place}, "
        f"page to look through them {quote_path(output / 'doubt.html')}"
    )
    run, reviewed = (
        render_option("run", data.folder),
        render_option("reviewed", output / "doubt.csv"),
    )
    log.info("next, with ignore or class in the column accept of the regions that are wrong:")
    log.info(f"  {render_command('doubt', run, reviewed, 'output=CORRECTED')}")


def doubt_table(ranked: Sequence[RankedDoubt], classes: Sequence[str]) -> Table:
    """Return the table of the strongest doubts."""
    table = make_table("labels in doubt")
    for header in ("image", "box (x, y, w, h)", "label", "network"):
        table.add_column(header, overflow="fold")
    for header in ("px", "p", "evidence", "chance"):
        table.add_column(header, justify="right")
    for one in ranked:
        doubt = one.doubt
        height, width = doubt.inside.shape
        said = classes[doubt.said] if doubt.kind == REGION else describe_doubt(doubt, classes)
        table.add_row(
            one.image, f"{doubt.left}, {doubt.top}, {width}, {height}", said, classes[doubt.meant] if doubt.kind == REGION else "",
            str(int(doubt.inside.sum())), f"{doubt.confidence:.3f}", f"{doubt.evidence:.0f}", f"{one.chance:.2g}",
        )  # fmt: skip
    return table


def write_corrected_masks(
    data: OutOfFold,
    ranked: Sequence[RankedDoubt],
    accepted: dict[tuple[str, ...], str],
    output: Path,
    below: Path,
) -> None:
    """Write copies of all masks of the data, with the accepted doubts corrected.

    Raises:
        UserError: if an accepted row is no doubt of this cross-validation with these options.
    """
    run = data.run
    doubts = {one.key(run.classes): one for one in ranked}
    for key in accepted:
        if key not in doubts:
            raise UserError(
                f"reviewed: image {key[0]}, box {', '.join(key[2:6])}: no such region now; give the border= and min_size= that "
                "the table was made with, and the unchanged masks"
            )
    of_image: dict[str, list[tuple[Doubt, str]]] = {}
    for key, word in accepted.items():
        of_image.setdefault(doubts[key].image, []).append((doubts[key].doubt, word))
    files.make_folder(output, below)
    ignored = 0
    with files.atomic_folder(output / "masks", below) as aside:
        for name in track_progress(next(iter(data.source.splits.values())), "writing"):
            _, mask = data.source.read(name)
            for doubt, word in sorted(
                of_image.get(name, []), key=lambda one: one[0].kind == REGION
            ):
                mask = correct_mask(mask, doubt, word)
            ignored += bool((mask == IGNORE).all())
            write_corrected(mask, name, run.colors, aside, aside)
    counts = Counter(accepted.values())
    words = " and ".join(f"{counts[w]} by {w}" for w in ("ignore", "class") if counts[w])
    log.info(
        f"masks      {quote_path(output / 'masks')}: copies of all masks as class indices, {IGNORE} is ignored; corrected: {words}"
    )
    whole = f", {ignored} of which are ignored as a whole" * bool(ignored)
    log.info(f"next, train with them{whole}:")
    words = training_words(data.options, output / "masks", ignored > 0)
    log.info(f"  {render_command('train', *words)}")


def training_words(options: dict[str, Any], masks: Path, ignored: bool) -> list[str]:
    """Return the words of seg.train with corrected masks; of the data, the options that differ from the defaults.

    Args:
        options: of the data whose masks were corrected. Of a table, or of another class than ``Folder``, none is kept.
        masks: folder of the corrected ones.
        ignored: whether some are ignored as a whole, which the check of the data refuses.
    """
    defaults = inspect.signature(Folder).parameters
    own = options["_target_"] == "seg.data.Folder" and options["table"] is None
    kept = {
        name: value
        for name, value in options.items()
        if own and name in defaults and name not in REPLACED and value != defaults[name].default
    }
    given = {"root": "ROOT"} | kept | {"masks": masks.absolute(), "ignore": [IGNORE]}
    words = [render_option(f"data.{name}", value) for name, value in given.items()]
    return ["data=folder", *words, *["loader.skip_checks=[ignored]"] * ignored]
