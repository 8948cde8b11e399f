"""Augmentation: mask and image move together, no label is added, and a sample depends on its key alone."""

import inspect
import random

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage

from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.data.augment import Augment, CoarseElastic, RareClassCrop, check_transforms
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.errors import DataError, UserError
from seg.labels import IGNORE
from seg.training.run import train

PRESETS = sorted(file.stem for file in (CONF / "augment").glob("*.yaml"))
ABC = ["a", "b", "c"]


def preset(name: str) -> A.Compose:
    return instantiate(OmegaConf.load(CONF / "augment" / f"{name}.yaml"), _convert_="all")


def spatial(name: str) -> A.Compose:
    """A preset's transforms that move pixels or hide them."""
    return A.Compose([one for one in preset(name).transforms if isinstance(one, A.DualTransform)])


BUILT = {name: Augment(preset(name), 96, seed=3) for name in PRESETS}
MOVING = {name: Augment(spatial(name), 96, seed=3) for name in PRESETS}


def waves(seed: int, size: int = 128) -> np.ndarray:
    """A smooth image in 0..1, (H, W) float32."""
    noise = np.random.default_rng(seed).random((size, size))
    smooth = ndimage.gaussian_filter(noise, 10, mode="wrap")
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def blocks(seed: int, labels: list[int], size: int = 128) -> np.ndarray:
    """A mask of blocks of the given labels, (H, W) uint8."""
    chosen = np.random.default_rng(seed).choice(labels, (8, 8))
    return np.kron(chosen, np.ones((size // 8, size // 8))).astype(np.uint8)


def check_threshold(augment: Augment, index: int, channels: int) -> None:
    """A mask made from the image by a threshold stays that, where interpolation can't have crossed it."""
    image = waves(index % 50)
    slope = max(np.abs(np.diff(image, axis=0)).max(), np.abs(np.diff(image, axis=1)).max())
    given = np.repeat(image[..., None], channels, 2)
    moved, (mask,) = augment(given, [(image > 0.5).astype(np.uint8)], 0, index)
    assert moved.shape[:2] == mask.shape and moved.shape[2] == channels
    assert set(np.unique(mask)) <= {0, 1, IGNORE}
    # interpolated twice, each time off by up to half a pixel's diagonal
    sure = (np.abs(moved[..., 0] - 0.5) > 1.5 * slope) & (mask != IGNORE)
    assert sure.mean() > 0.3
    np.testing.assert_array_equal(mask[sure], moved[..., 0][sure] > 0.5)


@given(st.integers(0, 10_000), st.sampled_from(PRESETS), st.sampled_from([1, 3]))
@settings(max_examples=150, deadline=None)
def test_a_mask_made_by_a_threshold_stays_the_image_s_threshold(index, name, channels):
    check_threshold(MOVING[name], index, channels)


ANY = [
    A.HorizontalFlip(p=1),
    A.VerticalFlip(p=1),
    A.Transpose(p=1),
    A.RandomRotate90(p=1),
    A.D4(p=1),
    A.Affine(rotate=(-90, 90), shear=(-15, 15), translate_percent=(-0.2, 0.2), border_mode=4, p=1),
    A.Affine(rotate=(-90, 90), scale=(0.8, 1.3), fill=0.5, fill_mask=255, p=1),  # the threshold
    A.Rotate(border_mode=2, p=1),
    A.Perspective(scale=(0.02, 0.08), border_mode=4, p=1),
    A.ElasticTransform(alpha=60, sigma=8, border_mode=4, p=1),
    A.GridDistortion(border_mode=4, p=1),
    A.OpticalDistortion(border_mode=4, p=1),
    A.ThinPlateSpline(scale_range=(0.02, 0.06), border_mode=4, p=1),
    A.RandomGridShuffle(p=1),
    A.RandomResizedCrop((96, 96), scale=(0.6, 1), p=1),
    CoarseElastic(sigma=6, p=1),
    CoarseElastic(grid=5, sigma=2, interpolation=2, p=1),
]


@given(st.integers(0, 10_000), st.sampled_from(range(len(ANY))), st.sampled_from([1, 4]))
@settings(max_examples=150, deadline=None)
def test_it_stays_the_threshold_under_any_spatial_transform(index, number, channels):
    check_threshold(Augment(A.Compose([ANY[number]]), 96, seed=1), index, channels)


@given(
    st.integers(0, 10_000),
    st.sampled_from(PRESETS),
    st.sets(st.sampled_from([0, 1, 2, 7, 254, 255]), min_size=1).map(sorted),
)
@settings(max_examples=150, deadline=None)
def test_no_preset_invents_a_label(index, name, labels):
    mask = blocks(index, labels)
    _, (out,) = BUILT[name](waves(0)[..., None], [mask], 0, index)
    assert out.dtype == np.uint8 and out.shape == (96, 96)
    assert set(np.unique(out)) <= set(np.unique(mask)) | {IGNORE}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("planes", [1, 2, 6])
def test_overlapping_planes_and_a_weight_map_move_with_the_labels(name, planes):
    for index in range(4):
        mask = np.stack([blocks(9 * index + k, [0, 1]) for k in range(planes)], -1)
        weights = mask * np.float32(0.25)
        image, (out, map_) = BUILT[name](waves(1)[..., None], [mask, weights], 0, index)
        assert image.shape == (96, 96, 1) and out.shape == map_.shape == (96, 96, planes)
        assert out.dtype == np.uint8 and map_.dtype == np.float32
        known = out != IGNORE
        np.testing.assert_array_equal(map_[known], out[known] * np.float32(0.25))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_preset_takes_any_number_of_channels_and_depends_on_its_key_alone(name, channels):
    image = np.random.default_rng(0).random((70, 110, channels)).astype(np.float32)
    mask = (image[..., 0] > 0.5).astype(np.uint8)
    first = [BUILT[name](image, [mask], 2, i) for i in range(3)]
    again = Augment(preset(name), 96, seed=3)
    np.random.seed(7)
    random.seed(7)
    cv2.setRNGSeed(7)
    for i in (
        2,
        0,
        1,
    ):  # in another order, by another object, whatever the global generators are at
        other, (labels,) = again(image, [mask], 2, i)
        np.testing.assert_array_equal(other, first[i][0])
        np.testing.assert_array_equal(labels, first[i][1][0])
    assert other.shape == (96, 96, channels) and other.dtype == np.float32
    assert other.min() >= -1e-6 and other.max() <= 1 + 1e-6
    for seed, epoch in ((3, 1), (4, 2)):
        changed, _ = Augment(preset(name), 96, seed)(image, [mask], epoch, 0)
        assert not np.array_equal(changed, first[0][0])


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("mirror", 2), ("flips", 4), ("d4", 8)])
def test_flips_are_4_and_d4_has_all_8_symmetries(name, count):
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1) / 16
    augment = Augment(preset(name), crop=None, seed=0)
    outcomes = [augment(image, [np.zeros((4, 4), np.uint8)], 0, i)[0] for i in range(200)]
    assert len({o.tobytes() for o in outcomes}) == count
    if name == "flips":  # rows stay rows
        assert all(abs(o[0, 1, 0] - o[0, 0, 0]) == 1 / 16 for o in outcomes)


