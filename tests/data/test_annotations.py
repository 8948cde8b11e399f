"""Annotation tools: each tool's file is written by hand, and its mask compared with one drawn by hand."""

import base64
import json
import os
import zlib
from importlib import import_module
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
    brush_rle,
    expected_mask,
    folder_of,
    write_images,
)
from cases import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from seg.cli.compose import compose_checked
from seg.data.datasets.annotations import TOOL_TITLES, Annotations
from seg.data.datasets.folder import Folder
from seg.data.datasets.outlines import Outline, draw_outline
from seg.data.datasets.tools import labelstudio
from seg.data.datasets.tools.detection import detect_tool
from seg.errors import DataError
from seg.training.run import train


def test_every_tool_has_a_test():
    assert {name.split()[0] for name in WRITERS} == set(TOOL_TITLES)


@pytest.mark.parametrize("tool", WRITERS)
def test_the_mask_is_that_drawn_by_hand(tmp_path, tool):
    source = Annotations(str(folder_of(tool, tmp_path)), tool.split()[0])
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


# One tool with classes, one without; the other files are read as the same masks.
@pytest.mark.parametrize("tool", slow_but(WRITERS, "labelme", "cellpose"))
def test_a_step_is_trained(tmp_path, tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tool, tmp_path / "data")
    small = ["trainer=smoke", "logger=none", "model.width=2", "model.depth=2", "loader.crop=16", "panels=0"]  # fmt: skip
    train(compose_checked("train", [f"data={tool.split()[0]}", "data.root=data", *small]))


@pytest.mark.parametrize("tool", WRITERS)
def test_the_tool_is_named_where_masks_are_missing(tmp_path, tool):
    folder_of(tool, tmp_path)
    with pytest.raises(DataError, match=rf"holds no masks/, but .*: python -m seg.check data={tool.split()[0]} data.root={tmp_path}$"):  # fmt: skip
        Folder(str(tmp_path), ["background", "gland"])


def test_coco_is_named_with_its_file_and_other_folders_are_as_before(tmp_path):
    write_images(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"no folder images in it; it holds .* and broken\.json"):
        Folder(str(tmp_path), ["background", "gland"])
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))  # fmt: skip
    with pytest.raises(DataError, match=r"COCO annotations.*data=coco .* data.annotations=.*c.json"):  # fmt: skip
        Folder(str(tmp_path), ["background", "gland"])


COCO_SPLITS = [
    ({"_annotations.coco.json": ""}, "data.annotations={root}/_annotations.coco.json"),
    (
        {"train/_annotations.coco.json": "", "valid/_annotations.coco.json": ""},
        "'data.annotations={{train:{root}/train/_annotations.coco.json,val:{root}/valid/_annotations.coco.json}}'",
    ),
]


@pytest.mark.parametrize(("names", "options"), COCO_SPLITS)
def test_the_command_for_coco_names_its_files(tmp_path, names, options):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"images": [], "annotations": [], "categories": []}')
    found = detect_tool(tmp_path)
    assert found and found.title == "COCO"
    wanted = options.format(root=tmp_path)
    assert found.command == f"python -m seg.check data=coco data.root={tmp_path} {wanted}"


def test_the_folders_of_pascal_voc_and_a_png_export_are_named(tmp_path):
    (tmp_path / "a/SegmentationClass").mkdir(parents=True)
    (tmp_path / "a/JPEGImages").mkdir()
    assert (found := detect_tool(tmp_path / "a")) and "data=voc" in found.command
    write_images(tmp_path / "b")
    (tmp_path / "b/a.png").rename(tmp_path / "b/task-1-annotation-2-by-1-tag-gland-0.png")
    assert (found := detect_tool(tmp_path / "b")) and "data=labelstudio" in found.command
    with pytest.raises(DataError, match=r"task-1.*: Label Studio's export PNG, .*; export JSON too"):  # fmt: skip
        Annotations(str(tmp_path / "b"), "labelstudio")


# Files of others, and broken ones


STRANGERS = {
    "notes.json": "{", "more/package.json": "\xff", "broken.xml": "<a", "broken.zip": "PK", "latin.txt": "\xff", "conf.yaml": "a: [",
}  # fmt: skip


