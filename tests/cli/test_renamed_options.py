"""Options and columns by their names before 0.2: on the command line, in a user's YAML and in the files of old runs."""

import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from seg.cli.compose import check_command_line, compose_checked
from seg.cli.conf_files import CONF
from seg.cli.renamed_options import RENAMED_OPTIONS, announce_renaming, rename_options, rename_words
from seg.comparison.grouping import filter_runs, find_group, group_runs
from seg.comparison.run_files import read_options
from seg.comparison.run_records import read_compared_runs
from seg.data import DataModule, Folder
from seg.errors import UserError
from seg.metrics.instances import segment_objects
from seg.multirun.search.plan import gather_searched
from seg.runs.reader import read_untrusted_config
from seg.runs.resumable import read_resumable_record
from tests.made_runs import make_run

FIXTURE = Path(__file__).parents[1] / "fixtures/v0.1/outputs/unet"
VALUES = {"kept": "3", "fresh": "true", "bad_steps": "skip", "loader.foreground": "0.5", "data.blocks": "true",
          "data.layers": "pages", "objects.neck": "2", "confidence": "0.9", "images": "2", "megabytes": "5"}  # fmt: skip
COMMANDS = {
    "objects.neck": "evaluate",
    "confidence": "crossval",
    "images": "compare",
    "megabytes": "compare",
}


@pytest.fixture(autouse=True)
def _nothing_announced():
    announce_renaming.cache_clear()


@pytest.mark.parametrize("command", ["train", "evaluate", "crossval", "compare"])
def test_an_old_word_sets_the_option_and_is_announced_once(command, capsys):
    words = ["data=folder"] if command == "train" else []
    olds = [old for old in RENAMED_OPTIONS if COMMANDS.get(old, "train") == command]
    assert olds
    for old in olds:
        new, value = RENAMED_OPTIONS[old], VALUES[old]
        for _ in range(2):
            assert rename_words([f"{old}={value}"]) == [f"{new}={value}"]
        told = capsys.readouterr()
        assert told.err == f"{old} is now {new}; the old word works until version 0.3\n"
        assert not told.out
        words.append(f"{new}={value}")
    cfg = compose_checked(command, words)
    for old in olds:
        wanted = yaml.safe_load(VALUES[old])
        assert OmegaConf.select(cfg, RENAMED_OPTIONS[old]) == wanted, old


@pytest.mark.parametrize(
    ("word", "renamed"),
    [
        ("+kept=1", "+save_predictions=1"),
        ("++loader.foreground=0.5", "++loader.rare_class_crops=0.5"),
        ("~kept", "~save_predictions"),
        ("loader.foreground=0.1,0.2", "loader.rare_class_crops=0.1,0.2"),
        ("name=kept", "name=kept"),
        ("data.images=raw", "data.images=raw"),
        ("kept", "kept"),  # a run folder of seg.compare
        ("fresh/a=b", "fresh/a=b"),
        ("loader.foregrounds=1", "loader.foregrounds=1"),
    ],
)
def test_marks_and_values_stay(word, renamed):
    assert rename_words([word]) == [renamed]


@pytest.mark.parametrize("old", RENAMED_OPTIONS)
def test_both_words_at_once_are_refused(old):
    new = RENAMED_OPTIONS[old]
    with pytest.raises(UserError, match=rf"{old}=1 and \+{new}=2: {old} is now {new}; give one"):
        rename_words([f"{old}=1", f"+{new}=2"])


def test_a_sweep_and_a_search_take_old_words():
    cfg = check_command_line("train", rename_words(["loader.foreground=0.1,0.2"]), True)
    assert cfg.cfg.loader.rare_class_crops == 0.1
    (word,) = gather_searched(["search=['loader.foreground=interval(0.1,0.2)']"])
    assert "loader.rare_class_crops=interval" in word and "foreground" not in word


def test_a_command_reports_an_old_word_and_an_error_by_the_present_one(monkeypatch, capsys):
    from seg.train import main

    monkeypatch.setattr(sys, "argv", ["seg.train", "bad_steps=maybe"])
    with pytest.raises(SystemExit) as end:
        main()
    first, second = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and first.startswith("bad_steps is now on_nonfinite;")
    assert second.startswith("error: on_nonfinite=maybe: ")


