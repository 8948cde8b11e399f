"""The folder of a cross-validation: which folds there are, begun once, worked on by one, continued.

crossval.json tells with what it was begun, so that the same command goes on and another is refused; each
fold is a run folder beside it, found by its run.json.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from seg.cli.compose import build, plain
from seg.cli.conf_files import shown
from seg.data.datasets.base import Source
from seg.data.partition import Splits, split_hash
from seg.errors import RunError, UserError
from seg.runs import records
from seg.runs.folder import CROSSVAL
from seg.runs.safe_loading import CROSSVAL_LIMIT

OWN = ("output", "save", "tile", "overlap", "confidence", "objects")  # not of the trainings
FREE = (
    "outputs",
    "logger",
    "panels",
)  # of the trainings, but nothing that is learnt follows from them
PREDICTED = "out-of-fold"


class Plan(NamedTuple):
    """Who trains on what.

    Attributes:
        splits: of each fold.
        hashes: of each fold's splits.
        names: of each fold's run.
        fold_of: image name -> the fold whose network does not train on it; without the test split.
    """

    splits: list[Splits]
    hashes: list[str]
    names: list[str]
    fold_of: dict[str, int]


def planned(cfg: DictConfig) -> Plan:
    """The folds of the data.

    Raises:
        UserError: when they don't hold each image, except the test's, once for validation.
    """
    splits = [opened(cfg, fold).splits for fold in range(cfg.data.folds)]
    fold_of = {name: fold for fold, split in enumerate(splits) for name in split["val"]}
    for fold, split in enumerate(splits):
        others = [name for name, other in fold_of.items() if other != fold]
        if sorted(split["train"]) != sorted(others) or split.get("test") != splits[0].get("test"):
            raise UserError(
                f"data.fold={fold}: its training images aren't those that the other folds validate; a "
                "cross-validation needs folds that part the images"
            )
    files: dict[Path, str] = {}
    for name in fold_of:
        if (other := files.setdefault(file_of(name), name)) != name:
            raise UserError(
                f"data: {other!r} and {name!r} would share a file of {PREDICTED}; rename one"
            )
    prefix = f"{cfg.name}-" if cfg.name else ""
    names = [f"{prefix}fold-{fold}" for fold in range(len(splits))]
    return Plan(splits, [split_hash(split) for split in splits], names, fold_of)


def opened(cfg: DictConfig, fold: int) -> Source:
    """The data with one of its folds for validation."""
    return build(OmegaConf.create(plain(cfg.data) | {"fold": fold}), "data")


def file_of(name: str) -> Path:
    """The file that an image's name stands for, also where the name holds folders."""
    return Path(f"{name.replace('/', '__')}.png")


def begin(cfg: DictConfig, plan: Plan, output: Path) -> dict[str, Any]:
    """The folder's record: of status finished where nothing is left to do, else running and written.

    Raises:
        UserError: when it was begun with other settings or other images, or is no such folder.
    """
    options = settings(cfg)
    now = {
        "status": "running",
        "settings": options,
        "settings_hash": hashlib.sha256(json.dumps(options).encode()).hexdigest()[:12],
        "options": as_json({name: plain(cfg)[name] for name in OWN if name != "output"}),
        "split_hashes": plan.hashes,
        "images": plan.fold_of,
    }
    file = output / CROSSVAL
    if file.is_file():
        old = records.read_json(file, CROSSVAL_LIMIT)
        check_same(old, now, output)
        whole = all(finished(output, plan, fold) for fold in range(len(plan.names)))
        whole = whole and (output / PREDICTED).is_dir() and old["options"] == now["options"]
        if old["status"] == "finished" and whole:
            check_result(old, file)
            return old
    else:
        check_folder(output)
    records.write_json(file, now)
    return now


def check_folder(output: Path) -> None:
    """Raise UserError if a folder holds something else than a cross-validation."""
    entries = list(output.iterdir()) if output.is_dir() else []
    if entries and not (output / CROSSVAL).is_file() and any(e.name != ".lock" for e in entries):
        raise UserError(
            f"output={output}: holds something else; give a new folder, or one that seg.crossval began"
        )


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Each option from which the trainings follow, by its dotted name, as JSON has it."""
    tree = {name: node for name, node in plain(cfg).items() if name not in (*OWN, *FREE)}
    leaves = flat(as_json(tree))
    return {name: v for name, v in leaves if name not in ("loader.workers", "data.fold")}


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def flat(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def check_same(old: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    """Raises UserError when a folder was begun with other settings or other images."""
    remedy = "give what it was begun with, or another output"
    if not set(now) <= set(old):
        raise UserError(f"{output / CROSSVAL}: not written by seg.crossval; give another output")
    before, after = old["settings"], now["settings"]
    if not isinstance(before, dict):
        raise UserError(f"{output / CROSSVAL}: not written by seg.crossval; give another output")
    for name in [*after, *before]:
        was, has = (shown(s[name]) if name in s else "absent" for s in (before, after))
        if was != has:
            raise UserError(
                f"output={output}: begun with {name}={was}, and this is {name}={has}; {remedy}"
            )
    if old["split_hashes"] != now["split_hashes"]:
        raise UserError(
            f"output={output}: begun with other images than the data has now, or other names of them; {remedy}"
        )


def check_result(record: dict[str, Any], file: Path) -> None:
    """Raise RunError unless the scores of a finished cross-validation are there, and are scores."""
    try:
        tables = [record["mean"], record["sd"], *(fold["metrics"] for fold in record["folds"])]
        pooled = [record[part] for part in ("pooled", "test") if part in record]
        tables += [part["metrics"] for part in pooled]
        ends = [end for part in pooled for end in part["intervals"].values()]
        good = all(map(is_score, (value for table in tables for value in table.values())))
        good = good and all(len(end) == 2 and all(map(is_score, end)) for end in ends)
        good = good and all(type(part["images"]) is int for part in pooled)
        good = good and all(isinstance(name, str) for name in record["classes"])
        good = good and {*record["mean"]} == {*record["sd"]} and "pooled" in record
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: damaged ({error!r}); give another output") from error
    if not good:
        raise RunError(f"{file}: its scores are damaged; give another output")


def is_score(value: Any) -> bool:
    """Whether a value of a record is a number, or null, which stands for nan."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def finished(output: Path, plan: Plan, fold: int) -> Path | None:
    """The folder of a fold's finished run, if there is one."""
    for folder, record in runs_named(output, plan.names[fold]):
        if record.get("status") == "finished" and record.get("split_hash") == plan.hashes[fold]:
            return folder
    return None


def runs_named(output: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs of that name in a folder, each with its run.json."""
    for file in sorted(output.glob("*/run.json")):
        if not file.parent.is_symlink():  # latest
            record = records.read_json(file)
            if record.get("name") == name:
                yield file.parent, record
