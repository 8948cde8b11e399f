"""A search: Hydra's grammar as distributions, the study's life, and what a user is told."""

import copy
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from seg import tune
from seg.cli.compose import compose_checked, compose_config, instantiate_node, parse_overrides
from seg.cli.conf_files import CONF
from seg.errors import UserError
from seg.multirun.search import report, trial
from seg.multirun.search import worker as search_worker
from seg.multirun.search.page import option_importances, render_search_page
from seg.multirun.search.plan import (
    SearchPlan,
    check_axes,
    check_objectives,
    check_search_options,
    compose_trial,
    gather_searched,
    plan_search,
)
from seg.multirun.search.space import parse_dimensions
from seg.multirun.search.study import (
    ask_trial,
    grid_points,
    hide_password,
    is_counted,
    objective_direction,
    open_storage,
    register_worker,
    storage_url,
)
from seg.multirun.search.worker import run_search
from seg.runs import load, records
from seg.runs.record import RunRecord

TINY = ["data.size=64", "data.train=2", "data.val=2", "data.test=0", "model.depth=2", "loader.crop=32", "logger=none",
        "trainer=cpu", "trainer.max_epochs=2", "panels=0", "save_predictions=0"]  # fmt: skip
LR = "optim.lr=tag(log, interval(1e-4, 1e-1))"
WIDTH = "model.width=choice(2,3,4)"
GRID = {"_target_": "seg.multirun.search.study.Grid", "seed": 0}
S = TrialState


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@cache
def base() -> SearchPlan:
    """What a line asks for, read once for all tests."""
    return plan_search([*TINY, LR, WIDTH])


def tuned(*searched: str, **changes) -> optuna.Study:
    """The study ``s`` of such a line, with other options searched, and others of the search itself."""
    cfg = copy.deepcopy(base().cfg)
    OmegaConf.set_struct(cfg, False)
    for name, value in changes.items():
        cfg[name] = value
    return run_search(
        base()._replace(cfg=cfg, axes=parse_dimensions(searched), name=changes.get("name") or "s")
    )


@cache
def composed_once():
    return compose_config("train", TINY)


def compose_quickly(config_name, words):
    """Without Hydra: for words that give numbers."""
    composed = composed_once()
    cfg = copy.deepcopy(composed.cfg)
    for key, _, value in (word.partition("=") for word in words if word not in TINY):
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return replace(composed, cfg=cfg)


def one_trial():
    cfg = copy.deepcopy(base().cfg)
    cfg.trials = 1
    return cfg


@pytest.fixture
def pretend(monkeypatch):
    """Puts a function in the place of training, and no page at the end; what training is given is kept."""

    def put(function):
        calls = []

        def train(cfg, callbacks, asked):
            calls.append((cfg, callbacks, asked))
            return function(cfg, callbacks)

        monkeypatch.setattr(trial, "train", train)
        monkeypatch.setattr(trial, "compose_config", compose_quickly)
        monkeypatch.setattr(trial, "isolate_job", lambda words: nullcontext())
        monkeypatch.setattr(report, "render_search_page", lambda *given: "")
        return calls

    return put


def dice(cfg, callbacks=()) -> dict[str, float]:
    """Best, 1, at lr 0.01; less for each unit of width."""
    return {"best/val/dice": 1 - 0.1 * abs(math.log10(cfg.optim.lr) + 2) - 0.01 * cfg.model.width}


def said(capsys) -> str:
    return capsys.readouterr().out


