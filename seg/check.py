"""Looks at a data set before it is trained on: ``python -m seg.check data=folder data.root=DATA``.

Every image and mask is read, every fault is listed with what mends it: errors (exit code 2) and warnings
(0). Leaves check.json, all that was found, and sheet.png, the images with their masks laid over.
"""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from seg import files, runs
from seg.cli import MISTAKES, UserError, build, command, plain
from seg.command_line import config_folder, render_command
from seg.console import console, quiet
from seg.data.checks import Redraw, judge
from seg.data.faults import KINDS, UNPAIRED, Fault, count, percent, told
from seg.data.folder import Folder
from seg.data.looks import Look, Looks, look_at_all
from seg.data.sources import DataError, Source
from seg.sheets import draw

log = logging.getLogger("seg")
MOST = 500  # files set aside before the check gives up
LISTED = 10  # faults of a kind that the terminal shows; check.json has all


def check(cfg: DictConfig) -> dict[str, Any]:
    """What check.json holds.

    Raises:
        UserError: when there is an error among the faults, after all were told.
    """
    quiet()
    started = time.perf_counter()
    if cfg.panels < 0:
        raise UserError(f"panels={cfg.panels}: give 0 or more")
    output = new_folder(cfg.output)
    with opened(cfg) as data:
        names = [(split, name) for split, names in data.source.splits.items() for name in names]
        seen = look_at_all(
            data.source,
            track(
                names, "looking", console=console, transient=True, disable=not console.is_terminal
            ),
            data.root,
        )
        faults = judge(data.source, seen, data.root, data.redraw)
        faults = sorted([*data.unpaired, *faults], key=lambda f: list(KINDS).index(f.kind))
        report = record(cfg, data.source, seen, faults)
        sheet = draw(data.source, seen, faults, cfg.panels, report) if cfg.panels else None
    files.make_folder(output, output)
    if sheet is not None:
        with files.whole(output / "sheet.png", output) as aside:
            sheet.save(aside)
    report["seconds"] = round(time.perf_counter() - started, 2)
    runs.write_json(output / "check.json", report)
    tell(data.source, report, faults, output, bool(cfg.panels))
    errors = [fault for fault in faults if fault.error]
    if errors:
        more = f" (and {count(len(errors) - 1, 'more error')})" if errors[1:] else ""
        raise UserError(f"{errors[0].line()}{more}; all are in {output / 'check.json'}")
    log.info(f"next: {train_command()}")
    return report


def new_folder(given: str) -> Path:
    """Where the results will lie.

    Raises:
        UserError: when results lie there already.
        RunError: when it can't be written.
    """
    folder = Path(given)
    files.check_writable(folder, folder, ["check.json", "sheet.png"])
    if any((folder / name).exists() for name in ("check.json", "sheet.png")):
        free = next(n for n in range(2, 10**6) if not Path(f"{folder}-{n}").exists())
        raise UserError(
            f"output={given}: holds results already; delete them, or give another folder, output={folder}-{free}"
        )
    return folder


class Opened(NamedTuple):
    """A source that can be read.

    Attributes:
        source: without the files that have no partner.
        root: folder that its messages name, if any.
        unpaired: a fault for each file that was set aside.
        redraw: splits that another option of the draw would give, or None.
    """

    source: Source
    root: Path | None
    unpaired: list[Fault]
    redraw: Redraw


@contextmanager
def opened(cfg: DictConfig) -> Generator[Opened]:
    """The source; where files without a partner make it refuse, a mirror of links without them.

    So the source's own rules of pairing count, and nothing is written where the data lies.
    """
    root = Path(cfg.data.root) if cfg.data.get("root") else None
    try:
        built = [build(cfg.data, "data")]
    except DataError as error:
        built, first = [], error
    for source in built:
        yield Opened(source, root, [], lambda option: redrawn(cfg, option))
        return
    drawn = cfg.data.get("stratify") or cfg.data.get("lists")
    if root is None or not root.is_dir() or not (told(first, root).kind in UNPAIRED or drawn):
        raise first
    with tempfile.TemporaryDirectory(prefix="seg-check-") as scratch:
        mirror = Path(scratch) / root.resolve().name
        link(root, mirror)
        source, faults = set_aside(cfg, root, mirror)
        yield Opened(source, mirror, faults, lambda option: None)