@pytest.mark.parametrize("tool", WRITERS)
def test_broken_files_of_others_are_passed_over(tmp_path, tool, caplog):
    folder_of(tool, tmp_path)
    (tmp_path / "more").mkdir()
    for name, text in STRANGERS.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    source = Annotations(str(tmp_path), tool.split()[0])
    assert len(source.entries) == 4
    looked_at = {"yolo": "conf.yaml", "cvat": "broken.xml", "imagej": "broken.zip", "cellpose": ""}
    name = looked_at.get(tool.split()[0], "notes.json")
    assert not name or (f"{name}: " in caplog.text and "; passed over" in caplog.text)
    assert f"data={tool.split()[0]} " in (detect_tool(tmp_path) or [""])[2]


BROKEN = [
    ("labelme", "a.json", "{"),  # beside its image
    ("labelme", "x.json", '{"shapes": ['),  # by its content
    ("qupath", "x.json", '{"type": "FeatureCollection", '),
    ("via", "x.json", '{"_via_settings": {'),
    ("supervisely", "set/ann/a.png.json", "{"),
    ("supervisely", "x.json", '{"geometryType": '),
    ("labelstudio", "x.json", '[{"annotations": [{"completed_by": 1, '),
    ("cvat", "x.xml", "<annotations><version>1.1</version>"),
    ("imagej", "a.zip", "PK"),
]


@pytest.mark.parametrize(("tool", "file", "text"), BROKEN)
def test_a_broken_file_of_the_tool_is_an_error(tmp_path, tool, file, text):
    folder_of(tool, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=rf"{file}: (not JSON|not XML|can't be read)"):
        Annotations(str(tmp_path), tool)


# Examples of the tools' own documentation and sources


def outlines_of(tool: str, file: Path, text: str) -> list[Outline]:
    file.write_text(text)
    module = import_module(f"seg.data.datasets.tools.{tool}")
    (image,) = module.read_annotations(file).images
    return image.outlines


def test_primitives_of_labelme(tmp_path):
    """examples/primitives/primitives.json, and the oriented rectangle of 5.5."""
    shapes = [
        {"label": "rectangle", "points": [[32.0, 35.0], [132.0, 135.0]], "group_id": None, "shape_type": "rectangle", "flags": {}},
        {"label": "circle", "points": [[195.0, 84.0], [225.0, 125.0]], "group_id": None, "shape_type": "circle", "flags": {}},
        {"label": "polygon", "points": [[69.0, 318.0], [45.0, 403.0], [173.0, 406.0], [198.0, 321.0]], "shape_type": "polygon"},
        {"label": "line", "points": [[188.0, 178.0], [160.0, 224.0]], "group_id": None, "shape_type": "line", "flags": {}},
        {"label": "turned", "points": [[0, 2], [2, 0], [6, 4], [4, 6]], "shape_type": "oriented_rectangle"},
    ]  # fmt: skip
    text = json.dumps({"version": "4.0.0", "shapes": shapes, "imagePath": "primitives.jpg", "imageHeight": 450, "imageWidth": 560})  # fmt: skip
    rectangle, circle, polygon, turned = outlines_of("labelme", tmp_path / "primitives.json", text)
    areas = [int(draw_outline(one, 450, 560, False).inside.sum()) for one in (rectangle, circle, polygon, turned)]  # fmt: skip
    assert areas[0] == 100 * 100
    assert areas[1] == pytest.approx(np.pi * (30**2 + 41**2), rel=1e-3)  # a point on the circle
    assert areas[3] == 16
    mask = polygon2mask((450, 560), np.array(shapes[2]["points"])[:, ::-1] - 0.5)
    assert areas[2] == pytest.approx(int(mask.sum()), rel=2e-3)


