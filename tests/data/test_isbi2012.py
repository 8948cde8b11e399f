"""ISBI 2012 without a folder: an archive from a local server, downloaded once, checked, and refused if wrong."""

import hashlib
import io
import os
import stat
import sys
import tarfile
import threading
import time
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.commands.evaluate import evaluate
from seg.data.datasets import download
from seg.data.datasets.isbi2012 import ISBI2012, ISBI_FILES, LABELS_FILE, VOLUME_FILE, find_fault
from seg.errors import DataError
from seg.train import main
from seg.training.run import train

REAL = Path(__file__).parents[3] / "shared/data/isbi2012"
BY_HAND = r"; download train-volume.tif and train-labels.tif by hand \(https://.*\) and give their folder, data.root="


class Site:
    """Local HTTP server: its answer, and the number of requests."""

    def __init__(self) -> None:
        self.body, self.status, self.promised = b"", 200, None
        self.pause, self.linger = 0.0, 0.0  # seconds before and after the answer
        self.asked, self.together = 0, threading.Barrier(1)
        self.stop = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/challenge.zip"


class Answer(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *args) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        site = self.site
        site.asked += 1
        site.together.wait(20)
        if site.pause:
            site.stop.wait(site.pause)
            return
        self.send_response(site.status)
        self.send_header("Content-Length", str(site.promised or len(site.body)))
        self.end_headers()
        self.wfile.write(site.body)
        site.stop.wait(site.linger)

    def log_message(self, *args) -> None: ...


@pytest.fixture
def site(tmp_path, monkeypatch, stack_root):
    """Serves a zip of the small stacks; the cache is empty."""
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    site = Site()
    site.body = zipped(
        {f"challenge/{n}": (stack_root / n).read_bytes() for n in ISBI_FILES.values()}
    )
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.stop.set()
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def zipped(files: dict[str, bytes], kind: int = 0) -> bytes:
    """A zip archive; ``kind`` is the file type of its first entry, a link or the like."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, kind = kind << 16, 0
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz", **first) -> bytes:
    """A tar archive; ``first`` are attributes of its first entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in first.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
            first = {}
    return stream.getvalue()