def redrawn(cfg: DictConfig, option: str) -> dict[str, list[str]] | None:
    """Splits with another option of ``data``; None where it can't be."""
    if option.split("=")[0] not in cfg.data:
        return None
    try:
        return build(changed(cfg.data, OmegaConf.from_dotlist([option])), "data").splits
    except MISTAKES:
        return None


def changed(data: DictConfig, options: dict[str, Any] | DictConfig) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge(data, options))


def link(folder: Path, mirror: Path, depth: int = 3) -> None:
    """The same folders, with links to the same files."""
    mirror.mkdir()
    for entry in folder.iterdir():
        if not entry.is_dir():
            (mirror / entry.name).symlink_to(entry.resolve())
        elif depth and not entry.name.startswith("."):
            link(entry, mirror / entry.name, depth - 1)


def set_aside(cfg: DictConfig, root: Path, mirror: Path) -> tuple[Source, list[Fault]]:
    """The source of the mirror, each file that it refuses for its partner taken out of it and listed.

    Where a draw needs the masks, or lists name the files, there is then one split of all images.

    Raises:
        DataError: when it refuses for another reason.
    """
    loose: dict[str, Any] = {"root": str(mirror)}
    faults: list[Fault] = []
    while True:
        try:
            source = build(changed(cfg.data, loose), "data")
            break
        except DataError as error:
            text = str(error).replace(str(mirror), str(root))
            fault = told(DataError(text), root)
            if fault.kind in UNPAIRED and len(faults) < MOST:
                (mirror / fault.file).unlink()
                faults.append(fault)
            elif (cfg.data.get("stratify") or cfg.data.get("lists")) and len(loose) == 1:
                loose |= {"stratify": False, "lists": None}
            else:
                before = f"; before that, {len(faults)} files: {faults[0].line()}" if faults else ""
                raise DataError(f"{text}{before}") from error
    if len(loose) > 1:
        source.splits = {"all": [name for names in source.splits.values() for name in names]}
    return source, faults


def record(cfg: DictConfig, source: Source, seen: Looks, faults: list[Fault]) -> dict[str, Any]:
    """Plain values of all that was found."""
    looks = seen.looks
    splits = {
        split: of_split(source, [one for one in looks if one.split == split], names)
        for split, names in source.splits.items()
    }
    return {
        "data": plain(cfg.data),
        "errors": sum(fault.error for fault in faults),
        "warnings": sum(not fault.error for fault in faults),
        "classes": list(source.classes),
        "splits": splits,
        "faults": [
            {"severity": "error" if f.error else "warning", "kind": f.kind, "what": KINDS[f.kind].heading,
             "file": f.file, "found": f.found, "expected": f.right, "remedy": f.remedy}
            for f in faults
        ],
        "images": [of_image(source, one) for one in looks],
    }  # fmt: skip


def of_split(source: Source, looks: list[Look], names: list[str]) -> dict[str, Any]:
    """Numbers of a split; shares are of its pixels, ignored ones aside."""
    sizes = Counter(one.shape for one in looks)
    pixels = np.array([one.shape[0] * one.shape[1] * one.channels for one in looks], float)
    weights = pixels / pixels.sum() if looks else pixels
    means, sds = (np.array([getattr(one, key) for one in looks]) for key in ("mean", "sd"))
    mean = float((weights * means).sum())
    zero = np.zeros(len(source.classes))
    valid = sum((one.valid for one in looks), zero)
    shares = sum((one.pixels for one in looks), zero) / valid.clip(1)
    return {
        "images": len(names),
        "read": len(looks),
        "sizes": {f"{h}x{w}": n for (h, w), n in sizes.most_common()},
        "types": dict(Counter(f"{one.dtype} x {one.channels}" for one in looks).most_common()),
        "low": min((one.span[0] for one in looks), default=None),
        "high": max((one.span[1] for one in looks), default=None),
        "mean": mean,
        "sd": float(np.sqrt(max((weights * (sds**2 + means**2)).sum() - mean**2, 0))),
        "ignored": float(np.mean([one.ignored for one in looks])) if looks else 0.0,
        "shares": dict(zip(source.classes, shares.tolist(), strict=True)),
        "images_with": {
            c: sum(int(one.pixels[i] > 0) for one in looks) for i, c in enumerate(source.classes)
        },
    }


