"""Reads and writes image files: PNG, JPEG and the like through Pillow, TIFF through tifffile."""

import os
import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from seg.data.sources import DataError

TIFF = {".tif", ".tiff"}
SUFFIXES = TIFF | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"}
NATIVE = "<" if sys.byteorder == "little" else ">"
LARGE = (
    2**24
)  # bytes of a TIFF's page from which on it is mapped, not read, where its layout allows


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder by name; other files and hidden ones are left out.

    Raises:
        DataError: when the folder isn't there or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(os.listdir(folder))  # names, for they sort much faster than paths
    files = [file for file in map(folder.joinpath, names) if is_image(file)]
    if not files:
        raise DataError(f"{folder}: no images here; looked for {', '.join(sorted(SUFFIXES))}")
    return files


def is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def read_pages(file: Path, page: int | None = None, colours: bool = False) -> list[np.ndarray]:
    """The pages of a TIFF, or the one image of another file, each (H, W) or (H, W, C) as stored.

    Args:
        file: to read.
        page: which one alone, from 0; None: all.
        colours: a palette image gives its colours, not its indices.

    Raises:
        DataError: when the file can't be read whole.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        if file.suffix.lower() in TIFF:
            with tifffile.TiffFile(file) as tiff:
                return stored(tiff, file, page)
        with Image.open(file) as image:
            return [pixels(image, colours)]
    except Exception as error:  # decoders raise every kind; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file}: not a readable image ({reason})") from error


def stored(tiff: tifffile.TiffFile, file: Path, page: int | None) -> list[np.ndarray]:
    """All pages of an open TIFF, or one; a large one is mapped."""
    if hidden_pages(tiff):
        whole = tiff.series[0].asarray().reshape(-1, *tiff.pages[0].shape)
        return list(whole if page is None else whole[page : page + 1])
    chosen = list(enumerate(tiff.pages)) if page is None else [(page, tiff.pages[page])]
    arrays = []
    for number, one in chosen:
        mapped = one.nbytes >= LARGE and one.is_memmappable and one.parent.byteorder == NATIVE
        pixels = tifffile.memmap(file, page=number, mode="r") if mapped else one.asarray()
        arrays.append(channels_last(pixels, one.axes))
    return arrays


def hidden_pages(tiff: tifffile.TiffFile) -> bool:
    """Whether one page's directory stands for many, as ImageJ writes stacks above 4 GB."""
    return (
        len(tiff.pages) == 1 and len(tiff.series) == 1 and tiff.series[0].size > tiff.pages[0].size
    )


def count_pages(file: Path) -> int:
    """Pages of a TIFF; 1 of another file.

    Raises:
        DataError: when it can't be read.
    """
    if file.suffix.lower() not in TIFF:
        return 1
    try:
        with tifffile.TiffFile(file) as tiff:
            if hidden_pages(tiff):
                return tiff.series[0].size // tiff.pages[0].size
            return len(tiff.pages)
    except Exception as error:
        raise DataError(f"{file}: not a readable image ({error})") from error


def channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page  # planes stored one after another


def pixels(image: Image.Image, colours: bool) -> np.ndarray:
    """Pixels as stored: a palette image gives its indices, or its colours, a 1-bit image 0 and 255."""
    if colours and image.mode != "RGB":
        return np.array(image.convert("RGB"))
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La"):
        image = image.convert("RGB")
    return np.array(image)


def read_image(file: Path, page: int | None = None, channels: bool = False) -> np.ndarray:
    """One image (H, W, C) uint8, uint16 or float32; alpha is dropped, a palette becomes colours.

    Args:
        file: to read.
        page: of a stack, from 0; None: the file is one image.
        channels: whether a TIFF's pages are the channels of one image.

    Raises:
        DataError: when unreadable, of several pages without leave, or not finite.
    """
    pages = read_pages(file, page)
    if len(pages) != 1:
        if not channels:
            raise DataError(
                f"{file}: {len(pages)} pages where one image is expected; split the stack, or take each page as an "
                "image (data.pages=slices) or as a channel (data.pages=channels)"
            )
        if len({(one.shape, one.dtype) for one in pages}) > 1 or pages[0].ndim != 2:
            shapes = ", ".join(sorted({f"{one.shape} {one.dtype}" for one in pages}))
            raise DataError(f"{file}: pages of {shapes}; data.pages=channels needs equal ones")
        return as_image(np.stack(pages, axis=-1), file)
    if file.suffix.lower() not in TIFF:
        with Image.open(file) as image:
            if image.mode == "P":
                pages = [np.array(image.convert("RGB"))]
            elif image.mode in ("LA", "RGBA"):
                pages = [pages[0][..., :-1]]
    return as_image(pages[0], file if page is None else f"{file}, page {page}")


def as_image(page: np.ndarray, file: Path | str) -> np.ndarray:
    """A page as (H, W, C) uint8, uint16 or float32.

    Raises:
        DataError: when it has no pixels, another shape or type, or values that aren't finite.
    """
    image = page[..., None] if page.ndim == 2 else page
    if image.ndim != 3 or not image.size:
        raise DataError(
            f"{file}: shape {page.shape}; an image of (height, width[, channels]) is needed"
        )
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype == np.int32 and image.min() >= 0 and image.max() <= 65535:
        return image.astype(np.uint16)  # Pillow's mode I: 16-bit PNG in its older releases
    if image.dtype.kind not in "fiu":
        raise DataError(f"{file}: values of type {image.dtype}; integers or floats are needed")
    image = image.astype(np.float32)
    bad = int((~np.isfinite(image)).sum())
    if bad:
        raise DataError(
            f"{file}: {bad} of {image.size} values are NaN or infinite; replace them first"
        )
    return image


def write_mask(file: Path, mask: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    """Class indices (H, W) uint8 as a PNG whose values are the indices and that shows the colours."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([v for color in colors for v in color])
    image.save(file)


def write_png(file: Path, image: np.ndarray) -> None:
    """(H, W) or (H, W, 3) uint8 as PNG."""
    Image.fromarray(image).save(file)
