"""Images are read as their tags say: the same array in every format, whole and in bands."""

import logging
import re
import unicodedata

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datasets.base import check_class_names
from seg.data.datasets.folder import Folder, read_mask_file
from seg.data.image_io import count_pages, list_images, read_image, read_pages
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
        writer.write(GREY8[::-1], metadata=None)
    assert count_pages(file) == 2
    pages = open_pages(file, channels=False)
    for array, reader, wanted in zip(read_pages(file), pages, (GREY8, GREY8[::-1]), strict=True):
        np.testing.assert_array_equal(array, wanted)
        np.testing.assert_array_equal(reader.rows(0, 21)[..., 0], wanted)
    np.testing.assert_array_equal(read_pages(file, page=1)[0], GREY8[::-1])
    pages[0].close()


@pytest.mark.parametrize(("code", "value", "words"), [
    (42112, '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.1</Item></GDALMetadata>', "GDAL_METADATA"),
])  # fmt: skip
def test_tags_that_are_not_honoured_are_told(tmp_path, caplog, code, value, words):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, GREY16, extratags=[(code, 2, 0, value, True)], metadata=None)
    with caplog.at_level(logging.WARNING, "seg"):
        read_image(file)
        read_image(file)
    assert caplog.text.count(words) == 1 and "a.tif" in caplog.text


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
