"""Every planted fault is reported with file, values and remedy; correct data passes."""

import io
import json
import sys
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from seg.check import main
from seg.cli.compose import compose_checked, instantiate_node
from seg.commands.check import check_data
from seg.data.datamodule import DataModule
from seg.data.datasets.folder import Folder
from seg.data.datasets.membranes import Membranes
from seg.data.quality.duplicates import MIN_CORRELATION, similar_pairs
from seg.data.quality.inspect import make_thumbnail
from seg.errors import DataError, UserError

REAL = Path(__file__).parents[2] / "../shared/data"
MADE = Membranes(size=96, train=24, val=1, test=0)
MISTAKES = (UserError, DataError)


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not here: the real data isn't part of the checkout")
    return REAL / name


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve grey images of 96x80 in folders of splits, masks of 0 and 1: nothing is wrong."""
    folder = tmp_path / "good"
    for i in range(12):
        split = "train" if i < 8 else "val"
        image, mask = MADE.read(f"train-{i:03d}")
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        save(folder / split / "images" / f"{i}.png", image[:, :80, 0])
        save(folder / split / "masks" / f"{i}.png", mask[:, :80])
    return folder


def save(file: Path, pixels: np.ndarray, **options) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, **options)


def load(file: Path) -> np.ndarray:
    return np.array(Image.open(file))


def words(root: Path, *more: str) -> list[str]:
    output = next(n for n in range(99) if not (root.parent / f"check-{n}").exists())
    given = ["data=folder", f"data.root={root}", "data.classes=[membrane,cell]", "panels=4"]
    return [*given, f"output={root.parent / f'check-{output}'}", *more]


@cache
def composed(*choices: str) -> DictConfig:
    return compose_checked("check", list(choices))


def config(line: list[str]) -> DictConfig:
    """What a command line composes; its files are read once for all tests."""
    choices = [w for w in line if w.startswith(("data=", "experiment="))]
    options = OmegaConf.from_dotlist([w.strip("'") for w in line if w not in choices])
    return OmegaConf.merge(composed(*choices), options)


def look(root: Path, *more: str) -> dict:
    return check_data(config(words(root, *more)))


def refused(root: Path, *more: str) -> tuple[str, list[dict]]:
    """The error's line, and all faults that check.json lists."""
    line = words(root, *more)
    with pytest.raises(MISTAKES) as error:
        check_data(config(line))
    output = Path(next(w for w in line if w.startswith("output=")).removeprefix("output="))
    return str(error.value), json.loads((output / "check.json").read_text())["faults"]


def errors(faults: list[dict]) -> list[dict]:
    return [fault for fault in faults if fault["severity"] == "error"]


def test_correct_data_passes_and_writes_numbers_and_a_sheet(root, capsys):
    report = look(root)
    assert report["errors"] == report["warnings"] == 0 and report["faults"] == []
    assert report["splits"]["train"]["images"] == 8 and len(report["images"]) == 12
    masks = [load(f) for f in (root / "train/masks").iterdir()]
    share = report["splits"]["train"]["shares"]["cell"]
    assert share == pytest.approx(np.mean(masks))
    images = [load(f) for f in (root / "val/images").iterdir()]
    assert report["splits"]["val"]["mean"] == pytest.approx(np.mean(images))
    assert report["splits"]["val"]["sd"] == pytest.approx(np.std(images))
    folder = root.parent / "check-0"
    assert json.loads((folder / "check.json").read_text()) == report
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 600
    out = capsys.readouterr().out
    assert "0 errors and 0 warnings in 12 images" in out and "next: python -m seg.train" in out


