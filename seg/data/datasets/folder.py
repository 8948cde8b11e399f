"""Data set of image and mask files: folders paired by name, or a table of pairs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from seg.data.datasets.base import (
    BorderOption,
    PackedRecords,
    RowReader,
    Task,
    check_choice,
    check_task,
    choose_border,
    class_colors,
    ignore_nodata,
    learned_classes,
)
from seg.data.datasets.layouts import find_parts, suggest_layout
from seg.data.datasets.nnunet import DATASET_FILE, read_dataset_json
from seg.data.datasets.pairing import (
    LIST_LINE_HINT,
    FoundFiles,
    Pair,
    PairingOptions,
    find_files,
    find_layer_folders,
    pair_by_table,
    pair_files,
    report_unpaired,
    split_pages,
)
from seg.data.datasets.tools.detection import detect_tool
from seg.data.image_files import describe_folder, image_stem, is_pattern, is_single_image
from seg.data.image_io import read_axes, read_image, read_orientation, read_pages
from seg.data.masks import (
    ColourList,
    MaskValues,
    count_class_pixels,
    distinct_values,
    merge_object_masks,
    merge_planes,
    numbers_objects,
    read_object_numbers,
    shorten_list,
    size_mismatch_error,
    split_planes,
)
from seg.data.nodata import NodataOption, nodata_values, read_nodata_tag
from seg.data.ome_zarr import ZARR_SUFFIXES, is_store, store_state
from seg.data.partition import (
    SPLITS,
    Splits,
    find_groups,
    reject_options,
    split_of_folders,
    splits_by_folder,
)
from seg.data.raster import ImageReader, MaskReader
from seg.data.sections import (
    NeighboursOption,
    Place,
    Sections,
    check_single_axis,
    place_by_name,
)
from seg.data.similar_names import similar_key
from seg.data.spacing import Spacing, pixel_spacing
from seg.data.splits import SplitOptions, read_lists, split_by_lists
from seg.data.tiff import warn_once
from seg.data.tiff_layout import TIFF_SUFFIXES, PagesOption
from seg.errors import DataError
from seg.labels import IGNORE
from seg.objects import IGNORED_OBJECT

LayersOption = Literal["pages", "folders", "objects"]
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
JUDGED_FILES = 1000  # masks of a data set, evenly spaced, that tell numbers of objects from classes


class Folder:
    """Images and masks paired by name or by a table; split by folders, by lists or at random.

    Args:
        root: folder that holds ``images/`` and ``masks/``, with or without ``train/``, ``val/`` and ``test/`` in
            each; or ``train/``, ``val/`` and ``test/`` that hold both.
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 a class, for pictures; None: the first of each class in
            ``palette``, or readable defaults.
        images: name of the folder of images, or of one file; or a pattern with ``*``, ``?``, ``[...]`` or ``**``,
            from ``root`` on. What the wildcards match is the image's name, and pairs image and mask. Images whose
            names have a folder called train, valid, test or the like are split by these.
        masks: the same of the masks. A file that both patterns match is a mask.
        channel_files: what the last wildcard of ``images`` matches tells the channels of an image, each in a file.
        table: CSV file of pairs, instead of folders; see ``seg.data.datasets.pairing.pair_by_table``.
        pair_by: regular expression; images and masks with the same match are a pair. None: those with the same
            name but for the suffix.
        similar_names: pair names that differ only in case, white space or the encoding of accents, too; also those in
            a table and in lists.
        pages: use of files with several pages: ``slices``: each page is an image with the same page of its
            mask; ``channels``: the pages are the channels of one image; None: as the axes of the file say, and an
            error for a TIFF without axes.
        mask_layers: layout of masks that have layers: one a class, as ``pages`` of a file or in ``folders`` named as
            the classes with a file each; or ``objects``, a folder for each image with a file for each object. A layer
            is 0 where the class is absent, 1 or 255 where it is present (or as
            ``values`` says). One class may have no layer (of pages the first): it is where no other class is.
            ``objects``: a file for each object of class 1 of two, in a folder of the image's name or by a pattern
            whose last wildcard tells the objects.
        values: mask value on disk -> class index; None: the values are the indices.
        palette: class name -> its colour in the masks, (red, green, blue) in 0..255, or several colours.
        ignore: mask values on disk, or colours with ``palette``, that are excluded from training and scores.
        mask_threshold: value on disk above which a pixel is the second of two classes, or in a layer present: for
            masks saved as JPEG or resized smoothly. None: every value must be declared.
        nodata: value of the images that means no data, or ``nan``; in addition to that of each file's tag
            GDAL_NODATA. ``none``: the tag is not honoured. None: that of the tag.
        spacing: height and width of a pixel in um, for distances; None: from the resolution tags of the TIFFs, if
            all agree.
        val: share of the images in 0..1 for validation, unless folders give it; None: 0.2, or the fold.
        test: share of the images in 0..1 for the test, unless folders give it; the same for each fold.
        fold: index of the fold that validates, 0 .. folds - 1; None: the share ``val``.
        folds: number of folds.
        contiguous: split into contiguous blocks in the order of names instead of at random.
        group_by: regular expression that gives an image's group from its name; a group is in one split.
        stratify: give each split its share of the images in which a class occurs.
        lists: folder of train.txt, val.txt and optionally test.txt, or a file for each; one name a line.
        only_listed: leave out images that no list names.
        split_seed: seed of the random split.
        task: ``classes``; ``instances``: two classes, and the second consists of objects. Masks with more values than
            0 and 1, or 0 and 255, number them; in others, and with ``values``, ``palette`` or layers of classes, they are
            the connected regions. ``overlapping``: a pixel may have several classes; masks have layers, pages by default.
        border: px that each of two touching objects gives up, so that the network learns a gap of twice that; None:
            1 where masks number objects; 0: none.
        border_class: whether that gap is a third class, ``border``, instead of background.
        neighbours: sections on each side that the network sees as further channels; see ``seg.data.sections``. A section
            is a page of a stack, or a file whose last number in its name is the section, in its folder and group.

    Raises:
        DataError: if a folder or file is missing, or an option is wrong.
    """

    def __init__(
        self,
        root: str | None,
        classes: list[str] | None,
        colors: list[ColourList] | None = None,
        images: str = "images",
        masks: str = "masks",
        channel_files: bool = False,
        table: str | None = None,
        pair_by: str | None = None,
        similar_names: bool = False,
        pages: PagesOption | None = None,
        mask_layers: LayersOption | None = None,
        values: dict[int, int] | None = None,
        palette: dict[str, ColourList | list[ColourList]] | None = None,
        ignore: list[int] | list[ColourList] | None = None,
        mask_threshold: Annotated[float, Field(ge=0)] | None = None,
        nodata: NodataOption | None = None,
        spacing: Spacing | None = None,
        val: Annotated[float, Field(gt=0, lt=1)] | None = None,
        test: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        fold: Annotated[int, Field(ge=0)] | None = None,
        folds: Annotated[int, Field(ge=2)] = 5,
        contiguous: bool = False,
        group_by: str | None = None,
        stratify: bool = False,
        lists: str | dict[str, str] | None = None,
        only_listed: bool = False,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        task: Task = "classes",
        border: BorderOption | None = None,
        border_class: bool = False,
        neighbours: NeighboursOption = 0,
    ) -> None:
        # Options of the layout.
        self.similar, self.nodata, self.spacing = similar_names, nodata, spacing
        check_choice("pages", pages, PagesOption)
        check_choice("mask_layers", mask_layers, LayersOption)
        if task == "overlapping" and mask_layers is None:
            mask_layers = "pages"
        self.pages, self.mask_layers = pages, mask_layers
        if mask_layers:
            reject_options(
                {"palette": palette}, f"data.mask_layers={mask_layers}", "a layer shows one class"
            )
        if mask_layers == "pages":
            slices = "slices" if pages == "slices" else None
            reject_options(
                {"pages": slices}, "data.mask_layers=pages", "a mask's pages are its classes"
            )
        if mask_layers == "objects" or channel_files:
            beside = "data.mask_layers=objects" if mask_layers else "data.channel_files=true"
            reject_options(
                {"table": table, "pages": pages},
                beside,
                "its files are found by data.images and data.masks",
            )
        only: set[str] | None = None
        if only_listed:
            if lists is None:
                raise DataError("data.only_listed=true: there are no data.lists; give them")
            only = {line for lines in read_lists(lists).values() for line in lines}
        pairing = PairingOptions(
            pair_by, mask_layers == "objects", channel_files, only, similar_names
        )
        # Pairs of all images.
        in_split, in_group = None, None
        if table is None:
            self.root = check_root(root, images, masks)
            if classes is None and (self.root / DATASET_FILE).is_file():
                classes, values, ignore = read_dataset_json(
                    self.root / DATASET_FILE, values, ignore
                )
            pairs = self.find_pairs(images, masks, pairing, classes or [])
        else:
            reject_options({"pair_by": pair_by}, "data.table", "the table pairs")
            self.root = Path(table).parent
            pairs, in_split, in_group = pair_by_table(Path(table), classes or [], similar_names)
            if only is not None:
                first = next(iter(pairs))
                pairs = {n: p for n, p in pairs.items() if only & {n, p.image.name}}
                if not pairs:
                    raise DataError(
                        f"{table}: no image is in data.lists; {LIST_LINE_HINT.format(first)}"
                    )
        if pages == "slices":
            reject_options(
                {"splits": in_split}, "data.pages=slices", "give the stacks' splits by folders"
            )
        pages_of = {
            name: split_pages(name, pair._replace(pages=pages)) for name, pair in pairs.items()
        }
        pairs = {name: pair for single in pages_of.values() for name, pair in single.items()}
        in_split, in_group = (
            given and {page: given[name] for name, single in pages_of.items() for page in single}
            for given in (in_split, in_group)
        )
        self.has_stacks = any(pair.page is not None for pair in pairs.values())
        self.files = PackedRecords(pairs)
        layers = [
            [pair.mask] if mask_layers == "objects" else pair.masks for pair in pairs.values()
        ]
        self.has_files = [
            any(files) for files in zip(*layers, strict=True)
        ]  # of any image, for each layer
        # Classes and the values of the masks.
        if classes is None:
            raise DataError(self.missing_classes_message())
        check_task(task, classes, may_overlap=True)
        self.classes, self.task = classes, task
        self.check_layers()
        separate = mask_layers == "objects"
        if task == "instances" and not mask_layers and values is None and palette is None:
            separate, values = self.judge_masks(ignore or [])
        self.border = choose_border(task, border, border_class, separate)
        self.ignored, self.classes = ignore or [], learned_classes(classes, self.border)
        if mask_layers:
            present = {0: 0, 1: 1, 255: 1} if values is None and mask_threshold is None else values
            self.values = MaskValues(
                ["absent", "present"], present, ignore, paintable=False, threshold=mask_threshold
            )
        else:
            self.values = MaskValues(classes, values, ignore, palette, threshold=mask_threshold)
        self.reading = repr(
            (
                pages,
                mask_layers,
                values,
                palette,
                ignore,
                mask_threshold,
                classes,
                task,
                nodata,
                self.has_files,
                *self.border,
            )
        )
        self.colors = class_colors(colors, self.classes, palette, spare=task == "overlapping")

        # Splits: by folders, by the table, or by the options.
        given, by = None, ("", "")
        if in_split is not None:
            given = split_by_table(in_split, Path(str(table)))
            by = "the table's column split", "it says which image is on which side"
        elif table is None and (given := self.splits_by_folders(lists is not None)):
            folders = " and ".join(
                dict.fromkeys(split_folder_of(n) for ns in given.values() for n in ns)
            )
            by = f"{folders} in data.root", "the folders say which image is on which side"
        division = SplitOptions(
            val, test, fold, folds, contiguous, group_by, stratify, lists, split_seed
        )
        names = list(self.files)
        self.splits = division.splits(
            names, self.class_presence, self.split_from_lists, given, by, in_group
        )
        # Sections of stacks, of whichever split
        if in_group is None and group_by is not None:
            in_group = find_groups(names, group_by)
        self.groups = in_group
        self.sections = (
            Sections(place_sections(self.files, in_group or {}, neighbours), neighbours)
            if neighbours
            else None
        )

    def find_pairs(
        self, images: str, masks: str, options: PairingOptions, classes: list[str]
    ) -> dict[str, Pair]:
        """Return name -> pair of all images; names begin with the folder of the split, if there are such."""
        pairs: dict[str, Pair] = {}
        issues: list[DataError] = []
        seen: dict[str, str] = {}  # kind of an issue -> names among which there was no partner
        for split, (image_part, mask_part) in find_parts(self.root, images, masks).items():
            prefix = f"{split}/" if split else ""
            places = (self.root / image_part, self.root / mask_part)
            unlabelled = split_of_folders(prefix) == "test" and not places[1].exists()
            try:
                found = find_files(self.root, image_part, options.channel_files)
                planes = [[]] if unlabelled else self.find_masks(mask_part, options, classes)
            except DataError as error:
                raise self.with_suggestion(error) from error
            if all(
                is_single_image(place) for place in places
            ):  # two files are a pair, whatever their names
                planes = [[(found[0][0], file) for _, file in plane] for plane in planes]
            for kind, files in (("no_image", found), ("no_mask", planes[0])):
                names = [file.name for _, file in files[:3]] + ["..."] * (len(files) > 3)
                seen.setdefault(kind, ", ".join(names))
            found_pairs, found_issues = pair_files(found, planes, options, places, prefix)
            pairs |= found_pairs
            issues += found_issues
        # Where most images have no mask, the layout is another one.
        if sum(issue.kind == "no_mask" for issue in issues) > len(pairs):
            words = suggest_layout(self.root)
            issues = [
                DataError(
                    file=issue.file,
                    found=f"{issue.found}, which has {seen[issue.kind]}"
                    if issue.kind in seen
                    else issue.found,
                    remedy=f"try: {words}" if words else issue.remedy,
                    kind=issue.kind,
                )
                for issue in issues
            ]
        report_unpaired(issues)
        return pairs

    def find_masks(
        self, part: str, options: PairingOptions, classes: list[str]
    ) -> list[FoundFiles]:
        """Return the files of the masks, of each layer that has a folder of its own."""
        if self.mask_layers != "folders":
            return [find_files(self.root, part, options.object_files)]
        folder = self.root / part
        if not classes:
            present = sorted(f.name for f in folder.glob("*/"))
            raise DataError(
                f"data.classes is not set: name the classes; {folder} holds {shorten_list(present)}"
            )
        layers = find_layer_folders(folder, classes)
        return [find_files(layer, "") if layer.is_dir() else [] for layer in layers]

    def with_suggestion(self, error: DataError) -> DataError:
        """Return an error with the options that would pair the files, if there are such."""
        words = suggest_layout(self.root)
        return DataError(f"{error}; try: {words}") if words else error

    def splits_by_folders(self, listed: bool) -> Splits | None:
        """Return the splits of images in folders called like splits; None if there are no such folders.

        Raises:
            DataError: if some images are in none of them, and no lists say their split.
        """
        names = list(self.files)
        inside = next((name for name in names if split_of_folders(name)), None)
        if inside is None or (given := splits_by_folder(names)):
            return None if inside is None else given
        if listed:
            return None
        outside = next(name for name in names if not split_of_folders(name))
        raise DataError(
            f"{self.root}: {inside} is in a folder that is called like a split, and {outside} is not; move it into one, "
            "leave it out by data.images, or give data.lists"
        )

    def check_layers(self) -> None:
        """Raise DataError unless masks have one layer a class exactly where the options say so."""
        # Files of objects have one class beside the rest.
        if self.mask_layers == "objects" and (len(self.classes) != 2 or self.task == "overlapping"):
            raise DataError(
                f"data.mask_layers=objects: needs two classes that do not overlap, the rest and the objects, not "
                f"{shorten_list(self.classes)}"
            )
        # Columns of the table against the option.
        planes = len(self.has_files)
        # One plane is a mask of class indices, which needs no layers
        if planes == 1 and self.mask_layers != "folders":
            return
        if self.mask_layers != "folders":
            raise DataError(
                "the table has a column for each class, which needs data.mask_layers=folders"
            )
        if planes == 1 != len(self.classes):
            raise DataError(
                "data.mask_layers=folders: the table has one column, mask; it needs one for each class, with its name"
            )
        # At most one class may lack its files: it is the rest.
        without = [c for c, has in zip(self.classes, self.has_files, strict=True) if not has]
        if without and (self.task == "overlapping" or len(without) > 1):
            raise DataError(
                f"data.mask_layers=folders: no file for {shorten_list(without)}; add them"
            )

    def missing_classes_message(self) -> str:
        """Return the message for missing classes, with the values of the first 20 masks."""
        first = [self.files[name] for name in list(self.files)[:20]]
        pages = [
            page
            for pair in first
            for page in read_pages(pair.mask, pair.page, pages=pair.mask_pages)
        ]
        values = sorted({value for page in pages for value in np.unique(page * 1).tolist()})
        return (
            "data.classes is not set: name the classes in the order of the mask's values, "
            f"data.classes=[background,cell]; the first masks of {self.root} hold {values[:20]}"
        )

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return image (H, W, C), and mask (H, W) uint8 of class indices or (H, W, K) of 0 and 1; 255 = ignore."""
        image, labels = self.read_stored(name)
        return image, self.border.learned_mask(labels) if self.border.separate else labels

    def read_objects(self, name: str) -> np.ndarray:
        """Return the labels (H, W) int32 of the objects that masks number; 0 outside, -1 where ignored."""
        return self.read_stored(name)[1]

    def read_stored(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return image (H, W, C), and the mask as in ``read``; where masks number objects, their labels (H, W)."""
        pair = self.files[name]
        nodata = self.nodata_values(name)
        image = read_image(pair.image, pair.page, pair.pages, nodata)
        if pair.channels:
            further = [read_image(file, nodata=nodata) for file in pair.channels]
            image = join_channel_files([image, *further], pair)
        mask = self.decode_stored(pair)
        if mask.shape[:2] != image.shape[:2]:
            remedy = turned_remedy(pair)
            raise size_mismatch_error(pair.mask, mask.shape, pair.image, image.shape, remedy)
        void = IGNORED_OBJECT if self.border.separate else IGNORE
        return ignore_nodata(image, mask, nodata, void)

    def open_rows(self, name: str) -> RowReader | None:
        """Return a reader of any rows of an image and its mask; None unless both are in TIFFs or OME-Zarr."""
        pair = self.files[name]
        suffixes = {file.suffix.lower() for file in (pair.image, pair.mask)}
        kept = self.mask_layers or self.border.separate or pair.channels
        if kept or not suffixes <= TIFF_SUFFIXES | ZARR_SUFFIXES:
            return None
        rows = FolderRows(self, name)
        if rows.is_valid:
            return rows
        rows.close()
        return None  # ``read`` names what is wrong

    def nodata_values(self, name: str) -> tuple[float, ...]:
        """Return the values that mean no data in an image: the option's first, and its tag's."""
        return nodata_values(self.nodata, self.files[name].image)

    def pixel_spacing(self) -> tuple[float, float] | None:
        """Return the height and width of a pixel in um; None if it is not known."""
        return pixel_spacing(self.spacing, (self.files[name].image for name in self.files))

    def decode_stored(self, pair: Pair) -> np.ndarray:
        """Return the mask of a pair, (H, W) or (H, W, K), or the labels (H, W) of its objects."""
        if self.mask_layers == "objects":
            planes = [plane for plane in self.decode_files(pair) if plane is not None]
            separate = self.border.separate
            return (
                merge_object_masks(planes, pair.mask.parent) if separate else merge_objects(planes)
            )
        if self.border.separate:
            mask = read_mask_file(pair.mask, pair.page, pages=pair.mask_pages)
            return read_object_numbers(mask, self.ignored, page_name(pair.mask, pair.page))
        if self.mask_layers is None:
            colours = self.values.palette is not None
            return self.values.indices(
                read_mask_file(pair.mask, pair.page, colours, pair.mask_pages),
                page_name(pair.mask, pair.page),
            )
        planes = self.decode_layers(pair)
        if self.task == "overlapping":
            return np.stack([plane for plane in planes if plane is not None], axis=-1)
        return merge_planes(planes, self.classes, pair.mask)

    def decode_layers(self, pair: Pair) -> list[np.ndarray | None]:
        """Return the layer of each class, (H, W) of 0, 1 and 255; None: the class is where no other is."""
        # A page for each class.
        if self.mask_layers == "pages":
            rest = self.task != "overlapping"
            stored = read_pages(pair.mask, pair.page, alpha=True)
            if len(stored) == 1 and stored[0].shape[2:] > (len(self.classes),):  # alpha is no class
                stored = read_pages(pair.mask, pair.page)
            pages = split_planes(stored, self.classes, pair.mask, rest)
            return [None if p is None else self.values.indices(p, pair.mask) for p in pages]
        # A file for each class; one without a file in this image is absent from it.
        planes = self.decode_files(pair)
        absent = np.zeros_like(next(plane for plane in planes if plane is not None))
        return [
            absent if plane is None and has_files else plane
            for plane, has_files in zip(planes, self.has_files, strict=True)
        ]

    def decode_files(self, pair: Pair) -> list[np.ndarray | None]:
        """Return the layer of each of the mask's files, (H, W) of 0, 1 and 255; None: no file.

        Raises:
            DataError: if they have different sizes.
        """
        planes = [
            None
            if file is None
            else self.values.indices(read_mask_file(file, pair.page, pages=pair.mask_pages), file)
            for file in pair.masks
        ]
        sizes = {plane.shape for plane in planes if plane is not None}
        if len(sizes) > 1:
            raise DataError(
                f"{pair.mask}: the masks of {pair.image.name} have sizes {sorted(sizes)}; they must be equal"
            )
        return planes

    def judge_masks(self, ignore: list) -> tuple[bool, dict[int, int] | None]:
        """Return whether masks number objects; if not, the values of the two classes, None: 0 and 1."""
        names = list(self.files)
        pairs = [self.files[name] for name in names[:: -(-len(names) // JUDGED_FILES)]]
        seen: set[int] = set()

        def lossless_masks() -> Iterator[np.ndarray]:
            for pair in pairs:
                if pair.mask.suffix.lower() in LOSSY_SUFFIXES:
                    continue
                try:
                    mask = read_mask_file(pair.mask, pair.page)
                except DataError:  # raised when the image is read
                    continue
                seen.update(distinct_values(mask))
                yield mask

        if numbers_objects(lossless_masks(), ignore):
            return True, None
        white = seen - set(ignore) <= {0, 255} and 255 in seen - set(ignore)
        return False, {0: 0, 255: 1} if white else None

    def stamp(self, name: str) -> str:
        """Return a text that changes when the result of ``read`` may have changed."""
        pair = self.files[name]
        files = [file_state(file) for file in (pair.image, *pair.channels, *pair.masks)]
        return "\n".join([*files, str(pair.page), self.reading])

    def class_presence(self, name: str) -> np.ndarray:
        """Return (K,) bool: True for each class that occurs in the image."""
        stored = self.decode_stored(self.files[name])
        mask = self.border.learned_mask(stored) if self.border.separate else stored
        return count_class_pixels(mask, len(self.classes)) > 0

    def split_from_lists(self, lines: dict[str, list[str]]) -> Splits:
        """Return the splits given by lists of names, with or without suffix; a stack stands for its pages."""
        stacks = self.has_stacks
        # All images that a line may mean; ``a.png`` may stand for two images of a table.
        meanings: dict[str, list[str]] = {}
        for name, pair in self.files.items():
            file = pair.image
            for line in {name, name + file.suffix, file.name, image_stem(file) if stacks else name}:
                line = similar_key(line) if self.similar else line
                meanings.setdefault(line, []).append(name)
        clear = {line: names for line, names in meanings.items() if stacks or len(names) == 1}
        images = {
            split: [
                name
                for line in listed
                for name in clear.get(similar_key(line) if self.similar else line, [line])
            ]
            for split, listed in lines.items()
        }
        return split_by_lists(images, {name: name for name in self.files})


def place_sections(
    files: Mapping[str, Pair], groups: dict[str, str], neighbours: int
) -> dict[str, Place | None]:
    """Return the place of each image in its stack: page of a file of several, or by its name in its group."""
    pages = Counter(pair.image for pair in files.values())
    for pair in {pair.image: pair for pair in files.values() if pair.page is not None}.values():
        check_single_axis(pair.image, read_axes(pair.image, pair.pages)[1], neighbours)
    places: dict[str, Place | None] = {}
    for name, pair in files.items():
        if pages[pair.image] > 1 and pair.page is not None:
            places[name] = Place(str(pair.image), pair.page)
            continue
        place = place_by_name(name)
        places[name] = place and Place(f"{groups.get(name, '')}:{place.stack}", place.section)
    return places


def join_channel_files(images: list[np.ndarray], pair: Pair) -> np.ndarray:
    """Return the images of a pair's files as the channels of one.

    Raises:
        DataError: if they differ in size or type.
    """
    kinds = {(image.shape[:2], image.dtype.name) for image in images}
    if len(kinds) > 1:
        found = ", ".join(f"{h}x{w} px of {dtype}" for (h, w), dtype in sorted(kinds))
        raise DataError(
            f"{pair.image}: the files of its channels are {found}; they must have one size and type"
        )
    return np.concatenate(images, axis=-1)


def merge_objects(planes: list[np.ndarray]) -> np.ndarray:
    """Return the union (H, W) of the objects' planes of 0, 1 and 255: 1 where any object is, else 255 where any is."""
    mask = np.where(np.any([plane == IGNORE for plane in planes], axis=0), IGNORE, 0)
    mask[np.any([plane == 1 for plane in planes], axis=0)] = 1
    return mask.astype(np.uint8)


def split_by_table(in_split: dict[str, str], table: Path) -> Splits:
    """Return the splits of a table's column ``split``, name -> split.

    Raises:
        DataError: if a line has another word.
    """
    splits: Splits = {split: [n for n, s in in_split.items() if s == split] for split in SPLITS}
    unknown = [(name, split) for name, split in in_split.items() if split not in SPLITS]
    if unknown:
        name, split = unknown[0]
        raise DataError(f"{table}: {name} has split {split!r}; train, val or test is needed")
    return {split: names for split, names in splits.items() if names}


def check_root(root: str | None, images: str, masks: str) -> Path:
    """Return the folder of the data.

    Raises:
        DataError: if it is not given, does not exist or holds no such images; the message has what it holds and the
            options that would pair it.
    """
    layout = f"it must hold {images} and {masks}, or train/, val/ or test/ that do"
    if root is None:
        raise DataError(f"data.root is not set: give the folder of the data; {layout}")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data.root={root}: no such folder; {layout}")
    parts = find_parts(folder, images, masks)
    found = any(is_pattern(folder, mask) or (folder / mask).exists() for _, mask in parts.values())
    if not found and (tool := detect_tool(folder)):
        raise DataError(
            f"data.root={root}: it holds no {masks}/, but {tool.title} annotations ({tool.file.name}): {tool.command}"
        )
    if not parts:
        words = suggest_layout(folder)
        remedy = f"try: {words}" if words else layout
        raise DataError(
            f"data.root={root}: no folder {images} in it; it {describe_folder(folder)}; {remedy}"
        )
    return folder


def split_folder_of(name: str) -> str:
    """Return the folder in a name that is called like a split, with a slash."""
    return next(f"{part}/" for part in name.split("/") if split_of_folders(f"{part}/"))


def file_state(file: Path | None) -> str:
    """Return a text that changes when a file does: its path, size and time; see ``store_state`` for an OME-Zarr."""
    if file is None:
        return ""
    if is_store(file):
        size, time = store_state(file)
        return f"{file} {size} {time}"
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def read_orientations(pair: Pair) -> tuple[int, int]:
    """Return the orientation tags of an image and its mask, 1 (upright) to 8."""
    return (
        read_orientation(pair.image, pair.page, pair.pages),
        read_orientation(pair.mask, pair.page, pair.mask_pages),
    )


def turned_remedy(pair: Pair) -> str:
    """Return the remedy for a mask of another size, if image and mask have different orientation tags; else ""."""
    image, mask = read_orientations(pair)
    if image == mask:
        return ""
    return (
        f"by their EXIF or TIFF tag Orientation ({image} of the image, {mask} of the mask; 1 without a tag) both are "
        "read as one sees them: turn the mask as its image is, or if it fits the stored pixels, give both the same tag"
    )


def page_name(file: Path, page: int | None) -> str:
    """Return the name of a file, or of one page of it, for messages."""
    return str(file) if page is None else f"{file}, page {page}"


class FolderRows:
    """RowReader of an image and its mask in TIFFs or OME-Zarr, of which only the touched rows are decoded."""

    def __init__(self, source: Folder, name: str) -> None:
        pair = source.files[name]
        self.nodata, self.values = source.nodata_values(name), source.values
        self.name = page_name(pair.mask, pair.page)
        self.image = ImageReader(pair.image, pair.page or 0, pair.pages, nodata=self.nodata)
        self.mask = MaskReader(pair.mask, pair.page or 0, source.values.palette is not None)
        self.shape, self.dtype = self.image.shape[:2], self.image.dtype
        alone = pair.page is not None or self.image.pages == self.mask.pages == 1
        self.is_valid = alone and self.mask.shape[:2] == self.shape

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        return self.image.rows(start, stop)

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        mask = self.values.indices(self.mask.rows(start, stop), self.name)
        if self.nodata:
            mask = ignore_nodata(self.image_rows(start, stop), mask, self.nodata)[1]
        return mask

    def close(self) -> None:
        """Close both files."""
        self.image.close()
        self.mask.close()


def read_mask_file(
    file: Path,
    page: int | None = None,
    colours: bool = False,
    pages: PagesOption | None = None,
) -> np.ndarray:
    """Return the one page of a file, or the page of that index, as stored.

    Raises:
        DataError: if the file cannot be read, or has several pages and no index is given.
    """
    # The tag GDAL_NODATA may mean a valid class in a mask, so it is reported and not applied
    for value in read_nodata_tag(file):
        warn_once(
            file,
            "GDAL_NODATA",
            f"the tag GDAL_NODATA of a mask is not applied; if {value:g} is void, data.ignore=[{value:g}]",
        )
    # Decode; a mask has a single page
    found = read_pages(file, page, colours, pages=pages)
    if len(found) != 1:
        raise DataError(
            f"{file}: {len(found)} pages, but one mask is needed; split the stack, or take each page as a "
            "class (data.mask_layers=pages) or as the mask of an image's page (data.pages=slices)"
        )
    return found[0]
