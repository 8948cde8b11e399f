"""Arrays, medical images and OME-Zarr: NPY and NPZ, DICOM and NIfTI, as one image or a stack of slices."""

import os
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seg.data.ome_zarr import ZARR_SUFFIXES, ZarrImages
from seg.data.tiff import check_channels, warn_once
from seg.data.tiff_layout import PagesOption
from seg.errors import DataError, missing_extra_hint

ARRAY_SUFFIXES = {".npy", ".npz"}
DICOM_SUFFIXES = {".dcm", ".dicom"}
NIFTI_SUFFIXES = {".nii", ".nii.gz"}
STACK_SUFFIXES = ARRAY_SUFFIXES | DICOM_SUFFIXES | NIFTI_SUFFIXES | ZARR_SUFFIXES

MAX_CHANNELS = (
    16  # an axis of an array that is longer is no axis of channels, unless an option says so
)
READ_ROWS = 1024  # rows of an OME-Zarr that are read together
DEFLATE_RATIO = 1032  # bytes that one byte of a deflate stream can stand for, at most
BOMB_BYTES, BOMB_RATIO = 2**30, 500  # an array this large that is packed this densely is refused
SLIDE_STORAGE = (
    "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class VL Whole Slide Microscopy Image Storage
)
DEFLATED = "1.2.840.10008.1.2.1.99"  # transfer syntax: the whole file is one deflate stream
NIFTI_UNITS = {"meter": 1e6, "mm": 1e3, "micron": 1.0}  # -> um


class Stack(NamedTuple):
    """An open file of one image or several slices.

    Attributes:
        length: number of images.
        read: function of an index that returns the image (H, W) or (H, W, C).
        axes: text of the axes for messages; empty for one image.
        spacing: height and width of a pixel, um; None if the file gives none.
        by_rows: the images, if their rows can be read alone.
    """

    length: int
    read: Callable[[int], np.ndarray]
    axes: str = ""
    spacing: tuple[float, float] | None = None
    by_rows: ZarrImages | None = None


def open_stack(file: Path, colours: bool | None = None, pages: PagesOption | None = None) -> Stack:
    """Return the images of an array, a DICOM or a NIfTI file.

    Args:
        file: one with a suffix of ``STACK_SUFFIXES``; of an OME-Zarr its folder or address.
        colours: convert indices of a palette to its colours; None: as in an image, not a mask.
        pages: ``channels``: all slices are the channels of one image; ``slices``: the first axis of an array are
            slices; None: as the file says.

    Raises:
        DataError: if an extra is missing, or the array's axes are ambiguous.
        ValueError: if the file is damaged.
    """
    suffix = file.suffix.lower()
    if suffix in ZARR_SUFFIXES:
        return open_zarr(file, pages)
    if suffix in ARRAY_SUFFIXES:
        return open_array(file, "mask" if colours is not None else "image", pages)
    stack = open_dicom(file, colours) if suffix in DICOM_SUFFIXES else open_nifti(file)
    if pages == "channels" and stack.length > 1:
        return Stack(1, lambda _: stack_slices(stack, file), spacing=stack.spacing)
    return stack


def read_stack(
    file: Path, page: int | None, colours: bool | None, pages: PagesOption | None = None
) -> list[np.ndarray]:
    """Return all images of a file, or the one of index ``page``; see ``open_stack``."""
    stack = open_stack(file, colours, pages)
    return [stack.read(i) for i in (range(stack.length) if page is None else [page])]


def stack_slices(stack: Stack, file: Path) -> np.ndarray:
    """Return the slices of a stack as the channels of one image (H, W, C)."""
    slices = [stack.read(i) for i in range(stack.length)]
    check_channels([(one.shape, one.dtype) for one in slices], file)
    return np.stack(slices, axis=-1)


def require_package(file: Path, package: str) -> None:
    """Raise DataError if the package that reads a file is not installed."""
    if hint := missing_extra_hint(package):
        raise DataError(file=file, found=hint, kind="unreadable")


# Arrays of NumPy