def plant(root: Path, what: str) -> None:
    """One fault, mostly in image 2 of the training split."""
    image, mask = root / "train/images/2.png", root / "train/masks/2.png"
    labels = load(mask)
    match what:
        case "255":
            save(mask, labels * 255)
        case "jpeg":
            mask.unlink()
            save(mask.with_suffix(".jpg"), labels * 255, quality=60)
        case "noise":
            buffer = io.BytesIO()
            Image.fromarray(labels * 255).save(buffer, "JPEG", quality=60)
            save(mask, np.array(Image.open(buffer)))
        case "rgb":
            save(mask, np.array([[40, 0, 0], [0, 200, 0]], np.uint8)[labels])
        case "size":
            save(mask, labels[:50, :60])
        case "transposed":
            save(mask, labels.T)
        case "no mask":
            mask.unlink()
        case "no image":
            image.unlink()
        case "twice":
            save(image.with_suffix(".bmp"), load(image))
        case "index":
            labels[10:20, 5:9] = 7
            save(mask, labels)
        case "ignored":
            save(mask, np.full_like(labels, 255))
        case "nan":
            values = load(image).astype(np.float32)
            values[3, 4] = np.nan
            image.unlink()
            tifffile.imwrite(image.with_suffix(".tif"), values)
        case "truncated":
            image.write_bytes(image.read_bytes()[:-2000])
        case "truncated tiff":
            tifffile.imwrite(image.with_suffix(".tif"), load(image))
            image.unlink()
            file = image.with_suffix(".tif")
            file.write_bytes(file.read_bytes()[:-2000])
        case "16 bits":
            save(image, load(image).astype(np.uint16) * 257)
        case "low byte":
            smooth = cv2.GaussianBlur(load(image).astype(np.float32), (0, 0), 2)
            save(image, (smooth * 16).astype(np.uint16).astype(np.uint8))
        case "palette":
            painted = Image.fromarray(load(image))
            painted = painted.convert("P")
            painted.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
            painted.save(image)
        case "colours":
            save(image, np.repeat(load(image)[..., None], 3, axis=-1))
        case "leak":
            save(root / "val/images/9.png", load(image))
            save(root / "val/masks/9.png", labels)
        case "near leak":
            noise = np.random.default_rng(0).normal(0, 30, load(image).shape)
            save(root / "val/images/9.png", np.clip(load(image) + noise, 0, 255).astype(np.uint8))
        case "contradiction":
            save(root / "train/images/5.png", load(image))


PLANTED = [  # fault, file, found, remedy
    ("255", "train/masks/2.png", "mask value [255] not declared", "'data.values={0: 0, 1: 1, 255: 1}'"),
    ("jpeg", "train/masks/2.jpg", "different values", "save masks as PNG or TIFF"),
    ("noise", "train/masks/2.png", "different values", "save masks as PNG or TIFF"),
    ("rgb", "train/masks/2.png", "2 colours, #00c800", "'data.palette={membrane: [0, 200, 0], cell: [40, 0, 0]}' in the right order"),
    ("size", "train/masks/2.png", "50x60 px", "nearest neighbour"),
    ("transposed", "train/masks/2.png", "80x96 px, and its image", "turn the mask as its image is"),
    ("no mask", "train/images/2.png", "no mask of that name in train/masks", "add it"),
    ("no image", "train/masks/2.png", "no image of that name in train/images", "add it"),
    ("twice", "train/images/2.bmp", "2.png has the same name", "keep one"),
    ("index", "train/masks/2.png", "mask value [7] not declared", "'data.ignore=[7]'"),
    ("ignored", "train/masks/2.png", "no pixel of a class", "label it"),
    ("nan", "train/images/2.tif", "1 of 7680 values are NaN or infinite", "replace them"),
    ("truncated", "train/images/2.png", "not a readable image", "copy it again"),
    ("truncated tiff", "train/images/2.tif", "not a readable image", "copy it again"),
    ("16 bits", "train/images/2.png", "1 channel of uint16", "read it again from its origin as uint8"),
    ("palette", "train/images/2.png", "3 channels of uint8", "palette image is read as its colours"),
    ("colours", "train/images/2.png", "3 channels of uint8", "save it with 1 channel"),
    ("leak", "val/images/9.png", "the same pixels as train/images/2.png", "take one of them out"),
    ("contradiction", "train/images/5.png", "the same pixels as train/images/2.png, with another mask", "keep the right mask"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "file", "found", "remedy"), PLANTED, ids=[p[0] for p in PLANTED])