# the paper's elastic deformation


@pytest.mark.parametrize("grid", [2, 3, 5])
@pytest.mark.parametrize("shape", [(64, 96), (33, 20)])
def test_the_elastic_grid_is_the_direct_formula_s(grid, shape):
    elastic = CoarseElastic(grid=grid, sigma=4.0, p=1)
    elastic.set_random_state(np.random.default_rng(5), random.Random(0))
    image = waves(3)[: shape[0], : shape[1]]
    mask = (image * 5).astype(np.uint8)
    out = elastic(image=image[..., None], mask=mask)

    coarse = np.random.default_rng(5).normal(0, 4.0, (2, grid, grid))
    at = [np.linspace(0, grid - 1, side) for side in shape]  # from the first point to the last
    at = np.meshgrid(*at, indexing="ij")
    shift = [ndimage.map_coordinates(c, at, order=3, mode="mirror") for c in coarse]
    source = [line + d for line, d in zip(np.mgrid[: shape[0], : shape[1]], shift, strict=True)]
    expected = ndimage.map_coordinates(image, source, order=1, mode="mirror")
    np.testing.assert_allclose(out["image"][..., 0], expected, atol=2e-3)  # OpenCV: 1/32 px
    nearest = ndimage.map_coordinates(mask, source, order=0, mode="mirror")
    assert (out["mask"] != nearest).mean() < 0.01  # ties


