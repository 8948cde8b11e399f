"""Masks: from the values or colours on disk to class indices; a value that is not declared is an error."""

from collections import Counter
from collections.abc import Iterable
from statistics import median

import numpy as np
from skimage.measure import label, regionprops_table

from seg.errors import DataError
from seg.labels import IGNORE
from seg.objects import IGNORED_OBJECT, renumber_objects

COUNTED_PIXELS = 2**22  # pixels that are counted together
JUDGED_MASKS = 20  # masks that tell numbers of objects from classes
MAX_UNKNOWN_CLASSES = 8  # undeclared values of a mask; more may number objects
NUMBERS_REMEDY = "the values number objects: data.task=instances with two classes, data.classes=[background,object]"
UNDECLARED = 254  # in a table of colours: not declared
ColourList = list[int]  # red, green, blue in 0..255


class MaskValues:
    """Mapping from values or colours on disk to class indices.

    Args:
        classes: names, in the order of the class indices.
        values: value on disk -> class index; None: the values are the indices.
        ignore: values on disk, or colours, that are ignored.
        palette: class name -> its colour, or several; None: masks are not read as colours.
        paintable: whether a palette is possible; False for masks that are one class's layer.
        threshold: value on disk above which a pixel is the second of two classes, for masks with compression noise;
            None: each value is declared.

    Raises:
        DataError: if ``values`` or ``palette`` name an unknown class, or a value twice; if ``threshold`` is given with
            another number of classes, or beside declared values.
    """

    def __init__(
        self,
        classes: list[str],
        values: dict[int, int] | None = None,
        ignore: list[int] | list[ColourList] | None = None,
        palette: dict[str, ColourList | list[ColourList]] | None = None,
        paintable: bool = True,
        threshold: float | None = None,
    ) -> None:
        self.classes, ignored = classes, ignore or []
        self.threshold = threshold
        if threshold is not None:
            declared = {"values": values, "palette": palette, "ignore": ignore}
            for name in (name for name, option in declared.items() if option):
                raise DataError(
                    f"data.mask_threshold beside data.{name}: the threshold declares all values; give one"
                )
            if len(classes) != 2:
                raise DataError(
                    f"data.mask_threshold={threshold} needs two classes, but there are {len(classes)}: {shorten_list(classes)}"
                )
        self.paintable = paintable
        self.palette = None if palette is None else build_colour_table(palette, ignored, classes)
        if palette is not None and values is not None:
            raise DataError(
                "data.values beside data.palette: masks hold values or colours; give one"
            )
        if palette is not None:
            self.index = {}
            return
        # Values, unless there is a palette.
        void = [value for value in ignored if isinstance(value, int)]
        if len(void) < len(ignored):
            raise DataError(f"data.ignore={ignored}: a colour needs data.palette too")
        known = dict(enumerate(range(len(classes)))) if values is None else dict(values)
        wrong = sorted(set(known.values()) - set(range(len(classes))))
        if wrong:
            raise DataError(
                f"data.values sends values to {wrong}; the classes are 0..{len(classes) - 1} {classes}"
            )
        both = sorted(set(known) & set(void))
        if both and values is not None:
            raise DataError(f"data.ignore and data.values both name {both}")
        self.index = known | dict.fromkeys(void, IGNORE)

    def indices(self, mask: np.ndarray, file: object) -> np.ndarray:
        """Return the class indices (H, W) uint8 of a mask (H, W), or of colours (H, W, 3); 255 = ignore.

        Args:
            mask: as stored.
            file: for messages.

        Raises:
            DataError: naming the file, the values found and the option that declares them.
        """
        if self.palette is not None:
            return self.painted(mask, file)
        # Check type and shape, (H, W) with one number a pixel
        if mask.dtype.kind not in "biuf":
            found, remedy = f"values of type {mask.dtype}", "save one class index a pixel"
            raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
        if mask.dtype == np.bool_:  # 1 bit: 1, or 255 if only that is declared
            mask = mask * np.uint8(255 if 255 in self.index and 1 not in self.index else 1)
        mask = grey_plane(mask)
        if mask.ndim != 2:
            found = f"a colour picture {mask.shape} is no mask by itself"
            remedy = self.palette_remedy(count_mask_colours(mask))
            raise DataError(file=file, found=found, remedy=remedy, kind="colours")
        if self.threshold is not None:
            return (mask > self.threshold).astype(np.uint8)
        # Every value is declared.
        found = distinct_values(mask)
        unknown = [v for v in found if v not in self.index]
        if unknown:
            raise DataError(
                file=file,
                found=f"mask value {shorten_list(unknown)} not declared",
                expected=f"declared are {shorten_list(sorted(self.index))} for {shorten_list(self.classes)}",
                remedy=NUMBERS_REMEDY if are_numbers(mask, len(unknown)) else self.remedy(found),
                kind="values",
            )
        # Look the indices up; a table is faster than a comparison per value.
        if mask.dtype == np.uint8:
            table = np.full(256, IGNORE, np.uint8)
            for value, index in self.index.items():
                if 0 <= value < 256:
                    table[value] = index
            return table[mask]
        result = np.full(mask.shape, IGNORE, np.uint8)
        for value in found:
            result[mask == value] = self.index[value]
        return result

    def painted(self, mask: np.ndarray, file: object) -> np.ndarray:
        """Return the class indices (H, W) of a mask (H, W, 3) of declared colours."""
        assert self.palette is not None
        # Colours as (H, W, 3) or (H, W, 4) of 8 bits
        if mask.dtype == np.bool_:  # 1 bit: black and white
            mask = mask * np.uint8(255)
        if mask.ndim == 2:
            mask = np.repeat(mask[..., None], 3, axis=2)
        if mask.dtype != np.uint8 or mask.ndim != 3 or mask.shape[2] not in (3, 4):
            raise DataError(
                f"{file}: {mask.dtype} {mask.shape}; data.palette is for colours of 3 x 8 bits"
            )
        # Look up the class of each colour, encoded as one integer
        codes = encode_colours(mask)
        result = self.palette[codes]
        if (result == UNDECLARED).any():
            wrong = np.unique(codes[result == UNDECLARED])
            raise DataError(
                file=file,
                found=f"mask colour {shorten_list([decode_colour(c) for c in wrong.tolist()])} not declared",
                remedy="add it to a class in data.palette, or to data.ignore",
                kind="colours",
            )
        return result

    def palette_remedy(self, pixels: Counter[int]) -> str:
        """Return the option that would declare colours.

        Args:
            pixels: number of pixels of each colour 0xrrggbb, in one mask or in all; empty: not of 8 bits.
        """
        # Only a picture with few colours can be painted classes
        if not pixels:
            return "save one class index a pixel"
        if not self.paintable:
            return "save 0 and 1, one number a pixel"
        if len(pixels) > 64:
            return f"{len(pixels)} colours look like a photograph; save one class index a pixel"
        # Colours and classes by frequency: the most frequent colour is probably the background
        colours = [decode_colour(code) for code, _ in pixels.most_common()]
        names = [*self.classes, *(["CLASS"] * (len(colours) - len(self.classes)))]
        pairs = ", ".join(f"{n}: {colour}" for n, colour in zip(names, colours, strict=False))
        return f"say which colour is which class, 'data.palette={{{pairs}}}' in the right order"

    def remedy(self, found: list, wrong_masks: list | None = None) -> str:
        """Return the option that would declare values.

        Args:
            found: values that occur, in one mask or in all.
            wrong_masks: values that occur in the masks with undeclared ones; None: ``found``.
        """
        # Many or fractional values are no classes
        wrong = [value for value in found if value not in self.index]
        ignored = [value for value, i in self.index.items() if i == IGNORE]
        counted = {value: i for value, i in self.index.items() if i != IGNORE}
        if len(found) > 32:
            return f"{len(found)} different values look like a photograph or JPEG noise"
        if not all(float(value).is_integer() for value in found):  # a fraction, NaN or infinite
            return "save whole numbers: each value is a class"
        # As many values as classes: each value is a class.
        values = [int(value) for value in found if value not in ignored]
        if len(values) <= len(self.classes):
            return f"'data.values={format_mapping(dict(zip(values, range(len(values)), strict=True)))}'"
        # Else values that are ignored, or one more value of the second of two classes.
        void = f"'data.ignore={sorted({*ignored, *map(int, wrong)})}'"
        second = max(counted, default=None)
        if len(self.classes) == 2 and len(wrong) == 1 and second not in (wrong_masks or found):
            merged = format_mapping(counted | {int(wrong[0]): 1})
            return (
                f"if {wrong[0]} is {self.classes[1]}, 'data.values={merged}'; if it is void, {void}"
            )
        if wrong == [IGNORE]:
            return f"is it void? {void}"
        if not self.paintable:
            return f"a layer holds {sorted(counted)} or what data.values declares; if {shorten_list(wrong)} is void, {void}"
        return (
            f"correct the mask, or name {shorten_list(wrong)} in data.classes ({len(self.classes)} are named); if "
            f"{'they are' if wrong[1:] else 'it is'} void, {void}"
        )