def test_a_fault_is_an_error_that_names_file_finding_and_remedy(
    root, capsys, what, file, found, remedy
):
    plant(root, what)
    more = ["data.ignore=[255]"] if what == "ignored" else []
    line, faults = refused(root, *more)
    planted = [f for f in errors(faults) if f["file"] == file and found in f["found"]]
    assert len(planted) == 1 and remedy in planted[0]["remedy"] and planted[0]["expected"]
    out = capsys.readouterr().out
    assert f"  {file}: {planted[0]['found']}" in out and planted[0]["remedy"] in out
    assert "seg.train" not in out and "\n" not in line and str(root) not in line.partition(";")[0]
    others = [f for f in errors(faults) if f is not planted[0]]
    if what != "contradiction":  # whose mask is another image's, too
        assert not others and line.startswith(f"{file}: ") and remedy in line


def test_binary_masks_of_0_and_255_get_the_setting_that_then_passes(root):
    for mask in root.glob("*/masks/*.png"):
        save(mask, load(mask) * 255)
    save(root / "train/masks/2.png", np.full((96, 80), 255, np.uint8))  # alone it would mislead
    _, faults = refused(root)
    assert len(faults) == 12 and {f["remedy"] for f in faults} == {"'data.values={0: 0, 255: 1}'"}
    assert look(root, "data.values={0: 0, 255: 1}")["errors"] == 0


@pytest.mark.parametrize(
    ("what", "file", "found"),
    [
        ("low byte", "train/images/2.png", "of neighbouring pixels differ by more than 200"),
        ("near leak", "val/images/9.png", "nearly train/images/2.png in train, correlation 0.9"),
    ],
)
def test_what_a_heuristic_finds_is_a_warning(root, what, file, found):
    plant(root, what)
    report = look(root)
    kind = what.replace(" ", "_")
    (fault,) = [fault for fault in report["faults"] if fault["kind"] == kind]
    assert fault["file"] == file and found in fault["found"] and report["errors"] == 0


def test_a_transposed_square_mask_is_a_warning(tmp_path):
    for i in range(8):
        image, mask = MADE.read(f"train-{i:03d}")
        for part in ("images", "masks"):
            (tmp_path / "square" / part).mkdir(parents=True, exist_ok=True)
        save(tmp_path / "square/images" / f"{i}.png", image[..., 0])
        save(tmp_path / "square/masks" / f"{i}.png", mask.T if i == 4 else mask)
    (fault,) = look(tmp_path / "square")["faults"]
    assert fault["severity"] == "warning"
    assert fault["file"] == "masks/4.png" and "transposed" in fault["found"]


def test_a_class_that_never_occurs_is_an_error_and_one_that_validation_lacks_a_warning(root):
    line, faults = refused(root, "data.classes=[membrane,cell,synapse]")
    assert line.startswith("synapse: class 2 has no pixel; leave it out of data.classes")
    assert len(faults) == 1
    labels = load(root / "train/masks/2.png")
    labels[:9, :9] = 2
    save(root / "train/masks/2.png", labels)
    report = look(root, "data.classes=[membrane,cell,synapse]")
    (fault,) = report["faults"]
    assert fault["severity"] == "warning" and "in no image of val" in fault["found"]


def test_a_class_that_training_lacks_is_an_error_whose_remedy_corrects_it(root):
    whole = root.parent / "whole"
    for part in ("images", "masks"):
        (whole / part).mkdir(parents=True)
        for file in root.glob(f"*/{part}/*"):
            file.rename(whole / part / file.name)
    seed = "data.split_seed=3"
    for name in look(whole, seed)["images"]:
        if name["split"] == "train":
            continue
        labels = load(whole / "masks" / f"{name['name']}.png")
        labels[:9, :9] = 2
        save(whole / "masks" / f"{name['name']}.png", labels)
    synapse = "data.classes=[membrane,cell,synapse]"
    line, faults = refused(whole, seed, synapse)
    assert [f["kind"] for f in faults] == ["untrained"] and "2 of val" in line
    remedy = faults[0]["remedy"]
    assert remedy.endswith("brings each class into each split") and remedy in line
    report = look(whole, seed, synapse, remedy.split()[0])
    assert report["errors"] == report["warnings"] == 0