def test_without_sigma_nothing_moves_and_a_black_border_is_ignored():
    image, mask = waves(0)[..., None], blocks(0, [1, 2])
    out = CoarseElastic(sigma=0, p=1)(image=image, mask=mask)
    np.testing.assert_array_equal(out["mask"], mask)
    np.testing.assert_allclose(out["image"], image, atol=1e-6)
    augment = Augment(A.Compose([CoarseElastic(sigma=20, border_mode=0, p=1)]), None, 0)
    moved, (labels,) = augment(image + 0.1, [mask], 0, 0)
    assert (labels == IGNORE).mean() > 0.02
    assert (moved[..., 0][labels == IGNORE] < 0.1 + image.max() / 2).mean() > 0.9


def test_the_elastic_grid_refuses_what_it_can_not_do():
    for wrong in ({"grid": 1}, {"sigma": -1}, {"border_mode": 9}, {"p": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CoarseElastic(**wrong)


# what is refused


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda: A.Affine(rotate=20), r"Affine fills masks with 0.0, .*border_mode: 4 \(mirror\) or fill_mask: 255"),
        (lambda: A.ElasticTransform(), "ElasticTransform fills masks with 0"),
        (lambda: A.PadIfNeeded(300, 300), "PadIfNeeded fills masks with 0"),
        (lambda: A.RandomCrop(9, 9, pad_if_needed=True), "RandomCrop fills masks with 0"),
        (lambda: A.Rotate(fill_mask=1), "Rotate fills masks with 1"),
        (lambda: A.CoarseDropout(fill_mask=0), "CoarseDropout fills masks with 0.*give it fill_mask: 255"),
        (lambda: A.OneOf([A.D4(), A.Perspective()]), "Perspective fills masks with 0"),
        (lambda: A.Affine(border_mode=4, mask_interpolation=1), "Affine interpolates masks; mask_interpolation: 0"),
        (lambda: A.Normalize(), "remove Normalize; images are normalised after augmentation"),
        (lambda: A.ToTensorV2(), "remove ToTensorV2"),
    ],
)  # fmt: skip
def test_a_transform_that_would_spoil_the_data_is_refused(transform, message):
    with pytest.raises(DataError, match=f"augment: {message}") as error:
        Augment(A.Compose([A.D4(), transform()]), 64, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        A.Affine(rotate=20, border_mode=4),
        A.Affine(rotate=20, fill_mask=255),
        A.RandomCrop(9, 9),
        A.CoarseDropout(),
        A.PadIfNeeded(9, 9, border_mode=2),
    ],
)
def test_mirrored_and_ignored_borders_are_accepted(transform):
    check_transforms(A.Compose([transform]))


NEEDS = (A.DualTransform, A.Lambda, A.CropAndPad, A.LongestMaxSize, A.SmallestMaxSize)  # arguments


