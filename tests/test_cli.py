"""Every wrong word on a command line is one clear line, before anything is made."""

import subprocess
import sys

import pytest

from seg.cli import UserError, check_line, checked
from seg.options import CONF


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=unetp", r"model=unetp: no such model; did you mean unetpp\? \(choices: fcn, unet, unetpp\)"),
        ("modl=unet", r"modl: no such option; did you mean model\?"),
        ("loss=focal loss.gama=2", r"loss.gama: no such option; did you mean loss.gamma\?.*gamma, class_weights"),
        ("+loss.gama=2 loss=focal", r"loss.gama: no such option; did you mean loss.gamma\?"),
        ("+optim.lrr=1", r"optim.lrr: no such option; did you mean optim.lr\?"),
        ("++optim.lrr=1", r"optim.lrr: no such option; did you mean optim.lr\?"),
        ("++seeed=1", r"seeed: no such option; did you mean seed\?"),
        ("seeed=1", r"seeed: no such option; did you mean seed\?"),
        ("optim.lr=abc", r"optim.lr=abc: a number is needed \(the file says 0.003\)"),
        ("seed=abc", "seed=abc: a whole number is needed"),
        ("seed=null", "seed=None: a whole number is needed"),
        ("loader.batch_size=2.5", "loader.batch_size=2.5: input should be a valid integer"),
        ("trainer.max_epochs=ten", "trainer.max_epochs=ten: input should be a valid integer"),
        ("trainer.compile=maybe", "trainer.compile=maybe: input should be a valid boolean"),
        ("model.width=big", "model.width=big: input should be a valid integer"),
        ("model.up=transpose", r"model.up=transpose: one of transposed, bilinear; did you mean transposed\?"),
        ("trainer.precision=bf16_mixed", r"trainer.precision=bf16_mixed: one of auto.*did you mean bf16-mixed\?"),
        ("model=5", "model=5: model takes one of fcn, unet, unetpp|model=5: no such model"),
        ("lr 1", "lr 1: can't be read as an override; write option=value"),
        ("lr=[1", r"lr=\[1: can't be read"),
        ("model.width.x=3", "model.width.x: model.width is one value|model.width"),
        ("+experiment=demo", r"\+experiment=demo: write experiment=demo, without the \+"),
        ("experiment=dmo", r"experiment=dmo: no such experiment; did you mean demo\?"),
        ("model=unet,fcn", "several values are a sweep; add -m"),
        ("augment.transforms=[{_target_:albumentations.HorizontalFlip,pp:1}]", "transforms.0.pp: no such option"),
        ("augment.transforms=[{_target_:albumentations.HorizontalFlipp,p:1}]", "can't be imported"),
        ("optim.lr='${nothing}'", "nothing"),
        ("panels=[1]", "panels=.* a whole number is needed"),
        ("loss.terms.bce.wieght=1", r"did you mean loss.terms.bce.weight\?"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_with_the_nearest_right_one(words, message):
    line = [words] if words.startswith("lr 1") else words.split(" ")
    with pytest.raises(UserError, match=message) as error:
        check_line("train", line, multirun=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "+optim.eps=1e-6",
        "optim.lr=1",
        "optim=sgd ~optim.weight_decay",
        "loss=focal loss.class_weights=[1,2]",
        "loss.terms.dice.weight=2",
        "data=folder data.root=/d data.classes=[a,b] data.values={0:0,255:1} data.ignore=[7]",
        "augment.transforms=[{_target_:albumentations.HorizontalFlip,p:0.5}]",
        "trainer.max_time=00:01:00:00",
        "trainer.devices=[0,1]",
        "trainer.limit_train_batches=3",
        "name=123",
        "loader.crop=null",
        "experiment=isbi2012 optim.lr=0.1",
        "logger.tags=[x]",
    ],
)
def test_a_right_line_passes(words):
    checked("train", words.split())


@pytest.mark.parametrize("group", [g for g in CONF.iterdir() if g.is_dir()], ids=lambda g: g.name)
def test_every_file_of_a_group_passes_and_comments_each_option(group):
    for file in group.glob("*.yaml"):
        checked("train", [f"{group.name}={file.stem}"])
        assert file.read_text().startswith("# "), file


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_other_commands_check_theirs(name):
    checked(name, ["run=outputs/latest"])
    with pytest.raises(UserError, match=r"runn: no such option; did you mean run\?"):
        checked(name, ["runn=x"])


def test_a_sweep_checks_each_value_of_each_option():
    check_line("train", ["model=fcn,unet", "seed=0,1", "optim.lr=choice(0.1,0.2)"], multirun=True)
    with pytest.raises(UserError, match=r"model=unetp: no such model"):
        check_line("train", ["seed=0,1", "model=fcn,unetp"], multirun=True)
    with pytest.raises(UserError, match=r"optim.lr=x"):
        check_line("train", ["seed=0,1", "optim.lr=0.1,x"], multirun=True)


def seg(command: str, *words: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"seg.{command}", *words], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", ["model=unetp"], "did you mean unetpp?"),
        ("train", ["data=isbi2012", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        ("train", ["model.width=0"], "model: width is 0"),
        ("train", ["trainer=gpu"], "no GPU that this PyTorch"),
        ("evaluate", ["run=nowhere"], "run=nowhere: no such folder or file"),
        ("predict", ["run=nowhere"], "input is not set"),
    ],
)
def test_a_mistake_exits_with_2_one_line_and_leaves_nothing(tmp_path, command, words, message):
    if "trainer=gpu" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    done = seg(command, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        message in done.stderr
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("error: ")
    )
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
