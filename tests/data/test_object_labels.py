"""Numbered objects: how files give them, the border that a network learns between them, and their scores."""

import json

import numpy as np
import pytest
import tifffile
from coco_files import box, coco_of
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from scipy import ndimage
from small_runs import config

from seg.commands.check import check_data
from seg.commands.crossval import crossval
from seg.commands.evaluate import evaluate
from seg.data.datasets.annotations import Annotations
from seg.data.datasets.base import ObjectBorder, choose_border
from seg.data.datasets.coco import Coco
from seg.data.datasets.folder import Folder
from seg.data.masks import merge_object_masks, numbers_objects, read_object_numbers
from seg.errors import DataError, UserError
from seg.inference.file_prediction import predict_files
from seg.inference.outputs import choose_object_options
from seg.inference.run_data import choose_data
from seg.losses import WeightMap
from seg.metrics.instances import (
    match_objects,
    object_probability,
    object_scores,
    segment_objects,
)
from seg.objects import find_borders, grow_objects, label_components
from seg.runs import load
from seg.training.run import train

CLASSES = ["background", "cell"]


def touching_cells(seed: int, size: int = 64, cells: int = 14) -> np.ndarray:
    """Labels of cells that fill two thirds of the image and touch: each pixel is the nearest seed's."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros((size, size), np.int32)
    seeds[tuple(rng.integers(0, size, (2, cells)))] = np.arange(1, cells + 1)
    index = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    labels = seeds[tuple(index)]
    labels[:, 2 * size // 3 :] = 0
    return labels


def write_cells(root, count: int = 6, dtype=np.int32, factor: int = 1, size: int = 64):
    """Images whose cells are bright but for their edges, and masks that number them."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(count):
        labels = touching_cells(i, size)
        rng = np.random.default_rng(i)
        dark = find_borders(labels, 1) | (labels == 0)
        image = np.where(dark, 60, 180) + rng.integers(-9, 10, labels.shape)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i}.png")
        tifffile.imwrite(root / "masks" / f"{i}.tif", labels.astype(dtype) * dtype(factor))
    return root


def folder(root, **options) -> Folder:
    return Folder(str(root), CLASSES, task="instances", **options)


def same_objects(one: np.ndarray, other: np.ndarray) -> bool:
    """Return True if two labels differ at most in their numbers."""
    counts = match_objects(one, other)
    number = len(np.unique(one[one > 0]))
    return bool((counts[:, 0] == number).all() and not counts[:, 1:3].any())


# The border and its inverse


def test_a_straight_border_of_three_rows_by_hand():
    labels = np.repeat([[1] * 4 + [2] * 4 + [0] * 5 + [3] * 3], 3, axis=0)
    for width, wanted in ((1, "111..222.....333"), (2, "11....22.....333")):
        mask = ObjectBorder(width, False, True).learned_mask(labels)
        assert "".join(".123"[n] for n in (mask * labels)[1]) == wanted
        carved = (mask * labels).astype(np.int32)
        np.testing.assert_array_equal(grow_objects(carved, width), labels)


def test_the_border_is_background_or_a_class_and_ignored_pixels_stay():
    labels = np.array([[1, 1, 2, 2, -1]])
    assert ObjectBorder(1, False, True).learned_mask(labels).tolist() == [[1, 0, 0, 1, 255]]
    assert ObjectBorder(1, True, True).learned_mask(labels).tolist() == [[1, 2, 2, 1, 255]]
    assert ObjectBorder(0, False, True).learned_mask(labels).tolist() == [[1, 1, 1, 1, 255]]


def test_an_object_as_thin_as_its_border_does_not_vanish():
    labels = np.repeat([[1, 1, 1, 2, 3, 3, 3]], 4, axis=0)
    mask = ObjectBorder(1, False, True).learned_mask(labels)
    assert (mask[0] * labels[0]).tolist() == [1, 1, 0, 2, 0, 3, 3]


