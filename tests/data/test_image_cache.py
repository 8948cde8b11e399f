"""Image cache in memory and in a folder, cached statistics, and the normalisation of grey values."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import OmegaConf
from PIL import Image
from small_runs import TINY, config

from seg.cli.compose import instantiate_node
from seg.cli.conf_files import CONF
from seg.data import image_cache, tiff
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.datasets.membranes import Membranes
from seg.data.image_cache import ImageCache
from seg.data.image_io import read_image
from seg.data.normalization import IntensityStatistics, Normalization
from seg.errors import DataError
from seg.inference.file_prediction import predict_files
from seg.runs import load
from seg.training.run import train

ABC = ["a", "b", "c"]
PLENTY = 2**30


class Counting:
    """A source that notes which images are decoded.

    Args:
        source: the one that reads.
    """

    def __init__(self, source: Folder) -> None:
        self.source, self.reads = source, []
        self.classes, self.colors, self.task = source.classes, source.colors, source.task
        self.splits, self.stamp = source.splits, source.stamp

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append(name)
        return self.source.read(name)


@pytest.fixture
def source(folder_root) -> Counting:
    return Counting(Folder(str(folder_root), ABC))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, empty at the start of each test."""
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names_of(source: Counting) -> list[str]:
    return [name for names in source.splits.values() for name in names]


def agree(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def bytes_of(source: Counting) -> int:
    return sum(array.nbytes for name in names_of(source) for array in source.source.read(name))


# memory


def test_what_fits_is_decoded_once(source):
    kept = ImageCache(source, bytes_of(source))
    for _ in range(3):
        for name in names_of(source):
            agree(kept.read(name), source.source.read(name))
    assert source.reads == names_of(source)


def test_one_byte_too_little_keeps_nothing_and_reads_the_same(source):
    kept = ImageCache(source, bytes_of(source) - 1)
    for _ in range(2):
        for name in names_of(source):
            agree(kept.read(name), source.source.read(name))
    assert kept.kept == {} and kept.size == 0
    assert len(source.reads) == 2 * len(names_of(source))


def test_memory_0_and_a_split_of_more_than_a_thousand_images_keep_nothing(source, monkeypatch):
    none = ImageCache(source, 0)
    monkeypatch.setattr(image_cache, "MAX_INSPECTED", len(source.splits["train"]) - 1)
    for store in (none, ImageCache(source, PLENTY)):
        store.read("0")
        assert not store.kept


def test_a_loader_process_gets_its_share_of_the_memory(source, monkeypatch):
    class Worker:
        num_workers = 4

    monkeypatch.setattr(image_cache, "get_worker_info", Worker)
    enough, little = (
        ImageCache(source, 4 * bytes_of(source)),
        ImageCache(source, 4 * bytes_of(source) - 4),
    )
    for name in names_of(source):
        enough.read(name)
        little.read(name)
    assert len(enough.kept) == len(names_of(source)) and not little.kept


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint32])
def test_a_large_tiff_of_numbers_that_are_converted_counts_in_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tiff, "MAPPED_BYTES", 2**10)
    for i in range(2):
        for part, of in (("images", kind), ("masks", np.uint8)):
            (tmp_path / part).mkdir(exist_ok=True)
            values = np.random.default_rng(i).integers(0, 2, (40, 50)).astype(of)
            tifffile.imwrite(tmp_path / part / f"{i}.tif", values)
    kept = ImageCache(Folder(str(tmp_path), ["a", "b"]), PLENTY)
    image, mask = kept.read("0")
    assert kept.size == image.nbytes + mask.nbytes


# the folder


def test_a_folder_is_filled_once_and_mapped_ever_after(source, tmp_path):
    folder = tmp_path / "new/decoded"
    first = ImageCache(source, 0, folder)
    for name in names_of(source):
        agree(first.read(name), source.source.read(name))
    assert len(source.reads) == 6
    assert len(list(folder.glob("*.npy"))) == 12 and len(list(folder.iterdir())) == 12
    for memory in (0, PLENTY):
        again = ImageCache(source, memory, folder)
        for name in names_of(source):
            image, mask = again.read(name)
            assert isinstance(image, np.memmap) and isinstance(mask, np.memmap)
            assert not image.flags.writeable and not mask.flags.writeable
            agree((image, mask), source.source.read(name))
    assert len(source.reads) == 6


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts a process's open files")
def test_mapped_images_are_not_kept_open(source, tmp_path):
    kept = ImageCache(source, PLENTY, tmp_path / "decoded")
    kept.read("0")
    before = len(os.listdir("/proc/self/fd"))
    for name in names_of(source):
        kept.read(name)
    assert len(os.listdir("/proc/self/fd")) == before


