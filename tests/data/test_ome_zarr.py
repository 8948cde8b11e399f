"""OME-Zarr: only the touched chunks are read, in a folder and on a server; what a store may not do is refused."""

import functools
import http.server
import json
import os
import threading
import zlib
from collections.abc import Generator
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from format_files import ome_zarr, record_chunks
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from seg.data import stacks
from seg.data.checked_store import CheckedStore
from seg.data.datasets.folder import Folder
from seg.data.image_files import find_images, is_pattern, walk_images
from seg.data.image_io import count_pages, read_image, read_pages
from seg.data.ome_zarr import METADATA_FILES, Encoding, image_path, store_state
from seg.data.raster import ImageReader, open_pages
from seg.errors import DataError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (80, 60), np.uint8)
ENCODINGS = {  # name -> (version, arguments of zarr)
    "plain": (2, {"compressors": None}),
    "blosc": (2, {"compressors": numcodecs.Blosc("zstd")}),
    "zlib": (2, {"compressors": numcodecs.Zlib()}),
    "gzip": (2, {"compressors": numcodecs.GZip()}),
    "lz4": (2, {"compressors": numcodecs.LZ4()}),
    "columns first": (2, {"order": "F"}),
    "dots": (2, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
    "plain 3": (3, {"compressors": None}),
    "gzip 3": (3, {"compressors": [GzipCodec()]}),
    "zstd 3": (3, {"compressors": [ZstdCodec(checksum=True)]}),
    "checksum 3": (3, {"compressors": [ZstdCodec(), Crc32cCodec()]}),
    "transposed 3": (3, {"filters": [TransposeCodec(order=(1, 0))]}),
    "big-endian 3": (3, {"serializer": BytesCodec(endian="big")}),
    "shards 3": (3, {"shards": (32, 32)}),
    "shards, gzip 3": (3, {"shards": (32, 48), "compressors": [GzipCodec()]}),
}


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Keys of the chunks that are read."""
    return record_chunks(monkeypatch)


def refused(call, *words: str) -> None:
    with pytest.raises(DataError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_encoding_gives_the_array(tmp_path, name, dtype):
    version, options = ENCODINGS[name]
    image = (IMAGE * (1 if dtype == np.uint8 else 3.5)).astype(dtype)
    file = ome_zarr(tmp_path / "a.zarr", image, "yx", version, chunks=(16, 16), **options)
    np.testing.assert_array_equal(read_image(file)[..., 0], image)
    reader = ImageReader(file)
    for start, stop in ((0, 80), (17, 18), (5, 40), (31, 80)):
        found = reader.rows(start, stop)
        assert found.dtype == dtype and found.dtype.isnative
        np.testing.assert_array_equal(found[..., 0], image[start:stop])


@pytest.mark.parametrize("version", [2, 3])
def test_only_the_touched_chunks_are_read_and_each_once(tmp_path, fetched, version):
    volume = RNG.integers(0, 256, (3, 2, 80, 60), np.uint8)
    file = ome_zarr(tmp_path / "a.zarr", volume, "zcyx", version, (1, 2), chunks=(1, 1, 16, 32))
    assert count_pages(file) == 3 and fetched == []
    readers = open_pages(file)
    assert readers[1].shape == (80, 60, 2) and fetched == []
    head = "0/c" if version == 3 else "0"
    for start in (20, 24, 30):  # rows of one chunk, in parts
        np.testing.assert_array_equal(readers[1].rows(start, start + 2), np.moveaxis(volume[1], 0, -1)[start : start + 2])  # fmt: skip
    assert sorted(fetched) == [f"{head}/1/{c}/1/{x}" for c in (0, 1) for x in (0, 1)]
    fetched.clear()
    read_image(file, 2)
    assert len(fetched) == len(set(fetched)) == 2 * 5 * 2


def test_of_a_shard_only_the_touched_chunks_are_read(tmp_path, fetched):
    file = ome_zarr(tmp_path / "a.zarr", IMAGE, "yx", 3, chunks=(16, 60), shards=(80, 60), compressors=None)  # fmt: skip
    reader = ImageReader(file)
    np.testing.assert_array_equal(reader.rows(33, 40)[..., 0], IMAGE[33:40])
    assert len(fetched) == 2  # the index and one chunk
    assert reader.stack.store.fetched == 16 * 60 + 5 * 16 + 4


def test_absent_chunks_have_the_fill_value(tmp_path):
    image = IMAGE.copy()
    image[:16] = 7
    file = ome_zarr(tmp_path / "a.zarr", image, chunks=(16, 60), fill_value=7)
    assert not (file / "0/0/0").exists()
    np.testing.assert_array_equal(read_image(file)[..., 0], image)


# --- layouts


def test_a_store_is_an_image_in_folders_and_patterns_and_is_not_looked_into(tmp_path):
    for name in ("a.ome.zarr", "sub/b.zarr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ome_zarr(tmp_path / name, IMAGE)
    (tmp_path / "a.ome.zarr/0/stray.png").write_bytes(b"")
    files = [tmp_path / "a.ome.zarr", tmp_path / "sub/b.zarr"]
    assert walk_images(tmp_path) == files
    assert is_pattern(tmp_path, "**/*.zarr")
    assert [file for _, file in find_images(tmp_path, "**/*.zarr")] == files
    assert [file for _, file in find_images(tmp_path, "**/*")] == files


@pytest.mark.parametrize("given", [{}, {"images": "*.ome.zarr", "masks": "*_mask.zarr"}, {"images": "a.ome.zarr", "masks": "a_mask.zarr"}])  # fmt: skip
def test_pairs_are_found_and_read_by_rows(tmp_path, fetched, given):
    masks = (IMAGE > 99).astype(np.uint8)
    for name in "ab":
        image, mask = (f"{name}.ome.zarr", f"{name}_mask.zarr") if given else (f"images/{name}.ome.zarr", f"masks/{name}.zarr")  # fmt: skip
        for part, pixels in ((image, IMAGE), (mask, masks)):
            (tmp_path / part).parent.mkdir(exist_ok=True)
            ome_zarr(tmp_path / part, pixels, chunks=(16, 60))
    source = Folder(str(tmp_path), ["a", "b"], **given)
    name = sorted(source.files)[0]
    rows = source.open_rows(name)
    assert rows is not None and rows.shape == (80, 60) and fetched == []
    np.testing.assert_array_equal(rows.image_rows(20, 30)[..., 0], IMAGE[20:30])
    np.testing.assert_array_equal(rows.mask_rows(20, 30), masks[20:30])
    assert len(fetched) == 2
    rows.close()
    image, mask = source.read(name)
    np.testing.assert_array_equal(mask, masks)
    before = source.stamp(name)
    chunk = source.files[name].image / "0/1/0"
    os.utime(chunk, ns=(1, os.stat(chunk).st_mtime_ns + 10**9))
    assert source.stamp(name) != before


# --- servers


@pytest.fixture
def server(tmp_path) -> Generator[tuple[str, list[str]]]:
    """Address of a server of the test's folder, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *words) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}", asked
        one.shutdown()


@pytest.mark.parametrize("version", [2, 3])
def test_of_a_server_only_the_touched_chunks_are_asked_for(tmp_path, server, version):
    address, asked = server
    ome_zarr(tmp_path / "a.ome.zarr", IMAGE, "yx", version, (1, 2), chunks=(16, 32))
    file = image_path(f"{address}/a.ome.zarr")
    assert str(file) == f"{address}/a.ome.zarr" and file.name == "a.ome.zarr"
    reader = ImageReader(file)
    np.testing.assert_array_equal(reader.rows(20, 30)[..., 0], IMAGE[20:30])
    head = "/a.ome.zarr/0/c" if version == 3 else "/a.ome.zarr/0"
    chunks = [path for path in asked if path.rpartition("/")[2] not in METADATA_FILES]
    assert sorted(chunks) == [f"{head}/1/0", f"{head}/1/1"]
    np.testing.assert_array_equal(read_image(file)[..., 0], IMAGE)
    assert store_state(file) == store_state(image_path(f"{address}/a.ome.zarr"))
    with pytest.raises(OSError, match="no such store"):
        store_state(image_path(f"{address}/b.ome.zarr"))
    refused(lambda: read_image(image_path(f"{address}/b.ome.zarr")), f"{address}/b.ome.zarr")


def test_a_table_may_name_stores_on_servers(tmp_path, server):
    address, _ = server
    mask = (IMAGE > 99).astype(np.uint8)
    lines = ["image,mask"]
    for name in "ab":
        ome_zarr(tmp_path / f"{name}.ome.zarr", IMAGE, chunks=(16, 60))
        ome_zarr(f"memory://masks/{name}.zarr", mask, chunks=(16, 60))
        lines.append(f"{address}/{name}.ome.zarr,memory://masks/{name}.zarr")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    source = Folder(None, ["a", "b"], table=str(tmp_path / "pairs.csv"))
    for name in source.files:
        image, found = source.read(name)
        np.testing.assert_array_equal(image[..., 0], IMAGE)
        np.testing.assert_array_equal(found, mask)
        assert source.stamp(name).startswith(f"{address}/")
        assert source.open_rows(name) is not None
    for cell in ("ftp://x/a.zarr", "s3://bucket/a.tif", "file:///etc/a.zarr", "simplecache::s3://a/b.zarr"):  # fmt: skip
        (tmp_path / "pairs.csv").write_text(f"image,mask\n{cell},a.zarr")
        refused(lambda: Folder(None, ["a", "b"], table=str(tmp_path / "pairs.csv")), "line 2", cell, "an address that is not read")  # fmt: skip


def test_a_missing_package_of_a_protocol_is_named(monkeypatch):
    def missing(*words, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(CheckedStore, "of_address", missing)
    refused(lambda: read_image(image_path("s3://bucket/a.ome.zarr")), "s3://bucket/a.ome.zarr", "pip install 'seg-experiments[s3]'")  # fmt: skip


# --- untrusted stores


def edited(file: Path, change) -> Path:
    """Change the metadata of the array of a store."""
    place = next(p for p in (file / "0/.zarray", file / "0/zarr.json") if p.exists())
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))
    return file


