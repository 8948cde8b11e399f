"""Open a data set in spite of files without a partner."""

from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import build
from seg.data.datasets.base import Source
from seg.data.datasets.pairing import leave_out_unpaired
from seg.data.quality.checks import Redraw
from seg.data.quality.issues import Fault, told
from seg.errors import MISTAKES, DataError


class Opened(NamedTuple):
    """A source that can be read.

    Attributes:
        source: without the files that have no partner.
        root: folder of the data, if it has one.
        unpaired: a fault for each file that was left out.
        redraw: splits that another option of the draw would give, or None.
    """

    source: Source
    root: Path | None
    unpaired: list[Fault]
    redraw: Redraw


def opened(cfg: DictConfig) -> Opened:
    """Return the source, files without a partner left out of it.

    Where a draw needs masks that can't be read, or lists name files that were left out, there is one split
    of all images.

    Raises:
        DataError: when it can't be opened for another reason.
    """
    root = Path(cfg.data.root) if cfg.data.get("root") else None
    drawn = bool(cfg.data.get("stratify") or cfg.data.get("lists"))
    try:
        source, unpaired = build_paired(cfg.data, root)
        return Opened(source, root, unpaired, lambda option: redrawn(cfg, option))
    except DataError:
        if root is None or not root.is_dir() or not drawn:
            raise
    # Again without the options that read masks or name files.
    source, unpaired = build_paired(changed(cfg.data, {"stratify": False, "lists": None}), root)
    source.splits = {"all": [name for names in source.splits.values() for name in names]}
    return Opened(source, root, unpaired, lambda option: None)


def build_paired(data: DictConfig, root: Path | None) -> tuple[Source, list[Fault]]:
    """Return the source without the files that have no partner, and a fault for each of these.

    Raises:
        DataError: when it can't be opened for another reason.
    """
    with leave_out_unpaired() as errors:
        try:
            source = build(data, "data")
        except DataError as error:
            if not errors:
                raise
            first = told(errors[0], root).line()
            raise DataError(f"{error}; before that, {len(errors)} files: {first}") from error
    return source, [told(error, root) for error in errors]


def redrawn(cfg: DictConfig, option: str) -> dict[str, list[str]] | None:
    """Return the splits with another option of ``data``; None where there are none."""
    if option.split("=")[0] not in cfg.data:
        return None
    try:
        return build_paired(changed(cfg.data, OmegaConf.from_dotlist([option])), None)[0].splits
    except MISTAKES:
        return None


def changed(data: DictConfig, options: dict[str, Any] | DictConfig) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge(data, options))
