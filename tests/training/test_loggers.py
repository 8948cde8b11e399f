"""What loggers really record: read back from W&B's files, trackio's database and TensorBoard's events."""

import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import requests
from omegaconf import OmegaConf
from test_tracking import Noted, followed

from seg.cli.compose import compose_checked
from seg.cli.conf_files import CONF
from seg.commands import sync
from seg.errors import RunError, UserError
from seg.runs.metrics_csv import read_metrics
from seg.runs.records import read_json
from seg.runs.run_info import RunInfo
from seg.training.fit import RunPruned
from seg.training.loggers import wandb_offline
from seg.training.loggers.base import Picture, TrackedRun, Tracker
from seg.training.loggers.guarded import start_loggers
from seg.training.loggers.wandb import Wandb, offline_reason, server_answers
from seg.training.run import train

CANARY = "canary" + "0" * 34
TINY = ["data.size=64", "data.train=4", "data.val=2", "data.test=1", "loader.crop=32", "loader.repeats=2",
        "model.width=2", "trainer=cpu", "trainer.max_epochs=3", "panels=1", "trainer.log_every_n_steps=1"]  # fmt: skip


class Breaking(Tracker):
    """Breaks in the middle of training."""

    def __init__(self, run: TrackedRun) -> None:
        self.left = 3

    def start(self, known):
        return None

    def log(self, values, step):
        self.left -= 1
        if self.left < 0:
            raise OSError("no space left")

    def show(self, pictures, step):
        raise OSError("no space left")

    def finish(self, status, summary, step):
        raise OSError("no space left")


@pytest.fixture(scope="module")
def surroundings():
    """A key, and a W&B server that isn't there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.setenv("WANDB_API_KEY", CANARY)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        yield patch


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, database, surroundings) -> Path:
    """The folder of a run that three loggers followed, and a fourth that broke."""
    outputs = tmp_path_factory.mktemp("outputs")
    cfg = compose_checked(
        "train",
        ["logger=[wandb,trackio,tensorboard]", f"logger.trackio.folder={database}", "logger.wandb.tags=[mine]",
         *TINY, f"outputs={outputs}"],
    )  # fmt: skip
    node = {"_target_": f"{Breaking.__module__}.Breaking"}
    OmegaConf.update(cfg, "logger.breaking", node, force_add=True)
    choices = {"data": "membranes", "model": "unet", "loss": "bce_dice"}
    asked = RunInfo("a-run", ["seed=0"], choices, "a-sweep", 4, outputs / "a-sweep" / "a-run")
    train(cfg, asked=asked)
    return outputs / "a-sweep" / "a-run"


def rows_of(folder: Path, key: str) -> dict[int, float]:
    """Step -> value of a metric while training, as metrics.csv has it."""
    rows = [(int(r["step"]), float(r[key])) for r in read_metrics(folder / "metrics.csv") if r[key]]
    return dict(
        rows[:-1] if key.startswith("val/") else rows
    )  # the best checkpoint's scoring comes last


def inspected(run: Path) -> list[dict]:
    """Records of an offline run, by W&B's own reader."""
    line = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]


def summary_of(records: list[dict]) -> dict:
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return summary


def test_wandb_has_curves_of_training_the_best_as_summary_and_the_final_numbers(tracked):
    (run,) = (tracked / "wandb").glob("offline-run-*")
    records = inspected(run)
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    for key in ("val/dice", "val/loss", "train/loss", "lr"):
        found = [(item["trainer/global_step"], item[key]) for item in items if key in item]
        assert len(found) > 2 and dict(found) == pytest.approx(rows_of(tracked, key)), key
    assert not any(key.startswith(("best/", "test/")) for item in items for key in item)
    shown = [item["trainer/global_step"] for item in items if item.get("val/images.count") == 1]
    assert shown == list(rows_of(tracked, "val/dice"))
    summary, final = summary_of(records), read_json(tracked / "run.json")
    highest = max(rows_of(tracked, "val/dice").values())
    assert summary["val/dice"] == {"max": pytest.approx(highest)}
    assert summary["val/loss"] == {"min": pytest.approx(min(rows_of(tracked, "val/loss").values()))}
    assert summary["best/val/dice"] == pytest.approx(highest)
    assert summary["test/dice"] == pytest.approx(final["metrics"]["test/dice"])
    assert summary["minutes"] == pytest.approx(final["minutes"])
    assert (summary["steps"], summary["parameters"]) == (final["steps"], final["parameters"])
    assert summary["images_per_second"] > 0 and summary["status"] == "finished"
    steps = {
        m["metric"].get("name", "*"): m["metric"]["step_metric"] for m in records if "metric" in m
    }
    assert steps["*"] == steps["val/dice"] == "trainer/global_step"
    (about,) = (record["run"] for record in records if record["type"] == "run")
    assert (about["display_name"], about["run_group"], about["project"]) == (
        "a-run",
        "a-sweep",
        "seg",
    )
    assert about["tags"] == ["mine", "membranes", "unet", "bce_dice"]
    config = about["config"]["update"]
    saved = OmegaConf.to_container(OmegaConf.load(tracked / "config.yaml"))
    assert {key: config[key] for key in saved} == saved
    assert config["job"] == 4 and config["choices"]["loss"] == "bce_dice"
    assert next(record["exit"] for record in records if record["type"] == "exit")["exit_code"] == 0


