"""Every wrong word on a command line is one clear line, before anything is made."""

import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from forked import seg
from omegaconf import OmegaConf

from seg.cli.command import command, search_path_override
from seg.cli.compose import check_command_line, compose_checked, instantiate_node
from seg.cli.conf_files import CONF
from seg.commands import models
from seg.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=unetp", r"model=unetp: no such model; did you mean unetpp\? \(choices: fcn, segnet, smp, unet, "),
        ("modl=unet", r"modl: no such option; did you mean model\?"),
        ("loss=focal loss.gama=2", r"loss.gama: no such option; did you mean loss.gamma\?.*gamma, alpha"),
        ("+loss.gama=2 loss=focal", r"loss.gama: no such option; did you mean loss.gamma\?"),
        ("+optim.lrr=1", r"optim.lrr: no such option; did you mean optim.lr\?"),
        ("++seeed=1", r"seeed: no such option; did you mean seed\?"),
        ("optim.lr=abc", r"optim.lr=abc: a number is needed \(the file says 0.003\)"),
        ("seed=abc", "seed=abc: a whole number is needed"),
        ("seed=null", "seed=null: a whole number is needed"),
        ("loader.batch_size=2.5", "loader.batch_size=2.5: a whole number is needed"),
        ("trainer.compile=maybe", "trainer.compile=maybe: true or false is needed"),
        ("model.up=transpose", r"model.up=transpose: one of transposed, bilinear, nearest, pixel_shuffle, unpool; did you mean transposed\?"),
        ("trainer.precision=bf16_mixed", r"trainer.precision=bf16_mixed: one of auto.*did you mean bf16-mixed\?"),
        ("stride=16 model=fcn", r"stride: no such option; did you mean model.stride\?"),
        ("model=5", "model=5: model takes one of fcn, segnet|model=5: no such model"),
        ("lr 1", "lr 1: can't be read as an override; write option=value"),
        ("lr=[1", r"lr=\[1: can't be read"),
        ("model.width.x=3", "model.width.x: model.width is one value|model.width"),
        ("+experiment=demo", r"\+experiment=demo: write experiment=demo, without the \+"),
        ("experiment=dmo", r"experiment=dmo: no such experiment; did you mean demo\?"),
        ("model=unet,fcn", "several values are a sweep; add -m"),
        ("augment.transforms=[{_target_:albumentations.HorizontalFlip,pp:1}]", "transforms.0.pp: no such option"),
        ("augment.transforms=[{_target_:albumentations.HorizontalFlipp,p:1}]", "can't be imported"),
        ("augment.transforms=[{_target_:albumentations.PadIfNeeded,value:0}]", "options of augment.transforms.0: min_height"),
        ("optim.lr='${nothing}'", "nothing"),
        ("optim=[1]", "takes one of adam, adamw, sgd"),
        ("experiment=null", "experiment=null: experiment takes one of .*demo"),
        ("optim={lr:abc}", "optim.lr=abc: a number is needed"),
        ("outputs=null", "outputs=null: a word is needed"),
        ("optim.betas=[a,b]", "optim.betas=a: a number is needed"),
        ("+seed=3", r"\+seed=3: write seed=3, without the \+"),
        ("++experiment=demo", r"write experiment=demo, without the \+"),
        ("~seed", "~seed: can't be left out"),
        ("~optim", "~optim: can't be left out"),
        ("~optim.wd", "optim.wd: no such option"),
        ("data=folder data.root=2012", r"data.root=2012: a word is needed; write \"data.root='2012'\""),
        ("optim._target_=torch.optim.Adamm", r"can't be imported; did you mean Adam\?"),
        ("augment.transforms.7.p=1", "augment.transforms has 1 entries"),
        ("trainer.limit_train_batches=abc", "limit_train_batches=abc: a number is needed"),
        ("loader=[1]", r"loader=\[1\]: a group of options is needed"),
        ("=3", "write option=value"),
        ("loss.terms.bce.wieght=1", r"did you mean loss.terms.bce.weight\?"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_with_the_nearest_right_one(words, message):
    line = [words] if words.startswith("lr 1") else words.split(" ")
    with pytest.raises(UserError, match=message) as error:
        check_command_line("train", line, multirun=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "+optim.eps=1e-6 optim.lr=1 trainer.devices=[0,1] trainer.limit_train_batches=3 name=123",
        "optim=sgd ~optim.weight_decay loss=focal loss.alpha=[1,2] loader.crop=null hydra/launcher=basic",
        "loss.terms.dice.weight=2 trainer.max_time=00:01:00:00 logger.wandb.tags=[x]",
        "data=folder data.root=/d data.classes=[a,b] data.values={0:0,255:1} data.ignore=[7]",
        "augment.transforms=[{_target_:albumentations.HorizontalFlip,p:0.5}]",
        "experiment=isbi2012 optim.lr=0.1",
        "name=${hydra:runtime.choices.model}",
        "+loss.terms.iou={weight:1,loss:{_target_:seg.losses.Jaccard,smooth:1}}",
    ],
)
def test_a_right_line_passes(words):
    compose_checked("train", words.split())


ABSENT = {
    name
    for name, package in (("smp", "segmentation_models_pytorch"), ("mlflow", "mlflow"))
    if not find_spec(package)
}
SEARCHED = ("sampler", "pruner")  # groups of seg.tune


def files_of(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml") if f.stem not in ABSENT)


def test_every_file_of_each_group_passes_and_begins_with_a_comment():
    """A line takes a file of every group; an experiment chooses for others, so it has a line of its own."""
    groups = {g.name: files_of(g.name) for g in CONF.iterdir() if any(g.glob("*.yaml"))}
    for group, names in groups.items():
        for name in names:
            assert (CONF / group / f"{name}.yaml").read_text().startswith("# "), (group, name)
    for name in groups.pop("experiment"):
        compose_checked("train", [f"experiment={name}"])
    for number in range(max(map(len, groups.values()))):
        chosen = {g: names[number % len(names)] for g, names in groups.items()}
        compose_checked("train", [f"{g}={n}" for g, n in chosen.items() if g not in SEARCHED])
        if number < max(len(groups[g]) for g in SEARCHED):
            compose_checked("tune", [f"{g}={chosen[g]}" for g in SEARCHED])


@pytest.mark.parametrize(("group", "name"), [("model", "smp"), ("logger", "mlflow")])
def test_a_choice_whose_package_is_absent_names_its_extra(group, name):
    if name not in ABSENT:
        pytest.skip(f"the extra {name} is installed")
    with pytest.raises(
        UserError, match=rf"needs the extra {name}: pip install 'seg-experiments\[{name}\]'"
    ):
        compose_checked("train", [f"{group}={name}"])


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_other_commands_check_theirs(name):
    compose_checked(name, ["run=outputs/latest"])
    with pytest.raises(UserError, match=r"runn: no such option; did you mean run\?"):
        compose_checked(name, ["runn=x"])


def test_evaluate_takes_other_data_or_options_of_the_runs_own():
    assert (
        compose_checked("evaluate", ["data=folder", "data.root=/d", "data.split=test"]).data.root
        == "/d"
    )
    for word in ("+data.root=/d", "data.root=/d"):
        cfg = compose_checked("evaluate", [word])
        assert cfg.data.split is None and cfg.data.root == "/d"
    for words, message in [
        (["data.splitt=test"], r"did you mean data.split\?"),
        (
            ["metrics.tolerance=2"],
            r"choose its file first, metrics=\.\.\., and then metrics.tolerance=2",
        ),
        (["data=folder", "data.rot=/d"], r"did you mean data.root\?"),
        (["data=folder", "data.split=[1]"], "data.split=.*one of train, val, test, all"),
    ]:
        with pytest.raises(UserError, match=message):
            compose_checked("evaluate", words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeed: 1", r"seeed: no such option; did you mean seed\?"),
        ("seed: abc", "seed=abc: a whole number is needed"),
        ("loader: {crops: 1}", r"did you mean loader.crop\?"),
        ("optim: {lr: fast}", "optim.lr=fast: a number is needed"),
        ("defaults: [{override /model: unett}]", "unett"),
    ],
)
def test_a_mistake_in_a_users_experiment_file_is_told_as_on_the_line(tmp_path, text, message):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=message):
        compose_checked("train", [*search_path_override(str(tmp_path)), "experiment=mine"])


