"""Annotation tools: each tool's file is written by hand, and its mask compared with one drawn by hand."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_files import (
    SIZE,
    SMALL,
    WITHOUT_CLASSES,
    WRITERS,
    box,
    expected_mask,
    folder_of,
    write_images,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from seg.cli.compose import compose_checked
from seg.data.datasets.annotations import TOOL_TITLES, Annotations
from seg.data.datasets.folder import Folder
from seg.data.datasets.outlines import Outline, draw_outline
from seg.errors import DataError
from seg.training.run import train


def test_every_tool_has_a_test():
    assert set(WRITERS) == set(TOOL_TITLES)


@pytest.mark.parametrize("tool", WRITERS)
def test_the_mask_is_that_drawn_by_hand(tmp_path, tool):
    source = Annotations(str(folder_of(tool, tmp_path)), tool)
    wanted = expected_mask()
    if tool in WITHOUT_CLASSES:
        wanted = wanted.clip(max=1)
    names = ["object"] if tool in WITHOUT_CLASSES else ["gland", "nucleus"]
    assert source.classes == ["background", *names]
    assert len(source.splits["train"]) == 3 and len(source.splits["val"]) == 1
    for names in source.splits.values():
        for name in names:
            np.testing.assert_array_equal(source.read(name)[1], wanted)
    first = source.splits["train"][0]
    assert Annotations(str(tmp_path)).stamp(first) == source.stamp(first)  # found without its name


@pytest.mark.parametrize("tool", WRITERS)
def test_a_step_is_trained(tmp_path, tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tool, tmp_path / "data")
    small = ["trainer=smoke", "logger=none", "model.width=2", "model.depth=2", "loader.crop=16", "panels=0"]  # fmt: skip
    train(compose_checked("train", [f"data={tool}", "data.root=data", *small]))


@pytest.mark.parametrize("tool", WRITERS)
def test_the_tool_is_named_where_masks_are_missing(tmp_path, tool):
    folder_of(tool, tmp_path)
    with pytest.raises(DataError, match=rf"holds no masks/, but .*: data={tool} data.root={tmp_path}$"):  # fmt: skip
        Folder(str(tmp_path), ["background", "gland"])


def test_coco_is_named_with_its_file_and_other_folders_are_as_before(tmp_path):
    write_images(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"no folder images in it; it holds .* and broken\.json"):
        Folder(str(tmp_path), ["background", "gland"])
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))  # fmt: skip
    with pytest.raises(DataError, match=r"COCO annotations.*data=coco .* data.annotations=.*c.json"):  # fmt: skip
        Folder(str(tmp_path), ["background", "gland"])


# Classes, ignored labels, overlaps


def test_options_of_classes(tmp_path):
    root = str(folder_of("qupath", tmp_path))
    wanted = expected_mask()
    two = Annotations(root, classes=["rest", "nucleus"], task="instances").read("a")[1]
    np.testing.assert_array_equal(two, wanted == 2)
    first = Annotations(root, classes=["gland", "nucleus"]).read("a")[1]
    np.testing.assert_array_equal(first, np.select([wanted == 1, wanted == 2], [0, 1], 255))
    ignored = Annotations(root, ignore=["gland"])
    assert ignored.classes == ["background", "nucleus"]
    np.testing.assert_array_equal(ignored.read("a")[1], np.select([wanted == 1, wanted == 2], [255, 1], 0))  # fmt: skip
    planes = Annotations(root, task="overlapping").read("a")[1]
    np.testing.assert_array_equal(planes[..., 1], wanted == 2)
    assert planes[5, 6].tolist() == [1, 1] and planes.shape == (*SIZE, 2)


def test_images_without_annotations_are_left_out_or_background(tmp_path, caplog):
    root = folder_of("labelme", tmp_path)
    (root / "b.json").unlink()
    source = Annotations(str(root))
    assert sorted(name for names in source.splits.values() for name in names) == ["a", "c", "d"]
    assert "1 of 4 images have no annotations and are left out, ['b.png']" in caplog.text
    assert "left out, since they have no area: 3 point" in caplog.text
    assert not Annotations(str(root), unannotated="background").read("b")[1].any()


def test_folders_called_train_and_valid_are_the_splits(tmp_path):
    for part in ("train", "valid"):
        write_images(tmp_path / part, ("a", "b"))
        for name in "ab":
            content = {"shapes": [{"label": "x", "points": SMALL, "shape_type": "polygon"}], "imagePath": f"{name}.png"}  # fmt: skip
            (tmp_path / part / f"{name}.json").write_text(json.dumps(content))
    source = Annotations(str(tmp_path))
    assert source.splits == {"train": ["train/a", "train/b"], "val": ["valid/a", "valid/b"]}


# Drawing


RINGS = st.lists(
    st.tuples(st.floats(-8, 40, allow_nan=False, width=32), st.floats(-8, 40, allow_nan=False, width=32)),
    min_size=3, max_size=8,
)  # fmt: skip


@given(RINGS)
@settings(deadline=None, max_examples=200)
def test_any_polygon_is_drawn_as_by_scikit_image(points):
    ring = np.array(points, np.float64)
    ring += 0.1 * np.sin(np.arange(1, ring.size + 1)).reshape(ring.shape)  # off the centres
    drawn = draw_outline(Outline(1, "x", [[ring]]), 20, 30, False)
    mask = np.zeros((20, 30), bool)
    mask[drawn.rows, drawn.columns] = drawn.inside
    other = polygon2mask((20, 30), ring[:, ::-1] - 0.5)
    np.testing.assert_array_equal(mask, other)


def test_squares_side_by_side_share_no_pixel_and_leave_none_out():
    count = np.zeros((20, 30), int)
    for x in range(0, 30, 3):
        ring = np.array(box(x + 0.5, 0, x + 3.5, 20))  # edges through centres
        drawn = draw_outline(Outline(1, "x", [[ring]]), 20, 30, False)
        count[drawn.rows, drawn.columns] += drawn.inside
    assert (count[:, 1:] == 1).all()


# What is refused


def spoil(folder: Path, change: Any) -> None:
    content = json.loads((folder / "a.json").read_text())
    change(content)
    (folder / "a.json").write_text(json.dumps(content))


WRONG = [
    (lambda c: c["shapes"][0].update(points=[[1, 2], [3, 4]]), r"a.json: object 1: an outline of 2 points"),
    (lambda c: c["shapes"][0].update(points="abc"), r"object 1: its points are not pairs of numbers"),
    (lambda c: c["shapes"][0].update(points=[[1, 1e12]] * 3), r"not a finite number of pixels"),
    (lambda c: c["shapes"][0].update(label=3), r"object 1: its label is 3; a text is needed"),
    (lambda c: c["shapes"][0].pop("points"), r"object 1: no 'points'; correct it in the tool or remove it"),
    (lambda c: c["shapes"][2].update(mask="AAAA"), r"object 3: its bitmap is no PNG"),
    (lambda c: c["shapes"][0].update(shape_type="cube"), r"shape_type 'cube' is not read"),
    (lambda c: c.update(shapes={}), r"a.json: no list of objects in it"),
    (lambda c: c["shapes"][2].update(points=3), r"object 3: not as the tool writes it"),
    (lambda c: c.update(imageWidth=31), r"a.json: 20x31 px, and its image .*a.png 20x30 "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_malformed_object_is_named_with_its_file(tmp_path, change, message):
    folder_of("labelme", tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(DataError, match=message):
        Annotations(str(tmp_path)).read("a")


def test_an_image_outside_of_the_root_is_never_read(tmp_path):
    folder_of("labelme", tmp_path / "data")
    write_images(tmp_path, ("z",))
    spoil(tmp_path / "data", lambda c: c.update(imagePath="../z.png"))
    assert Annotations(str(tmp_path / "data")).image_file("a") == tmp_path / "data/a.png"
    (tmp_path / "data/a.png").unlink()
    with pytest.raises(DataError, match=r"a.json: its image z.png is not in .*; add it"):
        Annotations(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, r"data.root is not set"),
        ({"root": "nowhere"}, r"data.root=nowhere: no such folder"),
        ({"annotations": "nowhere"}, r"data.annotations=nowhere: no such file or folder"),
        ({"tool": "paint"}, r"data.tool=paint: null or one of labelme"),
        ({"tool": "qupath"}, r"no QuPath GeoJSON found here; give data.annotations"),
        ({"ignore": ["x"]}, r"data.ignore=\['x'\]: no label 'x' in .*; it has \['gland', 'nucleus'\]"),
        ({"classes": ["rest", "x"]}, r"no category 'x'; it has"),
        ({"val": 0.1, "lists": "x"}, r"data.val=0.1 beside data.lists"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(tmp_path, options, message):
    folder_of("labelme", tmp_path)
    with pytest.raises(DataError, match=message):
        Annotations(**({"root": str(tmp_path)} | options))


OTHERS = [
    ("yolo", "labels/a.txt", "0 0.5 0.5 0.2 0.2\n", r"a.txt: object 1: a box of YOLO detection"),
    ("yolo", "labels/a.txt", "7 0 0 1 0 1 1\n", r"a.txt: object 1: the line begins with 7; the index of a class of 2"),
    ("yolo", "labels/a.txt", "0 0 0 90 0 90 90\n", r"coordinates beyond the image"),
    ("yolo", "labels/a.txt", "0 0 0 x 0 1 1\n", r"a coordinate is not a number"),
    ("yolo", "data.yaml", "names: {a: b}\n", r"data.yaml: names=\{'a': 'b'\}; a text for each index is needed"),
    ("cvat", "annotations.xml", "<a", r"annotations.xml: not XML"),
    ("cvat", "annotations.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations><version>&b;</version></annotations>', r"declares a document type"),
    ("cvat", "annotations.xml", "<annotations><version>1.1</version><track/></annotations>", r"tracks of a video"),
    ("cvat", "annotations.xml", '<annotations><version>1</version><image name="a.png"><mask label="x" top="0" left="0" width="9" height="9" rle="3, 4"/></image></annotations>', r"its run lengths do not cover its 9x9 px"),
    ("via", "via_project.json", '{"a": {"filename": "a.png", "regions": [{"shape_attributes": {"name": "rect"}, "region_attributes": {"x": "1", "y": "2"}}]}}', r"regions have the attributes x, y; call the one"),
    ("qupath", "a.geojson", '{"type": "FeatureCollection", "features": [{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5]]]}}]}', r"a.geojson: object 1: its points are not pairs"),
    ("supervisely", "set/ann/a.png.json", '{"size": {}, "objects": [{"geometryType": "bitmap", "classTitle": "x", "bitmap": {"data": "eJw=", "origin": [0, 0]}}]}', r"object 1: its bitmap is no PNG"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "file", "text", "message"), OTHERS, ids=[m[:40] for *_, m in OTHERS]
)
def test_a_malformed_file_of_each_tool_is_named(tmp_path, tool, file, text, message):
    folder_of(tool, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        Annotations(str(tmp_path), tool)


class Harmful:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_file_of_cellpose_runs_no_code(tmp_path):
    folder_of("cellpose", tmp_path)
    content = {"masks": np.zeros(SIZE, np.uint16), "x": Harmful(tmp_path / "made")}
    np.save(tmp_path / "a_seg.npy", np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a_seg.npy: .*mkdir, which could run code\); in Cellpose, save"):  # fmt: skip
        Annotations(str(tmp_path))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"outlines": 1}, r"no masks of Cellpose in it \('masks'\)"),
        ({"masks": np.zeros((2, 3, 4), int)}, r"not one plane of numbers"),
        ({"masks": np.full(SIZE, -1)}, r"numbered -1 to -1"),
        ({"masks": np.zeros((3, 3), int)}, r"3x3 px, and its image"),
    ],
)
def test_a_malformed_file_of_cellpose_is_named(tmp_path, content, message):
    folder_of("cellpose", tmp_path)
    np.save(tmp_path / "a_seg.npy", np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=message):
        Annotations(str(tmp_path)).read("a")


def test_the_missing_extra_of_imagej_is_named(tmp_path, monkeypatch):
    write_images(tmp_path)
    (tmp_path / "a.roi").write_bytes(b"Iout")
    monkeypatch.setattr("seg.errors.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"a.roi: ImageJ's ROIs; reading them needs the extra rois: pip install 'seg\[rois\]'"):  # fmt: skip
        Annotations(str(tmp_path), "imagej")


@pytest.mark.parametrize("content", [b"", b"Iout", b"Iout" + bytes(60), b"PK\3\4"])
def test_a_malformed_roi_is_named(tmp_path, content):
    folder_of("imagej", tmp_path)
    (tmp_path / "a_RoiSet.zip").unlink()
    (tmp_path / "a.roi").write_bytes(content)
    with pytest.raises(DataError, match=r"a.roi: object 1: "):
        Annotations(str(tmp_path), "imagej")