LOG = {"log": True}
GRAMMAR = {
    "a.b=choice(8,16,32)": CategoricalDistribution([8, 16, 32]),
    "a.b=8,16,32": CategoricalDistribution([8, 16, 32]),
    "a.b=choice(x,2,2.5,true)": CategoricalDistribution(["x", 2, 2.5, True]),
    "a.b=null,1": CategoricalDistribution([None, 1]),
    "a.b=choice([1,2],[3])": CategoricalDistribution(["[1,2]", "[3]"]),
    "a.b=str(choice(1,2))": CategoricalDistribution(["'1'", "'2'"]),
    "a.b=interval(0,1)": FloatDistribution(0, 1),
    "a.b=interval(1,5)": FloatDistribution(1.0, 5.0),  # Hydra's are real unless cast
    "a.b=int(interval(1,5))": IntDistribution(1, 5),
    "a.b=tag(log,interval(1e-4,1e-1))": FloatDistribution(1e-4, 1e-1, log=True),
    "a.b=tag(log, int(interval(1, 64)))": IntDistribution(1, 64, log=True),
    "a.b=int(tag(log, interval(1, 64)))": IntDistribution(1, 64, log=True),
    "a.b=range(1,5)": IntDistribution(1, 4),
    "a.b=range(4)": IntDistribution(0, 3),
    "a.b=range(2,9,3)": IntDistribution(2, 8, step=3),
    "a.b=range(5,1,-2)": IntDistribution(3, 5, step=2),
    "a.b=shuffle(range(1,5))": IntDistribution(1, 4),
    "a.b=float(range(1,5))": FloatDistribution(1, 4, step=1),
    "a.b=range(0,0.8,0.1)": FloatDistribution(0, 0.8, step=0.1),  # 0.8: as Hydra counts in floats
    "a.b=range(0,1,0.25)": FloatDistribution(0, 0.75, step=0.25),
    "a.b=tag(log, range(1,65))": IntDistribution(1, 64, log=True),
    "model=glob(unet_*)": CategoricalDistribution(["unet_e", "unet_paper", "unet_plus", "unet_wide"]),
    "+a.b=choice(1,2)": CategoricalDistribution([1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("word", GRAMMAR)
def test_hydras_grammar_is_the_distribution_that_it_stands_for(word):
    (axis,) = parse_dimensions([word])
    assert axis.distribution == GRAMMAR[word]
    assert axis.name == ("model" if "model" in word else "a.b")


@pytest.mark.parametrize("word", [w for w in GRAMMAR if "range" in w and "0.8" not in w])
def test_a_range_holds_what_a_sweep_of_seg_train_would_train(word):
    (axis,) = parse_dimensions([word])
    swept = [float(value) for value in parse_overrides([word])[0].sweep_iterator()]
    assert axis.values() == pytest.approx(sorted(swept))


def test_two_distributions_that_differ_read_differently():
    words = [w for w in GRAMMAR if w.startswith("a.b")]
    for one in words:
        for other in words:
            same = GRAMMAR[one] == GRAMMAR[other]
            assert (str(parse_dimensions([one])[0]) == str(parse_dimensions([other])[0])) == same, (
                one,
                other,
            )


@pytest.mark.parametrize(
    ("word", "value", "wanted"),
    [
        ("a=interval(0,1)", 0.123456789, "a=0.123457"),
        ("a=tag(log,interval(1e-9,1))", 1.23456789e-7, "a=1.23457e-07"),
        ("a=choice(0.123456789,1)", 0.123456789, "a=0.123456789"),
        ("a=range(0,1,0.1)", 0.30000000000000004, "a=0.3"),
        ("a=true,false", True, "a=true"),
        ("a=null,3", None, "a=null"),
        ("+a=1,2", 2, "+a=2"),
    ],
)
def test_a_value_becomes_the_word_that_trains_with_it(word, value, wanted):
    (axis,) = parse_dimensions([word])
    assert axis.word(value) == wanted


def test_a_quoted_choice_trains_with_what_was_quoted():
    (axis,) = parse_dimensions(["a=choice('x,y','1',\"it's\",[1,2],{b:c})"])
    words = parse_overrides([axis.word(value) for value in axis.samples()])
    assert [word.value() for word in words] == ["x,y", "1", "it's", [1, 2], {"b": "c"}]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr=interval(1e-1,1e-4)", "from 0.1 to 0.0001 is empty"),
        ("optim.lr=interval(1e-1,1e-1)", "from 0.1 to 0.1 is empty"),
        ("optim.lr=tag(log,interval(0,1))", "starts at 0; a logarithm needs numbers above 0"),
        ("optim.lr=tag(log,interval(-1,1))", "starts at -1; a logarithm"),
        ("optim.lr=tag(log,range(0,5))", "starts at 0; a logarithm"),
        ("optim.lr=interval(0,inf)", "an interval needs two numbers"),
        ("optim.lr=tag(lag,interval(1,2))", r"tag\(lag\) is unknown; there is tag\(log, ...\)"),
        ("model.width=tag(log,choice(1,2))", r"tag\(log, ...\) is for interval"),
        ("model.width=range(5,1)", "the range is empty"),
        ("model.width=range(1,5,0)", "the step is 0"),
        ("optim.lr=range(0,1,1e-6)", "more than 10000 numbers; give an interval"),
        ("model.width=tag(log,range(1,9,2))", "needs integers and a step of 1"),
        ("model.width=tag(log,range(1.0,9.0))", "needs integers and a step of 1"),
        ("model.width=choice(2,2)", "2 and 2 are the same"),
        ("hydra.job.name=a,b", "can't be searched"),
        ("~model.width=1,2", "can't be searched"),
        ("model.width=3", "can't be searched"),
        ("model=glob(x*)", "no model matches"),
    ],
)  # fmt: skip
def test_a_search_that_holds_nothing_says_so(word, message):
    with pytest.raises(UserError, match=f"^{re.escape(word)}: .*{message}"):
        parse_dimensions([word])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": []}, r"nothing is searched: .*'optim.lr=tag\(log, interval"),
        ({"trials": 0}, "trials=0: 1 or more are needed"),
        ({"timeout": 0}, "timeout=0: minutes above 0 are needed, or null"),
        ({"timeout": "soon"}, "timeout=soon: minutes above 0"),
        ({"storage": 3}, "storage: a database's URL or a file is needed"),
        ({"name": "..."}, r"name=\.\.\.: letters or digits are needed"),
    ],
)
def test_an_option_of_the_search_out_of_its_range_is_told(changes, message):
    with pytest.raises(UserError, match=message):
        check_search_options(OmegaConf.merge(base().cfg, OmegaConf.create(changes)))


