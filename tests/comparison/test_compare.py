"""Comparison of made run folders against numbers worked by hand and scipy."""

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_runs import make_run, spread, wrong
from scipy import stats

from seg.cli.compose import compose_checked
from seg.cli.list_arguments import to_overrides
from seg.commands.compare import compare_runs
from seg.compare import main
from seg.comparison import page
from seg.comparison.gallery import SavedPictures, build_gallery
from seg.comparison.grouping import differing_options, filter_runs, find_group, group_runs
from seg.comparison.ranking import ComparisonSpec, RankedGroup, rank_groups
from seg.comparison.run_files import ImageCounts
from seg.comparison.run_records import ComparedRun, find_runs, read_compared_runs
from seg.comparison.summary import list_warnings, unranked_reason, write_headline
from seg.comparison.table import fit_group_table
from seg.display.tables import format_signed
from seg.errors import UserError

DICE = ComparisonSpec("dice", "test")


def read(*folders: Path):
    return read_compared_runs(list(folders))


def ranking(runs, group_by=None, baseline=None, asked=DICE):
    groups = group_runs(runs, group_by)
    return rank_groups(groups, find_group(groups, baseline) if baseline else None, asked)


def family(root: Path, model: str, per_seed: list[list[int]], **options) -> list[Path]:
    """A run a seed, each with so many wrong pixels of 100 in its test images."""
    return [
        make_run(root / f"{model}-{seed}", {"test": spread(images)}, choices={"model": model}, seed=seed, **options)
        for seed, images in enumerate(per_seed)
    ]  # fmt: skip


def sweep(root: Path) -> Path:
    """Two models on 14 images, three seeds each, unetpp better by 5 of 100 pixels everywhere."""
    base = [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36]
    for model, less in (("unet", 0), ("unetpp", 5)):
        family(root / "sweeps/s", model, [[w - less + seed for w in base] for seed in range(3)], pictures=4)  # fmt: skip
    return root


def test_options_too_many_for_a_terminal_share_a_column(tmp_path):
    names = [
        "loader_crop_side",
        "loader_batch_size",
        "loader_repeats_each",
        "model_deep_supervision",
    ]
    folders = []
    for n, seed in itertools.product(range(2), range(2)):
        config = {"more": {name: n for name in names}}
        counts = {"test": spread([10 + n, 20])}
        folders.append(make_run(tmp_path / f"{n}{seed}", counts, config=config, seed=seed))
    found = ranking(read(*folders))
    wide, narrow = ([str(c.header) for c in fit_group_table(found, w).columns] for w in (300, 80))
    assert wide[: len(names)] == [f"more.{name}" for name in names] and len(wide) > len(narrow)
    assert narrow[0] == "group" and narrow[-1] == "p\nseeds" and "mean" in narrow


# ---- the command line


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (["outputs/a", "outputs/b"], {"runs": ["outputs/a", "outputs/b"]}),
        (["runs=outputs/a,outputs/b"], {"runs": ["outputs/a", "outputs/b"]}),
        (["o'x", "back\\slash\\", "a b,c"], {"runs": ["o'x", "back\\slash\\", "a b,c"]}),
        (["group_by=model,optim.lr"], {"group_by": ["model", "optim.lr"]}),
        (["group_by=[model,loss]"], {"group_by": ["model", "loss"]}),
        (["group_by=null"], {"group_by": None}),
        (["baseline=model=unet,optim.betas=[0.9,0.99]"], {"baseline": "model=unet,optim.betas=[0.9,0.99]"}),
        (["where=model=unet,optim.betas=[0.9,0.99]"], {"where": ["model=unet", "optim.betas=[0.9,0.99]"]}),
        (["score=dice/a,b"], {"score": "dice/a,b"}),
        (["level=0.9"], {"level": 0.9}),
    ],
)  # fmt: skip
def test_words_reach_hydra_as_the_lists_and_values_they_mean(line, wanted):
    overrides = OverridesParser.create().parse_overrides(to_overrides(line))
    assert {o.key_or_group: o.value() for o in overrides} == wanted
    assert not any(o.is_sweep_override() for o in overrides)


def test_a_folder_whose_name_holds_an_equals_sign_is_a_folder(tmp_path):
    place = tmp_path / "lr=1"
    place.mkdir()
    assert to_overrides([str(place)]) == [f'runs=["{place}"]']


