"""Splits of a data set by its options: drawn, listed, or given by the data itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg.data.masks import shorten_list
from seg.data.partition import (
    SPLITS,
    Splits,
    check_groups_apart,
    divide_names,
    find_groups,
    reject_options,
)
from seg.data.similar_names import find_similar
from seg.errors import DataError


@dataclass(frozen=True)
class SplitOptions:
    """Options of the split; see seg.data.datasets.folder.Folder."""

    val: float | None
    test: float
    fold: int | None
    folds: int
    contiguous: bool
    group_by: str | None
    stratify: bool
    lists: str | dict[str, str] | None
    split_seed: int

    def splits(
        self,
        names: list[str],
        presence: Callable[[str], np.ndarray],
        listed: Callable[[dict[str, list[str]]], Splits],
        given: Splits | None = None,
        given_by: tuple[str, str] = ("", ""),
        groups: dict[str, str] | None = None,
    ) -> Splits:
        """Return the image names of each split; a group is in one split.

        Args:
            names: of all images, in their order.
            presence: function of a name that returns whether each class occurs, (C,).
            listed: function that turns the lines of ``lists`` into splits.
            given: splits that the data itself defines; None: it defines none.
            given_by: what defines them, and why options are excluded, for messages.
            groups: name -> group, if the data itself defines groups.

        Raises:
            DataError: if options exclude each other, or leave a split empty.
        """
        # Groups by the data or by the option.
        choice: dict[str, object] = {"fold": self.fold, "contiguous": self.contiguous}
        choice |= {"stratify": self.stratify, "val": self.val, "test": self.test or None}
        if groups is not None:
            reject_options(
                {"group_by": self.group_by}, "the table's column group", "it says the group"
            )
        elif self.group_by is not None:
            groups = find_groups(names, self.group_by)
        # Splits by the data, by lists or drawn.
        if given is not None and "train" in given and "val" not in given:
            # the validation images are drawn from the training images
            excluded = {"lists": self.lists} | (
                {"test": self.test or None} if "test" in given else {}
            )
            reject_options(excluded, *given_by)
            splits = given | self.draw(given["train"], presence, groups)
        elif given is not None:
            reject_options(choice | {"lists": self.lists}, *given_by)
            splits = given
        elif self.lists is not None:
            reject_options(choice, "data.lists", "the lists say which image is on which side")
            splits = listed(read_lists(self.lists))
        else:
            splits = self.draw(names, presence, groups)
        # No group may be in two splits, whichever way they were made
        if groups is not None:
            check_groups_apart(splits, groups)
        return splits

    def draw(
        self,
        names: list[str],
        presence: Callable[[str], np.ndarray],
        groups: dict[str, str] | None,
    ) -> Splits:
        """Return the splits drawn by the options."""
        return divide_names(
            names, self.val, self.test, self.fold, self.folds, self.contiguous, self.split_seed, groups,
            presence if self.stratify else None,
        )  # fmt: skip


def check_training_splits(splits: Splits) -> None:
    """Raise DataError unless there are images to train on and to validate on."""
    missing = [split for split in ("train", "val") if not splits.get(split)]
    if missing:
        found = ", ".join(f"{len(names)} {split}" for split, names in splits.items())
        raise DataError(
            f"the data has {found} images and no {' and no '.join(missing)} split: training needs train and val; "
            "add images, or give them by folders, data.lists or a table (seg.evaluate takes data of any split)"
        )


def read_lists(lists: str | dict[str, str]) -> dict[str, list[str]]:
    """Read the lines of those of train.txt, val.txt and test.txt that a folder holds, or of a file for each split.

    Raises:
        DataError: if a file is missing or cannot be read, or a split is unknown.
    """
    # The files: of a folder, or given by split.
    if isinstance(lists, str):
        if not Path(lists).is_dir():
            raise DataError(
                f"data.lists={lists}: no such folder; give one that holds train.txt and val.txt, or "
                "'data.lists={train: FILE, val: FILE}'"
            )
        files = {split: Path(lists) / f"{split}.txt" for split in SPLITS}
        files = {split: file for split, file in files.items() if file.is_file()}
        if not files:
            raise DataError(f"data.lists={lists}: holds neither train.txt, val.txt nor test.txt")
    else:
        files = {split: Path(file) for split, file in lists.items()}
    if not files or not set(files) <= set(SPLITS):
        raise DataError(f"data.lists names {sorted(files)}: give train, val, test or some of them")
    # Their lines.
    lines = {}
    for split, file in files.items():
        try:
            text = file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise DataError(f"{file}: can't be read as data.lists ({reason})") from error
        lines[split] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines


def split_by_lists(lines: dict[str, list[str]], names: dict[str, str]) -> Splits:
    """Return the splits that lists define.

    Args:
        lines: of each split's list; an image's name, or the name of its file.
        names: name of a file or of an image -> name of the image.

    Raises:
        DataError: unless each image is in one list, once.
    """
    # Each line is a known name and occurs once.
    split_of: dict[str, str] = {}
    splits: Splits = {split: [] for split in SPLITS if split in lines}
    for split, members in splits.items():
        for line in lines[split]:
            if line not in names:
                similar = find_similar(line, names) or find_similar(Path(line).stem, names)
                remedy = f"a line is one name, like {next(iter(names))}"
                raise DataError(
                    f"data.lists: {split} names {line!r}, and data.root has no image of that name"
                    f"{f', but {similar}; correct the line' if similar else f'; {remedy}'}"
                )
            name = names[line]
            if name in split_of:
                other = split_of[name]
                where = f"twice in {split}" if other == split else f"in {other} and {split}"
                raise DataError(f"data.lists: {name!r} is {where}; keep one of the two lines")
            split_of[name] = split
            members.append(name)
        if not members:
            raise DataError(f"data.lists: {split} names no image; add some or leave the list out")
    # Each name is in a list.
    unlisted = sorted(set(names.values()) - set(split_of))
    if unlisted:
        raise DataError(
            f"data.lists: {len(unlisted)} of {len(unlisted) + len(split_of)} images are in no list, "
            f"{shorten_list(unlisted)}; add them to one, or take them out of data.root"
        )
    return splits