def repaint(file: Path) -> None:
    """Another picture of the same size in bytes, or nearly so, under the same name."""
    pixels = np.array(Image.open(file))
    Image.fromarray(np.ascontiguousarray(pixels[::-1])).save(file)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_that_changed_is_decoded_again(source, folder_root, tmp_path, part):
    folder = tmp_path / "decoded"
    old = [np.array(array) for array in ImageCache(source, 0, folder).read("2")]
    repaint(folder_root / part / "2.png")
    later = time.time_ns() + 10**9
    os.utime(folder_root / part / "2.png", ns=(later, later))
    new = ImageCache(source, 0, folder).read("2")
    agree(new, source.source.read("2"))
    assert not np.array_equal(new[part == "masks"], old[part == "masks"])
    ImageCache(source, 0, folder).read("2")
    assert source.reads == ["2", "2"]


def test_the_same_size_at_another_time_and_the_same_time_at_another_size_are_changes(source, folder_root):  # fmt: skip
    file = folder_root / "images/2.png"
    before, facts = source.stamp("2"), file.stat()
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    later = source.stamp("2")
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    longer = source.stamp("2")
    assert len({before, later, longer}) == 3 and source.stamp("1") != before


@pytest.mark.parametrize(
    "options",
    [{"values": {0: 0, 1: 2, 2: 1}}, {"ignore": [2]}, {"classes": ["b", "a", "c"]},
     {"palette": {"a": [0, 0, 0], "b": [1, 1, 1], "c": [2, 2, 2]}}, {"mask_layers": "pages"}, {"pages": "channels"}],
    ids=str,
)  # fmt: skip
def test_other_options_are_other_arrays(folder_root, options):
    plain = Folder(str(folder_root), ABC)
    other = Folder(str(folder_root), **({"classes": ABC} | options))
    assert plain.stamp("0") != other.stamp("0")
    assert plain.stamp("0") == Folder(str(folder_root), ABC, val=0.5).stamp("0")


def test_a_mask_that_changes_its_class_or_gets_a_rest_is_decoded_again(folder_root, tmp_path):
    for i in range(2):
        mask = np.array(Image.open(folder_root / "masks" / f"{i}.png")) == 1
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{i}.png")
    table, layered = tmp_path / "pairs.csv", {"mask_layers": "folders", "val": 0.5}
    line = f"{folder_root}/images/{{0}}.png,{{1}},{{2}},{{3}}\n"

    def read(lines: list[str]) -> np.ndarray:
        table.write_text("image,a,b,c\n" + "".join(lines))
        opened = Folder(None, ABC, table=str(table), **layered)
        kept, name = ImageCache(opened, 0, tmp_path / "decoded"), next(iter(opened.files))
        agree(kept.read(name), opened.read(name))
        return np.array(kept.read(name)[1])

    other = line.format(1, "", "", "1.png")
    as_b = read([line.format(0, "", "0.png", ""), other])
    as_c = read([line.format(0, "", "", "0.png"), other.replace(",,,1.png", ",,1.png,")])
    rest = read([line.format(0, "", "", "0.png"), line.format(1, "1.png", "1.png", "1.png")])
    assert {1, 0} == set(np.unique(as_b)) and {2, 0} == set(np.unique(as_c))
    assert {2, 255} == set(np.unique(rest))  # a has a file elsewhere, so it is no rest


@pytest.mark.parametrize("part", ["image", "mask"])
@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_cut_off_array_is_written_again(source, tmp_path, part, left):
    folder = tmp_path / "decoded"
    ImageCache(source, 0, folder).read("3")
    (file,) = folder.glob(f"*.{part}.npy")
    file.write_bytes(file.read_bytes()[:left])
    agree(ImageCache(source, 0, folder).read("3"), source.source.read("3"))
    ImageCache(source, 0, folder).read("3")
    assert source.reads == ["3", "3"]