@pytest.mark.parametrize(
    ("searched", "fixed", "message"),
    [
        ([LR, "optim.lr=choice(1,2)"], [], r"optim.lr=choice\(1,2\): optim.lr=tag\(log.*is given too"),
        ([LR], ["optim.lr=0.1"], "optim.lr=0.1 is given too; leave one out"),
        (["+optim.lr=1,2"], ["optim.lr=0.1"], "optim.lr=0.1 is given too"),
        (["seed=choice(0,1,2)"], [], "the best seed is best by chance"),
        (["trials=3,4"], [], "trials=3,4: an option of the search itself"),
        (["sampler.seed=3,4"], [], "sampler.seed=3,4: an option of the search itself"),
        (["pruner=none,median"], [], "an option of the search itself"),
    ],
)  # fmt: skip
def test_an_option_that_can_not_be_searched_is_told(searched, fixed, message):
    with pytest.raises(UserError, match=message):
        check_axes(parse_dimensions(searched), fixed)
    check_axes(parse_dimensions([LR, WIDTH]), TINY)


@pytest.mark.parametrize(
    ("word", "bad", "message"),
    [
        ("model.width=interval(2,8)", 2, r"^model.width=interval\(2,8\): model.width=2: .*whole|a whole number is needed.*; model.width=int\(interval\(...\)\) gives whole ones"),
        ("model.width=choice(2,wide)", 1, "model.width=wide: a whole number is needed"),
        ("loss=choice(dice,dise)", 1, "loss=dise: no such loss; did you mean dice"),
        ("trainer.num_nodes=choice(1,2)", 1, "a trial trains on one device; start the same command once per device"),
        ("trainer.devices=choice([0],[0,1])", 1, "a trial trains on one device"),
    ],
)  # fmt: skip
def test_each_value_is_checked_as_if_it_was_typed(word, bad, message):
    (axis,) = parse_dimensions([word])
    with pytest.raises(UserError, match=message):
        compose_trial([*TINY, axis.word(axis.samples()[bad])], axis)


@pytest.mark.slow
def test_a_line_is_refused_for_the_last_value_of_the_last_option():
    with pytest.raises(
        UserError, match=r"^model.width=choice\(2,3,wide\): model.width=wide: a whole"
    ):
        plan_search([*TINY, "optim=adam,sgd", "model.width=choice(2,3,wide)"])


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([], "one or more distinct objectives"),
        (["val/dice", "val/dice"], "one or more distinct objectives"),
        (["val/dise"], r"no val/dise; did you mean val/dice\? \(there are val/dice, val/loss, val/iou"),
        (["val/ece"], "objectives: no val/ece"),
        (["dice"], "objectives: no dice"),
        ([3], "objectives: no 3"),
        (["val/dice", "test/dice"], "would select on the test images; give val/dice"),
    ],
)  # fmt: skip
def test_an_objective_that_is_not_measured_is_told(objectives, message):
    plan = base()
    cfg = compose_quickly("train", ["model.num_classes=1"]).cfg
    with pytest.raises(UserError, match=message):
        check_objectives(objectives, cfg, plan.data)
    cfg.metrics.calibration = True
    good = ["val/ece", "val/dice/membrane", "val/loss", "val/iou_per_image", "milliseconds"]
    check_objectives(good, cfg, plan.data)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("study.db", "write sqlite:///study.db for a database"),
        ("sqlite:////nowhere/else/s.db", r"storage=sqlite:////nowhere/else/s.db: can't be opened \(.*unable to open"),
        ("postgres://me:secret@localhost/x", r"storage=postgres://me:\*\*\*@localhost/x: can't be opened"),
        ("postgresql://me:secret@localhost/x", r"storage=postgresql://me:\*\*\*@localhost/x: can't be opened"),
        ("mysql://me:secret@localhost:port/x", r"storage=mysql://\*\*\*: can't be opened"),
        ("/nowhere/else/x.log", r"storage=/nowhere/else/x.log: can't be opened as a journal"),
    ],
)  # fmt: skip
def test_a_storage_that_can_not_be_reached_is_one_line_and_leaves_nothing(
    storage, message, pretend, tmp_path
):
    pretend(lambda *_: pytest.fail("was trained"))
    with pytest.raises(UserError, match=message) as failed:
        tuned(LR, WIDTH, storage=storage)
    assert "\n" not in str(failed.value) and "secret" not in str(failed.value)
    assert not list((tmp_path / "outputs/searches").iterdir())


def test_a_grid_without_an_end_or_too_large_is_told():
    with pytest.raises(UserError, match=r"sampler=grid: optim.lr=tag.* has infinitely many values"):
        tuned(LR, WIDTH, sampler=GRID)
    with pytest.raises(UserError, match="2000 combinations; at most 1000"):
        grid_points(parse_dimensions(["a=range(1000)", "b=1,2"]))


