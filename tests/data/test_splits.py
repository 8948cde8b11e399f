"""Splits are complete, disjoint, balanced and repeatable; wrong options are refused."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import GroupKFold, StratifiedKFold
from small_runs import TINY, config, tiny, weights

from seg.commands.evaluate import evaluate
from seg.data.datasets.folder import Folder
from seg.data.partition import divide_names, find_groups, split_hash
from seg.errors import DataError
from seg.runs import checkpoint
from seg.training.run import train

ABC = ["a", "b", "c"]
QUICK = settings(max_examples=60, deadline=None)


def named(count: int) -> list[str]:
    return [f"im{i:03d}" for i in range(count)]


def split(names, *, val=None, test=0.0, fold=None, folds=5, contiguous=False, seed=0, groups=None, presence=None):  # fmt: skip
    """``divide`` with the defaults of conf/data/folder.yaml; presence is a table name -> classes."""
    look = None if presence is None else presence.__getitem__
    return divide_names(names, val, test, fold, folds, contiguous, seed, groups, look)


def table(names: list[str], classes: int, seed: int) -> dict[str, np.ndarray]:
    """Which of some classes, each rarer than the one before, occur in each image."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(classes) < 0.8 ** np.arange(1, classes + 1) ** 2 for name in names}


def test_the_default_split_is_what_it_always_was():
    names = named(10)
    assert split(names, test=0.1) == {
        "train": ["im000", "im001", "im003", "im005", "im007", "im008", "im009"],
        "val": ["im004", "im006"],
        "test": ["im002"],
    }
    assert split(names, val=0.2, seed=7)["val"] == ["im000", "im008"]
    assert len(split(named(100))["val"]) == 20


@given(st.integers(4, 80), st.floats(0.01, 0.5), st.floats(0, 0.2), st.integers(0, 99))
@QUICK
def test_shares_are_drawn_as_ever_validation_first(count, val, test, seed):
    names = named(count)
    drawn = np.random.default_rng(seed).permutation(count).tolist()
    held, kept = max(1, round(val * count)), round(test * count)
    expected = {
        "train": sorted(names[i] for i in drawn[held + kept :]),
        "val": sorted(names[i] for i in drawn[:held]),
        "test": sorted(names[i] for i in drawn[held : held + kept]),
    }
    assert split(names, val=val, test=test, seed=seed) == {k: v for k, v in expected.items() if v}


@given(
    st.integers(8, 60), st.integers(2, 6), st.sampled_from([0, 0.1, 0.25]), st.integers(0, 99),
    st.sampled_from(["random", "blocks", "stratify"]),
)  # fmt: skip
@QUICK
def test_folds_are_apart_cover_all_but_the_test_and_differ_by_one_image(
    count, folds, test, seed, how
):
    names = named(count)
    more = {
        "random": {},
        "blocks": {"contiguous": True},
        "stratify": {"presence": table(names, 4, seed)},
    }[how]
    found = [split(names, test=test, fold=i, folds=folds, seed=seed, **more) for i in range(folds)]
    kept = found[0].get("test", [])
    assert len(kept) == round(test * count)
    for splits in found:
        assert splits.get("test", []) == kept
        assert sorted(n for side in splits.values() for n in side) == names
    assert sorted([n for splits in found for n in splits["val"]] + kept) == names
    sizes = [len(splits["val"]) for splits in found]
    assert max(sizes) - min(sizes) <= 1


@st.composite
def grouped(draw) -> dict[str, str]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=6, max_size=15))
    owners = [f"p{g}" for g, size in enumerate(sizes) for _ in range(size)]
    return dict(zip(named(len(owners)), draw(st.permutations(owners)), strict=True))


