"""``~`` and environment variables in every option that is a path, of every command."""

import re
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
    "rerun": ["logger=trackio"], "sync": [], "list": [], "doubt": [], "enough": [], "next": [],
}  # fmt: skip
CHOICES = (["data=folder", "logger=trackio"], ["data=coco"])
OTHERS = {  # options whose comments mention files, but which are no paths
    "channel_files", "data", "dropout", "mask_layers", "memory", "output_subdir", "save", "spacing", "sweep", "tolerance", "url",
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


def test_each_listed_option_exists():
    found = set()
    for command, words in COMMANDS.items():
        for choice in CHOICES if command in ("train", "check") else ([],):
            cfg = compose_checked(command, words or choice)
            found |= {name for name in PATH_OPTIONS if in_config(cfg, name)}
    assert found == set(PATH_OPTIONS)


def in_config(cfg, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_dict(node) and last in node


@pytest.mark.parametrize("typed", ["~/a b", "$HOME/a b", "${HOME}/a b", "~"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_path_of_each_command_is_expanded(home, tmp_path, command, typed):
    right = str(home) if typed == "~" else f"{home}/a b"
    for choice in CHOICES if command in ("train", "check") else ([],):
        words = COMMANDS[command] or choice
        cfg = compose_checked(command, words)
        options = [name for name in (*PATH_OPTIONS, *URL_OPTIONS) if in_config(cfg, name)]
        assert options
        if command in ("crossval", "enough"):
            options.remove("outputs")  # output sets it
        value = f'"{typed}"'.replace("${", "\\${")
        given = {name: f"[{value}]" if name == "runs" else value for name in options}
        if "data.folders" in options:
            given["data.folders"] = f"{{train: {value}}}"
        got = compose_checked(command, [*words, *(f"{name}={v}" for name, v in given.items())])
        for name in options:
            whole = {"runs": [right], "data.folders": {"train": right}}.get(name, right)
            assert OmegaConf.select(got, name) == whole, name


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


@pytest.mark.parametrize("outputs", ["~/runs", "$HOME/runs", "a::b", "~nouser/runs"])
def test_the_checkpoint_is_in_the_run_folder(home, tmp_path, outputs):
    done = seg("train", *SMALL, f"outputs='{outputs}'", cwd=tmp_path / "here")
    assert done.code == 0, done.err
    assert_runs_are_whole(tmp_path, 1)
    assert (
        bool(list(home.glob("runs/*/run.json"))) == outputs.endswith("E/runs")
        or outputs == "~/runs"
    )


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
        ("train", ["-m", *SMALL, "seed=0,1", "outputs='~/runs'"], 2),
        ("tune", [*SMALL, "optim.lr=choice(0.1,0.2)", "trials=1", "outputs='~/runs'"], 1),
        ("crossval", [*FOLDED, "data.root='~/data'", "output='~/cv'"], 3),
    ],
    ids=["sweep", "search", "crossval"],
)
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
