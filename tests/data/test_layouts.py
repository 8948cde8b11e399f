"""Layouts of a folder: those that docs/data.md lists, what an error proposes, and names of results."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import label
from small_runs import config

from seg.cli.compose import instantiate_node
from seg.data.datasets.folder import Folder
from seg.data.image_files import find_images
from seg.errors import DataError

PAGE = Path(__file__).parents[2] / "docs/data.md"
REAL = Path(__file__).parents[3] / "shared/data/vnc"
NAMES = [f"{i:02d}" for i in range(1, 7)]


class Sample(NamedTuple):
    """An image (H, W) and its mask of 0 and 1, both uint8."""

    image: np.ndarray
    mask: np.ndarray


@pytest.fixture(scope="module")
def made_samples() -> dict[str, Sample]:
    """Six small images with masks of 0 and 1."""
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.random((5, 7)) < 0.4, np.ones((8, 8))).astype(np.uint8) for _ in NAMES]
    return {
        name: Sample(mask * 80 + rng.integers(0, 60, mask.shape, np.uint8), mask)
        for name, mask in zip(NAMES, masks, strict=True)
    }


@pytest.fixture(scope="module", params=["made", "vnc"])
def samples(request, made_samples) -> dict[str, Sample]:
    """The small images, and crops of real sections with mitochondria as objects."""
    if request.param == "made":
        return made_samples
    if not REAL.is_dir():
        pytest.skip("../shared/data/vnc is absent")

    def crop(part: str, name: str) -> np.ndarray:
        return np.array(Image.open(REAL / part / f"{name}.png"))[:256, :320]

    return {n: Sample(crop("images", n), (crop("masks", n) == 2).astype(np.uint8)) for n in NAMES}


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        tifffile.imwrite(file, pixels)
    else:
        Image.fromarray(pixels).save(file, quality=95)


def write(root: Path, samples: dict[str, Sample], image: str, mask: str) -> None:
    """Write each image and mask under its name, in place of ``{}``."""
    for name, sample in samples.items():
        save(root / image.format(name), sample.image)
        save(root / mask.format(name), sample.mask)


def write_splits(root: Path, samples: dict[str, Sample], image: str, mask: str, val: str) -> None:
    """Write the first four images to ``train``, the others to ``val``, in place of ``{split}``."""
    for number, (name, sample) in enumerate(samples.items()):
        split = "train" if number < 4 else val
        write(root, {name: sample}, *(t.replace("{split}", split) for t in (image, mask)))


def write_objects(root: Path, samples: dict[str, Sample], image: str, mask: str) -> None:
    """Write a file of 0 and 255 for each object, its number in place of the second ``{}``."""
    for name, sample in samples.items():
        save(root / image.format(name), sample.image)
        regions, count = label(sample.mask)
        for number in range(1, count + 1):
            save(root / mask.format(name, number), ((regions == number) * 255).astype(np.uint8))


def write_nnunet(root: Path, samples: dict[str, Sample]) -> None:
    """Write two channels, and test images without labels."""
    for name, sample in samples.items():
        save(root / f"imagesTr/{name}_0000.png", sample.image)
        save(root / f"imagesTr/{name}_0001.png", 255 - sample.image)
        save(root / f"labelsTr/{name}.png", sample.mask)
        save(root / f"imagesTs/{name}_0000.png", sample.image)
        save(root / f"imagesTs/{name}_0001.png", sample.image)
    content = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "cell": 1, "ignore": 2}}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))


def write_channels(root: Path, samples: dict[str, Sample]) -> None:
    for name, sample in samples.items():
        save(root / f"{name}_green.tif", sample.image)
        save(root / f"{name}_red.tif", 255 - sample.image)
        save(root / f"{name}_mask.png", sample.mask)


LAYOUTS: dict[str, Callable[[Path, dict[str, Sample]], None]] = {  # first file of a row -> its builder
    "images/01.jpg, masks/01.png": lambda r, s: write(r, s, "images/{}.jpg", "masks/{}.png"),
    "images/01.ome.tif, masks/01.png": lambda r, s: write(r, s, "images/{}.ome.tif", "masks/{}.png"),
    "train/images/01.jpg, train/masks/01.png, valid/images/": lambda r, s: write_splits(
        r, s, "{split}/images/{}.jpg", "{split}/masks/{}.png", "valid"
    ),
    "images/train/01.jpg, masks/train/01.png, images/val/": lambda r, s: write_splits(
        r, s, "images/{split}/{}.jpg", "masks/{split}/{}.png", "val"
    ),
    "img/01.jpg, labels/01.png": lambda r, s: write(r, s, "img/{}.jpg", "labels/{}.png"),
    "images/01.jpg, masks/01_mask.png": lambda r, s: write(r, s, "images/{}.jpg", "masks/{}_mask.png"),
    "01.jpg, 01_mask.png": lambda r, s: write(r, s, "{}.jpg", "{}_mask.png"),
    "img_01.png, mask_01.png": lambda r, s: write(r, s, "img_{}.png", "mask_{}.png"),
    "train/01.jpg, train/01_mask.png, validation/01.jpg": lambda r, s: write_splits(
        r, s, "{split}/{}.jpg", "{split}/{}_mask.png", "validation"
    ),
    "case_01/image.png, case_01/mask.png": lambda r, s: write(
        r, s, "case_{}/image.png", "case_{}/mask.png"
    ),
    "scans/a/b/01.tif, gt/a/b/01.png": lambda r, s: write(r, s, "scans/a/b/{}.tif", "gt/a/b/{}.png"),
    "images/01.png, masks/01/7.png": lambda r, s: write_objects(
        r, s, "images/{}.png", "masks/{}/{}.png"
    ),
    "ID/images/ID.png, ID/masks/7.png": lambda r, s: write_objects(
        r, s, "{0}/images/{0}.png", "{}/masks/{}.png"
    ),
    "imagesTr/01_0000.png, imagesTr/01_0001.png, labelsTr/01.png, dataset.json": write_nnunet,
    "01_red.tif, 01_green.tif, 01_mask.png": write_channels,
}  # fmt: skip


def documented_rows() -> dict[str, str]:
    """Files of a layout -> the options to type, of the page's table."""
    table = PAGE.read_text().partition("| files in `DATA` |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    code = re.compile(r"`([^`]+)`")
    return {
        ", ".join(f for f in code.findall(files) if f != "stage1_train"): (code.findall(options) or [""])[0]
        for files, options in rows
    }  # fmt: skip


ROWS = documented_rows()


def open_folder(root: Path, words: str) -> Folder:
    """Build the data of a command line, as the shell splits its words."""
    line = shlex.split(words)
    line = line if any(word.startswith("data=") for word in line) else ["data=folder", *line]
    named = [] if "data=nnunet" in line else ["data.classes=[background,cell]"]
    return instantiate_node(config("train", *line, f"data.root={root}", *named).data, "data")


def masks_by_split(source: Folder) -> dict[str, list[str]]:
    """Split -> a hash of each mask, sorted: what is in the split, whatever it is called."""
    return {
        split: sorted(hashlib.sha256(source.read(name)[1].tobytes()).hexdigest() for name in names)
        for split, names in source.splits.items()
    }


def test_every_documented_layout_has_a_builder():
    assert list(ROWS) == list(LAYOUTS)


@pytest.mark.parametrize("files", ROWS)
def test_a_documented_layout_gives_the_masks_and_the_split_of_the_plain_one(
    tmp_path, samples, files
):
    root = tmp_path / "data"
    LAYOUTS[files](root, samples)
    source = open_folder(root, ROWS[files])
    assert source.classes == ["background", "cell"] and len(source.files) == 6
    write(tmp_path / "plain", samples, "images/{}.png", "masks/{}.png")
    plain = open_folder(tmp_path / "plain", "")
    found = masks_by_split(source)
    if "train/" in files:
        plain.splits = {"train": NAMES[:4], "val": NAMES[4:]}
    assert found == masks_by_split(plain)
    # each image is that of its mask
    for name in source.files:
        image, mask = source.read(name)
        number = re.findall(r"\d+", name)[0]
        expected = samples[number].image
        if "0001" in files or "green" in files:
            assert image.shape[2] == 2
            np.testing.assert_array_equal(image[..., 1], 255 - expected)
        np.testing.assert_allclose(image[..., 0], expected, atol=40 if ".jpg" in files else 0)
        np.testing.assert_array_equal(mask, samples[number].mask)


NO_PROPOSAL = {
    "01_red.tif, 01_green.tif, 01_mask.png"
}  # which ending is a channel cannot be guessed
OTHERS = {  # image, mask
    "Folders/Original/{}.png": "Folders/Ground Truth/{}.tif",
    "{}_training.tif": "{}_manual1.png",
    "a/{}.png": "a/{}_cp_masks.png",
    "a/{}_img.png": "a/{}-seg.png",
    "JPEGImages/{}.jpg": "Annotations/{}.png",
    "train/imgs/{}.png": "train/annotations/{}.png",
    "imgs/train/{}.png": "gt/train/{}.png",
    "x/im{}.png": "x/im{}.label.tif",
    "{}/scan.tif": "{}/seg/scan_gt.tif",
    "pictures/{}.jpg": "pictures/{}_seg.png",
}


@pytest.mark.parametrize("files", [*(f for f in LAYOUTS if f not in NO_PROPOSAL), *OTHERS])
def test_what_an_error_proposes_pairs_the_files_when_typed(tmp_path, made_samples, files):
    samples = made_samples
    if files in OTHERS:
        write(tmp_path, samples, files, OTHERS[files])
    else:
        LAYOUTS[files](tmp_path, samples)
    try:
        source = open_folder(tmp_path, "")
    except DataError as error:
        message = str(error)
        assert message.count("try: ") == 1, message
        source = open_folder(tmp_path, message.partition("try: ")[2])
    else:
        assert not ROWS[files]
    assert len(source.files) == 6
    found = sorted(h for hashes in masks_by_split(source).values() for h in hashes)
    assert found == sorted(hashlib.sha256(s.mask.tobytes()).hexdigest() for s in samples.values())


# Patterns


def touch(root: Path, *names: str) -> None:
    for name in names:
        save(root / name, np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["1", "10", "2"]),
        ("?.png", ["1", "2"]),
        ("[!2].*", ["1"]),
        ("1*", ["", "0"]),
        ("a/*_[0-9].*", ["x/1", "x_y/2"]),
        ("a/*.t*f", ["x_1", "x_y_2"]),
        ("**/*.png", ["1", "10", "2", "b/c/3"]),
        ("**/3.png", ["b/c"]),
        ("b/**", ["c/3"]),
        ("*/*/?.png", ["b/c/3"]),
    ],
)
def test_the_texts_that_wildcards_match_are_the_name(tmp_path, pattern, names):
    touch(tmp_path, "1.png", "2.png", "10.png", "a/x_1.tif", "a/x_y_2.ome.tif", "b/c/3.png")
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert ["/".join(texts) for texts, _ in find_images(tmp_path, pattern)] == names


def test_a_folder_whose_name_has_brackets_is_no_pattern(tmp_path, made_samples):
    write(tmp_path, made_samples, "images[1]/{}.png", "masks/{}.png")
    source = Folder(str(tmp_path), ["background", "cell"], images="images[1]")
    assert list(source.files) == NAMES


@pytest.mark.parametrize(("image", "mask"), [("*.png", "*_mask.png"), ("*_image.png", "*.png")])
def test_a_file_that_both_patterns_match_is_of_the_one_that_needs_it(
    tmp_path, made_samples, image, mask
):
    write(tmp_path, made_samples, image.replace("*", "{}"), mask.replace("*", "{}"))
    source = Folder(str(tmp_path), ["background", "cell"], images=image, masks=mask)
    assert list(source.files) == NAMES
    np.testing.assert_array_equal(source.read("02")[1], made_samples["02"].mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "*.png", "masks": "*.png"}, "data.images and data.masks are the same files"),
        ({"images": "*.bmp"}, r"\*\.bmp: no image matches; .* holds 6 \*\.jpg"),
        ({"images": "*.jpg", "masks": "*/*.png"}, "wildcards match other parts, 01 and a/01"),
        ({"images": "*.jpg", "masks": "*_mask.png", "channel_files": True}, "two wildcards in data.images"),
        ({"images": "*.jpg", "masks": "*_mask.png", "mask_layers": "objects"}, "two wildcards in data.masks"),
        ({"images": "*.jpg", "masks": "*_*.png", "mask_layers": "objects", "task": "overlapping"}, "two classes that do not"),
        ({"channel_files": True, "pages": "slices"}, "data.pages=slices beside data.channel_files=true"),
        ({"mask_layers": "objects", "table": "t.csv"}, "data.table=t.csv beside data.mask_layers=objects"),
    ],
)  # fmt: skip
def test_patterns_that_do_not_suit_the_files_are_an_error(tmp_path, made_samples, options, message):
    write(tmp_path, made_samples, "{}.jpg", "{}_mask.png")
    for name in made_samples:
        touch(tmp_path, f"a/{name}.png")
    with pytest.raises(DataError, match=message):
        Folder(str(tmp_path), ["background", "cell"], **options)


# Splits


def test_validation_images_are_drawn_from_train_where_no_folder_gives_them(tmp_path, made_samples):
    first, last = dict(list(made_samples.items())[:5]), {"06": made_samples["06"]}
    write(tmp_path, first, "training/images/{}.png", "training/masks/{}.png")
    write(tmp_path, last, "Test/images/{}.png", "Test/masks/{}.png")
    write(tmp_path / "plain", first, "images/{}.png", "masks/{}.png")
    for options in ({}, {"val": 0.4}, {"fold": 1, "folds": 3}):
        splits = Folder(str(tmp_path), ["a", "b"], **options).splits
        assert splits["test"] == ["Test/06"]
        plain = Folder(str(tmp_path / "plain"), ["a", "b"], **options).splits
        assert splits == {s: [f"training/{n}" for n in ns] for s, ns in plain.items()} | {"test": ["Test/06"]}  # fmt: skip
    with pytest.raises(DataError, match=r"data.test=0.2 beside training/ and Test/ in data.root"):
        Folder(str(tmp_path), ["a", "b"], test=0.2)


@pytest.mark.parametrize("layout", ["{split}/images/{}.png", "images/{split}/{}.png"])
def test_test_images_without_masks_are_left_out_aloud(tmp_path, made_samples, layout, caplog):
    write_splits(tmp_path, made_samples, layout, layout.replace("images", "masks"), "val")
    touch(tmp_path, layout.replace("{split}", "test").format("7"))
    caplog.set_level("WARNING", "seg")
    assert set(Folder(str(tmp_path), ["a", "b"]).splits) == {"train", "val"}
    assert "1 test images have no masks and are left out; seg.predict takes them" in caplog.text


def test_images_beside_the_folders_of_splits_are_an_error(tmp_path, made_samples):
    write_splits(tmp_path, made_samples, "images/{split}/{}.png", "masks/{split}/{}.png", "val")
    touch(tmp_path, "images/9.png", "masks/9.png")
    with pytest.raises(DataError, match=r"images: holds 9.png and the folders train, val; ") as error:  # fmt: skip
        Folder(str(tmp_path), ["a", "b"])
    words = str(error.value).partition("outside, ")[2]
    touch(tmp_path, "images/8.png", "masks/8.png")
    assert list(open_folder(tmp_path, words).files) == ["8", "9"]
    with pytest.raises(DataError, match=r"train/01 is in a folder that is called like a split, and 8 is not"):  # fmt: skip
        Folder(str(tmp_path), ["a", "b"], images="images/**/*", masks="masks/**/*")


# Files of channels and objects, dataset.json


def test_each_image_has_the_same_channels_of_one_size_and_type(tmp_path, made_samples):
    write_nnunet(tmp_path, made_samples)
    save(tmp_path / "imagesTr/03_0001.png", np.zeros((3, 3), np.uint8))
    source = open_folder(tmp_path, "data=nnunet")
    with pytest.raises(DataError, match=r"03_0000.png: the files of its channels are 3x3 px of uint8, 40x56"):  # fmt: skip
        source.read("Tr/03")
    (tmp_path / "imagesTr/03_0001.png").unlink()
    with pytest.raises(DataError, match=r"Tr/03 has the channels 0000, but Tr/01 has 0000, 0001"):
        open_folder(tmp_path, "data=nnunet")


@pytest.mark.parametrize(
    ("labels", "classes", "values", "message"),
    [
        ({"0": "rest", "1": "cell"}, ["rest", "cell"], [0, 1], ""),
        ({"cell": 1, "rest": 0}, ["rest", "cell"], [0, 1], ""),
        ({"rest": 0, "cell": 1, "ignore": 2}, ["rest", "cell"], [0, 1], ""),
        ({"rest": 1, "cell": 0}, ["cell", "rest"], [0, 1], ""),
        ({"rest": 0, "whole": [1, 2]}, None, [], r"not one value each; name the classes by data\.classes"),
        ({}, None, [], r"data\.classes is not set"),
    ],
)  # fmt: skip
def test_the_classes_of_dataset_json(tmp_path, made_samples, labels, classes, values, message):
    write_nnunet(tmp_path, made_samples)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    if message:
        with pytest.raises(DataError, match=message):
            open_folder(tmp_path, "data=nnunet")
        return
    source = open_folder(tmp_path, "data=nnunet")
    assert source.classes == classes
    assert np.unique(source.read("Tr/01")[1]).tolist() == values


def test_where_objects_overlap_or_are_void_the_union_has_the_object(tmp_path):
    for number, rows in enumerate(([1, 1, 0, 7, 7], [0, 1, 0, 1, 0])):
        save(tmp_path / f"masks/a/{number}.png", np.array([rows], np.uint8))
    touch(tmp_path, "images/b.png", "masks/b/0.png")
    save(tmp_path / "images/a.png", np.zeros((1, 5), np.uint8))
    source = Folder(
        str(tmp_path), ["rest", "cell"], mask_layers="objects", values={0: 0, 1: 1}, ignore=[7]
    )
    assert source.read("a")[1].tolist() == [[1, 1, 0, 1, 255]]
    before = source.stamp("a")
    save(tmp_path / "masks/a/1.png", np.array([[0, 0, 0, 0, 1]], np.uint8))
    assert source.stamp("a") != before


def test_a_group_may_be_a_folder_of_the_name(tmp_path):
    touch(tmp_path, *(f"p{i % 3}/{i}{end}.png" for i in range(9) for end in ("", "_mask")))
    options = {"images": "*/*.png", "masks": "*/*_mask.png", "group_by": "^(.*)/", "val": 0.34}
    splits = Folder(str(tmp_path), ["a", "b"], **options).splits
    assert [len({n.partition("/")[0] for n in names}) for names in splits.values()] == [2, 1]
    assert len(splits["val"]) == 3