@given(grouped(), st.integers(2, 5), st.sampled_from([0, 0.15]), st.integers(0, 99), st.booleans())
@QUICK
def test_groups_stay_whole_in_folds_that_are_apart_and_cover_all(
    groups, folds, test, seed, stratify
):
    names = list(groups)
    presence = table(names, 3, seed) if stratify else None
    most = max(np.unique(list(groups.values()), return_counts=True)[1])
    assume(len(set(groups.values())) - round(test * len(names)) >= folds)  # for single images
    found = [
        split(names, test=test, fold=i, folds=folds, seed=seed, groups=groups, presence=presence)
        for i in range(folds)
    ]
    kept = found[0].get("test", [])
    assert sorted([n for splits in found for n in splits["val"]] + kept) == names
    assert abs(len(kept) - round(test * len(names))) <= most
    for splits in found:
        assert splits.get("test", []) == kept and splits["train"] and splits["val"]
        assert sorted(n for side in splits.values() for n in side) == names
        sides = [{groups[n] for n in side} for side in splits.values()]
        assert sum(map(len, sides)) == len(set.union(*sides))


@given(grouped(), st.floats(0.1, 0.4), st.sampled_from([0, 0.2]), st.integers(0, 99), st.booleans())
@QUICK
def test_a_share_of_groups_is_as_near_as_whole_groups_allow(groups, val, test, seed, stratify):
    names = list(groups)
    presence = table(names, 3, seed) if stratify else None
    splits = split(names, val=val, test=test, seed=seed, groups=groups, presence=presence)
    most = max(np.unique(list(groups.values()), return_counts=True)[1])
    assert sorted(n for side in splits.values() for n in side) == names
    assert abs(len(splits["val"]) - val * len(names)) <= most + 1
    sides = [{groups[n] for n in side} for side in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_large_groups_validate_too_and_no_side_stays_empty():
    sizes = [30, 20, 15, 10, 10, 5, 5, 5]
    owners = [f"p{g}" for g, size in enumerate(sizes) for _ in range(size)]
    groups = dict(zip(named(100), owners, strict=True))
    drawn = [{groups[n] for n in split(list(groups), seed=s, groups=groups)["val"]} for s in range(80)]  # fmt: skip
    assert set.union(*drawn) == set(owners)
    halves = dict(zip(named(100), ["x"] * 50 + ["y"] * 50, strict=True))
    assert len(split(list(halves), groups=halves)["val"]) == 50


@given(grouped(), st.integers(2, 6), st.integers(0, 99))
@QUICK
def test_folds_of_groups_are_as_large_as_scikit_learn_s(groups, folds, seed):
    names, owners = list(groups), list(groups.values())
    reference = [len(val) for _, val in GroupKFold(folds).split(names, groups=owners)]
    ours = [
        len(split(names, fold=i, folds=folds, seed=seed, groups=groups)["val"])
        for i in range(folds)
    ]
    assert sorted(ours) == sorted(reference)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=60), st.integers(2, 5), st.integers(0, 99))
@example([0] * 12, 3, 0)  # 44 images: the fold that is smaller must not get fewer of each class
@QUICK
def test_where_an_image_has_one_class_folds_count_it_as_scikit_learn_s_do(kinds, folds, seed):
    kinds = [*range(4), *kinds] * 2  # each class often enough for 5 folds to be asked of it
    kinds += list(range(4)) * 3
    names = named(len(kinds))
    presence = {n: np.arange(4) == kind for n, kind in zip(names, kinds, strict=True)}
    kind = dict(zip(names, kinds, strict=True))
    reference = StratifiedKFold(folds).split(names, kinds)
    for i, (_, val) in enumerate(reference):
        own = split(names, fold=i, folds=folds, seed=seed, presence=presence)["val"]
        counts = np.bincount([kind[n] for n in own], minlength=4)
        assert np.abs(counts - np.bincount(np.array(kinds)[val], minlength=4)).max() <= 1
        fair = np.bincount(kinds, minlength=4) / folds
        assert (counts >= np.floor(fair)).all() and (counts <= np.ceil(fair)).all()