def test_all_faults_are_listed_at_once_the_most_important_first(root, capsys):
    for what, n in (("truncated", 0), ("no mask", 1), ("no image", 3), ("nan", 4), ("index", 5), ("transposed", 6), ("leak", 7)):  # fmt: skip
        for part in ("images", "masks"):
            (root / f"train/{part}/2.png").rename(root / f"train/{part}/kept.png")
            (root / f"train/{part}/{n}.png").rename(root / f"train/{part}/2.png")
        plant(root, what)
        for part in ("images", "masks"):
            for file in (root / f"train/{part}").glob("2.*"):
                file.rename(file.with_stem(str(n)))
            (root / f"train/{part}/kept.png").rename(root / f"train/{part}/2.png")
    line, faults = refused(root)
    kinds = [f["kind"] for f in faults]
    assert kinds == ["unreadable", "no_mask", "no_image", "pixels", "size", "values", "leak"]
    assert line.startswith("train/images/0.png: not a readable image")
    assert "and 6 more errors" in line
    out = capsys.readouterr().out
    for n in (0, 1, 3, 4, 5, 6):
        assert f"/{n}." in out
    assert [out.index(f"error: {f['what']}") for f in faults] == sorted(
        out.index(f"error: {f['what']}") for f in faults
    )


def test_nothing_is_changed_where_the_data_lies(root):
    plant(root, "no mask")
    before = {f: f.read_bytes() for f in root.rglob("*") if f.is_file()}
    refused(root)
    assert {f: f.read_bytes() for f in root.rglob("*") if f.is_file()} == before


def test_lists_and_stratified_draws_are_checked_too_when_files_are_wrong(root):
    whole = root.parent / "whole"
    for part in ("images", "masks"):
        (whole / part).mkdir(parents=True)
        for file in root.glob(f"*/{part}/*"):
            file.rename(whole / part / file.name)
    lists = root.parent / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("\n".join(str(i) for i in range(8)))
    (lists / "val.txt").write_text("\n".join(str(i) for i in range(8, 12)))
    assert look(whole, f"data.lists={lists}")["splits"]["val"]["images"] == 4
    (whole / "masks/3.png").unlink()
    save(whole / "masks/5.png", np.full((96, 80), 9, np.uint8))
    for option in (f"data.lists={lists}", "data.stratify=true"):
        _, faults = refused(whole, option)
        assert [f["file"] for f in errors(faults)] == ["images/3.png", "masks/5.png"]


def test_duplicates_inside_a_split_are_warnings(root):
    save(root / "train/images/a.png", load(root / "train/images/2.png"))
    save(root / "train/masks/a.png", load(root / "train/masks/2.png"))
    save(root / "train/images/b.png", load(root / "train/images/3.png"), quality=80)
    pixels = np.clip(load(root / "train/images/3.png") * 0.7 + 30, 0, 255).astype(np.uint8)
    save(root / "train/images/b.png", pixels)
    save(root / "train/masks/b.png", load(root / "train/masks/3.png"))
    report = look(root)
    assert report["errors"] == 0
    assert [(f["kind"], f["file"]) for f in report["faults"]] == [
        ("repeated", "train/images/a.png"), ("near_repeated", "train/images/3.png"),
    ]  # fmt: skip
    assert "nearly train/images/b.png" in report["faults"][1]["found"]


def test_a_mask_copied_to_another_image_is_a_warning(root):
    save(root / "train/masks/4.png", load(root / "train/masks/2.png"))
    (fault,) = look(root)["faults"]
    assert (fault["kind"], fault["file"]) == ("same_mask", "train/masks/4.png")
    assert "pixel by pixel train/masks/2.png" in fault["found"]


@pytest.mark.parametrize(("factor", "found"), [(1, "8 bits"), (16, "12 bits"), (257, None)])
def test_16_bit_images_of_fewer_bits_are_a_warning_with_the_factor(root, factor, found):
    for file in root.glob("*/images/*.png"):
        pixels = load(file).astype(np.uint16) * factor
        pixels[0, 0] = 255 * factor
        save(file, pixels)
    faults = look(root)["faults"]
    if found is None:
        assert not faults
    else:
        assert [f["kind"] for f in faults] == ["depth"] and found in faults[0]["found"]
        assert "loader.percentiles=[1,99]" in faults[0]["remedy"]
        assert f"multiply by {256 // factor}" in faults[0]["remedy"]


