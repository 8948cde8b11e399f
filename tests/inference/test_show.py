"""The contact sheet shows the very samples that training takes."""

import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from seg.cli.compose import compose_checked
from seg.commands.show import draw_samples
from seg.display.layout import draw_grid, fit_grid_cell
from seg.errors import DataError, UserError
from seg.labels import IGNORE
from seg.show import main
from seg.training.sample_sheet import draw_sample, open_training_data, sample_keys, stretch_together

SMALL = ["data.size=64", "data.train=3", "data.val=1", "loader.crop=32"]


def picture(path, *words) -> np.ndarray:
    file = draw_samples(compose_checked("show", [*words, f"output={path}"]))
    with Image.open(file) as image:
        return np.array(image)


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_a_picture_is_written_and_the_crops_are_described(tmp_path, capsys, augment):
    page = picture(
        tmp_path / "new/look.png",
        *SMALL,
        f"augment={augment}",
        "n=5",
        "loader.rare_class_crops=0.25",
    )
    assert page.shape[0] > 200 and page.shape[1] > 600 and np.ptp(page) == 255
    said = capsys.readouterr().out
    assert "crops      4 of 32x32 px from each image, 25% of them centred on membrane" in said
    assert f"pictures   {tmp_path}/new/look.png" in said  # fmt: skip


def test_the_same_line_gives_the_same_picture_and_another_epoch_another(tmp_path):
    words = [*SMALL, "augment=strong", "n=3"]
    a, b = picture(tmp_path / "a.png", *words), picture(tmp_path / "b.png", *words)
    np.testing.assert_array_equal(a, b)
    c = picture(tmp_path / "c.png", *words, "epoch=1")
    assert not np.array_equal(a, c)


def test_the_samples_are_those_that_training_takes_first():
    data = open_training_data(
        compose_checked("show", [*SMALL, "augment=microscopy", "seed=4", "loader.batch_size=4"])
    )
    batch = next(iter(data.train_dataloader()))
    samples = data.train_dataset()
    first = [samples[key] for key in islice(sample_keys(len(samples), 4, 0), 4)]
    assert batch["name"] == [one["name"] for one in first]
    assert torch.equal(batch["image"], torch.stack([one["image"] for one in first]))
    keys = list(islice(sample_keys(5, 0, 2), 12))  # more than an epoch has: the next ones
    assert [epoch for epoch, _ in keys] == [2] * 5 + [3] * 5 + [4] * 2
    assert sorted(i for _, i in keys[5:10]) == [0, 1, 2, 3, 4]  # fmt: skip


def test_without_augmentation_the_network_sees_the_crop_and_no_more(tmp_path):
    page = picture(tmp_path / "a.png", *SMALL, "augment=none", "n=1")
    # crops of 32 px enlarged to 224, in columns of 224 + 16, after a margin of 16
    left, middle, mask = (page[70:280, x : x + 224] for x in (16, 256, 496))
    np.testing.assert_array_equal(left, middle)
    assert np.ptp(left) > 100 and not np.array_equal(middle, mask)
    assert (np.ptp(middle.astype(int), axis=2) == 0).all() and np.ptp(mask, axis=2).max() > 30


def test_all_pictures_have_one_scale():
    dark, light = np.zeros((1, 10, 10), np.float32), np.ones((1, 20, 5), np.float32)
    grey = np.full((1, 3, 3), 0.5, np.float32)
    a, b, c = stretch_together([dark, light, grey])
    assert a.shape == (10, 10, 3) and b.shape == (20, 5, 3) and c.shape == (3, 3, 3)
    assert (a == 0).all() and (b == 255).all() and (abs(c.astype(int) - 128) <= 1).all()
    flat = stretch_together([np.stack([np.arange(4.0).reshape(2, 2)] * 3)])[0]
    np.testing.assert_array_equal(flat[..., 0], flat[..., 2])
    assert flat[0, 0, 0] < flat[0, 1, 0] < flat[1, 0, 0] < flat[1, 1, 0]