def test_each_fold_gets_its_share_of_the_images_with_a_rare_class():
    names = named(40)
    presence = {n: np.array([True, i % 2 == 0, i < 5]) for i, n in enumerate(names)}
    for seed in range(5):
        for fold in range(5):
            val = split(names, fold=fold, seed=seed, presence=presence)["val"]
            assert sum(presence[n] for n in val).tolist() == [8, 4, 1]
        splits = split(names, val=0.2, test=0.2, seed=seed, presence=presence)
        assert [sum(presence[n] for n in splits[s])[2] for s in splits] == [3, 1, 1]


def test_folds_of_groups_share_a_rare_class_which_their_sizes_alone_do_not():
    owner = {n: f"p{i // 4}" for i, n in enumerate(named(40))}  # ten groups of four images
    presence = {n: np.array([True, owner[n] in ("p0", "p1", "p2", "p3", "p4")]) for n in owner}

    def rare(seed, table):
        return [
            sum(presence[n][1] for n in split(list(owner), fold=i, seed=seed, groups=owner, presence=table)["val"])
            for i in range(5)
        ]  # fmt: skip

    assert all(rare(seed, presence) == [4] * 5 for seed in range(8))
    assert any(rare(seed, None) != [4] * 5 for seed in range(8))


def test_the_seed_alone_decides_and_another_one_changes_the_split():
    names = named(30)
    groups = {n: n[:4] + str(i % 10) for i, n in enumerate(names)}
    for more in (
        {},
        {"fold": 1},
        {"presence": table(names, 3, 0)},
        {"fold": 1, "presence": table(names, 3, 0)},
        {"groups": groups},
        {"fold": 1, "groups": groups},
    ):
        assert split(names, **more) == split(names, **more)
        assert split(names, **more) != split(names, seed=1, **more)
    unequal = {n: "abbccc"[i % 6] for i, n in enumerate(names)}  # one order of sizes, any of folds
    drawn = [split(names, seed=s, fold=0, folds=3, groups=unequal)["val"] for s in range(20)]
    assert {len(val) for val in drawn} == {5, 10, 15}
    for more in ({"contiguous": True}, {"contiguous": True, "fold": 1}):
        assert split(names, **more) == split(names, seed=1, **more)


def test_blocks_follow_each_other_in_the_order_of_numbers():
    names = [f"slice{i}" for i in range(12)]  # as text slice10 comes before slice2
    shuffled = sorted(names)
    assert split(shuffled, contiguous=True, val=0.25, test=0.25) == {
        "train": names[:6],
        "val": names[6:9],
        "test": names[9:],
    }
    for fold, val in enumerate((names[0:3], names[3:6], names[6:8], names[8:10])):
        found = split(shuffled, contiguous=True, fold=fold, folds=4, test=2 / 12)
        assert found["val"] == val and found["test"] == names[10:]
        assert found["train"] == [n for n in names[:10] if n not in val]


def test_a_group_is_the_pattern_s_own_group_or_all_that_it_matches():
    names = ["p1_a", "train/p2_b", "p11_c"]
    assert find_groups(names, r"^p(\d+)_") == {"p1_a": "1", "train/p2_b": "2", "p11_c": "11"}
    assert list(find_groups(names, r"^p\d+").values()) == ["p1", "p2", "p11"]


def test_the_hash_is_the_same_for_the_same_split_in_any_order():
    splits = {"train": ["a", "b"], "val": ["c"]}
    assert split_hash(splits) == split_hash({"val": ["c"], "train": ["b", "a"]})
    assert split_hash(splits) == "92e33f641ee1"
    others = ({"train": ["a"], "val": ["b", "c"]}, {"train": ["a", "b"], "test": ["c"]},
              {"train": ["a\", \"b"], "val": ["c"]})  # fmt: skip
    assert len({split_hash(s) for s in (splits, *others)}) == 4


# ---------------------------------------------------------------------- folders on disk


