"""Every layout of a folder of images, against masks that the test drew itself; every refusal, and its remedy."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from seg.cli.compose import compose_checked, instantiate_node
from seg.data import tiff as data_tiff
from seg.data.datasets.folder import Folder
from seg.data.image_io import count_pages, read_image, read_pages
from seg.errors import DataError

ABC = ["a", "b", "c"]
PALETTE = {"a": [255, 0, 9], "b": [[9, 0, 255], [0, 7, 0]], "c": [250, 128, 1]}
COLOURS = np.array([[255, 0, 9], [9, 0, 255], [250, 128, 1]], np.uint8)  # of a, b (the first), c
VOID = [224, 224, 192]
SIZE = (24, 20)  # px, height and width: a transposed mask would show


def labels(count: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    """Masks (N, H, W) uint8 in which every class occurs."""
    drawn = np.random.default_rng(seed).integers(0, classes, (count, *SIZE), np.uint8)
    drawn[:, 0, :classes] = np.arange(classes)
    return drawn


def greys(count: int, seed: int = 0) -> np.ndarray:
    """Images (N, H, W) uint8, all different."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE), np.uint8)


def save(file: Path, pixels: np.ndarray, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        tifffile.imwrite(file, pixels, **options)
    else:
        Image.fromarray(pixels).save(file, **options)


def as_stack(file: Path, pages: np.ndarray, **options) -> None:
    save(file, pages, photometric="minisblack", **options)


@pytest.fixture
def root(tmp_path) -> Path:
    """Six grey images, ``images/0.png`` to ``images/5.png``; the masks are the test's own."""
    for i, image in enumerate(greys(6)):
        save(tmp_path / "data/images" / f"{i}.png", image)
    return tmp_path / "data"


def opened(root: Path, classes: list[str] | None = ABC, **options) -> Folder:
    return Folder(str(root), classes, **options)


def mask_of(source: Folder, name: str) -> np.ndarray:
    return source.read(name)[1]


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found, expected)


def refusal(call, *words: str) -> str:
    """The message of a DataError: one line that has each of the words."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, (word, message)
    return message


def proposed(message: str, option: str) -> dict:
    """The option that a message proposes, as Hydra reads it off a command line."""
    found = re.search(rf"'data\.{option}=(.+?)'|data\.{option}=(\[[^\]]*\]|[^\s;,)]+)", message)
    assert found, message
    word = f"{option}={found[1] or found[2]}"
    return {option: OverridesParser.create().parse_override(word).value()}


def built(*words: str) -> Folder:
    """What a command line's ``data`` is."""
    return instantiate_node(compose_checked("train", list(words)).data, "data")


# colours


def painted(root: Path, suffix: str, colours: np.ndarray, **options) -> np.ndarray:
    """Masks of colours [first, ..., second of b, void] by class index; returns the indices."""
    truth = labels(6, 5)
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}{suffix}", colours[mask], **options)
    return np.array([0, 1, 2, 1, 255], np.uint8)[truth]


ALL = np.concatenate([COLOURS, [[0, 7, 0]], [VOID]]).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".bmp", {}), (".webp", {"lossless": True}), (".tif", {"photometric": "rgb"}),
     (".tif", {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}), (".ppm", {})],
)  # fmt: skip
def test_colours_become_the_classes_that_the_palette_names(root, suffix, options):
    if options.get("planarconfig"):
        truth = painted(root, suffix, ALL, photometric="rgb")
        for file in (root / "masks").iterdir():
            save(file, np.moveaxis(tifffile.imread(file), -1, 0), **options)
    else:
        truth = painted(root, suffix, ALL, **options)
    source = opened(root, palette=PALETTE, ignore=[VOID])
    for i in range(6):
        same(mask_of(source, str(i)), truth[i])
    assert source.colors == [(255, 0, 9), (9, 0, 255), (250, 128, 1)]


def test_alpha_is_no_colour_of_a_mask(root):
    seen = np.column_stack([ALL, np.array([0, 255, 128, 1, 77], np.uint8)])
    truth = painted(root, ".png", seen)
    source = opened(root, palette=PALETTE, ignore=[VOID])
    same(mask_of(source, "2"), truth[2])


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif"])
@pytest.mark.parametrize("transparency", [False, True])
def test_a_palette_file_gives_its_colours_where_data_palette_is_set(root, suffix, transparency):
    truth, order = labels(6), np.array([2, 0, 1], np.uint8)
    for i, mask in enumerate(truth):
        picture = Image.frombytes("P", SIZE[::-1], order[mask].tobytes())
        picture.putpalette(COLOURS[np.argsort(order)].flatten().tolist())
        (root / "masks").mkdir(exist_ok=True)
        clear = {"transparency": bytes([0, 200, 255])} if transparency and suffix == ".png" else {}
        picture.save(root / "masks" / f"{i}{suffix}", **clear)
    same(mask_of(opened(root, palette=PALETTE), "4"), truth[4])
    if suffix != ".gif":
        return same(mask_of(opened(root), "4"), order[truth[4]])  # else its indices
    message = refusal(lambda: opened(root).read("4"), "masks/4.gif", "a colour picture")
    assert set(proposed(message, "palette")["palette"]) == set(ABC)


def test_greys_are_colours_too_and_more_than_8_bits_are_none(root):
    for i, mask in enumerate(labels(6, 2)):
        save(root / "masks" / f"{i}.png", mask * 255)
    grey = {"a": [0, 0, 0], "b": [255, 255, 255]}
    same(mask_of(opened(root, ["a", "b"], palette=grey), "3"), labels(6, 2)[3])
    for i, mask in enumerate(labels(6, 2)):
        save(root / "masks" / f"{i}.png", mask * np.uint16(300))  # not to be clipped to 255
    source = opened(root, ["a", "b"], palette=grey)
    refusal(lambda: source.read("3"), str(root / "masks/3.png"), "uint16", "3 x 8 bits")