def test_a_logger_that_breaks_in_training_is_told_once_and_the_run_finishes(tracked):
    assert read_json(tracked / "run.json")["status"] == "finished"
    told = [line for line in (tracked / "log.txt").read_text().splitlines() if "breaking:" in line]
    assert told == [
        "breaking: OSError: no space left; the run goes on, metrics.csv has it all",
        "breaking: failed 3 times in a row; logger disabled",
    ]


def test_no_file_of_a_run_holds_the_key(tracked, database):
    files = [file for root in (tracked, database) for file in root.rglob("*") if file.is_file()]
    assert len(files) > 30
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert "wandb: offline (127.0.0.1 doesn't answer" in (tracked / "log.txt").read_text()


def logs_of(name: str, run_id: str) -> list[dict]:
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_logs("seg", name, run_id=run_id)


def test_trackio_has_the_same_curves_pictures_group_and_config(tracked, database):
    import trackio

    known = read_json(tracked / "loggers.json")["trackio"]
    (run,) = (run for run in trackio.Api().runs("seg") if run.id == known)
    assert run.name == "a-run" and run.config["_Group"] == "a-sweep"
    assert run.config["optim/lr"] == 3.0e-3 and run.config["choices/model"] == "unet"
    logs = logs_of("a-run", known)
    for key in ("val/dice", "val/loss", "train/loss"):
        found = [(log["step"], log[key]) for log in logs if key in log]
        assert len(found) > 2 and dict(found) == pytest.approx(rows_of(tracked, key)), key
    shown = [(log["step"], log["val/images"]["file_path"]) for log in logs if "val/images" in log]
    assert [step for step, _ in shown] == list(rows_of(tracked, "val/dice"))
    assert all((database / "media" / file).stat().st_size > 1000 for _, file in shown)
    (last,) = (log for log in logs if "best/val/dice" in log)
    assert last["best/val/dice"] == pytest.approx(max(rows_of(tracked, "val/dice").values()))
    assert "trackio: " in (tracked / "log.txt").read_text()


