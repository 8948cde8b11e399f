"""COCO's JSON: what is drawn of it, against hand-drawn masks and pycocotools itself, and what is refused."""

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from coco_files import SIZE, box, coco_of, coco_root, compressed, counted, made, rectangle, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from seg.cli.compose import compose_checked
from seg.commands.evaluate import evaluate
from seg.data.datasets.coco import Coco
from seg.data.datasets.coco_json import (
    compute_run_lengths,
    decode_counts,
    fill_runs,
    pack_numbers,
    pack_object,
)
from seg.errors import DataError, UserError, missing_extra_hint
from seg.training.run import train

pytestmark = [
    pytest.mark.skipif(find_spec("pycocotools") is None, reason="the extra coco isn't installed"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation"
    ),  # pycocotools' decode with numpy 2
]


# What is drawn


def test_a_rectangle_is_drawn_to_the_pixel(tmp_path):
    source = made(tmp_path, {"a.png": [(3, box(4, 5, 11, 9))]})
    assert source.classes == ["background", "cell", "nucleus"]  # in the order of the ids
    image, mask = source.read("a")
    assert image.shape == (*SIZE, 1) and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, rectangle(4, 5, 11, 9))


@pytest.mark.parametrize("stored", [True, False])
def test_outlines_turn_with_an_image_whose_stored_pixels_were_annotated(tmp_path, stored):
    drawn = rectangle(4, 5, 11, 9)
    source = made(tmp_path, {"a.png": [(3, counted(drawn))]})
    exif = Image.Exif()
    exif[274] = 6  # turned clockwise as one sees it
    pixels = drawn if stored else np.rot90(drawn)
    Image.fromarray(np.ascontiguousarray(pixels) * 200).save(tmp_path / "a.png", exif=exif)
    image, mask = source.read("a")
    assert mask.any()
    np.testing.assert_array_equal(image[..., 0], mask * 200)


def test_parts_of_one_object_and_a_concave_polygon_are_filled(tmp_path):
    ell = [[2, 2, 12, 2, 12, 6, 6, 6, 6, 14, 2, 14]]
    parts = box(15, 1, 18, 4) + box(20, 10, 29, 19)
    source = made(tmp_path, {"a.png": [(3, ell), (7, parts)]})
    wanted = rectangle(2, 2, 12, 6) | rectangle(2, 2, 6, 14)
    wanted += 2 * (rectangle(15, 1, 18, 4) | rectangle(20, 10, 29, 19))
    np.testing.assert_array_equal(source.read("a")[1], wanted)


def test_a_polygon_that_reaches_out_is_cut_at_the_border(tmp_path):
    source = made(tmp_path, {"a.png": [(3, box(-4, -3, 40, 30))]})
    assert (source.read("a")[1] == 1).all()


def test_run_lengths_in_a_list_and_a_polygon_that_is_in_none(tmp_path):
    first, second = rectangle(4, 5, 11, 9), rectangle(8, 6, 20, 18)
    whole = [counted(first), compressed(second), *box(1, 1, 3, 3)]
    source = made(tmp_path, {"a.png": [(3, whole)], "b.png": [(7, box(4, 5, 11, 9)[0])]})
    np.testing.assert_array_equal(source.read("a")[1], first | second | rectangle(1, 1, 3, 3))
    np.testing.assert_array_equal(source.read("b")[1], 2 * first)


def test_crowds_alone_are_objects(tmp_path, caplog):
    caplog.set_level("INFO", "seg")
    shapes = {"a.png": [(3, counted(rectangle(4, 5, 11, 9)), True)]}
    source = made(tmp_path, shapes)
    np.testing.assert_array_equal(source.read("a")[1], rectangle(4, 5, 11, 9))
    assert "coco.json: all 1 annotations are crowds (iscrowd=1) and taken as objects; data.crowd=ignore" in caplog.text  # fmt: skip
    assert (made(tmp_path, shapes, crowd="ignore").read("a")[1][5:9, 4:11] == 255).all()
    mixed = {"a.png": [*shapes["a.png"], (7, box(20, 1, 22, 3))]}
    assert (made(tmp_path, mixed).read("a")[1][5:9, 4:11] == 255).all()