def test_an_undeclared_colour_is_named_with_the_file_and_its_remedy_mends_it(root):
    truth = painted(root, ".png", ALL)
    source = opened(root, palette=PALETTE)
    message = refusal(lambda: source.read("1"), str(root / "masks/1.png"), f"[{VOID}]", "data.ignore")  # fmt: skip
    assert "data.palette" in message
    mended = opened(root, palette=PALETTE, ignore=[VOID])
    same(mask_of(mended, "1"), truth[1])
    other = PALETTE | {"c": [PALETTE["c"], VOID]}
    same(mask_of(opened(root, palette=other), "1"), np.where(truth[1] == 255, 2, truth[1]))


def test_the_palette_proposed_for_a_colour_mask_is_taken_from_the_command_line(root):
    truth = labels(6)
    truth[:] = np.sort(truth.ravel())[::-1].reshape(truth.shape)  # the rest of this test: c, b, a
    truth[:, -1] = [0] * 10 + [1] * 6 + [2] * 4
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}.png", COLOURS[mask])
    source = opened(root)
    message = refusal(lambda: source.read("0"), str(root / "masks/0.png"), "a colour picture")
    word = re.search(r"'(data\.palette=.+?)'", message)[1]
    mended = built("data=folder", f"data.root={root}", "data.classes=[a,b,c]", word)
    colours = [proposed(message, "palette")["palette"][name] for name in ABC]
    same(np.array(colours, np.uint8)[mask_of(mended, "0")], COLOURS[truth[0]])


def test_more_colours_than_classes_are_placed_by_hand_and_a_photograph_is_told_as_one(root):
    painted(root, ".png", ALL)
    source = opened(root)
    message = refusal(lambda: source.read("0"), "a colour picture")
    assert message.count("CLASS: [") == 2
    save(root / "masks/0.png", np.dstack(list(greys(3))))
    refusal(lambda: source.read("0"), "photograph", "save one class index a pixel")


@pytest.mark.parametrize("array", [
    np.zeros((*SIZE, 2), np.uint8) + np.array([0, 9], np.uint8), np.zeros((*SIZE, 5), np.uint8) + np.arange(5, dtype=np.uint8),
    np.zeros((*SIZE, 3), np.uint16) + np.array([0, 9, 1000], np.uint16)], ids=["2 channels", "5 channels", "16 bits"])  # fmt: skip
def test_channels_that_are_no_colours_are_refused_and_no_palette_is_proposed(root, array):
    for i in range(6):
        as_stack(root / "masks" / f"{i}.tif", array, planarconfig="contig")
    for options in ({}, {"palette": PALETTE}):
        source = opened(root, **options)
        message = refusal(lambda source=source: source.read("0"), str(root / "masks/0.tif"))
        assert "data.palette={" not in message


def test_a_grey_mask_with_alpha_is_its_grey(root):
    truth = labels(6)
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}.png", np.dstack([mask, np.full_like(mask, 200)]))
    same(mask_of(opened(root), "5"), truth[5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"palette": {"a": [0, 0, 0], "b": [1, 1, 1]}}, ["data.palette names ['a', 'b']"]),
        ({"palette": PALETTE | {"d": [3, 3, 3]}}, ["data.palette names", "'d'", "no other"]),
        ({"palette": PALETTE | {"a": []}}, ["[] is no colour"]),
        ({"palette": PALETTE | {"a": [0, 0]}}, ["[0, 0] is no colour"]),
        ({"palette": PALETTE | {"a": [0, 0, 256]}}, ["[0, 0, 256] is no colour"]),
        ({"palette": PALETTE | {"a": [[0, 0, 1], [9, 0, 255]]}}, ["[9, 0, 255] twice"]),
        ({"palette": PALETTE, "ignore": [[0, 7, 0]]}, ["[0, 7, 0] twice"]),
        ({"palette": PALETTE, "ignore": [255]}, ["[255] is no colour"]),
        ({"palette": PALETTE, "values": {0: 0}}, ["data.values beside data.palette"]),
        ({"ignore": [[0, 7, 0]]}, ["a colour needs data.palette"]),
        (
            {"palette": PALETTE, "mask_layers": "pages"},
            ["data.palette beside data.mask_layers=pages"],
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_palette_that_can_not_be_is_refused(root, options, words):
    painted(root, ".png", ALL)
    refusal(lambda: opened(root, **options), *words)


# values


@pytest.mark.parametrize(
    ("options", "values"),
    [({}, [0, 128, 255]), ({"ignore": [255]}, [0, 7, 255]), ({"ignore": [9]}, [0, 1, 200]), ({}, [0, 1, 2, 255]),
     ({}, [300, 40000, 65535])],
    ids=str,
)  # fmt: skip
def test_the_values_that_a_message_proposes_are_taken(root, options, values):
    truth, kind = labels(6, len(values)), np.uint16 if max(values) > 255 else np.uint8
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}.png", np.array(values, kind)[mask])
    source = opened(root, **options)
    message = refusal(lambda: source.read("2"), str(root / "masks/2.png"), "not declared")
    option = "values" if "data.values=" in message else "ignore"
    found = mask_of(opened(root, **options | proposed(message, option)), "2")
    counted = [v for v in values if v not in options.get("ignore", [])]
    ids = {v: i if i < 3 else 255 for i, v in enumerate(counted)}
    same(found, np.array([ids.get(v, 255) for v in values], np.uint8)[truth[2]])


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf])
def test_fractions_in_a_mask_are_no_classes(root, value):
    for i, mask in enumerate(labels(6, 2)):
        save(root / "masks" / f"{i}.tif", np.where(mask == 1, np.float32(value), 0))
    source = opened(root)
    message = refusal(lambda: source.read("0"), str(root / "masks/0.tif"), "save whole numbers")
    assert "data.values" not in message


