"""Reading of folders and stacks, refusal of wrong data, and the order of the samples."""

import albumentations as A
import numpy as np
import pytest
import tifffile
from PIL import Image

from seg.data.augment import Augment
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.datasets.isbi2012 import ISBI2012
from seg.data.image_io import read_image
from seg.data.masks import MaskValues
from seg.data.normalization import IntensityStatistics
from seg.data.sampler import EpochSampler
from seg.errors import DataError

ABC = ["a", "b", "c"]


def test_isbi_validates_on_a_contiguous_block_of_sections(stack_root):
    source = ISBI2012(str(stack_root), fold=1, folds=5)
    assert source.splits["val"] == ["section-02", "section-03"]
    assert len(source.splits["train"]) == 8 and not set(source.splits["train"]) & set(
        source.splits["val"]
    )


def test_isbi_s_default_fold_holds_the_last_fifth(stack_root):
    assert ISBI2012(str(stack_root)).splits["val"] == ["section-08", "section-09"]


def test_isbi_maps_black_to_membrane_and_white_to_cell(stack_root):
    image, mask = ISBI2012(str(stack_root)).read("section-03")
    assert image.shape == (48, 48, 1)
    np.testing.assert_array_equal(mask * 255, tifffile.imread(stack_root / "train-labels.tif")[3])


def test_isbi2012_takes_a_division_that_was_published(stack_root):
    names = [f"section-{i:02d}" for i in range(len(ISBI2012(str(stack_root)).images))]
    source = ISBI2012(str(stack_root), val=[2, 0])
    assert source.splits["val"] == [names[0], names[2]]
    assert sorted(source.splits["train"] + source.splits["val"]) == names
    for wrong in ([], [0, 0], [len(names)], [-1], list(range(len(names)))):
        with pytest.raises(DataError, match=r"data\.val=\[.*give some of the sections 0 to"):
            ISBI2012(str(stack_root), val=wrong)


def test_isbi_folds_cover_every_section_once(stack_root):
    folds = [ISBI2012(str(stack_root), fold=i, folds=3).splits["val"] for i in range(3)]
    assert sorted(name for names in folds for name in names) == [
        f"section-{i:02d}" for i in range(10)
    ]


def test_a_folder_pairs_by_name_and_splits_by_image(folder_root):
    source = Folder(str(folder_root), ABC, val=0.34)
    assert [len(source.splits[s]) for s in ("train", "val")] == [4, 2]
    image, mask = source.read("3")
    np.testing.assert_array_equal(image, np.array(Image.open(folder_root / "images/3.png")))
    np.testing.assert_array_equal(mask, np.array(Image.open(folder_root / "masks/3.png")))