@pytest.fixture
def patients(folder_root):
    """Six images of three patients, two each: p0_0, p0_1, p1_2, ..."""
    for part in ("images", "masks"):
        for i in range(6):
            file = folder_root / part / f"{i}.png"
            file.rename(file.with_name(f"p{i // 2}_{i}.png"))
    return folder_root


def write_lists(folder, **lines):
    folder.mkdir(exist_ok=True)
    for name, names in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(names) + "\n")
    return str(folder)


def by_folders(root):
    """The first four images as train/, the last two as val/."""
    for i, file in enumerate(sorted((root / "images").iterdir())):
        for part in ("images", "masks"):
            side = root / ("train" if i < 4 else "val") / part
            side.mkdir(parents=True, exist_ok=True)
            (root / part / file.name).rename(side / file.name)
    for part in ("images", "masks"):
        (root / part).rmdir()
    return root


def test_a_folder_holds_patients_together_in_folds_and_shares(patients):
    for fold in range(3):
        splits = Folder(str(patients), ABC, fold=fold, folds=3, group_by=r"^p(\d)").splits
        assert len(splits["val"]) == 2 and len({n[:2] for n in splits["val"]}) == 1
    splits = Folder(str(patients), ABC, val=0.3, test=0.3, group_by="^p.").splits
    assert [len({n[:2] for n in splits[s]}) for s in ("train", "val", "test")] == [1, 1, 1]


def test_a_folder_stratifies_by_the_classes_that_its_masks_hold(folder_root):
    for i in (0, 2, 4):  # classes b and c only in images 1, 3 and 5: one for each fold
        Image.fromarray(np.zeros((40, 56), np.uint8)).save(folder_root / "masks" / f"{i}.png")
    for fold in range(3):
        val = Folder(str(folder_root), ABC, fold=fold, folds=3, stratify=True).splits["val"]
        assert sum(int(n) % 2 for n in val) == 1


def test_classes_occur_in_their_planes_where_they_overlap(planes_root):
    pages = np.zeros((2, 40, 56), np.uint8)
    pages[0], pages[1, 3, 4] = 7, 1  # one plane is ignored, the other empty but for a pixel
    tifffile.imwrite(planes_root / "masks/2.tif", pages, photometric="minisblack")
    source = Folder(str(planes_root), ABC[:2], stratify=True, task="overlapping", ignore=[7])
    assert source.class_presence("2").tolist() == [False, True]
    for name in source.files:
        present = (source.read(name)[1] == 1).any((0, 1))
        assert source.class_presence(name).tolist() == present.tolist()


def test_lists_split_as_they_say_by_name_or_file_name(patients, tmp_path):
    lines = {"train": ["p2_5.png", "p0_0", "", "p0_1"], "val": [" p1_2 "], "test": ["p1_3", "p2_4"]}
    lists = write_lists(tmp_path / "lists", **lines)
    (tmp_path / "lists/val.txt").write_bytes(b"\xef\xbb\xbfp1_2\r\n")
    expected = {"train": ["p2_5", "p0_0", "p0_1"], "val": ["p1_2"], "test": ["p1_3", "p2_4"]}
    assert Folder(str(patients), ABC, lists=lists).splits == expected
    files = {s: f"{lists}/{s}.txt" for s in expected}
    assert Folder(str(patients), ABC, lists=files).splits == expected


FIRST = ["p0_0", "p0_1", "p1_2", "p1_3"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"val": ["p2_4", "p0_1"]}, "'p0_1' is in train and val; keep one of the two lines"),
        ({"train": [*FIRST, "p0_0.png"]}, "'p0_0' is twice in train"),
        ({"val": ["p2_4", "p9_9"]}, "val names 'p9_9', and data.root has no image .* like p0_0"),
        ({"val": ["p2_4"]}, r"1 of 6 images are in no list, \['p2_5'\]; add them to one"),
        ({"val": []}, "val names no image; add some"),
        ({"test": []}, "test names no image; add some or leave the list out"),
    ],
)
def test_lists_that_are_not_a_split_are_refused(patients, tmp_path, lines, message):
    good = {"train": FIRST, "val": ["p2_4", "p2_5"]}
    lists = write_lists(tmp_path / "lists", **good | lines)
    with pytest.raises(DataError, match=message):
        Folder(str(patients), ABC, lists=lists)


