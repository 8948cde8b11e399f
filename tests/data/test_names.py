"""Names of files and classes that are nearly right: the error says what differs, and its remedy works."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from cases import slow_but
from coco_files import box, coco_of, written
from forked import seg
from PIL import Image
from small_runs import config

from seg.cli.compose import compose_checked, instantiate_node
from seg.data.datasets.coco import Coco
from seg.data.datasets.folder import Folder
from seg.data.similar_names import describe_difference, similar_key
from seg.errors import DataError, UserError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "zellé") for form in ("NFC", "NFD"))
PAIRS = [  # name of the image, name of the mask, the difference
    (COMPOSED, DECOMPOSED, "the encoding of accents"),
    ("Cell", "cell", "case"),
    ("a b", "a  b", "white space"),
    ("ab", "a b ", "white space"),
    (
        "Éa 1",
        unicodedata.normalize("NFD", "éa1"),
        "the encoding of accents and case and white space",
    ),
    ("STRASSE", "straße", "case"),
]


def make_data(root: Path, names: list[tuple[str, str]]) -> Path:
    """Images whose grey value is their number, and masks that are 0 but for that many pixels of 1."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number, (image, mask) in enumerate(names):
        pixels = np.zeros((16, 16), np.uint8)
        pixels.flat[: number + 1] = 1
        Image.fromarray(np.full((16, 16), number, np.uint8)).save(root / f"images/{image}.png")
        Image.fromarray(pixels).save(root / f"masks/{mask}.png")
    return root


@pytest.mark.parametrize(("image", "mask", "difference"), PAIRS)
def test_a_nearly_equal_name_is_told_and_a_setting_pairs_it(tmp_path, image, mask, difference):
    root = str(make_data(tmp_path, [("0", "0"), (image, mask), ("2", "2")]))
    with pytest.raises(DataError) as error:
        Folder(root, ["a", "b"])
    assert f"differs only in {difference}; rename one, or" in str(error.value)
    remedy = re.search(r"with (data\.\S+)$", str(error.value))
    cfg = config("train", "data=folder", f"data.root={root}", "data.classes=[a,b]", remedy[1])
    source = instantiate_node(cfg.data, "data")
    assert list(source.files) == [path.stem for path in sorted((tmp_path / "images").iterdir())]
    for name in source.files:
        pixels, labels = source.read(name)
        assert labels.sum() == pixels[0, 0, 0] + 1  # the mask of that image


def test_names_with_one_key_are_equal_but_for_three_things():
    assert similar_key("a-b") != similar_key("ab") and similar_key("é") != similar_key("e")
    assert describe_difference("A", "a") == "case"


def test_two_files_that_only_the_setting_makes_equal_are_an_error(tmp_path):
    root = str(make_data(tmp_path, [("a", "a"), ("A", "A"), ("c", "c")]))
    assert len(Folder(root, ["a", "b"]).files) == 3
    with pytest.raises(DataError, match="has the same name but for case, white space or accents"):
        Folder(root, ["a", "b"], similar_names=True)


def test_lists_and_tables_name_files_similarly(tmp_path):
    root = make_data(tmp_path, [(COMPOSED, COMPOSED), ("B", "B")])
    (tmp_path / "train.txt").write_text(f"{DECOMPOSED}.png\n")
    (tmp_path / "val.txt").write_text("b\n")
    with pytest.raises(
        DataError, match=r"but 'zellé' differs only in the encoding of accents; correct"
    ):
        Folder(str(root), ["a", "b"], lists=str(tmp_path))
    source = Folder(str(root), ["a", "b"], lists=str(tmp_path), similar_names=True)
    assert source.splits == {"train": [COMPOSED], "val": ["B"]}
    table = tmp_path / "pairs.csv"
    table.write_text(
        f"image,mask,split\nimages/{DECOMPOSED}.png,masks/{COMPOSED}.png,train\nimages/B.png,masks/b.PNG,val\n"
    )
    with pytest.raises(DataError, match=r"line 2: .* but 'zellé.png' differs only in the encoding"):
        Folder(None, ["a", "b"], table=str(table))
    source = Folder(None, ["a", "b"], table=str(table), similar_names=True)
    assert [
        int(source.read(name)[1].sum()) for names in source.splits.values() for name in names
    ] == [1, 2]