def test_the_command_takes_bare_folders_and_comma_lists(tmp_path, monkeypatch, capsys):
    sweep(tmp_path)
    line = ["compare", str(tmp_path / "sweeps/s"), "group_by=model,loss", "baseline=model=unet,loss=bce_dice", "page=false"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    main()
    said = capsys.readouterr().out
    assert "unetpp + bce_dice is best: Dice 0.8100 on 14 test images, mean of 3 seeds." in said
    assert "significant over images and seeds: unetpp + bce_dice." in said
    assert "adjusted by Holm over 1 comparison" in said
    assert (tmp_path / "sweeps/s/compare.csv").is_file()
    assert not (tmp_path / "sweeps/s/compare.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "outputs"], "error: -m: "),
        (["nowhere"], "error: runs=nowhere: no such folder"),
        (["outputs", "runs=[outputs]"], "error: outputs: give runs either as words or as runs=[...]"),
    ],
)  # fmt: skip
def test_a_mistake_ends_with_2_and_its_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith(said) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["group_by=[modl]"], r"group_by=modl: the runs have no such option; did you mean model\? \(they differ in: model\)"),
        (["group_by=[lr]"], r"group_by=lr: .*did you mean optim.lr\?"),
        (["baseline='model=unett'"], "baseline=model=unett: no group matches: model=unet; model=unetpp"),
        (["baseline='modle=unet'"], r"baseline=modle=unet: .*'modle'; did you mean model\?"),
        (["group_by=[model,seed]", "baseline='model=unet'"], "3 groups match, name one: model=unet,seed=0; "),
        (["where=['model=fcn']"], "where=model=fcn: no run has it; model is unet, unetpp"),
        (["where=['wdth=1']"], r"where=wdth: the runs have no such option"),
        (["where=[model]"], "where=model: an option and its value are needed"),
        (["score=dise"], r"score=dise: no finished run has it on test; did you mean dice\?"),
        (["split=train"], "split=train: one of val, test, or null is needed"),
        (["split=val"], "split=val: no finished run has scores of it"),
        (["level=1"], "level=1: a number between 0 and 1 is needed"),
        (["resamples=0"], "resamples=0: a whole number of 1 or more is needed"),
        (["runs=[nowhere]"], "runs=nowhere: no such folder"),
        ([f"runs=[{__file__}]"], "a file; give its folder"),
        (["runs=[conf]"], "no run in it"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, words, message):
    place = sweep(tmp_path / "o")
    words = words if any(w.startswith("runs=") for w in words) else [f"runs=[{place}]", *words]
    with pytest.raises(UserError, match=message) as caught:
        compare_runs(compose_checked("compare", words))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("compare.*"))


# ---- finding and reading


def test_runs_are_found_at_any_depth_and_links_below_are_not_followed(tmp_path):
    run = make_run(tmp_path / "o/sweeps/s/a", {"test": spread([1])})
    fold = make_run(tmp_path / "o/cv/fold-0", {"test": spread([1])})
    (tmp_path / "o/cv/crossval.json").write_text("{}")
    (tmp_path / "o/sweeps/s/latest").symlink_to(run)
    (tmp_path / "o/elsewhere").symlink_to(tmp_path / "far")
    make_run(tmp_path / "far/b", {"test": spread([1])})
    assert find_runs([str(tmp_path / "o")]) == [fold, run]
    assert find_runs([str(tmp_path / "o/sweeps/s/latest"), str(run)]) == [run]


def test_the_curve_ends_where_training_did(tmp_path):
    run = read(make_run(tmp_path / "a", {"test": spread([1])}, epochs=3))[0]
    curve = [v for v in run.curves.values["val/dice"] if v == v]
    assert curve == [0.5, 0.7, 0.9]  # without the scoring of the best checkpoint, .123
    assert run.curves.steps == [1, 1, 3, 3, 5, 5] and run.epochs == 3
    assert run.images_per_second == 11  # the median of 10, 11 and 12
    assert not any(name.startswith("test/") for name in run.curves.values)


def test_an_older_run_tells_what_it_has(tmp_path):
    """Its choice is what was typed, else the class; its counts are nowhere."""
    folder = make_run(
        tmp_path / "a", {"test": spread([5, 7])}, overrides=None, choices=None, classes=None, colors=None,
        parameters=None, job=None, data=None, command=["python", "-m", "seg.train", "loss=focal", "seed=1,2"],
    )  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    del record["choices"]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "images.csv").unlink()
    run = read(folder)[0]
    assert run.choices["model"] == "unet" and run.choices["loss"] == "focal"
    assert (run.parameters, run.fingerprint, run.counts, run.faults) == (None, "", {}, [])
    assert run.metrics["test/dice"] == pytest.approx(0.94)