def test_an_export_of_roboflow(tmp_path, caplog):
    """Categories from 0, of which the first only groups the others; images beside each split's file."""
    caplog.set_level("INFO", "seg")
    files = {}
    for split, folder in (("train", "train"), ("val", "valid")):
        (tmp_path / folder).mkdir()
        content = coco_of({f"{split}_jpg.rf.1.png": [(1, box(4, 5, 11, 9))]})
        names = [(0, "Workers", "none"), (1, "head", "Workers"), (2, "helmet", "Workers")]
        content["categories"] = [{"id": i, "name": n, "supercategory": s} for i, n, s in names]
        files[split] = str(written(tmp_path / folder, content, "_annotations.coco.json"))
    source = Coco(str(tmp_path), files)
    assert source.classes == ["background", "head", "helmet"]
    assert "the category Workers groups others and has no annotation" in caplog.text
    assert source.splits["val"] == ["valid/val_jpg.rf.1"]
    np.testing.assert_array_equal(source.read("valid/val_jpg.rf.1")[1], rectangle(4, 5, 11, 9))
    named = Coco(str(tmp_path), files, classes=["rest", "Workers", "head"])
    assert named.classes == ["rest", "Workers", "head"]


@pytest.mark.parametrize(
    "name",
    ["images\\0a1b2c3d-a.png", "images/a.png", "/data/upload/1/0a1b2c3d-a.png", "../../media/a.png", "https://x.org/u/a.png"],
)  # fmt: skip
def test_an_export_of_label_studio(tmp_path, name):
    """Paths of another machine, and the prefix of an upload; categories without a supercategory, from 0."""
    content = coco_of({"pictures/a.png": [(0, box(4, 5, 11, 9))], "pictures/b.png": []})
    content["categories"] = [{"id": 0, "name": "cell"}]
    written(tmp_path, content)
    content["images"][0]["file_name"] = name
    source = Coco(str(tmp_path), str(written(tmp_path, content, "result.json", draw=False)))
    assert source.classes == ["background", "cell"]
    np.testing.assert_array_equal(source.read("pictures/a")[1], rectangle(4, 5, 11, 9))


def test_an_image_without_annotations_is_all_background(tmp_path):
    assert not made(tmp_path, {"a.png": [(3, box(4, 5, 11, 9))]}).read("empty")[1].any()


@pytest.mark.parametrize("turned", [False, True])
def test_the_smaller_of_two_lies_on_top_in_whatever_order(tmp_path, turned):
    shapes = [(7, box(2, 2, 8, 8)), (3, box(1, 1, 20, 15))]
    _, mask = made(tmp_path, {"a.png": shapes[::-1] if turned else shapes}).read("a")
    np.testing.assert_array_equal(mask, rectangle(1, 1, 20, 15) + rectangle(2, 2, 8, 8))


def test_of_two_of_one_size_the_later_lies_on_top(tmp_path):
    _, mask = made(tmp_path, {"a.png": [(7, box(2, 2, 8, 8)), (3, box(5, 2, 11, 8))]}).read("a")
    assert mask[4, 6] == 1 and mask[4, 3] == 2


@pytest.mark.parametrize(
    ("crowd", "values"), [("ignore", (255, 1)), ("object", (2, 2)), ("skip", (0, 1))]
)
def test_crowds_are_ignored_or_objects_or_skipped(tmp_path, crowd, values):
    shapes = [(3, box(1, 1, 12, 12)), (7, counted(rectangle(10, 5, 20, 10)), True)]
    source = made(tmp_path, {"a.png": shapes}, crowd=crowd)
    _, mask = source.read("a")
    assert (mask[7, 18], mask[7, 11]) == values  # the crowd alone; where an object lies in it
    assert source.class_presence("a").tolist() == [True, True, crowd == "object"]


def test_overlapping_gives_a_plane_for_each_category(tmp_path):
    shapes = [(7, box(2, 2, 8, 8)), (3, box(1, 1, 20, 15)), (3, box(18, 1, 25, 5), True)]
    source = made(tmp_path, {"a.png": shapes}, task="overlapping")
    assert source.classes == ["cell", "nucleus"] and len(source.colors) == 2
    _, mask = source.read("a")
    crowd = rectangle(18, 1, 25, 5).astype(bool) & ~rectangle(1, 1, 20, 15).astype(bool)
    np.testing.assert_array_equal(mask[..., 0], np.where(crowd, 255, rectangle(1, 1, 20, 15)))
    np.testing.assert_array_equal(mask[..., 1], rectangle(2, 2, 8, 8))
    assert source.class_presence("empty").tolist() == [False, False]


