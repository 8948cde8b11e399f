"""Outlines of predictions: read back they give the same pixels, whatever the mask."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from small_runs import config

from seg.data.datasets.annotations import Annotations
from seg.data.datasets.coco import Coco
from seg.data.datasets.tools import imagej, labelme, qupath
from seg.data.datasets.tools.parsing import AnnotatedImage
from seg.inference.file_prediction import predict_files
from seg.inference.polygons import (
    as_coco,
    as_geojson,
    as_labelme,
    as_rois,
    merge_coco,
    trace_mask,
    trace_rings,
)

CLASSES, COLORS = ["background", "cell", "nucleus"], [(0, 0, 0), (200, 0, 0), (0, 200, 0)]
MASKS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 2)
)


def redrawn(folder, module, name: str, text: str, mask: np.ndarray) -> np.ndarray:
    """The mask that a tool's file gives for an image of the size of ``mask``."""
    (folder / name).write_text(text)
    return drawn(module.read_annotations(folder / name).images[0], mask)


def drawn(image: AnnotatedImage, mask: np.ndarray) -> np.ndarray:
    """The mask of an image's annotations."""
    source = object.__new__(Annotations)
    source.task, source.ignored = "classes", set()
    source.classes, source.annotated = CLASSES, CLASSES[1:]
    return source.draw_mask(image, *mask.shape)


