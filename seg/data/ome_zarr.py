"""OME-Zarr: images in chunks, in a folder or on a server, of which only the touched chunks are read.

NGFF 0.1 to 0.5 are read (Zarr 2 and 3): the largest level of the first multiscale image. C are the channels of an
image, T, Z and further axes are slices, each an image.

A store is untrusted. Types are numbers, codecs are those of ``COMPRESSORS`` and run no code, files are regular, and
neither metadata nor a chunk may take more memory than its limit, whatever its bytes unpack to.
"""

import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import imagecodecs
import numpy as np

from seg.data.tiff_layout import PagesOption
from seg.errors import DataError, install_command, missing_extra_hint

if TYPE_CHECKING:
    from zarr import Array, Group
    from zarr.abc.store import Store

ZARR_SUFFIXES = {".zarr"}
ADDRESS = re.compile(r"(s3|https?|memory)://[^/]", re.IGNORECASE)  # of a server that fsspec reads
METADATA_FILES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
MAX_METADATA = 2**24  # bytes of a metadata file
MAX_CHUNK = 2**30  # bytes of a decoded chunk
MAX_KEPT = 2**27  # bytes of a band of chunks that is kept for the next rows
SPARE = 2**16  # bytes that an encoded chunk may have beside its pixels: headers and checksums
COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4")
PLAIN_CODECS = ("bytes", "transpose", "crc32c")  # those that keep the size
GZIP_START = b"\x1f\x8b"
NO_SIZE = 2**64 - 1  # offset of a chunk that a shard lacks
ZSTD_SIZE_BYTES = {0: 0, 1: 2, 2: 4, 3: 8}  # flag of a zstd frame -> bytes of its content size
OLD_AXES = ("t", "c", "z", "y", "x")  # of NGFF 0.1 and 0.2
LENGTHS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4,
           "meter": 1e6}  # unit of NGFF -> um  # fmt: skip


class RemotePath(type(Path())):  # ty: ignore[unsupported-base]
    """Address of a store on a server, ``s3://bucket/a.ome.zarr``, in the place of a path."""

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/+", r"\1://", super().__str__())


def image_path(text: str | Path, where: str = "") -> Path:
    """Return the path of an image; of an address a ``RemotePath``; see ``check_address``."""
    return check_address(str(text), where) if "://" in str(text) else Path(text)


def check_address(text: str, where: str) -> Path:
    """Return the path of an address.

    Raises:
        DataError: if its protocol is not read, or it is no OME-Zarr by its name; ``where`` begins the message.
    """
    path = RemotePath(text)
    if not ADDRESS.match(text) or not is_store(path):
        raise DataError(
            f"{where or text}: {f'{text}: ' * bool(where)}an address that is not read; s3://, https:// and http:// lead to an "
            "OME-Zarr, NAME.ome.zarr: copy other images to this machine"
        )
    return path


def is_store(file: Path) -> bool:
    """Return True if a path is an OME-Zarr by its name: a folder, or on a server."""
    return file.suffix.lower() in ZARR_SUFFIXES


