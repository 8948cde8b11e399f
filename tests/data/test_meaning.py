"""Images are read as their tags say: the same array in every format, whole and in bands."""

import logging
import re
import struct
import unicodedata
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datasets.base import check_class_names
from seg.data.datasets.folder import Folder, read_mask_file
from seg.data.image_files import list_images
from seg.data.image_io import count_pages, has_palette, read_image, read_pages
from seg.data.masks import MaskValues
from seg.data.quality.checks import dataset_issues
from seg.data.quality.inspect import inspect_all
from seg.data.raster import ImageReader, open_pages
from seg.errors import DataError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (21, 13), np.uint8)
GREY16 = RNG.integers(0, 65536, (21, 13), np.uint16)
RGB8 = RNG.integers(0, 256, (21, 13, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (21, 13, 3), np.uint16)
MAP16 = RNG.integers(0, 65536, (3, 256), np.uint16)


def with_alpha(image: np.ndarray) -> np.ndarray:
    """Return an image with a channel of alpha of other values."""
    planes = image.reshape(*image.shape[:2], -1)
    return np.concatenate([planes, np.flip(planes[..., :1])], axis=-1)


def by_opencv(file, image):
    cv2.imwrite(str(file), image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[-1]]])  # fmt: skip


def by_tifffile(file, image, **words):
    tifffile.imwrite(file, image, **words)


def by_netpbm(file, image, largest, plain=False):
    kind = (3 if image.ndim == 3 else 2) + (0 if plain else 3)
    body = " ".join(map(str, image.ravel())).encode() if plain else image.astype(">u2" if largest > 255 else "u1").tobytes()  # fmt: skip
    file.write_bytes(b"P%d # a comment\n%d %d\n%d\n" % (kind, image.shape[1], image.shape[0], largest) + body)  # fmt: skip


TWO = {"photometric": "minisblack", "planarconfig": "contig"}
COLOUR = {"photometric": "rgb"}
# name -> (writer, image, arguments, what is read, suffix)
CASES = {
    "PNG grey 16": (by_opencv, GREY16, {}, GREY16, ".png"),
    "PNG RGB 16": (by_opencv, RGB16, {}, RGB16, ".png"),
    "PNG RGBA 16": (by_opencv, with_alpha(RGB16), {}, RGB16, ".png"),
    "PNG RGBA 8": (by_opencv, with_alpha(RGB8), {}, RGB8, ".png"),
    "PPM 16": (by_netpbm, RGB16, {"largest": 65535}, RGB16, ".ppm"),
    "PPM 16, plain": (by_netpbm, RGB16, {"largest": 65535, "plain": True}, RGB16, ".ppm"),
    "PGM 12 bits": (by_netpbm, GREY16 % 4096, {"largest": 4095}, GREY16 % 4096, ".pgm"),
    "PGM of 3 classes": (by_netpbm, GREY8 % 3, {"largest": 2}, GREY8 % 3, ".pgm"),
    "PGM, plain": (by_netpbm, GREY8, {"largest": 255, "plain": True}, GREY8, ".pgm"),
    "TIFF RGBA": (by_tifffile, with_alpha(RGB8), COLOUR | {"extrasamples": [2]}, RGB8, ".tif"),
    "TIFF RGBA 16": (by_tifffile, with_alpha(RGB16), COLOUR | {"extrasamples": [1]}, RGB16, ".tif"),
    "TIFF grey and alpha": (by_tifffile, with_alpha(GREY8), TWO | {"extrasamples": [2]}, GREY8, ".tif"),
    "TIFF two channels": (by_tifffile, with_alpha(GREY8), TWO | {"extrasamples": [0]}, with_alpha(GREY8), ".tif"),
    "TIFF colour map": (by_tifffile, GREY8, {"photometric": "palette", "colormap": MAP16}, (MAP16 >> 8).astype(np.uint8).T[GREY8], ".tif"),
    "TIFF min-is-white": (by_tifffile, 255 - GREY8, {"photometric": "miniswhite"}, GREY8, ".tif"),
    "TIFF min-is-white 16": (by_tifffile, 65535 - GREY16, {"photometric": "miniswhite", "tile": (16, 16)}, GREY16, ".tif"),
    "TIFF int32 of small values": (by_tifffile, GREY8.astype(np.int32), {}, GREY8.astype(np.float32), ".tif"),
}  # fmt: skip
for code in range(1, 9):
    tag = {"extratags": [(274, 3, 1, code, True)], "metadata": None}
    seen = {1: RGB8, 2: RGB8[:, ::-1], 3: RGB8[::-1, ::-1], 4: RGB8[::-1], 5: RGB8.swapaxes(0, 1)}
    seen |= {6: np.rot90(RGB8, -1), 7: np.rot90(RGB8, 2).swapaxes(0, 1), 8: np.rot90(RGB8)}
    CASES[f"TIFF orientation {code}"] = (by_tifffile, RGB8, COLOUR | tag, seen[code], ".tif")


