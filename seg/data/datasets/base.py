"""Interface of a data set: classes, named splits, and how one image and its mask are read."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from pydantic import Field

from seg.data.masks import ColourList, shorten_list
from seg.data.nodata import nodata_pixels
from seg.display.colors import default_colors
from seg.errors import DataError
from seg.labels import IGNORE
from seg.objects import IGNORED_OBJECT, find_borders, label_components

MAX_BORDER_PX = 64
BorderOption = Annotated[int, Field(ge=0, le=MAX_BORDER_PX)]
BORDER_CLASS = "border"  # name of the class of data.border_class
Task = Literal["classes", "instances", "overlapping"]


class DataSource(Protocol):
    """Interface of every data set, whatever its files are.

    Attributes:
        classes: names in the order of the mask's values.
        colors: one (red, green, blue) in 0..255 per class, for pictures.
        splits: image names of ``train``, ``val`` and, if there is one, ``test``.
        task: ``classes``: one class a pixel; ``instances``: class 1 consists of objects, which ``seg.evaluate``
            counts; ``overlapping``: each pixel has any of the classes.

    A source whose files tell objects apart also has ``read_objects(name)``, which returns their labels (H, W) int32,
    0 outside and -1 where ignored, and ``border``, an ``ObjectBorder``; without it each connected region of class 1
    is an object.

    A source whose images come in groups has ``groups``, name -> group, or None.

    A source of stacks has ``sections``, the ``seg.data.sections.Sections`` whose neighbours the network sees, or None.
    Names that they give may be of any split.
    """

    classes: list[str]
    colors: list[tuple[int, int, int]]
    splits: dict[str, list[str]]
    task: Task

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the image and the mask of a name.

        Returns:
            Image (H, W, C) uint8, uint16 or float32, and mask (H, W) uint8 of class indices; with
            overlapping classes mask (H, W, K) of 0 and 1, one plane a class. 255 is ignored.

        Raises:
            DataError: if a file cannot be used; the message has the file, the finding and the remedy.
        """
        ...


class RowReader(Protocol):
    """Opened image and mask, of which any rows are read on their own.

    Attributes:
        shape: (H, W) of the image, px.
        dtype: of the image.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the image, as ``DataSource.read`` returns the image."""
        ...

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the mask, as ``DataSource.read`` returns the mask."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class DecodedRows:
    """RowReader of an image and its mask in memory, or mapped from disk."""

    def __init__(self, image: np.ndarray, mask: np.ndarray) -> None:
        self.image, self.mask = image, mask
        self.shape, self.dtype = (image.shape[0], image.shape[1]), image.dtype

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        return self.image[start:stop]

    def mask_rows(self, start: int, stop: int) -> np.ndarray:
        return self.mask[start:stop]

    def close(self) -> None:
        """Do nothing: no file is open."""


class ObjectBorder(NamedTuple):
    """Mask that a network learns of objects that are numbered.

    Attributes:
        width: px that each of two touching objects gives up; 0: none, so that they merge.
        own_class: True: these pixels are class 2; False: background.
        separate: True if the data numbers its objects; False: they are the connected regions of class 1.
    """

    width: int = 0
    own_class: bool = False
    separate: bool = False

    def learned_mask(self, labels: np.ndarray) -> np.ndarray:
        """Return the mask (H, W) uint8 of objects (H, W)."""
        mask = (labels > 0).astype(np.uint8)
        mask[find_borders(labels, self.width)] = 2 if self.own_class else 0
        mask[labels == IGNORED_OBJECT] = IGNORE
        return mask

    def describe(self) -> str:
        """Return what the objects are, in one line."""
        if not self.separate:
            return "connected regions of class 1; masks do not number them"
        kind = f"class {BORDER_CLASS}" if self.own_class else "background"
        gap = f"a gap of {2 * self.width} px between touching ones is {kind}"
        return f"as numbered in the masks; {gap if self.width else 'touching ones merge (data.border=0)'}"


def object_border(source: DataSource) -> ObjectBorder:
    """Return the border of a source's objects; that of connected regions if it has none."""
    return getattr(source, "border", ObjectBorder())


def image_groups(source: DataSource) -> dict[str, str] | None:
    """Return name -> group of a source's images; None if they come in no groups."""
    return getattr(source, "groups", None)


def read_objects(source: DataSource, name: str) -> np.ndarray:
    """Return the labels (H, W) int32 of an image's objects; 0 outside, -1 where ignored."""
    if object_border(source).separate:
        return source.read_objects(name)  # ty: ignore[missing-attribute]
    _, mask = source.read(name)
    return np.where(mask == IGNORE, IGNORED_OBJECT, label_components(mask == 1))


def choose_border(
    task: Task, border: int | None, border_class: bool, separate: bool = True
) -> ObjectBorder:
    """Return the border of a data set's objects by the options ``data.border`` and ``data.border_class``.

    Args:
        task: option ``data.task``.
        border: px; None: 1 if the objects are numbered.
        border_class: whether the border is a class of its own.
        separate: whether the data numbers its objects.

    Raises:
        DataError: if an option can do nothing.
    """
    given = "data.border_class=true" if border_class else f"data.border={border}"
    if border or border_class:
        if task != "instances":
            raise DataError(f"{given}: data.task={task} has no objects; take data.task=instances")
        if not separate:
            raise DataError(
                f"{given}: the masks hold two values and do not number their objects, so that no two touch; leave it out"
            )
    if border_class and border == 0:
        raise DataError(
            "data.border_class=true: data.border=0 leaves it no pixel; give data.border=1"
        )
    if task != "instances" or not separate:
        return ObjectBorder()
    return ObjectBorder(1 if border is None else border, border_class, True)