def open_array(file: Path, name: str, pages: PagesOption | None) -> Stack:
    """Return the images of an NPY or NPZ file; ``name`` is that of the array among several of an NPZ."""

    def load() -> np.ndarray:
        return map_array(file) if file.suffix.lower() == ".npy" else unpack_file(file, name)

    if pages == "slices" and (array := load()).ndim > 2:
        axes = f"axes {array.shape}: {len(array)} slices, the first axis"
        return Stack(len(array), lambda i: as_native(channels_last(load()[i], file, None)), axes)
    return Stack(1, lambda _: as_native(channels_last(load(), file, pages)))


def channels_last(array: np.ndarray, file: Path, pages: PagesOption | None) -> np.ndarray:
    """Return an array (H, W), or (H, W, C) of an array (H, W, C) or (C, H, W).

    The channels are the first or the last axis, if it is shorter than both others and at most ``MAX_CHANNELS``
    long; with ``pages`` ``channels`` the shorter of the two.

    Raises:
        DataError: if neither is, or there are other axes.
    """
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        first, middle, last = array.shape
        limit = max(first, last) if pages == "channels" else min(middle, MAX_CHANNELS + 1)
        if last < first and last < limit:
            return array
        if first < last and first < limit:
            return np.moveaxis(array, 0, -1)
    raise DataError(
        file=file,
        found=f"an array of shape {array.shape}",
        expected=f"(height, width), or 3 axes of which the first or the last are channels: at most {MAX_CHANNELS}, "
        "fewer than the pixels of a side",
        remedy="if its first axis are slices, data.pages=slices; if it has more channels, data.pages=channels",
        kind="unreadable",
    )


def as_native(array: np.ndarray) -> np.ndarray:
    """Return an array in memory, in the machine's byte order."""
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def map_array(file: Path) -> np.ndarray:
    """Return the array of an NPY file, memory-mapped.

    Raises:
        DataError: if it holds Python objects, which could run code.
        ValueError: if it is damaged or truncated.
    """
    with file.open("rb") as stream:
        shape, dtype, start = read_array_header(stream, file)
    if start + dtype.itemsize * count_values(shape) > os.stat(file).st_size:
        raise ValueError(f"truncated: an array of {shape} {dtype} does not fit into the file")
    return np.load(file, mmap_mode="r", allow_pickle=False)