def test_classes_choose_categories_and_their_order(tmp_path):
    shapes = {"a.png": [(3, box(1, 1, 20, 15)), (7, box(2, 2, 8, 8))]}
    source = made(tmp_path, shapes, classes=["rest", "nucleus"], task="instances")
    np.testing.assert_array_equal(source.read("a")[1], rectangle(2, 2, 8, 8))
    turned = made(tmp_path, shapes, classes=["rest", "nucleus", "cell"])
    np.testing.assert_array_equal(
        turned.read("a")[1], 2 * rectangle(1, 1, 20, 15) - rectangle(2, 2, 8, 8)
    )


def test_where_the_first_class_is_a_category_the_rest_is_ignored(tmp_path):
    shapes = {"a.png": [(3, box(1, 1, 20, 15)), (7, box(2, 2, 8, 8))]}
    source = made(tmp_path, shapes, classes=["cell", "nucleus"])
    wanted = np.where(rectangle(1, 1, 20, 15), rectangle(2, 2, 8, 8), 255)
    np.testing.assert_array_equal(source.read("a")[1], wanted)
    assert source.class_presence("empty").tolist() == [False, False]


def test_ids_may_be_words_and_two_categories_of_one_name_are_one_class(tmp_path):
    content = coco_of({"a.png": [("y", box(1, 1, 5, 5)), ("x", box(7, 7, 9, 9))], "b.png": []})
    content["categories"] = [{"id": "x", "name": "cell"}, {"id": "y", "name": "cell"}]
    source = Coco(str(tmp_path), str(written(tmp_path, content)), task="instances")
    assert source.classes == ["background", "cell"]
    np.testing.assert_array_equal(
        source.read("a")[1], rectangle(1, 1, 5, 5) + rectangle(7, 7, 9, 9)
    )


# Run lengths


MASKS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1)
)


@given(MASKS)
@settings(deadline=None, max_examples=150)
def test_any_mask_survives_run_lengths_of_both_kinds(mask):
    from pycocotools.mask import decode

    for shape in (compressed(mask), counted(mask)):
        if isinstance(shape["counts"], str):
            assert decode_counts(shape["counts"]).tolist() == counted(mask)["counts"]
            np.testing.assert_array_equal(
                decode(shape | {"counts": shape["counts"].encode()}), mask
            )
        counts = compute_run_lengths(pack_object(shape), *mask.shape)
        np.testing.assert_array_equal(fill_runs(counts), mask.ravel("F"))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(deadline=None, max_examples=300)
def test_any_text_is_refused_or_counts_that_fill_the_image(text):
    try:
        counts = compute_run_lengths(pack_object({"counts": text, "size": [3, 4]}), 3, 4)
    except ValueError as error:
        assert "run lengths" in str(error)
    else:
        assert sum(counts) == 12 and fill_runs(counts).shape == (12,)


@given(st.lists(st.floats(-60, 90, width=32), min_size=6, max_size=14))
@settings(deadline=None, max_examples=200)
def test_any_polygon_is_drawn_or_refused(numbers):
    from pycocotools.mask import decode, frPyObjects

    try:
        counts = compute_run_lengths([pack_numbers("d", numbers)], *SIZE)
    except ValueError as error:
        assert "its polygon" in str(error)
    else:
        wanted = decode(frPyObjects([numbers], *SIZE))[..., 0]
        np.testing.assert_array_equal(fill_runs(counts), wanted.ravel("F"))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e300, 61, -31])
def test_a_point_far_outside_is_refused_before_it_is_drawn(wrong):
    """Pycocotools would take all memory for some of them."""
    assert compute_run_lengths([pack_numbers("d", [1, 2, 60, 4, 5, -30])], *SIZE)
    for polygon in ([1, 2, wrong, 4, 5, 9], [1, 2, 3, wrong, 5, 9]):
        with pytest.raises(ValueError, match="lies far outside the image of 20x30 px"):
            compute_run_lengths([pack_numbers("d", polygon)], *SIZE)