def test_whole_numbers_of_any_type_are_classes(root):
    truth = labels(6)
    for kind in (np.float32, np.int32, np.uint16, np.int8):
        for i, mask in enumerate(truth):
            save(root / "masks" / f"{i}.tif", mask.astype(kind))
        same(mask_of(opened(root), "0"), truth[0])


# layers


def planes_of(mask: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.stack([mask == k for k in range(classes)]).astype(np.uint8)


@pytest.mark.parametrize("on", [1, 255])
@pytest.mark.parametrize("lacking", [0, 1])
def test_pages_are_the_classes_and_the_first_may_be_the_rest(root, on, lacking):
    truth = labels(6)
    for i, mask in enumerate(truth):
        as_stack(root / "masks" / f"{i}.tif", planes_of(mask)[lacking:] * np.uint8(on))
    source = opened(root, mask_layers="pages")
    for i in range(6):
        same(mask_of(source, str(i)), truth[i])


def test_what_no_page_claims_is_ignored_unless_a_class_is_the_rest(root):
    truth = labels(6)
    for i, mask in enumerate(truth):
        planes = planes_of(mask)
        planes[1] = 0  # b is nowhere
        as_stack(root / "masks" / f"{i}.tif", planes)
    same(mask_of(opened(root, mask_layers="pages"), "0"), np.where(truth[0] == 1, 255, truth[0]))


def test_channels_of_one_picture_are_layers_too(root):
    truth = labels(6)
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}.png", np.moveaxis(planes_of(mask) * 255, 0, -1).copy())
    same(mask_of(opened(root, mask_layers="pages"), "3"), truth[3])


def test_void_in_a_layer_is_ignored_where_no_class_is(root):
    truth = labels(6)
    for i, mask in enumerate(truth):
        planes = planes_of(mask)[1:]
        planes[0, :, :4] = 7
        as_stack(root / "masks" / f"{i}.tif", planes)
    expected = truth[0].copy()
    expected[:, :4] = np.where(expected[:, :4] == 2, 2, 255)
    same(mask_of(opened(root, mask_layers="pages", ignore=[7]), "0"), expected)


@pytest.mark.parametrize("kind", ["pages", "folders"])
def test_overlapping_layers_keep_every_class_of_a_pixel(root, kind):
    drawn = np.random.default_rng(5).integers(0, 2, (6, 3, *SIZE), np.uint8)
    drawn[:, :, 0] = 255
    for i, planes in enumerate(drawn):
        if kind == "pages":
            as_stack(root / "masks" / f"{i}.tif", planes)
        for name, plane in zip(ABC, planes, strict=True):
            if kind == "folders":
                save(root / "masks" / name / f"{i}.png", plane)
    values = {"values": {0: 0, 1: 1}, "ignore": [255]}
    source = opened(root, mask_layers=kind, task="overlapping", **values)
    for i, planes in enumerate(drawn):
        same(mask_of(source, str(i)), np.moveaxis(planes, 0, -1))


def in_folders(root: Path, truth: np.ndarray, names: list[str], skip: str = "") -> None:
    for i, mask in enumerate(truth):
        for k, name in enumerate(ABC):
            if name in names and not (name == skip and i == 2):
                save(root / "masks" / name / f"{i}.png", (mask == k).astype(np.uint8) * 255)


@pytest.mark.parametrize("without", ["", "a", "b", "c"])
def test_a_folder_for_each_class_and_one_may_be_the_rest(root, without):
    truth = labels(6)
    in_folders(root, truth, [name for name in ABC if name != without])
    source = opened(root, mask_layers="folders")
    for i in range(6):
        same(mask_of(source, str(i)), truth[i])


def test_a_class_without_a_file_is_nowhere_in_that_image_alone(root):
    truth = labels(6)
    in_folders(root, truth, ["b", "c"], skip="b")
    source = opened(root, mask_layers="folders")
    same(mask_of(source, "1"), truth[1])
    same(mask_of(source, "2"), np.where(truth[2] == 1, 0, truth[2]))  # b is nowhere, a the rest
    in_folders(root, truth, ABC)
    (root / "masks/b/2.png").unlink()
    same(mask_of(opened(root, mask_layers="folders"), "2"), np.where(truth[2] == 1, 255, truth[2]))


def test_layers_that_are_wrong_are_told_with_file_and_classes(root):
    in_folders(root, labels(6), ABC)
    save(root / "masks/b/3.png", np.full(SIZE, 255, np.uint8))
    source = opened(root, mask_layers="folders")
    message = refusal(
        lambda: source.read("3"), "masks/a/3.png", "several classes", "['a', 'b', 'c']"
    )
    overlapping = opened(root, mask_layers="folders", **proposed(message, "task"))
    assert mask_of(overlapping, "3").shape == (*SIZE, 3)
    save(root / "masks/b/4.png", np.zeros((3, 4), np.uint8))
    refusal(lambda: source.read("4"), "masks/a/4.png", "(3, 4), (24, 20)")
    save(root / "masks/b/5.png", np.full(SIZE, 3, np.uint8))
    message = refusal(lambda: source.read("5"), "masks/b/5.png", "mask value [3]")
    save(root / "masks/c/1.png", COLOURS[labels(1)[0]])
    message = refusal(lambda: source.read("1"), "masks/c/1.png", "a colour picture")
    assert "palette" not in message  # there is none for layers
    (root / "masks/a/0.png").unlink()
    (root / "masks/b/0.png").unlink()
    (root / "masks/c/0.png").unlink()
    refusal(lambda: opened(root, mask_layers="folders"), "images/0.png", "no mask of that name")