def stacks(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in ISBI_FILES.values()}


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of the pixels, by the words of the option."""
    return {
        key: hashlib.sha256(tifffile.imread(root / name).tobytes()).hexdigest()
        for key, name in ISBI_FILES.items()
    }


def left(tmp_path: Path) -> list[str]:
    """Files in the cache."""
    return sorted(f.name for f in (tmp_path / "cache").rglob("*") if f.is_file())


def test_the_archive_is_fetched_once_and_holds_the_same_data(site, stack_root, tmp_path):
    wanted = ISBI2012(str(stack_root))
    for _ in range(2):
        source = ISBI2012(None, site.url, hashes(stack_root))
        assert source.splits == wanted.splits
        for name in source.splits["val"]:
            for a, b in zip(source.read(name), wanted.read(name), strict=True):
                np.testing.assert_array_equal(a, b)
    assert site.asked == 1 and left(tmp_path) == [LABELS_FILE, VOLUME_FILE]


def test_a_second_start_needs_no_network_nor_a_cache_that_can_be_written(
    site, stack_root, tmp_path
):
    ISBI2012(None, site.url, hashes(stack_root))
    folder = next((tmp_path / "cache").iterdir())
    folder.chmod(0o500)
    site.status = 500
    assert len(ISBI2012(None, site.url, hashes(stack_root)).splits["train"]) == 8
    assert site.asked == 1
    folder.chmod(0o700)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_archive_will_do_too(site, stack_root, mode):
    site.body = tarred(
        {"a/notes.txt": b"-"} | {f"a/{n}": b for n, b in stacks(stack_root).items()}, mode
    )
    assert len(ISBI2012(None, site.url, hashes(stack_root)).images) == 10


def test_another_address_is_another_place_of_the_cache(site, stack_root):
    ISBI2012(None, site.url, hashes(stack_root))
    site.status = 404
    with pytest.raises(DataError, match="404"):
        ISBI2012(None, f"{site.url}?b", None)


def test_a_spoilt_file_of_the_cache_is_fetched_anew(site, stack_root, tmp_path):
    for spoil in (bytes.fromhex("00"), (stack_root / LABELS_FILE).read_bytes()[:9999], b""):
        ISBI2012(None, site.url, hashes(stack_root))
        next((tmp_path / "cache").rglob(LABELS_FILE)).write_bytes(spoil)
        ISBI2012(None, site.url, hashes(stack_root))
    assert site.asked == 4
    next((tmp_path / "cache").rglob(VOLUME_FILE)).unlink()
    assert ISBI2012(None, site.url, hashes(stack_root)) and site.asked == 5


def test_the_hash_is_of_the_pixels_not_of_the_tiff_s_wrapping(site, stack_root, tmp_path):
    pixels = {name: tifffile.imread(stack_root / name) for name in ISBI_FILES.values()}
    for name, stack in pixels.items():
        tifffile.imwrite(tmp_path / name, stack, compression="zlib", description="rewritten")
    site.body = zipped(stacks(tmp_path))
    assert ISBI2012(None, site.url, hashes(stack_root))


@pytest.mark.skipif(not REAL.is_dir(), reason="the challenge's data isn't here")
def test_the_config_s_hashes_are_those_of_the_challenge():
    option = yaml.safe_load((CONF / "data/isbi2012.yaml").read_text())["sha256"]
    assert find_fault(REAL, option) is None


def test_a_wrong_hash_is_told_and_nothing_stays(site, stack_root, tmp_path):
    right = hashes(stack_root)
    wrong = right | {"labels": "ab" * 32}
    with pytest.raises(
        DataError,
        match=rf"{site.url}: train-labels.tif: SHA-256 of its pixels is {right['labels']}, but "
        rf"data.sha256.labels is {'ab' * 32}{BY_HAND}",
    ):
        ISBI2012(None, site.url, wrong)
    assert not left(tmp_path)
    assert ISBI2012(None, site.url, None) and ISBI2012(
        None, site.url, {k: v.upper() for k, v in right.items()}
    )
    assert site.asked == 2
    with pytest.raises(
        DataError, match=r"data.sha256 names \['images'\]: volume and labels are needed"
    ):
        ISBI2012(None, site.url, {"images": "00"})


def fails(site: Site, message: str, tmp_path: Path, timeout: float = 5.0) -> None:
    """The start fails within seconds, with that message, the remedy, and nothing in the cache."""
    started = time.monotonic()
    with pytest.raises(DataError, match=f"{message}.*{BY_HAND}") as caught:
        ISBI2012(None, site.url, None, timeout=timeout)
    assert time.monotonic() - started < 5 and "\n" not in str(caught.value)
    assert not left(tmp_path)


def test_a_refused_connection_is_told(site, tmp_path):
    site.url = "http://127.0.0.1:9/challenge.zip"
    fails(
        site,
        r"http://127.0.0.1:9/challenge.zip: can't be downloaded \(Connection refused\)",
        tmp_path,
    )


def test_a_name_that_nobody_knows_is_told(site, tmp_path):
    site.url = "https://nowhere.invalid/challenge.zip"
    fails(site, r"https://nowhere.invalid/challenge.zip: can't be downloaded \(", tmp_path)


def test_no_address_is_told(site, tmp_path):
    site.url = "challenge.zip"
    fails(
        site,
        r"challenge.zip: can't be downloaded \(Invalid URL 'challenge.zip': No scheme",
        tmp_path,
    )
    site.url = "file:///etc/passwd"
    fails(site, r"can't be downloaded \(No connection adapters were found", tmp_path)
    with pytest.raises(DataError, match=f"data.root is not set, and data.url neither{BY_HAND}"):
        ISBI2012(None)


def test_a_server_that_hangs_is_given_up(site, tmp_path):
    site.pause = 30
    fails(site, r"can't be downloaded \(timed out\)", tmp_path, timeout=0.3)


def test_a_body_that_stops_arriving_is_given_up(site, tmp_path):
    site.promised, site.linger = len(site.body) + 9, 30
    fails(site, r"can't be downloaded \(timed out\)", tmp_path, timeout=0.3)


@pytest.mark.parametrize(
    ("status", "word"), [(404, "404 Client Error: Not Found"), (503, "503 Server Error")]
)
def test_a_bad_answer_is_told(site, tmp_path, status, word):
    site.status = status
    fails(site, rf"can't be downloaded \({word}[^/]*\)", tmp_path)


def test_a_body_cut_off_is_told_and_the_next_start_begins_anew(site, stack_root, tmp_path):
    whole = site.body
    site.body, site.promised = whole[:-500], len(whole)
    fails(site, r"can't be downloaded \(IncompleteRead", tmp_path)
    site.body, site.promised = whole, None
    assert ISBI2012(None, site.url, hashes(stack_root)) and site.asked == 2


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_timeout_of_nothing_is_refused(site, timeout):
    with pytest.raises(DataError, match=rf"data.timeout={timeout}: seconds above 0 are needed"):
        ISBI2012(None, site.url, None, timeout=timeout)


def test_a_page_of_html_is_no_archive(site, tmp_path):
    site.body = b"<html>log in first</html>"
    fails(site, "not a complete zip or tar archive", tmp_path)


def test_an_archive_cut_off_by_the_publisher_is_no_archive(site, stack_root, tmp_path):
    for body in (site.body, tarred(stacks(stack_root)), tarred(stacks(stack_root), "w:xz")):
        site.body = body[: len(body) // 2]
        fails(site, "not a complete zip or tar archive", tmp_path)


def test_an_archive_without_the_files_is_told(site, tmp_path):
    site.body = zipped({"a/readme.txt": b"-", f"a/{VOLUME_FILE}/x": b"-"})
    fails(site, r"no train-volume.tif in it; it holds \['a/readme.txt', ", tmp_path)


def test_a_file_that_is_no_tiff_is_told_without_the_scratch_folder(site, tmp_path):
    site.body = zipped({VOLUME_FILE: b"-", LABELS_FILE: b"-"})
    fails(site, r"zip: train-volume.tif: not a readable image \(", tmp_path)


LEADING_OUT = {
    "up": lambda files: zipped({"../evil.txt": b"-"} | files),
    "backslashes": lambda files: zipped({"..\\evil.txt": b"-"} | files),
    "absolute": lambda files: zipped({"/evil.txt": b"-"} | files),
    "zip link": lambda files: zipped({"link": b"/etc"} | files, stat.S_IFLNK | 0o777),
    "tar up": lambda files: tarred({"../evil.txt": b"-"} | files),
    "tar absolute": lambda files: tarred({"/evil.txt": b"-"} | files),
    "tar link": lambda files: tarred({"link": b""} | files, type=tarfile.SYMTYPE, linkname="/etc"),
    "tar device": lambda files: tarred({"null": b""} | files, type=tarfile.CHRTYPE),
}


@pytest.mark.parametrize("kind", LEADING_OUT)
def test_nothing_but_the_two_files_is_written(site, stack_root, tmp_path, kind):
    site.body = LEADING_OUT[kind](stacks(stack_root))
    assert ISBI2012(None, site.url, hashes(stack_root)) and left(tmp_path) == [
        LABELS_FILE,
        VOLUME_FILE,
    ]
    assert not list(tmp_path.rglob("evil.txt")) and not Path("/evil.txt").exists()


def test_a_link_in_place_of_a_file_is_not_followed(site, stack_root, tmp_path):
    labels = {LABELS_FILE: (stack_root / LABELS_FILE).read_bytes()}
    link = {"type": tarfile.SYMTYPE, "linkname": str(stack_root / VOLUME_FILE)}
    site.body = tarred({VOLUME_FILE: b""} | labels, **link)
    fails(site, "no train-volume.tif in it", tmp_path)
    link = str(stack_root / VOLUME_FILE).encode()
    site.body = zipped({VOLUME_FILE: link} | labels, stat.S_IFLNK | 0o777)
    fails(site, "train-volume.tif: not a readable image", tmp_path)


def test_only_the_two_files_are_unpacked(site, stack_root, tmp_path):
    site.body = zipped(
        {"a/other.tif": b"-", "__MACOSX/._train-volume.tif": b"-"} | stacks(stack_root)
    )
    assert ISBI2012(None, site.url, None) and left(tmp_path) == [LABELS_FILE, VOLUME_FILE]


def test_a_file_that_is_there_twice_is_refused(site, stack_root, tmp_path):
    site.body = zipped(stacks(stack_root) | {f"b/{VOLUME_FILE}": b"-"})
    fails(site, "holds train-volume.tif twice", tmp_path)


def sparse(size: int) -> bytes:
    """A tar archive of one file with a hole of that size, and nothing else."""
    info = tarfile.TarInfo(VOLUME_FILE)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = header[398:410] = header[483:495] = b"%011o\0" % size  # offset, end, size
    header[398:410] = b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header) + bytes(1024)


ZEROS = {"a/zeros": bytes(2**20), "b/zeros": bytes(2**20)}


@pytest.mark.parametrize("body", [zipped(ZEROS), tarred(ZEROS), sparse(2**30)], ids=["zip", "tar", "sparse"])  # fmt: skip
def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(site, tmp_path, monkeypatch, body):  # fmt: skip
    site.body = body
    assert len(site.body) < 2**17
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 2**20 + 2**16)
    fails(site, "unpacks to more than 1 MiB", tmp_path)


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says(site, stack_root, tmp_path):
    body = bytearray(zipped({VOLUME_FILE: bytes(2**20), LABELS_FILE: b"-"}))
    true = (2**20).to_bytes(4, "little")
    while true in body:
        body[body.index(true) : body.index(true) + 4] = (100).to_bytes(4, "little")
    site.body = bytes(body)
    fails(site, "not a complete zip or tar archive", tmp_path)


def test_a_download_without_end_is_given_up(site, tmp_path, monkeypatch):
    site.body = bytes(2**21)
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 2**20)
    fails(site, "challenge.zip: larger than 1 MiB", tmp_path)


def test_a_place_that_cannot_be_written_is_told(site, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        DataError,
        match=rf"cache/isbi2012-.*: can't be written \(.*\); SEG_CACHE=FOLDER .*{BY_HAND}",
    ):
        ISBI2012(None, site.url, None)
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "other"))

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "copyfileobj", full)
    with pytest.raises(DataError, match=r"can't be written \(No space left on device\)"):
        ISBI2012(None, site.url, None)
    assert not list((tmp_path / "other").rglob("*.*"))


def test_an_archive_that_points_before_its_beginning_is_no_archive(stack_root, tmp_path):
    raw = bytearray(zipped({name: b"x" * 300 for name in ISBI_FILES.values()}))
    raw[raw.index(b"PK\x05\x06") + 16] += 4  # where the directory lies: so the first file is at -4
    (tmp_path / "archive").write_bytes(raw)
    with pytest.raises(DataError, match=r"^URL: not a complete zip or tar archive"):
        download.unpack_files(tmp_path / "archive", ISBI_FILES.values(), tmp_path, "URL")


@given(st.data())
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_spoilt_archive_is_refused_or_gives_files_within_bounds(stack_root, tmp_path, data):
    pack = data.draw(st.sampled_from([zipped, tarred, partial(tarred, mode="w")]))
    raw = bytearray(pack({name: content[:300] for name, content in stacks(stack_root).items()}))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path / f"spoilt-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    (folder / "archive").write_bytes(raw)
    try:
        download.unpack_files(folder / "archive", ISBI_FILES.values(), folder, "URL")
    except DataError as error:
        assert str(error).startswith("URL: ")
    assert {f.name for f in folder.iterdir()} <= {"archive", *ISBI_FILES.values()}


def test_two_starts_at_once_both_end_with_good_data(site, stack_root, tmp_path):
    site.together = threading.Barrier(2)  # neither is answered before both have asked
    sources = []
    starts = [
        threading.Thread(
            target=lambda: sources.append(ISBI2012(None, site.url, hashes(stack_root)))
        )
        for _ in range(2)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert [len(source.images) for source in sources] == [10, 10] and site.asked == 2
    assert left(tmp_path) == [LABELS_FILE, VOLUME_FILE] and not list(
        (tmp_path / "cache").rglob("part-*")
    )


def test_the_cache_is_the_user_s_unless_seg_cache_names_another(monkeypatch, tmp_path):
    monkeypatch.delenv("SEG_CACHE", raising=False)
    assert "seg" in download.cache_folder("x", "u").parts
    monkeypatch.setenv("SEG_CACHE", "~/there")
    assert download.cache_folder("x", "u").parent == Path(os.path.expanduser("~/there"))


def test_a_bad_page_is_told_by_its_number(stack_root):
    labels = tifffile.imread(stack_root / LABELS_FILE)
    labels[7, 0, 0] = 3
    tifffile.imwrite(stack_root / LABELS_FILE, labels)
    with pytest.raises(
        DataError, match=r"train-labels.tif, page 7: mask value \[.*3.*\] not declared"
    ):
        ISBI2012(str(stack_root))
    volume = tifffile.imread(stack_root / VOLUME_FILE).astype(np.float32)
    volume[4, 1, 1] = np.nan
    tifffile.imwrite(stack_root / VOLUME_FILE, volume)
    with pytest.raises(DataError, match=r"train-volume.tif, page 4: 1 of 2304 values are NaN"):
        ISBI2012(str(stack_root))


def test_train_and_evaluate_without_a_folder(site, stack_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = hashes(stack_root)
    data = [f"data.url={site.url}", *(f"data.sha256.{key}={value}" for key, value in given.items())]
    small = ["trainer=smoke", "logger=none", "model.width=2", "loader.crop=32", "panels=1"]
    train(compose_checked("train", ["data=isbi2012", *data, *small]))
    assert f"downloading {site.url} to {tmp_path / 'cache'}" in capsys.readouterr().out
    evaluate(compose_checked("evaluate", ["run=outputs/latest", "panels=0"]))
    assert site.asked == 1


def test_a_failed_download_ends_a_command_with_one_line_and_code_2(
    site, monkeypatch, tmp_path, capsys
):
    words = ["seg.train", "data=isbi2012", "data.url=http://127.0.0.1:9/x.zip", "logger=none"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: http://127.0.0.1:9/x.zip: can't be downloaded (Connection refused)"
    )
    assert said.count("\n") == 1
