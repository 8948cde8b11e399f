"""seg.plan: the rules, the file that seg.train takes, and the demand that dry=true tells."""

import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from small_runs import FOLDED, TINY, config, make_images

from seg.cli.compose import compose_checked, parse_overrides
from seg.commands.plan import plan_training
from seg.errors import UserError
from seg.planning import rules
from seg.planning.experiment_file import check_output, write_experiment
from seg.planning.fingerprint import Fingerprint, region_thickness
from seg.planning.rules import Machine, Measured, Setting
from seg.training.build import build_data
from seg.training.demand import Demand, training_seconds
from seg.training.dry_run import dry_run

CELLS = Fingerprint(
    images={"train": 20, "val": 5}, groups=None, height=512, width=512, channels=1, dtype="uint8", outlier=3.0,
    classes=["out", "in"], shares=[0.7, 0.3], labelled=1.0, thickness=[80.0, 60.0],
)  # fmt: skip
LAPTOP = Machine("cpu", 4, 16 * 2**30)
FAST = [
    Measured(8, 128, 0.1, 0.2, 2**30),
    Measured(16, 128, 0.3, 0.4, 2**30),
    Measured(32, 128, 0.9, 1.0, 2**30),
]


def chosen(settings: list[Setting]) -> dict:
    return {setting.option: setting.value for setting in settings}


def by_data(**changes) -> dict:
    return chosen(rules.data_settings(replace(CELLS, **changes), LAPTOP))


def by_speed(budget: float, measured=FAST, machine=LAPTOP, **changes) -> dict:
    data = replace(CELLS, **changes)
    return chosen(rules.speed_settings(data, machine, budget, measured))


# --- rules


def test_a_longer_time_takes_a_wider_network():
    assert [by_speed(s)["model.width"] for s in (1, 99, 101, 599, 601, 10**5)] == [
        8,
        8,
        8,
        8,
        16,
        32,
    ]


def test_a_network_that_takes_more_than_half_of_the_memory_is_not_chosen():
    large = [*FAST[:2], replace(FAST[2], peak=9 * 2**30)]
    assert by_speed(10**5, large)["model.width"] == 16
    assert by_speed(10**5, large, replace(LAPTOP, memory=None))["model.width"] == 32


def test_final_scores_are_taken_from_the_time_and_at_most_half_of_it():
    # 5 images of 0.2 s; 500 images of 0.2 s would take 100 s
    assert by_speed(61)["trainer.max_time"] == "00:00:01:00"
    assert by_speed(60, images={"train": 20, "val": 500})["trainer.max_time"] == "00:00:00:30"
    assert rules.format_duration(90_061.9) == "01:01:01:01"


def test_an_epoch_is_as_long_as_ten_validations_or_a_tenth_of_the_time_allow():
    # 99 s hold 990 steps of 4 crops, and nine validations of 1 s take a tenth: 440 crops an epoch, 22 of each image
    assert by_speed(100)["loader.repeats"] == 22
    # a tenth of 75 s holds no validation of 25 s: a single epoch of 750 steps, 150 crops of each image
    assert by_speed(100, images={"train": 20, "val": 125})["loader.repeats"] == 150
    assert by_speed(100, images={"train": 10**5, "val": 5})["loader.repeats"] == 1


@pytest.mark.parametrize(
    ("height", "width", "thickest", "sizes"),
    [
        (512, 512, 80.0, [(8, 128), (16, 128), (32, 128), (64, 128)]),
        (512, 512, 100.0, [(8, 128), (8, 192), (16, 192), (32, 192), (64, 192)]),
        (150, 400, 100.0, [(8, 128), (16, 128), (32, 128), (64, 128)]),
        (40, 40, 10.0, [(8, 64), (16, 64), (32, 64), (64, 64)]),
    ],
)
def test_larger_crops_come_before_wider_networks_and_no_crop_exceeds_an_image(
    height, width, thickest, sizes
):
    data = replace(CELLS, height=height, width=width, thickness=[math.nan, thickest])
    assert rules.candidate_sizes(data) == sizes


def test_small_crops_come_in_larger_batches():
    assert [rules.batch_size(crop) for crop in (256, 128, 96, 64, 16)] == [4, 4, 7, 16, 32]


def test_grey_values_far_outside_are_clipped():
    assert "loader.percentiles" not in by_data()
    assert by_data(outlier=40.0)["loader.percentiles"] == [0.1, 99.9]


def test_a_gpu_gets_loader_processes():
    on_gpu = chosen(rules.data_settings(CELLS, Machine("gpu", 6, 2**34)))
    assert on_gpu["loader.workers"] == 5 and "loader.workers" not in by_data()


def test_a_cpu_that_multiplies_bfloat16_trains_with_it():
    fast = chosen(rules.data_settings(CELLS, replace(LAPTOP, bfloat16=True)))
    assert fast["trainer.precision"] == "bf16-mixed" and "trainer.precision" not in by_data()
    on_gpu = rules.data_settings(CELLS, Machine("gpu", 6, 2**34, bfloat16=True))
    assert "trainer.precision" not in chosen(on_gpu)  # trainer=auto takes it there


def test_each_reason_is_one_line_and_notes_name_what_settings_can_not_mend():
    for setting in [*rules.data_settings(CELLS, LAPTOP), *rules.speed_settings(CELLS, LAPTOP, 60, FAST)]:  # fmt: skip
        assert setting.reason and "\n" not in setting.reason
    assert rules.data_remarks(CELLS) == []
    poor = replace(CELLS, images={"train": 3, "val": 1}, labelled=0.05, groups=4)
    assert [line.split()[:2] for line in rules.data_remarks(poor)] == [
        ["one", "image"], ["the", "images"], ["5.0%", "of"],
    ]  # fmt: skip