def test_a_folder_of_splits_keeps_them(folder_root, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    for split in ("train", "val", "test"):
        (root / split).symlink_to(folder_root)
    source = Folder(str(root), ABC)
    assert {s: len(n) for s, n in source.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert source.splits["val"][0] == "val/0"


def test_a_share_is_refused_if_folders_are_the_splits(folder_root, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(folder_root)
    with pytest.raises(
        DataError, match=r"data.val=0.3 beside train/ and val/ .*take data.val=null"
    ):
        Folder(str(tmp_path), ABC, val=0.3)


def test_declared_values_become_classes_and_void_becomes_255(folder_root):
    source = Folder(str(folder_root), ["x", "y"], values={0: 1, 2: 0}, ignore=[1])
    _, mask = source.read("0")
    stored = np.array(Image.open(folder_root / "masks/0.png"))
    np.testing.assert_array_equal(mask, np.select([stored == 0, stored == 2], [1, 0], 255))


def test_images_of_different_channels_are_refused(folder_root):
    Image.open(folder_root / "images/2.png").convert("L").save(folder_root / "images/2.png")
    with pytest.raises(DataError, match=r"2: 1 channels of uint8, but .* 3"):
        DataModule(Folder(str(folder_root), ABC))


def test_a_file_without_a_partner_or_with_damage_is_refused_by_name(folder_root):
    image = folder_root / "images/2.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(
        DataError, match=r"^\S+images/2\.png: not a readable image \(.*\)$"
    ) as error:
        DataModule(Folder(str(folder_root), ABC))
    assert (error.value.file, error.value.kind) == (str(image), "unreadable")
    image.unlink()
    with pytest.raises(DataError, match=r"masks/2\.png: no image of that name .*; add it or take"):
        Folder(str(folder_root), ABC)


def test_a_place_without_data_is_an_error(tmp_path, folder_root):
    with pytest.raises(DataError, match="no such folder"):
        Folder(str(tmp_path / "nowhere"), ABC)
    with pytest.raises(DataError, match=r"data\.root is not set"):
        ISBI2012(None)
    for file in (folder_root / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no images here"):
        Folder(str(folder_root), ABC)


def test_classes_must_be_named_and_the_error_lists_the_values_found(folder_root):
    with pytest.raises(DataError, match=r"data.classes is not set.*hold \[0, 1, 2\]"):
        Folder(str(folder_root), None)


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(DataError, match=r"data.values sends values to \[2\]"):
        MaskValues(["a", "b"], {0: 0, 255: 2}, [])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_every_type_keeps_its_values(tmp_path, dtype, channels):
    values = (np.random.default_rng(0).random((9, 11, channels)) * 250).astype(dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", values.squeeze(), compression="zlib", photometric=photometric
    )
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, values)


def test_a_palette_image_is_read_as_colours_and_a_palette_mask_as_indices(folder_root):
    indices = np.array(Image.open(folder_root / "masks/0.png"))
    picture = Image.fromarray(indices)
    picture = picture.convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata(indices.flatten().tolist())
    picture.save(folder_root / "masks/0.png")
    np.testing.assert_array_equal(Folder(str(folder_root), ABC).read("0")[1], indices)
    assert read_image(folder_root / "masks/0.png").shape == (40, 56, 3)


def test_the_training_split_becomes_mean_0_and_deviation_1(folder_root):
    data = DataModule(Folder(str(folder_root), ABC))
    pixels = np.concatenate(
        [s["image"].flatten(1).numpy() for s in map_samples(data.samples("train"))], 1
    )
    np.testing.assert_allclose(pixels.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(pixels.std(1), 1, atol=1e-5)
    names = [sample["name"] for sample in map_samples(data.samples("train"))]
    assert names == data.source.splits["train"]


def test_float_images_are_measured_over_all_pixels():
    rng = np.random.default_rng(0)
    images = [rng.normal(9 * i, 1 + i, (5 + i, 7, 2)).astype(np.float32) for i in range(3)]
    measure = IntensityStatistics(None)
    for image in images:
        measure.add(image)
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]).astype(np.float64)
    scaled = (pixels - pixels.min()) / np.ptp(pixels)
    intensity = measure.intensity()
    np.testing.assert_allclose(intensity.mean, scaled.mean(0))
    np.testing.assert_allclose(intensity.std, scaled.std(0), rtol=1e-6)


def map_samples(samples):
    return [samples[0, i] for i in range(len(samples))]


def test_whole_images_of_several_sizes_do_not_share_a_batch(folder_root):
    Image.new("RGB", (8, 8)).save(folder_root / "images/1.png")
    Image.new("L", (8, 8)).save(folder_root / "masks/1.png")
    with pytest.raises(DataError, match=r"train images have 2 sizes.*loader\.crop=null"):
        DataModule(Folder(str(folder_root), ABC, split_seed=1), crop=None)
    DataModule(Folder(str(folder_root), ABC, split_seed=1), crop=None, batch_size=1)


def test_a_constant_image_does_not_divide_by_zero():
    image, measure = np.full((4, 4, 1), 7, np.float32), IntensityStatistics(None)
    measure.add(image)
    intensity = measure.intensity()
    assert np.isfinite(intensity.normalised(intensity.scaled(image))).all()


def test_transforms_draw_independently_of_each_other():
    # a seed given to Compose makes these three agree in all 200 calls
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.Transpose(p=0.5)]
    augment = Augment(A.Compose(flips), crop=None, seed=0)
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1) / 16
    outcomes = {augment(image, [np.zeros((4, 4), np.uint8)], 0, i)[0].tobytes() for i in range(200)}
    assert len(outcomes) == 8


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_samples_without_counting_one_twice_in_validation(world):
    shares = [list(EpochSampler(10, 0, shuffle=False, rank=r, world=world)) for r in range(world)]
    assert sorted(i for share in shares for _, i in share) == list(range(10))
    assert [len(EpochSampler(10, 0, False, r, world)) for r in range(world)] == [
        len(s) for s in shares
    ]


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(20, seed, shuffle=True)
        sampler.set_epoch(epoch)
        return [i for _, i in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4) and order(0, 3) != order(1, 3)