# Splits


def many(folder: Path, count: int = 10) -> str:
    """Images p0_0, p0_1, p1_2, ... of which every fifth has a nucleus."""
    shapes = {
        f"p{i // 2}_{i}.png": [(7, box(1, 1, 4, 4))] if i % 5 == 0 else [] for i in range(count)
    }
    return str(written(folder, coco_of(shapes)))


def test_one_file_is_split_by_share_fold_block_group_class_and_list(tmp_path):
    file, root = many(tmp_path), str(tmp_path)
    names = [f"p{i // 2}_{i}" for i in range(10)]
    shares = Coco(root, file, val=0.3, test=0.2, split_seed=1).splits
    assert {s: len(n) for s, n in shares.items()} == {"train": 5, "val": 3, "test": 2}
    folds = [Coco(root, file, fold=i).splits["val"] for i in range(5)]
    assert sorted(n for fold in folds for n in fold) == names
    assert Coco(root, file, contiguous=True).splits["val"] == names[8:]
    grouped = Coco(root, file, group_by=r"^(p\d)_", val=0.4).splits["val"]
    assert len(grouped) == 4 and len({n[:2] for n in grouped}) == 2
    stratified = Coco(root, file, stratify=True, fold=0, folds=2).splits
    assert [sum(int(n[3]) % 5 == 0 for n in part) for part in stratified.values()] == [1, 1]
    for split, part in (("train", ["p0_0", *names[2:]]), ("val", ["p0_1.png"])):
        (tmp_path / f"{split}.txt").write_text("\n".join(part))
    assert Coco(root, file, lists=root).splits["val"] == ["p0_1"]


def test_a_file_for_each_split_says_which_is_where(tmp_path):
    files = {}
    for split in ("val", "train", "test"):
        content = coco_of({f"{split}2017/1.png": [(3, box(1, 1, 5, 5))]})
        content["categories"].reverse()  # another order in each file, and other ids
        files[split] = str(written(tmp_path, content, f"{split}.json"))
    source = Coco(str(tmp_path), files)
    assert source.splits == {"train": ["train2017/1"], "val": ["val2017/1"], "test": ["test2017/1"]}
    with pytest.raises(
        DataError, match=r"data.fold=0 beside data.annotations of each split.*data.fold=null"
    ):
        Coco(str(tmp_path), files, fold=0)
    with pytest.raises(DataError, match=r"data.val=0.1 beside data.annotations of each split"):
        Coco(str(tmp_path), files, val=0.1)
    assert Coco(str(tmp_path), {"test": files["test"]}).splits == {"test": ["test2017/1"]}
    with pytest.raises(DataError, match=r"data.annotations names \['dev'\]: give train, val, test"):
        Coco(str(tmp_path), {"dev": files["train"]})


def test_each_split_may_have_its_folder_as_coco_s_own_files_do(tmp_path):
    files, folders = {}, {"train": "train2017", "val": "val2017"}
    for split, folder in folders.items():
        (tmp_path / folder).mkdir()
        file = written(tmp_path / folder, coco_of({"1.png": [(3, box(1, 1, 5, 5))]}))
        files[split] = str(file.rename(tmp_path / f"{split}.json"))
    source = Coco(str(tmp_path), files, folders)
    assert source.splits == {"train": ["train2017/1"], "val": ["val2017/1"]}
    np.testing.assert_array_equal(source.read("val2017/1")[1], rectangle(1, 1, 5, 5))
    with pytest.raises(DataError, match=r"data.folders=.*: give one for each of train, val"):
        Coco(str(tmp_path), files, {"train": "train2017"})


def test_ids_of_categories_may_differ_between_files_but_not_their_names(tmp_path):
    contents = {s: coco_of({f"{s}.png": [(3, box(1, 1, 5, 5))]}) for s in ("train", "val")}
    contents["val"]["categories"] = [{"id": 3, "name": "nucleus"}, {"id": 9, "name": "cell"}]
    files = {s: str(written(tmp_path, c, f"{s}.json")) for s, c in contents.items()}
    source = Coco(str(tmp_path), files)
    assert [source.read(s)[1].max() for s in ("train", "val")] == [1, 2]
    contents["val"]["categories"].append({"id": 1, "name": "new"})
    written(tmp_path, contents["val"], "val.json")
    with pytest.raises(
        DataError, match=r"val.json: the category 'new' is not in the file of the training"
    ):
        Coco(str(tmp_path), files)
    contents["val"]["categories"] = [{"id": 3, "name": "nucleus"}]
    written(tmp_path, contents["val"], "val.json")
    with pytest.raises(DataError, match=r"val.json: no category 'cell'; it has \['nucleus'\]"):
        Coco(str(tmp_path), files)


