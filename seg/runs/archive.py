"""Check a checkpoint before it is loaded: its records, and the tensors and values that its pickle declares.

``torch.load(weights_only=True)`` runs no code, but uses as much memory and time as a file demands: records that
unpack to a thousand times their size, storages longer than their record, tensors of one number expanded to
billions, containers that hold each other many times. All of these are refused here, by reading only the archive's
directory and its pickle, so that loading needs little more memory than the file is large.

Legend: record = a file in the archive; storage = memory that one or more tensors are views of.
"""

import collections
import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from seg.files import MIB, open_regular

CHECKPOINT_LIMIT = 64 * 2**30  # bytes; 5e9 weights with their optimiser's state
DIRECTORY_LIMIT = 16 * MIB  # bytes of the archive's directory; about 100 per tensor
PICKLE_LIMIT = 16 * MIB  # about 300 bytes per tensor
MAX_RECORDS = 100_000  # networks have some hundred tensors, optimisers twice as many
MAX_VALUES = 1_000_000  # values and containers; a shared one counts at each place
MAX_NESTING = 50  # levels of nested containers
MAX_INT64 = 2**63 - 1
END_SIGNATURE, END_64_SIGNATURE, LOCATOR_SIGNATURE = (
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
)  # signatures of zip
RECORD_NAME = re.compile(r"[\w./-]{1,100}", re.ASCII)
LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # header of a record: signature, lengths of name and extra field
ALLOWED_OPCODES = frozenset({  # accepted by torch.load(weights_only=True)
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINSTRING",
    "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
})  # fmt: skip


class ArchiveError(ValueError):
    """A checkpoint that is damaged or demands more memory than its size; the message omits the file's name."""


@dataclass(frozen=True)
class DeclaredStorage:
    """Storage declared in a pickle.

    Attributes:
        key: name of its record.
        dtype: type of its numbers.
        count: number of elements.
    """

    key: str
    dtype: torch.dtype
    count: int

    def __setstate__(self, state: Any) -> None:
        raise ArchiveError("a storage is changed after it was declared")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class DeclaredTensor:
    """Tensor declared in a pickle.

    Attributes:
        storage: storage that the tensor is a view of.
        shape: shape of the tensor.
    """

    storage: DeclaredStorage
    shape: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise ArchiveError("a tensor is changed after it was declared")

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        return self.storage.dtype

    @property
    def size(self) -> int:
        """Size of a copy in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def declare_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> DeclaredTensor:
    """Return the tensor that ``torch._utils._rebuild_tensor_v2`` would make of these arguments.

    Raises:
        Refused: if it exceeds its storage, or repeats elements of it.
    """
    numbers = (offset, *shape, *stride) if type(shape) is tuple and type(stride) is tuple else ()
    if type(storage) is not DeclaredStorage or not numbers or len(shape) != len(stride):
        raise ArchiveError("a tensor is not declared as torch.save does")
    if not all(type(n) is int and 0 <= n <= MAX_INT64 for n in numbers):
        raise ArchiveError("a tensor has an invalid size")
    if 0 in shape:
        return DeclaredTensor(storage, shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if last >= storage.count:
        raise ArchiveError("a tensor is larger than its storage")
    reach = 1  # elements covered by the dimensions so far
    for step, size in sorted(
        (step, size) for size, step in zip(shape, stride, strict=True) if size > 1
    ):
        if step < reach:
            raise ArchiveError("a tensor repeats elements of its storage")
        reach = (size - 1) * step + reach
    return DeclaredTensor(storage, shape)


def declare_parameter(tensor: Any, *rest: Any) -> DeclaredTensor:
    """Return the tensor of a parameter; takes the arguments of ``torch._utils._rebuild_parameter``."""
    if type(tensor) is not DeclaredTensor:
        raise ArchiveError("a parameter is not declared as torch.save does")
    return tensor


def decode_bytes(text: str, encoding: str) -> bytes:
    """Return bytes, which a pickle of protocol 2 stores as text."""
    if encoding != "latin1":
        raise ArchiveError(f"has bytes in the encoding {encoding!r:.20}")
    return text.encode(encoding)


STORAGE_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
DTYPE_NAMES = frozenset(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES.values())
ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {  # global names that a pickle may use
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): declare_tensor,
    ("torch._utils", "_rebuild_parameter"): declare_parameter,
    ("torch", "Size"): torch.Size,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): decode_bytes,
} | {("torch", f"{name}Storage"): dtype for name, dtype in STORAGE_DTYPES.items()}


class SkeletonUnpickler(pickle.Unpickler):
    """Unpickler of a checkpoint without its numbers; imports and calls nothing that the pickle names.

    Args:
        content: content of data.pkl.
        sizes: record name -> size in bytes.
    """

    def __init__(self, content: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" and name in DTYPE_NAMES else None
        target = dtype or ALLOWED_GLOBALS.get((module, name))
        if target is None:
            raise ArchiveError(
                f"holds more than weights and plain values ({module}.{name}); it is not loaded"
            )
        return target

    def persistent_load(self, pid: Any) -> DeclaredStorage:
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise ArchiveError("a storage is declared in no way that torch.save writes")
        _, dtype, key, _, count = pid
        known = isinstance(dtype, torch.dtype) and type(key) is str and type(count) is int
        if not known or not 0 <= count <= MAX_INT64:
            raise ArchiveError("a storage is declared in no way that torch.save writes")
        storage = DeclaredStorage(key, dtype, count)
        if self.sizes.get(f"data/{key}") != storage.size:
            raise ArchiveError(
                f"the record of storage {key[:20]!r} is missing, or has another length than declared"
            )
        return storage


def read_skeleton(file: Path) -> Any:
    """Return the content of a checkpoint with a ``DeclaredTensor`` in the place of each tensor.

    Raises:
        Refused: if it is not an archive of torch.save, or would need more memory or time than its size.
        UnsafePath: if it is not a regular file, or too large.
        OSError: if it cannot be read.
    """
    with open_regular(file, CHECKPOINT_LIMIT) as stream:
        try:
            sizes, content = read_records(stream)
            check_opcodes(content)
            skeleton = SkeletonUnpickler(content, sizes).load()
        except ArchiveError:
            raise
        except OSError:
            raise
        except Exception as error:  # a pickle can raise anything
            raise ArchiveError(f"{type(error).__name__}: {error}") from error
    tensors = sum(value.size for value in walk_skeleton(skeleton) if type(value) is DeclaredTensor)
    if tensors > 2 * sum(sizes.values()):  # factor 2: weights that a network uses twice
        raise ArchiveError(
            "its tensors share storages, and would need more memory than the file is large"
        )
    return skeleton


def read_records(stream: BinaryIO) -> tuple[dict[str, int], bytes]:
    """Return the size of each record by name, and the content of data.pkl.

    Raises:
        Refused: if a record is compressed, encrypted, duplicate or overlaps another.
    """
    check_directory(stream)
    with zipfile.ZipFile(stream) as archive:
        records = archive.infolist()
        sizes: dict[str, int] = {}
        end = 0
        for record in sorted(records, key=lambda record: record.header_offset):
            if (
                record.compress_type != zipfile.ZIP_STORED
                or record.compress_size != record.file_size
            ):
                raise ArchiveError("its records are compressed; torch.save does not compress")
            if record.flag_bits & 1 or record.header_offset < end:
                raise ArchiveError("its records are encrypted or overlap")
            stream.seek(record.header_offset)
            signature, *lengths = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise ArchiveError("a record is not where the directory says")
            end = record.header_offset + LOCAL_HEADER.size + sum(lengths) + record.file_size
            top, _, name = record.filename.partition("/")
            if not RECORD_NAME.fullmatch(name) or top != records[0].filename.partition("/")[0]:
                raise ArchiveError("a record has a name that torch.save does not use")
            sizes[name] = record.file_size
        if len({name.lower() for name in sizes}) < len(records):  # torch ignores case
            raise ArchiveError("a record name occurs twice")
        if end > archive.start_dir:
            raise ArchiveError("a record is longer than the file")
        if "data.pkl" not in sizes:
            raise ArchiveError("it has no data.pkl")
        if sizes["data.pkl"] > PICKLE_LIMIT:
            raise ArchiveError(
                f"data.pkl has {sizes['data.pkl']} bytes; at most {PICKLE_LIMIT} are read"
            )
        return sizes, archive.read(f"{top}/data.pkl")


def check_directory(stream: BinaryIO) -> None:
    """Raise Refused unless a zip archive ends like those of torch.save, with a directory of limited size."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 98))  # end records: zip64 56 bytes, its locator 20, zip 22
    tail = stream.read(98)
    if tail[-22:-18] != END_SIGNATURE:
        raise ArchiveError("not a zip archive as torch.save writes it, or cut off")
    count, length, start = struct.unpack("<HII", tail[-12:-2])
    ends = size - 22
    if tail[-42:-38] == LOCATOR_SIGNATURE:
        if tail[-98:-94] != END_64_SIGNATURE or struct.unpack("<Q", tail[-34:-26])[0] != size - 98:
            raise ArchiveError("not a zip archive as torch.save writes it")
        count, length, start = struct.unpack("<QQQ", tail[-66:-42])
        ends = size - 98
    if start + length != ends:
        raise ArchiveError("the archive's directory is not where its end record says")
    if count > MAX_RECORDS or length > DIRECTORY_LIMIT:
        raise ArchiveError(f"{count} records; at most {MAX_RECORDS} are read")


