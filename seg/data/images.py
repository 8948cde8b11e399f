"""Reads and writes image files: PNG, JPEG and the like through Pillow, TIFF through tifffile."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from seg.data.sources import DataError

TIFF = {".tif", ".tiff"}
SUFFIXES = TIFF | {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm"}


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder by name; other files and hidden ones are left out.

    Raises:
        DataError: when the folder isn't there or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = sorted(f for f in folder.iterdir() if is_image(f))
    if not files:
        raise DataError(f"{folder}: no images here; looked for {', '.join(sorted(SUFFIXES))}")
    return files


def is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def read_pages(file: Path) -> list[np.ndarray]:
    """The pages of a TIFF, or the one image of another file, each (H, W) or (H, W, C) as stored.

    Raises:
        DataError: when the file can't be read whole.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        if file.suffix.lower() in TIFF:
            with tifffile.TiffFile(file) as tiff:
                return [channels_last(page.asarray(), page.axes) for page in tiff.pages]
        with Image.open(file) as image:
            return [pixels(image)]
    except Exception as error:  # decoders raise every kind; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file}: not a readable image ({reason})") from error


def channels_last(page: np.ndarray, axes: str) -> np.ndarray:
    return np.moveaxis(page, 0, -1) if axes[0] == "S" else page  # planes stored one after another


def pixels(image: Image.Image) -> np.ndarray:
    """Pixels as stored: a palette image gives its indices, a 1-bit image 0 and 255."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La"):
        image = image.convert("RGB")
    return np.array(image)


def read_image(file: Path) -> np.ndarray:
    """One image (H, W, C) uint8, uint16 or float32; alpha is dropped, a palette becomes colours.

    Raises:
        DataError: when unreadable, of several pages, or not finite.
    """
    pages = read_pages(file)
    if len(pages) != 1:
        raise DataError(f"{file}: {len(pages)} pages where one image is expected; split the stack")
    if file.suffix.lower() not in TIFF:
        with Image.open(file) as image:
            if image.mode == "P":
                pages = [np.array(image.convert("RGB"))]
            elif image.mode in ("LA", "RGBA"):
                pages = [pages[0][..., :-1]]
    return as_image(pages[0], file)


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