def test_folders_that_are_no_classes_or_lack_are_refused(root):
    refusal(lambda: opened(root, mask_layers="folders"), "masks: no such folder", "each class")
    in_folders(root, labels(6), ["a"])
    refusal(lambda: opened(root, mask_layers="folders"), "['a']", "['a', 'b', 'c']", "one of these may be missing")  # fmt: skip
    refusal(lambda: opened(root, None, mask_layers="folders"), "data.classes is not set", "['a']")
    in_folders(root, labels(6), ["b"])
    assert opened(root, mask_layers="folders").has_files == [True, True, False]
    overlapping = {"mask_layers": "folders", "task": "overlapping"}
    refusal(lambda: opened(root, **overlapping), "no file for ['c']")
    save(root / "masks/other/0.png", np.zeros(SIZE, np.uint8))
    refusal(lambda: opened(root, mask_layers="folders"), "'other'", "['a', 'b', 'c']")


@pytest.mark.parametrize("pages", [1, 4])
def test_another_number_of_pages_than_of_classes_is_refused(root, pages):
    for i in range(6):
        as_stack(root / "masks" / f"{i}.tif", np.zeros((pages, *SIZE), np.uint8))
    source = opened(root, mask_layers="pages")
    refusal(
        lambda: source.read("0"), "masks/0.tif", f"{pages} pages of 24x20 px", "['a', 'b', 'c']"
    )
    source = opened(root, task="overlapping")
    refusal(lambda: source.read("0"), "masks/0.tif", "data.task=overlapping needs one a class")


# stacks


def test_slices_are_images_each_with_its_own_page_of_the_mask(tmp_path):
    lengths, volumes = [3, 12, 1], {}
    for n, length in enumerate(lengths):
        volumes[f"s{n}"] = greys(length, n), labels(length, 3, n)
        as_stack(tmp_path / "images" / f"s{n}.tif", volumes[f"s{n}"][0])
        as_stack(tmp_path / "masks" / f"s{n}.tif", volumes[f"s{n}"][1], compression="zlib")
    source = opened(tmp_path, pages="slices")
    names = [f"s0-{i}" for i in range(3)] + [f"s1-{i:02d}" for i in range(12)] + ["s2"]
    assert list(source.files) == names
    assert sorted(n for part in source.splits.values() for n in part) == sorted(names)
    for name in names:
        stack, _, page = name.partition("-")
        image, mask = source.read(name)
        same(image[..., 0], volumes[stack][0][int(page or 0)])
        same(mask, volumes[stack][1][int(page or 0)])


def test_two_files_are_a_volume_and_its_labels(tmp_path):
    volume, truth = greys(5), labels(5)
    as_stack(tmp_path / "volume.tif", volume.astype(np.uint16) * 200)
    as_stack(tmp_path / "labels.tiff.tif", truth)
    files = {"images": "volume.tif", "masks": "labels.tiff.tif"}
    source = opened(tmp_path, pages="slices", contiguous=True, **files)
    assert source.splits == {"train": [f"volume-{i}" for i in range(4)], "val": ["volume-4"]}
    image, mask = source.read("volume-3")
    same(image[..., 0], volume[3] * np.uint16(200))
    same(mask, truth[3])
    refusal(lambda: opened(tmp_path, images="volume.tif", masks="nothing.tif", pages="slices"), "nothing.tif: no such folder")  # fmt: skip


def test_pages_nobody_asked_for_are_refused_and_both_remedies_are_taken(root):
    for i in range(6):
        as_stack(root / "images" / f"{i}.tif", greys(4))
        (root / "images" / f"{i}.png").unlink()
        as_stack(root / "masks" / f"{i}.tif", labels(4))
    source = opened(root)
    message = refusal(lambda: source.read("3"), "images/3.tif", "4 pages, but one image")
    assert "data.pages=slices" in message and "data.pages=channels" in message
    same(mask_of(opened(root, pages="slices"), "3-2"), labels(4)[2])
    message = refusal(lambda: opened(root, pages="channels").read("3"), "masks/3.tif", "4 pages, but one mask")  # fmt: skip
    layered = opened(root, [*ABC, "d"], pages="channels", **proposed(message, "mask_layers"))
    assert layered.mask_layers == "pages"


def test_stacks_of_other_lengths_and_pages_with_faults_are_named(tmp_path):
    as_stack(tmp_path / "images/s.tif", greys(4))
    as_stack(tmp_path / "masks/s.tif", labels(3))
    refusal(lambda: opened(tmp_path, pages="slices"), "masks/s.tif: 3 pages", "images/s.tif has 4", "data.pages=slices")  # fmt: skip
    wrong = labels(4)
    wrong[2, 5, 5] = 77
    as_stack(tmp_path / "masks/s.tif", wrong)
    source = opened(tmp_path, pages="slices")
    same(mask_of(source, "s-1"), wrong[1])
    refusal(lambda: source.read("s-2"), "masks/s.tif, page 2: mask value [77]")
    floats = greys(4).astype(np.float32)
    floats[3, 0, 0] = np.inf
    as_stack(tmp_path / "images/s.tif", floats)
    refusal(lambda: source.read("s-3"), "images/s.tif, page 3: 1 of 480 values are NaN or infinite")
    as_stack(tmp_path / "images/s.tif", np.zeros((4, 9, 9), np.uint8))
    refusal(lambda: source.read("s-1"), "masks/s.tif", "24x20 px, and its image", "9x9")