def test_an_image_in_two_files_is_refused(tmp_path):
    for split in ("train", "val"):
        written(tmp_path, coco_of({"a.png": [], f"{split}.png": []}), f"{split}.json")
    files = {split: str(tmp_path / f"{split}.json") for split in ("train", "val")}
    with pytest.raises(
        DataError, match=r"val.json: a.png is in .*train.json too; keep it in one split"
    ):
        Coco(str(tmp_path), files)


# What is refused


GOOD = {"a.png": [(3, box(4, 5, 11, 9)), (7, counted(rectangle(1, 1, 3, 3)))], "b/c.png": []}


def put(*path, value):
    """A change of the content at that path; None takes away."""

    def change(content: dict) -> None:
        node = content
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


FIRST, SECOND = ("annotations", 0, "segmentation"), ("annotations", 1, "segmentation")
WRONG = [
    (put("images", value=None), r"coco.json: no list images in it; a COCO file holds the lists"),
    (put("annotations", value=None), r"coco.json: no list annotations in it"),
    (put("categories", value={}), r"coco.json: no list categories in it"),
    (put("images", value=[]), r"coco.json: no images in it"),
    (put("images", 0, value=7), r"coco.json: images\[0\] is not an object with keys; correct it or remove it"),
    (put("images", 1, "file_name", value=None), r"coco.json: images\[1\]: no file_name"),
    (put("images", 1, "file_name", value=7), r"coco.json: images\[1\]: file_name=7"),
    (put("images", 1, "id", value=100), r"coco.json: images\[1\]: another of the images has the id 100"),
    (put("annotations", 1, "id", value=1), r"annotations\[1\]: another of the annotations has the id 1"),
    (put("annotations", 1, "id", value=[1]), r"annotations\[1\]: id=\[1\]"),
    (put("categories", 1, "id", value=7), r"categories\[1\]: another of the categories has the id 7"),
    (put(*FIRST, value=None), r"annotation 1: no outline, at most a box; there are 1 such; data.boxes=skip"),
    (put("annotations", 0, "image_id", value=9), r"coco.json: annotation 1: no such image_id, 9; correct"),
    (put("annotations", 0, "category_id", value=9), r"annotation 1: no such category_id, 9"),
    (put("annotations", 0, "iscrowd", value=2), r"annotation 1: iscrowd=2; 0 or 1 is needed"),
    (put("images", 0, "file_name", value="d.png"), r"d.png: no such file, but .*coco.json names it;"),
    (put("images", 0, "file_name", value="../d.png"), r"coco.json: the image '../d.png' is not inside data.root"),
    (put("images", 0, "file_name", value="b\\..\\..\\d"), r"the image 'b.*' is not inside data.root"),
    (put("images", 0, "file_name", value="/etc/passwd"), r"the image '/etc/passwd' is not inside data.root"),
    (put("images", 0, "file_name", value="C:\\d.png"), r"is not inside data.root"),
    (put("images", 0, "file_name", value=""), r"the image '' is not inside data.root"),
    (put("images", 0, "file_name", value="b/c.jpg"), r"b/c.jpg and b/c.png are both called b/c; keep one"),
    (put("images", 0, "height", value=30), r"coco.json: 30x30 px, and its image .*a.png 20x30 \(height x"),
    (put("images", 0, "width", value="30"), r"coco.json: 20x30 px, and its image"),
    (put(*FIRST, value=[]), r"coco.json: annotation 1: no outline"),
    (put(*FIRST, value=[[1, 2, 3, 4, 5, 6, 7]]), r"annotation 1 of a.png: its polygon has 7 numbers"),
    (put(*FIRST, value=[[1, 2, 3, 4]]), r"its polygon has 4 numbers; x and y of three points or more"),
    (put(*FIRST, value=[1, "2", 3, 4, 5, 6]), r"its polygon is not a list of numbers"),
    (put(*FIRST, value=[["1", "2", "3", "4", "5", "6"]]), r"its polygon is not a list of numbers"),
    (put(*FIRST, value=[[1, 2, 3, 4, 5, 51]]), r"lies far outside the image of 20x30 px"),
    (put(*SECOND, "size", value=[30, 20]), r"have the size \[30, 20\], but the image has \[20, 30\]"),
    (put(*SECOND, "size", value=None), r"have the size None, but the image"),
    (put(*SECOND, "counts", value=[599]), r"annotation 2 of a.png: its run lengths cover 599 px, but the image has 600"),
    (put(*SECOND, "counts", value=[-1, 601]), r"its run lengths cover 600 px"),
    (put(*SECOND, "counts", value=[1.5, 2]), r"its counts are neither whole numbers nor a text"),
    (put(*SECOND, "counts", value=None), r"its counts are neither whole numbers nor a text"),
    (put(*SECOND, "counts", value="~~"), r"its run lengths are not compressed counts"),
    (put(*SECOND, "counts", value="o" * 40), r"its run lengths are not compressed counts"),
    (put(*SECOND, "counts", value="1o"), r"its run lengths are truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_what_is_wrong_is_told_with_file_and_remedy(tmp_path, change, message):
    content = copy.deepcopy(coco_of(GOOD))
    written(tmp_path, content)
    assert Coco(str(tmp_path), str(tmp_path / "coco.json")).read("a")[1].max() == 2  # all was well
    change(content)
    written(tmp_path, content, draw=False)
    with pytest.raises(DataError, match=message):
        Coco(str(tmp_path), str(tmp_path / "coco.json")).read("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("\0\0", "not JSON"),
        ("[1]", "not an object with keys"),
        ("{" * 10**5, "not JSON"),
        ("[" * 10**6, "not JSON"),
        ('{"images": ' + "9" * 5000 + "}", "not JSON"),
        (b"\xff\xfe\0", "not JSON"),
    ],
    ids=["empty", "zeros", "list", "keys", "deep", "number", "bytes"],
)
def test_what_is_no_json_is_told(tmp_path, text, message):
    file = tmp_path / "coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"coco.json: .*{message}"):
        Coco(str(tmp_path), str(file))


OPTIONS = [
    ({"root": None}, r"data.root is not set: give the folder of the images"),
    ({"root": "nowhere"}, r"data.root=nowhere: no such folder"),
    ({"annotations": None}, r"data.annotations is not set: give the JSON file, or"),
    ({"annotations": "none.json"}, r"none.json: can't be read \(No such file or directory\)"),
    ({"crowd": "hide"}, r"data.crowd=hide: null or one of auto, ignore, object, skip"),
    ({"classes": ["rest", "tail"]}, r"no category 'tail'; it has \['cell', 'nucleus'\]"),
    ({"classes": ["Cell", "nucleus"]}, r"Cell is no category, but cell is"),
    ({"classes": ["x", "cell", "cell"]}, r"'cell' is named twice"),
    ({"classes": ["cell"]}, r"too few; .*the first class is what no annotation covers"),
    ({"task": "instances"}, r"data.task=instances needs two classes"),
    ({"task": "overlapping", "classes": ["background", "cell"]}, r"no category 'background'"),
    ({"colors": [[1, 2, 3]]}, r"data.colors=\[\[1, 2, 3\]\]: give one"),
    ({"lists": "x", "val": 0.1}, r"data.val=0.1 beside data.lists"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[m[:40] for _, m in OPTIONS])
def test_what_an_option_gets_wrong_is_told(tmp_path, options, message):
    file = written(tmp_path, coco_of(GOOD))
    with pytest.raises(DataError, match=message):
        Coco(**({"root": str(tmp_path), "annotations": str(file)} | options))


def test_a_category_called_background_needs_the_classes_named(tmp_path):
    content = coco_of(GOOD)
    content["categories"][1]["name"] = "background"
    file = str(written(tmp_path, content))
    with pytest.raises(
        DataError, match=r"coco.json: a category is called background; give data.classes"
    ):
        Coco(str(tmp_path), file)
    assert Coco(str(tmp_path), file, classes=["background", "nucleus"]).read("a")[1][0, 0] == 255


def test_more_classes_than_a_mask_holds_are_refused(tmp_path):
    content = coco_of({"a.png": [], "b.png": []})
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(254)]
    with pytest.raises(DataError, match=r"coco.json: 255 classes; 254 are possible"):
        Coco(str(tmp_path), str(written(tmp_path, content)))
    content["categories"].pop()
    assert len(Coco(str(tmp_path), str(written(tmp_path, content))).classes) == 254


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("seg.errors.find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"data=coco needs the extra coco: pip install 'seg-experiments\[coco\]'"
    ):
        Coco(str(tmp_path), None)
    assert missing_extra_hint("numpy") is None


@given(st.data())
@settings(
    deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_spoilt_file_is_told_by_name_or_still_gives_masks(tmp_path, data):
    """Cut off, or with flipped bits."""
    good = written(tmp_path, coco_of(GOOD), "good.json", draw=not (tmp_path / "a.png").exists())
    raw = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for place in (
        data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=3)) if raw else ()
    ):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    file = tmp_path / "spoilt.json"
    file.write_bytes(raw)
    try:
        source = Coco(str(tmp_path), str(file))
        masks = [source.read(name)[1] for names in source.splits.values() for name in names]
    except DataError as error:
        assert "spoilt.json" in str(error), error
    else:
        assert len(masks) == 2
        for mask in masks:
            assert mask.shape == SIZE and set(np.unique(mask)) <= {0, 1, 2, 255}


