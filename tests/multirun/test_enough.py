"""Learning curves through the command: subsets, resuming, several workers, and what is refused."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_runs import config, make_images

from seg import api
from seg.commands import enough as command
from seg.commands.enough import describe_gain, join_groups, measure_enough
from seg.display.console import configure_logging
from seg.enough import main
from seg.errors import RunError, UserError
from seg.metrics.learning_curve import LearningCurve
from seg.multirun import subset_runs
from seg.multirun.subset_runs import choose_sizes, plan_subsets, subset_config
from seg.runs import workers
from seg.runs.records import write_json

SMALL = [
    "data=folder", "data.classes=[out,in]", "data.val=0.25", "model.width=2", "model.depth=1", "loader.crop=32", "loader.repeats=2",
    "loader.batch_size=2", "logger=none", "trainer=cpu", "trainer.max_epochs=1", "panels=0", "save_predictions=0", "loader.check=false",
]  # fmt: skip
HELD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("data") / "d")


def words(data: Path, output: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.root={data}", f"output={output}", *more]


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def curve(data, tmp_path_factory):
    """Three sizes and two seeds of six training images; read only."""
    output = tmp_path_factory.mktemp("enough") / "e"
    measure_enough(config("enough", *words(data, output, "sizes=[2,3,6]")))
    return output


def test_each_training_is_a_run_on_its_nested_subset_with_the_same_steps(curve, data):
    records = {}
    for file in curve.glob("*-seed-*/run.json"):
        record = read(file)
        _, size, _, seed = record["name"].split("-")
        records[int(size), int(seed)] = record
    assert sorted(records) == [(n, s) for n in (2, 3, 6) for s in (0, 1)]
    for seed in (0, 1):
        two, three, six = (set(records[n, seed]["splits"]["train"]) for n in (2, 3, 6))
        assert len(two) == 2 and len(three) == 3 and two < three < six
    assert records[2, 0]["splits"]["train"] != records[2, 1]["splits"]["train"]
    assert len({tuple(r["splits"]["val"]) for r in records.values()}) == 1
    assert {r["steps"] for r in records.values()} == {6}  # 6 images, 2 crops of each, 2 a batch


def test_the_results_are_the_dice_of_the_runs_own_counts(curve):
    record = read(curve / "enough.json")
    with (curve / "enough.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert record["status"] == "finished" and record["split"] == "val" and record["scored"] == 2
    assert [(int(r["images"]), int(r["seed"])) for r in rows] == [(n, s) for s in (0, 1) for n in (2, 3, 6)]  # fmt: skip
    for row in rows:
        (folder,) = curve.glob(f"*{row['run']}")
        dice = read(folder / "run.json")["metrics"]["best/val/dice"]
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-6)
        place = [2, 3, 6].index(int(row["images"])), int(row["seed"])
        assert record["dice"][place[0]][place[1]] == pytest.approx(dice, abs=1e-6)
    low, high = record["gain_interval"]
    assert low <= high and record["curve"]["n"][-1] == pytest.approx(12)
    assert record["sentence"] in (curve / "log.txt").read_text()
    with Image.open(curve / "enough.png") as picture:
        assert picture.size == (825, 600)


def test_from_python_the_curve_holds_its_table_and_its_runs(curve, data, monkeypatch):
    monkeypatch.setattr(subset_runs, "train", lambda own: pytest.fail(own.name))
    found = api.enough(*words(data, curve, "sizes=[2,3,6]"))
    assert found.record == read(curve / "enough.json") and found.folder == curve
    dice = {
        (n, s): d for n, s, d in found.table[["images", "seed", "dice"]].itertuples(index=False)
    }
    assert len(dice) == 6 and dice[6, 1] == pytest.approx(found.record["dice"][2][1], abs=1e-6)
    scores = sorted(run.metrics["best/val/dice"] for run in found.runs)
    assert sorted(dice.values()) == pytest.approx(scores, abs=1e-6)
    assert found.record["sentence"] in repr(found) and "<img" in found._repr_html_()


def test_a_repeated_command_trains_nothing_and_more_seeds_only_their_own(curve, data, monkeypatch, tmp_path, capsys):  # fmt: skip
    trained = []
    monkeypatch.setattr(subset_runs, "train", lambda own: trained.append(own.name))
    before = read(curve / "enough.json")
    measure_enough(config("enough", *words(data, curve, "sizes=[2,3,6]")))
    assert trained == [] and read(curve / "enough.json") == before
    assert "6 of 6 trainings are finished and kept" in capsys.readouterr().out
    with pytest.raises(RunError, match="images-2-seed-2 is gone"):  # nothing was trained
        measure_enough(config("enough", *words(data, curve, "sizes=[2,3,6]", "seeds=3")))
    assert trained == [f"images-{n}-seed-2" for n in (2, 3, 6)]
    write_json(curve / "enough.json", before)


def test_other_settings_are_refused_by_name(curve, data):
    with pytest.raises(UserError, match=r"begun with optim.lr=.*, and this is optim.lr=0.5"):
        measure_enough(config("enough", *words(data, curve, "sizes=[2,3,6]", "optim.lr=0.5")))


def test_an_interrupted_curve_goes_on_with_what_is_left(curve, data, tmp_path, monkeypatch):
    output, line = tmp_path / "e", words(data, tmp_path / "e", "sizes=[2,3,6]")
    names = []

    def train(own):  # a copy of the finished run
        (run,) = curve.glob(f"*{own.name}")
        shutil.copytree(run, output / own.name)

    def interrupted(own):
        names.append(own.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        train(own)

    monkeypatch.setattr(subset_runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_enough(config("enough", *line))
    assert read(output / "enough.json")["status"] == "running"
    # A run that was begun is deleted and trained again
    stale = output / "begun"
    stale.mkdir()
    write_json(stale / "run.json", {"status": "running", "name": names[2]})
    again = []
    monkeypatch.setattr(subset_runs, "train", lambda own: (again.append(own.name), train(own)))
    measure_enough(config("enough", *line))
    assert again[0] == names[2] and len(again) == 4 and not set(again) & set(names[:2])
    assert not stale.exists()
    assert read(output / "enough.json") == read(curve / "enough.json")


def test_a_training_of_another_worker_is_left_to_it_until_it_dies(data, tmp_path, monkeypatch, capsys):  # fmt: skip
    configure_logging()
    output, trained = tmp_path / "e", []
    cfg = config("enough", *words(data, output, "sizes=[2,3,6]"))
    plan = plan_subsets(cfg)
    output.mkdir()
    command.open_record(cfg, plan, output)

    def made(own):  # a run without a training
        trained.append(own.name)
        (output / own.name).mkdir()
        piece = next(p for p in plan.pieces if p.name == own.name)
        facts = {"status": "finished", "name": own.name, "split_hash": piece.hash}
        write_json(output / own.name / "run.json", facts)

    monkeypatch.setattr(subset_runs, "train", made)
    with subprocess.Popen(
        [sys.executable, "-c", HELD, output / ".images-2-seed-0.lock"], stdin=-1, stdout=-1, text=True
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "held\n"

        def end(seconds: float) -> None:
            assert len(trained) == 5
            other.kill()
            other.wait()

        monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=end))
        subset_runs.train_subsets(cfg, plan, output)
    assert len(trained) == 6 and trained[-1] == "images-2-seed-0"
    assert "other workers have 1 of the trainings" in capsys.readouterr().out


def test_groups_are_counted_and_scored_as_a_whole(tmp_path):
    data = make_images(tmp_path / "d", 12)
    for part in ("images", "masks"):
        for i in range(12):
            (data / part / f"{i}.png").rename(data / part / f"p{i // 2}_{i % 2}.png")
    cfg = config(
        "enough",
        *words(data, tmp_path / "e", r"data.group_by='^(p\d)_'", "data.val=0.34", "seed=7"),
    )
    plan = plan_subsets(cfg)
    assert plan.word == "groups" and plan.sizes[-1] == plan.total / 2
    assert [p.images for p in plan.pieces] == [2 * p.size for p in plan.pieces]
    own = subset_config(cfg, plan, plan.pieces[0])
    assert own.loader.subset == plan.pieces[0].size and own.seed == 7
    assert own.loader.repeats * plan.pieces[0].images >= plan.total * 2
    assert own.trainer.limit_train_batches == plan.total  # 2 crops of each, 2 a batch
    assert "sizes" not in own and "output" not in own
    # The counts of a group's images are summed
    counts = np.arange(2 * 2 * 3 * 1 * 3).reshape(2, 2, 3, 1, 3)
    joined = join_groups(counts, ["a", "b", "c"], {"a": "x", "b": "y", "c": "x"})
    np.testing.assert_array_equal(joined[:, :, 0], counts[:, :, 0] + counts[:, :, 2])
    np.testing.assert_array_equal(joined[:, :, 1], counts[:, :, 1])


@pytest.mark.parametrize(
    ("option", "count", "sizes"),
    [(None, 24, [6, 10, 15, 24]), (None, 4, [2, 3, 4]), (None, 200, [50, 79, 126, 200]), ([16, 4, 8], 16, [4, 8, 16])],
)  # fmt: skip
def test_sizes_go_from_a_quarter_to_all_by_equal_factors(option, count, sizes):
    assert choose_sizes(option, count, "images") == sizes


@pytest.mark.parametrize(
    ("option", "count", "message"),
    [
        (None, 3, "the training split has 3 groups; a learning curve needs 4 or more"),
        ([8], 16, r"sizes=\[8\]: 1 different size of 16 groups; a curve needs 3 or more"),
        ([4, 8, 8], 16, "2 different sizes"),
        ([4, 8, 32], 16, "the training split has 16 groups; give sizes up to 16"),
    ],
)
def test_too_little_for_a_curve_is_told(option, count, message):
    with pytest.raises(UserError, match=message):
        choose_sizes(option, count, "groups")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loader.subset=3", "loader.subset=3: set for each training"),
        ("outputs=else", "outputs=else: the runs are written below output"),
        ("split=test", "split=test: this data has train and val; give split=val"),
        ("trainer.devices=2", "trainer.devices=2 trainer.num_nodes=1"),
        ("confidence_level=0", "confidence_level=0: the result is an interval"),
        ("data.val=0.1", "split=val: it has one image; an interval needs 2 or more"),
        ("resume=x", "resume: seg.enough continues by its own command"),
    ],
)
def test_what_can_not_be_is_told_before_anything_is_made(data, tmp_path, word, message):
    with pytest.raises(UserError, match=message):
        measure_enough(config("enough", *words(data, tmp_path / "e", word)))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [("sizes=4", "sizes=4:"), ("seeds=1", "seeds=1: a whole number of 2"), ("split=train", "split=train:"), ("sizes=[0,4]", "sizes=")],
)  # fmt: skip
def test_a_wrong_word_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, word, message):
    monkeypatch.setattr(sys, "argv", ["seg.enough", word, f"output={tmp_path / 'e'}"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        measure_enough(config("enough", *words(data, tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("gain", "low", "high", "sentence"),
    [
        (0.012, 0.004, 0.02, "doubling the 16 training images to 32 brings +.012 Dice (+.004 to +.020, 90%); the seeds' noise is .005"),
        (0.003, -0.01, 0.02, "whether doubling the 16 training images to 32 brings anything can't be told: +.003 Dice (-.010 to +.020, 90%); the seeds' noise is .005"),
        (-0.02, -0.03, -0.01, "doubling the 16 training images to 32 costs -.020 Dice (-.030 to -.010, 90%); the seeds' noise is .005"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_the_interval_allows(gain, low, high, sentence):
    nothing = np.empty(0)
    curve = LearningCurve(nothing, nothing, nothing, nothing, nothing, nothing, gain, low, high, 0.005, (1, 1, 0), 0.9)  # fmt: skip
    plan = SimpleNamespace(sizes=[4, 8, 16], word="images")
    assert describe_gain(plan, curve) == sentence
