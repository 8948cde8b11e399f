"""Rows of a TIFF of any layout against tifffile's own array; results that grow on disk and become a TIFF."""

import resource
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seg.data.image_io import read_image
from seg.data.raster import ImageReader, open_pages
from seg.data.spacing import read_spacing
from seg.errors import DataError
from seg.inference import band_writer
from seg.inference.band_writer import BandWriter

HEIGHT, WIDTH = 75, 53
SHAPES = {"grey": (HEIGHT, WIDTH), "RGB": (HEIGHT, WIDTH, 3), "planes": (3, HEIGHT, WIDTH)}
COLOURS = {"photometric": "rgb"}
PLANES = COLOURS | {"planarconfig": "separate"}
TILES = {"tile": (16, 32)}
ZIP = {"compression": "zlib"}
# name -> (shape, type, arguments of tifffile)
LAYOUTS = {
    "in one piece": ("grey", np.uint8, {}),
    "strips": ("grey", np.uint8, {"rowsperstrip": 7}),
    "strips of one row": ("RGB", np.uint16, COLOURS | ZIP | {"rowsperstrip": 1}),
    "strips, LZW": ("grey", np.uint16, {"rowsperstrip": 7, "compression": "lzw", "predictor": True}),
    "one strip, deflate": ("grey", np.uint8, ZIP),
    "tiles": ("grey", np.uint8, TILES),
    "tiles, RGB": ("RGB", np.uint8, COLOURS | TILES),
    "tiles, deflate": ("RGB", np.uint16, COLOURS | TILES | ZIP | {"predictor": True}),
    "tiles, float predictor": ("grey", np.float32, TILES | ZIP | {"predictor": True}),
    "tiles, zstd": ("grey", np.float16, TILES | {"compression": "zstd"}),
    "tiles, packbits": ("grey", np.uint8, TILES | {"compression": "packbits"}),
    "tiles, JPEG": ("RGB", np.uint8, COLOURS | TILES | {"compression": "jpeg"}),
    "strips, YCbCr JPEG": ("RGB", np.uint8, {"photometric": "ycbcr", "compression": "jpeg", "rowsperstrip": 16}),
    "planes": ("planes", np.uint8, PLANES),
    "planes in strips": ("planes", np.uint16, PLANES | ZIP | {"rowsperstrip": 7, "predictor": True}),
    "planes in tiles": ("planes", np.float32, PLANES | TILES | ZIP),
    "big-endian": ("grey", np.uint16, {"byteorder": ">"}),
    "big-endian tiles": ("RGB", np.float32, COLOURS | TILES | ZIP | {"byteorder": ">"}),
    "BigTIFF": ("grey", np.uint8, {"bigtiff": True, "rowsperstrip": 20}),
    "float64": ("grey", np.float64, {"rowsperstrip": 7}),
    "int16": ("grey", np.int16, {}),
    "1-bit": ("grey", np.bool_, {"rowsperstrip": 7}),
    "1-bit tiles": ("grey", np.bool_, TILES | ZIP),
    "two channels": ("grey+", np.uint8, TILES | ZIP | {"extrasamples": [0]}),
}  # fmt: skip