def test_palettes_grey_colours_and_flat_images_are_warnings(root):
    for file in root.glob("*/images/*.png"):
        save(file, np.repeat(load(file)[..., None], 3, axis=-1))
    save(root / "train/images/1.png", np.full((96, 80, 3), 9, np.uint8))
    assert [f["kind"] for f in look(root)["faults"]] == ["flat", "grey"]
    for file in root.glob("*/images/*.png"):
        picture = Image.fromarray(load(file)[..., 0]).convert("P")
        picture.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
        picture.save(file)
    assert [f["kind"] for f in look(root)["faults"]] == ["flat", "palette"]


def test_overlapping_classes_are_checked_plane_by_plane(planes_root):
    given = ["data.classes=[nucleus,vesicle]", "data.task=overlapping", "data.ignore=[7]"]
    report = look(planes_root, *given)
    assert report["errors"] == 0
    planes = [tifffile.imread(f)[1] for f in sorted((planes_root / "masks").iterdir())]
    found = {i["name"]: i["pixels"]["vesicle"] for i in report["images"]}
    assert [found[str(i)] for i in range(6)] == [int(p.sum()) for p in planes]
    stack = tifffile.imread(planes_root / "masks/2.tif")
    stack[0, 20, 20] = 9
    tifffile.imwrite(planes_root / "masks/2.tif", stack, photometric="minisblack")
    tifffile.imwrite(planes_root / "masks/4.tif", stack[:1], photometric="minisblack")
    _, faults = refused(planes_root, *given)
    told = {f["file"]: f["found"] for f in errors(faults)}
    assert "mask value [9] not declared" in told["masks/2.tif"]
    assert "1 pages of 40x56" in told["masks/4.tif"]


@pytest.mark.parametrize("given", [["data=membranes", "data.size=64"], ["data=isbi2012"]])
def test_every_source_is_checked(stack_root, tmp_path, given):
    root = [f"data.root={stack_root}"] if given == ["data=isbi2012"] else []
    report = check_data(config([*given, *root, f"output={tmp_path / 'out'}", "panels=3"]))
    assert report["errors"] == 0 and set(report["classes"]) == {"membrane", "cell"}


def test_an_earlier_check_is_replaced_and_other_files_are_not(root):
    output = f"output={root.parent / 'out'}"
    look(root, output)
    save(root / "train/images/1.png", np.full((96, 80), 9, np.uint8))
    look(root, output, "panels=0")
    content = json.loads((root.parent / "out/check.json").read_text())
    assert [f["kind"] for f in content["faults"]] == ["flat"]
    assert not (root.parent / "out/sheet.png").exists()
    for name, text in (("sheet.png", "mine"), ("check.json", '{"data": "mine"}')):
        (root.parent / "own").mkdir(exist_ok=True)
        (root.parent / "own" / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} in it is not of seg\.check"):
            look(root, f"output={root.parent / 'own'}")
        assert (root.parent / "own" / name).read_text() == text
        (root.parent / "own" / name).unlink()


@pytest.mark.parametrize("change", ["jpeg", "brightness"])
def test_a_copy_in_another_split_is_an_error_of_the_check_and_does_not_stop_training(root, change):
    pixels = load(root / "train/images/2.png")
    copy = (pixels * 0.8 + 20).astype(np.uint8)
    if change == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
        copy = np.array(Image.open(buffer))
    save(root / "val/images/9.png", copy)
    line, faults = refused(root)
    assert line.startswith("val/images/9.png: in val, nearly train/images/2.png in train")
    assert [f["kind"] for f in errors(faults)] == ["copy_leak"]
    assert look(root, "loader.skip_checks=[copy_leak]")["errors"] == 0
    source = instantiate_node(config(words(root)).data, "data")
    assert not [w for w in DataModule(source, check=True).warnings if "leak" in w.kind]


def test_each_check_of_readable_files_has_a_switch_for_check_and_training(root):
    for part in ("images", "masks"):
        save(root / "val" / part / "9.png", load(root / "train" / part / "2.png"))
    assert errors(refused(root)[1])[0]["kind"] == "leak"
    source = instantiate_node(config(words(root)).data, "data")
    with pytest.raises(DataError, match=r"loader\.skip_checks=\[leak\] trains all the same"):
        DataModule(source, crop=32, check=True)
    DataModule(source, crop=32, check=True, skip_checks=["leak"])
    assert look(root, "loader.skip_checks=[leak,copy_leak]")["errors"] == 0
    for kind in ("leek", "unreadable"):
        with pytest.raises(ValueError, match=rf"skip_checks has \['{kind}'\]; valid are"):
            look(root, f"loader.skip_checks=[{kind}]")
        with pytest.raises(ValueError, match=rf"skip_checks has \['{kind}'\]; valid are"):
            DataModule(source, crop=32, skip_checks=[kind])