# --- fingerprint


def test_the_thickness_of_a_region_is_that_of_its_middle():
    plane = np.zeros((64, 64), bool)
    assert math.isnan(region_thickness(plane))
    plane[20:41] = True  # a stripe of 21 px: distances 1 to 11
    assert region_thickness(plane) == pytest.approx(22, abs=2)


# --- file and command


def test_given_options_and_choices_of_settings_are_composed_from_the_file(tmp_path):
    file = tmp_path / "experiment" / "cells.yaml"
    typed = [
        "data=folder",
        "data.root='~/a b'",
        "data.classes=[on,'a: b']",
        "data.values={0: 0, 255: 1}",
        "logger=none",
    ]
    settings = [
        Setting("augment", "mirror", "why"), Setting("loader.crop", 64, "of a\nb"), Setting("loader.percentiles", [0.1, 99.9], "why: #1"), Setting("trainer.max_time", "12:00:20:00", "why"),
    ]  # fmt: skip
    write_experiment(file, ["classes a\nb: c"], parse_overrides(typed), settings)
    words = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=cells"]
    direct = compose_checked("train", [*typed, "augment=mirror", "loader.crop=64", "loader.percentiles=[0.1,99.9]", "trainer.max_time='12:00:20:00'"])  # fmt: skip
    assert compose_checked("train", words) == direct


def test_a_file_that_train_would_not_find_or_that_is_not_a_plan_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"give output=.*/experiment/plan.yaml"):
        check_output(tmp_path / "plan.yaml", None)
    file = tmp_path / "experiment" / "mine.yaml"
    with pytest.raises(UserError, match=r"seg\.train takes one --config-dir"):
        check_output(file, str(tmp_path / "conf"))
    with pytest.raises(UserError, match="a name of letters"):
        check_output(tmp_path / "experiment" / "my plan.yaml", None)
    file.parent.mkdir()
    for content in (b"model: {width: 8}\n", b"\xff\xfe"):  # the latter is no text
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"was not written by seg\.plan"):
            check_output(file, None)
    write_experiment(file.with_name("plan.yaml"), [], [], [])
    check_output(file.with_name("plan.yaml"), str(tmp_path))


def test_a_plan_is_written_and_train_rehearses_it_without_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seg.commands.plan.MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(
        "seg.commands.plan.candidate_sizes", lambda data, widths: [(2, 32), (4, 32)]
    )
    root = make_images(tmp_path / "data")
    given = [
        "data=folder",
        f"data.root={root}",
        "data.classes=[out,in]",
        "trainer=cpu",
        "model.depth=2",
        "loader.crop=32",
    ]
    cfg = config("plan", *given, "budget=10s")
    monkeypatch.setattr("seg.commands.plan.given_overrides", lambda: parse_overrides(given))
    found = chosen(plan_training(cfg))
    assert "loader.crop" not in found and found["model.width"] in (2, 4)
    content = yaml.safe_load((tmp_path / "experiment/plan.yaml").read_text())
    assert content["loader"]["crop"] == 32 and content["model"]["width"] == found["model.width"]
    before = sorted(tmp_path.rglob("*"))
    train = compose_checked("train", [f"hydra.searchpath=['file://{tmp_path}']", "experiment=plan"])
    assert train.loader.repeats == found["loader.repeats"] and train.data.root == str(root)
    assert dry_run(train).steps >= 2
    assert sorted(tmp_path.rglob("*")) == before


# --- demand


def test_the_demand_counts_the_weights_and_the_state_of_the_optimiser(tmp_path):
    cfg = config("train", *TINY, f"outputs={tmp_path / 'outputs'}")
    demand = dry_run(cfg)
    from seg.training.run import build_parts

    parameters = [p.numel() for p in build_parts(cfg)[0].model.parameters()]
    assert demand.state == sum(
        8 * n + 4 for n in parameters
    )  # two moments of float32, and the number of steps
    assert 4 * sum(parameters) < demand.weights < 4.3 * sum(parameters)  # with the buffers of norms
    assert demand.step_seconds > 0 and demand.image_seconds > 0
    assert not (tmp_path / "outputs").exists()


def test_the_time_to_the_end_is_that_of_steps_validations_and_scores():
    cfg = config(
        "train",
        *FOLDED[3:],
        "data=membranes",
        "data.size=32",
        "data.train=10",
        "data.val=3",
        "data.test=2",
        "loader.batch_size=4",
    )
    data = build_data(cfg)
    demand = Demand(
        2, step_seconds=1.0, image_seconds=10.0, memory=None, image_memory=0, weights=0, state=0
    )
    # 10 images twice in batches of 4: 5 steps; one epoch of 5 s and 30 s; then 30 s, 3 pictures of 10 s, and 20 s of test
    assert training_seconds(cfg, data, demand) == (5, 5 + 30 + 30 + 30 + 20)
    cfg.trainer.max_epochs, cfg.save_predictions, cfg.threshold = 4, 0, "best"
    assert training_seconds(cfg, data, demand) == (20, 20 + 4 * 30 + 60 + 20)
    cfg.trainer.max_epochs, cfg.trainer.max_time = -1, "00:00:01:10"
    assert training_seconds(cfg, data, demand) == (10, 10 + 2 * 30 + 60 + 20)