@given(st.integers(0, 100_000), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_border_parts_all_objects_and_depends_on_no_number(seed, width):
    labels = touching_cells(seed)
    mask = ObjectBorder(width, False, True).learned_mask(labels)
    names = np.append(0, np.random.default_rng(seed).permutation(labels.max()) + 7)
    other = ObjectBorder(width, False, True).learned_mask(names[labels].astype(np.int32))
    np.testing.assert_array_equal(mask, other)
    regions = label_components(mask == 1)
    thick = ndimage.minimum(~find_borders(labels, width), labels, range(labels.max() + 1)) == 0
    for region in range(1, regions.max() + 1):
        inside = np.unique(labels[regions == region])
        assert len(inside) == 1 or not thick[inside].any()  # only whole thin objects may meet


@given(st.integers(0, 100_000), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_a_perfect_prediction_of_the_mask_gives_the_objects_back(seed, width):
    labels = np.repeat(np.repeat(touching_cells(seed, 24, 5), 6, 0), 6, 1)  # cells of 6 px or more
    mask = ObjectBorder(width, False, True).learned_mask(labels)
    found = segment_objects((mask == 1).astype(float), min_size=1, border=width)
    scores = object_scores(match_objects(labels, found))
    parts = sum(label_components(labels == n).max() for n in np.unique(labels[labels > 0]))
    if parts == len(np.unique(labels[labels > 0])):  # a cell of two regions is two objects
        assert scores["object_f1"] == 1
        assert scores["pq"] > 0.9
    assert not (found * (labels == 0)).any()  # nothing grows into the background


def test_merged_regions_have_scores_against_the_objects_and_not_each_other():
    labels = touching_cells(1)
    found = segment_objects((labels > 0).astype(float), min_size=1)
    against_regions = object_scores(match_objects(label_components(labels > 0), found))
    assert against_regions["object_f1"] == against_regions["pq"] == 1
    assert object_scores(match_objects(labels, found))["object_f1"] < 0.2


def test_the_probability_of_an_object_is_above_half_where_it_is_the_most_probable_class():
    p = np.random.default_rng(0).dirichlet([1, 1, 1], (9, 9)).transpose(2, 0, 1)
    np.testing.assert_array_equal(object_probability(p) > 0.5, p.argmax(0) == 1)
    np.testing.assert_array_equal(object_probability(p[:2]), p[1])


def test_the_weight_map_knows_objects_that_meet_around_a_corner():
    # one region of the mask, two objects: the gap between them weighs as if they were apart
    labels = np.zeros((9, 9), np.int32)
    labels[1:8, 1:4], labels[1:8, 5:8], labels[7, 4] = 1, 2, 2
    mask = (labels > 0).astype(np.uint8)
    loss = WeightMap(4, 2)
    assert not loss.gaps(mask).any()
    weights = loss.gaps(mask, labels)
    assert weights[3, 4] == pytest.approx(4 * np.exp(-(2**2) / 8))  # d1 = d2 = 1
    assert not weights[mask == 1].any()


# Files


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(np.uint8, 1), (np.uint16, 4001), (np.int32, 1_000_003), (np.int64, 2**40), (np.float32, 3)],
)
def test_numbers_of_any_type_are_the_objects(tmp_path, dtype, factor):
    source = folder(write_cells(tmp_path, 2, dtype, factor), val=0.5)
    assert source.border == (1, False, True)
    labels = touching_cells(1)
    assert same_objects(labels, source.read_objects("1"))
    np.testing.assert_array_equal(source.read("1")[1], (labels > 0) & ~find_borders(labels, 1))


def test_a_cellpose_png_and_ignored_values(tmp_path):
    write_cells(tmp_path, 2)
    labels = touching_cells(0)
    labels[50:] = 65535
    (tmp_path / "masks/0.tif").unlink()
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "masks/0.png")
    source = folder(tmp_path, ignore=[65535], val=0.5)
    found = source.read_objects("0")
    assert (found[50:] == -1).all() and (found[:50] >= 0).all()
    assert (source.read("0")[1][50:] == 255).all()


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_two_values_have_regions_as_objects(tmp_path, white):
    write_cells(tmp_path, 2)
    for file in (tmp_path / "masks").iterdir():
        tifffile.imwrite(file, ((tifffile.imread(file) > 0) * white).astype(np.uint8))
    source = folder(tmp_path, val=0.5)
    assert not source.border.separate and source.classes == CLASSES
    np.testing.assert_array_equal(source.read("0")[1], touching_cells(0) > 0)
    with pytest.raises(DataError, match=r"data.border=2: the masks hold two values"):
        folder(tmp_path, val=0.5, border=2)