def test_a_run_cut_off_anywhere_is_read_as_far_as_it_goes(tmp_path):
    """Each file is truncated at a dozen places; a damaged run is listed with what is wrong."""
    whole = make_run(tmp_path / "whole", {"val": spread([3, 4]), "test": spread([5, 6])})
    runs = read(
        make_run(tmp_path / "good", {"val": spread([3, 4]), "test": spread([5, 7])}, seed=1)
    )
    for name in ("run.json", "config.yaml", "metrics.csv", "images.csv"):
        content = (whole / name).read_bytes()
        for end in np.linspace(0, len(content) - 3, 12).astype(int):
            copy = tmp_path / f"{name}-{end}"
            shutil.copytree(whole, copy)
            (copy / name).write_bytes(content[:end])
            run = read(copy)[0]
            if name == "run.json":
                assert run.status == "damaged"
            if name == "images.csv":
                assert "test" not in run.counts
            runs.append(run)
    ranked = ranking([run for run in runs if DICE.key in run.metrics])
    html = page.render_comparison_page(
        ranked, [run for run in runs if run not in ranked.runs], 1, 1
    )
    assert html.count("run.json: can&#39;t be read") == 12


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", "[]", "run.json: not written by seg"),
        ("run.json", b"\xff\xfe\x00", "run.json: can't be read ("),
        ("run.json", '{"status": "odd"}', "run.json: status is damaged"),
        ("config.yaml", "a: [1", "config.yaml can't be read: "),
        ("config.yaml", "a: &a [1, {b: 1}]\n" + "\n".join(f"{x}: &{x} [{','.join(['*' + y] * 30)}]" for x, y in zip("bcdef", "abcde", strict=True)), "aliases, anchors or tags"),
        ("metrics.csv", "step,val/dice\n1,0.5\n3,0.", "metrics.csv ends in mid-row"),
        ("images.csv", "split,image\ntest,a\n", "images.csv can't be read: ValueError: no column class"),
        ("images.csv", "split,image,class,tp,fp,fn\ntest,image-000,cell,1,2,-3\n", "images.csv can't be read: ValueError: '-3' is no count of pixels"),
        ("images.csv", f"split,image,class,tp,fp,fn\ntest,image-000,cell,1,2,{10**30}\n", "is no count of pixels"),
        ("metrics.csv", "step,epoch,val/dice\n1,inf,0.5\n", "metrics.csv has the epoch inf"),
        ("run.json", '{"status": "finished", "metrics": {"test/dice": 1%s}}' % ("0" * 30), "a number of more than 64 bits"),
        ("run.json", '{"status": "finished", "name": "\\ud800"}', "half a character"),
        ("run.json", '{"a":' * 100 + "1" + "}" * 100, "nests more than 50 levels deep"),
        ("images.csv", "split,image,class,tp,fp,fn\ntest,image-000,cell,1,2,three\n", "images.csv can't be read: ValueError"),
        ("images.csv", "split,image,class,tp,fp,fn\ntest,image-000,cell,1,2,3\n", "images.csv hasn't all images of test"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, file, content, said):
    folder = make_run(tmp_path / "a", {"test": spread([5, 6])})
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    run = read(folder)[0]
    assert any(said in fault for fault in run.faults), run.faults