def test_a_folder_that_can_not_be_written_is_an_error(source, tmp_path):
    (tmp_path / "file").write_text("")
    kept = ImageCache(source, 0, tmp_path / "file")
    with pytest.raises(DataError, match=r"loader\.cache=.*file: can't keep 0 there .*loader\.cache=null"):  # fmt: skip
        kept.read("0")


def test_a_full_disk_is_an_error_and_leaves_no_half_array(source, tmp_path, monkeypatch):
    def full(file, array):
        Path(file).write_bytes(b"\x93NUMPY")
        raise OSError("6 requested and 3 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"6 requested and 3 written\); give another folder"):
        ImageCache(source, 0, tmp_path / "decoded").read("0")
    assert list((tmp_path / "decoded").iterdir()) == []
    monkeypatch.undo()
    agree(ImageCache(source, 0, tmp_path / "decoded").read("0"), source.source.read("0"))


def test_images_that_are_read_by_bands_are_dropped(folder_root):
    source = Folder(str(folder_root), ABC, val=0.5)
    names = [name for split in source.splits.values() for name in split]
    cache = ImageCache(source, 10**9)
    side = max(max(cache.read(name)[0].shape[:2]) for name in names)
    cache.drop_larger(names, side)
    assert set(cache.kept) == set(names) and cache.size > 0
    cache.drop_larger(names[:1], 1)
    assert set(cache.kept) == set(names[1:])
    cache.drop_larger(names, 0)
    assert cache.kept == {} and cache.size == 0
    agree(cache.read(names[0]), source.read(names[0]))


class Unstamped:
    """A source that can't tell whether an image has changed."""

    def __init__(self, source):
        self.splits, self.read = source.splits, source.read


def test_a_source_without_stamps_has_no_cache_folder(tmp_path):
    with pytest.raises(DataError, match=r"Unstamped keeps no decoded images.*loader\.cache=null"):
        ImageCache(Unstamped(Membranes(size=32, train=1, val=1, test=0)), 0, tmp_path)


# samples


WAYS = {"read": {"memory": 0}, "memory": {}, "folder": {"cache": True}}


def samples_of(
    root: Path, tmp_path: Path, way: str, workers: int, crop: int | None, count: int = 2
):
    """The batches of two epochs of augment=strong and one of validation, and the data."""
    cache = {"cache": str(tmp_path / "decoded")} if WAYS[way].get("cache") else WAYS[way]
    augment = instantiate_node(OmegaConf.load(CONF / "augment/strong.yaml"), "augment")
    data = DataModule(
        Folder(str(root), ABC), augment, crop=crop, repeats=2, workers=workers, batch_size=3 if crop else 1,
        rare_class_crops=0.5 if crop else 0.0, **cache
    )  # fmt: skip
    loader, seen = data.train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            seen += [batch["image"], batch["mask"]]
    return [*seen, *(batch["image"] for batch in data.val_dataloader())], data


def test_samples_are_the_same_however_they_are_kept_and_loaded(folder_root, tmp_path):
    expected, _ = samples_of(folder_root, tmp_path, "read", 0, 24)
    for way, workers in (("memory", 0), ("folder", 0), ("memory", 1), ("folder", 1), ("folder", 2), ("memory", 2)):  # fmt: skip
        found, _ = samples_of(folder_root, tmp_path, way, workers, 24)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), (way, workers)


@pytest.mark.parametrize("crop", [24, 64, None])
def test_augmentation_changes_nothing_that_is_kept(folder_root, tmp_path, crop):
    _, data = samples_of(folder_root, tmp_path, "memory", 0, crop)
    assert len(data.image_cache.kept) == 6  # by the first look
    for name, decoded in data.image_cache.kept.items():
        agree(decoded, data.source.read(name))
    samples_of(folder_root, tmp_path, "folder", 0, crop, count=1)
    files = {file: file.read_bytes() for file in (tmp_path / "decoded").iterdir()}
    assert len(files) == 12
    samples_of(folder_root, tmp_path, "folder", 0, crop)
    assert files == {file: file.read_bytes() for file in (tmp_path / "decoded").iterdir()}


