"""``~`` and environment variables in every option that is a path, of every command."""

import re
from functools import cache
from pathlib import Path

import pytest
from forked import seg
from omegaconf import OmegaConf
from small_runs import FOLDED, make_images

from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.cli.paths import PATH_OPTIONS, URL_OPTIONS
from seg.errors import UserError

COMMANDS = {  # command -> the words with which all of its options exist
    "train": [], "check": [], "show": [], "crossval": [], "tune": [],
    "evaluate": ["data=folder"], "prune": ["data=folder"], "predict": [], "export": [], "compare": [],
    "rerun": ["logger=trackio"], "sync": [], "list": [], "doubt": [], "enough": [], "next": [], "plan": [],
}  # fmt: skip
CHOICES = (["data=folder", "logger=trackio"], ["data=coco"])
OTHERS = {  # options whose comments mention files, but which are no paths
    "channel_files", "data", "dropout", "engine", "mask_layers", "memory", "output_subdir", "save", "spacing", "split", "sweep", "tolerance", "url",
}  # fmt: skip
SMALL = ["logger=none", "trainer=smoke", "data.size=32", "loader.crop=32", "data.train=2", "data.val=1", "data.test=0",
         "model.width=2", "model.depth=1", "panels=0", "save_checkpoints=full"]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home folder of the test, beside the folder in which its commands run."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_each_option_whose_comment_names_a_file_or_a_folder_is_listed():
    listed = {name.rpartition(".")[2] for name in (*PATH_OPTIONS, *URL_OPTIONS)}
    found: set[str] = set()
    for file in CONF.rglob("*.yaml"):
        for name, comment in re.findall(r"^ *(\w+):[^#\n]*# (.*)$", file.read_text(), re.M):
            if re.search(r"\b(folder|file|path|FILE|URL)s?\b", comment):
                found.add(name)
    assert found - listed == OTHERS


def choices_of(command: str) -> list[list[str]]:
    """The words of each composition of a command that has options of its own."""
    return [COMMANDS[command] or w for w in (CHOICES if command in ("train", "check") else ([],))]


@cache
def path_options(command: str, words: tuple[str, ...]) -> list[str]:
    """The listed options that a command has."""
    cfg = compose_checked(command, list(words))
    return [name for name in (*PATH_OPTIONS, *URL_OPTIONS) if in_config(cfg, name)]


def in_config(cfg, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_dict(node) and last in node


def test_each_listed_option_exists():
    lines = [(command, tuple(words)) for command in COMMANDS for words in choices_of(command)]
    found = {name for line in lines for name in path_options(*line)}
    assert found >= set(PATH_OPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_path_of_each_command_is_expanded(home, command):
    right = f"{home}/a b"
    for words in choices_of(command):
        options = list(path_options(command, tuple(words)))
        assert options
        if command in ("crossval", "enough"):
            options.remove("outputs")  # output sets it
        given = {name: '["~/a b"]' if name == "runs" else '"~/a b"' for name in options}
        if "data.folders" in options:
            given["data.folders"] = '{train: "~/a b"}'
        got = compose_checked(command, [*words, *(f"{name}={v}" for name, v in given.items())])
        for name in options:
            whole = {"runs": [right], "data.folders": {"train": right}}.get(name, right)
            assert OmegaConf.select(got, name) == whole, name


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("$HOME/a b", "{home}/a b"),
        ("\\${HOME}/a b", "{home}/a b"),
        ("~", "{home}"),
        ("~nouser/a", "~nouser/a"),
        ("a::b", "a::b"),
    ],
)
def test_every_spelling_of_a_path_is_expanded(home, typed, right):
    assert compose_checked("list", [f'runs=["{typed}"]']).runs == [right.format(home=home)]


def test_paths_in_lists_and_in_mappings_are_expanded(home):
    lines = [
        ("evaluate", 'run=["~/a","$HOME/b"]', "run", [f"{home}/a", f"{home}/b"]),
        ("train", 'data.lists={train: "~/t", val: "$HOME/v"}', "data.lists", {"train": f"{home}/t", "val": f"{home}/v"}),
    ]  # fmt: skip
    for command, word, name, right in lines:
        words = ["data=folder", word] if command == "train" else [word]
        assert OmegaConf.select(compose_checked(command, words), name) == right