def test_lists_that_can_not_be_read_are_refused(patients, tmp_path):
    lists = write_lists(tmp_path / "lists", train=FIRST)
    for given_lists, message in (
        (str(tmp_path / "none"), "none: no such folder; give one that holds train.txt and val.txt"),
        (lists, r"data.lists: 2 of 6 images are in no list, \['p2_4', 'p2_5'\]"),
        (str(patients), "holds neither train.txt, val.txt nor test.txt"),
        ({}, r"data.lists names \[\]: give train, val, test or some of them"),
        ({s: f"{lists}/train.txt" for s in ("train", "val", "dev")}, r"\['dev', 'train', 'val'\]"),
        (
            {"train": f"{lists}/train.txt", "val": str(patients / "images/p0_0.png")},
            r"p0_0.png: can't be read as data.lists \(not a text file\)",
        ),
    ):
        with pytest.raises(DataError, match=message):
            Folder(str(patients), ABC, lists=given_lists)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 1, "val": 0.2}, "data.val=0.2 beside data.fold=1: the fold is .* data.val=null"),
        ({"fold": 0, "lists": "L"}, "data.fold=0 beside data.lists: the lists .* data.fold=null"),
        ({"val": 0.2, "lists": "L"}, "data.val=0.2 beside data.lists"),
        ({"test": 0.1, "lists": "L"}, "data.test=0.1 beside data.lists.*; take data.test=0"),
        ({"contiguous": True, "lists": "L"}, "data.contiguous=true beside data.lists.*data.contiguous=false"),
        ({"stratify": True, "lists": "L"}, "data.stratify=true beside data.lists"),
        ({"contiguous": True, "stratify": True}, "data.stratify=true beside data.contiguous: blocks go by"),
        ({"contiguous": True, "group_by": "^p."}, "data.group_by beside data.contiguous.*data.group_by=null"),
        ({"fold": 5}, "data.fold=5 of data.folds=5: give 2 folds or more, and 0 <= fold < folds"),
        ({"fold": -1}, "data.fold=-1 of"),
        ({"fold": 0, "folds": 1}, "data.fold=0 of data.folds=1"),
        ({"fold": 0, "folds": 7}, "6 images: data.folds=7 needs more; add images or take fewer"),
        ({"fold": 0, "test": 0.4}, "6 images, 2 of them for the test: data.folds=5 needs more"),
        ({"fold": 0, "test": 1.0}, "data.test=1.0: a share of 0..1"),
        ({"val": 0.0}, "data.val=0.0 and data.test=0.0: shares of 0..1"),
        ({"val": 0.5, "test": 0.5}, "shares of 0..1 that leave some to train on"),
        ({"val": 0.5, "test": 0.45}, r"6 images can't be split into train and \{'val': 3, 'test': 3\}"),
        ({"group_by": "(p"}, r"data.group_by=\(p: not a regular expression"),
        ({"group_by": "^p[01]"}, r"no group in the name 'p2_4' \(2 such names\)"),
        ({"group_by": "^q?"}, "no group in the name 'p0_0'"),
        ({"group_by": "^(q)?p"}, "no group in the name 'p0_0'"),
        ({"group_by": "^p"}, r"leaves 1 group, \['p'\], for 2 parts: more groups, fewer data.folds"),
        ({"group_by": "^p.", "fold": 0, "folds": 4}, r"leaves 3 groups, \['p0', 'p1', 'p2'\], for 4 parts"),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other_or_leave_nothing_say_what_to_change(
    patients, options, message
):
    with pytest.raises(DataError, match=message):
        Folder(str(patients), ABC, **options)