def test_a_crop_of_a_mapped_image_is_the_crop_of_the_read_one(folder_root, tmp_path, monkeypatch):
    for file in (folder_root / "images").iterdir():
        tifffile.imwrite(file.with_suffix(".tif"), np.array(Image.open(file)), photometric="rgb")
        file.unlink()
    expected, _ = samples_of(folder_root, tmp_path, "read", 0, 24)
    monkeypatch.setattr(tiff, "MAPPED_BYTES", 2**10)
    found, data = samples_of(folder_root, tmp_path, "read", 0, 24)
    assert isinstance(data.source.read("0")[0], np.memmap)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# statistics before training


def look(root: Path, **options) -> DataModule:
    keys = ("val", "values", "ignore")
    given = {k: options.pop(k) for k in keys if k in options}
    return DataModule(Folder(str(root), ABC, **given), **options)


class NotAllowedError(Exception):
    """An image was read."""


def facts(data: DataModule) -> tuple:
    return (
        data.intensity,
        data.sizes,
        data.class_shares.tolist(),
        data.class_presence.tolist(),
        data.warnings,
    )


def test_a_second_start_reads_no_image_and_finds_the_same(folder_root, monkeypatch):
    first = look(folder_root, check=True, percentiles=[1, 99])
    assert first.warnings or first.class_presence.all()
    monkeypatch.setattr(Folder, "read", None)
    assert facts(look(folder_root, check=True, percentiles=[1, 99])) == facts(first)
    monkeypatch.setattr(Folder, "read", lambda *_: (_ for _ in ()).throw(NotAllowedError))
    for other in ({"check": False, "percentiles": [1, 99]}, {"check": True}, {"check": True, "percentiles": [1, 98]},
                  {"check": True, "percentiles": [1, 99], "val": 0.5}, {"check": True, "percentiles": [1, 99], "ignore": [7]}):  # fmt: skip
        with pytest.raises(NotAllowedError):
            look(folder_root, **other)


def test_warnings_are_repeated_on_the_second_start(folder_root, monkeypatch):
    shutil.copy(folder_root / "images/0.png", folder_root / "images/9.png")
    shutil.copy(folder_root / "masks/0.png", folder_root / "masks/9.png")
    for name in ("0", "9"):
        assert name in Folder(str(folder_root), ABC, split_seed=1).splits["train"]

    def warnings() -> list:
        return DataModule(Folder(str(folder_root), ABC, split_seed=1), check=True).warnings

    first = warnings()
    assert [fault.kind for fault in first] == ["repeated"]
    monkeypatch.setattr(Folder, "read", None)
    assert warnings() == first


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_with_a_new_time_is_read_again(folder_root, monkeypatch, part):
    look(folder_root)
    later = time.time_ns() + 10**9
    os.utime(folder_root / part / "5.png", ns=(later, later))
    monkeypatch.setattr(Folder, "read", lambda *_: (_ for _ in ()).throw(NotAllowedError))
    with pytest.raises(NotAllowedError):
        look(folder_root)


@pytest.mark.parametrize("damage", ["", "{", "[]", '"x"', "{}", '{"intensity": {}}'])
def test_a_damaged_statistics_file_is_written_again(folder_root, cache, damage):
    first = facts(look(folder_root, check=True))
    (file,) = (cache / "surveys").iterdir()
    whole = file.read_text()
    file.write_text(damage or whole[: len(whole) // 2])
    assert facts(look(folder_root, check=True)) == first
    assert json.loads(file.read_text()) == json.loads(whole)


def test_without_a_writable_cache_the_data_is_read_each_time(folder_root, tmp_path, monkeypatch, caplog):  # fmt: skip
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "file"))
    with caplog.at_level("INFO", "seg"):
        first, second = look(folder_root), look(folder_root)
    assert facts(first) == facts(second)
    assert "can't be kept" in caplog.text and str(tmp_path / "file") in caplog.text
    assert (tmp_path / "file").read_text() == ""