def test_what_refers_to_a_path_has_the_expanded_one(home):
    cfg = compose_checked("train", ["data=voc", "data.root='~/voc'"])
    assert cfg.data.lists.train == f"{home}/voc/ImageSets/Segmentation/train.txt"
    assert compose_checked("crossval", ["output='~/cv'"]).outputs == f"{home}/cv"


def test_a_database_of_sqlite_is_expanded_and_other_addresses_stay(home):
    for typed, right in (
        ("sqlite:///$HOME/a.db", f"sqlite:///{home}/a.db"),
        ("sqlite:///~/a.db", f"sqlite:///{home}/a.db"),
        ("postgresql://u:$HOME@host/db", "postgresql://u:$HOME@host/db"),
    ):
        assert compose_checked("tune", [f"storage='{typed}'"]).storage == right


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("outputs='$NOWHERE/x'", r"outputs=\$NOWHERE/x: there is no environment variable NOWHERE"),
        ("outputs='s3://bucket/x'", "outputs=s3://bucket/x: a path on this machine is needed"),
    ],
)
def test_what_cannot_be_a_path_is_an_error(word, message):
    with pytest.raises(UserError, match=message):
        compose_checked("train", [word])


def test_a_variable_that_is_set_later_is_accepted(monkeypatch):
    monkeypatch.setenv("NOWHERE", "/data")
    assert compose_checked("train", ["outputs='$NOWHERE/x'"]).outputs == "/data/x"


def test_a_name_with_a_dollar_that_exists_stays(tmp_path):
    (tmp_path / "$DATA").mkdir()
    word = f"data.root='{tmp_path}/$DATA'"
    assert compose_checked("train", ["data=folder", word]).data.root == f"{tmp_path}/$DATA"


@pytest.mark.parametrize("outputs", ["~/runs", "a::b", "~nouser/runs"])
def test_the_checkpoint_is_in_the_run_folder(home, tmp_path, outputs):
    done = seg("train", *SMALL, f"outputs='{outputs}'", cwd=tmp_path / "here")
    assert done.code == 0, done.err
    place = home / "runs" if outputs == "~/runs" else tmp_path / "here" / outputs
    assert_runs_are_whole(place, 1)
    assert_runs_are_whole(tmp_path, 1)


def test_the_checkpoint_is_in_the_run_folder_with_a_file_of_options(home, tmp_path):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    text = "# @package _global_\n# Runs in the home folder.\noutputs: ~/runs\n"
    (tmp_path / "conf/experiment/mine.yaml").write_text(text)
    words = ["--config-dir", "$HOME/../conf", "experiment=mine", *SMALL]
    done = seg("train", *words, cwd=tmp_path / "here")
    assert done.code == 0, done.err
    assert_runs_are_whole(home, 1)


@pytest.mark.parametrize(
    ("command", "words", "runs"),
    [
        pytest.param("train", ["-m", *SMALL, "seed=0,1", "outputs='~/runs'"], 2, id="sweep"),
        pytest.param(
            "tune", [*SMALL, "optim.lr=choice(0.1,0.2)", "trials=1", "outputs='~/runs'"], 1,
            id="search", marks=pytest.mark.slow,
        ),
        pytest.param(
            "crossval", [*FOLDED, "data.root='~/data'", "output='~/cv'"], 3,
            id="crossval", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_several_trainings_write_whole_runs(home, tmp_path, command, words, runs):
    make_images(home / "data")
    done = seg(command, *words, cwd=tmp_path / "here")
    assert done.code == 0, done.err
    assert_runs_are_whole(home, runs)
    assert list((tmp_path / "here").iterdir()) == []


def assert_runs_are_whole(place: Path, count: int) -> None:
    """Every run folder below a folder has its checkpoints, and there are no others."""
    runs = sorted(file.parent for file in place.rglob("run.json") if "latest" not in file.parts)
    assert len(runs) == count
    expected = [run / "checkpoints" / name for run in runs for name in ("best.ckpt", "last.ckpt")]
    found = [file for file in place.rglob("*.ckpt") if "latest" not in file.parts]
    assert sorted(found) == expected