def test_lists_name_stacks_or_their_pages(tmp_path):
    for n in range(3):
        as_stack(tmp_path / "images" / f"s{n}.tif", greys(3, n))
        as_stack(tmp_path / "masks" / f"s{n}.tif", labels(3))
    for split, lines in (("train", "s1\ns0.tif\n"), ("val", "s2-0\ns2-2\ns2-1\n")):
        (tmp_path / f"{split}.txt").write_text(lines)
    source = opened(tmp_path, pages="slices", lists=str(tmp_path))
    pages = {n: [f"s{n}-{i}" for i in range(3)] for n in range(3)}
    assert source.splits["train"] == pages[1] + pages[0]
    assert source.splits["val"] == ["s2-0", "s2-2", "s2-1"]
    (tmp_path / "train.txt").write_text("s1\n")
    (tmp_path / "val.txt").write_text("s2.tif\n")
    source = opened(tmp_path, pages="slices", lists=str(tmp_path), only_listed=True)
    assert source.splits == {"train": pages[1], "val": pages[2]} and len(source.files) == 6


def test_layers_may_be_stacks_of_slices(tmp_path):
    truth = labels(4)
    as_stack(tmp_path / "images/s.tif", greys(4))
    for k, name in enumerate(ABC[1:], 1):
        as_stack(tmp_path / "masks" / name / "s.tif", (truth == k).astype(np.uint8))
    source = opened(tmp_path, pages="slices", mask_layers="folders")
    for i in range(4):
        same(mask_of(source, f"s-{i}"), truth[i])
    refusal(lambda: opened(tmp_path, pages="slices", mask_layers="pages"), "data.pages=slices beside data.mask_layers=pages")  # fmt: skip


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_pages_are_the_channels_of_one_image(root, kind):
    channels = np.random.default_rng(3).integers(0, 200, (6, 5, *SIZE)).astype(kind)
    for i, mask in enumerate(labels(6)):
        (root / "images" / f"{i}.png").unlink()
        as_stack(root / "images" / f"{i}.tif", channels[i])
        save(root / "masks" / f"{i}.png", mask)
    source = opened(root, pages="channels")
    image, mask = source.read("4")
    assert image.dtype == kind
    same(image, np.moveaxis(channels[4], 0, -1))
    same(mask, labels(6)[4])
    with tifffile.TiffWriter(root / "images/4.tif") as tiff:
        tiff.write(channels[4, 0], contiguous=False)
        tiff.write(channels[4, 1, :9], contiguous=False)
    refusal(lambda: source.read("4"), "images/4.tif", "(24, 20)", "(9, 20)", "of one size")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("imagej", [True, False])
def test_one_directory_may_stand_for_many_pages(tmp_path, order, imagej):
    volume = (greys(6).astype(np.uint16) * 251)[:, None] if imagej else greys(6).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "v.tif", byteorder=order, imagej=imagej) as tiff:
        tiff.write(volume, photometric="minisblack", truncate=True)
    with tifffile.TiffFile(tmp_path / "v.tif") as tiff:
        assert len(tiff.pages) == 1  # what this test is about
    volume = volume.reshape(-1, *SIZE)
    as_stack(tmp_path / "m.tif", labels(6))
    source = opened(tmp_path, images="v.tif", masks="m.tif", pages="slices")
    assert count_pages(tmp_path / "v.tif") == 6 and len(source.files) == 6
    for i in range(6):
        image = source.read(f"v-{i}")[0]
        assert image.dtype == np.uint16
        same(image[..., 0], volume[i])
    same(np.stack(read_pages(tmp_path / "v.tif")), volume)
    whole = (tmp_path / "v.tif").read_bytes()
    (tmp_path / "v.tif").write_bytes(whole[:-100])
    refusal(lambda: count_pages(tmp_path / "v.tif") and read_pages(tmp_path / "v.tif"), "v.tif", "not a readable image")  # fmt: skip


def test_one_file_of_an_ome_set_is_its_own_page_alone(tmp_path):
    volume = greys(3)
    as_stack(tmp_path / "whole.ome.tif", volume, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(tmp_path / "whole.ome.tif") as tiff:
        xml = tiff.ome_metadata
    one = ''.join(
        f'<TiffData FirstZ="{i}" IFD="0" PlaneCount="1"><UUID FileName="z{i}.ome.tif">urn:uuid:{i}</UUID></TiffData>'
        for i in range(3)
    )  # fmt: skip
    xml = re.sub(r"<TiffData .*?/>", one, xml)
    for i in range(3):
        of_file = re.sub(r'UUID="urn:uuid:[^"]*"', f'UUID="urn:uuid:{i}"', xml)
        tifffile.imwrite(
            tmp_path / f"z{i}.ome.tif", volume[i], description=of_file, metadata=None, ome=False
        )
    assert tifffile.imread(tmp_path / "z1.ome.tif").shape == (3, *SIZE)  # what this test is about
    for i in range(3):
        assert count_pages(tmp_path / f"z{i}.ome.tif") == 1
        same(read_image(tmp_path / f"z{i}.ome.tif")[..., 0], volume[i])


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_frames_of_one_file_are_not_dropped_in_silence(tmp_path, format):
    file = tmp_path / f"a.{format.lower()}"
    frames = [Image.fromarray(one) for one in greys(3)]
    frames[0].save(file, format, save_all=True, append_images=frames[1:], lossless=True)
    refusal(lambda: read_image(file), str(file), "3 frames, but one image")


def test_a_gif_is_its_grey_values_however_its_palette_is_ordered(root):
    values = np.array([0, 128, 255], np.uint8)
    truth = labels(6)
    truth[3], truth[4] = 2, 1  # written with a palette of one entry, number 0
    for i, mask in enumerate(truth):
        save(root / "masks" / f"{i}.gif", values[mask])
        (root / "images" / f"{i}.png").unlink()
        save(root / "images" / f"{i}.gif", greys(6)[i])
    source = opened(root, values={0: 0, 128: 1, 255: 2})
    for i in range(6):
        image, mask = source.read(str(i))
        same(image[..., 0], greys(6)[i])
        same(mask, truth[i])
        assert image.shape[2] == 1


def test_a_palette_with_transparency_is_read_as_its_colours(tmp_path):
    truth = labels(1)[0]
    picture = Image.frombytes("P", SIZE[::-1], truth.tobytes())
    picture.putpalette(COLOURS.flatten().tolist())
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    same(read_image(tmp_path / "a.png"), COLOURS[truth])


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_from_an_image(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8)
    save(tmp_path / "a.png", pixels)
    same(read_image(tmp_path / "a.png"), pixels[..., :-1])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("page", [None, 1])
def test_a_large_plain_page_is_mapped_and_a_crop_is_its_own_slice(tmp_path, monkeypatch, order, kind, page):  # fmt: skip
    volume = np.random.default_rng(0).integers(0, 2**8, (3, 50, 2000)).astype(kind)
    volume = volume[1] if page is None else volume
    tifffile.imwrite(tmp_path / "a.tif", volume, photometric="minisblack", byteorder=order)
    small = read_image(tmp_path / "a.tif", page)
    monkeypatch.setattr(data_tiff, "MAPPED_BYTES", 2**16)
    large = read_image(tmp_path / "a.tif", page)
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap) == (order == "<")
    assert large.dtype == kind  # in the machine's byte order
    expected = volume if page is None else volume[1]
    same(large[..., 0], expected)
    same(large[7:19, 1990:, 0], expected[7:19, 1990:])