def test_the_normalisation_of_a_trained_run_is_kept(folder_root):
    other = Normalization(3.0, 200.0, [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], True)
    look(folder_root)
    assert look(folder_root, intensity=other).intensity == other
    with pytest.raises(DataError, match="3 channels; the run was trained on 1"):
        look(folder_root, intensity=Normalization(0.0, 255.0, [0.5], [0.1]))


def leak(root: Path) -> Folder:
    source = Folder(str(root), ABC)
    old, new = source.splits["train"][0], source.splits["val"][0]
    for part in ("images", "masks"):
        shutil.copy(root / part / f"{old}.png", root / part / f"{new}.png")
    return source


def test_an_error_ends_a_run_each_time_and_check_false_trains_all_the_same(folder_root, tmp_path):
    source = leak(folder_root)
    words = ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", f"outputs={tmp_path / 'out'}",
             *[word for word in TINY if not word.startswith("data.")], "trainer.max_epochs=1"]  # fmt: skip
    for _ in range(2):
        with pytest.raises(DataError) as error:
            train(config("train", *words))
        message = str(error.value)
        assert "the same pixels as" in message and "loader.skip_checks=[leak]" in message
        assert f"{source.splits['val'][0]}.png" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    assert "best/val/dice" in train(config("train", *words, "loader.check=false"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [("never", ["d: class 3 has no pixel"]), ("ignored", ["masks/1.png", "all are ignored"])],
    ids=["never", "ignored"],
)  # fmt: skip
def test_the_check_before_training_refuses_what_seg_check_does(folder_root, fault, words):
    if fault == "ignored":
        Image.fromarray(np.full((40, 56), 255, np.uint8)).save(folder_root / "masks/1.png")
    source = Folder(str(folder_root), [*ABC, "d"] if fault == "never" else ABC, ignore=[255])
    with pytest.raises(DataError) as error:
        DataModule(source, check=True)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    DataModule(source, check=False)


def test_no_heuristic_refuses_a_training(folder_root):
    ramp = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint16) * 40
    for i in range(6):  # low bytes of 16 bits, and all nearly the same
        wrapped = (ramp + i).astype(np.uint8)
        Image.fromarray(np.dstack([wrapped, wrapped, wrapped + 1])).save(
            folder_root / "images" / f"{i}.png"
        )
    assert DataModule(Folder(str(folder_root), ABC), check=True).warnings == []


# grey values