def test_fields_of_the_wrong_type_are_absent(tmp_path):
    folder = make_run(tmp_path / "a", {"test": spread([5])})
    record = json.loads((folder / "run.json").read_text()) | {
        "parameters": "many", "minutes": [1], "steps": True, "splits": [1], "name": {"a": 1}, "choices": 7, "versions": "x",
        "metrics": {"test/dice": "high", "test/iou": float("nan"), "best/val/dice": [0.5], "test/f1": 0.5},
        "git": [], "hardware": None, "overrides": 3,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    run = read(folder)[0]
    assert run.metrics == {"test/f1": 0.5}
    assert (run.parameters, run.minutes, run.steps, run.splits) == (None, None, None, {})
    assert run.choices["model"] == "unet"


def test_runs_that_did_not_finish_are_listed_with_how_far_they_came(tmp_path):
    counts = {"test": spread([5])}
    failed = make_run(
        tmp_path / "a", counts, status="failed", error="RuntimeError: out of\nmemory\x1b[2J"
    )
    stopped = make_run(tmp_path / "b", counts, status="interrupted", epochs=7)
    runs = read(failed, stopped, make_run(tmp_path / "c", counts, status="pruned", epochs=0))
    assert [unranked_reason(run, DICE) for run in runs] == [
        "RuntimeError: out of memory [2J, in epoch 4", "in epoch 7", "nothing was measured"
    ]  # fmt: skip


# ---- which runs are one recipe


def test_runs_differ_in_what_was_chosen_and_typed_not_in_what_follows_from_it(tmp_path):
    counts = {"test": spread([5])}
    a = make_run(tmp_path / "a", counts, seed=0)
    b = make_run(tmp_path / "b", counts, seed=1, choices={"model": "unetpp", "trainer": "cpu"},
                 config={"model": {"_target_": "seg.models.NestedUNet", "links": "dense"}, "panels": 9, "name": "x"})  # fmt: skip
    assert differing_options(read(a, b)) == ["model"]
    c = make_run(tmp_path / "c", counts, choices={"model": "unetpp"},
                 config={"model": {"_target_": "seg.models.NestedUNet", "links": "short"}})  # fmt: skip
    assert differing_options(read(a, b, c)) == ["model", "model.links"]
    d = make_run(tmp_path / "d", counts, overrides=["model=unetpp", "model.links=dense"], choices={"model": "unetpp"},
                 config={"model": {"_target_": "seg.models.NestedUNet", "links": "dense"}})  # fmt: skip
    assert differing_options(read(a, d)) == ["model", "model.links"]


def test_a_trainers_options_are_no_part_of_its_name(tmp_path):
    counts = {"test": spread([5])}
    a = make_run(tmp_path / "a", counts, epochs=3, choices={"trainer": "smoke"})
    b = make_run(tmp_path / "b", counts, epochs=5)
    assert differing_options(read(a, b)) == ["trainer.max_epochs"]


def test_filter_and_baseline_take_numbers_in_any_spelling(tmp_path):
    rates = [0.001, 0.01]
    runs = read(
        *(
            make_run(tmp_path / str(r), {"test": spread([5])}, config={"optim": {"lr": r}})
            for r in rates
        )
    )
    assert [r.options["optim.lr"] for r in filter_runs(runs, ["optim.lr=1e-3"])] == [0.001]
    assert find_group(group_runs(runs, None), "optim.lr=1.0e-2").label == "optim.lr=0.01"


# ---- statistics


def test_difference_and_p_are_those_of_all_swaps(tmp_path):
    """Five images; Dice of an image is 1 - wrong/100, so pooled Dice is the mean of that."""
    a, b = [10, 20, 30, 40, 50], [8, 25, 22, 31, 40]
    runs = read(*family(tmp_path, "unet", [a]), *family(tmp_path, "fcn", [b]))
    found = ranking(runs, baseline="model=unet").groups[0].comparison
    gaps = np.array(a) - np.array(b)
    assert found.value == pytest.approx(gaps.mean() / 100)
    swaps = [abs(np.dot(signs, gaps)) for signs in itertools.product((1, -1), repeat=5)]
    assert found.p_images == np.mean(np.array(swaps) >= abs(gaps.sum()))
    assert found.images == 5 and math.isnan(found.p_seeds)


@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (2, 3)])
def test_the_difference_over_images_is_that_of_the_means(tmp_path, seeds):
    """Also where classes are of unlike size, so that counts averaged over seeds would give another one."""
    rng = np.random.default_rng(0)
    folders = []
    for model, count in zip(("unet", "fcn"), seeds, strict=True):
        for seed in range(count):
            images = {
                f"i{k}": {
                    "a": (hit, int(rng.integers(40)), 90 - hit),
                    "b": wrong(int(rng.integers(60)))["cell"],
                }
                for k, hit in enumerate(rng.integers(10, 90, 6).tolist())
            }
            folders.append(make_run(tmp_path / f"{model}{seed}", {"test": images}, choices={"model": model}, seed=seed))  # fmt: skip
    result = ranking(read(*folders))
    assert result.groups[1].comparison.value == pytest.approx(result.groups[1].mean - result.groups[0].mean)  # fmt: skip
    for score in ("iou", "dice/a", "dice_per_image"):
        result = ranking(read(*folders), asked=ComparisonSpec(score, "test"))
        c = result.groups[1].comparison
        assert c.images == 6 and c.value == pytest.approx(result.groups[1].mean - result.groups[0].mean)  # fmt: skip


