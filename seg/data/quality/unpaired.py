"""Open a data set in spite of files without a partner."""

from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import instantiate_node
from seg.data.datasets.base import DataSource
from seg.data.datasets.pairing import leave_out_unpaired
from seg.data.quality.checks import RedrawFunction
from seg.data.quality.issues import Issue, issue_from_error
from seg.errors import USER_ERRORS, DataError


class CheckedSource(NamedTuple):
    """A source that can be read.

    Attributes:
        source: without the files that have no partner.
        root: folder of the data, if it has one.
        unpaired: an issue for each file that was left out.
        redraw: splits that another option of the draw would give, or None.
    """

    source: DataSource
    root: Path | None
    unpaired: list[Issue]
    redraw: RedrawFunction


def open_source(cfg: DictConfig) -> CheckedSource:
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
        return CheckedSource(source, root, unpaired, lambda option: redraw_splits(cfg, option))
    except DataError:
        if root is None or not root.is_dir() or not drawn:
            raise
    # Again without the options that read masks or name files.
    source, unpaired = build_paired(
        merge_options(cfg.data, {"stratify": False, "lists": None}), root
    )
    source.splits = {"all": [name for names in source.splits.values() for name in names]}
    return CheckedSource(source, root, unpaired, lambda option: None)


def build_paired(data: DictConfig, root: Path | None) -> tuple[DataSource, list[Issue]]:
    """Return the source without the files that have no partner, and an issue for each of these.

    Raises:
        DataError: when it can't be opened for another reason.
    """
    with leave_out_unpaired() as errors:
        try:
            source = instantiate_node(data, "data")
        except DataError as error:
            if not errors:
                raise
            first = issue_from_error(errors[0], root).line()
            raise DataError(f"{error}; before that, {len(errors)} files: {first}") from error
    return source, [issue_from_error(error, root) for error in errors]


def redraw_splits(cfg: DictConfig, option: str) -> dict[str, list[str]] | None:
    """Return the splits with another option of ``data``; None where there are none."""
    if option.split("=")[0] not in cfg.data:
        return None
    try:
        return build_paired(merge_options(cfg.data, OmegaConf.from_dotlist([option])), None)[
            0
        ].splits
    except USER_ERRORS:
        return None


def merge_options(data: DictConfig, options: dict[str, Any] | DictConfig) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge(data, options))
