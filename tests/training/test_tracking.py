"""metrics.csv, what keeps a logger from harming its run, and the words that choose loggers."""

import inspect
import os
import re
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from unittest.mock import create_autospec

import hydra
import numpy as np
import pytest
from forked import ended, forked
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import OmegaConf

from seg import errors
from seg.cli import conf_files
from seg.cli.command import search_path_override
from seg.cli.compose import compose_checked, instantiate_node, plain_config
from seg.errors import UserError
from seg.runs.metrics_csv import read_metrics
from seg.training.loggers import mlflow
from seg.training.loggers.base import Picture, TrackedRun, Tracker, best_direction, flatten_options
from seg.training.loggers.guarded import FaultTolerantLogger, finish_loggers, start_loggers
from seg.training.loggers.metrics_logger import MetricsCSV


def test_rows_keep_their_columns_when_new_ones_come(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    csv.log_metrics({"train/loss": 0.5}, step=1)
    csv.log_metrics({"val/dice": 0.7}, step=1)
    csv.log_metrics({"train/loss": 0.25}, step=2)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "0.5", "val/dice": ""},
        {"step": "1", "train/loss": "", "val/dice": "0.7"},
        {"step": "2", "train/loss": "0.25", "val/dice": ""},
    ]


def test_every_row_written_survives_a_kill(tmp_path):
    def log() -> None:
        csv = MetricsCSV(tmp_path / "metrics.csv")
        for step in range(50):
            csv.log_metrics({"loss": step / 2} | ({"dice": 1.0} if step > 40 else {}), step)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(log, tmp_path, 1.0, 60), tmp_path, 60).code == -signal.SIGKILL
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [float(r["loss"]) for r in rows] == [s / 2 for s in range(50)] and rows[-1][
        "dice"
    ] == "1.0"


class Noted(Tracker):
    """Keeps what it is called with; raises what is put in ``fault``. The newest is ``made``."""

    made: ClassVar[Tracker]

    def __init__(self, run: TrackedRun, fault: str | None = None) -> None:
        self.run, self.fault, self.calls = run, fault and RuntimeError(fault), []
        Noted.made = self

    def start(self, known):
        self.note("start", known)
        return known or f"id-of-{self.run.name}"

    def log(self, values, step):
        self.note("log", dict(values), step)

    def show(self, pictures, step):
        self.note("show", step)

    def finish(self, status, summary, step):
        self.note("finish", status, dict(summary), step)

    def note(self, *call):
        self.calls.append(call)
        if self.fault:
            raise self.fault


def followed(folder, name="a-run", **more) -> TrackedRun:
    return TrackedRun(name, folder, {"seed": 3, "optim": {"lr": 0.1}}, 42, **more)


@pytest.fixture
def noted(tmp_path, caplog):
    caplog.set_level("INFO", "seg")
    tracker = Noted(followed(tmp_path))
    return tracker, FaultTolerantLogger("noted", tracker)


def test_curves_end_with_fitting_and_the_summary_comes_last(noted):
    tracker, logger = noted
    logger.log_metrics({"val/dice": 0.5}, 7)
    logger.log_pictures([])
    logger.finalize("success")
    logger.log_metrics({"val/dice": 0.4}, 9)  # the best checkpoint's scoring
    finish_loggers(
        [MetricsCSV(tracker.run.folder / "x"), logger], "finished", {"best/val/dice": 0.4}
    )
    assert tracker.calls == [
        ("log", {"val/dice": 0.5}, 7),
        ("show", 7),
        ("finish", "finished", {"best/val/dice": 0.4}, 9),
    ]


def test_a_logger_that_fails_is_told_once_and_left_alone_after_three_failures(noted, caplog):
    tracker, logger = noted
    tracker.fault = RuntimeError("the disk\nis full")
    for step in range(5):
        logger.log_metrics({"x": 1.0}, step)
    assert len(tracker.calls) == 3
    logger.finish("finished", {})
    assert [call[0] for call in tracker.calls] == ["log", "log", "log", "finish"]
    told = [record.message for record in caplog.records]
    assert told == [
        "noted: RuntimeError: the disk is full; the run goes on, metrics.csv has it all",
        "noted: failed 3 times in a row; logger disabled",
    ]


def test_what_a_logger_says_as_it_fails_holds_no_key(noted, caplog, monkeypatch):
    tracker, logger = noted
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token-1")
    monkeypatch.setenv("wandb_api_key", "canary-key-2")
    monkeypatch.setenv("AWS_SECRET", "canary-secret-4")
    tracker.fault = RuntimeError(
        "canary-token-1, canary-secret-4 and canary-key-2 at postgresql://me:canary-password-3@host/db, http://x/y"
    )
    logger.log_metrics({"x": 1.0}, 0)
    assert "canary" not in caplog.text
    assert "***, *** and *** at postgresql://***@host/db, http://x/y" in caplog.text