def test_a_wrong_word_leaves_with_2_and_so_does_a_sweep(monkeypatch, capsys, tmp_path):
    for words, message in (
        ([LR, "optim.lrr=1"], "error: optim.lrr: no such option"),
        ([LR, "trials=abc"], "error: trials=abc: a whole number is needed"),
        ([LR, "sampler.n_startup=3"], "error: .*did you mean sampler.n_startup_trials"),
        ([LR, "search=[3]"], "error: search=.3.: a list of words is needed"),
        (["optim.lr=interval(1)"], r"error: optim.lr=interval\(1\): "),
        (["-m", LR], "error: -m: seg.tune searches without it"),
    ):
        monkeypatch.setattr(sys, "argv", ["tune", *words])
        with pytest.raises(SystemExit) as left:
            tune.main()
        err = capsys.readouterr().err
        assert left.value.code == 2 and re.match(message, err) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of three real trials, one of them pruned, in which the terminal was kept; read only."""
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(folder)
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0}
    try:
        study = tuned(LR, WIDTH, trials=3, name="unet-lr-width", pruner=pruner)
    finally:
        os.chdir(before)
    return folder / "outputs/searches/unet-lr-width", study


def test_each_trial_is_a_run_that_other_commands_read(whole):
    folder, study = whole
    assert len(study.trials) == 3 and {t.state for t in study.trials} <= {S.COMPLETE, S.PRUNED}
    for one in study.trials:
        place = folder / one.user_attrs["folder"]
        record = records.read_json(place / "run.json")
        assert place.name.startswith(f"{one.number:03d}-lr_") and "=" not in place.name
        assert record["group"] == "unet-lr-width" and record["job"] == one.number
        assert record["status"] == ("finished" if one.state == S.COMPLETE else "pruned")
        lr, width = f"{one.params['optim.lr']:.6g}", one.params["model.width"]
        assert {f"optim.lr={lr}", f"model.width={width}", *TINY} == set(record["overrides"])
        config = yaml.safe_load((place / "config.yaml").read_text())
        assert config["optim"]["lr"] == float(lr) and config["model"]["width"] == width
        assert not {"trials", "sampler", "storage", "search", "objectives"} & set(config)
        loaded = load.load_run(place)
        assert loaded.config["model"]["width"] == width
        if one.state == S.COMPLETE:
            assert one.value == record["metrics"]["best/val/dice"]
            with (place / "metrics.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["val/dice"]]
            by_epoch = {int(row["epoch"]) + 1: float(row["val/dice"]) for row in rows[:2]}
            assert one.intermediate_values == pytest.approx(by_epoch)
            assert one.value == pytest.approx(max(by_epoch.values()))
        assert "val/dice" in (place / "log.txt").read_text()


def test_what_a_search_leaves_is_its_trials_its_best_and_a_page(whole):
    folder, study = whole
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [0, 1, 2]
    assert [float(row["val/dice"] or 0) for row in rows] == pytest.approx(
        [t.value or 0 for t in study.trials]
    )
    words = yaml.safe_load((folder / "best.yaml").read_text())
    cfg = compose_checked("train", words)
    assert cfg.model.width == study.best_params["model.width"]
    assert cfg.optim.lr == pytest.approx(study.best_params["optim.lr"], rel=1e-5)
    text = (folder / "search.html").read_text()
    assert text.count("plotly.js v") == 1 and "unet-lr-width" in text
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', text)
    assert not list(folder.glob(".worker-*"))


def test_the_best_epoch_counts_not_the_last(pretend):
    def train(cfg, callbacks):
        return {"best/val/dice": 0.8, "val/dice": 0.1}

    pretend(train)
    assert tuned(LR, WIDTH, trials=1).best_value == 0.8


def test_the_same_line_goes_on_and_joins_with_other_draws(pretend, capsys):
    calls = pretend(dice)
    tuned(LR, WIDTH, trials=3)
    first = said(capsys)
    assert len(calls) == 3 and "3 trials\n" in first
    study = tuned(LR, WIDTH, trials=5)
    second = said(capsys)
    assert len(calls) == 5 and "5 trials, 3 of them done earlier" in second
    assert len({t.params["optim.lr"] for t in study.trials}) == 5
    tuned(LR, WIDTH, trials=5)
    assert len(calls) == 5 and "best trials" in said(capsys)
    assert [asked.job for _, _, asked in calls] == [0, 1, 2, 3, 4]


def test_a_study_begun_anew_draws_the_same_from_its_seed_and_others_from_another(pretend):
    pretend(dice)
    found = {
        name: [t.params["optim.lr"] for t in tuned(LR, WIDTH, trials=2, name=name, sampler={
            "_target_": "optuna.samplers.RandomSampler", "seed": seed}).trials]
        for name, seed in (("a", 0), ("b", 0), ("c", 5))
    }  # fmt: skip
    assert found["a"] == found["b"] != found["c"]


@pytest.mark.parametrize(
    ("searched", "settings", "objectives", "message"),
    [
        (["optim.lr=interval(1e-4,1e-1)", WIDTH], {}, [], "begun with optim.lr=0.0001 to 0.1, log, and this is optim.lr=0.0001 to 0.1; repeat the command that began it, or give another name"),
        ([LR], {}, [], "begun with model.width=2 | 3 | 4, and this is model.width=2"),
        ([LR, WIDTH, "loss=dice,focal"], {}, [], "begun with loss=null, and this is loss=dice | focal"),
        ([LR, WIDTH], {"model.depth": 3}, [], "begun with model.depth=2, and this is model.depth=3"),
        ([LR, WIDTH], {"seed": 1}, [], "begun with seed=0, and this is seed=1"),
        ([LR, WIDTH], {}, ["val/iou"], r"begun with objectives=\['val/dice'\], and this is objectives=\['val/iou'\]"),
    ],
)  # fmt: skip
def test_another_search_of_the_same_name_is_refused(
    pretend, searched, settings, objectives, message
):
    calls = pretend(dice)
    tuned(LR, WIDTH, trials=1, name="mine")
    plan = base()
    cfg = copy.deepcopy(plan.cfg)
    cfg.objectives, cfg.trials = objectives or ["val/dice"], 2
    other = plan._replace(
        axes=parse_dimensions(searched), settings=plan.settings | settings, cfg=cfg, name="mine"
    )
    with pytest.raises(UserError, match=f"name=mine: .*{message.replace('|', '[|]')}"):
        run_search(other)
    assert len(calls) == 1
    free = ("outputs", "name", "logger", "panels", "save_predictions", "loader.workers")
    assert not [key for key in plan.settings if key.startswith(free)]
    assert {"optim.lr", "data.size", "trainer.max_epochs", "loader.crop"} <= set(plan.settings)


def test_a_study_of_somebody_else_is_left_alone(pretend):
    pretend(dice)
    optuna.create_study(storage="sqlite:///theirs.db", study_name="mine")
    with pytest.raises(UserError, match=r"name=mine: a study of that name was not created"):
        tuned(LR, WIDTH, name="mine", storage="sqlite:///theirs.db")
    assert not list(Path("outputs/searches").iterdir())


def test_a_trial_that_fails_is_noted_and_the_search_goes_on(pretend, capsys):
    def train(cfg, callbacks):
        if cfg.model.width == 3:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        return {"best/val/dice": float("nan")} if cfg.model.width == 4 else dice(cfg)

    pretend(train)
    study = tuned(WIDTH, sampler=GRID)
    by_width = {t.params["model.width"]: t for t in study.trials}
    assert [by_width[w].state for w in (2, 3, 4)] == [S.COMPLETE, S.FAIL, S.FAIL]
    wanted = "RuntimeError: CUDA out of memory. Tried to allocate"
    assert by_width[3].user_attrs["error"] == wanted
    assert by_width[4].user_attrs["error"] == "ValueError: val/dice is nan"
    text = said(capsys)
    assert f"failed: {wanted}" in text and "failed: ValueError: val/dice is nan" in text
    folder = Path("outputs/searches/s") / by_width[3].user_attrs["folder"]
    assert records.read_json(folder / "run.json")["error"] == wanted
    assert "Traceback" in (folder / "log.txt").read_text()


def test_three_failures_and_nothing_else_end_the_search_with_the_last_error(pretend):
    def train(cfg, callbacks):
        raise UserError(f"width={cfg.model.width} is wrong")

    calls = pretend(train)
    with pytest.raises(RuntimeError, match=r"first 3 trials failed.*UserError: width=\d is wrong"):
        tuned(LR, WIDTH, trials=9)
    assert len(calls) == 3
    with pytest.raises(RuntimeError, match="all trials failed"):
        tuned(LR, WIDTH, trials=2, name="two")


def test_failures_do_not_end_a_search_in_which_one_came_through(pretend):
    seen = []

    def train(cfg, callbacks):
        seen.append(1)
        if len(seen) != 2:
            raise RuntimeError("no")
        return dice(cfg)

    pretend(train)
    assert len(tuned(LR, WIDTH, trials=4).trials) == 4  # a failed one is one of them


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_is_no_trial_and_runs_again_each_time(pretend, stop):
    seen = []

    def train(cfg, callbacks):
        seen.append((cfg.optim.lr, cfg.model.width))
        if len(seen) in (2, 3):
            raise stop
        return dice(cfg)

    pretend(train)
    for _ in range(2):
        with pytest.raises(stop):
            tuned(LR, WIDTH, trials=3)
    assert Path("outputs/searches/s/search.html").is_file()
    study = tuned(LR, WIDTH, trials=3)
    ended = [S.COMPLETE, S.FAIL, S.FAIL, S.COMPLETE, S.COMPLETE]
    assert [t.state for t in study.trials] == ended
    assert seen[1] == seen[2] == seen[3] and len(set(seen)) == 3


def test_a_trial_trains_on_one_device_whatever_the_machine_has(pretend):
    calls = pretend(dice)
    run_search(base()._replace(fixed=[*TINY, "trainer.devices=auto"], cfg=one_trial()))
    assert [cfg.trainer.devices for cfg, _, _ in calls] == [1]


class Course:
    """What a trainer is to the callback."""

    sanity_checking = False

    def __init__(self, epoch: int, score: float, fn: str = "fit") -> None:
        self.current_epoch, self.callback_metrics = epoch, {"val/dice": score, "val/loss": -score}
        self.state = type("State", (), {"fn": fn})


def test_a_trial_behind_the_median_is_ended_and_the_terminal_says_so(pretend, capsys):
    """Hand-worked: at epoch 2 the others had 0.6 and 0.9, median 0.75; 0.74, the best so far, lies below."""
    courses = [[0.7, 0.6, 0.7], [0.8, 0.9, 0.95], [0.74, 0.1, 0.99], [0.7, 0.85, 0.9]]
    step = iter(courses)

    def train(cfg, callbacks):
        values = next(step)
        (callback,) = callbacks
        for epoch, value in enumerate(values):
            callback.on_train_epoch_start(Course(epoch, value), None)
            callback.on_validation_end(Course(epoch, 0.0, "validate"), None)  # of the final scoring
            callback.on_validation_end(Course(epoch, value), None)
        return {"best/val/dice": max(values)}

    pretend(train)
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 2}
    study = tuned(LR, WIDTH, pruner=pruner, trials=4)
    assert [t.state for t in study.trials] == [S.COMPLETE, S.COMPLETE, S.PRUNED, S.COMPLETE]
    assert study.trials[2].intermediate_values == {1: 0.74, 2: 0.1}
    assert re.search(r"    2 .* pruned after epoch 2", said(capsys))
    assert study.best_trial.number == 1


def test_an_objective_that_is_to_be_small_is_made_small(pretend, capsys):
    def train(cfg, callbacks):
        return {"best/val/loss": cfg.model.width, "best/val/dice": cfg.model.width}

    pretend(train)
    study = tuned(WIDTH, sampler=GRID, objectives=["val/loss"])
    assert study.best_params == {"model.width": 2}
    table = said(capsys).partition("best trials")[2]
    assert re.findall(r"│ +(\d) │ +\d\.0000", table) == ["2", "3", "4"]
    names = {"val/loss/dice": 1, "val/dice/loss": 0, "val/ece": 1, "val/hausdorff_95/a": 1, "milliseconds": 1,
             "parameters": 1, "val/dice_per_image": 0, "val/boundary_f": 0}  # fmt: skip
    assert {n: objective_direction(n) == "minimize" for n in names} == {
        n: bool(v) for n, v in names.items()
    }


def test_two_objectives_give_a_front_and_no_pruning(pretend, capsys, monkeypatch):
    given = {2: (0.5, 10), 3: (0.9, 30), 4: (0.8, 40)}
    monkeypatch.setattr(
        trial, "read_record", lambda file: RunRecord(status="finished", parameters=given[width][1])
    )
    width = 0

    def train(cfg, callbacks):
        nonlocal width
        width = cfg.model.width
        assert not callbacks
        return {"best/val/dice": given[width][0]}

    pretend(train)
    study = tuned(WIDTH, sampler=GRID, objectives=["val/dice", "parameters"])
    assert sorted(t.params["model.width"] for t in study.best_trials) == [2, 3]
    text = said(capsys)
    assert (
        "pruning    none: it needs a single objective" in text
        and "trials on the Pareto front" in text
    )
    words = yaml.safe_load(Path("outputs/searches/s/best.yaml").read_text())
    assert [w for line in words for w in line if "width" in w] == ["model.width=2", "model.width=3"]


def test_milliseconds_and_parameters_are_those_of_the_run(tmp_path):
    study = tuned(LR, WIDTH, trials=1, objectives=["milliseconds", "parameters"], outputs="out")
    (one,) = study.trials
    place = tmp_path / "out/s" / one.user_attrs["folder"]
    count = sum(p.numel() for p in load.load_run(place).model.parameters())
    assert one.values is not None and one.values[1] == count and 0.05 < one.values[0] < 500


def test_a_grid_is_each_combination_once(pretend):
    calls = pretend(dice)
    words = [WIDTH, "optim.lr=choice(0.1,0.01)"]
    tuned(*words, sampler=GRID, trials=4)
    study = tuned(*words, sampler=GRID, trials=99)
    tried = [(t.params["optim.lr"], t.params["model.width"]) for t in study.trials]
    assert sorted(tried) == [(lr, w) for lr in (0.01, 0.1) for w in (2, 3, 4)] and len(calls) == 6
    assert grid_points(parse_dimensions(["a=range(0,0.3,0.1)", "b=true,false"])) == [
        {"a": a, "b": b} for a in (0.0, 0.1, 0.2) for b in (True, False)
    ]


@pytest.mark.parametrize("sampler", [f.stem for f in sorted((CONF / "sampler").glob("*.yaml"))])
def test_each_sampler_of_the_files_draws_from_a_mixed_space(pretend, sampler):
    pretend(dice)
    node = OmegaConf.load(CONF / f"sampler/{sampler}.yaml")
    node.seed = 0
    if "n_startup_trials" in node:
        node.n_startup_trials = 2
    lr = ["optim.lr=choice(0.01,0.1)"] if sampler == "grid" else [LR]
    study = tuned(*lr, WIDTH, sampler=node, trials=4)
    assert [t.state for t in study.trials if t.state != S.WAITING] == [S.COMPLETE] * 4


@pytest.mark.parametrize("pruner", [f.stem for f in sorted((CONF / "pruner").glob("*.yaml"))])
def test_each_pruner_of_the_files_is_optunas(pruner):
    node = OmegaConf.load(CONF / f"pruner/{pruner}.yaml")
    cfg = OmegaConf.create({"pruner": node, "trainer": {"max_epochs": 27}})
    built = instantiate_node(cfg.pruner, "pruner")
    assert type(built).__module__.startswith("optuna.pruners")
    if pruner == "hyperband":
        assert built._max_resource == 27


def test_a_group_that_is_searched_brings_its_own_options(pretend, monkeypatch):
    calls = pretend(lambda cfg, callbacks: {"best/val/dice": 0.5})
    monkeypatch.setattr(trial, "compose_config", compose_config)
    tuned("loss=choice(focal,dice)", sampler=GRID)
    assert len({cfg.loss["_target_"] for cfg, _, _ in calls}) == 2
    for cfg, _, asked in calls:
        assert compose_config("train", asked.overrides).cfg.loss == cfg.loss
        assert cfg.loss["_target_"].lower().endswith(asked.choices["loss"])


def test_no_trial_begins_after_the_timeout(pretend, monkeypatch, capsys):
    clock = iter([0.0, 1.0, 59.0, 61.0])
    pretend(dice)
    monkeypatch.setattr(search_worker.time, "monotonic", lambda: next(clock))
    study = tuned(LR, WIDTH, trials=9, timeout=1)
    assert len(study.trials) == 2 and "timeout=1: no further trial is started" in said(capsys)


def open_study(name: str, trials: int = 0):
    """The study of a first worker, which has made so many trials."""
    Path("s").mkdir(exist_ok=True)
    storage = open_storage(storage_url(None, Path("s")))
    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def test_workers_together_take_as_many_trials_as_asked_for():
    searched = parse_dimensions(["a=interval(0,1)"])
    first, second = open_study("x"), open_study("x")
    with register_worker(Path("s")) as one, register_worker(Path("s")) as other:
        assert one != other
        got = [ask_trial(study, searched, Path("s"), 3, me) for study, me in ((first, one), (second, other)) * 2]  # fmt: skip
        assert [t.number for t in got[:3] if t] == [0, 1, 2] and got[3] is None
        first.tell(got[0], 0.5)
        second.tell(got[1], state=S.PRUNED)
        assert ask_trial(first, searched, Path("s"), 3, one) is None  # one is still under way
        assert ask_trial(first, searched, Path("s"), 4, one) is not None


def test_a_trial_whose_worker_died_runs_again_once():
    searched, folder = parse_dimensions(["a=interval(0,1)"]), Path("s")
    study = open_study("x")
    with register_worker(folder) as alive:
        lived = ask_trial(study, searched, folder, 9, alive)
        elsewhere = ask_trial(study, searched, folder, 9, ".worker-of-another-machine")
        (folder / ".worker-dead").touch()  # no process holds it
        died = ask_trial(study, searched, folder, 9, ".worker-dead")
        again = ask_trial(study, searched, folder, 9, alive)
        assert lived and died and elsewhere and again
        assert again.params == died.params and again.user_attrs["again"] == died.number
        states = [t.state for t in study.get_trials()]
        assert states == [S.RUNNING, S.RUNNING, S.FAIL, S.RUNNING]
        assert [is_counted(t) for t in study.get_trials()] == [True, True, False, True]
        (folder / ".worker-dead").touch()
        again.set_user_attr("worker", ".worker-dead")
        fresh = ask_trial(study, searched, folder, 9, alive)
        assert fresh and fresh.params != died.params  # given up
        assert is_counted(study.get_trials()[again.number])


def test_a_password_is_neither_told_nor_written_and_a_line_is_searched_as_typed(
    pretend, monkeypatch, capsys
):
    assert hide_password("postgresql://me:secret@host:5432/x") == "postgresql://me:***@host:5432/x"
    assert hide_password("mysql://me:secret@host:port/x") == "mysql://***"
    assert hide_password("journal.log") == "journal.log"
    file = "sqlite:///study.db"
    read = []

    def planned(words):
        read.extend(words)
        cfg = one_trial()
        cfg.storage = file
        return base()._replace(cfg=cfg)

    monkeypatch.setattr("seg.commands.tune.plan_search", planned)
    monkeypatch.setattr(
        "seg.multirun.search.study.hide_password", lambda s: s.replace("study", "***")
    )
    monkeypatch.setattr(search_worker, "hide_password", lambda s: s.replace("study", "***"))
    calls = pretend(dice)
    line = ["tune", *TINY, LR, WIDTH, "trials=1", f"storage={file}"]
    monkeypatch.setattr(sys, "argv", list(line))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", *line])
    tune.main()
    assert "sqlite:///***.db" in said(capsys)
    for words in (sys.argv, sys.orig_argv):
        assert "storage=sqlite:///***.db" in words and f"storage={file}" not in words
    ((cfg, _, asked),) = calls
    assert "storage" not in cfg and not any("storage" in word for word in asked.overrides)
    assert asked.group == "unet-lr-width" and asked.choices["model"] == "unet"
    assert gather_searched([*TINY, LR, WIDTH])[-1] in read and "trials=1" in read


def test_a_list_of_words_is_searched_as_the_line_is():
    given = 'search=["c=interval(0,1)"]'
    assert gather_searched(["a=1", "b=1,2", given]) == ["a=1", 'search=["c=interval(0,1)","b=1,2"]']
    assert gather_searched(["a=1"]) == ["a=1"] and gather_searched([given]) == [given]
    words = ["loss=choice('dice',focal)", "optim.lr=tag(log, interval(1e-4, 1e-1))"]
    assert compose_checked("tune", gather_searched(words)).search == words


def test_a_journal_file_is_a_storage_too(pretend):
    pretend(dice)
    for trials in (2, 3):
        study = tuned(LR, WIDTH, trials=trials, storage="all.log")
        assert len(study.trials) == trials
    assert Path("all.log").is_file() and not Path("outputs/searches/s/study.db").exists()


def test_names_on_the_page_are_text(pretend):
    study = optuna.create_study(study_name="<script>x</script>")
    name, choice = "<img src=x onerror=alert(1)>", "</script><b>"
    for number in range(6):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: choice, "a": number / 9}, value=number,
                distributions={name: CategoricalDistribution([choice, "y"]), "a": FloatDistribution(0, 1)},
            )
        )  # fmt: skip
    searched = parse_dimensions(["a=interval(0,1)", "b=interval(0,1)"])
    object.__setattr__(searched[1], "key", name)
    text = render_search_page(study, searched, ["val/dice"], "python -m seg.train '<b>'")
    body = text[text.index("<body>") :]
    assert "<script>x" not in body and "<img" not in body and "</script><b>" not in body
    assert "&lt;script&gt;x&lt;/script&gt;" in body and "&#39;&lt;b&gt;&#39;" in body


def test_what_mattered_names_the_option_that_did_also_where_it_made_trials_end_early():
    """A choice that alone makes the score, beside an interval that does nothing."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(24):
        one = study.ask({"a": FloatDistribution(0, 1), "b": CategoricalDistribution([1, 2, 3])})
        value = float(one.params["b"])
        if value < 3:
            one.report(value, 1)
            study.tell(one, state=S.PRUNED)
        else:
            study.tell(one, value)
    found = option_importances(study)
    assert found["b"] > 0.9 and sum(found.values()) == pytest.approx(1)