@pytest.mark.parametrize("name", CASES)
def test_file_is_read_as_its_tags_say_whole_and_in_bands(tmp_path, name):
    write, image, words, wanted, suffix = CASES[name]
    file = tmp_path / f"image{suffix}"
    write(file, image, **words)
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    read = read_image(file)
    assert read.dtype == wanted.dtype
    np.testing.assert_array_equal(read, wanted)
    reader = ImageReader(file)
    assert reader.shape == wanted.shape and reader.dtype == wanted.dtype
    bands = [reader.rows(row, min(row + 4, len(wanted))) for row in range(0, len(wanted), 4)]
    np.testing.assert_array_equal(np.concatenate(bands), wanted)
    reader.close()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("code", range(1, 9))
def test_orientation_is_that_of_pillow_s_own_transposition(tmp_path, suffix, code):
    coarse = np.kron(RGB8[:6, :4] // 2, np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[274] = code
    file = tmp_path / f"image{suffix}"
    Image.fromarray(coarse).save(file, exif=exif)
    from PIL import ImageOps

    with Image.open(file) as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(file), wanted)
    np.testing.assert_array_equal(read_mask_file(file), wanted)


def test_cmyk_is_the_same_in_tiff_and_jpeg(tmp_path):
    inks = Image.fromarray(np.kron(RGB8[:4, :4], np.ones((8, 8, 1), np.uint8))).convert("CMYK")
    inks.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.array(inks.convert("RGB")))


def test_bits_of_a_mask_are_0_and_1_and_of_an_image_black_and_white(tmp_path):
    bits = GREY8 > 99
    Image.fromarray(bits).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", bits, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", ~bits, photometric="miniswhite")
    for name in ("a.png", "a.tif", "b.tif"):
        mask = read_mask_file(tmp_path / name)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, bits)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], bits * np.uint8(255))


def test_imagej_s_tables_are_not_applied(tmp_path, caplog):
    table = np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[None], 3, axis=0)
    tifffile.imwrite(tmp_path / "a.tif", GREY8, imagej=True, metadata={"LUTs": [table]})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], GREY8)


def test_overviews_and_masks_of_a_tiff_are_no_pages(tmp_path):
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY8, metadata=None)
        writer.write(GREY8[::2, ::2], subfiletype=1, metadata=None)
        writer.write(GREY8 > 0, subfiletype=4, photometric="minisblack", metadata=None)
        writer.write(GREY8 > 0, photometric="mask", metadata=None)
        writer.write(GREY8[::-1], metadata=None)
    assert count_pages(file) == 2
    pages = open_pages(file, channels=False)
    for array, reader, wanted in zip(read_pages(file), pages, (GREY8, GREY8[::-1]), strict=True):
        np.testing.assert_array_equal(array, wanted)
        np.testing.assert_array_equal(reader.rows(0, 21)[..., 0], wanted)
    np.testing.assert_array_equal(read_pages(file, page=1)[0], GREY8[::-1])
    pages[0].close()


def test_the_tag_of_a_mask_names_the_option_that_ignores_the_value(tmp_path, caplog):
    for part, pixels in (("images", GREY8), ("masks", GREY8 % 2 * 7)):
        (tmp_path / part).mkdir()
        for name in "ab":
            tag = [(42113, "s", 0, "7", True)] if part == "masks" else []
            tifffile.imwrite(tmp_path / part / f"{name}.tif", pixels, extratags=tag, metadata=None)
    with pytest.raises(DataError, match=r"mask value \[7\] not declared"):
        Folder(str(tmp_path), ["a", "b", "c"]).read("a")
    remedy = re.search(r"data\.ignore=\[7\]", caplog.text)[0]
    data = compose_checked(
        "train", ["data=folder", f"data.root={tmp_path}", "data.classes=[a,b]", remedy]
    ).data
    assert set(np.unique(instantiate_node(data, "data").read("a")[1])) == {0, 255}


def test_colours_that_are_not_converted_are_refused(tmp_path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, RGB8, photometric="cielab", metadata=None)
    with pytest.raises(DataError, match="PhotometricInterpretation 8"):
        read_image(file)


