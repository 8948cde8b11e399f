"""Tables and records of seg.check."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from seg.cli.compose import plain_config
from seg.data.datasets.base import DataSource, object_border
from seg.data.datasets.folder import Folder
from seg.data.quality.inspect import ImageStats, Inspection
from seg.data.quality.issues import ISSUE_KINDS, OPTIONAL_KINDS, Issue, count_noun, format_percent
from seg.display.tables import make_table

log = logging.getLogger("seg")
MAX_LISTED = 10  # issues of a kind that the terminal shows; check.json has all


def build_report(
    cfg: DictConfig, source: DataSource, inspection: Inspection, issues: list[Issue]
) -> dict[str, Any]:
    """Return the content of check.json as plain values."""
    splits = {
        split: describe_split(
            source, [image for image in inspection.stats if image.split == split], names
        )
        for split, names in source.splits.items()
    }
    return {
        "data": plain_config(cfg.data),
        "errors": sum(issue.error for issue in issues),
        "warnings": sum(not issue.error for issue in issues),
        "classes": list(source.classes),
        "splits": splits,
        "faults": [
            {"severity": "error" if f.error else "warning", "kind": f.kind, "what": ISSUE_KINDS[f.kind].heading,
             "file": f.file, "found": f.found, "expected": f.requirement, "remedy": f.remedy}
            for f in issues
        ],
        "images": [describe_image(source, image) for image in inspection.stats],
    }  # fmt: skip


def describe_split(source: DataSource, stats: list[ImageStats], names: list[str]) -> dict[str, Any]:
    """Return the statistics of a split; shares are of its pixels without ignored ones."""
    # Mean and deviation of the split from those of its images, weighted by their pixels.
    sizes = Counter(image.shape for image in stats)
    pixels = np.array([image.shape[0] * image.shape[1] * image.channels for image in stats], float)
    weights = pixels / pixels.sum() if stats else pixels
    means, sds = (np.array([getattr(image, key) for image in stats]) for key in ("mean", "sd"))
    mean = float((weights * means).sum())
    # Share of each class among the valid pixels
    zero = np.zeros(len(source.classes))
    valid = sum((image.valid for image in stats), zero)
    shares = sum((image.pixels for image in stats), zero) / valid.clip(1)
    return {
        "images": len(names),
        "read": len(stats),
        "sizes": {f"{h}x{w}": n for (h, w), n in sizes.most_common()},
        "types": dict(
            Counter(f"{image.dtype} x {image.channels}" for image in stats).most_common()
        ),
        "low": min((image.value_range[0] for image in stats), default=None),
        "high": max((image.value_range[1] for image in stats), default=None),
        "mean": mean,
        "sd": float(np.sqrt(max((weights * (sds**2 + means**2)).sum() - mean**2, 0))),
        "ignored": float(np.mean([image.ignored for image in stats])) if stats else 0.0,
        "objects": [image.objects[0] for image in stats if image.objects is not None],
        "shares": dict(zip(source.classes, shares.tolist(), strict=True)),
        "images_with": {
            c: sum(int(image.pixels[i] > 0) for image in stats)
            for i, c in enumerate(source.classes)
        },
    }


def describe_image(source: DataSource, image: ImageStats) -> dict[str, Any]:
    """Return the statistics of an image."""
    return {
        "name": image.name,
        "split": image.split,
        "file": image.file,
        "size": list(image.shape),
        "channels": image.channels,
        "type": image.dtype,
        "low": image.value_range[0],
        "high": image.value_range[1],
        "mean": image.mean,
        "sd": image.sd,
        "ignored": image.ignored,
        **({} if image.objects is None else {"objects": image.objects[0]}),
        "pixels": dict(zip(source.classes, image.pixels.tolist(), strict=True)),
    }


def print_report(
    source: DataSource, report: dict[str, Any], issues: list[Issue], output: Path, drawn: bool
) -> None:
    """Print the tables, the issues by kind and remedy, and where the results lie."""
    # Tables of the splits and of the classes
    log.info("", extra={"table": split_table(report["splits"])})
    log.info("", extra={"table": class_share_table(source, report["splits"])})
    if source.task == "instances":
        log.info(f"objects: {object_border(source).describe()}")
    # Faults of one kind and remedy together, whatever values the remedy holds.
    optional = False
    groups: dict[tuple, list[Issue]] = {}
    for issue in issues:
        groups.setdefault((issue.kind, without_values(issue.remedy)), []).append(issue)
    for (kind, _), members in groups.items():
        severity = "error" if ISSUE_KINDS[kind].error else "warning"
        log.info(f"{severity}: {ISSUE_KINDS[kind].heading} ({len(members)}) [{kind}]")
        for issue in members[:MAX_LISTED]:
            log.info(f"  {issue.file}: {issue.found}")
        if members[MAX_LISTED:]:
            log.info(f"  ... and {len(members) - MAX_LISTED} more")
        several = (
            " (of the first; check.json has each)" if len({m.remedy for m in members}) > 1 else ""
        )
        log.info(f"  expected: {members[0].requirement}")
        log.info(f"  remedy:   {members[0].remedy}{several}")
        optional = optional or kind in OPTIONAL_KINDS
    if optional:
        log.info(
            "loader.skip_checks=[KIND] leaves a check out, here and in training; KIND is the word in brackets above"
        )
    # Summary and files.
    images = sum(split["images"] for split in report["splits"].values())
    log.info(
        f"{count_noun(report['errors'], 'error')} and {count_noun(report['warnings'], 'warning')} in "
        f"{count_noun(images, 'image')}, {report['seconds']:.1f} s"
    )
    pictures = f", pictures {output / 'sheet.png'}" if drawn else ""
    log.info(f"numbers {output / 'check.json'}{pictures}")


def without_values(remedy: str) -> str:
    """Return a remedy without its numbers and what stands in brackets or quotes, to compare it with others."""
    return re.sub(r"'[^']*'|\[[^]]*\]|\{[^}]*\}|[-\d.]+", "", remedy)


def split_table(splits: dict[str, dict[str, Any]]) -> Table:
    """Return a table with a row per split: its images, sizes, types and grey values."""
    table = make_table("images (size: height x width)")
    table.add_column("split")
    counted = any(facts["objects"] for facts in splits.values())
    objects = ("objects an image",) if counted else ()
    for header in ("images", "size, px", "type", "values", "mean +- sd", "ignored", *objects):
        table.add_column(header, justify="right")
    for split, facts in splits.items():
        unread = f" ({facts['images'] - facts['read']} unread)"
        low, high = facts["low"], facts["high"]
        table.add_row(
            escape(split),
            f"{facts['images']}{unread if facts['read'] < facts['images'] else ''}",
            format_counts(facts["sizes"]),
            format_counts(facts["types"]),
            "-" if low is None else f"{low:.4g}..{high:.5g}",
            "-" if low is None else f"{facts['mean']:.4g} +- {facts['sd']:.3g}",
            format_percent(facts["ignored"]),
            *([format_range(facts["objects"])] if counted else []),
        )
    return table


def format_range(numbers: list[int]) -> str:
    """Return the median of numbers, and the smallest and the largest."""
    if not numbers:
        return "-"
    return f"{np.median(numbers):g} ({min(numbers)} to {max(numbers)})"


def format_counts(counts: dict[str, int]) -> str:
    """Return the only value, or the three most frequent values with their numbers."""
    if len(counts) < 2:
        return next(iter(counts), "-")
    frequent = ", ".join(f"{n} of {value}" for value, n in list(counts.items())[:3])
    return f"{frequent}{', ...' if len(counts) > 3 else ''}"


def class_share_table(source: DataSource, splits: dict[str, dict[str, Any]]) -> Table:
    """Return a table with a row per class: values on disk, share of pixels and images in each split."""
    table = make_table("classes")
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
            cells += [format_percent(facts["shares"][name]), str(facts["images_with"][name])]
        bar = "\u2588" * round(10 * first["shares"][name])
        table.add_row(escape(name), values_on_disk(source, i), *cells, bar)
    return table


def values_on_disk(source: DataSource, index: int) -> str:
    """Return the values on disk of a class, if the source declares them."""
    if not isinstance(source, Folder):
        return str(index)
    if source.values.palette is not None:
        return ", ".join(f"#{code:06x}" for code in np.flatnonzero(source.values.palette == index))
    if source.mask_layers:
        return "layer"
    if source.border.separate:
        return ("0", "numbers", "")[index]
    return ", ".join(str(value) for value, i in source.values.index.items() if i == index)