def start(*words: str, folder: Path) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": str(Path(tune.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "seg.tune", *TINY, LR, *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_killed_holds_nothing_up(tmp_path):
    both = [start("trials=6", folder=tmp_path) for _ in range(2)]
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    url = f"sqlite:///{tmp_path}/outputs/searches/unet-lr/study.db"
    study = optuna.load_study(study_name="unet-lr", storage=url)
    assert [t.state for t in study.trials].count(S.FAIL) == 0 and len(study.trials) == 6
    assert len({t.user_attrs["worker"] for t in study.trials}) == 2
    assert len({t.params["optim.lr"] for t in study.trials}) == 6
    long = start("trials=8", "trainer.max_epochs=2", folder=tmp_path)
    for _ in range(600):
        if S.RUNNING in [t.state for t in study.get_trials()]:
            break
        time.sleep(0.1)
    long.send_signal(signal.SIGKILL)
    long.communicate()
    done = start("trials=8", folder=tmp_path)
    _, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    states = [t.state for t in study.get_trials()]
    assert S.RUNNING not in states and sum(map(is_counted, study.get_trials())) == 8
    cut = [t for t in study.get_trials() if t.state == S.FAIL]
    again = [t for t in study.get_trials() if "again" in t.user_attrs]
    assert [t.number for t in cut] == [t.user_attrs["again"] for t in again]
    assert [t.params for t in cut] == [t.params for t in again]