def learned_classes(classes: list[str], border: ObjectBorder) -> list[str]:
    """Return the classes of the mask that the network learns: the given ones and, if it is one, the border.

    Raises:
        DataError: if a class has the border's name.
    """
    if not border.own_class:
        return classes
    if BORDER_CLASS in classes:
        raise DataError(
            f"data.classes={classes}: {BORDER_CLASS} is the class of data.border_class=true; rename it"
        )
    return [*classes, BORDER_CLASS]


def ignore_nodata(
    image: np.ndarray, mask: np.ndarray, nodata: Sequence[float], void: int = IGNORE
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its mask, ``void`` where all channels of the image have no data."""
    lost = nodata_pixels(image, nodata)
    if lost is not None:
        mask = mask.copy()
        mask[lost] = void
    return image, mask


class PackedRecords(Mapping[str, Any]):
    """Read-only records by name, stored in one block of memory that loader processes share.

    Reading a Python object writes its reference count, so that the memory pages of a hundred thousand objects
    would be copied into each loader process.

    Args:
        records: name -> any picklable value, in the order of the data set.

    Raises:
        DataError: if a name is not valid UTF-8.
    """

    def __init__(self, records: Mapping[str, Any]) -> None:
        for name in records:
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{name!r}: a name that is not UTF-8; rename the file") from error
        self.rows = {name: row for row, name in enumerate(records)}
        pieces = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in records.values()]
        self.ends = np.cumsum([0, *map(len, pieces)])
        self.bytes = np.frombuffer(b"".join(pieces), np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Any:
        return pickle.loads(self.packed_bytes(name))

    def packed_bytes(self, name: str) -> bytes:
        """Return the bytes of a record: equal for equal records."""
        row = self.rows[name]
        return self.bytes[self.ends[row] : self.ends[row + 1]].tobytes()


def check_choice(option: str, given: str | None, choices: object) -> None:
    """Raise DataError unless an option of the data is None or one of the values of a Literal."""
    if given is not None and given not in get_args(choices):
        raise DataError(
            f"data.{option}={given}: null or one of {', '.join(get_args(choices))} is needed"
        )


def check_task(task: Task, classes: list[str], may_overlap: bool = False) -> None:
    """Raise DataError if a class or a task is invalid, or does not suit the other or the data."""
    check_class_names(classes)
    if task not in get_args(Task):
        raise DataError(f"data.task={task}: one of {', '.join(get_args(Task))} is needed")
    if task == "instances" and len(classes) != 2:
        raise DataError(
            f"data.task=instances needs two classes, the background and the objects, but there are "
            f"{len(classes)}: {', '.join(classes)}; map the others with data.values"
        )
    if task == "overlapping" and not may_overlap:
        raise DataError("data.task=overlapping: this data has one class a pixel; use data=folder")


def check_class_names(classes: list[str]) -> None:
    """Raise DataError unless the names of the classes are distinct texts."""
    # YAML reads no, yes and 1 as booleans and numbers, which are not names
    other = [name for name in classes if not isinstance(name, str)]
    if other:
        raise DataError(
            f"data.classes={classes}: {other[0]!r} is a {type(other[0]).__name__} and no text; quote names that YAML "
            "reads as numbers, booleans or null: ['no', 'yes'], ['1', '2']"
        )
    # Two classes of one name; the remedy renames the second
    renamed = [f"{n}-2" if n in classes[:number] else n for number, n in enumerate(classes)]
    if twice := [name for name, other in zip(classes, renamed, strict=True) if name != other]:
        raise DataError(
            f"data.classes={shorten_list(classes)}: {twice[0]!r} is named twice; each class needs a name of its own "
            f"(data.values maps several mask values to one class), 'data.classes=[{','.join(renamed)}]'"
        )
    if not all(name.strip() for name in classes):
        raise DataError(f"data.classes={shorten_list(classes)}: a name is empty; name each class")


def class_colors(
    colors: list[ColourList] | None,
    classes: list[str],
    palette: dict[str, ColourList | list[ColourList]] | None,
    spare: bool,
) -> list[tuple[int, int, int]]:
    """Return the colour of each class for pictures, (red, green, blue) in 0..255.

    Args:
        colors: colours given by the user; None: the first of each class in ``palette``, or readable defaults.
        classes: names of the classes.
        palette: class name -> its colour in the masks, or several; None: masks hold no colours.
        spare: leave out the first default colour, since no class is the background.

    Raises:
        DataError: if there is not one valid colour per class.
    """
    if colors is None and palette is not None:
        several = [palette[name] for name in classes]
        colors = [c[0] if c and isinstance(c[0], list) else c for c in several]  # ty: ignore
    if colors is None:
        return default_colors(len(classes) + spare)[spare:]
    valid = all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in colors)
    if len(colors) != len(classes) or not valid:
        raise DataError(
            f"data.colors={colors}: give one [red,green,blue] in 0..255 for each of {len(classes)} classes"
        )
    return [(c[0], c[1], c[2]) for c in colors]