def test_codecs_that_run_code_and_types_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda *words: ran.append(words))
    file = tmp_path / "a.zarr"
    pickle = {"id": "pickle", "protocol": 5}
    for change in (
        lambda c: c.update(compressor=pickle),
        lambda c: c.update(filters=[pickle]),
        lambda c: c.update(filters=[{"id": "json2"}]),
        lambda c: c.update(filters=[pickle], dtype="|O", fill_value=None),
        lambda c: c.update(dtype="<U4", fill_value=""),
        lambda c: c.update(compressor={"id": "bz2", "level": 1}),
    ):
        edited(ome_zarr(file, IMAGE, chunks=(16, 60)), change)
        refused(lambda: read_image(file), "a.zarr")
        refused(lambda: ImageReader(file), "a.zarr")
    for codecs in ([{"name": "numcodecs.pickle"}], [{"name": "bytes"}, {"name": "unknown"}]):
        edited(ome_zarr(file, IMAGE, "yx", 3), lambda c, codecs=codecs: c.update(codecs=codecs))
        refused(lambda: read_image(file), "a.zarr")
    assert ran == []


@pytest.mark.parametrize(
    ("version", "options", "content"),
    [
        (2, {"compressors": numcodecs.GZip()}, lambda: numcodecs.GZip().encode(bytes(2**24))),
        (2, {"compressors": numcodecs.GZip()}, lambda: 2 * numcodecs.GZip().encode(bytes(2**17))),
        (2, {"compressors": numcodecs.Zlib()}, lambda: zlib.compress(bytes(2**24))),
        (2, {"compressors": numcodecs.Blosc()}, lambda: numcodecs.Blosc().encode(bytes(2**24))),
        (2, {"compressors": numcodecs.LZ4()}, lambda: numcodecs.LZ4().encode(bytes(2**24))),
        (2, {"compressors": None}, lambda: bytes(2**20)),
        (3, {"compressors": [ZstdCodec()]}, lambda: numcodecs.Zstd().encode(bytes(2**24))),
        (3, {"compressors": [GzipCodec()]}, lambda: numcodecs.GZip().encode(bytes(2**24))),
    ],
)  # fmt: skip
def test_a_chunk_that_unpacks_to_more_than_its_size_is_refused_before_it_is_unpacked(tmp_path, version, options, content):  # fmt: skip
    import tracemalloc

    file = ome_zarr(tmp_path / "a.zarr", IMAGE, "yx", version, chunks=(16, 60), **options)
    data = content()
    (file / ("0/c/1/0" if version == 3 else "0/1/0")).write_bytes(data)
    tracemalloc.start()
    refused(lambda: read_image(file), "a.zarr", "a chunk of 960 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    np.testing.assert_array_equal(ImageReader(file).rows(0, 16)[..., 0], IMAGE[:16])  # untouched


def test_a_frame_of_zstd_without_its_size_is_measured(tmp_path):
    """As a stream writes it: magic number, flags 0, window of 1 KiB << n, one run-length block."""

    def frame(size: int) -> bytes:
        window, last = bytes([7 << 3]), 1
        return b"\x28\xb5\x2f\xfd\x00" + window + (last | 1 << 1 | size << 3).to_bytes(3, "little") + b"\x05"  # fmt: skip

    encoding = Encoding(960, "zstd")
    encoding.check_chunk(frame(960))
    with pytest.raises((ValueError, RuntimeError)):
        encoding.check_chunk(frame(2**17))
    file = ome_zarr(tmp_path / "a.zarr", IMAGE, "yx", 3, chunks=(16, 60), compressors=[ZstdCodec()])
    (file / "0/c/0/0").write_bytes(frame(960))
    assert (read_image(file)[:16] == 5).all()


@pytest.mark.parametrize("whole", [False, True])
def test_a_chunk_of_a_shard_is_checked_alone_and_in_the_whole_shard(tmp_path, whole):
    options = {"chunks": (16, 60), "shards": (80, 60), "compressors": [GzipCodec()]}
    file = ome_zarr(tmp_path / "a.zarr", IMAGE, "yx", 3, **options)
    shard = file / "0/c/0/0"
    data = bytearray(shard.read_bytes())
    bomb = numcodecs.GZip().encode(bytes(2**24))
    index = np.frombuffer(bytes(data[-84:-4]), "<u8").reshape(-1, 2).copy()
    body = bytes(data[:-84]) + bomb
    index[1] = len(data) - 84, len(bomb)
    import google_crc32c

    checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(body + index.tobytes() + checksum)
    reader = ImageReader(file)
    np.testing.assert_array_equal(reader.rows(0, 16)[..., 0], IMAGE[:16])
    refused(lambda: reader.rows(0, 80) if whole else reader.rows(16, 20), "a chunk of 960 bytes")


def test_large_chunks_metadata_and_other_files_are_refused(tmp_path, monkeypatch):
    file = ome_zarr(tmp_path / "a.zarr", IMAGE, chunks=(16, 60))
    edited(file, lambda c: c.update(shape=[2**20, 2**20], chunks=[2**20, 2**20]))
    refused(lambda: read_image(file), "MiB; at most 1024 MiB are read")
    ome_zarr(file, IMAGE, chunks=(16, 60))
    (file / "0/0/0").unlink()
    os.mkfifo(file / "0/0/0")
    refused(lambda: read_image(file), "not a regular file")
    ome_zarr(file, IMAGE, chunks=(16, 60))
    monkeypatch.setattr("seg.data.checked_store.MAX_METADATA", 100)
    refused(lambda: read_image(file), "bytes; at most 100 are read")


def test_an_image_of_absent_chunks_is_not_made_as_a_whole(tmp_path, monkeypatch):
    file = ome_zarr(tmp_path / "a.zarr", IMAGE, chunks=(16, 60), compressors=None)
    edited(file, lambda c: c.update(shape=[2**22, 60]))
    monkeypatch.setattr(stacks, "BOMB_BYTES", 2**20)
    refused(lambda: read_image(file), "bytes unpack to")
    assert ImageReader(file).rows(2**22 - 9, 2**22).shape == (9, 60, 1)


def test_a_path_that_leads_out_of_the_store_is_refused(tmp_path):
    ome_zarr(tmp_path / "secret.zarr", IMAGE)
    file = ome_zarr(tmp_path / "a.zarr", IMAGE)
    attributes = json.loads((file / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = "../secret.zarr/0"
    (file / ".zattrs").write_text(json.dumps(attributes))
    refused(lambda: read_image(file), "a.zarr")


def test_what_is_no_single_image_is_named(tmp_path):
    file = ome_zarr(tmp_path / "a.zarr", IMAGE)
    image = json.loads((file / ".zattrs").read_text())["multiscales"][0]
    for attributes, words in (
        ({}, "no metadata of an OME-Zarr image"),
        ({"multiscales": []}, "no metadata of an OME-Zarr image"),
        ({"multiscales": [1]}, "no metadata of an OME-Zarr image"),
        ({"multiscales": [image | {"axes": ["x", "y", "z"]}]}, "no metadata"),
        ({"multiscales": [image | {"axes": ["z", "x"]}]}, "y and x are needed"),
        ({"multiscales": [image | {"axes": ["y", "y"]}]}, "axes y, y"),
        ({"plate": {}}, "a plate or a well"),
    ):
        (file / ".zattrs").write_text(json.dumps(attributes))
        refused(lambda: read_image(file), "a.zarr", words)
    (tmp_path / "b.zarr").write_bytes(b"")
    refused(lambda: read_image(tmp_path / "b.zarr"), "no folder, as an OME-Zarr is")
    refused(lambda: read_image(tmp_path / "c.zarr"), "no such file or folder")
    (tmp_path / "d.zarr").mkdir()
    refused(lambda: read_image(tmp_path / "d.zarr"), "d.zarr")


def test_older_versions_and_the_collection_of_bioformats2raw_are_read(tmp_path):
    file = ome_zarr(tmp_path / "a.zarr", IMAGE)
    image = json.loads((file / ".zattrs").read_text())["multiscales"][0]
    (file / ".zattrs").write_text(
        json.dumps({"multiscales": [image | {"axes": ["Y", "X"]}]})
    )  # 0.3
    np.testing.assert_array_equal(read_image(file)[..., 0], IMAGE)
    file = ome_zarr(tmp_path / "b.zarr", IMAGE[None, None, None], "tczyx")
    image = json.loads((file / ".zattrs").read_text())["multiscales"][0]
    del image["axes"]  # 0.1 and 0.2
    (file / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    np.testing.assert_array_equal(read_image(file)[..., 0], IMAGE)
    several = tmp_path / "c.zarr"
    several.mkdir()
    ome_zarr(several / "0", IMAGE)
    (several / ".zgroup").write_text('{"zarr_format": 2}')
    (several / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    np.testing.assert_array_equal(read_pages(several)[0], IMAGE)
    ome_zarr(several / "1", IMAGE)
    refused(lambda: read_pages(several), "a collection of several images")


def test_an_axis_of_type_channel_is_that_of_the_channels_whatever_its_name(tmp_path):
    file = ome_zarr(tmp_path / "a.zarr", np.stack([IMAGE, IMAGE[::-1]]), "cyx")
    attributes = json.loads((file / ".zattrs").read_text())
    attributes["multiscales"][0]["axes"][0]["name"] = "channel"
    (file / ".zattrs").write_text(json.dumps(attributes))
    np.testing.assert_array_equal(read_image(file), np.stack([IMAGE, IMAGE[::-1]], axis=-1))