def test_folders_that_split_are_not_split_again_and_keep_groups_apart(patients, tmp_path):
    shutil.copytree(patients, tmp_path / "copy")
    root = str(by_folders(patients))
    for options, message in (
        ({"fold": 1}, "data.fold=1 beside train/ and val/ in data.root: the folders say"),
        ({"contiguous": True}, "data.contiguous=true beside train/"),
        ({"stratify": True}, "data.stratify=true beside train/"),
        ({"lists": "L"}, "data.lists=L beside train/"),
        ({"group_by": "^(p)"}, r"group 'p' is in train \(train/p0_0\) and in val \(val/p2_4\); move"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            Folder(root, ABC, **options)
    assert len(Folder(root, ABC, group_by="^p.").splits["val"]) == 2
    lists = write_lists(tmp_path / "lists", train=[*FIRST, "p2_4"], val=["p2_5"])
    with pytest.raises(
        DataError, match=r"group 'p2' is in train \(p2_4\) and in val \(p2_5\); move"
    ):
        Folder(str(tmp_path / "copy"), ABC, lists=lists, group_by="^p.")


def test_a_test_share_that_needs_too_many_groups_is_refused():
    groups = dict(zip(named(17), ["p0"] * 3 + ["p1", "p2", "p2", "p3"] + ["p4"] * 9 + ["p5"], strict=True))  # fmt: skip
    message = "data.group_by leaves 3 groups, .* for 4 parts: .*data.test"
    with pytest.raises(DataError, match=message):
        split(list(groups), test=0.15, fold=0, folds=4, seed=19, groups=groups)


def test_two_files_of_one_name_are_refused(patients):
    Image.open(patients / "images/p1_2.png").save(patients / "images/p1_2.bmp")
    with pytest.raises(DataError, match=r"p1_2.bmp: p1_2.png has the same name; keep one"):
        Folder(str(patients), ABC)


# ---------------------------------------------------------------------- runs


def test_runs_of_the_folds_keep_split_and_hash_and_are_scored_on_them_again(patients, tmp_path):
    options = [o for o in TINY if not o.startswith(("data.", "trainer="))]
    own = ["data=folder", f"data.root={patients}", "data.classes=[a,b,c]", "trainer=smoke", "panels=0",
           "data.folds=2", "data.test=0.3", "data.group_by='^p(.)'"]  # fmt: skip
    records = []
    for fold in (0, 1):
        outputs = tmp_path / f"fold-{fold}"
        train(config("train", *options, *own, f"data.fold={fold}", f"outputs={outputs}"))
        record = json.loads((outputs / "latest/run.json").read_text())
        assert record["split_hash"] == split_hash(record["splits"])
        evaluate(config("evaluate", f"run={outputs / 'latest'}", "panels=0"))
        scored = json.loads((outputs / "latest/evaluate-val/metrics.json").read_text())
        assert scored["images"] == record["splits"]["val"]
        records.append(record)
    first, second = (r["splits"] for r in records)
    assert first["test"] == second["test"] and first["val"] == second["train"]
    assert first["train"] == second["val"] and len(first["val"]) == 2
    assert records[0]["split_hash"] != records[1]["split_hash"]


def test_the_test_split_chooses_nothing(tmp_path):
    runs_made = []
    for images in (0, 2):
        scores, folder = tiny(tmp_path / str(images), f"data.test={images}", "threshold=best")
        best = checkpoint.read_checkpoint(folder / "checkpoints/best.ckpt")
        record = json.loads((folder / "run.json").read_text())
        runs_made.append((scores, best, weights(folder), record["threshold"]))
    (scores, best, last, threshold), (others, *other) = runs_made
    assert "test/dice" in others and "test/dice" not in scores
    assert {key: others[key] for key in scores} == pytest.approx(scores, abs=1e-6)
    assert other[2] == threshold and other[0]["epoch"] == best["epoch"]
    for a, b in ((best["state_dict"], other[0]["state_dict"]), (last, other[1])):
        torch.testing.assert_close(dict(a), dict(b))
