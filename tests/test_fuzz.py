"""Damaged files: told by name, or read at their full size; never another error, a hang, or a missing image.

What no reader can see: a flipped bit in pixels stored without a checksum. BMP, PPM and plain TIFF then give
another value, GIF, LZW, PackBits, JPEG and WebP other pixels up to the end of the row, strip or image; all of
the right size. PNG and Deflate in TIFF have checksums, and only a flip in the last bytes of a PNG's pixels, which
Pillow doesn't check, or in a TIFF's directory (how many bits, which predictor) is missed.
"""

import csv
import io
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from format_files import dicom, nifti
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from seg.data.datasets.folder import Folder
from seg.data.image_io import read_pages
from seg.errors import DataError

ABC = ["a", "b", "c"]
SIZE = (40, 32)
SLOW = 8.0  # seconds; a file takes 2 ms
BOUNDED = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

RNG = np.random.default_rng(0)
MASK = np.kron(RNG.integers(0, 3, (5, 4)), np.ones((8, 8))).astype(np.uint8)
MASK[::3, ::5] = 1  # so that compressed rows differ
GREY = (np.add.outer(np.arange(40) * 3, np.arange(32) * 2) + RNG.integers(0, 30, SIZE)).astype(
    np.uint8
)
COLOUR = np.dstack([GREY, GREY[::-1], RNG.integers(0, 256, SIZE, np.uint8)])
STACK = np.stack([GREY, GREY[::-1], 255 - GREY])
MASKS = np.stack([MASK, MASK[::-1], 2 - MASK])


