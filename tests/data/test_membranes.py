"""Made membranes: the same bytes from the same seed, and too hard for a threshold."""

import hashlib

import numpy as np
import pytest
from skimage.filters import gaussian
from skimage.measure import label

from seg.data.datasets import membranes
from seg.data.datasets.membranes import Membranes
from seg.data.image_cache import ImageCache
from seg.data.quality.inspect import hash_pixels
from seg.data.statistics import measure_dataset
from seg.errors import DataError

SMALL = {"size": 96, "train": 3, "val": 2, "test": 1}


@pytest.fixture(scope="module")
def made():
    return Membranes()


def everything(source, backwards=False):
    """Name -> bytes of image and mask, read in the order of the splits or against it."""
    names = [name for split in source.splits.values() for name in split]
    read = {name: source.read(name) for name in (names[::-1] if backwards else names)}
    return {name: read[name][0].tobytes() + read[name][1].tobytes() for name in names}


def best_dice(image, mask):
    """Dice of the membrane by the best global threshold that one who knows the truth could choose."""
    membrane = mask == 0
    below = np.bincount(image.ravel(), minlength=256).cumsum()
    hit = np.bincount(image[..., 0][membrane], minlength=256).cumsum()
    return (2 * hit / (below + membrane.sum())).max()


def blurred(image, sigma):
    smooth = gaussian(image[..., 0], sigma, preserve_range=True)
    return np.round(smooth).astype(np.uint8)[..., None]


# the same on every machine


def test_a_fresh_object_makes_the_same_bytes_in_any_reading_order():
    assert everything(Membranes(**SMALL)) == everything(Membranes(**SMALL), backwards=True)


def test_more_images_leave_the_first_ones_unchanged():
    few, more = everything(Membranes(**SMALL)), everything(Membranes(**{**SMALL, "train": 5}))
    assert len(more) == len(few) + 2
    assert all(more[name] == few[name] for name in few)


def test_no_two_images_of_any_seed_split_or_index_are_equal():
    sources = [Membranes(**SMALL, data_seed=seed) for seed in (0, 1)]
    images = [source.read(n)[0].tobytes() for source in sources for n in everything(source)]
    masks = [source.read(n)[1].tobytes() for source in sources for n in everything(source)]
    assert len(set(images)) == len(set(masks)) == 12  # 2 seeds of 3 + 2 + 1 images


def test_the_generator_draws_what_it_has_always_drawn():
    """A change here changes everybody's data: make it on purpose, and say so in the changelog."""
    image, mask = Membranes(size=96).read("train-000")
    assert (
        hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
        == "a05d2171ba5009c5b9f29c7827274ea6f6b3b3fdb301c814449f68a05f5b9b0e"
    )


# what an image is


def test_image_and_mask_have_the_promised_shape_type_and_values(made):
    for name in (split[0] for split in made.splits.values()):
        image, mask = made.read(name)
        assert (image.shape, image.dtype) == ((256, 256, 1), np.uint8)
        assert (mask.shape, mask.dtype) == ((256, 256), np.uint8)
        assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("size", [32, 100, 513])
def test_any_side_in_range_can_be_made(size):
    image, mask = Membranes(size=size).read("test-000")
    assert image.shape[:2] == mask.shape == (size, size)
    assert image.std() > 10


def test_splits_have_as_many_names_as_asked_for():
    assert Membranes(train=2, val=1, test=0).splits == {
        "train": ["train-000", "train-001"],
        "val": ["val-000"],
    }


def test_a_seventh_to_a_quarter_of_the_pixels_is_membrane(made):
    shares = [(made.read(name)[1] == 0).mean() for name in made.splits["train"]]
    assert min(shares) > 0.13 and max(shares) < 0.28
    assert 0.17 < np.mean(shares) < 0.24


def test_cells_differ_greatly_in_size(made):
    sizes = np.concatenate(
        [
            np.bincount(label(made.read(n)[1], connectivity=1).ravel())[1:]
            for n in made.splits["val"]
        ]
    )
    small, large = np.percentile(sizes[sizes > 20], [10, 98])
    assert large > 20 * small


def test_difficulty_changes_the_image_and_not_the_mask():
    easy, hard = (Membranes(size=96, difficulty=d).read("val-000") for d in (0, 1))
    assert (easy[0] != hard[0]).any()
    assert (easy[1] == hard[1]).all()


# how hard it is


@pytest.mark.parametrize("sigma", [0, 1, 2])
def test_the_best_threshold_scores_badly_also_after_a_blur(made, sigma):
    pairs = [made.read(name) for name in made.splits["test"]]
    dice = [best_dice(blurred(image, sigma) if sigma else image, mask) for image, mask in pairs]
    assert np.mean(dice) < 0.58  # a small U-Net passes 0.84 after 200 steps
    assert np.mean(dice) > 0.40  # the membranes are dark: there is something to learn from


def test_more_difficulty_lowers_the_best_threshold():
    by_difficulty = [
        np.mean([best_dice(*source.read(name)) for name in source.splits["val"]])
        for source in (Membranes(difficulty=d) for d in (0, 0.5, 1))
    ]
    assert by_difficulty[0] > by_difficulty[1] + 0.1 > by_difficulty[2] + 0.2


# errors


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 31),
        ("size", 2049),
        ("train", 0),
        ("val", 0),
        ("test", -1),
        ("difficulty", -0.1),
        ("difficulty", 1.1),
        ("difficulty", float("nan")),
        ("data_seed", -1),
    ],
)
def test_a_bad_argument_is_an_error_that_names_the_option(option, value):
    with pytest.raises(ValueError, match=rf"data\.{option}={value}"):
        Membranes(**{option: value})


@pytest.mark.parametrize("name", ["train-003", "train-3", "test", "other-000", ""])
def test_an_unknown_name_is_an_error_that_says_which_names_there_are(name):
    with pytest.raises(DataError, match=r"train-002.*val-001.*test-000"):
        Membranes(**SMALL).read(name)


def test_the_stamp_changes_with_what_is_drawn():
    small = dict(size=32, train=2, val=1, test=0)
    first = Membranes(**small)
    assert Membranes(**(small | {"train": 3})).stamp("train-000") == first.stamp("train-000")
    others = [{"size": 64}, {"difficulty": 0.4}, {"data_seed": 1}]
    stamps = [Membranes(**(small | other)).stamp("train-000") for other in others]
    assert len({first.stamp("train-000"), first.stamp("train-001"), *stamps}) == 5


def test_a_second_run_draws_an_image_only_when_it_is_used(monkeypatch):
    def measured():
        membranes.drawn_images.cache_clear()
        store = ImageCache(Membranes(size=64, train=3, val=1, test=0), 10**9)
        return measure_dataset(store, check=True), store

    first, _ = measured()
    drawn = []
    draw = membranes.draw_membranes
    monkeypatch.setattr(
        membranes, "draw_membranes", lambda *args: drawn.append(args) or draw(*args)
    )
    again, store = measured()
    assert again == first and drawn == []
    image, _ = store.read("train-001")
    assert len(drawn) == 1 and first.digests["train-001"][0] == hash_pixels(image).hex()