def read_array_header(stream: Any, file: object) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape and type of a stream in NumPy's format, and the position of the first value.

    Raises:
        DataError: if it holds Python objects.
        ValueError: if it is not in that format.
    """
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            file=file, found="an array of Python objects, which could run code", remedy="save an array of numbers",
            kind="unreadable",
        )  # fmt: skip
    return shape, dtype, stream.tell()


def count_values(shape: tuple[int, ...]) -> int:
    """Return the number of values of an array, exact for any size."""
    count = 1
    for side in shape:
        count *= int(side)
    return count


def read_archive(file: Path, name: str) -> np.ndarray:
    """Return the only array of an NPZ file, or the one called ``name``.

    Raises:
        DataError: if there is none, or it holds Python objects.
        ValueError: if it is damaged, truncated, or unpacks to far more than its size.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(entries) > 1 and name not in entries:
            raise DataError(
                file=file, found=f"arrays {', '.join(sorted(entries))}", expected=f"one array, or one called {name}",
                remedy="rename it, or save it alone", kind="unreadable",
            )  # fmt: skip
        if not entries:
            raise ValueError("it holds no array")
        info = entries[name] if name in entries else next(iter(entries.values()))
        # Compare the header with the sizes that the archive states, before any memory is taken
        with archive.open(info) as stream:
            shape, dtype, start = read_array_header(stream, f"{file}, array {info.filename}")
        size = dtype.itemsize * count_values(shape)
        if start + size > info.file_size:
            raise ValueError(
                f"truncated: an array of {shape} {dtype} does not fit into the archive"
            )
        check_unpacked_size(size, min(info.compress_size, os.stat(file).st_size))
        with archive.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def unpack_file(file: Path, name: str) -> np.ndarray:
    """Return the array of a packed file, which is not to be changed; the last one is kept, for its next slice.

    Args:
        file: an NPZ, or a packed NIfTI volume.
        name: of the array among several of an NPZ.
    """
    status = os.stat(file)
    return unpack_state(file, name, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def unpack_state(file: Path, name: str, size: int, time: int) -> np.ndarray:
    """Return what ``unpack_file`` does, once for each state of a file: its size in bytes and its time in ns."""
    if file.suffix.lower() == ".npz":
        return read_archive(file, name)
    import nibabel

    volume: Any = nibabel.load(file)
    return np.asanyarray(volume.dataobj)


def check_unpacked_size(size: int, packed: int) -> None:
    """Raise ValueError if so many bytes can't be, or should not be, unpacked from so few."""
    if size > DEFLATE_RATIO * packed + 2**16:
        raise ValueError(f"truncated: {size} bytes can't be packed into {packed}")
    if size > BOMB_BYTES and size > BOMB_RATIO * packed:
        raise ValueError(f"{packed} bytes unpack to {size}; save the array without compression")


# OME-Zarr


def open_zarr(file: Path, pages: PagesOption | None) -> Stack:
    """Return the images of an OME-Zarr; see ``ZarrImages``."""
    images = ZarrImages(file, pages)

    def read(number: int) -> np.ndarray:
        return read_zarr_image(images, number)

    return Stack(images.length, read, images.axes, images.metadata.spacing, images)


def read_zarr_image(images: ZarrImages, number: int) -> np.ndarray:
    """Return an image of an OME-Zarr as a whole.

    Raises:
        ValueError: if it takes far more memory than its chunks: absent ones, for instance, cost nothing.
    """
    fetched, height, row = images.store.fetched, images.height, images.empty_row()
    image = np.empty((height, *row.shape[1:]), row.dtype)
    step = max(1, READ_ROWS // images.chunk_rows) * images.chunk_rows
    for start in range(0, height, step):
        stop = min(start + step, height)
        image[start:stop] = images.rows(number, start, stop)
        size, packed = image[:stop].nbytes, images.store.fetched - fetched
        if size > BOMB_BYTES and size > BOMB_RATIO * packed:
            raise ValueError(
                f"{packed} bytes unpack to {size} and more; cut out the part with values"
            )
    return image


# NIfTI


def open_nifti(file: Path) -> Stack:
    """Return the slices of a NIfTI volume: planes of its first two axes, rows along the second.

    Values are scaled by ``scl_slope`` and ``scl_inter``. The slices follow one another along the third axis, and
    those of later times after those of earlier ones.

    Raises:
        ValueError: if it is damaged or truncated.
    """
    require_package(file, "nibabel")
    import nibabel

    volume: Any = nibabel.load(file)
    shape, dtype = volume.shape, volume.get_data_dtype()
    if len(shape) < 2:
        raise ValueError(f"shape {shape}; an image has two axes or more")
    # The file must hold what its header states, before any memory is taken
    stored, size = os.stat(file).st_size, dtype.itemsize * count_values(shape)
    if file.suffix.lower() == ".gz":
        check_unpacked_size(size, stored)
    elif volume.dataobj.offset + size > stored:
        raise ValueError(f"truncated: an array of {shape} {dtype} does not fit into the file")
    others = shape[2:]
    names = [f"{n} along axis {axis}" for axis, n in enumerate(others, 3) if n > 1]
    axes = f"axes {' x '.join(map(str, shape))}: {' x '.join(names)} as slices, in planes of axes 1 and 2"

    def read(number: int) -> np.ndarray:
        place = np.unravel_index(number, others[::-1])[::-1] if others else ()
        values = unpack_file(file, "") if file.suffix.lower() == ".gz" else volume.dataobj
        plane = as_native(values[(slice(None), slice(None), *map(int, place))])
        if plane.dtype.names:  # colours
            plane = np.stack([plane[channel] for channel in plane.dtype.names[:3]], axis=-1)
        return np.ascontiguousarray(plane.swapaxes(0, 1))

    unit = NIFTI_UNITS.get(volume.header.get_xyzt_units()[0])
    width, height = (float(zoom) for zoom in volume.header.get_zooms()[:2])
    spacing = (unit * height, unit * width) if unit and min(height, width) > 0 else None
    return Stack(count_values(others), read, axes if names else "", spacing)


# DICOM


def open_dicom(file: Path, colours: bool | None) -> Stack:
    """Return the frames of a DICOM file: grey values that grow with brightness, or RGB.

    Rescale slope and intercept are applied, windows are not.

    Raises:
        NotImplementedError: for tiles of a slide, and values without a direct meaning.
        ValueError: if the file is damaged or has no pixels.
    """
    require_package(file, "pydicom")
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import get_decoder

    if str(read_file_meta_info(file).get("TransferSyntaxUID", "")) == DEFLATED:
        raise NotImplementedError(
            "a deflated file; write it with another transfer syntax, dcmconv +te"
        )
    header = pydicom.dcmread(file, stop_before_pixels=True)
    if header.get("SOPClassUID") == SLIDE_STORAGE:
        raise NotImplementedError("tiles of a slide; convert it: bfconvert IN.dcm OUT.ome.tif")
    if "Rows" not in header or "PhotometricInterpretation" not in header:
        raise ValueError("it holds no pixels")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise NotImplementedError(f"{syntax.name}; decompress it: gdcmconv --raw IN.dcm OUT.dcm")
    frames = int(header.get("NumberOfFrames", 1) or 1)

    def read(number: int) -> np.ndarray:
        return read_frame(file, header, number, colours)

    axes = f"{frames} frames as slices" if frames > 1 else ""
    return Stack(frames, read, axes, dicom_spacing(header))


def read_frame(file: Path, header: Any, number: int, colours: bool | None) -> np.ndarray:
    """Return a frame of a DICOM file, (H, W) or (H, W, 3)."""
    from pydicom import pixels

    # Decoded, with YBR as RGB
    frame = pixels.pixel_array(file, index=number)
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        frame = pixels.apply_color_lut(frame, header) if colours is not False else frame
    # The smallest value of MONOCHROME1 is white: inverted within the bits that are used
    if kind == "MONOCHROME1":
        frame = invert_grey(frame, int(header.BitsStored))
    # Rescale slope and intercept, of the file or of the frame
    rescale = functional_group(header, "PixelValueTransformationSequence", number)
    if header.get("ModalityLUTSequence"):
        text = "its Modality LUT is not applied; the values are read as stored: apply it first"
        warn_once(file, "ModalityLUTSequence", text)
    slope, intercept = (
        float(rescale.get(f"Rescale{n}", v)) for n, v in (("Slope", 1), ("Intercept", 0))
    )
    if (slope, intercept) == (1, 0):
        return frame
    return frame * np.float64(slope) + np.float64(intercept)


def invert_grey(frame: np.ndarray, bits: int) -> np.ndarray:
    """Return grey values of that many bits, of which the smallest is white, so that the largest is."""
    if frame.dtype.kind == "i":
        return -1 - frame
    return frame.dtype.type(2**bits - 1) - frame


def functional_group(header: Any, name: str, number: int) -> Any:
    """Return the item of a DICOM sequence for a frame: of the frame, of all frames, or the file itself."""
    groups = [*header.get("PerFrameFunctionalGroupsSequence", ())[number : number + 1]]
    for group in [*groups, *header.get("SharedFunctionalGroupsSequence", ())]:
        if item := group.get(name):
            return item[0]
    return header


def dicom_spacing(header: Any) -> tuple[float, float] | None:
    """Return the height and width of a pixel in um that PixelSpacing gives, in mm; None without it."""
    sides = functional_group(header, "PixelMeasuresSequence", 0).get("PixelSpacing")
    if sides is None or len(sides) != 2 or min(sides) <= 0:
        return None
    return 1e3 * float(sides[0]), 1e3 * float(sides[1])
