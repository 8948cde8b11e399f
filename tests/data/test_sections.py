"""Neighbouring sections as channels: which sections, in which order, with which statistics and transforms."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hydra.utils import instantiate
from PIL import Image

from seg.cli.conf_files import CONF
from seg.data import DataModule
from seg.data.augment import Augment
from seg.data.dataset import SegmentationDataset
from seg.data.datasets.folder import Folder
from seg.data.datasets.isbi2012 import ISBI2012
from seg.data.image_io import read_axes
from seg.data.normalization import Normalization
from seg.data.sections import (
    Sections,
    check_single_axis,
    find_section_files,
    place_by_name,
)
from seg.errors import DataError

CLASSES = ["out", "in"]


def flat_sections(values: list[int], height: int = 8, width: int = 6) -> np.ndarray:
    """Sections (Z, H, W) uint8, each of one value."""
    return np.stack([np.full((height, width), value, np.uint8) for value in values])


def write_isbi(root: Path, count: int = 10) -> Path:
    """The layout of ISBI 2012; section z has the value 10 z everywhere."""
    root.mkdir()
    tifffile.imwrite(root / "train-volume.tif", flat_sections([10 * z for z in range(count)]))
    tifffile.imwrite(
        root / "train-labels.tif", flat_sections([255 * (z % 2) for z in range(count)])
    )
    return root


def write_files(root: Path, values: dict[str, int], channels: int = 1) -> Path:
    """An image and a mask for each name; channel c of an image has its value plus c everywhere."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name, value in values.items():
        pixels = np.stack([np.full((8, 6), value + c, np.uint8) for c in range(channels)], -1)
        Image.fromarray(pixels.squeeze()).save(root / "images" / f"{name}.png")
        Image.fromarray(np.full((8, 6), value % 2, np.uint8)).save(root / "masks" / f"{name}.png")
    return root


def channel_values(data: DataModule, split: str) -> dict[str, list[int]]:
    """The stored value of each channel of the network's input, which is one everywhere, by the image's name."""
    samples, found = data.samples(split), {}
    at = data.intensity
    for i in range(len(samples)):
        item = samples[0, i]
        normal = item["image"].numpy().astype(np.float64)
        assert normal.min((1, 2)).tolist() == normal.max((1, 2)).tolist()
        stored = (normal[:, 0, 0] * at.std + at.mean) * (at.high - at.low) + at.low
        found[item["name"]] = stored.round(3).tolist()
    return found


@pytest.mark.parametrize("neighbours", [1, 3])
def test_channels_are_the_sections_from_below_to_above_with_the_ends_repeated(tmp_path, neighbours):
    source = ISBI2012(str(write_isbi(tmp_path / "isbi")), fold=1, neighbours=neighbours)
    data = DataModule(source, crop=None)
    found = channel_values(data, "train") | channel_values(data, "val")
    assert sorted(found) == [f"section-{z:02d}" for z in range(10)]
    for z in range(10):
        near = range(z - neighbours, z + neighbours + 1)
        assert found[f"section-{z:02d}"] == [10 * min(max(one, 0), 9) for one in near]


def test_neighbours_of_another_split_are_seen_and_their_labels_not(tmp_path):
    source = ISBI2012(str(write_isbi(tmp_path / "isbi")), fold=1, folds=5, neighbours=1)
    assert source.splits["val"] == ["section-02", "section-03"]
    data = DataModule(source, crop=None)
    assert channel_values(data, "train")["section-04"] == [30, 40, 50]  # 30: held out
    assert channel_values(data, "val")["section-02"] == [10, 20, 30]  # 10: trained on
    item = data.samples("train")[0, source.splits["train"].index("section-04")]
    assert not item["mask"].any()  # labels of section 4 alone: 0; those of its neighbours are 1


