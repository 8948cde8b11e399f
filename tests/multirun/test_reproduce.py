"""benchmarks/reproduce.py: what conf/experiment/ records is read as it stands, and judged as it should be."""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/reproduce.py"
spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
assert spec is not None and spec.loader is not None
reproduce = importlib.util.module_from_spec(spec)
sys.modules["reproduce"] = reproduce  # dataclasses look themselves up there
spec.loader.exec_module(reproduce)

RECORD = """\
# @package _global_
# CamVid streets, 480x360 RGB: a remark.
# command: python -m seg.train experiment=streets data.root=DATA model=unet
# data: camvid
# threads: 2
# cost: 12.5 minutes
# result: best/val/dice 0.8180 +- 0.0040 (3 seeds), seed 0: 0.8213
# result: test/iou 0.60 to 0.65
# small: trainer.max_epochs=1
#    model.width=4
# small result: best/val/dice 0.6102 (seed 0)
# command: python -m seg.crossval experiment=streets data.root=DATA seed=5
# data: camvid
# result: pooled/dice 0.81
seed: 7
"""


@pytest.fixture
def written(tmp_path):
    """Writes an experiment's file."""

    def write(text: str) -> Path:
        (tmp_path / "streets.yaml").write_text(text)
        return tmp_path / "streets.yaml"

    return write


def test_a_record_is_read_as_it_stands_in_the_file(written):
    first, second = reproduce.header(written(RECORD))
    assert first.command == "python -m seg.train experiment=streets data.root=DATA model=unet"
    assert first.facts == {
        "data": "camvid", "threads": "2", "cost": "12.5 minutes",
        "small": "trainer.max_epochs=1 model.width=4",
    }  # fmt: skip
    dice, iou = first.results
    assert (dice.name, dice.mean, dice.sd, dice.seeds, dice.first, dice.digits) == (
        "best/val/dice", 0.818, 0.004, 3, 0.8213, 4
    )  # fmt: skip
    assert (iou.low, iou.high, iou.mean, iou.first) == (0.60, 0.65, None, None)
    assert [one.first for one in first.small_results] == [0.6102]
    assert [one.first for one in second.results] == [0.81] and not second.small_results
    assert (first.name(), second.name()) == ("streets model=unet", "streets")


@pytest.mark.parametrize(
    "lines, message",
    [
        ("# result: test/dice 0.8", "1: result: stands before any command: line"),
        ("# command: rm -rf outputs", "1: command: rm -rf outputs; python -m seg.train or seg"),
        ("# command: python -m seg.prune", "python -m seg.train or seg.crossval is needed"),
        ("# command: python -m seg.train\n# resutl: test/dice 0.8", "2: resutl: .* mean result:"),
        ("# command: python -m seg.train\n# result: test/dice 80 %", r"2: result: test/dice 80 %;"),
        ("# command: python -m seg.train\n# result: test/dice 0.7 to 0.6", "NAME 0.81 to 0.83 is"),
        ("# command: python -m seg.train\n# cost: 1\n# cost: 2", "3: cost: stands there already"),
        ("# command: python -m seg.train\n# threads: two", "2: threads: two; a number is needed"),
        ("# command: python -m seg.train\n# small result: a 0.8", "small result: needs a line sm"),
    ],
)
def test_a_record_that_cant_be_read_names_the_line(written, lines, message):
    with pytest.raises(reproduce.HeaderError, match=message):
        reproduce.header(written(lines))


def test_each_shipped_record_can_be_read_and_is_of_its_own_file():
    for file in sorted(reproduce.EXPERIMENTS.glob("*.yaml")):
        for record in reproduce.header(file):
            assert f"experiment={file.stem}" in record.command.split()


RESULTS = {
    "one seed": "0.8213",
    "three": "0.8180 +- 0.0040 (3 seeds), seed 0: 0.8213",
    "two": "0.8180 +- 0.0040 (2 seeds)",
    "interval": "0.80 to 0.84",
    "no spread": "0.8180 +- 0.0000 (3 seeds)",
}