def defaults() -> list[type[A.DualTransform]]:
    """Every spatial transform of albumentations that needs no argument."""
    found = [c for _, c in inspect.getmembers(A, inspect.isclass) if issubclass(c, A.DualTransform)]
    return [
        c
        for c in found
        if all(p.default is not p.empty for p in inspect.signature(c).parameters.values())
        and not c.__name__.endswith("3D")
        and c not in NEEDS
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice of albumentations
@pytest.mark.parametrize("kind", defaults(), ids=lambda kind: kind.__name__)
def test_no_transform_of_albumentations_gets_an_invented_label_past_us(kind):
    mask = blocks(0, [1, 2])
    try:
        augment = Augment(A.Compose([kind(p=1)]), None, 0)
        for index in range(8):
            _, (out,) = augment(waves(0)[..., None], [mask], 0, index)
            assert set(np.unique(out)) <= {1, 2, IGNORE}
    except DataError as error:
        assert str(error).startswith("augment")


class Spoils(A.DualTransform):
    """Zeroes a corner of the mask, or blurs it."""

    def __init__(self, blurs: bool = False):
        super().__init__(p=1)
        self.blurs = blurs

    def apply(self, img, **params):
        return img

    def apply_to_mask(self, mask, **params):
        if self.blurs:
            return cv2.blur(mask.astype(np.float32), (3, 3))
        mask = mask.copy()
        mask[:2, :2] = 0
        return mask


def test_a_label_that_a_transform_invents_is_an_error_naming_it(folder_root):
    image, mask = waves(0)[..., None], blocks(0, [1, 2])
    augment = Augment(A.Compose([A.D4(), Spoils()]), 64, 0)
    with pytest.raises(DataError, match=r"augment \(D4, Spoils\): the mask has value 0 after it"):
        augment(image, [mask], 0, 0)
    planes = np.stack([np.ones_like(mask), mask - 1], -1)
    with pytest.raises(DataError, match="has value 0 after it"):  # new in the first plane only
        augment(image, [planes], 0, 0)
    with pytest.raises(DataError, match="interpolates masks"):
        Augment(A.Compose([Spoils(blurs=True)]), 64, 0)(image, [mask], 0, 0)
    with Image.open(folder_root / "masks/0.png") as stored:
        ones = np.ones_like(np.array(stored))
    for file in (folder_root / "masks").iterdir():
        Image.fromarray(ones).save(file)
    data = DataModule(Folder(str(folder_root), ABC), A.Compose([Spoils()]), crop=24)
    with pytest.raises(DataError, match=r"^\d: augment \(Spoils\)"):
        next(iter(data.train_dataloader()))


def test_an_image_that_a_transform_refuses_is_an_error_with_its_shape():
    image, mask = np.zeros((32, 32, 5), np.float32), np.zeros((32, 32), np.uint8)
    with pytest.raises(DataError, match=r"augment \(CLAHE\): .*; the image is \(24, 24, 5\)"):
        Augment(A.Compose([A.CLAHE(p=1)]), 24, 0)(image, [mask], 0, 0)
    with pytest.raises(DataError, match=r"makes 12x12 px of a crop of 24x24"):
        Augment(A.Compose([A.Resize(12, 12)]), 24, 0)(image, [mask], 0, 0)


def test_a_misspelt_argument_is_an_error_wherever_it_is_written(tmp_path):
    wrong = "{_target_:albumentations.PadIfNeeded,value:0}"
    for words in (
        [f"augment.transforms=[{wrong}]"],
        [f"augment.transforms=[{{_target_:albumentations.OneOf,transforms:[{wrong}]}}]"],
    ):
        with pytest.raises(UserError, match=r"value: no such option"):
            compose_checked("train", words)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\naugment:\n  transforms:\n"
        "    - {_target_: albumentations.ElasticTransform, alpha_affine: 10, border_mode: 4}\n"
    )
    with pytest.raises(UserError, match=r"transforms.0.alpha_affine: no such option"):
        compose_checked("train", [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])
    with pytest.warns(UserWarning, match="not valid"):
        flip = A.HorizontalFlip(always_apply=True)
    with pytest.raises(DataError, match=r"HorizontalFlip has no argument always_apply; it has p$"):
        Augment(A.Compose([A.OneOf([flip])]), 64, 0)


def test_the_border_s_error_reaches_the_user_as_one_line(tmp_path):
    words = ["augment.transforms=[{_target_:albumentations.Affine,rotate:[-9,9]}]", "data.size=64"]
    with pytest.raises(DataError, match="border_mode: 4"):
        train(compose_checked("train", [*words, f"outputs={tmp_path}"]))


def test_a_composition_s_own_probability_and_a_lone_transform_count():
    image, mask = waves(0)[..., None], blocks(0, [1, 2])
    rarely = Augment(A.Compose([A.HorizontalFlip(p=1)], p=0.3), None, 0)
    flipped = [not np.array_equal(rarely(image, [mask], 0, i)[0], image) for i in range(300)]
    assert 0.2 < np.mean(flipped) < 0.4
    out, _ = Augment(A.HorizontalFlip(p=1), None, 0)(image, [mask], 0, 0)
    np.testing.assert_array_equal(out, image[:, ::-1])


# grey values