def test_png_above_pillow_s_limits_is_read(tmp_path):
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Description", "x" * 2**21, zip=True)
    Image.new("1", (13500, 13500)).save(tmp_path / "a.png", pnginfo=text)
    assert read_pages(tmp_path / "a.png")[0].shape == (13500, 13500)


def test_folder_with_an_image_s_name_is_no_image(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    (tmp_path / "x.png").mkdir()
    assert list_images(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize(("classes", "words"), [
    (["cell", "cell"], "'cell' is named twice"), ([False, True], "False is a bool.*quote"),
    ([1, 2], "1 is a int.*quote"),
])  # fmt: skip
def test_names_of_classes_are_distinct_texts(classes, words):
    with pytest.raises(DataError, match=words):
        check_class_names(classes)


@pytest.mark.parametrize(("mask", "words"), [
    (unicodedata.normalize("NFD", "Zélle 1"), "encoding of accents"), ("zélle 1", "case"),
    ("Zélle1", "white space"),
])  # fmt: skip
def test_names_that_nearly_agree_are_told_and_paired_on_demand(tmp_path, mask, words):
    for folder, names in (("images", ("a", "Zélle 1")), ("masks", ("a", mask))):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(GREY8 % 2).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(DataError, match=f"differs only in.*{words}.*data.similar_names=true"):
        Folder(str(tmp_path), ["a", "b"])
    data = Folder(str(tmp_path), ["a", "b"], similar_names=True)
    assert set(data.files) == {"a", "Zélle 1"}


# each page of these is the picture GREY8 or RGB8: name -> (stored, arguments, what is read)
WHITE = (255 - GREY8, {"photometric": "miniswhite"}, GREY8)
MEANINGS = {
    "grey": (GREY8, {"photometric": "minisblack"}, GREY8),
    "the smallest value is white": WHITE,
    "the smallest value is white, 16 bits": (65535 - GREY16, {"photometric": "miniswhite"}, GREY16),
    "the smallest bit is white": (GREY8 < 99, {"photometric": "miniswhite"}, (GREY8 >= 99) * np.uint8(255)),
    "12 bits": (GREY16 % 4096, {"photometric": "minisblack", "bitspersample": 12}, GREY16 % 4096),
    "colour map": (GREY8, {"photometric": "palette", "colormap": MAP16}, (MAP16 >> 8).astype(np.uint8).T[GREY8]),
    "colour map of 8 bits": (GREY8, {"photometric": "palette", "colormap": MAP16 >> 8}, (MAP16 >> 8).astype(np.uint8).T[GREY8]),
    "colour map of greys": (255 - GREY8, {"photometric": "palette", "colormap": np.repeat(np.arange(65535, -1, -257, np.int64)[None], 3, 0).astype(np.uint16)}, GREY8),
    "RGB and alpha": (with_alpha(RGB8), COLOUR | {"extrasamples": [2]}, RGB8),
    "RGB, a channel and alpha": (np.dstack([RGB8, GREY8, RGB8[..., 0]]), COLOUR | {"extrasamples": [0, 1]}, np.dstack([RGB8, GREY8])),
    "floats and alpha": (with_alpha(RGB8).astype(np.float32), COLOUR | {"extrasamples": [2]}, RGB8.astype(np.float32)),
    "scale and offset": (GREY16, {"photometric": "minisblack"}, GREY16 * np.float32(0.5) - np.float32(7)),
    "inks": (np.dstack([255 - RGB8, np.zeros_like(GREY8)]), {"photometric": "separated"}, RGB8),
    "inks of 16 bits": (np.dstack([65535 - RGB16, np.zeros_like(GREY16)]), {"photometric": "separated"}, RGB16),
}  # fmt: skip
LAYOUTS = {
    "one strip": {}, "strips": {"rowsperstrip": 5, "compression": "zlib"}, "tiles": {"tile": (16, 16), "compression": "lzw"},
    "plain tiles": {"tile": (16, 16)}, "big-endian": {"byteorder": ">"}, "planes": {"planarconfig": "separate", "rowsperstrip": 4},
}  # fmt: skip
SCALE = ('<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.5</Item>'
         '<Item name="OFFSET" sample="0" role="offset">-7</Item></GDALMetadata>')  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("meaning", MEANINGS)
def test_bands_of_every_layout_are_the_whole_image(tmp_path, meaning, layout):
    stored, words, wanted = MEANINGS[meaning]
    words = words | LAYOUTS[layout]
    if layout == "planes":
        if stored.ndim == 2:
            pytest.skip("one plane")
        stored = np.moveaxis(stored, -1, 0)
    if "bitspersample" in words and layout not in ("one strip", "plain tiles"):
        pytest.skip("tifffile does not write it")
    order = {"byteorder": words.pop("byteorder")} if "byteorder" in words else {}
    tags = [(42112, 2, 0, SCALE, True)] if meaning == "scale and offset" else []
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file, **order) as writer:
        for page in (stored, np.flip(stored, -2 if layout == "planes" or stored.ndim == 2 else 0)):
            writer.write(np.ascontiguousarray(page), metadata=None, extratags=tags, **words)
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    readers = open_pages(file, channels=False)
    np.testing.assert_array_equal(read_image(file, page=0), wanted)
    for number, reader in enumerate(readers):
        whole = read_image(file, page=number)
        assert reader.shape == whole.shape and reader.dtype == whole.dtype == wanted.dtype
        for height in (1, 6, 16, 21):
            bands = [reader.rows(row, min(row + height, 21)) for row in range(0, 21, height)]
            np.testing.assert_array_equal(np.concatenate(bands), whole)
    readers[0].close()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_palette_of_greys_gives_grey_values(tmp_path, suffix):
    image = Image.frombytes("P", GREY8.shape[::-1], GREY8.tobytes())
    image.putpalette(np.repeat(np.arange(255, -1, -1), 3).tolist())
    image.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}")[..., 0], 255 - GREY8)
    np.testing.assert_array_equal(read_mask_file(tmp_path / f"a{suffix}"), GREY8)
    assert not has_palette(tmp_path / f"a{suffix}")
    image.putpalette(MAP16[:, :256].astype(np.uint8).T.ravel().tolist())
    image.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(
        read_image(tmp_path / f"a{suffix}"), np.array(image.convert("RGB"))
    )
    assert has_palette(tmp_path / f"a{suffix}")