def test_a_logger_that_recovers_is_used_again(noted, caplog):
    tracker, logger = noted
    for step in range(9):
        tracker.fault = RuntimeError("busy") if step % 3 else None
        logger.log_metrics({"x": 1.0}, step)
    assert len(tracker.calls) == 9 and len(caplog.records) == 1


def test_an_interrupt_passes_through_a_logger(noted):
    tracker, logger = noted
    tracker.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"x": 1.0}, 0)


def test_a_second_interrupt_is_heard_while_loggers_finish(noted):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning leaves it
    try:
        finish_loggers([noted[1]], "finished", {})
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a background job wants it
        finish_loggers([noted[1]], "interrupted", {})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def nodes(**faults):
    target = f"{Noted.__module__}.Noted"
    return OmegaConf.create({k: {"_target_": target, "fault": v} for k, v in faults.items()})


def test_a_logger_that_cannot_start_is_told_and_the_others_start(tmp_path, caplog):
    caplog.set_level("INFO", "seg")
    loggers = start_loggers(nodes(first="locked", second=None), followed(tmp_path))
    assert [logger.name for logger in loggers] == ["second"]
    assert caplog.messages == [
        "first: can't be started (RuntimeError: locked); the run goes on without, metrics.csv has it all"
    ]


def test_a_run_folder_that_was_followed_before_is_followed_under_its_id(tmp_path):
    start_loggers(nodes(one=None), followed(tmp_path))
    (again,) = start_loggers(nodes(one=None), followed(tmp_path, "another-name"))
    assert again.tracker.calls == [("start", "id-of-a-run")]
    (other,) = start_loggers(nodes(two=None), followed(tmp_path))
    assert other.tracker.calls == [("start", None)]


def test_without_loggers_nothing_is_written(tmp_path):
    assert start_loggers(compose_checked("train", ["logger=none"]).logger, followed(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("val/dice", "max"),
        ("val/iou/membrane", "max"),
        ("val/precision", "max"),
        ("val/dice_per_image", "max"),
        ("val/dice_per_image_sd", None),
        ("val/loss", "min"),
        ("val/loss/dice", "min"),
        ("val/hausdorff_95/cell", "min"),
        ("val/ece", "min"),
        ("train/loss", None),
        ("lr", None),
        ("epoch", None),
    ],
)
def test_the_best_of_a_score_is_its_highest_and_of_a_loss_its_lowest(name, which):
    assert best_direction(name) == which


def test_a_run_can_be_filtered_by_its_options_its_choices_and_its_job(tmp_path):
    run = followed(
        tmp_path, job=2, choices={"model": "unetpp", "data": "membranes", "optim": "sgd"}
    )
    assert flatten_options(run.settings) == {
        "seed": 3, "optim/lr": 0.1, "choices/model": "unetpp", "choices/data": "membranes",
        "choices/optim": "sgd", "job": 2, "parameters": 42,
    }  # fmt: skip
    assert run.tags(["mine", "unetpp"]) == ["mine", "unetpp", "membranes"]
    assert followed(tmp_path).tags(None) == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["wandb"]),
        (["logger=csv"], []),
        (["logger=[tensorboard,none,trackio,wandb]"], ["tensorboard", "trackio", "wandb"]),
    ],
)
def test_the_loggers_named_are_those_composed(words, names):
    logger = plain_config(compose_checked("train", words).logger)
    assert list(logger) == names


def test_each_of_several_loggers_has_its_own_options():
    words = ["logger=[wandb,trackio]", "logger.trackio.project=b", "logger.wandb.tags=[x]"]
    logger = compose_checked("train", words).logger
    assert (logger.wandb.project, logger.trackio.project) == ("seg", "b")
    assert (logger.wandb.tags, logger.trackio.tags) == (["x"], [])