class Sees(A.ImageOnlyTransform):
    """Remembers the range of what comes by."""

    def __init__(self):
        super().__init__(p=1)
        self.range = [np.inf, -np.inf]

    def apply(self, img, **params):
        self.range = [min(self.range[0], img.min()), max(self.range[1], img.max())]
        return img


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_intensity_transforms_see_0_to_1_and_the_network_sees_them_normalised(dtype):
    high = {np.uint8: 255, np.uint16: 65535, np.float32: 9000}[dtype]
    pictures = [(waves(i)[..., None] * high - (dtype == np.float32) * 3000).astype(dtype) for i in range(3)]  # fmt: skip

    class Source:
        classes, colors, task = ["a", "b"], [(0, 0, 0), (9, 9, 9)], "classes"
        splits = {"train": ["0", "1", "2"]}  # noqa: RUF012

        def read(self, name):
            return pictures[int(name)], (pictures[int(name)][..., 0] > 0).astype(np.uint8)

    sees, half = Sees(), A.MultiplicativeNoise((0.5, 0.5), p=1)
    data = DataModule(Source(), A.Compose([sees, half]), crop=128)
    samples = data.train_dataset()
    for i in range(3):
        scaled = data.intensity.scaled(pictures[i])
        expected = data.intensity.normalised(scaled * np.float32(0.5)).transpose(2, 0, 1)
        np.testing.assert_allclose(samples[0, i]["image"], expected, atol=1e-4)
    np.testing.assert_allclose(sees.range, [0, 1], atol=1e-4)


# crops


@pytest.mark.parametrize("context", [0, 12])
def test_without_foreground_crops_are_drawn_as_they_always_were(context):
    """Against the pipeline written out."""
    image, mask = waves(0)[..., None], blocks(0, [1, 2])
    transforms = [A.D4(p=1), A.Affine(rotate=(-30, 30), border_mode=4, p=0.5)]
    pad = [A.Pad(context, border_mode=4)] if context else []
    plain = A.Compose([*pad, A.RandomCrop(64, 64, pad_if_needed=True, border_mode=4), *transforms])
    augment = Augment(A.Compose(transforms), 64, 5, context)
    none = Augment(A.Compose(transforms), 64, 5, context, RareClassCrop(0.0, [1]))
    for index in range(5):
        key = np.random.SeedSequence([5, 1, index])
        seed = random.Random(int(key.generate_state(1)[0]))
        plain.set_random_state(np.random.default_rng(key), seed)
        expected = plain(image=image, masks=[mask])
        for one in (augment, none):
            got, (labels,) = one(image, [mask], 1, index)
            np.testing.assert_array_equal(got, expected["image"].reshape(64, 64, 1))
            np.testing.assert_array_equal(labels, expected["masks"][0])


@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 9, 32]), st.sampled_from([0, 5]),
    st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_crop_is_centred_on_the_pixel_as_far_as_the_border_lets_it(h, w, crop, context, seed):
    row, column = seed % h, seed % w
    mask = np.zeros((h, w), np.uint8)
    mask[row, column] = 1
    image = np.arange(h * w, dtype=np.float32).reshape(h, w, 1) / (h * w)
    augment = Augment(A.Compose([]), crop, seed, context, RareClassCrop(1.0, [1]))
    out, (labels,) = augment(image, [mask], 0, 0)
    assert out.shape == (crop, crop, 1)
    if context == 0:
        found = np.argwhere(labels == 1)
        value = out[tuple(found[0])]
        assert value == image[row, column]  # image and mask were cut alike
        for side, at, place in ((h, row, found[:, 0]), (w, column, found[:, 1])):
            if crop // 2 <= at <= side - (crop - crop // 2):
                assert crop // 2 in place
    else:
        assert (labels == 1).any()


def test_rare_classes_are_chosen_alike_and_in_the_share_asked_for():
    mask = np.zeros((64, 64), np.uint8)
    mask[10, 10], mask[40:60, 40:60], mask[0] = 1, 2, IGNORE
    focus, rng = (
        RareClassCrop(0.6, [1, 2, 3]),
        np.random.default_rng(0),
    )  # of class 3 there is nothing
    centres = [focus.draw_centre(mask, rng) for _ in range(3000)]
    chosen = [mask[c] for c in centres if c is not None]
    assert len(chosen) / 3000 == pytest.approx(0.6, abs=0.03)
    assert np.mean(np.array(chosen) == 1) == pytest.approx(0.5, abs=0.04)
    spread = np.array([c for c in centres if c is not None and mask[c] == 2])
    assert spread.min() == 40 and spread.max() == 59  # every pixel can be the centre
    assert RareClassCrop(1.0, [1, 2]).draw_centre(np.full((9, 9), IGNORE, np.uint8), rng) is None
    planes = np.zeros((8, 8, 2), np.uint8)
    planes[3, 4, 1] = 1
    planes[0, 0] = IGNORE
    assert RareClassCrop(1.0, [0, 1]).draw_centre(planes, rng) == (3, 4)