def test_p_counts_all_pairs_when_the_baseline_was_the_best_found(tmp_path):
    """Three groups: three pairs, or two comparisons with a baseline named before."""
    base = np.arange(10, 24)
    folders = [f for model, more in (("unet", 0), ("fcn", 9), ("segnet", 20)) for f in family(tmp_path, model, [list(base + more)])]  # fmt: skip
    chosen, given = ranking(read(*folders)), ranking(read(*folders), baseline="model=unet")
    assert (chosen.num_comparisons, given.num_comparisons) == (3, 2)
    raw = ranking(read(*folders[:2])).groups[1].comparison.p_images
    assert given.groups[1].comparison.p_images == pytest.approx(2 * raw)
    assert chosen.groups[1].comparison.p_images == pytest.approx(3 * raw)


def test_a_group_apart_is_no_comparison(tmp_path):
    base = list(range(10, 24))
    others = family(tmp_path, "fcn", [base[:5]])
    folders = [
        *family(tmp_path, "unet", [base]),
        *family(tmp_path, "segnet", [[w + 9 for w in base]]),
    ]
    result = ranking(read(*folders, *others))
    assert [c.apart for r in result.groups if (c := r.comparison)].count("other images") >= 1
    assert ranking(read(*folders, *others), baseline="model=unet").num_comparisons == 1


BASE = list(range(10, 24))
BETTER = [w - 8 for w in BASE]


def shifted(base: list[int], *shifts: int) -> list[list[int]]:
    """Wrong pixels of several seeds."""
    return [[w + shift for w in base] for shift in shifts]


@pytest.mark.parametrize(
    ("ours", "theirs", "significant"),
    [
        (shifted(BETTER, 0, 1, -1), shifted(BASE, 0, 1, -1), ("images", "seeds")),
        ([BETTER, BETTER], shifted(BASE, 0, 1), ("images",)),  # two seeds are too few for a test
        (shifted(BETTER, 9, 21, 0), shifted(BASE, 9, 21, 0), ("images",)),
        (shifted(BETTER[:4], 0, 1, 2), shifted(BASE[:4], 0, 1, 2), ("seeds",)),  # p >= 2 / 2^4
        ([BASE], [[w + (-1) ** i for i, w in enumerate(BASE)]], ()),
    ],
)
def test_a_difference_is_significant_over_images_and_over_seeds(
    tmp_path, ours, theirs, significant
):
    runs = read(*family(tmp_path, "fcn", ours), *family(tmp_path, "unet", theirs))
    result = ranking(runs, baseline="model=unet")
    comparison = next(r.comparison for r in result.groups if r.comparison)
    assert comparison.significant(result.alpha) == significant
    over = " and ".join(significant) + " only" * (len(significant) == 1)
    text = f"significant over {over}: " if significant else "not significant: "
    assert text in write_headline(result, 0)
    assert math.isnan(comparison.p_seeds) == (min(len(ours), len(theirs)) < 3)


def test_folds_are_joined_and_a_seed_counts_once(tmp_path):
    """Two folds of two images each: the pooled Dice of four images, one seed."""
    folders = []
    for model, more in (("unet", 0), ("fcn", 10)):
        for fold, count in enumerate(([10, 20], [30, 40])):
            images = {f"f{fold}-{i}": wrong(w + more) for i, w in enumerate(count)}
            folders.append(make_run(tmp_path / f"{model}-{fold}", {"val": images}, choices={"model": model},
                                    config={"data": {"fold": fold}}))  # fmt: skip
    result = ranking(read(*folders), asked=ComparisonSpec("dice", "val"))
    assert [(r.group.label, r.seeds, len(r.scores)) for r in result.groups] == [("unet", 1, 2), ("fcn", 1, 2)]  # fmt: skip
    c = result.groups[1].comparison
    assert c.images == 4 and c.value == pytest.approx(-0.1) and c.p_images == 2 / 2**4