def test_a_darker_sample_is_drawn_darker_than_its_crop(tmp_path):
    darker = "{_target_:albumentations.RandomBrightnessContrast,brightness_limit:[-0.3,-0.3],p:1}"
    page = picture(tmp_path / "a.png", *SMALL, f"augment.transforms=[{darker}]", "n=1")
    crop, seen = (page[70:280, x : x + 224].mean() for x in (16, 256))
    assert seen < crop - 50


def test_ignored_pixels_are_hatched_and_the_surroundings_bare():
    seen = np.full((200, 200, 3), 90, np.uint8)
    mask = np.zeros((200, 200), np.uint8)
    mask[80:120, 80:120] = IGNORE
    row = np.array(draw_sample(seen, seen, mask, [(255, 0, 0)], "x", 16, context=50))
    top = row.shape[0] - 200
    cell = row[top:, -200:]
    assert (cell[20, 20] == 90).all()  # beyond what is judged
    assert cell[60, 60, 0] > 150 and cell[60, 60, 1] < 60  # red over grey
    assert set(np.unique(cell[85:115, 85:115])) == {128, 176}


def test_cells_fill_the_page_and_are_enlarged_by_whole_numbers():
    assert fit_grid_cell(np.zeros((30, 30, 3), np.uint8)).shape == (210, 210, 3)
    assert fit_grid_cell(np.zeros((256, 300, 3), np.uint8)).shape == (256, 300, 3)
    assert fit_grid_cell(np.zeros((1000, 500, 3), np.uint8)).shape == (384, 192, 3)
    cells = [Image.new("RGB", (664, 300), (i, 0, 0)) for i in range(16)]
    page = draw_grid(cells, gap=32)
    assert page.size == (4 * 696 - 32, 4 * 332 - 32)
    assert page.getpixel((0, 0)) == (0, 0, 0) and page.getpixel((696, 332)) == (5, 0, 0)
    assert draw_grid(cells[:1], gap=32).size == (664, 300)


def test_colour_images_and_overlapping_classes_are_drawn(tmp_path, folder_root, planes_root):
    words = ["data=folder", f"data.root={folder_root}", "data.classes=[a,b,c]", "loader.crop=null"]
    page = picture(tmp_path / "rgb.png", *words, "loader.batch_size=1", "augment=d4", "n=2")
    assert np.ptp(page.astype(int), axis=2).max() > 100  # colours
    words = [
        "data=folder",
        f"data.root={planes_root}",
        "data.task=overlapping",
        "data.classes=[a,b]",
    ]
    words += ["data.ignore=[7]", "loader.crop=32", "augment=elastic", "n=3"]
    assert picture(tmp_path / "planes.jpg", *words).shape[2] == 3  # fmt: skip


def test_a_training_s_line_shows_what_that_training_sees(tmp_path):
    words = [*SMALL, "model=unet_paper", "model.depth=2", "loss=weight_map", "optim.lr=1", "n=1"]
    data = open_training_data(compose_checked("show", words))
    assert data.train_dataset()[0, 0]["image"].shape == (
        1,
        72,
        72,
    )  # with the surroundings of the crop
    picture(tmp_path / "a.png", *words)
    assert (
        compose_checked("show", ["experiment=camvid", "data.root=/d"]).augment.transforms[0].p
        == 0.5
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=look"], r"output=look: a picture is needed, \.png"),
        (["n=0"], "n=0: a whole number of 1 or more is needed"),
        (["epoch=-1"], "epoch=-1: a whole number of 0 or more is needed"),
        (
            ["loader.rare_class_crops=2"],
            "loader.rare_class_crops=2: a number from 0 to 1 is needed",
        ),
        (["augment.transforms=[{_target_:albumentations.Affine}]"], "augment: Affine fills masks"),
        (["nn=3"], r"nn: no such option; did you mean n\?"),
        (["augment=flip"], r"augment=flip: no such augment; did you mean flips\?"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, DataError), match=message):
        draw_samples(compose_checked("show", [*SMALL, *words]))
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["show", *SMALL, "augment=flips", "n=2"])
    main()
    assert (tmp_path / "show.png").is_file() and "show.png" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["show.png"]