class Dots:
    """Images of class 0 with one pixel of class 2, and an image of class 0 alone."""

    def __init__(self, task="classes"):
        self.classes, self.colors, self.task = ABC, [(0, 0, 0)] * 3, task
        self.splits = {"train": ["0", "1", "2", "empty"], "val": ["0"]}
        self.reads = 0

    def read(self, name):
        self.reads += 1
        mask = np.zeros((200, 200), np.uint8)
        if name != "empty":
            mask[20 + 50 * int(name), 100] = 2
        if self.task == "overlapping":
            mask = np.stack([mask == k for k in range(3)], -1).astype(np.uint8)
        return (waves(0, 200)[..., None] * 255).astype(np.uint8), mask


def test_a_run_s_crops_hold_the_rare_class_as_often_as_asked_and_say_so():
    source = Dots()
    data = DataModule(source, preset("d4"), crop=32, repeats=50, rare_class_crops=0.5, memory=0)
    assert data.rare_classes == [1, 2]
    assert data.describe_crops == (
        "50 of 32x32 px from each image, 50% of them centred on b, c, the others anywhere; "
        "1 of 4 images have none"
    )
    before = source.reads
    samples = data.train_dataset()
    masks = [samples[0, i]["mask"] for i in range(len(samples))]
    assert source.reads - before == len(samples)  # one read a sample, as ever
    full = [bool((m == 2).any()) for i, m in enumerate(masks) if i % 4 != 3]
    assert np.mean(full) == pytest.approx(0.5 + 0.5 * 0.03, abs=0.1)
    assert all(torch.equal(samples[0, i]["image"], samples[0, i]["image"]) for i in range(8))
    assert any(not torch.equal(samples[0, i]["mask"], samples[1, i]["mask"]) for i in range(8))
    overlapping = DataModule(Dots("overlapping"), crop=32, rare_class_crops=1.0)
    assert overlapping.rare_classes == [0, 1, 2]
    shown = [overlapping.train_dataset()[0, i]["mask"] for i in range(4)]
    assert [bool((m[1:] == 1).any()) for m in shown] != [False] * 4  # b or c, as often as a


def test_foreground_also_finds_its_pixels_with_surroundings_for_valid_convolutions():
    data = DataModule(Dots(), preset("none"), crop=32, repeats=10, rare_class_crops=1.0)
    data.set_context(72, 20)
    for i in (0, 1, 2, 4, 5, 6):
        judged = data.train_dataset()[0, i]["mask"][20:-20, 20:-20]
        assert (judged == 2).any()


def test_the_share_of_crops_is_checked_and_described():
    for wrong, crop in ((-0.1, 32), (1.5, 32), (0.5, None)):
        text = rf"rare_class_crops is {wrong}( and crop {crop}|; a number from 0 to 1)"
        with pytest.raises(ValueError, match=text):
            DataModule(Dots(), crop=crop, rare_class_crops=wrong)
    assert DataModule(Dots(), crop=32).describe_crops == (
        "4 of 32x32 px from each image, anywhere (loader.rare_class_crops=0)"
    )
    assert DataModule(Dots(), crop=None).describe_crops == "whole images"
    with pytest.raises(
        UserError, match=r"loader\.rare_class_crops=2: a number from 0 to 1 is needed"
    ):
        compose_checked("train", ["loader.rare_class_crops=2"])


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_the_crop_alone_is_the_one_that_is_augmented(foreground):
    focus = RareClassCrop(foreground, [2]) if foreground else None
    augment = Augment(A.Compose([A.RandomBrightnessContrast(p=1)]), 48, 0, 8, focus)
    image, mask = waves(0)[..., None], blocks(1, [1, 2])
    for i in range(5):
        a, (x,) = augment(image, [mask], 0, i)
        b, (y,) = augment.without_transforms()(image, [mask], 0, i)
        np.testing.assert_array_equal(x, y)
        assert not np.array_equal(a, b)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.7