def check_opcodes(content: bytes) -> None:
    """Raise Refused unless a pickle has only opcodes that torch.load accepts, and memo indices in order.

    Python's unpickler allocates memory by the largest memo index.
    """
    stored = containers = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        containers += opcode.name.startswith("EMPTY")
        if max(number // 2, containers) > MAX_VALUES:
            raise ArchiveError(f"more than {MAX_VALUES} values")
        if opcode.name not in ALLOWED_OPCODES:
            raise ArchiveError(
                f"holds more than weights and plain values ({opcode.name}); it is not loaded"
            )
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            stored += 1
            if not isinstance(argument, int) or argument > stored:
                raise ArchiveError("its pickle is not as torch.save writes it")


def walk_skeleton(content: Any) -> Iterator[Any]:
    """Yield every value of a skeleton; a shared value once per place.

    Raises:
        Refused: for more than 1,000,000 values, 50 levels, or integers of more than 64 bits.
    """
    level, count = [content], 0
    for _ in range(MAX_NESTING):
        below: list[Any] = []
        for value in level:
            yield value
            if type(value) is int and not -MAX_INT64 - 1 <= value <= MAX_INT64:
                raise ArchiveError("a number of more than 64 bits")
            inner = contained_values(value)
            count += len(inner)
            if count > MAX_VALUES:
                raise ArchiveError(
                    f"more than {MAX_VALUES} values, shared ones counted at each place"
                )
            below += inner
        if not below:
            return
        level = below
    raise ArchiveError(f"it nests more than {MAX_NESTING} levels deep")


def contained_values(value: Any) -> list[Any]:
    """Return the values in a container, including keys and attributes; an empty list for a plain value."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values(), *getattr(value, "__dict__", {}).values()]
    return list(value) if isinstance(value, list | tuple | set) else []