def test_statistics_are_those_of_the_training_sections_alone_for_each_neighbour(tmp_path):
    root = str(write_isbi(tmp_path / "isbi"))
    alone = DataModule(ISBI2012(root, fold=1), crop=None).intensity
    joined = DataModule(ISBI2012(root, fold=1, neighbours=2), crop=None).intensity
    assert joined.mean == alone.mean * 5 and joined.std == alone.std * 5
    assert (joined.neighbours, joined.channels, joined.image_channels) == (2, 5, 1)
    # by hand: all sections but 2 and 3
    values = np.array([10 * z for z in range(10) if z not in (2, 3)]) / 255
    assert joined.mean[0] == pytest.approx(values.mean()) and joined.std[0] == pytest.approx(values.std())  # fmt: skip


def test_pages_have_neighbours_in_their_file_alone(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name, values in {"a": [1, 2, 3], "b": [11, 12, 13]}.items():
        tifffile.imwrite(
            tmp_path / f"images/{name}.tif", flat_sections(values), photometric="minisblack"
        )
        tifffile.imwrite(
            tmp_path / f"masks/{name}.tif", flat_sections([0, 1, 0]), photometric="minisblack"
        )
    source = Folder(str(tmp_path), CLASSES, pages="slices", neighbours=1)
    data = DataModule(source, crop=None)
    found = channel_values(data, "train") | channel_values(data, "val")
    assert found == {
        "a-0": [1, 1, 2], "a-1": [1, 2, 3], "a-2": [2, 3, 3],
        "b-0": [11, 11, 12], "b-1": [11, 12, 13], "b-2": [12, 13, 13],
    }  # fmt: skip
    assert data.source.sections.describe().startswith("2 stacks of 3 sections (a-0, a-1 ...)")


def test_files_are_sections_by_the_last_number_of_their_names(tmp_path):
    values = {f"v{v}_z{z}": 20 * v + z for v in (1, 2) for z in range(8, 12)}  # 9 before 10
    source = Folder(str(write_files(tmp_path, values)), CLASSES, neighbours=1)
    data = DataModule(source, crop=None)
    found = channel_values(data, "train") | channel_values(data, "val")
    for v in (1, 2):
        for z in range(8, 12):
            near = [20 * v + min(max(one, 8), 11) for one in (z - 1, z, z + 1)]
            assert found[f"v{v}_z{z}"] == near


def test_several_channels_come_section_after_section(tmp_path):
    values = {f"{z:02d}": 10 * z for z in range(1, 6)}
    source = Folder(str(write_files(tmp_path, values, channels=3)), CLASSES, neighbours=1)
    data = DataModule(source, crop=None)
    found = channel_values(data, "train") | channel_values(data, "val")
    assert found["03"] == [20, 21, 22, 30, 31, 32, 40, 41, 42]
    assert data.intensity.own_channels == slice(3, 6)


def test_groups_part_stacks(tmp_path):
    values = {"z1_p1": 1, "z1_p2": 2, "z2_p1": 3, "z2_p2": 4}  # the last number is the patient
    root = str(write_files(tmp_path, values))
    with pytest.raises(DataError, match=r"data.neighbours=1: z1_p1 is no section of a stack"):
        Folder(root, CLASSES, val=0.5, group_by=r"p\d", neighbours=1)


WRONG = {
    "a gap": (["z1", "z2", "z4", "z5"], r"z2 and z4 follow each other as sections 2 and 4"),
    "every second frame": (
        ["0001TP_006690", "0001TP_006750", "0001TP_006810"],
        r"0001TP_006690 and 0001TP_006750 follow each other as sections 6690 and 6750 .*data.neighbours=0",
    ),
    "one number twice": (["z1", "z01", "z2"], r"z01 and z1 are both section 1"),
    "no number": (["left", "right", "top"], r"left is no section of a stack.*last number in a name"),
    "one of its name": (["z1", "z2", "y7"], r"y7 is no section of a stack"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_images_that_are_no_sections_are_named(tmp_path, case):
    names, message = WRONG[case]
    root = str(write_files(tmp_path, {name: i for i, name in enumerate(names)}))
    Folder(root, CLASSES)
    with pytest.raises(DataError, match=f"^data.neighbours=1: {message}") as error:
        Folder(root, CLASSES, neighbours=1)
    assert "\n" not in str(error.value)


def test_sections_of_other_sizes_are_named(tmp_path):
    root = write_files(tmp_path, {f"z{z}": z for z in range(5)})
    for part in ("images", "masks"):
        Image.fromarray(np.zeros((8, 7), np.uint8)).save(root / part / "z3.png")
    source = Folder(str(root), CLASSES, neighbours=1)
    source.splits = {"train": ["z0", "z1"], "val": ["z2"]}
    samples = DataModule(source, crop=None).samples("val")
    message = r"^z2 is 8x6 px and its neighbour z3 8x7 px; sections of a stack must have one size"
    with pytest.raises(DataError, match=message):
        samples[0, 0]
    with pytest.raises(DataError, match=message), samples.open_banded("z2"):
        pass


def test_rows_of_sections_are_those_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    volume = rng.integers(0, 256, (4, 70, 40), np.uint8)
    tiles = {"compression": "zlib", "tile": (16, 16)}
    tifffile.imwrite(tmp_path / "images/v.tif", volume, photometric="minisblack", **tiles)
    tifffile.imwrite(
        tmp_path / "masks/v.tif", (volume > 128).astype(np.uint8), photometric="minisblack", **tiles
    )
    source = Folder(str(tmp_path), CLASSES, pages="slices", neighbours=1)
    samples = DataModule(source, crop=None).samples("val")
    for row, name in enumerate(samples.names):
        z = int(name[-1])
        stored = volume[[max(z - 1, 0), z, min(z + 1, 3)]].transpose(1, 2, 0)
        with samples.open_banded(name) as sample:
            np.testing.assert_array_equal(sample.image_rows(5, 60), stored[5:60])
            np.testing.assert_array_equal(sample.mask_rows(5, 60), volume[z, 5:60] > 128)
            normal = sample.prepare(sample.image_rows(0, 70)).transpose(2, 0, 1)
        np.testing.assert_array_equal(normal, samples[0, row]["image"].numpy())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["d4", "strong", "microscopy"])
def test_all_sections_are_transformed_alike(name, channels):
    transform = instantiate(
        yaml.safe_load((CONF / f"augment/{name}.yaml").read_text()), _convert_="all"
    )
    augment = Augment(transform, 32, seed=0, neighbours=1)
    section = np.random.default_rng(0).random((48, 48, channels)).astype(np.float32)
    mask = (section[..., 0] > 0.5).astype(np.uint8)
    changed = 0
    for index in range(12):
        image, _ = augment(np.tile(section, 3), [mask], 0, index)
        assert image.shape == (32, 32, 3 * channels)
        parts = np.split(image, 3, axis=-1)
        np.testing.assert_array_equal(parts[0], parts[1])
        np.testing.assert_array_equal(parts[0], parts[2])
        changed += not np.isin(parts[0], section).all()
    assert changed > 0 or name == "d4"


def test_crops_and_turns_of_sections_and_mask_agree():
    augment = Augment(
        instantiate(yaml.safe_load((CONF / "augment/d4.yaml").read_text())), 16, 0, neighbours=1
    )
    mask = np.random.default_rng(0).integers(0, 2, (40, 30), np.uint8)
    image = np.stack([mask + 10, mask + 20, mask + 30], axis=-1)
    for index in range(16):
        out, (cut,) = augment(image, [mask], 0, index)
        for c, offset in enumerate((10, 20, 30)):
            np.testing.assert_array_equal(out[..., c] - offset, cut)


def test_a_section_without_data_becomes_the_mean_and_its_neighbours_stay():
    at = Normalization(0.0, 255.0, [0.4, 0.6], [0.1, 0.2], dtype="uint8", nodata=[7.0]).with_neighbours(1)  # fmt: skip
    image = np.array([[[7, 7, 7, 100, 200, 7]]], np.uint8)  # (1, 1, 3 sections of 2 channels)
    scaled = at.scaled(image)[0, 0]
    np.testing.assert_allclose(
        scaled, [0.4, 0.6, 7 / 255, 100 / 255, 200 / 255, 7 / 255], rtol=1e-6
    )
    np.testing.assert_allclose(at.normalised(at.scaled(image))[0, 0, :2], 0, atol=1e-6)


def test_crops_of_sections_read_no_more_of_mapped_files(tmp_path):
    source = ISBI2012(str(write_isbi(tmp_path / "isbi")), neighbours=1)
    touched = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            touched.append(index)
            return np.asarray(super().__getitem__(index))

    source.images = [image.view(Watched) for image in source.images]
    at = Normalization(0.0, 255.0, [0.5] * 3, [0.25] * 3, neighbours=1)
    augment = Augment(instantiate({"_target_": "albumentations.Compose", "transforms": []}), 4, 0, neighbours=1)  # fmt: skip
    item = SegmentationDataset(source, ["section-05"], at, augment)[0, 0]
    assert item["image"].shape == (3, 4, 4)
    assert len(touched) == 3 and all(rows.stop - rows.start == 4 for rows, _ in touched)


def test_the_place_of_a_name_is_its_last_number():
    assert place_by_name("vol1_z012") == ("vol1_z*", 12)
    assert place_by_name("train/7") == ("train/*", 7)
    assert place_by_name("z3_em") == ("z*_em", 3)
    assert place_by_name("case12/overview") is None  # a number of its folder is none of its own


def test_files_of_a_folder_are_sections_of_one_suffix(tmp_path):
    for name in ("z9.png", "z10.png", "z11.png", "z10.tif", "z10_mask.png", "other.png"):
        (tmp_path / name).touch()
    names = [[f.name for f in find_section_files(tmp_path / f"z{z}.png", 1)] for z in (9, 10, 11)]
    assert names == [
        ["z9.png", "z9.png", "z10.png"], ["z9.png", "z10.png", "z11.png"], ["z10.png", "z11.png", "z11.png"],
    ]  # fmt: skip
    for alone in ("z10.tif", "z10_mask.png", "other.png"):
        with pytest.raises(DataError, match=f"{alone} is no section of a stack"):
            find_section_files(tmp_path / alone, 1)


def test_stacks_smaller_than_the_neighbours_repeat_their_ends():
    sections = Sections({"a1": place_by_name("a1"), "a2": place_by_name("a2")}, 3)
    assert sections.around("a1") == ["a1", "a1", "a1", "a1", "a2", "a2", "a2"]


def test_stacks_of_several_axes_are_refused(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    pages = np.zeros((2, 3, 8, 6), np.uint8)
    tifffile.imwrite(tmp_path / "images/a.tif", pages, imagej=True, metadata={"axes": "TZYX"})
    tifffile.imwrite(tmp_path / "masks/a.tif", pages, imagej=True, metadata={"axes": "TZYX"})
    Folder(str(tmp_path), CLASSES)
    message = r"^data.neighbours=1: \S*a.tif has axes TZYX: 2 x 3 slices \(T x Z\), so that .*; save each stack as a file$"
    with pytest.raises(DataError, match=message):
        Folder(str(tmp_path), CLASSES, neighbours=1)
    nibabel = pytest.importorskip("nibabel")
    volume = np.zeros((6, 8, 3, 2), np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "b.nii")
    message = r"b.nii has axes 6 x 8 x 3 x 2: 3 along axis 3 x 2 along axis 4 as slices"
    with pytest.raises(DataError, match=message):
        check_single_axis(tmp_path / "b.nii", read_axes(tmp_path / "b.nii")[1], 1)


def test_kept_mapped_and_read_sections_are_the_same(tmp_path):
    values = {f"z{z}": 10 * z for z in range(1, 6)}
    root = str(write_files(tmp_path / "data", values, channels=3))
    found = []
    for options in ({"memory": 0.0}, {"memory": 1.0}, {"cache": str(tmp_path / "cache")}):
        data = DataModule(Folder(root, CLASSES, neighbours=2), crop=4, repeats=2, **options)
        samples = data.train_dataset()
        found.append([samples[epoch, i]["image"].numpy() for epoch in (0, 1) for i in range(8)])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