@given(MASKS)
@settings(deadline=None, max_examples=150)
def test_any_mask_is_the_same_read_back(tmp_path_factory, mask):
    folder = tmp_path_factory.getbasetemp()
    text = as_geojson(trace_mask(mask, 3), CLASSES, COLORS, "a")
    np.testing.assert_array_equal(redrawn(folder, qupath, "a.geojson", text, mask), mask)
    text = as_labelme(trace_mask(mask, 3), CLASSES, folder / "a.png", folder, mask.shape)
    np.testing.assert_array_equal(redrawn(folder, labelme, "a.json", text, mask), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode with numpy 2
@given(MASKS)
@settings(deadline=None, max_examples=100)
def test_any_mask_is_the_same_read_back_from_coco(tmp_path_factory, mask):
    masks = pytest.importorskip("pycocotools.mask", reason="the extra coco isn't installed")
    folder = tmp_path_factory.getbasetemp()
    shares = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
    parts = [as_coco(trace_mask(one, 3), CLASSES, 1, name, shares) for name, one in (("b.png", 0 * mask), ("a.png", mask))]  # fmt: skip
    content = merge_coco([*parts, parts[1]])
    assert [row["file_name"] for row in content["images"]] == ["b.png", "a.png"]
    for name in ("a.png", "b.png"):
        Image.fromarray(mask).save(folder / name)
    (folder / "coco.json").write_text(json.dumps(content))
    source = Coco(str(folder), str(folder / "coco.json"))
    assert source.classes == CLASSES
    np.testing.assert_array_equal(source.read("a")[1], mask)
    assert not source.read("b")[1].any()
    # Score, area and box of each object, by pycocotools
    for row in content["annotations"]:
        runs = masks.merge(masks.frPyObjects(row["segmentation"], *mask.shape)) if isinstance(row["segmentation"], list) else masks.frPyObjects(row["segmentation"], *mask.shape)  # fmt: skip
        inside = masks.decode(runs).astype(bool)
        assert row["area"] == masks.area(runs) and row["bbox"] == masks.toBbox(runs).tolist()
        assert row["score"] == pytest.approx(shares[inside].mean(), abs=1e-4)
        assert (mask[inside] == row["category_id"]).all()


def test_overlapping_classes_are_the_same_read_back_from_coco(tmp_path):
    pytest.importorskip("pycocotools", reason="the extra coco isn't installed")
    planes = (np.random.default_rng(0).random((2, 12, 9)) < 0.6).astype(np.uint8)
    shares = np.stack([np.full((12, 9), 0.25), np.full((12, 9), 0.75)])
    content = as_coco(trace_mask(planes, 2), ["cell", "nucleus"], 0, "a.png", shares)
    assert {(row["category_id"], row["score"]) for row in content["annotations"]} == {(1, 0.25), (2, 0.75)}  # fmt: skip
    content["images"].append(content["images"][0] | {"id": 2, "file_name": "b.png"})
    for name in "ab":
        Image.fromarray(planes[0]).save(tmp_path / f"{name}.png")
    (tmp_path / "coco.json").write_text(json.dumps(content))
    source = Coco(str(tmp_path), str(tmp_path / "coco.json"), task="overlapping")
    np.testing.assert_array_equal(source.read("a")[1], planes.transpose(1, 2, 0))


@given(MASKS)
@settings(deadline=None, max_examples=100)
def test_any_mask_is_the_same_read_back_from_imagej(tmp_path_factory, mask):
    pytest.importorskip("roifile", reason="the extra rois isn't installed")
    file = tmp_path_factory.getbasetemp() / "a.zip"
    file.write_bytes(as_rois(trace_mask(mask, 3), CLASSES, COLORS))
    images = imagej.read_annotations(file).images
    if mask.any():
        np.testing.assert_array_equal(drawn(images[0], mask), mask)
    else:
        assert not images


@given(MASKS)
@settings(deadline=None, max_examples=100)
def test_a_ring_passes_no_corner_twice_and_has_the_area_of_its_pixels(mask):
    for one in trace_mask(mask, 3):
        areas = []
        for ring in one.rings:
            assert len({tuple(point) for point in ring.tolist()}) == len(ring) >= 4
            x, y = ring.T
            areas.append(abs(int(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2)
        assert areas[0] - sum(areas[1:]) == one.inside.sum()


def test_a_ring_is_the_border_of_its_pixels():
    inside = np.ones((3, 4), bool)
    inside[1, 1] = False
    rings = [sorted(ring.tolist()) for ring in trace_rings(inside)]
    assert rings == [[[0, 0], [0, 3], [4, 0], [4, 3]], [[1, 1], [1, 2], [2, 1], [2, 2]]]


def test_a_feature_has_class_colour_and_measurements():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:6] = 2
    one = json.loads(as_geojson(trace_mask(mask, 3), CLASSES, COLORS, "a"))["features"][0]
    assert one["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "nucleus", "color": [0, 200, 0]},
        "measurements": {"Area px^2": 8, "Centroid X px": 4.0, "Centroid Y px": 2.0},
    }
    ring = one["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] and sorted(ring[1:]) == [[2, 1], [2, 3], [6, 1], [6, 3]]


@pytest.mark.parametrize("tool", ["polygons", "labelme", "rois", "coco"])
def test_predictions_are_the_masks_to_train_on_again(tmp_path, trained_run, tool):
    if tool == "rois":
        pytest.importorskip("roifile", reason="the extra rois isn't installed")
    if tool == "coco":
        pytest.importorskip("pycocotools", reason="the extra coco isn't installed")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = np.kron(rng.integers(0, 255, (8, 10)), np.ones((6, 6))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{name}.png")
    words = [f"run={trained_run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "threshold=0.5"]  # fmt: skip
    written = predict_files(config("predict", *words, f"save=[masks,{tool}]"))
    assert written and all(file.is_file() for file in written)
    if tool == "coco":
        (tmp_path / "in/c.png").rename(tmp_path / "in/d.png")  # another image, and the same output
        predict_files(config("predict", *words, f"save=[masks,{tool}]"))
        (tmp_path / "in/d.png").rename(tmp_path / "in/c.png")
        file = tmp_path / "out/coco/instances.json"
        content = json.loads(file.read_text())
        assert [row["file_name"] for row in content["images"]] == [
            "a.png",
            "b.png",
            "c.png",
            "d.png",
        ]
        assert os.listdir(file.parent) == [file.name]
        content["images"].pop()
        file.write_text(json.dumps(content | {"annotations": [row for row in content["annotations"] if row["image_id"] < 4]}))  # fmt: skip
        source = Coco(str(tmp_path / "in"), str(file))
    else:
        source = Annotations(str(tmp_path / "in"), annotations=str(tmp_path / "out" / tool))
    for name in (name for names in source.splits.values() for name in names):
        with Image.open(tmp_path / f"out/masks/{name}.png") as mask:
            np.testing.assert_array_equal(source.read(name)[1], np.asarray(mask))
