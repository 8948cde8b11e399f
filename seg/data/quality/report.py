"""Tables and records of seg.check."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from seg.cli.compose import plain
from seg.data.datasets.base import Source
from seg.data.datasets.folder import Folder
from seg.data.quality.inspect import Look, Looks
from seg.data.quality.issues import KINDS, Fault, count, percent

log = logging.getLogger("seg")
LISTED = 10  # faults of a kind that the terminal shows; check.json has all


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