@pytest.mark.parametrize(
    "recorded, now, expected",
    [
        ("one seed", [0.82134], "same"),  # prints as 0.8213
        ("one seed", [0.82136], "different"),  # prints as 0.8214, and no noise is known
        ("three", [0.82126, 0.1], "same"),  # seed 0 is what it was
        ("three", [0.8200, 0.8170, 0.8170], "same"),  # their mean is
        # t(0.975; 2) = 4.303 times 0.0040 times sqrt(1/3 + 1) = 0.01987 around the mean of three
        ("three", [0.8180 + 0.0198], "within noise"),
        ("three", [0.8180 - 0.0198], "within noise"),
        ("three", [0.8180 + 0.0201], "different"),
        # ... times sqrt(1/3 + 1/3) = 0.01405 for a mean of three
        ("three", [0.8180 + 0.0139] * 3, "within noise"),
        ("three", [0.8180 + 0.0143] * 3, "different"),
        ("two", [0.8181], "different"),  # of two seeds no noise is told
        ("interval", [0.80], "within noise"),
        ("interval", [0.8401], "different"),
        ("no spread", [0.81804], "within noise"),  # as near as it is printed
        ("no spread", [0.8182], "different"),
        ("three", [float("nan")], "different"),
        ("interval", [float("inf")], "different"),
    ],
)
def test_a_verdict_is_what_digits_and_noise_say(recorded, now, expected):
    result = reproduce.result(f"test/dice {RESULTS[recorded]}", "here")
    assert reproduce.verdict(result, now) == expected


def test_a_new_seed_is_called_different_in_one_case_of_twenty():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(500):
        *old, new = rng.normal(0.8, 0.01, 4)
        mean, sd = statistics.fmean(old), statistics.stdev(old)
        result = reproduce.Result("test/dice", "", 9, mean, sd, 3)
        found.append(reproduce.verdict(result, [new]))
    assert found.count("different") / 500 == pytest.approx(0.05, abs=0.025)


def test_a_command_gets_data_seed_and_folder_and_the_small_options_last(written, tmp_path):
    first, second = reproduce.header(written(RECORD))
    words = reproduce.line(first, True, Path("/d/camvid"), 2, tmp_path)
    assert words == [
        "seg.train", "experiment=streets", "model=unet", "data.root=/d/camvid", "trainer.max_epochs=1",
        "model.width=4", "seed=2", "logger=none", f"outputs={tmp_path}",
    ]  # fmt: skip
    words = reproduce.line(second, False, Path("/d/camvid"), 0, tmp_path)
    assert words == [
        "seg.crossval", "experiment=streets", "data.root=/d/camvid", "seed=0", "logger=none",
        f"output={tmp_path}",
    ]  # fmt: skip


def test_data_that_isnt_there_is_skipped_and_a_strange_name_ends_with_2(written, tmp_path, capsys):
    file = written(RECORD)
    options = ["--conf", str(file.parent), "--small", "--json", str(tmp_path / "rows.json")]
    assert reproduce.main([*options, "--data", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["verdict"] for row in rows] == ["skipped", "skipped"]
    assert rows[0]["note"] == f"{tmp_path / 'camvid'} isn't there"
    assert rows[1]["note"] == "has no small version; --full trains it whole (an unknown time)"
    assert reproduce.main([*options, "--only", "roads"]) == 2
    assert f"--only roads: no such file in {file.parent}; streets" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_in_small_comes_out_as_recorded_and_a_changed_record_ends_with_1(tmp_path):
    text = (reproduce.EXPERIMENTS / "demo.yaml").read_text()
    last = [line for line in text.splitlines() if line.startswith("# small result:")][-1]
    changed = text.replace(last, f"{last}\n# small result: test/iou 0.99 (seed 0)")
    (tmp_path / "demo.yaml").write_text(changed)
    rows_file = tmp_path / "rows.json"
    words = ["--conf", str(tmp_path), "--small", "--json", str(rows_file)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    rows = json.loads(rows_file.read_text())
    assert [row["score"] for row in rows][-1] == "test/iou"
    assert {row["verdict"] for row in rows[:-1]} <= {"same", "within noise"}
    assert rows[-1]["verdict"] == "different" and 0.5 < rows[-1]["now"] < 0.9
    assert done.returncode == 1 and not done.stderr
