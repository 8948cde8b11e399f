"""A refused command is one line and exit code 2, and leaves every folder as it was."""

import hashlib
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from forked import seg
from PIL import Image

from seg.cli.command import accept_lazy_help, flag_parser

COMMANDS = ("train", "evaluate", "predict", "compare", "prune", "export", "check", "show", "sync", "crossval", "tune",
            "rerun", "models", "list", "doubt", "enough", "next", "plan")  # fmt: skip
FLAGS = [
    ("--foo", "--foo: no such flag; did you mean --"),
    ("-z", "-z: no such flag (flags: -h, --help, -m, --multirun, "),
    ("--multirn", "--multirn: no such flag; did you mean --multirun?"),
    ("--cgf job", "--cgf: no such flag; did you mean --cfg?"),
    ("--re", "--re: no such flag"),
    ("--cfg", "--cfg/-c: expected one argument"),
    ("--cfg jobs", "--cfg/-c: invalid choice: 'jobs' (choose from "),
    ("--multirun=1", "--multirun/-m: takes no value, and was given '1'"),
    ("-mx", ("--multirun/-m: takes no value, and was given 'x'", "-x: no such flag")),  # by Python
    ("--help=1", "--help/-h: takes no value"),
    ("--info nope", "--info/-i: invalid choice: 'nope'"),
    ("--package", "--package/-p: expected one argument"),
    ("--package model", "--package: goes with --cfg job"),
    ("--resolve", "--resolve: goes with --cfg job"),
    ("--config-dir", "--config-dir/-cd: expected one argument"),
    ("--config-dir nowhere", "--config-dir nowhere: no such folder"),
    ("--config-path x", "--config-path: can't be changed"),
    ("--config-name evaluate", "--config-name: can't be changed"),
    ("--experimental-rerun x", "--experimental-rerun: a pickle may run code"),
    ("--shell-completion", "--shell-completion: give install=bash"),
    ("-sc query=bash", "query=bash: asked by a shell"),
    ("--cfg job -m", "--multirun and --cfg: give one of them"),
    ("--run -m", "--run and --multirun: give one of them"),
]