def test_a_seeds_folds_are_one_score_of_the_seed(tmp_path):
    """Welch's test over three seeds, not over six runs: of the means of their two folds."""
    folders, means = [], {}
    for model, more in (("unet", 0), ("fcn", 6)):
        for seed, fold in itertools.product(range(3), range(2)):
            images = {f"f{fold}": wrong(10 + more + seed + 9 * fold * (seed + 1))}
            means.setdefault((model, seed), []).append(1 - images[f"f{fold}"]["cell"][1] / 100)
            folders.append(make_run(tmp_path / f"{model}-{seed}-{fold}", {"val": images}, choices={"model": model},
                                    seed=seed, config={"data": {"fold": fold}}))  # fmt: skip
    found = ranking(read(*folders), asked=ComparisonSpec("dice", "val")).groups[1].comparison
    a, b = ([np.mean(means[model, seed]) for seed in range(3)] for model in ("unet", "fcn"))
    wanted = stats.ttest_ind(a, b, equal_var=False)
    assert found.p_seeds == pytest.approx(wanted.pvalue)
    ends = wanted.confidence_interval(0.95)
    assert [found.seeds_low, found.seeds_high] == pytest.approx([-ends.high, -ends.low])


def test_seeds_on_unlike_masks_are_not_joined(tmp_path):
    seeds = [
        make_run(tmp_path / f"{n}", {"test": spread([7, 8], pixels=n)}, seed=n) for n in (100, 120)
    ]
    result = ranking(read(*seeds, *family(tmp_path, "fcn", [[20, 21]])))
    comparison = result.groups[1].comparison
    assert comparison.images == 0 and not comparison.tested


def test_a_number_cut_in_two_is_no_number(tmp_path):
    """100 that became 10, and .9 that became .8 or so, would be read without a word."""
    folder = make_run(tmp_path / "a", {"test": spread([5, 100])}, status="finished")
    for name in ("images.csv", "metrics.csv"):
        (folder / name).write_text((folder / name).read_text().rstrip()[:-1])
    run = read(folder)[0]
    assert run.faults == ["metrics.csv ends in mid-row", "images.csv hasn't all images of test"]
    assert run.counts == {}


def test_images_are_the_same_by_name_and_by_their_masks(tmp_path):
    one, same = family(tmp_path, "unet", [[5, 6]]) + family(tmp_path, "fcn", [[7, 8]])
    larger = make_run(
        tmp_path / "c", {"test": spread([7, 8], pixels=120)}, choices={"model": "segnet"}
    )
    renamed = make_run(
        tmp_path / "d", {"test": {"x": wrong(1), "y": wrong(2)}}, choices={"model": "x"}
    )
    data = make_run(
        tmp_path / "e",
        {"test": spread([7, 8])},
        choices={"model": "y"},
        data={"fingerprint": "0ther"},
    )
    (
        other := make_run(
            tmp_path / "f",
            {"test": spread([7, 8])},
            choices={"model": "z"},
            data={"fingerprint": "0ther"},
        )
    )
    (other / "images.csv").unlink()
    result = ranking(read(one, same, larger, renamed, data, other), baseline="model=unet")
    apart = {r.group.label: r.comparison.apart for r in result.groups if r.comparison}
    assert apart == {
        "fcn": "",
        "segnet": "other masks",
        "x": "other images",
        "y": "",
        "z": "other data",
    }
    assert any("fingerprints differ" in line for line in list_warnings(result))


def test_less_is_better_of_a_loss(tmp_path):
    runs = read(*family(tmp_path, "unet", [[5, 6]]), *family(tmp_path, "fcn", [[1, 2]]))
    result = ranking(runs, asked=ComparisonSpec("loss", "test"))
    assert [r.group.label for r in result.groups] == ["fcn", "unet"]
    assert not result.groups[1].comparison.tested  # counts give no loss, and there is one seed
    assert "Differences from it: not tested: unet." in write_headline(result, 0)


@pytest.mark.slow
def test_of_equal_recipes_both_tests_rarely_find_a_difference_and_images_alone_often_do():
    """Seeds move Dice by 2 points, images by 3: of 200 tables at most 5 % have a false difference over both."""
    rng, asked = np.random.default_rng(0), ComparisonSpec("dice", "test", resamples=1000)
    by_both, by_images = 0, 0
    for _ in range(200):
        base, runs = rng.uniform(60, 90, 20), []
        for model, seed in itertools.product("abcd", range(3)):
            hit = np.clip(base + rng.normal(0, 2) + rng.normal(0, 3, 20), 1, 99).round().astype(int)
            pixels = np.repeat(np.stack([hit, 100 - hit, 100 - hit], -1)[:, None], 2, axis=1)
            names = tuple(str(i) for i in range(20))
            runs.append(
                ComparedRun(
                    Path(), f"{model}{seed}", "finished", seed=str(seed), choices={"model": model},
                    metrics={"test/dice": hit.mean() / 100}, splits={"test": names},
                    counts={"test": ImageCounts(names, ("x", "y"), pixels)},
                )
            )  # fmt: skip
        found = [c.significant(0.05) for c in ranking(runs, ["model"], asked=asked).comparisons]
        by_both += ("images", "seeds") in found
        by_images += any("images" in tests for tests in found)
    assert by_both <= 0.05 * 200 and by_images > 0.5 * 200