def expected(values: np.ndarray, low: float, high: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C), by numpy, after clipping."""
    scaled = np.clip((values.astype(np.float64) - low) / (high - low or 1), 0, 1)
    std = scaled.std(0)
    return scaled.mean(0).tolist(), np.where(std > 1e-6, std, 1).tolist()


def measured(pictures: list[np.ndarray], percentiles: tuple[float, float]) -> Normalization:
    measure = IntensityStatistics(percentiles)
    for picture in pictures:
        measure.add(picture)
    return measure.intensity()


PERCENTILES = st.tuples(st.floats(0, 100), st.floats(0, 100)).filter(lambda p: p[0] < p[1])
SMALL = st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(2))


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(lambda kind: st.lists(arrays(kind, SMALL), min_size=1, max_size=4)),
    PERCENTILES | st.sampled_from([(0.0, 100.0), (1.0, 99.0), (0.0, 50.0), (50.0, 100.0)]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_percentiles_of_integers_are_numpy_s_and_so_are_mean_and_deviation(pictures, percentiles):
    values = np.concatenate([picture.reshape(-1, 2) for picture in pictures])
    found = measured(pictures, percentiles)
    low, high = np.percentile(values, percentiles, method="inverted_cdf")
    near = np.percentile(values, np.clip(np.add.outer(percentiles, [-1e-9, 1e-9]), 0, 100), method="inverted_cdf")  # fmt: skip
    assert found.low in (low, *near[0]) and found.high in (high, *near[1])
    mean, std = expected(values, found.low, found.high)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-9)
    assert found.clip


@given(st.lists(arrays(np.float32, SMALL, elements=st.floats(-999, 999, width=32)), min_size=1, max_size=4), PERCENTILES)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_percentiles_of_floats_are_numpy_s_too(pictures, percentiles):
    values = np.concatenate([picture.reshape(-1, 2) for picture in pictures])
    found = measured(pictures, percentiles)
    low, high = np.percentile(values.astype(np.float64), percentiles)
    np.testing.assert_allclose([found.low, found.high], [low, high])
    mean, std = expected(values, low, high)
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)
    np.testing.assert_allclose(found.std, std, rtol=1e-6)


def test_percentiles_of_large_float_images_come_from_few_pixels():
    rng = np.random.default_rng(0)
    pictures = [rng.normal(7, 2, (700, 600, 1)).astype(np.float32) for _ in range(2)]
    found = measured(pictures, (1, 99))
    low, high = np.percentile(np.stack(pictures), (1, 99))
    assert abs(found.low - low) < 0.05 and abs(found.high - high) < 0.05


def test_what_lies_beyond_the_percentiles_is_clipped_and_else_it_is_not():
    image = np.array([[[0.0], [10.0], [20.0], [500.0]]], np.float32)
    clipped = Normalization(10.0, 20.0, [0.5], [0.25], clip=True)
    free = Normalization(10.0, 20.0, [0.5], [0.25])
    assert clipped.scaled(image).ravel().tolist() == [0, 0, 1, 1]
    assert free.scaled(image).ravel().tolist() == [-1, 0, 1, 49]
    assert clipped.normalised(clipped.scaled(image)).ravel().tolist() == [-2, -2, 2, 2]
    assert image.max() == 500  # what is kept stays as it is


def test_percentiles_reach_the_network_through_the_loader(folder_root):
    pixels = np.concatenate([read_image(f).reshape(-1, 3) for f in sorted((folder_root / "images").iterdir())])  # fmt: skip
    data = look(folder_root, percentiles=[5, 90], crop=None, batch_size=1)
    train = np.concatenate([data.source.read(n)[0].reshape(-1, 3) for n in data.source.splits["train"]])  # fmt: skip
    low, high = np.percentile(train, (5, 90), method="inverted_cdf")
    assert (data.intensity.low, data.intensity.high) == (low, high) and pixels.max() > high
    normal = np.concatenate([s["image"].flatten(1).numpy() for s in (data.samples("train")[0, i] for i in range(len(data.source.splits["train"])))], 1)  # fmt: skip
    np.testing.assert_allclose(normal.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(1), 1, atol=1e-5)
    top = (np.float32(1) - data.intensity.mean[0]) / data.intensity.std[0]
    assert normal[0].max() == pytest.approx(top, abs=1e-5)


@pytest.mark.parametrize("wrong", [[1], [99, 1], [-1, 99], [1, 101], [5, 5], [1, 2, 3]])
def test_invalid_percentiles_are_refused(folder_root, wrong):
    with pytest.raises(ValueError, match=r"two of 0 to 100 are needed, \[1, 99\]"):
        look(folder_root, percentiles=wrong)


def test_a_run_keeps_its_percentiles_and_predict_uses_them(folder_root, tmp_path):
    words = ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", f"outputs={tmp_path / 'out'}", "loader.check=false",
             "loader.percentiles=[20,60]", *[word for word in TINY if not word.startswith("data.")], "trainer.max_epochs=1"]  # fmt: skip
    train(config("train", *words))
    run = load.load_run(str(tmp_path / "out/latest"))
    data = look(folder_root, percentiles=[20, 60])
    assert run.intensity == data.intensity and run.intensity.clip
    picture = read_image(folder_root / "images/0.png")
    beyond = np.where(picture > run.intensity.high, 255, picture)  # alike once it is clipped
    beyond = np.where(picture < run.intensity.low, 0, beyond).astype(np.uint8)
    assert not np.array_equal(beyond, picture)
    found = []
    for name, pixels in (("plain", picture), ("beyond", beyond)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        words = [f"run={tmp_path / 'out/latest'}", f"input={tmp_path / name}.png", f"output={tmp_path / name}"]  # fmt: skip
        predict_files(config("predict", *words, "save=[probabilities]", "accelerator=cpu"))
        found.append(tifffile.imread(tmp_path / name / "probabilities" / f"{name}.tif"))
    np.testing.assert_array_equal(*found)