def test_a_derived_class_of_qupath_has_all_its_names(tmp_path):
    feature = {
        "type": "Feature", "id": "a5a3e6a1", "geometry": {"type": "Polygon", "coordinates": [[[1, 1], [4, 1], [4, 4], [1, 1]]]},
        "properties": {"objectType": "detection", "classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]}},
    }  # fmt: skip
    assert outlines_of("qupath", tmp_path / "a.geojson", json.dumps(feature))[0].label == "Tumor: Positive"  # fmt: skip


def test_the_angle_of_an_ellipse_of_via_is_in_radians(tmp_path):
    shape = {"name": "ellipse", "cx": 50, "cy": 50, "rx": 30, "ry": 5, "theta": 1.571}
    image = {"filename": "a.png", "size": 1, "regions": [{"shape_attributes": shape, "region_attributes": {}}]}  # fmt: skip
    (one,) = outlines_of("via", tmp_path / "via.json", json.dumps({"a.png1": image}))
    drawn = draw_outline(one, 100, 100, False)
    assert drawn.inside.shape[0] >= 60 and drawn.inside.shape[1] <= 12  # upright


def test_bitmaps_of_supervisely(tmp_path):
    """The compressed string of the docstring of supervisely.Bitmap: a ring of 3x3 px; not compressed, too."""
    text = "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTMSa44sKHhISMDuxpTYrr03F6gDIOnq5/LOqeEJgDM5ht6"  # fmt: skip
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    for data in (text, base64.b64encode(zlib.decompress(base64.b64decode(text))).decode()):
        row = {"geometryType": "bitmap", "classTitle": "x", "bitmap": {"data": data, "origin": [535, 66]}}  # fmt: skip
        content = {"description": "", "size": {"height": 952, "width": 1200}, "objects": [row]}
        (one,) = outlines_of("supervisely", tmp_path / "a.json", json.dumps(content))
        drawn = draw_outline(one, 952, 1200, False)
        assert (drawn.rows.start, drawn.columns.start) == (66, 535)
        np.testing.assert_array_equal(drawn.inside, ring)


def test_lines_of_yolo(tmp_path):
    """The example of docs.ultralytics.com/datasets/segment."""
    text = "0 0.681 0.485 0.670 0.487 0.676 0.487\n1 0.504 0.000 0.501 0.004 0.498 0.004 0.493 0.010 0.492 0.0104\n"  # fmt: skip
    first, second = outlines_of("yolo", tmp_path / "a.txt", text)
    assert len(first.polygons[0][0]) == 3 and len(second.polygons[0][0]) == 5
    assert (first.label, second.label) == ("class 0", "class 1")


def test_run_lengths_of_label_studio():
    """The example of the converter's tests, and a mask of runs and single values."""
    bits = [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]
    wanted = [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4]
    assert labelstudio.decode_rle(bits).tolist() == wanted
    mask = np.arange(35).reshape(5, 7) % 3 == 0
    np.testing.assert_array_equal(labelstudio.decode_brush(brush_rle(mask), 5, 7), mask)


def test_a_task_of_label_studio(tmp_path):
    """A polygon of the converter's tests: percent of the image, its name in file_upload, a choice beside it."""
    points = [[60, 19.55922865013774], [61.10091743119266, 15.151515151515152], [63.30275229357798, 14.876037504577349]]  # fmt: skip
    result = [
        {"id": "djbpw94CXj", "type": "polygonlabels", "value": {"points": points, "polygonlabels": ["Airplane"]}, "origin": "manual",
         "to_name": "image", "from_name": "label", "image_rotation": 0, "original_width": 640, "original_height": 426},
        {"id": "djbpw94CXj", "type": "choices", "value": {"points": points, "choices": ["uncertain"]}, "from_name": "choices"},
    ]  # fmt: skip
    task = {"id": 68501, "annotations": [{"id": 211797, "completed_by": 1, "result": result, "was_cancelled": False}],
            "file_upload": "e97d4735-000000000025.jpg", "data": {"image": "/image2"}}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps([task]))
    (image,) = labelstudio.read_annotations(tmp_path).images
    assert image.image == "e97d4735-000000000025.jpg" and image.size == (426, 640)
    (one,) = image.outlines
    np.testing.assert_allclose(one.polygons[0][0][0], [384, 83.3223, ], atol=1e-3)  # fmt: skip
    # A rectangle turned by 90 degrees about its upper left corner lies on its left
    value = {"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 90, "rectanglelabels": ["Car"]}  # fmt: skip
    row = result[0] | {"type": "rectanglelabels", "value": value}
    drawn = draw_outline(labelstudio.build_outline(1, row), 426, 640, False)
    assert drawn.columns == slice(234, 320) and drawn.rows == slice(213, 277)


LABEL_STUDIO = [
    (lambda t: t["annotations"].append(t["annotations"][0]), r"task 0 has 2 annotations; mark one as ground truth"),
    (lambda t: t["annotations"][0]["result"][0].update(image_rotation=90), r"object 1: its image was turned by 90"),
    (lambda t: t["annotations"][0]["result"][2]["value"].update(rle=[0, 0, 9]), r"object 3: its rle is truncated"),
    (lambda t: t["annotations"][0]["result"][0].pop("original_width"), r"object 1: no original_width and"),
    (lambda t: t["annotations"][0]["result"][0]["value"].update(polygonlabels=["a", "b"]), r"it has the labels \['a', 'b'\]; one is"),
    (lambda t: t.update(data={}, file_upload=None), r"task 0 names no image"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), LABEL_STUDIO, ids=[m[:40] for _, m in LABEL_STUDIO])
def test_a_malformed_task_of_label_studio_is_named(tmp_path, change, message):
    folder_of("labelstudio", tmp_path)
    (file,) = tmp_path.glob("*.json")
    tasks = json.loads(file.read_text())
    change(tasks[0])
    file.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=rf"{file.name}: .*{message}"):
        Annotations(str(tmp_path), "labelstudio")