def test_masks_of_a_palette_are_one_group_with_one_remedy_that_then_passes(root, capsys):
    colours = np.array([[10, 20, 30], [200, 0, 0]], np.uint8)
    for n, file in enumerate(sorted(root.glob("*/masks/*.png"))):
        painted = colours[load(file)]
        painted[0, :n] = 255  # a third colour, in more pixels from file to file
        save(file, painted)
    _, faults = refused(root)
    (remedy,) = {f["remedy"] for f in faults}
    assert len(faults) == 12 and "[10, 20, 30]" in remedy and "CLASS: [255, 255, 255]" in remedy
    assert capsys.readouterr().out.count("remedy:") == 1
    palette = "data.palette={membrane: [10, 20, 30], cell: [200, 0, 0]}"
    assert look(root, palette, "data.ignore=[[255, 255, 255]]")["errors"] == 0


def test_jpeg_masks_are_read_by_a_threshold_as_the_check_says(root):
    truth = {}
    for file in sorted(root.glob("*/masks/*.png")):
        labels = cv2.resize(load(file), (160, 192), interpolation=cv2.INTER_NEAREST)
        image = root / file.parent.parent.name / "images" / file.name
        save(image, cv2.resize(load(image), (160, 192)))
        truth[f"{file.parent.parent.name}/{file.stem}"] = labels
        save(file.with_suffix(".jpg"), labels * 255, quality=90)
        file.unlink()
    _, faults = refused(root)
    assert {f["kind"] for f in faults} == {"noise"}
    assert "data.mask_threshold=127" in faults[0]["remedy"]
    assert look(root, "data.mask_threshold=127")["errors"] == 0
    source = instantiate_node(config(words(root, "data.mask_threshold=127")).data, "data")
    for name, labels in truth.items():
        assert (source.read(name)[1] == labels).all()
    for option, words_ in (
        ("data.values={0: 0, 255: 1}", "beside data.values"),
        ("data.classes=[a,b,c]", "two classes"),
    ):
        with pytest.raises(DataError, match=words_):
            look(root, "data.mask_threshold=127", option)


def test_many_objects_or_classes_in_a_lossless_mask_are_no_noise(root):
    ids = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((9, 8), int))
    ids = np.pad(ids, ((0, 6), (0, 0))).astype(np.uint8)
    save(root / "train/masks/2.png", ids)
    save(root / "train/masks/3.png", np.minimum(ids, 12))
    _, faults = refused(root)
    assert [f["kind"] for f in errors(faults)] == ["values", "values"]


def test_a_wrong_config_is_reported_in_one_line(root, tmp_path):
    with pytest.raises(MISTAKES, match=r"data\.classes is not set.*hold \[0, 1\]"):
        look(root, "data.classes=null")
    with pytest.raises(MISTAKES, match="no such folder"):
        look(tmp_path / "nowhere")


def test_the_command_exits_2_with_one_line_and_0_with_the_line_to_train_next(
    root, monkeypatch, capsys
):
    def typed() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seg.check", *words(root)])
        try:
            main()
        except SystemExit as left:
            return left.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, _ = typed()
    words_kept = f"data=folder data.root={root} 'data.classes=[membrane,cell]'"
    train, settings = out.splitlines()[-2:]
    assert code == 0 and train == f"next: python -m seg.train {words_kept}"
    assert settings.endswith(
        f"for this data and machine: python -m seg.plan {words_kept} budget=30m"
    )
    plant(root, "255")
    code, out, said = typed()
    assert code == 2 and said.startswith("error: train/masks/2.png: mask value [255]")
    assert said.count("\n") == 1 and "remedy:" in out


BIG = [i[..., 0] for i, _ in (Membranes(size=192, train=10).read(f"train-{n:03d}") for n in range(10))]  # fmt: skip