def test_a_folder_of_ones_own_adds_choices(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert (
        compose_checked("train", [*search_path_override(str(tmp_path)), "experiment=mine"]).seed
        == 7
    )
    with pytest.raises(UserError, match="nowhere: no such folder"):
        search_path_override("nowhere")


def test_what_the_command_gives_itself_is_refused_and_a_nested_refusal_is_named():
    node = OmegaConf.create({"_target_": "seg.losses.Dice", "smooth": 1.0})
    with pytest.raises(UserError, match=r"loss.smooth: set by the command itself"):
        instantiate_node(node, "loss", smooth=2.0)
    cfg = OmegaConf.create({"loss": {"_target_": "seg.losses.Sum", "terms": {"a": {
        "weight": 1, "loss": {"_target_": "seg.losses.Dice", "smooth": -1.0}}}}})  # fmt: skip
    with pytest.raises(UserError, match=r"^loss\.terms\.a\.loss: "):
        instantiate_node(cfg.loss, "loss")


def leaves(error: BaseException) -> None:
    """Leaves as Lightning does, with 1 once it was interrupted."""
    try:
        raise error
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (UserError("[red] no\nsuch"), 2, "error: [red] no such\n"),
        (RuntimeError("odd"), 1, "fault: RuntimeError: odd (SEG_TRACEBACK=1 shows where)\n"),
    ],
)
def test_a_job_that_ends_badly_is_one_line_and_its_code(monkeypatch, capsys, error, code, text):
    monkeypatch.setattr(sys, "argv", ["train", "model.width=4"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as left:
        command("train")(lambda cfg: leaves(error))()
    assert left.value.code == code
    assert capsys.readouterr().err == text


def test_the_other_jobs_of_a_sweep_go_on(monkeypatch, capsys, tmp_path):
    seen = []

    def job(cfg):
        seen.append(cfg.panels)
        if cfg.panels == 0:
            raise UserError("not 0")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "-m", "panels=0,1"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as left:
        command("evaluate", sweeper="seg.multirun.sweeper")(job)()
    assert (seen, left.value.code) == ([0, 1], 2)
    assert capsys.readouterr().err.splitlines()[1:] == ["error: not 0"]  # Hydra names the job first


def test_a_sweep_checks_each_value_of_each_option():
    check_command_line(
        "train", ["model=fcn,unet", "seed=0,1", "optim.lr=choice(0.1,0.2)"], multirun=True
    )
    with pytest.raises(UserError, match=r"model=unetp: no such model"):
        check_command_line("train", ["seed=0,1", "model=fcn,unetp"], multirun=True)
    with pytest.raises(UserError, match="no model matches"):
        check_command_line("train", ["model=glob(x*)"], multirun=True)
    with pytest.raises(UserError, match=r"optim.lr=x"):
        check_command_line("train", ["seed=0,1", "optim.lr=0.1,x"], multirun=True)


def test_a_sweep_over_folders_of_data_is_refused_if_one_is_missing(tmp_path, monkeypatch, capsys):
    words = ["data=folder", "data.classes=[a,b]", f"data.root={tmp_path},nowhere"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "-m", *words])
    with pytest.raises(SystemExit) as left:
        command("train", sweeper="seg.multirun.sweeper")(lambda cfg: None)()
    message = "error: data.root=nowhere: no such folder; give the folder of the data"
    assert (left.value.code, capsys.readouterr().err.strip()) == (2, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=unetp", "did you mean unetpp?"),
        ("data=isbi2012 data.root=nowhere", "data.root=nowhere: no such folder"),
        pytest.param(
            "trainer=gpu", "no GPU that this PyTorch",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)  # fmt: skip
def test_a_mistake_exits_with_2_one_line_and_leaves_nothing(tmp_path, words, message):
    done = seg("train", *words.split(), cwd=tmp_path)
    assert (done.code, done.out, done.left) == (2, "", [])
    assert done.err.startswith("error: ") and message in done.err and done.err.count("\n") == 1


def test_a_warning_within_a_command_fails_its_test(monkeypatch):
    monkeypatch.setattr(models, "list_layers", lambda *_: warnings.warn("odd", stacklevel=1))
    with pytest.raises(UserWarning, match="odd"):
        models.show_network(compose_checked("models", ["model.width=2", "data.size=64"]))