def test_values_of_classes_and_noise_are_no_numbers(tmp_path):
    disc = np.hypot(*(np.mgrid[:64, :64] - 32)) < 20
    smooth = (ndimage.gaussian_filter(disc.astype(float), 1.5) * 255).astype(np.uint8)
    rng = np.random.default_rng(0)
    noisy = (disc * 200 + rng.integers(0, 30, disc.shape)).astype(np.uint8)
    classes = rng.integers(0, 4, (8, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    for mask in (smooth, noisy, classes, disc * 0.5):
        assert not numbers_objects([mask], [])
    assert numbers_objects([touching_cells(0)], [])
    assert not numbers_objects([], []) and not numbers_objects([disc.astype(np.uint8)], [])
    # the same data set is refused with the values that it holds
    write_cells(tmp_path, 2)
    for file in (tmp_path / "masks").iterdir():
        tifffile.imwrite(file, classes)
    with pytest.raises(DataError, match=r"mask value \[2, 3\] not declared"):
        folder(tmp_path, val=0.5).read("0")


def test_a_number_that_is_none_is_refused_with_its_file():
    for wrong in (np.array([[-2, 1]]), np.array([[0.5, 1]]), np.array([[np.nan, 1]])):
        with pytest.raises(DataError, match=r"a\.tif: the value (-2|0\.5|nan) is no number"):
            read_object_numbers(wrong, [], "a.tif")
    assert read_object_numbers(np.array([[-2, 7]]), [-2], "a.tif").tolist() == [[-1, 1]]
    with pytest.raises(DataError, match=r"a\.png: uint8 \(1, 2, 3\)"):
        read_object_numbers(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8), [], "a.png")


def test_a_file_for_each_object(tmp_path):
    write_cells(tmp_path, 3)
    for file in list((tmp_path / "masks").iterdir()):
        labels = tifffile.imread(file)
        file.unlink()
        (tmp_path / "masks" / file.stem).mkdir()
        for number in np.unique(labels[labels > 0]):
            plane = (labels == number).astype(np.uint8) * 255
            Image.fromarray(plane).save(tmp_path / "masks" / file.stem / f"{number}.png")
    source = folder(tmp_path, mask_layers="objects")
    assert same_objects(touching_cells(2), source.read_objects("2"))
    union = Folder(str(tmp_path), CLASSES, mask_layers="objects").read("2")[1]
    assert (union == (touching_cells(2) > 0)).all()
    (tmp_path / "masks/1").rename(tmp_path / "masks/other")
    with pytest.raises(DataError, match=r"images/1\.png: no mask of that name"):
        folder(tmp_path, mask_layers="objects")


def test_of_overlapping_objects_the_smaller_is_on_top():
    planes = np.zeros((3, 4, 6), np.uint8)
    planes[0, 1:3, 1:3], planes[1, :, :4], planes[2, :, 5] = 1, 1, 255
    labels = merge_object_masks(list(planes), "x")
    assert labels[1].tolist() == [1, 2, 2, 1, 0, -1]
    with pytest.raises(DataError, match="masks of its objects have sizes"):
        merge_object_masks([planes[0], planes[0, 1:]], "x")


def test_touching_annotations_of_one_class_are_objects_of_their_own(tmp_path):
    shapes = {"a.png": [(3, box(2, 2, 10, 10)), (3, box(10, 2, 18, 10)), (3, box(4, 4, 6, 6))]}
    (tmp_path / "coco.json").write_text(json.dumps(coco_of(shapes)))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    for part in ("b", "empty"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{part}.png")
    wanted = np.zeros((20, 30), np.int32)
    wanted[2:10, 2:10], wanted[2:10, 10:18], wanted[4:6, 4:6] = 1, 2, 3
    shape = {"label": "cell", "shape_type": "rectangle"}
    corners = ([[2, 2], [10, 10]], [[10, 2], [18, 10]], [[4, 4], [6, 6]])
    content = {"version": "5", "imagePath": "a.png", "shapes": [shape | {"points": p} for p in corners]}  # fmt: skip
    tool = tmp_path / "labelme"
    tool.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tool / f"{name}.png")
        (tool / f"{name}.json").write_text(json.dumps(content | {"imagePath": f"{name}.png"}))
    options = {"classes": ["background", "cell"], "task": "instances"}
    for source in (
        Coco(str(tmp_path), str(tmp_path / "coco.json"), border_class=True, **options),
        Annotations(str(tool), border_class=True, **options),
    ):
        assert source.classes == ["background", "cell", "border"] and len(source.colors) == 3
        assert same_objects(wanted, source.read_objects("a"))
        mask = source.read("a")[1]
        np.testing.assert_array_equal(mask == 2, find_borders(wanted, 1))
        np.testing.assert_array_equal(mask > 0, wanted > 0)


# Options that can do nothing


def test_options_that_can_do_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.border=1: data.task=classes has no objects"):
        choose_border("classes", 1, False)
    with pytest.raises(DataError, match=r"data.border_class=true: data.task=overlapping"):
        choose_border("overlapping", None, True)
    with pytest.raises(DataError, match=r"data.border=0 leaves it no pixel"):
        choose_border("instances", 0, True)


def test_seg_check_counts_objects_and_calls_numbers_no_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_cells(tmp_path / "cells", 4)
    words = ["data=folder", "data.root=cells", "data.classes=[background,cell]", "panels=0"]
    report = check_data(config("check", *words, "data.task=instances"))
    assert [image["objects"] for image in report["images"]] == [
        len(np.unique(touching_cells(int(image["name"])))) - 1 for image in report["images"]
    ]
    assert "a gap of 2 px between touching ones is background" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the values number objects: data.task=instances"):
        check_data(config("check", *words, "output=again"))


# Runs


@pytest.mark.slow
def test_a_run_keeps_its_border_and_its_neck_and_all_commands_use_them(tmp_path):
    root, output = write_cells(tmp_path / "cells"), tmp_path / "cv"
    words = ["data=folder", f"data.root={root}", "data.classes=[background,cell]", "data.task=instances",
             "data.folds=2", "loader.crop=32", "loader.repeats=8", "optim.lr=0.01", "logger=none", "trainer=cpu",
             "trainer.max_epochs=4", "panels=0", "threshold=best", "model.width=4", "model.depth=2"]  # fmt: skip
    crossval(config("crossval", *words, f"output={output}", "data.border_class=true", "save=[instances]"))  # fmt: skip
    record = json.loads((output / "crossval.json").read_text())
    run = load.load_run(output / record["folds"][0]["run"])
    assert run.border == 1 and run.classes == ["background", "cell", "border"]
    assert record["folds"][0]["split_neck_px"] == run.split_neck_px
    assert record["folds"][0]["metrics"]["val/object_f1"] > 0.6
    # evaluate: the run's neck, or connected regions; other data has the run's border
    scores = evaluate(config("evaluate", f"run={run.folder}", "panels=0", "confidence_level=0"))
    assert scores["val/object_f1"] == record["folds"][0]["metrics"]["val/object_f1"]
    report = json.loads((run.folder / "evaluate-val/metrics.json").read_text())
    assert report["objects"] == {"split_neck_px": run.split_neck_px, "min_size": 16, "border": 1}
    given = OmegaConf.create({"split_neck_px": 0, "min_size": 16})
    assert choose_object_options(given, run)["split_neck_px"] is None
    other = config("evaluate", "data=folder", f"data.root={root}", "data.task=instances").data
    _, data = choose_data(other, run)
    assert data["classes"] == CLASSES and data["border_class"]
    # the predicted objects reach into the gaps
    labels = tifffile.imread(next((output / "out-of-fold/instances").glob("*.tif")))
    assert find_borders(labels.astype(np.int32), 1).any()
    # outlines are those of the objects, without the class border
    words = [f"run={run.folder}", f"input={root / 'images/0.png'}", f"output={tmp_path / 'out'}"]
    predict_files(config("predict", *words, "save=[instances,polygons]"))
    found = tifffile.imread(tmp_path / "out/instances/0.tif")
    features = json.loads((tmp_path / "out/polygons/0.geojson").read_text())["features"]
    assert len(features) == found.max() > 3
    assert {f["properties"]["classification"]["name"] for f in features} == {"cell"}


def test_object_options_are_refused_without_objects(tmp_path):
    root = write_cells(tmp_path / "cells", 3)
    for file in (root / "masks").iterdir():
        tifffile.imwrite(file, (tifffile.imread(file) > 0).astype(np.uint8))
    words = ["data=folder", f"data.root={root}", "data.classes=[background,cell]", "loader.crop=32", "logger=none",
             "trainer=smoke", "panels=0", "model.width=2", "model.depth=2", f"outputs={tmp_path}"]  # fmt: skip
    train(config("train", *words))
    with pytest.raises(UserError, match=r"objects.split_neck_px=2: data.task=classes has no"):
        evaluate(config("evaluate", f"run={tmp_path / 'latest'}", "objects.split_neck_px=2"))
    words = [f"run={tmp_path / 'latest'}", f"input={root / 'images'}", "objects.split_neck_px=2"]
    with pytest.raises(UserError, match=r"objects.split_neck_px=2: save=\[masks,overlays\] has no"):
        predict_files(config("predict", *words, f"output={tmp_path / 'out'}"))