def of_image(source: Source, one: Look) -> dict[str, Any]:
    return {
        "name": one.name,
        "split": one.split,
        "file": one.file,
        "size": list(one.shape),
        "channels": one.channels,
        "type": one.dtype,
        "low": one.span[0],
        "high": one.span[1],
        "mean": one.mean,
        "sd": one.sd,
        "ignored": one.ignored,
        "pixels": dict(zip(source.classes, one.pixels.tolist(), strict=True)),
    }


def tell(
    source: Source, report: dict[str, Any], faults: list[Fault], output: Path, drawn: bool
) -> None:
    """Tables, the faults, and where the rest is."""
    log.info("", extra={"table": split_table(report["splits"])})
    log.info("", extra={"table": class_table(source, report["splits"])})
    groups: dict[tuple, list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.right, fault.remedy), []).append(fault)
    for (kind, right, remedy), members in groups.items():
        severity = "error" if KINDS[kind].error else "warning"
        log.info(f"{severity}: {KINDS[kind].heading} ({len(members)})")
        for fault in members[:LISTED]:
            log.info(f"  {fault.file}: {fault.found}")
        if members[LISTED:]:
            log.info(f"  ... and {len(members) - LISTED} more")
        log.info(f"  expected: {right}")
        log.info(f"  remedy:   {remedy}")
    images = sum(split["images"] for split in report["splits"].values())
    log.info(
        f"{count(report['errors'], 'error')} and {count(report['warnings'], 'warning')} in "
        f"{count(images, 'image')}, {report['seconds']:.1f} s"
    )
    pictures = f", pictures {output / 'sheet.png'}" if drawn else ""
    log.info(f"numbers {output / 'check.json'}{pictures}")


def split_table(splits: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="images (size: height x width)", title_justify="left", header_style="bold")
    table.add_column("split")
    for header in ("images", "size, px", "type", "values", "mean +- sd", "ignored"):  # fmt: skip
        table.add_column(header, justify="right")
    for split, facts in splits.items():
        unread = f" ({facts['images'] - facts['read']} unread)"
        low, high = facts["low"], facts["high"]
        table.add_row(
            escape(split),
            f"{facts['images']}{unread if facts['read'] < facts['images'] else ''}",
            several(facts["sizes"]),
            several(facts["types"]),
            "-" if low is None else f"{low:.4g}..{high:.5g}",
            "-" if low is None else f"{facts['mean']:.4g} +- {facts['sd']:.3g}",
            percent(facts["ignored"]),
        )
    return table


def several(counts: dict[str, int]) -> str:
    """The one, or each with its number, the rarest left out."""
    if len(counts) < 2:
        return next(iter(counts), "-")
    shown = ", ".join(f"{n} of {what}" for what, n in list(counts.items())[:3])
    return f"{shown}{', ...' if len(counts) > 3 else ''}"


def class_table(source: Source, splits: dict[str, dict[str, Any]]) -> Table:
    """A row a class: its values on disk, share of the pixels and number of images in each split."""
    table = Table(title="classes", title_justify="left", header_style="bold")
    table.add_column(
        "class", overflow="fold", min_width=max((len(c) for c in source.classes), default=1)
    )
    table.add_column("value", justify="right")
    for split in splits:
        table.add_column(f"{escape(split)}, pixels", justify="right")
        table.add_column("images", justify="right", style="dim")
    table.add_column("", no_wrap=True)
    first = next(iter(splits.values()), {"shares": {}})
    for i, name in enumerate(source.classes):
        cells = []
        for facts in splits.values():
            cells += [percent(facts["shares"][name]), str(facts["images_with"][name])]
        bar = "\u2588" * round(10 * first["shares"][name])
        table.add_row(escape(name), values_of(source, i), *cells, bar)
    return table


def values_of(source: Source, index: int) -> str:
    """The values on disk of a class, where the source says them."""
    if not isinstance(source, Folder):
        return str(index)
    if source.values.palette is not None:
        return ", ".join(f"#{code:06x}" for code in np.flatnonzero(source.values.palette == index))
    if source.layers:
        return "layer"
    return ", ".join(str(value) for value, i in source.values.index.items() if i == index)


def train_command() -> str:
    """Return the command that trains on this data: the same words for seg.train."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [w for w in words if w.split("=")[0].lstrip("+~") not in ("output", "panels")]
    return render_command("train", *config_folder(), *kept)


@command("check")
def main(cfg: DictConfig) -> None:
    check(cfg)


if __name__ == "__main__":
    main()
