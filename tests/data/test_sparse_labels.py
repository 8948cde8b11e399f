"""Sparse labels: each crop holds a label, dense data give the crops of before, and the labelled share is told."""

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import TINY, config, make_images

from seg.data.augment import Augment, draw_labelled_pixel
from seg.labels import IGNORE
from seg.training.run import train


@pytest.mark.parametrize("context", [0, 12])
def test_no_crop_is_empty_with_one_percent_of_the_pixels_labelled(context):
    mask = np.full((400, 400), IGNORE, np.uint8)
    mask[30:70, 300:340] = 1
    image = np.arange(mask.size, dtype=np.float32).reshape(400, 400, 1)
    augment = Augment(A.Compose([]), 64 + 2 * context, 0, context)
    inner = slice(context, -context or None)
    for index in range(128):
        cut, (labels,) = augment(image, [mask], 0, index)
        assert (labels[inner, inner] != IGNORE).any()
        rows, columns = np.divmod(cut[inner, inner, 0].astype(int), 400)
        assert (labels[inner, inner] == mask[rows, columns]).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_crops_with_a_label_are_those_of_dense_labels(seed, epoch, index):
    rng = np.random.default_rng(seed)
    image = rng.random((90, 70, 1)).astype(np.float32)
    dense = rng.integers(0, 3, (90, 70)).astype(np.uint8)
    sparse = np.where(rng.random(dense.shape) < 0.05, dense, IGNORE).astype(np.uint8)
    augment = Augment(A.Compose([A.D4(p=1)]), 32, seed % 1000)
    whole, (labels,) = augment(image, [dense], epoch, index)
    kept, (thinned,) = augment(image, [sparse], epoch, index)
    assert (whole == kept).all()  # a crop of 32x32 px with 5 % of the labels has some
    assert (labels[thinned != IGNORE] == thinned[thinned != IGNORE]).all()


def test_the_moved_crop_depends_on_seed_epoch_and_index():
    mask = np.full((300, 300), IGNORE, np.uint8)
    mask[:, 10] = 0
    image = np.arange(mask.size, dtype=np.float32).reshape(300, 300, 1)
    keys = [(0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 0, 2)]
    cuts = [
        Augment(A.Compose([]), 16, seed)(image, [mask], epoch, index)[0]
        for seed, epoch, index in (*keys, keys[0])
    ]
    assert (cuts[0] == cuts[-1]).all()
    assert len({cut.tobytes() for cut in cuts}) == 4


def test_a_labelled_pixel_of_planes_and_of_an_unlabelled_mask():
    planes = np.full((5, 6, 2), IGNORE, np.uint8)
    assert draw_labelled_pixel(planes, np.random.default_rng(0)) is None
    planes[3, 4, 1] = 0
    assert draw_labelled_pixel(planes, np.random.default_rng(0)) == (3, 4)


def test_the_run_tells_the_labelled_share_and_on_how_many_pixels_scores_stand(tmp_path, capsys):
    root = make_images(tmp_path / "data")
    for i in range(8):
        file = root / "masks" / f"{i}.png"
        mask = np.array(Image.open(file)).copy()
        mask[:, 12:] = IGNORE  # a quarter of 48 columns is labelled
        Image.fromarray(mask).save(file)
    words = [
        "data=folder",
        f"data.root={root}",
        "data.classes=[out,in]",
        "data.ignore=[255]",
        "trainer.max_epochs=1",
    ]
    rest = [w for w in TINY if not w.startswith("data.")]
    train(config("train", *rest, *words, f"outputs={tmp_path / 'outputs'}"))
    out = capsys.readouterr().out
    assert "labels     25.0 % of the training pixels are labelled, crops without a label" in out
    assert f"over all {2 * 64 * 12:,} labelled pixels of the split" in out
