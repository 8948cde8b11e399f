"""Label errors of a cross-validation: the table, outlines and pictures, and corrected copies of the masks."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from small_runs import FOLDED, config, folded_run

from seg import api
from seg.commands.crossval import crossval
from seg.commands.doubt import doubt_labels
from seg.errors import DataError, RunError, UserError
from seg.files import UnsafePath
from seg.inference.doubt_page import DoubtCard, render_doubt_page
from seg.training.run import train

IMAGES, WRONG = 12, slice(20, 34)


def read_picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def cv(tmp_path_factory) -> Path:
    """A cross-validation whose probabilities are replaced by those of a good network; in image 3 an object is missing."""
    place, rng = tmp_path_factory.mktemp("doubt"), np.random.default_rng(0)
    root = place / "data"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    truths = []
    for i in range(IMAGES):
        truth = np.zeros((64, 64), np.uint8)
        truth[WRONG, 8:22] = truth[40:52, 30 + i : 44 + i] = 1
        label = truth.copy()
        if i == 3:
            label[WRONG, 8:22] = 0
        image = 60 + 90 * truth + rng.integers(0, 20, truth.shape)
        Image.fromarray(image.astype(np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(label).save(root / f"masks/{i}.png")
        truths.append(truth)
    crossval(config("crossval", *folded_run(root, place / "cv", "data.folds=2")))
    for i, truth in enumerate(truths):
        p = np.clip(ndimage.gaussian_filter(truth.astype(np.float32), 1), 0.01, 0.99)
        tifffile.imwrite(
            place / f"cv/out-of-fold/probabilities/{i}.tif", np.stack([1 - p, p]), photometric="minisblack"
        )  # fmt: skip
    return place / "cv"


@pytest.fixture(scope="module")
def table(cv, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("out") / "doubt"
    doubt_labels(config("doubt", f"run={cv}", f"output={output}"))
    return output / "doubt.csv"


def test_the_planted_error_is_the_first_row_with_its_box_outline_and_picture(table, cv, capsys):
    row = read_table(table)[0]
    assert (row["image"], row["kind"], row["said"], row["meant"]) == ("3", "region", "out", "in")
    left, top, width, height = (int(row[k]) for k in ("left", "top", "width", "height"))
    assert abs(left - 8) <= 2 and abs(top - 20) <= 2 and abs(width - 14) <= 3 >= abs(height - 14)
    assert row["stands_out"] == "yes" and row["accept"] == "" and float(row["confidence"]) > 0.8
    assert [r["stands_out"] for r in read_table(table)[1:]].count("yes") == 0
    outline = json.loads((table.parent / "outlines/3.geojson").read_text())["features"][0]
    assert outline["properties"]["classification"]["name"] == "out -> in"
    xs, ys = np.array(outline["geometry"]["coordinates"][0]).T
    assert (xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)) == (left, top, width, height)
    picture = read_picture(table.parent / "panels/001.png")
    assert picture.ndim == 3 and picture.std() > 10
    content = json.loads((table.parent / "doubt.json").read_text())
    assert content["stand_out"] == 1 and content["images"] == IMAGES


def test_from_python_the_regions_are_a_table(cv, table, tmp_path):
    found = api.doubt(cv, "panels=1", output=tmp_path / "doubt")
    rows = read_table(table)
    assert found.table.astype(str).to_dict("records")[0]["image"] == rows[0]["image"] == "3"
    assert list(found.table["evidence"]) == pytest.approx([float(row["evidence"]) for row in rows])
    assert list(found.table["accept"]) == [""] * len(rows) and len(found.panels) == 1
    assert "<img" in found._repr_html_()
    reviewed = accept(table, tmp_path / "reviewed.csv", "ignore")
    corrected = api.doubt(cv, reviewed=reviewed, output=tmp_path / "new")
    assert corrected.folder == tmp_path / "new" and corrected.table["accept"][0] == "ignore"
    assert (corrected.folder / "masks/3.png").is_file() and corrected.panels == []


def accept(table: Path, file: Path, word: str) -> Path:
    """Write a reviewed copy of the table, whose first row is accepted."""
    lines = table.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1] + word, *lines[2:]]) + "\n")
    return file


def test_the_page_is_reviewed_by_keys_and_its_saved_table_corrects_the_masks(cv, table, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, said = browser.new_page(accept_downloads=True), []
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto((table.parent / "doubt.html").as_uri())
        page.keyboard.press("i")
        assert page.inner_text("#count") == "1 ignored, 0 changed; not saved"
        page.keyboard.press("c")
        assert page.locator("article.current button[aria-pressed=true]").inner_text() == "It is in"
        with page.expect_download() as download:
            page.keyboard.press("s")
        download.value.save_as(tmp_path / "reviewed.csv")
        assert page.inner_text("#count") == "0 ignored, 1 changed"
        browser.close()
    assert said == []
    rows, saved = read_table(table), read_table(tmp_path / "reviewed.csv")
    assert saved == [rows[0] | {"accept": "class"}, *rows[1:]]
    words = [f"run={cv}", f"reviewed={tmp_path / 'reviewed.csv'}", f"output={tmp_path / 'new'}"]
    doubt_labels(config("doubt", *words))
    assert read_picture(tmp_path / "new/masks/3.png")[27, 15] == 1


def test_names_of_images_and_classes_make_no_element():
    evil = "<script>alert(1)</script>"
    card = DoubtCard(evil, "region", evil, True, "data:,")
    page = render_doubt_page([("image", "accept"), (evil, "")], [card], evil)
    assert page.count("<script") == 2 and evil not in page


@pytest.mark.parametrize(("word", "value"), [("ignore", 255), ("class", 1)])
def test_an_accepted_region_is_corrected_in_a_copy_of_the_masks(
    cv, table, tmp_path, word, value, capsys
):
    root = cv.parent / "data"
    before = {file.name: file.read_bytes() for file in (root / "masks").iterdir()}
    reviewed = accept(table, tmp_path / "reviewed.csv", word)
    words = [f"run={cv}", f"reviewed={reviewed}", f"output={tmp_path / 'new'}"]
    doubt_labels(config("doubt", *words))
    for name, content in before.items():
        assert (root / "masks" / name).read_bytes() == content
        old, new = read_picture(root / "masks" / name), read_picture(tmp_path / "new/masks" / name)
        changed = old != new
        assert changed.any() == (name == "3.png")
        assert not changed.any() or set(new[changed]) == {value}
    said = capsys.readouterr().out
    assert "python -m seg.train data=folder" in said and "skip_checks" not in said
    row = read_table(table)[0]
    assert (read_picture(tmp_path / "new/masks/3.png") != before_mask(root)).sum() == int(row["pixels"])  # fmt: skip
    with pytest.raises(UserError, match="holds something else"):
        doubt_labels(config("doubt", *words))


def test_the_suggested_training_reads_masks_that_are_ignored_as_a_whole(cv, tmp_path, capsys):
    shutil.copytree(cv.parent / "data", tmp_path / "data")
    Image.fromarray(read_picture(tmp_path / "data/masks/8.png")[::-1, ::-1]).save(
        tmp_path / "data/masks/3.png"
    )
    words = [f"run={cv}", f"data.root={tmp_path / 'data'}"]
    first = doubt_labels(config("doubt", *words, f"output={tmp_path / 'doubt'}"))[0]
    assert (first.image, first.doubt.kind) == ("3", "whole mask")
    reviewed = accept(tmp_path / "doubt/doubt.csv", tmp_path / "reviewed.csv", "ignore")
    capsys.readouterr()
    doubt_labels(config("doubt", *words, f"reviewed={reviewed}", f"output={tmp_path / 'new'}"))
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "seg.train"]
    training = [f"outputs={tmp_path / 'outputs'}", "loader.batch_size=2", *FOLDED[3:]]
    assert command[-1] == "loader.skip_checks=[ignored]"
    with pytest.raises(DataError, match=r"masks/3\.png: no pixel of a class, all are ignored"):
        train(config("train", *command[3:-1], *training))
    train(config("train", *command[3:], *training))


def before_mask(root: Path) -> np.ndarray:
    return read_picture(root / "masks/3.png")


def test_nothing_stands_out_of_right_labels(cv, tmp_path, capsys):
    own = tmp_path / "data"
    shutil.copytree(cv.parent / "data", own)
    mask = before_mask(own)
    mask[WRONG, 8:22] = 1
    Image.fromarray(mask).save(own / "masks/3.png")
    words = [f"run={cv}", f"data.root={own}", f"output={tmp_path / 'o'}"]
    assert not any(one.stands_out for one in doubt_labels(config("doubt", *words)))
    assert "nothing stands out among 12 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "no row is accepted"),
        ("yes", "line 2 has accept='yes'; ignore, class or nothing is needed"),
    ],
)
def test_a_table_that_is_not_filled_in_rightly_is_refused(cv, table, tmp_path, row, message):
    reviewed = accept(table, tmp_path / "r.csv", row)
    with pytest.raises(UserError, match=message):
        doubt_labels(
            config("doubt", f"run={cv}", f"reviewed={reviewed}", f"output={tmp_path / 'n'}")
        )
    assert not (tmp_path / "n").exists()


def test_a_row_that_is_no_region_is_refused(cv, table, tmp_path):
    reviewed = accept(table, tmp_path / "r.csv", "ignore")
    reviewed.write_text(reviewed.read_text().replace("3,region,", "4,region,"))
    with pytest.raises(UserError, match=r"image 4, box .*: no such region now"):
        doubt_labels(
            config("doubt", f"run={cv}", f"reviewed={reviewed}", f"output={tmp_path / 'n'}")
        )
    assert not (tmp_path / "n").exists()


def test_missing_or_foreign_files_are_named(cv, tmp_path):
    with pytest.raises(UserError, match=r"a folder of seg\.crossval is needed"):
        doubt_labels(config("doubt", f"run={tmp_path}"))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        doubt_labels(config("doubt", f"run={cv}", f"output={tmp_path}"))
    own = tmp_path / "cv"
    shutil.copytree(cv, own, symlinks=True)
    file = own / "out-of-fold/probabilities/5.tif"
    tifffile.imwrite(file, np.zeros((2, 8, 8), np.float32), photometric="minisblack")
    with pytest.raises(RunError, match=r"5.tif: its shape is \(8, 8, 2\)"):
        doubt_labels(config("doubt", f"run={own}"))
    for value in (2, np.nan):
        tifffile.imwrite(file, np.full((2, 64, 64), value, np.float32), photometric="minisblack")
        with pytest.raises((RunError, DataError), match=r"5\.tif: .*(no probabilities|finite)"):
            doubt_labels(config("doubt", f"run={own}"))
    file.unlink()
    with pytest.raises(RunError, match=r"5.tif: no such file; repeat seg.crossval with save="):
        doubt_labels(config("doubt", f"run={own}"))
    assert not (own / "doubt").exists()


def test_nothing_is_written_through_a_link(cv, tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "o"
    mine.mkdir()
    output.mkdir()
    (output / "doubt.json").write_text("{}")
    for name in ("panels", "outlines", "doubt.csv", "doubt.html"):
        (output / name).symlink_to(mine / name)
        with pytest.raises(UnsafePath, match=name):
            doubt_labels(config("doubt", f"run={cv}", f"output={output}"))
        (output / name).unlink()
    assert not list(mine.iterdir())