# Size, and the commands


def test_the_stamp_changes_with_the_image_its_annotations_and_the_options(tmp_path):
    shapes = {"a.png": [(3, box(4, 5, 11, 9))], "b.png": []}
    file = str(written(tmp_path, coco_of(shapes)))
    first = Coco(str(tmp_path), file)
    assert Coco(str(tmp_path), file).stamp("a") == first.stamp("a")
    for options in ({"crowd": "skip"}, {"task": "overlapping"}, {"classes": ["cell", "nucleus"]}):
        assert Coco(str(tmp_path), file, **options).stamp("a") != first.stamp("a")
    shapes["a.png"] = [(3, box(4, 5, 11, 10))]
    second = Coco(str(tmp_path), str(written(tmp_path, coco_of(shapes), draw=False)))
    assert second.stamp("a") != first.stamp("a") and second.stamp("b") == first.stamp("b")
    before = first.stamp("b")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "b.png")
    assert first.stamp("b") != before


def test_an_annotation_takes_a_few_bytes_more_than_its_numbers(tmp_path):
    outline = np.random.default_rng(0).uniform(0, 19, 60).round(2).tolist()
    content = coco_of({f"{i}.png": [(3, [outline])] * 5 for i in range(200)})
    file = written(tmp_path, content, draw=False)
    for i in range(200):
        (tmp_path / f"{i}.png").touch()
    source = Coco(str(tmp_path), str(file))
    assert source.entries.bytes.nbytes < 200 * 5 * (60 * 8 + 120)


def test_check_train_and_evaluate_take_it(tmp_path, monkeypatch, capsys):
    from seg.commands.check import check_data

    monkeypatch.chdir(tmp_path)
    root, file = coco_root(tmp_path / "data")
    data = ["data=coco", f"data.root={root}", f"data.annotations={file}"]
    report = check_data(compose_checked("check", data))
    assert report["errors"] == 0 and report["classes"] == ["background", "cell", "nucleus"]
    assert (tmp_path / "check/sheet.png").is_file()
    small = ["trainer=smoke", "logger=none", "model.width=2", "loader.crop=32", "panels=1"]
    train(compose_checked("train", [*data, *small]))
    evaluate(compose_checked("evaluate", ["run=outputs/latest", "panels=0"]))
    two = ["data.classes=[rest,nucleus]", "data.task=instances"]
    train(compose_checked("train", [*data, *small, *two]))
    train(compose_checked("train", [*data, *small, "data.task=overlapping"]))
    assert "cell" in capsys.readouterr().out


def test_a_typing_error_in_crowd_is_told_before_anything_is_read():
    with pytest.raises(UserError, match=r"data.crowd=ignor: one of auto, ignore, object, skip"):
        compose_checked("train", ["data=coco", "data.crowd=ignor"])
