"""Each row of the guide's table of formats: what is read equals what another library reads or was given to write."""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from format_files import dicom, nifti, ome_zarr
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, JPEGLSLossless, RLELossless

import seg.errors
from seg.data import stacks
from seg.data.datasets.folder import Folder
from seg.data.image_files import image_stem, scan_folder
from seg.data.image_io import count_pages, read_axes, read_image, read_pages
from seg.data.raster import ImageReader, open_pages
from seg.data.spacing import read_spacing
from seg.errors import DataError

GUIDE = Path(__file__).parents[2] / "docs/formats.md"
RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (21, 13), np.uint8)
GREY16 = RNG.integers(0, 65536, (21, 13), np.uint16)
RGB8 = RNG.integers(0, 256, (21, 13, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (21, 13, 3), np.uint16)
VOLUME = RNG.integers(0, 65536, (2, 3, 4, 21, 13), np.uint16)  # T, Z, C, Y, X
TINY = Image.new("L", (1, 1))


def refused(call: Callable, *words: str) -> None:
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def check(file: Path, *wanted: np.ndarray) -> None:
    """Each image of a file, whole and in bands, is the one wanted, (H, W) or (H, W, C)."""
    assert count_pages(file) == len(wanted)
    readers = open_pages(file)
    for number, (image, reader) in enumerate(zip(wanted, readers, strict=True)):
        image = image.reshape(*image.shape[:2], -1)
        same(read_image(file, number if len(wanted) > 1 else None), image)
        assert reader.shape == image.shape and reader.dtype == image.dtype
        same(
            np.concatenate(
                [reader.rows(row, min(row + 4, len(image))) for row in range(0, len(image), 4)]
            ),
            image,
        )
    for reader in readers:
        reader.close()


def saved(file: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(file, **options)
    return file


def written(file: Path, pixels: np.ndarray, **options) -> Path:
    tifffile.imwrite(file, pixels, **options)
    return file


def slide(file: Path, aperio: bool = True, flag: bool = False) -> np.ndarray:
    """A pyramid of tiles, as Aperio's with thumbnail, label and macro; returns its largest level."""
    big = RNG.integers(0, 256, (160, 96, 3), np.uint8)
    options = {"photometric": "rgb", "metadata": None}
    tiled = options | {"tile": (16, 16), "compression": "zlib"}
    text = "Aperio Image Library v11\r\n96x160|AppMag = 20|MPP = 0.4990" if aperio else None
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(big, description=text, **tiled)
        if aperio:
            tiff.write(big[::9, ::9], description=text, **options)
        for step in (2, 4):
            tiff.write(big[::step, ::step], description=text, subfiletype=int(flag), **tiled)
        if aperio:
            tiff.write(big[:7, :9], subfiletype=1, description=text, **options)
            tiff.write(big[:8, :5], subfiletype=9, description=text, **options)
    return big


def lsm(file: Path, stack: np.ndarray) -> Path:
    """A file as Zeiss's LSM microscopes write it, of (Z, C, H, W): each slice is followed by its thumbnail."""
    info = np.zeros(1, np.dtype(tifffile.TIFF.CZ_LSMINFO))
    slices, channels, height, width = stack.shape
    for name, value in {
        "MagicNumber": 67127628, "StructureSize": info.itemsize, "DimensionX": width, "DimensionY": height,
        "DimensionZ": slices, "DimensionChannels": channels, "DimensionTime": 1, "VoxelSizeX": 25e-8, "VoxelSizeY": 5e-7,
    }.items():  # fmt: skip
        info[name] = value
    extra = [(34412, 1, info.nbytes, info.tobytes(), True)]
    options = {"photometric": "rgb", "planarconfig": "separate", "metadata": None}
    planes = options | {"photometric": "minisblack"}
    planes |= {} if channels > 1 else {"planarconfig": None}
    with tifffile.TiffWriter(file, byteorder="<") as tiff:
        for number, one in enumerate(stack):
            tiff.write(one, extratags=extra if number == 0 else [], **planes)
            tiff.write(np.zeros((3, 4, 5), np.uint8), subfiletype=1, **options)
    return file


def qptiff(file: Path, channels: np.ndarray) -> Path:
    """A pyramid as Akoya's scanners write it, of (C, H, W), with its thumbnail."""
    options = {"software": "PerkinElmer-QPI", "metadata": None}
    tiled = options | {"photometric": "minisblack", "tile": (16, 16), "compression": "lzw"}
    size = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(file) as tiff:
        for step in (1, 2, 4):
            for one in channels:
                tiff.write(one[::step, ::step], **tiled, **size)
            if step == 1:
                tiff.write(np.zeros((9, 7, 3), np.uint8), photometric="rgb", **options)
    return file


def as_ndpi(plain: Path, file: Path) -> Path:
    """Write a TIFF as Hamamatsu does: 8 bytes for each offset of a directory, whose tags' high halves follow."""
    data = bytearray(plain.read_bytes())
    with tifffile.TiffFile(plain) as tiff:
        places = [(page.offset, len(page.tags)) for page in tiff.pages]
    link = 4  # position of the offset of the next directory
    for offset, count in places:
        data += b"\0" * (len(data) % 2)
        data[link : link + 8] = len(data).to_bytes(8, "little")
        link = len(data) + 2 + 12 * count
        data += plain.read_bytes()[offset : offset + 2 + 12 * count] + bytes(8 + 4 * count)
    file.write_bytes(data)
    return file


def jpeg2000(folder: Path) -> None:
    for name, kind in (("a.jp2", "jp2"), ("a.j2k", "j2k")):
        for image, bits in (
            (GREY8, 8),
            (RGB8, 8),
            (GREY16 % 4096, 12),
            (RGB16, 16),
            (GREY16, 16),
            (RGB16 % 1024, 10),
        ):
            data = imagecodecs.jpeg2k_encode(image, level=0, codecformat=kind, bitspersample=bits)
            (folder / name).write_bytes(data)
            check(folder / name, image)
    check(saved(folder / "b.jp2", RGB8, irreversible=False), RGB8)  # Pillow's
    with_alpha = np.dstack([RGB16, GREY16])
    (folder / "c.jp2").write_bytes(
        imagecodecs.jpeg2k_encode(with_alpha, level=0, codecformat="jp2")
    )
    check(folder / "c.jp2", RGB16)


def avif(folder: Path) -> None:
    file = folder / "a.avif"
    for image, bits in ((GREY8, 8), (RGB8, 8), (RGB16 % 1024, 10), (GREY16 % 4096, 12)):
        kind = "444" if image.ndim == 3 else "400"
        file.write_bytes(
            imagecodecs.avif_encode(image, level=100, bitspersample=bits, pixelformat=kind)
        )
        check(file, image)
    exif = Image.Exif()
    exif[274] = 6
    saved(folder / "b.avif", RGB8, exif=exif)
    lossy = np.array(Image.open(folder / "b.avif"))
    assert lossy.shape == (21, 13, 3)
    check(folder / "b.avif", np.rot90(lossy, -1))
    TINY.save(folder / "c.avif", save_all=True, append_images=[Image.new("L", (1, 1), 9)])
    refused(lambda: read_image(folder / "c.avif"), "2 frames")


def axes_of_imagej_and_ome(folder: Path) -> None:
    slices = [np.moveaxis(VOLUME[t, z], 0, -1) for t in range(2) for z in range(3)]
    for name, options in (("a.ome.tif", {}), ("b.tif", {"imagej": True})):
        check(written(folder / name, VOLUME, metadata={"axes": "TZCYX"}, **options), *slices)
        file = written(folder / f"c{name}", VOLUME[0, 0], metadata={"axes": "CYX"}, **options)
        check(file, slices[0])
        flat = read_pages(file, pages="slices")  # data.pages overrides
        same(np.stack(flat), VOLUME[0, 0])
        file = written(folder / f"t{name}", VOLUME[:, 0, 0], metadata={"axes": "TYX"}, **options)
        check(file, *VOLUME[:, 0, 0])
        same(read_image(file, pages="channels"), np.moveaxis(VOLUME[:, 0, 0], 0, -1))
    # Zeiss's LSM: channels are the planes of a page
    for channels in (1, 3):
        stack = RNG.integers(0, 256, (4, channels, 21, 13), np.uint8)
        check(lsm(folder / "a.lsm", stack), *np.moveaxis(stack, 1, -1))
        assert read_axes(folder / "a.lsm")[1].endswith(": 4 slices (Z)")
        assert read_spacing(folder / "a.lsm") == (0.5, 0.25)
    # Another order of the planes, tiles, and levels of a pyramid in SubIFDs
    file = folder / "d.ome.tif"
    with tifffile.TiffWriter(file) as tiff:
        stack = VOLUME[0].swapaxes(0, 1)  # C, Z, Y, X
        options = {"tile": (16, 16), "photometric": "minisblack", "compression": "zlib"}
        tiff.write(stack, subifds=1, metadata={"axes": "CZYX"}, **options)
        tiff.write(stack[..., ::2, ::2], subfiletype=1, **options)
    check(file, *slices[:3])
    check(
        written(
            folder / "e.tif", np.stack([RGB8, RGB8[::-1]]), imagej=True, metadata={"axes": "ZYXS"}
        ),
        RGB8,
        RGB8[::-1],
    )


def slides(folder: Path) -> None:
    for name, options in (
        ("a.svs", {}),
        ("b.tif", {}),
        ("c.tif", {"aperio": False}),
        ("d.tif", {"aperio": False, "flag": True}),
    ):
        check(folder / name, slide(folder / name, **options))
    # Akoya: a page for each channel
    channels = RNG.integers(0, 256, (3, 160, 96), np.uint8)
    check(qptiff(folder / "a.qptiff", channels), np.moveaxis(channels, 0, -1))
    assert read_spacing(folder / "a.qptiff") == (0.5, 0.5)
    check(qptiff(folder / "b.qptiff", channels[:1]), channels[0])
    # Hamamatsu: levels and macro, by its own tags
    plain, big = folder / "plain.tif", slide(folder / "x.tif")
    with tifffile.TiffWriter(plain, byteorder="<") as tiff:
        for image, lens in ((big, 20.0), (big[::2, ::2], 10.0), (big[:40, :20], -1.0)):
            extra = [
                (65420, 4, 1, 1, True),
                (65421, 11, 1, lens, True),
                (271, 2, 10, "Hamamatsu", True),
            ]
            options = {"photometric": "rgb", "metadata": None, "extratags": extra}
            tiff.write(image, resolution=(40000, 40000), resolutionunit="CENTIMETER", **options)
    check(as_ndpi(plain, folder / "a.ndpi"), big)
    # A level that is Aperio's JPEG 2000 of YCbCr
    jpeg = big[:64, :64]
    luminance = np.array(Image.fromarray(jpeg).convert("YCbCr"))
    tifffile.imwrite(
        folder / "y.svs",
        luminance,
        photometric="rgb",
        tile=(64, 64),
        compression="jpeg2000",
        compressionargs={"level": 0},
        metadata=None,
        description="Aperio",
    )
    with tifffile.TiffFile(folder / "y.svs") as tiff:
        offset = tiff.pages[0].tags["Compression"].valueoffset
    data = bytearray((folder / "y.svs").read_bytes())
    data[offset : offset + 2] = (33003).to_bytes(2, "little")
    (folder / "y.svs").write_bytes(data)
    check(folder / "y.svs", np.array(Image.fromarray(luminance, "YCbCr").convert("RGB")))


def arrays(folder: Path) -> None:
    stack = VOLUME[0, :, 0]
    for image in (
        GREY8,
        RGB16,
        GREY16.astype(">u2"),
        np.asfortranarray(RGB8),
        VOLUME[0, 0],
        GREY8.astype(np.float32),
    ):
        np.save(folder / "a.npy", image)
        last = np.moveaxis(image, 0, -1) if image.shape[0] == 4 else image
        native = last.astype(last.dtype.newbyteorder("="))
        check(folder / "a.npy", native)
        np.savez_compressed(folder / "a.npz", any_name=image)
        check(folder / "a.npz", native)
    np.savez(folder / "b.npz", image=RGB8, mask=GREY8, more=GREY16)
    check(folder / "b.npz", RGB8)
    same(read_pages(folder / "b.npz")[0], GREY8)  # as a mask
    np.save(folder / "s.npy", stack)
    assert count_pages(folder / "s.npy", "slices") == 3
    same(np.stack(read_pages(folder / "s.npy", pages="slices")), stack)
    wide = RNG.integers(0, 9, (21, 13, 20), np.uint8)
    np.save(folder / "w.npy", wide)
    refused(lambda: read_image(folder / "w.npy"), "w.npy", "(21, 13, 20)", "data.pages=slices")
    same(np.stack(read_pages(folder / "w.npy", pages="slices")), wide)
    np.save(folder / "h.npy", np.zeros((40, 30, 20), np.uint8))
    assert read_image(folder / "h.npy", pages="channels").shape == (40, 30, 20)
    for shape in ((5,), (5, 5, 5), (2, 3, 4, 5)):
        np.save(folder / "u.npy", np.zeros(shape, np.uint8))
        refused(lambda: read_image(folder / "u.npy"), "u.npy", str(shape))


def dicom_files(folder: Path) -> None:
    file = folder / "a.dcm"
    check(dicom(file, GREY16), GREY16)
    check(dicom(file, GREY16 % 4096, bits=12), GREY16 % 4096)
    check(dicom(file, GREY16 % 4096, "MONOCHROME1", bits=12), 4095 - GREY16 % 4096)
    check(dicom(file, RGB8, "RGB"), RGB8)
    check(dicom(file, np.stack([GREY8, GREY8[::-1], GREY8 // 2])), GREY8, GREY8[::-1], GREY8 // 2)
    signed = (GREY16.astype(np.int32) - 32768).astype(np.int16)
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-1024"}
    check(dicom(file, signed, **rescale), (signed * 0.5 - 1024).astype(np.float32))
    ybr = np.array(Image.fromarray(RGB8).convert("YCbCr"))
    dicom(file, ybr, "YBR_FULL")
    check(file, pydicom.pixels.pixel_array(file))
    assert abs(read_image(file).astype(int) - RGB8).max() <= 3  # YBR rounds
    # Another codec, and the rescale of the frames of an enhanced file
    data = pydicom.dcmread(dicom(file, GREY16))
    data.compress(RLELossless)
    data.save_as(file)
    check(file, GREY16)
    groups = []
    for slope in (1, 2):
        groups.append(pydicom.Dataset())
        groups[-1].PixelValueTransformationSequence = [pydicom.Dataset()]
        groups[-1].PixelValueTransformationSequence[0].RescaleSlope = slope
        groups[-1].PixelValueTransformationSequence[0].RescaleIntercept = 0
    dicom(file, np.stack([GREY8, GREY8]), PerFrameFunctionalGroupsSequence=groups)
    same(read_image(file, 1)[..., 0], GREY8 * np.float32(2))
    # A palette: colours of an image, indices of a mask
    table = RNG.integers(0, 65536, (3, 256), np.uint16)
    names = ("Red", "Green", "Blue")
    lookup = {
        f"{n}PaletteColorLookupTableData": t.tobytes() for n, t in zip(names, table, strict=True)
    }
    lookup |= {f"{n}PaletteColorLookupTableDescriptor": [256, 0, 16] for n in names}
    check(dicom(file, GREY8, "PALETTE COLOR", **lookup), table.T[GREY8])
    same(read_pages(file, colours=False)[0], GREY8)


def nifti_files(folder: Path) -> None:
    volume = RNG.integers(0, 65536, (13, 21, 3, 2), np.uint16)  # axes 1 and 2 are columns and rows
    wanted = [volume[:, :, z, t].T for t in range(2) for z in range(3)]
    for name in ("a.nii", "a.nii.gz"):
        check(nifti(folder / name, volume), *wanted)
        check(nifti(folder / name, volume[..., 0, 0]), wanted[0])
    file = nifti(folder / "s.nii", volume[..., :1, 0].astype(np.int16), slope=0.5, inter=-3)
    check(file, nibabel.load(file).get_fdata()[..., 0].T.astype(np.float32))
    assert read_image(folder / "a.nii", pages="channels").shape == (21, 13, 1)
    colours = np.ascontiguousarray(RGB8.swapaxes(0, 1)).view([(n, "u1") for n in "RGB"])[..., 0]
    check(nifti(folder / "c.nii", colours), RGB8)


def ome_zarr_files(folder: Path) -> None:
    slices = [np.moveaxis(VOLUME[t, z], 0, -1) for t in range(2) for z in range(3)]
    for version in (2, 3):
        file = folder / f"{version}.ome.zarr"
        chunks = {"chunks": (1, 2, 2, 8, 8)}
        check(ome_zarr(file, VOLUME, "tzcyx", version, (1, 2), {"y": 0.5, "x": 0.25}, **chunks), *slices)  # fmt: skip
        assert read_spacing(file) == (0.5, 0.25)
        assert read_axes(file)[1] == "axes TZCYX: 2 x 3 slices (T x Z) of 4 channels"
        swapped = np.moveaxis(VOLUME, 2, 1)
        check(ome_zarr(file, swapped, "tczyx", version, **chunks), *slices)
        same(np.stack(read_pages(file, pages="slices")), swapped.reshape(-1, 21, 13))
        same(read_image(file, pages="channels"), np.moveaxis(swapped.reshape(-1, 21, 13), 0, -1))
        check(ome_zarr(file, VOLUME[0, 0], "cyx", version), slices[0])
        for image in (GREY8, GREY16.astype(">u2"), GREY8.astype(np.float32)):
            check(ome_zarr(file, image, "yx", version), image.astype(image.dtype.newbyteorder("=")))
            check(ome_zarr(file, image[None, None], "tcyx", version), image.astype(image.dtype.newbyteorder("=")))  # fmt: skip


def unread(folder: Path) -> None:
    for name in (
        "a.czi",
        "b.CZI",
        "c.nd2",
        "d.xyz",
        "e",
        "notes.txt",
        ".hidden.czi",
        "Thumbs.db",
        "a.tfw",
        "a.tif.aux.xml",
        "a_seg.npy",
    ):
        (folder / name).write_bytes(b"")
    saved(folder / "a.png", GREY8)
    images, others = scan_folder(folder)
    assert [f.name for f in images] == ["a.png"]
    assert [f.name for f in others] == ["a.czi", "b.CZI", "c.nd2", "d.xyz", "e"]


def pictures(folder: Path) -> None:
    for name in ("a.bmp", "a.webp", "a.jpg"):
        saved(folder / name, RGB8, **({"lossless": True} if name == "a.webp" else {}))
        check(folder / name, np.array(Image.open(folder / name)))


def cmyk(folder: Path) -> None:
    ink = RNG.integers(0, 256, (21, 13, 4), np.uint8)
    file = folder / "a.tif"
    Image.frombytes("CMYK", (13, 21), ink.tobytes()).save(file)
    check(file, np.array(Image.open(file).convert("RGB")))


def orientation(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    check(saved(folder / "a.png", RGB8, exif=exif), np.rot90(RGB8, -1))


def bits(folder: Path) -> None:
    check(saved(folder / "a.png", GREY8 > 99), (GREY8 > 99) * np.uint8(255))
    same(read_pages(folder / "a.png")[0] * np.uint8(1), (GREY8 > 99) * np.uint8(1))


def few_bits(folder: Path) -> None:
    image = GREY8[:, :12] % 16
    data = imagecodecs.packints_encode(image, 4)
    options = {"dtype": np.uint8, "bitspersample": 4, "photometric": "minisblack"}
    tifffile.imwrite(folder / "a.tif", iter([data]), shape=image.shape, rowsperstrip=21, **options)
    check(folder / "a.tif", image * np.uint8(17))


def palettes(folder: Path) -> None:
    image = Image.frombytes("P", (13, 21), GREY8.tobytes())
    image.putpalette(RGB8.ravel().tolist()[:768])
    image.save(folder / "a.png")
    check(folder / "a.png", np.array(Image.open(folder / "a.png").convert("RGB")))
    same(read_pages(folder / "a.png")[0], GREY8)


def gdal(folder: Path) -> None:
    text = '<GDALMetadata><Item role="scale" sample="0">2</Item><Item role="offset" sample="0">1</Item></GDALMetadata>'
    extra = [(42112, 2, len(text) + 1, text, True)]
    check(
        written(folder / "a.tif", GREY8, extratags=extra, metadata=None),
        GREY8 * np.float32(2) + np.float32(1),
    )


def no_data(folder: Path) -> None:
    image = GREY8.astype(np.float32)
    written(folder / "a.tif", image, extratags=[(42113, 2, 3, "7", True)], metadata=None)
    same(read_image(folder / "a.tif", nodata=(7.0,))[..., 0], np.where(image == 7, np.nan, image))


def unread_colours(folder: Path) -> None:
    refused(
        lambda: read_image(written(folder / "a.tif", RGB8, photometric="cielab", metadata=None)),
        "PhotometricInterpretation 8",
    )


def animations(folder: Path) -> None:
    TINY.save(folder / "a.gif", save_all=True, append_images=[Image.new("L", (1, 1), 9)])
    refused(lambda: read_image(folder / "a.gif"), "2 frames")


def overviews(folder: Path) -> None:
    with tifffile.TiffWriter(folder / "a.tif") as tiff:
        tiff.write(GREY8, metadata=None)
        tiff.write(GREY8[::2, ::2], subfiletype=1, metadata=None)
    check(folder / "a.tif", GREY8)


def png(folder: Path) -> None:
    check(saved(folder / "a.png", GREY16), GREY16)
    cv2.imwrite(str(folder / "a.png"), np.dstack([RGB16[..., ::-1], GREY16]))
    check(folder / "a.png", RGB16)


def netpbm(folder: Path) -> None:
    image = GREY16 % 4096
    (folder / "a.pgm").write_bytes(b"P5 13 21 4095\n" + image.astype(">u2").tobytes())
    check(folder / "a.pgm", image)


def gif(folder: Path) -> None:
    check(saved(folder / "a.gif", GREY8), GREY8)


def tiff_types(folder: Path) -> None:
    for kind in (np.uint8, np.uint16, np.int16, np.float32):
        image = RNG.integers(0, 100, (21, 13, 5)).astype(kind)
        file = written(folder / "a.tif", image, photometric="minisblack", planarconfig="contig")
        check(file, image if image.dtype.kind == "u" else image.astype(np.float32))


def extra_samples(folder: Path) -> None:
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    check(written(folder / "a.tif", np.dstack([RGB8, GREY8]), **options), RGB8)


def white_is_zero(folder: Path) -> None:
    check(written(folder / "a.tif", GREY8, photometric="miniswhite", metadata=None), 255 - GREY8)


ROWS = {  # first cell of the row -> its check
    "PNG, 8 and 16 bits": png,
    "JPEG, BMP, WebP": pictures,
    "GIF": gif,
    "PGM, PPM, binary or plain": netpbm,
    "JPEG 2000": jpeg2000,
    "AVIF": avif,
    "TIFF": tiff_types,
    "TIFF of ImageJ, OME or Zeiss (`.lsm`)": axes_of_imagej_and_ome,
    "slides, `.svs`, `.ndpi`, `.qptiff` and pyramids in `.tif`": slides,
    "NPY, NPZ": arrays,
    "DICOM (`pip install 'seg-experiments[dicom]'`)": dicom_files,
    "NIfTI (`pip install 'seg-experiments[nifti]'`), `.nii` and `.nii.gz`": nifti_files,
    "OME-Zarr (`pip install 'seg-experiments[zarr]'`), folders `.ome.zarr` and addresses": ome_zarr_files,
    "CZI, ND2, LIF and others": unread,
    "1 bit": bits,
    "2 and 4 bits, grey, PNG and TIFF": few_bits,
    "palette, PNG, BMP and TIFF": palettes,
    "TIFF with ExtraSamples": extra_samples,
    "TIFF, PhotometricInterpretation 0": white_is_zero,
    "CMYK and YCbCr, JPEG and TIFF": cmyk,
    "CIE Lab, LogLuv, colour filter arrays": unread_colours,
    "EXIF or TIFF orientation": orientation,
    'scale and offset, in GDAL\'s metadata (`role="scale"`) or ImageJ\'s calibration (a straight line)': gdal,
    "GDAL_NODATA": no_data,
    "TIFF, NewSubfileType of an overview or a transparency mask": overviews,
    "APNG, animated WebP, AVIF and GIF": animations,
}  # fmt: skip


def rows_of_the_guide() -> list[str]:
    table = GUIDE.read_text().split("| file | what is read |\n| --- | --- |\n")[1].split("\n\n")[0]
    return [re.split(r" \| ", line[2:])[0] for line in table.splitlines()]


def test_every_row_of_the_guide_has_a_check():
    assert rows_of_the_guide() == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_guide_is_what_is_read(tmp_path, row):
    ROWS[row](tmp_path)


def packed(file: Path, array: np.ndarray, claimed: tuple[int, ...]) -> Path:
    """An NPZ whose array claims another shape."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as stream,
    ):
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": claimed}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(array.tobytes())
    return file


def test_arrays_that_run_code_or_claim_more_than_they_hold_are_refused(tmp_path, monkeypatch):
    objects = np.array([[print, 1]], dtype=object)
    np.save(tmp_path / "o.npy", objects)
    np.savez(tmp_path / "o.npz", objects)
    for name in ("o.npy", "o.npz"):
        refused(
            lambda name=name: read_image(tmp_path / name),
            name,
            "Python objects, which could run code",
        )
    np.save(tmp_path / "t.npy", GREY16)
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npy").read_bytes()[:-1])
    refused(lambda: read_image(tmp_path / "t.npy"), "t.npy", "truncated")
    refused(
        lambda: read_image(packed(tmp_path / "c.npz", GREY8, (10**9, 10**9))), "c.npz", "truncated"
    )
    np.savez(tmp_path / "two.npz", a=GREY8, b=GREY8)
    refused(lambda: read_image(tmp_path / "two.npz"), "arrays a, b", "one called image")
    refused(lambda: read_pages(tmp_path / "two.npz"), "one called mask")
    volume = np.zeros((2000, 2000, 3), np.uint8)
    np.savez_compressed(tmp_path / "z.npz", volume)
    nifti(tmp_path / "z.nii.gz", volume)
    assert read_image(tmp_path / "z.npz").shape == (2000, 2000, 3)  # constant, and not large
    monkeypatch.setattr(stacks, "BOMB_BYTES", 2**20)
    monkeypatch.setattr(stacks, "BOMB_RATIO", 50)
    stacks.unpack_state.cache_clear()
    for name in ("z.npz", "z.nii.gz"):
        refused(lambda name=name: read_image(tmp_path / name, 0), name, "unpack to")
    file = nifti(tmp_path / "a.nii", VOLUME[0, 0])
    file.write_bytes(file.read_bytes()[:-9])
    refused(lambda: read_image(file, 0), "a.nii", "truncated")
    file = dicom(tmp_path / "a.dcm", GREY16)
    file.write_bytes(file.read_bytes()[:-9])
    refused(lambda: read_image(file), "a.dcm")
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    refused(lambda: read_image(tmp_path / "b.dcm"), "b.dcm")


def test_a_dicom_that_is_no_picture_is_named(tmp_path):
    file = dicom(tmp_path / "a.dcm", GREY8, SOPClassUID=stacks.SLIDE_STORAGE)
    refused(lambda: read_image(file), "tiles of a slide", "bfconvert")
    data = pydicom.dcmread(file)
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"  # structures
    for name in ("Rows", "PixelData"):
        del data[name]
    data.save_as(file)
    refused(lambda: read_image(file), "it holds no pixels")
    data = pydicom.dcmread(dicom(file, GREY8))
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    data.save_as(file)
    refused(lambda: read_image(file), "JPEG-LS Lossless", "gdcmconv --raw")
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = pydicom.encaps.encapsulate([imagecodecs.jpeg8_encode(GREY8, level=95)])
    data.save_as(file)
    check(file, imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(GREY8, level=95)))


@pytest.mark.parametrize(
    ("name", "extra"),
    [("a.dcm", "dicom"), ("a.nii", "nifti"), ("a.nii.gz", "nifti"), ("a.zarr", "zarr")],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, extra):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(seg.errors, "find_spec", lambda package: None)
    refused(lambda: read_image(tmp_path / name), name, f"pip install 'seg-experiments[{extra}]'")


def test_slices_of_channels_are_paired_with_the_slices_of_their_masks(tmp_path, caplog):
    masks = RNG.integers(0, 2, (2, 3, 21, 13), np.uint8)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    written(tmp_path / "images/s.ome.tif", VOLUME, metadata={"axes": "TZCYX"})
    written(
        tmp_path / "masks/s.ome.tif",
        masks.reshape(-1, 21, 13),
        photometric="minisblack",
        ome=False,
    )
    written(tmp_path / "images/v.tif", VOLUME[1, 2], imagej=True, metadata={"axes": "CYX"})
    written(tmp_path / "masks/v.tif", masks[0, 0])
    with caplog.at_level("INFO"):
        source = Folder(str(tmp_path), ["a", "b"])
    assert "s.ome.tif: axes TZCYX: 2 x 3 slices (T x Z) of 4 channels" in caplog.text
    assert "v.tif: axes CYX: one image of 4 channels" in caplog.text
    assert list(source.files) == [*(f"s-{i}" for i in range(6)), "v"]
    for number, (t, z) in enumerate(np.ndindex(2, 3)):
        image, mask = source.read(f"s-{number}")
        same(image, np.moveaxis(VOLUME[t, z], 0, -1))
        same(mask, masks[t, z])
    same(source.read("v")[0], np.moveaxis(VOLUME[1, 2], 0, -1))
    # The option overrides the axes, as for a file without axes
    written(
        tmp_path / "masks/v.tif",
        np.stack([masks[0, 0]] * 4),
        photometric="minisblack",
        metadata=None,
    )
    flat = np.repeat(masks.reshape(-1, 21, 13), 4, axis=0)
    written(tmp_path / "masks/s.ome.tif", flat, photometric="minisblack", ome=False)
    source = Folder(str(tmp_path), ["a", "b"], pages="slices")
    assert len(source.files) == 28
    same(source.read("s-05")[0][..., 0], VOLUME.reshape(-1, 21, 13)[5])
    refused(
        lambda: Folder(str(tmp_path), ["a", "b"]),
        "s.ome.tif: 24 pages",
        "has 6",
        "whose axes are slices",
    )


def test_planes_of_a_mask_follow_the_slices_of_its_image(tmp_path):
    planes = RNG.integers(0, 2, (3, 2, 21, 13), np.uint8)  # Z, C, Y, X
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    nifti(tmp_path / "images/s.nii.gz", VOLUME[0, :, 0].T)
    written(tmp_path / "masks/s.tif", planes, imagej=True, metadata={"axes": "ZCYX"})
    source = Folder(str(tmp_path), ["a", "b"], task="overlapping")
    for z in range(3):
        image, mask = source.read(f"s-{z}")
        same(image[..., 0], VOLUME[0, z, 0])
        same(mask, np.moveaxis(planes[z], 0, -1))
    # An image and its mask in one kind of archive
    np.savez(tmp_path / "images/t.npz", image=GREY8)
    np.savez(tmp_path / "masks/t.npz", image=GREY8, mask=np.stack([GREY8 // 128] * 2, axis=-1))
    source = Folder(str(tmp_path), ["a", "b"], task="overlapping")
    same(source.read("t")[1][..., 1], GREY8 // 128)


def test_files_of_a_set_name_no_other_file(tmp_path):
    """An OME-XML may name any path; only the file itself is opened."""
    file = written(tmp_path / "a.ome.tif", VOLUME[0, :, 0], metadata={"axes": "ZYX"})
    with tifffile.TiffFile(file) as tiff:
        xml = tiff.ome_metadata
    other = '<TiffData FirstZ="{0}" IFD="{0}" PlaneCount="1"><UUID FileName="../../secret.tif">urn:uuid:0</UUID></TiffData>'
    xml = re.sub(r"<TiffData .*?/>", "".join(other.format(i) for i in range(3)), xml)
    written(
        file, VOLUME[0, :, 0], description=xml, metadata=None, ome=False, photometric="minisblack"
    )
    opened = []

    class Recorded(tifffile.TiffFile):
        def __init__(self, path, *args, **options):
            opened.append(str(path))
            super().__init__(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tifffile, "TiffFile", Recorded)
        patch.setattr(tifffile.tifffile, "TiffFile", Recorded)
        assert count_pages(file) == 3
    assert set(opened) == {str(file)}


def test_a_slide_is_read_in_bands_from_its_largest_level_alone(tmp_path):
    big = slide(tmp_path / "a.svs")
    (reader,) = open_pages(tmp_path / "a.svs")
    decoded = []
    page = reader.directory
    decode = page.decode
    page.decode = lambda data, index, **options: (
        decoded.append(index) or decode(data, index, **options)
    )
    same(reader.rows(20, 30), big[20:30])
    assert sorted(decoded) == list(range(6, 12))  # one row of tiles of 16 px
    reader.close()


@pytest.mark.parametrize("suffix", [".tiff", ".btf", ".ome.btf", ".tf2", ".tf8", ".BTF", ".lsm", ".qptiff"])  # fmt: skip
def test_a_tiff_of_another_suffix_is_read_as_one(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    written(file, RGB8, bigtiff=True, photometric="rgb", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(file) as tiff:
        assert tiff.is_bigtiff
    assert scan_folder(tmp_path) == ([file], []) and image_stem(file) == "a"
    check(file, RGB8)


def test_pages_of_falling_size_without_tiles_stay_pages(tmp_path):
    file = tmp_path / "stack.tif"
    with tifffile.TiffWriter(file) as tiff:
        for step in (1, 2, 4):
            tiff.write(RGB8[::step, ::step], photometric="rgb", metadata=None)
    assert count_pages(file) == 3


def test_warnings_of_decoders_are_no_errors(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = ImageReader(dicom(tmp_path / "a.dcm", GREY8))
        assert reader.shape == (21, 13, 1)
        assert read_spacing(tmp_path / "a.dcm") is None