def test_an_image_of_coco_with_a_similar_name_is_told(tmp_path):
    file = written(tmp_path, coco_of({"A.png": [], "b.png": []}))
    (tmp_path / "A.png").rename(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"'a\.png' differs only in case: rename the file, or correct the JSON"
    ):
        Coco(str(tmp_path), str(file))


COMMANDS = ["train", "check", "show", "crossval"]


@pytest.mark.parametrize("command", slow_but(COMMANDS, "train", "crossval"))
def test_classes_with_one_name_are_an_error_whose_remedy_is_accepted(tmp_path, command):
    root = make_data(tmp_path / "data", [(str(i), str(i)) for i in range(5)])
    (tmp_path / "here").mkdir()
    words = ["data=folder", f"data.root={root}", "data.classes=[cell,cell]", "logger=none"]
    done = seg(command, *words, cwd=tmp_path / "here")
    assert done.code == 2 and "data.classes=['cell', 'cell']: 'cell' is named twice" in done.err
    remedy = re.search(r"'(data\.classes=\S+)'$", done.err.strip())
    cfg = config("train", *words, remedy[1])
    assert instantiate_node(cfg.data, "data").classes == ["cell", "cell-2"]


@pytest.mark.parametrize("classes", [["", "b"], ["a", " "]])
def test_a_class_without_a_name_is_an_error(tmp_path, classes):
    root = str(make_data(tmp_path, [("0", "0"), ("1", "1")]))
    with pytest.raises(DataError, match="a name is empty; name each class"):
        Folder(root, classes)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("classes: [no, yes]", ["no", "yes"]),
        ("classes: [cell, 1.5]", ["cell", "1.5"]),
    ],
)
def test_classes_that_yaml_reads_as_no_words_are_to_be_quoted(tmp_path, text, names):
    file = tmp_path / "experiment/mine.yaml"
    file.parent.mkdir()
    heading = "# @package _global_\ndefaults:\n  - override /data: folder\ndata:\n  "
    words = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"]
    file.write_text(heading + text)
    with pytest.raises(UserError, match="quote the names") as error:
        compose_checked("train", words)
    assert ("YAML reads no, off" in str(error.value)) == (text.endswith(("yes]", "on]")))
    remedy = re.search(r'"data\.(classes)=(\S+)"', str(error.value))
    assert (
        compose_checked("train", ["data=folder", f"data.classes={remedy[2]}"]).data.classes == names
    )
    file.write_text(f"{heading}classes: {remedy[2]}")
    assert compose_checked("train", words).data.classes == names


def test_a_palette_of_names_that_are_no_words_is_to_be_quoted(tmp_path):
    with pytest.raises(UserError, match=r"data.palette=.*; quote the names, '1', '2'"):
        compose_checked("train", ["data=folder", "data.palette={1: [0,0,0], 2: [1,1,1]}"])


@pytest.mark.parametrize("outline", [None, "absent", [], [[]]])
def test_annotations_without_an_outline_are_an_error_whose_remedy_leaves_them_out(
    tmp_path, caplog, outline
):
    square = box(2, 3, 8, 9)
    content = coco_of({"a.png": [(3, square), (3, None), (7, None)], "b.png": [(3, square)]})
    for row in content["annotations"]:
        if row["segmentation"] is None and outline == "absent":
            del row["segmentation"]
        elif row["segmentation"] is None:
            row["segmentation"] = outline
    file = str(written(tmp_path, content))
    with pytest.raises(DataError) as error:
        Coco(str(tmp_path), file)
    assert "annotation 2: no outline, at most a box; there are 2 such" in str(error.value)
    remedy = re.search(r"data\.boxes=\w+", str(error.value))[0]
    line = ["data=coco", f"data.root={tmp_path}", f"data.annotations={file}", remedy]
    caplog.set_level("INFO", "seg")
    source = instantiate_node(config("train", *line).data, "data")
    assert f"{file}: 2 annotations without an outline are left out (data.boxes=skip)" in caplog.text
    right = np.zeros((20, 30), np.uint8)
    right[3:9, 2:8] = 1
    np.testing.assert_array_equal(source.read("a")[1], right)
    # a category that is not used needs no outline
    content["annotations"][1]["segmentation"] = square
    Path(file).write_text(json.dumps(content))
    assert Coco(str(tmp_path), file, classes=["rest", "cell"]).classes == ["rest", "cell"]