# ---- text


def test_the_headline_names_the_best_group_and_the_significance_of_the_differences(tmp_path):
    """Mean Dice of fcn: 1 - (8.5 + 1) / 100."""
    folders = family(tmp_path, "fcn", shifted(BETTER, 0, 1, 2))
    folders += family(tmp_path, "unet", shifted(BASE, 1, 2, 3))
    near = [w + (2, -1)[i % 2] for i, w in enumerate(BETTER)]
    folders += family(tmp_path, "segnet", shifted(near, 0, 1, 2))
    folders += family(tmp_path, "unetpp", [BASE[:3]])
    best = "fcn is best: Dice 0.9050 on 14 test images, mean of 3 seeds. Differences from "
    assert write_headline(ranking(read(*folders)), 0) == (
        f"{best}it: not significant: segnet. Not comparable: unetpp. Significant over images and seeds: unet."
    )
    assert write_headline(ranking(read(*folders), baseline="model=segnet"), 0).startswith(
        f"{best}segnet: not significant: fcn. "
    )
    one = family(tmp_path / "one", "unet", [[5, 6]])
    assert write_headline(ranking(read(*one)), 2).startswith(
        "all runs: Dice 0.9450 on 2 test images, one run."
    )
    assert write_headline(ranking([]), 3) == "None of 3 runs can be ranked yet."


def test_warnings(tmp_path):
    folders = family(tmp_path, "unet", [[5, 6]]) + family(tmp_path, "fcn", [[1, 2]], epochs=9, git={"commit": "other"})  # fmt: skip
    said = " | ".join(list_warnings(ranking(read(*folders), ["model"])))
    assert "2 images give p 0.5 or more" in said
    assert "fewer than 3 seeds (all groups)" in said
    assert "trained by different code: c0ffee; other" in said
    assert "budgets differ: 8 to 18 steps, trainer.max_epochs 4; 9" in said
    lines = list_warnings(ranking(read(*folders), ["loss"]))
    assert "within groups these differ too: model; trainer.max_epochs" in lines
    val = make_run(tmp_path / "v", {"val": spread([1])})
    assert any(
        "validation chose" in line
        for line in list_warnings(ranking(read(val), asked=ComparisonSpec("dice", "val")))
    )


# ---- compare.csv and what lies around it


def test_the_csv_has_a_row_a_run_and_no_formula(tmp_path):
    sweep(tmp_path)
    make_run(tmp_path / "sweeps/s/=cmd", {"test": spread([50] * 14)}, name="=1+1|' /C calc'!A0", seed=-1,
             choices={"model": "@SUM(A1)"})  # fmt: skip
    make_run(tmp_path / "sweeps/s/z", {"test": spread([5])}, status="failed", error="+broken")
    compare_runs(compose_checked("compare", [f"runs=[{tmp_path}]", "page=false"]))
    table = pd.read_csv(tmp_path / "sweeps/s/compare.csv")
    assert len(table) == 8 and list(table["rank"].dropna()) == [1, 1, 1, 2, 2, 2, 3]
    best = table[table["run"] == "unetpp-1"].iloc[0]
    assert best["test/dice"] == pytest.approx(1 - 19 / 100) and best["model"] == "unetpp"
    assert best["parameters"] == 1_000_000 and best["images_per_second"] == 11.5
    hostile = table[table["seed"] == -1].iloc[0]  # a number stays one
    assert (
        hostile["name"] == "'=1+1|' /C calc'!A0"
        and hostile["model"] == "'@SUM(A1)"
        and hostile["run"] == "'=cmd"
    )
    assert table["note"].iloc[-1] == "'+broken, in epoch 4"
    cells = [cell for cell in table.to_numpy().ravel() if isinstance(cell, str)]
    assert len(cells) > 40 and not [cell for cell in cells if re.match(r"\s*[=+@]", cell)]