def store_files(file: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files of a store that is a folder."""
    folders = [os.fspath(file)]
    while folders:
        for entry in os.scandir(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                yield entry


def store_state(file: Path) -> list[int]:
    """Return numbers that change when a store does: size in bytes and time in ns; of a server those of its metadata.

    Raises:
        OSError: if there is no such store, or the server can't be reached.
        DataError: if an extra is missing.
    """
    if not isinstance(file, RemotePath):
        states = [entry.stat() for entry in store_files(file)]
        return [sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    store = open_store(file)
    try:
        found = [sync(store.get(key, default_buffer_prototype())) for key in METADATA_FILES]
    except Exception as error:  # of the protocol
        raise OSError(f"{file}: {error}") from error
    content = b"".join(b"" if one is None else one.to_bytes() for one in found)
    if not content:
        raise FileNotFoundError(f"{file}: no such store")
    return [len(content), zlib.crc32(content)]


class Encoding(NamedTuple):
    """Encoding of the chunks of an array.

    Attributes:
        size: bytes of a decoded chunk.
        compressor: one of ``COMPRESSORS``; None: none.
        shard: number of chunks of a shard; 0: each chunk is a file.
        index_size: bytes of a shard's index.
        index_first: whether it lies at the start of the shard.
    """

    size: int
    compressor: str | None
    shard: int = 0
    index_size: int = 0
    index_first: bool = False

    def check_size(self, stored: int) -> None:
        """Raise ValueError if a chunk is stored in more bytes than it may have."""
        if stored > self.size + self.size // 8 + SPARE:
            raise ValueError(f"a chunk of {self.size} bytes is stored in {stored}")

    def check_chunk(self, data: bytes) -> None:
        """Raise ValueError if the bytes of a chunk unpack to more than its size."""
        self.check_size(len(data))
        if self.compressor and data and not unpacks_within(data, self.compressor, self.size + SPARE):  # fmt: skip
            raise ValueError(f"a chunk of {self.size} bytes unpacks to more")

    def check_shard(self, data: bytes) -> None:
        """Raise ValueError if a chunk of a whole shard unpacks to more than its size."""
        start = 0 if self.index_first else len(data) - self.index_size
        index = np.frombuffer(data[max(0, start) :], "<u8", 2 * self.shard).reshape(-1, 2)
        for offset, size in index[index[:, 0] != NO_SIZE].tolist():
            self.check_chunk(data[offset : offset + size])


def unpacks_within(data: bytes, compressor: str, limit: int) -> bool:
    """Return True if compressed bytes unpack to at most that many bytes, by their header or by unpacking so many."""
    if compressor == "blosc":
        return int.from_bytes(data[4:8], "little") <= limit
    if compressor == "lz4":
        return int.from_bytes(data[:4], "little") <= limit
    if compressor == "zstd":
        # Frame: magic number, flags, window (unless one segment), dictionary, size of the content
        flags = data[4] if len(data) > 4 else 0
        single = bool(flags & 32)
        start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        length = ZSTD_SIZE_BYTES[flags >> 6] or int(single)
        if length:
            offset = 256 if length == 2 else 0
            return int.from_bytes(data[start : start + length], "little") + offset <= limit
        return len(imagecodecs.zstd_decode(data, out=limit)) <= limit
    size, rest = 0, data
    while rest and size <= limit:
        stream = zlib.decompressobj(wbits=47)  # gzip or zlib, by the header
        while rest and size <= limit:
            size += len(stream.decompress(rest, 2**20))
            rest = stream.unconsumed_tail
        more = stream.unused_data  # a further member of gzip, or a checksum
        rest = rest or (more if more[:2] == GZIP_START else b"")
    return size <= limit


def open_store(file: Path) -> "Store":
    """Return the store of an OME-Zarr, read-only and with limits.

    Raises:
        DataError: if an extra is missing or there is no such folder.
    """
    if hint := missing_extra_hint("zarr"):
        raise DataError(file=file, found=hint, kind="unreadable")
    from seg.data.checked_store import CheckedStore

    if not isinstance(file, RemotePath):
        if not file.is_dir():
            found = "no folder, as an OME-Zarr is" if file.exists() else "no such file or folder"
            raise DataError(file=file, found=found, kind="unreadable")
        return CheckedStore.of_folder(file)
    try:
        return CheckedStore.of_address(str(file))
    except ImportError as error:
        extra = "s3" if str(file).lower().startswith("s3") else "zarr"
        raise DataError(
            file=file, found=f"needs the extra {extra}: {install_command(extra)}", kind="unreadable"
        ) from error  # fmt: skip


class ImageMetadata(NamedTuple):
    """Metadata of a multiscale image.

    Attributes:
        path: of the array of its largest level, from the store's root on.
        axes: names in the order of the array, lower case.
        scale: name of an axis -> length of a pixel.
        units: name of an axis -> its unit; empty: none.
        levels: number of levels.
        version: of Zarr's format, 2 (NGFF 0.1 to 0.4) or 3 (0.5).
    """

    path: str
    axes: tuple[str, ...]
    scale: dict[str, float]
    units: dict[str, str]
    levels: int
    version: Literal[2, 3]

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Height and width of a pixel, um; None: not known."""
        height, width = (self.scale.get(n, 0) * LENGTHS.get(self.units.get(n, ""), 0) for n in "yx")
        known = min(height, width) > 0 and math.isfinite(height + width)
        return (height, width) if known else None


def read_metadata(store: "Store", file: Path) -> ImageMetadata:
    """Return the metadata of the first multiscale image of a store.

    Raises:
        DataError: if it is no image, or a collection of several.
    """
    import zarr

    group = zarr.open_group(store, mode="r", use_consolidated=False)
    root, prefix = image_attributes(group), ""
    if "multiscales" not in root and "bioformats2raw.layout" in root:
        if has_group(store, "1"):
            raise DataError(
                file=file, found="a collection of several images", expected="one image",
                remedy="copy each out as a .zarr folder of its own: FILE/0, FILE/1, ...", kind="unreadable",
            )  # fmt: skip
        group, prefix = zarr.open_group(store, path="0", mode="r", use_consolidated=False), "0/"
        root = image_attributes(group)
    if "plate" in root or "well" in root:
        raise DataError(
            file=file, found="a plate or a well of many images", expected="one image",
            remedy="copy each field out as a .zarr folder of its own: FILE/A/1/0, ...", kind="unreadable",
        )  # fmt: skip
    try:
        image = root["multiscales"][0]
        level = image["datasets"][0]
        axes, units = read_axis_names(image.get("axes", OLD_AXES))
        scale = [1.0] * len(axes)
        for part in (level, image):
            for one in part.get("coordinateTransformations", ()):
                if one.get("type") == "scale":
                    scale = [a * float(b) for a, b in zip(scale, one["scale"], strict=True)]
        path, levels = f"{prefix}{level['path']}", len(image["datasets"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            file=file, found="no metadata of an OME-Zarr image (multiscales, NGFF 0.1 to 0.5)", kind="unreadable"
        ) from error  # fmt: skip
    sizes = dict(zip(axes, scale, strict=True))
    return ImageMetadata(path, axes, sizes, units, levels, group.metadata.zarr_format)


def image_attributes(group: "Group") -> dict[str, Any]:
    """Return the attributes that NGFF defines of a group; from 0.5 on they are under ``ome``."""
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return attributes | inner if isinstance(inner, dict) else attributes


def has_group(store: "Store", path: str) -> bool:
    """Return True if a store has a group of that path."""
    import zarr

    try:
        zarr.open_group(store, path=path, mode="r", use_consolidated=False)
    except FileNotFoundError:
        return False
    return True


def read_axis_names(axes: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of the axes, lower case, and name -> unit; names alone, as in NGFF 0.3, have none.

    An axis of type channel is c, whatever its name.
    """
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    names = tuple("c" if a.get("type") == "channel" else str(a["name"]).lower() for a in named)
    units = (str(axis.get("unit", "")) for axis in named)
    return names, dict(zip(names, units, strict=True))


def find_encoding(array: "Array") -> Encoding:
    """Return the encoding of an array's chunks.

    Raises:
        NotImplementedError: for types that are no numbers, codecs that are not read, and chunks that are too large.
    """
    dtype = array.dtype
    if dtype.kind not in "buif":
        raise NotImplementedError(f"values of type {dtype}; numbers are needed")
    size = math.prod(array.chunks) * dtype.itemsize
    if size > MAX_CHUNK:
        raise NotImplementedError(
            f"chunks of {size >> 20} MiB; at most {MAX_CHUNK >> 20} MiB are read"
        )
    metadata: dict[str, Any] = array.metadata.to_dict()
    if array.metadata.zarr_format == 2:
        return Encoding(size, choose_compressor(v2_codecs(metadata)))
    codecs = metadata["codecs"]
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return Encoding(size, choose_compressor([codec["name"] for codec in codecs]))
    shard = codecs[0]["configuration"]
    index_codecs = [codec["name"] for codec in shard["index_codecs"]]
    if index_codecs not in (["bytes"], ["bytes", "crc32c"]):
        raise NotImplementedError(f"an index of shards by {', '.join(index_codecs)}")
    assert array.shards is not None
    number = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    compressor = choose_compressor([codec["name"] for codec in shard["codecs"]])
    index_size = 16 * number + 4 * (len(index_codecs) - 1)
    return Encoding(size, compressor, number, index_size, shard["index_location"] == "start")


def v2_codecs(metadata: dict[str, Any]) -> list[str]:
    """Return the names of the filters and the compressor of Zarr 2."""
    given = [*(metadata["filters"] or ()), metadata["compressor"]]
    configs = [one if isinstance(one, dict) else one.get_config() for one in given if one]
    return [str(config["id"]) for config in configs]


def choose_compressor(codecs: list[str]) -> str | None:
    """Return the one compressor among codecs; None if there is none.

    Raises:
        NotImplementedError: if there is another codec, or there are several compressors.
    """
    names = [codec.removeprefix("numcodecs.") for codec in codecs]
    found = [name for name in names if name not in PLAIN_CODECS]
    if other := [name for name in found if name not in COMPRESSORS]:
        raise NotImplementedError(f"the codec {other[0]}; these are read: {', '.join(COMPRESSORS)}")
    if len(found) > 1:
        raise NotImplementedError(f"several compressors: {', '.join(found)}")
    return found[0] if found else None


class ZarrImages:
    """Images of an OME-Zarr: the planes of its largest level, whose rows are read on demand.

    Args:
        file: folder or address.
        pages: ``slices``: each plane is an image; ``channels``: all planes are the channels of one; None: by the axes.

    Attributes:
        length: number of images.
        height: px.
        axes: text of the axes for messages; empty for one plane.
        metadata: of the store.
        sizes: name -> length of the axes of the images, in the order of the array.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, file: Path, pages: PagesOption | None = None) -> None:
        self.store: Any = open_store(file)
        import zarr

        self.metadata = read_metadata(self.store, file)
        names = self.metadata.axes
        self.array = zarr.open_array(self.store, path=self.metadata.path, mode="r")
        if len(set(names)) != self.array.ndim or len(names) != self.array.ndim:
            raise ValueError(f"axes {', '.join(names)} of an array of shape {self.array.shape}")
        if not {"y", "x"} <= set(names):
            raise NotImplementedError(f"axes {', '.join(names)}; y and x are needed")
        self.store.encoding = find_encoding(self.array)
        lengths = dict(zip(names, self.array.shape, strict=True))
        self.height = lengths["y"]
        inner = {"y", "x"} | ({"c"} if pages is None else set())
        self.sizes = {name: size for name, size in lengths.items() if name not in inner}
        self.together = pages == "channels"
        count = math.prod(self.sizes.values())
        self.length, self.planes = (1, count) if self.together else (count, 1)
        self.axes = describe_zarr_axes(lengths) if max([1, *self.others(lengths)]) > 1 else ""
        self.kept: tuple[int, int, int, np.ndarray] | None = None

    @staticmethod
    def others(lengths: dict[str, int]) -> list[int]:
        """Return the lengths of the axes that are neither y nor x."""
        return [size for name, size in lengths.items() if name not in "yx"]

    @property
    def chunk_rows(self) -> int:
        """Number of rows of a chunk."""
        return self.array.chunks[self.metadata.axes.index("y")]

    def empty_row(self) -> np.ndarray:
        """Return a row of zeros, (1, W) or (1, W, C), of the images' width, channels and type; nothing is read."""
        lengths = dict(zip(self.metadata.axes, self.array.shape, strict=True))
        channels = (
            self.planes if self.together else (1 if "c" in self.sizes else lengths.get("c", 1))
        )
        dtype = self.array.dtype.newbyteorder("=")
        return np.zeros((1, lengths["x"], channels) if channels > 1 else (1, lengths["x"]), dtype)

    def rows(self, number: int, start: int, stop: int) -> np.ndarray:
        """Return rows of an image, (h, W) or (h, W, C), in the machine's byte order."""
        stop = min(stop, self.height)
        if not self.together:
            return self.plane_rows(number, start, stop)
        return np.stack([self.plane_rows(n, start, stop) for n in range(self.planes)], axis=-1)

    def plane_rows(self, number: int, start: int, stop: int) -> np.ndarray:
        """Return rows of a plane; the chunks that hold them are kept for the next rows."""
        deep = self.chunk_rows
        low, high = start // deep * deep, min(-(-stop // deep) * deep, self.height)
        if self.kept is None or self.kept[0] != number or self.kept[1] > start or self.kept[2] < stop:  # fmt: skip
            band = self.decode(number, low, high)
            if band.nbytes > MAX_KEPT:
                return band[start - low : stop - low]
            self.kept = (number, low, high, band)
        _, low, _, band = self.kept
        return band[start - low : stop - low]

    def decode(self, number: int, start: int, stop: int) -> np.ndarray:
        """Return rows of a plane, from the chunks that hold them."""
        place = dict(zip(self.sizes, np.unravel_index(number, tuple(self.sizes.values())), strict=True))  # fmt: skip
        spans = {"y": slice(start, stop)}
        names = self.metadata.axes
        index = tuple(int(place[n]) if n in place else spans.get(n, slice(None)) for n in names)
        found = np.asarray(self.array[index])
        left = [name for name in names if name not in place]
        order = [left.index(name) for name in ("y", "x", "c") if name in left]
        pixels = found.transpose(order)
        pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
        return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels


def describe_zarr_axes(lengths: dict[str, int]) -> str:
    """Return the axes of an array, ``axes TCZYX: 2 x 5 slices (T x Z) of 3 channels``."""
    slices = {n.upper(): str(size) for n, size in lengths.items() if n not in "cyx" and size > 1}
    text = f"{' x '.join(slices.values())} slices ({' x '.join(slices)})" if slices else "one image"
    channels = f" of {lengths['c']} channels" if lengths.get("c", 1) > 1 else ""
    return f"axes {''.join(lengths).upper()}: {text}{channels}"