@pytest.mark.slow
def test_ctrl_c_leaves_with_130_and_no_running_trial(tmp_path):
    process = start("trials=2", "trainer.max_epochs=300", folder=tmp_path)
    folder = tmp_path / "outputs/searches/unet-lr"
    try:
        for _ in range(600):
            if list(folder.glob("000-*/metrics.csv")):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    study = optuna.load_study(study_name="unet-lr", storage=f"sqlite:///{folder}/study.db")
    assert [t.state for t in study.trials] == [S.FAIL, S.WAITING]
    assert not is_counted(study.trials[0]) and study.trials[0].user_attrs["interrupted"]
    record = records.read_json(folder / study.trials[0].user_attrs["folder"] / "run.json")
    assert record["status"] == "interrupted"


@pytest.mark.slow
def test_the_dashboard_opens_a_study(pretend, tmp_path):
    pretend(dice)
    tuned(LR, WIDTH, trials=4)
    url = f"sqlite:///{tmp_path}/outputs/searches/s/study.db"
    program = Path(sys.executable).with_name("optuna-dashboard")
    if not program.is_file():
        pytest.skip("the extra dashboard isn't installed")
    with subprocess.Popen([program, url, "--port", "18765"], stdout=-3, stderr=-3) as server:
        try:
            for _ in range(100):
                try:
                    place = "http://127.0.0.1:18765/api/studies"
                    found = json.load(urllib.request.urlopen(place, timeout=5))
                    break
                except OSError:
                    time.sleep(0.2)
            assert [one["study_name"] for one in found["study_summaries"]] == ["s"]
            page = urllib.request.urlopen("http://127.0.0.1:18765/dashboard/", timeout=5).read()
            assert b"Optuna" in page
        finally:
            server.terminate()