def test_of_an_image_20000_px_wide_a_crop_reads_a_crop(tmp_path):
    file = tmp_path / "wide.tif"
    tifffile.imwrite(file, shape=(20000, 20000), dtype=np.uint8)  # a hole of 400 MB in the disk
    patch = np.random.default_rng(0).integers(1, 256, (64, 64), np.uint8)
    whole = tifffile.memmap(file)
    whole[12345:12409, 19936:] = patch
    whole.flush()
    image = read_image(file)
    assert image.shape == (20000, 20000, 1) and isinstance(image, np.memmap)
    same(image[12345:12409, 19936:, 0], patch)
    resident = Path("/proc/self/smaps")
    if resident.exists():
        lines = resident.read_text().split(str(file))[-1].splitlines()
        held = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
        assert held < 40_000  # KiB, where the image has 390,625


# pairs


def test_pairs_are_found_by_a_part_of_the_names(tmp_path):
    truth = labels(6)
    for i, mask in enumerate(truth):
        save(tmp_path / "images" / f"{i:03d}_leica.png", greys(6)[i])
        save(tmp_path / "masks" / f"{i:03d}-by-anna-{i}.png", mask)
    message = refusal(lambda: opened(tmp_path), "images/000_leica.png", "no mask of that name", "(6 such files)")  # fmt: skip
    mended = opened(tmp_path, **proposed(message, "pair_by"))
    assert list(mended.files) == [f"{i:03d}_leica" for i in range(6)]
    for i in range(6):
        image, mask = mended.read(f"{i:03d}_leica")
        same(image[..., 0], greys(6)[i])
        same(mask, truth[i])
    word = "data.pair_by='^[0-9]+'"
    assert built("data=folder", f"data.root={tmp_path}", "data.classes=[a,b,c]", word).read("004_leica")[1].shape == SIZE  # fmt: skip


def test_what_a_pattern_finds_must_tell_files_apart(tmp_path):
    for name in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / "images" / f"{name}.png", greys(1)[0])
        save(tmp_path / "masks" / f"{name}_mask.png", labels(1)[0])
    refusal(lambda: opened(tmp_path, pair_by=r"p\d"), "images/p1_a.png", "p1_b.png", "key 'p1'")
    refusal(
        lambda: opened(tmp_path, pair_by="p(x)?"), "data.pair_by=p(x)?", "matches nothing", "p1_a"
    )
    refusal(lambda: opened(tmp_path, pair_by="("), "data.pair_by=(", "not a regular expression")
    source = opened(tmp_path, pair_by=r"^(p\d_\w)")
    assert list(source.files) == ["p1_a", "p1_b", "p2_a"]
    (tmp_path / "masks/p1_b_mask.png").rename(tmp_path / "masks/p9_z_mask.png")
    refusal(lambda: opened(tmp_path, pair_by=r"^(p\d_\w)"), "images/p1_b.png", "no mask")
    (tmp_path / "images/p1_b.png").unlink()
    refusal(lambda: opened(tmp_path, pair_by=r"^(p\d_\w)"), "masks/p9_z_mask.png", "no image")


def test_a_name_that_is_not_utf_8_is_told(root):
    for i, mask in enumerate(labels(6)):
        save(root / "masks" / f"{i}.png", mask)
    for part in ("images", "masks"):
        (root / part / "5.png").rename(root / part / "caf\udce9.png")
    message = refusal(lambda: opened(root), "rename the file")
    assert message.isprintable()


# tables


@pytest.fixture
def table(tmp_path) -> Path:
    """Six images and masks in folders of their own, and the path of a table still to be written."""
    for i, (image, mask) in enumerate(zip(greys(6), labels(6), strict=True)):
        save(tmp_path / "in" / f"{i}.png", image)
        save(tmp_path / "out" / f"m{i}.png", mask)
        for k, name in enumerate(ABC):
            save(tmp_path / "out" / f"{name}{i}.png", (mask == k).astype(np.uint8))
    return tmp_path / "pairs.csv"