def test_the_short_export_of_label_studio_is_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / "p.json").write_text(json.dumps([{"image": "a.png", "annotator": 1, "annotation_id": 2}]))  # fmt: skip
    with pytest.raises(DataError, match=r"p.json: Label Studio's export JSON-MIN; export JSON"):
        Annotations(str(tmp_path), "labelstudio")


def test_masks_of_cvat_of_one_channel_are_places_in_the_label_map(tmp_path):
    """The label map of docs.cvat.ai, whose background is not black."""
    lines = ["# label : color (RGB) : 'body' parts : actions", "background:0,128,0::", "aeroplane:10,10,128::", "bicycle:10,128,0::"]  # fmt: skip
    folder_of("cvat masks", tmp_path)
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    mask = expected_mask()
    Image.fromarray(mask).save(tmp_path / "SegmentationClass/a.png")
    colours = np.array([[0, 128, 0], [10, 10, 128], [10, 128, 0]], np.uint8)
    Image.fromarray(colours[mask]).save(tmp_path / "SegmentationClass/b.png")
    source = Annotations(str(tmp_path))
    assert source.classes == ["background", "aeroplane", "bicycle"]
    for name in "abc":
        np.testing.assert_array_equal(source.read(f"JPEGImages/{name}")[1], mask)


WRONG_MASKS = [
    ("gland:10,10::\n", r"labelmap.txt: line 1: gland:10,10::; label:red,green,blue:: is needed"),
    ("a:1,2,3::\nb:1,2,3::\n", r"labelmap.txt: line 2: .*; its label or colour occurs twice"),
    (
        "gland:10,10,128::\n",
        r"a.png: 37 pixels of \[10, 128, 0\], which labelmap.txt does not name",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG_MASKS)
def test_a_malformed_label_map_of_cvat_is_named(tmp_path, text, message):
    folder_of("cvat masks", tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        Annotations(str(tmp_path))


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
    with pytest.raises(DataError, match=r"a.roi: ImageJ's ROIs; reading them needs the extra rois: pip install 'seg-experiments\[rois\]'"):  # fmt: skip
        Annotations(str(tmp_path), "imagej")


@pytest.mark.parametrize("content", [b"", b"Iout", b"Iout" + bytes(60), b"PK\3\4"])
def test_a_malformed_roi_is_named(tmp_path, content):
    folder_of("imagej", tmp_path)
    (tmp_path / "a_RoiSet.zip").unlink()
    (tmp_path / "a.roi").write_bytes(content)
    with pytest.raises(DataError, match=r"a.roi: object 1: "):
        Annotations(str(tmp_path), "imagej")
