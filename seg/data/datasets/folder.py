"""Images and masks in files: a folder of each, paired by name, or a table of pairs."""

from pathlib import Path
from typing import Literal

import numpy as np

from seg.data.datasets.base import Task, check_choice, check_task
from seg.data.datasets.pairing import (
    LIKE,
    Pair,
    Pairs,
    page_by_page,
    paired_by_name,
    paired_by_table,
    report_unpaired,
)
from seg.data.image_io import read_image, read_pages
from seg.data.masks import (
    Colour,
    MaskValues,
    class_pixels,
    merged,
    short,
    size_mismatch,
    stacked_planes,
)
from seg.data.partition import SPLITS, Splits, refuse
from seg.data.splits import Division, listed_split, read_lists
from seg.display.colors import default_colors
from seg.errors import DataError

Pages = Literal["slices", "channels"]
Layers = Literal["pages", "folders"]


class Folder:
    """Images and masks paired by name, or by a table; split as the folders lie, as lists say, or drawn.

    Args:
        root: holds ``images/`` and ``masks/``, or ``train/`` and ``val/`` (and ``test/``) that do.
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 a class, for pictures; None: the palette's first of each, or
            a readable one.
        images: name of the folder of images, or of one file.
        masks: name of the folder of masks, or of one file.
        table: CSV file of pairs, in place of the folders; see ``seg.data.datasets.pairing.paired_by_table``.
        pair_by: regular expression that finds the same in the names of an image and its mask; None: the
            names are the same but for the suffix.
        pages: of TIFFs of several: ``slices``, each an image with the same page of its mask, or
            ``channels`` of one image; None: there are none.
        layers: of masks: ``pages``, one for each class, or ``folders``, one file for each class in a folder
            of the class's name; 0 where the class isn't, 1 or 255 where it is (or as ``values`` says). One
            class may lack its layer (of pages the first): it is where no other is.
        values: mask value on disk -> class index; None: the values are the indices.
        palette: class name -> colour in the masks, (red, green, blue) in 0..255, or several.
        ignore: mask values on disk that nobody counts; with ``palette`` colours.
        val: share of the images in 0..1 that validates, where no folders say; None: 0.2, or the fold.
        test: share of the images in 0..1 kept for the test, where no folders say; the same for each fold.
        fold: which of ``folds`` validates, 0 .. folds - 1; None: the share ``val``.
        folds: number of folds.
        blocks: contiguous in the order of names instead of random.
        group_by: regular expression that finds an image's group in its name; groups stay on one side.
        stratify: each part gets its share of the images in which a class occurs.
        lists: folder of train.txt, val.txt and perhaps test.txt, or a file for each; a name a line.
        only_listed: images that no list names are left out.
        split_seed: of what is random in the split.
        task: ``overlapping``: a pixel may have several classes; masks have layers, pages if nothing is said.

    Raises:
        DataError: when a folder, a mask or a setting is missing or wrong.
    """

    def __init__(
        self,
        root: str | None,
        classes: list[str] | None,
        colors: list[Colour] | None = None,
        images: str = "images",
        masks: str = "masks",
        table: str | None = None,
        pair_by: str | None = None,
        pages: Pages | None = None,
        layers: Layers | None = None,
        values: dict[int, int] | None = None,
        palette: dict[str, Colour | list[Colour]] | None = None,
        ignore: list[int] | list[Colour] | None = None,
        val: float | None = None,
        test: float = 0.0,
        fold: int | None = None,
        folds: int = 5,
        blocks: bool = False,
        group_by: str | None = None,
        stratify: bool = False,
        lists: str | dict[str, str] | None = None,
        only_listed: bool = False,
        split_seed: int = 0,
        task: Task = "classes",
    ) -> None:
        check_choice("pages", pages, Pages)
        check_choice("layers", layers, Layers)
        if task == "overlapping" and layers is None:
            layers = "pages"
        self.parts, self.pair_by, self.pages, self.layers = (images, masks), pair_by, pages, layers
        if layers:
            refuse({"palette": palette}, f"data.layers={layers}", "a layer shows one class")
        if layers == "pages":
            slices = "slices" if pages == "slices" else None
            refuse({"pages": slices}, "data.layers=pages", "a mask's pages are its classes")
        self.only: set[str] | None = None
        if only_listed:
            if lists is None:
                raise DataError("data.only_listed=true: there are no data.lists; give them")
            self.only = {line for lines in read_lists(lists).values() for line in lines}
        if table is None:
            self.root = existing_root(root, images, masks)
            by_split, in_split, in_group = self.pairs_by_split(classes or []), None, None
        else:
            refuse({"pair_by": pair_by}, "data.table", "the table pairs")
            self.root = Path(table).parent
            pairs, in_split, in_group = paired_by_table(Path(table), classes or [])
            if self.only is not None:
                first = next(iter(pairs))
                pairs = {n: p for n, p in pairs.items() if self.only & {n, p.image.name}}
                if not pairs:
                    raise DataError(f"{table}: no image is in data.lists; {LIKE.format(first)}")
            by_split = {"all": pairs}
        if pages == "slices":
            refuse({"splits": in_split}, "data.pages=slices", "give the stacks' splits by folders")
            by_split = {split: page_by_page(pairs) for split, pairs in by_split.items()}
        self.files = Pairs({n: pair for pairs in by_split.values() for n, pair in pairs.items()})
        self.has_files = (self.files.masks != b"").any(
            0
        )  # whether any image has one; of each class
        if classes is None:
            raise DataError(self.name_the_classes())
        check_task(task, classes, may_overlap=True)
        self.classes, self.task = classes, task
        self.check_layers()
        if layers:
            present = {0: 0, 1: 1, 255: 1} if values is None else values
            self.values = MaskValues(["absent", "present"], present, ignore, paintable=False)
        else:
            self.values = MaskValues(classes, values, ignore, palette)
        lacking = self.has_files.tolist()
        self.reading = repr((pages, layers, values, palette, ignore, classes, task, lacking))
        self.colors = given_colors(colors, classes, palette, spare=task == "overlapping")

        said, by = None, ("", "")
        if "all" not in by_split:
            said = {split: list(pairs) for split, pairs in by_split.items()}
            by = "train/ and val/ in data.root", "the folders say which image is on which side"
        elif in_split is not None:
            said = tabled_split(in_split, Path(str(table)))
            by = "the table's column split", "it says which image is on which side"
        division = Division(val, test, fold, folds, blocks, group_by, stratify, lists, split_seed)
        names = list(self.files)
        self.splits = division.splits(names, self.presence, self.listed, said, by, in_group)

    def pairs_by_split(self, classes: list[str]) -> dict[str, dict[str, Pair]]:
        """Name -> pair of each split that has a folder of its own, or of ``all``."""
        if (self.root / self.parts[0]).exists():
            return {"all": self.pair(self.root, classes)}
        present = [split for split in SPLITS if (self.root / split).is_dir()]
        for split in {"train", "val"} - set(present):
            raise DataError(
                f"{self.root}: {split}/ is missing beside {present}; make it, or {self.parts[0]}/"
            )
        return {
            split: {
                f"{split}/{name}": p for name, p in self.pair(self.root / split, classes).items()
            }
            for split in present
        }

    def pair(self, folder: Path, classes: list[str]) -> dict[str, Pair]:
        """Name -> pair of the images of a folder."""
        if self.layers != "folders":
            return self.paired(folder, None)
        if not classes:
            there = sorted(f.name for f in (folder / self.parts[1]).glob("*/"))
            raise DataError(
                f"data.classes is not set: name the classes; {folder / self.parts[1]} holds {short(there)}"
            )
        return self.paired(folder, classes)

    def paired(self, folder: Path, layers: list[str] | None) -> dict[str, Pair]:
        """Name -> pair of a folder whose masks have a file for each of ``layers``, or one."""
        pairs, issues = paired_by_name(folder, *self.parts, self.pair_by, layers, self.only)
        report_unpaired(issues)
        return pairs

    def check_layers(self) -> None:
        """Raises DataError unless files have layers just where the options say, of enough classes."""
        planes = self.files.masks.shape[1]
        if planes == 1 and self.layers != "folders":
            return
        if self.layers != "folders":
            raise DataError(
                "the table has a column for each class; data.layers=folders takes them so"
            )
        if planes == 1 != len(self.classes):
            raise DataError(
                "data.layers=folders: the table has one column, mask; it needs one of each class's name"
            )
        without = [c for c, has in zip(self.classes, self.has_files, strict=True) if not has]
        if without and (self.task == "overlapping" or len(without) > 1):
            raise DataError(f"data.layers=folders: no file for {short(without)}; add them")

    def name_the_classes(self) -> str:
        some = [self.files[name] for name in list(self.files)[:20]]
        pages = [page for pair in some for page in read_pages(pair.mask, pair.page)]
        found = sorted({value for page in pages for value in np.unique(page).tolist()})
        return (
            "data.classes is not set: name the classes in the order of the mask's values, "
            f"data.classes=[background,cell]; the first masks of {self.root} hold {found[:20]}"
        )

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, C) and mask (H, W) uint8 of class indices, or (H, W, K) of 0 and 1; 255 = ignore."""
        pair = self.files[name]
        image = read_image(pair.image, pair.page, channels=self.pages == "channels")
        mask = self.mask(pair)
        if mask.shape[:2] != image.shape[:2]:
            raise size_mismatch(pair.mask, mask.shape, pair.image, image.shape)
        return image, mask

    def mask(self, pair: Pair) -> np.ndarray:
        """(H, W) or (H, W, K), as ``read`` gives it."""
        if self.layers is None:
            colours = self.values.palette is not None
            return self.values.indices(
                read_mask(pair.mask, pair.page, colours), place(pair.mask, pair.page)
            )
        planes = self.planes(pair)
        if self.task == "overlapping":
            return np.stack([plane for plane in planes if plane is not None], axis=-1)
        return merged(planes, self.classes, pair.mask)

    def planes(self, pair: Pair) -> list[np.ndarray | None]:
        """Each class's plane (H, W) of 0, 1 and 255; None: it is where no other is."""
        if self.layers == "pages":
            rest = self.task != "overlapping"
            pages = stacked_planes(read_pages(pair.mask), self.classes, pair.mask, rest)
            return [None if p is None else self.values.indices(p, pair.mask) for p in pages]
        planes = [
            None if file is None else self.values.indices(read_mask(file, pair.page), file)
            for file in pair.masks
        ]
        sizes = {plane.shape for plane in planes if plane is not None}
        if len(sizes) > 1:
            raise DataError(
                f"{pair.mask}: the classes' masks have sizes {sorted(sizes)}; they must agree"
            )
        nothing = np.zeros(sizes.pop(), np.uint8)
        return [
            nothing if plane is None and has else plane
            for plane, has in zip(planes, self.has_files.tolist(), strict=True)
        ]

    def stamp(self, name: str) -> str:
        """Changes when what ``read`` gives of that name may have changed."""
        pair = self.files[name]
        files = [state(file) for file in (pair.image, *pair.masks)]
        return "\n".join([*files, str(pair.page), self.reading])

    def presence(self, name: str) -> np.ndarray:
        """Whether each class occurs in the image of that name, (C,) bool."""
        return class_pixels(self.mask(self.files[name]), len(self.classes)) > 0

    def listed(self, lines: dict[str, list[str]]) -> Splits:
        """The splits that lists give, of names with or without the file's suffix; a stack is its pages."""
        names, stacks = list(self.files), self.pages == "slices"
        meant: dict[str, list[str]] = {}
        for name, image in zip(names, self.files.images.tolist(), strict=True):
            file = Path(image.decode())
            for line in {name, name + file.suffix, file.name, file.stem if stacks else name}:
                meant.setdefault(line, []).append(name)
        clear = {line: of for line, of in meant.items() if stacks or len(of) == 1}
        each = {s: [n for line in of for n in clear.get(line, [line])] for s, of in lines.items()}
        return listed_split(each, {name: name for name in names})