def test_a_users_yaml_may_have_old_words(tmp_path, capsys):
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = "# @package _global_\nkept: 2\nloader:\n  foreground: 0.5\n"
    (folder / "mine.yaml").write_text(text)
    search = f"hydra.searchpath=['file://{tmp_path}']"
    cfg = compose_checked("train", [search, "experiment=mine"])
    assert cfg.save_predictions == 2 and cfg.loader.rare_class_crops == 0.5
    assert "kept" not in cfg and "foreground" not in cfg.loader
    assert capsys.readouterr().err.count("is now") == 2
    cfg = compose_checked("train", [search, "experiment=mine", "loader.rare_class_crops=0.25"])
    assert cfg.loader.rare_class_crops == 0.25 and cfg.save_predictions == 2


def test_the_config_of_an_old_run_is_read_by_the_present_names():
    old = yaml.safe_load((FIXTURE / "config.yaml").read_text())
    assert {"kept", "fresh", "bad_steps"} <= set(old) and "foreground" in old["loader"]
    config = read_untrusted_config(FIXTURE / "config.yaml")
    assert not {"kept", "fresh", "bad_steps"} & set(config) and "foreground" not in config["loader"]
    assert config["save_predictions"] == old["kept"]
    assert config["loader"]["rare_class_crops"] == old["loader"]["foreground"]


def test_options_of_another_packages_data_keep_their_names():
    config = {"data": {"_target_": "mine.Slices", "layers": 3}, "model": {"layers": 2, "kept": 1}}
    assert rename_options(config) == config
    assert list(rename_options({"a": 1, "kept": 2, "b": 3})) == ["a", "save_predictions", "b"]


def test_runs_by_old_and_present_names_are_compared_as_one_option(tmp_path):
    pixels = {"test": {"image-0": {"cell": (5, 1, 1)}}}
    old = make_run(tmp_path / "old", pixels)
    new = make_run(tmp_path / "new", pixels)
    (old / "config.yaml").write_text("loader: {foreground: 0.5}\nbad_steps: stop\n")
    (new / "config.yaml").write_text("loader: {rare_class_crops: 0.5}\non_nonfinite: stop\n")
    assert read_options(old, []) == read_options(new, [])


def test_the_comparison_takes_old_names_as_values(tmp_path):
    pixels = {"test": {"image-0": {"cell": (5, 1, 1)}}}
    for name, share in (("a", 0.0), ("b", 0.5)):
        run = make_run(tmp_path / name, pixels)
        (run / "config.yaml").write_text(f"loader: {{foreground: {share}}}\n")
    runs = read_compared_runs([tmp_path / "a", tmp_path / "b"])
    assert len(filter_runs(runs, ["loader.foreground=0.5"])) == 1
    groups = group_runs(runs, ["loader.foreground"])
    assert [group.label for group in groups] == [
        f"loader.rare_class_crops={share}" for share in (0.0, 0.5)
    ]
    assert find_group(groups, "loader.foreground=0.5") is groups[1]


def test_a_record_begun_by_old_names_is_continued(tmp_path):
    file = tmp_path / "predict.json"
    file.write_text('{"settings": {"objects": {"neck": 2.0}}, "options": {"confidence": 0.95}}')
    now = {"settings": {"objects": {"split_neck_px": 2.0}}, "options": {}}
    begun = read_resumable_record(file, now, "seg.predict")
    assert begun is not None and begun["options"] == {"confidence_level": 0.95}
    with pytest.raises(UserError, match="begun with"):
        read_resumable_record(
            file, {"settings": {"objects": {"split_neck_px": 3.0}}}, "seg.predict"
        )


def test_constructors_have_the_present_names_only(tmp_path):
    with pytest.raises(TypeError, match="foreground"):
        DataModule(None, foreground=0.5)  # ty: ignore
    with pytest.raises(TypeError, match="blocks"):
        Folder(str(tmp_path), ["a", "b"], blocks=True)  # ty: ignore
    with pytest.raises(TypeError, match="neck"):
        segment_objects(None, neck=2)  # ty: ignore


def test_each_present_name_is_an_option_and_no_old_one_is():
    text = "".join(file.read_text("utf-8") for file in CONF.rglob("*.yaml"))
    lines = [line.strip().partition(":")[0] for line in text.splitlines() if ":" in line]
    for old, new in RENAMED_OPTIONS.items():
        assert new.rpartition(".")[2] in lines
        if old != "images":  # data.images is another option
            assert old.rpartition(".")[2] not in lines