def rows(table: Path, heading: str, line: str, mark: str = ",") -> None:
    """A line for each image: {i} its number, {s} its split, {g} its group."""
    filled = [line.format(i=i, s=["train", "val"][i % 2], g=f"g{i % 3}") for i in range(6)]
    table.write_text("\n".join([heading, *filled]).replace(",", mark), "utf-8")


def tabled(table: Path, classes: list[str] | None = ABC, **options) -> Folder:
    return Folder(None, classes, table=str(table), **options)


@pytest.mark.parametrize("mark", [",", ";", "\t", " , "])
def test_a_table_says_which_mask_is_whose_and_on_which_side(table, mark):
    rows(table, "mask,image,split,note", "out/m{i}.png,in/{i}.png,{s},any", mark)
    source = tabled(table)
    assert source.splits == {"train": ["in/0", "in/2", "in/4"], "val": ["in/1", "in/3", "in/5"]}
    for i in range(6):
        image, mask = source.read(f"in/{i}")
        same(image[..., 0], greys(6)[i])
        same(mask, labels(6)[i])


def test_a_table_s_groups_stay_on_one_side(table):
    rows(table, "image,mask,group", "in/{i}.png,out/m{i}.png,{g}")
    for fold in range(3):
        source = tabled(table, fold=fold, folds=3)
        assert sorted(int(n[-1]) % 3 for n in source.splits["val"]) in ([0, 0], [1, 1], [2, 2])
    rows(table, "image,mask,group,split", "in/{i}.png,out/m{i}.png,{g},{s}")
    refusal(lambda: tabled(table), "is in train", "and in val")


def test_a_table_may_be_excel_s(table):
    text = 'image;mask\r\n"in/0.png";"out/m0.png"\r\nin/1.png; out/m1.png \r\n\r\n'
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = tabled(table, val=0.5)
    assert list(source.files) == ["in/0", "in/1"]
    same(mask_of(source, "in/1"), labels(6)[1])


@pytest.mark.parametrize("without", ["", "a", "b"])
def test_a_table_has_a_column_for_each_class_and_one_may_lack(table, without):
    columns = [name for name in ABC if name != without]
    rows(table, ",".join(["image", *columns]), ",".join(["in/{i}.png", *[f"out/{c}{{i}}.png" for c in columns]]))  # fmt: skip
    message = refusal(lambda: tabled(table), "column for each class")
    source = tabled(table, **proposed(message, "mask_layers"))
    for i in range(6):
        same(mask_of(source, f"in/{i}"), labels(6)[i])


def test_an_empty_cell_is_a_class_that_the_image_lacks(table):
    rows(table, "image,a,b,c", "in/{i}.png,,out/b{i}.png,out/c{i}.png")
    text = table.read_text().replace("in/3.png,,out/b3.png", "in/3.png,out/a3.png,")
    table.write_text(text)
    source, truth = tabled(table, mask_layers="folders"), labels(6)
    same(mask_of(source, "in/3"), np.where(truth[3] == 1, 255, truth[3]))
    same(mask_of(source, "in/2"), np.where(truth[2] == 0, 255, truth[2]))  # a has files: no rest


@pytest.mark.parametrize(
    ("heading", "line", "words"),
    [
        ("image,mask,mask", "in/{i}.png,out/m{i}.png,out/m{i}.png", ["names mask twice"]),
        ("image,mask,a", "in/{i}.png,out/m{i}.png,out/a{i}.png", ["names mask and ['a']", "not both"]),
        ("picture,mask", "in/{i}.png,out/m{i}.png", ["['picture', 'mask']", "image and mask are needed"]),
        ("image,label", "in/{i}.png,out/m{i}.png", ["['image', 'label']", "image and mask are needed"]),
        ("image,mask", "in/{i}.png,out/x{i}.png", ["line 2", "out/x0.png does not exist", "paths start at"]),
        ("image,mask", "in/{i}.png,out", ["line 2", "out does not exist"]),
        ("image,mask", "in/{i}.png," + "x" * 300, ["line 2", "does not exist"]),
        ("image,mask", ",out/m{i}.png", ["line 2", "no image"]),
        ("image,mask", "in/{i}.png,", ["line 2", "no mask"]),
        ("image,mask", "in/{i}.png,out/m{i}.png,more", ["line 2", "must have 2 cells"]),
        ("image,mask", "in/{i}.png", ["line 2", "must have 2 cells"]),
        ("image,mask", "in/0.png,out/m{i}.png", ["line 3", "in/0 is on an earlier line"]),
        ("image,mask,group", "in/{i}.png,out/m{i}.png,", ["line 2", "no group"]),
        ("image,mask,split", "in/{i}.png,out/m{i}.png,trian", ["in/0 has split 'trian'", "train, val or test"]),
        ("image,mask", '"in/{i}.png,out/m{i}.png', ["can't be read as a table"]),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_table_s_faults_are_named_by_line(table, heading, line, words):
    rows(table, heading, line)
    refusal(lambda: tabled(table), str(table), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ["names []"]), (b"image,mask\n", ["no lines below the first"]), (b"image,mask\n\xff\xfe,x", ["can't be read"])],
    ids=["empty", "heading", "bytes"],
)  # fmt: skip
def test_a_table_without_lines_is_refused(table, content, words):
    table.write_bytes(content)
    refusal(lambda: tabled(table), str(table), *words)
    refusal(lambda: tabled(table.with_name("none.csv")), "none.csv", "No such file")