def test_luminance_and_colour_differences_are_read_as_rgb(tmp_path):
    image = Image.fromarray(RGB8).convert("YCbCr")
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.array(image.convert("RGB")))


def test_values_of_2_and_4_bits_fill_8_bits_in_png_and_tiff(tmp_path):
    wanted = GREY8[:20, :12] // 17 * 17  # multiples of 255 / 15
    packed = (wanted[:, ::2] // 17 << 4 | wanted[:, 1::2] // 17).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(png_of_4_bits(packed))
    tifffile.imwrite(tmp_path / "a.tif", wanted // 17, bitspersample=4, photometric="minisblack")
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}")[..., 0], wanted)


def png_of_4_bits(packed: np.ndarray) -> bytes:
    """Return a grey PNG of rows that hold two pixels a byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2 * packed.shape[1], packed.shape[0], 4, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_16_bit_grey_png_with_alpha_is_its_grey(tmp_path):
    pixels = with_alpha(GREY16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = png_of_4_bits(np.zeros((1, 1), np.uint8))
    start, end = data.index(b"IHDR") - 4, data.index(b"IDAT") - 4
    assert (start, end) == (8, 33)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 13, 21, 16, 4, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        data[:8]
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], GREY16)


def test_imagej_s_calibration_of_signed_values_is_applied(tmp_path, caplog):
    words = {"cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "Gray Value"}
    tifffile.imwrite(tmp_path / "a.tif", GREY16, imagej=True, metadata=words)
    wanted = GREY16.astype(np.float32) - 32768
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], wanted)
    tifffile.imwrite(tmp_path / "b.tif", GREY16, imagej=True, metadata=words | {"cf": 21})
    with caplog.at_level(logging.WARNING, "seg"):
        np.testing.assert_array_equal(read_image(tmp_path / "b.tif")[..., 0], GREY16)
    assert "b.tif" in caplog.text and "cf=21" in caplog.text


def test_a_1_bit_mask_is_1_or_255_as_declared(tmp_path):
    bits = GREY8 > 99
    for values in (None, {0: 0, 255: 1}, {0: 0, 1: 1}):
        declared = MaskValues(["a", "b"], values)
        np.testing.assert_array_equal(declared.indices(bits, "a.png"), bits)


def test_alpha_of_a_mask_is_no_class_unless_it_is_needed(tmp_path):
    planes = np.dstack([k == GREY8 % 3 for k in range(3)]).astype(np.uint8) * 255
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.fromarray(GREY8).save(tmp_path / f"images/{name}.png")
        Image.fromarray(with_alpha(planes)).save(tmp_path / f"masks/{name}.png")
    data = Folder(str(tmp_path), ["a", "b", "c"], mask_layers="pages")
    np.testing.assert_array_equal(data.read("a")[1], GREY8 % 3)


def test_a_mask_that_lacks_its_image_s_orientation_is_told_so_and_mended_by_it(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(GREY8[:13] % 2).save(tmp_path / folder / "b.png")
    Image.fromarray(GREY8).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(GREY8 % 2).save(tmp_path / "masks/a.png")
    data = Folder(str(tmp_path), ["a", "b"])
    with pytest.raises(DataError, match=r"Orientation \(6 of the image, 1 of the mask"):
        data.read("a")
    Image.fromarray(GREY8 % 2).save(tmp_path / "masks/a.png", exif=exif)
    image, mask = data.read("a")
    np.testing.assert_array_equal(mask, image[..., 0] % 2)


def test_a_file_that_is_whole_but_not_read_is_not_told_as_damaged(tmp_path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, RGB8, photometric="cielab", metadata=None)
    with pytest.raises(DataError, match=r"this kind of image is not read.*CIE Lab; save it as"):
        read_image(file)
    with pytest.raises(DataError, match="this kind of image is not read"):
        ImageReader(file)


def test_the_resolution_of_a_turned_page_is_turned_with_it(tmp_path):
    file = tmp_path / "a.tif"
    tags = [(274, 3, 1, 6, True), (33550, 12, 3, (1.0, 2.0, 0.0), True)]
    tifffile.imwrite(file, GREY8, resolution=(10, 20), extratags=tags, metadata=None)
    reader = ImageReader(file)
    assert reader.tags["resolution"] == ((20, 1), (10, 1)) and reader.tags["extratags"] == []
    reader.close()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_tiff_of_another_name_is_told_so(tmp_path, suffix):
    tifffile.imwrite(tmp_path / "a.tif", GREY8, photometric="miniswhite")
    (tmp_path / "a.tif").rename(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=r"a TIFF by its content; rename it NAME.tif"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("tagged", [("images",), ("images", "masks"), ()])
def test_images_that_a_tag_turns_unlike_their_masks_are_a_warning(tmp_path, tagged):
    exif = Image.Exif()
    exif[274] = 3
    for folder, classes in (("images", 255), ("masks", 2)):
        (tmp_path / folder).mkdir()
        for n in range(3):
            image = Image.fromarray(np.roll(GREY8, n) % classes)
            image.save(tmp_path / folder / f"{n}.png", **{"exif": exif} if folder in tagged else {})
    data = Folder(str(tmp_path), ["a", "b"])
    seen = inspect_all(data, [("train", name) for name in data.files], None)
    assert not seen.issues
    found = [issue for issue in dataset_issues(seen.stats) if issue.kind == "orientation"]
    if tagged != ("images",):
        assert not found
        return
    assert "3 in the image and 1 in its mask (3 such images)" in found[0].found
    assert found[0].file.endswith("images/0.png")


@pytest.mark.parametrize("shape", [(7, 40000), (40000, 7), (1, 40000)])
def test_a_long_narrow_image_is_inspected(tmp_path, shape):
    image = RNG.integers(0, 256, shape, np.uint8)
    for folder, pixels in (("images", image), ("masks", image // 128)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    data = Folder(str(tmp_path), ["a", "b"])
    seen = inspect_all(data, [("train", "a")], None)
    assert seen.stats[0].shape == shape and not seen.issues


def test_a_scale_that_is_no_number_is_told(tmp_path):
    text = SCALE.replace("0.5", "half")
    tags = [(42112, 2, 0, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", GREY16, extratags=tags, metadata=None)
    with pytest.raises(
        DataError, match=r"a\.tif: the tag GDAL_METADATA.*half.*correct or remove it"
    ):
        read_image(tmp_path / "a.tif")


def test_each_channel_has_its_own_scale(tmp_path):
    items = "".join(f'<Item name="SCALE" sample="{k}" role="scale">{k + 1}</Item>' for k in (1, 2))
    tags = [(42112, 2, 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    tifffile.imwrite(tmp_path / "a.tif", RGB16, photometric="rgb", extratags=tags, metadata=None)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, RGB16 * np.float32([1, 2, 3]))


def test_complex_numbers_are_no_image_and_no_mask(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY8.astype(np.complex64))
    with pytest.raises(DataError, match=r"a\.tif: values of type complex64"):
        read_image(tmp_path / "a.tif")
    mask = read_mask_file(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: values of type complex64; save one class index"):
        MaskValues(["a", "b"]).indices(mask, "a.tif")


def test_floats_beyond_float32_are_told(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((3, 4), 1e300))
    with pytest.raises(DataError, match=r"12 of 12 values are beyond the range of float32"):
        read_image(tmp_path / "a.tif")