def made(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype is np.bool_:
        return rng.random(shape) < 0.4
    return (rng.random(shape) * 200).astype(dtype)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("layouts"), {}
    for name, (shape, dtype, words) in LAYOUTS.items():
        found[name] = root / f"{name}.tif"
        size = (HEIGHT, WIDTH, 2) if shape == "grey+" else SHAPES[shape]
        tifffile.imwrite(found[name], made(size, dtype), **{"photometric": "minisblack"} | words)
    coarse = np.kron(made((15, 11, 3), np.uint8), np.ones((5, 5, 1), np.uint8))
    for name, image in (("JPEG by libtiff", coarse[..., 0]), ("RGB JPEG by libtiff", coarse)):
        found[name] = root / f"{name}.tif"
        Image.fromarray(image).save(found[name], compression="jpeg")  # its tables lie apart
    return found


def as_stored(array: np.ndarray, axes: str) -> np.ndarray:
    """What tifffile gives as (H, W, C) of one of our three types."""
    array = np.moveaxis(array, 0, -1) if axes.startswith("S") else array
    array = array.reshape(*array.shape[:2], -1)
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    return array if array.dtype in (np.uint8, np.uint16) else array.astype(np.float32)


@pytest.mark.parametrize("name", [*LAYOUTS, "JPEG by libtiff", "RGB JPEG by libtiff"])
def test_rows_of_every_layout_are_those_of_tifffile_s_own_array(files, name):
    file = files[name]
    with tifffile.TiffFile(file) as tiff:
        whole = as_stored(tiff.pages[0].asarray(), tiff.pages[0].axes)
    raster = ImageReader(file)
    assert raster.shape == whole.shape and raster.pages == 1 and raster.whole is None

    @given(st.integers(0, whole.shape[0] - 1), st.integers(1, 40))
    @settings(max_examples=15, deadline=None)
    def same(start, rows):
        stop = min(start + rows, whole.shape[0])
        found = raster.rows(start, stop)
        np.testing.assert_array_equal(found, whole[start:stop])
        assert found.dtype == raster.dtype == whole.dtype and found.dtype.isnative

    same()
    np.testing.assert_array_equal(raster.rows(0, whole.shape[0]), read_image(file))
    raster.close()


@pytest.mark.parametrize("words", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"truncate": True}, {"imagej": True}, {"imagej": True, "truncate": True}, {"imagej": True, "truncate": True, "byteorder": "<"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_are_those_of_tifffile_also_hidden_ones(tmp_path, words, dtype):
    stack = made((5, 40, 33), dtype)
    file = tmp_path / "stack.tif"
    tifffile.imwrite(file, stack, **words)
    with tifffile.TiffFile(file) as tiff:
        assert (len(tiff.pages) == 1) == ("truncate" in words)
    pages = open_pages(file, "slices" if words.get("imagej") else None)  # tifffile says channels
    assert len(pages) == 5
    for page, wanted in zip(pages, stack, strict=True):
        assert page.pages == 5 and page.shape == (40, 33, 1) and page.dtype == dtype
        np.testing.assert_array_equal(page.rows(7, 31)[..., 0], wanted[7:31])
        np.testing.assert_array_equal(page.rows(0, 40)[..., 0], wanted)
    pages[0].close()


def test_hidden_pages_in_colour(tmp_path):
    stack = made((4, 40, 33, 3), np.uint8)
    file = tmp_path / "stack.tif"
    tifffile.imwrite(file, stack, imagej=True, truncate=True)
    pages = open_pages(file)
    for page, wanted in zip(pages, stack, strict=True):
        np.testing.assert_array_equal(page.rows(3, 9), wanted[3:9])
    pages[0].close()


def test_pages_of_other_sizes_and_types_are_each_read_as_they_are(tmp_path):
    file = tmp_path / "mixed.tif"
    pages = [made((40, 33), np.uint8), made((21, 50, 3), np.uint16), made((9, 9), np.float32)]
    with tifffile.TiffWriter(file) as out:
        for page in pages:
            out.write(page, compression="zlib", metadata=None)
    found = open_pages(file)
    for page, wanted in zip(found, pages, strict=True):
        np.testing.assert_array_equal(page.rows(1, 8), wanted.reshape(*page.shape)[1:8])
        assert page.dtype == wanted.dtype
    found[0].close()


def test_pages_as_channels_are_one_image(tmp_path):
    stack = made((3, 40, 33), np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", stack, resolution=(300, 200), photometric="minisblack")
    (image,) = open_pages(tmp_path / "c.tif", "channels")
    assert image.shape == (40, 33, 3) and image.tags["resolution"] == ((300, 1), (200, 1))
    np.testing.assert_array_equal(image.rows(5, 9), stack.transpose(1, 2, 0)[5:9])
    image.close()


@pytest.mark.parametrize("layout", ["plain", "strips", "tiles", "planes"])
def test_rows_of_a_large_file_need_only_the_memory_of_those_rows(tmp_path, layout):
    file = tmp_path / "large.tif"
    image = np.zeros((3, 4096, 2048) if layout == "planes" else (4096, 2048), np.uint16)
    words = {"strips": ZIP | {"rowsperstrip": 16}, "tiles": ZIP | {"tile": (64, 64)}}
    words["planes"] = PLANES | ZIP | {"tile": (64, 64)}
    tifffile.imwrite(file, image, **words.get(layout, {}))
    raster = ImageReader(file)
    tracemalloc.start()
    raster.rows(3000, 3064)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    raster.close()
    assert peak < image.nbytes / 10


def test_a_stack_of_many_pages_takes_one_file_descriptor(tmp_path):
    file = tmp_path / "many.tif"
    tifffile.imwrite(file, np.zeros((90, 8, 8), np.uint8), metadata=None)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 30, before[1]))
    try:
        pages = open_pages(file)
        assert sum(int(page.rows(0, 8).sum()) for page in pages) == 0 and len(pages) == 90
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    pages[0].close()


def test_the_type_holds_what_any_row_has(tmp_path):
    image = np.zeros((80, 9), np.int32)
    image[50] = 70_000
    tifffile.imwrite(tmp_path / "i.tif", image)
    raster = ImageReader(tmp_path / "i.tif")
    assert raster.dtype == np.float32  # though the first rows alone would fit into uint16
    assert np.result_type(raster.rows(0, 9), raster.rows(45, 55)) == np.float32
    raster.close()


@pytest.mark.parametrize("name", ["strips", "tiles, deflate", "planes in tiles", "BigTIFF", "strips, LZW"])  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_what_is_cut_off_is_told_with_the_name_of_the_file(files, tmp_path, name, share):
    cut = tmp_path / "cut.tif"
    content = files[name].read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.tif: not a readable image"):
        ImageReader(cut).rows(0, HEIGHT)


def test_damaged_pixels_and_a_missing_tile_are_told(files, tmp_path):
    with tifffile.TiffFile(files["tiles, deflate"]) as tiff:
        page = tiff.pages[0]
        start, entry = page.dataoffsets[0], page.tags["TileByteCounts"].valueoffset
        deep = page.tags["TileByteCounts"].dtype.name
    content = bytearray(files["tiles, deflate"].read_bytes())
    content[start + 2 : start + 12] = bytes(10)
    (tmp_path / "bad.tif").write_bytes(content)
    raster = ImageReader(tmp_path / "bad.tif")
    with pytest.raises(DataError, match=r"bad\.tif: not a readable image"):
        raster.rows(0, 9)
    assert raster.rows(16, 32).shape == (16, WIDTH, 3)  # the tiles below are whole
    raster.close()
    content = bytearray(files["tiles, deflate"].read_bytes())
    content[entry : entry + (2 if deep == "SHORT" else 4)] = bytes(2 if deep == "SHORT" else 4)
    (tmp_path / "gap.tif").write_bytes(content)
    for read in (ImageReader, read_image):  # tifffile would read zeros
        with pytest.raises(DataError, match=r"gap\.tif: .*a tile is missing"):
            read(tmp_path / "gap.tif")


def test_rows_that_are_not_finite_are_told_with_their_page(tmp_path):
    stack = made((2, 40, 33), np.float32)
    stack[1, 30, 5] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", stack, compression="zlib")
    first, second = open_pages(tmp_path / "nan.tif")
    assert len(first.rows(0, 40)) == 40 and len(second.rows(0, 30)) == 30
    with pytest.raises(DataError, match=r"nan\.tif, page 1: 1 of 33 values are NaN"):
        second.rows(30, 31)
    first.close()


def grown(folder: Path, array: np.ndarray, pages: int, planes: int) -> BandWriter:
    height, width = array.shape[-2:]
    return BandWriter(folder / "x.tif.kind", width, height, array.dtype, planes, pages)


def bands(array: np.ndarray, heights: list[int], start: int = 0) -> list[np.ndarray]:
    """Rows of one page (H, W) or (C, H, W), of such heights in turn."""
    parts, turn = [], 0
    while start < array.shape[-2]:
        parts.append(array[..., start : start + heights[turn % len(heights)], :])
        start += heights[turn % len(heights)]
        turn += 1
    return parts


@given(
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 300), st.integers(1, 70),
    st.lists(st.integers(1, 90), min_size=1, max_size=3),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_what_grew_band_by_band_is_the_array(dtype, planes, pages, height, width, heights, turned):
    if turned:
        height, width = width, height
    shape = (pages, planes, height, width) if planes else (pages, height, width)
    array = made(shape, dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        growing = grown(folder, array, pages, planes)
        for page in array:
            for band in bands(page, heights):
                growing.add(band)
        for number, page in enumerate(array):
            np.testing.assert_array_equal(growing.page(number), page)
        growing.finish(folder / "x.tif", {})
        growing.remove()
        assert [file.name for file in folder.iterdir()] == ["x.tif"]
        found = tifffile.imread(folder / "x.tif")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.reshape(shape), array)


@given(
    st.sampled_from([np.uint8, np.uint16, np.int32]),
    st.integers(0, 3), st.integers(1, 3), st.integers(1, 600), st.integers(2, 600),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_levels_of_a_pyramid_are_every_second_pixel_of_the_one_above(dtype, planes, pages, height, width):  # fmt: skip
    shape = (pages, planes, height, width) if planes else (pages, height, width)
    array = made(shape, dtype)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "x.tif"
        growing = grown(Path(name), array, pages, planes)
        for page in array:
            growing.add(page)
        growing.finish_pyramid(file, {"resolution": (4, 2)}, spacing=(0.5, 0.25))
        with tifffile.TiffFile(file) as tiff:
            (series,) = tiff.series
            assert series.kind == "ome" and series.keyframe.is_tiled
            longer = max(height, width)
            assert len(series.levels) == 2 if longer <= 512 else 3
            for number, level in enumerate(series.levels):
                step = 2**number
                wanted = array[..., ::step, ::step]
                np.testing.assert_array_equal(level.asarray().reshape(wanted.shape), wanted)
                assert level.dtype == dtype
        assert read_spacing(file) == (0.5, 0.25)
        pages_read = open_pages(file)  # the largest level alone
        assert [p.shape for p in pages_read] == [(height, width, max(1, planes))] * pages
        pages_read[0].close()


def test_a_finished_file_is_tiled_compressed_and_says_its_axes(tmp_path):
    array = np.zeros((3, 2, 600, 700), np.uint8)
    growing = grown(tmp_path, array, 3, 2)
    for page in array:
        growing.add(page)
    growing.finish(tmp_path / "x.tif", {})
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        page = tiff.pages[0]
        assert len(tiff.pages) == 6 and tiff.series[0].axes == "ZCYX"
        assert page.is_tiled and page.tile == (256, 256) and page.compression.name.endswith("DEFLATE")  # fmt: skip
    assert (tmp_path / "x.tif").stat().st_size < array.size / 20


PEAKS = """
import resource, sys
from pathlib import Path
import numpy as np, zlib, imagecodecs
from seg.inference.band_writer import BandWriter
side, folder = 5000, Path(sys.argv[1])
grown = BandWriter(folder / "rows", side, side, np.dtype(np.int32))
for top in range(0, side, 250):
    grown.add(np.full((250, side), top, np.int32))
for name in ("plain", "pyramid"):
    finish = grown.finish if name == "plain" else grown.finish_pyramid
    finish(folder / f"{name}.tif", {})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_a_pyramid_is_written_within_the_memory_of_a_plain_file(tmp_path):
    words = [sys.executable, "-c", PEAKS, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    plain, pyramid = map(int, done.stdout.split())
    assert pyramid - plain < 20 * 2**10  # KiB; the array has 100 MB


def test_a_failed_finish_leaves_no_half_file_and_can_be_done_again(tmp_path, monkeypatch):
    array = made((600, 300), np.uint8)
    growing = grown(tmp_path, array, 1, 0)
    growing.add(array)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/x.tif").write_bytes(b"an earlier one")
    whole = BandWriter.iterate_tiles

    def failing(self, *rows):
        for number, tile in enumerate(whole(self, *rows)):
            if number == 2:
                raise OSError(28, "No space left on device")
            yield tile

    monkeypatch.setattr(band_writer.BandWriter, "iterate_tiles", failing)
    with pytest.raises(OSError, match="No space left"):
        growing.finish(tmp_path / "masks/x.tif", {})
    assert (tmp_path / "masks/x.tif").read_bytes() == b"an earlier one"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["masks", "x.tif", "x.tif.kind"]
    monkeypatch.undo()
    growing.finish(tmp_path / "masks/x.tif", {})
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "masks/x.tif"), array)
