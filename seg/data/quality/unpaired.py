"""Open a data folder in spite of files that cannot be paired or read."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import build
from seg.data.datasets.base import Source
from seg.data.quality.checks import Redraw
from seg.data.quality.issues import UNPAIRED, Fault, told
from seg.errors import MISTAKES, DataError

MOST = 500  # files set aside before the check gives up


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
