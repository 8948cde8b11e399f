"""Checked reading of annotation files: JSON, XML and text of limited size, and the numbers in them."""

import base64
import binascii
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from seg import files
from seg.data.datasets.outlines import Outline
from seg.data.image_files import IMAGE_SUFFIXES
from seg.data.tiff import warn_once
from seg.errors import DataError

MAX_FILE_BYTES = 2**29  # of one annotation file
MAX_BITMAP_PIXELS = 2**28  # of one object's bitmap
PNG_MAGIC = b"\x89PNG"


class AnnotatedImage(NamedTuple):
    """An image and its annotations, as a tool's file gives them.

    Attributes:
        image: name or path of the image file, as written; of a file that names none, its own path without suffix.
        size: height and width that the file states, or None.
        file: the annotation file.
        outlines: in the order of the file.
        normalized: True if coordinates are shares of the image's width and height.
        without_area: kinds of the objects that are left out, such as points.
    """

    image: str
    size: tuple[int, int] | None
    file: Path
    outlines: list[Outline]
    normalized: bool = False
    without_area: tuple[str, ...] = ()


class ToolAnnotations(NamedTuple):
    """Content of a tool's files.

    Attributes:
        images: annotated images.
        labels: in the tool's order; None: those that occur, in the order of the alphabet.
        masks: image files that hold annotations, and are no images to train on.
    """

    images: list[AnnotatedImage]
    labels: list[str] | None = None
    masks: frozenset[Path] = frozenset()


def list_files(place: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return a file, or the files with these suffixes in a folder and its subfolders, sorted; hidden ones left out."""
    if place.is_file():
        return [place]
    found = []
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [
            Path(folder, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")
        ]
    return sorted(found)


def read_annotation_text(file: Path) -> str:
    """Return the UTF-8 text of a file.

    Raises:
        DataError: if it cannot be read, is too large or is not UTF-8.
    """
    try:
        return files.read_text(file, MAX_FILE_BYTES).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error})") from error


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: if it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_annotation_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not JSON ({error}); export it again") from error


def read_matching_json(
    place: Path,
    suffixes: tuple[str, ...],
    matches_format: Callable[[Any], bool],
    marks: tuple[str, ...],
) -> Iterator[tuple[Path, Any]]:
    """Yield the JSON files of a tool, and their contents; others are left out.

    Args:
        place: a file or a folder.
        suffixes: of the files.
        matches_format: function of a content that returns whether it is of the tool.
        marks: texts that only the tool's files hold.

    Raises:
        DataError: if a file of the tool cannot be read or is not JSON.
    """
    for file in list_files(place, suffixes):
        try:
            content = read_json(file)
        except DataError as error:
            pass_over(file, place, marks, error)
            continue
        if matches_format(content):
            yield file, content


def pass_over(file: Path, place: Path, marks: tuple[str, ...], error: DataError) -> None:
    """Warn of a file that cannot be read, unless it is the tool's.

    It is the tool's if it is named in the options, lies beside an image of its name or holds one of ``marks``.

    Raises:
        DataError: ``error``, if the file is the tool's.
    """
    images = [file.stem + suffix for suffix in ("", *IMAGE_SUFFIXES)]  # of a.json and a.png.json
    folders = (file.parent, file.parent.parent / "img")
    beside = any((folder / image).is_file() for folder in folders for image in images)
    if place.is_file() or beside or any(mark in glance_at(file) for mark in marks):
        raise error
    warn_once(
        file, f"passed over {file.name}", f"{str(error).removeprefix(f'{file}: ')}; passed over"
    )


def glance_at(file: Path) -> str:
    """Return the text of a file, whatever its encoding; "" if it cannot be read or is too large."""
    try:
        return files.read_bytes(file, MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def read_xml(file: Path) -> ElementTree.Element:
    """Return the root of an XML file; one that declares a document type, and so could define entities, is refused.

    Raises:
        DataError: if it cannot be read, is not XML or has a document type.
    """
    text = read_annotation_text(file)
    if "<!DOCTYPE" in text:
        raise DataError(f"{file}: declares a document type, which may hide entities; remove it")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: not XML ({error}); export it again") from error


def build_image(
    file: Path,
    image: str,
    size: tuple[int, int] | None,
    objects: Any,
    build: Callable[[int, Any], Outline | str],
    normalized: bool = False,
) -> AnnotatedImage:
    """Return an image with the outlines of its objects.

    Args:
        file: annotation file.
        image: name or path of the image, as written.
        size: height and width that the file states, or None.
        objects: list of objects.
        build: function of an object's number and content that returns its outline, or the kind of an object that
            has no area, such as a point.
        normalized: as in ``AnnotatedImage``.

    Raises:
        DataError: naming the file and the number of the first object that is malformed.
    """
    if not isinstance(objects, list):
        raise DataError(f"{file}: no list of objects in it; export it again")
    built: list[Outline | str] = []
    for number, row in enumerate(objects, start=1):
        try:
            built.append(build(number, row))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else "not as the tool writes it"
            raise DataError(
                f"{file}: object {number}: {what}; correct it in the tool or remove it"
            ) from error
        except ValueError as error:
            raise DataError(
                f"{file}: object {number}: {error}; correct it in the tool or remove it"
            ) from error
    outlines = [one for one in built if isinstance(one, Outline)]
    without_area = tuple(one for one in built if isinstance(one, str))
    return AnnotatedImage(image, size, file, outlines, normalized, without_area)


def state_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Return height and width if both are whole numbers, else None."""
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def as_label(value: Any) -> str:
    """Return a label.

    Raises:
        ValueError: if it is not a text, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"its label is {value!r:.40}; a text is needed")
    return value


def as_numbers(values: Iterable[Any]) -> list[float]:
    """Return finite numbers.

    Raises:
        ValueError: if one is none.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, OverflowError, ValueError):
        raise ValueError("a coordinate is not a number") from None
    if not np.isfinite(numbers).all():
        raise ValueError("a coordinate is not finite")
    return numbers


def decode_png(text: Any, compressed: bool = False) -> np.ndarray:
    """Return the pixels (h, w) bool that are set in a PNG of base64.

    Args:
        text: base64.
        compressed: True if the PNG may be packed by zlib too.

    Raises:
        ValueError: if it is malformed or too large.
    """
    if not isinstance(text, str):
        raise ValueError("its bitmap is not a text")
    try:
        content = base64.b64decode(text, validate=True)
        if compressed and not content.startswith(PNG_MAGIC):
            content = zlib.decompressobj().decompress(content, MAX_BITMAP_PIXELS)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > MAX_BITMAP_PIXELS:
                raise ValueError(f"its bitmap has {image.width}x{image.height} px; too large")
            if "A" in image.getbands() or "transparency" in image.info:
                return np.asarray(image.convert("RGBA"))[..., 3] > 0
            return np.asarray(image.convert("L")) > 0
    except (binascii.Error, zlib.error, OSError, SyntaxError) as error:
        raise ValueError(f"its bitmap is no PNG ({error})") from error