def read_object_numbers(mask: np.ndarray, ignore: list, file: object) -> np.ndarray:
    """Return the labels (H, W) int32 of a mask that numbers its objects; 0 outside, -1 where ignored.

    Args:
        mask: as stored, of any integer type, or floats that are whole numbers.
        ignore: values that are ignored.
        file: for messages.

    Raises:
        DataError: if it holds a fraction, or a negative number that is not ignored.
    """
    mask = grey_plane(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        found = f"{mask.dtype} {mask.shape}, where other masks number their objects"
        remedy = "save the number of its object for each pixel, 0 outside, as PNG or TIFF"
        raise DataError(file=file, found=found, remedy=remedy, kind="pixels")
    void = np.isin(mask, ignore)
    with np.errstate(invalid="ignore"):  # infinite
        wrong = ~void & ~((mask >= 0) & (mask % 1 == 0))
    if wrong.any():
        raise DataError(
            file=file,
            found=f"the value {mask[wrong][0]} is no number of an object",
            remedy="save whole numbers, 0 outside the objects; data.ignore=[VALUE] excludes a value",
            kind="values",
        )
    labels = renumber_objects(np.where(void, 0, mask))
    labels[void] = IGNORED_OBJECT
    return labels


def merge_object_masks(planes: list[np.ndarray], file: object) -> np.ndarray:
    """Return the labels (H, W) int32 of an image's objects, from a plane (H, W) of 0, 1 and 255 for each.

    Where objects overlap, the smaller is on top; 255 is ignored where no object is.

    Raises:
        DataError: if the planes have several sizes.
    """
    sizes = {plane.shape for plane in planes}
    if len(sizes) > 1:
        raise DataError(
            f"{file}: the masks of its objects have sizes {sorted(sizes)}; they must be equal"
        )
    labels = np.zeros(sizes.pop(), np.int32)
    for plane in planes:
        labels[plane == IGNORE] = IGNORED_OBJECT
    ordered = sorted((plane == 1 for plane in planes), key=np.count_nonzero, reverse=True)
    for number, inside in enumerate(ordered, start=1):
        labels[inside] = number
    return labels


def numbers_objects(masks: Iterable[np.ndarray], ignore: list) -> bool:
    """Return True if the values of masks number objects; False if they are classes, or noise.

    They do if there are more values than 0 and 1 or 255, and most of them are regions. The values of several
    classes, of a lossy compression and of smooth edges lie scattered: many regions a value, or regions of a few pixels.

    Args:
        masks: as stored; no more are read than decide.
        ignore: values that are ignored.
    """
    values, areas, judged = 0, [], 0
    for stored in masks:
        mask = grey_plane(stored)
        if mask.ndim != 2 or mask.dtype.kind not in "iuf":
            continue
        objects = np.where(np.isin(mask, ignore), 0, mask)
        found = np.unique(objects[objects != 0])
        if not set(found.tolist()) - {1, 255}:
            continue
        with np.errstate(invalid="ignore"):  # infinite
            if (found % 1 != 0).any():
                return False
        regions = label(renumber_objects(objects), background=0)
        areas += regionprops_table(regions, properties=["area"])["area"].tolist()
        values, judged = values + len(found), judged + 1
        if judged == JUDGED_MASKS:
            break
    return bool(values) and len(areas) <= 3 * values and median(areas) > 2


def are_numbers(mask: np.ndarray, unknown: int) -> bool:
    """Return True if a mask with this number of undeclared values numbers its objects."""
    return unknown > MAX_UNKNOWN_CLASSES and numbers_objects([mask], [])


def grey_plane(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W), of one channel or of equal ones; others as they are."""
    if mask.ndim == 3 and (mask.shape[2] == 1 or (mask[..., :1] == mask[..., :3]).all()):
        return mask[..., 0]
    return mask


def format_mapping(values: dict[int, int]) -> str:
    """Return value -> class index as an option is typed."""
    return "{" + ", ".join(f"{value}: {i}" for value, i in values.items()) + "}"


def size_mismatch_error(
    mask_file: object,
    mask_shape: tuple[int, ...],
    image_file: object,
    image_shape: tuple[int, ...],
    remedy: str = "",
) -> DataError:
    """Return the error for a mask whose height or width differs from its image's."""
    mask_size, image_size = tuple(mask_shape[:2]), tuple(image_shape[:2])
    sizes = [f"{height}x{width}" for height, width in (mask_size, image_size)]
    found = f"{sizes[0]} px, and its image {image_file} {sizes[1]} (height x width)"
    if not remedy:
        remedy = "take the mask that belongs to the image, or resize it by nearest neighbour"
        if mask_size == image_size[::-1]:
            remedy = (
                "transposed or turned by a quarter: compare both, and turn the mask as its image is"
            )
    return DataError(file=mask_file, found=found, remedy=remedy, kind="size")


def build_colour_table(
    palette: dict[str, ColourList | list[ColourList]], ignore: list, classes: list[str]
) -> np.ndarray:
    """Return the class index of each of the 2^24 colours, uint8; ``UNDECLARED`` if it is not declared.

    Raises:
        DataError: for an unknown class, a class without a colour, an invalid colour and a colour named twice.
    """
    # The palette has a colour for each class and nothing else
    if set(palette) != set(classes):
        raise DataError(
            f"data.palette names {shorten_list(list(palette))}; it must give a colour to each of {shorten_list(classes)}, and to "
            "no other"
        )
    # Each colour, a class's or an ignored one, is entered once.
    table = np.full(2**24, UNDECLARED, np.uint8)
    given = [(classes.index(name), colours) for name, colours in palette.items()]
    for index, colours in [*given, *([(IGNORE, ignore)] if ignore else [])]:
        several: list = colours if colours and isinstance(colours[0], list) else [colours]
        for colour in several:
            whole = isinstance(colour, list) and all(isinstance(v, int) for v in colour)
            if not whole or len(colour) != 3 or not all(0 <= v <= 255 for v in colour):
                raise DataError(
                    f"data.palette and data.ignore: {colour} is no colour; [red,green,blue] in 0..255 is"
                )
            code = encode_colours(np.array([[colour]], np.uint8)).item()
            if table[code] != UNDECLARED:
                raise DataError(f"data.palette and data.ignore name the colour {colour} twice")
            table[code] = index
    return table


def encode_colours(mask: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3 or more) uint8 as numbers 0xrrggbb (H, W) uint32."""
    red, green, blue = (mask[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def count_mask_colours(mask: np.ndarray) -> Counter[int]:
    """Count the pixels of each colour 0xrrggbb of a mask (H, W, 3 or 4) uint8; empty for other masks."""
    if mask.dtype != np.uint8 or mask.ndim != 3 or mask.shape[2] not in (3, 4):
        return Counter()
    codes, counts = np.unique(encode_colours(mask), return_counts=True)
    return Counter(dict(zip(codes.tolist(), counts.tolist(), strict=True)))


def decode_colour(code: int) -> list[int]:
    """Return 0xrrggbb as [red, green, blue]."""
    return [int(code) >> shift & 255 for shift in (16, 8, 0)]


def merge_planes(planes: list[np.ndarray | None], classes: list[str], file: object) -> np.ndarray:
    """Merge a plane (H, W) of 0, 1 and 255 for each class into one mask (H, W) uint8.

    One plane may be None: its class is where no other is. Without such a plane, pixels of no class are ignored.

    Raises:
        DataError: if a pixel has two classes.
    """
    # Pixels of several classes are refused: exclusive classes can't represent them
    present = [(k, plane) for k, plane in enumerate(planes) if plane is not None]
    number = np.sum([plane == 1 for _, plane in present], axis=0)  # classes of each pixel
    if (number > 1).any():
        several = [classes[k] for k, plane in present if (plane[number > 1] == 1).any()]
        raise DataError(
            file=file,
            found=f"{int((number > 1).sum())} pixels are of several classes, of {shorten_list(several)}",
            remedy="correct them, or take data.task=overlapping",
        )
    # Start from the class without a plane; ignored where no class is and any plane is ignored.
    rest = next((k for k, plane in enumerate(planes) if plane is None), IGNORE)
    mask = np.full(number.shape, rest, np.uint8)
    for k, plane in present:
        mask[plane == 1] = k
    void = np.any([plane == IGNORE for _, plane in present], axis=0)
    mask[void & (number == 0)] = IGNORE
    return mask


def distinct_values(mask: np.ndarray) -> list[int]:
    """Return the values that occur, sorted."""
    if mask.dtype != np.uint8:
        return np.unique(mask).tolist()
    return np.flatnonzero(count_values(mask)).tolist()  # ten times faster than np.unique


def count_values(mask: np.ndarray) -> np.ndarray:
    """Count each value of a mask (H, W) uint8; (256,)."""
    rows = max(
        1, COUNTED_PIXELS // max(1, mask.shape[1])
    )  # bincount converts each value to 64 bits
    counts = np.zeros(256, np.int64)
    for start in range(0, len(mask), rows):
        counts += np.bincount(mask[start : start + rows].ravel(), minlength=256)
    return counts


def count_class_pixels(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each class (C,) in a mask (H, W), or in each plane of (H, W, K)."""
    if mask.ndim == 3:
        return (mask == 1).sum((0, 1))
    return count_values(mask)[:num_classes]


def split_planes(
    pages: list[np.ndarray], classes: list[str], file: object, rest: bool
) -> list[np.ndarray | None]:
    """Return the plane (H, W) of each class, from pages or from channels.

    Args:
        pages: of a mask's file.
        classes: names, in the order of the pages.
        file: for messages.
        rest: whether the first class may lack its page; its plane is then None: it is where no other class is.

    Raises:
        DataError: if their number is not that of the classes, or they have several sizes.
    """
    if len(pages) == 1 and pages[0].ndim == 3:
        pages = list(np.moveaxis(pages[0], -1, 0))
    missing = len(classes) - len(pages)
    if missing not in ((0, 1) if rest else (0,)) or len({page.shape for page in pages}) > 1:
        sizes = ", ".join(sorted({"x".join(map(str, page.shape)) for page in pages}))
        but = " (the first may be left out)" if rest else ""
        raise DataError(
            f"{file}: {len(pages)} pages of {sizes} px; {'data.mask_layers=pages' if rest else 'data.task=overlapping'} "
            f"needs one a class, in the order of {shorten_list(classes)}{but}"
        )
    return [None] * missing + pages


def shorten_list(items: list) -> str:
    """Return a list as text, without its middle if it is long."""
    return (
        str(items) if len(items) <= 12 else f"[{', '.join(map(str, items[:10]))}, ... {items[-1]}]"
    )


def planes_first(layer: np.ndarray) -> np.ndarray:
    """Return (H, W, K) as (K, H, W), and (H, W) unchanged."""
    return layer if layer.ndim == 2 else layer.transpose(2, 0, 1)


def planes_last(layer: np.ndarray) -> np.ndarray:
    """Return (K, H, W) as (H, W, K), and (H, W) unchanged."""
    return layer if layer.ndim == 2 else layer.transpose(1, 2, 0)