def test_tensorboard_has_the_same_curves_and_pictures_and_the_final_numbers(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard")).Reload()
    for key in ("val/dice", "val/loss", "train/loss"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert len(found) > 2 and dict(found) == pytest.approx(rows_of(tracked, key), rel=1e-5), key
    shown = [event.step for event in events.Images("val/images")]
    assert shown == list(rows_of(tracked, "val/dice"))
    final = read_json(tracked / "run.json")["metrics"]
    for key in ("best/val/dice", "test/dice"):
        (event,) = events.Scalars(key)
        assert event.value == pytest.approx(final[key], rel=1e-5)
    assert "_hparams_/session_start_info" in events.summary_metadata


class Raises(L.Callback):
    """Ends training at its first step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *arguments) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "left", "status"),
    [
        (RunPruned("hopeless"), RunPruned, "pruned"),
        (KeyboardInterrupt(), SystemExit, "interrupted"),
        (RuntimeError("no memory"), RuntimeError, "failed"),
    ],
)
def test_a_logger_is_closed_with_the_way_in_which_a_run_ends(tmp_path, error, left, status):
    cfg = compose_checked("train", ["logger=none", *TINY, "panels=0", f"outputs={tmp_path}"])
    node = {"_target_": f"{Noted.__module__}.Noted"}
    OmegaConf.update(cfg, "logger.noted", node, force_add=True)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(left):
            train(cfg, [Raises(error)])
    finally:
        signal.signal(signal.SIGINT, before)
    calls = Noted.made.calls
    assert calls[0][0] == "start" and calls[-1] == ("finish", status, {}, 0)
    assert [call[0] for call in calls].count("finish") == 1


def follow(run: Path, logger: str, name: str = "a-run", **options):
    """A logger of a run that isn't trained."""
    run.mkdir(exist_ok=True)
    node = OmegaConf.load(CONF / "logger" / f"{logger}.yaml")
    node[logger].update(options)
    return start_loggers(node, followed(run, name))


def listing(outputs: Path, **options):
    """What ``seg.sync`` is told."""
    cfg = OmegaConf.load(CONF / "sync.yaml")
    cfg.update({"outputs": str(outputs), **options})
    return cfg


def test_two_runs_of_a_process_are_two_in_wandb_and_a_resumed_one_is_one(surroundings, tmp_path):
    (first,) = follow(tmp_path / "a", "wandb", offline=True)
    first.log_metrics({"val/dice": 0.9}, 1)
    (second,) = follow(tmp_path / "b", "wandb", "b-run", offline=True)  # the first unfinished
    second.log_metrics({"val/dice": 0.2}, 1)
    second.finish("failed", {})
    time.sleep(1)  # W&B names folders by the second
    rows = "step,val/dice,val/loss\n1,0.9,0.4\n2,0.3,0.7\n3,nan,nan\n"
    (tmp_path / "a" / "metrics.csv").write_text(rows)
    (again,) = follow(tmp_path / "a", "wandb", offline=True)
    again.log_metrics({"val/dice": 0.3}, 2)
    again.finish("failed", {})
    of_a = sorted(file.parent for file in tmp_path.glob("a/wandb/offline-run-*/*.wandb"))
    (of_b,) = (file.parent for file in tmp_path.glob("b/wandb/offline-run-*/*.wandb"))
    ids = [run.name.rpartition("-")[2] for run in (*of_a, of_b)]
    assert ids[0] == ids[1] != ids[2]
    assert read_json(tmp_path / "a" / "loggers.json") == {"wandb": ids[0]}
    records = inspected(of_a[1])
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [item["val/dice"] for item in items] == [0.3]
    summary = summary_of(records)
    assert (summary["val/dice"], summary["val/loss"]) == ({"max": 0.9}, {"min": 0.4})
    assert next(record["run"] for record in records if record["type"] == "run")["resume"]
    assert next(record["exit"] for record in records if record["type"] == "exit")["exit_code"] == 1


def test_trackio_connects_to_nothing_and_prints_nothing(tmp_path, database, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: tried.append(a))
    (logger,) = follow(tmp_path, "trackio", folder=str(database))
    logger.log_metrics({"val/dice": 0.5}, 1)
    logger.finish("finished", {"best/val/dice": 0.5})
    assert tried == []
    assert len(logs_of("a-run", read_json(tmp_path / "loggers.json")["trackio"])) == 2
    printed = capsys.readouterr()
    ours = [line for line in printed.out.splitlines() if not line.startswith("trackio: ")]
    assert (ours, printed.err) == ([], "")


def test_runs_of_one_name_are_two_in_trackio_and_a_resumed_one_is_one(tmp_path, database):
    for folder, step in (("a", 1), ("b", 1), ("a", 2)):
        (logger,) = follow(tmp_path / folder, "trackio", "same", folder=str(database))
        logger.log_metrics({"val/dice": 0.1 * step}, step)
        logger.finish("finished", {})
    ids = {f: read_json(tmp_path / f / "loggers.json")["trackio"] for f in "ab"}
    assert ids["a"] != ids["b"]
    assert [log["step"] for log in logs_of("same", ids["a"])] == [1, 2]
    assert [log["step"] for log in logs_of("same", ids["b"])] == [1]


def test_a_database_of_trackio_that_cannot_be_used_is_told(tmp_path, database, caplog):
    caplog.set_level("INFO", "seg")
    follow(tmp_path / "one", "trackio", folder=str(database))[0].finish("finished", {})
    caplog.clear()
    assert follow(tmp_path / "two", "trackio", folder=str(tmp_path / "other")) == []
    assert "trackio: can't be started (RuntimeError: this process already writes to" in caplog.text
    caplog.clear()
    wrong = {"folder": str(database), "project": "registry-x"}
    assert follow(tmp_path / "three", "trackio", **wrong) == []
    assert "trackio: can't be started (ValueError: " in caplog.text


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_without_a_key_w_and_b_is_offline_and_says_why(no_key):
    assert "no API key; run wandb login" in str(offline_reason(4.0))


def test_the_environment_can_ask_for_offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline_reason(4.0) == "WANDB_MODE=offline"


@pytest.mark.parametrize("kind", ["refuses", "never answers", "name unknown", "looks up"])
def test_a_server_that_is_not_there_is_given_up_in_time(no_key, monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        if kind == "refuses":
            server.close()
        elif kind == "name unknown":
            url = "http://nowhere.invalid"
        elif kind == "looks up":  # a name server that doesn't answer knows no timeout
            monkeypatch.setattr(requests, "head", lambda *a, **k: time.sleep(4))
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.perf_counter()
        assert "doesn't answer within 1 s" in str(offline_reason(1.0))
        assert time.perf_counter() - started < 3


def test_a_server_that_answers_is_heard(fake_wandb):
    assert server_answers(fake_wandb.url, 4.0)


@pytest.fixture
def fake_wandb():
    """As much of a W&B server as ``wandb`` needs to send a run, with what it was sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = {}
            self.server.asked += self.path.endswith("file_stream")
            fault = self.server.fault if self.server.asked > 1 else None
            if fault == "500":
                return self.send_error(500)
            if fault == "reset":  # closed with what was sent unread: RST
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return self.connection.close()
            if fault in ("slow", "silent"):
                self.server.over.wait(1.5 if fault == "slow" else 120)
            if self.path == "/graphql":
                reply = {"data": self.server.answer(json.loads(body))}
            elif self.path.endswith("file_stream"):
                self.server.keep(json.loads(body).get("files", {}))
            text = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD

        def log_message(self, *arguments):
            """Says nothing."""

    class Server(http.server.ThreadingHTTPServer):
        history: list[dict]
        summary: dict
        asked, fault = 0, None  # streams; what happens from the second one on
        over = threading.Event()

        def handle_error(self, *arguments) -> None:
            """Says nothing of clients that went away."""

        def answer(self, request: dict) -> dict:
            query, given = request["query"], request.get("variables") or {}
            owner = {"id": "E", "name": "me"}
            if "UpsertBucket" in query:
                project = {"id": "P", "name": "seg", "entity": owner}
                bucket = {
                    "id": "B",
                    "name": given["name"],
                    "displayName": "",
                    "config": "{}",
                    "project": project,
                }
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            if "CreateRunFiles" in query:
                files = [{"name": f, "uploadUrl": f"{self.url}/put"} for f in given["files"]]
                return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
            if "RunResumeStatus" in query:
                bucket = {
                    "id": "B", "name": given["name"], "displayName": "", "notes": "", "tags": [], "config": "{}",
                    "historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0,
                    "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
                    "eventsTail": "[]", "summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": 1}',
                }  # fmt: skip
                return {"model": {"id": "P", "name": "seg", "entity": owner, "bucket": bucket}}
            return {}

        def keep(self, files: dict) -> None:
            if rows := files.get("wandb-history.jsonl"):
                self.history[rows["offset"] :] = map(json.loads, rows["content"])
            if last := files.get("wandb-summary.json"):
                self.summary = json.loads(last["content"][-1])

    with Server(("127.0.0.1", 0), Handler) as server:
        server.history, server.summary = [], {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["offline", "online"])
def test_a_resumed_run_reaches_a_server_as_one(how, fake_wandb, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for step in (1, 2):
        (logger,) = follow(tmp_path / "run", "wandb", offline=how == "offline", timeout=20.0)
        logger.log_metrics({"val/dice": 1 / step}, step)
        (tmp_path / "run" / "metrics.csv").write_text("step,val/dice\n1,1.0\n2,0.5\n")
        logger.finish("finished", {"best/val/dice": 1.0} if step == 2 else {})
        time.sleep(1.1)
    if how == "offline":
        found = sync.sync(listing(tmp_path, send=True))
        assert [one.state for one in found] == ["sent", "sent"]
        assert sync.sync(listing(tmp_path, send=True)) == found
    rows = [(row["trainer/global_step"], row["val/dice"]) for row in fake_wandb.history]
    assert rows == [(1, 1.0), (2, 0.5)]
    assert fake_wandb.summary["val/dice"] == {"max": 1.0}
    assert fake_wandb.summary["best/val/dice"] == 1.0
    assert CANARY not in capfd.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_whose_server_fails_goes_on_offline_under_its_id(
    fake_wandb, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO", "seg")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(fake_wandb, "answer", lambda request: time.sleep(10), raising=False)
    (tmp_path / "loggers.json").write_text('{"wandb": "abcd1234"}')
    (tmp_path / "metrics.csv").write_text("step,val/dice\n1,0.5\n")
    (logger,) = follow(tmp_path, "wandb", timeout=2.0)
    logger.finish("finished", {})
    assert "wandb: offline (" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*-abcd1234/*.wandb"))


@pytest.mark.slow
def test_a_server_that_is_lost_in_training_does_not_hold_the_run_up(
    fake_wandb, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO", "seg")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (logger,) = follow(tmp_path / "run", "wandb", timeout=20.0, finish_timeout=2.0)
    logger.log_metrics({"val/dice": 0.5}, 1)
    fake_wandb.shutdown()
    fake_wandb.server_close()
    logger.log_metrics({"val/dice": 0.6}, 2)
    started = time.perf_counter()
    logger.finish("finished", {"best/val/dice": 0.6})
    assert time.perf_counter() - started < 20
    assert (
        "wandb: TimeoutError: not everything was sent; send the rest: python -m seg.sync"
        in caplog.text
    )
    told = caplog.text.rpartition("wandb sync --include-online ")[2].partition(";")[0]
    assert list(Path(told).glob("*.wandb"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "reset", "silent", "slow"])
def test_a_server_that_fails_in_the_middle_of_a_run_neither_ends_nor_delays_it(
    fault, fake_wandb, monkeypatch, tmp_path, capfd
):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = [*TINY, f"outputs={tmp_path}", "logger=wandb", "logger.wandb.timeout=20"]
    monkeypatch.setattr(fake_wandb, "fault", fault)
    spent: list[float] = []
    finish = Wandb.finish

    def timed(*arguments) -> None:
        started = time.perf_counter()
        try:
            finish(*arguments)
        finally:
            spent.append(time.perf_counter() - started)

    monkeypatch.setattr(Wandb, "finish", timed)
    limit = 30.0 if fault == "slow" else 4.0
    train(compose_checked("train", [*words, f"logger.wandb.finish_timeout={limit}"]))
    folder = (tmp_path / "latest").resolve()
    assert read_json(folder / "run.json")["status"] == "finished" and fake_wandb.asked > 1
    assert len(rows_of(folder, "val/dice")) == 3 and len(rows_of(folder, "train/loss")) >= 3
    assert spent[0] < limit + 10
    told = (folder / "log.txt").read_text()
    left = [one for one in wandb_offline.find_offline_runs(tmp_path) if not one.sent]
    if fault == "slow":
        assert "not everything was sent" not in told and left == []
        assert [row["val/dice"] for row in fake_wandb.history if "val/dice" in row]
    else:
        assert (
            "wandb: TimeoutError: not everything was sent; send the rest: python -m seg.sync"
            in told
        )
        assert [(one.name, one.state) for one in left] == [(folder.name[20:], "not sent")]
        monkeypatch.setattr(fake_wandb, "fault", None)
        sent = sync.sync(listing(tmp_path, send=True))
        assert [one.state for one in sent] == ["sent"]
        assert fake_wandb.summary["status"] == "finished"
    everything = told + "".join(capfd.readouterr())
    assert CANARY not in everything
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("answer", [401, 403, 404, 500])
def test_a_key_that_the_server_refuses_is_told_in_time_and_appears_nowhere(
    answer, monkeypatch, tmp_path, capfd
):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.command == "HEAD" else answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD

        def log_message(self, *arguments):
            """Says nothing."""

    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        started = time.perf_counter()
        train(compose_checked("train", [*TINY, "logger=wandb", f"outputs={tmp_path}/outputs"]))
        server.shutdown()
    folder = (tmp_path / "outputs/latest").resolve()
    told = (folder / "log.txt").read_text()
    assert "wandb: offline (" in told and time.perf_counter() - started < 60
    assert read_json(folder / "run.json")["status"] == "finished"
    assert [one.state for one in wandb_offline.find_offline_runs(tmp_path / "outputs")] == [
        "not sent"
    ]
    assert CANARY not in "".join(capfd.readouterr())
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


@pytest.fixture
def recorded(tmp_path):
    """Three runs as W&B and ours leave them: one sent, one not, one that still runs."""
    for name, status, group in (
        ("sent", "finished", None),
        ("left", "finished", "a-sweep"),
        ("live", "running", None),
    ):
        run = tmp_path / "outputs" / "sweeps" / "s" / name
        offline = run / "wandb" / f"offline-run-20261127_10111{len(name)}-{name}"
        offline.mkdir(parents=True)
        (offline / f"run-{name}.wandb").write_bytes(b"x")
        record = {"name": f"the {name}", "group": group, "status": status}
        (run / "run.json").write_text(json.dumps(record))
        if name == "sent":
            (offline / f"run-{name}.wandb.synced").touch()
    (tmp_path / "outputs" / "latest").symlink_to(tmp_path / "outputs" / "sweeps")
    return tmp_path / "outputs"


def test_offline_runs_are_listed_with_name_group_date_and_whether_they_were_sent(recorded, capsys):
    found = sync.sync(listing(recorded))
    rows = {one.name: (one.group, one.started, one.state) for one in found}
    assert rows == {
        "the sent": (None, "2026-11-27 10:11:14", "sent"),
        "the left": ("a-sweep", "2026-11-27 10:11:14", "not sent"),
        "the live": (None, "2026-11-27 10:11:14", "running"),
    }
    printed = capsys.readouterr().out
    assert "3 recorded offline, 1 sent, 1 to send" in printed
    assert f"python -m seg.sync outputs={recorded} send=true" in printed


@pytest.mark.parametrize("running", [False, True])
def test_sending_hands_to_wandb_what_was_not_sent(recorded, fake_wandb, monkeypatch, running):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", fake_wandb.url)
    monkeypatch.setenv("WANDB_MODE", "offline")  # of training; sending is asked for
    lines = []

    def wandb(line, env, check):
        assert "WANDB_MODE" not in env and env["WANDB_API_KEY"] == CANARY
        lines.append(line)
        for folder in line[5:]:
            if "left" in folder:
                (Path(folder) / "run-left.wandb.synced").touch()

    monkeypatch.setattr(subprocess, "run", wandb)
    cfg = listing(recorded, send=True, running=running)
    if running:
        with pytest.raises(RunError, match="1 of 2 runs were not sent"):
            sync.sync(cfg)
    else:
        sync.sync(cfg)
    ((python, *call),) = lines
    assert python == sys.executable
    assert call[:4] == ["-m", "wandb", "sync", "--include-online"]
    sent = {Path(folder).parent.parent.name for folder in call[4:]}
    assert sent == ({"left", "live"} if running else {"left"})
    assert all(os.path.isdir(folder) for folder in call[4:])


def test_sending_without_a_key_or_a_server_is_told_in_one_line(recorded, no_key, monkeypatch):
    cfg = listing(recorded, send=True)
    with pytest.raises(UserError, match="no API key; run wandb login"):
        sync.sync(cfg)
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 doesn't answer") as error:
        sync.sync(cfg)
    assert CANARY not in str(error.value)


def test_a_folder_without_offline_runs_is_told(tmp_path, capsys):
    assert sync.sync(listing(tmp_path)) == []
    assert "was recorded offline by W&B" in capsys.readouterr().out
    with pytest.raises(RunError, match="outputs=nowhere: no such folder"):
        sync.sync(listing(Path("nowhere")))


def test_pictures_show_what_is_segmented_below_one_another():
    from seg.training.loggers.base import draw_page

    mask = np.zeros((100, 100), np.uint8)
    colors = [(1, 2, 3), (200, 10, 10)]
    one = Picture("x", np.zeros((100, 100, 3), np.uint8), mask, mask + 1, ["a", "b"], colors)
    single, double = draw_page([one]), draw_page([one, one])
    assert double.size == (single.width, 2 * single.height)
    seen = {color for _, color in single.getcolors(1 << 20)}
    assert set(colors) <= seen