def by_pillow(pixels: np.ndarray, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def by_tifffile(pixels: np.ndarray, apart: bool = False, **options) -> bytes:
    buffer = io.BytesIO()
    grey = pixels.shape[-1] != 3
    options = {"photometric": "minisblack" if grey else "rgb"} | options
    kind = {"imagej": options.pop("imagej", False), "ome": options.pop("ome", None)}
    with tifffile.TiffWriter(buffer, **kind) as tiff:
        for page in pixels if apart else [pixels]:
            tiff.write(page, contiguous=False, **options)
    return buffer.getvalue()


def by_file(write: Callable, suffix: str, pixels: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"a{suffix}")
        write(file, pixels)
        return file.read_bytes()


LAYOUTS = {
    "plain": {}, "zlib": {"compression": "zlib"}, "rows": {"rowsperstrip": 8},
    "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 8},
    "zlib rows": {"compression": "zlib", "rowsperstrip": 8}, "packbits": {"compression": "packbits", "rowsperstrip": 8},
    "tiles": {"tile": (16, 16)}, "zlib tiles": {"tile": (16, 16), "compression": "zlib"},
    "jpeg": {"compression": "jpeg", "tile": (16, 16)},
}  # fmt: skip
IMAGES = {  # name of a file -> its bytes: pictures
    "png.png": by_pillow(COLOUR, "PNG"),
    "grey.png": by_pillow(GREY, "PNG"),
    "16.png": by_pillow(GREY.astype(np.uint16) * 257, "PNG"),
    "jpg.jpg": by_pillow(COLOUR, "JPEG", quality=90),
    "progressive.jpg": by_pillow(COLOUR, "JPEG", progressive=True),
    "bmp.bmp": by_pillow(COLOUR, "BMP"),
    "webp.webp": by_pillow(COLOUR, "WEBP", lossless=True),
    "lossy.webp": by_pillow(COLOUR, "WEBP"),
    "gif.gif": by_pillow(GREY, "GIF"),
    "ppm.ppm": by_pillow(COLOUR, "PPM"),
    "pgm.pgm": by_pillow(GREY, "PPM"),
    "jp2.jp2": by_pillow(COLOUR, "JPEG2000"),
    "deep.jp2": imagecodecs.jpeg2k_encode(GREY.astype(np.uint16) * 257, level=0, codecformat="jp2"),
    "lossy.avif": by_pillow(COLOUR, "AVIF"),
    "npy.npy": by_file(np.save, ".npy", COLOUR),
    "npz.npz": by_file(np.savez_compressed, ".npz", COLOUR),
    "dcm.dcm": by_file(dicom, ".dcm", GREY),
    "nii.nii": by_file(nifti, ".nii", GREY.T),
    "nii.nii.gz": by_file(nifti, ".nii.gz", GREY.T),
    "ome.tif": by_tifffile(COLOUR.transpose(2, 0, 1), ome=True, metadata={"axes": "CYX"}),
    "channels.tif": by_tifffile(COLOUR.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
    **{f"{name}.tif": by_tifffile(COLOUR, **options) for name, options in LAYOUTS.items()},
    "planes.tif": by_tifffile(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
}  # fmt: skip
INDICES = {  # masks of one class index a pixel
    "png.png": by_pillow(MASK, "PNG"),
    "bmp.bmp": by_pillow(MASK, "BMP"),
    "gif.gif": by_pillow(MASK, "GIF"),
    **{f"{n}.tif": by_tifffile(MASK, **o) for n, o in LAYOUTS.items() if n != "jpeg"},
}
HIDDEN = {"imagej": True, "truncate": True}
STACKS = {
    "together.tif": by_tifffile(STACK),
    "apart.tif": by_tifffile(STACK, apart=True),
    "zlib.tif": by_tifffile(STACK, apart=True, compression="zlib", rowsperstrip=8),
    "imagej.tif": by_tifffile(STACK, imagej=True),
    "hidden.tif": by_tifffile(STACK, **HIDDEN),
    "shaped.tif": by_tifffile(STACK, truncate=True),
}
LABELS = {
    "together.tif": by_tifffile(MASKS),
    "apart.tif": by_tifffile(MASKS, apart=True),
    "hidden.tif": by_tifffile(MASKS, **HIDDEN),
}
KINDS = {"images": IMAGES, "masks": INDICES, "stacks": STACKS, "labels": LABELS}
FILES = [(kind, name) for kind, files in KINDS.items() for name in files]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder for pairs; tests put two good ones there, and one of which a file is damaged."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def silent():
    """Lines that tifffile logs aren't the user's to read; they must not be needed either."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def placed(root: Path, kind: str, name: str, data: bytes) -> tuple[Path, Path]:
    """The folder of a data set of two good pairs beside one with such a file; and that file."""
    folder, suffix = root / kind / name.replace(".", "-"), name[name.index(".") :]
    part = "images" if kind in ("images", "stacks") else "masks"
    file = folder / part / f"odd{suffix}"
    if not folder.exists():
        whole = KINDS[kind][name]
        partner = LABELS["together.tif"] if kind == "stacks" else STACKS["together.tif"]
        if kind in ("images", "masks"):
            partner = INDICES["png.png"] if kind == "images" else IMAGES["png.png"]
        other = "masks" if part == "images" else "images"
        ending = ".png" if kind in ("images", "masks") else ".tif"
        for p in ("images", "masks"):
            (folder / p).mkdir(parents=True)
        for one in ("good", "odd", "so"):
            (folder / part / f"{one}{suffix}").write_bytes(whole)
            (folder / other / f"{one}{ending}").write_bytes(partner)
    file.write_bytes(data)
    return folder, file


def names_of(kind: str) -> list[str]:
    pairs = ["good", "odd", "so"]
    stacked = kind in ("stacks", "labels")
    return [f"{n}-{i}" for n in pairs for i in range(3)] if stacked else pairs


def read_all(root: Path, kind: str, name: str, data: bytes) -> dict[str, tuple] | None:
    """Every pair of the folder with the damaged file; None: it was refused by name, as it should be."""
    folder, file = placed(root, kind, name, data)
    pages = "slices" if kind in ("stacks", "labels") else None
    started = time.perf_counter()
    try:
        source = Folder(str(folder), ABC, pages=pages)
        assert list(source.files) == names_of(kind), "an image is missing"
        found = {one: source.read(one) for one in source.files}
    except DataError as error:
        message = str(error)
        assert str(file) in message and "\n" not in message and len(message) < 500
        return None
    finally:
        assert time.perf_counter() - started < SLOW
    for image, mask in found.values():
        assert image.ndim == 3 and image.dtype in (np.uint8, np.uint16, np.float32)
        assert image.shape[:2] == mask.shape and min(image.shape) > 0
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2, 255}
    return found


def unchanged(found: dict[str, tuple], root: Path, kind: str, name: str) -> None:
    """The pixels are those of the whole file."""
    whole = read_all(root, kind, name, KINDS[kind][name])
    assert whole is not None
    for one in whole:
        for part in (0, 1):
            np.testing.assert_array_equal(found[one][part], whole[one][part])


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_whole_file_is_read_whole(root, kind, name):
    found = read_all(root, kind, name, KINDS[kind][name])
    assert found is not None
    image, mask = found["odd" if kind in ("images", "masks") else "odd-1"]
    truth = {"images": MASK, "masks": MASK, "stacks": MASKS[1], "labels": MASKS[1]}[kind]
    np.testing.assert_array_equal(mask, truth)
    if kind == "stacks":
        np.testing.assert_array_equal(image[..., 0], STACK[1])
    elif (
        kind == "images"
        and "jp" not in name
        and "lossy" not in name
        and name not in ("16.png", "deep.jp2")
    ):
        pixels = COLOUR if image.shape[2] == 3 else GREY
        np.testing.assert_array_equal(image, pixels.reshape(image.shape))


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_cut_off_file_never_gives_an_image_with_missing_rows_or_pages(root, kind, name, step):
    whole = KINDS[kind][name]
    cuts = {
        *range(0, 16, step),
        *range(len(whole) - 24, len(whole), step),
        *range(16, len(whole), step * len(whole) // 24),
    }
    refused = 0
    for cut in cuts:
        found = read_all(root, kind, name, whole[:cut])
        if found is None:
            refused += 1
        else:  # only what follows the pixels is missing
            unchanged(found, root, kind, name)
    assert refused > len(cuts) - 24 // step - 2


@given(st.sampled_from(FILES), st.floats(0, 1), st.integers(0, 7), st.booleans())
@settings(max_examples=100, **BOUNDED)
def test_a_flipped_bit_is_told_or_leaves_an_image_of_a_sane_shape(root, file, where, bit, early):
    kind, name = file
    data = bytearray(KINDS[kind][name])
    if early:  # where headers and directories are
        where *= 0.15
    data[int(where * (len(data) - 1))] ^= 1 << bit
    read_all(root, kind, name, bytes(data))


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=50, **BOUNDED)
def test_bytes_lost_doubled_or_overwritten_are_told_or_leave_a_sane_image(root, file, data):
    kind, name = file
    whole = KINDS[kind][name]
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, 400))
    part = whole[start : start + length]
    instead = data.draw(
        st.sampled_from([b"", part * 2, b"\0" * len(part), b"\xff" * len(part), part[::-1]])
    )
    read_all(root, kind, name, whole[:start] + instead + whole[start + length :])


@given(st.sampled_from([".png", ".jpg", ".tif", ".gif", ".bmp", ".webp", ".pgm", ".ppm", ".jp2", ".avif", ".npy", ".npz", ".dcm", ".nii", ".nii.gz", ".svs", ".ndpi"]), st.binary(max_size=300), st.sampled_from(FILES))  # fmt: skip
@settings(max_examples=40, **BOUNDED)
def test_anything_at_all_under_an_image_s_name_is_told_or_sane(root, suffix, tail, file):
    other = KINDS[file[0]][file[1]]
    for data in (tail, other[:8] + tail, other):
        stray = root / f"stray{suffix}"
        stray.write_bytes(data)
        try:
            pages = read_pages(stray)
        except DataError as error:
            assert str(stray) in str(error) and "\n" not in str(error)
        else:
            assert pages and all(page.ndim >= 2 and page.size for page in pages)


@pytest.mark.parametrize(("kind", "name", "told"), [
    ("images", "png.png", 0.9), ("images", "zlib.tif", 0.9), ("images", "zlib tiles.tif", 0.9), ("images", "grey.png", 0.9),
    ("images", "plain.tif", 0), ("images", "bmp.bmp", 0), ("images", "ppm.ppm", 0), ("images", "rows.tif", 0)])  # fmt: skip
def test_checksums_tell_flipped_pixels_and_without_one_nothing_can(root, kind, name, told):
    whole = KINDS[kind][name]
    refused = 0
    places = np.linspace(len(whole) * 0.3, len(whole) * 0.7, 20).astype(int)
    for place in places:  # among the pixels
        data = bytearray(whole)
        data[place] ^= 16
        refused += read_all(root, kind, name, bytes(data)) is None
    assert refused >= told * len(places) and (told or refused == 0)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_cut_off_stack_of_layers_is_no_stack_of_fewer_classes(tmp_path, lost):
    planes = np.stack([k == MASK for k in range(3)]).astype(np.uint8)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        Image.fromarray(GREY).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "masks" / f"{i}.tif").write_bytes(by_tifffile(planes, apart=True))
    file = tmp_path / "masks/1.tif"
    with tifffile.TiffFile(file) as tiff:
        starts = [page.offset for page in tiff.pages]
    file.write_bytes(file.read_bytes()[: starts[-lost]])
    with pytest.raises(DataError, match=r"masks/1\.tif: not a readable image"):
        Folder(str(tmp_path), ABC, mask_layers="pages").read(
            "1"
        )  # with 2 pages the first would be the rest


@pytest.mark.parametrize("name", ["zlib rows.tif", "zlib tiles.tif", "rows.tif", "jpeg.tif"])
@pytest.mark.parametrize("tag", ["ImageLength", "ImageWidth"])
def test_a_directory_that_claims_more_than_is_stored_is_refused_at_once(tmp_path, name, tag):
    file = tmp_path / name  # else zeros are made up: gigabytes of them, for minutes
    file.write_bytes(IMAGES[name])
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        value = tiff.pages[0].tags[tag].value
        tiff.pages[0].tags[tag].overwrite(value + 2**13)
    started = time.perf_counter()
    with pytest.raises(DataError, match="not a readable image"):
        read_pages(file)
    assert time.perf_counter() - started < SLOW


def test_a_hidden_stack_cut_inside_a_later_page_is_told(tmp_path):
    file = tmp_path / "v.tif"
    whole = by_tifffile(STACK, **HIDDEN)
    for cut in (100, SIZE[0] * SIZE[1], 2 * SIZE[0] * SIZE[1] - 1):
        file.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match=r"v\.tif: not a readable image"):
            read_pages(file)


def test_warnings_of_decoders_stop_nothing_and_are_not_shown(tmp_path, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"Exif") + 6
    (tmp_path / "a.jpg").write_bytes(data[: at + 4] + b"\xff\xff\xff\x7f" + data[at + 8 :])
    assert read_pages(tmp_path / "a.jpg")[0].shape == (*SIZE, 3)
    assert not recwarn.list


# texts


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Twelve images and masks that tables and lists name."""
    folder = tmp_path_factory.mktemp("pairs")
    for i in range(12):
        for part, pixels in (("images", GREY), ("masks", MASK)):
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
    return folder


def table_text() -> str:
    text = io.StringIO()
    lines = [[f"images/{i}.png", f"masks/{i}.png", "train" if i % 3 else "val"] for i in range(12)]
    csv.writer(text).writerows([["image", "mask", "split"], *lines])
    return text.getvalue()


def outcome(read: Callable[[], Folder], file: Path) -> Folder | None:
    """What could be opened; None: it was refused in one line that names the file."""
    try:
        source = read()
    except DataError as error:
        assert str(file) in str(error) or "data." in str(error), error
        assert "\n" not in str(error)
        return None
    names = [name for part in source.splits.values() for name in part]
    assert len(names) == len(set(names)) == len(source.files) and all(source.splits.values())
    for name in names:
        image, mask = source.read(name)
        assert image.shape == (*SIZE, 1) and mask.shape == SIZE
    return source


@given(st.integers(0, len(table_text()) - 1))
@settings(max_examples=40, **BOUNDED)
def test_a_cut_off_table_is_refused_or_has_every_line_before_the_cut(pairs, cut):
    """A table that ends with a line is a table: nothing says that more should follow."""
    file = pairs / "table.csv"
    text = table_text()[:cut]
    file.write_bytes(text.encode())
    source = outcome(lambda: Folder(None, ABC, table=str(file)), file)
    if source is not None:
        assert list(source.files) == [line.partition(".")[0] for line in text.splitlines()[1:]]


@given(st.integers(0, len(table_text().encode()) - 1), st.integers(0, 7), st.booleans())
@settings(max_examples=50, **BOUNDED)
def test_a_table_with_a_flipped_bit_is_refused_or_names_every_image(pairs, place, bit, layered):
    """A flipped digit may name another mask that is there: 3 for 2, as a typing mistake would."""
    file = pairs / "table.csv"
    data = bytearray(table_text().encode())
    data[place] ^= 1 << bit
    file.write_bytes(data)
    layers = "folders" if layered else None
    source = outcome(lambda: Folder(None, ABC, table=str(file), mask_layers=layers), file)
    assert source is None or len(source.files) == 12


@given(st.binary(max_size=200) | st.text(st.sampled_from('image,mask;split\t\n\r"\'/.0123png\0'), max_size=200).map(str.encode))  # fmt: skip
@settings(max_examples=30, **BOUNDED)
def test_any_text_as_a_table_is_refused_or_read(pairs, data):
    for start in (b"", b"image,mask\n", b"image,mask\nimages/0.png,masks/0.png\n"):
        file = pairs / "table.csv"
        file.write_bytes(start + data)
        outcome(lambda file=file: Folder(None, ABC, table=str(file)), file)


@given(st.sampled_from(["train", "val"]), st.data(), st.booleans())
@settings(max_examples=40, **BOUNDED)
def test_damaged_lists_are_refused_or_lose_no_image_in_silence(pairs, split, data, only):
    texts = {"train": "".join(f"{i}\n" for i in range(9)), "val": "9\n10.png\n11"}
    lists = pairs / "lists"
    lists.mkdir(exist_ok=True)
    for one, text in texts.items():
        (lists / f"{one}.txt").write_text(text)
    spoilt = bytearray(texts[split].encode())
    place = data.draw(st.integers(0, len(spoilt) - 1))
    if data.draw(st.booleans()):
        spoilt = spoilt[:place]
    else:
        spoilt[place] ^= 1 << data.draw(st.integers(0, 7))
    (lists / f"{split}.txt").write_bytes(spoilt)
    source = outcome(
        lambda: Folder(str(pairs), ABC, lists=str(lists), only_listed=only), lists / f"{split}.txt"
    )
    if source is not None and not only:
        assert len(source.files) == 12
    elif source is not None:  # each line that is left is an image
        lines = [line for one in ("train", "val") for line in (lists / f"{one}.txt").read_text().split()]  # fmt: skip
        assert sorted(source.files) == sorted(line.removesuffix(".png") for line in lines)