def pairs_of(*images: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of similar images among the made ones and these, numbered from 10."""
    return {
        (p.first, p.second)
        for p in similar_pairs(np.stack([make_thumbnail(i) for i in (*BIG, *images)]))
    }


@given(st.integers(0, 9), st.floats(0.4, 1.4), st.integers(-30, 30))
@settings(max_examples=25, deadline=None)
def test_another_brightness_and_contrast_is_nearly_the_same_image(which, contrast, brightness):
    changed = np.clip(BIG[which] * contrast + brightness, 0, 255).astype(np.uint8)
    assert pairs_of(changed) == {(which, 10)}


@given(st.integers(0, 9), st.sampled_from([(0, 1), (1, 0), (1, 1), (-1, 0), (-1, 1)]))
@settings(max_examples=20, deadline=None)
def test_a_shift_by_one_pixel_is_nearly_the_same_image(which, shift):
    assert pairs_of(np.roll(BIG[which], shift, (0, 1))) == {(which, 10)}


@given(st.integers(0, 9), st.integers(20, 95))
@settings(max_examples=20, deadline=None)
def test_a_jpeg_of_it_is_nearly_the_same_image(which, quality):
    buffer = io.BytesIO()
    Image.fromarray(BIG[which]).save(buffer, "JPEG", quality=quality)
    assert pairs_of(np.array(Image.open(buffer))) == {(which, 10)}


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_different_made_images_are_not_alike(seed):
    made = Membranes(size=64, train=12, data_seed=seed)
    images = [made.read(name)[0][..., 0] for name in made.splits["train"]]
    assert similar_pairs(np.stack([make_thumbnail(i) for i in images])) == []


def test_what_all_images_share_makes_no_two_of_them_alike():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-128:128, -128:128]
    images = []
    for _ in range(20):  # a lamp's light, and eight cells
        image = 180 * np.exp(-(y**2 + x**2) / 20000) + rng.normal(0, 4, y.shape)
        for top, left in rng.integers(10, 230, (8, 2)):
            image[top : top + 12, left : left + 12] -= 60
        images.append(image)
    thumbs = np.stack([make_thumbnail(i) for i in images])
    flat = thumbs.reshape(20, -1)
    assert (flat @ flat.T).min() > MIN_CORRELATION  # the light alone would do
    assert similar_pairs(thumbs) == []


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("isbi2012", ["data=isbi2012"]),
        ("vnc", ["experiment=vnc"]),
        pytest.param("camvid", ["experiment=camvid"], marks=pytest.mark.slow),  # 235 images
    ],
)
def test_the_real_data_has_no_error(name, given, tmp_path):
    started = time.process_time()
    report = check_data(config([*given, f"data.root={real(name)}", f"output={tmp_path / 'o'}"]))
    assert report["errors"] == 0
    kinds = {fault["kind"] for fault in report["faults"]}
    assert kinds == ({"near_repeated"} if name == "camvid" else set())  # CamVid is a video
    if name == "isbi2012":
        assert time.process_time() - started < 5


def test_files_that_are_not_read_are_listed_and_said_in_training(root, capsys):
    for name in ("a.czi", "b.czi", "c", "notes.txt"):
        (root / "train/images" / name).write_bytes(b"")
    (root / "val/masks/d.xyz").write_bytes(b"")
    report = look(root)
    found = {
        fault["file"]: (fault["kind"], fault["severity"], fault["remedy"])
        for fault in report["faults"]
    }
    assert found == {
        "train/images/a.czi": (
            "passed_over",
            "warning",
            "convert .czi: bfconvert IN.czi OUT.ome.tif",
        ),
        "train/images/b.czi": (
            "passed_over",
            "warning",
            "convert .czi: bfconvert IN.czi OUT.ome.tif",
        ),
        "train/images/c": ("passed_over", "warning", "name it NAME.dcm if it is DICOM"),
        "val/masks/d.xyz": ("passed_over", "warning", "save it as TIFF or PNG, or take it out"),
    }
    capsys.readouterr()
    Folder(str(root), ["membrane", "cell"])
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0].startswith(f"{root}/train/images")
        and "3 files passed over: 1 without a suffix, 2 .czi" in said[0]
    )
    assert "bfconvert IN.czi OUT.ome.tif" in said[0] and "1 file passed over: 1 .xyz" in said[1]
    for file in (root / "train/images").glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"no images here; .*; 3 files passed over"):
        Folder(str(root), ["membrane", "cell"])
