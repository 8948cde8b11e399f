"""What a run keeps of its images."""

import numpy as np
import pytest
import torch
from PIL import Image

from seg.metrics.pixel_scores import ConfusionCounts
from seg.training.artifacts import (
    SAVED_PICTURE_SIDE,
    palette_image,
    scored_names,
    write_image_counts,
)


def test_names_follow_the_processes_that_scored_them():
    names = list("abcdefg")
    assert scored_names(names, 1, 7) == names
    assert scored_names(names, 3, 7) == list("adgbecf")  # a d g | b e | c f
    assert scored_names(names, 3, 3) == list("abc")  # one image each
    assert scored_names(names, 1, 2) == ["a", "b"]


def test_counts_are_those_of_each_image_and_class(tmp_path):
    matrices = torch.tensor([[[5, 1], [2, 8]], [[0, 3], [0, 4]]])  # rows are the truth
    counts = torch.stack(ConfusionCounts.from_confusion(matrices), -1)
    write_image_counts(tmp_path / "images.csv", {"val": (["a,b", "c"], counts)}, ["x", "y"])
    assert (tmp_path / "images.csv").read_text().splitlines() == [
        "split,image,class,tp,fp,fn",
        'val,"a,b",x,5,2,1',
        'val,"a,b",y,8,1,2',
        "val,c,x,0,0,3",
        "val,c,y,4,3,0",
    ]


@pytest.mark.parametrize("size", [(4, 6), (600, 1200)])
def test_a_kept_mask_has_its_classes_as_indices_and_their_colours(tmp_path, size):
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1
    mask[:, -size[1] // 3 :] = 255
    palette_image(mask, [(1, 2, 3), (200, 100, 0)]).save(tmp_path / "mask.png")
    back = Image.open(tmp_path / "mask.png")
    assert back.mode == "P" and max(back.size) == min(max(size), SAVED_PICTURE_SIDE)
    assert set(np.unique(np.asarray(back))) == {0, 1, 255}
    rgb = np.asarray(back.convert("RGB"))
    assert tuple(rgb[0, 0]) == (200, 100, 0) and tuple(rgb[-1, 0]) == (1, 2, 3)