def tabled_split(in_split: dict[str, str], table: Path) -> Splits:
    """The splits that a table's column gives.

    Raises:
        DataError: when a line has none, or train or val have no line.
    """
    splits: Splits = {split: [n for n, s in in_split.items() if s == split] for split in SPLITS}
    strange = [(name, split) for name, split in in_split.items() if split not in SPLITS]
    if strange:
        name, split = strange[0]
        raise DataError(f"{table}: {name} has split {split!r}; train, val or test is needed")
    for split in ("train", "val"):
        if not splits[split]:
            raise DataError(f"{table}: no line has split {split}; train and val are needed")
    return {split: names for split, names in splits.items() if names}


def existing_root(root: str | None, images: str, masks: str) -> Path:
    layout = f"it must hold {images}/ and {masks}/, or train/ and val/ that hold them"
    if root is None:
        raise DataError(f"data.root is not set: give the folder of the data; {layout}")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; {layout}")
    if not (folder / images).exists() and not (folder / "train").is_dir():
        raise DataError(f"data.root={root}: neither {images}/ nor train/ in it; {layout}")
    return folder


def state(file: Path | None) -> str:
    """Changes when a file does."""
    if file is None:
        return ""
    facts = file.stat()
    return f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}"


def place(file: Path, page: int | None) -> str:
    """How messages name a file, or one page of it."""
    return str(file) if page is None else f"{file}, page {page}"


def read_mask(file: Path, page: int | None = None, colours: bool = False) -> np.ndarray:
    pages = read_pages(file, page, colours)
    if len(pages) != 1:
        raise DataError(
            f"{file}: {len(pages)} pages where one mask is expected; split the stack, or take each page as a "
            "class (data.layers=pages) or as the mask of an image's page (data.pages=slices)"
        )
    return pages[0]


def given_colors(
    colors: list[Colour] | None,
    classes: list[str],
    palette: dict[str, Colour | list[Colour]] | None,
    spare: bool,
) -> list[tuple[int, int, int]]:
    """One colour a class; the readable palette's first one can be spared for none of them."""
    if colors is None and palette is not None:
        several = [palette[name] for name in classes]
        colors = [c[0] if c and isinstance(c[0], list) else c for c in several]  # ty: ignore
    if colors is None:
        return default_colors(len(classes) + spare)[spare:]
    good = all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in colors)
    if len(colors) != len(classes) or not good:
        raise DataError(
            f"data.colors={colors}: give one [red,green,blue] in 0..255 for each of {len(classes)} classes"
        )
    return [(c[0], c[1], c[2]) for c in colors]