def test_another_programs_file_is_not_overwritten(tmp_path):
    sweep(tmp_path)
    theirs = tmp_path / "sweeps/s/compare.csv"
    theirs.write_text("mine")
    with pytest.raises(UserError, match=r"compare.csv: not written by seg.compare"):
        compare_runs(compose_checked("compare", [f"runs=[{tmp_path}]", "page=false"]))
    assert theirs.read_text() == "mine"
    theirs.unlink()
    for _ in range(2):  # its own it does
        compare_runs(
            compose_checked(
                "compare", [f"runs=[{tmp_path}]", f"output={tmp_path / 'new'}", "num_examples=1"]
            )
        )
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"compare.csv", "compare.html"}
    assert not theirs.exists()


def test_the_test_split_is_taken_where_all_have_one(tmp_path):
    make_run(tmp_path / "a", {"val": spread([5]), "test": spread([1])})
    assert (
        compare_runs(compose_checked("compare", [f"runs=[{tmp_path}]", "page=false"])).asked.split
        == "test"
    )
    make_run(tmp_path / "b", {"val": spread([5])})
    assert (
        compare_runs(compose_checked("compare", [f"runs=[{tmp_path}]", "page=false"])).asked.split
        == "val"
    )


def test_only_runs_that_are_not_done_are_a_page_of_curves(tmp_path, capsys):
    make_run(tmp_path / "a", {"val": spread([5])}, status="running")
    assert compare_runs(compose_checked("compare", [f"runs=[{tmp_path}]"])).groups == []
    assert "None of 1 runs can be ranked yet." in capsys.readouterr().out
    assert "plot-curves" in (tmp_path / "compare.html").read_text()


# ---- pictures


def test_pictures_come_from_the_runs_own_folder_alone(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    folder = make_run(tmp_path / "o/a", {"test": spread([5, 6, 7])}, pictures=3)
    names = {"test": ["../../../secret", "image-001", "image-002"], "../../..": ["x"]}
    (folder / "predictions/names.json").write_text(json.dumps(names))
    place = folder / "predictions/test"
    (place / "1-truth.png").unlink()
    (place / "1-truth.png").symlink_to(secret)
    (place / "2-truth.png").write_text("<svg onload='alert(1)'/>")
    kept = SavedPictures(read(folder)[0], "test")
    assert kept.uri("image-001", "truth.png") is None and kept.uri("image-002", "truth.png") is None
    assert kept.uri("image-001", "image.jpg").startswith("data:image/jpeg;base64,")
    assert kept.uri("../../../secret", "image.jpg") == kept.uri("../../../secret", "image.jpg")
    assert kept.uri("image-000", "image.jpg") is None  # not in the list any more
    assert SavedPictures(read(folder)[0], "../../..").uri("x", "truth.png") is None


def test_the_worst_and_the_most_disputed_images_are_shown(tmp_path):
    """Mean Dice: .5 is the worst; .9 against .6 the widest range."""
    folders = family(tmp_path, "unet", [[10, 50, 20, 10]], pictures=4) + family(tmp_path, "fcn", [[12, 52, 22, 40]], pictures=4)  # fmt: skip
    shown = build_gallery(ranking(read(*folders)), 1, 20)
    assert [row.image for row in shown.rows] == ["image-001", "image-003"]
    assert shown.rows[1].why == "among the most disputed: Dice 0.600 to 0.900"
    assert [p.title for p in shown.rows[0].pictures] == ["image", "truth", "unet", "fcn"]
    assert shown.rows[0].pictures[2].caption == "Dice 0.500"
    assert shown.note == "2 other images have pictures too"
    assert (
        "2 more did not fit into max_picture_mb=0"
        in build_gallery(ranking(read(*folders)), 1, 0).note
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "+.0123"), (-0.5, "-.5000"), (10.5, "+10.5000"), (-120.03, "-120.0300")],
)
def test_a_difference_loses_no_digit(value, text):
    assert format_signed(value) == text


def test_the_spread_of_a_group_is_that_of_a_sample():
    group = RankedGroup(None, np.array([0.5, 0.7]), 2)  # the group's runs are not needed
    assert group.mean == pytest.approx(0.6) and group.sd == pytest.approx(math.sqrt(0.02))
    assert math.isnan(RankedGroup(None, np.array([0.5]), 1).sd)