def test_an_experiment_may_name_several_loggers(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [{override /logger: [tensorboard, trackio]}]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = [
        *search_path_override(str(tmp_path)),
        "experiment=mine",
        "logger.tensorboard.seconds=5",
    ]
    logger = compose_checked("train", words).logger
    assert list(logger) == ["tensorboard", "trackio"] and logger.tensorboard.seconds == 5
    with pytest.raises(UserError, match=r"did you mean logger.trackio.project\?"):
        compose_checked("train", [*words, "logger.trackio.projekt=x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("logger=[wandb,trakio]", r"logger=trakio: no such logger; did you mean trackio\?"),
        ("logger=[]", "logger takes one of csv, mlflow, none"),
        ("logger.project=x", r"logger.project: no such option; did you mean logger.wandb.project\?"),
        ("logger.trackio.project=x", r"trackio isn't chosen; add logger=trackio, or logger=\[wandb,trackio\]"),
        ("logger=[wandb,trackio] logger.wandb.timeout=soon", "logger.wandb.timeout=soon: a number is needed"),
    ],
)  # fmt: skip
def test_a_wrong_word_about_loggers_is_told_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        compose_checked("train", words.split(" "))
    assert "\n" not in str(error.value)


def test_a_logger_whose_package_is_missing_names_its_extra(monkeypatch):
    missing: set[str] = set()
    monkeypatch.setattr(errors, "find_spec", lambda p: None if p in missing else find_spec(p))
    for name in ("trackio", "tensorboard", "mlflow"):
        (target,) = (node["_target_"] for node in yaml_of(name).values())
        missing.add(name)
        need = f"needs the extra {name}: pip install 'seg-experiments[{name}]'"
        assert errors.missing_extra_hint(target) == need
    with pytest.raises(
        UserError, match=r"logger.mlflow._target_=.*needs the extra mlflow"
    ) as error:
        compose_checked("train", ["logger=[wandb,mlflow]"])
    assert "\n" not in str(error.value)
    assert errors.missing_extra_hint("seg.training.loggers.wandb.Wandb") is None


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard", "mlflow"])
def test_the_file_of_a_logger_holds_the_arguments_of_its_constructor_with_their_defaults(name):
    (key, node), *others = yaml_of(name).items()
    assert key == name and not others
    takes = inspect.signature(hydra.utils.get_class(node.pop("_target_"))).parameters
    defaults = {k: v.default for k, v in takes.items() if k != "run"}
    defaults |= (
        {"tags": []} if "tags" in defaults else {}
    )  # None there, as no list may be a default
    assert node == defaults


def yaml_of(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_files.CONF / "logger" / f"{name}.yaml"))


def test_mlflow_gets_run_settings_numbers_and_pictures_by_lightnings_logger(tmp_path, monkeypatch):
    made = create_autospec(MLFlowLogger)  # refuses arguments that the real one hasn't
    made.return_value.run_id = "abc"
    monkeypatch.setattr(mlflow, "MLFlowLogger", made)
    monkeypatch.chdir(tmp_path)
    node = {
        "_target_": "seg.training.loggers.mlflow.MLflow",
        "project": "p",
        "group": None,
        "tags": ["t"],
    }
    run = followed(tmp_path, group="sweep", choices={"model": "fcn"})
    tracker = instantiate_node(OmegaConf.create(node), "logger.mlflow", run=run)
    assert tracker.start(None) == "abc"
    place = (tmp_path / "outputs" / "mlflow").as_uri()
    tags = {"group": "sweep", "tags": "t fcn"}
    uri = "sqlite:///outputs/mlflow.db"
    made.assert_called_once_with("p", "a-run", uri, tags, artifact_location=place, run_id=None)
    logger = made.return_value
    assert logger.log_hyperparams.call_args.args[0]["optim/lr"] == 0.1
    tracker.log({"val/dice": 0.5}, 3)
    logger.log_metrics.assert_called_once_with({"val/dice": 0.5}, 3)
    zeros = np.zeros((8, 8), np.uint8)
    shown = Picture("x", np.zeros((8, 8, 3), np.uint8), zeros, zeros, ["a"], [(0, 0, 0)])
    tracker.show([shown], 3)
    assert logger.experiment.log_image.call_args.kwargs == {"key": "val/images", "step": 3}
    tracker.finish("interrupted", {"best/val/dice": 0.5}, 4)
    logger.log_metrics.assert_called_with({"best/val/dice": 0.5}, 4)
    logger.finalize.assert_called_once_with("KILLED")
    again = instantiate_node(OmegaConf.create(node), "logger.mlflow", run=run)
    logger.log_hyperparams.reset_mock()
    again.start("abc")
    assert made.call_args.kwargs["run_id"] == "abc" and not logger.log_hyperparams.called


def test_a_tracker_of_ones_own_is_written_and_named_as_the_docs_have_it(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (text,) = re.findall(r"```yaml\n# mine/logger/lines.yaml\n(.*?)```", page, re.S)
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine" / "logger").mkdir(parents=True)
    (tmp_path / "mine" / "logger" / "lines.yaml").write_text(text)
    words = [
        *search_path_override(str(tmp_path / "mine")),
        "logger=[lines,csv]",
        "logger.lines.file=n.txt",
    ]
    (logger,) = start_loggers(compose_checked("train", words).logger, followed(tmp_path))
    logger.log_metrics({"val/dice": 0.5}, 3)
    logger.finish("finished", {"best/val/dice": 0.5})
    said = (tmp_path / "n.txt").read_text()
    assert said == "3 {'val/dice': 0.5}\n3 {'best/val/dice': 0.5}\n"


def test_pictures_are_logged_at_the_latest_step_of_the_numbers(noted):
    tracker, logger = noted
    logger.log_metrics({"train/loss": 1.0}, 7)
    logger.log_metrics({"lr": 0.1}, None)
    logger.log_pictures([])
    assert tracker.calls[-1] == ("show", 7)