def test_a_table_refuses_the_options_that_it_answers(table):
    rows(table, "image,mask,split,group", "in/{i}.png,out/m{i}.png,{s},{s}")
    for options in ({"pair_by": "x"}, {"fold": 1}, {"val": 0.5}, {"group_by": "x"}, {"stratify": True}, {"lists": "x"}):  # fmt: skip
        (name,) = options
        message = refusal(lambda options=options: tabled(table, **options), f"data.{name}", "the table")  # fmt: skip
        off = proposed(message.rpartition("take ")[2], name)
        assert tabled(table, **off).splits["train"]


def test_lists_split_a_table_by_name_path_or_file(table):
    rows(table, "image,mask", "in/{i}.png,out/m{i}.png")
    lists = table.with_name("lists")
    lists.mkdir()
    (lists / "train.txt").write_text("in/0\nin/1.png\n2.png\n")
    (lists / "val.txt").write_text("in/3\n")
    refusal(lambda: tabled(table, lists=str(lists)), "2 of 6 images are in no list", "in/4")
    (lists / "train.txt").write_text("in/0\n2.png\n")
    source = tabled(table, lists=str(lists), only_listed=True)
    assert source.splits == {"train": ["in/0", "in/2"], "val": ["in/3"]} and len(source.files) == 3
    (lists / "train.txt").write_text("in/77\n")
    (lists / "val.txt").write_text("in/78\n")
    refusal(lambda: tabled(table, lists=str(lists), only_listed=True), str(table), "no image is in data.lists", "like in/0")  # fmt: skip


def test_a_file_s_name_that_two_folders_have_is_no_name(table):
    save(table.parent / "more/0.png", greys(9)[8])
    table.write_text("image,mask\nin/0.png,out/m0.png\nmore/0.png,out/m1.png\nin/2.png,out/m2.png")
    for split, line in (("train", "in/0\nin/2"), ("val", "0.png")):
        (table.parent / f"{split}.txt").write_text(line)
    refusal(
        lambda: tabled(table, lists=str(table.parent)), "val names '0.png'", "no image of that name"
    )


# lists and Pascal VOC


def test_only_listed_leaves_out_what_no_list_names_masks_and_all(root):
    for i, mask in enumerate(labels(4)):
        save(root / "masks" / f"{i}.png", mask)
    for split, lines in (("train", "0\n2.png\n"), ("val", "3\n")):
        (root / f"{split}.txt").write_text(lines)
    refusal(lambda: opened(root, lists=str(root)), "images/4.png", "no mask of that name")
    source = opened(root, lists=str(root), only_listed=True)
    assert source.splits == {"train": ["0", "2"], "val": ["3"]} and list(source.files) == ["0", "2", "3"]  # fmt: skip
    (root / "val.txt").write_text("5\n")
    refusal(lambda: opened(root, lists=str(root), only_listed=True), "images/5.png", "no mask")
    (root / "val.txt").write_text("3\nnowhere\n")
    refusal(lambda: opened(root, lists=str(root), only_listed=True), "val names 'nowhere'")
    (root / "train.txt").write_text("train/0\n")
    (root / "val.txt").write_text("val/1\n")
    refusal(lambda: opened(root, lists=str(root), only_listed=True), str(root / "images"), "no image here is in data.lists", "like 0")  # fmt: skip
    refusal(lambda: opened(root, only_listed=True), "data.only_listed=true", "data.lists")


def test_voc_is_read_as_it_lies(tmp_path):
    rng, truth = np.random.default_rng(0), {}
    names = ["2007_000032", "2007_000039", "2011_003271"]
    colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0]] + [[0, 0, 0]] * 252 + [[224, 224, 192]]
    for name in [*names, "2012_unlabelled"]:
        save(tmp_path / "JPEGImages" / f"{name}.jpg", rng.integers(0, 256, (30, 20, 3), np.uint8))
    for name in names:
        truth[name] = rng.choice(np.array([0, 1, 2, 20, 255], np.uint8), (30, 20))
        picture = Image.frombytes("P", (20, 30), truth[name].tobytes())
        picture.putpalette(np.array(colours).flatten().tolist())
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        picture.save(tmp_path / "SegmentationClass" / f"{name}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2011_003271\n")
    (lists / "val.txt").write_text("2007_000039\n")
    source = built("data=voc", f"data.root={tmp_path}")
    assert source.splits == {"train": [names[0], names[2]], "val": [names[1]]}
    assert len(source.classes) == 21 and source.classes[15] == "person"
    assert source.colors[1] == (128, 0, 0) and source.colors[20] == (0, 64, 128)
    for name in names:
        image, mask = source.read(name)
        same(mask, truth[name])
        same(image, np.array(Image.open(tmp_path / "JPEGImages" / f"{name}.jpg")))


def test_voc_s_colours_are_those_of_its_devkit():
    colors = compose_checked("train", ["data=voc", "data.root=x"]).data.colors
    for k, color in enumerate(
        colors
    ):  # bits 0, 1, 2 of the index are the top bits of r, g, b, and so on
        expected = [
            sum((k >> 3 * n + channel & 1) << 7 - n for n in range(8)) for channel in range(3)
        ]
        assert list(color) == expected


def test_a_misspelt_choice_is_told_with_the_choices(root):
    refusal(lambda: opened(root, pages="slice"), "data.pages=slice", "slices, channels")
    refusal(lambda: opened(root, mask_layers="page"), "data.mask_layers=page", "pages, folders")


@pytest.mark.parametrize(
    ("column", "right"), [("Splits", "split"), ("groups", "group"), ("Mask", "mask")]
)
def test_a_table_s_misspelt_column_is_told_and_not_left_out(tmp_path, column, right):
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,mask,{column}\na.png,b.png,train\n")
    with pytest.raises(DataError, match=f"names '{column}'; write {right}"):
        Folder(None, ["a", "b"], table=str(table))