def picture(folder: Path) -> dict[str, str]:
    """Return the entries below a folder: path -> digest of its content, or target of a link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        else:
            found[str(path)] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            )
    return found


def refused(place: Path, command: str, *words: str) -> str:
    """The one line of a command that is refused in a folder, which stays as it is."""
    before = picture(place)
    done = seg(command, *words, cwd=place)
    assert done.code == 2 and done.out == "", done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert picture(place) == before
    return done.err.removeprefix("error: ")


@pytest.mark.parametrize(("words", "message"), FLAGS, ids=[words for words, _ in FLAGS])
def test_a_wrong_flag_is_one_line(tmp_path, words, message):
    assert refused(tmp_path, "train", *words.split()).startswith(message)


def test_an_option_typed_as_a_flag_is_told_without_dashes(tmp_path):
    said = "no such flag; an option is written without dashes, "
    assert said + "model=unet " in refused(tmp_path, "train", "--model=unet")
    assert said + "optim.lr=1 " in refused(tmp_path, "train", "--optim.lr=1")
    assert said + "seed=... " in refused(tmp_path, "train", "--seed", "3")


def test_a_group_that_is_not_there_can_not_be_shown(tmp_path):
    said = refused(tmp_path, "train", "--cfg", "job", "--package", "modl")
    assert said == "--package modl: no such group; did you mean model?\n"


@pytest.mark.parametrize("words", ["--help", "model=unet -h", "-h model=nope", "optim.lr=1 --help seed=1"])  # fmt: skip
def test_help_may_stand_anywhere(tmp_path, words):
    done = seg("train", *words.split(), cwd=tmp_path)
    assert (done.code, done.err, done.left) == (0, "", [])
    assert done.out.startswith("python -m seg.train [GROUP=CHOICE ...]")


def test_the_version_is_ours(tmp_path):
    from seg.version import __version__

    assert seg("evaluate", "--version", cwd=tmp_path).out == f"seg {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_a_flag_and_a_sweep_that_it_has_not(tmp_path, command):
    assert refused(tmp_path, command, "--foo").startswith("--foo: no such flag")
    if command != "train":
        assert refused(tmp_path, command, "-m").startswith("-m: ")


WRONG = [
    ("train", "optim.lr=-1", "optim.lr=-1: a number of 0 or more"),
    ("train", "-m model.width=2,0", "model.width=0: a whole number of 1 or more"),
    ("train", "-m name=a,b", "name=a,b: a sweep has a single name"),
    ("train", "data.root=x data=folder", "data.root=x: no such folder"),
    ("train", "resume=nowhere", "resume=nowhere: no run folder"),
    ("train", "init=nowhere", "init=nowhere: no such folder or file"),
    ("train", "hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: leave it out"),
    ("evaluate", "", "run is not set"),
    ("evaluate", "run=nowhere", "run=nowhere: no such folder"),
    ("evaluate", "run=RUN tta=flip", "tta=flip: one of none, mirror, flips, d4 is needed"),
    ("evaluate", "run=RUN data.split=test", "data.split=test: "),
    ("evaluate", "run=RUN threshold=2", "threshold=2: a number between 0 and 1"),
    ("evaluate", "run=RUN scales=[0]", "scales"),
    ("evaluate", "run=RUN model.depth=3", "RUN/checkpoints/best.ckpt: a UNet with one head"),
    ("predict", "run=RUN input=IMAGE", "output is not set"),
    ("predict", "run=RUN input=nowhere output=o", "input=nowhere: no such file"),
    (
        "predict",
        "run=RUN input=IMAGE output=o tile=0",
        "tile=0: auto, or a whole number of 1 or more, or null is needed",
    ),
    ("predict", "run=RUN input=IMAGE output=o save=[x]", "save=['x']"),
    ("compare", "nowhere", "runs=nowhere: no such folder"),
    ("compare", "RUN level=2", "level=2: a number between 0 and 1"),
    ("compare", "RUN score=nope", "score=nope"),
    ("prune", "run=RUN", "RUN/checkpoints/best.ckpt: a UNet with one head"),
    ("prune", "run=nowhere rounds=0", "rounds=0: a whole number of 1 or more"),
    ("export", "run=RUN opset=5", "opset=5: a whole number of 12 to 20"),
    ("export", "run=RUN output=x.txt", "output=x.txt"),
    ("export", "run=nowhere format=torch", "run=nowhere: no such folder"),
    ("check", "panels=-1", "panels=-1"),
    ("check", "data=folder data.root=nowhere data.classes=[a,b]", "data.root=nowhere: no such"),
    ("show", "n=0", "n=0: a whole number of 1 or more"),
    ("show", "output=x.txt", "output=x.txt: a picture is needed"),
    ("sync", "outputs=nowhere", "outputs=nowhere: no such folder"),
    ("doubt", "run=RUN", "run=RUN: a folder of seg.crossval is needed"),
    ("doubt", "run=RUN reviewed=nowhere.csv", "reviewed=nowhere.csv: no such file"),
    (
        "enough",
        "data.train=3",
        "data: the training split has 3 images; a learning curve needs 4 or more",
    ),
    (
        "enough",
        "sizes=[4,8]",
        "sizes=[4,8]: 2 different sizes of 24 images; a curve needs 3 or more",
    ),
    ("next", "run=RUN", "input is not set: give a folder of images, input=..."),
    ("next", "run=RUN input=IMAGE", "output is not set: give a new folder, output=..."),
    ("next", "run=RUN input=IMAGE output=o n=0", "n=0: a whole number of 1 or more"),
    ("next", "run=RUN input=IMAGE output=o order=size", "order=size: "),
    ("plan", "budget=5s", "budget=5s: a time of 10 s or more"),
    (
        "plan",
        "output=plan.yaml",
        "output=plan.yaml: seg.train --config-dir finds it only in a folder named experiment",
    ),
    ("train", "dry=true resume=RUN", "dry=true: measures a new run"),
    ("train", "-m dry=true seed=0,1", "dry=true: goes with a single run"),
    ("enough", "dry=true", "dry=true: goes with a single run of seg.train"),
    ("crossval", "data=membranes", "data.folds: Membranes has no such option"),
    ("crossval", "data=folder data.root=nowhere data.folds=1", "data.folds=1: a whole number of 2"),
    ("tune", "trials=3", "nothing is searched"),
    ("tune", "trials=0 seed=0 model.width=choice(2,4)", "trials=0: a whole number of 1 or more"),
    ("tune", "sampler.n_startup_trials=-1 model.width=choice(2,4)", "sampler.n_startup_trials=-1"),
    ("rerun", "run=nowhere", "run=nowhere: "),
    ("rerun", "run=RUN data.root=x", "data.root=x: the run's data has no such option"),
    ("models", "logits=0", "logits=0: a whole number of 1 or more"),
    ("models", "model=[unet,fcn]", "model=[unet,fcn]: model takes one of"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run of U-Net, RUN, and an image."""
    place = tmp_path_factory.mktemp("trained")
    words = ["data.size=32", "data.train=2", "data.val=1", "data.test=0", "model.width=2", "model.depth=1", "loader.crop=32",
             "loader.repeats=1", "trainer=smoke", "trainer.accelerator=cpu", "logger=none", "panels=0", "save_predictions=1"]  # fmt: skip
    assert seg("train", *words, cwd=place).code == 0
    (place / "outputs/latest").resolve().rename(place / "RUN")
    pixels = np.random.default_rng(3).integers(0, 255, (48, 48), np.uint8)
    Image.fromarray(pixels).save(place / "IMAGE.png")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "message"), WRONG, ids=[" ".join(case[:2]) for case in WRONG]
)
def test_a_refused_command_leaves_all_as_it_was(trained, command, words, message):
    words = words.replace("IMAGE", "IMAGE.png").split()
    assert refused(trained, command, *words).startswith(message)


def test_the_argparse_of_python_3_14_takes_the_lazy_help_of_hydra(monkeypatch):
    """Its ``add_argument`` expands each help text at once, to find a wrong one."""
    add = ArgumentParser.add_argument

    def check_help(parser, action):
        if action.help and "%" in action.help:
            try:
                action.help % {}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError("badly formed help string") from error

    def add_and_check(parser, *names, **options):
        action = add(parser, *names, **options)
        parser._check_help(action)
        return action

    monkeypatch.setattr(ArgumentParser, "_check_help", check_help, raising=False)
    monkeypatch.setattr(ArgumentParser, "add_argument", add_and_check)
    with pytest.raises(TypeError, match="LazyCompletionHelp"):
        flag_parser()
    accept_lazy_help()
    assert flag_parser().parse_args(["--version"]).version
    with pytest.raises(ValueError, match="badly formed help string"):
        ArgumentParser().add_argument("--x", help="%(nothing)s")
